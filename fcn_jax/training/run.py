"""A whole run: every stage of a config in turn, safe against a crash at any moment.

All processes of a run that has several do the same; the first alone writes, but for checkpoints.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from fcn_jax import config as configs
from fcn_jax import data, devices, drawing, runs, weights
from fcn_jax.canvas import Size, rule_for
from fcn_jax.classes import ClassTable
from fcn_jax.data import bands, loader
from fcn_jax.data.copy_paste import CopyPaste
from fcn_jax.inference.evaluation import Tally, tally
from fcn_jax.inference.predictor import Predictor
from fcn_jax.models.backbones import code_of
from fcn_jax.models.fcn import FCN, abstract_params, initial_params
from fcn_jax.models.inputs import Inputs
from fcn_jax.models.losses import Loss
from fcn_jax.runs import (
    StageCheckpoints,
    build_model,
    describe_run,
    goodness,
    last_checkpoint,
    write_whole,
)
from fcn_jax.training import identity, init
from fcn_jax.training.journal import Callback, Journal
from fcn_jax.training.lock import locked
from fcn_jax.training.loggers import Logger, WeightsAndBiases, import_wandb
from fcn_jax.training.optimizer import (
    make_optimizer,
    make_schedule,
    on_plateau,
    plateau_factor,
    with_layer_rates,
)
from fcn_jax.training.pace import Pace, Work
from fcn_jax.training.step import (
    StepReport,
    TrainState,
    TrainStep,
    all_finite,
    create_state,
    init_state,
    make_train_step,
    put_state,
)
from fcn_jax.weights.arrays import is_conv_transpose


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


class Evaluations(NamedTuple):
    """How a stage's evaluations went: the best `goodness`, and how many came since."""

    best: float | None = None
    since: int = 0

    def and_then(self, value: float | None) -> Evaluations:
        better = value is not None and (self.best is None or value > self.best)
        return Evaluations(value, 0) if better else Evaluations(self.best, self.since + 1)


# ======================================================================== the run


def train(
    config: configs.Config,
    workdir: str | Path,
    *,
    train_source: Any = None,
    eval_source: Any = None,
    loss: Loss | None = None,
    callbacks: Sequence[Callback] = (),
    accept_changed_data: bool = False,
    allow_code: bool = False,
) -> data.Source:
    """Trains every stage of a config, or goes on where the folder's run was interrupted.

    The final parameters are the same bits whether or not the run was interrupted (on the same
    machine, where its arithmetic is deterministic, as the CPU's is). Several processes
    (`fcn_jax.devices.join_processes`) call it with the same config and a folder that all see.

    Args:
        config: See `fcn_jax.config.FIELDS`.
        workdir: The run's folder; made if absent. Nothing in it is touched before all of the
            config, the classes and the images have been compared with its run.
        train_source: What to train on in place of the config's data set: a source, or any object
            with a length and an index that gives ``{"image": …, "label": …, "id": …}``
            (`fcn_jax.data.Examples`). The run knows its images by their pixels.
        eval_source: What to score on, likewise; both are given, or neither.
        loss: In place of the config's, as ``loss(logits, labels)``; of every head. A run goes on
            with the loss of the same name and code only.
        callbacks: Each is called with ``(stage, step, values)`` where the losses of a step and the
            metrics of an evaluation (``eval/mean_iu``) are recorded, in the first process.
        accept_changed_data: Go on although images, masks or names of classes are not the run's.
        allow_code: Whether the own backbone of a run that ``config.init`` names may be loaded, if
            it is another than the config's.

    Returns:
        The images that the stages were scored on, for a report.

    Raises:
        ValueError: If the config has mistakes, or it or the data differ from the folder's run; the
            message lists the differences, and how to go on. If another program trains there.
        Diverged: If the loss is not finite.
        Stopped: On SIGINT, SIGTERM or SIGHUP, when all is saved.

    Example:
        >>> config = fcn_jax.config.load_config("quickstart")
        >>> config.batch_size = 4
        >>> train(config, "runs/quickstart")
    """
    workdir = Path(workdir).expanduser()

    config = configs.Config(config.to_dict())  # a copy, which will tell what the caller gave
    if loss is not None:
        usual = configs.default_config()
        config.loss = usual.loss
        if unused := [name for name in configs.LOSS_FIELDS if config[name] != usual[name]]:
            raise ValueError(f"config.{unused[0]} does not count with a loss of your own")
    configs.validate(config)
    if (train_source is None) != (eval_source is None):
        raise ValueError("give both train_source and eval_source, or neither")
    if train_source is not None:
        config.dataset = data.GIVEN
    if loss is not None:
        config.loss = f"own: {identity.described(loss)}"
    if config.logger == "wandb":
        import_wandb()
    devices.find_devices()
    alone = locked(workdir, runs.note) if jax.process_index() == 0 else contextlib.nullcontext()
    given = None if train_source is None else (train_source, eval_source)
    with alone:
        return _train(config, workdir, given, loss, callbacks, accept_changed_data, allow_code)


def _train(
    config: configs.Config,
    workdir: Path,
    given: tuple[Any, Any] | None,
    loss: Loss | None,
    callbacks: Sequence[Callback],
    accept_changed_data: bool,
    allow_code: bool,
) -> data.Source:
    """`train`, while no other program trains in the folder; ``given``: its sources."""
    # ---- Mistakes that show without the data: in the config, the folder, the start weights
    mesh = devices.data_mesh(config.spatial_shards)
    parts = mesh.shape["data"]
    if config.batch_size % parts:
        shared = "" if parts == mesh.size else f", {mesh.shape['height']} for each image"
        raise ValueError(
            f"config.batch_size = {config.batch_size} cannot be split over {mesh.size} devices"
            f"{shared}; use a multiple of {parts}"
        )
    start: dict[str, weights.Weights] = {}
    load_start = functools.partial(init.load_start, config, allow_code)
    now = code_of(str(Path(config.backbone).expanduser()))
    if last := last_checkpoint(workdir):
        identity.check_config(last, config, workdir)
        then = last.run.get("code")
        if then and now and then["sha256"] != now["sha256"]:
            raise ValueError(
                f"{now['file']} is not the code that {workdir} was trained with; bring it back, or "
                f"start another run from this one: --config.init={workdir} --workdir=NEW"
            )
    else:
        init.check_names(configs.start_files(config).values(), config.backbone, config.width)
        # What may have to be fetched waits until the data are there.
        if not any(map(weights.is_name, configs.start_files(config).values())):
            start = load_start()

    # ---- The data, and mistakes that show by them
    train_source, eval_source = open_sources(config, given)
    data.check_disjoint(train_source, eval_source)
    if config.batch_size > len(train_source):
        raise ValueError(
            f"config.batch_size = {config.batch_size} is more than the {len(train_source)} "
            "training images"
        )
    heads = init.choose_heads(config.heads, config.loss_weights, train_source)
    if not last and not start:
        start = load_start()
    losses, told = (loss, []) if loss else init.choose_losses(config, train_source, heads)
    if config.ema:
        told.append(f"scores are of averaged parameters (config.ema = {config.ema})")
    earlier = frozenset(digest for loaded in start.values() for digest in loaded.trained_on)
    former_steps: dict[str, int] = {}
    changes = ""
    if last:
        earlier, changes = identity.check_data(
            last, train_source, eval_source, heads, workdir, accept=accept_changed_data
        )
        former_steps = identity.check_steps(last, config, len(train_source), workdir)
        inputs = Inputs.from_dict(last.run["inputs"])
    else:
        usual = data.row_of(config.dataset).preprocessing
        inputs = init.choose_inputs(config.inputs.to_dict(), train_source, usual, start)
    init.check_images(inputs, train_source, eval_source)
    scored, left_out = data.unseen(eval_source, earlier, "choose another config.eval_split")
    init.check_best(config.best, scored, heads)
    stages = make_stages(config, train_source, heads, inputs, mesh)
    frozen = [name for name in stages[0].model.frozen_layers if not is_conv_transpose(name)]
    if frozen and not last and not start:
        raise ValueError(
            f"config.freeze = {config.freeze}: {frozen[0]} would stay random; give start weights "
            'by config.init, or train all layers: --config.freeze="()"'
        )
    init.drop_other_scores(start, stages[0].model, heads)
    init.check_weights(stages[0].model, config.backbone, start, config.init)
    images = identity.describe_data(train_source, eval_source, earlier)

    # ---- From here on the folder is this run's
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices("prepared")  # nobody still looks for a former run
    first_process = jax.process_index() == 0
    loggers: list[Logger] = []
    if first_process:
        workdir.mkdir(parents=True, exist_ok=True)
        if config.logger == "wandb":
            loggers = [WeightsAndBiases(workdir, configs.to_plain(config))]
        write_whole(workdir / "config.json", json.dumps(configs.to_plain(config), indent=2))
    description = describe_run(config, heads, inputs, runs.keep_images(workdir, images))
    silent = not first_process
    told_to = {"loggers": loggers, "callbacks": callbacks}
    journal = Journal(workdir, tuple(config.stages), silent=silent, **told_to)
    with journal, noted_signals() as stop:
        journal.start()
        classes = " and ".join(str(table.num_classes) for table in heads.values())
        several = f" of {jax.process_count()} processes" if jax.process_count() > 1 else ""
        journal.say(
            f"{config.dataset} ({train_source.origin}): {len(train_source)} training and "
            f"{len(scored)} evaluation images, {classes} classes; "
            f"{jax.device_count()} {jax.devices()[0].platform} "
            f"device(s){several}; in {workdir}"
        )
        for note in dict.fromkeys((*train_source.notes, *eval_source.notes)):
            journal.say(f"note: {note}")
        for text in filter(None, (changes, left_out, *told)):
            journal.say(text)

        predictor_of = functools.partial(
            Predictor,
            inputs=inputs,
            heads=heads,
            scale=config.scale,
            batch_size=config.eval_batch_size,
            canvas=rule_for(scored.sizes),
            mesh=devices.local_mesh(),  # each process scores alone: sizes of images may differ
        )
        finished = config.stages[: config.stages.index(last.stage)] if last else ()
        estimated = False
        for before, stage in zip((None, *stages), stages, strict=False):
            if stage.name in finished:
                journal.say(f"{stage.name}: finished before")
                continue
            with StageCheckpoints(workdir, stage.name, tell=journal.say) as checkpoints:
                # ---- Its last state, or its first: from the stage before or the start weights
                done, seen = 0, Evaluations()
                if checkpoints.steps():
                    like = jax.eval_shape(
                        functools.partial(init_state, optimizer=stage.optimizer, ema=config.ema),
                        abstract_params(stage.model),
                    )
                    split = devices.state_shardings(like, mesh, split=config.shard_parameters)
                    state, position = checkpoints.restore(like, split)
                    state = put_state(state, mesh, shard_parameters=config.shard_parameters)
                    done = int(state.step)
                    journal.rewind(stage.name, done, position.pop("records", ""))
                    seen = Evaluations(*position.pop("evaluations", ()))
                    if done >= stage.steps or 0 < stage.patience <= seen.since:
                        journal.say(f"{stage.name}: finished before, {done} steps")
                        continue
                    # Of changed data it takes the batches that would come next by their own order.
                    stage.batches.set_state({**position, "examples": len(train_source)})
                    journal.say(f"{stage.name}: going on from step {done}")
                    if then := former_steps.get(stage.name):
                        journal.say(_another_length(config, stage, then, done))
                else:
                    key = jax.random.fold_in(stage.key, 1)
                    which = "best" if config.patience else "last"
                    if before is not None:
                        with StageCheckpoints(workdir, before.name, read_only=True) as former:
                            step, _, params = former.load(which)
                        if which == "last" and step < before.steps:
                            raise ValueError(
                                f"{workdir}: the last checkpoint of {before.name} was damaged just "
                                "now; the same command trains its last steps again"
                            )
                        start = {"": weights.Weights(weights.flatten(params))}
                    if start:
                        params, report = init.params_from(stage.model, start, key)
                        origin = "the start weights"
                        if before is not None:
                            averaged = ", averaged parameters" if config.ema else ""
                            origin = f"{before.name}, its {which} step{averaged}"
                        journal.say(f"{stage.name}: starts from {origin}\n{report}")
                    else:
                        params = initial_params(stage.model, key)
                        remark = init.expect_of_random_weights(
                            config.dataset, len(train_source), config.backbone
                        )
                        journal.say(f"{stage.name}: starts from random weights{remark}")
                    state = create_state(
                        params,
                        stage.optimizer,
                        mesh,
                        ema=config.ema,
                        shard_parameters=config.shard_parameters,
                    )
                    if stage.auto_layers:
                        rates = init.auto_rates(
                            stage.model, stage.auto_layers, params, inputs, train_source
                        )
                        state = state._replace(opt_state=with_layer_rates(state.opt_state, rates))
                        state = put_state(state, mesh, shard_parameters=config.shard_parameters)
                        listed = (f"{layer} {factor:.3g}" for layer, factor in rates.items())
                        journal.say(f"{stage.name}: factors on rates: {', '.join(listed)}")
                    params, start = {}, {}  # a step need not keep them in memory
                    devices.return_memory()
                    journal.rewind(stage.name, 0)

                # ---- Its steps
                train_step = make_train_step(
                    stage.model,
                    stage.optimizer,
                    inputs,
                    mesh,
                    key=jax.random.fold_in(stage.key, 2),
                    loss=losses,
                    normalize_loss=config.normalize_loss,
                    cell_fraction=config.cell_fraction,
                    loss_weights=config.loss_weights.to_dict(),
                    ema=config.ema,
                    accumulate=config.accumulate,
                    shard_parameters=config.shard_parameters,
                )
                journal.say(f"{stage.name}: compiling the step")
                work = work_of(config, stages[stages.index(stage) :], done, scored.sizes)
                with stage.batches, journal.progress(stage.name, done, stage.steps):
                    _loop(
                        stage,
                        train_step,
                        state,
                        seen,
                        log_every=config.log_every,
                        save_every=config.checkpoint_every,
                        score_every=config.eval_every,
                        score=functools.partial(
                            _score,
                            predictor_of,
                            scored,
                            heads,
                            config.samples,
                            # They cost the host time, and are left to the report.
                            any(word in config.best for word in ("image", "boundary")),
                            journal,
                            stage,
                        ),
                        save=functools.partial(checkpoints.save, run=description),
                        journal=journal,
                        work=None if estimated else work,
                        stop=stop,
                    )
                estimated = True
        if stop:
            raise Stopped("all stages are trained and saved; there is no report yet", stop[0])
    return scored


def open_sources(
    config: configs.Config, given: tuple[Any, Any] | None
) -> tuple[data.Source, data.Source]:
    """The images to train and to score on: those given to `train`, or the config's.

    Raises:
        ValueError: If those that are given have not the same classes.
    """
    if given is None:
        options = configs.data_options(config)
        splits = config.train_split, config.eval_split
        train, val = (data.open_source(config.dataset, split, **options) for split in splits)
        return train, val
    train, val = given
    if not isinstance(train, data.Source):
        train = data.Examples(train, name="train_source")
    if not isinstance(val, data.Source):
        classes = None if hasattr(val, "classes") else train.label_maps
        val = data.Examples(val, classes, name="eval_source")
        val.ranges = train.ranges
    for head, table in train.label_maps.items():
        there = val.label_maps.get(head)
        if there is None or there.names != table.names:
            known = "no such label map" if there is None else ", ".join(there.names[:5])
            raise ValueError(
                f"train_source and eval_source need the same classes: of {head} the one has "
                f"{', '.join(table.names[:5])}, the other {known}"
            )
    return train, val


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


def _another_length(config: configs.Config, stage: Stage, then: int, done: int) -> str:
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


# ======================================================================== one stage


def _loop(
    stage: Stage,
    train_step: TrainStep,
    state: TrainState,
    seen: Evaluations,
    *,
    log_every: int,
    save_every: int,
    score_every: int,
    score: Callable[[int, Any], dict[str, float]],
    save: Callable[..., None],
    journal: Journal,
    work: Work | None,
    stop: Sequence[int],
) -> None:
    """The training loop: step, log, score, save; waits for the devices only to log, or to tell.

    Args:
        seen: The evaluations before.
        score: Gives the metrics of a step's number and parameters.
        save: Is given a step's number, state, position in the data, and metrics or None.
        work: What lies before the run, for an estimate of its time; None for none.
        stop: Signals that came, from `noted_signals`.
    """
    step = int(state.step)
    reports: list[tuple[int, list[str], StepReport]] = []
    pace = Pace()
    while step < stage.steps:
        batch, ids = next(stage.batches)
        state, report = train_step(state, batch)
        step += 1
        reports.append((step, ids, report))

        scoring = step == stage.steps or (score_every > 0 and step % score_every == 0)
        saving = scoring or step % save_every == 0
        logging = saving or step % log_every == 0
        signum = stop[0] if stop else 0
        if jax.process_count() > 1:
            # All must stop at one step. They agree on it where they wait for the devices anyway.
            gathered = multihost_utils.process_allgather(np.int32(signum)) if logging else 0
            signum = int(np.max(gathered))

        # ---- Tell how far it is, at growing distances
        due = pace.due()
        if due:
            loss = float(report.loss)  # waits for the devices
            pace.waited()
            if not logging:
                rate = pace.speed * stage.batch_size if pace.taken > 1 else 0.0
                journal.advance(stage.name, step, stage.steps, loss, rate, stage.batch_size)
        if pace.taken == 3 and work is not None:
            pixels = next(batch[head].size for head, _ in stage.model.heads)
            journal.say(pace.estimate(work, pixels))
        if not logging and not signum:
            continue

        # ---- Look at the steps since the last time
        values = mean_losses(stage.name, reports)
        rate = pace.speed * stage.batch_size
        taken_off = plateau_factor(state.opt_state) if stage.plateau else 1.0
        values |= {"learning_rate": stage.rate(step) * taken_off, "images_per_second": rate}
        if (peak := devices.peak_memory()) is not None:
            values["peak_memory_gib"] = peak / 2**30
        journal.record(stage.name, step, values)
        line = due or step == stage.steps
        so_far = (step, stage.steps, values["loss"], rate, stage.batch_size)
        journal.advance(stage.name, *so_far, line)
        reports.clear()

        # ---- Save, with a score where it is due
        if saving or signum:
            # A finite loss can still have led to parameters that are not.
            if not all_finite(state.params):
                raise Diverged(
                    f"{stage.name} step {step}: parameters are NaN or Inf after the update on the "
                    f"images {', '.join(ids)}; {REMEDY}"
                )
            metrics = score(step, state.used) if scoring else None
            if metrics is not None and step % max(score_every, 1) == 0:
                seen = seen.and_then(goodness(metrics, stage.best))
            position = {**stage.batches.get_state(), "records": journal.digest()}
            position["evaluations"] = list(seen)
            save(step, state, data=position, metrics=metrics)
        ended = 0 < stage.patience <= seen.since
        if signum and step < stage.steps and not ended:
            raise Stopped(
                f"stopped at {stage.name} step {step} of {stage.steps}, all saved; "
                "the same command goes on from here",
                signum,
            )
        if ended:
            journal.say(
                f"{stage.name}: ends at step {step} of {stage.steps}: no better {stage.best} in "
                f"{seen.since} evaluations"
            )
            return
        pace.restart()


def mean_losses(
    stage: str, reports: Sequence[tuple[int, Sequence[str], StepReport]]
) -> dict[str, float]:
    """The means of what steps reported: loss (with several heads also of each), gradient norm.

    Waits for the devices, where the reports still are. Raises Diverged, with the step and its
    images, if a loss was not finite or a label invalid.
    """
    host = jax.device_get([report for _, _, report in reports])
    for (step, ids, _), report in zip(reports, host, strict=True):
        images = ", ".join(ids)
        if report.invalid:
            raise Diverged(
                f"{stage} step {step}: {int(report.invalid)} pixels have a label that is neither a "
                f"class nor void (255), in one of the images {images}; mend the label files"
            )
        if not np.isfinite(report.loss) or not np.isfinite(report.gradient_norm):
            raise Diverged(
                f"{stage} step {step}: the loss is {report.loss} and the gradient norm "
                f"{report.gradient_norm} on the images {images}; {REMEDY}"
            )
    mean = jax.tree.map(lambda *values: float(np.mean(values)), *host)
    heads = mean.head_losses if len(mean.head_losses) > 1 else {}
    losses = {"loss": mean.loss, **{f"loss_{head}": loss for head, loss in heads.items()}}
    return {**losses, "gradient_norm": mean.gradient_norm}


def _score(
    predictor_of: Callable[..., Predictor],
    images: data.Source,
    heads: Mapping[str, ClassTable],
    samples: int,
    by_image: bool,
    journal: Journal,
    stage: Stage,
    step: int,
    params: Any,
) -> dict[str, float]:
    """Scores images, records the metrics, and draws the first ``samples`` predictions.

    Each process scores its part of them; all get the same metrics: those of the whole set by name
    (of several heads the mean, and ``HEAD/NAME``), and ``NAME/CLASS`` of each class that has one.
    """
    local_params = jax.tree.map(lambda x: x.addressable_data(0), devices.gathered(params))
    predictor = predictor_of(stage.model, local_params)
    drawn: list[tuple[Any, dict[str, np.ndarray]]] = []

    def keep(example: Any, labels: dict[str, np.ndarray]) -> None:
        if len(drawn) < samples:
            drawn.append((example, labels))

    part = range(jax.process_index(), len(images), jax.process_count())
    tallies = {
        head: Tally.empty(table.num_classes, len(images) if by_image else 0)
        for head, table in heads.items()
    }
    if part:
        examples = loader.evaluation_examples(images, part)
        for head, own in tally(predictor, examples, by_image=by_image, visit=keep).items():
            tallies[head].images[part[: len(own.images)]] = own.images
            tallies[head] = own._replace(images=tallies[head].images)
    tallies = devices.sum_over_processes(tallies)

    overall: dict[str, dict[str, float]] = {}  # by head
    of_classes: dict[str, float] = {}
    for head, classes in heads.items():
        metrics = tallies[head].metrics(classes)
        overall[head] = metrics.overall()
        prefix = f"{head}/" if len(heads) > 1 else ""
        of_classes |= {
            f"{prefix}{name}/{class_}": float(value)
            for name, values in metrics.by_class().items()
            for class_, value in zip(classes.names, values, strict=True)
            if not np.isnan(value)
        }
        shown = "  ".join(
            f"{k.replace('_', ' ')} {v:.4f}"
            for k, v in overall[head].items()
            if k not in ("mean_precision", "mean_f1")
        )
        journal.say(f"{stage.name} step {step}: {prefix.replace('/', '  ')}{shown}")
        for number, (example, labels) in enumerate(drawn):
            shown = bands.picture(example["image"], images.ranges["image"])
            panels = {"image": shown, "ground truth": example[head]}
            picture = drawing.side_by_side({**panels, stage.name: labels[head]}, classes)
            name = f"sample{number}{'_' + head if prefix else ''}"
            journal.picture(stage.name, step, name, picture)
    values = {
        name: float(np.mean([of_head[name] for of_head in overall.values()]))
        for name in next(iter(overall.values()))
    }
    if len(heads) > 1:
        values |= {f"{head}/{name}": v for head, m in overall.items() for name, v in m.items()}
    journal.record(stage.name, step, {f"eval/{name}": value for name, value in values.items()})
    journal.page()
    return values | of_classes


# ======================================================================== ends

REMEDY = "the last checkpoint is untouched. Lower config.learning_rate, or set config.clip_norm"


class Diverged(RuntimeError):
    """Training cannot go on; the last checkpoint is from before."""


class Stopped(Exception):
    """A signal asked the run to stop; all is saved."""

    def __init__(self, message: str, signum: int) -> None:
        super().__init__(message)
        self.signum = signum


@contextlib.contextmanager
def noted_signals() -> Iterator[Sequence[int]]:
    """Notes the first of SIGINT, SIGTERM and SIGHUP in a list; the second ends the program.

    A signal that is ignored, as SIGHUP under nohup, stays ignored.
    """
    received: list[int] = []

    def note(signum: int, _: FrameType | None) -> None:
        received.append(signum)
        if len(received) > 1:
            restore()
            signal.raise_signal(signum)

    def restore() -> None:
        for number, handler in previous.items():
            signal.signal(number, handler)

    names = ("SIGINT", "SIGTERM", "SIGHUP")  # the last is not known everywhere
    numbers = [getattr(signal, name) for name in names if hasattr(signal, name)]
    previous = {
        number: signal.signal(number, note)
        for number in numbers
        if signal.getsignal(number) is not signal.SIG_IGN
    }
    try:
        yield received
    finally:
        restore()
