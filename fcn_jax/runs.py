"""The folder of a run: its config, and one orbax directory a stage with the last and the best step.

Each checkpoint holds the train state, the position in the data, the config and the metrics, so
that it alone suffices to go on or to predict.
"""

from __future__ import annotations

import dataclasses
import json
import operator
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

import jax
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import preservation_policy

from fcn_jax.classes import ClassTable
from fcn_jax.config import Config, from_plain, stage_model, to_plain
from fcn_jax.models.decoders import SEGMENTERS
from fcn_jax.models.fcn import FCN
from fcn_jax.models.inputs import Inputs

Which = Literal["best", "last"]


State = TypeVar("State")  # a tree of arrays, of which one branch is ``params``


class StageCheckpoints:
    """The checkpoints of one stage; a context manager that waits for saves on leaving.

    A save is atomic: it is written beside the others and renamed when complete, so that a kill
    at any moment leaves the previous one in place.
    """

    def __init__(self, workdir: str | Path, stage: str, *, read_only: bool = False) -> None:
        mean_iu = operator.itemgetter("mean_iu")
        best = preservation_policy.BestN(
            get_metric_fn=mean_iu, n=1, keep_checkpoints_without_metrics=False
        )
        self._manager = ocp.CheckpointManager(
            # orbax takes absolute paths only, and says so in a background thread where nobody
            # hears it.
            Path(workdir).expanduser().absolute() / "checkpoints" / stage,
            item_handlers={
                "state": ocp.PyTreeCheckpointHandler(),
                "data": ocp.JsonCheckpointHandler(),
                "run": ocp.JsonCheckpointHandler(),
            },
            options=ocp.CheckpointManagerOptions(
                read_only=read_only,
                best_fn=mean_iu,
                preservation_policy=preservation_policy.AnyPreservationPolicy(
                    [preservation_policy.LatestN(1), best]
                ),
                cleanup_tmp_directories=not read_only,
            ),
        )

    def __enter__(self) -> StageCheckpoints:
        return self

    def __exit__(self, *error: object) -> None:
        self._manager.close()

    def step(self, which: Which = "last") -> int | None:
        """The step of the last or the best checkpoint; None where there is none yet.

        Where no checkpoint was scored, the last counts as the best.
        """
        last = self._manager.latest_step()
        if which == "last" or last is None:
            return last
        best = self._manager.best_step()
        return last if best is None else best

    def save(
        self,
        step: int,
        state: Any,
        data: dict[str, Any],
        run: dict[str, Any],
        metrics: dict[str, float] | None,
    ) -> None:
        """Saves in the background; the state may be donated as soon as this returns.

        Args:
            step: Number of the checkpoint.
            state: A tree of arrays, of which one branch is ``params``.
            data: The data iterator's position.
            run: Config, classes and inputs, plain values (`describe_run`).
            metrics: ``{"mean_iu": …}`` and others where the state was scored.
        """
        items = ocp.args.Composite(
            state=ocp.args.PyTreeSave(state),
            data=ocp.args.JsonSave(data),
            run=ocp.args.JsonSave(run),
        )
        self._manager.save(step, args=items, metrics=metrics)

    def restore(self, like: State, sharding: jax.sharding.Sharding) -> tuple[State, dict[str, Any]]:
        """The last checkpoint's state, of the shapes in ``like``, and its position in the data."""
        like = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), like
        )
        restore_args = ocp.checkpoint_utils.construct_restore_args(like)
        state = ocp.args.PyTreeRestore(like, restore_args=restore_args)
        restored = self._read("last", state=state, data=ocp.args.JsonRestore())
        return restored["state"], restored["data"]

    def restore_params(self, which: Which) -> dict[str, Any]:
        """The parameters alone, as numpy arrays, without the optimiser's state."""
        tree = self._manager.item_metadata(self._require(which))["state"].tree
        item = {"params": tree["params"]}
        restore_args = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), item)
        state = ocp.args.PyTreeRestore(item, restore_args=restore_args, partial_restore=True)
        return self._read(which, state=state)["state"]["params"]

    def run(self, which: Which) -> dict[str, Any]:
        """What `save` was given as ``run``."""
        return self._read(which, run=ocp.args.JsonRestore())["run"]

    def _read(self, which: Which, **items: Any) -> Any:
        return self._manager.restore(self._require(which), args=ocp.args.Composite(**items))

    def _require(self, which: Which) -> int:
        step = self.step(which)
        if step is None:
            raise FileNotFoundError(f"{self._manager.directory} holds no checkpoint")
        return step


# ======================================================================== finished runs


@dataclasses.dataclass(frozen=True)
class Run:
    """A trained network, and all that predicting with it needs.

    Attributes:
        model: The network.
        variables: ``{"params": …}``.
        inputs: What it reads of an example, and how that is normalised.
        heads: The classes of each head.
        config: The run's config.
        stage: The stage it comes from.
        step: The step within the stage.
        trained_on: Digests of all images that it, or a run that it started from, was trained on.
    """

    model: FCN
    variables: dict[str, Any]
    inputs: Inputs
    heads: dict[str, ClassTable]
    config: Config
    stage: str
    step: int
    trained_on: frozenset[str] = frozenset()


def build_model(config: Config, stage: str, heads: Mapping[str, ClassTable], inputs: Inputs) -> FCN:
    """The network of a stage of a config."""
    num_classes = {head: classes.num_classes for head, classes in heads.items()}
    return stage_model(config, stage, num_classes=num_classes, inputs=inputs.channels)


def describe_run(
    config: Config,
    heads: Mapping[str, ClassTable],
    inputs: Inputs,
    data: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """What a checkpoint holds besides arrays, as plain values.

    ``data`` tells the images: ``{"name": …, "train": {"ids": […], "digests": […], …}, "eval": …,
    "earlier": [digests of others that it was trained on]}`` (`training.identity.describe_data`).
    """
    return {
        "config": to_plain(config),
        "heads": {head: classes.to_dict() for head, classes in heads.items()},
        "inputs": inputs.to_dict(),
        "data": data,
    }


def trained_on(run: Mapping[str, Any]) -> frozenset[str]:
    """Digests of all images that what `describe_run` describes was trained on."""
    data = run.get("data") or {"train": {"digests": ()}, "earlier": ()}
    return frozenset((*data["train"]["digests"], *data["earlier"]))


class LastCheckpoint(NamedTuple):
    """Where a run stands: the stage and step of its last checkpoint, and what that describes."""

    stage: str
    step: int
    run: dict[str, Any]


def last_checkpoint(workdir: str | Path) -> LastCheckpoint | None:
    """The last checkpoint of a run, whatever else of its folder is lost; None if there is none."""
    found = []
    for stage in SEGMENTERS:
        # Opening the folder of a stage that has not begun would make it.
        if (Path(workdir).expanduser() / "checkpoints" / stage).is_dir():
            with StageCheckpoints(workdir, stage, read_only=True) as checkpoints:
                if (step := checkpoints.step()) is not None:
                    found.append(LastCheckpoint(stage, step, checkpoints.run("last")))
    return max(found, key=lambda c: c.run["config"]["stages"].index(c.stage), default=None)


def read_config(workdir: str | Path) -> Config:
    """The config of a run.

    Raises:
        FileNotFoundError: If the folder is no run's.
        ValueError: If its config.json is damaged.
    """
    path = Path(workdir).expanduser() / "config.json"
    if not path.is_file():
        raise FileNotFoundError(
            f"{workdir} is no folder of a training run (it has no config.json); "
            "give the --workdir of train.py"
        )
    try:
        return from_plain(json.loads(path.read_text()))
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is damaged ({error}); restore it or use another folder") from None


def available_stages(workdir: str | Path) -> list[str]:
    """The stages of a run that have a checkpoint, in the order they are trained.

    Raises:
        FileNotFoundError, ValueError: As `read_config`.
    """
    found = []
    for stage in read_config(workdir).stages:
        # Opening the folder of a stage that has not begun would make it.
        if (Path(workdir).expanduser() / "checkpoints" / stage).is_dir():
            with StageCheckpoints(workdir, stage, read_only=True) as checkpoints:
                if checkpoints.step() is not None:
                    found.append(stage)
    return found


def load_run(
    workdir: str | Path,
    stage: str | None = None,
    which: Which = "best",
    precision: str | None = None,
) -> Run:
    """Loads a trained network.

    Args:
        workdir: The ``--workdir`` of train.py.
        stage: Such as ``fcn16s``; None is the last that has a checkpoint.
        which: The checkpoint of the highest mean IU on the validation split, or the last.
        precision: In what it is to compute (`create_model`); None is as in training.

    Raises:
        FileNotFoundError: If the folder is no run's, or holds no checkpoint yet.
        ValueError: If the stage has no checkpoint, or there is no such precision; the message
            lists those that there are.
    """
    stages = available_stages(workdir)
    if not stages:
        raise FileNotFoundError(f"{workdir} holds no checkpoint yet; let train.py reach the first")
    if stage is None:
        stage = stages[-1]
    if stage not in stages:
        known = "" if stage in SEGMENTERS else f"; networks are {', '.join(SEGMENTERS)}"
        raise ValueError(f"{workdir} has no checkpoint of {stage!r}, only {stages}{known}")
    with StageCheckpoints(workdir, stage, read_only=True) as checkpoints:
        fields = checkpoints.run(which)
        params = checkpoints.restore_params(which)
        step = checkpoints.step(which)
    assert step is not None
    config = from_plain(fields["config"])
    if precision is not None:
        config.precision = precision
    heads = {head: ClassTable.from_dict(table) for head, table in fields["heads"].items()}
    inputs = Inputs.from_dict(fields["inputs"])
    model = build_model(config, stage, heads, inputs)
    variables = {"params": params}
    return Run(model, variables, inputs, heads, config, stage, step, trained_on(fields))
