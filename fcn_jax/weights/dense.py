"""Dense layers as convolutions and back: the paper's figure 2.

A dense layer over a flattened map computes what a convolution with a kernel of that map's size
computes; which of its inputs is which pixel depends on the order in which the map was flattened.
Caffe and PyTorch flatten (channel, row, column), Keras (row, column, channel).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, TypeVar, cast

import numpy as np
from jaxtyping import Array, Shaped

from fcn_jax.weights.arrays import Weights, flatten, unflatten

Order = Literal["chw", "hwc"]
Params = TypeVar("Params", bound=Mapping[str, Any])

DENSE_LAYERS = ("fc6", "fc7", "fc8", "loss3/classifier", "fc")
"""The layers that are dense in the published classifiers."""


def dense_to_conv(
    dense: Shaped[Array | np.ndarray, "inputs outputs"],
    shape: tuple[int, ...],
    order: Order = "chw",
) -> Shaped[Array | np.ndarray, "height width channels outputs"]:
    """The convolution kernel of a dense layer over a map, which was flattened in the ``order``.

    It has the ``shape`` (height, width, channels, outputs), and is a view where numpy can make one.
    """
    height, width, channels, outputs = shape
    if order == "hwc":
        return dense.reshape(height, width, channels, outputs)
    return dense.reshape(channels, height, width, outputs).transpose(1, 2, 0, 3)


def conv_to_dense(
    kernel: Shaped[Array | np.ndarray, "height width channels outputs"], order: Order = "chw"
) -> Shaped[Array | np.ndarray, "height*width*channels outputs"]:
    """The inverse of `dense_to_conv`."""
    if order == "chw":
        kernel = kernel.transpose(2, 0, 1, 3)
    return kernel.reshape(-1, kernel.shape[-1])


def convolutionalize(
    params: Params, shapes: Mapping[str, Sequence[int]], order: Order = "chw"
) -> Params:
    """Turns the dense kernels of a network into convolutions.

    Args:
        params: ``{layer: {"kernel": …, "bias": …}}`` or flat by ``layer/kernel``. A dense kernel
            is (inputs, outputs), as Keras and `fcn_jax.weights.load` have it; PyTorch and Caffe
            store the transpose. Kernels with four axes and biases stay as they are.
        shapes: (height, width), or (height, width, channels), of the map that each dense layer
            reads, such as ``{"fc6": (7, 7)}``. A layer that is not named reads a single cell.
        order: How the maps were flattened: ``chw`` (Caffe, PyTorch) or ``hwc`` (Keras).

    Returns:
        Parameters of the same form; dense kernels are (height, width, channels, outputs).

    Raises:
        ValueError: If a map does not fit its layer or names one that has no dense kernel; all of
            them in one message.

    Example:
        >>> params = {"fc6": {"kernel": np.ones((7 * 7 * 512, 10)), "bias": np.ones(10)}}
        >>> convolutionalize(params, {"fc6": (7, 7)})["fc6"]["kernel"].shape
        (7, 7, 512, 10)
    """
    _check_order(order)
    flat = flatten(params)
    dense = {
        name.removesuffix("/kernel"): value
        for name, value in flat.items()
        if name.endswith("/kernel") and np.ndim(value) == 2
    }
    problems = [
        f"{layer} has no dense kernel; those with one are {', '.join(dense) or 'none'}"
        for layer in shapes
        if layer not in dense
    ]
    for layer, value in dense.items():
        size, outputs = value.shape
        read = tuple(shapes.get(layer, (1, 1)))
        cells = math.prod(read[:2])
        channels = read[2] if len(read) == 3 else size // max(1, cells)
        if len(read) in (2, 3) and min(read) > 0 and cells * channels == size:
            flat[f"{layer}/kernel"] = dense_to_conv(value, (*read[:2], channels, outputs), order)
        else:
            problems.append(f"{layer} is {value.shape}, which no map {read} gives")
    return _in_the_form_of(params, flat, problems)


def to_dense(params: Params, layers: Iterable[str] | None = None, order: Order = "chw") -> Params:
    """The inverse of `convolutionalize`, for some layers; by default for all of `DENSE_LAYERS`.

    Raises:
        ValueError: If a layer has no kernel of four axes; all of them in one message.
    """
    _check_order(order)
    flat = flatten(params)
    if layers is None:
        layers = [layer for layer in DENSE_LAYERS if f"{layer}/kernel" in flat]
    problems = []
    for layer in layers:
        kernel = flat.get(f"{layer}/kernel")
        if kernel is None or np.ndim(kernel) != 4:
            problems.append(f"{layer} has no kernel of a convolution")
        else:
            flat[f"{layer}/kernel"] = conv_to_dense(kernel, order)
    return _in_the_form_of(params, flat, problems)


def _check_order(order: str) -> None:
    if order not in ("chw", "hwc"):
        raise ValueError(f"order must be chw (Caffe, PyTorch) or hwc (Keras), got {order!r}")


def _in_the_form_of(params: Params, flat: dict[str, Any], problems: list[str]) -> Params:
    """The arrays nested, flat, or as `Weights` with their origin, if there are no problems."""
    if problems:
        raise ValueError("dense and convolution kernels:\n  " + "\n  ".join(problems))
    if isinstance(params, Weights):
        told = (params.inputs, params.kind, params.skipped, params.trained_on, params.network)
        return cast(Params, Weights(flat, *told))
    nested = any(isinstance(value, Mapping) for value in params.values())
    return cast(Params, unflatten(flat) if nested else flat)
