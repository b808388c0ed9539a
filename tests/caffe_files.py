"""Writes `.caffemodel` files; all it shares with the reader is the numbers of caffe.proto.

Every age of the format: plain layers, V1 and V0; shapes as BlobShape or as four numbers; floats and
doubles; values in one packed piece, in several, or one field each.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np


@dataclasses.dataclass(frozen=True)
class Layer:
    """A layer with arrays in Caffe's layout; without arrays it is written all the same."""

    name: str
    type: str = "Convolution"
    blobs: Sequence[np.ndarray] = ()
    group: int = 1
    transpose: bool = False


V1_TYPES = {"Convolution": 4, "InnerProduct": 14, "Deconvolution": 39, "ReLU": 18, "Data": 5}
V0_TYPES = {"Convolution": "conv", "InnerProduct": "innerproduct", "ReLU": "relu", "Data": "data"}


def varint(value: int) -> bytes:
    out = b""
    while True:
        value, low = value >> 7, value & 0x7F
        out += bytes([low | (0x80 if value else 0)])
        if not value:
            return out


def number(field: int, value: int) -> bytes:
    return varint(field << 3) + varint(value)


def chunk(field: int, content: bytes | str) -> bytes:
    content = content.encode() if isinstance(content, str) else content
    return varint(field << 3 | 2) + varint(len(content)) + content


def blob(values: np.ndarray, legacy: bool, double: bool, pieces: int, packed: bool) -> bytes:
    """A BlobProto; with ``legacy`` as num, channels, height, width."""
    shape = values.shape
    if legacy:
        four = (1,) * (4 - len(shape)) + shape
        head = b"".join(number(field, size) for field, size in enumerate(four, 1))
    else:
        head = chunk(7, chunk(1, b"".join(map(varint, shape))))
    field, dtype = (8, "<f8") if double else (5, "<f4")
    flat = values.astype(dtype).reshape(-1)
    if packed:
        data = b"".join(chunk(field, part.tobytes()) for part in np.array_split(flat, pieces))
    else:
        tag = varint(field << 3 | (1 if double else 5))
        data = b"".join(tag + value.tobytes() for value in flat)
    return data + head if legacy else head + data


def caffemodel(
    layers: Sequence[Layer],
    generation: str = "plain",
    legacy: bool = False,
    double: bool = False,
    pieces: int = 1,
    packed: bool = True,
) -> bytes:
    """The bytes of a NetParameter."""
    out = chunk(1, "a network")
    for layer in layers:
        blobs = [blob(b, legacy, double, pieces, packed) for b in layer.blobs]
        out += _WRITERS[generation](layer, blobs)
    return out


def _plain(layer: Layer, blobs: list[bytes]) -> bytes:
    content = chunk(1, layer.name) + chunk(2, layer.type) + chunk(3, "bottom") + chunk(4, "top")
    content += number(10, 1)  # phase
    content += chunk(6, b"\x1d" + np.float32(2).tobytes())  # param { lr_mult: 2 }
    content += b"".join(chunk(7, b) for b in blobs)
    if layer.type in ("Convolution", "Deconvolution"):
        content += chunk(106, number(1, 21) + number(5, layer.group) + chunk(4, varint(3)))
    if layer.type == "InnerProduct":
        content += chunk(117, number(1, 21) + number(6, int(layer.transpose)))
    return chunk(100, content)


def _v1(layer: Layer, blobs: list[bytes]) -> bytes:
    content = chunk(2, "bottom") + chunk(3, "top") + chunk(4, layer.name)
    content += number(5, V1_TYPES.get(layer.type, 99))
    content += b"".join(chunk(6, b) for b in blobs)
    content += b"\x3d" + np.float32(1).tobytes()  # blobs_lr: 1
    if layer.type in ("Convolution", "Deconvolution"):
        content += chunk(10, number(1, 21) + number(5, layer.group))
    return chunk(2, content)


def _v0(layer: Layer, blobs: list[bytes]) -> bytes:
    content = chunk(1, layer.name) + chunk(2, V0_TYPES.get(layer.type, "other"))
    content += number(9, layer.group)
    content += b"".join(chunk(50, b) for b in blobs)
    return chunk(2, chunk(1, content) + chunk(2, "bottom") + chunk(3, "top"))


_WRITERS = {"plain": _plain, "v1": _v1, "v0": _v0}
