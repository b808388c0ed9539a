"""Which network some weights belong to, told by their names and shapes."""

from __future__ import annotations

import functools

import numpy as np
import pytest
from random_parameters import abstract_params, random_parameters

import fcn_jax
from fcn_jax import weights
from fcn_jax.models.inputs import CAFFE, Inputs, Preprocessing
from fcn_jax.weights import identify

small = functools.partial(fcn_jax.create_model, width=1 / 16, fc_width=8)

NETWORKS = [
    {"name": "fcn8s"},
    {"name": "fcn16s", "backbone": "vgg19"},
    {"name": "fcn32s", "backbone": "vgg11", "num_classes": 5},
    {"name": "fcn32s", "backbone": "vgg13"},
    {"name": "fcn32s", "backbone": "alexnet"},
    {"name": "fcn8s", "backbone": "googlenet"},
    {"name": "fcn8s", "backbone": "resnet18"},
    {"name": "fcn_interpolated", "backbone": "resnet50_dilated"},
    {"name": "fcn32s", "num_classes": {"geo": 3, "sem": 33}},
    {"name": "fcn32s", "num_classes": 40, "inputs": {"color": 3, "hha": 3}},
    {"name": "fcn32s", "num_classes": 40, "inputs": 4},
    *(
        {"name": "classifier", "backbone": backbone, "num_classes": 1000}
        for backbone in (
            "vgg16",
            "alexnet_torchvision",
            "googlenet_torchvision",
            "googlenet",
            "resnet50",
        )
    ),
]


@pytest.mark.parametrize(
    "network", NETWORKS, ids=lambda network: "-".join(map(str, network.values()))
)
def test_weights_tell_their_network(monkeypatch, network):
    monkeypatch.setattr(identify, "abstract_params", abstract_params)  # traces each network once
    padding = {"classifier": "native", "fcn_interpolated": "same"}.get(network["name"], "reference")
    model = small(**network, padding=padding, learned_upsampling="none")
    params = random_parameters(model, 0)
    flat = weights.flatten(params)
    found = identify.network_of(dict(sorted(flat.items())))
    assert found == model
    back = weights.flatten(identify.params_of(flat, found))
    assert set(back) == set(flat)
    for name, value in flat.items():
        np.testing.assert_array_equal(back[name], value)


def test_the_scale_layers_of_the_published_network_tell_at_once():
    model = small("fcn8s_atonce", padding="reference", learned_upsampling="none")
    flat = weights.Weights(weights.flatten(random_parameters(model, 0)))
    assert identify.network_of(flat) != model
    flat.skipped = ("scale_pool3 (Scale, 1 arrays)", "scale_pool4 (Scale, 1 arrays)")
    assert identify.network_of(flat) == model
    assert identify.network_of(flat, "fcn8s") != model


def test_weights_without_conv_transposes_get_bilinear_ones():
    model = small("fcn32s", padding="reference", learned_upsampling="none")
    flat = weights.flatten(random_parameters(model, 0))
    del flat["upscore/kernel"]
    kernel = identify.params_of(flat, identify.network_of(flat))["upscore"]["kernel"]
    np.testing.assert_array_equal(kernel, fcn_jax.ops.bilinear_kernel(64, 21))
    del flat["fc7/bias"]
    with pytest.raises(ValueError, match="missing in the file: fc7/bias"):
        identify.params_of(flat, model)


def test_weights_of_no_network_are_refused():
    with pytest.raises(ValueError, match="the layers ip1 … are of none of the backbones vgg11"):
        identify.network_of({"ip1/kernel": np.ones((3, 2), np.float32)})
    model = small("fcn32s", padding="reference")
    flat = weights.flatten(random_parameters(model, 0))
    backbone = {name: value for name, value in flat.items() if name.startswith(("conv", "fc"))}
    with pytest.raises(ValueError, match="the backbone of vgg16 without score_fr or fc8; train"):
        identify.network_of(backbone)
    backbone = {name: value for name, value in backbone.items() if name.startswith("conv")}
    with pytest.raises(ValueError, match="backbone of vgg16 without fc6, fc7, score_fr or fc8; "):
        identify.network_of(backbone)


# ======================================================================== inputs

NYUD = {
    "image": Preprocessing(mean=(116.190, 97.203, 92.318)),
    "hha": Preprocessing("rgb", (132.431, 94.076, 118.477)),
    "depth": Preprocessing("rgb", (7.844,), (1.0,), log=True),
}


@pytest.mark.parametrize(
    ("network", "modality", "expected"),
    [
        (
            {"num_classes": 40, "inputs": {"color": 3, "hha": 3}},
            None,
            {"color": {"image": NYUD["image"]}, "hha": {"hha": NYUD["hha"]}},
        ),
        (
            {"num_classes": 40, "inputs": 4},
            None,
            {"image": {"image": NYUD["image"], "depth": NYUD["depth"]}},
        ),
        ({"num_classes": 40}, None, {"image": {"image": NYUD["image"]}}),
        ({"num_classes": 40}, "hha", {"image": {"hha": NYUD["hha"]}}),
        (
            {"num_classes": {"sem": 33, "geo": 3}},
            None,
            {"image": {"image": Preprocessing(mean=(114.578, 115.294, 108.353))}},
        ),
        ({}, None, {"image": {"image": CAFFE}}),
    ],
)
def test_published_networks_get_their_inputs(network, modality, expected):
    """Files of Caffe do not say what the networks read; their layers do."""
    model = small("fcn32s", **network)
    for given in (weights.Weights(), weights.Weights(inputs=Inputs.of(CAFFE))):
        assert identify.usual_inputs(given, model, modality) == Inputs.of(expected)


def test_what_a_file_says_of_its_inputs_comes_first():
    given = weights.Weights(inputs=Inputs.of(NYUD["hha"]))
    assert identify.usual_inputs(given, small("fcn32s", num_classes=40)) == given.inputs
    with pytest.raises(ValueError, match=r"reads \{'image': 4\} channels"):
        identify.usual_inputs(given, small("fcn32s", num_classes=40, inputs=4))
