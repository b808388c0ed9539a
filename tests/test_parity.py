"""Our networks beside PyTorch's (`benchmarks/torch_fcn.py`), with random values in every parameter.

PyTorch computes in float64 where it is quick enough: in float32 its own rounding reaches 1.4e-5
of a gradient, more than the bound (ours stays below 4e-6).
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
import pytest
from random_parameters import abstract_params, random_parameters

import fcn_jax
import fcn_jax.weights

torch_fcn = pytest.importorskip(
    "torch_fcn", reason="the parity tests need PyTorch: pip install -e .[parity]"
)
torch = torch_fcn.torch
nchw, nhwc = torch_fcn.nchw, torch_fcn.nhwc

BOUND = 1e-5
PADDINGS = torch_fcn.PADDINGS

pytestmark = pytest.mark.usefixtures("exact_products", "one_torch_thread")


def relative_error(ours, truth) -> float:
    ours, truth = np.asarray(ours), np.asarray(truth)
    assert ours.shape == truth.shape
    largest = np.abs(truth).max()
    assert largest > 0, "all zeros: the comparison would prove nothing"
    return float(np.abs(ours - truth).max() / largest)


def relative_errors(ours, truth) -> dict[str, float]:
    assert set(ours) == set(truth)
    return {name: relative_error(ours[name], truth[name]) for name in truth}


def assert_same_arrays(ours, truth) -> None:
    """Flat dictionaries: the same names, each array within the bound."""
    errors = relative_errors(ours, truth)
    assert max(errors.values()) < BOUND, sorted(errors.items(), key=lambda item: -item[1])[:5]


def flat(params) -> dict[str, Any]:
    return {f"{layer}/{name}": leaf for layer, d in params.items() for name, leaf in d.items()}


def by_name(value, prefix: str) -> dict[str, Any]:
    """One array or a dictionary of them, under names that begin alike."""
    values = value if isinstance(value, Mapping) else {"": value}
    return {f"{prefix}{name}": array for name, array in values.items()}


# ======================================================================== networks


@dataclasses.dataclass(frozen=True)
class Case:
    """A network; heads and inputs as (name, number) pairs, none for a single one without name."""

    net: str
    backbone: str = "vgg16"
    heads: tuple[tuple[str, int], ...] = ()
    inputs: tuple[tuple[str, int], ...] = ()

    @property
    def size(self) -> dict[str, Any]:
        # With a single channel, as GoogLeNet's narrowest branches have soon, whole maps die.
        return {"width": 1 / 4 if self.backbone == "googlenet" else 1 / 16, "fc_width": 24}

    def model(self, padding: str, **options: Any) -> fcn_jax.FCN:
        arguments = {
            "num_classes": dict(self.heads) or 5,
            "inputs": dict(self.inputs) or 3,
            **self.size,
            **options,
        }
        return fcn_jax.create_model(
            self.net,
            backbone=self.backbone,
            padding=padding,
            learned_upsampling="all",
            **arguments,
        )

    def torch_model(self, padding: str, **options: Any) -> Any:
        arguments = {"heads": dict(self.heads) or 5, "inputs": dict(self.inputs) or 3, **self.size}
        model = torch_fcn.TorchFCN(self.net, self.backbone, padding, **{**arguments, **options})
        return model.eval()

    def images(self, size: tuple[int, int], seed: int, batch: int = 2) -> Any:
        rng = np.random.default_rng(seed)
        images = {
            name: rng.normal(0, 64, (batch, *size, channels)).astype(np.float32)
            for name, channels in self.inputs or (("", 3),)
        }
        return images if self.inputs else images[""]

    def cotangent(self, size: tuple[int, int], seed: int) -> Any:
        rng = np.random.default_rng(seed + 10)
        values = {
            head: rng.normal(size=(2, *size, classes)).astype(np.float32)
            for head, classes in self.heads or (("", 5),)
        }
        return values if self.heads else values[""]


SIFT_FLOW = (("sem", 5), ("geo", 3))
NYUD = (("color", 3), ("hha", 3))
CASES = {
    **{net: Case(net) for net in torch_fcn.NETS},
    "alexnet_32s": Case("fcn32s", "alexnet"),
    "alexnet_16s": Case("fcn16s", "alexnet"),
    "googlenet_32s": Case("fcn32s", "googlenet"),
    "googlenet_8s": Case("fcn8s", "googlenet"),
    "two_heads_16s": Case("fcn16s", "vgg11", heads=SIFT_FLOW),
    "two_heads_8s": Case("fcn8s", "vgg11", heads=SIFT_FLOW),
    "late_fusion_32s": Case("fcn32s", "vgg11", inputs=NYUD),
    "late_fusion_16s": Case("fcn16s", "vgg11", inputs=NYUD),
    "late_fusion_of_two_alexnets_with_two_heads": Case(
        "fcn16s", "alexnet", heads=SIFT_FLOW, inputs=(("color", 3), ("depth", 1))
    ),
}
SIZES = ((1, 1), (33, 47), (101, 75))
LARGER = ("fcn8s_atonce", "alexnet_32s", "alexnet_16s", "googlenet_32s", "two_heads_8s")


def marked(quick, slow):
    """Compiling is nearly all the time, and where maps are cropped does not depend on the size: so
    every network is quickly compared once or twice, and in all paddings and sizes when it may take
    long."""
    slow = [case for case in dict.fromkeys(slow) if case not in quick]
    return [*quick, *(pytest.param(*case, marks=pytest.mark.slow) for case in slow)]


def nested(images, convert) -> Any:
    """One array or a dictionary of them, converted."""
    if isinstance(images, dict):
        return {name: convert(image) for name, image in images.items()}
    return convert(images)


def true_maps(network, images) -> dict[str, np.ndarray]:
    """PyTorch's maps and logits."""
    with torch.inference_mode():
        logits, maps = network.with_maps(images)
    return {name: nhwc(value) for name, value in {**maps, **by_name(logits, "logits")}.items()}


@pytest.mark.parametrize(
    ("name", "padding", "size"),
    marked(
        [
            ("fcn32s", "reference", (1, 1)),
            ("fcn16s", "same", (33, 47)),
            ("fcn8s", "reference", (33, 47)),
            ("fcn8s", "same", (101, 75)),
            ("fcn8s_atonce", "same", (33, 47)),
            ("fcn2s", "reference", (33, 47)),
            ("fcn4s", "same", (33, 47)),
            ("alexnet_32s", "reference", (33, 47)),
            ("alexnet_32s", "same", (1, 1)),
            ("alexnet_16s", "reference", (101, 75)),
            ("googlenet_32s", "reference", (33, 47)),
            ("two_heads_16s", "same", (1, 1)),
            ("two_heads_8s", "reference", (33, 47)),
            ("late_fusion_16s", "reference", (33, 47)),
            ("late_fusion_of_two_alexnets_with_two_heads", "same", (33, 47)),
        ],
        [
            *((name, padding, (33, 47)) for name in CASES for padding in PADDINGS),
            *(("fcn32s", padding, size) for size in SIZES for padding in PADDINGS),
            *(("fcn16s", padding, size) for size in SIZES for padding in PADDINGS),
            *(("fcn8s", padding, size) for size in SIZES for padding in PADDINGS),
            *(("alexnet_32s", padding, (1, 1)) for padding in PADDINGS),
            *((name, padding, (101, 75)) for name in LARGER for padding in PADDINGS),
        ],
    ),
    ids=str,
)
def test_every_map(name, padding, size):
    case = CASES[name]
    model = case.model(padding)
    params, images = random_parameters(model, seed=0), case.images(size, seed=0)
    forward = jax.jit(functools.partial(model.apply, return_maps=True))
    logits, maps = forward({"params": params}, images)
    network = case.torch_model(padding).load(params).double()
    truth = true_maps(network, nested(images, lambda image: nchw(image).double()))
    assert_same_arrays({**maps, **by_name(logits, "logits")}, truth)


@pytest.mark.parametrize(
    ("name", "padding", "size"),
    marked(
        [
            ("fcn8s", "reference", (33, 47)),
            ("fcn8s_atonce", "same", (33, 47)),
            ("alexnet_32s", "reference", (33, 47)),
            ("late_fusion_of_two_alexnets_with_two_heads", "same", (33, 47)),
        ],
        [
            *(("fcn32s", padding, (33, 47)) for padding in PADDINGS),
            *(("fcn16s", padding, (101, 75)) for padding in PADDINGS),
            *(("fcn8s", padding, size) for size in [(1, 1), (33, 47)] for padding in PADDINGS),
            ("fcn8s_atonce", "reference", (33, 47)),
            *(("alexnet_16s", "same", size) for size in [(33, 47), (101, 75)]),
            ("googlenet_8s", "same", (33, 47)),
            ("two_heads_8s", "same", (33, 47)),
            ("two_heads_16s", "reference", (1, 1)),
            *(("late_fusion_16s", "same", size) for size in [(1, 1), (101, 75)]),
        ],
    ),
    ids=str,
)
def test_logits_and_every_gradient(name, padding, size):
    """Without maps, so that a wide border is shared."""
    assert_same_gradients(CASES[name], padding, size)


def test_googlenets_maps_and_gradients_in_plain_forms():
    """Its many layers compile quickly that way; in fast forms these are slow tests above."""
    with fcn_jax.ops.plain_forms():
        assert_same_gradients(CASES["googlenet_8s"], "same", (33, 47), maps_too=True)


def assert_same_gradients(
    case: Case, padding: str, size: tuple[int, int], maps_too: bool = False
) -> None:
    model = case.model(padding)

    @jax.jit
    def ours_of(params, images, cotangent):
        def run(params, images):
            results = model.apply({"params": params}, images, return_maps=maps_too)
            return results if maps_too else (results, {})

        logits, pull_back, maps = jax.vjp(run, params, images, has_aux=True)
        param_gradients, image_gradient = pull_back(cotangent)
        return {
            **maps,
            **by_name(logits, "logits"),
            **flat(param_gradients),
            **by_name(image_gradient, "images"),
        }

    def truth_of(params, images, cotangent):
        network = case.torch_model(padding).load(params).double()
        tensors = nested(images, lambda image: nchw(image).double().requires_grad_())
        logits, maps = network.with_maps(tensors) if maps_too else (network(tensors), {})
        values, gradients = by_name(logits, "logits"), by_name(cotangent, "logits")
        torch.autograd.backward(
            list(values.values()), [nchw(gradients[name]).double() for name in values]
        )
        image_gradients = nested(tensors, lambda tensor: tensor.grad)
        maps = {**maps, **values, **by_name(image_gradients, "images")}
        return {**network.gradients(), **{name: nhwc(value) for name, value in maps.items()}}

    # Where a value is at the kink of a ReLU or two of a pooling window tie, but for rounding, the
    # gradient is not defined. A wrong gradient is wrong whatever the values, so new ones are drawn.
    for seed in (1, 2, 3):
        params, images = random_parameters(model, seed), case.images(size, seed)
        if padding == "reference":
            params = without_ties_in_the_border(model, params)
        cotangent = case.cotangent(size, seed)
        ours, truth = ours_of(params, images, cotangent), truth_of(params, images, cotangent)
        if max(relative_errors(ours, truth).values()) < BOUND:
            break
    assert_same_arrays(ours, truth)


def without_ties_in_the_border(model, params):
    """The parameters with negative biases in the backbone: the wide empty border, constant and all
    ties otherwise, is then exactly 0 after every ReLU and sends no gradient back."""
    kept = (*model.score_layers, *(name for name in params if name.startswith(("fc", "up"))))
    return {
        layer: leaves if layer in kept else {**leaves, "bias": -np.abs(leaves["bias"])}
        for layer, leaves in params.items()
    }


@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize("name", CASES)
def test_crops(name, padding):
    """Published or derived by hand; negative where the coarser scores of a skip are cropped."""
    case = CASES[name]
    *skips, last = case.torch_model(padding).transposed
    crops = {f"score_{up.skip}": up.crop_skip - up.crop for up in skips}
    assert case.model(padding).alignment.crops == {**crops, last.name: last.crop}


# ======================================================================== files


@functools.cache
def shapes_and_parameters(name):
    model = CASES[name].model("same")
    return abstract_params(model), random_parameters(model, seed=3)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        *((net, "pytorch-fcn") for net in torch_fcn.NETS),
        *(
            (name, kind)
            for name in ("alexnet_32s", "googlenet_32s", "two_heads_16s", "late_fusion_16s")
            for kind in ("npz", "safetensors", "pytorch-fcn")
        ),
    ],
)
def test_a_network_carried_over_by_a_file(name, kind, tmp_path):
    """The same bits in the same places; of pytorch-fcn's kind there by our writer and PyTorch's
    reader, and back by PyTorch's writer and our reader."""
    case = CASES[name]
    abstract, params = shapes_and_parameters(name)
    path = tmp_path / "net"
    fcn_jax.weights.save(path, params, kind)
    if kind == "pytorch-fcn":
        network = case.torch_model("same")
        network.load_state_dict(torch.load(path, weights_only=True), assign=True)
        expected = case.torch_model("same").load(params).state_dict()
        for key, values in network.state_dict().items():
            np.testing.assert_array_equal(values, expected[key], err_msg=key)
        torch.save(network.state_dict(), path)
    read, _ = fcn_jax.weights.transplant(abstract, fcn_jax.weights.load(path))
    assert set(flat(read)) == set(flat(params))
    for key, values in flat(params).items():
        np.testing.assert_array_equal(flat(read)[key], values, err_msg=key)


# ======================================================================== full width

FULL_WIDTH = {"width": 1.0, "fc_width": 4096}


@pytest.mark.parametrize("name", CASES)
def test_the_parameters_at_full_width(name):
    case = CASES[name]
    ours = abstract_params(case.model("same", **FULL_WIDTH))
    network = case.torch_model("same", **FULL_WIDTH)  # of shapes alone
    for layer, leaves in ours.items():
        kernel = network.get_submodule(layer).weight
        assert sorted(leaves["kernel"].shape) == sorted(kernel.shape)
    sizes = {key: math.prod(leaf.shape) for key, leaf in flat(ours).items()}
    theirs = {
        key.replace(".weight", "/kernel").replace(".bias", "/bias"): value.numel()
        for key, value in network.state_dict().items()
    }
    assert sizes == theirs


@pytest.mark.parametrize("net", torch_fcn.NETS)
def test_parameter_count(net):
    """Table 1 of the paper says 134 M; of FCN-32s it is the table below, summed by hand."""
    model = fcn_jax.create_model(net, num_classes=21)
    counts = {
        layer: sum(math.prod(leaf.shape) for leaf in leaves.values())
        for layer, leaves in abstract_params(model).items()
    }
    convolutions = (
        *((3, 3, 64), (3, 64, 64), (3, 64, 128), (3, 128, 128)),
        *((3, 128, 256), (3, 256, 256), (3, 256, 256)),
        *((3, 256, 512), (3, 512, 512), (3, 512, 512)),
        *((3, 512, 512), (3, 512, 512), (3, 512, 512)),
        *((7, 512, 4096), (1, 4096, 4096), (1, 4096, 21)),
    )
    fcn32s = sum(k * k * i * o + o for k, i, o in convolutions)
    assert fcn32s == 134_346_581
    skips = {"fcn32s": 0, "fcn16s": 1, "fcn4s": 3, "fcn2s": 4}.get(net, 2)
    learned = sum(n for layer, n in counts.items() if not layer.startswith("up"))
    assert learned == fcn32s + sum((513, 257, 129, 65)[:skips]) * 21


@pytest.mark.slow
@pytest.mark.parametrize("padding", PADDINGS)
def test_fcn8s_at_full_width_and_the_papers_image_size(padding):
    """Optimised, as a user's program is."""
    model = fcn_jax.create_model("fcn8s", padding=padding)
    params = random_parameters(model, seed=0)
    images = CASES["fcn8s"].images((375, 500), seed=5, batch=1)
    optimized = {
        "xla_backend_optimization_level": 3,
        "xla_llvm_disable_expensive_passes": False,
        "xla_cpu_use_fusion_emitters": True,
    }
    ours = jax.jit(model.apply, compiler_options=optimized)({"params": params}, images)
    network = torch_fcn.TorchFCN("fcn8s", padding=padding).eval().load(params)
    with torch.inference_mode():
        theirs = network(nchw(images))
    assert ours.shape == (1, 375, 500, 21)
    assert relative_error(ours, nhwc(theirs)) < BOUND


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "padding"), [("alexnet_32s", "same"), ("googlenet_32s", "reference")]
)
def test_every_map_at_full_width_and_the_papers_image_size(name, padding):
    case = CASES[name]
    model = case.model(padding, **FULL_WIDTH, num_classes=21)
    params, images = random_parameters(model, 0), case.images((375, 500), seed=0, batch=1)
    forward = jax.jit(functools.partial(model.apply, return_maps=True))
    logits, maps = forward({"params": params}, images)
    network = case.torch_model(padding, **FULL_WIDTH, heads=21).load(params).double()
    truth = true_maps(network, nchw(images).double())
    assert_same_arrays({**maps, **by_name(logits, "logits")}, truth)
