"""From images of any kind and size to label maps, logits and probabilities of their own size.

`load` reads a trained network from a run's folder or a weight file; the `Predictor` that it returns
takes images. Scoring (`fcn_jax.inference.evaluation`) uses the same batches and the same programs
for the logits, so that metrics and pictures never disagree.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.sharding import Mesh
from jaxtyping import Array, Float, Shaped

from fcn_jax import ops
from fcn_jax.canvas import (
    LARGEST_SIDE,
    Batch,
    Canvas,
    CanvasImage,
    Group,
    Size,
    batch_of,
    canvas_for,
    canvas_side,
    exactly,
    group_by_canvas,
    original_canvas,
    run_ahead,
)
from fcn_jax.classes import MAX_CLASSES, ClassTable, read_names, table_from_names
from fcn_jax.devices import jit_in_least_memory, shardings
from fcn_jax.geometry import Geometry
from fcn_jax.inference import tiling
from fcn_jax.models.backbones import Padding
from fcn_jax.models.fcn import FCN
from fcn_jax.models.inputs import CAFFE, Inputs

Result: TypeAlias = Literal["labels", "logits", "probabilities"]

Progress: TypeAlias = Callable[[float], object]
"""Called with the number of images done; after a tile of an image it has a fraction."""


# ======================================================================== a network for images


@dataclasses.dataclass(frozen=True)
class Predictor:
    """A trained network that takes images as people have them.

    An image is a path, a Pillow image, or an array: RGB, grey or RGBA, of 8 or 16 bits or floating
    point (see `fcn_jax.data.images.to_rgb`), or anything with a ``shape`` and a ``dtype`` whose
    slices ``image[rows, columns]`` are such arrays. For a network that reads several modalities it
    is a dictionary of them, ``{"image": ..., "depth": uint16 (h, w)}``. Every method takes one
    image and returns its result, or takes an iterable of images of any sizes and returns a list.

    Images of similar size lie on one canvas and share a compiled program; each gets the result that
    it would get alone, whatever the canvas and the batch. Classifiers, and modules that are no
    `FCN` and know nothing of canvases, see each image at exactly its size. The host prepares the
    next batch and fetches the last one while the device computes.

    Results are numpy arrays at the image's size; of a classifier they have a value for each cell
    of its coarse map. A network with several heads gives a dictionary of results.

    Attributes:
        model: The network.
        variables: Its parameters, ``{"params": ...}``, or the tree of parameters itself.
        inputs: What it reads, and how that is normalised.
        heads: The classes of each head; of classifiers just their names. By default they are
            numbered.
        scale: Factor on height and width before the network; results are at the original size.
        batch_size: Images at a time, over all devices; rounded up to a multiple of them. Fewer
            where their canvases would have more than ``tile`` x ``tile`` pixels for each.
        canvas: The rule for canvases: a function from a side of an image, as the network sees it,
            to the canvas's side; or one canvas (height, width) for all. The default has four sides
            in each octave; with `fcn_jax.canvas.exactly` each image size is compiled.
        tile: Images whose canvas has more than ``tile`` x ``tile`` pixels are computed in tiles of
            at most this side, with the same result; but not by a classifier, nor at another scale
            than 1. Then memory does not grow with the image, apart from image and result.
        mesh: Splits each batch over its axis ``data``; None runs on one device.

    Raises:
        ValueError: If an option is not positive, or the heads are not those of the network.

    Example:
        >>> import jax, numpy as np
        >>> from fcn_jax import Predictor, create_model
        >>> model = create_model("fcn32s", num_classes=5, width=1 / 16, fc_width=8)
        >>> variables = model.init(jax.random.key(0), np.zeros((1, 32, 32, 3), np.float32))
        >>> predictor = Predictor(model, variables)
        >>> photo, another = np.zeros((40, 50, 3), np.uint8), np.zeros((33, 61, 3), np.uint8)
        >>> predictor(photo).shape
        (40, 50)
        >>> [logits.shape for logits in predictor.logits([photo, another])]
        [(40, 50, 5), (33, 61, 5)]
    """

    model: nn.Module
    variables: Any
    inputs: Inputs = dataclasses.field(default_factory=lambda: Inputs.of(CAFFE))
    heads: Mapping[str, ClassTable | tuple[str, ...]] = dataclasses.field(default_factory=dict)
    scale: float = 1.0
    batch_size: int = 8
    canvas: Canvas = canvas_side
    tile: int = LARGEST_SIDE
    mesh: Mesh | None = None

    def __post_init__(self) -> None:
        for name in ("scale", "batch_size", "tile"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")
        if not isinstance(self.model, FCN):
            return
        have = dict(self.model.heads)
        if not self.heads:
            numbered = {h: classes_of([f"class {i}" for i in range(n)]) for h, n in have.items()}
            object.__setattr__(self, "heads", numbered)
        given = {head: len(self.names(head)) for head in self.heads}
        if given != have:
            raise ValueError(f"the network has the classes {have} by head, but heads has {given}")

    # ---- results

    def __call__(self, images: Any, *, out: Any = None, progress: Progress | None = None) -> Any:
        """The most likely class of every pixel: uint8 (h, w).

        int32 where a classifier has more than 256 classes.

        Args:
            images: One image, or an iterable of them.
            out: Where one image's result is written, tile by tile if it is large: an array of the
                type and shape that are returned, such as an ``np.memmap``; with several heads a
                dictionary. None makes an array.
            progress: Called with the number of images done; after a tile it has a fraction.

        Returns:
            The label map, ``out`` if it was given; a list of them for an iterable.

        Raises:
            ValueError: If something is no image, a modality is missing or their sizes differ, an
                image does not fit the canvas, ``out`` does not fit, or tiles are too small for the
                network's receptive field. In an iterable the image's number is told.
            FileNotFoundError: If there is no such file.
        """
        return self._predict("labels", images, out, progress)

    def logits(self, images: Any, *, out: Any = None, progress: Progress | None = None) -> Any:
        """The logits of every pixel, float32 (h, w, classes).

        Arguments and errors are those of calling the predictor.
        """
        return self._predict("logits", images, out, progress)

    def probabilities(
        self, images: Any, *, out: Any = None, progress: Progress | None = None
    ) -> Any:
        """The probability of each class at every pixel, float32 (h, w, classes): softmax.

        Arguments and errors are those of calling the predictor.
        """
        return self._predict("probabilities", images, out, progress)

    def class_map(
        self,
        images: Any,
        class_: str | int,
        head: str | None = None,
        *,
        progress: Progress | None = None,
    ) -> Any:
        """The logits of one class over an image, float32 (h, w); also of a classifier.

        Args:
            images: One image, or an iterable of them.
            class_: Its number from 0, its name or a part of that; see `find_class`.
            head: Which head's class, where several have one of that name.
            progress: As for calling the predictor.

        Raises:
            ValueError: If there is no such head or class, or several are meant.
        """
        head, number = self.find_class(class_, head)

        def choose(logits: dict[str, np.ndarray], size: Size) -> dict[str, np.ndarray]:
            chosen = logits[head][..., number].copy()
            if isinstance(self.model, FCN) and self.classifies:
                cells = self.model.alignment.geometry[self.model.backbone.classifier]
                chosen = over_image(chosen, cells, size, self.scale)
            return {head: chosen}

        return self._predict("logits", images, None, progress, choose)

    # ---- properties

    @property
    def classifies(self) -> bool:
        """Whether the network is a classifier, whose logits are a coarse map."""
        return isinstance(self.model, FCN) and self.model.classifies

    def names(self, head: str) -> tuple[str, ...]:
        """The names of a head's classes."""
        classes = self.heads[head]
        return classes.names if isinstance(classes, ClassTable) else classes

    def find_class(self, wanted: str | int, head: str | None = None) -> tuple[str, int]:
        """The head and the number of a class.

        Args:
            wanted: The number, from 0; the name, in any case; one of several names between commas;
                or a part of it. ``HEAD/NAME`` where heads have classes of one name.
            head: The class is sought here alone.

        Raises:
            ValueError: If no class or several are meant; the message lists some.
        """
        before, _, name = str(wanted).rpartition("/")
        if before not in self.heads:
            before, name = head, str(wanted)
        if before is not None and before not in self.heads:
            raise ValueError(f"the network has no head {before!r}; it has {', '.join(self.heads)}")
        heads = list(self.heads) if before is None else [before]
        classes = [(h, i, text) for h in heads for i, text in enumerate(self.names(h))]
        sought = name.casefold()
        tests: list[Callable[[int, str], bool]] = [
            lambda number, text: str(number) == name,
            lambda number, text: text == sought,
            lambda number, text: sought in [part.strip() for part in text.split(",")],
            lambda number, text: sought in text,
        ]
        for fits in tests:
            found = [each for each in classes if fits(each[1], each[2].casefold())]
            if len(found) == 1:
                return found[0][:2]
            if found:
                meant = (f"{head}/{text}" if len(heads) > 1 else text for head, _, text in found)
                raise ValueError(f"{wanted!r} may mean {', '.join(meant)}; give one of them")
        known = ", ".join(text for _, _, text in classes[:20])
        hint = "; a file of class names gives them names" if known.startswith("class 0") else ""
        raise ValueError(f"{wanted!r}: there is no such class; there are {known} …{hint}")

    # ---- from images to batches

    def opened(self, image: Any) -> dict[str, Any]:
        """What the network reads of an image, by modality: arrays, or what is sliced like them.

        Files are read. Only integers are left to be converted, which can be done tile by tile.

        Raises:
            ValueError: If a modality is missing or no image, or their sizes differ.
            FileNotFoundError: If there is no such file.
        """
        from fcn_jax.data.images import read_depth, read_image, to_rgb

        given = image if isinstance(image, Mapping) else {self.inputs.modalities[0]: image}
        if missing := [name for name in self.inputs.modalities if name not in given]:
            raise ValueError(
                f"the network reads {', '.join(self.inputs.modalities)}; {', '.join(missing)} is "
                "missing: pass a dictionary with all of them"
            )
        arrays = {}
        for name in self.inputs.modalities:
            array, is_depth = given[name], name in self._depths
            if isinstance(array, str | os.PathLike):
                array = (read_depth if is_depth else read_image)(Path(array).expanduser())
            elif getattr(array, "dtype", None) not in (np.uint8, np.uint16):
                is_pillow = hasattr(array, "getbands")
                array = np.asarray(array) if is_depth or not is_pillow else array
                array = array if is_depth else to_rgb(array)
            if len(array.shape) not in (2, 3) or 0 in array.shape:
                raise ValueError(f"{name} is no image: {array.dtype} {array.shape}")
            arrays[name] = array
        sizes = {name: array.shape[:2] for name, array in arrays.items()}
        if len(set(sizes.values())) > 1:
            raise ValueError(f"the modalities of an image must have one size, got {sizes}")
        return arrays

    def is_tiled(self, arrays: Mapping[str, Any]) -> bool:
        """Whether an image, as `opened` gives it, is so large that it is computed in tiles."""
        if self.scale != 1 or not takes_canvas(self.model):
            return False
        return math.prod(canvas_for(_size_of(arrays), self.canvas)) > self.tile**2

    def on_canvas(self, source: Any, arrays: Mapping[str, Any]) -> CanvasImage:
        """An image, as `opened` gives it, at the network's scale and with a canvas.

        Raises:
            ValueError: If it is no image, or does not fit the canvas.
        """
        from fcn_jax.data.transforms import resize

        scaled = resize(self._pixels(arrays), self.scale)
        canvas = self.canvas if takes_canvas(self.model) else exactly
        return CanvasImage(source, scaled, _size_of(arrays), canvas_for(_size_of(scaled), canvas))

    @functools.cached_property
    def on_device(self) -> Any:
        """The variables, on all devices of the mesh."""
        variables = self.variables
        if "params" not in variables:
            variables = {"params": variables}
        return jax.device_put(variables, shardings(self.mesh)[1])

    @functools.cached_property
    def _depths(self) -> set[str]:
        """The modalities that are depth images: those of one channel."""
        parts = (part for _, parts in self.inputs.entries for part in parts)
        return {name for name, preprocessing in parts if preprocessing.channels == 1}

    def _pixels(
        self, arrays: Mapping[str, Any], window: tuple[slice, slice] = np.s_[:, :]
    ) -> dict[str, np.ndarray]:
        """A part of an image as uint8 RGB, or uint16 depth."""
        from fcn_jax.data.images import to_rgb

        pixels = {}
        for name, array in arrays.items():
            part = np.asarray(array[window])
            if name not in self._depths:
                part = to_rgb(part)
            elif part.dtype != np.uint16 or part.ndim != 2:
                raise ValueError(f"{name} must be uint16 (h, w), got {part.dtype} {array.shape}")
            pixels[name] = part
        return pixels

    # ---- computation

    def each_batch(
        self, images: Iterable[CanvasImage], compute: Callable[[Group, Batch], Any]
    ) -> Iterator[tuple[Group, Any]]:
        """Computes images in batches; yields each group with its result on the host.

        Args:
            images: In any order.
            compute: Starts the computation of a group's batch, which is on the devices; returns
                a tree of arrays there.
        """
        shards, _, split = shardings(self.mesh)

        def started() -> Iterator[tuple[Group, Any]]:
            for group in group_by_canvas(images, self.batch_size, shards, self.tile**2):
                result = compute(group, jax.device_put(batch_of(group, self.scale), split))
                for array in jax.tree.leaves(result):
                    array.copy_to_host_async()
                yield group, result

        for group, result in run_ahead(started()):
            yield group, jax.device_get(result)

    def each_image(
        self, kind: Result, images: Iterable[CanvasImage]
    ) -> Iterator[tuple[CanvasImage, dict[str, np.ndarray]]]:
        """Yields each image with its result by head, in memory of its own."""

        def compute(group: Group, batch: Batch) -> dict[str, Array]:
            return _compute(
                self.model,
                self.on_device,
                batch,
                inputs=self.inputs,
                heads=tuple(self.heads),
                canvas=original_canvas(group.canvas, self.scale),
                kind=kind,
            )

        for group, result in self.each_batch(images, compute):
            for row, image in enumerate(group.images):
                part = (row,) if self.classifies else (row, *map(slice, image.original_size))
                yield image, {head: array[part].copy() for head, array in result.items()}

    def in_tiles(
        self,
        kind: Result,
        arrays: Mapping[str, Any],
        out: Mapping[str, Any] | None = None,
        progress: Progress | None = None,
    ) -> dict[str, Any]:
        """The result of one image, by head: that of the whole, computed in tiles.

        Pixels are read, and results written to ``out`` if it is given, tile by tile. Tiles overlap
        by the network's receptive field (`fcn_jax.inference.tiling`): with VGG16 an FCN-8s keeps
        512 of 1024 pixels a side, 1536 of 2048.
        """
        assert isinstance(self.model, FCN)  # of others the overlap is not known
        size = _size_of(arrays)
        tiles, canvas = tiling.tiles(self.model, size, self.tile)
        out = out or self._out_by_head(kind, size, None)

        def images() -> Iterator[CanvasImage]:
            for rows, columns in tiles:
                pixels = self._pixels(arrays, (rows.seen, columns.seen))
                yield CanvasImage((rows, columns), pixels, _size_of(pixels), canvas)

        for done, (image, result) in enumerate(self.each_image(kind, images()), 1):
            rows, columns = image.source
            for head, part in result.items():
                out[head][rows.kept, columns.kept] = part[rows.kept_inside, columns.kept_inside]
            if progress is not None:
                progress(done / len(tiles))
        return dict(out)

    def _predict(
        self,
        kind: Result,
        images: Any,
        out: Any,
        progress: Progress | None,
        choose: Callable[[dict[str, np.ndarray], Size], dict[str, np.ndarray]] | None = None,
    ) -> Any:
        """The results of one image or several; ``choose`` makes them of those by head."""
        one = _is_one_image(images)
        if out is not None and not one:
            raise ValueError("out is for the result of one image")
        results: dict[int, Any] = {}
        given: dict[str, Any] = {}  # out by head

        def report(part: float = 0) -> None:
            if progress is not None:
                progress(len(results) + part)

        def finish(number: int, size: Size, result: dict[str, Any]) -> None:
            if choose is not None:
                result = choose(result, size)
            results[number] = result if len(result) > 1 else next(iter(result.values()))
            report()

        def in_one_piece() -> Iterator[CanvasImage]:
            for number, image in enumerate([images] if one else images):
                try:
                    arrays = self.opened(image)
                    size = _size_of(arrays)
                    if out is not None:
                        given.update(self._out_by_head(kind, size, out))
                    if self.is_tiled(arrays):
                        finish(number, size, self.in_tiles(kind, arrays, given, report))
                    else:
                        yield self.on_canvas(number, arrays)
                except ValueError as error:
                    if one:
                        raise
                    raise ValueError(f"image {number}: {error}") from error

        for image, result in self.each_image(kind, in_one_piece()):
            for head, array in given.items():
                array[...] = result[head]
            finish(image.source, image.original_size, given or result)
        return results[0] if one else [results[number] for number in range(len(results))]

    def _out_by_head(self, kind: Result, size: Size, out: Any) -> dict[str, Any]:
        """The arrays for an image's results; checked if they were given, else made."""
        if not isinstance(self.model, FCN) or self.classifies:
            raise ValueError("out is for an FCN that scores every pixel")
        heads = dict(self.model.heads)
        if out is not None and not isinstance(out, Mapping) and len(heads) == 1:
            out = dict.fromkeys(heads, out)
        if out is not None and set(out) != set(heads):
            raise ValueError(f"out must be a dictionary of arrays for {', '.join(heads)}")
        dtype = np.dtype(np.uint8 if kind == "labels" else np.float32)
        arrays = {}
        for head, classes in heads.items():
            shape = size if kind == "labels" else (*size, classes)
            arrays[head] = array = np.empty(shape, dtype) if out is None else out[head]
            if array.shape != shape or array.dtype != dtype:
                raise ValueError(f"out must be {dtype} {shape}, got {array.dtype} {array.shape}")
        return arrays


def _is_one_image(images: Any) -> bool:
    """Whether this is an image, and no iterable of them."""
    if isinstance(images, str | os.PathLike | Mapping):
        return True
    return len(getattr(images, "shape", ())) in (2, 3) or hasattr(images, "getbands")  # Pillow's


def _size_of(arrays: Mapping[str, Any]) -> Size:
    height, width = next(iter(arrays.values())).shape[:2]
    return height, width


def takes_canvas(model: nn.Module) -> bool:
    """Whether a network gives an image on a larger canvas what it would get alone."""
    return isinstance(model, FCN) and not model.classifies


def over_image(
    values: Float[np.ndarray, "h w"],
    cells: Geometry,
    size: Size,
    scale: float = 1.0,
) -> Float[np.ndarray, "height width"]:
    """Spreads a coarse map over the image that it was computed from, bilinearly.

    Args:
        values: One for each cell.
        cells: Where the cells lie (``model.alignment.geometry``).
        size: Height and width of the image. Beyond the outermost cells their values go on.
        scale: Factor at which the network saw the image.
    """
    from scipy import ndimage

    places = [
        ((np.arange(side) + 0.5) * max(1, round(side * scale)) / side - 0.5 - float(cells.offset))
        / float(cells.stride)
        for side in size
    ]
    grid = np.meshgrid(*places, indexing="ij")
    return ndimage.map_coordinates(values, grid, order=1, mode="nearest")


# ======================================================================== on the device


def full_size_logits(
    model: nn.Module,
    variables: Any,
    batch: Batch,
    *,
    inputs: Inputs,
    heads: tuple[str, ...],
    canvas: Size,
) -> dict[str, Float[Array, "b _ _ _"]]:
    """Normalises, runs the network, and interpolates its logits to the images' own sizes; jit-able.

    Args:
        model: The network.
        variables: Its parameters.
        batch: Images at the size that the network is to see.
        inputs: Applied on the device.
        heads: The heads' names.
        canvas: Height and width of the result, in which each image has its own size
            (`fcn_jax.canvas.original_canvas`); a classifier's map stays as it is.

    Returns:
        By head float32 (b, height, width, classes), 0 beyond an image.
    """
    sizes: dict[str, Any] = {"valid_size": batch.valid_size} if takes_canvas(model) else {}
    logits: Any = model.apply(variables, inputs.apply(batch.arrays), train=False, **sizes)
    by_head = logits if isinstance(logits, dict) else {next(iter(heads), "label"): logits}
    if isinstance(model, FCN) and model.classifies:
        return by_head

    def resize(logits: Float[Array, "b h w c"]) -> Float[Array, "b height width c"]:
        if logits.shape[1:3] == canvas:  # so no image was scaled
            return logits
        return ops.resize_bilinear_on_canvas(logits, batch.valid_size, batch.original_size, *canvas)

    return {head: resize(values) for head, values in by_head.items()}


def most_likely(logits: Float[Array, "b h w c"]) -> Shaped[Array, "b h w"]:
    """The class of the largest logit of each pixel: uint8, or int32 of more than 256 classes."""
    return jnp.argmax(logits, axis=-1).astype(jnp.uint8 if logits.shape[-1] <= 256 else jnp.int32)


# Modules and inputs are frozen dataclasses: as static arguments they share one cache of compiled
# functions between all predictors of the same network.
@jit_in_least_memory(static_argnames=("model", "inputs", "heads", "canvas", "kind"))
def _compute(
    model: nn.Module,
    variables: Any,
    batch: Batch,
    *,
    inputs: Inputs,
    heads: tuple[str, ...],
    canvas: Size,
    kind: Result,
) -> dict[str, Array]:
    """The results of a batch, by head."""
    logits = full_size_logits(model, variables, batch, inputs=inputs, heads=heads, canvas=canvas)
    finish: dict[Result, Callable[[Array], Array]] = {
        "labels": most_likely,
        "logits": lambda values: values,
        "probabilities": lambda values: jax.nn.softmax(values, axis=-1),
    }
    return {head: finish[kind](values) for head, values in logits.items()}


# ======================================================================== from files


def load(
    source: str | Path,
    *,
    stage: str | None = None,
    which: Literal["best", "last"] = "best",
    network: str | None = None,
    padding: Padding | None = None,
    modality: Literal["image", "hha"] | None = None,
    classes: str | Path | list[str] | None = None,
    precision: str | None = None,
    **options: Any,
) -> Predictor:
    """A trained network, ready to predict.

    Args:
        source: The folder of a run or of one of its stages (``RUN/checkpoints/fcn8s``), or a weight
            file of any kind that `fcn_jax.load_weights` reads, also of a classifier.
        stage: Of a run, such as ``fcn16s``; None is the last that has a checkpoint.
        which: Of a run, the checkpoint of the highest mean IU on the validation split, or the last.
        network: Of a file, such as ``fcn8s_atonce``, where its layers suggest another.
        padding: Of a file; None is ``reference`` as the published networks have, of a classifier
            ``native``. Networks trained here have ``same`` unless their config says otherwise.
        modality: What a file with one input of three channels reads.
        classes: Of a file, the names of the classes, or the file that holds them; None is as usual
            for their number.
        precision: ``float32``, ``tf32`` or ``bfloat16``; None is as in training, or float32.
        **options: Fields of `Predictor`, such as ``tile``.

    Raises:
        FileNotFoundError: If there is no such file, or the folder is no run's.
        ValueError: If the file cannot be read or is of no known network, or an argument has no
            meaning with the source.

    Example:
        >>> import jax, numpy as np
        >>> import fcn_jax
        >>> model = fcn_jax.create_model("fcn32s", num_classes=21, width=1 / 16, fc_width=8)
        >>> variables = model.init(jax.random.key(0), np.zeros((1, 32, 32, 3), np.float32))
        >>> fcn_jax.save_weights("fcn32s.npz", variables["params"])
        >>> predictor = fcn_jax.load("fcn32s.npz", padding="same")
        >>> predictor(np.zeros((40, 50, 3), np.uint8)).shape
        (40, 50)
        >>> predictor.heads["label"].names[:3]
        ('background', 'aeroplane', 'bicycle')
    """
    path = Path(source).expanduser()
    of_file = {"network": network, "padding": padding, "modality": modality, "classes": classes}
    unused = of_file if path.is_dir() else {"stage": stage}
    if given := [name for name, value in unused.items() if value is not None]:
        what = "the folder of a run" if path.is_dir() else "a weight file"
        raise ValueError(f"{', '.join(given)}: of no meaning with {what} ({path})")
    if not path.exists():
        raise FileNotFoundError(f"{path} is neither a weight file nor the folder of a training run")
    if path.is_dir():
        from fcn_jax.runs import load_run

        if path.parent.name == "checkpoints" and not (path / "config.json").exists():
            path, stage = path.parents[1], path.name
        run = load_run(path, stage, which, precision)
        options = {"scale": run.config.scale, **options}
        return Predictor(run.model, run.variables, run.inputs, run.heads, **options)

    from fcn_jax import data, weights

    loaded = weights.load(path)
    model = weights.network_of(loaded, network, padding)
    model = model.clone(precision=precision or model.precision)
    names = read_names(classes) if isinstance(classes, str | Path) else classes
    numbers = list(dict(model.heads).values())
    if names is not None and [len(names)] != numbers:
        raise ValueError(
            f"{classes if isinstance(classes, str | Path) else 'classes'} names {len(names)} "
            f"classes, the network has {' and '.join(map(str, numbers))}"
        )
    heads = {head: classes_of(names or data.usual_names(n)) for head, n in model.heads}
    inputs = weights.usual_inputs(loaded, model, modality)
    params = weights.params_of(loaded, model)
    return Predictor(model, {"params": params}, inputs, heads, **options)


def classes_of(names: list[str]) -> ClassTable | tuple[str, ...]:
    """The table of some classes; their names alone where they are too many for label maps."""
    return table_from_names(names) if len(names) <= MAX_CLASSES else tuple(names)
