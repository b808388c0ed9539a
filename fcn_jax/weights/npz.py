"""numpy archives: Caffe's blobs under Caffe's names, VGG's of TensorFlow, and our own arrays.

``LAYER/w`` and ``LAYER/b`` are Caffe's, ``LAYER_W`` and ``LAYER_b`` TensorFlow's
(``vgg16_weights.npz``), ``LAYER/kernel`` and ``LAYER/bias`` in our layout. A member ``__fcn_jax__``
is their `description`.
"""

from __future__ import annotations

import math
import re
import tokenize
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from fcn_jax.models.inputs import CAFFE, Inputs, Preprocessing
from fcn_jax.weights.arrays import Weights, aligned, described, under_our_names
from fcn_jax.weights.dense import conv_to_dense, dense_to_conv
from fcn_jax.weights.zipped import open_zip

DESCRIPTION = "__fcn_jax__"

TENSORFLOW = Inputs.of(Preprocessing("rgb", (123.68, 116.779, 103.939)))
"""What the networks of ``vgg16_weights.npz`` read: Caffe's pixels in the order RGB."""


def read(path: Path) -> Weights:
    """Reads an archive."""
    with open_zip(path) as archive:
        arrays = {
            info.filename.removesuffix(".npy"): _read_array(archive, info)
            for info in archive.infolist()
        }
    description = arrays.pop(DESCRIPTION, np.zeros(0, np.uint8)).tobytes()
    if arrays and all(re.fullmatch(r"\w+_[Wb]", name) for name in arrays):
        ours = under_our_names(from_tensorflow(arrays))
        return Weights(ours, TENSORFLOW, "VGG of TensorFlow (.npz)")
    weights = Weights(under_our_names(arrays), Inputs.of(CAFFE), "Caffe blobs (.npz)")
    if set(weights) == set(arrays):
        weights.kind = "fcn_jax arrays (.npz)"
        described(weights, description.decode(errors="replace"))
    return weights


def from_tensorflow(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """``LAYER_W`` and ``LAYER_b`` under our names.

    The inputs of fc6, a map flattened (row, column, channel), get our order.
    """
    ours = {
        f"{name[:-2]}/{'kernel' if name.endswith('W') else 'bias'}": value
        for name, value in arrays.items()
    }
    fc6 = ours.get("fc6/kernel")
    if fc6 is not None and fc6.ndim == 2:
        channels = max([v.shape[-1] for v in ours.values() if v.ndim == 4], default=1)
        side = math.isqrt(len(fc6) // max(channels, 1))
        if side * side * channels != len(fc6):
            raise ValueError(f"fc6_W has {len(fc6)} inputs: no square map of {channels} channels")
        kernel = dense_to_conv(fc6, (side, side, channels, fc6.shape[1]), "hwc")
        ours["fc6/kernel"] = np.asarray(conv_to_dense(kernel, "chw"))
    return ours


def write(path: Path, arrays: Mapping[str, np.ndarray], description: str) -> None:
    """Writes arrays in our layout, and their description."""
    members = {**arrays, DESCRIPTION: np.frombuffer(description.encode(), np.uint8)}
    with path.open("wb") as file:
        np.savez(file, **members)


def _read_array(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> np.ndarray:
    """One member, whose header must agree with its size: numpy allocates what the header says."""
    try:
        with archive.open(info) as file:
            if np.lib.format.read_magic(file) == (1, 0):
                shape, columns_first, dtype = np.lib.format.read_array_header_1_0(file)
            else:
                shape, columns_first, dtype = np.lib.format.read_array_header_2_0(file)
            left = info.file_size - file.tell()
            if min(shape, default=0) < 0 or math.prod(shape) * dtype.itemsize != left:
                raise ValueError(f"{left} bytes for an array of {dtype} and {shape}")
            if dtype.hasobject:
                raise ValueError("an array of objects")
            array = aligned(shape[::-1] if columns_first else shape, dtype)
            room, done = array.reshape(-1).view(np.uint8), 0
            while part := file.read(2**20):  # to the end, where the checksum is compared
                room[done : done + len(part)] = np.frombuffer(part, np.uint8)
                done += len(part)
        if done != left:
            raise ValueError(f"{done} of {left} bytes")
        return array.T if columns_first else array
    # What numpy raises on a damaged header, which it parses as Python.
    except (
        *(ArithmeticError, LookupError, MemoryError, RecursionError),
        *(SyntaxError, TypeError, ValueError, tokenize.TokenError),
    ) as error:
        raise ValueError(f"{info.filename} is no numpy array: {str(error)[:80]}") from error
