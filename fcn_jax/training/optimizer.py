"""Optimisers and learning rate schedules, composed from optax by name."""

from __future__ import annotations

from collections.abc import Collection, Hashable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
import optax.contrib
from jaxtyping import Array, Float

from fcn_jax.config import OPTIMIZERS, SCHEDULES


def make_schedule(
    name: str,
    peak: float,
    steps: int,
    *,
    warmup: int = 0,
    step_size: int = 0,
    gamma: float = 0.1,
) -> optax.Schedule:
    """The learning rate at each of so many updates, the warm-up included.

    Args:
        name: ``constant``, and so is ``plateau`` but for `on_plateau`; ``step``: times ``gamma``
            every ``step_size`` updates; ``poly``: (1 - t / steps) ** 0.9; ``cosine``: half a cosine
            down to 0.
        peak: The rate after the warm-up, which begins with peak / (warmup + 1).

    Raises:
        ValueError: If the name is unknown, or ``step`` has no ``step_size``.
    """
    rest = max(1, steps - warmup)
    if name in ("constant", "plateau"):
        schedule = optax.constant_schedule(peak)
    elif name == "step":
        if step_size < 1:
            raise ValueError("the schedule 'step' needs schedule_step, the updates between drops")
        schedule = optax.exponential_decay(peak, step_size, gamma, staircase=True)
    elif name == "poly":
        schedule = optax.polynomial_schedule(peak, 0.0, 0.9, rest)
    elif name == "cosine":
        schedule = optax.cosine_decay_schedule(peak, rest)
    else:
        raise ValueError(f"unknown schedule {name!r}; choose one of {', '.join(SCHEDULES)}")
    if warmup:
        ramp = optax.linear_schedule(peak / (warmup + 1), peak, warmup)
        schedule = optax.join_schedules([ramp, schedule], [warmup])
    return schedule


def on_plateau(
    optimizer: optax.GradientTransformation, factor: float, patience: int, steps: int
) -> optax.GradientTransformation:
    """An optimiser whose updates shrink where the loss does not: `optax.contrib.reduce_on_plateau`.

    The loss that its update is given as ``value`` is averaged over so many steps. Where
    ``patience`` such means in turn are not below the smallest one by a ten thousandth of it, all
    further updates are multiplied by ``factor``. It needs no evaluation, and lives in the state.
    """
    reduce = optax.contrib.reduce_on_plateau(factor, patience, accumulation_size=steps)
    return optax.chain(optimizer, reduce)


def plateau_factor(opt_state: Any) -> float:
    """By what `on_plateau` multiplies updates, from its state."""
    return float(opt_state[-1].scale)


class LayerRates(NamedTuple):
    """The state of `scale_layers`: the factor of each layer that has one."""

    factors: dict[str, Float[Array, ""]]


def scale_layers(factors: Mapping[str, float]) -> optax.GradientTransformation:
    """Multiplies the updates of layers by factors, which are a part of its state."""

    def init(params: Any) -> LayerRates:
        return LayerRates({name: jnp.float32(factor) for name, factor in factors.items()})

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        del params
        scaled = {
            layer: {name: state.factors[layer] * array for name, array in arrays.items()}
            for layer, arrays in updates.items()
            if layer in state.factors
        }
        return {**updates, **scaled}, state

    return optax.GradientTransformation(init, update)


def with_layer_rates(opt_state: Any, factors: Mapping[str, float]) -> Any:
    """An optimiser's state with other factors of some of its layers."""
    former = optax.tree_utils.tree_get(opt_state, "factors")
    found = {name: jnp.float32(factor) for name, factor in factors.items()}
    return optax.tree_utils.tree_set(opt_state, factors={**former, **found})


def make_optimizer(
    name: str,
    schedule: optax.Schedule,
    *,
    momentum: float = 0.9,
    weight_decay: float = 0.0,
    bias_rate: float = 2.0,
    frozen: Collection[str] = (),
    layer_rates: Mapping[str, float] | None = None,
    clip_norm: float = 0.0,
    accumulate: int = 1,
) -> optax.GradientTransformation:
    """An optimiser with the reference's rules for biases and frozen layers.

    Biases learn at ``bias_rate`` times the rate and are not decayed; frozen layers are neither
    updated nor decayed and have no optimiser state. ``sgd`` is Caffe's: v <- momentum v +
    rate (gradient + decay w); w <- w - v. It differs from PyTorch's, which multiplies by the
    rate outside v, only where the rate changes.

    Args:
        name: ``sgd``, ``adam`` and ``rmsprop`` (decay added to the gradient), or ``adamw`` (decay
            apart from it).
        frozen: Names of layers (`fcn_jax.models.fcn.FCN.frozen_layers`).
        layer_rates: Factor on the rate of a layer, by its name (Caffe's lr_mult); 1 of others.
        clip_norm: Largest norm of the whole gradient; 0 is off.
        accumulate: Minibatches whose mean gradient makes one update (Caffe's iter_size).

    Raises:
        ValueError: If the name is unknown.
    """
    if name not in OPTIMIZERS:
        raise ValueError(f"unknown optimizer {name!r}; choose one of {', '.join(OPTIMIZERS)}")

    def rule(rate: float, decay: float) -> optax.GradientTransformation:
        coupled = optax.add_decayed_weights(decay if name != "adamw" else 0.0)
        decoupled = optax.add_decayed_weights(decay if name == "adamw" else 0.0)
        scale = optax.scale_by_schedule(lambda count: rate * schedule(count))
        if name == "sgd":
            parts = [coupled, scale, optax.trace(momentum)]
        elif name == "rmsprop":
            # PyTorch's defaults: decay 0.99, epsilon outside the root.
            normalise = optax.scale_by_rms(decay=0.99, eps=1e-8, eps_in_sqrt=False)
            parts = [coupled, normalise, optax.trace(momentum), scale]
        else:
            parts = [coupled, optax.scale_by_adam(), decoupled, scale]
        return optax.chain(*parts, optax.scale(-1.0))

    def rule_of_each_array(params: Any) -> dict[str, dict[str, str]]:
        return {
            layer: {array: "frozen" if layer in frozen else array for array in arrays}
            for layer, arrays in params.items()
        }

    rules: dict[Hashable, optax.GradientTransformation] = {
        "kernel": rule(1.0, weight_decay),
        "bias": rule(bias_rate, 0.0),
        "frozen": optax.set_to_zero(),
    }
    parts: list[Any] = [optax.partition(rules, rule_of_each_array)]
    if clip_norm:
        # The norm is that of what is trained.
        still = optax.masked(
            optax.set_to_zero(),
            lambda params: jax.tree.map(lambda name: name == "frozen", rule_of_each_array(params)),
        )
        parts = [still, optax.clip_by_global_norm(clip_norm), *parts]
    if layer_rates:
        # Every update is proportional to the rate, decay included.
        parts.append(scale_layers(layer_rates))
    optimizer = optax.chain(*parts)
    if accumulate > 1:
        return optax.MultiSteps(optimizer, accumulate).gradient_transformation()
    return optimizer
