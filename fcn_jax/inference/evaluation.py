"""Confusion matrices of a network over a set of images, each whole and at its original size.

Batches and programs are those of prediction, so that metrics and pictures never disagree.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Int64, UInt8

from fcn_jax.canvas import Batch, CanvasImage, original_canvas, stack
from fcn_jax.classes import VOID
from fcn_jax.devices import Programs, shardings
from fcn_jax.inference.metrics import ConfusionMatrix, PixelCounts, count_pixels
from fcn_jax.inference.predictor import Network, Predictor, Progress, compute, size_of
from fcn_jax.models.losses import check_labels

Example = dict[str, Any]


def evaluate(
    predictor: Predictor,
    examples: Iterable[Example],
    *,
    progress: Progress | None = None,
    visit: Callable[[Example, dict[str, UInt8[np.ndarray, "h w"]]], object] | None = None,
) -> dict[str, Int64[np.ndarray, "c c"]]:
    """Counts the pixels of each class of the ground truth and predicted class over a set of images.

    `fcn_jax.compute_metrics` makes the four metrics of the counts.

    Args:
        predictor: The network, and how images are batched.
        examples: Any iterable of examples, such as a source: dictionaries of what the network
            reads (``image``), a label map uint8 (h, w) for each head by its name (``label``; void
            is 255), and an ``id``. Sizes may differ.
        progress: As for calling the predictor.
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
    heads = dict(predictor.network.heads)
    if not heads:
        raise ValueError("the predictor needs heads: the classes of each label map")
    matrices = {head: ConfusionMatrix(classes) for head, classes in heads.items()}
    split = shardings(predictor.mesh)[2]

    def parts() -> Iterator[CanvasImage]:
        for example in examples:
            try:
                yield from predictor.parts(example, _checked(example, predictor, heads))
            except ValueError as error:
                raise ValueError(f"{example['id']}: {error}") from error

    def start(images: list[CanvasImage], batch: Batch) -> Any:
        rows, canvas = len(batch.valid_size), original_canvas(images[0].canvas, predictor.scale)
        labels = {
            head: stack([_kept(part, head) for part in images], canvas, rows, VOID)
            for head in heads
        }
        labels = jax.device_put(labels, split)
        counts, maps = _counting(
            predictor.programs, predictor.on_device, batch, labels, network=predictor.network
        )
        return counts, maps if visit is not None else {}

    def counted() -> Iterator[tuple[list[CanvasImage], dict[str, np.ndarray]]]:
        for images, (counts, maps) in predictor.each_batch(parts(), start):
            for head, matrix in matrices.items():
                matrix.add(counts[head])
            yield images, maps

    image = None
    for image in predictor.put_together(counted(), progress):
        if visit is not None:
            visit(image.source, image.result)
    if image is None:
        raise ValueError("there is no example to evaluate")
    return {head: matrix.counts for head, matrix in matrices.items()}


def _count_batch(
    variables: Any,
    batch: Batch,
    labels: dict[str, UInt8[Array, "b height width"]],
    *,
    network: Network,
) -> tuple[dict[str, PixelCounts], dict[str, Array]]:
    """Counts a batch on the device, by head; returns the label maps, too."""
    maps = compute(variables, batch, network=network, kind="labels")
    counts = {
        head: count_pixels(labels[head], maps[head], classes) for head, classes in network.heads
    }
    return counts, maps


_counting = Programs(_count_batch)


def _kept(part: CanvasImage, head: str) -> UInt8[np.ndarray, "_ _"]:
    """The ground truth of a part of an example; void where a tile's results are not kept."""
    image, (rows, columns) = part.source
    labels = np.full(part.original_size, VOID, np.uint8)
    labels[rows.kept_inside, columns.kept_inside] = image.source[head][rows.kept, columns.kept]
    return labels


def _checked(example: Example, predictor: Predictor, heads: dict[str, int]) -> dict[str, Any]:
    """What the network reads of an example, if its label maps are sound as well."""
    wanted = (*predictor.inputs.modalities, *heads)
    if missing := [name for name in wanted if name not in example]:
        raise ValueError(f"{', '.join(missing)} is missing; there are {', '.join(example)}")
    arrays = predictor.opened(example)
    size = size_of(arrays)
    for head, classes in heads.items():
        label = example[head]
        if label.dtype != np.uint8 or label.shape != size:
            raise ValueError(
                f"{head} must be uint8 of the image's size {size}, got {label.dtype} {label.shape}"
            )
        check_labels(label, classes)
    return arrays
