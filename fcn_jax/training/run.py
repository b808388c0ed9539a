"""A whole run: every stage of a config in turn, safe against a crash at any moment.

All processes of a run that has several do the same; the first alone writes, but for checkpoints.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from fcn_jax import config as configs
from fcn_jax import data, devices, runs, weights
from fcn_jax.canvas import rule_for
from fcn_jax.checkpoints import StageCheckpoints, note
from fcn_jax.classes import ClassTable
from fcn_jax.inference.predictor import Predictor
from fcn_jax.models.fcn import abstract_params, initial_params
from fcn_jax.models.inputs import Inputs
from fcn_jax.models.losses import Loss
from fcn_jax.runs import LastCheckpoint, describe_run, last_checkpoint, write_whole
from fcn_jax.training import identity, init
from fcn_jax.training.journal import Callback, Journal
from fcn_jax.training.lock import locked
from fcn_jax.training.loggers import Logger, WeightsAndBiases, import_wandb
from fcn_jax.training.loop import Evaluations, Stopped, noted_signals, take_steps
from fcn_jax.training.optimizer import with_layer_rates
from fcn_jax.training.scoring import score
from fcn_jax.training.stages import Stage, another_length, make_stages, work_of
from fcn_jax.training.step import TrainState, create_state, init_state, make_train_step, put_state
from fcn_jax.weights.arrays import is_conv_transpose


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
    alone = locked(workdir, note) if jax.process_index() == 0 else contextlib.nullcontext()
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
    prepared = prepare(config, workdir, given, loss, accept_changed_data, allow_code)
    stages, heads = prepared.stages, prepared.heads

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
    images = runs.keep_images(workdir, prepared.images)
    description = describe_run(config, heads, prepared.inputs, images)
    silent = not first_process
    told_to = {"loggers": loggers, "callbacks": callbacks}
    journal = Journal(workdir, tuple(config.stages), silent=silent, **told_to)
    with journal, noted_signals() as stop:
        journal.start()
        classes = " and ".join(str(table.num_classes) for table in heads.values())
        several = f" of {jax.process_count()} processes" if jax.process_count() > 1 else ""
        journal.say(
            f"{config.dataset} ({prepared.train_source.origin}): "
            f"{len(prepared.train_source)} training and {len(prepared.scored)} evaluation images, "
            f"{classes} classes; "
            f"{jax.device_count()} {jax.devices()[0].platform} "
            f"device(s){several}; in {workdir}"
        )
        for remark in prepared.remarks:
            journal.say(remark)

        predictor_of = functools.partial(
            Predictor,
            inputs=prepared.inputs,
            heads=heads,
            scale=config.scale,
            batch_size=config.eval_batch_size,
            canvas=rule_for(prepared.scored.sizes),
            mesh=devices.local_mesh(),  # each process scores alone: sizes of images may differ
        )
        finished = (
            config.stages[: config.stages.index(prepared.last.stage)] if prepared.last else ()
        )
        estimated = False
        for before, stage in zip((None, *stages), stages, strict=False):
            if stage.name in finished:
                journal.say(f"{stage.name}: finished before")
                continue
            with StageCheckpoints(workdir, stage.name, tell=journal.say) as checkpoints:
                if checkpoints.steps():
                    state, seen, position = last_state(
                        config, prepared, stage, checkpoints, journal
                    )
                    done = int(state.step)
                    if done >= stage.steps or 0 < stage.patience <= seen.since:
                        journal.say(f"{stage.name}: finished before, {done} steps")
                        continue
                    stage.batches.set_state(position)
                    journal.say(f"{stage.name}: going on from step {done}")
                    if then := prepared.former_steps.get(stage.name):
                        journal.say(another_length(config, stage, then, done))
                else:
                    state = first_state(config, prepared, stage, before, workdir, journal)
                    devices.return_memory()
                    seen = Evaluations()
                    journal.rewind(stage.name, 0)
                train_step = make_train_step(
                    stage.model,
                    stage.optimizer,
                    prepared.inputs,
                    prepared.mesh,
                    key=jax.random.fold_in(stage.key, 2),
                    loss=prepared.losses,
                    normalize_loss=config.normalize_loss,
                    cell_fraction=config.cell_fraction,
                    loss_weights=config.loss_weights.to_dict(),
                    ema=config.ema,
                    accumulate=config.accumulate,
                    shard_parameters=config.shard_parameters,
                )
                journal.say(f"{stage.name}: compiling the step")
                done = int(state.step)
                work = work_of(config, stages[stages.index(stage) :], done, prepared.scored.sizes)
                with stage.batches, journal.progress(stage.name, done, stage.steps):
                    take_steps(
                        stage,
                        train_step,
                        state,
                        seen,
                        log_every=config.log_every,
                        save_every=config.checkpoint_every,
                        score_every=config.eval_every,
                        score=functools.partial(
                            score,
                            stage,
                            predictor_of=predictor_of,
                            images=prepared.scored,
                            heads=heads,
                            samples=config.samples,
                            # They cost the host time, and are left to the report.
                            by_image=any(word in config.best for word in ("image", "boundary")),
                            journal=journal,
                        ),
                        save=functools.partial(checkpoints.save, run=description),
                        journal=journal,
                        work=None if estimated else work,
                        stop=stop,
                    )
                estimated = True
        if stop:
            raise Stopped("all stages are trained and saved; there is no report yet", stop[0])
    return prepared.scored


# ======================================================================== before it writes


@dataclasses.dataclass(frozen=True)
class Prepared:
    """What a run needs, compared with itself and with the folder's former run.

    Attributes:
        last: The former run's last checkpoint.
        start: The start weights by input, of a run that begins; emptied when they are in the state.
        scored: The evaluation images less those that the start weights were trained on.
        losses: Of every head, or one for all.
        images: What `runs.keep_images` writes down of them.
        former_steps: Of each stage that is to have other steps than it was to have before.
        remarks: What to tell of all this.
    """

    mesh: Mesh
    last: LastCheckpoint | None
    start: dict[str, weights.Weights]
    train_source: data.Source
    scored: data.Source
    heads: Mapping[str, ClassTable]
    inputs: Inputs
    losses: Loss | Mapping[str, Loss]
    stages: Sequence[Stage]
    images: dict[str, Any]
    former_steps: Mapping[str, int]
    remarks: Sequence[str]


def prepare(
    config: configs.Config,
    workdir: Path,
    given: tuple[Any, Any] | None,
    loss: Loss | None,
    accept_changed_data: bool,
    allow_code: bool,
) -> Prepared:
    """Compares config, folder, start weights and data, and writes nothing; arguments as of `train`.

    Raises:
        ValueError: As `train` does.
    """
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
    if last := last_checkpoint(workdir):
        identity.check_config(last, config, workdir)
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
    notes = [f"note: {note}" for note in dict.fromkeys((*train_source.notes, *eval_source.notes))]
    return Prepared(
        mesh=mesh,
        last=last,
        start=start,
        train_source=train_source,
        scored=scored,
        heads=heads,
        inputs=inputs,
        losses=losses,
        stages=stages,
        images=identity.describe_data(train_source, eval_source, earlier),
        former_steps=former_steps,
        remarks=(*notes, *filter(None, (changes, left_out)), *told),
    )


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


# ======================================================================== where a stage begins


def last_state(
    config: configs.Config,
    prepared: Prepared,
    stage: Stage,
    checkpoints: StageCheckpoints,
    journal: Journal,
) -> tuple[TrainState, Evaluations, dict[str, Any]]:
    """The state of a stage's last checkpoint, its evaluations, and its position in the data.

    Raises:
        Damaged: If no checkpoint of the stage is whole.
        ValueError: If it is of another network or optimiser.
    """
    like = jax.eval_shape(
        functools.partial(init_state, optimizer=stage.optimizer, ema=config.ema),
        abstract_params(stage.model),
    )
    split = devices.state_shardings(like, prepared.mesh, split=config.shard_parameters)
    state, position = checkpoints.restore(like, split)
    state = put_state(state, prepared.mesh, shard_parameters=config.shard_parameters)
    journal.rewind(stage.name, int(state.step), position.pop("records", ""))
    seen = Evaluations(*position.pop("evaluations", ()))
    # Of changed data it takes the batches that would come next by their own order.
    return state, seen, {**position, "examples": len(prepared.train_source)}


def first_state(
    config: configs.Config,
    prepared: Prepared,
    stage: Stage,
    before: Stage | None,
    workdir: Path,
    journal: Journal,
) -> TrainState:
    """The state a stage begins with: of the stage before, start weights, or random ones.

    Raises:
        ValueError: If the last checkpoint of the stage before is damaged.
    """
    key = jax.random.fold_in(stage.key, 1)
    start, origin = prepared.start, "the start weights"
    if before is not None:
        which = "best" if config.patience else "last"
        with StageCheckpoints(workdir, before.name, read_only=True) as former:
            step, _, params = former.load(which)
        if which == "last" and step < before.steps:
            raise ValueError(
                f"{workdir}: the last checkpoint of {before.name} was damaged just "
                "now; the same command trains its last steps again"
            )
        start = {"": weights.Weights(weights.flatten(params))}
        averaged = ", averaged parameters" if config.ema else ""
        origin = f"{before.name}, its {which} step{averaged}"
    if start:
        params, report = init.params_from(stage.model, start, key)
        journal.say(f"{stage.name}: starts from {origin}\n{report}")
    else:
        params = initial_params(stage.model, key)
        remark = init.expect_of_random_weights(
            config.dataset, len(prepared.train_source), config.backbone
        )
        journal.say(f"{stage.name}: starts from random weights{remark}")
    start.clear()  # a step need not keep them in memory
    state = create_state(
        params,
        stage.optimizer,
        prepared.mesh,
        ema=config.ema,
        shard_parameters=config.shard_parameters,
    )
    if stage.auto_layers:
        rates = init.auto_rates(
            stage.model, stage.auto_layers, params, prepared.inputs, prepared.train_source
        )
        state = state._replace(opt_state=with_layer_rates(state.opt_state, rates))
        state = put_state(state, prepared.mesh, shard_parameters=config.shard_parameters)
        listed = (f"{layer} {factor:.3g}" for layer, factor in rates.items())
        journal.say(f"{stage.name}: factors on rates: {', '.join(listed)}")
    return state
