"""Our networks beside PyTorch's (`torch_reference`), with random values in every parameter.

PyTorch computes in float64 where it is quick enough: in float32 its own rounding reaches 1.4e-5
of a gradient, more than the bound (ours stays below 4e-6).
"""

from __future__ import annotations

import functools
import math

import jax
import numpy as np
import pytest
from random_parameters import random_parameters

import fcn_jax
import fcn_jax.weights
from fcn_jax.models.fcn import abstract_params

reference = pytest.importorskip("torch_reference")
torch = reference.torch

BOUND = 1e-5
CLASSES, WIDTH, FC_WIDTH = 5, 1 / 16, 24


pytestmark = pytest.mark.usefixtures("exact_products")


def relative_error(ours, truth) -> float:
    ours, truth = np.asarray(ours), np.asarray(truth)
    assert ours.shape == truth.shape
    largest = np.abs(truth).max()
    assert largest > 0, "all zeros: the comparison would prove nothing"
    return float(np.abs(ours - truth).max() / largest)


def relative_errors(ours, truth) -> dict[str, float]:
    assert set(ours) == set(truth)
    return {name: relative_error(ours[name], truth[name]) for name in truth}


def assert_same_tree(ours, truth) -> None:
    """Flat dictionaries of arrays: the same names, each within the bound."""
    errors = relative_errors(ours, truth)
    assert max(errors.values()) < BOUND, sorted(errors.items(), key=lambda item: -item[1])[:5]


def flat(tree) -> dict:
    return {f"{layer}/{name}": leaf for layer, d in tree.items() for name, leaf in d.items()}


# ======================================================================== networks


# Compiling is nearly all the time; where maps are cropped does not depend on the size. A pass
# without maps, which shares the border, runs for every network in the test of files below.
SIZES = {
    "fcn32s": [(1, 1), (101, 75)],
    "fcn16s": [(1, 1), (101, 75)],
    "fcn8s": [(1, 1), (33, 47), (101, 75)],
    "fcn8s_atonce": [(101, 75)],
}


def pairs(sizes):
    return [(net, size) for net, of_net in sizes.items() for size in of_net]


def small_model(net, padding):
    return fcn_jax.create_model(
        net,
        num_classes=CLASSES,
        padding=padding,
        width=WIDTH,
        fc_width=FC_WIDTH,
        learned_upsampling="all",
    )


def small_truth(net, padding, params):
    return reference.TorchFCN(net, padding, CLASSES, WIDTH, FC_WIDTH).load(params).double()


def random_images(size, seed):
    return np.random.default_rng(seed).normal(0, 64, (2, *size, 3)).astype(np.float32)


@pytest.mark.usefixtures("one_torch_thread")
@pytest.mark.parametrize(("net", "size"), pairs(SIZES), ids=str)
@pytest.mark.parametrize("padding", reference.PADDINGS)
def test_every_map(net, padding, size):
    model = small_model(net, padding)
    params, images = random_parameters(model, seed=0), random_images(size, seed=0)
    forward = functools.partial(model.apply, return_maps=True)
    logits, maps = jax.jit(forward)({"params": params}, images)
    with torch.inference_mode():
        truth = small_truth(net, padding, params)(reference.nchw(images).double())
    truth = {name: reference.nhwc(value) for name, value in truth.items()}
    assert_same_tree({**maps, "logits": logits}, truth)


# FCN-8s at-once is FCN-8s with scaled skips, whose values are compared above.
GRADIENTS = {"fcn32s": [(33, 47)], "fcn16s": [(101, 75)], "fcn8s": [(1, 1), (33, 47)]}


@pytest.mark.usefixtures("one_torch_thread")
@pytest.mark.parametrize(("net", "size"), pairs(GRADIENTS), ids=str)
@pytest.mark.parametrize("padding", reference.PADDINGS)
def test_every_gradient(net, padding, size):
    model = small_model(net, padding)

    @jax.jit
    def gradients_of(params, images, cotangent):
        _, pull_back = jax.vjp(lambda p, x: model.apply({"params": p}, x), params, images)
        param_gradients, image_gradient = pull_back(cotangent)
        return {**flat(param_gradients), "images": image_gradient}

    def true_gradients_of(params, images, cotangent):
        truth = small_truth(net, padding, params)
        images = reference.nchw(images).double().requires_grad_()
        truth(images)["logits"].backward(reference.nchw(cotangent).double())
        gradients = flat(reference.gradients_to_ours(truth))
        return {**gradients, "images": reference.nhwc(images.grad)}

    # Where a value is at the kink of a ReLU or two of a pooling window tie, but for rounding, the
    # gradient is not defined. A wrong gradient is wrong whatever the values, so new ones are drawn.
    for seed in (1, 2, 3):
        params, images = random_parameters(model, seed), random_images(size, seed)
        if padding == "reference":
            params = without_ties_in_the_border(params)
        rng = np.random.default_rng(seed + 10)
        cotangent = rng.normal(size=(2, *size, CLASSES)).astype(np.float32)
        ours = gradients_of(params, images, cotangent)
        truth = true_gradients_of(params, images, cotangent)
        if max(relative_errors(ours, truth).values()) < BOUND:
            break
    assert_same_tree(ours, truth)


def without_ties_in_the_border(params):
    """The parameters with negative biases in the backbone: the wide empty border, constant and all
    ties otherwise, is then exactly 0 after every ReLU and sends no gradient back."""
    return {
        layer: {**leaves, "bias": -np.abs(leaves["bias"])} if layer.startswith("conv") else leaves
        for layer, leaves in params.items()
    }


@pytest.mark.usefixtures("one_torch_thread")
@pytest.mark.parametrize("padding", reference.PADDINGS)
@pytest.mark.parametrize("net", reference.NETS)
def test_a_network_carried_over_by_pytorch_fcns_file(net, padding, tmp_path):
    """There by our writer and PyTorch's reader, back by PyTorch's writer and our reader."""
    model = small_model(net, padding)
    fcn_jax.weights.save(tmp_path / "ours.pth", random_parameters(model, seed=4))
    truth = reference.TorchFCN(net, padding, CLASSES, WIDTH, FC_WIDTH)
    truth.load_state_dict(torch.load(tmp_path / "ours.pth", weights_only=True), strict=True)
    torch.save(truth.state_dict(), tmp_path / "theirs.pth")
    loaded = fcn_jax.weights.load(tmp_path / "theirs.pth")
    params, _ = fcn_jax.weights.transplant(abstract_params(model), loaded, strict=True)

    images = random_images((33, 47), seed=4)
    ours = jax.jit(model.apply)({"params": params}, images)
    with torch.inference_mode():
        theirs = truth.double()(reference.nchw(images).double())["logits"]
    assert relative_error(ours, reference.nhwc(theirs)) < BOUND


@pytest.fixture(scope="module")
def full_size_parameters():
    return random_parameters(fcn_jax.create_model("fcn8s"), seed=0)


@pytest.mark.parametrize("padding", reference.PADDINGS)
def test_full_width_at_the_papers_image_size(full_size_parameters, padding):
    model = fcn_jax.create_model("fcn8s", padding=padding)
    images = np.random.default_rng(5).normal(0, 64, (1, 375, 500, 3)).astype(np.float32)
    optimized = {
        "xla_backend_optimization_level": 3,
        "xla_llvm_disable_expensive_passes": False,
    }
    apply = jax.jit(model.apply, compiler_options=optimized)
    ours = apply({"params": full_size_parameters}, images)
    with torch.device("meta"):  # shapes only: `load` brings the values
        truth = reference.TorchFCN("fcn8s", padding, 21, 1.0, 4096)
    truth.load(full_size_parameters)
    with torch.inference_mode():
        theirs = truth(reference.nchw(images))["logits"]
    assert ours.shape == (1, 375, 500, 21)
    assert relative_error(ours, reference.nhwc(theirs)) < BOUND


@pytest.mark.parametrize("net", reference.NETS)
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
    skips = {"fcn32s": 0, "fcn16s": 513 * 21}.get(net, (513 + 257) * 21)
    learned = sum(n for layer, n in counts.items() if not layer.startswith("up"))
    assert learned == fcn32s + skips
