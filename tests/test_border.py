"""The border's cells are computed once: the same function, whatever the image's size."""

from __future__ import annotations

import math
from typing import Any

import jax
import numpy as np
import pytest
import toy_backbones
from random_parameters import abstract_params, random_parameters

import fcn_jax
from fcn_jax import ops
from fcn_jax.geometry import Window
from fcn_jax.models import border
from fcn_jax.models.backbones import BACKBONES
from fcn_jax.models.border import divide, layers_worth_sharing, shared_layers
from fcn_jax.models.decoders import window_of
from fcn_jax.models.layers import PRECISIONS
from fcn_jax.programs import compiling_for


@pytest.mark.parametrize(
    ("backbone", "padding", "last"),
    [
        ("vgg11", "reference", "pool4"),
        ("vgg16", "reference", "pool4"),
        ("vgg19", "reference", "conv4_3"),
        ("alexnet", "reference", "conv3"),
        ("googlenet", "reference", "pool2/3x3_s2"),
        ("resnet50", "reference", "maxpool"),  # two layers read it
        ("vgg16", "same", None),
        ("googlenet", "native", None),
        ("resnet50", "native", None),
    ],
)
def test_how_far_a_backbone_shares_its_border(backbone, padding, last):
    layers = BACKBONES[backbone](padding, 1.0, 4096).layers
    shared = shared_layers(layers)
    assert (layers[shared - 1].name if shared else None) == last


def seen_by(marks: np.ndarray, window: Window, beyond: bool) -> np.ndarray:
    """Which cells of a layer's output see a marked cell, by trying each."""
    reach = window.pad + window.excess(len(marks))
    padded = np.pad(marks, (window.pad, reach), constant_values=beyond)
    starts = range(0, len(padded) - window.kernel + 1, window.stride)
    return np.array([padded[start : start + window.kernel].any() for start in starts])


@pytest.mark.parametrize("together", [False, True])
@pytest.mark.parametrize("backbone", ["vgg16", "vgg19", "alexnet", "googlenet", "resnet50"])
def test_image_and_edge_lie_where_they_are_found_by_trying(backbone, together):
    layers = BACKBONES[backbone]("reference", 1.0, 4096).layers
    layers = layers[: shared_layers(layers)]
    for side in (*range(1, 70), 375, 500):
        (border, *borders), _ = divide(layers, (side, side), together=together)
        image = np.zeros(border.canvas[0], bool)
        image[border.axis.start : border.axis.start + side] = True
        edge = np.zeros_like(image)
        for number, (layer, border) in enumerate(zip(layers, borders, strict=True)):
            window = window_of(layer)
            if number == 0:
                window = Window(window.kernel, window.stride, 0, window.ceil)
            image, edge = seen_by(image, window, False), seen_by(edge, window, True)
            cells = np.flatnonzero(image)
            axis = border.axis
            assert axis.size[0, 0] == len(image) == border.canvas[0]
            assert (axis.start, axis.stop[0, 0]) == (cells[0], cells[-1] + 1)
            assert axis.low == np.flatnonzero(~edge)[0]
            assert axis.high[0, 0] == np.flatnonzero(~edge[::-1])[0] <= border.most_high
            assert not (image & edge).any()
            # Between them there is a cell that sees neither.
            assert np.all(axis.low + axis.high < border.blank_size)


@pytest.fixture
def as_on_a_gpu(monkeypatch):
    """Borders are shared as on a GPU, by networks too small for that as well."""
    monkeypatch.setattr(border, "layers_worth_sharing", lambda layers, *_: shared_layers(layers))
    with compiling_for("gpu"):
        yield


def test_on_a_gpu_cells_are_added_where_that_costs_a_kernel_less():
    """Behind poolings, and where maps would grow by more than an eighth."""
    layers = BACKBONES["vgg16"]("reference", 1.0, 4096).layers[:14]

    def begin_runs(size: int) -> list[str]:
        _, steps = divide(layers, (size, size), together=True)
        return [layer.name for layer, step in zip(layers, steps, strict=True) if step.run]

    stages = ["conv1_1", "conv2_1", "conv3_1", "conv4_1"]
    assert begin_runs(2000) == stages
    assert begin_runs(500) == [*stages[:3], "conv3_2", "conv4_1", "conv4_3"]
    _, steps = divide(layers, (500, 500))
    assert [step.run for step in steps] == [(step.window,) for step in steps]


@pytest.mark.parametrize(
    ("backbone", "shape", "precision", "last"),
    [
        ("vgg16", (1, 500, 500, 3), "bfloat16", "pool4"),
        ("vgg16", (1, 128, 128, 3), "bfloat16", None),
        ("vgg16", (4, 128, 128, 3), "bfloat16", "pool4"),
        ("vgg16", (1, 128, 128, 3), "float32", "pool4"),
        ("alexnet", (1, 500, 500, 3), "bfloat16", None),
        ("alexnet", (16, 500, 500, 3), "bfloat16", "conv3"),
    ],
)
def test_on_a_gpu_the_border_is_shared_where_that_saves_more_than_its_kernels_cost(
    backbone, shape, precision, last
):
    layers = BACKBONES[backbone]("reference", 1.0, 4096).layers
    number = layers_worth_sharing(layers, shape, PRECISIONS[precision].products)
    assert (layers[number - 1].name if number else None) == last


@pytest.mark.parametrize(
    "backbone", ["vgg11", pytest.param(toy_backbones.plain, marks=pytest.mark.slow)]
)
@pytest.mark.usefixtures("as_on_a_gpu")
def test_scores_on_a_gpu_are_those_of_the_plain_network(backbone):
    """Of images that fill the canvas, and of smaller ones."""
    options = {"padding": "reference", "num_classes": 4, "width": 1 / 16, "fc_width": 8}
    model = fcn_jax.create_model("fcn8s", backbone=backbone, **options)
    params = {"params": random_parameters(model, 0)}
    rng: Any = np.random.default_rng(0)
    images = rng.normal(0, 64, (2, 39, 54, 3)).astype(np.float32)
    apply = jax.jit(model.apply)
    sizes = [(39, 54), (20, 33)]
    together = apply(params, images, valid_size=np.array(sizes))
    filled = apply(params, images)
    for number, (height, width) in enumerate(sizes):
        with ops.plain_forms():
            (truth,) = apply(params, images[number, None, :height, :width])
        atol = 1e-5 * np.abs(truth).max()
        np.testing.assert_allclose(together[number, :height, :width], truth, atol=atol)
        if number == 0:
            np.testing.assert_allclose(filled[0], truth, atol=atol)


@pytest.mark.parametrize(
    ("net", "backbone", "sizes"),
    [
        ("fcn8s", "vgg11", [(1, 1), (33, 47)]),
        ("fcn8s", toy_backbones.plain, [(2, 1), (38, 53)]),
        ("fcn8s", toy_backbones.residual, [(2, 1), (38, 53)]),
        ("fcn32s", "alexnet", [(38, 53)]),
        pytest.param("fcn32s", "googlenet", [(41, 34)], marks=pytest.mark.slow),
    ],
)
def test_scores_are_those_of_the_plain_network(net, backbone, sizes):
    model = fcn_jax.create_model(
        net, backbone=backbone, padding="reference", num_classes=4, width=1 / 16, fc_width=8
    )
    params = {"params": random_parameters(model, 0)}
    rng = np.random.default_rng(0)
    apply = jax.jit(model.apply)
    for height, width in sizes:
        images = rng.normal(0, 64, (2, height, width, 3)).astype(np.float32)
        with ops.plain_forms():
            truth = apply(params, images)
        atol = 1e-5 * np.abs(truth).max()
        np.testing.assert_allclose(apply(params, images), truth, atol=atol)


@pytest.mark.parametrize("platform", ["cpu", "gpu"])
def test_gradients_are_those_of_the_plain_network(platform, request):
    if platform == "gpu":
        request.getfixturevalue("as_on_a_gpu")
    model = fcn_jax.create_model(
        "fcn8s", backbone=toy_backbones.plain, padding="reference", num_classes=4, fc_width=8
    )
    assert shared_layers(model.backbone.layers) >= 4  # two convolutions, two pools
    params = random_parameters(model, 0)
    rng = np.random.default_rng(0)
    images = rng.normal(0, 64, (1, 37, 50, 3)).astype(np.float32)
    weights = rng.normal(size=(1, 37, 50, 4)).astype(np.float32)

    def objective(params):
        return (weights * model.apply({"params": params}, images)).sum()

    gradient = jax.jit(jax.grad(objective))
    with ops.plain_forms():
        truth = gradient(params)
    for got, expected in zip(
        jax.tree.leaves(gradient(params)), jax.tree.leaves(truth), strict=True
    ):
        np.testing.assert_allclose(got, expected, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize(("size", "most"), [((375, 500), 0.67), ((128, 128), 0.41)])
def test_arithmetic_that_is_left(size, most, monkeypatch):
    counted = []
    plain = ops.convolution

    def counting(x, kernel, *args, **options):
        out = plain(x, kernel, *args, **options)
        counted.append(math.prod(out.shape[:3]) * math.prod(kernel.shape))
        return out

    monkeypatch.setattr(ops, "convolution", counting)
    model = fcn_jax.create_model("fcn8s", padding="reference")
    params = {"params": abstract_params(model)}
    images = jax.ShapeDtypeStruct((4, *size, 3), np.float32)

    def multiply_adds():
        counted.clear()
        jax.eval_shape(lambda *args: model.apply(*args), params, images)
        return sum(counted)

    shared = multiply_adds()
    with ops.plain_forms():
        assert shared < most * multiply_adds()
