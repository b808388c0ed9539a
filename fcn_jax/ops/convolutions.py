"""Convolution, and the forms of it and of its gradients that are fast on the CPU."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental.layout import Format, Layout
from jaxtyping import Array, Float

from fcn_jax.geometry import Cells
from fcn_jax.ops import winograd
from fcn_jax.ops.dispatch import by_platform, in_float32, plain_chosen, sizes_known
from fcn_jax.ops.multilinear import multilinear
from fcn_jax.ops.winograd import Padding

Convolve: TypeAlias = Callable[[Array, Array], Array]
"""From input and kernel."""


def convolution(
    x: Float[Array, "b h w c"],
    kernel: Float[Array, "k l i o"],
    stride: int,
    padding: Padding,
    groups: int = 1,
    precision: lax.Precision | None = None,
    dilation: int = 1,
) -> Float[Array, "b h2 w2 o"]:
    """`jax.lax.conv_general_dilated`, computed another way on the CPU where that is faster.

    Square kernels of stride 1 have fast forms:

    - 3x3 from and to 32 channels or more, with its two gradients: `fcn_jax.ops.winograd`;
    - other kernel gradients: `kernel_gradient_by_taps` and `kernel_gradient_by_patches`;
    - 1x1, and large kernels on small maps (fc6): `convolution_by_patches`;
    - few groups: a convolution for each, `convolution_by_groups`.

    They compute in float32; bfloat16 and float16 are rounded once, at the end. In float64 the form
    is plain.
    """
    plain = functools.partial(
        lax.conv_general_dilated,
        window_strides=(stride, stride),
        padding=padding,
        rhs_dilation=(dilation, dilation),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
        precision=precision,
    )
    size, columns, inputs, _ = kernel.shape
    has_fast_form = (
        size == columns
        and stride == dilation == 1
        # A group of few channels is no faster by itself, and many groups are many operations.
        and (groups == 1 or inputs >= 16)
        and x.dtype == kernel.dtype
        and x.dtype in (jnp.float32, jnp.bfloat16, jnp.float16)
        and (not sizes_known(x) or min(x.shape) > 0)
    )
    if plain_chosen() or not has_fast_form:
        return plain(x, kernel)
    if groups > 1:
        one = functools.partial(convolution, stride=1, padding=padding, precision=precision)
        fast = functools.partial(convolution_by_groups, one, groups)
        return by_platform(plain, cpu=fast)(x, kernel)
    if not sizes_known(x):
        # Of fc6 and fc7 on a small map XLA's own form takes up to 90 times as long.
        if 1 < size < 6:
            return plain(x, kernel)
        by_patches = functools.partial(convolution_by_patches, padding)
        return by_platform(plain, cpu=in_float32(by_patches))(x, kernel)
    pads = tuple((int(low), int(high)) for low, high in padding)
    return _convolution(x, kernel, of="y", padding=pads, precision=precision)


def _output_size(x: Array, size: int, padding: Padding) -> tuple[Cells, ...]:
    return tuple(
        cells + sum(pads) - size + 1 for cells, pads in zip(x.shape[1:3], padding, strict=True)
    )


# ======================================================================== whole forms


def convolution_by_groups(
    one: Convolve, groups: int, x: Float[Array, "b h w c"], kernel: Float[Array, "k k i o"]
) -> Float[Array, "b h2 w2 o"]:
    """Each group by itself.

    Gains: AlexNet's conv2 (5x5, 2 groups, 4 maps of 27x27) 0.22 forward, 0.18 input gradient;
    conv4 (3x3, 4 maps of 13x13) 0.26 and 0.27.
    """
    parts = zip(jnp.split(x, groups, axis=-1), jnp.split(kernel, groups, axis=-1), strict=True)
    return jnp.concatenate([one(x, kernel) for x, kernel in parts], axis=-1)


def convolution_by_patches(
    padding: Padding,
    x: Float[Array, "b h w i"],
    kernel: Float[Array, "k k i o"],
    precision: lax.Precision | None = None,
) -> Float[Array, "b h2 w2 o"]:
    """One product of all patches with the kernel as a matrix; so are its gradients.

    Gains: fc6 (7x7, 512 to 4096 channels) 0.36 forward, 0.27 input and 0.56 kernel gradient.
    """
    patches = jnp.concatenate(_taps(x, padding, kernel.shape[0]), axis=-1)
    return jnp.matmul(patches, kernel.reshape(-1, kernel.shape[-1]), precision=precision)


def _taps(x: Array, padding: Padding, size: int) -> list[Array]:
    """What each tap of a kernel reads for all outputs, row by row; all (b, h2, w2, i)."""
    height, width = _output_size(x, size, padding)
    x = _pad(x, padding)
    return [
        x[:, row : row + height, column : column + width]
        for row in range(size)
        for column in range(size)
    ]


def _pad(x: Array, padding: Padding) -> Array:
    pads = [(0, 0, 0), *((low, high, 0) for low, high in padding), (0, 0, 0)]
    return lax.pad(x, jnp.zeros((), x.dtype), pads)


# ======================================================================== the best form for each


def _compute(
    first: Array, second: Array, *, of: str, padding: Padding, precision: lax.Precision | None
) -> Array:
    """The output ``y``, or the gradient to the input ``x`` or to the ``kernel``, in its best form.

    Of the two others, in the order of `PARTS`.
    """
    shapes = _shapes(first, second, of, padding)
    x, kernel = (jax.ShapeDtypeStruct(shapes[part], first.dtype) for part in ("x", "kernel"))
    size, _, inputs, outputs = kernel.shape
    tiles = _winograd_gains(shapes)
    patches_are_small = 0 < math.prod(shapes["y"][:3]) <= outputs  # no more memory than the kernel
    patches = size == 1 or patches_are_small
    by_patches = functools.partial(convolution_by_patches, padding)
    plain = functools.partial(
        lax.conv_general_dilated,
        window_strides=(1, 1),
        padding=padding,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        precision=precision,
    )

    def input_gradient(form: Convolve, y: Array, kernel: Array) -> Array:
        return jax.linear_transpose(lambda x: form(x, kernel), x)(y)[0]

    def kernel_gradient(form: Convolve, x: Array, y: Array) -> Array:
        return jax.linear_transpose(lambda kernel: form(x, kernel), kernel)(y)[0]

    def fast_kernel_gradient(x: Array, y: Array) -> Array:
        # Windows that lie wholly in the border, whose inputs are zeros, are left out.
        inner = [(min(low, size - 1), min(high, size - 1)) for low, high in padding]
        crops = np.subtract(inner, padding)
        y = _pad(y, [(int(low), int(high)) for low, high in crops])
        if tiles and not patches:
            return winograd.kernel_gradient(x, y, inner)
        if patches or size**2 * inputs <= outputs:
            return kernel_gradient_by_patches(size, inner, x, y)
        return kernel_gradient_by_taps(size, inner, x, y)

    if of == "y":
        by_lax = plain
        fast = by_patches if patches else functools.partial(winograd.convolve, padding=padding)
    elif of == "x":
        by_lax = functools.partial(input_gradient, plain)
        fast = functools.partial(winograd.input_gradient, padding=padding)
        if patches:
            fast = functools.partial(input_gradient, by_patches)
    else:
        by_lax, fast = functools.partial(kernel_gradient, plain), fast_kernel_gradient
        if size == 1:
            fast = functools.partial(kernel_gradient, by_patches)
    forms: dict[str, Convolve] = {}
    if of == "kernel" or patches or tiles:
        forms["cpu"] = in_float32(fast)
    if _is_one_product(kernel.shape):
        form = functools.partial(by_patches, precision=precision)
        forms["cuda"] = form
        if of == "x":
            forms["cuda"] = functools.partial(input_gradient, form)
        if of == "kernel":
            forms["cuda"] = functools.partial(kernel_gradient, form)
    return by_platform(by_lax, **forms)(first, second)


def _is_one_product(kernel: tuple[int, ...]) -> bool:
    """Whether a convolution on CUDA devices is one product of its patches: fc6 of VGG and AlexNet.

    On an H200 cuDNN takes twice as long in bfloat16, and sometimes thirty times, when XLA measures
    its kernels wrongly and chooses one for any type. The patches are smaller than conv1_1's map.
    """
    return kernel[0] > 3 and math.prod(kernel) >= 2**22


def kernel_formats(tree: Any, where: Any) -> Any:
    """How arrays, of which those of four axes are kernels, best lie on the devices.

    On GPUs cuDNN reads kernels in the order (out, height, width, in); in any other the compiled
    programs would turn them in every pass. Elsewhere all lie as usual.

    Args:
        tree: Arrays, or their shapes: parameters, or the state of an optimiser.
        where: The sharding of all of them, or a tree of shardings; None is the default device.

    Returns:
        The second argument of `jax.device_put` for the tree; ``in_shardings`` of `jax.jit`.
    """
    given = jax.tree.leaves(where)
    device = next(iter(given[0].device_set)) if given else jax.local_devices()[0]
    if device.platform != "gpu":
        return where
    if not given:
        where = jax.sharding.SingleDeviceSharding(device)

    def of_array(array: Any, here: jax.sharding.Sharding) -> Any:
        if len(array.shape) != 4 or _is_one_product(array.shape):
            return here
        return Format(Layout((3, 0, 1, 2)), here)

    return jax.tree.map(of_array, tree, jax.tree.broadcast(where, tree))


def prepared_kernel(kernel: Any) -> Any:
    """A 3x3 kernel as the CPU computes with it, `fcn_jax.ops.winograd`; None: as it is.

    Otherwise each pass turns it anew: a fifth of the time of VGG16 at 500x375. Four times the size.

    Args:
        kernel: (3, 3, in, out) of a convolution of stride 1 without groups, or its shape.
    """
    if kernel.shape[:2] != (3, 3) or kernel.dtype != np.float32 or min(kernel.shape[2:]) < 32:
        return None
    if isinstance(kernel, jax.ShapeDtypeStruct):
        return jax.ShapeDtypeStruct((6, 6, *kernel.shape[2:]), kernel.dtype)
    return winograd.kernel_at_points(np.asarray(kernel))


def takes_prepared_kernel(x: Array, padding: Padding) -> bool:
    """Whether `convolution_prepared` is faster for these maps.

    Gains at 16 tiles: conv5_2 (512 channels, 4 maps of 8x8) 0.63.
    """
    known = sizes_known(x) and x.dtype == jnp.float32
    return known and not plain_chosen() and _tiles((x.shape[0], *_output_size(x, 3, padding))) >= 16


def convolution_prepared(
    x: Float[Array, "b h w i"],
    prepared: Float[Array, "p p i o"],
    bias: Float[Array, " o"],
    padding: Padding,
    relu: bool,
) -> Float[Array, "b h2 w2 o"]:
    """`convolution` of stride 1 with bias and ReLU, by a `prepared_kernel`; on the CPU.

    Gains over `convolution`, bias and ReLU, at 500x375 with padding 1: conv4_2 (512 channels) 0.54,
    conv5_2 0.37; none for conv3_2 (256) and before.
    """

    def finish(rows: Array) -> Array:
        rows = rows + bias[None, None, None]
        return jax.nn.relu(rows) if relu else rows

    return winograd.convolve_at_points(x, prepared, padding, finish)


def _shapes(first: Any, second: Any, of: str, padding: Padding) -> dict[str, tuple[int, ...]]:
    """The shapes of ``x``, ``kernel`` and ``y``, of which ``of`` is not given."""
    given = [part for part in PARTS if part != of]
    shapes = dict(zip(given, (first.shape, second.shape), strict=True))
    border = [sum(pads) for pads in padding]
    if of == "y":
        size, _, _, channels = shapes["kernel"]
        sides = [
            side + more - size + 1 for side, more in zip(shapes["x"][1:3], border, strict=True)
        ]
        return {**shapes, of: (shapes["x"][0], *sides, channels)}
    if of == "x":
        size, _, channels, _ = shapes["kernel"]
        sides = [
            side - more + size - 1 for side, more in zip(shapes["y"][1:3], border, strict=True)
        ]
        return {**shapes, of: (shapes["y"][0], *sides, channels)}
    size = shapes["x"][1] + border[0] - shapes["y"][1] + 1
    return {**shapes, of: (size, size, shapes["x"][-1], shapes["y"][-1])}


def _result_shape(first: Any, second: Any, *, of: str, padding: Padding, **_: Any) -> Any:
    return _shapes(first, second, of, padding)[of]


def _fold(first: Array, second: Array, *, axes: Any, of: str, **options: Any) -> Any:
    """Maps of several batches with one kernel are maps of one larger batch."""
    if of == "kernel" or axes[1] is not None:
        return None

    def folded(maps: Array, kernel: Array) -> Array:
        maps = jnp.moveaxis(maps, axes[0], 0)
        merged = maps.reshape(-1, *maps.shape[2:])
        result = _convolution(merged, kernel, of=of, **options)
        return result.reshape(*maps.shape[:2], *result.shape[1:])

    return folded


PARTS = ("x", "y", "kernel")

_convolution = multilinear("fcn_convolution", _compute, _result_shape, PARTS, fold=_fold)


def _winograd_gains(shapes: Mapping[str, tuple[int, ...]]) -> bool:
    """Whether channels and tiles are enough to pay for the transforms to the points and back.

    Gains: conv2_2 (128 channels) 0.50 forward, 0.49 input and 0.13 kernel gradient; conv4_2 (512)
    0.42, 0.48, 0.17; conv1_2 (64) 0.76, 0.87, 0.20. No gain below about 64 tiles.
    """
    size, _, inputs, outputs = shapes["kernel"]
    if size != 3 or min(inputs, outputs) < 32:
        return False
    return _tiles(shapes["y"][:3]) >= 64


def _tiles(shape: Sequence[int]) -> int:
    """Winograd's tiles of maps (b, h, w)."""
    batch, rows, columns = shape
    return batch * -(-rows // winograd.TILE) * -(-columns // winograd.TILE)


def kernel_gradient_by_patches(
    size: int, padding: Padding, x: Float[Array, "b h w i"], gradient: Float[Array, "b h2 w2 o"]
) -> Float[Array, "k k i o"]:
    """One product of all patches with the gradient: for few channels, as of an image.

    Gains: conv1_1 (3 to 64 channels) 0.07.
    """
    outputs = gradient.shape[-1]
    patches = jnp.concatenate(_taps(x, padding, size), axis=-1)
    rows = patches.reshape(-1, patches.shape[-1])
    return (rows.T @ gradient.reshape(-1, outputs)).reshape(size, size, -1, outputs)


def kernel_gradient_by_taps(
    size: int, padding: Padding, x: Float[Array, "b h w i"], gradient: Float[Array, "b h2 w2 o"]
) -> Float[Array, "k k i o"]:
    """A product for each tap of the kernel, in turn, so that one shifted input is held at a time.

    Gains: AlexNet's conv2 (5x5, 2 groups of 48 to 128 channels, 4 maps of 27x27) 0.15.
    """
    batch, height, width, outputs = gradient.shape
    x = _pad(x, padding)
    rows = gradient.reshape(-1, outputs)

    def product(tap: Array) -> Array:
        start = (0, tap // size, tap % size, 0)
        shifted = lax.dynamic_slice(x, start, (batch, height, width, x.shape[-1]))
        return shifted.reshape(-1, x.shape[-1]).T @ rows

    products = lax.map(product, jnp.arange(size**2))
    return products.reshape(size, size, x.shape[-1], outputs)
