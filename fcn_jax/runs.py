"""The folder of a run: its config, its images, its checkpoints; and the network that it trained.

What a checkpoint describes alone suffices to predict (`checkpoints.py` tells how it is kept). The
images of the run are listed once, in a file that is called by its digest, which the checkpoints
name.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax

from fcn_jax.checkpoints import Damaged, StageCheckpoints, Which, in_short, note
from fcn_jax.classes import ClassTable
from fcn_jax.config import (
    Config,
    changed_fields,
    from_plain,
    stage_model,
    to_plain,
    wrong_values,
)
from fcn_jax.models.backbones import code_of, find_trusted
from fcn_jax.models.decoders import SEGMENTERS
from fcn_jax.models.fcn import FCN
from fcn_jax.models.inputs import Inputs


def write_whole(path: Path, text: str) -> None:
    """Writes a file that is at any moment the old one or the new one, even if the power fails."""
    temporary = path.with_name(f"{path.name}.part")
    with temporary.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


@dataclasses.dataclass(frozen=True)
class Run:
    """A trained network, and all that predicting with it needs.

    Attributes:
        model: The network.
        variables: ``{"params": …}``; averaged ones where the config has ``ema``.
        inputs: What it reads of an example, and how that is normalised.
        heads: The classes of each head.
        config: The run's config.
        stage: The stage it comes from.
        step: The step within the stage.
        workdir: The run's folder.
        data: What the checkpoint says of its images (`keep_images`).
    """

    model: FCN
    variables: dict[str, Any]
    inputs: Inputs
    heads: dict[str, ClassTable]
    config: Config
    stage: str
    step: int
    workdir: Path
    data: Mapping[str, Any] | None = None

    @functools.cached_property
    def trained_on(self) -> frozenset[str]:
        """Digests of all images that it, or a run that it started from, was trained on.

        Raises:
            Damaged: If the file that lists them is not what was saved.
        """
        return trained_on(read_images(self.workdir, self.data))


def build_model(
    config: Config,
    stage: str,
    heads: Mapping[str, ClassTable],
    inputs: Inputs,
    **options: Any,
) -> FCN:
    """The network of a stage of a config, with ``options`` as for `stage_model`."""
    num_classes = {head: classes.num_classes for head, classes in heads.items()}
    return stage_model(config, stage, num_classes=num_classes, inputs=inputs.channels, **options)


def describe_run(
    config: Config,
    heads: Mapping[str, ClassTable],
    inputs: Inputs,
    data: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """What a checkpoint holds besides arrays, as plain values.

    ``data`` tells the images, as `keep_images` returns.
    """
    return {
        "config": to_plain(config),
        "heads": {head: classes.to_dict() for head, classes in heads.items()},
        "inputs": inputs.to_dict(),
        "data": data,
        "code": code_of(os.path.expanduser(config.backbone)),
    }


def keep_images(workdir: str | Path, images: Mapping[str, Any]) -> dict[str, Any]:
    """Lists the images of a run in its folder, once for all checkpoints that are of these images.

    Args:
        workdir: The run's folder.
        images: Plain values: ``{"name": …, "train": {"ids": […], "digests": […], …}, "eval": …,
            "earlier": [digests of others that it was trained on]}``
            (`training.identity.describe_data`).

    Returns:
        What a checkpoint says of them: the file, and the number of training images.
    """
    file = images_file(images)
    path = Path(workdir) / file
    if jax.process_index() == 0 and not _is_whole(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, json.dumps(images))
    return {"file": file, "train": len(images["train"]["ids"])}


def images_file(images: Mapping[str, Any]) -> str:
    """The name of the file that lists these images in a run's folder."""
    return f"images/{hashlib.sha256(json.dumps(images).encode()).hexdigest()[:32]}.json"


def read_images(workdir: str | Path, data: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
    """The images of which a checkpoint says ``data``; None where they were not recorded.

    Raises:
        Damaged: If the file is not what was saved.
    """
    if data is None or "file" not in data:  # checkpoints of before list them
        return data
    path = Path(workdir) / data["file"]
    if not _is_whole(path):
        what = "damaged" if path.exists() else "missing"
        raise Damaged(
            f"{path}, which lists the images of the run, is {what}; bring it back from a copy, or "
            "give the command of the training once more: of the same images it writes it again"
        )
    return json.loads(path.read_bytes())


def _is_whole(path: Path) -> bool:
    return path.is_file() and hashlib.sha256(path.read_bytes()).hexdigest()[:32] == path.stem


def trained_on(images: Mapping[str, Any] | None) -> frozenset[str]:
    """Digests of all images that a run was trained on, of what `read_images` gives."""
    return frozenset((*images["train"]["digests"], *images["earlier"]) if images else ())


class LastCheckpoint(NamedTuple):
    """Where a run stands: the stage and step of its last checkpoint, and what that describes."""

    stage: str
    step: int
    run: dict[str, Any]


def last_checkpoint(workdir: str | Path) -> LastCheckpoint | None:
    """The last checkpoint of a run, whatever else of its folder is lost; None if there is none.

    Raises:
        Damaged: If there are some, and none tells what the run is.
    """
    found: list[LastCheckpoint] = []
    damaged = ""
    for stage in SEGMENTERS:
        with StageCheckpoints(workdir, stage, read_only=True) as checkpoints:
            try:
                if last := checkpoints.last():
                    found.append(LastCheckpoint(stage, *last))
            except Damaged as error:
                damaged = str(error)
    if damaged and not found:
        raise Damaged(damaged)
    return max(found, key=lambda c: c.run["config"]["stages"].index(c.stage), default=None)


def read_config(workdir: str | Path) -> Config:
    """The config of a run: that of its newest checkpoint, which digests protect.

    config.json counts where there is no checkpoint, and for the fields that are free to change.
    If it is damaged or contradicts the checkpoint, a note tells so.

    Raises:
        FileNotFoundError: If the folder is no run's.
        ValueError: If its config.json is damaged and no checkpoint is whole.
    """
    path = Path(workdir).expanduser() / "config.json"
    last = last_checkpoint(workdir) if (path.parent / "checkpoints").is_dir() else None
    saved = from_plain(last.run["config"]) if last else None
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
        written = from_plain(fields)
        for name, words in wrong_values(written).items():
            raise ValueError(f"{name} = {written[name]!r:.80}: {words}")
        if saved is None:
            return written
        if fields.keys() != to_plain(saved).keys():
            problem = "has other fields than the checkpoint"
        elif changed := changed_fields(saved, written):
            problem = f"differs from the checkpoint ({'; '.join(changed)})"
        else:
            return written
    except FileNotFoundError:
        if saved is None:
            raise FileNotFoundError(
                f"{workdir} is no folder of a training run (it has no config.json); "
                "give the --workdir of train.py"
            ) from None
        problem = "is missing"
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        problem = f"is damaged ({in_short(error)})"
        if saved is None:
            raise ValueError(f"{path} {problem}; restore it or use another folder") from None
    note(f"{path} {problem}; the config in the checkpoint counts")
    return saved


def available_stages(workdir: str | Path) -> list[str]:
    """The stages of a run that have a checkpoint, in the order they are trained.

    Raises:
        FileNotFoundError, ValueError: As `read_config`.
    """
    stages = read_config(workdir).stages
    return [s for s in stages if StageCheckpoints(workdir, s, read_only=True).steps()]


def load_run(
    workdir: str | Path,
    stage: str | None = None,
    which: Which = "best",
    precision: str | None = None,
    *,
    allow_code: bool | str = False,
) -> Run:
    """Loads a trained network.

    Args:
        workdir: The ``--workdir`` of train.py.
        stage: Such as ``fcn16s``; None is the last that has a checkpoint.
        which: The best checkpoint on the validation split by the config's ``best``, or the last.
        precision: In what it is to compute (`create_model`); None is as in training.
        allow_code: Whether a backbone of the run's own may be loaded, which runs its file; it must
            be the file of the training. Text is the sha256 of the one file that may be run.

    Raises:
        FileNotFoundError: If the folder is no run's, or holds no checkpoint yet.
        ValueError: If the stage has no checkpoint, or there is no such precision; the message
            lists those that there are. If code is not allowed, missing or changed.
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
        step, fields, params = checkpoints.load(which)
    config = from_plain(fields["config"])
    if config.ema:
        note(f"{workdir}: {stage} with averaged parameters (config.ema = {config.ema})")
    if precision is not None:
        config.precision = precision
    heads = {head: ClassTable.from_dict(table) for head, table in fields["heads"].items()}
    inputs = Inputs.from_dict(fields["inputs"])
    backbone = find_trusted(config.backbone, fields.get("code"), allow_code, str(workdir))
    model = build_model(config, stage, heads, inputs, backbone=backbone)
    variables = {"params": params}
    place = Path(workdir).expanduser()
    return Run(model, variables, inputs, heads, config, stage, step, place, fields.get("data"))
