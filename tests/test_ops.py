"""Pooling, up-convolution and bilinear kernels against their definitions, as plain loops."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fcn_jax import ops
from fcn_jax.alignment import UpWindow, Window


@pytest.mark.parametrize("window", [(2, 2, 0), (3, 2, 0), (3, 2, 1)], ids=str)
@pytest.mark.parametrize("shape", [(3, 3), (7, 4), (10, 5)], ids=str)
def test_max_pool_takes_the_largest_of_each_window(window, shape):
    kernel, stride, pad = window
    x = np.random.default_rng(0).normal(-5, 1, (2, *shape, 3)).astype(np.float32)
    pooled = np.asarray(ops.max_pool(jnp.asarray(x), Window(kernel, stride, pad, ceil=True)))
    for row in range(pooled.shape[1]):
        for column in range(pooled.shape[2]):
            top, left = row * stride - pad, column * stride - pad
            covered = x[:, max(0, top) : top + kernel, max(0, left) : left + kernel]
            np.testing.assert_array_equal(pooled[:, row, column], covered.max(axis=(1, 2)))
    # Rounded up: the last window reaches the last cell.
    assert (pooled.shape[1] - 1) * stride - pad + kernel >= shape[0]


def test_max_pool_of_a_single_cell():
    x = np.full((1, 1, 1, 2), -7.0, np.float32)
    np.testing.assert_array_equal(ops.max_pool(x, Window(2, 2, ceil=True)), x)


@pytest.mark.parametrize(
    ("kernel", "strides", "padding"),
    [
        *(((k, k), (1, 1), ((k // 2, k // 2),) * 2) for k in (1, 3, 5, 7)),
        ((3, 3), (1, 1), ((100, 100), (0, 2))),
        ((7, 7), (1, 1), ((0, 0), (0, 0))),
        ((3, 3), (2, 2), ((1, 1), (1, 1))),
        ((3, 5), (1, 1), ((1, 1), (2, 2))),
    ],
    ids=str,
)
def test_convolution_is_laxs(kernel, strides, padding):
    """However it is computed: values and both gradients."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, 9, 11, 4)).astype(np.float32)
    weights = rng.normal(size=(*kernel, 4, 5)).astype(np.float32)
    options = {
        "dimension_numbers": jax.lax.ConvDimensionNumbers((0, 3, 1, 2), (3, 2, 0, 1), (0, 3, 1, 2)),
        "lhs_dilation": (1, 1),
        "rhs_dilation": (1, 1),
        "feature_group_count": 1,
        "precision": jax.lax.Precision.HIGHEST,
    }

    def values_and_gradients(convolve, x, weights):
        out, pull_back = jax.vjp(
            lambda x, k: convolve(x, k, strides, padding, **options), x, weights
        )
        cotangent = np.random.default_rng(1).normal(size=out.shape).astype(np.float32)
        return out, *pull_back(cotangent)

    evaluate = jax.jit(values_and_gradients, static_argnums=0)
    ours = evaluate(ops.convolution, x, weights)
    truth = evaluate(jax.lax.conv_general_dilated, x, weights)
    for one, other in zip(ours, truth, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5 * np.abs(other).max())


@pytest.mark.parametrize("kernel_size", range(1, 8))
@pytest.mark.parametrize("factor", [1, 2, 3])
def test_up_convolution_adds_a_kernel_per_cell(kernel_size, factor):
    rng = np.random.default_rng(kernel_size)
    x = rng.normal(size=(2, 3, 4, 3)).astype(np.float32)
    kernel = rng.normal(size=(kernel_size, kernel_size, 3, 2)).astype(np.float32)
    truth = np.zeros((2, 2 * factor + kernel_size, 3 * factor + kernel_size, 2))
    for row in range(3):
        for column in range(4):
            rows = slice(row * factor, row * factor + kernel_size)
            columns = slice(column * factor, column * factor + kernel_size)
            truth[:, rows, columns] += np.einsum("bi,uvio->buvo", x[:, row, column], kernel)
    np.testing.assert_allclose(ops.up_convolution(x, kernel, factor), truth, atol=1e-5)


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
    window = UpWindow.bilinear(factor)
    kernel = ops.bilinear_kernel(window.kernel, 2)
    up = np.asarray(ops.up_convolution(planes[None].astype(np.float32), kernel, factor))[0]
    first = (window.kernel - 1) / 2  # where cell (0, 0) lies in the output
    for row in range(window.kernel, up.shape[0] - window.kernel):
        for column in range(window.kernel, up.shape[1] - window.kernel):
            y, x = (row - first) / factor, (column - first) / factor
            truth = (2 * y - x, y + 3 * x + 1)
            np.testing.assert_allclose(up[row, column], truth, atol=1e-4)


@pytest.mark.parametrize("size", [(7, 5), (12, 31), (30, 14)], ids=str)
def test_resize_bilinear_beside_torch(size):
    torch = pytest.importorskip("torch")
    x = np.random.default_rng(0).normal(size=(2, 12, 15, 3)).astype(np.float32)
    theirs = torch.nn.functional.interpolate(
        torch.from_numpy(x.transpose(0, 3, 1, 2).copy()), size, mode="bilinear", antialias=True
    )
    ours = ops.resize_bilinear(jnp.asarray(x), *size)
    np.testing.assert_allclose(ours, theirs.numpy().transpose(0, 2, 3, 1), atol=1e-5)
