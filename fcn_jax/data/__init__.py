"""Data sets: prepared once as TFDS array records (without TensorFlow), then read at random.

    source = fcn_jax.data.open_source("camvid", "train", data_dir="data", manual_dir="CamVid")
    source[0]["image"]  # uint8 (h, w, 3)

`DATASETS` lists what there is; besides, `tfds:NAME` is any data set of TensorFlow Datasets with an
image and a mask. Importing this module is cheap; a data set's own is imported when it is opened.
"""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import json
import os
import sys
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from fcn_jax.data import files, records, writing
from fcn_jax.data.examples import Examples
from fcn_jax.data.source import Source, check_disjoint, split_sizes, unseen
from fcn_jax.models.inputs import Preprocessing

__all__ = [
    "DATASETS",
    "DataSet",
    "Examples",
    "Source",
    "check_disjoint",
    "open_source",
    "prepare",
    "row_of",
    "unseen",
    "usual_names",
]


@dataclasses.dataclass(frozen=True)
class DataSet:
    """A row of `DATASETS`.

    Attributes:
        module: Import path of its module, whose `plan(manual_dir, data_dir, **options)` says what
            the data set can be prepared from (`fcn_jax.data.records.Plan`). It may leave out the
            folders that it does not use.
        from_files: Whether it is made from a person's files or a download, which need not be at
            hand any more once it has been prepared.
        named: Whether the set is what `manual_dir` names, so that it cannot be left out.
        aliases: Split names that stand for others: {"trainval": "train+val"}.
        preprocessing: The normalisation of inputs that the published networks were trained with,
            by the input's name; `Preprocessing()` for those it does not list.
    """

    module: str
    from_files: bool = True
    named: bool = False
    aliases: Mapping[str, str] = dataclasses.field(default_factory=dict)
    preprocessing: Mapping[str, Preprocessing] = dataclasses.field(default_factory=dict)


TRAINVAL = {"trainval": "train+val"}

DATASETS: dict[str, DataSet] = {
    "shapes": DataSet("fcn_jax.data.shapes", from_files=False),
    "camvid": DataSet("fcn_jax.data.camvid"),
    "voc2012": DataSet("fcn_jax.data.voc", aliases=TRAINVAL),
    "sbd": DataSet("fcn_jax.data.sbd"),
    "nyudv2": DataSet(
        "fcn_jax.data.nyudv2",
        aliases=TRAINVAL,
        preprocessing={
            "image": Preprocessing(mean=(116.190, 97.203, 92.318)),
            "hha": Preprocessing(channel_order="rgb", mean=(132.431, 94.076, 118.477)),
            "depth": Preprocessing(channel_order="rgb", mean=(7.844,), std=(1.0,), log=True),
        },
    ),
    "sift_flow": DataSet(
        "fcn_jax.data.sift_flow",
        preprocessing={"image": Preprocessing(mean=(114.578, 115.294, 108.353))},
    ),
    "pascal_context": DataSet(
        "fcn_jax.data.pascal_context",
        aliases=TRAINVAL,
        preprocessing={"image": Preprocessing(mean=(104.007, 116.669, 122.679))},
    ),
    "folder": DataSet("fcn_jax.data.folder", named=True),
}

GIVEN = "given"
"""What stands for a data set in the config of a run whose images were given to `train` itself."""

TFDS_PREFIX = "tfds:"
TFDS = DataSet("fcn_jax.data.tfds", from_files=False, aliases={"val": "validation"})


def row_of(name: str) -> DataSet:
    """The row of a data set: of `DATASETS`, or that of every `tfds:NAME`."""
    if name.startswith(TFDS_PREFIX):
        return TFDS
    if name == GIVEN:
        return DataSet("", from_files=False)
    if name not in DATASETS:
        raise ValueError(
            f"unknown data set '{name}'; there are {', '.join(DATASETS)}, and {TFDS_PREFIX}NAME "
            "for those of TensorFlow Datasets"
        )
    return DATASETS[name]


def usual_names(num_classes: int) -> list[str]:
    """The names that a network of so many classes usually has; numbers where that is unknown."""
    from fcn_jax.data import nyudv2, pascal_context, sift_flow, voc

    sift = (sift_flow.SIFT_FLOW_SEMANTIC, sift_flow.SIFT_FLOW_GEOMETRIC)
    for table in (voc.VOC, nyudv2.NYUDV2, *sift, pascal_context.PASCAL_CONTEXT):
        if table.num_classes == num_classes:
            return list(table.names)
    return [f"class {number}" for number in range(num_classes)]


def prepare(
    name: str, *, data_dir: str | Path, manual_dir: str | Path | None = None, **options: Any
) -> Path:
    """Prepare a data set, or find the copy that was prepared before.

    Args:
        name: A name in `DATASETS`, or `tfds:NAME`.
        data_dir: Where prepared data sets lie, each in `NAME/CONFIG/VERSION`.
        manual_dir: The person's own copy of the original files, where the data set needs one.
            Once prepared, it can be left out (but for "folder"), or lie elsewhere, if one copy
            alone in `data_dir` was made from it with these options.
        **options: Options of the data set, see its module. None means the default.

    Returns:
        The folder of the prepared data set, for `Source`.

    Raises:
        ValueError: for an unknown data set or option, or problems in the data; the message lists
            them.
        FileNotFoundError: if files are missing; the message says which file to put where.
    """
    if name == GIVEN:
        raise ValueError(
            "the images of this run were given to train(…, train_source=…, eval_source=…): go on "
            "with that, and score it with fcn_jax.inference.report.evaluate_run(workdir, source)"
        )
    row = row_of(name)
    data_dir = Path(data_dir).expanduser().absolute()
    manual_dir = None if manual_dir is None else Path(manual_dir).expanduser().absolute()
    options = {
        key: os.path.expanduser(value) if isinstance(value, str) else value
        for key, value in options.items()
        if value is not None
    }
    module = importlib.import_module(row.module)
    asked = inspect.signature(module.plan).parameters
    in_tfds = name.removeprefix(TFDS_PREFIX)
    given = {"manual_dir": manual_dir, "data_dir": data_dir, "name": in_tfds}
    known = [option for option in asked if option not in given]
    if unknown := sorted(set(options) - set(known)):
        raise ValueError(
            f"{name} has no option '{unknown[0]}'; it has {', '.join(known) or 'none'}"
        )
    folder = data_dir / ("tfds" if row is TFDS else name)
    defaults = {option: asked[option].default for option in known}
    made_from = {"manual_dir": str(manual_dir or ""), "options": _as_json(defaults | options)}
    if row.from_files and not (manual_dir and manual_dir.is_dir()):
        if copy := _former_copy(row, folder, made_from, options):
            print(f"{name}: the copy that was prepared before, in {copy}", file=sys.stderr)
            return copy
        if manual_dir is not None:
            raise FileNotFoundError(f"{name}: there is no folder {manual_dir} (manual_dir)")
    if row.named and manual_dir:
        # Opened again as it was: to find out what belongs together takes longer.
        classes = [Path(options["classes"]).absolute()] if options.get("classes") else []
        made_from["state"] = files.state_of(manual_dir, *classes)
        if copy := records.prepared_copy(folder, fits=lambda made: made == made_from):
            return copy
    try:
        plan = module.plan(**{key: given[key] for key in given if key in asked}, **options)
    except TypeError as error:
        raise ValueError(f"{name}: an option of the wrong kind in {options}: {error}") from error
    path = folder / plan.copy / records.VERSION
    if path.exists():
        return path
    import filelock

    # The lock of a process that is killed is dropped.
    data_dir.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(data_dir / f".{folder.name}.lock"):
        if not path.exists():  # another process may have prepared it while this one waited
            print(f"Preparing {name} in {path}", file=sys.stderr)
            contents = plan.contents()
            for note in contents.notes:
                print(f"{name}: {note}", file=sys.stderr)
            writing.write(contents, path, inspect.getdoc(module) or name, made_from)
    return path


def _as_json(options: Mapping[str, Any]) -> dict[str, Any]:
    return json.loads(json.dumps(options, default=str))


def _former_copy(
    row: DataSet, folder: Path, asked: Mapping[str, Any], given: Collection[str]
) -> Path | None:
    """The prepared copy to be used where the files are not at hand.

    It must have been made from the same `manual_dir`, with the same options. Where the data set is
    the same for everybody `manual_dir` may be left out, and options that are not given are the
    copy's.

    Raises:
        ValueError: if there are copies, but of other options; or if there are several.
    """
    if row.named and not asked["manual_dir"]:
        return None
    options = asked["options"]
    compared = options if asked["manual_dir"] else given

    def of_this_source(made: Mapping[str, Any]) -> bool:
        return asked["manual_dir"] in ("", made.get("manual_dir"))

    def fits(made: Mapping[str, Any]) -> bool:
        known = made.get("options", {})
        return of_this_source(made) and all(options[n] == known.get(n) for n in compared)

    if copy := records.prepared_copy(folder, fits=fits):
        return copy
    if compared and (other := records.prepared_copy(folder, fits=of_this_source)):
        known = records.made_from(other).get("options", {})
        differing = ", ".join(
            f"{n}={known.get(n)!r}, not {options[n]!r}"
            for n in compared
            if options[n] != known.get(n)
        )
        raise ValueError(
            f"{folder.name}: the copy in {other} was prepared with {differing}; give the folder of "
            "the original files as manual_dir"
        )
    return None


def open_source(
    name: str,
    split: str,
    *,
    data_dir: str | Path,
    manual_dir: str | Path | None = None,
    **options: Any,
) -> Source:
    """One split of a data set, which is prepared first if need be.

    Args:
        name: A name in `DATASETS`, or `tfds:NAME`.
        split: A split name, or an expression of TFDS such as "train[:100]" or "train+val".
        data_dir: Where prepared data lie; this and the others as for `prepare`.
        manual_dir: Where the original files lie.
        **options: Of the data set.

    Raises:
        ValueError: As `prepare`; also for an unknown split, with a list of those that exist.
        FileNotFoundError: As `prepare`.
    """
    path = prepare(name, data_dir=data_dir, manual_dir=manual_dir, **options)
    if split not in split_sizes(path):
        split = row_of(name).aliases.get(split, split)
    return Source(path, split)
