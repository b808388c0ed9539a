"""Batches of images of different sizes: grouped by canvas, stacked, a few of them in flight.

A canvas is the height and width of a batch; each image lies in its top left corner, and its valid
size is its height and width there.
"""

from __future__ import annotations

import collections
import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias, TypeVar

import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Float, Int, Shaped

from fcn_jax.geometry import TransposedWindow, Window

T = TypeVar("T")

Size: TypeAlias = tuple[int, int]
"""Height and width in pixels."""

ValidSize: TypeAlias = Int[Array | np.ndarray, "b 2"] | None
"""Height and width of each image on its canvas; None where all images fill it."""

Canvas: TypeAlias = Callable[[int], int] | Size
"""The rule for canvases: the canvas's side for an image's side, or one canvas for all images."""

LARGEST_SIDE = 2048
"""No batch has more pixels for a device than a canvas of this side, unless one image has.

FCN-8s with VGG16 takes 2 GB for so many on the CPU, and 0.5 GB for a canvas of half the side.
"""


@struct.dataclass
class Batch:
    """What a network needs of a batch; the rows beyond the last image are black.

    Attributes:
        arrays: What the network reads by modality, uint8 or uint16, at the network's scale.
        valid_size: Height and width of each image there.
        original_size: Height and width of each image before it was scaled for the network.
    """

    arrays: Mapping[str, Shaped[Array | np.ndarray, "b h w *c"]]
    valid_size: Int[Array | np.ndarray, "b 2"]
    original_size: Int[Array | np.ndarray, "b 2"]


@dataclasses.dataclass(frozen=True)
class CanvasImage:
    """An image, as ``arrays`` by modality at the network's scale, that has been given a canvas.

    Attributes:
        source: Where it came from, for whoever gets the result: a number, an example.
        original_size: Height and width before scaling, at which results are wanted.
    """

    source: Any
    arrays: Mapping[str, np.ndarray]
    original_size: Size
    canvas: Size


@dataclasses.dataclass(frozen=True)
class Group:
    """Images of one canvas, and the number of rows of their batch."""

    images: list[CanvasImage]
    canvas: Size
    rows: int


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


def original_canvas(canvas: Size, scale: float) -> Size:
    """The smallest canvas for all images that fit ``canvas`` once they are scaled."""
    # The sides that round(side * scale) brings to the canvas, and no more.
    return math.floor((canvas[0] + 0.5) / scale), math.floor((canvas[1] + 0.5) / scale)


# ======================================================================== batches


def group_by_canvas(
    images: Iterable[CanvasImage],
    batch_size: int,
    shards: int = 1,
    most_pixels: int = LARGEST_SIDE**2,
) -> Iterator[Group]:
    """Collects images of one canvas; yields those that fill a batch, and the others at the end.

    All batches of a canvas have the same number of rows, so that it is compiled once: the batch
    size rounded up to a multiple of ``shards``, one for each device, or fewer if so many would have
    more than ``most_pixels`` for a device. For a canvas too rare to fill one batch it is its number
    of images, rounded up to a power of two.
    """
    pending: dict[Size, list[CanvasImage]] = {}
    filled = set()

    def full_rows(canvas: Size) -> int:
        fitting = shards * max(1, most_pixels // math.prod(canvas))
        return round_up(min(batch_size, fitting), shards)

    for image in images:
        group = pending.setdefault(image.canvas, [])
        group.append(image)
        if len(group) == full_rows(image.canvas):
            yield Group(pending.pop(image.canvas), image.canvas, len(group))
            filled.add(image.canvas)
    for canvas, group in pending.items():
        rows = full_rows(canvas)
        if canvas not in filled:
            rows = min(rows, round_up(1 << (len(group) - 1).bit_length(), shards))
        yield Group(group, canvas, rows)


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


def batch_of(group: Group, scale: float) -> Batch:
    """Stacks images that were scaled for the network on their canvas, on the host."""
    images, rows = group.images, group.rows
    arrays = {
        name: stack([image.arrays[name] for image in images], group.canvas, rows)
        for name in images[0].arrays
    }
    valid_size = np.full((rows, 2), group.canvas, np.int32)
    original_size = np.full((rows, 2), original_canvas(group.canvas, scale), np.int32)
    for row, image in enumerate(images):
        valid_size[row] = next(iter(image.arrays.values())).shape[:2]
        original_size[row] = image.original_size
    return Batch(arrays, valid_size, original_size)


def run_ahead(results: Iterable[T], ahead: int = 2) -> Iterator[T]:
    """Yields what an iterator gives, but ``ahead`` items later.

    JAX computes asynchronously: an iterator that starts a computation for each item is then two
    ahead of the one whose result is waited for. These keep the device busy while the host prepares
    the next batch and fetches the last, and take little memory.
    """
    waiting: collections.deque[T] = collections.deque()
    for result in results:
        waiting.append(result)
        if len(waiting) > ahead:
            yield waiting.popleft()
    yield from waiting


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
