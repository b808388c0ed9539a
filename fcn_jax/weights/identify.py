"""From the names and shapes of weights to the network that they belong to.

Published files hold parameters and no network. Their layers tell which backbone, decoder, heads and
inputs they are of. FCN-8s at-once has the parameters of FCN-8s; its Caffe file has scale layers
besides, and of other files one has to say so.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from fcn_jax.models.backbones import BACKBONES, Conv, Padding
from fcn_jax.models.fcn import FCN, abstract_params, create_model, initial_params
from fcn_jax.models.inputs import CAFFE, Inputs
from fcn_jax.weights.arrays import flatten, unflatten
from fcn_jax.weights.transplanting import transplant


@functools.cache
def backbone_layers() -> frozenset[str]:
    """The convolutions of all backbones that there are, but fc6 and fc7."""
    backbones = [build("native", 1.0, 1) for build in BACKBONES.values()]
    return frozenset(layer.name for backbone in backbones for layer in backbone.convolutions)


def backbones_of(weights: Mapping[str, np.ndarray], suffix: str = "") -> dict[str, float]:
    """The backbones that have just the convolutions of the weights, and the width of each.

    Dense layers, fc6 and fc7 do not count. Layers of a network of several inputs end with a
    ``suffix``, the name of their input.
    """
    kernels = {
        name.removesuffix(f"{suffix}/kernel"): value
        for name, value in weights.items()
        if name.endswith(f"{suffix}/kernel")
    }
    found = {}
    for name, build in BACKBONES.items():
        layers = build("native", 1.0, 1).convolutions
        if {layer.name for layer in layers} != backbone_layers() & set(kernels):
            continue
        widest = max(layers, key=lambda layer: layer.channels)  # the one rounding distorts least
        width = kernels[widest.name].shape[-1] / widest.channels
        expected = {
            layer.name: (layer.window.kernel, layer.window.kernel, layer.channels)
            for layer in build("native", width, 1).convolutions
        }
        shapes = {name: kernels[name].shape[:2] + kernels[name].shape[3:] for name in expected}
        if shapes == expected:
            found[name] = width
    return found


def network_of(
    weights: Mapping[str, np.ndarray], name: str | None = None, padding: Padding | None = None
) -> FCN:
    """The network of some weights: backbone, decoder, widths, classes, heads and inputs.

    Args:
        weights: Arrays by ``layer/kernel`` and ``layer/bias``, as `fcn_jax.weights.load` gives.
        name: The network (``fcn8s_atonce``), where it is not the one that the layers suggest.
        padding: That of the published networks, ``reference``, where None (of a classifier
            ``native``, of ``fcn_interpolated`` ``same``); networks trained here have ``same``
            unless their config says otherwise.

    Raises:
        ValueError: If the layers are no backbone's, or it has neither score layers nor a
            classifier.
    """
    channels = {
        key.removesuffix("/kernel"): value.shape[-1]
        for key, value in weights.items()
        if key.endswith("/kernel")
    }
    firsts = {build("native", 1.0, 1).layers[0].name for build in BACKBONES.values()}
    ends = [
        layer.removeprefix(first)
        for layer in channels
        for first in firsts
        if layer.startswith(first)
    ]
    fits = {end: found for end in ends if (found := backbones_of(weights, end))}
    if not fits:
        raise ValueError(
            f"the layers {', '.join(list(channels)[:4])} … are of none of the backbones "
            f"{', '.join(BACKBONES)}; build the network with create_model, and use transplant"
        )
    end, found = next(iter(fits.items()))
    # resnet50_dilated is resnet50 and a head.
    backbone_name = max(
        found,
        key=lambda name: sum(
            isinstance(layer, Conv) and f"{layer.name}{end}" in channels
            for layer in BACKBONES[name]("native", 1.0, 1).layers
        ),
    )
    width = found[backbone_name]
    backbone = BACKBONES[backbone_name]("native", 1.0, 1)
    layers = [layer.name for layer in backbone.layers if isinstance(layer, Conv)]
    heads = [
        layer.removeprefix("score_fr").removesuffix(end)
        for layer in channels
        if layer.startswith("score_fr") and layer.endswith(end)
    ]
    missing = [layer for layer in layers if f"{layer}{end}" not in channels]
    if not heads and backbone.classifier not in channels:
        missing.append(f"score_fr or {backbone.classifier}")
    if missing:
        raise ValueError(
            f"the file has the backbone of {backbone_name} without {', '.join(missing)}; train a "
            "network from it with train.py --config.init"
        )
    if heads:
        skips = sum(f"score_{skip}{heads[0]}{end}" in channels for skip in backbone.skips)
        decoder = ("fcn32s", "fcn16s", "fcn8s", "fcn4s", "fcn2s")[skips]
        if backbone_name.endswith("_dilated") and not any(
            n.startswith("upscore") for n in channels
        ):
            decoder = "fcn_interpolated"
        classes = {head.removeprefix("_"): channels[f"score_fr{head}{end}"] for head in heads}
    else:
        decoder, classes = "classifier", {"": channels[backbone.classifier]}
    if decoder == "fcn8s" and any("scale_pool" in text for text in getattr(weights, "skipped", ())):
        decoder = "fcn8s_atonce"
    decoder = name or decoder
    usual: dict[str, Padding] = {"classifier": "native", "fcn_interpolated": "same"}
    return create_model(
        decoder,
        backbone=backbone_name,
        num_classes=classes.get("", classes),
        inputs={
            end or "image": weights[f"{backbone.layers[0].name}{end}/kernel"].shape[2]
            for end in fits
        },
        width=width,
        fc_width=channels[f"{layers[-1]}{end}"],  # of fc7; without one it does not matter
        padding=padding or usual.get(decoder, "reference"),
        learned_upsampling="none",
    )


def usual_inputs(
    weights: Mapping[str, np.ndarray], model: FCN, modality: str | None = None
) -> Inputs:
    """What the network of some weights reads, and how that is normalised.

    Files of Caffe do not say it. Two inputs and four channels are those of NYUDv2, 40 classes
    its colour network unless ``modality`` says ``hha``, the two heads SIFT Flow's; all others have
    the ImageNet mean.
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
    """The parameters of a network from its weights, without gaps.

    Missing transposed convolutions are bilinear; any other gap or another shape is a ValueError.
    """
    params, report = transplant(abstract_params(model), weights)
    left = [name for name in report.left if name.rpartition("/")[0] not in model.upsampling_layers]
    if left:
        raise ValueError(f"missing in the file: {', '.join(left)}")
    if not report.left:  # nothing to trace and compile
        return params
    bilinear = initial_params(model, jax.random.key(0), report.left)
    return unflatten({**flatten(params), **bilinear})
