"""3x3 convolution in fewer multiplications: F(4x4, 3x3) of Winograd's minimal filtering.

A tile of 4x4 outputs depends on 6x6 inputs. Inputs and kernel are polynomials in two variables, and
their product is found from its values at 6x6 points: 36 multiplications in place of 144, and a few
operations to go to the points and back. For many channels the multiplications at one point are a
matrix product, (tiles, inputs) @ (inputs, outputs). Lavin and Gray 2016,
https://arxiv.org/abs/1509.09308; the kernel gradient is the same identity transposed.

Everything is exact but for rounding: in float32 2e-6 to 5e-6 of the largest output, ten times a
direct sum's error.

The tiles are worked through in strips of rows, which stay in the cache. Whole maps at the points
would take 2.25 times the memory of the map, and be slower.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import TypeAlias

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

Padding: TypeAlias = Sequence[tuple[int, int]]
"""Zeros before and after the maps along both axes; negative numbers crop."""

TILE = 4
_POINTS = 6


def _matrices(points: Sequence[float]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The transforms to the points and back along one axis, by Toom and Cook (Lavin and Gray, 4.2).

    From 6 inputs to the values at the points and infinity, from 3 taps of a kernel to their values,
    and from the products of both to 4 outputs.
    """
    polynomial = np.polynomial.polynomial
    inputs = np.zeros((_POINTS, _POINTS))
    kernel = np.zeros((_POINTS, 3))
    outputs = np.zeros((TILE, _POINTS))
    for index, point in enumerate(points):
        others = [other for other in points if other != point]
        inputs[index, : len(points)] = polynomial.polyfromroots(others)
        kernel[index] = point ** np.arange(3) / np.prod(np.subtract(point, others))
        outputs[:, index] = point ** np.arange(TILE)
    inputs[-1] = polynomial.polyfromroots(points)
    kernel[-1, -1] = outputs[-1, -1] = 1
    inputs[np.abs(inputs) < 1e-12] = 0  # odd powers, but for rounding
    return inputs, kernel, outputs


# The usual points 0, +-1, +-2 have whole numbers in their matrices and five times the error.
_NEAR, _FAR = math.sqrt(1 / 2), math.sqrt(2)
_INPUT, _KERNEL, _OUTPUT = _matrices((0.0, _NEAR, -_NEAR, _FAR, -_FAR))


@dataclasses.dataclass(frozen=True)
class Strips:
    """How the rows of a map of outputs are divided: ``tile_rows`` rows of tiles in each strip.

    The last strip begins early enough to end with the map, at ``height``.
    """

    count: int
    tile_rows: int
    tile_columns: int
    height: int

    @property
    def rows(self) -> int:
        """Rows of outputs in a strip."""
        return TILE * self.tile_rows

    @classmethod
    def divide(cls, batch: int, height: int, width: int, channels: int) -> Strips:
        """Strips of 256 tiles, of 128 from 256 channels; a row of all images at the least."""
        most_tiles = 256 if channels < 256 else 128  # measured
        rows, columns = -(-height // TILE), -(-width // TILE)
        count = min(rows, -(-batch * rows * columns // most_tiles))
        tile_rows = -(-rows // count)
        return cls(-(-rows // tile_rows), tile_rows, columns, height)

    def start(self, strip: Array) -> Array:
        """The first row of a strip."""
        return jnp.minimum(strip * self.rows, self.height - self.rows)


def convolve(
    x: Float[Array, "b h w i"], kernel: Float[Array, "k k i o"], padding: Padding
) -> Float[Array, "b h2 w2 o"]:
    """Convolution of stride 1, in float32."""
    return convolve_at_points(x, _transform(_KERNEL, kernel), padding)


def convolve_at_points(
    x: Float[Array, "b h w i"],
    kernel: Float[Array, "p p i o"],
    padding: Padding,
    finish: Callable[[Array], Array] = lambda rows: rows,
) -> Float[Array, "b h2 w2 o"]:
    """Convolution with a kernel that is given at the points (`kernel_at_points`).

    ``finish`` is applied to each strip of the result while it is in the cache: bias and ReLU.
    """
    return _convolve(x, kernel, "pqbyxi,pqio->pqbyxo", padding, finish)


def kernel_at_points(kernel: Float[np.ndarray, "k k i o"]) -> Float[np.ndarray, "p p i o"]:
    """The values of a float32 kernel at the points, four times its size; on the host."""
    both_axes = np.kron(_KERNEL, _KERNEL).astype(np.float32)
    values = (both_axes @ kernel.reshape(9, -1)).reshape(_POINTS, _POINTS, *kernel.shape[2:])
    return values.transpose(1, 0, 2, 3)  # as `_transform` leaves its axes


def input_gradient(
    gradient: Float[Array, "b h2 w2 o"], kernel: Float[Array, "k k i o"], padding: Padding
) -> Float[Array, "b h w i"]:
    """The gradient of `convolve` to its input: the convolution with the kernel rotated by 180°."""
    rotated = _transform(_KERNEL, jnp.flip(kernel, (0, 1)))
    border = [(2 - low, 2 - high) for low, high in padding]
    return _convolve(gradient, rotated, "pqbyxo,pqio->pqbyxi", border)


def _convolve(
    x: Array,
    kernel: Array,
    products: str,
    padding: Padding,
    finish: Callable[[Array], Array] = lambda rows: rows,
) -> Array:
    """Convolution with a kernel given at the points, by an einsum of the values there."""
    batch = x.shape[0]
    height, width = (size + sum(pads) - 2 for size, pads in zip(x.shape[1:3], padding, strict=True))
    strips = Strips.divide(batch, height, width, max(kernel.shape[2:]))
    x = _pad_to_tiles(x, padding, height, width, strips)

    def outputs_of(rows: Array) -> Array:
        values = jnp.einsum(products, _tiles_at_points(_INPUT, rows, strips), kernel)
        tiles = _transform(_OUTPUT, values)  # (row, column, b, y, x, o)
        tiles = tiles.transpose(2, 3, 0, 4, 1, 5)
        return finish(tiles.reshape(batch, strips.rows, -1, tiles.shape[-1])[:, :, :width])

    if strips.count == 1:
        return outputs_of(x)[:, :height]

    def add_strip(strip: Array, out: Array) -> Array:
        start = strips.start(strip)
        rows = lax.dynamic_slice_in_dim(x, start, strips.rows + 2, axis=1)
        return lax.dynamic_update_slice_in_dim(out, outputs_of(rows), start, axis=1)

    outputs = kernel.shape[3] if products.endswith("o") else kernel.shape[2]
    empty = jnp.zeros((batch, height, width, outputs), x.dtype)
    return lax.fori_loop(0, strips.count, add_strip, empty)


def kernel_gradient(
    x: Float[Array, "b h w i"], gradient: Float[Array, "b h2 w2 o"], padding: Padding
) -> Float[Array, "k k i o"]:
    """The gradient of `convolve` to its kernel."""
    batch, height, width, outputs = gradient.shape
    strips = Strips.divide(batch, height, width, max(x.shape[-1], outputs))
    x = _pad_to_tiles(x, padding, height, width, strips)

    def product(rows: Array, gradient: Array) -> Array:
        below, beside = strips.rows - gradient.shape[1], TILE * strips.tile_columns - width
        gradient = jnp.pad(gradient, ((0, 0), (0, below), (0, beside), (0, 0)))
        return jnp.einsum(
            "pqbyxi,pqbyxo->pqio",
            _tiles_at_points(_INPUT, rows, strips),
            _tiles_at_points(_OUTPUT.T, gradient, strips),
        )

    if strips.count == 1:
        return _transform(_KERNEL.T, product(x, gradient))

    def add_strip(strip: Array, total: Array) -> Array:
        start = strips.start(strip)
        rows = lax.dynamic_slice_in_dim(x, start, strips.rows + 2, axis=1)
        part = lax.dynamic_slice_in_dim(gradient, start, strips.rows, axis=1)
        new = start + jnp.arange(strips.rows) >= strip * strips.rows  # not in the strip before
        part = jnp.where(new[:, None, None], part, 0)
        return total + product(rows, part)

    zeros = jnp.zeros((_POINTS, _POINTS, x.shape[-1], outputs), x.dtype)
    return _transform(_KERNEL.T, lax.fori_loop(0, strips.count, add_strip, zeros))


def _pad_to_tiles(x: Array, padding: Padding, height: int, width: int, strips: Strips) -> Array:
    """The input with its border, and zeros below and right of it up to whole tiles."""
    (top, bottom), (left, right) = padding
    below = max(0, strips.rows - height)
    beside = TILE * strips.tile_columns - width
    pads = ((0, 0, 0), (top, bottom + below, 0), (left, right + beside, 0), (0, 0, 0))
    return lax.pad(x, jnp.zeros((), x.dtype), pads)


# ======================================================================== to the points and back


def _combine(matrix: np.ndarray, arrays: Sequence[Array]) -> Array:
    """The combinations of ``arrays`` that the rows of a constant matrix name, on a new first axis.

    Zeros and ones of the matrix cost nothing.
    """
    combinations = []
    for weights in matrix:
        first, *others = (
            array if weight == 1 else np.float32(weight) * array
            for weight, array in zip(weights, arrays, strict=True)
            if weight
        )
        combinations.append(sum(others, start=first))
    return jnp.stack(combinations)


# The barriers keep XLA from computing the rows again for each column.


def _transform(matrix: np.ndarray, values: Float[Array, "rows columns ..."]) -> Array:
    """Applies a matrix along both leading axes; they change places."""
    rows = lax.optimization_barrier(_combine(matrix, list(values)))
    return _combine(matrix, list(jnp.moveaxis(rows, 1, 0)))


def _tiles_at_points(
    matrix: np.ndarray, x: Float[Array, "b h w c"], strips: Strips
) -> Float[Array, "p p b y x c"]:
    """The values at the points of tiles as wide as the matrix takes, which begin 4 cells apart."""

    def cells(x: Array, axis: int, tiles: int) -> list[Array]:
        """What each cell of a tile holds along an axis, for all tiles."""
        return [
            lax.slice_in_dim(x, first, first + TILE * (tiles - 1) + 1, TILE, axis)
            for first in range(matrix.shape[1])
        ]

    rows = lax.optimization_barrier(_combine(matrix, cells(x, 1, strips.tile_rows)))
    return _combine(matrix, cells(rows, 3, strips.tile_columns))
