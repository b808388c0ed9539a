"""Training over several devices with a mesh of your own; here four of the CPU.

    XLA_FLAGS=--xla_force_host_platform_device_count=4 python examples/own_mesh.py

Batches are split over the first axis of the mesh, whatever its name; parameters are on every
device, and the compiler sums the gradient.
"""

import jax
import jax.numpy as jnp
import optax

import fcn_jax
from fcn_jax import data
from fcn_jax.data.loader import training_batches
from fcn_jax.data.transforms import Augmentation
from fcn_jax.training.step import create_state, make_train_step


def main(steps=100, width=0.25, folder="data"):
    """Trains, and returns the parameters, which are whole on every device."""
    mesh = jax.make_mesh((jax.device_count(),), ("batch",))
    source = data.open_source("shapes", "train", data_dir=folder, train=200, val=20)
    classes = source.classes.num_classes
    model = fcn_jax.create_model("fcn8s", num_classes=classes, width=width, fc_width=128)
    inputs = fcn_jax.Inputs.of(fcn_jax.Preprocessing())
    params = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 96, 96, 3)))["params"]
    optimizer = optax.masked(  # the last transposed convolution interpolates, and stays as it is
        optax.adam(1e-3), {name: name not in model.frozen_layers for name in params}
    )
    state = create_state(params, optimizer, mesh)
    key = jax.random.key(1)  # of dropout
    train_step = make_train_step(model, optimizer, inputs, mesh, key=key, normalize_loss=True)
    flips = Augmentation(flip=True)
    with training_batches(source, batch_size=8, seed=0, augmentation=flips, mesh=mesh) as batches:
        for number in range(1, steps + 1):
            batch, _ = next(batches)
            state, report = train_step(state, batch)
            if number == 1:
                parts = batch["image"].addressable_shards
                print(f"{len(parts)} devices, {len(parts[0].data)} images each")
            if number == 1 or number % 20 == 0:
                print(f"step {number}  loss {report.loss:.4f} per pixel")
    return state.params


if __name__ == "__main__":
    main()
