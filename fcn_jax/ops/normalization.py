"""Normalisation across channels."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Float


def local_response_norm(
    x: Float[Array, "b h w c"], size: int, alpha: float, beta: float
) -> Float[Array, "b h w c"]:
    """Divides by (1 + alpha / size * sum of squares over ``size`` neighbouring channels) ** beta.

    Caffe's and PyTorch's form, with alpha divided by the size (Krizhevsky et al. 2012, section
    3.3, has no such division). Channels beyond the first and last count as zeros.
    """
    channels = x.shape[-1]
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))  # large squares, small differences
    squares = jnp.pad(jnp.square(wide), ((0, 0),) * 3 + ((size // 2, (size - 1) // 2),))
    total = sum(squares[..., shift : shift + channels] for shift in range(size))
    return (wide * (1 + alpha / size * total) ** -beta).astype(x.dtype)
