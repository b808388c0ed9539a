"""Runs with random parameters, for the commands that read them."""

from __future__ import annotations

from pathlib import Path

import optax
from random_parameters import random_parameters

from fcn_jax import config as configs
from fcn_jax.checkpoints import StageCheckpoints
from fcn_jax.classes import ClassTable
from fcn_jax.models.inputs import Inputs
from fcn_jax.runs import build_model, describe_run
from fcn_jax.training.step import init_state


def make_run(folder: Path, heads: dict[str, ClassTable], inputs: Inputs) -> Path:
    """A run of FCN-32s with random parameters, on a small backbone."""
    config = configs.default_config()
    config.backbone = f"{Path(__file__).with_name('toy_backbones.py')}:plain"
    config.stages, config.width, config.fc_width, config.steps = ("fcn32s",), 1 / 4, 8, (1,)
    folder.mkdir()
    (folder / "config.json").write_text(config.to_json())
    params = random_parameters(build_model(config, "fcn32s", heads, inputs), seed=1)
    with StageCheckpoints(folder, "fcn32s") as checkpoints:
        state = init_state(params, optax.sgd(0.1))
        checkpoints.save(0, state, {}, describe_run(config, heads, inputs), None)
    return folder
