"""The confusion matrix, exact for any number of pixels, and the paper's four metrics from it."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int64, Integer, UInt32

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


@dataclasses.dataclass(frozen=True)
class Metrics:
    """The metrics of a confusion matrix, all from 0 to 1 (paper, section 5).

    With n_ij pixels of class i predicted as j, t_i = sum_j n_ij and
    IU_i = n_ii / (t_i + sum_j n_ji - n_ii).

    Attributes:
        pixel_accuracy: sum_i n_ii / sum_i t_i.
        mean_accuracy: Mean of n_ii / t_i over the scored classes with t_i > 0.
        mean_iu: Mean of IU_i over the scored classes in the ground truth or the prediction.
        frequency_weighted_iu: sum_i t_i IU_i / sum_i t_i.
        per_class_accuracy: n_ii / t_i; NaN where the class is not in the ground truth.
        per_class_iu: IU_i; NaN where the class is in neither.
        absent: The classes in neither, left out of the means.
        unscored: The classes left out of the means because they were not to be scored.

    Example:
        >>> metrics = compute_metrics(np.array([[8, 2], [0, 10]]))
        >>> print(metrics.pixel_accuracy, metrics.per_class_accuracy)
        0.9 [0.8 1. ]
    """

    pixel_accuracy: float
    mean_accuracy: float
    mean_iu: float
    frequency_weighted_iu: float
    per_class_accuracy: Float[np.ndarray, " c"]
    per_class_iu: Float[np.ndarray, " c"]
    absent: tuple[int, ...]
    unscored: tuple[int, ...] = ()


def compute_metrics(
    counts: Integer[np.ndarray, "..."], scored: Sequence[int] | None = None
) -> Metrics:
    """The metrics of a confusion matrix (rows: ground truth; columns: prediction).

    Args:
        counts: Pixels of each true and predicted class.
        scored: The classes whose metrics enter the means (`fcn_jax.ClassTable.scored`); None is
            all. SIFT Flow leaves out three that its test set lacks.

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
    hits = np.diag(counts).astype(np.float64)
    labelled = counts.sum(axis=1)
    union = labelled + counts.sum(axis=0) - np.diag(counts)
    with np.errstate(invalid="ignore"):
        accuracy = np.where(labelled > 0, hits / labelled, np.nan)
        iu = np.where(union > 0, hits / union, np.nan)
    chosen = list(range(len(counts)) if scored is None else scored)

    def mean(values: Float[np.ndarray, " c"]) -> float:
        there = values[chosen][~np.isnan(values[chosen])]
        return float(there.mean()) if there.size else 0.0

    return Metrics(
        pixel_accuracy=float(hits.sum() / total),
        mean_accuracy=mean(accuracy),
        mean_iu=mean(iu),
        frequency_weighted_iu=float(np.nansum(labelled * iu) / total),
        per_class_accuracy=accuracy,
        per_class_iu=iu,
        absent=tuple(np.flatnonzero(union == 0).tolist()),
        unscored=tuple(sorted(set(range(len(counts))) - set(chosen))),
    )
