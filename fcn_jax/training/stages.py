"""What each stage of a config needs: network, optimiser, schedule, batches. Takes no step."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import jax
import numpy as np
import optax
from jax.sharding import Mesh

from fcn_jax import config as configs
from fcn_jax import data, devices
from fcn_jax.canvas import Size
from fcn_jax.classes import ClassTable
from fcn_jax.data import loader
from fcn_jax.data.copy_paste import CopyPaste
from fcn_jax.models.fcn import FCN
from fcn_jax.models.inputs import Inputs
from fcn_jax.runs import build_model
from fcn_jax.training.optimizer import make_optimizer, make_schedule, on_plateau
from fcn_jax.training.pace import Work


@dataclasses.dataclass(frozen=True)
class Stage:
    """A stage of a run: so many ``steps`` of a network, each on a batch of the endless ones."""

    name: str
    steps: int
    batch_size: int
    model: FCN
    auto_layers: tuple[str, ...]  # whose factors on the rate are measured
    schedule: optax.Schedule  # by update, of which one comes every `accumulate` steps
    accumulate: int
    plateau: bool  # the optimiser is one of `on_plateau`
    optimizer: optax.GradientTransformation
    batches: loader.TrainingBatches
    key: jax.Array
    patience: int  # evaluations; 0: endless
    best: str  # the metric that these look at

    def rate(self, step: int) -> float:
        """The learning rate of a step, from 1, but for what a plateau has taken off."""
        return float(np.asarray(self.schedule((step - 1) // self.accumulate)))


def make_stages(
    config: configs.Config,
    source: data.Source,
    heads: Mapping[str, ClassTable],
    inputs: Inputs,
    mesh: Mesh,
) -> list[Stage]:
    """Takes a config apart, into what each stage needs."""
    steps = configs.stage_steps(config, len(source))
    batches = batches_of_stages(config, source, mesh)
    stages = []
    for index, name in enumerate(config.stages):
        model = build_model(config, name, heads, inputs)
        rates = configs.layer_rates(config, model)
        schedule = stage_schedule(config, name, steps[index])
        optimizer = make_optimizer(
            config.optimizer,
            schedule,
            momentum=config.momentum,
            weight_decay=config.weight_decay,
            bias_rate=config.bias_rate,
            frozen=model.frozen_layers,
            layer_rates={layer: 1.0 if f == "auto" else f for layer, f in rates.items()},
            clip_norm=config.clip_norm,
            accumulate=config.accumulate,
        )
        plateau = config.schedule == "plateau"
        if plateau:
            window = config.schedule_gamma, config.schedule_patience, config.schedule_step
            optimizer = on_plateau(optimizer, *window)
        stages.append(
            Stage(
                name,
                steps[index],
                config.batch_size,
                model,
                tuple(layer for layer, factor in rates.items() if factor == "auto"),
                schedule,
                config.accumulate,
                plateau,
                optimizer,
                batches[index],
                jax.random.fold_in(jax.random.key(config.seed), index),
                config.patience,
                config.best,
            )
        )
    return stages


def batches_of_stages(
    config: configs.Config, source: data.Source, mesh: Mesh | None = None
) -> list[loader.TrainingBatches]:
    """The batches of every stage of a config; without a mesh on the default device.

    Raises:
        ValueError: If the config's augmentation cannot be done with these images.
    """
    augmentation = configs.augmentation(config, source)
    copy_paste = CopyPaste(source, config.copy_paste) if config.copy_paste else None
    part, parts = (0, 1) if mesh is None else devices.batch_part(mesh)
    return [
        loader.training_batches(
            source,
            batch_size=config.batch_size,
            # Each stage has another order; by 5, as ever, so that older runs go on in theirs.
            seed=config.seed * 5 + index,
            augmentation=augmentation,
            mesh=mesh,
            canvas=config.canvas or None,
            copy_paste=copy_paste,
            num_workers=config.num_workers,
            process_index=part,
            process_count=parts,
        )
        for index in range(len(config.stages))
    ]


def stage_schedule(config: configs.Config, stage: str, steps: int) -> optax.Schedule:
    """The learning rate of every update of a stage that has so many steps."""
    return make_schedule(
        config.schedule,
        configs.per_stage(config, "learning_rate")[config.stages.index(stage)],
        -(-steps // config.accumulate),
        warmup=config.warmup,
        step_size=config.schedule_step,
        gamma=config.schedule_gamma,
    )


def work_of(
    config: configs.Config, stages: Sequence[Stage], done: int, sizes: Sequence[Size]
) -> Work:
    """What lies before a run that goes on with the first of some stages, of which some is done.

    Args:
        sizes: Of the images that are scored, by all stages once more for the report.
    """
    every = config.eval_every
    evaluations = len(config.stages)
    for start, stage in zip((done, *[0] * len(stages)), stages, strict=False):
        evaluations += 1 + ((stage.steps - 1) // every - start // every if every else 0)
    pixels = sum(height * width for height, width in sizes) * config.scale**2
    steps = sum(stage.steps for stage in stages) - done
    return Work(len(stages), steps, evaluations * pixels)


def another_length(config: configs.Config, stage: Stage, then: int, done: int) -> str:
    """What to tell of a stage that has other steps than it was to have before."""
    text = f"{stage.name}: {stage.steps} steps instead of {then}"
    if config.schedule in ("constant", "step", "plateau"):
        return text
    former = dataclasses.replace(stage, schedule=stage_schedule(config, stage.name, then))
    was, now = former.rate(done), stage.rate(done + 1)
    return (
        f"{text}; the schedule '{config.schedule}' goes by their number: the learning rate was "
        f"{was:.3g} and goes on at {now:.3g}; the result is not that of {stage.steps} steps at once"
    )
