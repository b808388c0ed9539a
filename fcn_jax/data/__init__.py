"""Data sets: prepared once as TFDS array records (without TensorFlow), then read at random.

    source = fcn_jax.data.open_source("camvid", "train", data_dir="data", manual_dir="CamVid")
    source[0]["image"]  # uint8 (h, w, 3)

`DATASETS` lists what there is; besides, `tfds:NAME` is any data set of TensorFlow Datasets with an
image and a mask. Importing this module is cheap; a data set's builder is imported when it is first
prepared.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import inspect
import io
import shutil
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from fcn_jax.data.locking import lock
from fcn_jax.data.source import Source, check_disjoint, split_sizes
from fcn_jax.models.inputs import Preprocessing

__all__ = [
    "DATASETS",
    "DataSet",
    "Source",
    "check_disjoint",
    "open_source",
    "prepare",
    "row_of",
    "usual_names",
]


@dataclasses.dataclass(frozen=True)
class DataSet:
    """A row of `DATASETS`.

    Attributes:
        builder: Import path of the TFDS builder, "module:class". The module also has
            `config(manual_dir, **options)`, which gives the builder configuration that keeps
            differently prepared copies apart.
        from_files: Whether it is made from a person's files or a download, which need not be at
            hand any more once it has been prepared.
        aliases: Split names that stand for others: {"trainval": "train+val"}.
        preprocessing: The normalisation of inputs that the published networks were trained with,
            by the input's name; `Preprocessing()` for those it does not list.
    """

    builder: str
    from_files: bool = True
    aliases: Mapping[str, str] = dataclasses.field(default_factory=dict)
    preprocessing: Mapping[str, Preprocessing] = dataclasses.field(default_factory=dict)


TRAINVAL = {"trainval": "train+val"}

DATASETS: dict[str, DataSet] = {
    "shapes": DataSet("fcn_jax.data.shapes:Shapes", from_files=False),
    "camvid": DataSet("fcn_jax.data.camvid:Camvid"),
    "voc2012": DataSet("fcn_jax.data.voc:Voc2012", aliases=TRAINVAL),
    "sbd": DataSet("fcn_jax.data.sbd:Sbd"),
    "nyudv2": DataSet(
        "fcn_jax.data.nyudv2:Nyudv2",
        aliases=TRAINVAL,
        preprocessing={
            "image": Preprocessing(mean=(116.190, 97.203, 92.318)),
            "hha": Preprocessing(channel_order="rgb", mean=(132.431, 94.076, 118.477)),
            "depth": Preprocessing(channel_order="rgb", mean=(7.844,), std=(1.0,), log=True),
        },
    ),
    "sift_flow": DataSet(
        "fcn_jax.data.sift_flow:SiftFlow",
        preprocessing={"image": Preprocessing(mean=(114.578, 115.294, 108.353))},
    ),
    "pascal_context": DataSet(
        "fcn_jax.data.pascal_context:PascalContext",
        aliases=TRAINVAL,
        preprocessing={"image": Preprocessing(mean=(104.007, 116.669, 122.679))},
    ),
    "folder": DataSet("fcn_jax.data.folder:Folder"),
}

READY_PREFIX = "tfds:"
_READY = DataSet("fcn_jax.data.tfds:Ready", from_files=False, aliases={"val": "validation"})


def row_of(name: str) -> DataSet:
    """The row of a data set: of `DATASETS`, or that of every `tfds:NAME`.

    Raises:
        ValueError: for an unknown data set; lists those that there are.
    """
    if name.startswith(READY_PREFIX):
        return _READY
    if name not in DATASETS:
        raise ValueError(
            f"unknown data set '{name}'; there are {', '.join(DATASETS)}, and {READY_PREFIX}NAME "
            "for those of TensorFlow Datasets"
        )
    return DATASETS[name]


def usual_names(num_classes: int) -> list[str]:
    """The names that a network of so many classes usually has; numbers where that is unknown."""
    from fcn_jax.data.nyudv2 import NYUDV2
    from fcn_jax.data.pascal_context import PASCAL_CONTEXT
    from fcn_jax.data.sift_flow import SIFT_FLOW_GEOMETRIC, SIFT_FLOW_SEMANTIC
    from fcn_jax.data.voc import VOC

    for table in (VOC, NYUDV2, SIFT_FLOW_SEMANTIC, SIFT_FLOW_GEOMETRIC, PASCAL_CONTEXT):
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
            Once prepared, it can be left out, as long as only one copy lies in `data_dir`.
        **options: Options of the data set, see its module. None means the default.

    Returns:
        The folder of the prepared data set, for `Source`.

    Raises:
        ValueError: for an unknown data set or option, or problems in the data; the message lists
            them.
        FileNotFoundError: if files are missing; the message says which file to put where.
    """
    row = row_of(name)
    data_dir = Path(data_dir).expanduser().absolute()
    manual_dir = None if manual_dir is None else Path(manual_dir).expanduser().absolute()
    options = {key: value for key, value in options.items() if value is not None}
    if manual_dir is not None and not manual_dir.is_dir():
        raise FileNotFoundError(f"{name}: there is no folder {manual_dir} (manual_dir)")
    module_name, class_name = row.builder.split(":")
    module = importlib.import_module(module_name)
    given = {"name": name.removeprefix(READY_PREFIX), "data_dir": data_dir} if row is _READY else {}
    known = [*inspect.signature(module.config).parameters][1 + len(given) :]
    if unknown := sorted(set(options) - set(known)):
        raise ValueError(
            f"{name} has no option '{unknown[0]}'; it has {', '.join(known) or 'none'}"
        )
    builder_class = getattr(module, class_name)
    if manual_dir is None and row.from_files:
        copy = _only_copy(name, data_dir, str(builder_class.VERSION))
        if copy is not None:
            return copy
    config = module.config(manual_dir, **given, **options)
    with _quiet_tfds():
        builder = builder_class(config=config, data_dir=str(data_dir), file_format="array_record")
    path = Path(builder.data_dir)
    if not path.exists():  # TFDS renames its folder to this when it is complete
        with lock(data_dir, builder.name):
            _build(builder, manual_dir)
    return path


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
        data_dir, manual_dir, **options: As for `prepare`.

    Raises:
        ValueError, FileNotFoundError: As `prepare`; and ValueError for an unknown split, with a
            list of those that exist.
    """
    path = prepare(name, data_dir=data_dir, manual_dir=manual_dir, **options)
    if split not in split_sizes(path):
        split = row_of(name).aliases.get(split, split)
    return Source(path, split)


def _only_copy(name: str, data_dir: Path, version: str) -> Path | None:
    """The prepared copy of a data set whose files are not given, or None where there is none."""
    copies = sorted(path.parent for path in data_dir.glob(f"{name}/*/{version}/dataset_info.json"))
    if len(copies) > 1:
        raise ValueError(
            f"several copies of {name} have been prepared in {data_dir}: give the folder of the "
            f"one you mean (manual_dir), or delete all but one of {', '.join(map(str, copies))}"
        )
    return copies[0] if copies else None


def _build(builder: Any, manual_dir: Path | None) -> None:
    """Prepare a data set unless that is done. Call it under the lock."""
    import tensorflow_datasets as tfds

    path = Path(builder.data_dir)
    if path.exists():  # another process prepared it while this one waited
        return
    # TFDS writes into incomplete.XXX_VERSION and renames it at the end. Under the lock nobody else
    # is writing, so that what lies there is what a killed process left.
    for leftover in path.parent.glob(f"incomplete.*_{path.name}"):
        shutil.rmtree(leftover, ignore_errors=True)
    print(f"Preparing {builder.name} in {path}", file=sys.stderr)
    download_config = tfds.download.DownloadConfig(
        manual_dir=None if manual_dir is None else str(manual_dir)
    )
    with _quiet_tfds():
        builder.download_and_prepare(file_format="array_record", download_config=download_config)


@contextlib.contextmanager
def _quiet_tfds() -> Iterator[None]:
    """Without TFDS's remarks about unknown sizes and custom configurations; bars still show."""
    from absl import logging

    verbosity = logging.get_verbosity()
    logging.set_verbosity(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.set_verbosity(verbosity)
