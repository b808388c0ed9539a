"""What a network computes in, on which device, and what its gradient keeps in memory."""

from __future__ import annotations

import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy_backbones
from random_parameters import random_parameters

import fcn_jax
from fcn_jax.models.backbones import Conv
from fcn_jax.models.fcn import abstract_params

IMAGES = np.random.default_rng(0).normal(0, 64, (2, 33, 47, 3)).astype(np.float32)


def build(precision: str = "float32", **options) -> fcn_jax.FCN:
    small = {"num_classes": 4, "width": 1 / 16, "fc_width": 8, "backbone": toy_backbones.plain}
    return fcn_jax.create_model("fcn8s", precision=precision, **{**small, **options})


@pytest.mark.parametrize(("precision", "error"), [("tf32", 1e-6), ("bfloat16", 0.05)])
def test_logits_and_gradients_are_near_those_of_float32(precision, error):
    params = random_parameters(build(), 0)

    def mean_square(params, model):
        logits = model.apply({"params": params}, IMAGES)
        return jnp.mean(jnp.square(logits)), logits

    run = jax.jit(jax.grad(mean_square, has_aux=True), static_argnums=1)
    truth, got = run(params, build()), run(params, build(precision))
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(truth), strict=True):
        assert a.dtype == jnp.float32
        assert np.linalg.norm(a - b) <= error * np.linalg.norm(b)
    if precision == "bfloat16":
        assert np.abs(got[1] - truth[1]).max() > 1e-5 * np.abs(truth[1]).max()


@pytest.mark.parametrize(
    ("precision", "factors", "rounding"),
    [("float32", "f32", "HIGHEST"), ("tf32", "f32", "HIGH"), ("bfloat16", "bf16", "DEFAULT")],
)
def test_what_a_gpu_is_asked_for(precision, factors, rounding):
    model = build(precision)
    params = {"params": abstract_params(model)}
    traced = jax.jit(model.apply).trace(params, IMAGES)
    text = traced.lower(lowering_platforms=("cuda",)).as_text()
    convolutions = re.findall(r"stablehlo\.convolution.*x(\w+)>\) ->", text)
    backbone = [layer for layer in model.backbone.layers if isinstance(layer, Conv)]
    assert convolutions.count(factors) >= len(backbone)
    products = re.findall(r"stablehlo<precision (\w+)>", text)
    products += re.findall(r"precision = \[(\w+), ", text)
    assert set(products) == {rounding}


def test_maps_of_bfloat16():
    model = build("bfloat16")
    params = {"params": abstract_params(model)}
    run = jax.eval_shape(lambda p: model.apply(p, IMAGES, return_maps=True), params)
    logits, maps = run
    assert logits.dtype == jnp.float32
    for name, value in maps.items():
        decoded = name.startswith(("score", "up", "fuse"))
        assert value.dtype == (jnp.float32 if decoded else jnp.bfloat16), name


def test_predictions_with_weights_rounded_once():
    model = build("bfloat16")
    params = random_parameters(model, 0)
    predictor = fcn_jax.Predictor(model, {"params": params})
    rounded = predictor.on_device["params"]
    assert {layer for layer in rounded if rounded[layer]["kernel"].dtype == jnp.bfloat16} == {
        layer.name for layer in model.backbone.layers if isinstance(layer, Conv)
    }
    logits = jax.jit(model.apply)({"params": params}, IMAGES)
    again = jax.jit(model.apply)(predictor.on_device, IMAGES)
    np.testing.assert_array_equal(again, logits)
    assert np.abs(logits).max() > 0


@pytest.mark.usefixtures("unchecked_annotations")
def test_an_unknown_precision():
    with pytest.raises(ValueError, match=r"precision 'float16'.*tf32"):
        build("float16")


@pytest.mark.parametrize("padding", ["same", "reference"])
def test_rematerialisation_keeps_less_for_the_same_gradient(padding):
    models = [
        build(backbone="vgg11", padding=padding, remat=remat, width=1 / 32)
        for remat in (False, True)
    ]
    params = random_parameters(models[0], 0)

    def loss(params, model):
        logits = model.apply(
            {"params": params}, IMAGES, train=True, rngs={"dropout": jax.random.key(1)}
        )
        return jnp.sum(jnp.square(logits))

    def kept(model):
        pull = jax.eval_shape(lambda p: jax.vjp(lambda p: loss(p, model), p)[1], params)
        return sum(4 * math.prod(leaf.shape) for leaf in jax.tree.leaves(pull))

    weights = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
    assert kept(models[1]) - weights < 0.6 * (kept(models[0]) - weights)
    if padding == "same":
        gradient = jax.jit(jax.grad(loss), static_argnums=1)
        plain, again = (jax.tree.leaves(gradient(params, model)) for model in models)
        for got, expected in zip(again, plain, strict=True):
            np.testing.assert_allclose(got, expected, atol=1e-6 * np.abs(expected).max())
