"""The layers that have parameters: convolution and transposed convolution."""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from fcn_jax import ops
from fcn_jax.geometry import TransposedWindow, Window


@dataclasses.dataclass(frozen=True)
class Precision:
    """How a network computes; its parameters, logits and loss are float32 in any case.

    Attributes:
        maps: Type of the backbone's maps; None is that of image and parameters. Scores and
            transposed convolutions have that type in any case.
        products: What the factors of a product may be rounded to (`jax.lax.Precision`).
    """

    maps: DTypeLike | None
    products: lax.Precision


PRECISIONS: dict[str, Precision] = {
    "float32": Precision(None, lax.Precision.HIGHEST),
    # 10 bits of mantissa on NVIDIA GPUs, three products of bfloat16 on TPUs, float32 on CPUs.
    "tf32": Precision(None, lax.Precision.HIGH),
    "bfloat16": Precision(jnp.bfloat16, lax.Precision.DEFAULT),
}


def he_normal(
    key: Array, shape: tuple[int, ...], dtype: DTypeLike = jnp.float32
) -> Float[Array, "k k i o"]:
    """Normal of the variance 2 / inputs of a filter (He et al. 2015, https://arxiv.org/abs/1502.01852).

    A large kernel, such as fc6, is drawn tap by tap: random bits take twice its memory.
    """
    height, width, *channels = shape
    if math.prod(shape) > 2**25:
        keys = jax.random.split(key, height * width)
        taps = lax.map(lambda key: jax.random.normal(key, channels, dtype), keys)
        kernel = taps.reshape(shape)
    else:
        kernel = jax.random.normal(key, shape, dtype)
    return kernel * jnp.array(math.sqrt(2 / math.prod(shape[:3])), dtype)


def centred_kernel(
    key: Array, shape: tuple[int, ...], dtype: DTypeLike = jnp.float32
) -> Float[Array, "k k i o"]:
    """He normal (He et al. 2015) whose weights add up to zero in each filter.

    What leaves a ReLU has a large mean, and through many layers of plain random filters only that
    mean survives: all cells look alike, and training from scratch stalls for epochs. Filters that
    add up to zero do not see it. The factor restores the variance that the mean took part in:
    after a ReLU, E[x^2] / Var[x] = 1 / (1 - 1 / pi).
    """
    kernel = he_normal(key, shape, dtype)
    if shape[0] * shape[1] * shape[2] > 1:
        kernel -= kernel.mean((0, 1, 2), keepdims=True)
    return kernel * (1 - 1 / math.pi) ** -0.5


def first_kernel(
    key: Array, shape: tuple[int, ...], dtype: DTypeLike = jnp.float32
) -> Float[Array, "k k i o"]:
    """He normal for pixels on the 0..255 scale, whose standard deviation is about 64."""
    return he_normal(key, shape, dtype) / 64


class Convolution(nn.Module):
    """Convolution with bias.

    Attributes:
        channels: Channels out.
        groups: Parts that the channels are split into, each convolved on its own.
        relu: Whether ReLU follows.
        kernel_init: Initial kernel.
        dtype: Of the products and the result; None is the wider of input and parameters.
        precision: What the factors may be rounded to.
        frozen: Whether kernel and bias receive no gradient.
    """

    channels: int
    groups: int = 1
    relu: bool = False
    kernel_init: nn.initializers.Initializer = nn.initializers.zeros_init()
    dtype: DTypeLike | None = None
    precision: lax.Precision = lax.Precision.HIGHEST
    frozen: bool = False

    @nn.compact
    def __call__(self, x: Float[Array, "b h w i"], window: Window) -> Float[Array, "b h2 w2 o"]:
        """The same weights may run through windows of other padding.

        For prediction on a CPU the collection ``prepared`` may have the kernel in another form
        (`fcn_jax.FCN.prepared`).
        """
        shape = (window.kernel, window.kernel, x.shape[-1] // self.groups, self.channels)
        kernel = self.param("kernel", self.kernel_init, shape)
        bias = self.param("bias", nn.initializers.zeros_init(), (self.channels,))
        if self.frozen:
            kernel, bias = lax.stop_gradient((kernel, bias))
        padding = ((window.pad, window.pad),) * 2
        prepared = self.get_variable("prepared", "kernel")
        if prepared is not None and ops.takes_prepared_kernel(x, padding):
            return ops.convolution_prepared(x, prepared, bias, padding, self.relu)
        dtype = self.dtype or jnp.promote_types(x.dtype, kernel.dtype)
        out = ops.convolution(
            x.astype(dtype),
            jnp.asarray(kernel, dtype),
            window.stride,
            padding,
            self.groups,
            self.precision,
            window.dilation,
        )
        out = out + jnp.asarray(bias, dtype)[None, None, None]
        return nn.relu(out) if self.relu else out


class ConvTranspose(nn.Module):
    """Transposed convolution without bias or crop, started as bilinear interpolation."""

    precision: lax.Precision = lax.Precision.HIGHEST
    frozen: bool = False

    @nn.compact
    def __call__(
        self, x: Float[Array, "b h w c"], window: TransposedWindow
    ) -> Float[Array, "b h2 w2 c"]:
        bilinear = ops.bilinear_kernel(window.kernel, x.shape[-1])
        kernel = self.param("kernel", lambda _: jnp.asarray(bilinear))
        if self.frozen:
            kernel = lax.stop_gradient(kernel)
        return ops.conv_transpose(x, jnp.asarray(kernel), window.factor, precision=self.precision)
