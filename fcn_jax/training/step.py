"""The train step: one batch in, new state and its figures out, compiled for a device mesh."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Int

from fcn_jax.losses import cross_entropy, sample_cells
from fcn_jax.networks import FCN
from fcn_jax.preprocessing import Inputs, Preprocessing
from fcn_jax.training.optimizer import matches_any


@struct.dataclass
class TrainState:
    """All that changes from step to step.

    Attributes:
        step: Minibatches seen in this stage.
        params: The network's parameters.
        opt_state: The optimiser's state.
    """

    step: Int[Array, ""]
    params: Any
    opt_state: Any


@struct.dataclass
class StepFigures:
    """What a step reports; it stays on the device until somebody asks.

    Attributes:
        loss: Cross-entropy per valid pixel, in nats; NaN if a label was invalid. With several
            heads the sum of theirs, each times its weight.
        head_losses: The same for each head, unweighted.
        valid: Valid pixels, over all heads.
        invalid: Pixels whose label is neither a class nor void.
        gradient_norm: Global norm of the gradient.
    """

    loss: Float[Array, ""]
    head_losses: dict[str, Float[Array, ""]]
    valid: Int[Array, ""]
    invalid: Int[Array, ""]
    gradient_norm: Float[Array, ""]


TrainStep = Callable[[TrainState, dict[str, Array]], tuple[TrainState, StepFigures]]


def data_mesh() -> Mesh:
    """All devices of all processes along one axis, ``data``."""
    return jax.make_mesh((jax.device_count(),), ("data",), axis_types=(jax.sharding.AxisType.Auto,))


def replicated(mesh: Mesh) -> NamedSharding:
    """The sharding of the state: a copy on every device."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The sharding of batches: the first axis over the devices."""
    return NamedSharding(mesh, PartitionSpec("data"))


def make_train_step(
    model: FCN,
    optimizer: optax.GradientTransformation,
    preprocessing: Preprocessing | Inputs,
    mesh: Mesh,
    *,
    key: Array,
    normalize_loss: bool = False,
    cell_fraction: float = 1.0,
    frozen: Sequence[str] = (),
    loss_weights: Mapping[str, float] | None = None,
) -> TrainStep:
    """Compiles a step of the optimiser on the pixelwise cross-entropy, summed over the heads.

    The state is donated: use the returned one. Dropout and patch sampling draw from ``key``
    folded with the step, so that a resumed run repeats them.

    Args:
        model: The network.
        optimizer: From `make_optimizer`.
        preprocessing: Applied to the batch's features on the device.
        mesh: Devices; a batch is split over its ``data`` axis, the gradient summed over it.
        key: Random key of the stage.
        normalize_loss: Divide the loss by the number of valid pixels (the paper sums).
        cell_fraction: Part of the final-layer cells that are trained on (paper, figure 5).
        frozen: Patterns of layer names whose gradient is not computed; give the optimiser the
            same ones.
        loss_weights: Factor on the loss of each head; 1 where none is given.

    Returns:
        ``step(state, batch)`` for batches of the features that are read (``image`` uint8
        (b, h, w, 3)), a label map uint8 (b, h, w) with void 255 by the name of each head
        (``label`` where there is one), and ``size`` int32 (b, 2) where images may be smaller than
        their canvas.
    """
    inputs = Inputs.of(preprocessing)
    cells = model.alignment.geometry["score_fr"]
    weights = {head: 1.0 for head, _ in model.heads} | dict(loss_weights or {})

    def weighted(values: dict[str, Array]) -> Array:
        return jnp.stack([weights[head] * value for head, value in values.items()]).sum()

    def step(state: TrainState, batch: dict[str, Array]) -> tuple[TrainState, StepFigures]:
        dropout_key, cell_key = jax.random.split(jax.random.fold_in(key, state.step))
        sizes = batch.get("size")
        images = inputs.apply(batch, sizes)
        labels = {head: batch[head] for head, _ in model.heads}
        if cell_fraction < 1:
            labels = {
                head: sample_cells(cell_key, values, cell_fraction, cells)
                for head, values in labels.items()
            }

        def objective(params: Any) -> tuple[Array, Any]:
            params = {
                layer: jax.lax.stop_gradient(arrays) if matches_any(layer, frozen) else arrays
                for layer, arrays in params.items()
            }
            logits: Any = model.apply(
                {"params": params}, images, sizes=sizes, train=True, rngs={"dropout": dropout_key}
            )
            logits = logits if len(labels) > 1 else dict.fromkeys(labels, logits)
            losses = {head: cross_entropy(logits[head], labels[head]) for head in labels}
            minimised = {
                head: loss.mean if normalize_loss else loss.total for head, loss in losses.items()
            }
            return weighted(minimised), losses

        gradient, losses = jax.grad(objective, has_aux=True)(state.params)
        updates, opt_state = optimizer.update(gradient, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        figures = StepFigures(
            loss=weighted({head: loss.mean for head, loss in losses.items()}),
            head_losses={head: loss.mean for head, loss in losses.items()},
            valid=jnp.stack([loss.valid for loss in losses.values()]).sum(),
            invalid=jnp.stack([loss.invalid for loss in losses.values()]).sum(),
            gradient_norm=jnp.sqrt(sum(jnp.sum(jnp.square(g)) for g in jax.tree.leaves(gradient))),
        )
        return TrainState(state.step + 1, params, opt_state), figures

    whole, split = replicated(mesh), batch_sharding(mesh)
    return jax.jit(
        step, donate_argnums=0, in_shardings=(whole, split), out_shardings=(whole, whole)
    )


def init_state(params: Any, optimizer: optax.GradientTransformation) -> TrainState:
    """The state before the first step."""
    return TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params))


def create_state(params: Any, optimizer: optax.GradientTransformation, mesh: Mesh) -> TrainState:
    """The state before the first step, copied to every device."""
    state = init_state(params, optimizer)
    # A copy: the step donates its state, and the caller may still hold the parameters.
    return jax.tree.map(jnp.copy, jax.device_put(state, replicated(mesh)))


@jax.jit
def all_finite(tree: Any) -> Array:
    """Whether every number of a tree is finite."""
    leaves = [jnp.isfinite(x).all() for x in jax.tree.leaves(tree)]
    return jnp.stack(leaves).all()
