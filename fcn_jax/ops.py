"""Array operations the networks are made of that Flax does not have in Caffe's form.

Pure functions on arrays; no parameters, no modules.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float

from fcn_jax.alignment import UpWindow, Window


def max_pool(x: Float[Array, "b h w c"], window: Window) -> Float[Array, "b h2 w2 c"]:
    """Max pooling whose output size is rounded as ``window`` says (Caffe rounds up).

    Padding never wins: it counts as minus infinity.
    """
    pads = [(window.pad, window.pad + window.excess(size)) for size in x.shape[1:3]]
    return nn.max_pool(
        x,
        window_shape=(window.kernel, window.kernel),
        strides=(window.stride, window.stride),
        padding=pads,  # type: ignore[arg-type]  # Flax annotates str and takes pairs
    )


def average_pool(x: Float[Array, "b h w c"], window: Window) -> Float[Array, "b h2 w2 c"]:
    """The mean of each window, which must lie inside the map.

    Raises:
        ValueError: If the window has padding or rounds up.
    """
    if window.pad or window.ceil:
        raise ValueError(f"average pooling has no padding here and rounds down, got {window}")
    return nn.avg_pool(
        x,
        window_shape=(window.kernel, window.kernel),
        strides=(window.stride, window.stride),
        padding="VALID",
    )


def local_response_norm(
    x: Float[Array, "b h w c"], size: int, alpha: float, beta: float
) -> Float[Array, "b h w c"]:
    """Divides by (1 + alpha / size * sum of squares over ``size`` neighbouring channels) ** beta.

    Caffe's and PyTorch's form, with alpha divided by the size (Krizhevsky et al. 2012, section
    3.3, has no such division). Channels beyond the first and last count as zeros.
    """
    channels = x.shape[-1]
    squares = jnp.pad(jnp.square(x), ((0, 0),) * 3 + ((size // 2, (size - 1) // 2),))
    total = sum(squares[..., shift : shift + channels] for shift in range(size))
    return x * (1 + alpha / size * total) ** -beta


# Patches are copies: k x k times the input's memory, which a large map cannot afford.
_MOST_PATCHES = 2**26


def convolution(
    x: Float[Array, "b h w i"],
    kernel: Float[Array, "k k i o"],
    strides: Sequence[int],
    padding: Sequence[tuple[int, int]],
    **options: Any,
) -> Float[Array, "b h2 w2 o"]:
    """`jax.lax.conv_general_dilated`, computed another way on the CPU where that is faster.

    For `flax.linen.Conv(conv_general_dilated=…)`. XLA's CPU backend is slow at kernels larger
    than 3x3 on small maps, and at the kernel gradient of all; both become matrix products here.
    Measured on 2 cores, batch 4: fc6 (7x7, 512 to 512) on 6x8 cells 4237 ms forward and 44 ms so;
    the kernel gradient of a 3x3 layer with 128 channels on 90x120 cells 336 ms and 201 ms so.
    There is no forward-mode differentiation (jvp) through 3x3 layers there.
    """
    plain = functools.partial(
        jax.lax.conv_general_dilated, window_strides=strides, padding=padding, **options
    )
    ordinary = {"lhs_dilation": (1, 1), "rhs_dilation": (1, 1), "feature_group_count": 1}
    square = kernel.shape[0] == kernel.shape[1]
    if (
        not square
        or tuple(strides) != (1, 1)
        or any(options[name] != value for name, value in ordinary.items())
    ):
        return plain(x, kernel)
    if kernel.shape[0] ** 2 * math.prod(x.shape) > _MOST_PATCHES and kernel.shape[0] > 3:
        return plain(x, kernel)
    if kernel.shape[0] == 3:
        by_products = functools.partial(_convolution_with_gradient_by_taps, plain, padding)
    else:
        by_products = functools.partial(_convolution_by_patches, padding)
    return jax.lax.platform_dependent(x, kernel, cpu=by_products, default=plain)


def _taps(x: Array, padding: Sequence[tuple[int, int]], size: int) -> list[Array]:
    """The padded input shifted as each tap of a kernel sees it, row by row; all (b, h2, w2, i)."""
    x = jnp.pad(x, ((0, 0), *padding, (0, 0)))
    height, width = x.shape[1] - size + 1, x.shape[2] - size + 1
    return [
        x[:, row : row + height, column : column + width]
        for row in range(size)
        for column in range(size)
    ]


def _convolution_by_patches(padding: Sequence[tuple[int, int]], x: Array, kernel: Array) -> Array:
    """One product of all patches with the kernel as a matrix."""
    patches = jnp.concatenate(_taps(x, padding, kernel.shape[0]), axis=-1)
    return patches @ kernel.reshape(-1, kernel.shape[-1])


def _convolution_with_gradient_by_taps(
    plain: Callable[[Array, Array], Array],
    padding: Sequence[tuple[int, int]],
    x: Array,
    kernel: Array,
) -> Array:
    """The plain convolution, its kernel gradient one product for each tap."""

    def forward(x: Array, kernel: Array) -> tuple[Array, tuple[Array, Array]]:
        return plain(x, kernel), (x, kernel)

    def backward(saved: tuple[Array, Array], gradient: Array) -> tuple[Array, Array]:
        x, kernel = saved
        _, pull = jax.vjp(lambda x: plain(x, kernel), x)
        rows = gradient.reshape(-1, gradient.shape[-1])
        taps = [tap.reshape(-1, x.shape[-1]).T @ rows for tap in _taps(x, padding, 3)]
        return pull(gradient)[0], jnp.stack(taps).reshape(kernel.shape)

    convolve = jax.custom_vjp(plain)
    convolve.defvjp(forward, backward)
    return convolve(x, kernel)


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
    cells: on 2 CPU cores 849 ms against 12 ms for 16x16 cells, 21 classes and factor 32.
    """
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
