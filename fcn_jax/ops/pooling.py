"""Pooling, and normalisation across channels."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax
from jaxtyping import Array, Float, Int8

from fcn_jax.geometry import Cells, Window
from fcn_jax.ops.dispatch import by_platform, plain_chosen, sizes_known
from fcn_jax.ops.multilinear import multilinear


def max_pool(x: Float[Array, "b h w c"], window: Window) -> Float[Array, "b h2 w2 c"]:
    """Max pooling whose output size is rounded as ``window`` says (Caffe rounds up).

    Padding never wins: it counts as minus infinity. The gradient of a window goes to its largest
    value; to the first of them, row by row, where several are equal (as in PyTorch).

    On the CPU the forward pass of training remembers in 8 bits which value that was, and the
    gradient goes there; XLA would search the windows again. Gains, forward and gradient: 0.3 to
    0.4 for pool1 (2x2), 0.10 for pool3; 0.14 for AlexNet's pool1 (3x3, stride 2), 0.30 for
    GoogLeNet's inception_3a/pool (3x3, stride 1), 4 images each.
    """
    plain = functools.partial(_max_pool, window)
    if plain_chosen() or not sizes_known(x) or window.kernel**2 > 127 or min(x.shape) == 0:
        return plain(x)
    fast = functools.partial(_max_pool_that_remembers, window)
    return by_platform(plain, cpu=fast, cuda=fast)(x)


def _max_pool(window: Window, x: Array) -> Array:
    return nn.max_pool(
        x,
        window_shape=(window.kernel, window.kernel),
        strides=(window.stride, window.stride),
        padding=_pads(window, x),  # type: ignore[arg-type]  # Flax annotates str, takes pairs
    )


def _pads(window: Window, x: Array) -> list[tuple[Cells, Cells]]:
    """What the windows reach beyond the map, before and after it."""
    return [(window.pad, window.pad + window.excess(size)) for size in x.shape[1:3]]


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _max_pool_that_remembers(window: Window, x: Array) -> Array:
    """`_max_pool`, where windows overlap as the maximum of shifted maps.

    Gains without the gradient: 0.19 for AlexNet's pool1, 0.35 for inception_3a/pool.
    """
    if window.kernel <= window.stride:
        return _max_pool(window, x)
    return functools.reduce(jnp.maximum, _cells(window, x))


@_max_pool_that_remembers.defjvp
def _with_tangent(
    window: Window, primals: tuple[Array], tangents: tuple[Array]
) -> tuple[Array, Array]:
    """Which cell of each window holds its first maximum says where tangents come from."""
    (x,), (tangent,) = primals, tangents
    cells = _cells(window, x)
    pooled = functools.reduce(jnp.maximum, cells)
    first = jnp.full(pooled.shape, len(cells) - 1, jnp.int8)
    for index, cell in reversed(list(enumerate(cells[:-1]))):
        first = jnp.where(cell == pooled, jnp.int8(index), first)
    return pooled, _of_first(first, tangent, of="y", window=window, shape=x.shape)


def _compute(
    first: Array, values: Array, *, of: str, window: Window, shape: tuple[int, ...]
) -> Array:
    """What of a map lies at the first maxima of the windows, ``y``; or the transpose of that."""
    if of == "x" and window.kernel == window.stride and window.pad == 0:
        return _spread_apart(window, shape, first, values)
    zero = jnp.zeros((), values.dtype)

    def chosen(cells: Sequence[Array]) -> list[Array]:
        return [jnp.where(first == jnp.int8(i), cell, zero) for i, cell in enumerate(cells)]

    if of == "y":
        return functools.reduce(jnp.add, chosen(_cells(window, values, 0.0)))
    like = jax.ShapeDtypeStruct(shape, values.dtype)
    cells = tuple(chosen([values] * window.kernel**2))
    return jax.linear_transpose(lambda x: tuple(_cells(window, x, 0.0)), like)(cells)[0]


_of_first = multilinear(
    "fcn_first_of_windows",
    _compute,
    lambda first, _, *, of, shape, **options: first.shape if of == "y" else shape,
    ("x", "y"),
    constants=1,
)


def _cells(window: Window, x: Array, border: float = -jnp.inf) -> list[Array]:
    """What each cell of the windows holds, row by row; all of the pooled map's shape."""
    pads = [(0, 0, 0), *((low, high, 0) for low, high in _pads(window, x)), (0, 0, 0)]
    reach = [(window.output_size(size) - 1) * window.stride + 1 for size in x.shape[1:3]]
    x = lax.pad(x, jnp.array(border, x.dtype), pads)
    return [
        x[:, row : row + reach[0] : window.stride, column : column + reach[1] : window.stride]
        for row in range(window.kernel)
        for column in range(window.kernel)
    ]


def _spread_apart(
    window: Window,
    shape: tuple[int, ...],
    first: Int8[Array, "b h2 w2 c"],
    gradient: Float[Array, "b h2 w2 c"],
) -> Float[Array, "b h w c"]:
    """`_compute` of ``x`` where windows do not overlap: each cell asks whether it is the first."""
    batch, rows, columns, channels = first.shape
    size = window.kernel

    def enlarge(pooled: Array) -> Array:
        cells = jnp.broadcast_to(
            pooled[:, :, None, :, None], (batch, rows, size, columns, size, channels)
        )
        return cells.reshape(batch, rows * size, columns * size, channels)

    row, column = (jnp.arange(cells * size, dtype=jnp.int8) % size for cells in (rows, columns))
    index = row[None, :, None, None] * size + column[None, None, :, None]
    is_first = enlarge(first) == index
    spread = jnp.where(is_first, enlarge(gradient), jnp.zeros((), gradient.dtype))
    spread = spread[:, : shape[1], : shape[2]]
    beyond = [(0, whole - part) for whole, part in zip(shape, spread.shape, strict=True)]
    return jnp.pad(spread, beyond)  # cells that no window reads, where sizes are rounded down


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
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))  # large squares, small differences
    squares = jnp.pad(jnp.square(wide), ((0, 0),) * 3 + ((size // 2, (size - 1) // 2),))
    total = sum(squares[..., shift : shift + channels] for shift in range(size))
    return (wide * (1 + alpha / size * total) ** -beta).astype(x.dtype)
