"""Scores of a network over a set of images, each whole and at its original size.

Images are batched with others of exactly their size, so that no pixel of padding enters the
network and the scores do not depend on the batch size.
"""

from __future__ import annotations

import collections
import functools
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
from flax import linen as nn
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, UInt8

from fcn_jax.classes import VOID
from fcn_jax.data.transforms import Example, check_example, size_of
from fcn_jax.inference import full_size_logits, most_likely, resize_features
from fcn_jax.losses import check_labels
from fcn_jax.metrics import ConfusionMatrix
from fcn_jax.preprocessing import Features, Inputs, Preprocessing

# Batches the host may prepare ahead of the device: enough to keep it busy, few enough that
# waiting inputs take little memory.
_IN_FLIGHT = 2


def evaluate(
    model: nn.Module,
    variables: Any,
    examples: Iterable[Example],
    *,
    num_classes: int | Mapping[str, int],
    preprocessing: Preprocessing | Inputs,
    scale: float = 1.0,
    batch_size: int = 8,
    mesh: Mesh | None = None,
    progress: Callable[[int], object] | None = None,
    visit: Callable[[Example, Any], object] | None = None,
) -> Any:
    """Counts the pixels of each true and predicted class over a set of images.

    `fcn_jax.metrics.scores` makes the four figures of the counts. Each image size is compiled
    once for a network, also over repeated calls.

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
        batch_size: Images at a time, over all devices; rounded up to a multiple of them.
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
    shards, replicated, split = _placement(mesh)
    variables = jax.device_put(variables, replicated)
    zeros = {head: ConfusionMatrix.zeros(classes) for head, classes in heads.items()}
    matrices = jax.device_put(zeros, replicated)

    def finish(group: list[Example], predictions: dict[str, UInt8[Array, "b h w"]]) -> None:
        jax.block_until_ready(predictions)
        if visit is not None:
            host = jax.device_get(predictions)
            for row, example in enumerate(group):
                labels = {head: values[row] for head, values in host.items()}
                visit(example, labels if named else labels["label"])
        if progress is not None:
            progress(len(group))

    running = collections.deque()
    checked = (_checked(example, heads, inputs) for example in examples)
    for group, rows in _group_by_size(checked, batch_size, shards):
        features, labels = jax.device_put(_stack(group, rows, scale, inputs, heads), split)
        matrices, predictions = _score_batch(
            model, variables, matrices, features, labels, preprocessing=inputs
        )
        running.append((group, predictions))
        if len(running) > _IN_FLIGHT:
            finish(*running.popleft())
    if not running:
        raise ValueError("there is no example to evaluate")
    for group, predictions in running:
        finish(group, predictions)
    counts = {head: matrix.counts() for head, matrix in matrices.items()}
    return counts if named else counts["label"]


@functools.partial(jax.jit, static_argnames=("model", "preprocessing"), donate_argnames="matrices")
def _score_batch(
    model: nn.Module,
    variables: Any,
    matrices: dict[str, ConfusionMatrix],
    features: Features,
    labels: dict[str, UInt8[Array, "b height width"]],
    *,
    preprocessing: Inputs,
) -> tuple[dict[str, ConfusionMatrix], dict[str, UInt8[Array, "b height width"]]]:
    """Adds a batch to each head's matrix, on the device; returns the label maps, too."""
    _, height, width = next(iter(labels.values())).shape
    logits = full_size_logits(
        model, variables, features, preprocessing=preprocessing, size=(height, width)
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


def _placement(mesh: Mesh | None) -> tuple[int, NamedSharding | None, NamedSharding | None]:
    """Number of parts of a batch, and where whole arrays and batches go."""
    if mesh is None:
        return 1, None, None
    # The counts are summed by the compiler, which axes of the type Explicit do not allow.
    mesh = Mesh(mesh.devices, mesh.axis_names)
    replicated = NamedSharding(mesh, PartitionSpec())
    return mesh.shape["data"], replicated, NamedSharding(mesh, PartitionSpec("data"))


def _checked(example: Example, heads: Mapping[str, int], inputs: Inputs) -> Example:
    """Returns a sound example; raises ValueError that names it if it is not."""
    if missing := [name for name in (*inputs.features, *heads) if name not in example]:
        raise ValueError(
            f"{example['id']}: {', '.join(missing)} is missing; there are {', '.join(example)}"
        )
    check_example(example)
    for head, classes in heads.items():
        try:
            check_labels(example[head], classes)
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
        size = size_of(example)
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
    group: list[Example], rows: int, scale: float, inputs: Inputs, heads: Iterable[str]
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Stacks a group into a batch of features, at the network's scale, and label maps.

    Rows beyond the group are black and void, and so count nothing.
    """

    def stacked(examples: list[dict[str, np.ndarray]], fill: int) -> dict[str, np.ndarray]:
        batch = {}
        for name, first in examples[0].items():
            batch[name] = np.full((rows, *first.shape), fill, first.dtype)
            batch[name][: len(examples)] = [example[name] for example in examples]
        return batch

    features = [
        resize_features({name: example[name] for name in inputs.features}, scale)
        for example in group
    ]
    labels = [{head: example[head] for head in heads} for example in group]
    return stacked(features, 0), stacked(labels, VOID)
