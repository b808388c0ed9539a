"""Parameters as a flat dictionary, the one form that every reader, writer and transplant shares."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from flax import traverse_util
from jaxtyping import Float32, Shaped

from fcn_jax.models.inputs import Inputs


class Weights(dict[str, np.ndarray]):
    """float32 arrays by ``layer/kernel`` and ``layer/bias``, and what is known of their origin.

    Kernels of convolutions are (height, width, in / groups, out), of transposed convolutions
    (height, width, in, out) without a flip, of dense layers (in, out) with the inputs in Caffe's
    order (channel, row, column), whatever the order in the file was.

    Attributes:
        inputs: What the network reads and how that is normalised; None where the file does not say.
        kind: What the file is, such as ``torchvision vgg16``.
        skipped: What else the file holds, in words.
    """

    def __init__(
        self,
        arrays: Mapping[str, np.ndarray] | Iterable[tuple[str, np.ndarray]] = (),
        inputs: Inputs | None = None,
        kind: str = "",
        skipped: Iterable[str] = (),
    ) -> None:
        super().__init__(arrays)
        self.inputs = inputs
        self.kind = kind
        self.skipped = tuple(skipped)


# ======================================================================== trees


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


# ======================================================================== layouts


def float32(values: Shaped[np.ndarray, "..."], copy: bool = True) -> Float32[np.ndarray, "..."]:
    """float32 values in the memory order of ``values`` (fast, also for a transposed view).

    Values beyond float32 become infinite, which `fcn_jax.weights.load` refuses.

    Args:
        values: Numbers of any type.
        copy: Whether float32 values are copied too, as a view of a file must be.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        return values.astype(np.float32, order="K", copy=copy)


def our_kernel(weight: Shaped[np.ndarray, "out in *size"], transposed: bool = False) -> np.ndarray:
    """A kernel as Caffe and PyTorch store it in our layout, a view.

    Args:
        weight: (out, in) of dense layers, (out, in / groups, height, width) of convolutions,
            (in, out, height, width) of transposed ones.
        transposed: Whether the layer is a transposed convolution, which its kernel does not show.
    """
    if weight.ndim == 2:
        return weight.T
    return weight.transpose((2, 3, 0, 1) if transposed else (2, 3, 1, 0))


# ======================================================================== what a file says of them

MAX_DESCRIPTION = 1 << 16


def describe_inputs(inputs: Inputs | None) -> str:
    """What the network reads, as the JSON that is saved beside its arrays."""
    return json.dumps(inputs and inputs.to_dict())


def described_inputs(text: str) -> Inputs | None:
    """The inverse of `describe_inputs`; no text is no inputs.

    Raises:
        ValueError: If this is no such JSON.
    """
    if len(text) > MAX_DESCRIPTION:
        raise ValueError(f"damaged: {len(text)} characters that describe the inputs")
    try:
        fields = json.loads(text or "null")
        return None if fields is None else Inputs.from_dict(fields)
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"damaged: no description of inputs: {str(error)[:80]}") from error
