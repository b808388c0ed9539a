"""Writing weights: `.npz`, `.safetensors`, and a state dict of PyTorch, without PyTorch."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np

from fcn_jax.models.inputs import Inputs
from fcn_jax.weights import npz, safetensors, torch
from fcn_jax.weights.arrays import Weights, description, flatten

Kind = Literal["npz", "safetensors", "pytorch-fcn"]

_WRITERS = {"npz": npz.write, "safetensors": safetensors.write, "pytorch-fcn": torch.write}
_SUFFIXES: dict[str, Kind] = {
    ".npz": "npz",
    ".safetensors": "safetensors",
    ".pth": "pytorch-fcn",
    ".pt": "pytorch-fcn",
}


def save(
    path: str | Path,
    params: Mapping[str, Any],
    kind: Kind | None = None,
    inputs: Inputs | None = None,
    trained_on: Iterable[str] | None = None,
) -> None:
    """Writes parameters to a file that `fcn_jax.weights.load` reads back exactly.

    The file appears under its name when it is complete; a kill leaves what was there before.

    Args:
        path: Where to.
        params: ``{layer: {"kernel": …, "bias": …}}`` or flat by ``layer/kernel``. `Weights` (of a
            run: ``load("runs/mine")``) carry along what is known of their network.
        kind: The format; None goes by the suffix. ``pytorch-fcn`` is a state dict with the names
            of Wada's pytorch-fcn (``conv1_1.weight``), which ``torch.load`` opens.
        inputs: What the network reads, and how that is normalised. None takes what `Weights`
            carry.
        trained_on: Digests of the images it was trained on (`fcn_jax.runs.Run`), so that a run
            that starts from it is not scored on them. None takes what `Weights` carry.

    Raises:
        ValueError: If the kind is unknown, or an array is none of a network's or not finite; all
            of them in one message.

    Example:
        >>> save("small.safetensors", {"conv1/kernel": np.ones((3, 3, 3, 8), np.float32)})
    """
    path = Path(path).expanduser()
    kind = kind or _SUFFIXES.get(path.suffix)
    if kind not in _WRITERS:
        raise ValueError(
            f"cannot tell what to write to {path}; end it with one of {', '.join(_SUFFIXES)}, or "
            f"give kind as one of {', '.join(_WRITERS)}"
        )
    arrays, problems = {}, []
    for name, value in flatten(params).items():
        given = np.asarray(value)
        with np.errstate(over="ignore", invalid="ignore"):
            array = np.asarray(given, np.float32)
        layer, _, end = name.rpartition("/")
        if not layer or (end, array.ndim) not in (("kernel", 4), ("kernel", 2), ("bias", 1)):
            problems.append(f"{name} {array.shape}: expected LAYER/kernel and LAYER/bias")
        elif not np.isfinite(array).all():
            problems.append(f"{name}: NaN or Inf")
        elif given.dtype.itemsize > 4 and not np.array_equal(given, array):
            problems.append(f"{name}: {given.dtype} values that float32 cannot hold")
        arrays[name] = array
    if problems or not arrays:
        raise ValueError(f"cannot save {path}: {'; '.join(problems or ['no arrays'])}")
    carried = params if isinstance(params, Weights) else Weights()
    told = description(
        inputs or carried.inputs,
        carried.trained_on if trained_on is None else trained_on,
        carried.network,
    )
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        _WRITERS[kind](temporary, arrays, told)
        with temporary.open("r+b") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
