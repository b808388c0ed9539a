"""A whole run: every stage of a config in turn, safe against a crash at any moment.

What is trained, on what, is decided here; each part is done elsewhere. All processes of a run that
has several do the same; the first alone writes, but for the checkpoints.
"""

from __future__ import annotations

import dataclasses
import json
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from fcn_jax import config as configs
from fcn_jax import data, devices, drawing, weights
from fcn_jax.canvas import rule_for
from fcn_jax.classes import ClassTable
from fcn_jax.data import loader
from fcn_jax.data.transforms import Augmentation
from fcn_jax.inference.evaluation import evaluate
from fcn_jax.inference.metrics import Metrics, compute_metrics
from fcn_jax.inference.predictor import Predictor
from fcn_jax.models.decoders import SEGMENTERS
from fcn_jax.models.fcn import FCN, abstract_params, initial_params
from fcn_jax.models.inputs import Inputs
from fcn_jax.runs import (
    StageCheckpoints,
    available_stages,
    build_model,
    describe_run,
)
from fcn_jax.training import init
from fcn_jax.training.journal import Journal
from fcn_jax.training.optimizer import make_optimizer, make_schedule
from fcn_jax.training.step import (
    TrainState,
    TrainStep,
    all_finite,
    create_state,
    init_state,
    make_train_step,
)
from fcn_jax.training.watch import Diverged, LossWatch, Stopped, StopSignal


@dataclasses.dataclass(frozen=True)
class Stage:
    """One stage of a run.

    Attributes:
        index: Its place in the run.
        name: The network.
        steps: Minibatches.
        learning_rate: At its start.
    """

    index: int
    name: str
    steps: int
    learning_rate: float


@dataclasses.dataclass(frozen=True)
class Task:
    """What all stages of a run share."""

    config: ConfigDict
    workdir: Path
    stages: tuple[Stage, ...]
    train_source: data.Source
    eval_source: data.Source
    heads: dict[str, ClassTable]
    inputs: Inputs
    mesh: Mesh
    journal: Journal


@dataclasses.dataclass(frozen=True)
class Training:
    """What the loop of a stage works with."""

    task: Task
    stage: Stage
    model: FCN
    train_step: TrainStep
    batches: loader.TrainingBatches
    checkpoints: StageCheckpoints


def train(config: ConfigDict, workdir: str | Path) -> data.Source:
    """Trains every stage of a config, or goes on where the folder's run was interrupted.

    The final parameters are the same bits whether or not the run was interrupted (on the same
    machine, where its arithmetic is deterministic, as the CPU's is). Several processes
    (`fcn_jax.devices.join_processes`) call it with the same config and a folder that all see.

    Args:
        config: See `fcn_jax.config.default_config`.
        workdir: The run's folder; made if absent.

    Returns:
        The images that the stages were scored on, for a report.

    Raises:
        ValueError: If the config has mistakes, or differs from the folder's run.
        Diverged: If the loss is not finite.
        Stopped: On SIGINT or SIGTERM, when all is saved.
    """
    configs.validate(config)
    task = _prepare(config, Path(workdir))
    devices.wait_for_all("prepared")  # nobody still looks for a former run
    if devices.is_first_process():
        _describe(task)
    with task.journal, StopSignal() as stop:
        _announce(task)
        for stage in task.stages:
            _run_stage(task, stage, stop)
    return task.eval_source


def _prepare(config: ConfigDict, workdir: Path) -> Task:
    """Finds the data, and all mistakes, before anything is written."""
    mesh = devices.data_mesh(config.spatial_shards)
    begun = bool(available_stages(workdir)) if (workdir / "config.json").exists() else False
    if begun:
        _check_same_run(config, workdir)
    # A file that cannot be read or does not fit is an error now, not after the data are prepared.
    given = {} if begun else init.load_weights(config)
    init.check_weights(config, given)
    options = configs.data_options(config)
    train_source = data.open_source(config.dataset, config.train_split, **options)
    eval_source = data.open_source(config.dataset, config.eval_split, **options)
    data.check_disjoint(train_source, eval_source)
    _check_batch_size(config, len(train_source), mesh)
    silent = not devices.is_first_process()
    return Task(
        config=config,
        workdir=workdir,
        stages=_stages(config, len(train_source)),
        train_source=train_source,
        eval_source=eval_source,
        heads=init.choose_heads(config, train_source),
        inputs=(
            Inputs.from_dict(_read_json(workdir / "inputs.json"))
            if begun
            else init.choose_inputs(config, train_source, given)
        ),
        mesh=mesh,
        journal=Journal(workdir, tuple(config.stages), silent=silent),
    )


def _describe(task: Task) -> None:
    """Writes what the run is into its folder."""
    task.workdir.mkdir(parents=True, exist_ok=True)
    tables = {head: classes.to_dict() for head, classes in task.heads.items()}
    _write_json(task.workdir / "config.json", configs.to_plain(task.config))
    _write_json(task.workdir / "classes.json", tables)
    _write_json(task.workdir / "inputs.json", task.inputs.to_dict())


def _announce(task: Task) -> None:
    classes = " and ".join(str(table.num_classes) for table in task.heads.values())
    several = f" of {jax.process_count()} processes" if jax.process_count() > 1 else ""
    task.journal.say(
        f"{task.config.dataset}: {len(task.train_source)} training and {len(task.eval_source)} "
        f"evaluation images, {classes} classes; {jax.device_count()} "
        f"{jax.devices()[0].platform} device(s){several}; in {task.workdir}"
    )
    for note in dict.fromkeys((*task.train_source.notes, *task.eval_source.notes)):
        task.journal.say(f"note: {note}")


# ======================================================================== one stage


def _run_stage(task: Task, stage: Stage, stop: StopSignal) -> None:
    """Trains a stage to its end, from its last checkpoint or from the stage before."""
    config, journal = task.config, task.journal
    model = build_model(config, stage.name, task.heads, task.inputs)
    optimizer = make_stage_optimizer(config, model, stage)
    key = jax.random.fold_in(jax.random.key(config.seed), stage.index)

    with StageCheckpoints(task.workdir, stage.name) as checkpoints:
        done = checkpoints.step()
        if done == stage.steps:
            journal.say(f"{stage.name}: finished before, {done} steps")
            return
        batches = stage_batches(config, task.train_source, stage, task.mesh)
        if done is None:
            params = _start_params(task, stage, model, jax.random.fold_in(key, 1))
            state = create_state(params, optimizer, task.mesh)
            del params
        else:
            like = jax.eval_shape(lambda p: init_state(p, optimizer), abstract_params(model))
            state, position = checkpoints.restore(like, devices.replicated(task.mesh))
            batches.set_state(position)
            journal.say(f"{stage.name}: going on from step {done}")
        journal.rewind(stage.name, done or 0)

        train_step = make_train_step(
            model,
            optimizer,
            task.inputs,
            task.mesh,
            key=jax.random.fold_in(key, 2),
            normalize_loss=config.normalize_loss,
            cell_fraction=config.cell_fraction,
            frozen=config.freeze,
            loss_weights=config.loss_weights,
        )
        with batches, journal.progress(stage.name, done or 0, stage.steps):
            _loop(Training(task, stage, model, train_step, batches, checkpoints), state, stop)


def _loop(training: Training, state: TrainState, stop: StopSignal) -> None:
    """The training loop: step, log, evaluate, save; waits for the devices only to log."""
    config, stage, journal = training.task.config, training.stage, training.task.journal
    watch = LossWatch(stage.name)
    step = int(state.step)
    clock, clocked = time.perf_counter(), step
    while step < stage.steps:
        batch, ids = next(training.batches)
        state, figures = training.train_step(state, batch)
        step += 1
        watch.add(step, ids, figures)
        due = _due(config, stage, step, stop)
        if not due.logging:
            continue

        values = watch.check()
        rate = (step - clocked) * config.batch_size / (time.perf_counter() - clock)
        journal.record(stage.name, step, {**values, "images_per_second": rate})
        journal.advance(stage.name, step, stage.steps, values["loss"], rate, config.batch_size)
        if due.saving:
            _save(training, state, step, ids, scoring=due.scoring)
        if due.signum and step < stage.steps:
            raise Stopped(
                f"stopped at {stage.name} step {step} of {stage.steps}, all saved; "
                "the same command goes on from here",
                due.signum,
            )
        clock, clocked = time.perf_counter(), step


@dataclasses.dataclass(frozen=True)
class _Due:
    """What is to be done after a step.

    Attributes:
        logging: Wait for the devices, check the losses and record them; so for all below.
        scoring: Evaluate the network.
        saving: Write a checkpoint.
        signum: Stop, because of this signal; 0 is none.
    """

    logging: bool
    scoring: bool
    saving: bool
    signum: int


def _due(config: ConfigDict, stage: Stage, step: int, stop: StopSignal) -> _Due:
    scoring = step == stage.steps or (config.eval_every > 0 and step % config.eval_every == 0)
    saving = scoring or step % config.checkpoint_every == 0
    logging = saving or step % config.log_every == 0
    signum = stop.received
    if jax.process_count() > 1:
        # All must stop at one step. They agree on it where they wait for the devices anyway.
        signum = devices.largest_over_processes(signum) if logging else 0
    return _Due(logging or signum > 0, scoring, saving or signum > 0, signum)


def _save(
    training: Training, state: TrainState, step: int, ids: list[str], *, scoring: bool
) -> None:
    """Writes a checkpoint of a state that is sound, with its scores where they are wanted."""
    # A finite loss can still have led to parameters that are not.
    if not all_finite(state.params):
        raise Diverged(
            f"{training.stage.name} step {step}: parameters are NaN or Inf after the update on the "
            f"images {', '.join(ids)}; the last checkpoint is untouched. Lower "
            "config.learning_rate, or set config.clip_norm"
        )
    task = training.task
    run = describe_run(task.config, task.heads, task.inputs)
    metrics = _evaluate(training, state, step) if scoring else None
    training.checkpoints.save(state, training.batches.get_state(), run, metrics)


# ======================================================================== scores


def _evaluate(training: Training, state: TrainState, step: int) -> dict[str, float]:
    """Scores the evaluation split, records the figures, and draws a few predictions.

    All processes get the same figures.
    """
    task, stage = training.task, training.stage.name
    samples: list[tuple[Any, dict[str, np.ndarray]]] = []

    def keep(example: Any, labels: dict[str, np.ndarray]) -> None:
        if len(samples) < task.config.samples:
            samples.append((example, labels))

    counts = _count(training, state, keep)
    metrics: dict[str, float] = {}
    for head, classes in task.heads.items():
        figures = _figures(compute_metrics(counts[head], classes.scored))
        prefix = f"{head}/" if len(task.heads) > 1 else ""
        metrics |= {f"{prefix}{name}": value for name, value in figures.items()}
        task.journal.say(
            f"{stage} step {step}: {prefix.replace('/', '  ')}"
            + "  ".join(f"{name.replace('_', ' ')} {value:.4f}" for name, value in figures.items())
        )
        for number, (example, labels) in enumerate(samples):
            panels = {"image": example["image"], "truth": example[head], stage: labels[head]}
            name = f"sample{number}{'_' + head if prefix else ''}"
            task.journal.picture(stage, step, name, drawing.side_by_side(panels, classes))
    # By this the best checkpoint is chosen.
    metrics["mean_iu"] = float(np.mean([v for k, v in metrics.items() if k.endswith("mean_iu")]))
    task.journal.record(stage, step, {f"eval/{name}": value for name, value in metrics.items()})
    return metrics


def _count(training: Training, state: TrainState, keep: Any) -> dict[str, np.ndarray]:
    """The confusion matrix of each head over the evaluation split, of all processes."""
    task = training.task
    num_classes = {head: classes.num_classes for head, classes in task.heads.items()}
    # Each process scores its part of the images on its own devices: their sizes may differ.
    part = range(jax.process_index(), len(task.eval_source), jax.process_count())
    if not part:
        counts = {head: np.zeros((n, n), np.int64) for head, n in num_classes.items()}
        return devices.sum_over_processes(counts)
    predictor = Predictor(
        training.model,
        jax.tree.map(lambda x: x.addressable_data(0), state.params),
        task.inputs,
        task.heads,
        task.config.scale,
        task.config.eval_batch_size,
        rule_for(task.eval_source.sizes),
        mesh=devices.local_mesh(),
    )
    examples = loader.evaluation_examples(task.eval_source, part)
    counts = evaluate(predictor, examples, visit=keep)
    return devices.sum_over_processes(counts)


def _figures(result: Metrics) -> dict[str, float]:
    names = ("pixel_accuracy", "mean_accuracy", "mean_iu", "frequency_weighted_iu")
    return {name: getattr(result, name) for name in names}


# ======================================================================== the parts of a stage


def _start_params(task: Task, stage: Stage, model: FCN, key: jax.Array) -> dict[str, Any]:
    """Parameters before the first step: the previous stage's, the start weights', or random."""
    if stage.index > 0:
        previous = task.stages[stage.index - 1].name
        with StageCheckpoints(task.workdir, previous, read_only=True) as checkpoints:
            given = {"": weights.Weights(weights.flatten(checkpoints.restore_params("last")))}
        origin = f"{previous}, its last step"
    elif task.config.init:
        given = init.load_weights(task.config)
        origin = task.config.init
    else:
        task.journal.say(f"{stage.name}: starts from random weights")
        return initial_params(model, key)
    params, report = init.params_from(model, given, key)
    task.journal.say(f"{stage.name}: starts from {origin}\n{report}")
    return params


def stage_batches(
    config: ConfigDict, source: data.Source, stage: Stage, mesh: Mesh
) -> loader.TrainingBatches:
    """The endless training batches of a stage."""
    part, parts = devices.batch_part(mesh)
    return loader.training_batches(
        source,
        batch_size=config.batch_size,
        # Each stage sees the images in another order.
        seed=config.seed * len(SEGMENTERS) + stage.index,
        augmentation=Augmentation(
            scale=config.scale,
            scale_range=tuple(config.scale_range),
            crop=tuple(config.crop) or None,
            flip=config.flip,
            jitter=config.jitter,
        ),
        mesh=mesh,
        canvas=tuple(config.canvas) or None,
        num_workers=config.num_workers,
        process_index=part,
        process_count=parts,
    )


def make_stage_optimizer(
    config: ConfigDict, model: FCN, stage: Stage
) -> optax.GradientTransformation:
    """The optimiser of a stage, with its learning rate and length."""
    schedule = make_schedule(
        config.schedule,
        stage.learning_rate,
        -(-stage.steps // config.accumulate),
        warmup=config.warmup,
        step_size=config.schedule_step,
        gamma=config.schedule_gamma,
    )
    return make_optimizer(
        config.optimizer,
        schedule,
        momentum=config.momentum,
        weight_decay=config.weight_decay,
        bias_rate=config.bias_rate,
        frozen=(*model.frozen_layers, *config.freeze),
        clip_norm=config.clip_norm,
        accumulate=config.accumulate,
    )


def _stages(config: ConfigDict, images: int) -> tuple[Stage, ...]:
    """The stages with their lengths in steps."""
    if config.steps:
        steps = configs.per_stage(config, "steps")
    else:
        epochs = configs.per_stage(config, "epochs")
        steps = tuple(max(1, round(e * images / config.batch_size)) for e in epochs)
    rates = configs.per_stage(config, "learning_rate")
    rows = zip(config.stages, steps, rates, strict=True)
    return tuple(Stage(index, *row) for index, row in enumerate(rows))


# ======================================================================== checks and records


def _check_same_run(config: ConfigDict, workdir: Path) -> None:
    old = _read_json(workdir / "config.json")
    if changed := configs.changed_fields(old, configs.to_plain(config)):
        raise ValueError(
            f"{workdir} holds a run of another config; use another --workdir, or set back:\n  "
            + "\n  ".join(changed)
        )


def _check_batch_size(config: ConfigDict, images: int, mesh: Mesh) -> None:
    parts = mesh.shape["data"]
    if config.batch_size % parts:
        shared = "" if parts == mesh.size else f", {mesh.shape['height']} for each image"
        raise ValueError(
            f"config.batch_size = {config.batch_size} cannot be split over {mesh.size} devices"
            f"{shared}; use a multiple of {parts}"
        )
    if config.batch_size > images:
        raise ValueError(
            f"config.batch_size = {config.batch_size} is more than the {images} training images"
        )


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} is damaged ({error}); restore it or use another folder") from None


def _write_json(path: Path, content: Any) -> None:
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(content, indent=2))
    temporary.replace(path)
