"""Writing weights: `.npz`, `.safetensors`, and a state dict of PyTorch, without PyTorch."""

from __future__ import annotations

import collections
import io
import math
import os
import pickle
import struct
import types
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np

from fcn_jax.models.inputs import Inputs
from fcn_jax.weights import npz, safetensors, torch
from fcn_jax.weights.arrays import describe_inputs, flatten
from fcn_jax.weights.torch_names import is_conv_transpose

Kind = Literal["npz", "safetensors", "pytorch-fcn"]
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
) -> None:
    """Writes parameters to a file that `fcn_jax.weights.load` reads back exactly.

    The file appears under its name when it is complete; a kill leaves what was there before.

    Args:
        path: Where to.
        params: ``{layer: {"kernel": …, "bias": …}}`` or flat by ``layer/kernel``.
        kind: The format; None goes by the suffix. ``pytorch-fcn`` is a state dict with the names
            of Wada's pytorch-fcn (``conv1_1.weight``), which ``torch.load`` opens.
        inputs: What the network reads, and how that is normalised. None takes what `Weights`
            carry.

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
    arrays = _checked(flatten(params))
    description = describe_inputs(inputs or getattr(params, "inputs", None))
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        _WRITERS[kind](temporary, arrays, description)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _checked(flat: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The arrays as float32, which they must fit without loss."""
    arrays, problems = {}, []
    for name, value in flat.items():
        given = np.asarray(value)
        with np.errstate(over="ignore", invalid="ignore"):
            array = np.asarray(given, np.float32)
        layer, _, kind = name.rpartition("/")
        if not layer or (kind, array.ndim) not in (("kernel", 4), ("kernel", 2), ("bias", 1)):
            problems.append(f"{name} {array.shape}: expected LAYER/kernel and LAYER/bias")
        elif not np.isfinite(array).all():
            problems.append(f"{name}: NaN or Inf")
        elif given.dtype.itemsize > 4 and not np.array_equal(given, array):
            problems.append(f"{name}: {given.dtype} values that float32 cannot hold")
        arrays[name] = array
    if problems or not arrays:
        raise ValueError("cannot save:\n  " + "\n  ".join(problems or ["no arrays"]))
    return arrays


# ======================================================================== formats


def _write_npz(path: Path, arrays: Mapping[str, np.ndarray], description: str) -> None:
    members = {**arrays, npz.DESCRIPTION: np.frombuffer(description.encode(), np.uint8)}
    with path.open("wb") as file:
        np.savez(file, allow_pickle=False, **members)


def _write_safetensors(path: Path, arrays: Mapping[str, np.ndarray], description: str) -> None:
    from safetensors.numpy import save_file

    contiguous = {name: np.ascontiguousarray(array, "<f4") for name, array in arrays.items()}
    save_file(contiguous, path, {safetensors.DESCRIPTION: description})


def _write_state_dict(path: Path, arrays: Mapping[str, np.ndarray], description: str) -> None:
    """PyTorch's form since 1.6: an archive of a pickle and the bytes of each tensor."""
    tensors: dict[str, np.ndarray] = {}
    for name, array in arrays.items():
        layer, _, kind = name.rpartition("/")
        axes = {1: (0,), 2: (1, 0), 4: (3, 2, 0, 1)}[array.ndim]
        if array.ndim == 4 and is_conv_transpose(layer):
            axes = (2, 3, 0, 1)
        kind = "bias" if kind == "bias" else "weight"
        tensors[f"{layer}.{kind}"] = array.transpose(axes)
    if dotted := [name for name in tensors if name.count(".") != 1]:
        raise ValueError(f"cannot save: PyTorch's names of layers hold no dot: {dotted}")
    state = collections.OrderedDict(
        (name, _Tensor(str(key), tensor.shape))
        for key, (name, tensor) in enumerate(tensors.items())
    )
    vars(state)["_metadata"] = {torch.DESCRIPTION: {"inputs": description}}
    with path.open("wb") as file, zipfile.ZipFile(file, "w") as archive:
        pickled = io.BytesIO()
        _StateDictPickler(pickled, protocol=2).dump(state)
        members = [("data.pkl", pickled.getvalue()), ("byteorder", b"little")]
        members += [(f"data/{key}", tensor) for key, tensor in enumerate(tensors.values())]
        for name, content in (*members, ("version", b"3\n")):
            info = zipfile.ZipInfo(f"weights/{name}")
            data = content if isinstance(content, bytes) else content.tobytes()
            info.file_size = len(data)
            # PyTorch pads with a field "FB" to start each tensor at a multiple of 64 bytes.
            start = file.tell() + 30 + len(info.filename) + 4
            info.extra = struct.pack("<2sH", b"FB", -start % 64) + b"Z" * (-start % 64)
            with archive.open(info, "w") as member:
                member.write(data)


class _Tensor(NamedTuple):
    """A contiguous float32 tensor, the whole of the storage with this key."""

    key: str
    shape: tuple[int, ...]


class _Storage(NamedTuple):
    key: str
    size: int


class _StateDictPickler(pickle._Pickler):
    """Writes tensors as PyTorch does, with the names of its classes and functions."""

    write: Callable[[bytes], Any]

    def persistent_id(self, obj: Any) -> tuple[Any, ...] | None:
        if isinstance(obj, _Storage):
            return ("storage", FloatStorage, obj.key, "cpu", obj.size)
        return None

    def reducer_override(self, obj: Any) -> Any:
        if not isinstance(obj, _Tensor):
            return NotImplemented
        storage = _Storage(obj.key, math.prod(obj.shape))
        strides = tuple(math.prod(obj.shape[axis + 1 :]) for axis in range(len(obj.shape)))
        hooks = collections.OrderedDict()
        return _rebuild_tensor_v2, (storage, 0, obj.shape, strides, False, hooks)

    def save_global(self, obj: Any, name: str | None = None) -> None:
        self.write(f"c{obj.__module__}\n{obj.__qualname__}\n".encode())  # it need not exist here

    dispatch: ClassVar[Any] = {
        **pickle._Pickler.dispatch,
        type: save_global,
        types.FunctionType: save_global,
    }


class FloatStorage:
    """Stands for PyTorch's class of that name in a pickle."""

    __module__ = "torch"


def _rebuild_tensor_v2() -> None:
    """Stands for PyTorch's function of that name in a pickle."""


_rebuild_tensor_v2.__module__ = "torch._utils"

_WRITERS: dict[str, Callable[[Path, Mapping[str, np.ndarray], str], None]] = {
    "npz": _write_npz,
    "safetensors": _write_safetensors,
    "pytorch-fcn": _write_state_dict,
}
