"""Scores of a network over a set of images, each whole and at its original size.

Batches and programs are those of prediction, so that metrics and pictures never disagree.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float64, Int64, UInt8

from fcn_jax.canvas import Batch, CanvasImage, Size, stack
from fcn_jax.classes import VOID, ClassTable
from fcn_jax.devices import shardings
from fcn_jax.inference.compute import Network, compute
from fcn_jax.inference.metrics import (
    BOUNDARY_WIDTH,
    ConfusionMatrix,
    ImageScores,
    Metrics,
    PixelCounts,
    compute_metrics,
    count_pixels,
    score_image,
)
from fcn_jax.inference.predictor import Predictor, Progress, size_of
from fcn_jax.models.losses import PixelLoss, check_labels, cross_entropy
from fcn_jax.programs import Programs

Example = dict[str, Any]
Visit = Callable[[Example, dict[str, UInt8[np.ndarray, "h w"]]], object]


class Tally(NamedTuple):
    """What is counted of one head over a set of images: arrays, whose sums are those of two sets.

    Attributes:
        counts: The confusion matrix; rows are the ground truth, columns the prediction.
        loss: The cross-entropy of all valid pixels, in nats.
        images: `ImageScores` of each image, in the order of the examples; no rows if not asked for.
    """

    counts: Int64[np.ndarray, "c c"]
    loss: Float64[np.ndarray, "1"]
    images: Float64[np.ndarray, "n 3 c"]

    @classmethod
    def empty(cls, classes: int, images: int = 0) -> Tally:
        """Nothing counted yet, and room for the scores of so many images."""
        counts = np.zeros((classes, classes), np.int64)
        return cls(counts, np.zeros(1), np.zeros((images, 3, classes)))

    def metrics(self, classes: ClassTable | tuple[str, ...]) -> Metrics:
        """The metrics that follow for the classes of the head.

        Raises:
            ValueError: If there is no valid pixel.
        """
        scored = classes.scored if isinstance(classes, ClassTable) else None
        images = ImageScores(*np.moveaxis(self.images, 1, 0)) if len(self.images) else None
        loss = float(self.loss[0] / max(1, self.counts.sum()))
        return compute_metrics(self.counts, scored, loss=loss, images=images)


def evaluate(
    predictor: Predictor,
    examples: Iterable[Example],
    *,
    progress: Progress | None = None,
    visit: Visit | None = None,
) -> dict[str, Int64[np.ndarray, "c c"]]:
    """Counts the pixels of each class of the ground truth and predicted class over a set of images.

    `fcn_jax.compute_metrics` makes metrics of the counts; `score` gives more of them at once.

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
        >>> variables = jax.jit(model.init)(jax.random.key(0), np.zeros((1, 32, 32, 3)))
        >>> image, label = np.zeros((40, 50, 3), np.uint8), np.zeros((40, 50), np.uint8)
        >>> examples = [{"image": image, "label": label, "id": "black"}]
        >>> counts = fcn_jax.evaluate(fcn_jax.Predictor(model, variables), examples)["label"]
        >>> counts.sum(axis=1)
        array([2000,    0])
    """
    tallies = tally(predictor, examples, by_image=False, progress=progress, visit=visit)
    return {head: of_head.counts for head, of_head in tallies.items()}


def score(
    predictor: Predictor,
    examples: Iterable[Example],
    *,
    boundary_width: float = BOUNDARY_WIDTH,
    progress: Progress | None = None,
    visit: Visit | None = None,
) -> dict[str, Metrics]:
    """All metrics of each head over a set of images: what `fcn-jax eval` writes.

    Args:
        predictor: The network; this and the others as for `evaluate`.
        examples: Images and label maps.
        boundary_width: How far from a boundary the boundary metrics look, as a part of the
            image's diagonal; see `fcn_jax.score_image`.
        progress: Called with the number of images done.
        visit: Called with each image's result.

    Raises:
        ValueError: As `evaluate`; also if all pixels are void.

    Example:
        >>> import jax, numpy as np
        >>> import fcn_jax
        >>> model = fcn_jax.create_model("fcn32s", num_classes=2, width=1 / 16, fc_width=8)
        >>> variables = jax.jit(model.init)(jax.random.key(0), np.zeros((1, 32, 32, 3)))
        >>> image, label = np.zeros((40, 50, 3), np.uint8), np.zeros((40, 50), np.uint8)
        >>> examples = [{"image": image, "label": label, "id": "black"}]
        >>> metrics = fcn_jax.score(fcn_jax.Predictor(model, variables), examples)["label"]
        >>> metrics.pixel_accuracy, metrics.mean_boundary_iu, round(metrics.loss, 4)  # log(2)
        (1.0, 1.0, 0.6931)
    """
    tallies = tally(
        predictor, examples, boundary_width=boundary_width, progress=progress, visit=visit
    )
    return {head: of_head.metrics(predictor.heads[head]) for head, of_head in tallies.items()}


def tally(
    predictor: Predictor,
    examples: Iterable[Example],
    *,
    by_image: bool = True,
    boundary_width: float = BOUNDARY_WIDTH,
    progress: Progress | None = None,
    visit: Visit | None = None,
) -> dict[str, Tally]:
    """What `score` makes the metrics of; those of single images cost the host time."""
    heads = {head: len(predictor.names(head)) for head in predictor.heads}
    if not heads:
        raise ValueError("the predictor needs heads: the classes of each label map")
    matrices = {head: ConfusionMatrix(classes) for head, classes in heads.items()}
    tallies = {head: Tally.empty(classes) for head, classes in heads.items()}
    scores: dict[str, list[tuple[int, Future[ImageScores]]]] = {head: [] for head in heads}
    split = shardings(predictor.mesh)[2]

    def parts() -> Iterator[CanvasImage]:
        for numbered in enumerate(examples):
            try:
                yield from predictor.parts(numbered, _checked(numbered[1], predictor, heads))
            except ValueError as error:
                raise ValueError(f"{numbered[1]['id']}: {error}") from error

    def start(images: list[CanvasImage], batches: tuple[Batch, ...]) -> Any:
        rows, canvas = len(batches[0].original_size), images[0].canvases[0]
        labels = {
            head: stack([_kept(part, head) for part in images], canvas, rows, VOID)
            for head in heads
        }
        labels = jax.device_put(labels, split)
        counts, losses, maps = _counting(
            predictor.programs,
            predictor.on_device,
            batches,
            labels,
            network=predictor.network,
            canvas=canvas,
        )
        return counts, losses, maps if by_image or visit is not None else {}

    def counted() -> Iterator[tuple[list[CanvasImage], dict[str, np.ndarray]]]:
        for images, (counts, of_pixels, maps) in predictor.each_batch(parts(), start):
            for head, matrix in matrices.items():
                matrix.add(counts[head])
                tallies[head].loss[0] += of_pixels[head].total
            yield images, maps

    image = None
    with ThreadPoolExecutor() as pool:  # beside the device
        for image in predictor.put_together(counted(), progress):
            number, example = image.source
            for head, labels in image.result.items() if by_image else ():
                future = pool.submit(
                    score_image, example[head], labels, heads[head], boundary_width=boundary_width
                )
                scores[head].append((number, future))
                if len(scores[head]) > 32:  # no more wait, with their label maps
                    scores[head][-33][1].result()
            if visit is not None:
                visit(example, image.result)
    if image is None:
        raise ValueError("there is no example to evaluate")
    for head, matrix in matrices.items():
        tallies[head] = tallies[head]._replace(counts=matrix.counts)
        if by_image:
            in_order = sorted(scores[head], key=lambda numbered: numbered[0])
            images = np.array([future.result() for _, future in in_order])
            tallies[head] = tallies[head]._replace(images=images)
    return tallies


def _count_batch(
    variables: Any,
    batches: tuple[Batch, ...],
    labels: dict[str, UInt8[Array, "b height width"]],
    *,
    network: Network,
    canvas: Size,
) -> tuple[dict[str, PixelCounts], dict[str, PixelLoss], dict[str, Array]]:
    """Counts a batch on the device, by head; returns its losses and label maps, too."""
    logits = compute(variables, batches, network=network, canvas=canvas, kind="logits")
    maps = {
        head: jnp.argmax(of_head, axis=-1).astype(jnp.uint8) for head, of_head in logits.items()
    }
    counts = {
        head: count_pixels(labels[head], maps[head], classes) for head, classes in network.heads
    }
    return counts, {head: cross_entropy(logits[head], labels[head]) for head in counts}, maps


_counting = Programs(_count_batch)


def _kept(part: CanvasImage, head: str) -> UInt8[np.ndarray, "_ _"]:
    """The ground truth of a part of an example; void where a tile's results are not kept."""
    image, (rows, columns) = part.source
    _, example = image.source
    labels = np.full(part.original_size, VOID, np.uint8)
    labels[rows.kept_inside, columns.kept_inside] = example[head][rows.kept, columns.kept]
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
