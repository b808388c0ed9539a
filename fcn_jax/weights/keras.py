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

from fcn_jax.models.inputs import Preprocessing
from fcn_jax.weights import hdf5
from fcn_jax.weights.arrays import Weights, float32
from fcn_jax.weights.dense import conv_to_dense, dense_to_conv

PREPROCESSING = Preprocessing("bgr", (103.939, 116.779, 123.68))

_STAGES = {
    "Keras vgg11": (1, 1, 2, 2, 2),
    "Keras vgg13": (2, 2, 2, 2, 2),
    "Keras vgg16": (2, 2, 3, 3, 3),
    "Keras vgg19": (2, 2, 4, 4, 4),
}
_DENSE = {"fc1": "fc6", "fc2": "fc7", "predictions": "fc8"}
_KINDS = {
    "kernel": "kernel",
    "W": "kernel",
    "0": "kernel",
    "bias": "bias",
    "b": "bias",
    "1": "bias",
}

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

    weights = Weights(preprocessing=PREPROCESSING, kind=kind)
    channels = 0
    for theirs, ours in names.items():
        if theirs in layers:
            arrays = layers.pop(theirs)
            kernel, bias = arrays["kernel"], arrays["bias"]
            if theirs == "fc1":
                kernel = _reordered(kernel, channels)
            channels = bias.size
            weights[f"{ours}/kernel"] = _as_float32(kernel)
            weights[f"{ours}/bias"] = _as_float32(bias)
    others = [f"{layer} (another layer)" for layer in layers]
    weights.skipped = (*strangers, *others)
    return weights


def _as_float32(value: np.ndarray) -> np.ndarray:
    """The array itself where it is float32: it was read for us alone."""
    return value if value.dtype == np.float32 else float32(value)


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
        of_layer = layers.setdefault(match[1], {})
        if _KINDS[match[2]] in of_layer:
            raise ValueError(f"two arrays for the {_KINDS[match[2]]} of {match[1]}")
        of_layer[_KINDS[match[2]]] = value
    return _with_names(layers), strangers


def _with_names(layers: dict[str, dict[str, np.ndarray]]) -> dict[str, dict[str, np.ndarray]]:
    """Layers that only have numbers get the names they have in keras.applications."""
    numbered = {layer: match for layer in layers if (match := _NUMBERED.match(layer))}
    if any(layer.startswith("block1_") for layer in layers):
        return layers
    in_order = sorted(numbered, key=lambda layer: int(numbered[layer][2] or 0))
    convolutions = [layer for layer in in_order if numbered[layer][1] == "conv2d"]
    dense = [layer for layer in in_order if numbered[layer][1] == "dense"]
    for stages in _STAGES.values():
        if len(convolutions) == sum(stages):
            renamed = dict(zip(convolutions, _convolutions(stages), strict=True))
            if len(dense) == len(_DENSE):
                renamed |= dict(zip(dense, _DENSE, strict=True))
            return {renamed.get(layer, layer): arrays for layer, arrays in layers.items()}
    return layers


def _recognise(layers: Mapping[str, object]) -> tuple[str, dict[str, str]]:
    """The network, and our name of each of its layers."""
    blocks = {layer for layer in layers if re.match(r"block\d+_conv\d+$", layer)}
    for kind, stages in _STAGES.items():
        convolutions = _convolutions(stages)
        if blocks == set(convolutions):
            return kind, convolutions | _DENSE
    names = ", ".join(layer[:60] for layer in list(layers)[:6]) or "none"
    raise ValueError(
        f"a Keras file of another network, with the layers {names} …; known are "
        f"{', '.join(_STAGES)} with layers block1_conv1 and so on"
    )


def _convolutions(stages: tuple[int, ...]) -> dict[str, str]:
    """Our names of the convolutions by Keras' names, in order."""
    return {
        f"block{stage}_conv{conv}": f"conv{stage}_{conv}"
        for stage, convs in enumerate(stages, 1)
        for conv in range(1, convs + 1)
    }


def _mistakes(layer: str, arrays: Mapping[str, np.ndarray]) -> list[str]:
    if missing := [name for name in ("kernel", "bias") if name not in arrays]:
        return [f"{layer} has no {name}" for name in missing]
    kernel, bias = arrays["kernel"].shape, arrays["bias"].shape
    axes = 2 if layer in _DENSE else 4
    if len(kernel) != axes or bias != kernel[-1:] or (axes == 4 and kernel[:2] != (3, 3)):
        expected = "(in, out)" if axes == 2 else "(3, 3, in, out)"
        return [f"{layer} has a kernel {kernel}, expected {expected}, and a bias {bias}"]
    return []


def _reordered(dense: np.ndarray, channels: int) -> np.ndarray:
    """fc1 over a map flattened as (channel, row, column), from Keras' (row, column, channel)."""
    inputs, outputs = dense.shape
    side = math.isqrt(inputs // channels)
    if side * side * channels != inputs:
        raise ValueError(f"fc1 has {inputs} inputs, which is no square map of {channels} channels")
    kernel = dense_to_conv(dense, (side, side, channels, outputs), "hwc")
    return conv_to_dense(kernel, "chw")
