"""The pixelwise loss against PyTorch and hand-made cases, and the sampling of cells."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fcn_jax
from fcn_jax.models.losses import check_labels, cross_entropy, sample_cells

VOID = fcn_jax.VOID


def random_case(seed: int = 0, classes: int = 7):
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 5, (2, 9, 11, classes)).astype(np.float32)
    labels = rng.integers(0, classes, (2, 9, 11)).astype(np.uint8)
    labels[rng.random(labels.shape) < 0.3] = VOID
    return logits, labels


# ======================================================================== cross-entropy


@pytest.mark.parametrize("dtype", [np.uint8, np.int32, np.int64])
def test_beside_torch(dtype):
    torch = pytest.importorskip("torch")
    logits, labels = random_case()
    theirs_in = torch.from_numpy(logits.transpose(0, 3, 1, 2).copy()).double().requires_grad_()
    theirs = torch.nn.functional.cross_entropy(
        theirs_in, torch.from_numpy(labels).long(), reduction="sum", ignore_index=VOID
    )
    theirs.backward()
    labels = labels.astype(dtype)
    total, gradient = jax.value_and_grad(lambda x: cross_entropy(x, labels).total)(logits)
    assert float(total) == pytest.approx(theirs.item(), rel=1e-6)
    truth = theirs_in.grad.numpy().transpose(0, 2, 3, 1)
    np.testing.assert_allclose(gradient, truth, atol=1e-6)


def test_by_definition():
    logits, labels = random_case(1)
    truth = 0.0
    for scores, label in zip(logits.reshape(-1, 7).astype(np.float64), labels.flat, strict=True):
        if label != VOID:
            truth += np.log(np.exp(scores).sum()) - scores[label]
    loss = jax.jit(cross_entropy)(logits, labels)
    valid = int((labels != VOID).sum())
    assert float(loss.total) == pytest.approx(truth, rel=1e-6)
    assert (int(loss.valid), int(loss.invalid)) == (valid, 0)
    assert float(loss.mean) == pytest.approx(truth / valid, rel=1e-6)


def test_void_pixels_send_no_gradient():
    logits, labels = random_case(2)
    gradient = np.asarray(jax.grad(lambda x: cross_entropy(x, labels).total)(logits))
    assert not gradient[labels == VOID].any()
    assert np.abs(gradient[labels != VOID]).sum(axis=-1).all()


def test_all_void_is_zero_and_not_nan():
    logits = jnp.ones((1, 2, 3, 4))
    labels = jnp.full((1, 2, 3), VOID, jnp.uint8)
    loss, gradient = jax.value_and_grad(lambda x: cross_entropy(x, labels).mean)(logits)
    assert float(loss) == 0.0
    assert not np.asarray(gradient).any()


def test_large_logits_do_not_overflow():
    logits = jnp.array([[1e30, -1e30], [3e4, 0.0]])
    loss = cross_entropy(logits, jnp.array([0, 0]))
    assert float(loss.total) == 0.0


@pytest.mark.parametrize("label", [7, 254, -1])
def test_an_invalid_label_raises_and_is_named(label):
    logits, labels = random_case(3)
    labels = labels.astype(np.int32)
    labels[1, 2, 3] = label
    with pytest.raises(ValueError, match=rf"labels \[{label}\] are neither classes 0 to 6 nor"):
        cross_entropy(logits, labels)


@pytest.mark.parametrize("label", [7, 254, -1])
def test_an_invalid_label_in_compiled_code_makes_nan(label):
    logits, labels = random_case(3)
    labels = labels.astype(np.int32)
    labels[1, 2, 3] = label

    @jax.jit
    def loss_and_gradient(logits, labels):
        def objective(logits):
            loss = cross_entropy(logits, labels)
            return loss.total, loss

        return jax.value_and_grad(objective, has_aux=True)(logits)

    (total, loss), gradient = loss_and_gradient(logits, labels)
    assert np.isnan([total, loss.mean]).all()
    assert np.isnan(gradient[(labels >= 0) & (labels < 7)]).all()
    assert int(loss.invalid) == 1


def test_another_void_label():
    logits, labels = random_case(4)
    ours = cross_entropy(logits, np.where(labels == VOID, -1, labels.astype(int)), void=-1)
    assert float(ours.total) == float(cross_entropy(logits, labels).total)


def test_half_precision_logits_are_summed_in_float32():
    logits, labels = random_case(5)
    logits = jnp.asarray(logits, jnp.bfloat16)
    total = cross_entropy(logits, labels).total
    assert total.dtype == jnp.float32
    assert float(total) == float(cross_entropy(logits.astype(jnp.float32), labels).total)


@pytest.mark.usefixtures("unchecked_annotations")
def test_floating_point_labels_are_refused():
    logits, labels = random_case()
    with pytest.raises(ValueError, match="labels must be integers, got float32"):
        cross_entropy(logits, labels.astype(np.float32))


def test_shapes_must_fit():
    logits, labels = random_case()
    with pytest.raises(ValueError, match="do not fit"):
        cross_entropy(logits, labels[:, :-1])


def test_check_labels_accepts_all_classes_and_void():
    check_labels(np.array([0, 6, VOID], np.uint8), 7)


# ======================================================================== sampling of cells


@pytest.mark.parametrize("padding", ["same", "reference"])
def test_sampled_blocks_lie_around_cell_centres(padding):
    """With distinct labels visible as kept or not, the borders between blocks must be halfway
    between the centres of cells, which the network's geometry gives."""
    cells = fcn_jax.create_model("fcn8s", padding=padding).alignment.geometry["score_fr"]
    height, width = 201, 333
    kept = np.asarray(
        sample_cells(jax.random.key(3), jnp.zeros((3, height, width), jnp.uint8), 0.5, cells)
    )
    assert set(np.unique(kept)) == {0, VOID}

    def nearest(size):
        centres = float(cells.stride) * np.arange(-20, 40) + float(cells.offset)
        distance = np.abs(np.arange(size)[:, None] - centres[None])
        return distance.argmin(axis=1), np.sort(distance, axis=1)[:, 0] < 15.9

    rows, certain_rows = nearest(height)
    columns, certain_columns = nearest(width)
    for image in kept:
        for row in np.unique(rows):
            for column in np.unique(columns):
                block = image[(rows == row) & certain_rows][
                    :, (columns == column) & certain_columns
                ]
                assert np.unique(block).size <= 1


@pytest.mark.parametrize("fraction", [0.25, 0.5, 0.9])
def test_the_fraction_is_kept(fraction):
    cells = fcn_jax.create_model("fcn32s").alignment.geometry["score_fr"]
    labels = np.random.default_rng(0).integers(0, 5, (4, 640, 640)).astype(np.uint8)
    sampled = np.asarray(sample_cells(jax.random.key(0), jnp.asarray(labels), fraction, cells))
    kept = sampled != VOID
    np.testing.assert_array_equal(sampled[kept], labels[kept])
    # 1600 cells: three standard deviations are below 0.04.
    assert kept.mean() == pytest.approx(fraction, abs=0.04)
    assert (kept[0] != kept[1]).any()


def test_all_cells_kept_and_void_stays_void():
    cells = fcn_jax.create_model("fcn32s").alignment.geometry["score_fr"]
    labels = random_case()[1]
    np.testing.assert_array_equal(sample_cells(jax.random.key(0), labels, 1.0, cells), labels)


@pytest.mark.parametrize("fraction", [0.0, -0.5, 1.5])
def test_fractions_outside_are_refused(fraction):
    cells = fcn_jax.create_model("fcn32s").alignment.geometry["score_fr"]
    with pytest.raises(ValueError, match="fraction"):
        sample_cells(jax.random.key(0), jnp.zeros((1, 4, 4), jnp.uint8), fraction, cells)
