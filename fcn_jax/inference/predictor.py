"""From images to logits and label maps at the images' own size.

`predict` takes images as they are and keeps the device busy, `predict_tiled` one that is larger
than memory; `Predictor` is a network with the options of both. `full_size_logits` is the pure
function under them, which `fcn_jax.inference.evaluation` uses as well, so that a score and a picture never
disagree.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.sharding import Mesh
from jaxtyping import Array, Float, Shaped, UInt8

from fcn_jax import ops
from fcn_jax.canvas import (
    LARGEST_SIDE,
    Batch,
    Canvas,
    CanvasImage,
    Size,
    batch_of,
    canvas_for,
    canvas_side,
    exactly,
    group_by_canvas,
    original_canvas,
    run_ahead,
)
from fcn_jax.data.transforms import resize_features
from fcn_jax.devices import jit_in_least_memory, shardings
from fcn_jax.geometry import Geometry
from fcn_jax.inference import tiling
from fcn_jax.models.fcn import FCN
from fcn_jax.models.inputs import CAFFE, Features, Inputs, Preprocessing

if TYPE_CHECKING:
    from fcn_jax.runs import Run

# ======================================================================== a network for images


@dataclasses.dataclass(frozen=True)
class Predictor:
    """A trained network that takes images as they are: uint8 RGB of any size.

    A network of several inputs takes a dictionary of features instead of an image, such as
    ``{"image": uint8 (h, w, 3), "depth": uint16 (h, w)}``; one of several heads gives a
    dictionary of results.

    Images of similar size lie on one canvas and share a compiled program; each gets the result that
    it would get alone, whatever the canvas and the batch. Classifiers, and modules that are no
    `FCN` and know nothing of canvases, see each image at exactly its size.

    Attributes:
        model: The network.
        variables: Its parameters, ``{"params": ...}``, or the tree of parameters itself.
        preprocessing: How it was trained to see pixels; `Inputs` where it reads more than an image.
        scale: Factor on height and width before the network; results are at the original size.
        batch_size: Images at a time, over all devices; fewer where their canvases would have more
            than ``tile`` x ``tile`` pixels for each.
        canvas: The rule for canvases: a function from a side of an image, as the network sees it,
            to the canvas's side; or one canvas (height, width) for all. The default has four sides
            in each octave; with `fcn_jax.canvas.exactly` each image size is compiled.
        tile: Images whose canvas has more than ``tile`` x ``tile`` pixels are computed in tiles of
            at most this side, with the same result; but not by a classifier, nor at another scale
            than 1.
        mesh: Splits each batch over its axis ``data``; None runs on one device.

    Example:
        >>> predictor = Predictor.from_run(load_run("runs/camvid"))
        >>> labels = predictor.labels(image)  # uint8 (h, w)
    """

    model: nn.Module
    variables: Any
    preprocessing: Preprocessing | Inputs = CAFFE
    scale: float = 1.0
    batch_size: int = 8
    canvas: Canvas = canvas_side
    tile: int = LARGEST_SIDE
    mesh: Mesh | None = None

    def __post_init__(self) -> None:
        for name in ("scale", "batch_size", "tile"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")

    @classmethod
    def from_run(cls, run: Run, **options: Any) -> Predictor:
        """The predictor of a trained workdir (`fcn_jax.runs.load_run`)."""
        config: Any = run.config
        return cls(run.model, run.variables, run.inputs, config.scale, **options)

    # ---- results

    def __call__(
        self,
        images: Iterable[UInt8[np.ndarray, "h w 3"] | Features],
        *,
        scores: bool = False,
        progress: Callable[[int], object] | None = None,
    ) -> list[Any]:
        """Label maps, or scores, of any number of images; see `predict`."""
        if isinstance(images, Mapping):
            raise ValueError("images must be a list, also where there is one: [image]")
        results: dict[int, Any] = {}

        def finish(number: int, result: Any) -> None:
            results[number] = result
            if progress is not None:
                progress(1)

        def in_one_piece() -> Iterator[CanvasImage]:
            for number, image in enumerate(images):
                try:
                    tiled = self.is_tiled(image)
                    placed = None if tiled else self._place(number, image)
                except ValueError as error:
                    raise ValueError(f"image {number}: {error}") from None
                if placed is None:
                    finish(number, self.tiled(image, scores=scores))
                else:
                    yield placed

        for number, result in self._each(in_one_piece(), scores):
            finish(number, result)
        return [results[number] for number in range(len(results))]

    def labels(
        self,
        image: UInt8[np.ndarray, "h w 3"] | Features,
        *,
        progress: Callable[[int, int], object] | None = None,
    ) -> Any:
        """The most likely class of every pixel, uint8 (h, w); of a classifier, of every cell.

        Args:
            image: One image, or its features.
            progress: See `predict_tiled`; called if the image is computed in tiles.

        Raises:
            ValueError: If the image is not uint8 of the shape (h, w, 3), or a feature is missing.
        """
        return self._one(image, False, progress)

    def logits(
        self,
        image: UInt8[np.ndarray, "h w 3"] | Features,
        *,
        progress: Callable[[int, int], object] | None = None,
    ) -> Any:
        """Logits of every pixel for each class, float32 (h, w, c).

        Of a classifier: of every cell of its map. Arguments and errors are those of `labels`.
        """
        return self._one(image, True, progress)

    def score_map(
        self,
        image: UInt8[np.ndarray, "h w 3"] | Features,
        class_number: int,
        head: str = "",
        *,
        progress: Callable[[int, int], object] | None = None,
    ) -> Float[np.ndarray, "h w"]:
        """The scores of one class over an image, at its size; also of a classifier.

        Args:
            image: As for `logits`.
            class_number: Counted from 0.
            head: Which head's class, where the network has several.
            progress: As for `logits`.

        Raises:
            ValueError: If there is no such head or class.
        """
        logits = self.logits(image, progress=progress)
        if isinstance(logits, dict):
            if head not in logits:
                raise ValueError(f"the network has no head {head!r}; it has {', '.join(logits)}")
            logits = logits[head]
        if not 0 <= class_number < logits.shape[-1]:
            raise ValueError(f"there is no class {class_number} among {logits.shape[-1]}")
        scores = logits[..., class_number]
        if not isinstance(self.model, FCN) or not self.model.classifies:
            return scores
        cells = self.model.alignment.geometry[self.model.backbone.classifier]
        return over_image(scores, cells, self._size(image), self.scale)

    def tiled(
        self,
        image: Any,
        *,
        scores: bool = False,
        out: Any = None,
        progress: Callable[[int, int], object] | None = None,
    ) -> Any:
        """The result of one image, computed in tiles; see `predict_tiled`."""
        if not isinstance(self.model, FCN):
            raise ValueError("only an FCN is computed in tiles: of others the overlap is not known")
        if self.scale != 1:
            raise ValueError(
                f"an image is computed in tiles at its own size only, not at scale {self.scale}; "
                "scale it first"
            )
        features = _by_name(image, self._inputs)
        size = self._size(image)
        tiles, canvas = tiling.tiles(self.model, size, self.tile)
        out = _results_array(self.model, size, scores, out)

        def cut() -> Iterator[CanvasImage]:
            for tile in tiles:
                part = {name: features[name][tile.seen] for name in self._inputs.modalities}
                yield place(tile, part, self._inputs, 1.0, canvas)

        for done, (tile, result) in enumerate(self._each(cut(), scores), 1):
            for whole, part in zip(jax.tree.leaves(out), jax.tree.leaves(result), strict=True):
                whole[tile.kept] = part[tile.kept_inside]
            if progress is not None:
                progress(done, len(tiles))
        return out

    # ---- properties

    @property
    def modalities(self) -> tuple[str, ...]:
        """The features that the network reads."""
        return self._inputs.modalities

    @property
    def classifies(self) -> bool:
        """Whether the network is a classifier, whose logits are a coarse map."""
        return isinstance(self.model, FCN) and self.model.classifies

    def is_tiled(self, image: Any) -> bool:
        """Whether an image is so large that it is computed in tiles."""
        if self.scale != 1 or not takes_canvas(self.model):
            return False
        return math.prod(canvas_for(self._size(image), self.canvas)) > self.tile**2

    @functools.cached_property
    def _inputs(self) -> Inputs:
        return Inputs.of(self.preprocessing)

    @functools.cached_property
    def _on_device(self) -> Any:
        variables = self.variables
        if "params" not in variables:
            variables = {"params": variables}
        return jax.device_put(variables, shardings(self.mesh)[1])

    def _size(self, image: Any) -> Size:
        height, width = _by_name(image, self._inputs)[self.modalities[0]].shape[:2]
        return height, width

    # ---- computation

    def _place(self, source: Any, image: Any) -> CanvasImage:
        canvas = canvas_rule(self.model, self.canvas)
        return place(source, _by_name(image, self._inputs), self._inputs, self.scale, canvas)

    def _one(self, image: Any, scores: bool, progress: Any) -> Any:
        if self.is_tiled(image):
            return self.tiled(image, scores=scores, progress=progress)
        ((_, result),) = self._each([self._place(None, image)], scores)
        return result

    def _each(self, images: Iterable[CanvasImage], scores: bool) -> Iterator[tuple[Any, Any]]:
        """Yields source and result of each image, as they are done."""
        shards, _, split = shardings(self.mesh)

        def started() -> Iterator[tuple[list[CanvasImage], Any]]:
            for group in group_by_canvas(images, self.batch_size, shards, self.tile**2):
                results = _compute(
                    self.model,
                    self._on_device,
                    jax.device_put(batch_of(group, self.scale), split),
                    inputs=self._inputs,
                    canvas=original_canvas(group.canvas, self.scale),
                    scores=scores,
                )
                for array in jax.tree.leaves(results):
                    array.copy_to_host_async()
                yield group.images, results

        for placed, results in run_ahead(started()):
            host = jax.device_get(results)
            for row, image in enumerate(placed):
                own = functools.partial(self._own, row, image.original_size)
                yield image.source, jax.tree.map(own, host)

    def _own(self, row: int, size: Size, batch: np.ndarray) -> np.ndarray:
        """An image's part of a batch, in memory of its own."""
        result = batch[row] if self.classifies else batch[row, : size[0], : size[1]]
        return result.copy()


# ======================================================================== the same as functions


def predict(
    model: nn.Module,
    variables: Any,
    images: Iterable[UInt8[np.ndarray, "h w 3"] | Features],
    *,
    preprocessing: Preprocessing | Inputs = CAFFE,
    scores: bool = False,
    scale: float = 1.0,
    batch_size: int = 8,
    canvas: Canvas = canvas_side,
    tile: int = LARGEST_SIDE,
    mesh: Mesh | None = None,
    progress: Callable[[int], object] | None = None,
) -> list[Any]:
    """Label maps, or scores, of any number of images of any sizes, in their order.

    The host prepares the next batch and fetches the last one while the device computes. A canvas
    is compiled once in a call.

    Args:
        model: The network.
        variables: Its parameters, ``{"params": ...}``, or the tree of parameters itself.
        images: Any iterable of uint8 RGB arrays (h, w, 3), or of dictionaries of features where
            the network reads several, such as ``{"image": …, "depth": uint16 (h, w)}``.
        preprocessing: How the network was trained to see pixels.
        scores: Return the logits of all classes instead of labels.
        scale: See `Predictor`, also for the following.
        batch_size: Images at a time.
        canvas: The rule for canvases, or one canvas.
        tile: The side beyond which images are computed in tiles.
        mesh: The devices.
        progress: Called with the number of images done since the last call.

    Returns:
        For each image uint8 (h, w), or float32 (h, w, c) with ``scores``; of a classifier by
        cells instead of pixels; with several heads a dictionary of them. Numpy arrays.

    Raises:
        ValueError: If an image is not uint8 of the shape (h, w, 3), a feature is missing, or an
            image does not fit the canvas; tells which image.

    Example:
        >>> labels = predict(model, params, [image, another])  # [uint8 (h, w), uint8 (h2, w2)]
    """
    predictor = Predictor(
        model, variables, preprocessing, scale, batch_size, canvas, tile=tile, mesh=mesh
    )
    return predictor(images, scores=scores, progress=progress)


def predict_tiled(
    model: FCN,
    variables: Any,
    image: Any,
    *,
    preprocessing: Preprocessing | Inputs = CAFFE,
    scores: bool = False,
    tile: int = LARGEST_SIDE,
    out: Any = None,
    mesh: Mesh | None = None,
    progress: Callable[[int, int], object] | None = None,
) -> Any:
    """The result of one image of any size, computed in tiles: that of the whole image.

    Memory does not grow with the image, apart from the image and the result themselves, which may
    both be files (``np.memmap``): pixels are read tile by tile, results written likewise. Tiles
    overlap by the network's receptive field (`fcn_jax.inference.tiling`): with VGG16 an FCN-8s keeps 512 of
    1024 pixels a side, 1536 of 2048.

    Args:
        model: The network; no classifier.
        variables: Its parameters, ``{"params": ...}``, or the tree of parameters itself.
        image: uint8 (h, w, 3), or a dictionary of features: arrays, or anything else with a
            ``shape`` whose slices ``image[rows, columns]`` are arrays.
        preprocessing: How the network was trained to see pixels.
        scores: Return the logits of all classes instead of labels.
        tile: The largest side of a tile in pixels.
        out: Where the result is written, of the type and shape that are returned; with several
            heads a dictionary. None makes an array.
        mesh: Splits a batch of tiles over its axis ``data``; None runs on one device.
        progress: Called after each tile with the number done, and that of all.

    Returns:
        ``out``: uint8 (h, w), or float32 (h, w, c) with ``scores``; with several heads a
        dictionary of them.

    Raises:
        ValueError: If the image is none, ``out`` does not fit, tiles are too small for the
            network's receptive field, or the network is a classifier.
    """
    predictor = Predictor(model, variables, preprocessing, tile=tile, mesh=mesh)
    return predictor.tiled(image, scores=scores, out=out, progress=progress)


# ======================================================================== on the host


def takes_canvas(model: nn.Module) -> bool:
    """Whether a network gives an image on a larger canvas what it would get alone."""
    return isinstance(model, FCN) and not model.classifies


def canvas_rule(model: nn.Module, canvas: Canvas) -> Canvas:
    """The rule for canvases that a network allows."""
    return canvas if takes_canvas(model) else exactly


def place(
    source: Any, example: Mapping[str, Any], inputs: Inputs, scale: float, canvas: Canvas
) -> CanvasImage:
    """Brings an example's features to the network's scale, and chooses their canvas.

    Raises:
        ValueError: If a feature is of no kind that there is, or does not fit the canvas.
    """
    own = {name: np.asarray(example[name]) for name in inputs.modalities}
    seen = resize_features(own, scale)
    (height, width), (seen_height, seen_width) = (
        features[inputs.modalities[0]].shape[:2] for features in (own, seen)
    )
    return CanvasImage(source, seen, (height, width), canvas_for((seen_height, seen_width), canvas))


def _by_name(image: Any, inputs: Inputs) -> dict[str, Any]:
    """An example's features; a bare image stands for the only one."""
    features = dict(image) if isinstance(image, Mapping) else {inputs.modalities[0]: image}
    if missing := [name for name in inputs.modalities if name not in features]:
        raise ValueError(
            f"the network reads {', '.join(inputs.modalities)}; {', '.join(missing)} is missing: "
            "pass a dictionary with all of them"
        )
    sizes = {name: getattr(features[name], "shape", ())[:2] for name in inputs.modalities}
    for name, size in sizes.items():
        if len(size) < 2:
            raise ValueError(
                f"{name} must be an array of the axes (h, w, channels), or depth (h, w), got "
                f"{type(features[name]).__name__} {getattr(features[name], 'shape', '')}; "
                "fcn_jax.data.images.read_image makes one of any file"
            )
    if len(set(sizes.values())) > 1:
        raise ValueError(f"the features of an image must have one size, got {sizes}")
    return features


def _results_array(model: FCN, size: Size, scores: bool, out: Any) -> Any:
    """Where an image's results go, by head if there are several; checked if it was given."""
    results = {} if out is None else dict(out) if isinstance(out, Mapping) else {"": out}
    dtype = np.dtype(np.float32 if scores else np.uint8)
    names = [name for name, _ in model.heads] if len(model.heads) > 1 else [""]
    if out is not None and set(results) != set(names):
        raise ValueError(f"out must be a dictionary of arrays for {', '.join(names)}")
    for name, (_, classes) in zip(names, model.heads, strict=True):
        shape = (*size, classes) if scores else size
        if out is None:
            results[name] = np.empty(shape, dtype)
        elif tuple(results[name].shape) != shape or results[name].dtype != dtype:
            raise ValueError(
                f"out must be {dtype} {shape}, got {results[name].dtype} {results[name].shape}"
            )
    return results if len(model.heads) > 1 else results[""]


def over_image(
    scores: Float[np.ndarray, "h w"],
    cells: Geometry,
    size: tuple[int, int],
    scale: float = 1.0,
) -> Float[np.ndarray, "height width"]:
    """Spreads a coarse map over the image that it was computed from, bilinearly.

    Args:
        scores: One value for each cell.
        cells: Where the cells lie (``model.alignment.geometry``).
        size: Height and width of the image. Beyond the outermost cells their values go on.
        scale: Factor at which the network saw the image.
    """
    for axis, pixels in enumerate(size):
        seen = (np.arange(pixels) + 0.5) * max(1, round(pixels * scale)) / pixels - 0.5
        place = (seen - float(cells.offset)) / float(cells.stride)
        place = place.clip(0, scores.shape[axis] - 1)
        low = np.floor(place).astype(int)
        high = np.minimum(low + 1, scores.shape[axis] - 1)
        part = (place - low).reshape([-1 if a == axis else 1 for a in range(2)])
        scores = scores.take(low, axis) * (1 - part) + scores.take(high, axis) * part
    return scores


# ======================================================================== on the device


def full_size_logits(
    model: nn.Module,
    variables: Any,
    batch: Batch,
    *,
    preprocessing: Preprocessing | Inputs,
    canvas: Size,
) -> Any:
    """Normalises, runs the network, and interpolates its logits to the images' own sizes; jit-able.

    Args:
        model: The network.
        variables: Its parameters.
        batch: Images at the size that the network is to see.
        preprocessing: Applied on the device.
        canvas: Height and width of the result, in which each image has its own size
            (`fcn_jax.canvas.original_canvas`); a classifier's map stays as it is.

    Returns:
        float32 (b, height, width, classes), 0 beyond an image; with several heads a dictionary of
        them.
    """
    inputs = Inputs.of(preprocessing).apply(batch.arrays, batch.valid_size)
    sizes: dict[str, Any] = {"valid_size": batch.valid_size} if takes_canvas(model) else {}
    logits = model.apply(variables, inputs, train=False, **sizes)
    if isinstance(model, FCN) and model.classifies:
        return logits

    def resize(logits: Float[Array, "b h w c"]) -> Float[Array, "b height width c"]:
        if logits.shape[1:3] == canvas:  # so no image was scaled
            return logits
        return ops.resize_bilinear_on_canvas(logits, batch.valid_size, batch.original_size, *canvas)

    return jax.tree.map(resize, logits)


def most_likely(logits: Any) -> Any:
    """The class of the largest logit of each pixel, uint8 (b, h, w); for each head.

    int32 where there are more than 256 classes, as some classifiers have.
    """

    def choose(logits: Float[Array, "b h w c"]) -> Shaped[Array, "b h w"]:
        dtype = jnp.uint8 if logits.shape[-1] <= 256 else jnp.int32
        return jnp.argmax(logits, axis=-1).astype(dtype)

    return jax.tree.map(choose, logits)


# Modules and inputs are frozen dataclasses: as static arguments they share one cache of compiled
# functions between all predictors of the same network.
@jit_in_least_memory(static_argnames=("model", "inputs", "canvas", "scores"))
def _compute(
    model: nn.Module, variables: Any, batch: Batch, *, inputs: Inputs, canvas: Size, scores: bool
) -> Any:
    """Logits, or labels, of a batch at the images' own sizes."""
    logits = full_size_logits(model, variables, batch, preprocessing=inputs, canvas=canvas)
    return logits if scores else most_likely(logits)
