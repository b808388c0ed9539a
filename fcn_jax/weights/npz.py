"""numpy archives: Caffe's blobs under Caffe's names, and this package's own arrays.

``LAYER/w`` and ``LAYER/b`` are Caffe's, ``LAYER/kernel`` and ``LAYER/bias`` in our layout. A member
``__fcn_jax__`` describes the network's inputs.
"""

from __future__ import annotations

import math
import tokenize
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from fcn_jax.models.inputs import CAFFE, Inputs
from fcn_jax.weights.arrays import Weights, described_inputs, under_our_names
from fcn_jax.weights.zipped import open_zip

DESCRIPTION = "__fcn_jax__"


def read(path: Path) -> Weights:
    """Reads an archive."""
    with open_zip(path) as archive:
        arrays = {
            info.filename.removesuffix(".npy"): _read_array(archive, info)
            for info in archive.infolist()
        }
    description = arrays.pop(DESCRIPTION, np.zeros(0, np.uint8)).tobytes()
    weights = Weights(under_our_names(arrays), Inputs.of(CAFFE), "Caffe blobs (.npz)")
    if set(weights) == set(arrays):
        weights.kind = "fcn_jax arrays (.npz)"
        weights.inputs = described_inputs(description.decode(errors="replace"))
    return weights


def write(path: Path, arrays: Mapping[str, np.ndarray], description: str) -> None:
    """Writes arrays in our layout, and the description of the network's inputs."""
    members = {**arrays, DESCRIPTION: np.frombuffer(description.encode(), np.uint8)}
    with path.open("wb") as file:
        np.savez(file, **members)


def _read_array(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> np.ndarray:
    """One member, whose header must agree with its size: numpy allocates what the header says."""
    try:
        with archive.open(info) as file:
            if np.lib.format.read_magic(file) == (1, 0):
                shape, _, dtype = np.lib.format.read_array_header_1_0(file)
            else:
                shape, _, dtype = np.lib.format.read_array_header_2_0(file)
            left = info.file_size - file.tell()
        if min(shape, default=0) < 0 or math.prod(shape) * dtype.itemsize != left:
            raise ValueError(f"{left} bytes for an array of {dtype} and {shape}")
        with archive.open(info) as file:
            return np.lib.format.read_array(file, allow_pickle=False)
    # What numpy raises on a damaged header, which it parses as Python.
    except (
        *(ArithmeticError, LookupError, MemoryError, RecursionError),
        *(SyntaxError, TypeError, ValueError, tokenize.TokenError),
    ) as error:
        raise ValueError(f"{info.filename} is no numpy array: {str(error)[:80]}") from error
