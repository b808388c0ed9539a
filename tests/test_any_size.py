"""Images of different sizes on one canvas: each gets what it would get alone."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy_backbones
from random_parameters import random_parameters

import fcn_jax

CANVAS = (64, 96)
FORKED, PLAIN, RESIDUAL = toy_backbones.forked, toy_backbones.plain, toy_backbones.residual
MODELS = {
    "vgg-same": {"name": "fcn8s", "backbone": "vgg11", "padding": "same"},
    "vgg-reference": {"name": "fcn8s", "backbone": "vgg11", "padding": "reference"},
    "alexnet-reference": {"name": "fcn32s", "backbone": "alexnet", "padding": "reference"},
    "forked": {"name": "fcn16s", "backbone": FORKED},
    "residual": {"name": "fcn16s", "backbone": RESIDUAL},
    "residual-reference": {"name": "fcn32s", "backbone": RESIDUAL, "padding": "reference"},
    "interpolated": {"name": "fcn_interpolated", "backbone": RESIDUAL},
    "two heads": {"name": "fcn16s", "backbone": PLAIN, "num_classes": {"sem": 3, "geo": 2}},
    "two inputs": {"name": "fcn16s", "backbone": PLAIN, "inputs": {"color": 3, "hha": 2}},
}
SLOW = {
    "vgg-32s": {"name": "fcn32s", "backbone": "vgg11", "padding": "reference"},
    "alexnet-same": {"name": "fcn8s", "backbone": "alexnet", "padding": "same"},
    "googlenet-same": {"name": "fcn32s", "backbone": "googlenet", "padding": "same"},
    "resnet18-same": {"name": "fcn8s", "backbone": "resnet18"},
}


def build(fields: dict) -> fcn_jax.FCN:
    small = {"num_classes": 4, "width": 1 / 16, "fc_width": 8, "learned_upsampling": "all"}
    return fcn_jax.create_model(**{**small, **fields})


def random_images(model: fcn_jax.FCN, seed: int = 0):
    """Sizes, canvases that hold noise beyond the images too, and the images alone; by input."""
    rng = np.random.default_rng(seed)
    sizes = [(1, 1), *map(tuple, rng.integers(1, (CANVAS[0] + 1, CANVAS[1] + 1), (1, 2)).tolist())]
    canvases = {
        name: rng.normal(0, 64, (len(sizes), *CANVAS, channels)).astype(np.float32)
        for name, channels in model.inputs
    }
    alone = [
        {name: canvas[row : row + 1, :h, :w] for name, canvas in canvases.items()}
        for row, (h, w) in enumerate(sizes)
    ]
    return sizes, canvases, alone


def only(images: dict):
    return images if len(images) > 1 else next(iter(images.values()))


@pytest.mark.parametrize(
    "name", [*MODELS, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)]
)
def test_an_image_on_a_canvas_gets_its_own_logits(name):
    model = build((MODELS | SLOW)[name])
    params = {"params": random_parameters(model, 0)}
    # Other sizes for each network.
    sizes, canvases, alone = random_images(model, seed=list(MODELS | SLOW).index(name))
    together = jax.jit(model.apply)(params, only(canvases), valid_size=jnp.array(sizes))
    apply = jax.jit(model.apply)
    for row, (h, w) in enumerate(sizes):
        truth = apply(params, only(alone[row]))
        for got, expected in zip(jax.tree.leaves(together), jax.tree.leaves(truth), strict=True):
            scale = np.abs(expected).max()
            np.testing.assert_allclose(got[row, :h, :w], expected[0], atol=1e-5 * scale)
            assert not np.asarray(got[row, h:]).any()
            assert not np.asarray(got[row, :, w:]).any()


@pytest.mark.parametrize("padding", ["same", "reference"])
def test_gradients_are_those_of_the_images_alone(padding):
    model = build({"name": "fcn8s", "padding": padding, "backbone": PLAIN})
    params = random_parameters(model, 0)
    sizes, canvases, alone = random_images(model, seed=20)
    rng = np.random.default_rng(1)
    weights = rng.normal(size=(len(sizes), *CANVAS, 4)).astype(np.float32)

    def objective(params, images, weights, **options):
        return jnp.sum(weights * model.apply({"params": params}, images, **options))

    gradient = jax.jit(jax.grad(objective))
    together = gradient(params, only(canvases), weights, valid_size=jnp.array(sizes))
    parts = [
        gradient(params, only(images), weights[row : row + 1, :h, :w])
        for row, (images, (h, w)) in enumerate(zip(alone, sizes, strict=True))
    ]
    truth = jax.tree.map(lambda *leaves: np.sum(leaves, axis=0), *parts)
    for got, expected in zip(jax.tree.leaves(together), jax.tree.leaves(truth), strict=True):
        np.testing.assert_allclose(got, expected, atol=1e-5 * np.abs(expected).max())


def test_a_canvas_compiles_once_for_all_sizes():
    model = build({"name": "fcn8s", "backbone": PLAIN})
    params = {"params": random_parameters(model, 0)}
    apply = jax.jit(model.apply)
    for seed in range(6):
        sizes, canvases, _ = random_images(model, seed)
        apply(params, only(canvases), valid_size=jnp.array(sizes))
    assert apply._cache_size() == 1


def test_maps_are_those_of_the_image_alone():
    model = build({"name": "fcn8s", "padding": "reference", "backbone": PLAIN})
    params = {"params": random_parameters(model, 0)}
    sizes, canvases, alone = random_images(model, seed=21)
    run = functools.partial(model.apply, return_maps=True)
    _, together = jax.jit(run)(params, only(canvases), valid_size=jnp.array(sizes))
    _, truth = jax.jit(run)(params, only(alone[1]))
    for name, expected in truth.items():
        _, height, width, _ = expected.shape
        got = np.asarray(together[name][1])
        scale = np.abs(expected).max()
        np.testing.assert_allclose(
            got[:height, :width], expected[0], atol=1e-5 * scale, err_msg=name
        )
        assert not got[height:].any(), name
        assert not got[:, width:].any(), name


# ======================================================================== interpolation

resize = jax.jit(fcn_jax.ops.resize_bilinear_on_canvas, static_argnums=(3, 4))


@pytest.mark.parametrize("seed", range(2))
def test_images_on_a_canvas_are_resized_as_if_alone(seed):
    """Enlarged, reduced (antialiased), and left as they are, side by side in a batch."""
    rng = np.random.default_rng(seed)
    canvas, target_canvas = (31, 47), (61, 40)
    sizes = np.array([(31, 47), (1, 1), rng.integers(1, (32, 48)), (20, 30)])
    targets = np.array([(61, 40), (9, 1), rng.integers(1, (62, 41)), (20, 30)])
    x = rng.normal(size=(len(sizes), *canvas, 3)).astype(np.float32)
    together = resize(x, sizes, targets, *target_canvas)
    assert together.shape == (len(sizes), *target_canvas, 3)
    for row, ((h, w), (height, width)) in enumerate(zip(sizes, targets, strict=True)):
        alone = jax.image.resize(x[row, :h, :w], (int(height), int(width), 3), "bilinear")
        got = np.asarray(together[row])
        np.testing.assert_allclose(got[:height, :width], alone, atol=1e-5 * np.abs(x).max())
        assert not got[height:].any()
        assert not got[:, width:].any()


def test_weights_far_from_the_border_are_exact():
    """Where neighbours differ most; numpy's interpolation in float64 is the truth."""
    side, target = 700, 1001
    x = np.where(np.arange(side) % 2, 1.0, -1.0).astype(np.float32)
    sizes = np.array([[side, 1]]), np.array([[target, 1]])
    got = resize(x[None, :, None, None], *sizes, target, 1)[0, :, 0, 0]
    places = (np.arange(target) + 0.5) * side / target - 0.5
    np.testing.assert_allclose(got, np.interp(places, np.arange(side), x), atol=1e-6)
