"""Keras' VGG16 and VGG19 (`.h5`), with and without their dense layers.

Keras has written the same arrays under many paths:

- ``block1_conv1/block1_conv1_W_1:0`` (Keras 1: the files of keras.applications),
- ``block1_conv1/block1_conv1/kernel:0`` (Keras 2), below ``model_weights`` in whole models, and
  without ``:0`` since Keras 3,
- ``layers/conv2d_3/vars/0`` (Keras 3, ``.weights.h5``), where the layers are only numbered.

The HDF5 library follows what a file says: links into other files, filters, sizes. So the file's
structure is looked at first, and only plain datasets of believable size are read. h5py 3.16 brings
HDF5 2.0, which took 80000 mutated files without a crash or a slow read; earlier ones are known to
crash.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from fcn_jax.data.hdf5 import checked_size, member
from fcn_jax.models.backbones import BACKBONES
from fcn_jax.models.inputs import Inputs, Preprocessing
from fcn_jax.weights.arrays import Weights, most_bytes
from fcn_jax.weights.dense import conv_to_dense, dense_to_conv

INPUTS = Inputs.of(Preprocessing("bgr", (103.939, 116.779, 123.68)))

_NETWORKS = {
    f"Keras {name}": {
        re.sub(r"conv(\d)_(\d)", r"block\1_conv\2", layer.name): layer.name
        for layer in BACKBONES[name]("native", 1.0, 1).convolutions
    }
    for name in ("vgg11", "vgg13", "vgg16", "vgg19")
}
"""Our names of the convolutions by Keras' names, in order."""

_DENSE = {"fc1": "fc6", "fc2": "fc7", "predictions": "fc8"}

# How the end of a path tells the layer and the array.
_PATHS = (
    re.compile(r"(?:^|/)([^/]+)/(kernel|bias)(?::0)?$"),
    re.compile(r"(?:^|/)([^/]+?)_(W|b)(?:_\d+)?(?::0)?$"),
    re.compile(r"(?:^|/)([^/]+)/vars/([01])$"),
)


def recognises(head: bytes) -> bool:
    """Whether a file has the signature, at the start or behind a user block; not MATLAB's own."""
    return not head.startswith(b"MATLAB") and any(
        head.startswith(b"\x89HDF\r\n\x1a\n", start) for start in (0, 512, 1024, 2048)
    )


def read(path: Path) -> Weights:
    """Reads the kernels and biases, the dense kernels with their inputs in Caffe's order."""
    layers: dict[str, dict[str, np.ndarray]] = {}
    skipped = []
    for name, value in _read_arrays(path).items():
        match = next((m for pattern in _PATHS if (m := pattern.search(name))), None)
        if match is None:
            skipped.append(f"{name} {value.shape}")
            continue
        array = "bias" if match[2] in ("bias", "b", "1") else "kernel"
        if array in layers.setdefault(match[1], {}):
            raise ValueError(f"two arrays for the {array} of {match[1]}")
        layers[match[1]][array] = value
    layers = _with_names(layers)
    blocks = {layer for layer in layers if re.match(r"block\d+_conv\d+$", layer)}
    kind = next((kind for kind, names in _NETWORKS.items() if blocks == set(names)), None)
    if kind is None:
        names = ", ".join(layer[:60] for layer in list(layers)[:6]) or "none"
        raise ValueError(
            f"a Keras file of another network, with the layers {names} …; known are "
            f"{', '.join(_NETWORKS)} with layers block1_conv1 and so on"
        )
    weights = Weights(inputs=INPUTS, kind=kind)
    problems = []
    channels = 0
    for theirs, ours in {**_NETWORKS[kind], **_DENSE}.items():
        if theirs not in layers:
            continue
        arrays = layers.pop(theirs)
        if missing := [name for name in ("kernel", "bias") if name not in arrays]:
            problems += [f"{theirs} has no {name}" for name in missing]
            continue
        kernel, bias = arrays["kernel"], arrays["bias"]
        fits = kernel.ndim == 2 if theirs in _DENSE else kernel.shape[:-2] == (3, 3)
        if not fits or bias.shape != kernel.shape[-1:]:
            expected = "(in, out)" if theirs in _DENSE else "(3, 3, in, out)"
            wrong = f"{theirs} has a kernel {kernel.shape} and a bias {bias.shape}"
            problems.append(f"{wrong}, expected {expected} and (out,)")
            continue
        if theirs == "fc1":  # over a map flattened as (row, column, channel)
            side = math.isqrt(len(kernel) // max(channels, 1))
            if side * side * channels != len(kernel):
                problems.append(
                    f"fc1 has {len(kernel)} inputs: no square map of {channels} channels"
                )
                continue
            shape = (side, side, channels, kernel.shape[1])
            kernel = np.asarray(conv_to_dense(dense_to_conv(kernel, shape, "hwc"), "chw"))
        channels = bias.size
        weights[f"{ours}/kernel"], weights[f"{ours}/bias"] = kernel, bias
    if problems:
        raise ValueError(f"a {kind} with mistakes:\n  " + "\n  ".join(problems))
    weights.skipped = (*skipped, *(f"{layer} (another layer)" for layer in layers))
    return weights


def _with_names(layers: Mapping[str, dict[str, np.ndarray]]) -> dict[str, dict[str, np.ndarray]]:
    """Layers that only have numbers get the names they have in keras.applications."""
    numbered: dict[str, list[tuple[int, str]]] = {"conv2d": [], "dense": []}
    for layer in layers:
        if match := re.match(r"(conv2d|dense)(?:_(\d+))?$", layer):
            numbered[match[1]].append((int(match[2] or 0), layer))
    convolutions, dense = ([layer for _, layer in sorted(found)] for found in numbered.values())
    renamed: dict[str, str] = {}
    for names in _NETWORKS.values():
        if len(convolutions) == len(names) and not any(name in layers for name in names):
            renamed = dict(zip(convolutions, names, strict=True))
            renamed |= dict(zip(dense, _DENSE, strict=True)) if len(dense) == len(_DENSE) else {}
    return {renamed.get(layer, layer): arrays for layer, arrays in layers.items()}


# ======================================================================== HDF5

MAX_OBJECTS = 5000
MAX_DEPTH = 12


def _read_arrays(path: Path) -> dict[str, np.ndarray]:
    """Every floating-point dataset of a file by its path, such as ``conv1/kernel:0``."""
    import h5py  # costs 0.2 s

    size = path.stat().st_size
    try:
        with h5py.File(path, "r", locking=False) as file:
            arrays = {name: data for name, data in _datasets(file) if data.dtype.kind == "f"}
            most = most_bytes(size)
            total = sum(checked_size(name, data, size, most) for name, data in arrays.items())
            if total > most:
                raise ValueError(f"arrays of {total} bytes in a file of {size}")
            return {name: data[...] for name, data in arrays.items()}
    except ValueError:
        raise
    # What h5py raises for a damaged file is any of OSError, RuntimeError, KeyError, TypeError …
    except Exception as error:
        raise ValueError(f"a damaged HDF5 file: {str(error)[:200]}") from error


def _datasets(root: Any) -> Iterator[tuple[str, Any]]:
    """The datasets of a file but an optimiser's; each object is looked at, none is read."""
    import h5py

    left = [(root, "", 0)]
    count = 0
    while left:
        group, prefix, depth = left.pop()
        for name in group:
            count += 1
            if count > MAX_OBJECTS or depth > MAX_DEPTH:
                raise ValueError("more or deeper groups than any network has")
            if not prefix and name in ("optimizer_weights", "optimizer"):
                continue
            value = member(group, name, prefix)
            if isinstance(value, h5py.Group):
                left.append((value, f"{prefix}{name}/", depth + 1))
            elif isinstance(value, h5py.Dataset):
                yield f"{prefix}{name}", value
