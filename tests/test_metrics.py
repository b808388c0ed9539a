"""The confusion matrix and the paper's metrics against direct loops."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from fcn_jax import VOID, ConfusionMatrix, compute_metrics
from fcn_jax.inference.metrics import PixelCounts


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
