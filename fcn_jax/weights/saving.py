"""Writing weights: `.npz`, `.safetensors`, and a state dict of PyTorch, without PyTorch."""

from __future__ import annotations

import contextlib
import json
import math
import os
import struct
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, Literal, NamedTuple

import numpy as np

from fcn_jax.models.inputs import Inputs, Preprocessing
from fcn_jax.weights import metadata, npz, safetensors, torch
from fcn_jax.weights.arrays import flatten
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
    preprocessing: Preprocessing | Inputs | None = None,
) -> None:
    """Writes parameters to a file that `fcn_jax.weights.load` reads back exactly.

    The file appears under its name when it is complete; a kill leaves what was there before.

    Args:
        path: Where to.
        params: ``{layer: {"kernel": …, "bias": …}}`` or flat by ``layer/kernel``.
        kind: The format; None goes by the suffix. ``pytorch-fcn`` is a state dict with the names
            of Wada's pytorch-fcn (``conv1_1.weight``), which ``torch.load`` opens.
        preprocessing: What the network expects of its inputs. None takes what `Weights` carry.

    Raises:
        ValueError: If the kind is unknown, or an array is none of a network's or not finite; all
            of them in one message.
    """
    path = Path(path)
    kind = kind or _SUFFIXES.get(path.suffix)
    if kind not in _WRITERS:
        raise ValueError(
            f"cannot tell what to write to {path}; end it with one of {', '.join(_SUFFIXES)}, or "
            f"give kind as one of {', '.join(_WRITERS)}"
        )
    if preprocessing is None:
        preprocessing = getattr(params, "preprocessing", None)
    arrays = _checked(flatten(params))
    with _replacing(path) as file:
        _WRITERS[kind](file, arrays, metadata.encode(preprocessing))


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


@contextlib.contextmanager
def _replacing(path: Path) -> Iterator[IO[bytes]]:
    """A file that takes the place of ``path`` when all went well."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


# ======================================================================== formats


def _write_npz(file: IO[bytes], arrays: Mapping[str, np.ndarray], described: bytes) -> None:
    members = {**arrays, npz.METADATA: np.frombuffer(described, np.uint8)}
    np.savez(file, allow_pickle=False, **members)


def _write_safetensors(file: IO[bytes], arrays: Mapping[str, np.ndarray], described: bytes) -> None:
    header: dict[str, Any] = {"__metadata__": {safetensors.METADATA: described.decode()}}
    position = 0
    for name, array in arrays.items():
        end = position + array.nbytes
        header[name] = {"dtype": "F32", "shape": array.shape, "data_offsets": [position, end]}
        position = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # so that the numbers are aligned
    file.write(len(text).to_bytes(8, "little") + text)
    for array in arrays.values():
        file.write(np.ascontiguousarray(array, "<f4").data)


def _write_state_dict(file: IO[bytes], arrays: Mapping[str, np.ndarray], described: bytes) -> None:
    """PyTorch's form since 1.6: an archive of a pickle and the bytes of each tensor."""
    tensors = [_for_pytorch(name, array) for name, array in arrays.items()]
    if dotted := [name for name, _ in tensors if name.count(".") != 1]:
        raise ValueError(f"cannot save: PyTorch's names of layers hold no dot: {dotted}")
    members: dict[str, Any] = {
        "data.pkl": _state_dict(tensors, described),
        "byteorder": b"little",
        **{f"data/{key}": tensor for key, (_, tensor) in enumerate(tensors)},
        "version": b"3\n",
    }
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in members.items():
            info = zipfile.ZipInfo(f"weights/{name}")
            data = content.tobytes() if isinstance(content, np.ndarray) else content
            info.file_size = len(data)
            # PyTorch pads with a field "FB" to start each tensor at a multiple of 64 bytes.
            start = file.tell() + 30 + len(info.filename) + 4
            info.extra = struct.pack("<2sH", b"FB", -start % 64) + b"Z" * (-start % 64)
            with archive.open(info, "w") as member:
                member.write(data)


def _for_pytorch(name: str, array: np.ndarray) -> tuple[str, np.ndarray]:
    """The name and the array in PyTorch's layout, a view."""
    layer, _, kind = name.rpartition("/")
    if kind == "bias":
        return f"{layer}.bias", array
    if array.ndim == 2:
        return f"{layer}.weight", array.T
    axes = (2, 3, 0, 1) if is_conv_transpose(layer) else (3, 2, 0, 1)
    return f"{layer}.weight", array.transpose(axes)


def _state_dict(tensors: Sequence[tuple[str, np.ndarray]], described: bytes) -> bytes:
    """The pickle of an OrderedDict of tensors, each the whole of a storage named by its index."""
    empty = _Call("collections", "OrderedDict", ())
    entries = {}
    for key, (name, tensor) in enumerate(tensors):
        storage = _Stored(("storage", _Name("torch", "FloatStorage"), str(key), "cpu", tensor.size))
        strides = tuple(math.prod(tensor.shape[axis + 1 :]) for axis in range(tensor.ndim))
        arguments = (storage, 0, tensor.shape, strides, False, empty)
        entries[name] = _Call("torch._utils", "_rebuild_tensor_v2", arguments)
    attributes = {"_metadata": {torch.METADATA: {"json": described.decode()}}}
    return b"\x80\x02" + _pickled(_Filled(empty, entries, attributes)) + b"."


# ======================================================================== pickles


class _Name(NamedTuple):
    """A name of a module."""

    module: str
    name: str


class _Call(NamedTuple):
    """A function of a module, called."""

    module: str
    name: str
    arguments: tuple[Any, ...]


class _Filled(NamedTuple):
    """A dictionary that is given items and attributes."""

    dictionary: _Call
    items: dict[str, Any]
    attributes: dict[str, Any]


class _Stored(NamedTuple):
    """A reference to something outside of the pickle."""

    reference: tuple[Any, ...]


def _pickled(value: Any) -> bytes:
    """The opcodes, of protocol 2, that put a value on the stack."""
    match value:
        case _Name(module, name):
            return f"c{module}\n{name}\n".encode()
        case _Call(module, name, arguments):
            return _pickled(_Name(module, name)) + _pickled(arguments) + b"R"
        case _Filled(dictionary, items, attributes):
            return _pickled(dictionary) + _items(items) + _pickled(attributes) + b"b"
        case _Stored(reference):
            return _pickled(reference) + b"Q"
        case bool():
            return b"\x88" if value else b"\x89"
        case int():
            return struct.pack("<Bbq", 0x8A, 8, value)
        case str():
            return struct.pack("<BI", 0x58, len(value.encode())) + value.encode()
        case tuple():
            return b"(" + b"".join(map(_pickled, value)) + b"t"
        case dict():
            return b"}" + _items(value)
    raise TypeError(f"no opcode for {value!r}")


def _items(items: Mapping[str, Any]) -> bytes:
    pairs = (_pickled(key) + _pickled(value) for key, value in items.items())
    return b"(" + b"".join(pairs) + b"u"


_WRITERS: dict[str, Callable[[IO[bytes], Mapping[str, np.ndarray], bytes], None]] = {
    "npz": _write_npz,
    "safetensors": _write_safetensors,
    "pytorch-fcn": _write_state_dict,
}
