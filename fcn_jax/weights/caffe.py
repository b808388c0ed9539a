"""`.caffemodel` files of any age: a NetParameter message with the layers' blobs.

The numbers below are those of caffe.proto. Three generations of layers exist: plain (since 2015,
the type a string), V1 (an enumeration) and, inside V1, V0 (a string of another spelling).

The wire format of protocol buffers is read here, where it lies: a file of 4 GiB costs no memory
until its values are looked at, and no length is believed that does not fit. (The protobuf library
copies a file twice before it returns the first array, and takes none beyond 2 GiB.)
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from fcn_jax.models.inputs import CAFFE, Inputs
from fcn_jax.weights.arrays import Weights, our_axes

# ======================================================================== the wire format

MAX_FIELDS = 300_000
"""A file of nothing but tiny fields would take minutes."""

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
"""Wire types; 3 and 4, groups, are long out of use."""


class _Message:
    """The fields of a message by number, in the file's order; nested messages stay bytes.

    The values are views of ``content``. All messages of one file share a limit of `MAX_FIELDS`.
    """

    def __init__(self, content: memoryview, parent: _Message | None = None) -> None:
        self.fields: dict[int, list[tuple[int, Any]]] = {}
        self.budget: Iterator[int] = parent.budget if parent else iter(range(MAX_FIELDS))
        position = 0
        while position < len(content):
            if next(self.budget, None) is None:
                raise ValueError("damaged: more fields than any network has")
            tag, position = _read_varint(content, position)
            number, wire = tag >> 3, tag & 7
            if wire == _VARINT:
                value, position = _read_varint(content, position)
            elif wire in (_FIXED64, _FIXED32, _BYTES):
                size = 8 if wire == _FIXED64 else 4
                if wire == _BYTES:
                    size, position = _read_varint(content, position)
                if size > (left := len(content) - position):
                    where = f"truncated or damaged: field {number}"
                    raise ValueError(f"{where} claims {size} bytes where {left} are left")
                value = content[position : position + size]
                position += size
            else:
                raise ValueError(f"damaged: there is no wire type {wire}")
            self.fields.setdefault(number, []).append((wire, value))

    def values(self, number: int, *wires: int) -> list[tuple[int, Any]]:
        """The wire type and value of each occurrence of a field, which are of these types."""
        values = self.fields.get(number, [])
        if any(wire not in wires for wire, _ in values):
            expected = "message" if wires == (_BYTES,) else "number of the expected kind"
            raise ValueError(f"damaged: field {number} is no {expected}")
        return values

    def messages(self, number: int) -> list[_Message]:
        """The nested messages of a field."""
        return [_Message(content, self) for _, content in self.values(number, _BYTES)]

    def text(self, number: int) -> str:
        """The text of a field; empty where it is absent."""
        values = self.values(number, _BYTES)
        return str(values[-1][1], "utf-8") if values else ""

    def integer(self, number: int, default: int = 0) -> int:
        """The integer of a field."""
        return [default, *(value for _, value in self.values(number, _VARINT))][-1]

    def integers(self, number: int, most: int = 32) -> list[int]:
        """The integers of a repeated field, packed into one value or not."""
        found: list[int] = []
        for wire, value in self.values(number, _VARINT, _BYTES):
            if wire == _VARINT:
                found.append(value)
                continue
            position = 0
            while position < len(value) and len(found) <= most:
                integer, position = _read_varint(value, position)
                found.append(integer)
        if len(found) > most:
            raise ValueError(f"damaged: field {number} holds more than {most} integers")
        return found

    def packed(self, number: int, wire: int) -> memoryview | bytes:
        """The bytes of a repeated field of fixed width, packed (in any number of pieces) or not."""
        pieces = [value for _, value in self.values(number, _BYTES, wire)]
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)


def _read_varint(content: memoryview, position: int) -> tuple[int, int]:
    """An unsigned integer of 7 bits a byte, the lowest first, and where it ends."""
    value = 0
    for shift, byte in enumerate(content[position : position + 10]):
        value |= (byte & 0x7F) << (7 * shift)
        if byte < 0x80:
            return value, position + shift + 1
    raise ValueError("truncated or damaged: an integer without an end")


# ======================================================================== files

ALIASES = {"conv1_1_bgrd": "conv1_1"}
"""Layers of published networks whose names say no more than what they read (NYUDv2, 4 channels)."""

_NET_TAGS = (b"\x0a", b"\x12", b"\x1a", b"\x20", b"\x28", b"\x32", b"\x38", b"\x42", b"\xa2\x06")
"""How a NetParameter may begin: the tags of its fields."""


def recognises(head: bytes) -> bool:
    """Whether a file may be a NetParameter: its first field is one of its, and so is the second."""
    if not head.startswith(b"\x0a"):
        return head.startswith(_NET_TAGS)
    try:
        size, start = _read_varint(memoryview(head), 1)
    except ValueError:
        return False
    return head[start + size :].startswith(_NET_TAGS)


def read(path: Path) -> Weights:
    """Reads the kernels and biases of convolutions, transposed convolutions and dense layers.

    Layers of other types that have blobs (BatchNorm, Scale, PReLU) are named in ``skipped``.
    The inputs are those of the published networks, which the file does not say.
    """
    weights = Weights(inputs=Inputs.of(CAFFE), kind="Caffe model")
    problems, skipped = [], []
    try:
        layers = list(_layers(_Message(np.memmap(path, mode="r").data)))
    except ValueError as error:
        raise ValueError(f"no Caffe model, or a damaged one: {error}") from error
    for stored_name, kind, blobs, group, transposed in layers:
        name = ALIASES.get(stored_name, stored_name)
        if kind not in _TYPES.values():
            skipped.append(f"{stored_name} ({kind}, {len(blobs)} arrays)")
        elif f"{name}/kernel" in weights:
            problems.append(f"{name}: two layers of that name have blobs")
        else:
            try:
                weights.update(_arrays(name, kind, blobs, group, transposed))
            except ValueError as error:
                problems.append(f"{name} ({kind}): {error}")
    if problems:
        raise ValueError("layers that cannot be read:\n  " + "\n  ".join(problems))
    if "res2a_branch2a/kernel" in weights:
        raise ValueError(
            "a ResNet of Caffe, which has its strides in the 1x1 convolutions and is none of the "
            "networks here; take torchvision:resnet50"
        )
    if not weights:
        raise ValueError("a Caffe model without any weights (a network definition only?)")
    weights.skipped = tuple(skipped)
    return weights


# ======================================================================== layers

_NET_V1_LAYERS, _NET_LAYERS = 2, 100


class _Generation(NamedTuple):
    """Numbers of the fields of a layer message; 0 is a field that there is not."""

    name: int
    type: int
    blobs: int
    convolution: int
    inner_product: int
    group: int


_PLAIN = _Generation(1, 2, 7, 106, 117, 0)
_V1 = _Generation(4, 5, 6, 10, 17, 0)
_V0 = _Generation(1, 2, 50, 0, 0, 9)
_V0_IN_V1 = 1
_CONVOLUTION_GROUP, _INNER_PRODUCT_TRANSPOSE = 5, 6
_TYPES = {
    "4": "Convolution",
    "14": "InnerProduct",
    "39": "Deconvolution",
    "conv": "Convolution",
    "innerproduct": "InnerProduct",
}
"""The types that are read, by their names in the older generations; V1 has numbers."""


def _layers(net: _Message) -> Iterator[tuple[str, str, list[_Message], int, bool]]:
    """Name, type, blobs, groups and whether a dense kernel is (in, out) of layers with blobs.

    The type is spelled as in the newest generation.
    """
    found: list[tuple[_Message, _Generation]] = []
    for message in net.messages(_NET_V1_LAYERS):
        older = message.messages(_V0_IN_V1)
        found.append((older[-1], _V0) if older else (message, _V1))
    found += [(message, _PLAIN) for message in net.messages(_NET_LAYERS)]
    for message, numbers in found:
        blobs = message.messages(numbers.blobs)
        if not blobs:
            continue
        name = message.text(numbers.name)
        if not name:
            raise ValueError("a layer with weights and without a name")
        v1 = numbers is _V1
        kind = str(message.integer(numbers.type)) if v1 else message.text(numbers.type)
        kind = _TYPES.get(kind, f"V1 type {kind}" if v1 else kind)
        group, transposed = message.integer(numbers.group, 1), 0
        for convolution in message.messages(numbers.convolution)[-1:]:
            group = convolution.integer(_CONVOLUTION_GROUP, group)
        for dense in message.messages(numbers.inner_product)[-1:]:
            transposed = dense.integer(_INNER_PRODUCT_TRANSPOSE)
        yield name, kind, blobs, group, bool(transposed)


MAX_GROUPED = 1 << 30
"""Bytes of a grouped transposed convolution as a full kernel; 255 classes at factor 32 fit."""

_SHAPE, _DATA, _DOUBLE_DATA = 7, 5, 8


def _arrays(
    name: str, kind: str, blobs: list[_Message], group: int, transposed: bool
) -> dict[str, np.ndarray]:
    if len(blobs) > 2:
        raise ValueError(f"has {len(blobs)} blobs, expected a kernel and a bias")
    blob, *biases = [_values(blob) for blob in blobs]
    dense = kind == "InnerProduct"
    if dense and blob.ndim > 2 and set(blob.shape[:-2]) == {1}:  # legacy: (1, 1, out, in)
        blob = blob.reshape(blob.shape[-2:])
    axes = 2 if dense else 4
    if blob.ndim != axes:
        raise ValueError(f"has a kernel {blob.shape}, expected {axes} axes")
    deconvolution = kind == "Deconvolution"
    kernel: np.ndarray = blob
    if not (dense and transposed):
        kernel = blob.transpose(our_axes(axes, deconvolution))
    if deconvolution and group != 1:
        kernel = _without_groups(kernel, group)
    arrays = {f"{name}/kernel": kernel}
    for bias in biases:
        if bias.size != kernel.shape[-1]:
            raise ValueError(f"has {kernel.shape[-1]} outputs and a bias {bias.shape}")
        arrays[f"{name}/bias"] = bias.reshape(-1)
    return arrays


def _values(blob: _Message) -> np.ndarray:
    """The values of a BlobProto as stored, a view of the file."""
    if shapes := blob.messages(_SHAPE):
        shape = tuple(shapes[-1].integers(1))
    else:
        shape = tuple(blob.integer(number, 1) for number in (1, 2, 3, 4))
    if _DOUBLE_DATA in blob.fields:
        data, dtype = blob.packed(_DOUBLE_DATA, _FIXED64), np.dtype("<f8")
    else:
        data, dtype = blob.packed(_DATA, _FIXED32), np.dtype("<f4")
    if not len(data):
        raise ValueError(f"a blob {shape} without values (or of another kind of Caffe)")
    if math.prod(shape) * dtype.itemsize != len(data):
        raise ValueError(f"{len(data)} bytes for a blob {shape} of {dtype}")
    return np.frombuffer(data, dtype).reshape(shape)


def _without_groups(
    weight: Float[np.ndarray, "h w in out_of_group"], group: int
) -> Float[np.ndarray, "h w in out"]:
    """The kernel of a transposed convolution with groups without them: zero between groups."""
    height, width, inputs, outputs = weight.shape
    if group < 1 or inputs % group:
        raise ValueError(f"{inputs} inputs do not divide into {group} groups")
    if weight.nbytes * group > MAX_GROUPED:
        raise ValueError(f"{group} groups of {weight.shape} are beyond any network of ours")
    full = np.zeros((height, width, group, inputs // group, group, outputs), weight.dtype)
    parts = weight.reshape(height, width, group, inputs // group, outputs)
    diagonal = np.arange(group)
    # Advanced indices apart put their axis first.
    full[:, :, diagonal, :, diagonal, :] = parts.transpose(2, 0, 1, 3, 4)
    return full.reshape(height, width, inputs, group * outputs)
