"""Keras' VGG16 and VGG19 (`.h5`), with and without their dense layers.

Keras has written the same arrays under many paths:

- ``block1_conv1/block1_conv1_W_1:0`` (Keras 1: the files of keras.applications),
- ``block1_conv1/block1_conv1/kernel:0`` (Keras 2), below ``model_weights`` in whole models, and
  without ``:0`` since Keras 3,
- ``layers/conv2d_3/vars/0`` (Keras 3, ``.weights.h5``), where the layers are only numbered.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from fcn_jax.models.inputs import Inputs, Preprocessing
from fcn_jax.weights import hdf5
from fcn_jax.weights.arrays import Weights, float32
from fcn_jax.weights.dense import conv_to_dense, dense_to_conv
from fcn_jax.weights.torch_names import VGG_STAGES

INPUTS = Inputs.of(Preprocessing("bgr", (103.939, 116.779, 123.68)))

_NETWORKS = {
    f"Keras {name}": {
        f"block{stage}_conv{conv}": f"conv{stage}_{conv}"
        for stage, convs in enumerate(convs_per_stage, 1)
        for conv in range(1, convs + 1)
    }
    for name, convs_per_stage in VGG_STAGES.items()
}
"""Our names of the convolutions by Keras' names, in order."""

_DENSE = {"fc1": "fc6", "fc2": "fc7", "predictions": "fc8"}

# How the end of a path tells the layer and the array.
_PATHS = (
    re.compile(r"(?:^|/)([^/]+)/(kernel|bias)(?::0)?$"),
    re.compile(r"(?:^|/)([^/]+?)_(W|b)(?:_\d+)?(?::0)?$"),
    re.compile(r"(?:^|/)([^/]+)/vars/([01])$"),
)
_NUMBERED = re.compile(r"(conv2d|dense)(?:_(\d+))?$")


def read(path: Path) -> Weights:
    """Reads the kernels and biases.

    Dense kernels come out over maps in Caffe's order (channel, row, column).

    Raises:
        ValueError: If the file is damaged, or the network is no VGG; everything that is missing
            or odd in one message.
    """
    layers, strangers = _layers(hdf5.read_arrays(path, without=("optimizer_weights", "optimizer")))
    kind, names = _recognise(layers)
    problems = []
    for layer in names:
        if layer in layers or layer not in _DENSE:
            problems += _mistakes(layer, layers.get(layer, {}))
    if problems:
        raise ValueError(f"a {kind} with mistakes:\n  " + "\n  ".join(problems))

    weights = Weights(inputs=INPUTS, kind=kind)
    channels = 0
    for theirs, ours in names.items():
        if theirs in layers:
            arrays = layers.pop(theirs)
            kernel, bias = arrays["kernel"], arrays["bias"]
            if theirs == "fc1":  # over a map flattened as (row, column, channel)
                side = math.isqrt(len(kernel) // max(channels, 1))
                if side * side * channels != len(kernel):
                    raise ValueError(
                        f"fc1 has {len(kernel)} inputs: no square map of {channels} channels"
                    )
                shape = (side, side, channels, kernel.shape[1])
                kernel = np.asarray(conv_to_dense(dense_to_conv(kernel, shape, "hwc"), "chw"))
            channels = bias.size
            weights[f"{ours}/kernel"] = float32(kernel, copy=False)
            weights[f"{ours}/bias"] = float32(bias, copy=False)
    others = [f"{layer} (another layer)" for layer in layers]
    weights.skipped = (*strangers, *others)
    return weights


def _layers(
    arrays: Mapping[str, np.ndarray],
) -> tuple[dict[str, dict[str, np.ndarray]], list[str]]:
    """Arrays by layer and by ``kernel`` or ``bias``, and the paths that tell no layer."""
    layers: dict[str, dict[str, np.ndarray]] = {}
    strangers = []
    for path, value in arrays.items():
        match = next((m for pattern in _PATHS if (m := pattern.search(path))), None)
        if match is None:
            strangers.append(f"{path} {value.shape}")
            continue
        kind = "bias" if match[2] in ("bias", "b", "1") else "kernel"
        if kind in layers.setdefault(match[1], {}):
            raise ValueError(f"two arrays for the {kind} of {match[1]}")
        layers[match[1]][kind] = value
    return _with_names(layers), strangers


def _with_names(layers: dict[str, dict[str, np.ndarray]]) -> dict[str, dict[str, np.ndarray]]:
    """Layers that only have numbers get the names they have in keras.applications."""
    numbered = {layer: match for layer in layers if (match := _NUMBERED.match(layer))}
    if any(layer.startswith("block1_") for layer in layers):
        return layers
    in_order = sorted(numbered, key=lambda layer: int(numbered[layer][2] or 0))
    convolutions = [layer for layer in in_order if numbered[layer][1] == "conv2d"]
    dense = [layer for layer in in_order if numbered[layer][1] == "dense"]
    for names in _NETWORKS.values():
        if len(convolutions) == len(names):
            renamed = dict(zip(convolutions, names, strict=True))
            if len(dense) == len(_DENSE):
                renamed |= dict(zip(dense, _DENSE, strict=True))
            return {renamed.get(layer, layer): arrays for layer, arrays in layers.items()}
    return layers


def _recognise(layers: Mapping[str, object]) -> tuple[str, dict[str, str]]:
    """The network, and our name of each of its layers."""
    blocks = {layer for layer in layers if re.match(r"block\d+_conv\d+$", layer)}
    for kind, convolutions in _NETWORKS.items():
        if blocks == set(convolutions):
            return kind, convolutions | _DENSE
    names = ", ".join(layer[:60] for layer in list(layers)[:6]) or "none"
    raise ValueError(
        f"a Keras file of another network, with the layers {names} …; known are "
        f"{', '.join(_NETWORKS)} with layers block1_conv1 and so on"
    )


def _mistakes(layer: str, arrays: Mapping[str, np.ndarray]) -> list[str]:
    if missing := [name for name in ("kernel", "bias") if name not in arrays]:
        return [f"{layer} has no {name}" for name in missing]
    kernel, bias = arrays["kernel"].shape, arrays["bias"].shape
    axes = 2 if layer in _DENSE else 4
    if len(kernel) != axes or bias != kernel[-1:] or (axes == 4 and kernel[:2] != (3, 3)):
        expected = "(in, out)" if axes == 2 else "(3, 3, in, out)"
        return [f"{layer} has a kernel {kernel}, expected {expected}, and a bias {bias}"]
    return []
