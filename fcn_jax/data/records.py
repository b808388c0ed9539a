"""What all data sets share: what an example is, and how examples are written as a TFDS data set.

A data set's module has a function `plan`, which finds what is there and says which prepared copy
that makes (`Plan`). Only if there is no such copy yet are the examples read and written: streamed
in order into one ArrayRecord file per split, so that memory stays flat and TensorFlow is not
needed. Order is the loader's business. TFDS reads the copy with `tfds.builder_from_directory`.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import UInt8, UInt16

from fcn_jax.classes import ClassTable
from fcn_jax.data.images import Encoded, LabelKind, encode_png, pixel_digest, read_label

VERSION = "2.3.0"
"""Of the prepared copies; those of another version are never read."""

Kind = Literal["picture", "depth"]
"""What an input is: a picture, uint8 (h, w, 3); or depth, uint16 (h, w), in millimetres."""

STORED = {
    "picture": (3, np.uint8, None),
    "depth": (1, np.uint16, "png"),
    "labels": (1, np.uint8, "png"),
}
"""Channels, type and file format of what is stored; pictures stay in the format they come in."""

PICTURE: Mapping[str, Kind] = {"image": "picture"}

LISTS = ("ids", "digests", "label_digests", "sizes")
"""What the metadata list of every example of a split; see `fcn_jax.data.source.Source`."""

Part = Encoded | UInt16[np.ndarray, "h w"] | UInt8[np.ndarray, "h w"]
"""One array of an example: a picture as the bytes of its file, a depth image, or a label map."""

Read = Callable[[Path], Part]
"""How a file is read."""


@dataclasses.dataclass(frozen=True)
class Entry:
    """One example to be: its id, and how to get its arrays when its turn comes."""

    id: str
    load: Callable[[], Mapping[str, Part]]


@dataclasses.dataclass(frozen=True)
class Contents:
    """All that a data set will hold, before any pixel is stored.

    Attributes:
        splits: The entries of every split, in the order they will be stored.
        label_maps: The class table of every label map, by its name; stored beside the data.
        source: Where the data come from, in words.
        notes: What a person should know about this copy, e.g. how much of the set is there.
        modalities: What the inputs are, by name; "image" before others.
    """

    splits: Mapping[str, Sequence[Entry]]
    label_maps: Mapping[str, ClassTable]
    source: str
    notes: tuple[str, ...] = ()
    modalities: Mapping[str, Kind] = dataclasses.field(default_factory=lambda: PICTURE)


class Plan(NamedTuple):
    """What a data set can be prepared from.

    Attributes:
        copy: The name of the prepared copy: the same for the same files and options.
        contents: Called if there is no such copy. It finds all problems that can be found before
            anything is written.
    """

    copy: str
    contents: Callable[[], Contents]


def file_entry(entry_id: str, files: Mapping[str, tuple[Path, Read]]) -> Entry:
    """An example made of a file for every array, and how it is read. All must have one size."""

    def load() -> dict[str, Part]:
        parts = {name: read(path) for name, (path, read) in files.items()}
        check_sizes(parts, {name: str(path) for name, (path, _) in files.items()})
        return parts

    return Entry(entry_id, load)


def check_sizes(parts: Mapping[str, Part], names: Mapping[str, str]) -> None:
    """Raises a ValueError that names the first array and one of another size by `names`, if any."""
    sizes = {name: "{1}x{0}".format(*size_of(part)) for name, part in parts.items()}
    first = next(iter(sizes))
    for name, size in sizes.items():
        if size != sizes[first]:
            its = f"its {first} {names[first]} has {sizes[first]}"
            raise ValueError(f"{names[name]}: {size} pixels, but {its}")


def size_of(part: Part) -> tuple[int, int]:
    """Height and width."""
    return part.size if isinstance(part, Encoded) else (part.shape[0], part.shape[1])


def digest_of(part: Part) -> str:
    """The `pixel_digest` of a picture or an array."""
    return part.digest if isinstance(part, Encoded) else pixel_digest(part)


def read_labels(
    path: Path, table: ClassTable, kind: LabelKind = "index", colors: ClassTable | None = None
) -> UInt8[np.ndarray, "h w"]:
    """Labels of a file that holds the ids of `table`, or the colours of `colors`."""
    raw = read_label(path, colors, kind)
    try:
        return table.to_labels(raw)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def prepared_copy(
    folder: Path, name: str = "*", fits: Callable[[Mapping[str, Any]], bool] = lambda made: True
) -> Path | None:
    """The one copy of this version of the data set in `folder` whose name matches, if any.

    `fits` is asked of what it was made from, as `write` was told.
    """
    copies = [info.parent for info in folder.glob(f"{name}/{VERSION}/dataset_info.json")]
    copies = [copy for copy in copies if fits(made_from(copy))]
    if len(copies) > 1:
        raise ValueError(
            f"several copies of {folder.name} have been prepared: give the folder of the files of "
            "the one you mean (manual_dir, or tfds_dir), or delete all but one of "
            f"{', '.join(map(str, sorted(copies)))}"
        )
    return copies[0] if copies else None


def made_from(copy: Path) -> Mapping[str, Any]:
    """What a prepared copy was made from, as `write` was told."""
    return json.loads((copy / "metadata.json").read_text()).get("made_from", {})


def write(
    contents: Contents, path: Path, description: str, made_from: Mapping[str, Any] | None = None
) -> None:
    """Write a data set at DIR/NAME/COPY/VERSION, a folder that is there once it is complete.

    `made_from`, of JSON's types, is kept for `prepared_copy`.
    """
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core.utils import tqdm_utils

    name, copy, version = path.parts[-3:]
    # Two processes must not be here at once, so that what lies there is what a killed one left.
    incomplete = path.with_name(f"incomplete.{version}")
    shutil.rmtree(incomplete, ignore_errors=True)
    incomplete.mkdir(parents=True)
    kinds = {**contents.modalities, **dict.fromkeys(contents.label_maps, "labels")}
    arrays = {}
    for array, kind in kinds.items():
        channels, dtype, encoding = STORED[kind]
        arrays[array] = tfds.features.Image(
            shape=(None, None, channels), dtype=dtype, encoding_format=encoding
        )
    metadata = tfds.core.MetadataDict(
        modalities=dict(contents.modalities),
        label_maps={name: table.to_dict() for name, table in contents.label_maps.items()},
        source=contents.source,
        made_from=dict(made_from or {}),
        notes=list(contents.notes),
        **{key: {split: [] for split in contents.splits} for key in LISTS},
    )
    info = tfds.core.DatasetInfo(
        builder=tfds.core.DatasetIdentity(
            name=name,
            version=tfds.core.Version(version),
            data_dir=str(incomplete),
            module_name="fcn_jax.data",
            config_name=copy,
        ),
        description=description,
        features=tfds.features.FeaturesDict({**arrays, "id": tfds.features.Text()}),
        metadata=metadata,
        disable_shuffling=True,
    )
    try:
        # It writes one record a group, which gives random access.
        writer = tfds.core.SequentialWriter(
            info, max_examples_per_shard=sys.maxsize, file_format="array_record"
        )
        writer.initialize_splits([*contents.splits])
        for split, entries in contents.splits.items():
            bar = tqdm_utils.tqdm(entries, desc=f"{name} {split}", unit=" images")
            stored = {key: metadata[key][split] for key in LISTS}
            examples: Any = _stored(bar, stored, f"{name}: two examples of {split} have the id")
            writer.add_examples({split: examples})  # It takes them one by one.
        writer.close_all()
    except BaseException:
        shutil.rmtree(incomplete, ignore_errors=True)
        raise
    incomplete.rename(path)


def _stored(
    entries: Iterable[Entry], stored: Mapping[str, list[Any]], twice: str
) -> Iterator[dict[str, Any]]:
    """Read examples one by one as TFDS takes them, and add ids, digests and sizes to `stored`."""
    seen: set[str] = set()
    for entry in entries:
        if entry.id in seen:
            raise ValueError(f"{twice} '{entry.id}'")
        seen.add(entry.id)
        parts = entry.load()
        # TFDS encodes arrays with TensorFlow, but takes the bytes of a file as they are.
        files = {
            name: part.content if isinstance(part, Encoded) else encode_png(part)
            for name, part in parts.items()
        }
        stored["ids"].append(entry.id)
        stored["digests"].append(digest_of(parts["image"]))
        others = [digest_of(parts[name]) for name in sorted(parts) if name != "image"]
        stored["label_digests"].append(hashlib.sha256("".join(others).encode()).hexdigest()[:16])
        stored["sizes"].append(list(size_of(parts["image"])))
        yield {**{name: io.BytesIO(file) for name, file in files.items()}, "id": entry.id}
