"""How the examples of a data set become its prepared copy: in shards, by several processes.

A split is cut into shards, each an ArrayRecord file. A process reads and writes one shard at a
time, example by example, so that memory stays flat. The plan alone says what is in which shard, so
that the bytes of the copy are the same for any number of processes. Until the copy is complete all
lies in the folder `incomplete.VERSION` beside its place:

    plan.json    what the shards are shards of
    parts/       files that are being written
    lists/       SPLIT-NUMBER.npz: what is kept of the examples of a shard; a shard that has it is
                 complete
    copy/        what will be the copy

Preparation that was killed goes on with the shards that are not complete. What is kept of every
example lies in the copy as `lists/SPLIT.NAME.npy` (`columns`), which are mapped into memory, so
that opening it costs the same for any number of examples.
"""

from __future__ import annotations

import concurrent.futures
import errno
import io
import json
import os
import shutil
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fcn_jax.classes import VOID, ClassTable
from fcn_jax.data.bands import UsedRange
from fcn_jax.data.images import Encoded, encode_png
from fcn_jax.data.processes import Progress, processes_for, tell, worker_processes
from fcn_jax.data.records import (
    Contents,
    Entry,
    Stored,
    digest_of,
    digest_of_others,
    features_of,
    size_of,
    stored_as,
)

SMALLEST_SHARD = 250
"""Examples. So many at most are read once more after a kill."""

MOST_SHARDS = 128
"""Of a split; each is a file that stays open once an example of it was read."""


def columns(label_maps: Mapping[str, ClassTable]) -> dict[str, tuple[str, tuple[int, ...]]]:
    """What is kept of each example besides its arrays: the type, and the shape for one example.

    ids: its name in UTF-8, as many bytes as the longest takes. digests: the
    `fcn_jax.data.images.pixel_digest` of its image; label_digests: one of all else. sizes: height
    and width. label_counts.NAME: the pixels of each class in a label map.
    """
    counts = {f"label_counts.{name}": table.num_classes for name, table in label_maps.items()}
    return {
        "ids": ("S", ()),
        "digests": ("S16", ()),
        "label_digests": ("S16", ()),
        "sizes": ("int32", (2,)),
        **{name: ("int64", (classes,)) for name, classes in counts.items()},
    }


def shard_file(data_set: str, split: str, number: int) -> str:
    """The name of an ArrayRecord file, as TFDS calls it."""
    return f"{data_set}-{split}.array_record-{number:05d}"


class _Shard(NamedTuple):
    """Some examples of a split: those that `rows` numbers."""

    split: str
    number: int
    rows: range

    def lists(self, incomplete: Path) -> Path:
        return incomplete / f"lists/{self.split}-{self.number:05d}.npz"


class _Work(NamedTuple):
    """What is the same for all shards; `ranged` are the splits in which ranges are looked for."""

    data_set: str
    incomplete: Path
    stored: Mapping[str, Stored]
    label_maps: Mapping[str, ClassTable]
    first_id: str
    ranged: Sequence[str]


def write(
    contents: Contents,
    path: Path,
    description: str,
    made_from: Mapping[str, Any] | None = None,
    processes: int | None = None,
) -> None:
    """Write a data set at DIR/NAME/COPY/VERSION, a folder that is there once it is complete.

    Args:
        made_from: Of JSON's types; kept for `fcn_jax.data.records.prepared_copy`.
        processes: How many read and write at most; None is as many as there are cores.

    Raises:
        ValueError: If two examples of a split have the same id, before anything is written. If an
            example cannot be read or is unlike the others: the first such one.
        OSError: If a process is killed, or the disk is full; what is complete is then kept.
    """
    name, copy, version = path.parts[-3:]
    for split, entries in contents.splits.items():
        seen: set[str] = set()
        for entry in entries:
            if entry.id in seen:
                raise ValueError(f"{name}: two examples of {split} have the id '{entry.id}'")
            seen.add(entry.id)
    # What pictures are must be known before the first is stored, and is seen by the first.
    first = next(entry for entries in contents.splits.values() for entry in entries)
    inputs = first.load()
    stored = {array: stored_as(inputs[array], kind) for array, kind in contents.modalities.items()}
    given = {} if contents.value_range is None else {"image": contents.value_range}
    used = {
        array: UsedRange()
        for array, how in stored.items()
        if how.kind == "picture" and how.dtype != "uint8" and array not in given
    }
    shards = [shard for split, rows in contents.splits.items() for shard in _cut(split, len(rows))]
    lengths = {
        split: [len(shard.rows) for shard in shards if shard.split == split]
        for split in contents.splits
    }
    about = {
        "modalities": {array: how._asdict() for array, how in stored.items()},
        "label_maps": {array: table.to_dict() for array, table in contents.label_maps.items()},
        "source": contents.source,
        "made_from": dict(made_from or {}),
        "notes": list(contents.notes),
        "shards": lengths,
    }
    # Two processes must not be here at once, so that what lies there is what a killed one left.
    incomplete = path.with_name(f"incomplete.{version}")
    plan = {**about, "made_from": None, "description": description, "first": first.id}
    _begin(incomplete, json.dumps(plan))
    trains = ["train"] if "train" in contents.splits else [*contents.splits]
    work = _Work(name, incomplete, stored, contents.label_maps, first.id, trains if used else ())
    try:
        _write_shards(work, shards, contents.splits, processes)
        for split in contents.splits:
            _join_lists(work, [shard for shard in shards if shard.split == split], used)
        ranges: dict[str, Any] = dict.fromkeys(stored)
        ranges |= {array: [limits] * stored[array].channels for array, limits in given.items()}
        ranges |= {array: limits.found() for array, limits in used.items()}
        _describe(work, shards, copy, version, description, {**about, "ranges": ranges})
    except Exception as error:
        # Of other files there will be another copy, so that nothing would go on from here.
        if not (isinstance(error, MemoryError) or _is_passing(error)):
            shutil.rmtree(incomplete, ignore_errors=True)
        raise
    (incomplete / "copy").rename(path)
    for folder in filter(None, (incomplete, contents.kept_in)):
        shutil.rmtree(folder, ignore_errors=True)


def _cut(split: str, length: int) -> list[_Shard]:
    size = max(SMALLEST_SHARD, -(-length // MOST_SHARDS))
    starts = range(0, length, size)
    return [_Shard(split, i, range(length)[at : at + size]) for i, at in enumerate(starts)]


def _begin(incomplete: Path, plan: str) -> None:
    """Makes the folder of a copy to be; what is there of another plan is removed."""
    found = incomplete / "plan.json"
    if not found.is_file() or found.read_text() != plan:
        shutil.rmtree(incomplete, ignore_errors=True)
    # What a killed one had not finished.
    shutil.rmtree(incomplete / "parts", ignore_errors=True)
    for folder in ("parts", "lists", "copy/lists"):
        (incomplete / folder).mkdir(parents=True, exist_ok=True)
    found.write_text(plan)


def _describe(
    work: _Work,
    shards: Sequence[_Shard],
    copy: str,
    version: str,
    description: str,
    about: Mapping[str, Any],
) -> None:
    """Writes the files by which TFDS opens a copy, whose shards are all complete."""
    import tensorflow_datasets as tfds
    from etils import epath
    from tensorflow_datasets.core.splits import SplitDict

    folder = work.incomplete / "copy"
    info = tfds.core.DatasetInfo(
        builder=tfds.core.DatasetIdentity(
            name=work.data_set,
            version=tfds.core.Version(version),
            data_dir=str(folder),
            module_name="fcn_jax.data",
            config_name=copy,
        ),
        description=description,
        features=features_of(work.stored, work.label_maps),
        metadata=tfds.core.MetadataDict(**about),
        disable_shuffling=True,
    )
    info.set_file_format("array_record")
    sizes = dict.fromkeys(about["shards"], 0)
    for shard in shards:
        with np.load(shard.lists(work.incomplete)) as lists:
            sizes[shard.split] += int(lists["num_bytes"])
    template = tfds.core.ShardedFileTemplate(
        data_dir=epath.Path(folder),
        dataset_name=work.data_set,
        filetype_suffix="array_record",
        template="{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_INDEX}",
    )
    info.set_splits(
        SplitDict(
            tfds.core.SplitInfo(
                name=split,
                shard_lengths=lengths,
                num_bytes=sizes[split],
                filename_template=template.replace(split=split),
            )
            for split, lengths in about["shards"].items()
        )
    )
    info.write_to_directory(folder)


def _is_passing(error: Exception) -> bool:
    """Whether it comes from the machine, not from the data."""
    full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
    return full or isinstance(error.__cause__, concurrent.futures.BrokenExecutor)


# ======================================================================== shards


def _write_shards(
    work: _Work,
    shards: Sequence[_Shard],
    splits: Mapping[str, Sequence[Entry]],
    processes: int | None,
) -> None:
    """Writes the shards that are not complete, and tells how fast."""
    left = [shard for shard in shards if not _is_complete(work, shard, splits[shard.split])]
    total = sum(len(shard.rows) for shard in shards)
    images = sum(len(shard.rows) for shard in left)
    if images < total:
        tell(f"{work.data_set}: goes on after {total - images:,} of {total:,} images")
    processes = max(1, min(processes or processes_for(images), len(left)))
    begun = time.monotonic()
    with Progress(work.data_set, total, total - images) as progress:
        if processes == 1:
            for shard in left:
                entries = splits[shard.split][shard.rows.start : shard.rows.stop]
                _write_shard(work, shard, entries, progress.add)
        else:
            _write_in_processes(work, left, splits, processes, progress)
    seconds = time.monotonic() - begun
    several = f"{processes} processes" if processes > 1 else "1 process"
    rate = f"{images / max(seconds, 1e-3):.0f} images/s, {several}"
    tell(f"{work.data_set}: {images:,} images prepared in {seconds:.1f} s ({rate})")


def _is_complete(work: _Work, shard: _Shard, entries: Sequence[Entry]) -> bool:
    """Whether a shard of the same examples has been written before."""
    path = shard.lists(work.incomplete)
    file = work.incomplete / "copy" / shard_file(work.data_set, shard.split, shard.number)
    if not path.is_file() or not file.is_file():
        return False
    with np.load(path) as lists:
        ids = [entry.id.encode() for entry in entries[shard.rows.start : shard.rows.stop]]
        size = int(lists["file_size"])
        return size == file.stat().st_size and lists["ids"].tolist() == ids


def _write_in_processes(
    work: _Work,
    shards: Sequence[_Shard],
    splits: Mapping[str, Sequence[Entry]],
    processes: int,
    progress: Progress,
) -> None:
    """The error of an example is that of the first one, as if there were one process."""
    counts = np.lib.format.open_memmap(
        work.incomplete / "parts/counts.npy", "w+", np.int64, (len(shards),)
    )
    before = progress.done
    remedy = "the same command goes on with the images that are left"
    with worker_processes(processes, work.data_set, remedy) as pool:
        futures = [
            pool.submit(
                _count_shard,
                place,
                work,
                shard,
                splits[shard.split][shard.rows.start : shard.rows.stop],
            )
            for place, shard in enumerate(shards)
        ]
        for future in futures:
            while not future.done():
                concurrent.futures.wait([future], timeout=0.2)
                progress.add(before + int(counts.sum()) - progress.done)
            future.result()


def _count_shard(place: int, work: _Work, shard: _Shard, entries: Sequence[Entry]) -> None:
    """Writes a shard in a process of its own, whose progress the first process reads."""
    counts = np.load(work.incomplete / "parts/counts.npy", mmap_mode="r+")

    def add(images: int) -> None:
        counts[place] += images

    _write_shard(work, shard, entries, add)


def _write_shard(
    work: _Work, shard: _Shard, entries: Iterable[Entry], add: Callable[[int], None]
) -> None:
    """Reads the examples of a shard one by one, and writes its file and then its lists."""
    from array_record.python.array_record_module import ArrayRecordWriter
    from tensorflow_datasets.core.example_serializer import ExampleSerializer

    features = features_of(work.stored, work.label_maps)
    serializer = ExampleSerializer(features.get_serialized_info())
    kept = columns(work.label_maps)
    lists: dict[str, list[Any]] = {name: [] for name in kept}
    used = {
        array: UsedRange()
        for array, how in work.stored.items()
        if how.kind == "picture" and how.dtype != "uint8" and shard.split in work.ranged
    }
    file = shard_file(work.data_set, shard.split, shard.number)
    part = work.incomplete / f"parts/{file}.{os.getpid()}"
    num_bytes = 0
    writer = ArrayRecordWriter(str(part), "group_size:1")  # which gives random access
    try:
        for entry in entries:
            parts = entry.load()
            for array, how in work.stored.items():
                values = parts[array]
                if (found := stored_as(values, how.kind)) != how:
                    raise ValueError(
                        f"{work.data_set}: the images of a set need the same bands of one type: "
                        f"{array} of {entry.id} has {found}, that of {work.first_id} has {how}"
                    )
                if array in used:
                    assert isinstance(values, np.ndarray)
                    used[array].add(values)
            # TFDS encodes images with TensorFlow, but takes the bytes of a file as they are.
            files: dict[str, Any] = {"id": entry.id}
            for array, values in parts.items():
                if isinstance(values, Encoded):
                    files[array] = io.BytesIO(values.content)
                else:
                    files[array] = values if values.ndim == 3 else io.BytesIO(encode_png(values))
            example = serializer.get_tf_example(features.encode_example(files))
            record = example.SerializeToString(deterministic=True)  # else in any order
            writer.write(record)
            num_bytes += len(record)
            lists["ids"].append(entry.id.encode())
            lists["digests"].append(digest_of(parts["image"]))
            lists["label_digests"].append(digest_of_others(parts))
            lists["sizes"].append(size_of(parts["image"]))
            for array, table in work.label_maps.items():
                pixels = np.bincount(np.asarray(parts[array]).ravel(), minlength=VOID)
                lists[f"label_counts.{array}"].append(pixels[: table.num_classes])
            add(1)
    finally:
        writer.close()
    arrays = {name: np.array(values, kept[name][0]) for name, values in lists.items()}
    for array, found in used.items():
        arrays |= {f"counts.{array}": found.counts, f"limits.{array}": found.limits}
    arrays |= {"num_bytes": np.array(num_bytes), "file_size": np.array(part.stat().st_size)}
    listed = part.with_name(f"{part.name}.npz")
    np.savez_compressed(listed, allow_pickle=False, **arrays)
    part.rename(work.incomplete / "copy" / file)
    listed.rename(shard.lists(work.incomplete))


def _join_lists(work: _Work, shards: Sequence[_Shard], used: Mapping[str, UsedRange]) -> None:
    """Writes the lists of a split, and adds what its shards know to the ranges `used`."""
    split, length = shards[0].split, shards[-1].rows.stop
    width = 1
    for shard in shards:
        with np.load(shard.lists(work.incomplete)) as lists:
            width = max(width, lists["ids"].itemsize)
            if split in work.ranged:
                for array, found in used.items():
                    found.merge(lists[f"counts.{array}"], lists[f"limits.{array}"])
    for name, (dtype, shape) in columns(work.label_maps).items():
        column = np.lib.format.open_memmap(
            work.incomplete / f"copy/lists/{split}.{name}.npy",
            "w+",
            np.dtype(f"S{width}" if dtype == "S" else dtype),
            (length, *shape),
        )
        for shard in shards:
            with np.load(shard.lists(work.incomplete)) as lists:
                column[shard.rows.start : shard.rows.stop] = lists[name]
