"""PyTorch's files (`.pth`, `.pt`), both forms, without PyTorch.

Since version 1.6 they are zip archives with a pickle ``data.pkl`` and a member ``data/KEY`` for
each storage; before, five pickles in a row and the storages behind them. A tensor is a view
of a storage; here it becomes a numpy view of the mapped file once its bounds have been checked.
"""

from __future__ import annotations

import collections
import functools
import io
import math
import pickle
import struct
import sys
import zipfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from fcn_jax.weights import torch_names, torch_pickle
from fcn_jax.weights.arrays import Weights, described, is_conv_transpose, our_axes
from fcn_jax.weights.torch_pickle import Dictionary, Storage, Tensor
from fcn_jax.weights.zipped import SIGNATURE, open_zip

_MAGIC = 0x1950A86A20F9469CFC6C
_PROTOCOL = 1001
_WRAPPERS = (
    *("state_dict", "model_state_dict", "model_state", "model", "net", "network"),
    *("params", "weights"),
)
"""Where training scripts keep the state dict among other things."""
_AVERAGED = (
    *("state_dict_ema", "model_ema", "ema_state_dict", "model_ema_state_dict", "ema_model", "ema"),
    *("params_ema", "averaged_model", "swa_state_dict", "swa_model"),
)
"""Where they keep the averages of the parameters over training."""

DESCRIPTION = "fcn_jax"
"""Key of the inputs' description in a state dict's ``_metadata``, where PyTorch keeps versions."""


def recognises_legacy(head: bytes) -> bool:
    """Whether a file is of the form before PyTorch 1.6."""
    return head.startswith(b"\x80") and _MAGIC.to_bytes(10, "little") in head[:32]


def read_legacy(path: Path) -> Weights:
    """Reads a file of the form before PyTorch 1.6."""
    content = np.memmap(path, mode="r").data
    stream = io.BytesIO(content[: torch_pickle.MAX_SIZE])
    magic, protocol = torch_pickle.read(stream), torch_pickle.read(stream)
    system = torch_pickle.read(stream)
    if (magic, protocol) != (_MAGIC, _PROTOCOL) or not isinstance(system, Dictionary):
        raise ValueError("a PyTorch file of an unknown version, or a damaged one")
    if not system.get("little_endian", True):
        raise ValueError("a PyTorch file of a big-endian machine; save it anew on another")
    known: dict[str, Storage] = {}
    saved, keys = torch_pickle.read(stream, known), torch_pickle.read(stream)
    if not isinstance(keys, list) or not all(isinstance(key, str) and key in known for key in keys):
        raise ValueError("a damaged PyTorch file without a list of its storages")
    storages: dict[str, memoryview] = {}
    position = stream.tell()
    for key in keys:
        count = int.from_bytes(content[position : position + 8], "little")
        size = count * known[key].dtype.itemsize
        position += 8
        if size > (left := max(0, len(content) - position)):
            raise ValueError(f"truncated: a storage of {size} bytes where {left} are left")
        storages[key] = content[position : position + size]
        position += size
    return _weights(saved, storages.get, len(content))


def read_zip(path: Path) -> Weights:
    """Reads a file of the form since PyTorch 1.6."""
    content = np.memmap(path, mode="r").data
    with open_zip(path) as archive:
        members = {info.filename: info for info in archive.infolist()}
        main = next(name for name in members if name.endswith("data.pkl"))
        folder = main.removesuffix("data.pkl")
        if members[main].file_size > torch_pickle.MAX_SIZE:
            raise ValueError(f"{main} has {members[main].file_size} bytes")
        order = members.get(f"{folder}byteorder")
        if order and bytes(_stored_member(content, order)[:8]) != b"little":
            raise ValueError("a PyTorch file of a big-endian machine; save it anew on another")
        saved = torch_pickle.read(io.BytesIO(_stored_member(content, members[main])))

        @functools.cache
        def find(key: str) -> memoryview | None:
            member = members.get(f"{folder}data/{key}")
            return member and _stored_member(content, member)

        return _weights(saved, find, len(content))


def _stored_member(content: memoryview, info: zipfile.ZipInfo) -> memoryview:
    """The bytes of an uncompressed member as a view of the mapped file, their checksum checked."""
    if info.compress_type != zipfile.ZIP_STORED:
        raise ValueError(f"{info.filename} is compressed, which PyTorch never does")
    header = content[info.header_offset : info.header_offset + 30]
    if len(header) < 30 or header[:4] != SIGNATURE:
        raise ValueError(f"a damaged archive: nothing is at the place of {info.filename}")
    start = info.header_offset + 30 + sum(struct.unpack_from("<HH", header, 26))
    data = content[start : start + info.file_size]
    if len(data) != info.file_size:
        raise ValueError(f"truncated: {info.filename} should have {info.file_size} bytes")
    if zlib.crc32(data) != info.CRC:
        raise ValueError(f"a damaged archive: {info.filename} has another checksum")
    return data


def _weights(saved: Any, find: Callable[[str], memoryview | None], file_size: int) -> Weights:
    """What a pickle holds, with the storages that ``find`` gives by their keys."""
    saved, passed_over = _state_dict(saved)
    if not isinstance(saved, Dictionary):
        raise ValueError(f"holds a {type(saved).__name__}, not a dictionary of tensors")
    tensors = {
        name: value
        for name, value in saved.items()
        if isinstance(name, str) and isinstance(value, Tensor)
    }
    if not tensors:
        keys = ", ".join(str(key)[:40] for key in list(saved)[:8])
        raise ValueError(f"a dictionary without tensors; its keys are {keys or 'none'}")
    arrays = {}
    for name, tensor in tensors.items():
        try:
            arrays[name] = _view(tensor, find(tensor.storage.key))
        except ValueError as error:
            raise ValueError(f"{name[:80]}: {error}") from error
    total = sum(array.nbytes for array in arrays.values())
    if total > 2 * file_size:  # tensors may share a storage, as tied weights do
        raise ValueError(f"tensors of {total} bytes in a file of {file_size}")
    entries = (saved.attributes or {}).get("_metadata")
    ours = entries.get(DESCRIPTION) if isinstance(entries, Dictionary) else None
    if not isinstance(ours, Dictionary):
        weights = torch_names.translate(arrays)
        weights.skipped += passed_over
        return weights
    weights = torch_names.translate_caffe_names(arrays)
    return described(weights, str(ours.get("inputs", "")))


def _state_dict(saved: Any) -> tuple[Any, tuple[str, ...]]:
    """The state dict in what a training script saved, and what is told of others beside it.

    Averaged parameters are taken rather than raw ones, as timm does.
    """
    passed_over = []
    for _ in range(4):  # a dictionary may hold itself
        found = _sets(saved, 3)
        averaged = [key for key in found if key in _AVERAGED]
        chosen = averaged or found
        if not chosen:
            break
        if len(chosen) > 1:
            raise ValueError(
                f"several sets of weights: {', '.join(chosen)}; save one of them alone"
            )
        if averaged:
            others = " and ".join(key for key in found if key not in averaged)
            text = f"the averaged weights {averaged[0]} are taken" + f", not {others}" * bool(
                others
            )
            print(f"note: {text}", file=sys.stderr)
            passed_over.append(text)
        saved = saved[chosen[0]]
    return saved, tuple(passed_over)


def _sets(saved: Any, depth: int) -> list[str]:
    """The keys under which a dictionary keeps others that hold tensors."""
    if not isinstance(saved, Dictionary) or depth == 0:
        return []
    return [
        key
        for key in (*_WRAPPERS, *_AVERAGED)
        if isinstance(inside := saved.get(key), Dictionary)
        and (any(isinstance(v, Tensor) for v in inside.values()) or _sets(inside, depth - 1))
    ]


def _view(tensor: Tensor, data: memoryview | None) -> np.ndarray:
    """The tensor as a read-only view of the file, once it is within its storage."""
    storage, shape, strides = tensor.storage, tensor.shape, tensor.strides
    if data is None:
        raise ValueError(f"its storage {storage.key[:40]!r} is not in the file")
    if storage.size * storage.dtype.itemsize != len(data):
        raise ValueError(f"its storage of {storage.size} numbers has {len(data)} bytes")
    count = math.prod(shape)
    if not count:
        raise ValueError(f"an empty tensor {shape}")
    last = tensor.offset + sum((n - 1) * s for n, s in zip(shape, strides, strict=True))
    if last >= storage.size or count > storage.size:
        where = f"a view {shape} with strides {strides} from {tensor.offset} on"
        raise ValueError(f"{where} is not within its storage of {storage.size} numbers")
    numbers = np.frombuffer(data, storage.dtype)[tensor.offset :]
    steps = [s * storage.dtype.itemsize for s in strides]
    return np.lib.stride_tricks.as_strided(numbers, shape, steps, writeable=False)


def write(path: Path, arrays: Mapping[str, np.ndarray], description: str) -> None:
    """Writes arrays in our layout as a state dict in the form since 1.6, named as pytorch-fcn's."""
    tensors: dict[str, np.ndarray] = {}
    for name, array in arrays.items():
        layer, _, kind = name.rpartition("/")
        axes = np.argsort(our_axes(array.ndim, is_conv_transpose(layer)))
        tensors[f"{layer}.{'bias' if kind == 'bias' else 'weight'}"] = array.transpose(*axes)
    if dotted := [name for name in tensors if name.count(".") != 1]:
        raise ValueError(f"cannot save: PyTorch's names of layers hold no dot: {dotted}")
    pickled = _pickled({name: tensor.shape for name, tensor in tensors.items()}, description)
    members = [("data.pkl", pickled), ("byteorder", b"little"), ("version", b"3\n")]
    members += [(f"data/{key}", tensor) for key, tensor in enumerate(tensors.values())]
    with path.open("wb") as file, zipfile.ZipFile(file, "w") as archive:
        for name, content in members:
            info = zipfile.ZipInfo(f"weights/{name}")
            data = content if isinstance(content, bytes) else content.tobytes()
            info.file_size = len(data)
            # PyTorch pads with a field "FB" to start each tensor at a multiple of 64 bytes.
            start = file.tell() + 30 + len(info.filename) + 4
            info.extra = struct.pack("<2sH", b"FB", -start % 64) + b"Z" * (-start % 64)
            with archive.open(info, "w") as member:
                member.write(data)


def _pickled(shapes: Mapping[str, tuple[int, ...]], description: str) -> bytes:
    """The pickle of a state dict of float32 tensors, each the whole of a storage named 0, 1, ….

    The opcodes that name PyTorch's classes are written here, as pickle would have to import them.
    """

    def opcodes(value: Any) -> bytes:
        return pickle.dumps(value, protocol=2)[2:-1]  # without the version and the end

    content = b"\x80\x02" + opcodes(collections.OrderedDict()) + b"("
    for key, (name, shape) in enumerate(shapes.items()):
        strides = tuple(math.prod(shape[axis + 1 :]) for axis in range(len(shape)))
        storage = opcodes("storage") + b"ctorch\nFloatStorage\n"
        storage += b"".join(map(opcodes, (str(key), "cpu", math.prod(shape))))
        view = (0, shape, strides, False, collections.OrderedDict())
        content += opcodes(name) + b"ctorch._utils\n_rebuild_tensor_v2\n(("
        content += storage + b"tQ" + b"".join(map(opcodes, view)) + b"tR"
    attributes = {"_metadata": {DESCRIPTION: {"inputs": description}}}
    return content + b"u" + opcodes(attributes) + b"b."
