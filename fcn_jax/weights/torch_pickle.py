"""The pickles inside PyTorch's files, interpreted without running any of what they name.

A pickle is a program for a stack machine, and Python's own machine calls whatever functions the
program asks for. This one knows the opcodes that `torch.save` writes for dictionaries of tensors,
and gives the few functions that occur in them a meaning of its own; any other name is refused.
"""

from __future__ import annotations

import dataclasses
import pickletools
from collections.abc import Callable
from typing import IO, Any

import jax.numpy as jnp
import numpy as np

MAX_OPCODES = 300_000
"""A state dict has some twenty for each tensor; this many take a third of a second."""


# ======================================================================== what pickles hold


class Dictionary(dict):
    """An OrderedDict, with the attributes that the pickle gives it (``_metadata``)."""

    attributes: dict[str, Any]

    def __init__(self, pairs: Any = ()) -> None:
        super().__init__()
        self.attributes = {}
        for key, value in pairs:
            self[_key(key)] = value


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
    """A value that is no tensor and that nothing is made of, such as a score or a device."""

    name: str


@dataclasses.dataclass(frozen=True)
class _Name:
    """``module.name`` as the pickle asks for it."""

    full: str


# ======================================================================== what names mean


def _tensor(storage: Any, offset: Any, shape: Any, strides: Any, *_: Any) -> Tensor:
    numbers = (offset, *shape, *strides)
    if not isinstance(storage, Storage) or len(shape) != len(strides) or len(shape) > 8:
        raise ValueError("a tensor of something else than a storage, a shape and strides")
    if not all(type(n) is int and 0 <= n < 1 << 62 for n in numbers):
        raise ValueError("a tensor with an impossible offset, shape or strides")
    return Tensor(storage, offset, tuple(shape), tuple(strides))


def _first(value: Any, *_: Any) -> Any:
    return value


_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "collections.OrderedDict": Dictionary,
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_parameter": _first,
    "torch.nn.parameter.Parameter": _first,
    "torch.Size": tuple,
}

_INERT = frozenset(
    {
        "__builtin__.set",
        "_codecs.encode",
        "argparse.Namespace",
        "builtins.set",
        "collections.defaultdict",
        "numpy._core.multiarray.scalar",
        "numpy.core.multiarray.scalar",
        "numpy.dtype",
        "torch.device",
    }
)
"""Names in checkpoints beside the tensors; what they would make is left out."""

_STORAGES: dict[str, np.dtype] = {
    f"torch.{where}{name}Storage": np.dtype(dtype)
    for where in ("", "cuda.")
    for name, dtype in {
        "Double": "<f8",
        "Float": "<f4",
        "Half": "<f2",
        "BFloat16": jnp.bfloat16,
        "Long": "<i8",
        "Int": "<i4",
        "Short": "<i2",
        "Char": "i1",
        "Byte": "u1",
        "Bool": "?",
    }.items()
}


def _storage(reference: Any) -> Storage:
    """What a persistent id stands for: ("storage", type, key, device, size[, None])."""
    match reference:
        case ("storage", _Name(full), str(key), _, int(size), *rest) if (
            full in _STORAGES and rest in ([], [None]) and 0 <= size < 1 << 62
        ):
            return Storage(_STORAGES[full], key, size)
    raise ValueError("a reference to something else than a storage of numbers")


def _key(key: Any) -> Any:
    if key is not None and not isinstance(key, (str, int, float, Inert)):
        raise ValueError(f"a dictionary with a key that is a {type(key).__name__}")
    return key


# ======================================================================== the machine


def read(stream: IO[bytes], storages: dict[str, Storage] | None = None) -> Any:
    """Interprets one pickle, and leaves the stream behind its end.

    Args:
        stream: Where it begins.
        storages: Receives every storage that the pickle refers to, by key.

    Returns:
        Dictionaries, lists, tuples, numbers, text, `Tensor` and `Inert`.

    Raises:
        ValueError: If the pickle asks for a name that is none of a state dict's, or is damaged.
    """
    machine = _Machine(storages)
    try:
        for count, (opcode, argument, _) in enumerate(pickletools.genops(stream)):
            if count >= MAX_OPCODES:
                raise ValueError(f"a pickle of more than {MAX_OPCODES} steps")
            machine.step(opcode.name, argument)
        return machine.pop()
    except (ArithmeticError, AttributeError, LookupError, TypeError, UnicodeError) as error:
        raise ValueError(f"a damaged pickle: {str(error)[:80]}") from error


_PUSHED = frozenset(
    {
        *("BININT", "BININT1", "BININT2", "LONG1", "LONG4", "INT", "LONG", "BINFLOAT", "FLOAT"),
        *("BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "UNICODE"),
        *("BINSTRING", "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8"),
    }
)
"""Opcodes whose argument is the value."""

_MADE: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_TUPLE": tuple,
    "EMPTY_LIST": list,
    "EMPTY_DICT": Dictionary,
    "EMPTY_SET": lambda: Inert("set"),
}
"""Opcodes that push a value of their own."""

_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_IGNORED = frozenset({"PROTO", "FRAME", "STOP"})


class _Machine:
    """The stack, the marks in it, and the memo."""

    def __init__(self, storages: dict[str, Storage] | None) -> None:
        self.storages = {} if storages is None else storages
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}
        self.copies_left = MAX_OPCODES

    def pop(self) -> Any:
        return self.stack.pop()

    def pop_to_mark(self) -> list[Any]:
        start = self.marks.pop()
        values = self.stack[start:]
        del self.stack[start:]
        return values

    def step(self, opcode: str, argument: Any) -> None:
        """Carries out one opcode."""
        if opcode in _PUSHED:
            self.stack.append(argument)
        elif opcode in _MADE:
            self.stack.append(_MADE[opcode]())
        elif opcode in _TUPLES:
            size = _TUPLES[opcode]
            self.stack[-size:] = [tuple(self.stack[-size:])]
        elif opcode in _OPCODES:
            _OPCODES[opcode](self, argument)
        elif opcode not in _IGNORED:
            raise ValueError(f"a pickle with {opcode}, which no state dict needs")

    def mark(self, _: Any) -> None:
        self.marks.append(len(self.stack))

    def tuple(self, _: Any) -> None:
        self.stack.append(tuple(self.pop_to_mark()))

    def put(self, index: int) -> None:
        self.memo[index] = self.stack[-1]

    def memoize(self, _: Any) -> None:
        self.memo[len(self.memo)] = self.stack[-1]

    def get(self, index: int) -> None:
        self.stack.append(self.memo[index])

    def append(self, _: Any) -> None:
        self.extend([self.pop()])

    def appends(self, _: Any) -> None:
        self.extend(self.pop_to_mark())

    def extend(self, values: list[Any]) -> None:
        if isinstance(self.stack[-1], list):
            self.stack[-1].extend(values)
        elif not isinstance(self.stack[-1], Inert):
            raise ValueError("a damaged pickle: appends to what is no list")

    def set_item(self, _: Any) -> None:
        value, key = self.pop(), self.pop()
        self.update([key, value])

    def set_items(self, _: Any) -> None:
        self.update(self.pop_to_mark())

    def update(self, flat: list[Any]) -> None:
        if isinstance(self.stack[-1], Inert):
            return
        if not isinstance(self.stack[-1], Dictionary):
            raise ValueError("a damaged pickle: sets items of what is no dictionary")
        for key, value in zip(flat[::2], flat[1::2], strict=True):
            self.stack[-1][_key(key)] = value

    def name(self, argument: str) -> None:
        self.push_name(*argument.split(" ", 1))

    def stacked_name(self, _: Any) -> None:
        name, module = self.pop(), self.pop()
        self.push_name(module, name)

    def push_name(self, module: str, name: str) -> None:
        full = f"{module}.{name}"
        if full not in _FUNCTIONS and full not in _INERT and full not in _STORAGES:
            raise ValueError(
                f"asks for {full[:80]!r}, which is no part of a dictionary of tensors; it was not "
                "run. Save model.state_dict() instead of the model"
            )
        self.stack.append(_Name(full))

    def call(self, _: Any) -> None:
        arguments, function = self.pop(), self.pop()
        if not isinstance(function, _Name) or not isinstance(arguments, tuple):
            raise ValueError("a damaged pickle: calls what is no function")
        if function.full in _INERT:
            self.stack.append(Inert(function.full))
        else:
            self.copies_left -= sum(len(a) for a in arguments if isinstance(a, (tuple, list, dict)))
            if self.copies_left < 0:
                raise ValueError("a pickle that copies the same values over and over")
            self.stack.append(_FUNCTIONS[function.full](*arguments))

    def build(self, _: Any) -> None:
        state = self.pop()
        if isinstance(self.stack[-1], Dictionary) and isinstance(state, Dictionary):
            self.stack[-1].attributes = state

    def persistent(self, _: Any) -> None:
        storage = _storage(self.pop())
        self.storages[storage.key] = storage
        self.stack.append(storage)


_OPCODES: dict[str, Callable[[_Machine, Any], None]] = {
    "MARK": _Machine.mark,
    "TUPLE": _Machine.tuple,
    "BINPUT": _Machine.put,
    "LONG_BINPUT": _Machine.put,
    "MEMOIZE": _Machine.memoize,
    "BINGET": _Machine.get,
    "LONG_BINGET": _Machine.get,
    "APPEND": _Machine.append,
    "APPENDS": _Machine.appends,
    "ADDITEMS": _Machine.appends,
    "SETITEM": _Machine.set_item,
    "SETITEMS": _Machine.set_items,
    "GLOBAL": _Machine.name,
    "STACK_GLOBAL": _Machine.stacked_name,
    "REDUCE": _Machine.call,
    "NEWOBJ": _Machine.call,
    "BUILD": _Machine.build,
    "BINPERSID": _Machine.persistent,
}
