"""PyTorch's models as a table: which of their modules is which of our layers.

A network is a row of `NETWORKS`; another one is another row.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Mapping

import numpy as np

from fcn_jax.models.backbones import BACKBONES, Conv
from fcn_jax.models.inputs import CAFFE, Inputs, Preprocessing
from fcn_jax.weights.arrays import Network as OurNetwork
from fcn_jax.weights.arrays import Weights, our_axes, under_our_names

IMAGENET = Inputs.of(Preprocessing("rgb", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), 1 / 255))
"""torchvision's and timm's networks but GoogLeNet: RGB in [0, 1] by mean and deviation."""

SYMMETRIC = Inputs.of(Preprocessing("rgb", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), 1 / 255))
"""torchvision's GoogLeNet came from TensorFlow with weights for [-1, 1] (``transform_input``)."""


@dataclasses.dataclass(frozen=True)
class Network:
    """How a model names its layers."""

    kind: str
    backbone: Mapping[str, str]  # our name of each of its convolutions; all must be there
    classifier: Mapping[str, str]  # our names of its last layers, which may be missing
    norms: Mapping[str, str] = dataclasses.field(default_factory=dict)  # by the layer before them
    inputs: Inputs = IMAGENET  # what its published weights expect
    epsilon: float = 1e-5  # added to the variance by its batch norms
    decoder: str | None = None  # what follows the backbone, where the names do not say it

    def matches(self, arrays: Mapping[str, np.ndarray]) -> bool:
        """Whether the convolutions are those of the backbone, no more and no fewer."""
        theirs = {f"{layer}.weight" for layer in self.backbone}
        beginnings = tuple({name.partition(".")[0] + "." for name in theirs})
        return theirs == {
            name
            for name, value in arrays.items()
            if value.ndim == 4 and name.startswith(beginnings) and name.endswith(".weight")
        }


def _features(kind: str, name: str, classifier: tuple[str, ...], norm: bool = False) -> Network:
    """``features.N`` counts convolutions, batch norms, ReLUs and poolings alike."""
    backbone, norms = {}, {}
    index = 0
    for layer in BACKBONES[name]("native", 1.0, 1).layers:
        if not isinstance(layer, Conv):
            index += 1
        elif not layer.dropout:
            backbone[f"features.{index}"] = layer.name
            if norm:
                norms[f"features.{index}"] = f"features.{index + 1}"
            index += 3 if norm else 2
    return Network(kind, backbone, dict(zip(classifier, ("fc6", "fc7", "fc8"), strict=True)), norms)


_VGG_CLASSIFIERS = {
    "torchvision": ("classifier.0", "classifier.3", "classifier.6"),
    "timm": ("pre_logits.fc1", "pre_logits.fc2", "head.fc"),
}
_INCEPTION = {
    "branch1": "1x1",
    "branch2.0": "3x3_reduce",
    "branch2.1": "3x3",
    "branch3.0": "5x5_reduce",
    "branch3.1": "5x5",  # which is 3x3 in torchvision's network
    "branch4.1": "pool_proj",
}
_GOOGLENET = {"conv1": "conv1/7x7_s2", "conv2": "conv2/3x3_reduce", "conv3": "conv2/3x3"}
_GOOGLENET |= {
    f"inception{block}.{branch}": f"inception_{block}/{layer}"
    for block in ("3a", "3b", "4a", "4b", "4c", "4d", "4e", "5a", "5b")
    for branch, layer in _INCEPTION.items()
}


def _resnet(kind: str, name: str, prefix: str = "") -> Network:
    """torchvision's ResNet, whose names timm shares; with a prefix, in one of its FCNs."""
    backbone, norms = {}, {}
    for layer in BACKBONES[name]("native", 1.0, 1).layers:
        if isinstance(layer, Conv) and not layer.dropout:
            theirs = prefix + layer.name.replace("_", ".").replace("/", ".")
            norm = theirs.replace("conv", "bn")
            if theirs.endswith("downsample"):
                theirs, norm = f"{theirs}.0", f"{theirs}.1"
            backbone[theirs], norms[theirs] = layer.name, norm
    if not prefix:
        return Network(kind, backbone, {"fc": "fc"}, norms)
    head = {"classifier.0": "head", "classifier.4": "score_fr"}
    return Network(
        kind,
        backbone | head,
        {},
        norms | {"classifier.0": "classifier.1"},
        decoder="fcn_interpolated",
    )


NETWORKS: tuple[Network, ...] = (
    *(
        _features(f"{origin} {name}{'_bn' * norm}", name, classifier, norm)
        for name in ("vgg11", "vgg13", "vgg16", "vgg19")
        for norm in (False, True)
        for origin, classifier in _VGG_CLASSIFIERS.items()
    ),
    _features(
        "torchvision alexnet",
        "alexnet_torchvision",
        ("classifier.1", "classifier.4", "classifier.6"),
    ),
    Network(
        "torchvision googlenet",
        {f"{theirs}.conv": ours for theirs, ours in _GOOGLENET.items()},
        {"fc": "loss3/classifier"},
        {f"{theirs}.conv": f"{theirs}.bn" for theirs in _GOOGLENET},
        SYMMETRIC,
        epsilon=1e-3,
    ),
    *(
        _resnet(f"torchvision or timm {name}", name)
        for name in ("resnet18", "resnet34", "resnet50", "resnet101")
    ),
    *(
        _resnet(f"torchvision fcn_{name}", f"{name}_dilated", "backbone.")
        for name in ("resnet50", "resnet101")
    ),
)

PREFIXES = ("module.", "_orig_mod.", "model.", "encoder.", "backbone.", "net.")
"""What stands before all names: of DataParallel, of torch.compile, of models that hold another."""

WRAPPING = PREFIXES[:2]
"""Those that are never the name of a part beside others."""

STRANGERS = {
    "backbone.features.": "another model: save its backbone alone, model.backbone.state_dict()",
    **dict.fromkeys(
        ("res2", "stem.conv1.", "bottom_up.", "backbone.bottom_up."),
        "a ResNet of Caffe or detectron2, which may have its strides elsewhere than torchvision's",
    ),
    "backbone.": "a segmentation network, but not torchvision's fcn_resnet50 or fcn_resnet101",
    "layer1.0.": "a ResNet of another depth or kind than resnet18, 34, 50 and 101",
    "features.denseblock1.": "a DenseNet is none of the networks here",
}
"""Beginnings of names in other files that people may try, and what to say of them."""


def translate(arrays: Mapping[str, np.ndarray]) -> Weights:
    """Turns a state dict, by PyTorch's names and in PyTorch's layout, into `Weights`.

    Batch norms are folded into the convolutions before them, exactly as at inference.
    """
    given = tuple(arrays)
    arrays = {name: value for name, value in arrays.items() if name != "n_averaged"}  # of PyTorch
    before = [p for p in PREFIXES if all(name.startswith(p) for name in arrays)]
    while before and arrays:  # they may be nested
        arrays = {name.removeprefix(before[0]): value for name, value in arrays.items()}
        before = [p for p in PREFIXES if all(name.startswith(p) for name in arrays)]
    fits = [network for network in NETWORKS if network.matches(arrays)]
    known = tuple(f"{layer}." for fit in fits for layer in (*fit.backbone, *fit.classifier))
    for prefix in PREFIXES:
        some = [
            name
            for name in arrays
            if name.startswith(prefix)
            and (prefix in WRAPPING or name.removeprefix(prefix).startswith(known))
        ]
        if others := some and [name for name in arrays if not name.startswith(prefix)]:
            raise ValueError(
                f"{len(some)} of {len(arrays)} names begin with {prefix} ({some[0]}), others do "
                f"not ({others[0]}); which belong together is not known: save one model alone"
            )
    if fits:  # several of one backbone differ in their last layers
        last = [sum(f"{layer}.weight" in arrays for layer in fit.classifier) for fit in fits]
        return _translate_network(fits[last.index(max(last))], arrays)
    if all(name.endswith((".weight", ".bias")) and name.count(".") == 1 for name in arrays) and any(
        name.startswith(_CAFFE_BEGINNINGS) for name in arrays
    ):
        return translate_caffe_names(arrays)
    remarks = [
        remark
        for beginning, remark in STRANGERS.items()
        if any(name.startswith(beginning) for name in (*given, *arrays))
    ]
    names = ", ".join(name[:60] for name in given[:6])
    remark = [*remarks, f"tensors of an unknown network ({names} …)"][0]
    known = ", ".join([*(network.kind for network in NETWORKS), "pytorch-fcn"])
    raise ValueError(f"{remark}; known are {known}")


def _translate_network(network: Network, arrays: Mapping[str, np.ndarray]) -> Weights:
    weights = Weights(inputs=network.inputs, kind=network.kind)
    weights.network = OurNetwork(network.decoder)
    problems: list[str] = []
    for theirs, ours in {**network.backbone, **network.classifier}.items():
        weight, bias = (arrays.get(f"{theirs}.{name}") for name in ("weight", "bias"))
        if weight is None:
            continue  # matches() has seen those of the backbone
        if weight.ndim not in (2, 4):
            problems.append(f"{theirs}.weight has the shape {weight.shape}, expected 2 or 4 axes")
            continue
        norm = network.norms.get(theirs)
        beside = [f"{theirs}.bias"] if bias is not None or not norm else []
        if norm:
            beside += [f"{norm}.{name}" for name in _NORM_ARRAYS]
        outputs = weight.shape[:1]
        mistakes = [
            f"{name} has the shape {arrays[name].shape}, expected {outputs}"
            if name in arrays
            else f"{name} is missing"
            for name in beside
            if name not in arrays or arrays[name].shape != outputs
        ]
        problems += mistakes
        if mistakes:
            continue
        kernel = weight.transpose(our_axes(weight.ndim))
        bias = np.zeros(outputs) if bias is None else bias
        if norm:  # folded in, computed in float64
            gamma, beta, mean, variance = (
                arrays[f"{norm}.{name}"].astype(np.float64) for name in _NORM_ARRAYS
            )
            with np.errstate(all="ignore"):  # a negative variance shows as NaN in the end
                factor = gamma / np.sqrt(variance + network.epsilon)
                kernel = kernel * factor
                bias = (bias.astype(np.float64) - mean) * factor + beta
        weights[f"{ours}/kernel"], weights[f"{ours}/bias"] = kernel, bias
    if problems:
        raise ValueError(f"a {network.kind} with mistakes:\n  " + "\n  ".join(problems))
    layers = (*network.backbone, *network.classifier, *network.norms.values())
    known = tuple(f"{layer}." for layer in layers)
    others = [name.partition(".")[0] for name in arrays if not name.startswith(known)]
    weights.skipped = tuple(
        f"{part} ({count} arrays)" for part, count in collections.Counter(others).items()
    )
    return weights


_NORM_ARRAYS = ("weight", "bias", "running_mean", "running_var")

_CAFFE_BEGINNINGS = ("conv1_1", "conv1/7x7_s2", "fc6", "score_fr", "upscore")
"""Beginnings of layers' names of which a state dict of pytorch-fcn (Wada) has one."""

_LAST_LAYERS = {
    "upscore": "pytorch-fcn fcn32s",
    "upscore16": "pytorch-fcn fcn16s",
    "upscore8": "pytorch-fcn fcn8s or fcn8s_atonce",
}


def translate_caffe_names(arrays: Mapping[str, np.ndarray]) -> Weights:
    """Turns a state dict whose names are Caffe's already into `Weights`; any layers will do."""
    kinds = [kind for layer, kind in _LAST_LAYERS.items() if f"{layer}.weight" in arrays]
    kind = [*kinds, "PyTorch under Caffe's names"][0]
    return Weights(under_our_names(arrays), Inputs.of(CAFFE), kind)
