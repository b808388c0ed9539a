"""The train step against the gradient by hand; test_parallel.py has it on four devices."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from random_parameters import random_parameters

import fcn_jax
from fcn_jax import VOID, Inputs, Preprocessing, devices
from fcn_jax.devices import data_mesh
from fcn_jax.geometry import Window
from fcn_jax.models.backbones import Backbone, Conv, Pool
from fcn_jax.training.optimizer import make_optimizer, make_schedule
from fcn_jax.training.step import (
    all_finite,
    create_state,
    make_train_step,
)

CLASSES = 4
INPUTS = Inputs.of(Preprocessing())


def small_backbone(padding, width, fc_width):
    """Two layers, which compile in no time; dropout on the last."""
    del padding, width
    return Backbone(
        (
            Conv("stem", 8, Window(3, pad=1)),
            Pool("pool", Window(2, stride=2, ceil=True)),
            Conv("top", fc_width, Window(3, pad=1), dropout=True),
        )
    )


def build(dropout: float = 0.0, num_classes=CLASSES, **options):
    """Random numbers take longest to compile: without dropout unless it is the point."""
    return fcn_jax.create_model(
        "fcn32s",
        backbone=small_backbone,
        num_classes=num_classes,
        fc_width=16,
        dropout=dropout,
        **options,
    )


def random_batch(seed: int = 0, size: int = 4) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    height, width = 11, 13
    labels = rng.integers(0, CLASSES, (size, height, width)).astype(np.uint8)
    labels[rng.random(labels.shape) < 0.2] = VOID
    sizes = np.array([[height - i % 3, width - i % 2] for i in range(size)], np.int32)
    for label, (h, w) in zip(labels, sizes, strict=True):
        label[h:], label[:, w:] = VOID, VOID
    images = rng.integers(0, 256, (size, height, width, 3), np.uint8)
    return {"image": images, "label": labels, "valid_size": sizes}


def sgd(rate: float = 1e-3, **options):
    return make_optimizer("sgd", make_schedule("constant", rate, 10), **options)


def start(model, optimizer, mesh, **options):
    """A compiled step and the state it begins with."""
    step = make_train_step(model, optimizer, INPUTS, mesh, key=jax.random.key(7), **options)
    return step, create_state(random_parameters(model, 0), optimizer, mesh)


def host(tree):
    return jax.tree.map(np.asarray, tree)


# ======================================================================== one step


@pytest.mark.parametrize("normalize", [False, True])
def test_gradient_by_hand(normalize):
    """Plain descent moves the parameters by minus the rate times the gradient."""
    model = build(learned_upsampling="all")
    rate = 1.0 if normalize else 1e-3
    optimizer = sgd(rate, momentum=0.0, bias_rate=1.0)
    step, state = start(model, optimizer, data_mesh(), normalize_loss=normalize)
    before, batch = host(state.params), random_batch()
    after, report = step(state, batch)

    bgr = batch["image"][..., ::-1].astype(np.float32) - np.float32(
        (104.00699, 116.66877, 122.67892)
    )
    counted = batch["label"] != VOID
    one_hot = np.eye(CLASSES, dtype=np.float32)[np.where(counted, batch["label"], 0)]
    one_hot *= counted[..., None]

    def objective(params):
        total = 0.0
        for image, hot, (h, w) in zip(bgr, one_hot, batch["valid_size"], strict=True):  # each alone
            logits = model.apply({"params": params}, jnp.asarray(image[None, :h, :w]))
            total -= jnp.sum(hot[None, :h, :w] * jax.nn.log_softmax(logits))
        return total / counted.sum() if normalize else total

    loss, gradient = jax.jit(jax.value_and_grad(objective))(before)
    moved = jax.tree.map(lambda a, b: (a - np.asarray(b)) / rate, before, after.params)
    for ours, expected in zip(jax.tree.leaves(moved), jax.tree.leaves(gradient), strict=True):
        # The second part is the rounding of parameters of order one.
        tolerance = 1e-5 * np.abs(expected).max() + 5e-7 / rate
        np.testing.assert_allclose(ours, expected, atol=tolerance)

    per_pixel = float(loss) / (1 if normalize else counted.sum())
    assert float(report.loss) == pytest.approx(per_pixel, rel=1e-5)
    assert int(report.valid) == counted.sum()
    assert int(report.invalid) == 0
    norm = np.sqrt(sum((np.asarray(g, np.float64) ** 2).sum() for g in jax.tree.leaves(gradient)))
    assert float(report.gradient_norm) == pytest.approx(norm, rel=1e-5)
    assert int(after.step) == 1


@pytest.mark.parametrize("normalize", [False, True])
def test_several_inputs_and_heads(normalize):
    """A loss for each head, each with its weight; the inputs see their own features."""
    color, hha = Preprocessing(), Preprocessing("rgb", (132.0, 94.0, 118.0))
    depth = Preprocessing("rgb", (7.8,), (1.0,), log=True)
    inputs = Inputs.of({"color": {"image": color, "depth": depth}, "hha": {"hha": hha}})
    model = build(num_classes={"sem": CLASSES, "geo": 2}, inputs=inputs.channels)
    rng = np.random.default_rng(5)
    batch = random_batch()
    shape = batch["label"].shape
    batch["sem"], batch["geo"] = (
        batch.pop("label"),
        rng.choice([0, 1, VOID], shape).astype(np.uint8),
    )
    batch["hha"] = rng.integers(0, 256, (*shape, 3), np.uint8)
    batch["depth"] = rng.integers(0, 9000, shape).astype(np.uint16)
    batch["valid_size"] = np.full_like(batch["valid_size"], shape[1:])
    weights = {"geo": 0.25}

    rate = 1.0 if normalize else 1e-3
    optimizer = sgd(rate, momentum=0.0, bias_rate=1.0)
    step = make_train_step(
        model,
        optimizer,
        inputs,
        data_mesh(),
        key=jax.random.key(0),
        normalize_loss=normalize,
        loss_weights=weights,
    )
    params = jax.tree.map(jnp.asarray, random_parameters(model, 0))
    after, report = step(create_state(params, optimizer, data_mesh()), batch)

    bgr = batch["image"][..., ::-1] - np.float32((104.00699, 116.66877, 122.67892))
    log_depth = np.log(np.maximum(batch["depth"], 1)).astype(np.float32) - np.float32(7.8)
    images = {
        "color": jnp.concatenate([bgr, log_depth[..., None]], axis=-1),
        "hha": jnp.asarray(batch["hha"] - np.float32((132, 94, 118))),
    }

    def head_loss(params, head):
        labels = batch[head]
        logits = model.apply({"params": params}, images)[head]
        counted = labels != VOID
        hot = np.eye(logits.shape[-1], dtype=np.float32)[np.where(counted, labels, 0)]
        hot *= counted[..., None]
        return -jnp.sum(hot * jax.nn.log_softmax(logits)), counted.sum()

    def objective(params):
        (sem, of_sem), (geo, of_geo) = head_loss(params, "sem"), head_loss(params, "geo")
        return sem / of_sem + 0.25 * geo / of_geo if normalize else sem + 0.25 * geo

    gradient = jax.jit(jax.grad(objective))(params)
    for ours, old, expected in zip(
        *map(jax.tree.leaves, (after.params, params, gradient)), strict=True
    ):
        tolerance = 1e-5 * np.abs(expected).max() + 5e-7 / rate
        np.testing.assert_allclose((old - np.asarray(ours)) / rate, expected, atol=tolerance)
    per_pixel = {head: float(np.divide(*head_loss(params, head))) for head in ("sem", "geo")}
    assert {k: float(v) for k, v in report.head_losses.items()} == pytest.approx(per_pixel, 1e-5)
    assert float(report.loss) == pytest.approx(per_pixel["sem"] + 0.25 * per_pixel["geo"], 1e-5)
    assert int(report.valid) == sum((batch[head] != VOID).sum() for head in ("sem", "geo"))


def test_what_lies_beyond_the_image_does_not_count():
    step, state = start(build(), sgd(), data_mesh())
    batch, again = random_batch(), random_batch()
    for image, (h, w) in zip(again["image"], again["valid_size"], strict=True):
        image[h:], image[:, w:] = 99, 17
    twin = jax.tree.map(jnp.copy, state)
    one, two = step(state, batch)[0], step(twin, again)[0]
    assert jax.tree.all(jax.tree.map(np.array_equal, host(one.params), host(two.params)))


def test_the_state_is_donated_but_not_the_parameters_it_was_made_from():
    model, optimizer, mesh = build(), sgd(), data_mesh()
    params = jax.device_put(random_parameters(model, 0))
    state = create_state(params, optimizer, mesh)
    make_train_step(model, optimizer, INPUTS, mesh, key=jax.random.key(0))(state, random_batch())
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state.params))
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(params))


@pytest.mark.parametrize("label", [CLASSES, 254])
def test_an_invalid_label_makes_the_loss_nan(label):
    step, state = start(build(), sgd(), data_mesh())
    batch = random_batch()
    batch["label"][1, 2, 3] = label
    _, report = step(state, batch)
    assert np.isnan(report.loss)
    assert int(report.invalid) == 1


def test_all_finite():
    assert all_finite({"a": jnp.ones(3), "b": {"c": jnp.zeros((2, 2))}})
    for bad in (jnp.nan, jnp.inf):
        assert not all_finite({"a": jnp.ones(3), "b": {"c": jnp.array([0.0, bad])}})


# ======================================================================== randomness


@pytest.mark.parametrize("options", [{}, {"cell_fraction": 0.5}], ids=["dropout", "cells"])
def test_randomness_is_a_function_of_the_step(options):
    """A resumed run repeats a step exactly; another step draws anew."""
    dropout = 0.0 if options else 0.5
    step, state = start(build(dropout=dropout), sgd(0.0), data_mesh(), **options)
    batch = random_batch()
    states = [state._replace(step=jnp.array(n, jnp.int32)) for n in (3, 3, 4)]
    states = [jax.tree.map(jnp.copy, s) for s in states]
    same, again, other = (step(s, batch)[1] for s in states)
    assert float(same.loss) == float(again.loss)
    assert float(same.loss) != float(other.loss)


def test_part_of_the_cells_is_trained_on():
    step, state = start(build(), sgd(), data_mesh(), cell_fraction=0.25)
    batch = random_batch(size=16)
    _, report = step(state, batch)
    # 16 images of about 40 cells each: the standard deviation is 0.017.
    assert int(report.valid) / (batch["label"] != VOID).sum() == pytest.approx(0.25, abs=0.08)


# ======================================================================== frozen layers


@pytest.mark.parametrize("freeze", [(), ("st*",)], ids=str)
def test_frozen_layers_keep_every_bit(freeze):
    model = build(learned_upsampling="none", freeze=freeze)
    assert model.frozen_layers == (*["stem"] * len(freeze), "upscore")
    step, state = start(model, sgd(1e-4, weight_decay=0.1, frozen=model.frozen_layers), data_mesh())
    before = host(state.params)
    for seed in range(3):
        state, _ = step(state, random_batch(seed))
    after = host(state.params)
    for layer, leaves in before.items():
        still = layer in model.frozen_layers
        for name, value in leaves.items():
            assert (after[layer][name].tobytes() == value.tobytes()) == still, layer


# ======================================================================== averaged parameters


@pytest.mark.parametrize("accumulate", [1, 2])
def test_the_average_by_its_recursion(accumulate):
    """From the first parameters, not from zero; once an update, of several minibatches, too."""
    model, mesh = build(freeze=("stem",)), data_mesh()
    optimizer = sgd(1e-4, frozen=model.frozen_layers, accumulate=accumulate)
    options = {"ema": 0.3, "accumulate": accumulate}
    step = make_train_step(model, optimizer, INPUTS, mesh, key=jax.random.key(7), **options)
    state = create_state(random_parameters(model, 0), optimizer, mesh, ema=0.3)
    first = host(state.params)
    expected = jax.tree.map(np.float64, first)
    for number in range(1, 7):
        state, _ = step(state, random_batch(number))
        if number % accumulate == 0:
            update = number // accumulate
            decay = min(0.3, update / (update + 9))
            expected = jax.tree.map(
                lambda old, new, decay=decay: decay * old + (1 - decay) * np.float64(new),
                expected,
                host(state.params),
            )
        jax.tree.map(
            lambda ours, truth: np.testing.assert_allclose(ours, truth, rtol=1e-5, atol=1e-7),
            host(state.average),
            expected,
        )
    assert state.used is state.average
    for name, kept in first["stem"].items():
        assert host(state.average["stem"][name]).tobytes() == kept.tobytes()
    raw, averaged = state.params["top"]["kernel"], state.average["top"]["kernel"]
    assert not np.array_equal(raw, averaged)


def test_without_an_average_there_is_none():
    step, state = start(build(), sgd(), data_mesh())
    state, _ = step(state, random_batch())
    assert state.average == {}
    assert state.used is state.params


# ======================================================================== meshes of one's own


def test_a_mesh_as_jax_makes_it():
    """With axes of the type Explicit and other names; four devices: tests/test_parallel.py."""
    mesh = jax.make_mesh((1, 1), ("batch", "model"), devices=jax.devices()[:1])
    whole = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    split = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("batch"))
    batch = random_batch()
    params = jax.device_put(random_parameters(build(), 0), whole)
    found = []
    for own, given in ((data_mesh(), batch), (mesh, batch), (mesh, jax.device_put(batch, split))):
        step, _ = start(build(), sgd(), own)
        state, report = step(create_state(params, sgd(), own), given)
        found.append((report.loss, state.params))
        assert devices.batch_part(own) == (0, 1)
    for loss, params in found[1:]:
        np.testing.assert_allclose(loss, found[0][0], rtol=1e-6)
        jax.tree.map(
            functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6), params, found[0][1]
        )
    with jax.set_mesh(mesh), pytest.raises(ValueError, match="set_mesh is in force with the axes"):
        step(state, batch)
    alone = jax.make_mesh((1,), ("height",), devices=jax.devices()[:1])
    with pytest.raises(ValueError, match="no axis but height"):
        start(build(), sgd(), alone)
