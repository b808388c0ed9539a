"""A training loop and a loss of your own: pixels at the borders of objects count five times.

python examples/own_loop.py
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax

import fcn_jax
from fcn_jax import data


def border_loss(logits, labels):
    """The mean cross-entropy of pixels (b, h, w), in which those at a border weigh five times."""
    valid = labels != fcn_jax.VOID
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, jnp.where(valid, labels, 0))
    right = jnp.pad(labels[:, :, 1:] != labels[:, :, :-1], ((0, 0), (0, 0), (0, 1)))
    below = jnp.pad(labels[:, 1:] != labels[:, :-1], ((0, 0), (0, 1), (0, 0)))
    weights = valid * jnp.where(right | below, 5.0, 1.0)
    return (losses * weights).sum() / weights.sum()


def main(steps=300, width=0.25, folder="data"):
    """Trains on pictures that the package draws, and returns the mean IU of others."""
    options = {"data_dir": folder, "train": 200, "val": 20}
    train, val = (data.open_source("shapes", split, **options) for split in ("train", "val"))
    model = fcn_jax.create_model(
        "fcn8s",
        num_classes=train.classes.num_classes,
        width=width,
        fc_width=128,
        learned_upsampling="all",  # with others, give the optimiser model.frozen_layers
    )
    inputs = fcn_jax.Inputs.of(fcn_jax.Preprocessing())  # how pixels reach the network
    optimizer = optax.adam(1e-3)

    @jax.jit
    def step(params, state, images, labels, key):
        def loss_of(params):
            pixels = inputs.apply({"image": images})
            rngs = {"dropout": key}
            logits = model.apply({"params": params}, pixels, train=True, rngs=rngs)
            return border_loss(logits, labels)

        loss, gradient = jax.value_and_grad(loss_of)(params)
        updates, state = optimizer.update(gradient, state, params)
        return optax.apply_updates(params, updates), state, loss

    params = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 96, 96, 3)))["params"]
    state = optimizer.init(params)
    rng = np.random.default_rng(0)
    for number in range(1, steps + 1):
        chosen = [train[int(i)] for i in rng.choice(len(train), 8, replace=False)]
        images, labels = (np.stack([e[name] for e in chosen]) for name in ("image", "label"))
        params, state, loss = step(params, state, images, labels, jax.random.key(number))
        if number == 1 or number % 50 == 0:
            print(f"step {number}  loss {loss:.4f}")

    predictor = fcn_jax.Predictor(model, params, inputs, heads={"label": val.classes})
    counts = fcn_jax.evaluate(predictor, val)["label"]
    mean_iu = fcn_jax.compute_metrics(counts, val.classes.scored).mean_iu
    print(f"mean IU {mean_iu:.4f}")
    # The file tells which images it was trained on, so that no run scores on them.
    fcn_jax.save_weights("own_loop.safetensors", params, inputs=inputs, trained_on=train.digests)
    return mean_iu


if __name__ == "__main__":
    main()
