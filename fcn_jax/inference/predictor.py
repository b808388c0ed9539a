"""From images of any kind and size to label maps, logits and probabilities of their own size.

`load` reads a trained network from a run's folder or a weight file; the `Predictor` that it returns
takes images. They are opened (`opening.py`), cut into tiles if they are large, laid on canvases,
batched, computed (`compute.py`) and cropped: by `Predictor._predict` and the methods that follow
it, in this order.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import itertools
import math
import os
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal, TypeAlias

import jax
import numpy as np
from flax import linen as nn
from jax.sharding import Mesh
from jaxtyping import Float

from fcn_jax import canvas as canvases
from fcn_jax import data, ops, weights
from fcn_jax.canvas import Batch, CanvasImage, Size
from fcn_jax.classes import MAX_CLASSES, ClassTable, read_names, table_from_names
from fcn_jax.data.transforms import resize
from fcn_jax.devices import shardings
from fcn_jax.geometry import Geometry
from fcn_jax.inference import tiling
from fcn_jax.inference.compute import (
    Network,
    Result,
    View,
    compute_batch,
    takes_canvas,
)
from fcn_jax.inference.opening import Opener
from fcn_jax.inference.tiling import Span
from fcn_jax.models.backbones import Padding
from fcn_jax.models.fcn import FCN
from fcn_jax.models.inputs import CAFFE, Inputs
from fcn_jax.weights.arrays import aligned
from fcn_jax.weights.published import PUBLISHED

Progress: TypeAlias = Callable[[float], object]
"""Called with the number of images done; after a tile of an image it has a fraction."""


# ======================================================================== a network for images


@dataclasses.dataclass(frozen=True)
class Predictor:
    """A trained network that takes images as people have them.

    An image is a path, a Pillow image, or an array: RGB, grey or RGBA, of 8 or 16 bits or floating
    point (see `fcn_jax.data.images.to_rgb`), or anything with a ``shape`` and a ``dtype`` whose
    slices ``image[rows, columns]`` are such arrays. A network that was trained on images of other
    bands, or on the range of 16-bit or floating-point ones, takes those: (h, w, bands) of their
    type. For a network that reads several modalities it is a dictionary of them,
    ``{"image": ..., "depth": uint16 (h, w)}``. Every method takes one image and returns its result,
    or takes an iterable of images of any sizes and returns a list.

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
        flip: Test-time augmentation, not for classifiers: the network also sees each image mirrored
            left to right. The result is the mean of the probabilities of all views, and logits are
            its logarithm. It takes as many times longer.
        scales: Likewise, factors on height and width (besides ``scale``) at which it sees them.
        batch_size: Images at a time, over all devices; rounded up to a multiple of them. Fewer
            where their canvases would have more than ``tile`` x ``tile`` pixels for each.
        canvas: The rule for canvases: a function from a side of an image, as the network sees it,
            to the canvas's side; or one canvas (height, width) for all. The default has four sides
            in each octave; with `fcn_jax.canvas.exactly` each image size is compiled.
        tile: Images whose canvas has more than ``tile`` x ``tile`` pixels are computed in tiles of
            at most this side, with the same result; but not by a classifier, nor at other scales
            than 1. Then memory does not grow with the image, apart from image and result.
        mesh: Splits each batch over its axis ``data``, or else the first; None runs on one device.
        value_range: The values of the images that are black and white, whatever their type; None
            is as in training, and of networks of 8-bit images the whole range of 16 bits, or 0..1
            of floats (0..255 if one is above 1). An image that would be nearly black by that is
            refused.
        programs: Compiled programs that are kept, over all predictors of the process: one for each
            canvas, kind of result and network. Beyond, the least recently used is dropped, and
            compiled anew when it is needed again. Each holds 30 to 60 MiB.

    Raises:
        ValueError: If an option is not positive, the range is empty, the heads are not those of
            the network, or a classifier is to see several views.

    Example:
        >>> import jax, numpy as np
        >>> from fcn_jax import Predictor, create_model
        >>> model = create_model("fcn32s", num_classes=5, width=1 / 16, fc_width=8)
        >>> variables = jax.jit(model.init)(jax.random.key(0), np.zeros((1, 32, 32, 3)))
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
    flip: bool = False
    scales: tuple[float, ...] = (1.0,)
    batch_size: int = 8
    canvas: canvases.Canvas = canvases.canvas_side
    tile: int = canvases.LARGEST_SIDE
    mesh: Mesh | None = None
    value_range: tuple[float, float] | None = None
    programs: int = 32

    def __post_init__(self) -> None:
        if self.value_range is not None:
            object.__setattr__(self, "inputs", self.inputs.with_range(*self.value_range))
        for name in ("scale", "batch_size", "tile", "programs"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")
        object.__setattr__(self, "scales", tuple(self.scales))
        wrong = not all(0 < factor < math.inf for factor in self.scales)
        if wrong or not self.scales or len(set(self.scales)) < len(self.scales):
            given = ", ".join(f"{factor:g}" for factor in self.scales)
            raise ValueError(f"scales must be different positive factors, got ({given})")
        if self.classifies and (self.flip or self.scales != (1.0,)):
            raise ValueError(
                "flip and scales are for networks that score every pixel, not for a classifier"
            )
        if not isinstance(self.model, FCN):
            return
        have = dict(self.model.heads)
        if not self.heads:
            numbered = {h: classes_of([f"class {i}" for i in range(n)]) for h, n in have.items()}
            object.__setattr__(self, "heads", numbered)
        given = {head: len(self.names(head)) for head in self.heads}
        if given != have:
            raise ValueError(
                f"the network has {have} classes by head, but the names are of {given}"
            )

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

        With ``flip`` or several ``scales``, the logarithm of the mean probabilities.

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

        def choose(image: Pending) -> dict[str, np.ndarray]:
            chosen = image.result[head][..., number].copy()
            if isinstance(self.model, FCN) and self.classifies:
                cells = self.model.alignment.geometry[self.model.backbone.classifier]
                chosen = over_image(chosen, cells, image.size, self.scale)
            return {head: chosen}

        return self._predict("logits", images, None, progress, choose)

    # ---- properties

    @property
    def classifies(self) -> bool:
        """Whether the network is a classifier, whose logits are a coarse map."""
        return getattr(self.model, "classifies", False)

    @property
    def views(self) -> tuple[View, ...]:
        """The ways in which the network sees each image."""
        mirrored = (False, True) if self.flip else (False,)
        return tuple(View(self.scale * s, m) for s in self.scales for m in mirrored)

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
        names = {(h, i): text for h in heads for i, text in enumerate(self.names(h))}
        sought, folded = name.casefold(), {key: text.casefold() for key, text in names.items()}
        exact_first = [
            [key for key in names if str(key[1]) == name],
            [key for key, text in folded.items() if text == sought],
            [key for key, text in folded.items() if sought in map(str.strip, text.split(","))],
            [key for key, text in folded.items() if sought in text],
        ]
        found = next(filter(None, exact_first), [])
        if len(found) == 1:
            return found[0]
        if found:
            meant = (f"{h}/{names[h, i]}" if len(heads) > 1 else names[h, i] for h, i in found)
            raise ValueError(f"{wanted!r} may mean {', '.join(meant)}; give one of them")
        known = ", ".join(list(names.values())[:20])
        hint = "; a file of class names gives them names" if known.startswith("class 0") else ""
        raise ValueError(f"{wanted!r}: there is no such class; there are {known} …{hint}")

    # ---- from images to results, in the order of the steps

    def _predict(
        self,
        kind: Result,
        images: Any,
        out: Any,
        progress: Progress | None,
        choose: Callable[[Pending], dict[str, np.ndarray]] | None = None,
    ) -> Any:
        """The results of one image or several; ``choose`` makes them of those by head."""
        one = isinstance(images, str | os.PathLike | Mapping) or hasattr(images, "getbands")
        one = one or len(getattr(images, "shape", ())) in (2, 3)
        if out is not None and not one:
            raise ValueError("out is for the result of one image")
        several: Any = [images] if one else images

        def parts() -> Iterator[CanvasImage]:
            for number, image in enumerate(several):
                try:
                    arrays = self.opened(image)
                    given = {} if out is None else self._out_by_head(kind, size_of(arrays), out)
                    yield from self.parts(number, arrays, given)
                except ValueError as error:
                    if one:
                        raise
                    raise ValueError(f"image {number}: {error}") from error

        results = {}
        batches = self.each_batch(parts(), self.starting(compute_batch, kind=kind))
        for image in self.put_together(batches, progress):
            result = image.result if choose is None else choose(image)
            results[image.source] = result if len(result) > 1 else next(iter(result.values()))
        return results[0] if one else [results[number] for number in range(len(results))]

    def opened(self, image: Any) -> dict[str, Any]:
        """What the network reads of an image, by modality: arrays, or what is sliced like them."""
        return self._opener(image)

    @functools.cached_property
    def _opener(self) -> Opener:
        return Opener(self.inputs, any_type=self.value_range is not None)

    def parts(
        self, source: Any, arrays: Mapping[str, Any], result: dict[str, Any] | None = None
    ) -> Iterator[CanvasImage]:
        """An image, as `opened` gives it, or its tiles: every view of them, with canvases.

        Tiles overlap by the network's receptive field: with VGG16 an FCN-8s keeps 512 of 1024
        pixels a side, 1536 of 2048. Pixels are read tile by tile.

        ``source`` says where the image came from, to whoever gets its result. That is written to
        the arrays in ``result``, by head; what is not there is made.
        """
        size = size_of(arrays)
        tiles = [tuple(Span(slice(0, side), slice(0, side)) for side in size)]
        canvas = self.canvas if takes_canvas(self.model) else canvases.exactly
        unscaled = self.scale == 1 and self.scales == (1,)
        is_large = unscaled and math.prod(canvases.canvas_for(size, canvas)) > self.tile**2
        if is_large and takes_canvas(self.model):
            tiles, canvas = tiling.tiles(self.model, size, self.tile, mirrored=self.flip)
        image = Pending(source, size, len(tiles), {} if result is None else result)
        for rows, columns in tiles:
            pixels = {
                name: self._opener.pixels(name, array[rows.seen, columns.seen])
                for name, array in arrays.items()
            }
            mirrored = {name: array[:, ::-1] for name, array in pixels.items()}
            views = tuple(
                resize(mirrored if view.mirrored else pixels, view.scale) for view in self.views
            )
            on = self._canvases(size_of(pixels), canvas)
            top, left, right = rows.seen.start, columns.seen.start, size[1] - columns.seen.stop
            lie = tuple(
                ((top, right if view.mirrored else left), canvases.scaled_size(size, view.scale))
                for view in self.views
            )
            yield CanvasImage((image, (rows, columns)), views, size_of(pixels), on, lie)

    def _canvases(self, size: Size, canvas: canvases.Canvas) -> tuple[Size, ...]:
        """The canvas of an image's results, and of each view, which has the same for all of them.

        ``canvas`` is for images at the network's own scale.
        """
        own = canvases.canvas_for(canvases.scaled_size(size, self.scale), canvas)
        results = canvases.original_canvas(own, self.scale)
        largest = results if takes_canvas(self.model) else size
        rule = canvas if callable(canvas) else canvases.exactly
        of_scale = {
            scale: canvases.canvas_for(canvases.scaled_size(largest, scale), rule)
            for scale, _ in self.views
        }
        of_scale[self.scale] = own
        return (results, *(of_scale[scale] for scale, _ in self.views))

    def starting(
        self, program: Callable[..., Any], **options: Hashable
    ) -> Callable[[list[CanvasImage], tuple[Batch, ...]], Any]:
        """What `each_batch` is to start: a `Programs` of the network, on each batch's canvas."""
        return lambda images, batches: program(
            self.programs,
            self.on_device,
            batches,
            network=self.network,
            canvas=images[0].canvases[0],
            **options,
        )

    def each_batch(
        self,
        parts: Iterable[CanvasImage],
        start: Callable[[list[CanvasImage], tuple[Batch, ...]], Any],
    ) -> Iterator[tuple[list[CanvasImage], Any]]:
        """Computes parts of images in batches; yields those of each with its result on the host.

        ``start`` is given a batch of each view on the devices, and returns a tree of arrays there.
        """
        shards, _, split = shardings(self.mesh)
        # JAX computes asynchronously. Two batches ahead of the one whose result is waited for keep
        # the device busy while the host prepares the next and fetches the last.
        waiting: collections.deque[tuple[list[CanvasImage], Any]] = collections.deque()
        for images, rows in canvases.group_by_canvas(parts, self.batch_size, shards, self.tile**2):
            batches = self._batches(images, rows)
            result = start(images, jax.device_put(batches, split))
            for array in jax.tree.leaves(result):
                array.copy_to_host_async()
            waiting.append((images, result))
            if len(waiting) > 2:
                images, result = waiting.popleft()
                yield images, jax.device_get(result)
        for images, result in waiting:
            yield images, jax.device_get(result)

    def put_together(
        self,
        batches: Iterable[tuple[list[CanvasImage], Mapping[str, np.ndarray]]],
        progress: Progress | None = None,
    ) -> Iterator[Pending]:
        """Crops each part from its batch's result by head; yields the images that are complete."""
        done = Fraction()
        for images, results in batches:
            for row, part in enumerate(images):
                image, (rows, columns) = part.source
                for head, array in results.items():  # into memory of its own: no batch is kept
                    if self.classifies:
                        image.result[head] = array[row].copy()
                        continue
                    kept = array[row, rows.kept_inside, columns.kept_inside]
                    if head not in image.result:
                        image.result[head] = np.empty((*image.size, *kept.shape[2:]), kept.dtype)
                    image.result[head][rows.kept, columns.kept] = kept
                image.done += 1
                if image.done == image.parts:
                    yield image
                done += Fraction(1, image.parts)
                if progress is not None:
                    progress(float(done))

    @property
    def network(self) -> Network:
        """What its programs are compiled for."""
        heads = tuple((head, len(self.names(head))) for head in self.heads)
        return Network(self.model, self.inputs, heads, self.views)

    @functools.cached_property
    def on_device(self) -> Any:
        """The variables on all devices of the mesh, as its programs want them.

        Rounded once to the type that the layers compute in, which gives the same results; on a CPU
        with kernels prepared (`fcn_jax.FCN.prepared`).
        """
        variables = self._prepared(self._rounded(self.variables))
        return jax.device_put(variables, ops.kernel_formats(variables, shardings(self.mesh)[1]))

    def _rounded(self, variables: Any) -> Any:
        variables = variables if "params" in variables else {"params": variables}
        if isinstance(self.model, FCN):
            variables = {**variables, "params": self.model.rounded(variables["params"])}
        return variables

    def _prepared(self, variables: Any) -> Any:
        """Variables, or their shapes, with what the model prepares of them for the platform."""
        if not isinstance(self.model, FCN) or self._platform != "cpu":
            return variables
        return {**variables, "prepared": self.model.prepared(variables["params"])}

    @property
    def _platform(self) -> str:
        """That of the devices which compute: ``cpu``, ``gpu`` or ``tpu``."""
        return jax.default_backend() if self.mesh is None else self.mesh.devices.flat[0].platform

    def lower(self, size: Size, kind: Result = "labels") -> jax.stages.Lowered:
        """The program for full batches of images of a size, lowered and not yet compiled.

        ``predictor.lower((500, 375)).compile().memory_analysis()`` tells what it will take. Nothing
        is computed: shapes will do as ``variables`` (`fcn_jax.models.fcn.abstract_params`), and the
        mesh's devices need not be there (`jax.experimental.topologies`). Of a size that is computed
        in tiles it is the program for those.
        """
        shards, whole, split = shardings(self.mesh)
        image = self._opener.black(size)
        parts = itertools.chain.from_iterable(self.parts(None, image) for _ in itertools.count())
        grouped = canvases.group_by_canvas(parts, self.batch_size, shards, self.tile**2)
        images, rows = next(grouped)
        batches = self._batches(images, rows)
        variables = self._prepared(jax.eval_shape(self._rounded, self.variables))
        return compute_batch.lower(
            self._platform,
            (ops.kernel_formats(variables, whole), split),
            *(variables, batches),
            network=self.network,
            canvas=images[0].canvases[0],
            kind=kind,
        )

    def _batches(self, images: list[CanvasImage], rows: int) -> tuple[Batch, ...]:
        """A batch of each view, on the host."""
        # Without masks an H100 moves a fifth less (docs/performance.md), a CPU is no faster.
        apart = self._platform != "cpu"
        views = range(len(self.views))
        return tuple(canvases.batch_of(images, rows, v, filled_apart=apart) for v in views)

    def _out_by_head(self, kind: Result, size: Size, out: Any) -> dict[str, Any]:
        """The arrays that were given for an image's results, by head."""
        if not takes_canvas(self.model):
            raise ValueError("out is for an FCN that scores every pixel")
        heads = {head: len(self.names(head)) for head in self.heads}
        out = out if isinstance(out, Mapping) else dict.fromkeys(list(heads)[:1], out)
        if set(out) != set(heads):
            raise ValueError(f"out must be a dictionary of arrays for {', '.join(heads)}")
        dtype = np.dtype(np.uint8 if kind == "labels" else np.float32)
        for head, array in out.items():
            shape = size if kind == "labels" else (*size, heads[head])
            if array.shape != shape or array.dtype != dtype:
                raise ValueError(f"out must be {dtype} {shape}, got {array.dtype} {array.shape}")
        return dict(out)


@dataclasses.dataclass
class Pending:
    """An image whose parts are on their way through the network: itself, or its tiles."""

    source: Any  # where it came from, for whoever gets the result: a number, an example
    size: Size
    parts: int  # their number
    result: dict[str, Any]  # by head, filled part by part
    done: int = 0  # parts of it


def size_of(arrays: Mapping[str, Any]) -> Size:
    """Height and width of an image that is given by modality."""
    height, width = next(iter(arrays.values())).shape[:2]
    return height, width


def over_image(
    values: Float[np.ndarray, "h w"], cells: Geometry, size: Size, scale: float = 1.0
) -> Float[np.ndarray, "height width"]:
    """Spreads a value for each cell over the image, bilinearly; beyond the cells they go on.

    ``cells`` tells where the cells lie (``model.alignment.geometry``) on the image at this scale.
    """
    from scipy import ndimage

    places = [
        (
            (np.arange(side) + 0.5) * canvases.scaled_side(side, scale) / side
            - 0.5
            - float(cells.offset)
        )
        / float(cells.stride)
        for side in size
    ]
    grid = np.meshgrid(*places, indexing="ij")
    return ndimage.map_coordinates(values, grid, order=1, mode="nearest")


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
    allow_code: bool = False,
    **options: Any,
) -> Predictor:
    """A trained network, ready to predict.

    Args:
        source: The folder of a run or of one of its stages (``RUN/checkpoints/fcn8s``); or weights
            of any kind that `fcn_jax.load_weights` reads, also of a classifier: a file, or a name
            such as ``caffe:fcn8s-heavy-pascal`` or ``hf:OWNER/REPO``.
        stage: Of a run, such as ``fcn16s``; None is the last that has a checkpoint.
        which: Of a run, the checkpoint of the highest mean IU on the validation split, or the last.
        network: Of a file, such as ``fcn8s_atonce``, where its layers suggest another.
        padding: Of a file; None is as it says, or ``reference`` as the published networks have, of
            a classifier ``native``. Networks trained here have ``same`` unless their config says
            otherwise.
        modality: What a file with one input of three channels reads.
        classes: Of a file, the names of the classes, or the file that holds them; None is as it
            says, or as usual for their number.
        precision: ``float32``, ``tf32`` or ``bfloat16``; None is as in training, or float32.
        allow_code: Of a run, whether a backbone of its own may be loaded, which runs its file.
        **options: Fields of `Predictor`, such as ``tile``.

    Raises:
        FileNotFoundError: If there is no such file, or the folder is no run's.
        ValueError: If the file cannot be read or is of no known network, or an argument has no
            meaning with the source.

    Example:
        >>> import jax, numpy as np
        >>> import fcn_jax
        >>> model = fcn_jax.create_model("fcn32s", num_classes=21, width=1 / 16, fc_width=8)
        >>> variables = jax.jit(model.init)(jax.random.key(0), np.zeros((1, 32, 32, 3)))
        >>> fcn_jax.save_weights("fcn32s.npz", variables["params"])
        >>> predictor = fcn_jax.load("fcn32s.npz", padding="same")
        >>> predictor(np.zeros((40, 50, 3), np.uint8)).shape
        (40, 50)
        >>> predictor.heads["label"].names[:3]
        ('background', 'aeroplane', 'bicycle')
    """
    path = Path(source).expanduser()
    of_run = not weights.is_name(source) and path.is_dir()
    of_file = {"network": network, "padding": padding, "modality": modality, "classes": classes}
    unused = of_file if of_run else {"stage": stage}
    if given := [name for name, value in unused.items() if value is not None]:
        what = "the folder of a run" if of_run else "a weight file"
        raise ValueError(f"{', '.join(given)}: of no meaning with {what} ({source})")
    if not weights.is_name(source) and not path.exists():
        raise FileNotFoundError(
            f"{path} is neither a weight file nor the folder of a training run, nor one of the "
            "names that `fcn-jax weights` lists"
        )
    if of_run:
        from fcn_jax.runs import load_run

        if path.parent.name == "checkpoints" and not (path / "config.json").exists():
            path, stage = path.parents[1], path.name
        run = load_run(path, stage, which, precision, allow_code=allow_code)
        options = {"scale": run.config.scale, **options}
        return Predictor(run.model, _aligned(run.variables), run.inputs, run.heads, **options)

    row = PUBLISHED.get(str(source))
    if row is not None and not row.network:  # before it is fetched
        raise ValueError(f"{source} can only be trained from: --config.init={source}")
    loaded = weights.load(source)
    said = loaded.network
    model = weights.network_of(loaded, network or said.name, padding or said.padding)
    model = model.clone(precision=precision or said.precision or model.precision)
    names = read_names(classes) if isinstance(classes, str | Path) else classes
    heads = dict(said.heads) if names is None else {}
    heads = heads or {h: classes_of(names or data.usual_names(n)) for h, n in model.heads}
    inputs = weights.usual_inputs(loaded, model, modality or said.modality)
    params = _aligned(weights.params_of(loaded, model))
    options = {"scale": said.scale or 1.0, **options}
    return Predictor(model, {"params": params}, inputs, heads, **options)


def _aligned(arrays: Any) -> Any:
    """The arrays as jax on a CPU takes them without a copy (`fcn_jax.weights.arrays.aligned`)."""

    def of_array(array: Any) -> Any:
        if not isinstance(array, np.ndarray) or array.ctypes.data % 64 == 0:
            return array
        copy = aligned(array.shape, array.dtype)
        copy[...] = array
        return copy

    return jax.tree.map(of_array, arrays) if jax.default_backend() == "cpu" else arrays


def classes_of(names: list[str]) -> ClassTable | tuple[str, ...]:
    """The table of some classes; their names alone where they are too many for label maps."""
    return table_from_names(names) if len(names) <= MAX_CLASSES else tuple(names)
