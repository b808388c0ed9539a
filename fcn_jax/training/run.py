"""A whole run: every stage of a config in turn, safe against a crash at any moment.

What is trained, on what, from where, is decided here; each part is done elsewhere.
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
from jax.experimental import multihost_utils
from jax.sharding import Mesh
from ml_collections import ConfigDict

from fcn_jax import config as configs
from fcn_jax import data, drawing, weights
from fcn_jax.backbones import BACKBONES, Conv
from fcn_jax.classes import ClassTable
from fcn_jax.data import loader
from fcn_jax.data.transforms import Augmentation
from fcn_jax.decoders import SEGMENTERS
from fcn_jax.evaluation import evaluate
from fcn_jax.metrics import Scores, scores
from fcn_jax.networks import FCN, abstract_params, create_model, initial_params
from fcn_jax.preprocessing import CAFFE, Inputs, Preprocessing
from fcn_jax.training.checkpoints import (
    StageCheckpoints,
    available_stages,
    build_model,
    describe_run,
)
from fcn_jax.training.journal import Journal
from fcn_jax.training.optimizer import make_optimizer, make_schedule
from fcn_jax.training.step import (
    TrainState,
    all_finite,
    batch_sharding,
    create_state,
    data_mesh,
    init_state,
    make_train_step,
    replicated,
)
from fcn_jax.training.watch import Diverged, LossWatch, Stopped, StopSignal
from fcn_jax.weights import recognition


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


def train(config: ConfigDict, workdir: str | Path) -> data.Source:
    """Trains every stage of a config, or goes on where the folder's run was interrupted.

    The final parameters are the same bits whether or not the run was interrupted (on the same
    machine, where its arithmetic is deterministic, as the CPU's is).

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
    workdir = Path(workdir)
    begun = bool(available_stages(workdir)) if (workdir / "config.json").exists() else False
    if begun:
        _check_same_run(config, workdir)
    # A file that cannot be read or does not fit is an error now, not after the data are prepared.
    start = {} if begun else _load_start_weights(config)
    _check_start_weights(config, start)
    options = configs.data_options(config)
    train_source = data.open_source(config.dataset, config.train_split, **options)
    eval_source = data.open_source(config.dataset, config.eval_split, **options)
    data.check_disjoint(train_source, eval_source)
    heads = _choose_heads(config, train_source)
    inputs = _known_inputs(workdir) if begun else _choose_inputs(config, train_source, start)
    del start
    mesh = data_mesh()
    _check_batch_size(config, len(train_source))

    first = jax.process_index() == 0
    if first:
        workdir.mkdir(parents=True, exist_ok=True)
        _write_json(workdir / "config.json", configs.to_plain(config))
        tables = {head: classes.to_dict() for head, classes in heads.items()}
        _write_json(workdir / "classes.json", tables)
        _write_json(workdir / "inputs.json", inputs.to_dict())
    names = tuple(config.stages)
    with Journal(workdir, names, silent=not first) as journal, StopSignal() as stop:
        task = Task(
            config=config,
            workdir=workdir,
            stages=_stages(config, len(train_source)),
            train_source=train_source,
            eval_source=eval_source,
            heads=heads,
            inputs=inputs,
            mesh=mesh,
            journal=journal,
        )
        classes = " and ".join(str(table.num_classes) for table in heads.values())
        journal.say(
            f"{config.dataset}: {len(train_source)} training and {len(eval_source)} evaluation "
            f"images, {classes} classes; {jax.device_count()} {jax.devices()[0].platform} "
            f"device(s); in {workdir}"
        )
        for note in dict.fromkeys((*train_source.notes, *eval_source.notes)):
            journal.say(f"note: {note}")
        for stage in task.stages:
            _run_stage(task, stage, stop)
    return eval_source


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
            state, position = checkpoints.restore(like, replicated(task.mesh))
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
            _loop(task, stage, stop, model, train_step, state, batches, checkpoints)


def _loop(
    task: Task,
    stage: Stage,
    stop: StopSignal,
    model: FCN,
    train_step: Any,
    state: TrainState,
    batches: Any,
    checkpoints: StageCheckpoints,
) -> None:
    """The training loop: step, log, evaluate, save."""
    config, journal = task.config, task.journal
    watch = LossWatch(stage.name)
    run = describe_run(config, task.heads, task.inputs)
    step = int(state.step)
    clock, clocked = time.perf_counter(), step
    while step < stage.steps:
        batch, ids = next(batches)
        state, figures = train_step(state, batch)
        step += 1
        watch.add(step, ids, figures)

        last = step == stage.steps
        stopping = _any_process(stop.received)
        scoring = last or (config.eval_every > 0 and step % config.eval_every == 0)
        saving = scoring or stopping or step % config.checkpoint_every == 0
        if not (saving or step % config.log_every == 0):
            continue

        values = watch.check()
        rate = (step - clocked) * config.batch_size / (time.perf_counter() - clock)
        journal.record(stage.name, step, {**values, "images_per_second": rate})
        journal.advance(stage.name, step, stage.steps, values["loss"], rate, config.batch_size)
        if saving:
            # A finite loss can still have led to parameters that are not.
            if not all_finite(state.params):
                raise Diverged(
                    f"{stage.name} step {step}: parameters are NaN or Inf after the update on the "
                    f"images {', '.join(ids)}; the last checkpoint is untouched. Lower "
                    "config.learning_rate, or set config.clip_norm"
                )
            metrics = _evaluate(task, stage, model, state, step) if scoring else None
            checkpoints.save(state, batches.get_state(), run, metrics)
        if stopping and not last:
            raise Stopped(
                f"stopped at {stage.name} step {step} of {stage.steps}, all saved; "
                "the same command goes on from here",
                stopping,
            )
        clock, clocked = time.perf_counter(), step


def _evaluate(
    task: Task, stage: Stage, model: FCN, state: TrainState, step: int
) -> dict[str, float]:
    """Scores the evaluation split, records the figures, and draws a few predictions."""
    config, journal = task.config, task.journal
    samples: list[tuple[Any, dict[str, np.ndarray]]] = []

    def keep(example: Any, labels: dict[str, np.ndarray]) -> None:
        if len(samples) < config.samples:
            samples.append((example, labels))

    # Each process scores its part of the images on its own devices: their sizes may differ.
    local = Mesh(np.array(jax.local_devices()), ("data",))
    part = range(jax.process_index(), len(task.eval_source), jax.process_count())
    counts = evaluate(
        model,
        {"params": jax.tree.map(lambda x: x.addressable_data(0), state.params)},
        loader.evaluation_examples(task.eval_source, part),
        num_classes={head: classes.num_classes for head, classes in task.heads.items()},
        preprocessing=task.inputs,
        scale=config.scale,
        batch_size=config.eval_batch_size,
        mesh=local,
        visit=keep,
    )
    if jax.process_count() > 1:
        gathered = multihost_utils.process_allgather(counts)
        counts = {head: np.asarray(values).sum(axis=0) for head, values in gathered.items()}
    metrics: dict[str, float] = {}
    for head, classes in task.heads.items():
        figures = _figures(scores(counts[head], classes.scored))
        prefix = f"{head}/" if len(task.heads) > 1 else ""
        metrics |= {f"{prefix}{name}": value for name, value in figures.items()}
        journal.say(
            f"{stage.name} step {step}: {prefix.replace('/', '  ')}"
            + "  ".join(f"{name.replace('_', ' ')} {value:.4f}" for name, value in figures.items())
        )
        for number, (example, labels) in enumerate(samples):
            panels = {"image": example["image"], "truth": example[head], stage.name: labels[head]}
            name = f"sample{number}{'_' + head if prefix else ''}"
            journal.picture(stage.name, step, name, drawing.side_by_side(panels, classes))
    # By this the best checkpoint is chosen.
    metrics["mean_iu"] = float(np.mean([v for k, v in metrics.items() if k.endswith("mean_iu")]))
    journal.record(stage.name, step, {f"eval/{name}": value for name, value in metrics.items()})
    return metrics


# ======================================================================== the parts of a stage


def _start_params(task: Task, stage: Stage, model: FCN, key: jax.Array) -> dict[str, Any]:
    """Parameters before the first step: the previous stage's, the start weights', or random."""
    if stage.index > 0:
        previous = task.stages[stage.index - 1].name
        with StageCheckpoints(task.workdir, previous, read_only=True) as checkpoints:
            source = {"": weights.Weights(weights.flatten(checkpoints.restore_params("last")))}
        origin = f"{previous}, its last step"
    elif task.config.init:
        source = _load_start_weights(task.config)
        origin = task.config.init
    else:
        task.journal.say(f"{stage.name}: starts from random weights")
        return initial_params(model, key)
    params, report = _transplant(model, source)
    task.journal.say(f"{stage.name}: starts from {origin}\n{report}")
    # Initial values only of what was left: a random number generator takes seconds to compile.
    left = initial_params(model, key, report.left)
    return weights.unflatten({**weights.flatten(params), **left})


def stage_batches(
    config: ConfigDict, source: data.Source, stage: Stage, mesh: Mesh
) -> loader.TrainingBatches:
    """The endless training batches of a stage."""
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
        sharding=batch_sharding(mesh),
        canvas=tuple(config.canvas) or None,
        num_workers=config.num_workers,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
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


# ======================================================================== inputs and outputs


def _load_start_weights(config: ConfigDict) -> dict[str, weights.Weights]:
    return {name: weights.load(path) for name, path in configs.start_files(config).items()}


def _check_start_weights(config: ConfigDict, start: dict[str, weights.Weights]) -> None:
    """Refuses weights of another network, before anything is spent or written.

    Missing may be fc6, fc7 and the scores (files without a top), not a convolution of the trunk.

    Raises:
        ValueError: With all that does not fit.
    """
    if not start:
        return
    channels = {"depth": 1}
    inputs = {
        stream: sum(channels.get(feature, 3) for feature in joined.split("+"))
        for stream, joined in config.inputs.items()
    }
    model = create_model(
        config.stages[0],
        backbone=config.backbone,
        inputs=inputs,
        padding=config.padding,
        width=config.width,
        fc_width=config.fc_width,
    )
    _, report = _transplant(model, start)
    layers = model.backbone.layers
    needed = [layer.name for layer in layers if isinstance(layer, Conv) and not layer.dropout]
    left = {name.rpartition("/")[0] for name in report.left}
    missing = [name for name in left if name.startswith(tuple(needed))]
    known = recognition.trunk_layers() - {layer.name for layer in layers}
    extra = {name.rpartition("/")[0].rpartition(" ")[2] for name in report.unused} & known
    if config.backbone in BACKBONES and (missing or extra):
        fits = {name for found in start.values() for name in recognition.trunks_of(found)}
        advice = f"; they are of {', '.join(sorted(fits))}" if fits else ""
        lines = [f"{config.init} does not fit config.backbone = {config.backbone!r}{advice}"]
        for title, names in (("missing", missing), ("without a place", extra)):
            lines += [f"{title}: {', '.join(sorted(names))}"] if names else []
        raise ValueError("\n  ".join(lines))


def _transplant(
    model: FCN, start: dict[str, weights.Weights]
) -> tuple[dict[str, Any], weights.Report]:
    """Abstract parameters of a network, with start weights where they fit."""
    return weights.transplant(
        abstract_params(model),
        start.get("", start),
        replaceable=model.score_layers,
        streams=[name for name, _ in model.streams] if len(model.streams) > 1 else (),
    )


def _choose_heads(config: ConfigDict, source: data.Source) -> dict[str, ClassTable]:
    """The label maps that are learned, with their classes."""
    chosen = tuple(config.heads) or tuple(source.heads)
    for field, names in (("heads", chosen), ("loss_weights", tuple(config.loss_weights))):
        if unknown := [name for name in names if name not in source.heads]:
            raise ValueError(
                f"config.{field} names {', '.join(unknown)}; {config.dataset} has the label maps "
                f"{', '.join(source.heads)}"
            )
    return {name: source.heads[name] for name in chosen}


def _choose_inputs(
    config: ConfigDict, source: data.Source, start: dict[str, weights.Weights]
) -> Inputs:
    """The features of each input, normalised as the start weights expect them.

    Weights of Caffe's kind take the means of the data set, as in the reference; others (RGB from
    0 to 1) bring their own.
    """
    usual = data.row_of(config.dataset).preprocessing
    streams: dict[str, dict[str, Preprocessing]] = {}
    for stream, joined in config.inputs.items():
        found = start.get(stream, start.get(""))
        features = joined.split("+")
        if unknown := [name for name in features if name not in source.features]:
            raise ValueError(
                f"config.inputs.{stream} reads {', '.join(unknown)}; {config.dataset} has "
                f"{', '.join(source.features)}"
            )
        streams[stream] = {
            name: _normalisation(name, usual.get(name, CAFFE), found) for name in features
        }
    return Inputs.of(streams)


def _normalisation(
    feature: str, usual: Preprocessing, start: weights.Weights | None
) -> Preprocessing:
    """How a feature is normalised, given the data set's way and the start weights."""
    given = start.preprocessing if start else None
    if isinstance(given, Inputs):
        known = {name: part for _, parts in given.streams for name, part in parts}
        if feature in known:
            return known[feature]
        given = known.get("image")
    if given is None or given == CAFFE:
        return usual
    return given if feature == "image" else usual.on_scale_of(given)


def _known_inputs(workdir: Path) -> Inputs:
    """The inputs of a run that goes on."""
    return Inputs.from_dict(_read_json(workdir / "inputs.json"))


# ======================================================================== checks and records


def _check_same_run(config: ConfigDict, workdir: Path) -> None:
    old = _read_json(workdir / "config.json")
    if changed := configs.changed_fields(old, configs.to_plain(config)):
        raise ValueError(
            f"{workdir} holds a run of another config; use another --workdir, or set back:\n  "
            + "\n  ".join(changed)
        )


def _check_batch_size(config: ConfigDict, images: int) -> None:
    devices = jax.device_count()
    if config.batch_size % devices:
        raise ValueError(
            f"config.batch_size = {config.batch_size} cannot be split over {devices} devices; "
            f"use a multiple of {devices}"
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


def _figures(result: Scores) -> dict[str, float]:
    names = ("pixel_accuracy", "mean_accuracy", "mean_iu", "frequency_weighted_iu")
    return {name: getattr(result, name) for name in names}


def _any_process(signum: int) -> int:
    """The signal that any process received; all must stop at the same step."""
    if jax.process_count() == 1:
        return signum
    return int(np.max(multihost_utils.process_allgather(np.int32(signum))))
