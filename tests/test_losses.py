"""The losses against PyTorch, their definitions and hand-made cases; the sampling of cells."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fcn_jax
from fcn_jax.models.losses import (
    balanced_weights,
    check_labels,
    cross_entropy,
    dice,
    focal,
    lovasz,
    make_loss,
    ohem,
    read_loss,
    sample_cells,
    tversky,
)

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
    total, gradient = jax.jit(jax.value_and_grad(lambda x: cross_entropy(x, labels).total))(logits)
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
    gradient = np.asarray(jax.jit(jax.grad(lambda x: cross_entropy(x, labels).total))(logits))
    assert not gradient[labels == VOID].any()
    assert np.abs(gradient[labels != VOID]).sum(axis=-1).all()


def test_all_void_is_zero_and_not_nan():
    logits = jnp.ones((1, 2, 3, 4))
    labels = jnp.full((1, 2, 3), VOID, jnp.uint8)
    loss, gradient = jax.jit(jax.value_and_grad(lambda x: cross_entropy(x, labels).mean))(logits)
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


# ======================================================================== all losses by definition

WEIGHTS = (0.5, 1.0, 4.0, 0.0, 2.0, 1.5, 3.0)


def softmax(logits):
    powers = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True)


def of_pixels(loss):
    """A definition by the probabilities of one pixel and its class, summed over valid pixels."""

    def total(logits, labels):
        valid = labels != VOID
        return sum(map(loss, softmax(logits)[valid], labels[valid]))

    return total


def of_images(alpha, beta):
    """Tversky's, with a loop for each sum."""

    def total(logits, labels):
        result = 0.0
        for p, label in zip(softmax(logits), labels, strict=True):
            valid, losses = label != VOID, []
            for k in set(label[valid].tolist()):
                hits = p[label == k][:, k].sum()
                false = p[valid & (label != k)][:, k].sum()
                missed = (1 - p[label == k][:, k]).sum()
                losses.append(1 - hits / (hits + alpha * false + beta * missed))
            result += valid.sum() * np.mean(losses) if losses else 0.0
        return result

    return total


def lovasz_extension(logits, labels):
    """Equations 8, 9 and 11 with sets of pixels, as the paper writes them."""

    def lost(wrong, of_class):
        return len(wrong) / len(wrong | of_class)

    result = 0.0
    for p, label in zip(softmax(logits), labels, strict=True):
        valid, losses = set(np.flatnonzero(label != VOID).tolist()), []
        for k in {int(label.flat[i]) for i in valid}:
            of_class = {i for i in valid if label.flat[i] == k}
            error = {i: 1 - q if i in of_class else q for i, q in enumerate(p[..., k].flat)}
            order, loss = sorted(valid, key=lambda i: -error[i]), 0.0
            for n, i in enumerate(order):
                step = lost({*order[: n + 1]}, of_class) - lost({*order[:n]}, of_class)
                loss += error[i] * step
            losses.append(loss)
        result += len(valid) * np.mean(losses) if losses else 0.0
    return result


def hard(threshold, least):
    def total(logits, labels):
        result = 0.0
        for p, label in zip(softmax(logits), labels, strict=True):
            valid = label != VOID
            true = sorted(p[valid][np.arange(valid.sum()), label[valid]])
            kept = [q for number, q in enumerate(true) if q < threshold or number < least]
            result -= np.log(kept).sum()
        return result

    return total


def smoothed(p, y):
    return -0.9 * WEIGHTS[y] * np.log(p[y]) - 0.1 / 7 * np.dot(WEIGHTS, np.log(p))


DEFINITIONS = {
    "cross_entropy": ({}, of_pixels(lambda p, y: -np.log(p[y]))),
    "cross_entropy smoothed": (
        {"class_weights": WEIGHTS, "label_smoothing": 0.1},
        of_pixels(smoothed),
    ),
    "focal": ({"gamma": 1.5}, of_pixels(lambda p, y: -((1 - p[y]) ** 1.5) * np.log(p[y]))),
    "focal weighted": (
        {"gamma": 2.0, "class_weights": WEIGHTS},
        of_pixels(lambda p, y: -WEIGHTS[y] * (1 - p[y]) ** 2 * np.log(p[y])),
    ),
    "ohem": ({"threshold": 0.02, "least": 30}, hard(0.02, 30)),
    "dice": ({}, of_images(0.5, 0.5)),
    "tversky": ({"alpha": 0.2, "beta": 0.9}, of_images(0.2, 0.9)),
    "lovasz": ({}, lovasz_extension),
    "cross_entropy+0.5*dice": (
        {},
        lambda *given: (
            DEFINITIONS["cross_entropy"][1](*given) + 0.5 * DEFINITIONS["dice"][1](*given)
        ),
    ),
}


@pytest.mark.parametrize("name", DEFINITIONS)
def test_losses_by_definition(name):
    options, definition = DEFINITIONS[name]
    loss = make_loss(name.split()[0], **options)
    logits, labels = random_case(1)
    logits *= 0.4
    truth = definition(logits.astype(np.float64), labels)
    found = jax.jit(loss)(logits, labels)
    assert float(found.total) == pytest.approx(truth, rel=2e-6)
    assert (int(found.valid), int(found.invalid)) == ((labels != VOID).sum(), 0)

    # Along random directions the gradient is the definition's central difference.
    gradient = jax.jit(jax.grad(lambda x: loss(x, labels).total))(logits)
    for seed in range(3):
        way = np.random.default_rng(seed).normal(size=logits.shape)
        ahead, behind = (definition(logits + step * way, labels) for step in (1e-6, -1e-6))
        assert np.vdot(gradient, way) == pytest.approx((ahead - behind) / 2e-6, rel=1e-4)


@pytest.mark.parametrize("name", DEFINITIONS)
def test_an_image_on_a_canvas_has_the_loss_that_it_has_alone(name):
    """Void beyond it, whatever the logits there; and so has an image in a batch."""
    loss = jax.jit(make_loss(name.split()[0], **DEFINITIONS[name][0]))
    logits, labels = random_case(2)
    alone = [loss(logits[i : i + 1], labels[i : i + 1]) for i in range(2)]
    wide = np.random.default_rng(3).normal(0, 9, (2, 16, 32, 7)).astype(np.float32)
    void = np.full((2, 16, 32), VOID, np.uint8)
    wide[:, :9, :11], void[:, :9, :11] = logits, labels
    together = loss(wide, void)
    assert float(together.total) == pytest.approx(sum(float(a.total) for a in alone), rel=1e-6)
    # Parts of a batch are added field by field, as groups of devices do.
    added = jax.tree.map(lambda *fields: sum(fields), *alone)
    assert float(together.mean) == pytest.approx(float(added.mean), rel=1e-6)


@pytest.mark.parametrize("name", DEFINITIONS)
def test_void_counts_for_nothing(name):
    loss = make_loss(name.split()[0], **DEFINITIONS[name][0])
    logits, labels = random_case(4)
    loud = np.where((labels == VOID)[..., None], np.float32(1e4), logits)
    loud[..., 0] += 1e3 * (labels == VOID)
    both = jax.jit(jax.value_and_grad(lambda x: loss(x, labels).total))
    (quiet, _), (total, gradient) = both(logits), both(loud)
    assert float(total) == float(quiet)
    assert not np.asarray(gradient)[labels == VOID].any()
    nothing = np.full_like(labels, VOID)
    mean = lambda x: loss(x, nothing).mean  # noqa: E731
    total, gradient = jax.jit(jax.value_and_grad(mean))(logits)
    assert float(total) == 0.0
    assert not np.asarray(gradient).any()


@pytest.mark.parametrize("name", DEFINITIONS)
def test_an_invalid_label_makes_every_loss_nan(name):
    loss = make_loss(name.split()[0], **DEFINITIONS[name][0])
    logits, labels = random_case(3)
    labels[1, 2, 3] = 7

    @jax.jit
    def value_and_gradient(logits, labels):
        def objective(logits):
            found = loss(logits, labels)
            return found.total, found

        return jax.value_and_grad(objective, has_aux=True)(logits)

    (total, found), gradient = value_and_gradient(logits, labels)
    assert np.isnan([total, found.mean]).all()
    assert np.isnan(gradient).any()
    assert int(found.invalid) == 1


# ======================================================================== known values


def total_and_mean(loss):
    return float(loss.total), float(loss.mean)


def test_smoothing_with_void_and_weights():
    logits = jnp.array([[[[2.0, 0, -1], [5, 5, 5]], [[0, 9, 0], [0, 1, 3]]]])
    labels = jnp.array([[[0, 255], [255, 2]]])
    weighted = {"class_weights": (1, 2, 4), "label_smoothing": 0.1}
    assert float(cross_entropy(logits, labels).total) == pytest.approx(0.3397, abs=1e-4)
    smoothed = cross_entropy(logits, labels, label_smoothing=0.1)
    assert total_and_mean(smoothed) == pytest.approx((0.6730, 0.3365), abs=1e-4)
    assert total_and_mean(cross_entropy(logits, labels, **weighted)) == pytest.approx(
        (1.6102, 0.3220), abs=1e-4
    )


@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_weights_and_smoothing_beside_torch(reduction):
    torch = pytest.importorskip("torch")
    logits, labels = random_case(5)
    truth = torch.nn.functional.cross_entropy(
        torch.from_numpy(logits.transpose(0, 3, 1, 2).copy()).double(),
        torch.from_numpy(labels).long(),
        torch.tensor(WEIGHTS).double(),
        reduction=reduction,
        ignore_index=VOID,
        label_smoothing=0.2,
    )
    loss = cross_entropy(logits, labels, class_weights=WEIGHTS, label_smoothing=0.2)
    found = loss.total if reduction == "sum" else loss.mean
    assert float(found) == pytest.approx(truth.item(), rel=1e-6)


@pytest.mark.parametrize("ways", [(0.5, 0.5), (0.3, 0.7)], ids=["dice", "tversky"])
def test_overlap_beside_optax(ways):
    """Optax's has no void and counts absent classes: on images that hold all classes it is ours."""
    optax = pytest.importorskip("optax")
    logits, _ = random_case(6)
    labels = np.random.default_rng(6).integers(0, 7, logits.shape[:-1])
    alpha, beta = ways
    hot = jax.nn.one_hot(labels, 7)
    truth = optax.losses.dice_loss(logits, hot, alpha=alpha, beta=beta, smooth=0.0)
    found = jax.jit(functools.partial(tversky, alpha=alpha, beta=beta))(logits, labels)
    assert float(found.mean) == pytest.approx(float(truth.mean()), rel=1e-6)
    assert float(found.total) == pytest.approx(99 * float(truth.sum()), rel=1e-6)


def test_lovasz_of_certain_scores_is_what_the_metric_lacks():
    """The mean of 1 - IU over the classes of an image (scikit-learn's Jaccard score)."""
    metrics = pytest.importorskip("sklearn.metrics")
    _, labels = random_case(6)
    guess = np.random.default_rng(7).integers(0, 7, labels.shape)
    guess = np.where(np.random.default_rng(8).random(labels.shape) < 0.6, labels % 7, guess)
    truth = [
        1 - metrics.jaccard_score(label[label != VOID], one[label != VOID], average="macro")
        for label, one in zip(labels, guess, strict=True)
    ]
    sizes = (labels != VOID).sum(axis=(1, 2))
    found = lovasz(1e3 * jax.nn.one_hot(guess, 7), labels)
    assert float(found.mean) == pytest.approx(np.average(truth, weights=sizes), rel=1e-6)


@pytest.mark.parametrize("loss", [dice, tversky, lovasz])
def test_overlap_without_void_and_absent_classes(loss):
    loss = jax.jit(loss)
    logits = jnp.tile(jnp.array([-20.0, 20.0]), (1, 4, 1))
    assert float(loss(logits, jnp.array([[1, 1, 255, 255]])).mean) == pytest.approx(0, abs=1e-6)
    logits = jnp.zeros((1, 5, 6, 21)).at[..., 0].set(20.0)
    assert float(loss(logits, jnp.zeros((1, 5, 6), int)).mean) == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
def test_overlap_of_half_precision_is_summed_in_float32(dtype):
    loss = jax.jit(dice)
    labels = (np.arange(512 * 512) % 2).reshape(1, 512, 512)
    assert float(loss(np.zeros((1, 512, 512, 2), dtype), labels).mean) == pytest.approx(0.5)
    logits, labels = random_case(7)
    half = loss(logits.astype(dtype), labels)
    assert float(half.mean) == pytest.approx(float(loss(logits, labels).mean), abs=1e-3)


def test_focal_of_what_is_certain():
    zero = jnp.array([0])

    def value_and_gradient(logits, gamma):
        objective = jax.value_and_grad(lambda x: focal(x, zero, gamma=gamma).total)
        return jax.jit(objective)(jnp.array([logits]))

    value, gradient = value_and_gradient([0.0, 200.0], 2.0)
    assert float(value) == 200
    np.testing.assert_allclose(gradient, [[-1, 1]], atol=1e-6)
    for logits in ([40.0, 0.0], [200.0, 0.0], [1e4, -1e4]):
        for gamma in (0.01, 0.5, 1.0, 3.0):
            value, gradient = value_and_gradient(logits, gamma)
            assert np.isfinite(gradient).all()
            assert 0 <= float(value) < 1e-6
    logits, labels = random_case(8)
    assert float(focal(logits, labels, gamma=0.0).total) == float(
        cross_entropy(logits, labels).total
    )


@pytest.mark.parametrize(("least", "total", "kept"), [(1, 3.5066, 2), (3, 3.7297, 3)])
def test_the_hard_pixels_are_kept(least, total, kept):
    p = jnp.array([[[0.9, 0.8], [0.3, 0.1]]])
    logits = jnp.log(jnp.stack([p, 1 - p], axis=-1))
    hard_pixels = jax.jit(functools.partial(ohem, threshold=0.7, least=least))
    loss = hard_pixels(logits, jnp.zeros((1, 2, 2), int))
    assert total_and_mean(loss) == pytest.approx((total, total / kept), abs=1e-4)


def test_fewer_valid_pixels_than_are_to_be_kept():
    logits, labels = random_case(9)
    labels[0].flat[3:] = VOID
    labels[0].flat[:3] = 1, 0, 2
    loss = ohem(logits[:1], labels[:1], threshold=0.5, least=50)
    assert total_and_mean(loss) == pytest.approx(
        total_and_mean(cross_entropy(logits[:1], labels[:1]))
    )


def test_the_mean_of_a_sum_is_the_sum_of_the_means():
    logits, labels = random_case(10)
    loss = make_loss("2*cross_entropy+0.25*dice+ohem", class_weights=WEIGHTS, least=20)
    parts = (
        (2, cross_entropy(logits, labels, class_weights=WEIGHTS)),
        (0.25, dice(logits, labels)),
        (1, ohem(logits, labels, least=20, class_weights=WEIGHTS)),
    )
    found = loss(logits, labels)
    assert float(found.total) == pytest.approx(sum(f * float(p.total) for f, p in parts))
    assert float(found.mean) == pytest.approx(sum(f * float(p.mean) for f, p in parts))


# ======================================================================== by name


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("dise", "no loss 'dise'; there are cross_entropy, focal, ohem, dice, tversky"),
        ("cross_entropy+", "no loss ''"),
        ("x*dice", "factor 'x' of dice"),
        ("-1*dice", "factor '-1' of dice"),
        ("nan*dice", "factor 'nan' of dice"),
    ],
)
def test_a_loss_that_is_not_there(text, message):
    with pytest.raises(ValueError, match=r"loss|factor") as caught:
        read_loss(text)
    assert message in str(caught.value)


def test_class_weights_must_be_as_many_as_the_classes():
    logits, labels = random_case()
    with pytest.raises(ValueError, match="3 class weights, but 7 classes"):
        make_loss("focal", class_weights=(1.0, 2.0, 3.0))(logits, labels)


def test_balanced_weights():
    """Beside scikit-learn, and the definition of median frequency over label maps."""
    learn = pytest.importorskip("sklearn.utils.class_weight")
    rng = np.random.default_rng(0)
    maps = [
        rng.choice([0, 1, 4, VOID], (5, 7), p=p) for p in ((0.5, 0.5, 0, 0), (0.6, 0, 0.1, 0.3))
    ]
    pixels = np.stack([np.bincount(m[m != VOID], minlength=6) for m in maps])
    every = np.concatenate([m[m != VOID] for m in maps])
    there = np.unique(every)
    inverse = balanced_weights("inverse", pixels)
    truth = learn.compute_class_weight("balanced", classes=there, y=every)
    np.testing.assert_allclose(np.array(inverse)[there], truth)
    assert np.mean(np.array(inverse)[every]) == pytest.approx(1)

    frequency = {
        k: sum((m == k).sum() for m in maps) / sum((m != VOID).sum() for m in maps if k in m)
        for k in there
    }
    median = np.median([*frequency.values()])
    weights = balanced_weights("median", pixels)
    assert [weights[k] for k in there] == pytest.approx([median / frequency[k] for k in there])
    for found in (inverse, weights):
        assert [found[k] for k in (2, 3, 5)] == [0, 0, 0]
    with pytest.raises(ValueError, match="no image has a label other than void"):
        balanced_weights("median", 0 * pixels)
    with pytest.raises(ValueError, match="'mode'; there are inverse and median"):
        balanced_weights("mode", pixels)


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
