"""Losses, gradients and training steps on four devices, for tests/test_parallel.py.

A program of its own, since the number of devices is fixed when jax starts:

    XLA_FLAGS=--xla_force_host_platform_device_count=4 python tests/four_devices.py FILE.npz QUICK
"""

from __future__ import annotations

import contextlib
import dataclasses
import sys

import jax
import numpy as np
import toy_backbones
from jax.sharding import AxisType, Mesh
from random_parameters import random_parameters

import fcn_jax
from fcn_jax import VOID, Preprocessing
from fcn_jax.devices import put_batch, replicated
from fcn_jax.models.inputs import Inputs
from fcn_jax.ops import convolutions, dispatch, pooling
from fcn_jax.training.optimizer import make_optimizer, make_schedule
from fcn_jax.training.step import TrainState, create_state, make_objective, make_train_step

MESHES = {"one": (1, 1), "data": (4, 1), "both": (2, 2), "height": (1, 4), "own": (2, 2)}
"""Devices along the axes data and height; of a mesh of one's own along batch and model."""


@dataclasses.dataclass(frozen=True)
class Case:
    """A network, and the images that it sees.

    Attributes:
        options: Of `fcn_jax.create_model`.
        canvas: Height and width. Heights are multiples of four devices, not of the strides.
        sized: Whether images are smaller than the canvas.
    """

    options: dict
    canvas: tuple[int, int]
    sized: bool

    @property
    def model(self):
        return fcn_jax.create_model(**{"dropout": 0.0, "learned_upsampling": "all", **self.options})

    def batch(self, seed: int = 0) -> dict[str, np.ndarray]:
        """Four images; the first has few valid pixels and the last none, so devices differ."""
        rng = np.random.default_rng(seed)
        height, width = self.canvas
        batch = {"image": rng.integers(0, 256, (4, height, width, 3), np.uint8)}
        for head, classes in self.model.heads:
            labels = rng.integers(0, classes, (4, height, width)).astype(np.uint8)
            labels[rng.random(labels.shape) < 0.3] = VOID
            labels[0, 5:], labels[3] = VOID, VOID
            batch[head] = labels
        if self.sized:
            lacking = rng.integers(0, (height // 2, width // 2), (4, 2))
            batch["valid_size"] = (np.array(self.canvas) - lacking).astype(np.int32)
        return batch


CASES = {
    # Wide enough for the fast forms of the CPU.
    "wide": Case(
        {"name": "fcn16s", "backbone": toy_backbones.plain, "width": 4, "fc_width": 32},
        (52, 39),
        True,
    ),
    "dropout": Case(
        {
            "name": "fcn32s",
            "backbone": toy_backbones.plain,
            "fc_width": 16,
            "dropout": 0.5,
            "learned_upsampling": "none",
        },
        (20, 13),
        True,
    ),
    "heads": Case(
        {
            "name": "fcn16s",
            "backbone": toy_backbones.forked,
            "padding": "reference",
            "fc_width": 8,
            "num_classes": {"sem": 4, "geo": 2},
        },
        (44, 31),
        True,
    ),
}


def make_mesh(name: str) -> Mesh:
    """The first devices, as `fcn_jax.devices.data_mesh` arranges all, or as jax does by default."""
    shape = MESHES[name]
    if name == "own":
        return jax.make_mesh(shape, ("batch", "model"))  # of the type Explicit
    devices = np.array(jax.devices()[: shape[0] * shape[1]]).reshape(shape)
    return Mesh(devices, ("data", "height"), axis_types=(AxisType.Auto,) * 2)


def loss_and_gradient(case: Case, mesh: Mesh) -> dict[str, np.ndarray]:
    """What `make_objective` gives, its gradient, and what that costs on each device."""
    model, batch = case.model, put_batch(case.batch(), mesh)
    assert len(batch["image"].sharding.device_set) == mesh.size
    objective = make_objective(model, Inputs.of(Preprocessing()), mesh, normalize_loss=True)
    whole = replicated(mesh)
    compute = jax.jit(
        jax.value_and_grad(objective, has_aux=True),
        in_shardings=(whole, None, whole),
        out_shardings=whole,
    )
    arguments = random_parameters(model, 0), batch, jax.random.key(0)
    compiled = compute.lower(*arguments).compile()
    (loss, heads), gradient = compiled(*jax.device_put(arguments, (whole, None, whole)))
    return {
        "flops": np.array(compiled.cost_analysis()["flops"]),
        "loss": np.asarray(loss),
        **{f"valid/{head}": np.asarray(values.valid) for head, values in heads.items()},
        **{
            f"gradient/{layer}/{name}": np.asarray(value)
            for layer, arrays in gradient.items()
            for name, value in arrays.items()
        },
    }


def logits(case: Case, mesh: Mesh) -> dict[str, np.ndarray]:
    """Inference on a batch whose rows are split, as research code does it."""
    model, batch = case.model, put_batch(case.batch(), mesh)
    images = Preprocessing().apply(batch["image"])
    params = jax.device_put(random_parameters(model, 0), replicated(mesh))
    found = jax.jit(model.apply)({"params": params}, images, valid_size=batch["valid_size"])
    assert found.sharding.device_set == set(mesh.devices.flat)
    return {"logits": np.asarray(found)}


def three_steps(case: Case, mesh: Mesh, shard_parameters: bool = False) -> dict[str, np.ndarray]:
    """Parameters and reports after three steps with dropout and sampled cells."""
    model = case.model
    optimizer = make_optimizer(
        "sgd",
        make_schedule("constant", 1e-4, 10),
        weight_decay=0.1,
        frozen=model.frozen_layers,
        clip_norm=100.0,
    )
    step = make_train_step(
        model,
        optimizer,
        Inputs.of(Preprocessing()),
        mesh,
        key=jax.random.key(7),
        cell_fraction=0.5,
        normalize_loss=True,
        ema=0.5,
        shard_parameters=shard_parameters,
    )
    params, results = random_parameters(model, 0), {}
    how = {"ema": 0.5, "shard_parameters": shard_parameters}
    state = create_state(params, optimizer, mesh, **how)
    for number in range(3):
        batch = put_batch(case.batch(seed=number), mesh)
        assert len(batch["image"].addressable_shards) == mesh.size
        state, report = step(state, batch)
        results |= {f"{number}/{k}": v for k, v in report._asdict().items() if k != "head_losses"}
    for layer, leaves in state.params.items():
        results |= {f"{layer}/{name}": value for name, value in leaves.items()}
        results |= {f"{layer}/average/{k}": value for k, value in state.average[layer].items()}
    if shard_parameters:
        assert_in_parts(state, mesh)
    return {name: np.asarray(value) for name, value in results.items()}


def three_steps_in_parts(case: Case, mesh: Mesh) -> dict[str, np.ndarray]:
    """The same where each device keeps a part of the state; of one device nothing is divided."""
    return three_steps(case, mesh, shard_parameters=mesh.size > 1)


def assert_in_parts(state: TrainState, mesh: Mesh) -> None:
    """Parameters, momentum and average have parts on the devices of the first axis."""
    parts = next(iter(mesh.shape.values()))
    held = [x.addressable_data(0).size for x in jax.tree.leaves(state)]
    whole = [x.size for x in jax.tree.leaves(state)]
    divided = [w for h, w in zip(held, whole, strict=True) if h * parts == w]
    assert sum(divided) > 0.9 * sum(whole)
    momentum = [x for x in jax.tree.leaves(state.opt_state) if x.ndim == 4]
    assert momentum
    assert all(x.addressable_data(0).size * parts == x.size for x in momentum)


@contextlib.contextmanager
def forms_of_other_backends():
    """What GPUs would compute, on the CPU."""
    modules, chosen = (convolutions, pooling), dispatch.by_platform
    for module in modules:
        module.by_platform = lambda plain, **fast: fast.get("cuda", plain)
    jax.clear_caches()
    yield
    for module in modules:
        module.by_platform = chosen
    jax.clear_caches()


QUICK = (
    (loss_and_gradient, "wide", ("one", "both")),
    (three_steps, "dropout", ("one", "data", "own")),
    (three_steps_in_parts, "dropout", ("one", "data")),
)
SLOW = (
    (loss_and_gradient, "wide", ("one", "height")),
    (logits, "wide", ("one", "height")),
    (three_steps_in_parts, "dropout", ("one", "own")),
    (loss_and_gradient, "heads", ("one", "data", "both", "height")),
)
"""What is computed, of which case, on which meshes; the first is what the others must equal. The
network of two heads is computed by the operations of other backends."""


def run(program: tuple) -> dict[str, np.ndarray]:
    """The results under FUNCTION/CASE/MESH/NAME."""
    return {
        f"{function.__name__}/{case}/{mesh}/{name}": value
        for function, case, meshes in program
        for mesh in meshes
        for name, value in function(CASES[case], make_mesh(mesh)).items()
    }


def main(path: str, which: str) -> None:
    """Runs a program, ``QUICK`` or ``SLOW``, and saves what it gives."""
    assert jax.device_count() == 4
    program = {"QUICK": QUICK, "SLOW": SLOW}[which]
    results = run(tuple(row for row in program if row[1] != "heads"))
    with forms_of_other_backends():
        results |= run(tuple(row for row in program if row[1] == "heads"))
    np.savez(path, **results)


if __name__ == "__main__":
    main(*sys.argv[1:])
