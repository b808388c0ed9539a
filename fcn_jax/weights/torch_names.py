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
from fcn_jax.weights.arrays import (
    Weights,
    conv_transpose_kernel,
    convolution_kernel,
    float32,
)

IMAGENET = Preprocessing("rgb", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), 1 / 255)
"""torchvision's and timm's VGG and AlexNet: RGB in [0, 1] by mean and standard deviation."""

SYMMETRIC = Preprocessing("rgb", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), 1 / 255)
"""torchvision's GoogLeNet came from TensorFlow with weights for [-1, 1] (``transform_input``)."""


@dataclasses.dataclass(frozen=True)
class Module:
    """One layer: the name of their module, ours, and of the batch norm behind it, if any."""

    theirs: str
    ours: str
    norm: str = ""


@dataclasses.dataclass(frozen=True)
class Network:
    """How a model names its layers.

    Attributes:
        kind: What it is called in messages.
        backbone: The layers by which it is recognised; all of them must be there.
        classifier: Layers that may be missing.
        preprocessing: What its published weights expect.
        epsilon: Added to the variance by its batch norms.
        marker: A name that tells it from a network of the same backbone.
    """

    kind: str
    backbone: tuple[Module, ...]
    classifier: tuple[Module, ...]
    preprocessing: Preprocessing
    epsilon: float = 1e-5
    marker: str = ""


# ======================================================================== the table


def _vgg_backbone(convs_per_stage: tuple[int, ...], norm: bool) -> tuple[Module, ...]:
    """``features.N`` counts convolutions, batch norms, ReLUs and poolings alike."""
    modules = []
    index = 0
    for stage, convs in enumerate(convs_per_stage, 1):
        for conv in range(1, convs + 1):
            behind = f"features.{index + 1}" if norm else ""
            modules.append(Module(f"features.{index}", f"conv{stage}_{conv}", behind))
            index += 3 if norm else 2
        index += 1
    return tuple(modules)


def _numbered(prefix: str, names: Mapping[int, str]) -> tuple[Module, ...]:
    return tuple(Module(f"{prefix}.{number}", name) for number, name in names.items())


_TIMM_VGG = (
    Module("pre_logits.fc1", "fc6"),
    Module("pre_logits.fc2", "fc7"),
    Module("head.fc", "fc8"),
)
_TORCHVISION_VGG = _numbered("classifier", {0: "fc6", 3: "fc7", 6: "fc8"})
VGG_STAGES = {
    "vgg11": (1, 1, 2, 2, 2),
    "vgg13": (2, 2, 2, 2, 2),
    "vgg16": (2, 2, 3, 3, 3),
    "vgg19": (2, 2, 4, 4, 4),
}

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
        Network(
            f"{origin} {name}{'_bn' if norm else ''}",
            _vgg_backbone(stages, norm),
            classifier,
            IMAGENET,
            marker=marker,
        )
        for name, stages in VGG_STAGES.items()
        for norm in (False, True)
        for origin, classifier, marker in (
            ("timm", _TIMM_VGG, "pre_logits.fc1.weight"),
            ("torchvision", _TORCHVISION_VGG, ""),
        )
    ),
    Network(
        "torchvision alexnet",
        _numbered("features", {0: "conv1", 3: "conv2", 6: "conv3", 8: "conv4", 10: "conv5"}),
        _numbered("classifier", {1: "fc6", 4: "fc7", 6: "fc8"}),
        IMAGENET,
    ),
    Network(
        "torchvision googlenet",
        tuple(
            Module(f"{theirs}.conv", ours, f"{theirs}.bn") for theirs, ours in _GOOGLENET.items()
        ),
        (Module("fc", "loss3/classifier"),),
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
        if _is_of(network, arrays):
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


def _is_of(network: Network, arrays: Mapping[str, np.ndarray]) -> bool:
    """Whether the convolutions are those of the backbone, no more and no fewer."""
    theirs = {f"{module.theirs}.weight" for module in network.backbone}
    beginnings = tuple({name.partition(".")[0] + "." for name in theirs})
    there = {
        name
        for name, value in arrays.items()
        if value.ndim == 4 and name.startswith(beginnings) and name.endswith(".weight")
    }
    return there == theirs and (not network.marker or network.marker in arrays)


def _translate_network(network: Network, arrays: Mapping[str, np.ndarray]) -> Weights:
    weights = Weights(inputs=Inputs.of(network.preprocessing), kind=network.kind)
    problems: list[str] = []
    used: set[str] = set()
    for module in (*network.backbone, *network.classifier):
        if module in network.classifier and f"{module.theirs}.weight" not in arrays:
            continue
        names = [f"{module.theirs}.weight"]
        if not module.norm or f"{module.theirs}.bias" in arrays:
            names.append(f"{module.theirs}.bias")
        if module.norm:
            names += [f"{module.norm}.{name}" for name in _NORM_ARRAYS]
            used.add(f"{module.norm}.num_batches_tracked")
        used.update(names)
        wrong = _mistakes(names, arrays)
        problems += wrong
        if not wrong:
            weights.update(_layer(module, arrays, network.epsilon))
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


def _layer(
    module: Module, arrays: Mapping[str, np.ndarray], epsilon: float
) -> dict[str, np.ndarray]:
    """Kernel and bias of one layer, with its batch norm folded in (computed in float64)."""
    weight = arrays[f"{module.theirs}.weight"]
    bias = arrays.get(f"{module.theirs}.bias")
    kernel = convolution_kernel(weight) if weight.ndim == 4 else weight.T
    if module.norm:
        gamma, beta, mean, variance = (
            arrays[f"{module.norm}.{name}"].astype(np.float64) for name in _NORM_ARRAYS
        )
        with np.errstate(all="ignore"):  # a negative variance shows as NaN in the end
            factor = gamma / np.sqrt(variance + epsilon)
            kernel = kernel * factor
            bias = ((0 if bias is None else bias.astype(np.float64)) - mean) * factor + beta
    assert bias is not None
    return {f"{module.ours}/kernel": float32(kernel), f"{module.ours}/bias": float32(bias)}


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
        elif array == "weight" and value.ndim == 2:
            weights[f"{layer}/kernel"] = float32(value.T)
        elif array == "weight" and value.ndim == 4:
            to_ours = conv_transpose_kernel if is_conv_transpose(layer) else convolution_kernel
            weights[f"{layer}/kernel"] = float32(to_ours(value))
        else:
            problems.append(f"{name} has the shape {value.shape}")
    if problems:
        raise ValueError("arrays that no layer has:\n  " + "\n  ".join(problems))
    return weights


def is_conv_transpose(layer: str) -> bool:
    """Whether a layer of an FCN is a transposed convolution, which its kernel does not show."""
    return layer.startswith("upscore")
