"""The networks by their promises: sizes, names, initial values, frozen parts, clear errors."""

from __future__ import annotations

import functools
import math
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy_backbones
from random_parameters import abstract_params, random_parameters

import fcn_jax
from fcn_jax.geometry import Window
from fcn_jax.models.backbones import Backbone, Concat, Conv
from fcn_jax.models.decoders import SEGMENTERS
from fcn_jax.models.layers import he_normal
from fcn_jax.ops import bilinear_kernel

PADDINGS = ("same", "reference")
small_model = functools.partial(fcn_jax.create_model, num_classes=4, width=1 / 32, fc_width=6)
toy_model = functools.partial(
    fcn_jax.create_model, backbone=toy_backbones.plain, num_classes=4, fc_width=64
)


def parameter_shapes(model) -> dict[str, dict[str, tuple[int, ...]]]:
    return jax.tree.map(lambda leaf: leaf.shape, abstract_params(model))


# ======================================================================== sizes


@pytest.mark.parametrize("padding", PADDINGS)
def test_logits_have_the_size_of_the_image(padding):
    """Also where the border is shared; all backbones and decoders are in test_backbones."""
    model = small_model("fcn8s_atonce", padding=padding)
    shapes = {"params": abstract_params(model)}
    for height, width in [(1, 1), (1, 500), (701, 1099)]:
        images = jax.ShapeDtypeStruct((2, height, width, 3), jnp.float32)
        logits = jax.eval_shape(model.apply, shapes, images)
        assert logits.shape == (2, height, width, 4)
        assert logits.dtype == jnp.float32


@pytest.mark.parametrize("net", ["fcn32s", "fcn8s_atonce"])
def test_other_channels_and_batches(net):
    """Four channels: early fusion of depth."""
    model = toy_model(net, inputs=4)
    params = random_parameters(model, 0)
    images = np.random.default_rng(0).normal(size=(3, 9, 14, 4)).astype(np.float32)
    apply = jax.jit(model.apply)
    logits = apply({"params": params}, images)
    assert logits.shape == (3, 9, 14, 4)
    alone = apply({"params": params}, images[1:2])
    np.testing.assert_allclose(logits[1:2], alone, atol=1e-5)


# ======================================================================== maps


def test_return_maps_names_every_layer():
    model = toy_model("fcn8s")
    params = random_parameters(model, 0)
    images = np.random.default_rng(0).normal(size=(1, 37, 50, 3)).astype(np.float32)
    logits, maps = jax.jit(functools.partial(model.apply, return_maps=True))(
        {"params": params}, images
    )
    assert set(maps) == set(model.alignment.geometry)
    assert set(maps) == {
        *("stem", "pool2", "middle", "pool3", "pool4", "pool5", "top"),
        *("score_fr", "upscore2", "score_pool4", "fuse_pool4"),
        *("upscore_pool4", "score_pool3", "fuse_pool3", "upscore4"),
    }
    sizes = {"pool2": (19, 25), "pool3": (10, 13), "pool4": (5, 7), "pool5": (3, 4)}
    for name, size in sizes.items():
        assert maps[name].shape[1:3] == size
    assert maps["fuse_pool3"].shape[1:3] == sizes["pool3"]
    # Half a kernel of border is cropped: the logits are the middle of the last map.
    np.testing.assert_array_equal(logits, maps["upscore4"][:, 2 : 2 + 37, 2 : 2 + 50])


# ======================================================================== parameters


@pytest.mark.parametrize("net", SEGMENTERS)
def test_parameters_have_caffe_names_and_layouts(net):
    shapes = parameter_shapes(fcn_jax.create_model(net))
    widths = (64, 128, 256, 512, 512)
    expected, channels = {}, 3
    for stage, (filters, convs) in enumerate(zip(widths, (2, 2, 3, 3, 3), strict=True), 1):
        for index in range(1, convs + 1):
            expected[f"conv{stage}_{index}"] = (3, 3, channels, filters)
            channels = filters
    expected |= {"fc6": (7, 7, 512, 4096), "fc7": (1, 1, 4096, 4096), "score_fr": (1, 1, 4096, 21)}
    ups = {"upscore": (64, 64, 21, 21)}
    if net == "fcn16s":
        expected["score_pool4"] = (1, 1, 512, 21)
        ups = {"upscore2": (4, 4, 21, 21), "upscore16": (32, 32, 21, 21)}
    elif net == "fcn_interpolated":
        ups = {}
    elif net != "fcn32s":
        expected |= {"score_pool4": (1, 1, 512, 21), "score_pool3": (1, 1, 256, 21)}
        ups = dict.fromkeys(("upscore2", "upscore_pool4"), (4, 4, 21, 21))
        if net == "fcn4s":
            expected["score_pool2"] = (1, 1, 128, 21)
            ups |= {"upscore_pool3": (4, 4, 21, 21), "upscore4": (8, 8, 21, 21)}
        elif net == "fcn2s":
            expected |= {"score_pool2": (1, 1, 128, 21), "score_pool1": (1, 1, 64, 21)}
            ups |= dict.fromkeys(("upscore_pool3", "upscore_pool2", "upscore"), (4, 4, 21, 21))
        else:
            ups["upscore8"] = (16, 16, 21, 21)
    expected = {name: {"kernel": shape, "bias": shape[-1:]} for name, shape in expected.items()}
    assert shapes == {**expected, **{name: {"kernel": shape} for name, shape in ups.items()}}


@pytest.mark.parametrize("net", SEGMENTERS)
def test_width_multiplies_every_backbone_layer(net):
    shapes = parameter_shapes(fcn_jax.create_model(net, width=0.25, fc_width=100, num_classes=3))
    assert shapes["conv1_1"]["kernel"] == (3, 3, 3, 16)
    assert shapes["conv5_3"]["kernel"] == (3, 3, 128, 128)
    assert shapes["fc6"]["kernel"] == (7, 7, 128, 100)
    assert shapes["fc7"]["kernel"] == (1, 1, 100, 100)
    assert shapes["score_fr"]["kernel"] == (1, 1, 100, 3)


@pytest.mark.parametrize("backbone", [toy_backbones.plain, toy_backbones.forked])
def test_initial_values(backbone):
    """Scores zero, transposed convolutions bilinear, hence logits exactly zero; the rest random."""
    model = toy_model("fcn8s", backbone=backbone)
    images = 64 * np.random.default_rng(0).normal(size=(1, 17, 20, 3)).astype(np.float32)
    logits, variables = jax.jit(model.init_with_output)(jax.random.key(1), images)
    params = variables["params"]
    assert not np.asarray(logits).any()
    for layer, leaves in params.items():
        kernel = np.asarray(leaves["kernel"])
        if layer.startswith("score"):
            assert not kernel.any()
        elif layer.startswith("up"):
            np.testing.assert_array_equal(kernel, bilinear_kernel(kernel.shape[0], 4))
        else:
            assert kernel.std() > 0
        assert not np.asarray(leaves.get("bias", 0)).any()
    assert set(model.score_layers) == {n for n in params if n.startswith(("score", "up"))}


def test_initial_maps_neither_vanish_nor_explode():
    """He initialisation keeps the size of the maps; the first layer expects the 0..255 scale."""
    model = toy_model("fcn32s", width=4.0)
    images = 64 * np.random.default_rng(0).normal(size=(2, 64, 64, 3)).astype(np.float32)
    variables = jax.jit(model.init)(jax.random.key(0), images)
    _, maps = jax.jit(functools.partial(model.apply, return_maps=True))(variables, images)
    for name in ("stem", "middle"):
        # A rectified normal variable of variance 2 has a mean square of 1.
        assert 0.5 < float(jnp.sqrt(jnp.mean(maps[name] ** 2))) < 2.5, name


@pytest.mark.parametrize(
    ("choice", "learned"),
    [
        ("intermediate", {"upscore2", "upscore_pool4"}),
        ("none", set()),
        ("all", {"upscore2", "upscore_pool4", "upscore4"}),
        (("upscore_pool4",), {"upscore_pool4"}),
    ],
)
def test_only_learned_upsampling_has_a_gradient(choice, learned):
    model = toy_model("fcn8s", learned_upsampling=choice)
    params = random_parameters(model, 0)
    images = np.random.default_rng(0).normal(size=(1, 21, 18, 3)).astype(np.float32)

    def objective(params):
        return jnp.sum(jnp.sin(model.apply({"params": params}, images)))

    gradient = jax.jit(jax.grad(objective))(params)
    moved = {name for name, leaves in gradient.items() if np.asarray(leaves["kernel"]).any()}
    assert moved == learned | {n for n in params if not n.startswith("up")}
    assert set(model.frozen_layers) == {"upscore2", "upscore_pool4", "upscore4"} - learned


def test_frozen_layers_have_no_gradient_neither_kernels_nor_biases():
    model = toy_model("fcn16s", num_classes={"a": 3, "b": 2}, freeze=("m*", "score_fr_a"))
    fixed = {"upscore8_a", "upscore8_b"}  # not learned
    assert set(model.frozen_layers) == {"middle", "score_fr_a", *fixed}
    params = random_parameters(model, 0)
    assert set(model.parameter_layers) == set(params)
    images = np.random.default_rng(0).normal(size=(1, 21, 18, 3)).astype(np.float32)

    def objective(params):
        logits = model.apply({"params": params}, images)
        return sum(jnp.sum(jnp.sin(value)) for value in logits.values())

    gradient = jax.jit(jax.grad(objective))(params)
    for layer, leaves in gradient.items():
        for name, leaf in leaves.items():
            assert np.asarray(leaf).any() == (layer not in model.frozen_layers), (layer, name)


def test_dropout_only_in_training():
    model = fcn_jax.create_model("fcn32s", backbone=backbone_of_two, num_classes=3, fc_width=64)
    params = {"params": random_parameters(model, 0)}
    images = np.random.default_rng(0).normal(size=(1, 6, 7, 3)).astype(np.float32)

    @jax.jit
    def run(seed):
        forward = functools.partial(model.apply, params, images, return_maps=True)
        _, still = forward()
        return forward(train=True, rngs={"dropout": jax.random.key(seed)}), still

    ((one, maps), still), ((two, _), _), ((again, _), _) = run(0), run(1), run(0)
    np.testing.assert_array_equal(one, again)
    assert np.abs(one - two).max() > 0
    full, dropped = np.asarray(still["top"]), np.asarray(maps["top"])
    kept = dropped != 0
    np.testing.assert_allclose(dropped[kept], 2 * full[kept], rtol=1e-5)  # scaled by 1 / 0.5
    assert kept[full > 0].mean() == pytest.approx(0.5, abs=0.1)
    np.testing.assert_array_equal(maps["stem"], still["stem"])


def backbone_of_two(padding, width, fc_width):
    del padding, width
    return Backbone(
        layers=(
            Conv("stem", 8, Window(4, stride=2, pad=1)),
            Conv("top", fc_width, Window(1), dropout=True),
        )
    )


# ======================================================================== tables that are refused


def one_layer(name="top", window=None, **options):
    return Conv(name, 4, window or Window(1), **options)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (
            Backbone((one_layer("stem"), one_layer())),
            "needs 1 maps to skip from, the backbone names n",
        ),
        (
            Backbone((one_layer("stem"), one_layer()), skips=("pool4",)),
            "no map 'pool4' to skip from; it has stem, top",
        ),
        (
            Backbone((one_layer("stem"), one_layer()), skips=("stem",)),
            "upscore2 would upsample from stride 1 to 1",
        ),
        (
            Backbone((one_layer("top", source="stem"), one_layer("stem"))),
            "top reads 'stem', which is no layer before it; there are none",
        ),
        (Backbone((one_layer(), one_layer())), "two layers called 'top'"),
        (
            Backbone(
                (
                    one_layer("a", Window(3, pad=1)),
                    one_layer("b", Window(2, stride=2), source="a"),
                    Concat("both", ("a", "b")),
                )
            ),
            "the maps of both do not lie over each other",
        ),
        (
            # Cells of 3 pixels whose centres lie between the pixels.
            Backbone((one_layer("top", Window(4, stride=3)),)),
            "no whole number",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_table_that_cannot_work_is_refused_at_once(table, message):
    net = "fcn32s" if not table.skips and "skip" not in message else "fcn16s"
    with pytest.raises(ValueError, match=message):
        fcn_jax.create_model(net, backbone=lambda padding, width, fc_width: table)


def test_scores_that_do_not_cover_the_image_are_refused():
    def valid(padding, width, fc_width):
        return Backbone((Conv("stem", 4, Window(2, stride=2)), Conv("top", fc_width, Window(5))))

    model = fcn_jax.create_model("fcn32s", backbone=valid, fc_width=4)
    with pytest.raises(ValueError, match="do not cover an image of 20x20"):
        jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 20, 20, 3)))


def test_a_classifier_fills_up_images_smaller_than_it_takes():
    model = small_model("classifier")
    assert model.smallest_image == 193  # 6 * 32 + 1: seven cells of pool5, rounded up
    params = abstract_params(model)
    for width, cells in ((1, 1), (192, 1), (193, 1), (224, 1), (225, 2)):
        images = jax.ShapeDtypeStruct((1, 300, width, 3), jnp.float32)
        assert jax.eval_shape(model.apply, {"params": params}, images).shape == (1, 4, cells, 4)


def test_an_image_too_small_for_the_backbone_is_refused():
    def valid(padding, width, fc_width):
        del padding, width
        return Backbone((Conv("stem", 4, Window(9, stride=2)), Conv("top", fc_width, Window(3))))

    model = fcn_jax.create_model("fcn32s", backbone=valid)
    images = jax.ShapeDtypeStruct((1, 40, 12, 3), jnp.float32)
    with pytest.raises(ValueError, match=r"40x12 pixels are too small .*at least 13 pixels a side"):
        jax.eval_shape(model.init, jax.random.key(0), images)


# ======================================================================== errors


@pytest.mark.usefixtures("unchecked_annotations")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "fcn9s"}, "unknown model 'fcn9s'; choose one of fcn32s, fcn16s, fcn8s"),
        ({"backbone": "vgg"}, "unknown backbone 'vgg'; choose one of .*vgg16"),
        ({"padding": "valid"}, "unknown padding 'valid'; choose one of reference, same, native"),
        ({"padding": "native"}, "too little border to score every pixel; take 'same' or"),
        ({"num_classes": 0}, "num_classes must be from 1 to 255"),
        ({"num_classes": 256}, "num_classes must be from 1 to 255"),
        ({"num_classes": {"sem": 33, "geo": 256}}, "num_classes must be from 1 to 255"),
        ({"num_classes": {}}, "num_classes must be from 1 to 255"),
        ({"name": "classifier", "num_classes": 0}, "num_classes must be positive"),
        ({"inputs": {"color": 3, "hha": 0}}, "inputs must be positive"),
        ({"num_classes": 2.5}, "cannot be interpreted as an integer"),
        ({"width": 0.0}, "must be positive"),
        ({"fc_width": 0}, "must be positive"),
        ({"dropout": 1.0}, r"dropout must be in \[0, 1\)"),
        ({"learned_upsampling": "last"}, "unknown learned_upsampling 'last'"),
        ({"freeze": ("conv1_*", "conv9_*")}, r"no layer matches 'conv9_\*' to .* conv1_1, conv1_2"),
        ({"learned_upsampling": ("upscore",)}, "fcn8s has no transposed convolution 'upscore'"),
    ],
)
def test_arguments_are_checked(arguments, message):
    with pytest.raises((ValueError, TypeError), match=message):
        fcn_jax.create_model(**{"name": "fcn8s", **arguments})


@pytest.mark.usefixtures("unchecked_annotations")
@pytest.mark.parametrize(
    ("images", "message"),
    [
        (np.zeros((1, 8, 8, 3), np.uint8), "floating point and normalised, got uint8"),
        (np.zeros((8, 8, 3), np.float32), r"\(8, 8, 3\); add a batch axis"),
        ({"hha": np.zeros((1, 8, 8, 3), np.float32)}, "reads image, it was given hha"),
    ],
)
def test_images_are_checked(images, message):
    model = small_model("fcn32s")
    with pytest.raises(ValueError, match=message):
        model.init(jax.random.key(0), images)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"color": (1, 8, 8, 3)}, "reads color, hha, it was given color"),
        ({"color": (1, 8, 8, 3), "hha": (1, 8, 9, 3)}, "one batch, height and width, got .*8, 9"),
        ({"color": (1, 8, 8, 3), "hha": (2, 8, 8, 3)}, "one batch, height and width"),
    ],
)
def test_inputs_are_checked(sizes, message):
    model = small_model("fcn32s", inputs={"color": 3, "hha": 3})
    images = {name: np.zeros(shape, np.float32) for name, shape in sizes.items()}
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(model.init, jax.random.key(0), images)


# ======================================================================== the package


def test_importing_the_package_is_light():
    """Beyond jax, flax and numpy (flax itself brings absl and rich) nothing heavy is imported."""
    heavy = {"tensorflow_datasets", "tensorflow", "grain", "orbax", "optax", "absl", "torch"}
    heavy |= {"ml_collections", "matplotlib", "rich", "tensorboardX", "scipy"}
    code = (
        "import sys, jax, flax.linen, numpy; before = set(sys.modules); import fcn_jax; "
        "print(*{name.partition('.')[0] for name in set(sys.modules) - before})"
    )
    result = subprocess.run(
        [sys.executable, "-c", code],
        check=True,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
    )
    added = set(result.stdout.split())
    assert "fcn_jax" in added
    assert added.isdisjoint(heavy)


@pytest.mark.slow
def test_a_large_kernel_that_is_drawn_tap_by_tap_is_he_normal():
    shape = (3, 3, 1024, 4096)
    assert math.prod(shape) > 2**25
    kernel = np.asarray(he_normal(jax.random.key(0), shape)) * math.sqrt(9 * 1024 / 2)
    assert kernel.shape == shape
    assert abs(kernel.std() - 1) < 1e-3
    assert abs(kernel.mean()) < 1e-3
    taps = kernel.reshape(9, -1)
    assert np.abs(np.corrcoef(taps) - np.eye(9)).max() < 5e-3
