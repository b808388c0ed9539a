"""Losses over label maps with a void label, each a sum over pixels and a mean."""

from __future__ import annotations

import contextlib
import functools
import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Integer

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


# ======================================================================== the losses


def cross_entropy(
    logits: Float[Array | np.ndarray, "... c"],
    labels: Integer[Array | np.ndarray, "..."],
    void: int = VOID,
    *,
    class_weights: Sequence[float] = (),
    label_smoothing: float = 0.0,
) -> PixelLoss:
    """Softmax cross-entropy summed over the valid pixels (the paper's loss; Caffe's
    SoftmaxWithLoss with ``normalize: false`` and ``ignore_label: 255``).

    With probabilities p, weights w and smoothing s, a pixel of class y has the loss
    -(1 - s) w_y log p_y - s / c sum_k w_k log p_k, as in PyTorch.

    Args:
        logits: Unnormalised scores.
        labels: Classes 0 to c - 1, or ``void``; any integer type.
        void: The label that does not count.
        class_weights: A factor on the loss of each class. The mean is then divided by the sum of
            the weights of the pixels' classes.
        label_smoothing: Part of the target that is spread evenly over all classes.

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
    pixels = _pixels(logits, labels, void)
    losses, weights = _weighted(pixels, pixels.cross_entropy(), class_weights, label_smoothing)
    return _summed(pixels, losses, weights)


def focal(
    logits: Float[Array | np.ndarray, "... c"],
    labels: Integer[Array | np.ndarray, "..."],
    void: int = VOID,
    *,
    gamma: float = 2.0,
    class_weights: Sequence[float] = (),
) -> PixelLoss:
    """The focal loss -(1 - p_y)^gamma log p_y (Lin et al. 2017, equation 4), over a softmax.

    Pixels that are right already count little. With ``gamma`` 0 it is `cross_entropy`, which
    tells the other arguments; as there, the mean is over the weights of the pixels' classes.

    Example:
        >>> loss = focal(jnp.zeros((1, 1, 1, 2)), jnp.array([[[0]]]))
        >>> print(f"{loss.total:.4f}")  # log(2) / 4
        0.1733
    """
    pixels = _pixels(logits, labels, void)
    losses = pixels.cross_entropy()
    if gamma:
        # 1 - p_y from the other classes, since 1 - (1 - 1e-9) is 0; and never 0, where the
        # power's derivative is infinite.
        others = jnp.sum(jnp.where(pixels.one_hot(), 0.0, pixels.probabilities()), axis=-1)
        losses *= jnp.maximum(others, jnp.finfo(jnp.float32).tiny) ** gamma
    return _summed(pixels, *_weighted(pixels, losses, class_weights))


def ohem(
    logits: Float[Array | np.ndarray, "... c"],
    labels: Integer[Array | np.ndarray, "..."],
    void: int = VOID,
    *,
    threshold: float = 0.7,
    least: int = 10_000,
    class_weights: Sequence[float] = (),
    label_smoothing: float = 0.0,
) -> PixelLoss:
    """`cross_entropy` of the hard pixels alone (online hard example mining; Wu et al. 2016).

    Those are hard whose class has a probability below ``threshold``, and in each image at least
    the ``least`` valid pixels of smallest probability, or all valid ones where there are fewer.
    The mean is over the hard pixels, or their weights. An image is the last two axes of labels.

    Example:
        >>> p = jnp.array([[0.9, 0.8], [0.3, 0.1]])  # of the true class
        >>> loss = ohem(jnp.log(jnp.stack([p, 1 - p], axis=-1)), jnp.zeros((2, 2), int), least=1)
        >>> print(f"{loss.total:.4f}")  # -log(0.3) - log(0.1)
        3.5066
    """
    pixels = _pixels(logits, labels, void)
    losses = pixels.cross_entropy()
    hardness = jax.lax.stop_gradient(jnp.where(pixels.valid, losses, -jnp.inf))
    images = hardness.reshape(*hardness.shape[:-2], -1)
    last = jnp.sort(images, axis=-1)[..., max(0, images.shape[-1] - least)]
    last = last.reshape(*last.shape, *[1] * (hardness.ndim - last.ndim))
    hard = pixels.valid & ((hardness > -math.log(threshold)) | (hardness >= last))
    losses, weights = _weighted(pixels, losses, class_weights, label_smoothing)
    return _summed(
        pixels,
        jnp.where(hard, losses, 0.0),
        jnp.where(hard, 1.0 if weights is None else weights, 0.0),
    )


def tversky(
    logits: Float[Array | np.ndarray, "... c"],
    labels: Integer[Array | np.ndarray, "..."],
    void: int = VOID,
    *,
    alpha: float = 0.3,
    beta: float = 0.7,
) -> PixelLoss:
    """1 - TP / (TP + alpha FP + beta FN) of soft counts (Salehi et al. 2017, equation 3).

    With probabilities p and targets t of a class, TP is the sum of p t over the valid pixels of an
    image, FP of p (1 - t) and FN of (1 - p) t. The loss of an image is the mean over the classes
    that are in its labels: others are left out, since they have no TP. That of a batch is the mean
    over its images, weighted by their valid pixels; so the total is what each valid pixel would
    add if it had its image's loss. An image is the last two axes of labels.

    Example:
        >>> loss = tversky(jnp.zeros((1, 1, 2, 2)), jnp.array([[[0, VOID]]]))
        >>> print(f"{loss.mean:.4f}")  # TP 1/2, FP 0, FN 1/2
        0.4118
    """
    pixels = _pixels(logits, labels, void)
    axes = tuple(range(max(0, pixels.valid.ndim - 2), pixels.valid.ndim))
    targets = pixels.one_hot() & pixels.valid[..., None]
    found = jnp.where(pixels.valid[..., None], pixels.probabilities(), 0.0)
    size = jnp.sum(targets, axis=axes, dtype=jnp.float32)  # of each class in each image
    hits = jnp.sum(jnp.where(targets, found, 0.0), axis=axes)
    union = hits + alpha * (jnp.sum(found, axis=axes) - hits) + beta * (size - hits)
    return _of_images(pixels, 1.0 - hits / jnp.where(union > 0, union, 1.0), size)


def lovasz(
    logits: Float[Array | np.ndarray, "... c"],
    labels: Integer[Array | np.ndarray, "..."],
    void: int = VOID,
) -> PixelLoss:
    """The Lovász-softmax loss (Berman et al. 2018, equations 9 to 11): 1 - IU, made continuous.

    A pixel's error for a class is |t - p|, of its target t and probability p. Where the pixels of
    an image are taken from the largest error down, each adds its error times the step by which the
    class's 1 - IU grows once it, too, is wrong. Where every p is 0 or 1 the loss is 1 - IU. As in
    `tversky`, that of an image is the mean over the classes in its labels, and that of a batch is
    the mean over its images, weighted by their valid pixels.

    Example:
        >>> p = jnp.array([[[[0.75, 0.25], [0.5, 0.5]]]])
        >>> loss = lovasz(jnp.log(p), jnp.array([[[0, 1]]]))
        >>> print(f"{loss.mean:.4f}")  # the mean of 1/2 1/2 + 1/4 1/2 and of 1/2 1 + 1/4 0
        0.4375
    """
    pixels = _pixels(logits, labels, void)
    classes = pixels.logits.shape[-1]
    of_image = (*pixels.valid.shape[:-2], math.prod(pixels.valid.shape[-2:]))
    targets = (pixels.one_hot() & pixels.valid[..., None]).reshape(*of_image, classes)
    valid = pixels.valid.reshape(*of_image, 1)
    probabilities = pixels.probabilities().reshape(*of_image, classes)
    # Void pixels have no error, so that they come last and add nothing.
    errors = jnp.where(valid, jnp.abs(targets - probabilities), 0.0)
    order = jnp.argsort(-jax.lax.stop_gradient(errors), axis=-2)
    wrong = jnp.take_along_axis(targets, order, axis=-2)
    size = jnp.sum(targets, axis=-2, dtype=jnp.float32)  # of each class in each image
    missed = jnp.cumsum(wrong, axis=-2, dtype=jnp.float32)
    false = jnp.cumsum(~wrong, axis=-2, dtype=jnp.float32)
    lost = 1 - (size[..., None, :] - missed) / jnp.maximum(size[..., None, :] + false, 1)
    steps = jnp.diff(lost, axis=-2, prepend=0.0)
    losses = jnp.sum(jnp.take_along_axis(errors, order, axis=-2) * steps, axis=-2)
    return _of_images(pixels, losses, size)


def dice(
    logits: Float[Array | np.ndarray, "... c"],
    labels: Integer[Array | np.ndarray, "..."],
    void: int = VOID,
) -> PixelLoss:
    """1 - 2 TP / (2 TP + FP + FN) of soft counts: `tversky` with alpha = beta = 1/2, which tells
    what is averaged (Milletari et al. 2016, with probabilities that are not squared)."""
    return tversky(logits, labels, void, alpha=0.5, beta=0.5)


# ======================================================================== losses by name

LOSSES: Mapping[str, Callable[..., PixelLoss]] = {
    "cross_entropy": cross_entropy,
    "focal": focal,
    "ohem": ohem,
    "dice": dice,
    "tversky": tversky,
    "lovasz": lovasz,
}


def read_loss(text: str) -> tuple[tuple[float, str], ...]:
    """The terms of a sum of losses, each with its factor.

    Raises:
        ValueError: If there is no such loss, or a factor is no positive number.

    Example:
        >>> read_loss("cross_entropy + 0.5*dice")
        ((1.0, 'cross_entropy'), (0.5, 'dice'))
    """
    terms = []
    for term in text.split("+"):
        factor, times, name = term.rpartition("*")
        name = name.strip()
        if name not in LOSSES:
            raise ValueError(f"there is no loss {name!r}; there are {', '.join(LOSSES)}")
        try:
            number = float(factor) if times else 1.0
        except ValueError:
            number = 0.0
        if not 0 < number < math.inf:
            raise ValueError(f"the factor {factor.strip()!r} of {name} is no positive number")
        terms.append((number, name))
    return tuple(terms)


def options_of(name: str) -> frozenset[str]:
    """What a loss can be told besides logits, labels and void."""
    parameters = inspect.signature(LOSSES[name]).parameters.values()
    return frozenset(one.name for one in parameters if one.kind is one.KEYWORD_ONLY)


def make_loss(text: str, **options: Any) -> Loss:
    """The sum of losses that a text names (`read_loss`); each takes of the options its own.

    The totals are added, and so are the means.

    Raises:
        ValueError: As `read_loss`.

    Example:
        >>> loss = make_loss("cross_entropy+0.5*focal", gamma=0.0)
        >>> print(f"{loss(jnp.zeros((1, 1, 1, 2)), jnp.array([[[0]]])).mean:.4f}")  # 1.5 log(2)
        1.0397
    """
    terms = []
    for factor, name in read_loss(text):
        own = {option: options[option] for option in options_of(name) & options.keys()}
        terms.append((factor, functools.partial(LOSSES[name], **own)))

    def loss(
        logits: Float[Array | np.ndarray, "... c"], labels: Integer[Array | np.ndarray, "..."]
    ) -> PixelLoss:
        found = [(factor, term(logits, labels)) for factor, term in terms]
        first = found[0][1]
        if len(found) == 1 and found[0][0] == 1:
            return first
        return PixelLoss(
            sum((factor * part.total for factor, part in found), jnp.zeros(())),
            first.valid,
            first.invalid,
            tuple(
                (factor * above, below)
                for factor, part in found
                for above, below in part.quotients
                or ((part.total, part.valid.astype(jnp.float32)),)
            ),
        )

    return loss


def balanced_weights(way: str, pixels: Integer[np.ndarray, "images c"]) -> tuple[float, ...]:
    """A weight for each class, larger for rarer ones, from the pixels of each in every image.

    Void does not count. A class without a pixel has the weight 0 and is not one of the C that
    there are.

    * ``inverse``: N / (C n_c) with n_c of the N pixels of class c (scikit-learn's "balanced"). The
      mean weight of a pixel is 1, so that a rate that fits the sum over pixels still does.
    * ``median``: median(f) / f_c, where f_c is n_c over the pixels of the images that hold class c
      (Eigen and Fergus 2015, section 6).

    Raises:
        ValueError: If there is no such way, or no pixel.

    Example:
        >>> balanced_weights("inverse", np.array([[30, 10, 0], [20, 0, 0]]))
        (0.6, 3.0, 0.0)
        >>> balanced_weights("median", np.array([[30, 10, 0], [40, 0, 0]]))  # f: 7/8, 1/4
        (0.6428571428571429, 2.25, 0.0)
    """
    of_class = pixels.sum(axis=0, dtype=np.int64)
    there = of_class > 0
    if not there.any():
        raise ValueError("no image has a label other than void")
    if way == "inverse":
        counted, total = of_class * int(there.sum()), of_class.sum()
    elif way == "median":
        around = np.where(pixels > 0, pixels.sum(axis=1, keepdims=True), 0).sum(axis=0)
        counted = of_class / np.maximum(around, 1)
        total = np.median(counted[there])
    else:
        raise ValueError(f"unknown class weights {way!r}; there are inverse and median")
    return tuple(float(total / n) if n else 0.0 for n in counted)


# ======================================================================== pixels


class _Pixels(NamedTuple):
    """Logits and labels of a batch, checked: what every loss begins with.

    ``labels`` are 0 where a pixel is not ``valid``. ``number`` of them are, ``invalid`` ones are
    neither class nor void, and ``factor`` is NaN where there are any, else 1.
    """

    logits: Float[Array, "... c"]
    labels: Int[Array, "..."]
    valid: Bool[Array, "..."]
    number: Int[Array, ""]
    invalid: Int[Array, ""]
    factor: Float[Array, ""]

    def cross_entropy(self) -> Float[Array, "..."]:
        log_normaliser = jax.nn.logsumexp(self.logits, axis=-1)
        score = jnp.take_along_axis(self.logits, self.labels[..., None], axis=-1)[..., 0]
        return log_normaliser - score

    def probabilities(self) -> Float[Array, "... c"]:
        return jax.nn.softmax(self.logits)

    def one_hot(self) -> Bool[Array, "... c"]:
        return jax.nn.one_hot(self.labels, self.logits.shape[-1], dtype=bool)


def _pixels(
    logits: Float[Array | np.ndarray, "... c"],
    labels: Integer[Array | np.ndarray, "..."],
    void: int,
) -> _Pixels:
    """Raises ValueError if shapes or types do not fit; outside jit also if a label is invalid."""
    if logits.shape[:-1] != labels.shape:
        raise ValueError(f"labels of shape {labels.shape} do not fit logits of {logits.shape}")
    if not jnp.issubdtype(labels.dtype, jnp.integer):
        raise ValueError(f"labels must be integers, got {labels.dtype}")
    classes = logits.shape[-1]
    # Inside jit the values come later.
    with contextlib.suppress(jax.errors.TracerArrayConversionError):
        check_labels(np.asarray(labels), classes, void)
    labels = labels.astype(jnp.int32)
    counted = labels != void
    known = (labels >= 0) & (labels < classes)
    valid = jnp.asarray(counted & known)
    invalid = jnp.sum(counted & ~known, dtype=jnp.int32)
    return _Pixels(
        jnp.asarray(logits, jnp.float32),
        jnp.where(valid, labels, 0),
        valid,
        jnp.sum(valid, dtype=jnp.int32),
        invalid,
        jnp.where(invalid > 0, jnp.nan, 1.0),
    )


def _weighted(
    pixels: _Pixels,
    losses: Float[Array, "..."],
    class_weights: Sequence[float],
    smoothing: float = 0.0,
) -> tuple[Float[Array, "..."], Float[Array, "..."] | None]:
    """The losses of pixels, weighted and smoothed, and the weights; None where all are 1."""
    *around, classes = pixels.logits.shape
    if class_weights and len(class_weights) != classes:
        raise ValueError(f"{len(class_weights)} class weights, but {classes} classes")
    weights = jnp.array(class_weights or (1.0,) * classes, jnp.float32)
    if class_weights:
        losses *= (of_pixel := weights[pixels.labels])
    else:
        of_pixel = None
    if smoothing:
        surprise = -jax.nn.log_softmax(pixels.logits)
        even = jnp.mean(surprise * weights.reshape(*[1] * len(around), classes), axis=-1)
        losses = (1 - smoothing) * losses + smoothing * even
    return losses, of_pixel


def _summed(
    pixels: _Pixels, losses: Float[Array, "..."], weights: Float[Array, "..."] | None
) -> PixelLoss:
    """The sum over the valid pixels. Its mean is over their weights, where there are any."""
    # A product, so that the gradient is NaN, too, if a label is invalid.
    total = jnp.sum(jnp.where(pixels.valid, losses, 0.0)) * pixels.factor
    of_weights = ()
    if weights is not None:
        of_weights = ((total, jnp.sum(jnp.where(pixels.valid, weights, 0.0))),)
    return PixelLoss(total, pixels.number, pixels.invalid, of_weights)


def _of_images(
    pixels: _Pixels, losses: Float[Array, "... c"], size: Float[Array, "... c"]
) -> PixelLoss:
    """The losses of classes in images, averaged over those in an image's labels, by their size."""
    counted = jnp.sum(jnp.where(size > 0, losses, 0.0), axis=-1)
    means = counted / jnp.maximum(jnp.sum(size > 0, axis=-1), 1)
    total = jnp.sum(means * jnp.sum(size, axis=-1)) * pixels.factor
    return PixelLoss(total, pixels.number, pixels.invalid)


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
