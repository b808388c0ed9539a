"""Counts and metrics beside direct loops, scikit-learn and definitions by sets of pixels."""

from __future__ import annotations

import itertools
import math

import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage

from fcn_jax import VOID, ConfusionMatrix, compute_metrics, score_image
from fcn_jax.inference.metrics import ImageScores, PixelCounts, boundary_distance


def random_maps(seed: int, classes: int = 6, shape: tuple[int, ...] = (4, 13, 17)):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, shape).astype(np.uint8)
    labels[rng.random(shape) < 0.2] = VOID
    return labels, rng.integers(0, classes, shape)


def count_by_loop(labels, predictions, classes: int = 6) -> np.ndarray:
    counts = np.zeros((classes, classes), np.int64)
    for label, prediction in zip(labels.flat, predictions.flat, strict=True):
        if label != VOID:
            counts[label, prediction] += 1
    return counts


# ======================================================================== counting


def test_counts_over_several_batches():
    matrix, expected = ConfusionMatrix(6), 0
    for seed in range(3):
        labels, predictions = random_maps(seed)
        matrix.update(labels, jnp.asarray(predictions))
        expected = expected + count_by_loop(labels, predictions)
    assert matrix.counts.dtype == np.int64
    np.testing.assert_array_equal(matrix.counts, expected)


def test_exact_beyond_32_bits():
    matrix = ConfusionMatrix(2)
    batch = np.array([[2**32 - 1, 5], [7, 2**31]], np.uint32)
    for _ in range(5):
        matrix.add(PixelCounts(jnp.asarray(batch), jnp.uint32(0)))
    matrix.update(jnp.array([0, 0, 1], jnp.uint8), jnp.array([0, 0, 1]))
    expected = [[5 * (2**32 - 1) + 2, 25], [35, 5 * 2**31 + 1]]
    np.testing.assert_array_equal(matrix.counts, np.array(expected, np.int64))


@pytest.mark.parametrize("label", [6, 254])
def test_an_invalid_label_is_an_error_with_its_count(label):
    labels, predictions = random_maps(0)
    wrong = labels.copy()  # jax may still read an array that it was given
    wrong[0, 0, :3] = label
    matrix = ConfusionMatrix(6)
    matrix.update(wrong, predictions)
    matrix.update(labels, predictions)  # and it is not forgotten
    with pytest.raises(
        ValueError, match="3 pixels have a label that is neither one of the classes 0 to 5"
    ):
        _ = matrix.counts


@pytest.mark.parametrize("prediction", [6, -1, 255])
def test_a_prediction_that_is_no_class_is_an_error_too(prediction):
    labels, predictions = random_maps(0)
    labels[0, 0, :2] = (3, VOID)
    predictions[0, 0, :2] = prediction  # of which the second does not count
    matrix = ConfusionMatrix(6)
    matrix.update(labels, predictions)
    with pytest.raises(ValueError, match=r"1 pixels have .* a prediction that is no class"):
        _ = matrix.counts


def test_shapes_must_fit():
    with pytest.raises(ValueError, match="differ"):
        ConfusionMatrix(2).update(jnp.zeros((2, 3), jnp.uint8), jnp.zeros((3, 2), jnp.int32))


# ======================================================================== metrics


def metrics_by_loop(n) -> dict[str, float]:
    """Section 5 of the paper, as written there; classes with an empty union left out."""
    classes = range(len(n))
    t = [sum(int(n[i][j]) for j in classes) for i in classes]
    predicted = [sum(int(n[j][i]) for j in classes) for i in classes]
    union = [t[i] + predicted[i] - int(n[i][i]) for i in classes]
    accuracies = [int(n[i][i]) / t[i] for i in classes if t[i]]
    ius = {i: int(n[i][i]) / union[i] for i in classes if union[i]}
    return {
        "pixel_accuracy": sum(int(n[i][i]) for i in classes) / sum(t),
        "mean_accuracy": sum(accuracies) / len(accuracies),
        "mean_iu": sum(ius.values()) / len(ius),
        "frequency_weighted_iu": sum(t[i] * iu for i, iu in ius.items()) / sum(t),
    }


@pytest.mark.parametrize("seed", range(5))
def test_metrics(seed):
    rng = np.random.default_rng(seed)
    counts = rng.integers(0, 10 ** rng.integers(1, 12), (5, 5))
    result = compute_metrics(counts)
    for name, value in metrics_by_loop(counts).items():
        assert getattr(result, name) == pytest.approx(value, rel=1e-12), name
    assert result.absent == ()


def test_absent_classes_are_left_out_and_listed():
    counts = np.zeros((5, 5), np.int64)
    counts[0, 0], counts[0, 3], counts[2, 2], counts[2, 0] = 10, 5, 20, 2
    result = compute_metrics(counts)  # 1 and 4 in neither; 3 only predicted
    assert result.absent == (1, 4)
    for name, value in metrics_by_loop(counts).items():
        assert getattr(result, name) == pytest.approx(value), name
    np.testing.assert_array_equal(np.isnan(result.per_class_iu), [0, 1, 0, 0, 1])
    np.testing.assert_array_equal(np.isnan(result.per_class_accuracy), [0, 1, 0, 1, 1])
    assert result.per_class_iu[3] == 0
    assert result.mean_iu == pytest.approx((10 / 17 + 20 / 22 + 0) / 3)
    assert result.mean_accuracy == pytest.approx((10 / 15 + 20 / 22) / 2)


def test_perfect_prediction_scores_one():
    result = compute_metrics(np.diag([3, 5, 7]))
    names = ("pixel_accuracy", "mean_accuracy", "mean_iu", "frequency_weighted_iu")
    assert [getattr(result, name) for name in names] == [1.0] * 4


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        (np.zeros((3, 3), int), "empty"),
        (np.ones((2, 3), int), "square"),
        (np.ones(4, int), "square"),
    ],
)
def test_no_metrics_of_nonsense(counts, message):
    with pytest.raises(ValueError, match=message):
        compute_metrics(counts)


def test_classes_that_are_not_scored_are_left_out_of_the_means_alone():
    counts = np.random.default_rng(9).integers(1, 50, (5, 5))
    whole, part = compute_metrics(counts), compute_metrics(counts, scored=(0, 2, 3))
    assert part.mean_iu == pytest.approx(np.mean(whole.per_class_iu[[0, 2, 3]]))
    assert part.mean_accuracy == pytest.approx(np.mean(whole.per_class_accuracy[[0, 2, 3]]))
    assert part.pixel_accuracy == whole.pixel_accuracy
    assert part.frequency_weighted_iu == whole.frequency_weighted_iu
    assert (whole.unscored, part.unscored) == ((), (1, 4))


# ======================================================================== beside scikit-learn


@pytest.mark.parametrize("seed", range(3))
def test_precision_recall_and_f1_are_scikit_learns(seed):
    sklearn = pytest.importorskip("sklearn.metrics")
    labels, predictions = random_maps(seed, classes=7)
    labels[labels == 2], predictions[predictions == 3] = 0, 1  # never true, never predicted
    labels[labels == 5], predictions[predictions == 5] = 6, 6  # neither
    matrix = ConfusionMatrix(7)
    matrix.update(labels, predictions)
    result = compute_metrics(matrix.counts)
    valid = labels != VOID
    precision, recall, f1, _ = sklearn.precision_recall_fscore_support(
        labels[valid], predictions[valid], labels=range(7), zero_division=0
    )
    there = [0, 1, 2, 3, 4, 6]
    np.testing.assert_allclose(result.per_class_precision[there], precision[there], rtol=1e-12)
    np.testing.assert_allclose(result.per_class_f1[there], f1[there], rtol=1e-12)
    true = [0, 1, 3, 4, 6]
    np.testing.assert_allclose(result.per_class_recall[true], recall[true], rtol=1e-12)
    assert np.isnan(result.per_class_recall[[2, 5]]).all()
    assert np.isnan([result.per_class_precision[5], result.per_class_f1[5]]).all()
    # A class that is missed lowers the means.
    assert result.per_class_precision[3] == result.per_class_f1[3] == 0
    assert result.mean_precision == pytest.approx(precision[there].mean())
    assert result.mean_f1 == pytest.approx(f1[there].mean())
    iu = result.per_class_iu
    np.testing.assert_allclose(result.per_class_f1, 2 * iu / (1 + iu), rtol=1e-12)


# ======================================================================== single images


def scores_by_definition(labels, prediction, classes: int, distance: int) -> np.ndarray:
    """IoU, boundary IoU and boundary F1 of each class, as sets of pixels, in loops over them."""
    height, width = labels.shape
    valid = [(y, x) for y, x in np.ndindex(height, width) if labels[y, x] != VOID]
    scores = np.full((3, classes), np.nan)
    for c in range(classes):
        masks = [{p for p in valid if each[p] == c} for each in (labels, prediction)]
        if not masks[0] | masks[1]:
            continue

        def near(mask, steps):  # those from which so many steps of a king lead out of the mask
            square = list(itertools.product(range(-steps, steps + 1), repeat=2))
            return {(y, x) for y, x in mask if any((y + a, x + b) not in mask for a, b in square)}

        def iu(a, b):
            return len(a & b) / len(a | b)

        def part(a, b):
            return sum(any(math.dist(p, q) <= distance for q in b) for p in a) / len(a)

        scores[:, c] = iu(*masks), iu(*(near(mask, distance) for mask in masks)), 0
        lines = [near(mask, 1) for mask in masks]
        if all(lines) and (recall := part(*lines)) + (precision := part(*lines[::-1])):
            scores[2, c] = 2 * precision * recall / (precision + recall)
    return scores


@pytest.mark.parametrize("seed", range(8))
def test_scores_of_an_image_by_definition(seed):
    """Blobs, with void among them and along an edge; the prediction moved and disturbed."""
    rng = np.random.default_rng(seed)
    size = tuple(rng.integers(1, 24, 2).tolist())
    blobs = ndimage.gaussian_filter(rng.normal(size=(4, *size)), (0, 2, 2)).argmax(0)
    labels, prediction = blobs.astype(np.uint8), np.roll(blobs, seed % 3, axis=1)
    prediction[rng.random(size) < 0.05] = 4  # also predicted where it is not
    labels[:1], labels[rng.random(size) < 0.1] = VOID, VOID
    width = (0.02, 0.1, 0.2)[seed % 3]
    distance = boundary_distance(size, width)
    assert distance == max(1, round(width * math.hypot(*size)))
    got = score_image(labels, prediction, 6, boundary_width=width)
    expected = scores_by_definition(labels, prediction, 6, distance)
    for values, right in zip(got, expected, strict=True):
        np.testing.assert_allclose(values, right, rtol=1e-12)
    disturbed = np.where(labels == VOID, rng.integers(0, 6, size), prediction)
    np.testing.assert_array_equal(got, score_image(labels, disturbed, 6, boundary_width=width))


def test_the_border_of_an_image_is_a_boundary():
    """As the authors of boundary IoU have it."""
    labels, prediction = np.zeros((2, 100, 100), np.uint8)
    labels[:, 50:], prediction[:, 53:] = 1, 1
    assert boundary_distance(labels.shape) == 3
    scores = score_image(labels, prediction, 2)
    np.testing.assert_allclose(scores.boundary_iu, [0.5, 0.4921], atol=5e-5)
    np.testing.assert_array_equal(scores.boundary_f1, [1, 1])  # 3 pixels away is near enough
    prediction[:, 53] = 0
    assert score_image(labels, prediction, 2).boundary_f1.max() < 0.9
    filled = np.zeros((100, 100), np.uint8)
    for values in score_image(filled, filled, 2):
        np.testing.assert_array_equal(values, [1, np.nan])


def test_void_alone_has_no_score():
    void = np.full((5, 9), VOID, np.uint8)
    assert np.isnan(score_image(void, np.zeros_like(void), 3)).all()


def test_a_missed_object_lowers_the_mean():
    """In four images a cat is found, missed, in neither, and seen where none is."""
    empty = np.zeros((40, 50), np.uint8)
    cat, ten = empty.copy(), empty.copy()
    cat[10:20, 10:20], ten[5, 5:15] = 1, 1
    pairs = [(cat, cat), (cat, empty), (empty, empty), (empty, ten)]
    rows = [score_image(*pair, 2) for pair in pairs]
    for values in zip(*rows, strict=True):  # IoU, boundary IoU, boundary F1
        np.testing.assert_array_equal([of_image[1] for of_image in values], [1, 0, np.nan, 0])
    counts = np.array([[6000 + 1890, 10], [100, 100]])
    result = compute_metrics(counts, images=ImageScores(*np.moveaxis(np.array(rows), 1, 0)))
    assert result.per_class_images.tolist() == [4, 3]
    for name in ("image_iu", "boundary_iu", "boundary_f1"):
        assert result.by_class()[name][1] == pytest.approx(1 / 3)
    expected = [1, (1900 / 2000) / 2, 1, (1990 / 2000) / 2]
    np.testing.assert_allclose(result.per_image_iu, expected)
    assert result.mean_image_iu == pytest.approx(np.mean(expected))
    of_cat_alone = compute_metrics(counts, scored=[1], images=result.images)
    np.testing.assert_array_equal(of_cat_alone.per_image_iu, [1, 0, np.nan, 0])
    assert of_cat_alone.mean_image_iu == of_cat_alone.mean_boundary_f1 == pytest.approx(1 / 3)


@pytest.mark.parametrize(
    ("labels", "prediction", "message"),
    [
        (np.zeros((4, 5), np.uint8), np.zeros((5, 4), np.uint8), "differ"),
        (np.full((4, 5), 3, np.uint8), np.zeros((4, 5), np.uint8), "labels from 3 to 3"),
        (np.zeros((4, 5), np.uint8), np.full((4, 5), VOID, np.uint8), "prediction from 255 to 255"),
    ],
)
def test_no_scores_of_nonsense(labels, prediction, message):
    with pytest.raises(ValueError, match=message):
        score_image(labels, prediction, 3)
