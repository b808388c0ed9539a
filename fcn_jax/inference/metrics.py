"""What is counted of predictions, and the metrics that follow.

Of all pixels of a set together: the confusion matrix, exact for any number of pixels; the paper's
four metrics, precision and F1. Of each image by itself (`score_image`): IoU, boundary IoU and
boundary F1. docs/evaluation.md explains them to people.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int64, Integer, Shaped, UInt8, UInt32

from fcn_jax.classes import VOID


class PixelCounts(NamedTuple):
    """Pixels of a batch by class of the ground truth (row) and predicted class (column).

    ``invalid`` ones have a label that is neither a class nor void, or a prediction of no class.
    """

    counts: UInt32[Array | np.ndarray, "c c"]
    invalid: UInt32[Array | np.ndarray, ""]


@functools.partial(jax.jit, static_argnames="num_classes")
def count_pixels(
    labels: Integer[Array | np.ndarray, "..."],
    predictions: Integer[Array | np.ndarray, "..."],
    num_classes: int,
) -> PixelCounts:
    """Counts a batch of fewer than 2**32 pixels on the device, over all shards, without void.

    Raises:
        ValueError: If the shapes differ.
    """
    if labels.shape != predictions.shape:
        raise ValueError(f"labels {labels.shape} and predictions {predictions.shape} differ")
    labels, predictions = labels.astype(jnp.int32), predictions.astype(jnp.int32)
    known = (labels >= 0) & (labels < num_classes)
    known &= (predictions >= 0) & (predictions < num_classes)
    # Pixels that do not count fall into one cell beyond the matrix.
    cell = jnp.where(known, labels * num_classes + predictions, num_classes**2)
    counts = jnp.zeros(num_classes**2 + 1, jnp.uint32).at[cell.reshape(-1)].add(1)
    invalid = jnp.sum((labels != VOID) & ~known, dtype=jnp.uint32)
    return PixelCounts(counts[:-1].reshape(num_classes, num_classes), invalid)


class ConfusionMatrix:
    """Pixel counts by class of the ground truth (row) and predicted class (column).

    A batch is counted in 32 bits on the device, and the batches are summed in 64 on the host.

    Example:
        >>> import numpy as np
        >>> from fcn_jax import ConfusionMatrix
        >>> matrix = ConfusionMatrix(2)
        >>> matrix.update(np.array([0, 1, 1, 255]), np.array([0, 0, 1, 1]))
        >>> matrix.counts
        array([[1, 0],
               [1, 1]])
    """

    def __init__(self, num_classes: int) -> None:
        self._counts = np.zeros((num_classes, num_classes), np.int64)
        self._invalid = 0

    def update(
        self,
        labels: Integer[Array | np.ndarray, "..."],
        predictions: Integer[Array | np.ndarray, "..."],
    ) -> None:
        """Adds a batch: the ground truth, whose void (255) does not count, and the prediction.

        Raises:
            ValueError: If the shapes differ.
        """
        self.add(count_pixels(labels, predictions, len(self._counts)))

    def add(self, pixels: PixelCounts) -> None:
        """Adds a batch that has been counted."""
        self._counts += np.asarray(pixels.counts)
        self._invalid += int(pixels.invalid)

    @property
    def counts(self) -> Int64[np.ndarray, "c c"]:
        """The counts.

        Raises:
            ValueError: If a label was neither a class nor void, or a prediction no class.
        """
        if self._invalid:
            raise ValueError(
                f"{self._invalid} pixels have a label that is neither one of the classes 0 to "
                f"{len(self._counts) - 1} nor void ({VOID}), or a prediction that is no class; "
                "check the label files and the network's number of classes"
            )
        return self._counts.copy()


# ======================================================================== one image by itself

BOUNDARY_WIDTH = 0.02
"""How far from a boundary the boundary metrics look, as a part of the image's diagonal."""


class ImageScores(NamedTuple):
    """How well an image is segmented, by class, from 0 to 1; of several images (n, c).

    NaN where the class is in neither the ground truth nor the prediction, and nowhere else: an
    object that is missed, or seen where none is, scores 0.

    Attributes:
        iu: Intersection over union of the class's pixels.
        boundary_iu: The same of those of its pixels that lie within a distance of its boundary.
        boundary_f1: Harmonic mean of two parts: of the prediction's boundary, what lies within this
            distance of the boundary in the ground truth, and vice versa.
    """

    iu: Float[np.ndarray, "*n c"]
    boundary_iu: Float[np.ndarray, "*n c"]
    boundary_f1: Float[np.ndarray, "*n c"]


def score_image(
    labels: Integer[np.ndarray, "h w"],
    prediction: Integer[np.ndarray, "_ _"],
    num_classes: int,
    *,
    boundary_width: float = BOUNDARY_WIDTH,
) -> ImageScores:
    """Scores one image by itself, near the boundaries of its classes as well.

    A class ends at other classes, at void and at the border of the image. What is predicted for
    pixels whose ground truth is void changes nothing.

    * Boundary IoU (Cheng et al., CVPR 2021): of the pixels of the class from which a step of at
      most the distance along the rows, and as much along the columns, leads out of it.
    * Boundary F1 (Csurka et al., BMVC 2013): of the pixels of the class that touch what is not of
      it, be it at a corner; the distance is as the crow flies.

    Args:
        labels: The ground truth; void is 255.
        prediction: Classes.
        num_classes: At most 255.
        boundary_width: The distance as a part of the image's diagonal, see `boundary_distance`.

    Raises:
        ValueError: If the sizes differ, or a label or prediction is no class.

    Example:
        >>> import numpy as np
        >>> labels, prediction = np.zeros((2, 100, 100), np.uint8)
        >>> labels[:, 50:], prediction[:, 53:] = 1, 1
        >>> print(score_image(labels, prediction, 2).boundary_iu.round(4))
        [0.5    0.4921]
    """
    from scipy.spatial import KDTree

    if labels.shape != prediction.shape:
        raise ValueError(f"labels {labels.shape} and prediction {prediction.shape} differ")
    known = labels != VOID
    for what, values in {"labels": labels[known], "prediction": prediction[known]}.items():
        if values.size and not 0 <= values.min() <= values.max() < num_classes:
            raise ValueError(
                f"{what} from {values.min()} to {values.max()}: classes are 0 to "
                f"{num_classes - 1}, and void {VOID} in the ground truth"
            )
    truth, guess = (np.where(known, each, VOID).astype(np.uint8) for each in (labels, prediction))
    distance = boundary_distance(labels.shape, boundary_width)

    def intersection_over_union(of_truth: Any, of_guess: Any) -> Float[np.ndarray, " c"]:
        """By class, of the pixels that are chosen of each map."""
        both = of_truth & of_guess & (truth == guess)
        chosen = truth[of_truth], guess[of_guess], truth[both]
        actual, predicted, shared = (np.bincount(each, minlength=num_classes) for each in chosen)
        return _ratio(shared, actual + predicted - shared)

    iu = intersection_over_union(known, known)
    bands = (_band(each, distance) & known for each in (truth, guess))
    boundary_iu = intersection_over_union(*bands)

    # The pixels on the boundaries of all classes: row, column, and the class as a third coordinate,
    # so far apart that no other class is near.
    far = 2 * sum(labels.shape)
    lines = []
    for each in (truth, guess):
        rows, columns = np.nonzero(_band(each, 1) & known)
        lines.append(np.stack([rows, columns, far * each[rows, columns].astype(int)], axis=1))

    def part_near(here: Any, there: Any) -> Float[np.ndarray, " c"]:
        """By class, of the pixels of one map's boundary those that are near the other's."""
        tree = KDTree(there, balanced_tree=False, compact_nodes=False)  # is made in less time
        near = tree.query(here, distance_upper_bound=distance + 0.5)[0] <= distance
        classes = here[:, 2] // far
        number = np.bincount(classes, minlength=num_classes)
        return np.bincount(classes[near], minlength=num_classes) / np.maximum(number, 1)

    recall, precision = part_near(*lines), part_near(*lines[::-1])
    boundary_f1 = 2 * precision * recall / np.maximum(precision + recall, np.finfo(float).tiny)
    boundary_f1[np.isnan(iu)] = np.nan
    return ImageScores(iu, boundary_iu, boundary_f1)


def boundary_distance(size: tuple[int, ...], boundary_width: float = BOUNDARY_WIDTH) -> int:
    """The pixels that a part of the diagonal of an image of this height and width is: 1 or more.

    Example:
        >>> boundary_distance((97, 131)), boundary_distance((375, 500))
        (3, 12)
    """
    return max(1, round(boundary_width * math.hypot(*size)))


def _band(labels: UInt8[np.ndarray, "h w"], distance: int) -> Bool[np.ndarray, "h w"]:
    """Where a square of this distance to each side holds another label, or leaves the image.

    So are the bands along the boundaries of all classes at once.
    """
    from scipy import ndimage

    side = 2 * distance + 1
    band = ndimage.minimum_filter(labels, side) != ndimage.maximum_filter(labels, side)
    inside = np.zeros_like(band)
    inside[distance:-distance, distance:-distance] = True
    return band | ~inside


# ======================================================================== metrics of a set


OVERALL = (
    *("pixel_accuracy", "mean_accuracy", "mean_iu", "frequency_weighted_iu"),
    *("mean_precision", "mean_f1", "loss", "mean_image_iu", "mean_boundary_iu", "mean_boundary_f1"),
)
"""The fields of `Metrics` that are one number for the whole set."""

BY_CLASS = (
    *("iu", "accuracy", "precision", "recall", "f1", "image_iu", "boundary_iu", "boundary_f1"),
)
"""What there is of each class: the attributes ``per_class_…`` of `Metrics`."""


@dataclasses.dataclass(frozen=True)
class Metrics:
    """The metrics of a set of images, all from 0 to 1 but the loss.

    With n_ij pixels of class i predicted as j, t_i = sum_j n_ij and
    IU_i = n_ii / (t_i + sum_j n_ji - n_ii) (paper, section 5). What was not measured is None.

    Attributes:
        pixel_accuracy: sum_i n_ii / sum_i t_i.
        mean_accuracy: Mean of n_ii / t_i over the scored classes with t_i > 0.
        mean_iu: Mean of IU_i over the scored classes in the ground truth or the prediction.
        frequency_weighted_iu: sum_i t_i IU_i / sum_i t_i.
        mean_precision, mean_f1: Means over the same classes as ``mean_iu``.
        per_class_accuracy: n_ii / t_i, which is also called recall; NaN where the class is not in
            the ground truth.
        per_class_iu: IU_i; NaN where the class is in neither.
        per_class_precision: n_ii / sum_j n_ji; 0 where a class of the ground truth is never
            predicted, NaN where it is in neither.
        per_class_f1: 2 n_ii / (t_i + sum_j n_ji), also called Dice; NaN where it is in neither.
        absent: The classes in neither, left out of the means.
        unscored: The classes left out of the means because they were not to be scored.
        loss: Cross-entropy per valid pixel, in nats.
        images: The scores of each image by itself, (n, c).
        per_image_iu: Of each image, the mean IU of the scored classes in it, (n,); NaN where there
            are none.
        mean_image_iu: Mean of ``per_image_iu``.
        per_class_images: The number of images in which the class is in the ground truth or the
            prediction.
        per_class_image_iu, per_class_boundary_iu, per_class_boundary_f1: Means over those images;
            NaN where there are none.
        mean_boundary_iu, mean_boundary_f1: Means of those over the scored classes.

    Example:
        >>> metrics = compute_metrics(np.array([[8, 2], [0, 10]]))
        >>> print(metrics.pixel_accuracy, metrics.per_class_accuracy)
        0.9 [0.8 1. ]
    """

    pixel_accuracy: float
    mean_accuracy: float
    mean_iu: float
    frequency_weighted_iu: float
    mean_precision: float
    mean_f1: float
    per_class_accuracy: Float[np.ndarray, " c"]
    per_class_iu: Float[np.ndarray, " c"]
    per_class_precision: Float[np.ndarray, " c"]
    per_class_f1: Float[np.ndarray, " c"]
    absent: tuple[int, ...]
    unscored: tuple[int, ...] = ()
    loss: float | None = None
    images: ImageScores | None = None
    per_image_iu: Float[np.ndarray, " n"] | None = None
    mean_image_iu: float | None = None
    per_class_images: Integer[np.ndarray, " c"] | None = None
    per_class_image_iu: Float[np.ndarray, " c"] | None = None
    per_class_boundary_iu: Float[np.ndarray, " c"] | None = None
    per_class_boundary_f1: Float[np.ndarray, " c"] | None = None
    mean_boundary_iu: float | None = None
    mean_boundary_f1: float | None = None

    @property
    def per_class_recall(self) -> Float[np.ndarray, " c"]:
        """``per_class_accuracy``, by its other name."""
        return self.per_class_accuracy

    def overall(self) -> dict[str, float]:
        """The numbers of the whole set that were measured, by the names of `OVERALL`."""
        values = {name: getattr(self, name) for name in OVERALL}
        return {name: value for name, value in values.items() if value is not None}

    def by_class(self) -> dict[str, Float[np.ndarray, " c"]]:
        """The numbers of each class that were measured, by the names of `BY_CLASS`."""
        values = {name: getattr(self, f"per_class_{name}") for name in BY_CLASS}
        return {name: value for name, value in values.items() if value is not None}


def compute_metrics(
    counts: Integer[np.ndarray, "..."],
    scored: Sequence[int] | None = None,
    *,
    loss: float | None = None,
    images: ImageScores | None = None,
) -> Metrics:
    """The metrics of a confusion matrix (rows: ground truth; columns: prediction).

    Args:
        counts: Pixels of each true and predicted class.
        scored: The classes whose metrics enter the means (`fcn_jax.ClassTable.scored`); None is
            all. SIFT Flow leaves out three that its test set lacks.
        loss: Cross-entropy per valid pixel, which is passed on.
        images: The scores of each image by itself, (n, c): `score_image`'s, stacked.

    Raises:
        ValueError: If the matrix is not square, or holds no pixel.

    Example:
        >>> import numpy as np
        >>> from fcn_jax import compute_metrics
        >>> metrics = compute_metrics(np.array([[8, 2], [0, 10]]))
        >>> metrics.pixel_accuracy, round(metrics.mean_iu, 4)
        (0.9, 0.8167)
    """
    counts = np.asarray(counts)
    if counts.ndim != 2 or counts.shape[0] != counts.shape[1]:
        raise ValueError(f"a confusion matrix is square, got the shape {counts.shape}")
    total = counts.sum()
    if total == 0:
        raise ValueError("the confusion matrix is empty: no pixel had a label other than void")
    hits, labelled, predicted = np.diag(counts), counts.sum(axis=1), counts.sum(axis=0)
    union = labelled + predicted - hits
    accuracy, iu = _ratio(hits, labelled), _ratio(hits, union)
    f1 = _ratio(2 * hits, labelled + predicted)
    precision = _ratio(hits, predicted)
    precision[(predicted == 0) & (labelled > 0)] = 0
    chosen = list(range(len(counts)) if scored is None else scored)

    def mean(values: Float[np.ndarray, " _"]) -> float:
        there = values[~np.isnan(values)]
        return float(there.mean()) if there.size else 0.0

    metrics = Metrics(
        pixel_accuracy=float(hits.sum() / total),
        mean_accuracy=mean(accuracy[chosen]),
        mean_iu=mean(iu[chosen]),
        frequency_weighted_iu=float(np.nansum(labelled * iu) / total),
        mean_precision=mean(precision[chosen]),
        mean_f1=mean(f1[chosen]),
        per_class_accuracy=accuracy,
        per_class_iu=iu,
        per_class_precision=precision,
        per_class_f1=f1,
        absent=tuple(np.flatnonzero(union == 0).tolist()),
        unscored=tuple(sorted(set(range(len(counts))) - set(chosen))),
        loss=loss,
    )
    if images is None:
        return metrics
    there = ~np.isnan(images.iu)
    of_classes = [_ratio(np.nansum(values, axis=0), there.sum(axis=0)) for values in images]
    of_images = _ratio(np.nansum(images.iu[:, chosen], axis=1), there[:, chosen].sum(axis=1))
    return dataclasses.replace(
        metrics,
        images=images,
        per_image_iu=of_images,
        mean_image_iu=mean(of_images),
        per_class_images=there.sum(axis=0),
        per_class_image_iu=of_classes[0],
        per_class_boundary_iu=of_classes[1],
        per_class_boundary_f1=of_classes[2],
        mean_boundary_iu=mean(of_classes[1][chosen]),
        mean_boundary_f1=mean(of_classes[2][chosen]),
    )


def _ratio(part: Shaped[np.ndarray, " n"], whole: Integer[np.ndarray, " n"]) -> Any:
    """A part of a whole, one by one; NaN where there is none."""
    return np.divide(part, whole, out=np.full(len(whole), np.nan), where=whole > 0)
