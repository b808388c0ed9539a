"""Up-convolution and bilinear interpolation."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from fcn_jax.alignment import UpWindow
from fcn_jax.ops.forms import plain_chosen


def up_convolution(
    x: Float[Array, "b h w i"], kernel: Float[Array, "k k i o"], factor: int
) -> Float[Array, "b h2 w2 o"]:
    """Transposed convolution without padding: each input cell adds its kernel to the output.

    ``out[factor * y + u, factor * x + v] += in[y, x] @ kernel[u, v]``, the operation of Caffe's
    Deconvolution and PyTorch's ``conv_transpose2d`` (whose weight is this kernel with the axes
    in the order i, o, k, k; no flip). The output has ``(h - 1) * factor + k`` rows.

    The output is computed as blocks of ``factor`` x ``factor`` cells. A block is written by the
    same few neighbouring input cells (2 x 2 for the usual kernel ``2 * factor``), so that the
    whole is one matrix product. XLA's own dilated form multiplies by the zeros between the input
    cells: on 2 CPU cores 849 ms against 12 ms for 16x16 cells, 21 classes and factor 32; upscore8
    0.36 forward, 0.23 input and 0.13 kernel gradient. It has fewer operations on any backend, so
    this form is taken on all.
    """
    if plain_chosen():
        return _up_convolution_dilated(x, kernel, factor)
    batch, height, width, inputs = x.shape
    size, _, _, outputs = kernel.shape
    taps = math.ceil(size / factor)
    fill = taps * factor - size
    kernel = jnp.pad(kernel, ((0, fill), (0, fill), (0, 0), (0, 0)))

    # Block (r, c) collects the cells (r - a, c - b) for 0 <= a, b < taps.
    padded = jnp.pad(x, ((0, 0), (taps - 1, taps - 1), (taps - 1, taps - 1), (0, 0)))
    rows, columns = height + taps - 1, width + taps - 1
    cells = jnp.concatenate(
        [
            padded[:, taps - 1 - a : taps - 1 - a + rows, taps - 1 - b : taps - 1 - b + columns]
            for a in range(taps)
            for b in range(taps)
        ],
        axis=-1,
    )
    # [a, u, b, v, i, o] -> [(a, b, i), (u, v, o)]
    matrix = kernel.reshape(taps, factor, taps, factor, inputs, outputs)
    matrix = matrix.transpose(0, 2, 4, 1, 3, 5).reshape(taps * taps * inputs, -1)

    blocks = (cells @ matrix).reshape(batch, rows, columns, factor, factor, outputs)
    out = blocks.transpose(0, 1, 3, 2, 4, 5).reshape(
        batch, rows * factor, columns * factor, outputs
    )
    window = UpWindow(size, factor)
    return out[:, : window.output_size(height), : window.output_size(width)]


def _up_convolution_dilated(x: Array, kernel: Array, factor: int) -> Array:
    """The plain form: a convolution of the input with zeros between its cells."""
    size = kernel.shape[0]
    return jax.lax.conv_general_dilated(
        x,
        jnp.flip(kernel, (0, 1)),
        window_strides=(1, 1),
        padding=[(size - 1, size - 1)] * 2,
        lhs_dilation=(factor, factor),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )


def bilinear_kernel(size: int, channels: int) -> Float[np.ndarray, "k k c c"]:
    """Up-convolution kernel that interpolates each channel bilinearly and mixes none.

    With f = (size + 1) // 2 the weights along an axis are 1 - abs(i - centre) / f, where the
    centre is f - 1 for odd sizes and f - 0.5 for even ones (the reference's ``upsample_filt``).

    Returns:
        float32, zero off the channel diagonal.
    """
    factor = (size + 1) // 2
    centre = factor - 1 if size % 2 else factor - 0.5
    weights = 1 - np.abs(np.arange(size) - centre) / factor
    kernel = np.zeros((size, size, channels, channels), np.float32)
    diagonal = np.arange(channels)
    kernel[:, :, diagonal, diagonal] = np.outer(weights, weights)[:, :, None]
    return kernel


def resize_bilinear(x: Float[Array, "b h w c"], height: int, width: int) -> Array:
    """Bilinear interpolation to (height, width), pixel centres aligned (half-pixel rule).

    Shrinking averages over the pixels that fall together (antialiasing).
    """
    return jax.image.resize(x, (x.shape[0], height, width, x.shape[3]), "bilinear")
