"""Confusion matrices of a network over a set of images, each whole and at its original size.

Images are batched as for prediction (`fcn_jax.inference.predictor`): each gets the label map that
it would get alone, so that the metrics depend neither on the batch size nor on the canvas.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Int64, UInt8

from fcn_jax.canvas import Batch, CanvasImage, Group, original_canvas, stack
from fcn_jax.classes import VOID
from fcn_jax.devices import jit_in_least_memory, shardings
from fcn_jax.inference.metrics import ConfusionMatrix, PixelCounts, count_pixels
from fcn_jax.inference.predictor import Predictor, full_size_logits, most_likely
from fcn_jax.models.inputs import Inputs
from fcn_jax.models.losses import check_labels

Example = dict[str, Any]


def evaluate(
    predictor: Predictor,
    examples: Iterable[Example],
    *,
    progress: Callable[[int], object] | None = None,
    visit: Callable[[Example, dict[str, UInt8[np.ndarray, "h w"]]], object] | None = None,
) -> dict[str, Int64[np.ndarray, "c c"]]:
    """Counts the pixels of each class of the ground truth and predicted class over a set of images.

    `fcn_jax.compute_metrics` makes the four metrics of the counts. Each canvas is compiled once for
    a network, also over repeated calls.

    Args:
        predictor: The network, and how images are batched.
        examples: Any iterable of examples, such as a source: dictionaries of what the network
            reads (``image``), a label map uint8 (h, w) for each head by its name (``label``; void
            is 255), and an ``id``. Sizes may differ.
        progress: Called with the number of images done.
        visit: Called with every example and its predicted label maps by head, e.g. to draw some.

    Returns:
        The confusion matrix of each head; rows are the ground truth, columns the prediction.

    Raises:
        ValueError: If there is no example, or an example's arrays do not fit; it is named.

    Example:
        >>> import jax, numpy as np
        >>> import fcn_jax
        >>> model = fcn_jax.create_model("fcn32s", num_classes=2, width=1 / 16, fc_width=8)
        >>> variables = model.init(jax.random.key(0), np.zeros((1, 32, 32, 3), np.float32))
        >>> image, label = np.zeros((40, 50, 3), np.uint8), np.zeros((40, 50), np.uint8)
        >>> examples = [{"image": image, "label": label, "id": "black"}]
        >>> counts = fcn_jax.evaluate(fcn_jax.Predictor(model, variables), examples)["label"]
        >>> counts.sum(axis=1)
        array([2000,    0])
    """
    heads = {head: len(predictor.names(head)) for head in predictor.heads}
    if not heads:
        raise ValueError("the predictor needs heads: the classes of each label map")
    matrices = {head: ConfusionMatrix(classes) for head, classes in heads.items()}
    split = shardings(predictor.mesh)[2]
    done = 0

    def finish(example: Example, labels: dict[str, UInt8[np.ndarray, "h w"]]) -> None:
        nonlocal done
        done += 1
        if visit is not None:
            visit(example, labels)
        if progress is not None:
            progress(done)

    def in_one_piece() -> Iterator[CanvasImage]:
        for example in examples:
            try:
                arrays = _checked(example, predictor, heads)
                if predictor.is_tiled(arrays):
                    on_canvas, labels = None, predictor.in_tiles("labels", arrays)
                else:
                    on_canvas, labels = predictor.on_canvas(example, arrays), {}
            except ValueError as error:
                raise ValueError(f"{example['id']}: {error}") from error
            if on_canvas is not None:
                yield on_canvas
                continue
            for head, matrix in matrices.items():
                matrix.update(example[head], labels[head])
            finish(example, labels)

    def count(group: Group, batch: Batch) -> tuple[Any, Any]:
        canvas = original_canvas(group.canvas, predictor.scale)
        labels = {  # void beyond an image
            head: stack([image.source[head] for image in group.images], canvas, group.rows, VOID)
            for head in heads
        }
        pixels, predictions = _count_batch(
            predictor.model,
            predictor.on_device,
            batch,
            jax.device_put(labels, split),
            inputs=predictor.inputs,
            heads=tuple(heads.items()),
        )
        return pixels, predictions if visit is not None else {}

    for group, (pixels, predictions) in predictor.each_batch(in_one_piece(), count):
        for head, matrix in matrices.items():
            matrix.add(pixels[head])
        for row, image in enumerate(group.images):
            part = (row, *map(slice, image.original_size))
            finish(image.source, {head: maps[part].copy() for head, maps in predictions.items()})
    if not done:
        raise ValueError("there is no example to evaluate")
    return {head: matrix.counts for head, matrix in matrices.items()}


@jit_in_least_memory(static_argnames=("model", "inputs", "heads"))
def _count_batch(
    model: nn.Module,
    variables: Any,
    batch: Batch,
    labels: dict[str, UInt8[Array, "b height width"]],
    *,
    inputs: Inputs,
    heads: tuple[tuple[str, int], ...],
) -> tuple[dict[str, PixelCounts], dict[str, UInt8[Array, "b height width"]]]:
    """Counts a batch on the device, by head; returns the label maps, too."""
    _, height, width = next(iter(labels.values())).shape
    logits = full_size_logits(
        model,
        variables,
        batch,
        inputs=inputs,
        heads=tuple(labels),
        canvas=(height, width),
    )
    counts, predictions = {}, {}
    for head, classes in heads:
        if logits[head].shape[-1] != classes:
            raise ValueError(
                f"the network has {logits[head].shape[-1]} classes, the labels {classes}"
            )
        predictions[head] = most_likely(logits[head])
        counts[head] = count_pixels(labels[head], predictions[head], classes)
    return counts, predictions


def _checked(example: Example, predictor: Predictor, heads: dict[str, int]) -> dict[str, Any]:
    """What the network reads of an example, if its label maps are sound as well."""
    wanted = (*predictor.inputs.modalities, *heads)
    if missing := [name for name in wanted if name not in example]:
        raise ValueError(f"{', '.join(missing)} is missing; there are {', '.join(example)}")
    arrays = predictor.opened(example)
    size = arrays[predictor.inputs.modalities[0]].shape[:2]
    for head, classes in heads.items():
        label = example[head]
        if label.dtype != np.uint8 or label.shape != size:
            raise ValueError(
                f"{head} must be uint8 of the image's size {size}, got {label.dtype} {label.shape}"
            )
        check_labels(label, classes)
    return arrays
