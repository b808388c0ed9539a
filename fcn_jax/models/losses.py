"""Losses over label maps with a void label, each a sum over pixels and a mean."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Integer

from fcn_jax.classes import VOID
from fcn_jax.geometry import Geometry


class PixelLoss(NamedTuple):
    """The loss of a batch; those of parts of a batch can be added, field by field.

    Attributes:
        total: What is minimised where the loss is summed over the valid pixels, as the paper does.
            A loss that is a mean by nature, such as Dice's, counts once for every valid pixel. NaN,
            and so is its gradient, if any label is invalid.
        valid: Number of valid pixels (int32).
        invalid: Number of pixels whose label is neither a class nor void (int32).
        quotients: Where the mean is not over the valid pixels: pairs (sum, what it is divided by),
            whose quotients add up to the mean.
    """

    total: Float[Array, ""]
    valid: Int[Array, ""]
    invalid: Int[Array, ""]
    quotients: tuple[tuple[Float[Array, ""], Float[Array, ""]], ...] = ()

    @property
    def mean(self) -> Float[Array, ""]:
        """Per valid pixel, or as the loss defines it; 0 where no pixel is valid."""
        if not self.quotients:
            return self.total / jnp.maximum(self.valid, 1)
        return sum(
            (above / jnp.where(below > 0, below, 1.0) for above, below in self.quotients),
            jnp.zeros(()),
        )


Loss: TypeAlias = Callable[[Float[Array, "... c"], Integer[Array, "..."]], PixelLoss]
"""``loss(logits, labels)``; `cross_entropy` is one. Void pixels must not count."""


def cross_entropy(
    logits: Float[Array | np.ndarray, "... c"],
    labels: Integer[Array | np.ndarray, "..."],
    void: int = VOID,
) -> PixelLoss:
    """Softmax cross-entropy summed over the valid pixels (the paper's loss; Caffe's
    SoftmaxWithLoss with ``normalize: false`` and ``ignore_label: 255``).

    Args:
        logits: Unnormalised scores.
        labels: Classes 0 to c - 1, or ``void``; any integer type.
        void: The label that does not count.

    Returns:
        The sum and the counts. A label outside the classes that is not void makes the sum NaN
        and is counted in ``invalid``, since compiled code cannot raise.

    Raises:
        ValueError: If shapes or types do not fit; outside `jax.jit` also if a label is invalid.

    Example:
        >>> loss = cross_entropy(jnp.zeros((1, 2, 2, 21)), jnp.array([[[0, 20], [7, VOID]]]))
        >>> print(f"{loss.mean:.4f} of {loss.valid} pixels")  # log(21)
        3.0445 of 3 pixels
    """
    if logits.shape[:-1] != labels.shape:
        raise ValueError(f"labels of shape {labels.shape} do not fit logits of {logits.shape}")
    if not jnp.issubdtype(labels.dtype, jnp.integer):
        raise ValueError(f"labels must be integers, got {labels.dtype}")
    classes = logits.shape[-1]
    logits = logits.astype(jnp.float32)
    # Inside jit the values come later.
    with contextlib.suppress(jax.errors.TracerArrayConversionError):
        check_labels(np.asarray(labels), classes, void)
    labels = labels.astype(jnp.int32)
    counted = labels != void
    known = (labels >= 0) & (labels < classes)
    valid = counted & known
    safe = jnp.where(valid, labels, 0)
    log_normaliser = jax.nn.logsumexp(logits, axis=-1)
    score = jnp.take_along_axis(logits, safe[..., None], axis=-1)[..., 0]
    total = jnp.sum(jnp.where(valid, log_normaliser - score, 0.0))
    invalid = jnp.sum(counted & ~known, dtype=jnp.int32)
    total *= jnp.where(invalid > 0, jnp.nan, 1.0)  # a product, so that the gradient is NaN too
    return PixelLoss(total, jnp.sum(valid, dtype=jnp.int32), invalid)


def check_labels(labels: Integer[np.ndarray, "..."], num_classes: int, void: int = VOID) -> None:
    """Raises ValueError if a label is neither in [0, num_classes) nor void, and names it."""
    wrong = np.unique(labels[(labels != void) & ((labels < 0) | (labels >= num_classes))])
    if wrong.size:
        raise ValueError(
            f"labels {wrong[:5].tolist()} are neither classes 0 to {num_classes - 1} nor void "
            f"({void}); map them to classes, or to {void} if they should not count"
        )


def sample_cells(
    key: Array, labels: Integer[Array | np.ndarray, "b h w"], fraction: float, cells: Geometry
) -> Integer[Array, "b h w"]:
    """Patch sampling: keeps the labels of a random part of the final-layer cells.

    Every cell of the coarsest score map, whose geometry is ``cells``, is kept with probability
    ``fraction``, independently; the pixels nearest to the other cells become void (paper, section
    3.4 and figure 5, which enlarges the minibatch by 1 / fraction to keep the number of cells).
    """
    if not 0 < fraction <= 1:
        raise ValueError(f"the fraction of cells must be in (0, 1], got {fraction}")
    # Exact in integers: strides and offsets are halves of pixels at the finest.
    stride, offset = int(2 * cells.stride), int(2 * cells.offset)
    batch, *sides = labels.shape
    # For each pixel the index of the cell whose centre is nearest.
    rows, columns = ((2 * np.arange(side) - offset + stride // 2) // stride for side in sides)
    rows, columns = rows - rows[0], columns - columns[0]
    kept = jax.random.bernoulli(key, fraction, (batch, rows[-1] + 1, columns[-1] + 1))
    return jnp.where(kept[:, rows][:, :, columns], labels, jnp.array(VOID, labels.dtype))
