"""The pickles inside PyTorch's files, read without running any of what they name.

A pickle is a program for a stack machine, and Python's own reader calls whatever functions the
program asks for. This one knows the opcodes that `torch.save` writes for dictionaries of tensors,
gives the few functions that occur in them a meaning of its own, and refuses any other name.

It builds on the reader that is written in Python: the one in C reserves gigabytes for an opcode of
five bytes. Both hash the keys of dictionaries, which takes the stack of the process with it where
a key is nested deeply enough, and minutes where it is long; hence `Dictionary` checks its keys.
"""

from __future__ import annotations

import dataclasses
import io
import pickle
import struct
from collections.abc import Callable, Iterable, Sized
from typing import Any, ClassVar

import jax.numpy as jnp
import numpy as np

MAX_SIZE = 1 << 20
"""Bytes of a pickle: some hundred for each tensor; as many opcodes take half a second."""

MAX_COPIES = 300_000
"""Values that a pickle may hand to functions, which a few bytes can do over and over."""

MAX_KEY = 1000


class Dictionary(dict[Any, Any]):
    """A dictionary, with the attributes that the pickle gives an OrderedDict (``_metadata``)."""

    attributes: dict[Any, Any] | None = None

    @classmethod
    def of(cls, pairs: Iterable[Any] = ()) -> Dictionary:
        """An OrderedDict's call, with its items or without."""
        made = cls()
        for key, value in pairs:
            made[key] = value
        return made

    def __setitem__(self, key: Any, value: Any) -> None:
        short = isinstance(key, str) and len(key) <= MAX_KEY
        small = isinstance(key, int) and abs(key) < 1 << 64
        if not (short or small or key is None or isinstance(key, float | Inert)):
            raise ValueError(f"a dictionary with a long or nested key ({type(key).__name__})")
        super().__setitem__(key, value)


@dataclasses.dataclass(frozen=True)
class Storage:
    """A reference to a piece of the file that holds the elements of tensors."""

    dtype: np.dtype
    key: str
    size: int


@dataclasses.dataclass(frozen=True)
class Tensor:
    """A view of a storage, in elements; nothing of it is checked yet."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Inert:
    """A value that nothing is made of, such as a score or a device; it takes and keeps nothing."""

    name: str

    def extend(self, values: Any) -> None: ...

    append = add = extend

    def __setitem__(self, key: Any, value: Any) -> None: ...


def _tensor(storage: Any, offset: Any, shape: Any, strides: Any, *_: Any) -> Tensor:
    if not isinstance(storage, Storage) or not len(shape) == len(strides) <= 8:
        raise ValueError("a tensor of something else than a storage, a shape and strides")
    if not all(type(n) is int and 0 <= n < 1 << 62 for n in (offset, *shape, *strides)):
        raise ValueError("a tensor with an impossible offset, shape or strides")
    return Tensor(storage, offset, tuple(shape), tuple(strides))


_NAMES: dict[str, Callable[..., Any] | Inert | np.dtype] = {
    "collections.OrderedDict": Dictionary.of,
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_parameter": lambda value, *_: value,
    "torch.nn.parameter.Parameter": lambda value, *_: value,
    "torch.Size": tuple,
}
# Names in checkpoints beside the tensors; what they would make is left out.
for _name in (
    *("__builtin__.set", "builtins.set", "_codecs.encode", "argparse.Namespace"),
    *("collections.defaultdict", "numpy._core.multiarray.scalar"),
    *("numpy.core.multiarray.scalar", "numpy.dtype", "torch.device"),
):
    _NAMES[_name] = Inert(_name)
for _name, _dtype in (
    *(("Double", "<f8"), ("Float", "<f4"), ("Half", "<f2"), ("BFloat16", jnp.bfloat16)),
    *(("Long", "<i8"), ("Int", "<i4"), ("Short", "<i2"), ("Char", "i1")),
    *(("Byte", "u1"), ("Bool", "?")),
):
    _NAMES[f"torch.{_name}Storage"] = _NAMES[f"torch.cuda.{_name}Storage"] = np.dtype(_dtype)


def read(stream: io.BytesIO, storages: dict[str, Storage] | None = None) -> Any:
    """Reads one pickle, and leaves the stream behind its end.

    It holds `Dictionary`, lists, tuples, numbers, text, `Tensor` and `Inert`. A stream of more than
    `MAX_SIZE` bytes has no limit of time and memory. ``storages`` receives, by key, every storage
    that the pickle refers to.
    """
    return run(Unpickler(stream, storages))


def run(unpickler: Unpickler) -> Any:
    """What an unpickler reads; a ValueError of anything that is wrong."""
    try:
        return unpickler.load()
    except (
        *(pickle.UnpicklingError, EOFError, struct.error, UnicodeError),
        *(ArithmeticError, AttributeError, LookupError, TypeError),
    ) as error:
        raise ValueError(f"a damaged pickle: {str(error)[:80] or 'it ends early'}") from error


_OPCODES = """
PROTO FRAME STOP MARK NONE NEWTRUE NEWFALSE BININT BININT1 BININT2 LONG1 LONG4 INT LONG BINFLOAT
FLOAT BINUNICODE SHORT_BINUNICODE BINUNICODE8 UNICODE BINSTRING SHORT_BINSTRING BINBYTES
SHORT_BINBYTES BINBYTES8 EMPTY_TUPLE TUPLE TUPLE1 TUPLE2 TUPLE3 EMPTY_LIST APPEND APPENDS SETITEM
SETITEMS ADDITEMS BINPUT LONG_BINPUT MEMOIZE BINGET LONG_BINGET GLOBAL STACK_GLOBAL BINPERSID
"""
_KNOWN = {getattr(pickle, name)[0] for name in _OPCODES.split()}
"""Opcodes that put values on the stack and into lists and dictionaries, as Python has them."""


class Unpickler(pickle._Unpickler):
    """Reads one pickle. Another kind of pickle has other ``names``, and its own ``dispatch``."""

    names: ClassVar[dict[str, Any]] = _NAMES
    stack: list[Any]

    def __init__(self, stream: Any, storages: dict[str, Storage] | None = None) -> None:
        super().__init__(stream, encoding="latin1")
        self.storages = {} if storages is None else storages
        self.copies_left = MAX_COPIES

    def find_class(self, module: str, name: str) -> Any:
        full = f"{module}.{name}"
        if full not in self.names:
            raise ValueError(
                f"asks for {full[:80]!r}, which is no part of a dictionary of tensors; it was not "
                "run. Save model.state_dict() instead of the model"
            )
        return self.names[full]

    def persistent_load(self, pid: Any) -> Storage:
        """A storage, which a pickle refers to as ("storage", type, key, device, size[, None])."""
        match pid:
            case ("storage", np.dtype() as dtype, str(key), _, int(size), *rest) if (
                rest in ([], [None]) and len(key) <= MAX_KEY and 0 <= size < 1 << 62
            ):
                self.storages[key] = Storage(dtype, key, size)
                return self.storages[key]
        raise ValueError("a reference to something else than a storage of numbers")

    def call(self) -> None:
        """Calls a function of `_NAMES`; nothing else on the stack can be called."""
        arguments, function = self.stack.pop(), self.stack[-1]
        self.copies_left -= len(arguments)
        if self.copies_left >= 0:
            self.copies_left -= sum(len(value) for value in arguments if isinstance(value, Sized))
        if self.copies_left < 0:
            raise ValueError("a pickle that copies the same values over and over")
        if not isinstance(function, Inert):
            self.stack[-1] = function(*arguments)

    def set_attributes(self) -> None:
        """Keeps the attributes of a dictionary; those of anything else are of no use."""
        state, value = self.stack.pop(), self.stack[-1]
        if isinstance(value, Dictionary) and isinstance(state, Dictionary):
            value.attributes = state

    def refuse(self) -> None:
        """Does nothing else: no state dict needs this opcode."""
        raise ValueError("a pickle with an opcode that no dictionary of tensors needs")

    dispatch: ClassVar[Any] = {
        **dict.fromkeys(range(256), refuse),
        **{code: do for code, do in pickle._Unpickler.dispatch.items() if code in _KNOWN},
        pickle.EMPTY_DICT[0]: lambda self: self.stack.append(Dictionary()),
        pickle.EMPTY_SET[0]: lambda self: self.stack.append(_NAMES["builtins.set"]),
        pickle.REDUCE[0]: call,
        pickle.NEWOBJ[0]: call,
        pickle.BUILD[0]: set_attributes,
    }
