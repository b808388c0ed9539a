"""The train step: one batch in, new state and a report out, compiled for a device mesh."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Float, Integer

from fcn_jax import ops
from fcn_jax.devices import (
    automatic,
    batch_axis,
    batch_sharding,
    replicated,
    state_shardings,
)
from fcn_jax.models.fcn import FCN, abstract_params
from fcn_jax.models.inputs import Inputs
from fcn_jax.models.losses import Loss, PixelLoss, cross_entropy, sample_cells
from fcn_jax.programs import compiling_for, least_memory

Params: TypeAlias = dict[str, Any]
"""``{layer: {"kernel": …, "bias": …}}``"""

Batch: TypeAlias = Mapping[str, Array]
"""The arrays of a batch: the modalities that are read (``image`` uint8 (b, h, w, 3)), a label map
uint8 (b, h, w) with void 255 by the name of each head (``label`` where there is one), and
``valid_size`` int32 (b, 2) where images may be smaller than their canvas."""


class TrainState(NamedTuple):
    """All that changes from step to step.

    Attributes:
        step: Counts the minibatches of this stage.
        params: What is trained.
        opt_state: The optimiser's.
        average: Of the parameters, an exponential moving average; empty where there is none.
    """

    step: Integer[Array, ""]
    params: Params
    opt_state: Any
    average: Params

    @property
    def used(self) -> Params:
        """The parameters that are scored: averaged ones where there are such."""
        return self.average or self.params


class StepReport(NamedTuple):
    """What a step reports; it stays on the device until somebody asks.

    Attributes:
        loss: `PixelLoss.mean`: by default the cross-entropy per valid pixel, in nats; NaN if a
            label was invalid. With several heads the sum of theirs, each times its weight.
        head_losses: The same for each head, unweighted.
        valid, invalid: Pixels over all heads; of invalid ones the label is no class and not void.
        gradient_norm: Of all parameters together.
    """

    loss: Float[Array, ""]
    head_losses: dict[str, Float[Array, ""]]
    valid: Integer[Array, ""]
    invalid: Integer[Array, ""]
    gradient_norm: Float[Array, ""]


Losses: TypeAlias = dict[str, PixelLoss]  # of each head
Objective: TypeAlias = Callable[[Params, Batch, Array], tuple[Array, Losses]]
TrainStep: TypeAlias = Callable[[TrainState, Batch], tuple[TrainState, StepReport]]


# ======================================================================== what is minimised


def make_objective(
    model: FCN,
    inputs: Inputs,
    mesh: Mesh,
    *,
    loss: Loss | Mapping[str, Loss] = cross_entropy,
    normalize_loss: bool = False,
    cell_fraction: float = 1.0,
    loss_weights: Mapping[str, float] | None = None,
) -> Objective:
    """The loss of a network, summed over its heads.

    Args:
        inputs: How the network sees a batch; applied on the devices.
        mesh: Devices, from `fcn_jax.devices.data_mesh` or `jax.make_mesh`; batches are split over
            the axis ``data``, or else the first (`fcn_jax.devices.batch_axis`).
        loss: What is computed of the logits and labels of a head; of all heads, or by head.
        normalize_loss: Minimise the loss's mean, not its total (the paper sums over pixels).
        cell_fraction: Part of the final-layer cells that are trained on (paper, figure 5).
        loss_weights: Factor on the loss of each head; 1 where none is given.

    Returns:
        ``objective(params, batch, key)``, a pure function for `jax.jit`: what is minimised, and
        the loss of each head. Dropout and the sampling of cells draw from the key.
    """
    mesh, split = automatic(mesh), batch_axis(mesh)
    heads = [head for head, _ in model.heads]
    loss_of = loss if isinstance(loss, Mapping) else dict.fromkeys(heads, loss)
    cells = model.alignment.geometry["score_fr"]

    def losses_of(params: Params, batch: Batch, key: Array) -> Losses:
        dropout_key, cell_key = jax.random.split(key)
        valid_size = batch.get("valid_size")
        logits: Any = model.apply(
            {"params": params},
            inputs.apply(batch),
            valid_size=valid_size,
            train=True,
            rngs={"dropout": dropout_key},
        )
        logits = logits if len(heads) > 1 else {heads[0]: logits}
        labels = {head: batch[head] for head in heads}
        if cell_fraction < 1:
            for head, label in labels.items():
                labels[head] = sample_cells(cell_key, label, cell_fraction, cells)
        return {head: loss_of[head](logits[head], labels[head]) for head in heads}

    def losses_of_group(params: Params, batch: Batch, key: Array) -> Losses:
        key = jax.random.fold_in(key, jax.lax.axis_index(split))
        return jax.lax.psum(losses_of(params, batch, key), split)

    compute = losses_of
    if mesh.shape[split] > 1 and mesh.shape.get("height", 1) > 1:
        # Left to itself, XLA's partitioner adds the gradient of a convolution's kernel twice where
        # a map is split along one axis of the mesh and not along the other (as of jaxlib 0.10.2).
        # So each group of devices that share images works on those alone, with one axis.
        compute = jax.shard_map(
            losses_of_group,
            mesh=mesh,
            in_specs=(PartitionSpec(), PartitionSpec(split), PartitionSpec()),
            out_specs=PartitionSpec(),
            axis_names={split},
            check_vma=False,  # loops of the operations begin with constants
        )

    def objective(params: Params, batch: Batch, key: Array) -> tuple[Array, Losses]:
        batch = {
            name: jax.lax.with_sharding_constraint(array, batch_sharding(mesh, array.ndim))
            for name, array in batch.items()
        }
        losses = compute(params, batch, key)
        minimised = {
            head: loss.mean if normalize_loss else loss.total for head, loss in losses.items()
        }
        return _weighted_sum(minimised, loss_weights), losses

    return objective


def _weighted_sum(values: Mapping[str, Array], weights: Mapping[str, float] | None) -> Array:
    weighted = [(weights or {}).get(head, 1.0) * value for head, value in values.items()]
    return jnp.stack(weighted).sum()


# ======================================================================== the step


def make_train_step(
    model: FCN,
    optimizer: optax.GradientTransformation,
    inputs: Inputs,
    mesh: Mesh,
    *,
    key: Array,
    loss_weights: Mapping[str, float] | None = None,
    ema: float = 0.0,
    accumulate: int = 1,
    shard_parameters: bool = False,
    **options: Any,
) -> TrainStep:
    """Compiles a step of the optimiser on the objective, which takes the ``options``.

    The state is donated: use the returned one. Batches are those of `fcn_jax.devices.put_batch`.
    What is random draws from ``key`` folded with the step, so that a resumed run repeats it.

    Args:
        ema: Decay of averaged parameters; 0: none. After update n (from 1) the average is
            d average + (1 - d) params with d = min(ema, n / (n + 9)), as TensorFlow's, so that the
            first parameters are soon forgotten.
        accumulate: The steps in an update of the optimiser.
        shard_parameters: The state is in parts (`fcn_jax.devices.state_shardings`). A step puts
            the parameters together, and each device updates its part with that of the gradient.
    """
    whole = replicated(mesh)
    objective = make_objective(model, inputs, mesh, loss_weights=loss_weights, **options)
    gradient_of = jax.grad(objective, has_aux=True)
    optimizer = optax.with_extra_args_support(optimizer)

    def averaged(state: TrainState, params: Params) -> Params:
        update = (state.step + 1) // accumulate
        moved = (state.step + 1) % accumulate == 0
        part = jnp.where(moved, 1 - jnp.minimum(ema, update / (update + 9)), 0.0)
        # In this form what does not change, as frozen layers, keeps every bit.
        return jax.tree.map(lambda old, new: old + part * (new - old), state.average, params)

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, StepReport]:
        automatic(mesh)  # refuses the mesh around this call
        params: Any = state.params
        if shard_parameters:
            params = jax.lax.with_sharding_constraint(params, whole)
        with compiling_for(platform):
            gradient, losses = gradient_of(params, batch, jax.random.fold_in(key, state.step))
        if shard_parameters:
            gradient = jax.lax.with_sharding_constraint(gradient, where.params)
        means = {head: loss.mean for head, loss in losses.items()}
        mean = _weighted_sum(means, loss_weights)
        updates, opt_state = optimizer.update(gradient, state.opt_state, state.params, value=mean)
        params = optax.apply_updates(state.params, updates)
        report = StepReport(
            loss=mean,
            head_losses=means,
            valid=jnp.stack([loss.valid for loss in losses.values()]).sum(),
            invalid=jnp.stack([loss.invalid for loss in losses.values()]).sum(),
            gradient_norm=jnp.sqrt(sum(jnp.sum(jnp.square(g)) for g in jax.tree.leaves(gradient))),
        )
        average = averaged(state, params) if ema else state.average
        return TrainState(state.step + 1, params, opt_state, average), report

    state = jax.eval_shape(lambda p: init_state(p, optimizer, ema=ema), abstract_params(model))
    where = state_shardings(state, mesh, split=shard_parameters)
    formats = ops.kernel_formats(state, where)
    platform = mesh.devices.flat[0].platform
    return jax.jit(
        step,
        donate_argnums=0,
        in_shardings=(formats, None),
        out_shardings=(formats, whole),
        compiler_options=least_memory(platform),
    )


# ======================================================================== the state


def init_state(
    params: Params, optimizer: optax.GradientTransformation, *, ema: float = 0.0
) -> TrainState:
    """The state before the first step; an average, which ``ema`` asks for, begins with it."""
    average = params if ema else {}
    return TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params), average)


def create_state(
    params: Params,
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
    *,
    ema: float = 0.0,
    shard_parameters: bool = False,
) -> TrainState:
    """The state before the first step, on the devices as the train step takes it."""
    # A copy: the step donates its state, and the caller may still hold the parameters.
    state = jax.tree.map(jnp.copy, init_state(params, optimizer, ema=ema))
    return put_state(state, mesh, shard_parameters=shard_parameters)


def put_state(state: TrainState, mesh: Mesh, *, shard_parameters: bool = False) -> TrainState:
    """A state on the devices, as the train step takes it."""
    where = state_shardings(state, mesh, split=shard_parameters)
    return jax.device_put(state, ops.kernel_formats(state, where))


@jax.jit
def all_finite(tree: Any) -> Array:
    """Whether every number of a tree is finite."""
    return jnp.stack([jnp.isfinite(x).all() for x in jax.tree.leaves(tree)]).all()
