"""Images scaled inside a program, and its logits brought back, as the `Predictor` does around it.

Along one axis after the other each resized pixel is a mean of those under a triangle around its
centre, which is wider where the image shrinks. Sizes are free, but the most pixels under a triangle
are known: the mean is a sum of so many products. `fcn_jax.exporting.onnx` writes the same as nodes.
"""

from __future__ import annotations

import math
from typing import Any

import jax.numpy as jnp
from jax.core import max_dim
from jaxtyping import Array, Float, Real, Shaped

from fcn_jax.canvas import ratio, scaled_side
from fcn_jax.geometry import Cells

BITS = 22
"""Pillow resizes RGB of 8 bits with weights of so many, and rounds after each axis."""


def most_pixels(scale: float) -> int:
    """The most pixels that lie under a triangle, for any side, when images are scaled."""
    # It is twice as wide as a resized pixel, or a pixel. A resized pixel is 1.5 / scale at most:
    # 0.5 is the most that a side, of 1 at least, is rounded down by.
    return max(2, math.ceil(3 / ratio(scale)))


def scaled(array: Shaped[Array, "b h w *c"], scale: float, least: int = 1) -> Shaped[Array, "..."]:
    """`fcn_jax.data.transforms.resize`: to the same bits of RGB of 8 bits, and of depth.

    Others come through float32, and may round to a neighbouring value. Sides are ``least`` at
    least.
    """
    height, width = (max_dim(least, scaled_side(side, scale)) for side in array.shape[1:3])
    if array.ndim == 3:
        for axis, side in ((1, height), (2, width)):
            places = (2 * jnp.arange(side) + 1) * array.shape[axis] // (2 * side)
            array = jnp.take(array, places, axis=axis)
        return array
    is_rgb = array.dtype == jnp.uint8 and array.shape[-1] == 3
    x = array.astype(jnp.int32 if is_rgb else jnp.float32)
    for axis, side in ((2, width), (1, height)):
        x = resized(x, axis, side, most_pixels(scale))
    if jnp.issubdtype(array.dtype, jnp.integer):
        x = jnp.round(x)
    return x.astype(array.dtype)


def restored(
    logits: Float[Array, "b h w c"], size: tuple[Cells, Cells], scale: float
) -> Float[Array, "b height width c"]:
    """Logits of scaled images at the size that these had before."""
    for axis, side in ((1, size[0]), (2, size[1])):
        logits = resized(logits, axis, side, most_pixels(1 / scale))
    return logits


def resized(x: Real[Array, "b h w c"], axis: int, side: Cells, most: int) -> Real[Array, "_ _ _ c"]:
    """Maps resized along an axis; integers with weights of `BITS`, and rounded."""
    size = x.shape[axis]
    # Distances in pixels times 2 * side, in integers, as in `fcn_jax.ops.upsampling`.
    reach = 2 * max_dim(size, side)
    centre = (2 * jnp.arange(side)[:, None] + 1) * size - side
    place = (centre - reach) // (2 * side) + 1 + jnp.arange(most)[None]
    share = jnp.maximum(0, reach - jnp.abs(centre - 2 * side * place))
    share = jnp.where((place >= 0) & (place < size), share, 0)
    total = share.sum(axis=1, keepdims=True)
    is_integer = x.dtype == jnp.int32
    if is_integer:  # share / total in units of 2 ** -BITS, half at a time: jax has no int64
        first, rest = jnp.divmod(share << BITS // 2, total)
        second, rest = jnp.divmod(rest << BITS // 2, total)
        weights = (first << BITS // 2) + second + (2 * rest >= total)
    else:
        weights = share / total
    others = tuple(other for other in range(4) if other != axis)
    found: Any = 0
    for number in range(most):
        pixels = jnp.take(x, place[:, number], axis=axis, mode="clip")
        found += pixels * jnp.expand_dims(weights[:, number], others)
    return (found + (1 << BITS - 1)) >> BITS if is_integer else found
