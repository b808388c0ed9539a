"""From the names and shapes of weights to the network that they belong to.

Published files hold parameters and no network. Their layers tell which backbone, decoder, heads and
inputs they are of. FCN-8s at-once has the parameters of FCN-8s; its Caffe file has scale layers
besides, and of other files one has to say so.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from fcn_jax.models.backbones import BACKBONES, Backbone, Concat, Conv, Padding
from fcn_jax.models.fcn import FCN, abstract_params, create_model, initial_params
from fcn_jax.models.inputs import CAFFE, Inputs
from fcn_jax.weights.arrays import flatten, unflatten
from fcn_jax.weights.transplanting import transplant


def backbone_layers() -> set[str]:
    """The convolutions of all backbones that there are, but fc6 and fc7."""
    return {
        layer.name
        for backbone in _backbones().values()
        for layer in backbone.layers
        if isinstance(layer, Conv) and not layer.dropout
    }


def backbones_of(weights: Mapping[str, np.ndarray]) -> list[str]:
    """The backbones whose convolutions, but for fc6 and fc7, are just those of the weights."""
    kernels = _kernels(weights)
    ours = backbone_layers() & set(kernels)
    found = []
    for name, backbone in _backbones().items():
        layers = tuple(layer for layer in backbone.layers if not getattr(layer, "dropout", False))
        names = {layer.name for layer in layers if isinstance(layer, Conv)}
        if names == ours and _is_backbone(Backbone(layers), kernels, ""):
            found.append(name)
    return found


def network_of(
    weights: Mapping[str, np.ndarray], name: str | None = None, padding: Padding | None = None
) -> FCN:
    """The network of some weights: backbone, decoder, widths, classes, heads and inputs.

    Args:
        weights: Arrays by ``layer/kernel`` and ``layer/bias``, as `fcn_jax.weights.load` gives.
        name: The network (``fcn8s_atonce``), where it is not the one that the layers suggest.
        padding: That of the published networks, ``reference``, where None (of a classifier,
            ``native``); networks trained here have ``same`` unless their config says otherwise.

    Returns:
        The network.

    Raises:
        ValueError: If the layers are no backbone's, or it has neither score layers nor a
            classifier.
    """
    kernels = _kernels(weights)
    fits = []
    for backbone_name, backbone in _backbones().items():
        # Layers of a network of several inputs end with their input's name.
        first = backbone.layers[0].name
        ends = [layer.removeprefix(first) for layer in kernels if layer.startswith(first)]
        if suffixes := [end for end in ends if _is_backbone(backbone, kernels, end)]:
            fits.append((len(backbone.layers), backbone_name, backbone, suffixes))
    if not fits and (found := backbones_of(weights)):
        raise ValueError(
            f"the file has the backbone of {' or '.join(found)} without fc6, fc7 and score layers; "
            "train a network from it with train.py --config.init"
        )
    if not fits:
        raise ValueError(
            f"the layers {', '.join(list(kernels)[:4])} … are of none of the backbones "
            f"{', '.join(BACKBONES)}; build the network with create_model, and use transplant"
        )
    _, backbone_name, backbone, suffixes = max(fits, key=lambda fit: fit[0])
    suffix = suffixes[0]
    first, last = backbone.layers[0], backbone.layers[-1]
    widest = max(
        (layer for layer in backbone.layers if isinstance(layer, Conv) and not layer.dropout),
        key=lambda layer: layer.channels,  # the one that rounding distorts least
    )
    decoder, heads = _decoder(backbone, kernels, suffix)
    skipped = getattr(weights, "skipped", ())
    if decoder == "fcn8s" and any("scale_pool" in text for text in skipped):
        decoder = "fcn8s_atonce"
    decoder = name or decoder
    fc_width = kernels[f"{last.name}{suffix}"].shape[-1] if isinstance(last, Conv) else 1
    return create_model(
        decoder,
        backbone=backbone_name,
        num_classes=heads,
        inputs={end or "image": kernels[f"{first.name}{end}"].shape[2] for end in suffixes},
        width=kernels[f"{widest.name}{suffix}"].shape[-1] / widest.channels,
        fc_width=fc_width,
        padding=padding or ("native" if decoder == "classifier" else "reference"),
        learned_upsampling="none",
    )


def usual_inputs(
    weights: Mapping[str, np.ndarray], model: FCN, modality: str | None = None
) -> Inputs:
    """What the network of some weights reads, and how that is normalised.

    Files of Caffe do not say it. Two inputs and four channels are those of NYUDv2, 40 classes
    its colour network unless ``modality`` says ``hha``, the two heads SIFT Flow's; all others have
    the ImageNet mean.

    Raises:
        ValueError: If the inputs fit neither what the file says nor a published network.
    """
    from fcn_jax.data import DATASETS

    inputs = getattr(weights, "inputs", None) or Inputs.of(CAFFE)
    channels, heads = dict(model.inputs), dict(model.heads)
    if inputs == Inputs.of(CAFFE):
        nyud, sift = (dict(DATASETS[name].preprocessing) for name in ("nyudv2", "sift_flow"))
        image, hha, depth = ({name: nyud[name]} for name in ("image", "hha", "depth"))
        only = next(iter(channels))
        if set(channels) == {"color", "hha"}:
            inputs = Inputs.of({"color": image, "hha": hha})
        elif list(channels.values()) == [4]:
            inputs = Inputs.of({only: image | depth})
        elif modality == "hha":
            inputs = Inputs.of({only: hha})
        elif list(heads.values()) == [40]:
            inputs = Inputs.of({only: image})
        elif set(heads) == {"sem", "geo"}:
            inputs = Inputs.of({only: {"image": sift["image"]}})
        else:
            inputs = Inputs.of({only: {"image": CAFFE}})
    if sorted(inputs.channels.values()) != sorted(channels.values()):
        raise ValueError(
            f"the network reads {channels} channels; what its inputs are is not known: use "
            "fcn_jax.Predictor with fcn_jax.Inputs"
        )
    return inputs


def params_of(weights: Mapping[str, np.ndarray], model: FCN) -> dict[str, Any]:
    """The parameters of a network from its weights; missing transposed convolutions are bilinear.

    Raises:
        ValueError: If any other array is missing, or one is of another shape.
    """
    params, report = transplant(abstract_params(model), weights)
    left = [name for name in report.left if name.rpartition("/")[0] not in model.upsampling_layers]
    if left:
        raise ValueError(f"missing in the file: {', '.join(left)}")
    bilinear = initial_params(model, jax.random.key(0), report.left)
    return unflatten({**flatten(params), **bilinear})


def _backbones() -> dict[str, Backbone]:
    """All backbones at their full width."""
    return {name: build("reference", 1.0, 4096) for name, build in BACKBONES.items()}


def _kernels(weights: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {
        key.rpartition("/")[0]: value for key, value in weights.items() if key.endswith("/kernel")
    }


def _is_backbone(backbone: Backbone, kernels: Mapping[str, np.ndarray], suffix: str) -> bool:
    """Whether every convolution of a backbone is there, of its kernel and groups."""
    channels: dict[str, int] = {}
    last = ""
    for layer in backbone.layers:
        if isinstance(layer, Concat):
            channels[layer.name] = sum(channels[name] for name in layer.sources)
        elif isinstance(layer, Conv):
            kernel = kernels.get(f"{layer.name}{suffix}")
            if kernel is None:
                return False
            before = channels.get(layer.source or last)
            size = layer.window.kernel
            if kernel.ndim == 2:  # dense, as classifiers have them
                fits = before is None or kernel.shape[0] == size * size * before
            else:
                fits = kernel.shape[:2] == (size, size)
                fits = fits and (before is None or kernel.shape[2] * layer.groups == before)
            if not fits:
                return False
            channels[layer.name] = kernel.shape[-1]
        else:
            channels[layer.name] = channels[layer.source or last]
        last = layer.name
    return True


def _decoder(
    backbone: Backbone, kernels: Mapping[str, np.ndarray], suffix: str
) -> tuple[str, int | dict[str, int]]:
    """The network's name, and its classes by head."""
    heads = [
        layer.removeprefix("score_fr").removesuffix(suffix)
        for layer in kernels
        if layer.startswith("score_fr") and layer.endswith(suffix)
    ]
    if not heads:
        if backbone.classifier not in kernels:
            raise ValueError(
                f"the file has a backbone, but neither score_fr nor {backbone.classifier}: nothing "
                "that scores classes; train a network from it with train.py --config.init"
            )
        return "classifier", kernels[backbone.classifier].shape[-1]
    skips = sum(f"score_{skip}{heads[0]}{suffix}" in kernels for skip in backbone.skips)
    classes = {
        head.removeprefix("_"): kernels[f"score_fr{head}{suffix}"].shape[-1] for head in heads
    }
    return ("fcn32s", "fcn16s", "fcn8s")[skips], classes if heads[0] else classes[""]
