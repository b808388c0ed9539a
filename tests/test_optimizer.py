"""The optimisers beside PyTorch's, Caffe's update written out, and the schedules by formula."""

from __future__ import annotations

import math
from typing import Any

import jax
import numpy as np
import optax
import pytest

from fcn_jax.config import OPTIMIZERS, SCHEDULES
from fcn_jax.training.optimizer import (
    make_optimizer,
    make_schedule,
    on_plateau,
    plateau_factor,
    with_layer_rates,
)

SHAPES = {
    "conv1_1": {"kernel": (3, 3, 2, 4), "bias": (4,)},
    "score_fr": {"kernel": (1, 1, 4, 3), "bias": (3,)},
    "upscore": {"kernel": (4, 4, 3, 3)},
}
FROZEN = ("upscore",)
KERNELS = [("conv1_1", "kernel"), ("score_fr", "kernel")]
BIASES = [("conv1_1", "bias"), ("score_fr", "bias")]


def random_tree(seed: int):
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda shape: rng.normal(size=shape).astype(np.float32),
        SHAPES,
        is_leaf=lambda leaf: isinstance(leaf, tuple),
    )


def gradient(params, step: int):
    """Of a quadratic that differs from step to step, so that errors feed back."""
    noise = random_tree(100 + step)
    return jax.tree.map(lambda w, n: np.float32(0.3) * np.asarray(w) + n, params, noise)


def run(optimizer, params, steps: int, gradient=gradient):
    """The parameters after each step."""
    state = optimizer.init(params)
    update = jax.jit(optimizer.update)
    for step in range(steps):
        updates, state = update(gradient(params, step), state, params)
        params = optax.apply_updates(params, updates)
        yield params


def constant(rate: float):
    return make_schedule("constant", rate, 100)


def assert_trees_close(ours, truth, bound=1e-6):
    for layer, leaves in truth.items():
        for name, value in leaves.items():
            error = np.abs(np.asarray(ours[layer][name]) - value).max() / np.abs(value).max()
            assert error < bound, (layer, name, error)


# ======================================================================== beside PyTorch


def torch_optimizer(name: str, groups, rate: float):
    torch = pytest.importorskip("torch")
    build, options = {
        "sgd": (torch.optim.SGD, {"momentum": 0.9}),
        "adam": (torch.optim.Adam, {}),
        "adamw": (torch.optim.AdamW, {}),
        "rmsprop": (torch.optim.RMSprop, {"momentum": 0.9}),
    }[name]
    kernels, biases = groups
    return build(
        [
            {"params": kernels, "lr": rate, "weight_decay": 0.05},
            {"params": biases, "lr": 2 * rate, "weight_decay": 0.0},
        ],
        lr=rate,
        **options,
    )


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_ten_steps_beside_torch(name):
    torch = pytest.importorskip("torch")
    start = random_tree(0)
    rate = 0.01
    optimizer = make_optimizer(name, constant(rate), weight_decay=0.05, frozen=FROZEN)

    theirs = {
        path: torch.tensor(start[path[0]][path[1]], dtype=torch.float64, requires_grad=True)
        for path in KERNELS + BIASES
    }
    groups = [[theirs[path] for path in paths] for paths in (KERNELS, BIASES)]
    stepper = torch_optimizer(name, groups, rate)
    for step, ours in enumerate(run(optimizer, start, 10)):
        for (layer, leaf), tensor in theirs.items():
            noise = random_tree(100 + step)[layer][leaf].astype(np.float64)
            tensor.grad = 0.3 * tensor.detach() + torch.from_numpy(noise)
        stepper.step()
        truth = {}
        for (layer, leaf), tensor in theirs.items():
            truth.setdefault(layer, {})[leaf] = tensor.detach().numpy()
        assert_trees_close(ours, truth, bound=3e-6)
        np.testing.assert_array_equal(ours["upscore"]["kernel"], start["upscore"]["kernel"])


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_factors_on_the_rates_of_layers(name):
    """A layer learns as at a rate that is so many times as large."""
    start, factors = random_tree(3), {"conv1_1": 0.25, "score_fr": 3.0}
    options: dict[str, Any] = {"weight_decay": 0.05, "frozen": FROZEN}
    for layer, factor in factors.items():
        *_, alone = run(make_optimizer(name, constant(0.01 * factor), **options), start, 4)
        *_, ours = run(
            make_optimizer(name, constant(0.01), layer_rates=factors, **options), start, 4
        )
        assert_trees_close({layer: ours[layer]}, {layer: alone[layer]}, bound=1e-5)
        *_, ours = run(
            make_optimizer(name, constant(0.01), layer_rates={layer: 1e-9}, **options), start, 4
        )
        assert_trees_close({layer: ours[layer]}, {layer: start[layer]}, bound=1e-6)


def test_factors_that_are_set_later():
    """They are a part of the state, in whatever it is wrapped."""
    start, options = random_tree(3), {"accumulate": 2, "clip_norm": 0.5}
    optimizer = make_optimizer(
        "adam", constant(0.01), layer_rates={"conv1_1": 2.0, "score_fr": 1.0}, **options
    )
    state = with_layer_rates(optimizer.init(start), {"score_fr": 0.3})
    truth = make_optimizer(
        "adam", constant(0.01), layer_rates={"conv1_1": 2.0, "score_fr": 0.3}, **options
    )
    expected, params = truth.init(start), start
    for step in range(4):
        updates, state = optimizer.update(gradient(params, step), state, params)
        theirs, expected = truth.update(gradient(params, step), expected, params)
        jax.tree.map(np.testing.assert_array_equal, updates, theirs)
        params = optax.apply_updates(params, updates)
    assert np.abs(params["score_fr"]["kernel"] - start["score_fr"]["kernel"]).max() > 0


# ======================================================================== Caffe's SGD


@pytest.mark.parametrize("bias_rate", [2.0, 1.0])
def test_caffes_update_with_a_step_schedule(bias_rate):
    """v <- momentum v + rate (gradient + decay w); w <- w - v, the rate within v."""
    momentum, decay, base = 0.99, 0.0005, 0.02
    schedule = make_schedule("step", base, 12, step_size=4, gamma=0.1)
    optimizer = make_optimizer(
        "sgd",
        schedule,
        momentum=momentum,
        weight_decay=decay,
        bias_rate=bias_rate,
        frozen=FROZEN,
    )
    start = random_tree(1)
    truth = jax.tree.map(lambda w: w.astype(np.float64), start)
    velocity = jax.tree.map(np.zeros_like, truth)
    for step, ours in enumerate(run(optimizer, start, 12)):
        rate = base * 0.1 ** (step // 4)
        gradients = gradient(truth, step)
        for layer, leaf in KERNELS + BIASES:
            factor, shrink = (1.0, decay) if leaf == "kernel" else (bias_rate, 0.0)
            w, v = truth[layer][leaf], velocity[layer][leaf]
            v[...] = momentum * v + rate * factor * (gradients[layer][leaf] + shrink * w)
            truth[layer][leaf] = w - v
        assert_trees_close(ours, truth)


def test_frozen_layers_are_neither_updated_nor_decayed_and_need_no_state():
    optimizer = make_optimizer(
        "sgd", constant(1.0), weight_decay=0.5, frozen=("conv1_1", "upscore")
    )
    start = random_tree(2)
    *_, end = run(optimizer, start, 3)
    for layer in ("conv1_1", "upscore"):
        for leaf, value in start[layer].items():
            np.testing.assert_array_equal(end[layer][leaf], value)
    assert np.abs(end["score_fr"]["kernel"] - start["score_fr"]["kernel"]).min() > 0
    sizes = {leaf.size for leaf in jax.tree.leaves(optimizer.init(start))}
    assert {9 * 2 * 4, 16 * 9}.isdisjoint(sizes)


# ======================================================================== options


def test_accumulation_is_a_larger_batch():
    """Three minibatches make one update with the mean gradient, schedule included."""
    schedule = make_schedule("step", 0.05, 4, step_size=2, gamma=0.1)
    options = {"weight_decay": 0.05, "frozen": FROZEN, "clip_norm": 4.0}
    start = random_tree(3)

    def noise(params, step):
        del params
        return random_tree(100 + step)

    def mean_noise(params, step):
        del params
        batch = [random_tree(100 + 3 * step + i) for i in range(3)]
        return jax.tree.map(lambda *g: np.mean(g, axis=0), *batch)

    small = list(run(make_optimizer("sgd", schedule, accumulate=3, **options), start, 12, noise))
    large = list(run(make_optimizer("sgd", schedule, **options), start, 4, mean_noise))
    assert jax.tree.all(jax.tree.map(np.array_equal, small[1], start))  # nothing before the third
    for update in range(4):
        assert_trees_close(small[3 * update + 2], large[update])


@pytest.mark.parametrize("clip_norm", [0.5, 1e6])
def test_clipping_by_the_norm_of_what_is_trained(clip_norm):
    optimizer = make_optimizer(
        "sgd", constant(1.0), momentum=0.0, bias_rate=1.0, frozen=FROZEN, clip_norm=clip_norm
    )
    start = random_tree(4)

    def huge_where_frozen(params, step):
        gradients = gradient(params, step)
        return {**gradients, "upscore": {"kernel": 1e9 * gradients["upscore"]["kernel"]}}

    (end,) = run(optimizer, start, 1, huge_where_frozen)
    gradients = gradient(start, 0)
    trained = [gradients[layer][leaf].astype(np.float64) for layer, leaf in KERNELS + BIASES]
    norm = math.sqrt(sum((g**2).sum() for g in trained))
    for layer, leaf in KERNELS + BIASES:
        truth = start[layer][leaf] - gradients[layer][leaf] * min(1, clip_norm / norm)
        np.testing.assert_allclose(end[layer][leaf], truth, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(end["upscore"]["kernel"], start["upscore"]["kernel"])


# ======================================================================== schedules


@pytest.mark.parametrize(
    ("name", "options", "truth"),
    [
        ("constant", {}, lambda t: 0.2),
        ("step", {"step_size": 7, "gamma": 0.5}, lambda t: 0.2 * 0.5 ** (t // 7)),
        ("poly", {}, lambda t: 0.2 * (1 - t / 30) ** 0.9),
        ("cosine", {}, lambda t: 0.1 * (1 + math.cos(math.pi * t / 30))),
    ],
)
def test_schedules(name, options, truth):
    schedule = make_schedule(name, 0.2, 30, **options)
    rates = [float(schedule(t)) for t in range(31)]
    assert rates == pytest.approx([truth(t) for t in range(31)], rel=1e-5, abs=1e-7)


@pytest.mark.parametrize("name", SCHEDULES)
def test_warm_up_leads_into_every_schedule(name):
    schedule = make_schedule(name, 0.2, 40, warmup=10, step_size=7)
    after = make_schedule(name, 0.2, 30, step_size=7)
    rates = [float(schedule(t)) for t in range(40)]
    assert rates[0] == pytest.approx(0.2 / 11)
    np.testing.assert_allclose(np.diff(rates[:11]), (0.2 - 0.2 / 11) / 10, rtol=1e-4)
    assert rates[10:] == pytest.approx([float(after(t)) for t in range(30)], rel=1e-6)


# ======================================================================== errors


def test_errors_name_the_choices():
    with pytest.raises(ValueError, match="unknown schedule 'linear'; choose one of constant, step"):
        make_schedule("linear", 0.1, 10)
    with pytest.raises(ValueError, match="schedule_step"):
        make_schedule("step", 0.1, 10)
    with pytest.raises(ValueError, match="unknown optimizer 'lion'; choose one of sgd, adam"):
        make_optimizer("lion", constant(0.1))


@pytest.mark.parametrize("accumulate", [1, 2])
def test_the_plateau_beside_torch(accumulate):
    """Means of three losses; PyTorch drops after more bad ones than its patience, optax at it."""
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    losses = np.concatenate([np.linspace(3, 1, 12), rng.uniform(0.99, 1.5, 30)]).astype(np.float32)
    weight = torch.nn.Parameter(torch.zeros(1))
    theirs = torch.optim.lr_scheduler.ReduceLROnPlateau(
        torch.optim.SGD([weight], lr=1.0), factor=0.5, patience=1, threshold=1e-4
    )
    plain = make_optimizer("sgd", constant(0.1), momentum=0.0, accumulate=accumulate)
    optimizer = on_plateau(plain, 0.5, 2, 3)
    params = random_tree(0)
    state, update = optimizer.init(params), jax.jit(optimizer.update)
    alone, update_alone = plain.init(params), jax.jit(plain.update)
    factors = []
    for step, loss in enumerate(losses):
        if step % 3 == 2:
            theirs.step(losses[step - 2 : step + 1].mean(dtype=np.float64))
        updates, state = update(gradient(params, step), state, params, value=loss)
        expected, alone = update_alone(gradient(params, step), alone, params)
        factors.append(plateau_factor(state))
        assert factors[-1] == theirs.get_last_lr()[0]
        jax.tree.map(
            lambda a, b, f=factors[-1]: np.testing.assert_array_equal(a, np.float32(f) * b),
            updates,
            expected,
        )
    assert len(set(factors)) > 2
