"""The alignment algebra against published numbers and against brute force."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest

import fcn_jax
from fcn_jax.geometry import (
    PIXELS,
    Geometry,
    TransposedWindow,
    Window,
    compose,
    crop_offset,
    overlap,
)

POOL = Window(2, stride=2, ceil=True)
POOL3 = Window(3, stride=2, ceil=True)


def conv(kernel: int, stride: int = 1) -> Window:
    return Window(kernel, stride, pad=kernel // 2)


# ======================================================================== published numbers


@pytest.mark.parametrize(
    ("net", "crops"),
    [
        ("fcn32s", {"upscore": 19}),
        ("fcn16s", {"score_pool4": 5, "upscore16": 27}),
        ("fcn8s", {"score_pool4": 5, "score_pool3": 9, "upscore8": 31}),
        ("fcn8s_atonce", {"score_pool4": 5, "score_pool3": 9, "upscore8": 31}),
        # Not published: continued by hand in `benchmarks/torch_fcn.py`.
        ("fcn4s", {"score_pool4": 5, "score_pool3": 9, "score_pool2": 17, "upscore4": 33}),
    ],
)
def test_published_crops(net, crops):
    assert fcn_jax.create_model(net, padding="reference").alignment.crops == crops


@pytest.mark.parametrize(
    ("net", "crops"),
    [
        ("fcn32s", {"upscore": 16}),
        ("fcn16s", {"score_pool4": -1, "upscore16": 8}),
        ("fcn8s", {"score_pool4": -1, "score_pool3": -1, "upscore8": 4}),
        (
            "fcn2s",
            {**{f"score_pool{stage}": -1 for stage in (4, 3, 2, 1)}, "upscore": 1},
        ),
    ],
)
def test_crops_of_same_padding(net, crops):
    """Derived by hand in `benchmarks/torch_fcn.py`."""
    assert fcn_jax.create_model(net, padding="same").alignment.crops == crops


@pytest.mark.parametrize("padding", ["reference", "same"])
def test_vgg16_geometry(padding):
    geometry = fcn_jax.create_model("fcn8s", padding=padding).alignment.geometry
    assert geometry["score_fr"].receptive_field == 404
    assert geometry["score_fr"].stride == 32
    strides = {name: geometry[name].stride for name in ("pool3", "pool4", "fuse_pool3", "upscore8")}
    assert strides == {"pool3": 8, "pool4": 16, "fuse_pool3": 8, "upscore8": 1}


ALEXNET = (
    *(Window(11, stride=4, pad=100), POOL3, conv(5), POOL3),
    *(conv(3), conv(3), conv(3), POOL3, Window(6), Window(1)),
)
# Inception modules along their widest branch, 5x5; the last pooling averages 7x7.
GOOGLENET = (
    *(conv(7, 2), POOL3, conv(3), POOL3, *[conv(5)] * 2),
    *(POOL3, *[conv(5)] * 5, POOL3, *[conv(5)] * 2, Window(7)),
)


@pytest.mark.parametrize(("windows", "field"), [(ALEXNET, 355), (GOOGLENET, 907)])
def test_receptive_fields_of_table_1(windows, field):
    geometry = compose(windows)
    assert (geometry.receptive_field, geometry.stride) == (field, 32)


def test_published_crop_of_fcn_alexnet():
    """Its kernel of 63 is odd; the bilinear kernel of 64 would not align."""
    scores = compose(ALEXNET)
    assert crop_offset(scores.then(TransposedWindow(63, 32)), PIXELS) == 18
    with pytest.raises(ValueError, match="no whole number"):
        crop_offset(scores.then(TransposedWindow(64, 32)), PIXELS)


@pytest.mark.parametrize(
    ("backbone", "padding", "net", "crops", "kernels"),
    [
        ("alexnet", "reference", "fcn32s", {"upscore": 18}, (63,)),  # published
        # The others are derived by hand in `benchmarks/torch_fcn.py`.
        ("alexnet", "reference", "fcn16s", {"score_pool2": 5, "upscore16": 18}, (3, 31)),
        ("alexnet", "same", "fcn32s", {"upscore": 47}, (63,)),
        ("googlenet", "reference", "fcn32s", {"upscore": 98}, (63,)),
        ("googlenet", "same", "fcn32s", {"upscore": 31}, (63,)),
        ("googlenet", "same", "fcn16s", {"score_pool3/3x3_s2": -1, "upscore16": 15}, (3, 31)),
    ],
)
def test_crops_and_kernels_of_other_backbones(backbone, padding, net, crops, kernels):
    alignment = fcn_jax.create_model(net, backbone=backbone, padding=padding).alignment
    assert alignment.crops == crops
    assert tuple(window.kernel for window in alignment.transposed_windows.values()) == kernels


def test_example_of_the_docstring():
    geometry = compose([conv(3), conv(3), POOL])
    assert geometry == Geometry(Fraction(2), Fraction(1, 2), Fraction(6))


@pytest.mark.parametrize(
    ("factor", "kernel"), [(2, 4), (8, 16), (16, 32), (32, 64), (3, 5), (1, 1)]
)
def test_bilinear_window(factor, kernel):
    assert TransposedWindow.bilinear(factor) == TransposedWindow(kernel, factor)


# ======================================================================== brute force


def dependencies(windows, size: int) -> np.ndarray:
    """Which pixels (columns) each cell of the last map (rows) depends on, layer by layer."""
    reach = np.eye(size, dtype=bool)
    for window in windows:
        if isinstance(window, TransposedWindow):
            cells = np.zeros((window.cells(len(reach)), size), bool)
            for i, row in enumerate(reach):
                cells[window.factor * i : window.factor * i + window.kernel] |= row
        else:
            rows = window.output_size(len(reach))
            border = np.zeros((window.pad + window.kernel * window.stride, size), bool)
            padded = np.concatenate([border[: window.pad], reach, border])
            starts = [row * window.stride for row in range(rows)]
            cells = np.stack([padded[s : s + window.kernel].any(axis=0) for s in starts])
        reach = cells
    return reach


def random_windows(rng: np.random.Generator) -> list[Window]:
    windows, stride = [], 1
    for _ in range(rng.integers(1, 7)):
        step = int(rng.integers(1, 4)) if stride < 6 else 1
        kernel = int(rng.integers(step, 6))  # kernels below the stride would leave gaps
        windows.append(Window(kernel, step, int(rng.integers(0, 3)), ceil=bool(rng.integers(2))))
        stride *= step
    return windows


def assert_covers(geometry: Geometry, cell: int, pixels: np.ndarray) -> None:
    """The cell depends on as many pixels as its receptive field, centred at its offset."""
    assert pixels[-1] - pixels[0] + 1 == geometry.receptive_field
    assert Fraction(int(pixels[0] + pixels[-1]), 2) == geometry.stride * cell + geometry.offset


@pytest.mark.parametrize("seed", range(20))
def test_random_stack_of_windows(seed):
    rng = np.random.default_rng(seed)
    windows = random_windows(rng)
    reach = dependencies(windows, size=int(rng.integers(300, 400)))
    geometry = compose(windows)
    for cell in range(len(reach) // 2 - 2, len(reach) // 2 + 2):  # far from both borders
        assert_covers(geometry, cell, np.flatnonzero(reach[cell]))


@pytest.mark.parametrize("seed", range(20))
def test_random_stack_then_upsampled(seed):
    """How many pixels an upsampled cell reads varies from cell to cell, but all lie in the
    receptive field around its centre, and the field is no wider than some of them need."""
    rng = np.random.default_rng(seed)
    windows = random_windows(rng)
    windows.append(TransposedWindow(int(rng.integers(3, 9)), int(rng.integers(2, 4))))
    reach = dependencies(windows, size=400)
    geometry = compose(windows)
    farthest = Fraction(0)
    for cell in range(len(reach) // 2 - 6, len(reach) // 2 + 6):
        pixels = np.flatnonzero(reach[cell])
        centre = geometry.stride * cell + geometry.offset
        farthest = max(farthest, centre - int(pixels[0]), int(pixels[-1]) - centre)
    assert 2 * farthest + 1 == geometry.receptive_field


@pytest.mark.parametrize("ceil", [False, True])
@pytest.mark.parametrize(
    "window",
    [*((2, 2, 0), (3, 2, 0), (3, 2, 1), (3, 1, 1), (2, 3, 0)), (5, 3, 2), (2, 2, 1), (1, 3, 0)],
)
def test_output_size_by_sliding(window, ceil):
    kernel, stride, pad = window
    for size in range(kernel, 40):
        # Windows start at every stride from -pad; floor: whole ones; ceil: also the one cut by
        # the end, if it starts within the input or its left padding (Caffe, PyTorch).
        starts = range(-pad, size + pad, stride)
        whole = [s for s in starts if s + kernel <= size + pad]
        cut = [s for s in starts if s + kernel > size + pad and s < size][:1] if ceil else []
        if cut and whole and whole[-1] + kernel == size + pad:
            cut = []  # the end is reached exactly
        found = Window(kernel, stride, pad, ceil)
        assert found.output_size(size) == len(whole) + len(cut)
        assert found.excess(size) == max(0, (cut[0] + kernel if cut else 0) - size - pad)


@pytest.mark.parametrize("size", [1, 2, 7])
def test_up_window_size(size):
    assert TransposedWindow(5, 3).cells(size) == len(dependencies([TransposedWindow(5, 3)], size))


# ======================================================================== crops


def test_crop_offset_of_equal_maps_is_zero():
    geometry = compose([conv(3), POOL])
    assert crop_offset(geometry, geometry) == 0


def test_crop_offset_counts_in_cells_and_can_be_negative():
    fine = Geometry(Fraction(8), Fraction(7, 2))
    coarse = Geometry(Fraction(8), Fraction(7, 2) + 24)
    assert crop_offset(fine, coarse) == 3
    assert crop_offset(coarse, fine) == -3


def test_maps_of_different_strides_cannot_be_cropped():
    with pytest.raises(ValueError, match="strides 2 and 1"):
        crop_offset(Geometry(Fraction(2)), PIXELS)


@pytest.mark.parametrize("seed", range(10))
def test_overlap_by_sets(seed):
    rng = np.random.default_rng(seed)
    offset, cropped, other = (int(n) for n in rng.integers((-9, 1, 1), (10, 15, 15)))
    common = [i for i in range(other) if 0 <= i + offset < cropped]
    if not common:
        with pytest.raises(ValueError, match="do not overlap"):
            overlap(offset, cropped, other)
        return
    first, second = overlap(offset, cropped, other)
    assert list(range(other))[second] == common
    assert list(range(cropped))[first] == [i + offset for i in common]


def test_too_small_an_input_is_named():
    with pytest.raises(ValueError, match="5 cells is too small for a window of 7"):
        Window(7).output_size(5)
