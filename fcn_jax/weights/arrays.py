"""Parameters as a flat dictionary, the one form that every reader, writer and transplant shares.

Layer names may hold slashes themselves (``inception_3a/1x1``), so that a flat name is always taken
apart at its last one.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from fcn_jax.models.inputs import Inputs, Preprocessing


class Weights(dict[str, np.ndarray]):
    """float32 arrays by ``layer/kernel`` and ``layer/bias``, and what is known of their origin.

    Kernels of convolutions are (height, width, in / groups, out), of transposed convolutions (height,
    width, in, out) without a flip, of dense layers (in, out) with the inputs in Caffe's order
    (channel, row, column), whatever the order in the file was.

    Attributes:
        preprocessing: What the network expects of its image, or of its inputs if they are others;
            None where the file does not say.
        kind: What the file is, such as ``torchvision vgg16``.
        skipped: What the file holds besides that has no place here, in words.
    """

    def __init__(
        self,
        arrays: Mapping[str, np.ndarray] | Iterable[tuple[str, np.ndarray]] = (),
        preprocessing: Preprocessing | Inputs | None = None,
        kind: str = "",
        skipped: Iterable[str] = (),
    ) -> None:
        super().__init__(arrays)
        self.preprocessing = preprocessing
        self.kind = kind
        self.skipped = tuple(skipped)


def flatten(params: Mapping[str, Any]) -> dict[str, Any]:
    """A parameter tree as a flat dictionary: leaves by ``layer/kernel`` and ``layer/bias``."""
    return dict(_leaves(params, ""))


def _leaves(tree: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for name, value in tree.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{name}/")
        else:
            yield f"{prefix}{name}", value


def unflatten(flat: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `flatten` for trees of two levels: ``{layer: {"kernel": …, "bias": …}}``."""
    tree: dict[str, Any] = {}
    for name, value in flat.items():
        layer, _, array = name.rpartition("/")
        tree.setdefault(layer, {})[array] = value
    return tree


def float32(values: np.ndarray) -> np.ndarray:
    """An own float32 copy, in the memory order of ``values`` (fast, also for a transposed view).

    Values beyond float32 become infinite, which `fcn_jax.weights.load` refuses.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        return np.array(values, np.float32, order="K", copy=True)


def convolution_kernel(weight: np.ndarray) -> np.ndarray:
    """(out, in / groups, height, width), as Caffe and PyTorch store it, in our layout; a view."""
    return weight.transpose(2, 3, 1, 0)


def conv_transpose_kernel(weight: np.ndarray) -> np.ndarray:
    """(in, out, height, width), as Caffe and PyTorch store it, in our layout; a view."""
    return weight.transpose(2, 3, 0, 1)
