"""The layers that have parameters: convolution and transposed convolution, how they start and compute.

Which of them a network has, and how they are joined, is decided in `fcn_jax.models.fcn`.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jax import lax
from jaxtyping import Array, Float

from fcn_jax import ops
from fcn_jax.geometry import TransposedWindow, Window

# ======================================================================== precision


@dataclasses.dataclass(frozen=True)
class Precision:
    """How a network computes; its parameters, logits and loss are float32 in any case.

    Attributes:
        maps: Type of the backbone's maps; None is that of image and parameters. Scores and
            transposed convolutions have that type in any case.
        products: What the factors of a product may be rounded to (`jax.lax.Precision`).
    """

    maps: Any
    products: lax.Precision


PRECISIONS: dict[str, Precision] = {
    "float32": Precision(None, lax.Precision.HIGHEST),
    # 10 bits of mantissa on NVIDIA GPUs, three products of bfloat16 on TPUs, float32 on CPUs.
    "tf32": Precision(None, lax.Precision.HIGH),
    "bfloat16": Precision(jnp.bfloat16, lax.Precision.DEFAULT),
}

# ======================================================================== initial values

_he_normal = nn.initializers.variance_scaling(2.0, "fan_in", "normal")


def centred_kernel(key: Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> Array:
    """He normal (He et al. 2015) whose weights add up to zero in each filter.

    What leaves a ReLU has a large mean, and through many layers of plain random filters only that
    mean survives: all cells look alike, and training from scratch stalls for epochs. Filters that
    add up to zero do not see it. The factor restores the variance that the mean took part in:
    after a ReLU, E[x^2] / Var[x] = 1 / (1 - 1 / pi).
    """
    kernel = _he_normal(key, shape, dtype)
    if shape[0] * shape[1] * shape[2] > 1:
        kernel -= kernel.mean((0, 1, 2), keepdims=True)
    return kernel * (1 - 1 / math.pi) ** -0.5


def first_kernel(key: Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> Array:
    """He normal for pixels on the 0..255 scale, whose standard deviation is about 64."""
    return _he_normal(key, shape, dtype) / 64


def _bilinear(key: Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> Array:
    del key  # nothing about it is random
    return jnp.asarray(ops.bilinear_kernel(shape[0], shape[-1]), dtype)


# ======================================================================== modules


class Convolution(nn.Module):
    """Convolution with bias.

    Attributes:
        channels: Channels out.
        window: Kernel size and stride. The padding is an argument: the same weights may run over
            maps with a border and without.
        groups: Parts that the channels are split into, each convolved on its own.
        kernel_init: Initial kernel (size, size, channels in of a group, channels out).
        dtype: Of the products and the result; None is that of the input or of the parameters,
            whichever is wider.
        precision: What the factors may be rounded to.
        frozen: Whether kernel and bias receive no gradient.
    """

    channels: int
    window: Window
    groups: int = 1
    kernel_init: nn.initializers.Initializer = nn.initializers.zeros_init()
    dtype: Any = None
    precision: lax.Precision = lax.Precision.HIGHEST
    frozen: bool = False

    @nn.compact
    def __call__(self, x: Float[Array, "b h w i"], pad: int = 0) -> Float[Array, "b h2 w2 o"]:
        """``pad`` zeros are added on each side of the maps."""
        size, stride = self.window.kernel, self.window.stride
        shape = (size, size, x.shape[-1] // self.groups, self.channels)
        kernel = self.param("kernel", self.kernel_init, shape)
        bias = self.param("bias", nn.initializers.zeros_init(), (self.channels,))
        if self.frozen:
            kernel, bias = lax.stop_gradient((kernel, bias))
        dtype = self.dtype or jnp.promote_types(x.dtype, kernel.dtype)
        out = ops.convolution(
            x.astype(dtype),
            kernel.astype(dtype),
            (stride, stride),
            ((pad, pad), (pad, pad)),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=self.groups,
            precision=self.precision,
        )
        return out + bias.astype(dtype)[None, None, None]


class ConvTranspose(nn.Module):
    """Transposed convolution without bias, started as bilinear interpolation.

    Attributes:
        channels: Channels in and out.
        window: Kernel size and factor.
        precision: What the factors may be rounded to.
        frozen: Whether the kernel receives no gradient.
    """

    channels: int
    window: TransposedWindow
    precision: lax.Precision = lax.Precision.HIGHEST
    frozen: bool = False

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 c"]:
        """Uncropped: `TransposedWindow.output_size` cells a side."""
        size = self.window.kernel
        kernel = self.param("kernel", _bilinear, (size, size, self.channels, self.channels))
        if self.frozen:
            kernel = lax.stop_gradient(kernel)
        return ops.conv_transpose(x, kernel, self.window.factor, precision=self.precision)
