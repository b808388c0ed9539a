"""Data sets: prepared once as TFDS array records (without TensorFlow), then read at random.

    source = fcn_jax.data.open_source("camvid", "train", data_dir="data", manual_dir="CamVid")
    source[0]["image"]  # uint8 (h, w, 3)

`DATASETS` lists what there is. Importing this module is cheap; a data set's builder is imported
when it is first prepared.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import inspect
import io
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fcn_jax.classes import CAMVID, SHAPES, VOC, ClassTable
from fcn_jax.data.source import Source, check_disjoint

__all__ = ["DATASETS", "DataSet", "Source", "check_disjoint", "open_source", "prepare"]


@dataclasses.dataclass(frozen=True)
class DataSet:
    """A row of `DATASETS`.

    Attributes:
        builder: Import path of the TFDS builder, "module:class". The module also has
            `config(manual_dir, **options)`, which gives the builder configuration that keeps
            differently prepared copies apart.
        classes: The class table; None where it comes with the data.
        from_files: Whether it is made from a person's files or a download, which need not be at
            hand any more once it has been prepared.
        aliases: Split names that stand for several: {"trainval": "train+val"}.
    """

    builder: str
    classes: ClassTable | None
    from_files: bool = True
    aliases: dict[str, str] = dataclasses.field(default_factory=dict)


DATASETS: dict[str, DataSet] = {
    "shapes": DataSet("fcn_jax.data.shapes:Shapes", SHAPES, from_files=False),
    "camvid": DataSet("fcn_jax.data.camvid:Camvid", CAMVID),
    "voc2012": DataSet("fcn_jax.data.voc:Voc2012", VOC, aliases={"trainval": "train+val"}),
    "folder": DataSet("fcn_jax.data.folder:Folder", None),
}


def prepare(
    name: str, *, data_dir: str | Path, manual_dir: str | Path | None = None, **options: Any
) -> Path:
    """Prepare a data set, or find the copy that was prepared before.

    Args:
        name: A name in `DATASETS`.
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
    if name not in DATASETS:
        raise ValueError(f"unknown data set '{name}'; there are {', '.join(DATASETS)}")
    data_dir = Path(data_dir).expanduser().absolute()
    manual_dir = None if manual_dir is None else Path(manual_dir).expanduser().absolute()
    options = {key: value for key, value in options.items() if value is not None}
    if manual_dir is not None and not manual_dir.is_dir():
        raise FileNotFoundError(f"{name}: there is no folder {manual_dir} (manual_dir)")
    module_name, class_name = DATASETS[name].builder.split(":")
    module = importlib.import_module(module_name)
    known = list(inspect.signature(module.config).parameters)[1:]
    if unknown := sorted(set(options) - set(known)):
        raise ValueError(
            f"{name} has no option '{unknown[0]}'; it has {', '.join(known) or 'none'}"
        )
    if manual_dir is None and DATASETS[name].from_files and (copy := _only_copy(name, data_dir)):
        return copy
    config = module.config(manual_dir, **options)
    with _quiet_tfds():
        builder = getattr(module, class_name)(
            config=config, data_dir=str(data_dir), file_format="array_record"
        )
    path = Path(builder.data_dir)
    if not path.exists():  # TFDS renames its folder to this when it is complete
        with _lock(data_dir, name):
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
        name: A name in `DATASETS`.
        split: A split name, or an expression of TFDS such as "train[:100]" or "train+val".
        data_dir, manual_dir, **options: As for `prepare`.

    Raises:
        ValueError, FileNotFoundError: As `prepare`; and ValueError for an unknown split, with a
            list of those that exist.
    """
    path = prepare(name, data_dir=data_dir, manual_dir=manual_dir, **options)
    return Source(path, DATASETS[name].aliases.get(split, split))


def _only_copy(name: str, data_dir: Path) -> Path | None:
    """The prepared copy of a data set whose files are not given, or None where there is none."""
    copies = sorted(path.parent for path in data_dir.glob(f"{name}/*/*.*.*/dataset_info.json"))
    copies = [path for path in copies if "incomplete" not in path.name]
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


@contextlib.contextmanager
def _lock(data_dir: Path, name: str) -> Iterator[None]:
    """One process at a time prepares a data set; the others wait and then find it."""
    try:
        import fcntl
    except ImportError:  # not a POSIX system: two processes at once would both do the work
        yield
        return
    data_dir.mkdir(parents=True, exist_ok=True)
    # The kernel drops the lock when its process ends, however that happens.
    with open(os.path.join(data_dir, f".{name}.lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
