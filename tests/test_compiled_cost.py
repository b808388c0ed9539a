"""What FCN-8s costs, without running it: arithmetic, memory and compilations must not grow.

`compiled_cost.json` holds the costs recorded last. After a change that lowers them, or raises them
for a good reason, record them again and look at the difference:

    python tests/test_compiled_cost.py
"""

from __future__ import annotations

import functools
import json
import re
from pathlib import Path
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compilations import counted_compilations
from random_parameters import abstract_params, random_parameters
from toy_backbones import plain

import fcn_jax
from fcn_jax.devices import data_mesh
from fcn_jax.geometry import Window
from fcn_jax.models.backbones import Backbone, Conv, Padding, Pool
from fcn_jax.models.inputs import CAFFE, Inputs
from fcn_jax.programs import compiling_for
from fcn_jax.training.optimizer import make_optimizer, make_schedule
from fcn_jax.training.step import create_state, init_state, make_train_step

RECORD = Path(__file__).with_name("compiled_cost.json")

# What XLA makes of a program differs between releases: a twentieth more in the one that was
# recorded, a quarter more in others. What it is given depends on the package alone.
MARGIN, OTHER_RELEASE = 1.05, 1.25

INPUTS = Inputs.of(CAFFE)
UNOPTIMISED = {
    "xla_backend_optimization_level": 0,
    "xla_llvm_disable_expensive_passes": True,
    "xla_cpu_use_fusion_emitters": True,  # as in a user's program: they decide what is fused
}
QUICK_CASES = [("inference", "reference"), ("training", "same")]
SLOW_CASES = [("inference", "same"), ("training", "reference")]
CASES = [*QUICK_CASES, *SLOW_CASES]
PREDICTION = [("prediction", "same")]  # by a Predictor
slow = [pytest.param(*case, marks=pytest.mark.slow) for case in SLOW_CASES]

on_cpu = pytest.mark.skipif(jax.default_backend() != "cpu", reason="recorded on a CPU")


# ======================================================================== programs


def make_optimizer_of(model: fcn_jax.FCN):
    """SGD with momentum, as the published solver's."""
    schedule = make_schedule("constant", 1e-14, 10)
    return make_optimizer("sgd", schedule, momentum=0.99, frozen=model.frozen_layers)


def program(model: fcn_jax.FCN, task: str, shape: tuple[int, int, int]):
    """The jitted pass or step, and the shapes of its arguments."""
    params = abstract_params(model)
    images = jax.ShapeDtypeStruct((*shape, 3), jnp.uint8)
    if task == "inference":
        run = jax.jit(lambda params, images: model.apply({"params": params}, CAFFE.apply(images)))
        return run, (params, images)
    optimizer = make_optimizer_of(model)
    step: Any = make_train_step(model, optimizer, INPUTS, data_mesh(), key=jax.random.key(0))
    state = jax.eval_shape(functools.partial(init_state, optimizer=optimizer), params)
    return step, (state, {"image": images, "label": jax.ShapeDtypeStruct(shape, jnp.uint8)})


def few_layers(padding: Padding, width: float, fc_width: int) -> Backbone:
    """A VGG of one convolution a stage, with channels enough for all fast forms."""
    del width
    border, fc6_pad = (100, 0) if padding == "reference" else (1, 3)
    layers: list[Conv | Pool] = []
    for stage, channels in enumerate((32, 32, 64, 64, 64), 1):
        layers.append(Conv(f"conv{stage}_1", channels, Window(3, pad=1 if layers else border)))
        layers.append(Pool(f"pool{stage}", Window(2, stride=2, ceil=True)))
    layers.append(Conv("fc6", fc_width, Window(7, pad=fc6_pad), dropout=True))
    return Backbone(tuple(layers), skips=("pool4", "pool3"))


# ======================================================================== costs


def arithmetic(task: str, padding: Any) -> dict[str, float]:
    """FLOPs of VGG16's FCN-8s at full width on 500x375 pixels, as XLA counts them.

    And the products and convolutions in which they are. Of the program for a GPU: XLA counts a
    loop's body once, and the fast forms for the CPU are loops. It is lowered only, so there need be
    no GPU.
    """
    model = fcn_jax.create_model("fcn8s", padding=padding, learned_upsampling="none")
    run, arguments = program(model, task, (1, 500, 375))
    # A step is traced for the devices of its mesh, which are here those of a CPU.
    of_step = mock.patch.object(
        fcn_jax.training.step, "compiling_for", return_value=compiling_for("gpu")
    )
    with of_step, compiling_for("gpu"):
        lowered = run.trace(*arguments).lower(lowering_platforms=("cuda",))
    products = re.findall(r"stablehlo\.(convolution|dot_general)", lowered.as_text())
    return {"flops": lowered.cost_analysis()["flops"], "products": len(products)}


def compiled_for_cpu(task: str, padding: Any) -> dict[str, float]:
    """FLOPs and bytes of temporaries of a small network's program with the fast forms."""
    model = fcn_jax.create_model(
        "fcn8s", backbone=few_layers, padding=padding, fc_width=64, learned_upsampling="none"
    )
    if task == "prediction":  # the kernels prepared
        predictor = fcn_jax.Predictor(model, abstract_params(model), INPUTS, batch_size=2)
        lowered = predictor.lower((96, 96))
    else:
        run, arguments = program(model, task, (2, 96, 96))
        lowered = run.lower(*arguments)
    compiled = lowered.compile(UNOPTIMISED)
    return {
        "flops": compiled.cost_analysis()["flops"],
        "temporary_bytes": compiled.memory_analysis().temp_size_in_bytes,
    }


def release() -> str:
    """Such as ``0.10``."""
    return ".".join(jax.__version__.split(".")[:2])


def assert_not_grown(found: dict[str, float], kind: str, case: str) -> None:
    record = json.loads(RECORD.read_text())
    margin = MARGIN if record["jax"] == release() else OTHER_RELEASE
    for name, value in found.items():
        before = record[kind][case][name]
        assert value <= margin * before, (
            f"{name} of {case} grew from {before:.4g} to {value:.4g}; if that is meant, "
            "python tests/test_compiled_cost.py records it"
        )


@pytest.mark.parametrize(("task", "padding"), [*QUICK_CASES, *slow])
def test_the_arithmetic_does_not_grow(task, padding):
    assert_not_grown(arithmetic(task, padding), "arithmetic", f"{task} {padding}")


@on_cpu
@pytest.mark.usefixtures("unchecked_annotations")  # jax lowers with no arrays in its trees
@pytest.mark.parametrize(("task", "padding"), [*QUICK_CASES, *slow, *PREDICTION])
def test_the_compiled_program_does_not_grow(task, padding):
    assert_not_grown(compiled_for_cpu(task, padding), "compiled", f"{task} {padding}")


def record() -> None:
    """Writes the costs of this code."""
    content: dict[str, Any] = {"jax": release()}
    for kind, costs, cases in (
        ("arithmetic", arithmetic, CASES),
        ("compiled", compiled_for_cpu, [*CASES, *PREDICTION]),
    ):
        content[kind] = {f"{task} {padding}": costs(task, padding) for task, padding in cases}
    RECORD.write_text(json.dumps(content, indent=2) + "\n")


# ======================================================================== compilations


def test_a_step_compiles_once_for_a_canvas():
    """Whatever the images' sizes on it; and again for another canvas."""
    model = fcn_jax.create_model("fcn16s", backbone=plain, num_classes=3, width=0.5, fc_width=8)
    optimizer = make_optimizer_of(model)
    mesh = data_mesh()
    step = make_train_step(model, optimizer, INPUTS, mesh, key=jax.random.key(0))
    state = create_state(random_parameters(model, 0), optimizer, mesh)
    rng = np.random.default_rng(0)

    def batch(canvas: tuple[int, int]) -> dict[str, Any]:
        return {
            "image": rng.integers(0, 256, (2, *canvas, 3), np.uint8),
            "label": rng.integers(0, 3, (2, *canvas), np.uint8),
            "valid_size": rng.integers(1, min(canvas), (2, 2), np.int32, endpoint=True),
        }

    batches = [batch(canvas) for canvas in [(32, 40)] * 4 + [(40, 32)] * 3 + [(32, 40)] * 2]
    with fcn_jax.ops.plain_forms(), counted_compilations() as names:
        for values in batches:
            state, _ = step(state, values)
    assert len([name for name in names if "step" in name]) == 2, names


if __name__ == "__main__":
    record()
