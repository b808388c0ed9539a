"""Border sharing: a wide border of zeros around the image, computed once instead of everywhere.

The published networks put 100 pixels of zeros around the image. In the maps of the first stages,
the cells that neither the image nor the edge of the map reaches are then all alike. So three parts
make up such a map: the cells that the image reaches, the edges, which are those of a blank image
however small, and one vector for all cells between them. Layers run on the first two parts only;
the whole map is put together where it is needed. It is the same function, with 0.67 of VGG16's
multiply-adds for 500x375 pixels and 0.40 for 128x128.

`share_border` makes a `SharedMap` of an image, which the network uses as a `fcn_jax.canvas.Map`.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeAlias

import jax.numpy as jnp
import numpy as np
from flax import struct
from jax import lax
from jaxtyping import Array, Float, Int

from fcn_jax.canvas import Map, ValidSize, fill_beyond
from fcn_jax.geometry import Window
from fcn_jax.models.backbones import Conv, Layer, Pool
from fcn_jax.models.decoders import CELL, maps_read, window_of
from fcn_jax.ops import sizes_known
from fcn_jax.programs import target_platform

Sizes: TypeAlias = Int[np.ndarray, "_ 2"] | Int[Array, "b 2"]
"""Cells along both axes: numbers known when the program is traced, or an array of each image's."""

# ======================================================================== where the parts lie


@dataclasses.dataclass(frozen=True)
class _Axis:
    """What the cells of a map see, along both axes.

    Attributes:
        size: Cells of the map.
        start: The first cell that sees the image.
        stop: The cell behind the last one that does.
        low: How many of the first cells see the edge of the map, or of a map before it.
        high: How many of the last ones do.
    """

    size: Sizes
    start: int
    stop: Sizes | int
    low: int
    high: Sizes

    @classmethod
    def of_image(cls, size: Sizes, border: int) -> _Axis:
        """An image with its border, which no layer has seen yet."""
        return cls(size + 2 * border, border, border + size, 0, 0 * size)

    def through(self, window: Window) -> _Axis:
        """The same for what a layer computes."""
        kernel, stride, pad = window.span, window.stride, window.pad
        size = window.cells(self.size)
        return _Axis(
            size=size,
            start=-(-(self.start + pad - kernel + 1) // stride),
            stop=(self.stop - 1 + pad) // stride + 1,
            low=-(-(self.low + pad) // stride),
            high=size - 1 - (self.size - self.high + pad - kernel) // stride,
        )

    def read_by(self, run: Sequence[Window]) -> tuple[int, Sizes | int]:
        """The first cell that layers with these windows read where they see the image.

        And the one behind the last.
        """
        out = self
        for window in run:
            out = out.through(window)
        first, behind = out.start, out.stop
        for window in reversed(run):
            first = first * window.stride - window.pad
            behind = (behind - 1) * window.stride - window.pad + window.span
        return first, behind


@functools.cache
def shared_layers(layers: tuple[Layer, ...]) -> int:
    """How many of the first layers can share the border: while image and edge do not meet.

    They must be a chain, each read by the next one only, without dropout.
    """
    if not isinstance(layers[0], Conv):
        return 0
    # Where the last windows end depends on the image's size, with the period of the total stride.
    axis = _Axis.of_image(np.arange(1, 65)[:, None].repeat(2, axis=1), layers[0].window.pad)
    reads = maps_read(layers)
    for number, layer in enumerate(layers):
        before = layers[number - 1].name if number else ""
        chained = reads[number] == (before,) and sum(reads, ()).count(before) == 1
        window = window_of(layer)
        axis = axis.through(dataclasses.replace(window, pad=0) if number == 0 else window)
        meet = axis.start < axis.low or np.any(axis.stop > axis.size - axis.high)
        if meet or not chained or getattr(layer, "dropout", False):
            return number
    return len(layers)


class Step(NamedTuple):
    """How a layer takes its part in sharing.

    Attributes:
        window: Its own; the first layer takes the border as part of the map, and pads nothing.
        run: If cells are added for it around those that it reads, its window and those of the
            layers behind it that do with these; otherwise empty.
    """

    window: Window
    run: tuple[Window, ...]


def _most_high(before: int, window: Window) -> int:
    """The largest ``high`` of images of any size, behind a window."""
    return (before + window.pad + 2 * window.stride - 2) // window.stride


@dataclasses.dataclass(frozen=True, eq=False)
class Border:
    """How a map is divided in parts.

    Attributes:
        axis: Of the whole maps, its arrays (b or 1, 2).
        canvas: Cells of a map that holds all images' whole maps.
        blank_size: Cells of the blank maps, (b or 1, 2).
        most_high: The largest ``axis.high`` of images of any size.
    """

    axis: _Axis
    canvas: tuple[int, ...]
    blank_size: Sizes
    most_high: int = 0

    @classmethod
    def of_image(cls, canvas: tuple[int, int], valid_size: ValidSize, border: int) -> Border:
        """Of images with so many zeros around them."""
        size = np.array([canvas]) if valid_size is None else jnp.asarray(valid_size)
        enlarged = tuple(side + 2 * border for side in canvas)
        return cls(_Axis.of_image(size, border), enlarged, 0 * size + 1)

    @property
    def valid_size(self) -> ValidSize:
        """The size of each image's whole map; None where all fill the canvas."""
        return None if isinstance(self.axis.size, np.ndarray) else self.axis.size

    def through(self, step: Step) -> Border:
        """The same for what a layer computes."""
        window = step.window
        sizes = self.blank_for(step.run)[0] if step.run else self.blank_size
        return Border(
            axis=self.axis.through(window),
            canvas=tuple(window.output_size(side) for side in self.canvas),
            blank_size=window.cells(sizes),
            most_high=_most_high(self.most_high, window),
        )

    def blank_for(self, run: tuple[Window, ...]) -> tuple[Sizes, tuple[int, ...]]:
        """The sizes of a blank map that is large enough for a run, and of a canvas for all.

        It ends like the whole map: the last windows may reach beyond both, or not.
        """
        *before, last = run
        axis, most_high = self.axis, self.most_high
        for window in before:
            axis, most_high = axis.through(window), _most_high(most_high, window)
        least = axis.low + most_high + last.span + last.stride
        for window in reversed(before):
            least = (least - 1) * window.stride + window.span - 2 * window.pad
        stride = math.prod(window.stride for window in run)
        sizes = least + (self.axis.size - least) % stride
        if isinstance(sizes, np.ndarray):
            return sizes, tuple(int(side) for side in sizes[0])
        return sizes, (least + stride - 1,) * 2

    def stretched(
        self, blank: Float[Array, "#b n m c"], sizes: Sizes, canvas: tuple[int, ...]
    ) -> Float[Array, "#b n2 m2 c"]:
        """A blank map with more cells in the middle, or fewer."""
        if target_platform() == "gpu" and isinstance(sizes, np.ndarray):  # no kernel of its own
            for axis, more in enumerate((sizes - self.blank_size)[0].tolist(), 1):
                blank = _repeated(blank, axis, self.axis.low, more)
            return blank
        # Products with zeros and a one are exact, and so are their gradients.
        for axis, product in enumerate(("bRr,brcx->bRcx", "bCc,bRcx->bRCx")):
            index = np.arange(canvas[axis])[None]
            low, more = self.axis.low, (sizes - self.blank_size)[:, axis, None]
            source = jnp.where(index < low, index, jnp.maximum(low, index - more))
            copies = source[..., None] == np.arange(blank.shape[1 + axis])[None, None]
            copies = copies.astype(blank.dtype)
            blank = jnp.einsum(product, copies, blank, precision=lax.Precision.HIGHEST)
        return blank


# ======================================================================== maps


@struct.dataclass
class SharedMap:
    """A map in parts.

    Attributes:
        seen: The cells that the image reaches, and inside a run some around them.
        first: Where these begin in the whole map, along both axes.
        blank: The map of a blank image: the edges, and between them at least one cell that sees
            neither image nor edge.
        borders: How this map is divided, and how those of the layers after it are that share the
            border as well.
        steps: Of those layers.
    """

    seen: Float[Array, "b h w c"]
    first: int = struct.field(pytree_node=False)
    blank: Float[Array, "#b n m c"]
    borders: tuple[Border, ...] = struct.field(pytree_node=False)
    steps: tuple[Step, ...] = struct.field(pytree_node=False)

    def apply(self, operation: Callable[..., Array], window: Window) -> Map | SharedMap:
        """The map that ``operation(array, window)`` computes; in parts as far as sharing goes."""
        border, *later = self.borders
        if not later:
            return self.whole().apply(operation, window)
        window, run = self.steps[0]
        first, seen, blank = self.first, self.seen, self.blank
        if run:
            first, seen = self._surrounded(run)
            blank = border.stretched(blank, *border.blank_for(run))
        blank = operation(blank, window)
        if border.valid_size is not None:
            blank = fill_beyond(blank, later[0].blank_size)
        seen = operation(seen, dataclasses.replace(window, pad=0))
        first = (first + window.pad) // window.stride
        return SharedMap(seen, first, blank, tuple(later), self.steps[1:])

    def whole(self) -> Map:
        """The map put together."""
        border = self.borders[0]
        blank = border.stretched(self.blank, border.axis.size, border.canvas)
        sides = zip(border.canvas, self.seen.shape[1:3], strict=True)
        pads = [(self.first, cells - self.first - side) for cells, side in sides]
        # A small image on a large canvas: what is seen goes on beyond the edge of its map.
        until = None if border.valid_size is None else border.valid_size - border.axis.high
        return Map.masked(_laid_over(blank, self.seen, pads, until), border.valid_size)

    def _surrounded(self, run: Sequence[Window]) -> tuple[int, Float[Array, "b h2 w2 c"]]:
        """What the windows read where they see the image: the seen cells and some around them.

        And the cell of the map that it begins with.
        """
        axis = self.borders[0].axis
        stops = axis.start + np.array([self.seen.shape[1:3]])
        first, behind = dataclasses.replace(axis, stop=stops).read_by(run)
        pads = [(axis.start - first, int(after)) for after in (behind - stops)[0]]
        between = self.blank[:, axis.low, axis.low, None, None]
        return first, _laid_over(between, self.seen, pads)


# ======================================================================== what is shared

MORE_CELLS = 9 / 8
"""A map of so many times the cells takes a GPU longer than to lay cells around the smaller one."""


def divide(
    layers: Sequence[Layer],
    canvas: tuple[int, int],
    valid_size: ValidSize = None,
    *,
    together: bool = False,
) -> tuple[list[Border], list[Step]]:
    """How the maps are divided in parts, the images' and those of layers that share the border.

    Args:
        canvas: Height and width of the images.
        together: Cells are added for several layers up to a pooling at once, unless one of them
            computed more than `MORE_CELLS`: fewer operations on larger maps. Otherwise for each by
            itself.

    Returns:
        A border for each map, and a step for each layer.
    """
    around, *windows = map(window_of, layers)
    windows.insert(0, dataclasses.replace(around, pad=0))
    axis, seen = _Axis.of_image(np.array([canvas]), around.pad), []
    for window in windows:
        axis = axis.through(window)
        seen.append(axis)
    steps: list[Step] = []
    run: tuple[Window, ...] = ()
    for layer, window, out in reversed([*zip(layers, windows, seen, strict=True)]):
        first, behind = out.read_by(run)
        more = np.prod(behind - first) / np.prod(out.stop - out.start)
        if isinstance(layer, Pool) or not together or more > MORE_CELLS:
            run = ()
        elif steps:
            steps[-1] = Step(steps[-1].window, ())
        if window != CELL:
            run = (window, *run)
        steps.append(Step(window, run))
    steps.reverse()
    borders = [Border.of_image(canvas, valid_size, around.pad)]
    for step in steps:
        borders.append(borders[-1].through(step))
    return borders, steps


A_KERNEL = {
    lax.Precision.DEFAULT: 2e9,  # bfloat16
    lax.Precision.HIGH: 1e9,  # tf32
    lax.Precision.HIGHEST: 0.15e9,  # float32
}
"""Multiply-adds that a GPU does in the time of a small kernel, 5 microseconds of an H200."""


@functools.cache
def layers_worth_sharing(
    layers: tuple[Layer, ...], shape: tuple[int, ...], precision: lax.Precision
) -> int:
    """How many of the first layers share the border of images (b, h, w, c) on a GPU.

    As many as save most: the multiply-adds of the cells that are not computed, less `A_KERNEL` for
    each kernel more. A convolution has one more, for its blank map, and so has a run, for the cells
    that are added.
    """
    batch, height, width, _ = shape
    most, best, all_shared = 0.0, 0, shared_layers(layers)
    for number in range(1, all_shared + 1):
        if number < all_shared and isinstance(layers[number], Pool):
            continue  # the map that is put together is smaller behind it
        borders, steps = divide(layers[:number], (height, width), together=True)
        kernels, saved, channels = sum(bool(step.run) for step in steps), 0.0, shape[-1]
        for layer, border in zip(layers, borders[1:], strict=False):
            if isinstance(layer, Conv):
                taps = layer.window.kernel**2 * channels // layer.groups
                channels = layer.channels
                axis = border.axis
                cells = batch * (np.prod(axis.size) - np.prod(axis.stop - axis.start))
                saved += (cells - np.prod(border.blank_size)) * taps * channels
                kernels += 1
        saved -= kernels * A_KERNEL[precision]
        if saved > most:
            most, best = saved, number
    return best


def share_border(
    image: Map, layers: tuple[Layer, ...], precision: lax.Precision
) -> Map | SharedMap:
    """An image whose first layers share its border; as it is if they have none to share.

    Or if its size is not known, since where the parts lie depends on it. On a GPU, where a kernel
    takes its time however small it is, fewer layers share it, and in fewer operations.
    """
    number = shared_layers(layers)
    if not number or not sizes_known(image.array):
        return image
    _, height, width, channels = image.array.shape
    on_gpu = target_platform() == "gpu"
    if on_gpu:
        number = layers_worth_sharing(layers, image.array.shape, precision)
    if not number:
        return image
    borders, steps = divide(layers[:number], (height, width), image.valid_size, together=on_gpu)
    batch = borders[0].blank_size.shape[0]
    blank = jnp.zeros((batch, 1, 1, channels), image.array.dtype)
    return SharedMap(image.array, borders[0].axis.start, blank, tuple(borders), tuple(steps))


def _repeated(array: Array, axis: int, cell: int, more: int) -> Array:
    """With a cell of an axis so many times more; or without as many behind it."""
    before, behind = (
        lax.slice_in_dim(array, 0, cell, axis=axis),
        lax.slice_in_dim(array, cell + max(0, -more), None, axis=axis),
    )
    one = lax.slice_in_dim(array, cell, cell + 1, axis=axis)
    shape = list(array.shape)
    shape[axis] = max(0, more)
    return jnp.concatenate([before, jnp.broadcast_to(one, shape), behind], axis)


def _laid_over(
    below: Float[Array, "#b #h #w c"],
    seen: Float[Array, "b h2 w2 c"],
    pads: Sequence[tuple[int, int]],
    until: ValidSize = None,
) -> Float[Array, "b h w c"]:
    """Cells laid over a larger map, with so many cells of it around them; all before ``until``."""
    around = ((0, 0, 0), *((before, after, 0) for before, after in pads), (0, 0, 0))
    padded = lax.pad(seen, jnp.zeros((), seen.dtype), around)
    inside = np.ones((1, 1, 1, 1), bool)
    for axis, (before, _) in enumerate(pads, start=1):
        cells = np.arange(padded.shape[axis])
        within = ((cells >= before) & (cells < before + seen.shape[axis]))[None]
        if until is not None:
            within = within & (cells[None] < until[:, axis - 1, None])
        inside = inside & (within[:, :, None, None] if axis == 1 else within[:, None, :, None])
    return jnp.where(inside, padded, below)
