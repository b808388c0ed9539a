"""AlexNet, GoogLeNet, two heads and late fusion beside PyTorch's.

PyTorch computes in float64; every parameter has a random value.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import numpy as np
import pytest
from random_parameters import random_parameters
from test_parity import BOUND, assert_same_tree, flat, relative_error

import fcn_jax
import fcn_jax.weights
from fcn_jax.models.fcn import abstract_params

reference = pytest.importorskip("torch_reference_family")
torch = reference.torch

pytestmark = pytest.mark.usefixtures("exact_products", "one_torch_thread")


@dataclasses.dataclass(frozen=True)
class Case:
    """A network; heads and inputs as (name, number) pairs, none for a single one without name."""

    net: str
    backbone: str
    heads: tuple[tuple[str, int], ...] = ()
    streams: tuple[tuple[str, int], ...] = ()

    def model(self, padding: str, **options: Any) -> fcn_jax.FCN:
        arguments = {"num_classes": dict(self.heads) or 5, "inputs": dict(self.streams) or 3}
        # With a single channel, as GoogLeNet's narrowest branches have soon, whole maps die.
        size = {"width": 1 / 4 if self.backbone == "googlenet" else 1 / 16, "fc_width": 24}
        return fcn_jax.create_model(
            self.net,
            backbone=self.backbone,
            padding=padding,
            learned_upsampling="all",
            **{**size, **arguments, **options},
        )

    def images(self, size: tuple[int, int], seed: int, batch: int = 2) -> Any:
        rng = np.random.default_rng(seed)
        images = {
            name: rng.normal(0, 64, (batch, *size, channels)).astype(np.float32)
            for name, channels in self.streams or (("", 3),)
        }
        return images if self.streams else images[""]

    def truth(self, padding: str, params: Any, images: Any) -> tuple[Any, Any, Any]:
        """PyTorch's layers, its images by input, its logits by head."""
        layers = reference.Layers(params)
        tensors = {
            name: reference.nchw(image).double().requires_grad_()
            for name, image in (images if self.streams else {"": images}).items()
        }
        logits = reference.forward(
            layers,
            tensors,
            backbone=self.backbone,
            padding=padding,
            net=self.net,
            heads=tuple(name for name, _ in self.heads) or ("",),
        )
        assert layers.used == set(params)
        return layers, tensors, logits


SIFT_FLOW = (("sem", 5), ("geo", 3))
NYUD = (("color", 3), ("hha", 3))
CASES = {
    "alexnet_32s": Case("fcn32s", "alexnet"),
    "alexnet_16s": Case("fcn16s", "alexnet"),
    "googlenet_32s": Case("fcn32s", "googlenet"),
    "googlenet_8s": Case("fcn8s", "googlenet"),
    "two_heads_16s": Case("fcn16s", "vgg11", heads=SIFT_FLOW),
    "two_heads_8s": Case("fcn8s", "vgg11", heads=SIFT_FLOW),
    "late_fusion_32s": Case("fcn32s", "vgg11", streams=NYUD),
    "late_fusion_16s": Case("fcn16s", "vgg11", streams=NYUD),
    "late_fusion_of_two_alexnets_with_two_heads": Case(
        "fcn16s", "alexnet", heads=SIFT_FLOW, streams=(("color", 3), ("depth", 1))
    ),
}
# Compiling is nearly all the time. Where maps are cropped does not depend on the size.
SIZES = {
    "alexnet_32s": [(1, 1), (33, 47), (101, 75)],
    "alexnet_16s": [(101, 75)],
    "googlenet_32s": [(101, 75)],
    "googlenet_8s": [(33, 47)],
    "two_heads_16s": [(1, 1)],
    "two_heads_8s": [(101, 75)],
    "late_fusion_32s": [(33, 47)],
    "late_fusion_16s": [(101, 75)],
    "late_fusion_of_two_alexnets_with_two_heads": [(33, 47)],
}


def assert_same_maps(case: Case, padding: str, params: Any, images: Any, ours: Any) -> None:
    logits, maps = ours
    with torch.no_grad():
        layers, _, true_logits = case.truth(padding, params, images)
    truth = {**layers.maps, **{f"logits{head}": value for head, value in true_logits.items()}}
    truth = {name: reference.nhwc(value) for name, value in truth.items()}
    heads = logits if isinstance(logits, dict) else {"": logits}
    assert_same_tree({**maps, **{f"logits{head}": v for head, v in heads.items()}}, truth)


@pytest.mark.parametrize("padding", ["reference", "same"])
@pytest.mark.parametrize(
    ("name", "size"), [(name, size) for name, sizes in SIZES.items() for size in sizes], ids=str
)
def test_every_map(name, size, padding):
    case = CASES[name]
    model = case.model(padding)
    params, images = random_parameters(model, seed=0), case.images(size, seed=0)
    forward = functools.partial(model.apply, return_maps=True)
    ours = jax.jit(forward)({"params": params}, images)
    assert_same_maps(case, padding, params, images, ours)


GRADIENTS = [
    ("alexnet_32s", "reference", (33, 47)),
    ("alexnet_16s", "same", (101, 75)),
    ("googlenet_8s", "same", (33, 47)),
    ("two_heads_8s", "same", (33, 47)),
    ("two_heads_16s", "reference", (1, 1)),
    ("late_fusion_16s", "same", (101, 75)),
]


@pytest.mark.parametrize(("name", "padding", "size"), GRADIENTS, ids=str)
def test_every_gradient(name, padding, size):
    case = CASES[name]
    model = case.model(padding)
    rng = np.random.default_rng(10)
    cotangent = {
        head: rng.normal(size=(2, *size, classes)).astype(np.float32)
        for head, classes in case.heads or (("", 5),)
    }

    @jax.jit
    def gradients_of(params, images, cotangent):
        _, pull_back = jax.vjp(lambda p, x: model.apply({"params": p}, x), params, images)
        param_gradients, image_gradient = pull_back(cotangent if case.heads else cotangent[""])
        image_gradient = image_gradient if case.streams else {"": image_gradient}
        return flat(param_gradients), image_gradient

    # Where a ReLU's value is at its kink, but for rounding, the gradient is not defined. A wrong
    # gradient is wrong whatever the values, so new ones are drawn.
    for seed in (1, 2, 3):
        params, images = random_parameters(model, seed), case.images(size, seed)
        if padding == "reference":
            params = without_ties_in_the_border(model, params)
        ours, our_images = gradients_of(params, images, cotangent)
        layers, tensors, logits = case.truth(padding, params, images)
        torch.autograd.backward(
            list(logits.values()),
            [reference.nchw(cotangent[head]).double() for head in logits],
        )
        truth = layers.gradients()
        true_images = {stream: reference.nhwc(tensor.grad) for stream, tensor in tensors.items()}
        ours = {**ours, **{f"image{stream}": value for stream, value in our_images.items()}}
        truth |= {f"image{stream}": value for stream, value in true_images.items()}
        assert set(ours) == set(truth)
        if all(relative_error(ours[name], truth[name]) < BOUND for name in truth):
            break
    assert_same_tree(ours, truth)


@pytest.mark.parametrize("kind", ["npz", "safetensors", "pytorch-fcn"])
@pytest.mark.parametrize(
    "name", ["alexnet_32s", "googlenet_32s", "two_heads_16s", "late_fusion_16s"]
)
def test_a_network_carried_over_by_a_file(name, kind, tmp_path):
    """We read what we wrote, and so does PyTorch where it can: the same bits in the same places."""
    model = CASES[name].model("same")
    params = random_parameters(model, seed=3)
    fcn_jax.weights.save(tmp_path / "net", params, kind)
    loaded = fcn_jax.weights.load(tmp_path / "net")
    read = [fcn_jax.weights.transplant(abstract_params(model), loaded, strict=True)[0]]
    if kind == "pytorch-fcn":
        read.append(from_state_dict(torch.load(tmp_path / "net", weights_only=True)))
    for ours in map(flat, read):
        assert set(ours) == set(flat(params))
        for path, values in flat(params).items():
            np.testing.assert_array_equal(ours[path], values, err_msg=path)


def from_state_dict(state):
    """PyTorch's state dict as our tree."""
    tree: dict[str, dict[str, np.ndarray]] = {}
    for name, tensor in state.items():
        layer, _, leaf = name.rpartition(".")
        axes = (2, 3, 0, 1) if layer.startswith("up") else (2, 3, 1, 0)
        values = tensor.numpy()
        tree.setdefault(layer, {})["kernel" if leaf == "weight" else "bias"] = (
            values.transpose(axes) if leaf == "weight" else values
        )
    return tree


def without_ties_in_the_border(model, params):
    """The parameters with negative biases in the backbone: the wide empty border, constant and all
    ties otherwise, is then exactly 0 after every ReLU and sends no gradient back."""
    kept = (*model.score_layers, *(name for name in params if name.startswith("fc")))
    return {
        layer: leaves if layer in kept else {**leaves, "bias": -np.abs(leaves["bias"])}
        for layer, leaves in params.items()
    }


@pytest.mark.parametrize(
    ("name", "padding"), [("alexnet_32s", "same"), ("googlenet_32s", "reference")]
)
def test_full_width_at_the_papers_image_size(name, padding):
    case = CASES[name]
    model = case.model(padding, width=1.0, fc_width=4096, num_classes=21)
    params, images = random_parameters(model, 0), case.images((375, 500), seed=0, batch=1)
    forward = jax.jit(functools.partial(model.apply, return_maps=True))
    assert_same_maps(case, padding, params, images, forward({"params": params}, images))
