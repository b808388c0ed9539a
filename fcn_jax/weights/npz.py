"""numpy archives: Caffe's blobs under Caffe's names, and this package's own arrays.

``LAYER/w`` (out, in, height, width, or out, in) and ``LAYER/b`` are Caffe's; ``LAYER/kernel`` and
``LAYER/bias`` are in our layout. A member ``__fcn_jax__`` holds `metadata` as bytes.
"""

from __future__ import annotations

import tokenize
import zipfile
from pathlib import Path
from typing import IO, Any

import numpy as np

from fcn_jax.models.inputs import Preprocessing
from fcn_jax.weights import metadata
from fcn_jax.weights.arrays import Weights, convolution_kernel, float32
from fcn_jax.weights.zipped import open_zip

METADATA = "__fcn_jax__"

_HEADER_ERRORS = (
    ArithmeticError,
    LookupError,
    MemoryError,
    RecursionError,
    SyntaxError,
    TypeError,
    ValueError,
    tokenize.TokenError,
)
"""What numpy raises on a damaged header, which it parses as Python."""


def read(path: Path) -> Weights:
    """Reads an archive.

    Raises:
        ValueError: If it is damaged, or holds arrays of unknown meaning; all in one message.
    """
    weights = Weights()
    described = b""
    problems = []
    ours = True
    with open_zip(path) as archive:
        for info in archive.infolist():
            name = info.filename.removesuffix(".npy")
            if name == METADATA:
                described = _read_array(archive, info).tobytes()
                continue
            value = _read_array(archive, info)
            layer, _, kind = name.rpartition("/")
            array = _in_our_layout(kind, value) if layer and value.dtype.kind == "f" else None
            if array is None:
                problems.append(f"{name} ({value.dtype}, {value.shape})")
                continue
            weights[f"{layer}/{'bias' if kind in ('b', 'bias') else 'kernel'}"] = array
            ours = ours and kind in ("kernel", "bias")
    if problems:
        raise ValueError(
            "expected floating-point arrays named LAYER/kernel and LAYER/bias, or LAYER/w (2 or "
            f"4 axes) and LAYER/b; found {', '.join(problems)}"
        )
    weights.kind = "fcn_jax arrays (.npz)" if ours else "Caffe blobs (.npz)"
    weights.preprocessing = metadata.decode(described) if ours else Preprocessing()
    return weights


def _in_our_layout(kind: str, value: np.ndarray) -> np.ndarray | None:
    """None if an array of this kind has no meaning with so many axes."""
    match kind, value.ndim:
        case ("b", _):
            return float32(value.reshape(-1))
        case ("w", 4):
            return float32(convolution_kernel(value))
        case ("w", 2):
            return float32(value.T)
        case ("kernel", 2 | 4) | ("bias", 1):
            return float32(value)
    return None


def _read_array(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> np.ndarray:
    """One member, whose header must agree with its size before anything is allocated."""
    with archive.open(info) as file:
        try:
            shape, fortran, dtype = _read_header(file)
        except _HEADER_ERRORS as error:
            raise ValueError(f"{info.filename} is no numpy array: {str(error)[:80]}") from error
        count = 1
        for size in shape:
            count *= size
        left = info.file_size - file.tell()
        if min(shape, default=0) < 0 or dtype.hasobject or count * dtype.itemsize != left:
            raise ValueError(
                f"{info.filename} has {left} bytes for an array of {dtype} and {shape}"
            )
        data = file.read(left)
    values = np.frombuffer(data, dtype, count) if count else np.zeros(0, dtype)
    return values.reshape(shape[::-1]).T if fortran else values.reshape(shape)


def _read_header(file: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    version = np.lib.format.read_magic(file)
    if version == (1, 0):
        return np.lib.format.read_array_header_1_0(file)
    return np.lib.format.read_array_header_2_0(file)
