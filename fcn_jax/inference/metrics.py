"""The confusion matrix, exact and on the device, and the paper's four figures from it."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Float, Int, UInt32

from fcn_jax.classes import VOID


@struct.dataclass
class ConfusionMatrix:
    """Pixel counts by true class (row) and predicted class (column), summed over any number.

    JAX has no 64-bit integers by default and 32 bits overflow on a large set, so a count is kept
    in two limbs. Works inside `jax.jit`; over a sharded batch the sum is that of all devices.

    Attributes:
        low: The lower 32 bits of the counts.
        high: The upper 32 bits.
        invalid: Pixels, saturating, whose label is neither a class nor void, or whose prediction
            is no class.
    """

    low: UInt32[Array, "c c"]
    high: UInt32[Array, "c c"]
    invalid: UInt32[Array, ""]

    @classmethod
    def zeros(cls, num_classes: int) -> ConfusionMatrix:
        """An empty matrix of ``num_classes`` x ``num_classes``."""
        # Three arrays of their own, so that the whole can be donated to a jitted update.
        shape = (num_classes, num_classes)
        return cls(
            jnp.zeros(shape, jnp.uint32), jnp.zeros(shape, jnp.uint32), jnp.zeros((), jnp.uint32)
        )

    def update(self, labels: Int[Array, "..."], predictions: Int[Array, "..."]) -> ConfusionMatrix:
        """Adds a batch of fewer than 2**32 pixels.

        Args:
            labels: True classes; void (255) does not count.
            predictions: Predicted classes in [0, c), of the same shape.
        """
        if labels.shape != predictions.shape:
            raise ValueError(f"labels {labels.shape} and predictions {predictions.shape} differ")
        classes = self.low.shape[0]
        labels = labels.astype(jnp.int32)
        predictions = predictions.astype(jnp.int32)
        known = (labels >= 0) & (labels < classes)
        predicted = (predictions >= 0) & (predictions < classes)
        # Pixels that do not count fall into one cell beyond the matrix.
        cell = jnp.where(known & predicted, labels * classes + predictions, classes**2)
        counts = jnp.zeros(classes**2 + 1, jnp.uint32).at[cell.reshape(-1)].add(1)
        counts = counts[:-1].reshape(classes, classes)
        low = self.low + counts
        wrong = self.invalid + jnp.sum((labels != VOID) & ~(known & predicted), dtype=jnp.uint32)
        return ConfusionMatrix(
            low=low,
            high=self.high + (low < counts).astype(jnp.uint32),
            invalid=jnp.maximum(self.invalid, wrong),
        )

    def counts(self) -> Int[np.ndarray, "c c"]:
        """The counts on the host, int64.

        Raises:
            ValueError: If a label was neither a class nor void, or a prediction no class.
        """
        host = jax.device_get(self)
        if host.invalid:
            classes = host.low.shape[0]
            raise ValueError(
                f"{int(host.invalid)} pixels have a label that is neither one of the classes 0 to "
                f"{classes - 1} nor void ({VOID}), or a prediction that is no class; check the "
                "label files and the network's number of classes"
            )
        return (host.high.astype(np.int64) << 32) | host.low.astype(np.int64)


@dataclasses.dataclass(frozen=True)
class Metrics:
    """The figures of a confusion matrix, all from 0 to 1 (paper, section 5).

    With n_ij pixels of class i predicted as j, t_i = sum_j n_ij and
    IU_i = n_ii / (t_i + sum_j n_ji - n_ii).

    Attributes:
        pixel_accuracy: sum_i n_ii / sum_i t_i.
        mean_accuracy: Mean of n_ii / t_i over the scored classes with t_i > 0.
        mean_iu: Mean of IU_i over the scored classes in the truth or the prediction.
        frequency_weighted_iu: sum_i t_i IU_i / sum_i t_i.
        per_class_accuracy: n_ii / t_i; NaN where the class is not in the truth.
        per_class_iu: IU_i; NaN where the class is in neither.
        absent: The classes in neither, left out of the means.
        unscored: The classes left out of the means because they were not to be scored.
    """

    pixel_accuracy: float
    mean_accuracy: float
    mean_iu: float
    frequency_weighted_iu: float
    per_class_accuracy: Float[np.ndarray, " c"]
    per_class_iu: Float[np.ndarray, " c"]
    absent: tuple[int, ...]
    unscored: tuple[int, ...] = ()


def compute_metrics(counts: Int[np.ndarray, "c c"], scored: Sequence[int] | None = None) -> Metrics:
    """The figures of a confusion matrix (rows: truth; columns: prediction).

    Args:
        counts: Pixels of each true and predicted class.
        scored: The classes whose figures enter the means (`fcn_jax.ClassTable.scored`); None is
            all. SIFT Flow leaves out three that its test set lacks.

    Raises:
        ValueError: If the matrix is not square, or holds no pixel.
    """
    counts = np.asarray(counts)
    if counts.ndim != 2 or counts.shape[0] != counts.shape[1]:
        raise ValueError(f"a confusion matrix is square, got the shape {counts.shape}")
    total = counts.sum()
    if total == 0:
        raise ValueError("the confusion matrix is empty: no pixel had a label other than void")
    hits = np.diag(counts).astype(np.float64)
    truth = counts.sum(axis=1)
    union = truth + counts.sum(axis=0) - np.diag(counts)
    with np.errstate(invalid="ignore"):
        accuracy = np.where(truth > 0, hits / truth, np.nan)
        iu = np.where(union > 0, hits / union, np.nan)
    chosen = list(range(len(counts)) if scored is None else scored)
    return Metrics(
        pixel_accuracy=float(hits.sum() / total),
        mean_accuracy=_mean(accuracy[chosen]),
        mean_iu=_mean(iu[chosen]),
        frequency_weighted_iu=float(np.nansum(truth * iu) / total),
        per_class_accuracy=accuracy,
        per_class_iu=iu,
        absent=tuple(np.flatnonzero(union == 0).tolist()),
        unscored=tuple(sorted(set(range(len(counts))) - set(chosen))),
    )


def _mean(values: Float[np.ndarray, " c"]) -> float:
    """The mean of the values that are there; 0 where none is."""
    there = values[~np.isnan(values)]
    return float(there.mean()) if there.size else 0.0
