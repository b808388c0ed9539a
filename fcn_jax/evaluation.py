"""Scores of a network over a set of images, each whole and at its original size.

Images are batched with others of exactly their size, so that no pixel of padding enters the
network and the scores do not depend on the batch size.
"""

from __future__ import annotations

import collections
import functools
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import numpy as np
from flax import linen as nn
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Int64, UInt8

from fcn_jax.classes import VOID
from fcn_jax.data.transforms import Example, check_example
from fcn_jax.inference import full_size_logits, most_likely, resize_image
from fcn_jax.losses import check_labels
from fcn_jax.metrics import ConfusionMatrix
from fcn_jax.preprocessing import Preprocessing

# Batches the host may prepare ahead of the device: enough to keep it busy, few enough that
# waiting inputs take little memory.
_IN_FLIGHT = 2


def evaluate(
    model: nn.Module,
    variables: Any,
    examples: Iterable[Example],
    *,
    num_classes: int,
    preprocessing: Preprocessing,
    scale: float = 1.0,
    batch_size: int = 8,
    mesh: Mesh | None = None,
    progress: Callable[[int], object] | None = None,
    visit: Callable[[Example, UInt8[np.ndarray, "h w"]], object] | None = None,
) -> Int64[np.ndarray, "c c"]:
    """Counts the pixels of each true and predicted class over a set of images.

    `fcn_jax.metrics.scores` makes the four figures of the counts. Each image size is compiled
    once for a network, also over repeated calls.

    Args:
        model: The network.
        variables: Its parameters, ``{"params": ...}``.
        examples: Any iterable of examples, such as a source; sizes may differ.
        num_classes: Classes of the labels and of the network.
        preprocessing: How the network was trained to see pixels.
        scale: Factor on height and width before the network; the logits are interpolated back,
            so that the score is always that of the original pixels.
        batch_size: Images at a time, over all devices; rounded up to a multiple of them.
        mesh: Splits each batch over its axis ``data``; None runs on one device.
        progress: Called with the number of images done since the last call.
        visit: Called with every example and its predicted label map, e.g. to draw some.

    Returns:
        The confusion matrix; rows are the truth, columns the prediction.

    Raises:
        ValueError: If there is no example, or an example's arrays do not fit; it is named.
    """
    shards, replicated, split = _placement(mesh)
    variables = jax.device_put(variables, replicated)
    matrix = jax.device_put(ConfusionMatrix.zeros(num_classes), replicated)

    def finish(group: list[Example], predictions: UInt8[Array, "b h w"]) -> None:
        predictions.block_until_ready()
        if visit is not None:
            for example, labels in zip(group, np.asarray(predictions), strict=False):
                visit(example, labels)
        if progress is not None:
            progress(len(group))

    running = collections.deque()
    checked = (_checked(example, num_classes) for example in examples)
    for group, rows in _group_by_size(checked, batch_size, shards):
        images, labels = jax.device_put(_stack(group, rows, scale), split)
        matrix, predictions = _score_batch(
            model, variables, matrix, images, labels, preprocessing=preprocessing
        )
        running.append((group, predictions))
        if len(running) > _IN_FLIGHT:
            finish(*running.popleft())
    if not running:
        raise ValueError("there is no example to evaluate")
    for group, predictions in running:
        finish(group, predictions)
    return matrix.counts()


@functools.partial(jax.jit, static_argnames=("model", "preprocessing"), donate_argnames=("matrix",))
def _score_batch(
    model: nn.Module,
    variables: Any,
    matrix: ConfusionMatrix,
    images: UInt8[Array, "b h w 3"],
    labels: UInt8[Array, "b height width"],
    *,
    preprocessing: Preprocessing,
) -> tuple[ConfusionMatrix, UInt8[Array, "b height width"]]:
    """Adds a batch to the matrix, on the device; returns the label maps, too."""
    _, height, width = labels.shape
    logits = full_size_logits(
        model, variables, images, preprocessing=preprocessing, size=(height, width)
    )
    classes = matrix.low.shape[0]
    if logits.shape[-1] != classes:
        raise ValueError(f"the network has {logits.shape[-1]} classes, the labels {classes}")
    predictions = most_likely(logits)
    return matrix.update(labels, predictions), predictions


def _placement(mesh: Mesh | None) -> tuple[int, NamedSharding | None, NamedSharding | None]:
    """Number of parts of a batch, and where whole arrays and batches go."""
    if mesh is None:
        return 1, None, None
    # The counts are summed by the compiler, which axes of the type Explicit do not allow.
    mesh = Mesh(mesh.devices, mesh.axis_names)
    replicated = NamedSharding(mesh, PartitionSpec())
    return mesh.shape["data"], replicated, NamedSharding(mesh, PartitionSpec("data"))


def _checked(example: Example, num_classes: int) -> Example:
    """Returns a sound example; raises ValueError that names it if it is not."""
    check_example(example)
    try:
        check_labels(example["label"], num_classes)
    except ValueError as error:
        raise ValueError(f"{example['id']}: {error}") from None
    return example


def _group_by_size(
    examples: Iterable[Example], batch_size: int, shards: int
) -> Iterator[tuple[list[Example], int]]:
    """Collects examples of one size; yields each group with the rows its batch is to have.

    Every group of a size gets the same number of rows, so that it is compiled once: the batch
    size, or fewer for a size that is too rare to fill one batch. Rows are a multiple of shards.
    """
    full = _round_up(batch_size, shards)
    pending: dict[tuple[int, ...], list[Example]] = {}
    filled = set()
    for example in examples:
        size = example["image"].shape
        group = pending.setdefault(size, [])
        group.append(example)
        if len(group) == full:
            yield pending.pop(size), full
            filled.add(size)
    for size, group in pending.items():
        yield group, full if size in filled else _round_up(len(group), shards)


def _round_up(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple


def _stack(
    group: list[Example], rows: int, scale: float
) -> tuple[UInt8[np.ndarray, "b h w 3"], UInt8[np.ndarray, "b height width"]]:
    """Stacks a group into a batch; rows beyond it are black and void, and so count nothing."""
    resized = [resize_image(example["image"], scale) for example in group]
    images = np.zeros((rows, *resized[0].shape), np.uint8)
    labels = np.full((rows, *group[0]["label"].shape), VOID, np.uint8)
    for row, (image, example) in enumerate(zip(resized, group, strict=True)):
        images[row] = image
        labels[row] = example["label"]
    return images, labels
