"""The choice between the plain and the fast form of an operation."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax
from jax.export import is_symbolic_dim
from jaxtyping import Array

VARIABLE = "FCN_JAX_PLAIN_OPS"


def plain_by_environment() -> bool:
    """Whether the environment variable ``FCN_JAX_PLAIN_OPS`` asks for plain forms."""
    value = os.environ.get(VARIABLE, "0")
    if value not in ("", "0", "1"):
        raise ValueError(
            f"the environment variable {VARIABLE} must be 0 or 1, got {value!r}; 1 computes every "
            "operation in its plain form"
        )
    return value == "1"


# Part of the key of jit's caches: a function traced with one choice is traced again for the other.
_PLAIN = jax.make_user_context(plain_by_environment())


def plain_forms(plain: bool = True) -> contextlib.AbstractContextManager[None]:
    """Computes every operation in its plain form inside a ``with`` block.

    For the whole program set the environment variable ``FCN_JAX_PLAIN_OPS=1`` before fcn_jax is
    imported. Compiled functions follow the choice of the block they are called in. What is compiled
    ahead of time (``jit(f).lower(x).compile()``) keeps that of its lowering.

    Args:
        plain: False asks for the fast forms again inside an outer block.

    Example:
        >>> with plain_forms():
        ...     logits = jax.jit(model.apply)(variables, images)
    """
    return _PLAIN(plain)


def plain_chosen() -> bool:
    """Whether what is traced now is computed in plain forms only."""
    return bool(_PLAIN.value)


def sizes_known(array: Array) -> bool:
    """Whether the sizes of an array are numbers; those of a program for any size are symbols.

    Forms that depend on sizes are then plain.
    """
    return not any(map(is_symbolic_dim, array.shape))


def by_platform(plain: Callable[..., Array], **fast: Callable[..., Array]) -> Callable[..., Array]:
    """A function of arrays: the form for the platform compiled for (cpu, cuda), else ``plain``."""
    if not fast:
        return plain
    return lambda *arrays: lax.platform_dependent(*arrays, **fast, default=plain)


def in_float32(function: Callable[..., Array]) -> Callable[..., Array]:
    """The function computed in float32, its result rounded to the type of the first argument."""

    def compute(*arrays: Array) -> Array:
        result = function(*(array.astype(jnp.float32) for array in arrays))
        return result.astype(arrays[0].dtype)

    return compute
