"""``vgg16.npy`` of TensorFlow's VGGs and FCNs: a pickled dictionary, of which nothing is run.

`numpy.save` of a dictionary makes an array of one object, and pickles that; programs of the time
did so under Python 2. A layer is ``[kernel, bias]``, ``{0: kernel, 1: bias}`` or ``{"weights": …,
"biases": …}``; kernels are (height, width, in, out), and fc6 reads a map flattened (row, column,
channel).
"""

from __future__ import annotations

import dataclasses
import math
import pickle
import re
import struct
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from fcn_jax.weights import keras
from fcn_jax.weights.arrays import Weights, under_our_names
from fcn_jax.weights.npz import from_tensorflow
from fcn_jax.weights.torch_pickle import MAX_SIZE, Dictionary, Inert, Unpickler, run

MAX_READS = 50_000
"""Pieces in which a pickle is read; a network has some thousand."""

_LAYER = re.compile(r"conv\d(_\d)?|fc\d")


def recognises(head: bytes) -> bool:
    """Whether a file is an ``.npy`` file."""
    return head.startswith(b"\x93NUMPY")


def read(path: Path) -> Weights:
    """Reads the kernels and biases of the convolutions and dense layers."""
    with path.open("rb") as file:
        try:
            version = np.lib.format.read_magic(file)
            of_version = {(1, 0): "read_array_header_1_0", (2, 0): "read_array_header_2_0"}
            shape, _, dtype = getattr(np.lib.format, of_version[version])(file)
        except Exception as error:  # numpy parses it as Python
            raise ValueError(f"a damaged .npy file: {str(error)[:80]}") from error
        start = file.tell()
    if dtype.kind != "O":
        raise ValueError(
            f"a single array of {dtype} and {shape}; weights are an .npz file, an array for each "
            "name, or a dictionary of layers"
        )
    stream = _Stream(np.memmap(path, mode="r").data[start:])
    saved = run(_Unpickler(stream))
    if isinstance(saved, _Array) and isinstance(saved.content, list) and len(saved.content) == 1:
        (saved,) = saved.content
    if not isinstance(saved, Dictionary):
        raise ValueError("an array of objects, which is no dictionary of layers")
    arrays: dict[str, np.ndarray] = {}
    others = []
    for key, layer in saved.items():
        name = _text(key)
        if isinstance(layer, Dictionary):
            named = {_text(key): value for key, value in layer.items()}
            pair = [named.get("weights", named.get("0")), named.get("biases", named.get("1"))]
        else:
            pair = layer if isinstance(layer, list) else []
        values = [value.array() if isinstance(value, _Array) else None for value in pair]
        if not _LAYER.fullmatch(name) or [v is None for v in values] != [False] * 2:
            others.append(name[:60])
            continue
        arrays[f"{name}_W"], arrays[f"{name}_b"] = (v for v in values if v is not None)
    if not arrays:
        raise ValueError(
            f"a dictionary without layers conv1_1 to fc8 of [kernel, bias]; it has "
            f"{', '.join(others[:6]) or 'nothing'}"
        )
    ours = under_our_names(from_tensorflow(arrays))
    skipped = [f"{name} (another layer)" for name in others]
    return Weights(ours, keras.INPUTS, "VGG of TensorFlow (.npy)", skipped)


def _text(key: Any) -> str:
    return key.decode("latin1") if isinstance(key, bytes) else str(key)


# ======================================================================== the pickle


class _Stream:
    """A mapped file to read from; longer pieces are views of it."""

    def __init__(self, content: memoryview) -> None:
        self._content, self._position, self._left = content, 0, MAX_READS

    def read(self, size: int) -> Any:
        """The next bytes, fewer at the end."""
        self._left -= 1
        if self._left < 0:
            raise ValueError("a pickle of more pieces than any network has")
        piece = self._content[self._position : self._position + size]
        self._position += len(piece)
        return piece if size > 255 else bytes(piece)

    def readline(self) -> bytes:
        """The next line; a name is a short one."""
        line, end, _ = bytes(self._content[self._position :][:1000]).partition(b"\n")
        return self.read(len(line) + len(end))


@dataclasses.dataclass
class _Type:
    """An array's type: its code, and the order of bytes, which a pickle gives later."""

    code: Any
    order: Any = "="


@dataclasses.dataclass
class _Array:
    """An array, whose state a pickle gives later: version, shape, type, whether Fortran's, values.

    Values are bytes, or a list where they are objects.
    """

    state: Any = None

    @property
    def content(self) -> Any:
        return self.state[4] if isinstance(self.state, tuple) and len(self.state) == 5 else None

    def array(self) -> np.ndarray | None:
        """The array as a view of the file; None where it is none of floats."""
        content = self.content
        if isinstance(content, str):  # Python 2 has no other bytes
            content = content.encode("latin1")
        if not isinstance(content, bytes | memoryview):
            return None
        _, shape, kind, fortran, _ = self.state
        if not isinstance(kind, _Type) or kind.code not in ("f2", "f4", "f8"):
            return None
        if kind.order not in ("<", ">", "=") or not isinstance(shape, tuple):
            return None
        dtype = np.dtype(kind.order + kind.code)
        if not all(type(n) is int and n > 0 for n in shape):
            raise ValueError(f"a damaged pickle: an array {str(shape)[:80]}")
        if math.prod(shape) * dtype.itemsize != len(content):
            raise ValueError(f"a damaged pickle: {len(content)} bytes for an array {shape}")
        return np.frombuffer(content, dtype).reshape(shape, order="F" if fortran else "C")


class _Unpickler(Unpickler):
    """Reads dictionaries, lists and arrays."""

    names: ClassVar[dict[str, Any]] = {
        "numpy.ndarray": Inert("ndarray"),
        "numpy.dtype": lambda code, *_: _Type(code),
        **{
            f"numpy.{core}.multiarray._reconstruct": lambda *_: _Array()
            for core in ("core", "_core")
        },
        **{f"numpy.{core}.multiarray.scalar": Inert("scalar") for core in ("core", "_core")},
    }

    read: Any
    _unframer: Any

    def __init__(self, stream: _Stream) -> None:
        super().__init__(stream)
        self.framed = 0

    def set_state(self) -> None:
        """Gives an array or a type its state."""
        state, value = self.stack.pop(), self.stack[-1]
        if isinstance(value, _Array):
            value.state = state
        elif isinstance(value, _Type) and isinstance(state, tuple) and len(state) > 1:
            value.order = state[1]

    def long_string(self) -> None:
        """Python 2's bytes: text where they are few, else those of an array."""
        (size,) = struct.unpack("<I", self.read(4))
        data = self.read(size)
        self.stack.append(data if size > 255 else str(data, "latin1"))

    def frame(self) -> None:
        """A part of the pickle that is read at once, and holds no large array."""
        (size,) = struct.unpack("<Q", self.read(8))
        self.framed += size
        if self.framed > MAX_SIZE:
            raise ValueError("a pickle of longer pieces than any network has")
        self._unframer.load_frame(size)

    dispatch: ClassVar[Any] = {
        **Unpickler.dispatch,
        pickle.BUILD[0]: set_state,
        pickle.BINSTRING[0]: long_string,
        pickle.FRAME[0]: frame,
    }
