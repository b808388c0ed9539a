"""`.safetensors` files: a header of JSON, and the bytes of the tensors in a row.

The header is read by hand, which gives views of the mapped file and takes bfloat16 as it comes.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from fcn_jax.weights import metadata, torch_names
from fcn_jax.weights.arrays import Weights, float32
from fcn_jax.weights.mapped import map_file

DTYPES: dict[str, np.dtype] = {
    name: np.dtype(dtype)
    for name, dtype in {
        "F64": "<f8",
        "F32": "<f4",
        "F16": "<f2",
        "BF16": jnp.bfloat16,
        "I64": "<i8",
        "I32": "<i4",
        "I16": "<i2",
        "I8": "i1",
        "U8": "u1",
        "BOOL": "?",
    }.items()
}
MAX_HEADER = 4 << 20
"""Bytes of the header, some hundred for each tensor."""

METADATA = "fcn_jax"
"""Key of our `metadata` among the header's."""


def recognises(head: bytes) -> bool:
    """Whether a file begins with the length of a header and the header's brace."""
    return len(head) > 9 and head[8:9] == b"{" and int.from_bytes(head[:8], "little") >= 2


def read(path: Path) -> Weights:
    """Reads a file of ours (``layer/kernel``) or of a PyTorch model.

    Raises:
        ValueError: If the file is damaged, or holds the tensors of no known network.
    """
    arrays, texts = _tensors(map_file(path))
    if not all(name.rpartition("/")[2] in ("kernel", "bias") for name in arrays):
        return torch_names.translate(arrays)
    if wrong := [f"{name} {a.shape}" for name, a in arrays.items() if a.ndim not in (1, 2, 4)]:
        raise ValueError(f"arrays with an unexpected number of axes: {', '.join(wrong)}")
    preprocessing = metadata.decode(str(texts.get(METADATA, "")).encode())
    return Weights(
        ((name, float32(value)) for name, value in arrays.items()),
        preprocessing,
        "fcn_jax arrays (.safetensors)",
    )


def _tensors(content: memoryview) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Every tensor as a view of the file, and the texts of the header."""
    size = int.from_bytes(content[:8], "little")
    if size > min(MAX_HEADER, len(content) - 8):
        raise ValueError(f"truncated or damaged: a header that claims {size} bytes")
    try:
        header = json.loads(bytes(content[8 : 8 + size]))
        texts = dict(header.pop("__metadata__", {}))
        entries = {
            name: (DTYPES[entry["dtype"]], tuple(entry["shape"]), tuple(entry["data_offsets"]))
            for name, entry in header.items()
        }
    except (AttributeError, LookupError, RecursionError, TypeError, ValueError) as error:
        raise ValueError(f"a damaged header: {str(error)[:80]}") from error
    return _views(content[8 + size :], entries), texts


def _views(
    data: memoryview, entries: Mapping[str, tuple[np.dtype, tuple[int, ...], tuple[int, ...]]]
) -> dict[str, np.ndarray]:
    """Views of the tensors, which must lie side by side and fill the data."""
    for name, (_, shape, place) in entries.items():
        numbers = (*shape, *place)
        possible = all(type(number) is int and 0 <= number < 1 << 62 for number in numbers)
        if not possible or len(place) != 2 or len(shape) > 8:
            raise ValueError(f"damaged: {name[:80]} with an impossible shape or place")
    position = 0
    for name, (dtype, shape, (begin, end)) in sorted(entries.items(), key=lambda e: e[1][2]):
        if begin != position or end - begin != math.prod(shape) * dtype.itemsize:
            raise ValueError(
                f"damaged: {name[:80]} lies at {begin} to {end}, expected from {position} on "
                f"{shape} numbers of {dtype}"
            )
        position = end
    if position != len(data):
        raise ValueError(f"truncated: tensors of {position} bytes where there are {len(data)}")
    return {
        name: np.frombuffer(data[begin:end], dtype).reshape(shape)
        for name, (dtype, shape, (begin, end)) in entries.items()
    }
