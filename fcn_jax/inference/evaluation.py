"""Metrics of a network over a set of images, each whole and at its original size.

Images are batched with others of similar size on one canvas; each gets the label map that it would
get alone, so that the scores depend neither on the batch size nor on the canvas.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
from flax import linen as nn
from jax.sharding import Mesh
from jaxtyping import Array, UInt8

from fcn_jax.canvas import (
    Batch,
    Canvas,
    CanvasImage,
    Group,
    batch_of,
    canvas_side,
    group_by_canvas,
    original_canvas,
    run_ahead,
    stack,
)
from fcn_jax.classes import VOID
from fcn_jax.data.transforms import Example, check_example
from fcn_jax.devices import jit_in_least_memory, shardings
from fcn_jax.inference.metrics import ConfusionMatrix
from fcn_jax.inference.predictor import canvas_rule, full_size_logits, most_likely, place
from fcn_jax.models.inputs import Inputs, Preprocessing
from fcn_jax.models.losses import check_labels


def evaluate(
    model: nn.Module,
    variables: Any,
    examples: Iterable[Example],
    *,
    num_classes: int | Mapping[str, int],
    preprocessing: Preprocessing | Inputs,
    scale: float = 1.0,
    batch_size: int = 8,
    canvas: Canvas = canvas_side,
    mesh: Mesh | None = None,
    progress: Callable[[int], object] | None = None,
    visit: Callable[[Example, Any], object] | None = None,
) -> Any:
    """Counts the pixels of each true and predicted class over a set of images.

    `fcn_jax.inference.metrics.scores` makes the four figures of the counts. Each canvas is compiled once
    for a network, also over repeated calls with the same images.

    Args:
        model: The network.
        variables: Its parameters, ``{"params": ...}``.
        examples: Any iterable of examples, such as a source; sizes may differ.
        num_classes: Classes of the labels and of the network; a dictionary of them by the names
            of the label maps for a network of several heads, or for a label map that is not
            called ``label``.
        preprocessing: How the network was trained to see pixels.
        scale: Factor on height and width before the network; the logits are interpolated back,
            so that the score is always that of the original pixels.
        batch_size: Images at a time, over all devices; rounded up to a multiple of them. Fewer
            where their canvases would have more pixels for a device than
            `fcn_jax.canvas.LARGEST_SIDE` squared.
        canvas: The rule for canvases, see `fcn_jax.Predictor`; `canvas.exactly` saves
            the filling where all images have one size.
        mesh: Splits each batch over its axis ``data``; None runs on one device.
        progress: Called with the number of images done since the last call.
        visit: Called with every example and its predicted label map, e.g. to draw some; with
            a dictionary of label maps where ``num_classes`` is one.

    Returns:
        The confusion matrix, int64 (c, c); rows are the truth, columns the prediction. A
        dictionary of them where ``num_classes`` is one.

    Raises:
        ValueError: If there is no example, or an example's arrays do not fit; it is named.
    """
    named = isinstance(num_classes, Mapping)
    heads: dict[str, int] = dict(num_classes) if named else {"label": num_classes}
    inputs = Inputs.of(preprocessing)
    shards, replicated, split = shardings(mesh)
    variables = jax.device_put(variables, replicated)
    zeros = {head: ConfusionMatrix.zeros(classes) for head, classes in heads.items()}
    matrices = jax.device_put(zeros, replicated)
    rule = canvas_rule(model, canvas)
    placed = (_placed(example, heads, inputs, scale, rule) for example in examples)

    def started() -> Iterator[tuple[Group, dict[str, Array]]]:
        nonlocal matrices
        for group in group_by_canvas(placed, batch_size, shards):
            batch, labels = jax.device_put(
                (batch_of(group, scale), _labels_of(group, scale, heads)), split
            )
            matrices, predictions = _score_batch(
                model, variables, matrices, batch, labels, preprocessing=inputs
            )
            yield group, predictions

    count = 0
    for group, predictions in run_ahead(started()):
        # The host waits for the batch before the last ones, so that no more than those are queued.
        jax.block_until_ready(predictions)
        if visit is not None:
            _visit(visit, group, jax.device_get(predictions), named)
        if progress is not None:
            progress(len(group.images))
        count += len(group.images)
    if count == 0:
        raise ValueError("there is no example to evaluate")
    counts = {head: matrix.counts() for head, matrix in matrices.items()}
    return counts if named else counts["label"]


def _visit(
    visit: Callable[[Example, Any], object],
    group: Group,
    predictions: dict[str, UInt8[np.ndarray, "b height width"]],
    named: bool,
) -> None:
    """Shows every example of a group with its label map, or maps by head."""
    for row, image in enumerate(group.images):
        height, width = image.original_size
        labels = {head: maps[row, :height, :width].copy() for head, maps in predictions.items()}
        visit(image.source, labels if named else labels["label"])


@jit_in_least_memory(static_argnames=("model", "preprocessing"), donate_argnames="matrices")
def _score_batch(
    model: nn.Module,
    variables: Any,
    matrices: dict[str, ConfusionMatrix],
    batch: Batch,
    labels: dict[str, UInt8[Array, "b height width"]],
    *,
    preprocessing: Inputs,
) -> tuple[dict[str, ConfusionMatrix], dict[str, UInt8[Array, "b height width"]]]:
    """Adds a batch to each head's matrix, on the device; returns the label maps, too."""
    _, height, width = next(iter(labels.values())).shape
    logits = full_size_logits(
        model, variables, batch, preprocessing=preprocessing, canvas=(height, width)
    )
    by_head: dict[str, Array] = logits if isinstance(logits, dict) else {"label": logits}
    if len(by_head) == 1:  # of any name, as the only one
        by_head = dict.fromkeys(labels, next(iter(by_head.values())))
    for head, matrix in matrices.items():
        classes = matrix.low.shape[0]
        if by_head[head].shape[-1] != classes:
            raise ValueError(
                f"the network has {by_head[head].shape[-1]} classes, the labels {classes}"
            )
    predictions = {head: most_likely(by_head[head]) for head in labels}
    counted = {
        head: matrix.update(labels[head], predictions[head]) for head, matrix in matrices.items()
    }
    return counted, predictions


def _placed(
    example: Example, heads: Mapping[str, int], inputs: Inputs, scale: float, canvas: Canvas
) -> CanvasImage:
    """Checks an example and gives it a canvas; raises ValueError that names it."""
    if missing := [name for name in (*inputs.modalities, *heads) if name not in example]:
        raise ValueError(
            f"{example['id']}: {', '.join(missing)} is missing; there are {', '.join(example)}"
        )
    check_example(example)
    try:
        for head, classes in heads.items():
            check_labels(example[head], classes)
        return place(example, example, inputs, scale, canvas)
    except ValueError as error:
        raise ValueError(f"{example['id']}: {error}") from None


def _labels_of(
    group: Group, scale: float, heads: Iterable[str]
) -> dict[str, UInt8[np.ndarray, "b height width"]]:
    """The label maps of a group on the canvas of the original sizes; beyond an image it is void."""
    canvas = original_canvas(group.canvas, scale)
    return {
        head: stack([image.source[head] for image in group.images], canvas, group.rows, VOID)
        for head in heads
    }
