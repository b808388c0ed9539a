"""AlexNet, GoogLeNet, two heads and late fusion beside PyTorch's, and their operations alone.

PyTorch computes in float64; every parameter has a random value.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import numpy as np
import pytest
from flax import linen as nn
from random_parameters import random_parameters
from test_parity import BOUND, QUICK_COMPILATION, assert_same_tree, flat, relative_error

import fcn_jax
import fcn_jax.weights
from fcn_jax import ops
from fcn_jax.alignment import Window
from fcn_jax.networks import abstract_params

reference = pytest.importorskip("torch_reference_family")
torch = reference.torch
F = torch.nn.functional

pytestmark = pytest.mark.usefixtures("_exact", "_one_torch_thread")


@pytest.fixture
def _exact():
    """Accelerators round the factors of matrix products unless told otherwise."""
    with jax.default_matmul_precision("highest"):
        yield


@pytest.fixture
def _one_torch_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


# ======================================================================== single operations


def assert_same_function(ours, theirs, *arrays, to_torch, to_ours) -> None:
    """Values and all gradients of a function of arrays: ours in float32, theirs in float64."""
    shape = jax.eval_shape(ours, *arrays).shape
    cotangent = np.random.default_rng(7).normal(size=shape).astype(np.float32)

    @functools.partial(jax.jit, compiler_options=QUICK_COMPILATION)
    def evaluate(cotangent, *arrays):
        value, pull_back = jax.vjp(ours, *arrays)
        return value, pull_back(cotangent)

    value, gradients = evaluate(cotangent, *arrays)
    tensors = [
        convert(array).double().requires_grad_()
        for convert, array in zip(to_torch, arrays, strict=True)
    ]
    truth = theirs(*tensors)
    truth.backward(reference.nchw(cotangent).double())
    assert relative_error(value, reference.nhwc(truth)) < BOUND
    for gradient, tensor, convert in zip(gradients, tensors, to_ours, strict=True):
        assert relative_error(gradient, convert(tensor.grad)) < BOUND


MAP = {"to_torch": (reference.nchw,), "to_ours": (reference.nhwc,)}


@pytest.mark.parametrize("scale", [1, 64, 3000])
@pytest.mark.parametrize("channels", [1, 2, 4, 5, 17])
def test_local_response_norm(channels, scale):
    """Caffe divides alpha by the size, and so does PyTorch; the sum is of 1 + alpha / 5 * x^2."""
    x = np.random.default_rng(channels).normal(0, scale, (2, 4, 3, channels)).astype(np.float32)
    assert_same_function(
        lambda x: ops.local_response_norm(x, 5, 1e-4, 0.75),
        torch.nn.LocalResponseNorm(5, alpha=1e-4, beta=0.75, k=1),
        x,
        **MAP,
    )


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 7])
def test_local_response_norm_of_other_sizes(size):
    x = np.random.default_rng(size).normal(0, 3, (2, 3, 3, 8)).astype(np.float32)
    assert_same_function(
        lambda x: ops.local_response_norm(x, size, 0.02, 0.6),
        torch.nn.LocalResponseNorm(size, alpha=0.02, beta=0.6, k=1),
        x,
        **MAP,
    )


# Kernel, stride, padding, groups: all that the trunks have.
CONVOLUTIONS = (
    *((11, 4, pad, 1) for pad in (0, 2, 5, 100)),
    *((7, 2, pad, 1) for pad in (3, 100)),
    *((7, 1, pad, 1) for pad in (0, 3)),
    *((6, 1, pad, 1) for pad in (0, 3)),
    *((5, 1, 2, groups) for groups in (1, 2)),
    *((3, 1, 1, groups) for groups in (1, 2, 4)),
    (3, 1, 100, 1),
    (3, 2, 1, 2),
    (1, 1, 0, 1),
    (1, 1, 0, 2),
)


@pytest.mark.parametrize("window", CONVOLUTIONS, ids=str)
def test_convolution(window):
    """As the networks call it: Flax's layer on our function."""
    kernel_size, stride, pad, groups = window
    rng = np.random.default_rng(kernel_size)
    x = rng.normal(size=(2, 13, 15, 4)).astype(np.float32)
    kernel = rng.normal(size=(kernel_size, kernel_size, 4 // groups, 8)).astype(np.float32)
    bias = rng.normal(size=8).astype(np.float32)
    layer = nn.Conv(
        8,
        (kernel_size, kernel_size),
        strides=stride,
        padding=pad,
        feature_group_count=groups,
        conv_general_dilated=ops.convolution,
    )
    assert_same_function(
        lambda x, k, b: layer.apply({"params": {"kernel": k, "bias": b}}, x),
        lambda x, k, b: F.conv2d(x, k, b, stride=stride, padding=pad, groups=groups),
        x,
        kernel,
        bias,
        to_torch=(
            reference.nchw,
            lambda k: torch.from_numpy(k.transpose(3, 2, 0, 1).copy()),
            torch.from_numpy,
        ),
        to_ours=(reference.nhwc, lambda k: k.numpy().transpose(2, 3, 1, 0), lambda b: b.numpy()),
    )


POOLINGS = ((3, 2, 0), (3, 2, 1), (3, 1, 1), (2, 2, 0))


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("window", POOLINGS, ids=str)
@pytest.mark.parametrize("size", [(1, 1), (3, 4), (4, 3), (7, 10), (13, 8)], ids=str)
def test_ceil_max_pooling(size, window, ties):
    """Of equal values in a window the first takes the gradient, in both."""
    kernel, stride, pad = window
    rng = np.random.default_rng(sum(size))
    x = rng.normal(-3, 1, (2, *size, 3)).astype(np.float32)
    if ties:
        x = rng.integers(-2, 1, x.shape).astype(np.float32)
    if (min(size), kernel, pad) == (1, 3, 0):  # no window even begins
        with pytest.raises(ValueError, match="too small"):
            ops.max_pool(x, Window(kernel, stride, pad, ceil=True))
        with pytest.raises(RuntimeError, match="too small"):
            F.max_pool2d(reference.nchw(x), kernel, stride, pad, ceil_mode=True)
        return
    assert_same_function(
        lambda x: ops.max_pool(x, Window(kernel, stride, pad, ceil=True)),
        lambda x: F.max_pool2d(x, kernel, stride, pad, ceil_mode=True),
        x,
        **MAP,
    )


@pytest.mark.parametrize("kernel", [1, 2, 7])
def test_average_pooling(kernel):
    x = np.random.default_rng(kernel).normal(size=(2, 9, 8, 3)).astype(np.float32)
    assert_same_function(
        lambda x: ops.average_pool(x, Window(kernel)),
        lambda x: F.avg_pool2d(x, kernel, 1),
        x,
        **MAP,
    )


@pytest.mark.parametrize("window", [Window(2, pad=1), Window(2, stride=2, ceil=True)])
def test_average_pooling_of_padding_is_refused(window):
    with pytest.raises(ValueError, match="average pooling has no padding"):
        ops.average_pool(np.zeros((1, 4, 4, 1), np.float32), window)


# ======================================================================== networks


@dataclasses.dataclass(frozen=True)
class Case:
    """A network; heads and streams as (name, number) pairs, none for a single one without name."""

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
        """PyTorch's layers, its images by stream, its logits by head."""
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
SIZES = ((1, 1), (33, 47), (101, 75))
# GoogLeNet takes long to compile.
VALUES = [
    (name, size)
    for name in CASES
    for number, size in enumerate(SIZES)
    if "googlenet" not in name or number in ((2,) if "32s" in name else (0, 1))
]


def assert_same_maps(case: Case, padding: str, params: Any, images: Any, ours: Any) -> None:
    logits, maps = ours
    with torch.no_grad():
        layers, _, true_logits = case.truth(padding, params, images)
    truth = {**layers.maps, **{f"logits{head}": value for head, value in true_logits.items()}}
    truth = {name: reference.nhwc(value) for name, value in truth.items()}
    heads = logits if isinstance(logits, dict) else {"": logits}
    assert_same_tree({**maps, **{f"logits{head}": v for head, v in heads.items()}}, truth)


@pytest.mark.parametrize("padding", ["reference", "same"])
@pytest.mark.parametrize(("name", "size"), VALUES, ids=lambda v: v if isinstance(v, str) else "x")
def test_every_map(name, size, padding):
    case = CASES[name]
    model = case.model(padding)
    params, images = random_parameters(model, seed=0), case.images(size, seed=0)
    forward = functools.partial(model.apply, return_maps=True)
    ours = jax.jit(forward, compiler_options=QUICK_COMPILATION)({"params": params}, images)
    assert_same_maps(case, padding, params, images, ours)


GRADIENTS = [
    ("alexnet_32s", "reference", (33, 47)),
    ("alexnet_16s", "same", (101, 75)),
    ("googlenet_8s", "same", (33, 47)),
    ("two_heads_8s", "same", (33, 47)),
    ("two_heads_16s", "reference", (1, 1)),
    ("late_fusion_32s", "reference", (33, 47)),
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

    @functools.partial(jax.jit, compiler_options=QUICK_COMPILATION)
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
    """Ours from the file we wrote; PyTorch's from what PyTorch itself reads of it, where it can."""
    case = CASES[name]
    model = case.model("same")
    params, images = random_parameters(model, seed=3), case.images((33, 47), seed=3)
    fcn_jax.weights.save(tmp_path / "net", params, kind)
    loaded = fcn_jax.weights.load(tmp_path / "net")
    ours, _ = fcn_jax.weights.transplant(abstract_params(model), loaded, strict=True)
    if kind == "pytorch-fcn":
        state = torch.load(tmp_path / "net", weights_only=True)
        params = from_state_dict(state)
    forward = functools.partial(model.apply, return_maps=True)
    result = jax.jit(forward, compiler_options=QUICK_COMPILATION)({"params": ours}, images)
    assert_same_maps(case, "same", params, images, result)


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
    """The parameters with negative biases in the trunk: the wide empty border, constant and all
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
