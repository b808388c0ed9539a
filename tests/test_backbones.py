"""What every backbone promises with every decoder and padding, those of one's own included.

Also the published tables of the backbones, written out by hand.
"""

from __future__ import annotations

import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy_backbones
from random_parameters import abstract_params, random_parameters

import fcn_jax
from fcn_jax import ops
from fcn_jax.geometry import PIXELS, compose, crop_offset
from fcn_jax.models.backbones import BACKBONES, Conv
from fcn_jax.models.decoders import DECODERS, SEGMENTERS, backbone_geometry
from fcn_jax.models.fcn import (
    example_images,
    initial_params,
    multiply_adds,
)

TOYS = {name: getattr(toy_backbones, name) for name in ("plain", "forked", "residual")}
TABLES = {**BACKBONES, **TOYS}
TRACED = [name for name in TABLES if name not in ("resnet34", "resnet50", "resnet101")]
TRACED.remove("resnet101_dilated")  # they differ from the others in the number of blocks alone
CROPPED = [net for net in SEGMENTERS if not DECODERS[net].interpolate]


def has_skips(net, backbone):
    """Whether a backbone names as many maps to skip from as a network needs."""
    return len(DECODERS[net].skips) <= len(TABLES[backbone]("same", 1.0, 6).skips)


PADDINGS = ("same", "reference")
INPUTS, HEADS = {"color": 3, "hha": 2}, {"sem": 5, "geo": 3}


@pytest.fixture(autouse=True)
def _plain():
    """Nothing here depends on how an operation is computed, and this form traces faster."""
    with ops.plain_forms():
        yield


# GoogLeNet takes a third of a second to trace, the others a tenth of it.
SIZES = ((1, 1), (33, 2), (128, 97))
FEW_SIZES = ((1, 64),)


@functools.cache
def small_model(name, backbone, padding, several=False):
    return fcn_jax.create_model(
        name,
        backbone=TABLES[backbone],
        padding=padding,
        num_classes=HEADS if several else 4,
        inputs=INPUTS if several else 3,
        width=1 / 32,
        fc_width=6,
    )


@functools.cache
def parameter_shapes(model):
    return jax.tree.map(lambda leaf: leaf.shape, abstract_params(model))


@functools.cache
def output_size(model, height, width):
    """Rows and columns of the logits."""
    images = jax.ShapeDtypeStruct((2, height, width, 3), jnp.float32)
    logits = jax.eval_shape(model.apply, {"params": abstract_params(model)}, images)
    assert logits.shape[::3] == (2, 4)
    assert logits.dtype == jnp.float32
    return logits.shape[1:3]


def convolutions(model):
    return [layer for layer in model.backbone.layers if isinstance(layer, Conv)]


# ======================================================================== promises


@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize(
    ("backbone", "net"),
    # At-once is fcn8s, scaled; the others' sizes follow from the windows, as the next test shows.
    [(table, "fcn8s") for table in TRACED]
    + [(table, net) for table in ("vgg16", "forked") for net in ("fcn32s", "fcn16s")]
    + [("vgg16", "fcn2s"), ("alexnet", "fcn4s")],
)
def test_an_image_of_any_size_gives_logits_of_its_size(backbone, net, padding):
    model = small_model(net, backbone, padding)
    assert model.smallest_image == 1
    for size in FEW_SIZES if backbone.startswith(("googlenet", "resnet")) else SIZES:
        assert output_size(model, *size) == size


@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize(
    ("backbone", "net"),
    [row for row in itertools.product(TABLES, CROPPED) if has_skips(*reversed(row))],
)
def test_the_last_map_covers_every_size(backbone, net, padding):
    """The sizes between, by the windows alone: the last map covers the crop."""
    model = small_model(net, backbone, padding)
    alignment = model.alignment
    for size in range(1, 130):
        cells = {"": size}
        for layer in model.backbone.layers:
            sources = getattr(layer, "sources", (getattr(layer, "source", None),))
            before = {cells[name] if name else list(cells.values())[-1] for name in sources}
            assert len(before) == 1, layer.name  # maps that are concatenated or added have one size
            window = getattr(layer, "window", None)
            cells[layer.name] = window.output_size(before.pop()) if window else before.pop()
        last = list(cells.values())[-1]
        for skip in alignment.skips:
            up = alignment.transposed_windows[skip.upsample].cells(last)
            offset = alignment.crops[f"score_{skip.source}"]
            first = max(0, -offset)
            last = min(up, cells[skip.source] - offset) - first
        up = alignment.transposed_windows[alignment.final].cells(last)
        assert 0 <= alignment.crops[alignment.final] <= up - size, size


@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize("backbone", TABLES)
def test_the_scores_lie_over_the_image(backbone, padding):
    """Cell 0 of every map that is cropped lies over cell 0 of what it is cropped to."""
    finest = next(net for net in ("fcn2s", "fcn4s", "fcn8s") if has_skips(net, backbone))
    alignment = small_model(finest, backbone, padding).alignment
    current = "score_fr"
    for skip in alignment.skips:
        up = compose([alignment.transposed_windows[skip.upsample]], alignment.geometry[current])
        fine = alignment.geometry[skip.source]
        assert up.stride == fine.stride
        assert crop_offset(fine, up) == alignment.crops[f"score_{skip.source}"]
        current = f"fuse_{skip.source}"
    up = compose([alignment.transposed_windows[alignment.final]], alignment.geometry[current])
    assert up.stride == 1
    assert crop_offset(up, PIXELS) == alignment.crops[alignment.final]


REFUSED = {
    **{
        ("fcn_interpolated", f"{name}{end}"): "reaches beyond the image"
        for name in ("alexnet", "googlenet")
        for end in ("", "_torchvision")
    },
    ("classifier", "resnet50_dilated"): "has no classifier",
    **{
        (net, backbone): "maps to skip from"
        for net in DECODERS
        for backbone in TRACED
        if not has_skips(net, backbone)
    },
}
"""What does not go together."""


@pytest.mark.parametrize(
    ("backbone", "net"),
    # Every backbone with some decoders and every decoder with some backbones, as a network is built
    # of the two tables; and all pairs that are refused.
    [
        row
        for row in itertools.product(TRACED, DECODERS)
        if row[::-1] in REFUSED
        or row[0] in ("vgg16", *TOYS)
        or row[1] in ("fcn8s", "classifier", "fcn_interpolated")
    ],
)
def test_parameters_are_named_by_the_table(backbone, net):
    if (net, backbone) in REFUSED:
        with pytest.raises(ValueError, match=REFUSED[net, backbone]):
            small_model(net, backbone, "same")
        return
    model = small_model(net, backbone, "same" if DECODERS[net].interpolate else "reference")
    shapes = parameter_shapes(model)
    backbone = {layer.name for layer in convolutions(model)}
    assert set(shapes) == backbone | set(model.score_layers)
    for layer, leaves in shapes.items():
        expected = {"kernel"} if layer in model.upsampling_layers else {"kernel", "bias"}
        assert set(leaves) == expected, layer
    skips = model.backbone.skips[: len(DECODERS[net].skips)]
    if net == "classifier":
        assert model.score_layers == (model.backbone.classifier,)
        assert not model.upsampling_layers
    else:
        assert set(model.score_layers) - set(model.upsampling_layers) == {
            "score_fr",
            *(f"score_{name}" for name in skips),
        }
        assert len(model.upsampling_layers) == (net in CROPPED) + len(skips)


@pytest.mark.parametrize("backbone", ["vgg16", "alexnet", "googlenet", "forked", "residual"])
def test_inputs_and_heads_name_their_layers(backbone):
    model, plain = (small_model("fcn16s", backbone, "same", several) for several in (True, False))
    shapes, single = parameter_shapes(model), parameter_shapes(plain)
    expected = {}
    for layer, leaves in single.items():
        if layer in plain.upsampling_layers:
            names = {f"{layer}_{head}" for head in HEADS}
        elif layer in plain.score_layers:
            names = {f"{layer}_{head}{input_name}" for head in HEADS for input_name in INPUTS}
        else:
            names = {f"{layer}{input_name}" for input_name in INPUTS}
        expected |= dict.fromkeys(names, leaves)
    assert set(shapes) == set(expected)
    assert set(model.score_layers) == {n for n in expected if n.startswith(("score", "up"))}
    assert set(model.frozen_layers) < set(model.upsampling_layers)
    for layer, leaves in shapes.items():
        assert set(leaves) == set(expected[layer])
    first = convolutions(model)[0].name
    for input_name, channels in INPUTS.items():
        assert shapes[f"{first}{input_name}"]["kernel"][2] == channels
    for head, classes in HEADS.items():
        assert shapes[f"score_fr_{head}hha"]["bias"] == (classes,)
    images = example_images(model, 40, 50)
    logits = jax.eval_shape(model.apply, {"params": abstract_params(model)}, images)
    assert {name: value.shape for name, value in logits.items()} == {
        head: (1, 40, 50, classes) for head, classes in HEADS.items()
    }


@pytest.mark.parametrize(("backbone", "net"), [("googlenet", "fcn8s"), ("vgg11", "classifier")])
def test_initial_values_of_some_layers(backbone, net):
    """Of the score layers alone: zero, but for transposed convolutions, which interpolate."""
    model = small_model(net, backbone, None)
    names = [
        f"{layer}/{leaf}"
        for layer, leaves in parameter_shapes(model).items()
        for leaf in leaves
        if layer in model.score_layers
    ]
    values = initial_params(model, jax.random.key(0), names)
    assert set(values) == set(names)
    for name, value in values.items():
        if name.rpartition("/")[0] in model.upsampling_layers:
            np.testing.assert_array_equal(value, ops.bilinear_kernel(value.shape[0], 4))
        else:
            assert not np.asarray(value).any(), name


LEARNED = {"intermediate": slice(None, -1), "none": slice(0), "all": slice(None)}


@pytest.mark.parametrize("choice", LEARNED)
@pytest.mark.parametrize(
    ("backbone", "net"),
    [
        row
        for row in itertools.product(("vgg16", "alexnet", "forked"), CROPPED)
        if has_skips(*reversed(row))
    ],
)
def test_frozen_layers(backbone, net, choice):
    model = fcn_jax.create_model(
        net, backbone=TABLES[backbone], num_classes=HEADS, learned_upsampling=choice
    )
    names = list(model.alignment.transposed_windows)
    frozen = {f"{n}_{h}" for n in names if n not in names[LEARNED[choice]] for h in HEADS}
    assert set(model.frozen_layers) == frozen


# The published backbones' gradients are compared with PyTorch's; what is fixed is the decoder's.
@pytest.mark.parametrize("backbone", ["forked", "residual"])
def test_a_gradient_only_where_something_is_learned(backbone):
    """Of two branches, and layers with groups; test_networks has the other choices."""
    model = small_model("fcn8s", backbone, "same")
    # Positive biases keep the ReLUs open: with so few channels a layer may die altogether.
    params = jax.tree.map(np.abs, random_parameters(model, 0))
    images = np.random.default_rng(0).uniform(1, 2, (1, 35, 32, 3)).astype(np.float32)

    def objective(params):
        return jnp.sum(jnp.sin(model.apply({"params": params}, images)))

    gradient = jax.jit(jax.grad(objective))(params)
    moved = {name for name, leaves in gradient.items() if np.asarray(leaves["kernel"]).any()}
    assert moved == set(params) - set(model.frozen_layers)
    assert set(model.frozen_layers) == {model.alignment.final}


# ======================================================================== classifiers

# Side of the images that the classifier was trained on.
TRAINED = {
    **dict.fromkeys(("vgg11", "vgg13", "vgg16", "vgg19"), 224),
    "alexnet": 227,
    "alexnet_torchvision": 224,
    "googlenet": 224,
    "googlenet_torchvision": 224,
    "resnet18": 224,
}


@pytest.mark.parametrize("backbone", TRAINED)
def test_a_classifier_gives_one_score_at_its_training_size(backbone):
    """And one more for every 32 pixels."""
    model = small_model("classifier", backbone, None)
    size = TRAINED[backbone]
    assert output_size(model, size, size + 5 * 32) == (1, 6)


@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize("backbone", [name for name in TABLES if "dilated" not in name])
def test_a_classifier_of_any_padding(backbone, padding):
    """Its map at the smallest image, and its last layer's place over the image."""
    model = small_model("classifier", backbone, padding)
    if not backbone.startswith(("googlenet", "resnet")):
        assert min(output_size(model, model.smallest_image, 300)) >= 1
    pools = [layer.window for layer in model.backbone.classifier_pool]
    backbone = backbone_geometry(model.backbone.layers)[model.backbone.layers[-1].name]
    assert model.alignment.geometry[model.backbone.classifier] == compose(pools, backbone)


@pytest.mark.parametrize("backbone", ["vgg16", "googlenet", "resnet18", "forked"])
def test_maps_and_geometry_have_the_same_names(backbone):
    for net in ("classifier", "fcn8s"):
        model = small_model(net, backbone, "same")
        forward = functools.partial(model.apply, return_maps=True)
        images = example_images(model, 224, 224)
        _, maps = jax.eval_shape(forward, {"params": abstract_params(model)}, images)
        assert set(maps) == set(model.alignment.geometry)


# ======================================================================== published tables


def counts(model) -> dict[str, int]:
    """Numbers of parameters by layer."""
    return {
        layer: sum(math.prod(shape) for shape in leaves.values())
        for layer, leaves in parameter_shapes(model).items()
    }


def backbone_shapes(model) -> dict[str, tuple[int, ...]]:
    shapes = parameter_shapes(model)
    return {layer.name: shapes[layer.name]["kernel"] for layer in convolutions(model)}


ALEXNET = {
    "conv1": (11, 11, 3, 96),
    "conv2": (5, 5, 48, 256),
    "conv3": (3, 3, 256, 384),
    "conv4": (3, 3, 192, 384),
    "conv5": (3, 3, 192, 256),
    "fc6": (6, 6, 256, 4096),
    "fc7": (1, 1, 4096, 4096),
}
ALEXNET_TORCHVISION = {
    "conv1": (11, 11, 3, 64),
    "conv2": (5, 5, 64, 192),
    "conv3": (3, 3, 192, 384),
    "conv4": (3, 3, 384, 256),
    "conv5": (3, 3, 256, 256),
    "fc6": (6, 6, 256, 4096),
    "fc7": (1, 1, 4096, 4096),
}
# Kernel sizes and outputs by module, in the order of the table 1 of Szegedy et al. 2015.
INCEPTIONS = {
    "3a": (192, 64, 96, 128, 16, 32, 32),
    "3b": (256, 128, 128, 192, 32, 96, 64),
    "4a": (480, 192, 96, 208, 16, 48, 64),
    "4b": (512, 160, 112, 224, 24, 64, 64),
    "4c": (512, 128, 128, 256, 24, 64, 64),
    "4d": (512, 112, 144, 288, 32, 64, 64),
    "4e": (528, 256, 160, 320, 32, 128, 128),
    "5a": (832, 256, 160, 320, 32, 128, 128),
    "5b": (832, 384, 192, 384, 48, 128, 128),
}


def googlenet_table(five: int) -> dict[str, tuple[int, ...]]:
    table = {
        "conv1/7x7_s2": (7, 7, 3, 64),
        "conv2/3x3_reduce": (1, 1, 64, 64),
        "conv2/3x3": (3, 3, 64, 192),
    }
    for name, (inputs, one, reduce3, three, reduce5, large, projection) in INCEPTIONS.items():
        module = f"inception_{name}"
        table |= {
            f"{module}/1x1": (1, 1, inputs, one),
            f"{module}/3x3_reduce": (1, 1, inputs, reduce3),
            f"{module}/3x3": (3, 3, reduce3, three),
            f"{module}/5x5_reduce": (1, 1, inputs, reduce5),
            f"{module}/5x5": (five, five, reduce5, large),
            f"{module}/pool_proj": (1, 1, inputs, projection),
        }
    return table


@pytest.mark.parametrize(
    ("backbone", "table"),
    [
        ("alexnet", ALEXNET),
        ("alexnet_torchvision", ALEXNET_TORCHVISION),
        ("googlenet", googlenet_table(5)),
        ("googlenet_torchvision", googlenet_table(3)),
    ],
)
def test_layers_of_the_published_backbones(backbone, table):
    assert backbone_shapes(fcn_jax.create_model("fcn32s", backbone=backbone)) == table


@pytest.mark.parametrize(
    ("backbone", "convs"),
    [("vgg11", (1, 1, 2, 2, 2)), ("vgg13", (2, 2, 2, 2, 2)), ("vgg19", (2, 2, 4, 4, 4))],
)
def test_layers_of_vgg(backbone, convs):
    table, channels = {}, 3
    for stage, (number, features) in enumerate(zip(convs, (64, 128, 256, 512, 512), strict=True)):
        for index in range(number):
            table[f"conv{stage + 1}_{index + 1}"] = (3, 3, channels, features)
            channels = features
    table |= {"fc6": (7, 7, 512, 4096), "fc7": (1, 1, 4096, 4096)}
    assert backbone_shapes(fcn_jax.create_model("fcn32s", backbone=backbone)) == table


@pytest.mark.parametrize(
    ("backbone", "field", "offset"),
    [
        # 7 of conv1, 4 of the pool; then twice the stride for every 3x3 convolution. ResNet-18:
        # 11 + 8 * 4 + (8 + 16 * 3) + (16 + 32 * 3) + (32 + 64 * 3).
        ("resnet18", 435, 0),
        ("resnet34", 899, 0),
        ("resnet50", 427, 0),
        ("resnet101", 971, 0),
        # 91 of layer2, at stride 8; then a block that dilates by 1 and 5 by 2, one by 2 and 2 by 4,
        # and the head: 91 + 16 (1 + 10 + 2 + 8 + 1); with 17 blocks more 443 + 17 * 32.
        ("resnet50_dilated", 443, 0),
        ("resnet101_dilated", 987, 0),
    ],
)
def test_receptive_fields_of_resnets(backbone, field, offset):
    last = fcn_jax.create_model("fcn32s", backbone=backbone).alignment.geometry["score_fr"]
    stride = 8 if "dilated" in backbone else 32
    assert (last.receptive_field, last.stride, last.offset) == (field, stride, offset)


@pytest.mark.parametrize(
    ("backbone", "number"),
    [
        # torchvision's documentation: num_params of each classifier.
        ("vgg11", 132_863_336),
        ("vgg13", 133_047_848),
        ("vgg16", 138_357_544),
        ("vgg19", 143_667_240),
        ("alexnet_torchvision", 61_100_840),
        # Its batch normalisation has two numbers a channel, where we have a bias.
        (
            "googlenet_torchvision",
            6_624_904 - sum(shape[-1] for shape in googlenet_table(3).values()),
        ),
        # CaffeNet's and BVLC GoogLeNet's layers, summed by hand.
        ("alexnet", 60_965_224),
        ("googlenet", 6_998_552),
    ],
)
def test_parameters_of_the_classifiers(backbone, number):
    model = fcn_jax.create_model("classifier", backbone=backbone, num_classes=1000)
    assert sum(counts(model).values()) == number


@pytest.mark.parametrize(
    ("backbone", "field", "millions"),
    [("alexnet", 355, 57), ("vgg16", 404, 134), ("googlenet", 715, 6)],
)
def test_table_1_of_the_paper(backbone, field, millions):
    """Table 1 has 907 for GoogLeNet, with the classifier's average pooling: 715 + 6 * 32."""
    for padding in PADDINGS:
        model = fcn_jax.create_model("fcn32s", backbone=backbone, padding=padding)
        scores = model.alignment.geometry["score_fr"]
        assert (scores.receptive_field, scores.stride) == (field, 32)
    number = sum(n for layer, n in counts(model).items() if layer not in model.upsampling_layers)
    assert round(number / 1e6) == millions
    classifier = fcn_jax.create_model("classifier", backbone=backbone).alignment.geometry
    pooled = 907 if backbone == "googlenet" else field
    assert list(classifier.values())[-1].receptive_field == pooled


# ======================================================================== multiply-adds


@pytest.mark.parametrize(
    ("backbone", "side", "billions"),
    [
        # torchvision's documentation: GFLOPS (multiply-adds) of each classifier.
        ("vgg11", 224, 7.61),
        ("vgg13", 224, 11.31),
        ("vgg16", 224, 15.47),
        ("vgg19", 224, 19.63),
        ("alexnet_torchvision", 224, 0.71),
        ("googlenet_torchvision", 224, 1.50),
        ("resnet18", 224, 1.81),
        ("resnet50", 224, 4.09),
    ],
)
def test_multiply_adds_of_the_classifiers(backbone, side, billions):
    model = fcn_jax.create_model("classifier", backbone=backbone, num_classes=1000)
    assert round(multiply_adds(model, side, side) / 1e9, 2) == billions


def test_multiply_adds_by_hand():
    """Two heads, two inputs, skips, and sizes that are rounded up."""
    model = fcn_jax.create_model(
        "fcn16s",
        backbone=toy_backbones.plain,
        num_classes=HEADS,
        inputs=INPUTS,
        fc_width=6,
    )
    # 37x50 pixels; the pools give 19x25, 10x13, 5x7 and 3x4 cells.
    backbone = {
        input_name: 37 * 50 * 25 * channels * 8 + 19 * 25 * 9 * 8 * 16 + 3 * 4 * 9 * 16 * 6
        for input_name, channels in INPUTS.items()
    }
    scores = sum(len(INPUTS) * (3 * 4 * 6 + 5 * 7 * 16) * classes for classes in HEADS.values())
    # upscore2 reads score_fr, upscore8 the fused scores at stride 8.
    ups = sum((3 * 4 * 4**2 + 5 * 7 * 16**2) * classes**2 for classes in HEADS.values())
    assert multiply_adds(model, 37, 50) == sum(backbone.values()) + scores + ups
