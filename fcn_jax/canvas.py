"""Batches of images of different sizes: grouped by canvas and stacked.

A canvas is the height and width of a batch; each image lies in its top left corner, and its valid
size is its height and width there.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from fractions import Fraction
from typing import Any, NamedTuple, TypeAlias

import jax.numpy as jnp
import numpy as np
from flax import struct
from jax.core import max_dim
from jaxtyping import Array, Float, Int, Shaped

from fcn_jax.geometry import Cells, TransposedWindow, Window

Size: TypeAlias = tuple[int, int]
"""Height and width in pixels."""

ValidSize: TypeAlias = Int[Array | np.ndarray, "b 2"] | None
"""Height and width of each image on its canvas; None where all images fill it."""

Canvas: TypeAlias = Callable[[int], int] | Size
"""The rule for canvases: the canvas's side for an image's side, or one canvas for all images."""


class Tile(NamedTuple):
    """Where the images of a batch lie in the larger ones that they are tiles of.

    Attributes:
        start: The first pixel of each.
        size: Height and width of the larger image.
    """

    start: Int[Array | np.ndarray, "b 2"]
    size: Int[Array | np.ndarray, "b 2"]


LARGEST_SIDE = 2048
"""No batch has more pixels for a device than a canvas of this side, unless one image has.

FCN-8s with VGG16 takes 2 GB for so many on the CPU, and 0.5 GB for a canvas of half the side.
"""


@struct.dataclass
class Batch:
    """What a network needs of a batch; the rows beyond the last image are black.

    ``arrays`` are uint8 or uint16, by modality, at the network's scale; ``valid_size`` is each
    image's height and width there (None: all fill the canvas, and the network needs no masks),
    ``original_size`` before it was scaled; ``tile`` is where it lies in the image that it is a tile
    of, or that it is itself.
    """

    arrays: Mapping[str, Shaped[Array | np.ndarray, "b h w *c"]]
    valid_size: ValidSize
    original_size: Int[Array | np.ndarray, "b 2"]
    tile: Tile


class CanvasImage(NamedTuple):
    """An image that has been given a canvas; the network may see it several times."""

    source: Any  # where it came from, for whoever gets the result
    views: tuple[Mapping[str, np.ndarray], ...]  # what the network reads by modality, at its scale
    original_size: Size  # before scaling, at which results are wanted
    canvases: tuple[Size, ...]  # of the batch that it is to be in: of the results, of each view
    # Of each view: its first pixel in the image that it is a tile of, and the size of that.
    tiles: tuple[tuple[Size, Size], ...]


# ======================================================================== canvases


def canvas_side(side: int) -> int:
    """The side of the canvas for an image of so many pixels.

    Four sides in each octave, and none below 32: 32, 40, 48, 56, 64, 80, … 384, 448, 512, 640, …
    A canvas is therefore less than a quarter longer than its image (an eighth on average), and a
    data set of any sizes up to 1000 pixels needs 20 sides, most of them rarely.
    """
    step = 1 << max(3, (side - 1).bit_length() - 3)
    return max(32, round_up(side, step))


def exactly(side: int) -> int:
    """The rule by which each image is its own canvas: one compilation for each size."""
    return side


def rule_for(sizes: Iterable[Size]) -> Canvas:
    """The rule for a set of images: their own sizes if they have one or two, else `canvas_side`."""
    return exactly if len(set(sizes)) <= 2 else canvas_side  # a camera, upright and across


def canvas_for(size: Size, canvas: Canvas) -> Size:
    """The canvas of an image, which must fit."""
    height, width = (canvas(size[0]), canvas(size[1])) if callable(canvas) else canvas
    if size[0] > height or size[1] > width:
        raise ValueError(
            f"the image of {size[0]}x{size[1]} pixels does not fit the canvas of {height}x{width}; "
            "give a larger canvas, or a rule such as fcn_jax.canvas.canvas_side"
        )
    return height, width


def scaled_size(size: Size, scale: float) -> Size:
    """The size of an image once it is scaled (`fcn_jax.data.transforms.resize`)."""
    return scaled_side(size[0], scale), scaled_side(size[1], scale)


def scaled_side(side: Cells, scale: float) -> Cells:
    """A side of an image once it is scaled: the nearest number of pixels, at least 1.

    Between two that are as near it is the even one.

    Example:
        >>> [scaled_side(side, 0.7) for side in (1, 5, 15, 45)]  # of 0.7, 3.5, 10.5, 31.5
        [1, 4, 10, 32]
    """
    # In integers, which symbolic sides know as well, and 0.7 * 45 is 31.499999999999996 in floats.
    times, over = ratio(scale).as_integer_ratio()
    whole, rest = side * times // over, side * times % over
    return max_dim(1, whole + (2 * rest + whole % 2) // (over + 1))


def ratio(scale: float) -> Fraction:
    """The fraction that a scale is meant to be: 7/10 for 0.7, 1/3 for 0.3333333333333333."""
    return max(Fraction(float(scale)).limit_denominator(10_000), Fraction(1, 10_000))


def original_canvas(canvas: Size, scale: float) -> Size:
    """The smallest canvas for all images that fit ``canvas`` once they are scaled."""
    half = Fraction(1, 2)  # the sides that rounding brings to the canvas, and no more
    return math.floor((canvas[0] + half) / ratio(scale)), math.floor(
        (canvas[1] + half) / ratio(scale)
    )


# ======================================================================== batches


def group_by_canvas(
    images: Iterable[CanvasImage], batch_size: int, shards: int, most_pixels: int
) -> Iterator[tuple[list[CanvasImage], int]]:
    """Yields the images of each batch and its rows: full batches of one canvas, at the end others.

    All batches of a canvas have the same number of rows, so that it is compiled once: the batch
    size rounded up to a multiple of ``shards``, one for each device, or fewer if so many would have
    more than ``most_pixels`` for a device. For a canvas too rare to fill one batch it is its number
    of images, rounded up to a power of two.
    """
    pending: dict[tuple[Size, ...], list[CanvasImage]] = {}
    filled = set()

    def full_rows(canvases: tuple[Size, ...]) -> int:
        fitting = shards * max(1, most_pixels // max(map(math.prod, canvases[1:])))
        return round_up(min(batch_size, fitting), shards)

    for image in images:
        group = pending.setdefault(image.canvases, [])
        group.append(image)
        if len(group) == full_rows(image.canvases):
            yield pending.pop(image.canvases), len(group)
            filled.add(image.canvases)
    for canvases, group in pending.items():
        rows = full_rows(canvases)
        if canvases not in filled:
            rows = min(rows, round_up(1 << (len(group) - 1).bit_length(), shards))
        yield group, rows


def round_up(number: int, multiple: int) -> int:
    """The smallest multiple that is not below a number."""
    return -(-number // multiple) * multiple


def stack(
    arrays: Sequence[Shaped[np.ndarray, "_ _ *c"]], canvas: Size, rows: int, fill: int = 0
) -> Shaped[np.ndarray, "{rows} height width *c"]:
    """Copies arrays of one type into the top left corners of a batch, and fills the rest."""
    first = arrays[0]
    batch = np.full((rows, *canvas, *first.shape[2:]), fill, first.dtype)
    for row, array in enumerate(arrays):
        batch[row, : array.shape[0], : array.shape[1]] = array
    return batch


def batch_of(
    images: Sequence[CanvasImage], rows: int, view: int, *, filled_apart: bool = False
) -> Batch:
    """Stacks one view of images of the same canvases, on the host.

    The rows beyond the images have the first one's size. ``filled_apart``: where all images fill
    their canvas the batch says so, which makes two programs of a canvas.
    """
    canvas = images[0].canvases[1 + view]
    arrays = {
        name: stack([image.views[view][name] for image in images], canvas, rows)
        for name in images[0].views[view]
    }
    padded = [*images, *[images[0]] * (rows - len(images))]
    sizes = [next(iter(image.views[view].values())).shape[:2] for image in padded]
    originals = [image.original_size for image in padded]
    tile = Tile(*(np.array([i.tiles[view][part] for i in padded], np.int32) for part in (0, 1)))
    valid_size = np.array(sizes, np.int32)
    if filled_apart and (valid_size == canvas).all():
        valid_size = None
    return Batch(arrays, valid_size, np.array(originals, np.int32), tile)


# ======================================================================== valid sizes


def fill_beyond(
    x: Float[Array | np.ndarray, "b h w c"], valid_size: ValidSize
) -> Float[Array, "b h w c"]:
    """Overwrites the cells beyond each image's valid size with zeros."""
    if valid_size is None:
        return jnp.asarray(x)
    rows = jnp.arange(x.shape[1])[None] < valid_size[:, 0, None]
    columns = jnp.arange(x.shape[2])[None] < valid_size[:, 1, None]
    inside = (rows[:, :, None] & columns[:, None, :])[..., None]
    return jnp.where(inside, x, jnp.zeros((), x.dtype))


class Map(NamedTuple):
    """A batch of maps on a canvas, zero beyond each image's valid size."""

    array: Float[Array, "b h w c"]
    valid_size: ValidSize = None

    @classmethod
    def masked(cls, array: Float[Array, "b h w c"], valid_size: ValidSize) -> Map:
        """A map of an array with anything beyond the valid sizes."""
        return cls(fill_beyond(array, valid_size), valid_size)

    def apply(self, operation: Callable[..., Array], window: Window | TransposedWindow) -> Map:
        """The map that ``operation(array, window)`` computes."""
        valid_size = None if self.valid_size is None else window.cells(self.valid_size)
        return Map.masked(operation(self.array, window), valid_size)

    def whole(self) -> Map:
        """Itself; the same of a map in parts (`fcn_jax.models.border`) puts it together."""
        return self
