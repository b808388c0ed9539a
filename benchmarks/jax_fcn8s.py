"""Our side of the benchmarks: the public model, inference path and train step of fcn_jax."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from cases import (
    BIAS_RATE,
    CLASSES,
    DROPOUT,
    LEARNING_RATE,
    MOMENTUM,
    WEIGHT_DECAY,
    Case,
)

from fcn_jax import ops
from fcn_jax.devices import data_mesh, return_memory
from fcn_jax.inference.predictor import Predictor
from fcn_jax.models.fcn import FCN, abstract_params, create_model
from fcn_jax.models.inputs import CAFFE, Inputs
from fcn_jax.training.optimizer import make_optimizer, make_schedule
from fcn_jax.training.step import create_state, make_train_step


def build_model(case: Case, precision: Any = "float32") -> FCN:
    """The network of a case."""
    return create_model(
        "fcn8s",
        num_classes=CLASSES,
        padding=case.padding,  # pyright: ignore[reportArgumentType]
        width=case.width,
        fc_width=case.fc_width,
        dropout=DROPOUT,
        learned_upsampling="none",
        precision=precision,
    )


def published_optimizer(model: FCN) -> Any:
    """The optimiser of the published solver."""
    return make_optimizer(
        "sgd",
        make_schedule("constant", LEARNING_RATE, 10**6),
        momentum=MOMENTUM,
        weight_decay=WEIGHT_DECAY,
        bias_rate=BIAS_RATE,
        frozen=model.frozen_layers,
    )


def random_params(model: FCN) -> dict[str, dict[str, np.ndarray]]:
    """float32 values of every array, scaled as by He et al. 2015; none is zero."""
    rng = np.random.default_rng(0)

    def draw(path: Any, array: Any) -> np.ndarray:
        values = rng.standard_normal(array.shape, np.float32)
        if path[-1].key == "bias":
            return values  # of the size of the maps, or a little less
        values *= np.float32(math.sqrt(2 / math.prod(array.shape[:3])))
        return values

    return jax.tree_util.tree_map_with_path(draw, abstract_params(model))


class Inference:
    """Logits of a batch of uint8 images that lies on the device.

    Attributes:
        compiled: The compiled program.
    """

    def __init__(self, case: Case, precision: str, params: Any):
        model = build_model(case, precision)
        params = model.rounded(params)  # as a Predictor prepares them
        params = jax.device_put(params, ops.kernel_formats(params, None))
        self.arguments = ({"params": params}, jax.device_put(case.random_batch()["image"]))

        def logits(variables: Any, images: Any) -> Any:
            return model.apply(variables, CAFFE.apply(images))

        self.compiled = jax.jit(logits).lower(*self.arguments).compile()

    def run(self, passes: int) -> None:
        """So many passes, until the last is done."""
        logits = None
        for _ in range(passes):
            logits = self.compiled(*self.arguments)
        jax.block_until_ready(logits)

    def logits(self) -> np.ndarray:
        """float32 (b, h, w, classes)."""
        return np.asarray(self.compiled(*self.arguments))


class Prediction:
    """Label maps by the path for images of any size: uint8 images on the host in, labels there out.

    The images lie on a canvas that may be larger than they are.
    """

    def __init__(self, case: Case, precision: str, params: Any):
        variables = jax.device_put({"params": params})
        model = build_model(case, precision)
        self.predictor = Predictor(model, variables, batch_size=case.shape[0])
        self.images = list(case.random_batch()["image"])

    def run(self, passes: int) -> None:
        """So many passes, the next begun while the last is fetched."""
        self.predictor(self.images * passes)


class Training:
    """Steps on one batch that stays on the device.

    Attributes:
        compiled: The compiled program.
    """

    def __init__(self, case: Case, precision: str, params: Any):
        model = build_model(case, precision)
        mesh = data_mesh()
        optimizer = published_optimizer(model)
        self.batch = jax.device_put(case.random_batch())
        self.state = create_state(params, optimizer, mesh)
        del params  # as in training
        return_memory()
        inputs, key = Inputs.of(CAFFE), jax.random.key(0)
        step: Any = make_train_step(model, optimizer, inputs, mesh, key=key)
        self.compiled = step.lower(self.state, self.batch).compile()

    def run(self, steps: int) -> None:
        """So many steps, until the last is done."""
        for _ in range(steps):
            self.state, _ = self.compiled(self.state, self.batch)
        jax.block_until_ready(self.state)


def matrix_product(precision: str, side: int) -> Callable[[int], None]:
    """So many products of two square matrices, until the last is done; the peak of the device."""
    dtype = jnp.bfloat16 if precision == "bfloat16" else jnp.float32
    factors = jnp.ones((2, side, side), dtype) / side
    rounding = jax.lax.Precision.HIGHEST if precision == "float32" else jax.lax.Precision.DEFAULT

    @jax.jit
    def product(factors: Any) -> Any:
        return jnp.dot(*factors, precision=rounding, preferred_element_type=jnp.float32)

    def run(products: int) -> None:
        result = None
        for _ in range(products):
            result = product(factors)
        jax.block_until_ready(result)

    return run
