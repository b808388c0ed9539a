"""Where a cell of a map lies over the image: stride, offset, receptive field.

Every layer of a convolutional network reads its input through a sliding window, so each cell of
each map sits over a definite point of the image. Composing the layers' windows gives that point
for any map, and with it every crop of a fully convolutional network: the published offsets 19
(FCN-32s), 5 and 27 (16s), 5, 9 and 31 (8s) are results of this module, not constants.

All quantities are along one axis; windows are square. Fractions keep the arithmetic exact.

Example:
    >>> vgg_block = [Window(3, pad=1), Window(3, pad=1), Window(2, stride=2, ceil=True)]
    >>> compose(vgg_block)
    Geometry(stride=Fraction(2, 1), offset=Fraction(1, 2), receptive_field=Fraction(6, 1))
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from fractions import Fraction
from typing import Any, TypeAlias

import numpy as np
from jax import Array
from jax.core import max_dim, min_dim
from jax.export import is_symbolic_dim

Cells: TypeAlias = Any
"""A number of cells: an int, or jax's symbolic dimension in a program for images of any size."""


@dataclasses.dataclass(frozen=True)
class Window:
    """The window of a convolution or pooling along one axis.

    Attributes:
        kernel: Cells the window reads.
        stride: Cells it moves between two outputs.
        pad: Cells added on each side of the input.
        ceil: Round the output size up instead of down, as Caffe's pooling does.
        dilation: Cells from one that it reads to the next.

    Example:
        >>> Window(2, stride=2, ceil=True).cells(7)
        4
    """

    kernel: int
    stride: int = 1
    pad: int = 0
    ceil: bool = False
    dilation: int = 1

    @property
    def span(self) -> int:
        """Cells from the first that the window reads to the last, both counted."""
        return self.dilation * (self.kernel - 1) + 1

    def cells(self, size: Cells | Array | np.ndarray) -> Any:
        """Cells of the output for an input of ``size`` cells, a number or an array of them.

        Below 1 where the padded input is smaller than the window.
        """
        reach = size + 2 * self.pad - self.span
        if not self.ceil:
            return reach // self.stride + 1
        cells = -(-reach // self.stride) + 1
        if self.span >= self.stride + self.pad:
            return cells
        # Caffe drops a last window that would start beyond the input and its left padding. Its
        # start is at most so far from there, and symbolic sizes are not compared.
        beyond = (cells - 1) * self.stride - (size + self.pad)
        most = max(self.stride + self.pad - self.span, self.span - self.pad, 1)
        return cells - (1 + beyond // most)

    def output_size(self, size: Cells) -> Cells:
        """Cells of the output for an input of ``size`` cells.

        Raises:
            ValueError: If the padded input is smaller than the window.
        """
        cells = self.cells(size)
        if cells < 1:
            raise ValueError(
                f"an input of {size} cells is too small for a window of {self.span} cells with "
                f"padding {self.pad}"
            )
        return cells if is_symbolic_dim(cells) else int(cells)

    def excess(self, size: Cells) -> Cells:
        """Cells by which the last window reaches beyond the right padding (0 unless ``ceil``)."""
        if not self.ceil:
            return 0
        last_end = (self.output_size(size) - 1) * self.stride + self.span
        return max_dim(0, last_end - (size + 2 * self.pad))


@dataclasses.dataclass(frozen=True)
class TransposedWindow:
    """The window of a transposed convolution along one axis.

    Each input cell adds one kernel to the output, ``factor`` cells after its neighbour's.

    Attributes:
        kernel: Output cells that one input cell writes to.
        factor: Output cells between the kernels of two neighbouring input cells.

    Example:
        >>> TransposedWindow(4, factor=2).cells(7)
        16
    """

    kernel: int
    factor: int

    def cells(self, size: Cells | Array | np.ndarray) -> Any:
        """Cells of the output for an input of ``size`` cells, a number or an array of them."""
        return (size - 1) * self.factor + self.kernel

    @classmethod
    def bilinear(cls, factor: int) -> TransposedWindow:
        """The smallest window that interpolates bilinearly: kernel ``2 factor - factor % 2``."""
        return cls(2 * factor - factor % 2, factor)


@dataclasses.dataclass(frozen=True)
class Geometry:
    """How the cells of a map lie over the image, in pixels.

    Cell ``i`` is centred at pixel ``stride * i + offset`` and depends on the ``receptive_field``
    pixels around it (fewer where the border cuts it off).

    Example:
        >>> Geometry().then(Window(11, stride=4)).receptive_field
        Fraction(11, 1)
    """

    stride: Fraction = Fraction(1)
    offset: Fraction = Fraction(0)
    receptive_field: Fraction = Fraction(1)

    def then(self, window: Window | TransposedWindow) -> Geometry:
        """The geometry of the map that ``window`` computes from this one."""
        if isinstance(window, Window):
            centre = Fraction(window.span - 1, 2)
            return Geometry(
                stride=self.stride * window.stride,
                offset=self.offset + self.stride * (centre - window.pad),
                receptive_field=self.receptive_field + self.stride * (window.span - 1),
            )
        centre = Fraction(window.kernel - 1, 2)
        return Geometry(
            stride=self.stride / window.factor,
            offset=self.offset - self.stride * centre / window.factor,
            # Which input cells write to an output cell varies with its phase; this is the width,
            # centred on the cell, that holds all of them.
            receptive_field=self.receptive_field
            + self.stride * Fraction(window.kernel - 1, window.factor),
        )


PIXELS = Geometry()
"""The image itself: cell ``i`` is pixel ``i``."""


def compose(windows: Iterable[Window | TransposedWindow], start: Geometry = PIXELS) -> Geometry:
    """The geometry of the last map of a chain of layers applied to ``start``.

    Example:
        >>> compose([Window(11, stride=4), Window(3, stride=2)])
        Geometry(stride=Fraction(8, 1), offset=Fraction(9, 1), receptive_field=Fraction(19, 1))
    """
    geometry = start
    for window in windows:
        geometry = geometry.then(window)
    return geometry


def crop_offset(cropped: Geometry, reference: Geometry) -> int:
    """The index in ``cropped`` of the cell that lies over cell 0 of ``reference``.

    This is the offset of Caffe's Crop layer; it is negative where ``reference`` begins first.

    Raises:
        ValueError: If the maps' strides differ, or their cells do not coincide.

    Example:
        >>> padded = compose([Window(3, pad=100)])
        >>> crop_offset(padded, PIXELS)
        99
    """
    if cropped.stride != reference.stride:
        raise ValueError(
            f"maps of strides {cropped.stride} and {reference.stride} cannot be aligned by "
            "cropping; bring them to one stride first"
        )
    offset = (reference.offset - cropped.offset) / cropped.stride
    if offset.denominator != 1:
        raise ValueError(
            f"the cells of the two maps lie {offset} cells apart, which is no whole number; "
            "change a kernel or a padding so that their centres coincide"
        )
    return int(offset)


def overlap(offset: int, cropped_size: Cells, reference_size: Cells) -> tuple[slice, slice]:
    """The slices of two maps that lie over each other; ``offset`` is their `crop_offset`."""
    start = max(0, -offset)
    stop = min_dim(reference_size, cropped_size - offset)
    if stop <= start:
        raise ValueError(
            f"maps of {cropped_size} and {reference_size} cells at offset {offset} do not overlap"
        )
    return slice(start + offset, stop + offset), slice(start, stop)
