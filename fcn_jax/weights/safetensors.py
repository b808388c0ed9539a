"""`.safetensors` files: this package's own arrays, and PyTorch's models."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from fcn_jax.weights import torch_names
from fcn_jax.weights.arrays import Weights, described, under_our_names

MAX_HEADER = 32 << 20
"""Bytes of the header: some hundred for each tensor, 16 for each image it was trained on."""

DESCRIPTION = "fcn_jax"
"""Key of the `description` in the header's metadata."""


def recognises(head: bytes) -> bool:
    """Whether a file begins with the length of a header and the header's brace."""
    return len(head) > 9 and head[8:9] == b"{" and int.from_bytes(head[:8], "little") >= 2


def read(path: Path) -> Weights:
    """Reads a file of ours (``layer/kernel``) or of a PyTorch model."""
    from safetensors import SafetensorError, safe_open

    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
    if size > min(MAX_HEADER, path.stat().st_size - 8):
        raise ValueError(f"truncated or damaged: a header that claims {size} bytes")
    try:
        with safe_open(path, framework="np") as file:
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            metadata = file.metadata() or {}
    except (SafetensorError, AttributeError, OSError, TypeError) as error:
        raise ValueError(f"damaged: {str(error)[:200]}") from error
    if not all(name.endswith(("/kernel", "/bias")) for name in arrays):
        return torch_names.translate(arrays)
    weights = Weights(under_our_names(arrays), kind="fcn_jax arrays (.safetensors)")
    return described(weights, metadata.get(DESCRIPTION, ""))


def write(path: Path, arrays: Mapping[str, np.ndarray], description: str) -> None:
    """Writes arrays in our layout, and their description."""
    from safetensors.numpy import save_file

    contiguous = {name: np.ascontiguousarray(array, "<f4") for name, array in arrays.items()}
    save_file(contiguous, path, {DESCRIPTION: description})
