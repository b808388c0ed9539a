"""`.caffemodel` files of any age: a NetParameter message with the layers' blobs.

The numbers below are those of caffe.proto. Three generations of layers exist: plain (since 2015,
the type a string), V1 (an enumeration) and, inside V1, V0 (a string of another spelling).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from fcn_jax.models.inputs import Preprocessing
from fcn_jax.weights import wire
from fcn_jax.weights.arrays import (
    Weights,
    conv_transpose_kernel,
    convolution_kernel,
    float32,
)
from fcn_jax.weights.mapped import map_file

NET_NAME, NET_V1_LAYERS, NET_LAYERS = 1, 2, 100
_NET_TAGS = (b"\x0a", b"\x12", b"\x1a", b"\x20", b"\x28", b"\x32", b"\x38", b"\x42", b"\xa2\x06")
"""How a NetParameter may begin: the tags of its fields."""

ALIASES = {"conv1_1_bgrd": "conv1_1"}
"""Layers of published networks whose names say no more than what they read (NYUDv2, 4 channels)."""

MAX_GROUPED = 1 << 30
"""Bytes of a grouped transposed convolution as a full kernel: 255 classes at factor 32 need no more."""


def recognises(head: bytes) -> bool:
    """Whether a file may be a NetParameter, which has no signature of its own.

    It is one if its first field is, and is followed by another of the fields.
    """
    if not head.startswith(_NET_TAGS):
        return False
    if not head.startswith(b"\x0a"):
        return True
    try:
        size, start = wire.varint(memoryview(head), 1)
    except ValueError:
        return False
    return head[start + size :].startswith(_NET_TAGS)


def read(path: Path) -> Weights:
    """Reads the kernels and biases of convolutions, transposed convolutions and dense layers.

    Layers of other types that have blobs (BatchNorm, Scale, PReLU) are named in ``skipped``.
    The preprocessing is that of the published networks, which the file does not say.

    Raises:
        ValueError: If the file is damaged, or blobs do not fit their layers; the latter all in
            one message.
    """
    weights = Weights(preprocessing=Preprocessing(), kind="Caffe model")
    problems, skipped = [], []
    try:
        layers = list(_layers(map_file(path)))
    except ValueError as error:
        raise ValueError(f"no Caffe model, or a damaged one: {error}") from error
    for layer in layers:
        name = ALIASES.get(layer.name, layer.name)
        if layer.type not in _CONVERTERS:
            skipped.append(f"{layer.name} ({layer.type}, {len(layer.blobs)} arrays)")
        elif f"{name}/kernel" in weights:
            problems.append(f"{name}: two layers of that name have blobs")
        else:
            try:
                weights.update(_arrays(name, layer))
            except ValueError as error:
                problems.append(f"{name} ({layer.type}): {error}")
    if problems:
        raise ValueError("layers that cannot be read:\n  " + "\n  ".join(problems))
    if not weights:
        raise ValueError("a Caffe model without any weights (a network definition only?)")
    weights.skipped = tuple(skipped)
    return weights


# ======================================================================== layers


@dataclasses.dataclass(frozen=True)
class _Layer:
    """A layer that has blobs.

    Attributes:
        name: Its name.
        type: Its type, spelled as in the newest generation where it is one of ours.
        blobs: Its blobs.
        group: Groups of a convolution.
        transposed: Whether a dense layer stores (in, out).
    """

    name: str
    type: str
    blobs: list[_Blob]
    group: int
    transposed: bool


@dataclasses.dataclass(frozen=True)
class _Generation:
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
"""Types of the older generations; V1 has numbers."""


def _layers(content: memoryview) -> Iterator[_Layer]:
    reader = wire.Wire()
    net = reader.parse(content)
    for message in wire.messages(net, NET_V1_LAYERS):
        fields = reader.parse(message)
        generation = _V1
        if older := wire.messages(fields, _V0_IN_V1):
            fields, generation = reader.parse(older[-1]), _V0
        yield from _layer(reader, fields, generation)
    for message in wire.messages(net, NET_LAYERS):
        yield from _layer(reader, reader.parse(message), _PLAIN)


def _layer(reader: wire.Wire, fields: wire.Message, generation: _Generation) -> Iterator[_Layer]:
    blobs = wire.messages(fields, generation.blobs)
    if not blobs:
        return
    name = wire.text(fields, generation.name)
    if not name:
        raise ValueError("a layer with weights and without a name")
    if generation is _V1:
        kind = str(wire.integer(fields, generation.type))
    else:
        kind = wire.text(fields, generation.type)
    convolution = _nested(reader, fields, generation.convolution)
    dense = _nested(reader, fields, generation.inner_product)
    group = wire.integer(fields, generation.group, 1)
    yield _Layer(
        name,
        _TYPES.get(kind, f"V1 type {kind}" if generation is _V1 else kind),
        [_blob(reader, reader.parse(blob)) for blob in blobs],
        wire.integer(convolution, _CONVOLUTION_GROUP, group),
        bool(wire.integer(dense, _INNER_PRODUCT_TRANSPOSE)),
    )


def _nested(reader: wire.Wire, fields: wire.Message, number: int) -> wire.Message:
    """A nested message, empty where it is absent."""
    found = wire.messages(fields, number)
    return reader.parse(found[-1]) if found else {}


# ======================================================================== blobs

_LEGACY_SHAPE = (1, 2, 3, 4)
_SHAPE, _DATA, _DOUBLE_DATA = 7, 5, 8


@dataclasses.dataclass(frozen=True)
class _Blob:
    """A BlobProto: the bytes of its values, where they lie in the file, and what they are."""

    data: memoryview | bytes
    dtype: np.dtype
    shape: tuple[int, ...]

    def values(self) -> np.ndarray:
        """The values as stored, a view."""
        if not len(self.data):
            raise ValueError(f"a blob {self.shape} without values (or of another kind of Caffe)")
        if math.prod(self.shape) * self.dtype.itemsize != len(self.data):
            raise ValueError(f"{len(self.data)} bytes for a blob {self.shape} of {self.dtype}")
        return np.frombuffer(self.data, self.dtype).reshape(self.shape)


def _blob(reader: wire.Wire, fields: wire.Message) -> _Blob:
    if shapes := wire.messages(fields, _SHAPE):
        shape = wire.integers(reader.parse(shapes[-1]), 1)
    else:
        shape = [wire.integer(fields, number, 1) for number in _LEGACY_SHAPE]
    if _DOUBLE_DATA in fields:
        data, dtype = wire.packed(fields, _DOUBLE_DATA, wire.FIXED64), np.dtype("<f8")
    else:
        data, dtype = wire.packed(fields, _DATA, wire.FIXED32), np.dtype("<f4")
    return _Blob(data, dtype, tuple(shape))


# ======================================================================== our layout


def _arrays(name: str, layer: _Layer) -> dict[str, np.ndarray]:
    if len(layer.blobs) > 2:
        raise ValueError(f"has {len(layer.blobs)} blobs, expected a kernel and a bias")
    weight, *biases = [blob.values() for blob in layer.blobs]
    kernel = _CONVERTERS[layer.type](layer, weight)
    arrays = {f"{name}/kernel": kernel}
    for blob in biases:
        if blob.size != kernel.shape[-1]:
            raise ValueError(f"has {kernel.shape[-1]} outputs and a bias {blob.shape}")
        arrays[f"{name}/bias"] = float32(blob.reshape(-1))
    return arrays


def _convolution(layer: _Layer, blob: np.ndarray) -> np.ndarray:
    del layer  # the groups show in the shape
    return float32(convolution_kernel(_with_axes(blob, 4)))


def _dense(layer: _Layer, blob: np.ndarray) -> np.ndarray:
    if blob.ndim > 2 and set(blob.shape[:-2]) == {1}:  # legacy blobs are (1, 1, out, in)
        blob = blob.reshape(blob.shape[-2:])
    blob = _with_axes(blob, 2)
    return float32(blob if layer.transposed else blob.T)


def _conv_transpose(layer: _Layer, blob: np.ndarray) -> np.ndarray:
    """(in, out / groups, height, width) as a full kernel, zero between the groups."""
    weight = conv_transpose_kernel(_with_axes(blob, 4))
    group = layer.group
    if group == 1:
        return float32(weight)
    height, width, inputs, outputs = weight.shape
    if group < 1 or inputs % group:
        raise ValueError(f"{inputs} inputs do not divide into {group} groups")
    if 4 * weight.size * group > MAX_GROUPED:
        raise ValueError(f"{group} groups of {weight.shape} are beyond any network of ours")
    full = np.zeros((height, width, group, inputs // group, group, outputs), np.float32)
    parts = weight.reshape(height, width, group, inputs // group, outputs)
    diagonal = np.arange(group)
    # Advanced indices apart put their axis first.
    full[:, :, diagonal, :, diagonal, :] = parts.transpose(2, 0, 1, 3, 4)
    return full.reshape(height, width, inputs, group * outputs)


def _with_axes(blob: np.ndarray, axes: int) -> np.ndarray:
    if blob.ndim != axes:
        raise ValueError(f"has a kernel {blob.shape}, expected {axes} axes")
    return blob


_CONVERTERS: dict[str, Callable[[_Layer, np.ndarray], np.ndarray]] = {
    "Convolution": _convolution,
    "InnerProduct": _dense,
    "Deconvolution": _conv_transpose,
}
