"""The operations beside PyTorch's, and their fast forms beside the plain ones, in float64.

That a fast form is really taken is read from the program.
"""

from __future__ import annotations

import functools
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from fcn_jax import ops
from fcn_jax.geometry import TransposedWindow, Window
from fcn_jax.models.layers import Convolution
from fcn_jax.ops import convolutions, dispatch, winograd

only_on_the_cpu = pytest.mark.skipif(
    jax.default_backend() != "cpu", reason="the fast forms are for the CPU"
)

SAME = ((1, 1), (1, 1))

# Forms of the forward pass, the input gradient and the kernel gradient.
CONVOLUTIONS = {
    # name: input, kernel, padding, groups, the forms that must be called
    "winograd, one strip": ((3, 17, 19, 32), (3, 3, 32, 33), SAME, 1, "convolve"),
    "winograd, odd strips": ((1, 61, 95, 40), (3, 3, 40, 32), SAME, 1, "convolve"),
    "winograd, strips of a batch": ((3, 45, 42, 32), (3, 3, 32, 32), SAME, 1, "convolve"),
    "winograd, uneven border": ((1, 35, 30, 32), (3, 3, 32, 32), ((0, 2), (5, 0)), 1, "convolve"),
    "winograd, wide": ((1, 33, 37, 260), (3, 3, 260, 256), SAME, 1, "convolve"),
    "taps": ((2, 9, 11, 7), (3, 3, 7, 5), SAME, 1, "kernel_gradient_by_taps"),
    "taps of few tiles": ((1, 9, 11, 40), (3, 3, 40, 40), SAME, 1, "kernel_gradient_by_taps"),
    "taps 5x5": ((2, 13, 9, 16), (5, 5, 16, 8), ((2, 2),) * 2, 1, "kernel_gradient_by_taps"),
    "patches of an image": (
        (2, 13, 10, 3), (3, 3, 3, 32), ((100, 100),) * 2, 1, "kernel_gradient_by_patches",
    ),
    "patches, fc6": ((2, 9, 8, 12), (7, 7, 12, 64), ((0, 0),) * 2, 1, "convolution_by_patches"),
    "patches, fc6 same": ((1, 3, 4, 8), (7, 7, 8, 16), ((3, 3),) * 2, 1, "convolution_by_patches"),
    "one by one": ((2, 7, 9, 8), (1, 1, 8, 5), ((0, 0),) * 2, 1, "convolution_by_patches"),
    "groups": ((2, 13, 13, 64), (5, 5, 32, 48), ((2, 2),) * 2, 2, "convolution_by_groups"),
    "winograd in groups": ((4, 17, 18, 64), (3, 3, 32, 64), SAME, 2, "convolve"),
}  # fmt: skip


def random_arrays(*shapes, seed=0):
    """float32, like maps and kernels: outputs of about 1."""
    rng = np.random.default_rng(seed)
    scales = [
        np.prod(shape[:3]) ** -0.5 if len(shape) == 4 and i else 1 for i, shape in enumerate(shapes)
    ]
    return [
        (rng.normal(size=shape) * scale).astype(np.float32)
        for shape, scale in zip(shapes, scales, strict=True)
    ]


def convolve(x, kernel, padding=SAME, groups=1, stride=1):
    return ops.convolution(x, kernel, stride, padding, groups)


def random_cotangent(function, *arrays):
    """A fixed map of the size of a function's value."""
    shape = jax.eval_shape(function, *arrays).shape
    return np.random.default_rng(9).normal(size=shape).astype(np.float32)


def gradients(function, cotangent, *arrays):
    """The value, and the gradients of its inner product with a fixed map."""
    out, pull_back = jax.vjp(function, *arrays)
    return out, *pull_back(jnp.asarray(cotangent, out.dtype))


def value_and_gradients(function, *arrays, cotangent=None):
    """`gradients`, jitted."""
    if cotangent is None:
        cotangent = random_cotangent(function, *arrays)
    return jax.jit(functools.partial(gradients, function))(cotangent, *arrays)


def in_float64(function, *arrays):
    """The same in the plain form and float64."""
    with jax.enable_x64(True), ops.plain_forms():
        results = value_and_gradients(function, *(np.float64(array) for array in arrays))
        return [np.asarray(result) for result in results]


def assert_close(ours, truth, tolerance):
    """Errors relative to the largest value of each array."""
    for one, other in zip(ours, truth, strict=True):
        assert one.shape == other.shape
        error = np.abs(np.asarray(one, np.float64) - other).max() / np.abs(other).max()
        assert error < tolerance, error


def pytorchs(function, arrays, cotangent, to_torch, to_ours):
    """PyTorch's value in float64 and the gradients of its inner product with a fixed map.

    Args:
        function: Of tensors.
        arrays: Its arguments as we have them.
        cotangent: The fixed map, in our layout.
        to_torch: For each argument, how PyTorch has its axes.
        to_ours: For the value and each gradient, how we have them.
    """
    torch = pytest.importorskip("torch")
    tensors = [
        torch.from_numpy(np.float64(array).transpose(axes)).contiguous().requires_grad_()
        for array, axes in zip(arrays, to_torch, strict=True)
    ]
    value = function(torch, *tensors)
    value.backward(torch.from_numpy(np.float64(cotangent).transpose(NCHW)))
    results = [value.detach(), *(tensor.grad for tensor in tensors)]
    return [a.numpy().transpose(axes) for a, axes in zip(results, to_ours, strict=True)]


# The axes of maps and kernels in PyTorch's order, and back in ours.
NCHW, NHWC = (0, 3, 1, 2), (0, 2, 3, 1)
OIHW, HWIO = (3, 2, 0, 1), (2, 3, 1, 0)
IOHW, HWIO_OF_TRANSPOSED = (2, 3, 0, 1), (2, 3, 0, 1)
MAP = {"to_torch": (NCHW,), "to_ours": (NHWC, NHWC)}


def of_maps(function, x, cotangent):
    """`pytorchs` of a function of one map."""
    return pytorchs(function, [x], cotangent, [NCHW], [NHWC, NHWC])


def assert_pytorchs(ours, theirs, *arrays, to_torch, to_ours):
    """Values and all gradients of a function of arrays: ours in float32, theirs in float64."""
    cotangent = random_cotangent(ours, *arrays)
    truth = pytorchs(theirs, arrays, cotangent, to_torch, to_ours)
    assert_close(value_and_gradients(ours, *arrays, cotangent=cotangent), truth, 1e-5)


@pytest.fixture
def called(monkeypatch):
    """The names of the fast forms that were traced."""
    names = set()

    def spy(module, name):
        form = getattr(module, name)

        @functools.wraps(form)
        def record(*args, **kwargs):
            names.add(name)
            return form(*args, **kwargs)

        monkeypatch.setattr(module, name, record)

    for name in ("convolve", "input_gradient", "kernel_gradient"):
        spy(winograd, name)
    for name in (
        "convolution_by_patches",
        "convolution_by_groups",
        "kernel_gradient_by_taps",
        "kernel_gradient_by_patches",
    ):
        spy(convolutions, name)
    return names


# ======================================================================== convolution


# Kernel, stride, padding, groups, and dilation but for 1: all that the backbones have.
WINDOWS_OF_BACKBONES = (
    *((11, 4, pad, 1) for pad in (2, 100)),
    (7, 2, 3, 1),
    *((size, 1, pad, 1) for size in (6, 7) for pad in (0, 3)),
    *((5, 1, 2, groups) for groups in (1, 2)),
    *((3, 1, 1, groups) for groups in (1, 2, 4)),
    (3, 1, 100, 1),
    (3, 2, 1, 2),
    *((1, stride, 0, groups) for stride, groups in ((1, 1), (1, 2), (2, 1))),
    *((3, 1, dilation, 1, dilation) for dilation in (2, 4)),
    (3, 2, 3, 2, 2),
)


@pytest.mark.parametrize("window", WINDOWS_OF_BACKBONES, ids=str)
def test_convolution_is_pytorchs(window):
    """As the networks call it: their layer on our function."""
    size, stride, pad, groups, dilation = (*window, 1)[:5]
    x, kernel = random_arrays((2, 13, 15, 4), (size, size, 4 // groups, 8))
    bias = np.random.default_rng(size).normal(size=8).astype(np.float32)
    layer = Convolution(8, groups)
    window = Window(size, stride, pad, dilation=dilation)
    assert_pytorchs(
        lambda x, k, b: layer.apply({"params": {"kernel": k, "bias": b}}, x, window),
        lambda torch, x, k, b: torch.nn.functional.conv2d(
            x, k, b, stride=stride, padding=pad, groups=groups, dilation=dilation
        ),
        *(x, kernel, bias),
        to_torch=(NCHW, OIHW, (0,)),
        to_ours=(NHWC, NHWC, HWIO, (0,)),
    )


@only_on_the_cpu
@pytest.mark.parametrize("case", CONVOLUTIONS)
def test_convolution_in_its_fast_form_is_the_plain_one(case, called):
    x_shape, kernel_shape, padding, groups, form = CONVOLUTIONS[case]
    arrays = random_arrays(x_shape, kernel_shape)
    run = functools.partial(convolve, padding=padding, groups=groups)
    fast = value_and_gradients(run, *arrays)
    assert form in called
    if form == "convolve":
        assert called >= {"convolve", "input_gradient", "kernel_gradient"}
    called.clear()
    truth = in_float64(run, *arrays)
    assert not called
    assert_close(fast, truth, 1e-5)


@only_on_the_cpu
def test_winograd_of_rectified_inputs_is_nearly_as_exact_as_a_sum():
    """Of what the layers see: no negative values, 256 channels."""
    x, kernel = random_arrays((1, 32, 32, 256), (3, 3, 256, 64))
    x = np.maximum(x, 0)
    assert_close(value_and_gradients(convolve, x, kernel), in_float64(convolve, x, kernel), 5e-6)


@only_on_the_cpu
@pytest.mark.parametrize("relu", [True, False])
@pytest.mark.parametrize("case", [case for case in CONVOLUTIONS if case.startswith("winograd, ")])
def test_a_prepared_kernel_gives_the_same_convolution(case, relu):
    x_shape, kernel_shape, padding, *_ = CONVOLUTIONS[case]
    x, kernel, bias = random_arrays(x_shape, kernel_shape, kernel_shape[3:])

    def layer(x, kernel, bias):
        out = convolve(x, kernel, padding) + bias[None, None, None]
        return jax.nn.relu(out) if relu else out

    assert ops.takes_prepared_kernel(jnp.asarray(x), padding)
    prepared = ops.prepared_kernel(kernel)
    run = functools.partial(ops.convolution_prepared, padding=padding, relu=relu)
    assert_close([jax.jit(run)(x, prepared, bias)], in_float64(layer, x, kernel, bias)[:1], 1e-5)


def test_which_kernels_are_prepared():
    def shape(*sides, dtype=np.float32):
        return jax.ShapeDtypeStruct(sides, dtype)

    assert ops.prepared_kernel(shape(3, 3, 32, 40)) == shape(6, 6, 32, 40)
    others = [(3, 3, 31, 32), (3, 3, 32, 31), (1, 1, 64, 64), (7, 7, 64, 64), (3, 5, 64, 64)]
    assert [ops.prepared_kernel(shape(*sides)) for sides in others] == [None] * 5
    assert ops.prepared_kernel(shape(3, 3, 64, 64, dtype=jnp.bfloat16)) is None
    few, enough = (jnp.zeros((1, side, 16, 32)) for side in (12, 13))
    assert [ops.takes_prepared_kernel(x, SAME) for x in (few, enough)] == [False, True]
    with ops.plain_forms():
        assert not ops.takes_prepared_kernel(enough, SAME)


@pytest.mark.parametrize(("kernel", "stride"), [((3, 5), 1), ((3, 3), 2)], ids=str)
def test_other_convolutions_stay_plain(kernel, stride, called):
    arrays = random_arrays((4, 32, 32, 32), (*kernel, 32, 32))
    run = functools.partial(convolve, stride=stride)
    assert_close(value_and_gradients(run, *arrays), in_float64(run, *arrays), 1e-5)
    assert not called


@only_on_the_cpu
def test_float64_stays_plain(called):
    x, kernel = random_arrays((4, 17, 17, 32), (3, 3, 32, 32))
    with jax.enable_x64(True):
        assert jax.jit(convolve)(np.float64(x), np.float64(kernel)).dtype == jnp.float64
    assert not called


@only_on_the_cpu
@pytest.mark.parametrize("case", ["winograd, one strip", "taps", "patches, fc6", "groups"])
def test_bfloat16_is_computed_in_float32_and_rounded_once(case, called):
    x_shape, kernel_shape, padding, groups, form = CONVOLUTIONS[case]
    arrays = [jnp.asarray(a, jnp.bfloat16) for a in random_arrays(x_shape, kernel_shape)]
    run = functools.partial(convolve, padding=padding, groups=groups)
    fast = value_and_gradients(run, *arrays)
    assert form in called
    assert {array.dtype for array in fast} == {jnp.dtype(jnp.bfloat16)}
    truth = in_float64(run, *(np.asarray(a, np.float32) for a in arrays))
    assert_close(fast, truth, 2**-7)


# ======================================================================== pooling

WINDOWS = [
    Window(2, 2, ceil=True),
    Window(3, 2, ceil=True),
    Window(3, 2, pad=1, ceil=True),
    Window(3, 1, pad=1, ceil=True),
    Window(3, 3, ceil=True),
    Window(2, 3, ceil=True),
    Window(2, 2),
    Window(3, 3),
]


@pytest.mark.parametrize("window", WINDOWS, ids=str)
@pytest.mark.parametrize(
    "shape",
    [
        (2, 7, 5, 3),
        pytest.param((3, 10, 13, 2), marks=pytest.mark.slow),
        pytest.param((1, 3, 3, 1), marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_max_pool_and_its_gradient_are_pytorchs(window, shape):
    """In both forms. Of equal values in a window the first takes the gradient."""
    rng = np.random.default_rng(0)
    pool = functools.partial(ops.max_pool, window=window)
    # Negative values, so that a padding of zeros would win.
    maps = {
        "apart": rng.normal(-3, 1, shape).astype(np.float32),
        "ties": rng.integers(-4, -1, shape).astype(np.float32),
    }
    cotangent = random_cotangent(pool, maps["apart"])
    compute = jax.jit(lambda x: (pool(x), *gradients(pool, cotangent, x)))
    for name, x in maps.items():
        truth = of_maps(
            lambda torch, x: torch.nn.functional.max_pool2d(
                x, window.kernel, window.stride, window.pad, ceil_mode=window.ceil
            ),
            x,
            cotangent,
        )
        for plain in (False, True):
            with ops.plain_forms(plain):
                alone, value, gradient = compute(x)
            np.testing.assert_array_equal(alone, truth[0], err_msg=name)
            np.testing.assert_array_equal(value, truth[0], err_msg=name)
            np.testing.assert_allclose(gradient, truth[1], atol=1e-6, err_msg=name)


def test_max_pool_of_maps_smaller_than_the_window():
    x = jnp.full((1, 1, 1, 2), -7.0)
    for window in (WINDOWS[0], WINDOWS[2]):
        np.testing.assert_array_equal(ops.max_pool(x, window), x)
    with pytest.raises(ValueError, match="too small"):  # no window even begins
        ops.max_pool(x, WINDOWS[1])


def test_max_pool_searches_no_window_again():
    x = jax.ShapeDtypeStruct((1, 8, 8, 4), jnp.float32)

    def gradient(x):
        return jax.grad(lambda x: ops.max_pool(x, WINDOWS[0]).sum())(x)

    assert "select_and_scatter" not in program(gradient, x)
    with ops.plain_forms():
        assert "select_and_scatter" in program(gradient, x)


def test_max_pool_of_bfloat16():
    x = jnp.asarray(random_arrays((2, 9, 9, 3))[0], jnp.bfloat16)
    for window in WINDOWS[:2]:
        pool = functools.partial(ops.max_pool, window=window)
        fast = value_and_gradients(pool, x)
        with ops.plain_forms():
            plain = value_and_gradients(pool, x)
        for one, other in zip(fast, plain, strict=True):
            assert one.dtype == jnp.bfloat16
            np.testing.assert_allclose(np.float32(one), np.float32(other), atol=0.05)


@pytest.mark.parametrize("kernel", [1, 2, 7])
def test_average_pool_is_pytorchs(kernel):
    (x,) = random_arrays((2, 9, 8, 3))
    assert_pytorchs(
        lambda x: ops.average_pool(x, Window(kernel)),
        lambda torch, x: torch.nn.functional.avg_pool2d(x, kernel, 1),
        x,
        **MAP,
    )


@pytest.mark.parametrize("window", [Window(2, pad=1), Window(2, stride=2, ceil=True)])
def test_average_pool_of_padding_is_refused(window):
    with pytest.raises(ValueError, match="average pooling has no padding"):
        ops.average_pool(jnp.zeros((1, 4, 4, 1)), window)


# ======================================================================== normalisation


@pytest.mark.parametrize(
    ("size", "alpha", "beta", "channels"),
    [
        *((5, 1e-4, 0.75, channels) for channels in (1, 4, 5, 17)),
        *((size, 0.02, 0.6, 8) for size in (1, 2, 3, 4, 7)),
    ],
)
def test_local_response_norm_is_pytorchs(size, alpha, beta, channels):
    """Caffe divides alpha by the size, and so does PyTorch; the sum is of 1 + alpha / 5 * x^2."""
    rng = np.random.default_rng(channels)
    scales = np.float32([1, 3, 64, 3000])[:, None, None, None]
    for scale in scales:  # each apart: errors are relative to the largest value
        x = rng.normal(size=(2, 4, 3, channels)).astype(np.float32) * scale
        assert_pytorchs(
            lambda x: ops.local_response_norm(x, size, alpha, beta),
            lambda torch, x: torch.nn.LocalResponseNorm(size, alpha=alpha, beta=beta, k=1)(x),
            x,
            **MAP,
        )


# ======================================================================== transposed convolution


@pytest.mark.parametrize(
    "window",
    [(1, 1), (1, 2), (2, 3), (3, 2), (4, 2), (5, 2), (7, 3), (16, 8), (63, 32), (64, 32)],
    ids=str,
)
def test_conv_transpose_is_pytorchs(window):
    """In blocks and in the plain form."""
    size, factor = window
    x, kernel = random_arrays((2, 3, 5, 4), (size, size, 4, 3))
    run = functools.partial(ops.conv_transpose, factor=factor)
    cotangent = random_cotangent(run, x, kernel)
    truth = pytorchs(
        lambda torch, x, k: torch.nn.functional.conv_transpose2d(x, k, stride=factor),
        *([x, kernel], cotangent, [NCHW, IOHW], [NHWC, NHWC, HWIO_OF_TRANSPOSED]),
    )
    assert truth[0].shape[1] == TransposedWindow(size, factor).cells(3)
    assert_close(value_and_gradients(run, x, kernel, cotangent=cotangent), truth, 1e-5)
    assert "stablehlo.convolution" not in program(run, x, kernel)
    with ops.plain_forms():
        assert_close(value_and_gradients(run, x, kernel, cotangent=cotangent), truth, 1e-5)
        assert "stablehlo.convolution" in program(run, x, kernel)


@pytest.mark.parametrize("size", [1, 3, 4, 5, 16, 63, 64])
def test_bilinear_kernel(size):
    kernel = ops.bilinear_kernel(size, 3)
    assert kernel.shape == (size, size, 3, 3)
    assert kernel.dtype == np.float32
    factor = (size + 1) // 2
    centre = factor - 1 if size % 2 else factor - 0.5
    for i in {0, size // 3, size - 1}:
        for j in range(size):
            value = (1 - abs(i - centre) / factor) * (1 - abs(j - centre) / factor)
            np.testing.assert_allclose(kernel[i, j], value * np.eye(3), rtol=1e-6)


@pytest.mark.parametrize("factor", [2, 3, 8])
def test_bilinear_kernel_interpolates_a_plane_exactly(factor):
    """Away from the border a bilinear interpolation returns a plane's values."""
    rows, columns = np.meshgrid(np.arange(5.0), np.arange(6.0), indexing="ij")
    planes = np.stack([2 * rows - columns, rows + 3 * columns + 1], axis=-1)
    window = TransposedWindow.bilinear(factor)
    kernel = jnp.asarray(ops.bilinear_kernel(window.kernel, 2))
    up = np.asarray(ops.conv_transpose(jnp.asarray(planes[None], jnp.float32), kernel, factor))[0]
    first = (window.kernel - 1) / 2  # where cell (0, 0) lies in the output
    for row in range(window.kernel, up.shape[0] - window.kernel):
        for column in range(window.kernel, up.shape[1] - window.kernel):
            y, x = (row - first) / factor, (column - first) / factor
            truth = (2 * y - x, y + 3 * x + 1)
            np.testing.assert_allclose(up[row, column], truth, atol=1e-4)


def test_resize_bilinear_on_canvas_is_pytorchs():
    torch = pytest.importorskip("torch")
    x = np.random.default_rng(0).normal(size=(3, 12, 15, 3)).astype(np.float32)
    sizes, targets = [(12, 15), (12, 15), (9, 14)], [(7, 5), (12, 31), (30, 14)]
    resize = functools.partial(ops.resize_bilinear_on_canvas, height=30, width=31)
    ours = jax.jit(resize)(x, np.array(sizes), np.array(targets))
    for image, got, (h, w), target in zip(x, ours, sizes, targets, strict=True):
        theirs = torch.nn.functional.interpolate(
            torch.from_numpy(image[None, :h, :w].transpose(NCHW).copy()),
            target,
            mode="bilinear",
            antialias=True,
        )
        truth = theirs.numpy().transpose(NHWC)[0]
        np.testing.assert_allclose(got[: target[0], : target[1]], truth, atol=1e-5)


def test_interpolation_is_pytorchs_also_of_tiles():
    """Images of any size on one canvas, and parts of an image of 97x131 pixels."""
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    sizes = [(97, 131), (1, 1), (8, 16), (9, 121)]
    maps = rng.normal(size=(4, 13, 17, 3)).astype(np.float32)
    truth = []
    for cells, (h, w) in zip(maps, sizes, strict=True):
        alone = cells[None, : -(-h // 8), : -(-w // 8)].transpose(NCHW).copy()
        tensor = torch.from_numpy(alone).double()
        theirs = torch.nn.functional.interpolate(
            tensor, (h, w), mode="bilinear", align_corners=False
        )
        truth.append(theirs.numpy().transpose(NHWC)[0])
    zeros = np.zeros((4, 2), np.int32)
    interpolate = jax.jit(ops.interpolate_on_canvas, static_argnums=(1, 3, 4))
    ours = interpolate(maps, 8, np.array(sizes), 97, 131, zeros)
    for got, expected, (h, w) in zip(np.asarray(ours), truth, sizes, strict=True):
        np.testing.assert_allclose(got[:h, :w], expected, atol=1e-6)
        assert not got[h:].any()
        assert not got[:, w:].any()
    # From cell (5, 3) on: but for a stride and a half at its border a tile is part of the image.
    start = np.array([[40, 24]], np.int32)
    tile = interpolate(maps[:1, 5:11, 3:12], 8, np.array([[97, 131]]), 48, 72, start)
    np.testing.assert_allclose(tile[0, 12:-12, 12:-12], truth[0][52:76, 36:84], atol=1e-6)


# ======================================================================== the choice of form


def program(function, *arrays):
    """The StableHLO of a function as it is lowered for this machine."""
    return jax.jit(function).lower(*arrays).as_text()


@only_on_the_cpu
def test_the_choice_is_part_of_what_jit_remembers():
    x, kernel = random_arrays((1, 40, 40, 32), (3, 3, 32, 32))
    traces = []

    @jax.jit
    def run(x, kernel):
        traces.append(None)
        return convolve(x, kernel)

    fast = run(x, kernel)
    with ops.plain_forms():
        plain = run(x, kernel)
        with ops.plain_forms(False):
            again = run(x, kernel)
    np.testing.assert_array_equal(fast, run(x, kernel))
    np.testing.assert_array_equal(fast, again)
    assert len(traces) == 2
    assert np.abs(fast - plain).max() > 0  # rounded otherwise
    np.testing.assert_allclose(fast, plain, atol=1e-5 * np.abs(plain).max())


@only_on_the_cpu
def test_other_backends_get_the_plain_form():
    x, kernel = random_arrays((1, 40, 40, 32), (3, 3, 32, 32))

    def text(platform):
        exported = jax.export.export(jax.jit(convolve), platforms=[platform])(x, kernel)
        return exported.mlir_module()

    assert "stablehlo.convolution" in text("cuda")
    assert "stablehlo.convolution" not in text("cpu")


def test_what_cuda_devices_get():
    """fc6 and its gradients as products; pools that search no window again."""
    x, fc6 = (jax.ShapeDtypeStruct(s, jnp.bfloat16) for s in ((2, 10, 9, 128), (7, 7, 128, 700)))

    def loss(x, kernel, small):
        fc6 = ops.convolution(x, kernel, 1, ((0, 0),) * 2, precision=jax.lax.Precision.HIGH)
        return jnp.sum(ops.max_pool(fc6, Window(2, 2)) ** 2) + jnp.sum(convolve(x, small) ** 2)

    def operations(channels):
        small = jax.ShapeDtypeStruct((3, 3, 128, channels), jnp.bfloat16)
        traced = jax.jit(jax.grad(loss, (0, 1, 2))).trace(x, fc6, small)
        text = traced.lower(lowering_platforms=("cuda",)).as_text()
        return {
            name: text.count(f"stablehlo.{name}")
            for name in ("convolution", "dot_general", "select_and_scatter", "reduce_window")
        }

    found = operations(8)
    assert found["convolution"] == 3  # of the small kernel alone
    assert found["dot_general"] == 3
    assert found["select_and_scatter"] == found["reduce_window"] == 0


def test_kernels_lie_as_usual_on_other_devices_than_gpus():
    here = NamedSharding(Mesh(jax.devices()[:1], "data"), P())
    assert ops.kernel_formats({"kernel": np.zeros((3, 3, 2, 4))}, here) is here
    assert ops.kernel_formats({"kernel": np.zeros((3, 3, 2, 4))}, None) is None


@pytest.mark.parametrize(("value", "plain"), [("1", True), ("0", False), ("", False)])
def test_the_environment_variable(value, plain, monkeypatch):
    monkeypatch.setenv(dispatch.VARIABLE, value)
    assert dispatch.plain_by_environment() is plain


def test_an_unknown_value_of_the_environment_variable(monkeypatch):
    monkeypatch.setenv(dispatch.VARIABLE, "yes")
    with pytest.raises(ValueError, match="FCN_JAX_PLAIN_OPS must be 0 or 1, got 'yes'"):
        dispatch.plain_by_environment()


def test_the_environment_variable_is_read_at_import():
    code = "from fcn_jax import ops; print(ops.plain_chosen())"
    environment = {**os.environ, "FCN_JAX_PLAIN_OPS": "1", "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60
    )
    assert done.stdout.strip() == "True", done.stderr


# ======================================================================== transformations

LAYERS = {
    "winograd": (convolve, ((4, 18, 18, 32), (3, 3, 32, 32))),
    "taps": (convolve, ((4, 9, 8, 5), (3, 3, 5, 6))),
    "pool": (lambda x: ops.max_pool(x, WINDOWS[1]), ((4, 10, 7, 5),)),
}


@pytest.mark.parametrize("layer", LAYERS)
def test_vmap_and_checkpoint(layer):
    function, shapes = LAYERS[layer]
    arrays = random_arrays(*shapes)

    def loss(x, *rest):
        return jnp.square(function(x[None], *rest)).sum()

    truth = jax.jit(jax.grad(lambda *a: jnp.square(function(*a)).sum()))(*arrays)
    mapped = jax.jit(jax.vmap(jax.grad(loss), (0, *[None] * (len(arrays) - 1))))(*arrays)
    assert_close([mapped], [truth], 1e-5)
    again = jax.jit(jax.grad(jax.checkpoint(lambda *a: jnp.square(function(*a)).sum())))
    assert_close([again(*arrays)], [truth], 1e-6)


def derivatives(function, arrays, directions):
    """The tangent, a gradient, Hessian-vector products both ways, and a Jacobian's sums."""
    every = tuple(range(len(arrays)))

    def loss(*arrays):
        return jnp.square(function(*arrays)).mean()

    gradient = jax.grad(loss, every)

    def along(*arrays):
        pairs = zip(gradient(*arrays), directions, strict=True)
        return sum(jnp.vdot(slope, direction) for slope, direction in pairs)

    def line(steps):  # many directions at once
        moved = [a + steps.sum() * d for a, d in zip(arrays, directions, strict=True)]
        return function(*moved)

    return {
        "tangent": jax.jvp(function, arrays, directions)[1],
        "gradient": gradient(*arrays),
        "forward over reverse": jax.jvp(gradient, arrays, directions)[1],
        "reverse over reverse": jax.grad(along, every)(*arrays),
        "jacfwd": jax.jacfwd(line)(jnp.zeros(2)),
        "gradient of vmap": jax.grad(
            lambda x: jnp.square(jax.vmap(lambda x: function(x, *arrays[1:]))(x[:, None])).mean()
        )(arrays[0]),
        "gradient of vmap, kernels": jax.grad(
            lambda *a: jnp.square(jax.vmap(function)(*[jnp.stack([x, -x]) for x in a])).mean(),
            every,
        )(*arrays),
    }


DIFFERENTIATED = LAYERS | {
    "patches": (lambda x, k: convolve(x, k, ((3, 3),) * 2), ((2, 3, 4, 5), (7, 7, 5, 40))),
    "one": (lambda x, k: convolve(x, k, ((0, 0),) * 2), ((2, 6, 5, 7), (1, 1, 7, 6))),
    "groups": (lambda x, k: convolve(x, k, groups=2), ((2, 6, 5, 32), (3, 3, 16, 8))),
    "strided": (lambda x, k: convolve(x, k, stride=2), ((2, 7, 5, 4), (3, 3, 4, 6))),
    "apart": (lambda x: ops.max_pool(x, Window(2, stride=2, ceil=True)), ((2, 7, 5, 3),)),
    "upscore": (lambda x, k: ops.conv_transpose(x, k, 2), ((2, 3, 4, 5), (4, 4, 5, 3))),
    "norm": (lambda x: ops.local_response_norm(x, 5, 1e-2, 0.75), ((2, 3, 4, 7),)),
}


@pytest.mark.parametrize("layer", DIFFERENTIATED)
def test_all_derivatives_are_those_of_the_plain_forms(layer):
    """Of any order and in any mode; PyTorch's gradients are compared above."""
    function, shapes = DIFFERENTIATED[layer]
    arrays = tuple(random_arrays(*shapes))
    directions = tuple(0.3 * array[::-1] for array in arrays)
    compute = jax.jit(functools.partial(derivatives, function))
    found = compute(arrays, directions)
    with ops.plain_forms():
        expected = compute(arrays, directions)
    for name, values in expected.items():
        assert_close(jax.tree.leaves(found[name]), jax.tree.leaves(values), 2e-5)


def test_tangents_are_differences_and_pytorchs():
    torch = pytest.importorskip("torch")
    x, kernel, *directions = random_arrays(*[(2, 11, 9, 32), (3, 3, 32, 32)] * 2)
    window = Window(3, stride=2, ceil=True)

    def layer(x, kernel):
        return ops.max_pool(convolve(x, kernel), window)

    def torch_layer(x, kernel):
        y = torch.nn.functional.conv2d(x, kernel, padding=1)
        return torch.nn.functional.max_pool2d(y, 3, 2, ceil_mode=True)

    def to_torch(array, axes):
        return torch.tensor(np.asarray(array).transpose(axes))

    maps, kernels = (0, 3, 1, 2), (3, 2, 0, 1)
    _, expected = torch.func.jvp(
        torch_layer,
        (to_torch(x, maps), to_torch(kernel, kernels)),
        (to_torch(directions[0], maps), to_torch(directions[1], kernels)),
    )
    _, tangent = jax.jit(functools.partial(jax.jvp, layer))((x, kernel), tuple(directions))
    assert_close([tangent.transpose(maps)], [expected.numpy()], 1e-5)
    # Not compiled as well.
    _, eager = jax.jvp(layer, (x, kernel), tuple(directions))
    assert_close([eager], [tangent], 1e-6)


SHARDED = """
import sys
sys.path.insert(0, sys.argv[1])
import test_ops
test_ops.compare_sharded_with_whole()
"""


@pytest.mark.slow
@only_on_the_cpu
def test_sharded_over_devices():
    """The batch over two devices and the height over two: equal to one device."""
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": "--xla_force_host_platform_device_count=4",
    }
    done = subprocess.run(
        [sys.executable, "-c", SHARDED, os.path.dirname(__file__)],
        env=environment, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def compare_sharded_with_whole():
    mesh = Mesh(np.asarray(jax.devices()).reshape(2, 2), ("data", "rows"))
    for function, shapes in (LAYERS["winograd"], LAYERS["pool"]):
        arrays = random_arrays(*shapes)
        whole = value_and_gradients(function, *arrays)
        for spec in (P("data"), P("data", "rows")):
            sharded = [
                jax.device_put(array, NamedSharding(mesh, spec if index == 0 else P()))
                for index, array in enumerate(arrays)
            ]
            assert_close(value_and_gradients(function, *sharded), whole, 1e-5)


# ======================================================================== memory


@only_on_the_cpu
@pytest.mark.parametrize(
    ("x_shape", "outputs"), [((1, 349, 287, 64), 128), ((1, 88, 72, 512), 512)], ids=str
)
def test_memory_of_a_layer_is_bounded(x_shape, outputs):
    """VGG16's conv2_1 and conv4_2 at 500x375: temporaries beside maps and kernel at the points."""
    x = jax.ShapeDtypeStruct(x_shape, jnp.float32)
    kernel = jax.ShapeDtypeStruct((3, 3, x_shape[-1], outputs), jnp.float32)
    out = jax.ShapeDtypeStruct((*x_shape[:3], outputs), jnp.float32)
    run = jax.jit(lambda x, kernel, g: jax.vjp(convolve, x, kernel)[1](g))
    analysis = run.lower(x, kernel, out).compile().memory_analysis()
    assert analysis is not None
    used = analysis.temp_size_in_bytes
    maps = 4 * (x.size + out.size)
    assert used < 1.5 * maps + 4 * 4 * 4 * kernel.size, used / 2**20
