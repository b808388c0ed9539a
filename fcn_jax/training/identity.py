"""What makes a run the same run: its config, its classes and its images, and how they differ.

A checkpoint describes them (`fcn_jax.runs.describe_run`), and names the file that lists the images
(`fcn_jax.runs.keep_images`). Before a run goes on they are compared with what is given now; nothing
of its folder is touched where they differ.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import inspect
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from fcn_jax import config as configs
from fcn_jax.classes import ClassTable
from fcn_jax.data import Source
from fcn_jax.data.source import examples_of
from fcn_jax.models.backbones import code_of
from fcn_jax.runs import LastCheckpoint, images_file, read_images, trained_on


def describe_data(train: Source, val: Source, earlier: Collection[str]) -> dict[str, Any]:
    """The images of a run as plain values; ``earlier``: digests that it was trained on before."""
    return {
        "name": train.name,
        "train": _fingerprint(train),
        "eval": _fingerprint(val),
        "earlier": sorted(set(earlier) - set(train.digests)),
    }


def _fingerprint(source: Source) -> dict[str, list[str]]:
    return {
        "ids": list(source.ids),
        "digests": list(source.digests),
        "labels": list(source.label_digests),
    }


def described(function: Callable[..., object]) -> str:
    """A function's name, and a digest of its text where that can be had, to tell others by."""
    if isinstance(function, functools.partial):
        return f"{described(function.func)} {function.args} {function.keywords}"
    named = function if hasattr(function, "__qualname__") else type(function)
    with contextlib.suppress(OSError, TypeError):
        text = inspect.getsource(named)
        return f"{named.__qualname__} {hashlib.sha256(text.encode()).hexdigest()[:8]}"
    return named.__qualname__


def check_config(last: LastCheckpoint, config: configs.Config, workdir: Path) -> None:
    """Raises ValueError if a field, or a backbone's code, differs that must stay as it is."""
    if changed := configs.changed_fields(configs.from_plain(last.run["config"]), config):
        raise ValueError(
            f"{workdir} holds a run of another config ({'; '.join(changed)}): set it back, or "
            f"{begin_anew(workdir)}"
        )
    then, now = last.run.get("code"), code_of(str(Path(config.backbone).expanduser()))
    if then and now and then["sha256"] != now["sha256"]:
        raise ValueError(
            f"{now['file']} is not the code that {workdir} was trained with; bring it back, or "
            f"start another run from this one: --config.init={workdir} --workdir=NEW"
        )


def check_data(
    last: LastCheckpoint,
    train: Source,
    val: Source,
    heads: Mapping[str, ClassTable],
    workdir: Path,
    *,
    accept: bool,
) -> tuple[frozenset[str], str]:
    """What a run was trained on and goes on without, as digests, and what to tell of changed data.

    Raises:
        ValueError: If the data are not the run's, unless that is accepted; or if the classes have
            another number or order, which would change the meaning of the scores. If the file that
            lists the run's images is damaged, and they are not those given now.
    """
    tables = {head: ClassTable.from_dict(table) for head, table in last.run["heads"].items()}
    changed, note = [], ""
    if tables.keys() != heads.keys():
        raise ValueError(
            f"{workdir} holds a run that learns {', '.join(tables)}, not {', '.join(heads)}: "
            f"{begin_anew(workdir)}"
        )
    for head, table in heads.items():
        before = tables[head]
        if not _same_meaning(before.names, table.names):
            raise ValueError(
                f"{workdir} holds a run of other classes: {head} had {_listed(before)} and now has "
                f"{_listed(table)}; with another number or order its scores would change their "
                f"meaning: {begin_anew(workdir)}"
            )
        changed += _class_differences(head, before, table)
    now, stored = describe_data(train, val, ()), last.run.get("data")
    if stored:
        same = stored.get("file") == images_file(now)
        stored = now if same else read_images(workdir, stored)
        assert stored is not None
        changed += _image_differences("training images", stored["train"], now["train"])
        if other := _image_differences("evaluation images", stored["eval"], now["eval"]):
            changed += other
            note = "; scores of before are not of the same images, the best checkpoint's too"
    else:
        changed.append("its images were not recorded")
    if changed and not accept:
        raise ValueError(
            f"{workdir} holds a run of other data: {'; '.join(changed)}. To go on with these give "
            f"--accept_changed_data; or {begin_anew(workdir)}"
        )
    told = f"goes on with changed data: {'; '.join(changed)}{note}" if changed else ""
    return trained_on(stored) - set(train.digests), told


def check_steps(
    last: LastCheckpoint, config: configs.Config, images: int, workdir: Path
) -> dict[str, int]:
    """The steps that stages were to have before, where they are others now.

    Raises:
        ValueError: If a stage is asked for fewer steps than it has done, or for others although it
            is finished and the next one began from it.
    """
    former = configs.from_plain(last.run["config"])
    train = (last.run.get("data") or {"train": images})["train"]
    images_then = train if isinstance(train, int) else len(train["ids"])  # of before: a list
    before = configs.stage_steps(former, images_then)
    asked = configs.stage_steps(config, images_then)  # other images alone may make fewer steps
    field = "steps" if config.steps else "epochs"
    for index, stage in enumerate(config.stages[: config.stages.index(last.stage)]):
        if asked[index] != before[index]:
            raise ValueError(
                f"config.{field} = {config[field]}: {stage} is finished with {before[index]} steps "
                f"and {config.stages[index + 1]} began from it: set it back, or "
                f"{begin_anew(workdir)}"
            )
    index = config.stages.index(last.stage)
    if asked[index] != before[index] and asked[index] < last.step:
        raise ValueError(
            f"config.{field} = {config[field]}: {last.stage} would have {asked[index]} steps, but "
            f"{workdir} has done {last.step} already: give at least as many, or "
            f"{begin_anew(workdir)}"
        )
    now = configs.stage_steps(config, images)
    changed = zip(config.stages, before, now, strict=True)
    return {stage: then for stage, then, steps in changed if then != steps}


def begin_anew(workdir: Path) -> str:
    """The way on where a run cannot go on in its folder."""
    return f"begin a new run from its weights: --config.init={workdir} --workdir=NEW"


# ======================================================================== differences


def _same_meaning(before: Sequence[str], after: Sequence[str]) -> bool:
    """Whether score j still is that of the same class; a class may have another name."""
    return len(before) == len(after) and all(
        before.index(name) == after.index(name) for name in set(before) & set(after)
    )


def _listed(table: ClassTable) -> str:
    more = ", ..." if table.num_classes > 5 else ""
    return f"{table.num_classes} classes ({', '.join(table.names[:5])}{more})"


def _class_differences(head: str, before: ClassTable, after: ClassTable) -> list[str]:
    if before.rows == after.rows:
        return []
    names = zip(before.names, after.names, strict=True)
    changes = [f"{old} is now called {new}" for old, new in names if old != new]
    rows = {row.name: row for row in before.rows}
    others = [row.name for row in after.rows if rows.get(row.name, row) != row]
    if others:
        changes.append(f"other colour, id or role of {examples_of(others)}")
    return [f"classes of {head}: {', '.join(changes) or 'other ids are void'}"]


def _image_differences(
    what: str, before: Mapping[str, Sequence[str]], after: Mapping[str, Sequence[str]]
) -> list[str]:
    """In what two fingerprints of images differ; names alone do not count."""
    if all(before[key] == after[key] for key in ("digests", "labels")):
        return []
    old, new = (dict(zip(f["digests"], f["ids"], strict=True)) for f in (before, after))
    gone = {name for digest, name in old.items() if digest not in new}
    come = {name for digest, name in new.items() if digest not in old}
    labels = dict(zip(before["digests"], before["labels"], strict=True))
    relabelled = {
        name
        for digest, name, label in zip(after["digests"], after["ids"], after["labels"], strict=True)
        if labels.get(digest, label) != label
    }
    kinds = {
        "added": come - gone,
        "removed": gone - come,
        "changed": come & gone,
        "with other labels": relabelled,
    }
    found = [f"{kind} {examples_of(sorted(names))}" for kind, names in kinds.items() if names]
    return [f"{what} {', '.join(found) or 'in another order'}"]
