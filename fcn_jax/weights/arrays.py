"""Parameters as a flat dictionary, the one form that every reader, writer and transplant shares."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Iterable, Mapping
from typing import Any, get_args

import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from numpy.typing import DTypeLike

from fcn_jax.classes import ClassTable
from fcn_jax.models.backbones import Padding
from fcn_jax.models.inputs import Inputs


def aligned(shape: tuple[int, ...], dtype: DTypeLike) -> np.ndarray:
    """An empty array at an address of whole cache lines: jax on a CPU takes it without a copy."""
    size = math.prod(shape) * np.dtype(dtype).itemsize
    room = np.empty(size + 64, np.uint8)
    start = -room.ctypes.data % 64
    return room[start : start + size].view(dtype).reshape(shape)


@dataclasses.dataclass(frozen=True)
class Network:
    """What is known of the network of some weights; None where that is left to their layers.

    Attributes:
        name: A decoder, or ``classifier``.
        padding: Of its first layers.
        modality: What its one input reads, where that is no image.
        scale: Factor on sizes before the network.
        precision: In what it computes.
        heads: The classes of each head.
    """

    name: str | None = None
    padding: Padding | None = None
    modality: str | None = None
    scale: float | None = None
    precision: str | None = None
    heads: Mapping[str, ClassTable] = dataclasses.field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain values, for JSON."""
        heads = {head: table.to_dict() for head, table in self.heads.items()}
        return {**dataclasses.asdict(dataclasses.replace(self, heads={})), "heads": heads}

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> Network:
        """The inverse of `to_dict`; a ValueError if a value is of another kind."""
        heads = {str(head): ClassTable.from_dict(t) for head, t in fields["heads"].items()}
        network = cls(**{**fields, "heads": heads})
        texts = (network.name, network.modality, network.precision)
        fits = isinstance(network.scale, float | None) and 0 < (network.scale or 1) <= 16
        fits &= network.padding in (None, *get_args(Padding))
        if not fits or not all(isinstance(text, str | None) for text in texts):
            raise ValueError("a value of another kind")
        return network


class Weights(dict[str, np.ndarray]):
    """float32 arrays by ``layer/kernel`` and ``layer/bias``, and what is known of their origin.

    Kernels of convolutions are (height, width, in / groups, out), of transposed convolutions
    (height, width, in, out) without a flip, of dense layers (in, out) with the inputs in Caffe's
    order (channel, row, column), whatever the order in the file was.

    Attributes:
        inputs: What the network reads and how that is normalised; None where the file does not say.
        kind: What the file is, such as ``torchvision vgg16``.
        skipped: What else the file holds, in words.
        trained_on: Digests of the images that it was trained on, where that is known.
        network: What is known of their network.
    """

    def __init__(
        self,
        arrays: Mapping[str, np.ndarray] | Iterable[tuple[str, np.ndarray]] = (),
        inputs: Inputs | None = None,
        kind: str = "",
        skipped: Iterable[str] = (),
        trained_on: Iterable[str] = (),
        network: Network = Network(),
    ) -> None:
        super().__init__(arrays)
        self.inputs = inputs
        self.kind = kind
        self.skipped = tuple(skipped)
        self.trained_on = frozenset(trained_on)
        self.network = network


def flatten(params: Mapping[str, Any]) -> dict[str, Any]:
    """A parameter tree as a flat dictionary: leaves by ``layer/kernel`` and ``layer/bias``."""
    return traverse_util.flatten_dict(dict(params), sep="/")


def unflatten(flat: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `flatten` for trees of two levels: ``{layer: {"kernel": …, "bias": …}}``.

    Names of layers may hold slashes (``inception_3a/1x1``), so the last one separates.
    """
    return traverse_util.unflatten_dict(
        {tuple(name.rsplit("/", 1)): value for name, value in flat.items()}
    )


_AXES = {"kernel": (2, 4), "w": (2, 4), "weight": (2, 4), "bias": (1,), "b": (1, 2, 3, 4)}
"""How many axes an array may have, by the end of its name; Caffe's older biases have four."""


def under_our_names(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Arrays under our names and in our layout, as views.

    ``LAYER/kernel`` and ``LAYER/bias`` are so already; ``LAYER/w`` and ``LAYER/b`` are Caffe's,
    ``LAYER.weight`` and ``LAYER.bias`` PyTorch's.
    """
    ours, problems = {}, []
    for name, value in arrays.items():
        layer, _, end = name.rpartition("/")
        if end not in ("kernel", "bias", "w", "b"):
            layer, _, end = name.partition(".")
        floating = jnp.issubdtype(value.dtype, jnp.floating)  # bfloat16 is, not only for numpy
        if not layer or not floating or value.ndim not in _AXES.get(end, ()):
            problems.append(f"{name[:80]} ({value.dtype}, {value.shape})")
        elif end in ("bias", "b"):
            ours[f"{layer}/bias"] = value.reshape(-1)
        else:
            axes = our_axes(value.ndim, is_conv_transpose(layer))
            ours[f"{layer}/kernel"] = value if end == "kernel" else value.transpose(axes)
    if problems:
        raise ValueError(
            "expected floating-point arrays LAYER/kernel and LAYER/bias, LAYER/w and LAYER/b, or "
            f"LAYER.weight and LAYER.bias, kernels of 2 or 4 axes; found {', '.join(problems)}"
        )
    return ours


def our_axes(ndim: int, transposed: bool = False) -> tuple[int, ...]:
    """The axes of Caffe's and PyTorch's arrays in our order.

    They store (out, in) of dense layers, (out, in / groups, height, width) of convolutions,
    (in, out, height, width) of transposed ones.
    """
    return {1: (0,), 2: (1, 0), 4: (2, 3, 0, 1) if transposed else (2, 3, 1, 0)}[ndim]


def is_conv_transpose(layer: str) -> bool:
    """Whether a layer of an FCN is a transposed convolution, which its kernel does not show."""
    return layer.startswith("upscore")


def most_bytes(file_size: int) -> int:
    """What a file may inflate to: weights hardly compress, but for the zeros of small networks."""
    return (64 << 20) + 16 * file_size


def description(inputs: Inputs | None, trained_on: Iterable[str], network: Network) -> str:
    """The JSON that `fcn_jax.weights.save` puts beside its arrays; `described` reads it."""
    fields = {"inputs": inputs and inputs.to_dict(), "trained_on": "".join(sorted(trained_on))}
    return json.dumps({**fields, "network": network.to_dict()})


def described(weights: Weights, text: str) -> Weights:
    """Weights with what their file's `description` says; older files tell of the inputs only."""
    try:
        fields = json.loads(text or "null")
        digests = ""
        if fields and "trained_on" in fields:
            if "network" in fields:
                weights.network = Network.from_dict(fields["network"])
            fields, digests = fields["inputs"], fields["trained_on"]
        weights.inputs = None if fields is None else Inputs.from_dict(fields)
        weights.trained_on = frozenset(re.findall("[0-9a-f]{16}", digests))
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"damaged: no description of the network: {str(error)[:80]}") from error
    return weights
