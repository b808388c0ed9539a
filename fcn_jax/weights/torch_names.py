"""Names of layers in PyTorch's models, by network.

A network is a row of `NETWORKS`: which of their modules is which of our layers, and what the
network expects of its input. Another one is another row.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Mapping

import numpy as np

from fcn_jax.models.inputs import CAFFE, Inputs, Preprocessing
from fcn_jax.weights.arrays import Weights, float32, our_kernel

IMAGENET = Inputs.of(Preprocessing("rgb", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), 1 / 255))
"""torchvision's and timm's VGG and AlexNet: RGB in [0, 1] by mean and standard deviation."""

SYMMETRIC = Inputs.of(Preprocessing("rgb", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), 1 / 255))
"""torchvision's GoogLeNet came from TensorFlow with weights for [-1, 1] (``transform_input``)."""


@dataclasses.dataclass(frozen=True)
class Network:
    """How a model names its layers.

    Attributes:
        kind: What it is called in messages.
        backbone: Our name of each of its convolutions, by which it is recognised; all of them must
            be there.
        classifier: Our names of its last layers, which may be missing.
        norms: The batch norms, by the convolution before them.
        inputs: What its published weights expect.
        epsilon: Added to the variance by its batch norms.
        marker: A name that tells it from a network of the same backbone.
    """

    kind: str
    backbone: Mapping[str, str]
    classifier: Mapping[str, str]
    norms: Mapping[str, str] = dataclasses.field(default_factory=dict)
    inputs: Inputs = IMAGENET
    epsilon: float = 1e-5
    marker: str = ""

    def matches(self, arrays: Mapping[str, np.ndarray]) -> bool:
        """Whether the convolutions are those of the backbone, no more and no fewer."""
        theirs = {f"{layer}.weight" for layer in self.backbone}
        beginnings = tuple({name.partition(".")[0] + "." for name in theirs})
        there = {
            name
            for name, value in arrays.items()
            if value.ndim == 4 and name.startswith(beginnings) and name.endswith(".weight")
        }
        return there == theirs and (not self.marker or self.marker in arrays)


# ======================================================================== the table

VGG_STAGES = {
    "vgg11": (1, 1, 2, 2, 2),
    "vgg13": (2, 2, 2, 2, 2),
    "vgg16": (2, 2, 3, 3, 3),
    "vgg19": (2, 2, 4, 4, 4),
}
_TORCHVISION_VGG = {"classifier.0": "fc6", "classifier.3": "fc7", "classifier.6": "fc8"}
_TIMM_VGG = {"pre_logits.fc1": "fc6", "pre_logits.fc2": "fc7", "head.fc": "fc8"}


def _vgg(name: str, norm: bool, timm: bool) -> Network:
    """``features.N`` counts convolutions, batch norms, ReLUs and poolings alike."""
    backbone, norms = {}, {}
    index = 0
    for stage, convs in enumerate(VGG_STAGES[name], 1):
        for conv in range(1, convs + 1):
            backbone[f"features.{index}"] = f"conv{stage}_{conv}"
            if norm:
                norms[f"features.{index}"] = f"features.{index + 1}"
            index += 3 if norm else 2
        index += 1
    return Network(
        f"{'timm' if timm else 'torchvision'} {name}{'_bn' if norm else ''}",
        backbone,
        _TIMM_VGG if timm else _TORCHVISION_VGG,
        norms,
        marker="pre_logits.fc1.weight" if timm else "",
    )


_ALEXNET = {0: "conv1", 3: "conv2", 6: "conv3", 8: "conv4", 10: "conv5"}
_INCEPTION = {
    "branch1": "1x1",
    "branch2.0": "3x3_reduce",
    "branch2.1": "3x3",
    "branch3.0": "5x5_reduce",
    "branch3.1": "5x5",  # which is 3x3 in torchvision's network
    "branch4.1": "pool_proj",
}
_GOOGLENET = {
    "conv1": "conv1/7x7_s2",
    "conv2": "conv2/3x3_reduce",
    "conv3": "conv2/3x3",
} | {
    f"inception{block}.{branch}": f"inception_{block}/{layer}"
    for block in ("3a", "3b", "4a", "4b", "4c", "4d", "4e", "5a", "5b")
    for branch, layer in _INCEPTION.items()
}

NETWORKS: tuple[Network, ...] = (
    *(
        _vgg(name, norm, timm)
        for name in VGG_STAGES
        for norm in (False, True)
        for timm in (True, False)
    ),
    Network(
        "torchvision alexnet",
        {f"features.{index}": layer for index, layer in _ALEXNET.items()},
        {"classifier.1": "fc6", "classifier.4": "fc7", "classifier.6": "fc8"},
    ),
    Network(
        "torchvision googlenet",
        {f"{theirs}.conv": ours for theirs, ours in _GOOGLENET.items()},
        {"fc": "loss3/classifier"},
        {f"{theirs}.conv": f"{theirs}.bn" for theirs in _GOOGLENET},
        SYMMETRIC,
        epsilon=1e-3,
    ),
)

STRANGERS = {
    "backbone.layer1.": "torchvision's segmentation networks are ResNets and not the paper's FCNs",
    "backbone.": "torchvision's segmentation networks are not the paper's FCNs",
    "layer1.0.": "a ResNet is none of the networks here",
    "features.denseblock1.": "a DenseNet is none of the networks here",
}
"""Beginnings of names in other files that people may try, and what to say of them."""


# ======================================================================== translation


def translate(arrays: Mapping[str, np.ndarray]) -> Weights:
    """Turns a state dict into `Weights`.

    Batch norms are folded into the convolutions before them, exactly as at inference.

    Args:
        arrays: By PyTorch's names, in PyTorch's layout: (out, in / groups, height, width) of
            convolutions, (in, out, height, width) of transposed ones, (out, in) of dense layers.

    Raises:
        ValueError: If the names are of no known network, or an array of it is missing or of
            another rank; all of them in one message.
    """
    if all(name.startswith("module.") for name in arrays):  # torch.nn.DataParallel
        arrays = {name.removeprefix("module."): value for name, value in arrays.items()}
    for network in NETWORKS:
        if network.matches(arrays):
            return _translate_network(network, arrays)
    if all(name.endswith((".weight", ".bias")) and name.count(".") == 1 for name in arrays) and any(
        name.startswith(_CAFFE_BEGINNINGS) for name in arrays
    ):
        return translate_caffe_names(arrays)
    names = ", ".join(name[:60] for name in list(arrays)[:6])
    remarks = [
        remark
        for beginning, remark in STRANGERS.items()
        if any(name.startswith(beginning) for name in arrays)
    ]
    remark = (remarks or [f"tensors of an unknown network ({names} …)"])[0]
    known = ", ".join([*(network.kind for network in NETWORKS), "pytorch-fcn"])
    raise ValueError(f"{remark}; known are {known}")


def _translate_network(network: Network, arrays: Mapping[str, np.ndarray]) -> Weights:
    weights = Weights(inputs=network.inputs, kind=network.kind)
    problems: list[str] = []
    used: set[str] = set()
    for theirs, ours in {**network.backbone, **network.classifier}.items():
        if theirs in network.classifier and f"{theirs}.weight" not in arrays:
            continue
        norm = network.norms.get(theirs)
        names = [f"{theirs}.weight"]
        if not norm or f"{theirs}.bias" in arrays:
            names.append(f"{theirs}.bias")
        if norm:
            names += [f"{norm}.{name}" for name in _NORM_ARRAYS]
            used.add(f"{norm}.num_batches_tracked")
        used.update(names)
        if wrong := _mistakes(names, arrays):
            problems += wrong
            continue
        kernel, bias = our_kernel(arrays[names[0]]), arrays.get(f"{theirs}.bias", np.zeros(1))
        if norm:  # folded in, computed in float64
            gamma, beta, mean, variance = (
                arrays[f"{norm}.{name}"].astype(np.float64) for name in _NORM_ARRAYS
            )
            with np.errstate(all="ignore"):  # a negative variance shows as NaN in the end
                factor = gamma / np.sqrt(variance + network.epsilon)
                kernel = kernel * factor
                bias = (bias.astype(np.float64) - mean) * factor + beta
        weights[f"{ours}/kernel"], weights[f"{ours}/bias"] = float32(kernel), float32(bias)
    if problems:
        raise ValueError(f"a {network.kind} with mistakes:\n  " + "\n  ".join(problems))
    others = collections.Counter(name.partition(".")[0] for name in arrays if name not in used)
    weights.skipped = tuple(f"{part} ({count} arrays)" for part, count in others.items())
    return weights


_NORM_ARRAYS = ("weight", "bias", "running_mean", "running_var")


def _mistakes(names: list[str], arrays: Mapping[str, np.ndarray]) -> list[str]:
    """What is wrong with the arrays of one layer: one number for each output beside the weight."""
    mistakes = [f"{name} is missing" for name in names if name not in arrays]
    if mistakes:
        return mistakes
    weight, *others = names
    if arrays[weight].ndim not in (2, 4):
        return [f"{weight} has the shape {arrays[weight].shape}, expected 2 or 4 axes"]
    outputs = arrays[weight].shape[:1]
    return [
        f"{name} has the shape {arrays[name].shape}, expected {outputs}"
        for name in others
        if arrays[name].shape != outputs
    ]


# ======================================================================== Caffe's names

_CAFFE_BEGINNINGS = ("conv1_1", "conv1/7x7_s2", "fc6", "score_fr", "upscore")
"""Beginnings of layers' names of which a state dict of pytorch-fcn (Wada) has one."""

_LAST_LAYERS = {
    "upscore.": "fcn32s",
    "upscore16.": "fcn16s",
    "upscore8.": "fcn8s or fcn8s_atonce",
}


def translate_caffe_names(arrays: Mapping[str, np.ndarray]) -> Weights:
    """Turns a state dict whose names are Caffe's already into `Weights`; any layers will do.

    Raises:
        ValueError: If there are arrays that no layer has; all of them in one message.
    """
    kinds = [
        f"pytorch-fcn {network}"
        for layer, network in _LAST_LAYERS.items()
        if any(name.startswith(layer) for name in arrays)
    ]
    kind = kinds[0] if kinds else "PyTorch under Caffe's names"
    weights = Weights(inputs=Inputs.of(CAFFE), kind=kind)
    problems = []
    for name, value in arrays.items():
        layer, _, array = name.partition(".")
        if array == "bias" and value.ndim == 1:
            weights[f"{layer}/bias"] = float32(value)
        elif array == "weight" and value.ndim in (2, 4):
            weights[f"{layer}/kernel"] = float32(our_kernel(value, is_conv_transpose(layer)))
        else:
            problems.append(f"{name} has the shape {value.shape}")
    if problems:
        raise ValueError("arrays that no layer has:\n  " + "\n  ".join(problems))
    return weights


def is_conv_transpose(layer: str) -> bool:
    """Whether a layer of an FCN is a transposed convolution, which its kernel does not show."""
    return layer.startswith("upscore")
