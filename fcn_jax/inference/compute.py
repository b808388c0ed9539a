"""What a predictor's devices compute: the results of a batch, at the images' own sizes."""

from __future__ import annotations

import math
from typing import Any, Literal, NamedTuple, TypeAlias, TypeGuard

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array

from fcn_jax import ops
from fcn_jax.canvas import Batch, Size
from fcn_jax.models.fcn import FCN
from fcn_jax.models.inputs import Inputs
from fcn_jax.programs import Programs

Result: TypeAlias = Literal["labels", "logits", "probabilities"]


class View(NamedTuple):
    """How a network sees an image."""

    scale: float  # factor on height and width
    mirrored: bool  # left to right


def describe_views(flip: bool, scales: tuple[float, ...]) -> str:
    """What there is to tell of test-time augmentation; nothing where there is none."""
    if not flip and scales == (1.0,):
        return ""
    text = f"scale {', '.join(f'{factor:g}' for factor in scales)}"
    text += ", each as it is and mirrored" if flip else ""
    number = len(scales) * (1 + flip)
    return f"test-time augmentation: mean of the probabilities of {number} views ({text})"


class Network(NamedTuple):
    """What a program is compiled for: the predictors of equal networks share their programs."""

    model: nn.Module
    inputs: Inputs
    heads: tuple[tuple[str, int], ...]  # with their numbers of classes
    views: tuple[View, ...]


def compute(
    variables: Any, batches: tuple[Batch, ...], *, network: Network, canvas: Size, kind: Result
) -> dict[str, Array]:
    """Normalises, runs the network, interpolates to the original sizes; jit-able.

    Args:
        batches: Of each view.
        canvas: That of the original images.

    Returns:
        By head (b, height, width) or (b, height, width, classes), on the canvas of the original
        images; of a classifier its coarse map.
    """
    if len(batches) == 1 and not network.views[0].mirrored:
        results = _logits(variables, batches[0], network, canvas)
    else:
        results = _log_mean_probabilities(variables, batches, network, canvas)
    return {head: result_of(logits, kind) for head, logits in results.items()}


def result_of(logits: Array, kind: Result) -> Array:
    """What is made of logits (…, classes)."""
    if kind == "labels":
        dtype = jnp.uint8 if logits.shape[-1] <= 256 else jnp.int32
        return jnp.argmax(logits, axis=-1).astype(dtype)
    return jax.nn.softmax(logits, axis=-1) if kind == "probabilities" else logits


def _log_mean_probabilities(
    variables: Any, batches: tuple[Batch, ...], network: Network, canvas: Size
) -> dict[str, Array]:
    """The logarithm of the mean of the views' probabilities, which no small one underflows."""
    total: dict[str, Array] = {}
    for view, batch in zip(network.views, batches, strict=True):
        # One view after the other, so that the maps of one are in memory.
        batch, total = jax.lax.optimization_barrier((batch, total))
        for head, logits in _logits(variables, batch, network, canvas).items():
            chances = jax.nn.log_softmax(logits, axis=-1) - math.log(len(batches))
            if view.mirrored:  # back, within each image: what lies beyond stays there
                places = jnp.arange(canvas[1])[None]
                ends = batch.original_size[:, 1:]
                places = jnp.where(places < ends, ends - 1 - places, places)
                chances = jnp.take_along_axis(chances, places[:, None, :, None], axis=2)
            total[head] = jnp.logaddexp(total[head], chances) if head in total else chances
    return total


def _logits(variables: Any, batch: Batch, network: Network, canvas: Size) -> dict[str, Array]:
    """The logits of one view by head, at the original sizes."""
    model, arrays = network.model, network.inputs.apply(batch.arrays)
    sizes: dict[str, Any] = {}
    if takes_canvas(model):
        sizes = {"valid_size": batch.valid_size, "tile": batch.tile}
    output: Any = model.apply(variables, arrays, train=False, **sizes)
    classes = dict(network.heads)
    by_head = output if isinstance(output, dict) else {next(iter(classes), "label"): output}
    results = {}
    for head, logits in by_head.items():
        number = logits.shape[-1]
        if number != classes.get(head, number):
            raise ValueError(f"the network has {number} classes, {head} has {classes[head]}")
        if not getattr(model, "classifies", False) and logits.shape[1:3] != canvas:
            whole = batch.valid_size
            if whole is None:
                whole = jnp.broadcast_to(jnp.array(logits.shape[1:3]), (len(logits), 2))
            logits = ops.resize_bilinear_on_canvas(logits, whole, batch.original_size, *canvas)
        results[head] = logits
    return results


def takes_canvas(model: nn.Module) -> TypeGuard[FCN]:
    """Whether a network gives an image on a larger canvas what it would get alone."""
    return isinstance(model, FCN) and not model.classifies


compute_batch = Programs(compute)
