"""The fast forms of the operations beside their plain ones, on the CPU.

Truth is the plain form in float64. That a fast form is really taken is read from the program.
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
from fcn_jax.alignment import Window
from fcn_jax.ops import convolutions, forms, winograd

pytestmark = pytest.mark.skipif(
    jax.default_backend() != "cpu", reason="the fast forms are for the CPU"
)

OPTIONS = {
    "lhs_dilation": (1, 1),
    "rhs_dilation": (1, 1),
    "dimension_numbers": jax.lax.ConvDimensionNumbers((0, 3, 1, 2), (3, 2, 0, 1), (0, 3, 1, 2)),
    "feature_group_count": 1,
    "precision": None,
}
SAME = ((1, 1), (1, 1))

# Forms of the forward pass, the input gradient and the kernel gradient.
CONVOLUTIONS = {
    # name: input, kernel, padding, groups, the forms that must be called
    "winograd, one strip": ((3, 17, 19, 32), (3, 3, 32, 33), SAME, 1, "convolve"),
    "winograd, odd strips": ((1, 61, 95, 40), (3, 3, 40, 32), SAME, 1, "convolve"),
    "winograd, strips of a batch": ((3, 45, 42, 32), (3, 3, 32, 32), SAME, 1, "convolve"),
    "winograd, uneven border": ((1, 35, 30, 32), (3, 3, 32, 32), ((0, 2), (5, 0)), 1, "convolve"),
    "winograd, wide": ((1, 33, 37, 260), (3, 3, 260, 256), SAME, 1, "convolve"),
    "taps": ((2, 9, 11, 7), (3, 3, 7, 5), SAME, 1, "_kernel_gradient_by_taps"),
    "taps of few tiles": ((1, 9, 11, 40), (3, 3, 40, 40), SAME, 1, "_kernel_gradient_by_taps"),
    "taps 5x5": ((2, 13, 9, 16), (5, 5, 16, 8), ((2, 2),) * 2, 1, "_kernel_gradient_by_taps"),
    "patches of an image": (
        (2, 13, 10, 3), (3, 3, 3, 32), ((100, 100),) * 2, 1, "_kernel_gradient_by_patches",
    ),
    "patches, fc6": ((2, 9, 8, 12), (7, 7, 12, 64), ((0, 0),) * 2, 1, "_convolution_by_patches"),
    "patches, fc6 same": ((1, 3, 4, 8), (7, 7, 8, 16), ((3, 3),) * 2, 1, "_convolution_by_patches"),
    "one by one": ((2, 7, 9, 8), (1, 1, 8, 5), ((0, 0),) * 2, 1, "_convolution_by_patches"),
    "groups": ((2, 13, 13, 64), (5, 5, 32, 48), ((2, 2),) * 2, 2, "_convolution_by_groups"),
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


def convolve(x, kernel, padding=SAME, groups=1, strides=(1, 1)):
    options = {**OPTIONS, "feature_group_count": groups}
    return ops.convolution(x, kernel, strides, padding, **options)


def value_and_gradients(function, *arrays, cotangent=None):
    """The value and the gradients of its inner product with a fixed map, jitted."""
    shape = jax.eval_shape(function, *arrays).shape
    if cotangent is None:
        cotangent = np.random.default_rng(9).normal(size=shape).astype(np.float32)

    @jax.jit
    def compute(arrays, cotangent):
        out, pull_back = jax.vjp(function, *arrays)
        return out, *pull_back(cotangent.astype(out.dtype))

    return compute(arrays, cotangent)


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
        "_convolution_by_patches",
        "_convolution_by_groups",
        "_kernel_gradient_by_taps",
        "_kernel_gradient_by_patches",
    ):
        spy(convolutions, name)
    return names


# ======================================================================== convolution


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


def test_winograd_of_rectified_inputs_is_nearly_as_exact_as_a_sum():
    """Of what the layers see: no negative values, 256 channels."""
    x, kernel = random_arrays((1, 32, 32, 256), (3, 3, 256, 64))
    x = np.maximum(x, 0)
    assert_close(value_and_gradients(convolve, x, kernel), in_float64(convolve, x, kernel), 5e-6)


@pytest.mark.parametrize(
    ("kernel", "strides", "padding"),
    [((3, 5), (1, 1), SAME), ((3, 3), (2, 2), SAME), ((3, 3), (1, 1), "SAME")],
    ids=str,
)
def test_other_convolutions_stay_plain(kernel, strides, padding, called):
    arrays = random_arrays((4, 32, 32, 32), (*kernel, 32, 32))
    run = functools.partial(convolve, strides=strides, padding=padding)
    assert_close(value_and_gradients(run, *arrays), in_float64(run, *arrays), 1e-5)
    assert not called


def test_float64_stays_plain(called):
    x, kernel = random_arrays((4, 17, 17, 32), (3, 3, 32, 32))
    with jax.enable_x64(True):
        assert jax.jit(convolve)(np.float64(x), np.float64(kernel)).dtype == jnp.float64
    assert not called


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
]


@pytest.mark.parametrize("window", WINDOWS, ids=str)
@pytest.mark.parametrize("shape", [(1, 7, 5, 3), (3, 10, 13, 2), (1, 3, 3, 1)], ids=str)
@pytest.mark.parametrize("ties", [False, True], ids=["apart", "ties"])
def test_max_pool_and_its_gradient_are_pytorchs(window, shape, ties):
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    x = rng.integers(-2, 2, shape).astype(np.float32) if ties else random_arrays(shape)[0]
    pool = functools.partial(ops.max_pool, window=window)
    theirs = torch.from_numpy(x.transpose(0, 3, 1, 2).copy()).requires_grad_(True)
    pooled = torch.nn.functional.max_pool2d(
        theirs, window.kernel, window.stride, window.pad, ceil_mode=window.ceil
    )
    cotangent = rng.normal(size=pooled.shape).astype(np.float32)
    pooled.backward(torch.from_numpy(cotangent))
    truth = [a.detach().numpy().transpose(0, 2, 3, 1) for a in (pooled, theirs.grad)]
    cotangent = cotangent.transpose(0, 2, 3, 1)

    fast = value_and_gradients(pool, x, cotangent=cotangent)
    np.testing.assert_array_equal(fast[0], truth[0])
    np.testing.assert_array_equal(jax.jit(pool)(x), truth[0])
    np.testing.assert_allclose(fast[1], truth[1], atol=1e-6)
    with ops.plain_forms():
        plain = value_and_gradients(pool, x, cotangent=cotangent)
    np.testing.assert_array_equal(plain[0], truth[0])
    np.testing.assert_allclose(plain[1], truth[1], atol=1e-6)


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


# ======================================================================== up-convolution


@pytest.mark.parametrize("size", [3, 4, 7])
@pytest.mark.parametrize("factor", [2, 3])
def test_up_convolution_in_blocks_is_the_plain_one(size, factor):
    arrays = random_arrays((3, 5, 4, 3), (size, size, 3, 2))
    run = functools.partial(ops.up_convolution, factor=factor)
    assert_close(value_and_gradients(run, *arrays), in_float64(run, *arrays), 1e-5)
    assert "stablehlo.convolution" not in program(run, *arrays)
    with ops.plain_forms():
        assert "stablehlo.convolution" in program(run, *arrays)


# ======================================================================== the choice of form


def program(function, *arrays):
    """The StableHLO of a function as it is lowered for this machine."""
    return jax.jit(function).lower(*arrays).as_text()


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


def test_other_backends_get_the_plain_form():
    x, kernel = random_arrays((1, 40, 40, 32), (3, 3, 32, 32))

    def text(platform):
        exported = jax.export.export(jax.jit(convolve), platforms=[platform])(x, kernel)
        return exported.mlir_module()

    assert "stablehlo.convolution" in text("cuda")
    assert "stablehlo.convolution" not in text("cpu")


@pytest.mark.parametrize(("value", "plain"), [("1", True), ("0", False), ("", False)])
def test_the_environment_variable(value, plain, monkeypatch):
    monkeypatch.setenv(forms.VARIABLE, value)
    assert forms.plain_by_environment() is plain


def test_an_unknown_value_of_the_environment_variable(monkeypatch):
    monkeypatch.setenv(forms.VARIABLE, "yes")
    with pytest.raises(ValueError, match="FCN_JAX_PLAIN_OPS must be 0 or 1, got 'yes'"):
        forms.plain_by_environment()


def test_the_environment_variable_is_read_at_import():
    code = "from fcn_jax.ops import forms; print(forms.plain_chosen())"
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


@pytest.mark.parametrize("layer", LAYERS)
def test_forward_mode_needs_the_plain_forms(layer):
    function, shapes = LAYERS[layer]
    arrays = random_arrays(*shapes)
    with pytest.raises(TypeError, match="custom_vjp"):
        jax.jit(functools.partial(jax.jvp, function))(arrays, arrays)
    with ops.plain_forms():
        _, tangent = jax.jit(functools.partial(jax.jvp, function))(arrays, arrays)
    assert np.isfinite(tangent).all()


SHARDED = """
import sys
sys.path.insert(0, sys.argv[1])
import test_fast_ops
test_fast_ops.compare_sharded_with_whole()
"""


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
            placed = [
                jax.device_put(array, NamedSharding(mesh, spec if index == 0 else P()))
                for index, array in enumerate(arrays)
            ]
            assert_close(value_and_gradients(function, *placed), whole, 1e-5)


# ======================================================================== memory


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
