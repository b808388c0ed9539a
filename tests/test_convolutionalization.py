"""The paper's figure 2: a classifier slid over an image, in one pass.

The truth is the dense classifier in PyTorch (`benchmarks/torch_fcn.py`). With no padding in the
backbone both agree at every position. With it they differ by the border of zeros that every window
brings along, where the map sees the image: the second half of this file says where that border
reaches and where it must not, and bounds what it does to the logits.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from fractions import Fraction

import jax
import numpy as np
import pytest
from random_parameters import random_parameters
from test_parity import BOUND, relative_error

import fcn_jax
import fcn_jax.weights
from fcn_jax.models.backbones import BACKBONES, Backbone, Conv

torch_fcn = pytest.importorskip("torch_fcn")
torch = torch_fcn.torch

CLASSES = 11

pytestmark = pytest.mark.usefixtures("exact_products", "one_torch_thread")


def small_classifier(backbone="vgg16", width=1 / 16, **options):
    arguments = {"num_classes": CLASSES, "width": width, "fc_width": 24, **options}
    return fcn_jax.create_model("classifier", backbone=backbone, **arguments)


def random_image(height, width, seed=0, batch=1):
    return np.random.default_rng(seed).normal(0, 64, (batch, height, width, 3)).astype(np.float32)


def dense_parameters(model, seed=0):
    """Random values for the classifier as it was trained, its last layers as matrices."""
    rng = np.random.default_rng(seed)
    params = random_parameters(model, seed)
    for layer, leaves in params.items():
        if layer in fcn_jax.weights.dense.DENSE_LAYERS:
            inputs, outputs = math.prod(leaves["kernel"].shape[:3]), leaves["kernel"].shape[3]
            scale = math.sqrt(2 / inputs)
            kernel = rng.normal(0, scale, (inputs, outputs)).astype(np.float32)
            params[layer] = {**leaves, "kernel": kernel}
    return params


@functools.cache
def _compiled(model):
    return jax.jit(functools.partial(model.apply, return_maps=True))


def logits_and_maps(model, params, images):
    logits, maps = _compiled(model)({"params": params}, images)
    return np.asarray(logits), {name: np.asarray(value) for name, value in maps.items()}


def dense_logits(params, images, backbone, padding="native", width=1 / 16):
    network = torch_fcn.TorchFCN(
        "classifier", backbone, padding, heads=CLASSES, width=width, fc_width=24
    )
    with torch.inference_mode():
        return network.load(params).double().eval()(torch_fcn.nchw(images).double()).numpy()


# ======================================================================== at the training size


@pytest.mark.parametrize(
    ("backbone", "size", "fc6"),
    [
        ("vgg16", 224, (7, 7)),
        ("alexnet", 227, (6, 6)),
        ("googlenet", 224, None),
    ],
)
def test_at_the_training_size_it_is_the_dense_network(backbone, size, fc6):
    model = small_classifier(backbone, width=1 / 8)
    dense = dense_parameters(model)
    params = fcn_jax.weights.convolutionalize(dense, {"fc6": fc6} if fc6 else {})
    images = random_image(size, size)
    ours, _ = logits_and_maps(model, params, images)
    assert ours.shape == (1, 1, 1, CLASSES)
    truth = dense_logits(dense, images, backbone, width=1 / 8)
    assert relative_error(ours[:, 0, 0], truth) < BOUND


@pytest.mark.parametrize("backbone", ["vgg11", "alexnet", "googlenet"])
def test_there_and_back_is_exact(backbone):
    dense = dense_parameters(small_classifier(backbone))
    shapes = {"vgg11": {"fc6": (7, 7)}, "alexnet": {"fc6": (6, 6)}}.get(backbone, {})
    back = fcn_jax.weights.to_dense(fcn_jax.weights.convolutionalize(dense, shapes))
    assert jax.tree.structure(back) == jax.tree.structure(dense)
    for ours, truth in zip(jax.tree.leaves(back), jax.tree.leaves(dense), strict=True):
        np.testing.assert_array_equal(ours, truth)


# ======================================================================== without padding


def unpadded(padding, width, fc_width) -> Backbone:
    """VGG16 whose windows all lie inside of the image."""
    backbone = BACKBONES["vgg16"](padding, width, fc_width)
    layers = tuple(
        dataclasses.replace(layer, window=dataclasses.replace(layer.window, pad=0))
        if isinstance(layer, Conv)
        else layer
        for layer in backbone.layers
    )
    return dataclasses.replace(backbone, layers=layers)


def test_without_padding_every_entry_is_the_dense_network_on_its_crop():
    """A window is as wide as the receptive field; the map of 404 + 32 k pixels has k + 1 cells."""
    model = small_classifier(unpadded)
    cells = model.alignment.geometry["fc8"]
    field, stride = int(cells.receptive_field), int(cells.stride)
    assert (field, stride) == (404, 32)
    assert cells.offset == Fraction(field - 1, 2)  # cell 0 is centred in the first window
    dense = dense_parameters(model)
    params = fcn_jax.weights.convolutionalize(dense, {"fc6": (7, 7)})
    image = random_image(field + stride, field + 2 * stride)
    ours, _ = logits_and_maps(model, params, image)
    assert ours.shape == (1, 2, 3, CLASSES)
    crops = [
        image[0, stride * i : stride * i + field, stride * j : stride * j + field]
        for i in range(2)
        for j in range(3)
    ]
    truth = dense_logits(dense, np.stack(crops), "vgg16", "valid")
    assert relative_error(ours[0], truth.reshape(2, 3, CLASSES)) < BOUND


# ======================================================================== with padding

WINDOW, STRIDE = 224, 32


def windows(image, margin=0, rows=range(6), columns=range(6)):
    """The windows at a stride of 32, each with a margin of further pixels."""
    side = WINDOW + 2 * margin
    return np.stack(
        [
            image[0, top : top + side, left : left + side]
            for top in (STRIDE * i - margin for i in rows)
            for left in (STRIDE * j - margin for j in columns)
        ]
    )


@pytest.fixture(scope="module")
def one_pass_and_windows():
    """The model, its maps on 384x384, and on the 36 windows of it."""
    model = small_classifier()
    params = random_parameters(model, 0)
    image = random_image(384, 384)
    one_pass = logits_and_maps(model, params, image)
    return model, one_pass, logits_and_maps(model, params, windows(image))


def test_one_pass_over_384_pixels_gives_the_36_windows_but_for_their_borders(one_pass_and_windows):
    """Measured here: a median difference of 0.2 standard deviations of the logits; see below."""
    _, (logits, _), (window_logits, _) = one_pass_and_windows
    assert logits.shape == (1, 6, 6, CLASSES)
    truth = window_logits.reshape(6, 6, CLASSES)
    difference = np.abs(logits[0] - truth) / truth.std()
    assert BOUND < np.median(difference) < 0.5
    assert difference.max() < 3


def inside(cells, number: int, lower: bool, upper: bool) -> range:
    """Cells of a window's map (of ``number``) that do not see its border.

    ``lower`` and ``upper`` tell whether that side of the window is the image's side as well: there
    one pass has the same zeros.
    """
    reach = (cells.receptive_field - 1) / 2
    centres = [cells.stride * index + cells.offset for index in range(number)]
    inner = [
        index
        for index, centre in enumerate(centres)
        if (lower or centre - reach >= 0) and (upper or centre + reach <= WINDOW - 1)
    ]
    return range(inner[0], inner[-1] + 1)


@pytest.mark.parametrize(
    ("name", "free"),
    # Of a window inside the image, the cells a side that see no border: 1 of the 7 of pool5.
    [("pool1", 110), ("pool2", 52), ("pool3", 22), ("pool4", 8), ("pool5", 1)],
)
def test_maps_agree_exactly_where_no_border_is_seen(one_pass_and_windows, name, free):
    model, (_, maps), (_, window_maps) = one_pass_and_windows
    cells = model.alignment.geometry[name]
    step = STRIDE // cells.stride
    whole, parts = maps[name][0], window_maps[name].reshape(6, 6, *window_maps[name].shape[1:])
    number = parts.shape[2]
    scale = np.abs(whole).max()
    assert len(inside(cells, number, lower=False, upper=False)) == free
    for i in range(6):
        for j in range(6):
            same = whole[step * i : step * i + number, step * j : step * j + number]
            difference = np.abs(same - parts[i, j]).max(-1) / scale
            rows = inside(cells, number, i == 0, i == 5)
            columns = inside(cells, number, j == 0, j == 5)
            block = np.ix_(rows, columns)
            assert difference[block].max() < BOUND
            difference[block] = 0
            if 0 < i < 5 and 0 < j < 5:
                # And the others do differ: the rule is not merely cautious.
                assert difference[0].max() > BOUND
                assert difference[:, -1].max() > BOUND


@pytest.mark.slow
def test_the_difference_vanishes_with_a_margin_around_the_window():
    """A margin of m pixels moves the border m away: beyond (404 - 224) / 2 = 90 it is not seen."""
    model = small_classifier()
    params = random_parameters(model, 0)
    image = random_image(448, 448)
    logits, _ = logits_and_maps(model, params, image)
    middle = logits[0, 3:5, 3:5].reshape(4, CLASSES)
    errors = []
    for margin in (0, 64, 96):
        some = windows(image, margin, rows=(3, 4), columns=(3, 4))
        cell = margin // STRIDE
        values, _ = logits_and_maps(model, params, some)
        errors.append(np.sqrt(np.mean((values[:, cell, cell] - middle) ** 2)) / middle.std())
    # Measured, in standard deviations of the logits: 0.21, 0.015, 0.
    assert errors[0] > 0.05
    assert errors[0] > errors[1] > BOUND > errors[2]
