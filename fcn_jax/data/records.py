"""What all data sets share: what an example is, and how examples are written as a TFDS data set.

A data set's module has a function `plan`, which finds what is there and says which prepared copy
that makes (`Plan`). Only if there is no such copy yet are the examples read and written: streamed
in order into one ArrayRecord file per split, so that memory stays flat and TensorFlow is not
needed. Order is the loader's business. TFDS can read the copy with `tfds.builder_from_directory`;
`fcn_jax.data.source` reads it without, for that would import what the copy names.
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

from fcn_jax.classes import VOID, ClassTable
from fcn_jax.data.bands import Pixels, UsedRange
from fcn_jax.data.images import Encoded, LabelKind, encode_png, pixel_digest, read_label

VERSION = "3.1.0"
"""Of the prepared copies; those of another version are never read."""

Kind = Literal["picture", "depth"]
"""What an input is: a picture, (h, w, 3) of uint8, or of other bands and types, one for the whole
set; or depth, uint16 (h, w), in millimetres."""

ArrayKind = Literal[Kind, "labels"]

PICTURE: Mapping[str, Kind] = {"image": "picture"}

LISTS = ("ids", "digests", "label_digests", "sizes", "label_counts")
"""What the metadata list of every example of a split; see `fcn_jax.data.source.Source`."""

Part = Encoded | Pixels | UInt16[np.ndarray, "h w"] | UInt8[np.ndarray, "h w"]
"""One array of an example: a picture as the bytes of its file or, where it is not uint8 (h, w, 3),
as it is; a depth image, or a label map."""

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
        value_range: The values of images that are black and white; None finds the range that the
            training images use, where they are not of 8 bits.
    """

    splits: Mapping[str, Sequence[Entry]]
    label_maps: Mapping[str, ClassTable]
    source: str
    notes: tuple[str, ...] = ()
    modalities: Mapping[str, Kind] = dataclasses.field(default_factory=lambda: PICTURE)
    value_range: tuple[float, float] | None = None


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


def count_labels(part: Part) -> list[list[int]]:
    """The labels of a label map but void, each with its pixels: ``[[0, 1200], [3, 45]]``."""
    counts = np.bincount(np.asarray(part).ravel(), minlength=VOID + 1)[:VOID]
    return [[int(label), int(counts[label])] for label in np.flatnonzero(counts)]


def digest_of_others(parts: Mapping[str, Part]) -> str:
    """A digest of all arrays of an example but its image."""
    others = [digest_of(parts[name]) for name in sorted(parts) if name != "image"]
    return hashlib.sha256("".join(others).encode()).hexdigest()[:16]


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
    try:
        return dict(json.loads((copy / "metadata.json").read_text()).get("made_from", {}))
    except (ValueError, TypeError, AttributeError, OSError, RecursionError) as error:
        raise ValueError(
            f"{copy / 'metadata.json'} is damaged: {str(error)[:200]}; delete {copy} and prepare "
            "the data set again"
        ) from None


class Stored(NamedTuple):
    """How an array of a data set is stored, the same for all examples.

    Attributes:
        kind: "picture", "depth" or "labels".
        channels: 3 also of a picture of one band, which is repeated when it is read.
        dtype: The type's name.
    """

    kind: ArrayKind
    channels: int
    dtype: str

    def __str__(self) -> str:
        return f"{self.channels} bands of {self.dtype}"

    @property
    def feature(self) -> Any:
        """What TFDS stores it as: a picture of 8 bits in the format that its file has."""
        import tensorflow_datasets as tfds

        if self.kind == "picture" and self[1:] != (3, "uint8"):
            return tfds.features.Tensor(
                shape=(None, None, None), dtype=np.dtype(self.dtype), encoding="zlib"
            )
        return tfds.features.Image(
            shape=(None, None, self.channels),
            dtype=np.dtype(self.dtype),
            encoding_format=None if self.kind == "picture" else "png",
        )


LABELS = Stored("labels", 1, "uint8")


def stored_as(part: Part | None, kind: ArrayKind = "picture") -> Stored:
    """How an array of an example is stored; None stands for a picture of 8-bit RGB."""
    if kind != "picture":
        return Stored(kind, 1, "uint16" if kind == "depth" else "uint8")
    if part is None or isinstance(part, Encoded):
        return Stored(kind, 3, "uint8")
    return Stored(kind, 3 if part.shape[2] == 1 else part.shape[2], part.dtype.name)


def write(
    contents: Contents, path: Path, description: str, made_from: Mapping[str, Any] | None = None
) -> None:
    """Write a data set at DIR/NAME/COPY/VERSION, a folder that is there once it is complete.

    `made_from`, of JSON's types, is kept for `prepared_copy`.
    """
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core.utils import tqdm_utils

    name, copy, version = path.parts[-3:]
    # What pictures are must be known before the first is stored, and is seen by the first.
    first = next(entry for entries in contents.splits.values() for entry in entries)
    inputs = first.load()
    stored = {array: stored_as(inputs[array], kind) for array, kind in contents.modalities.items()}
    # Two processes must not be here at once, so that what lies there is what a killed one left.
    incomplete = path.with_name(f"incomplete.{version}")
    shutil.rmtree(incomplete, ignore_errors=True)
    incomplete.mkdir(parents=True)
    arrays = {**stored, **dict.fromkeys(contents.label_maps, LABELS)}
    metadata = tfds.core.MetadataDict(
        modalities={array: how._asdict() for array, how in stored.items()},
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
        features=tfds.features.FeaturesDict(
            {**{array: how.feature for array, how in arrays.items()}, "id": tfds.features.Text()}
        ),
        metadata=metadata,
        disable_shuffling=True,
    )
    given = {} if contents.value_range is None else {"image": contents.value_range}
    used = {
        array: UsedRange()
        for array, how in stored.items()
        if how.kind == "picture" and how.dtype != "uint8" and array not in given
    }
    try:
        # It writes one record a group, which gives random access.
        writer = tfds.core.SequentialWriter(
            info, max_examples_per_shard=sys.maxsize, file_format="array_record"
        )
        writer.initialize_splits([*contents.splits])
        for split, entries in contents.splits.items():
            label = f"{name} {split}"
            # None: no bar where there is no terminal.
            bar = tqdm_utils.tqdm(entries, desc=label, unit=" images", disable=None)
            lists = {key: metadata[key][split] for key in LISTS}
            trains = split == "train" or "train" not in contents.splits
            examples: Any = _examples(
                name,
                split,
                bar,
                first.id,
                stored,
                [*contents.label_maps],
                lists,
                used if trains else {},
            )
            writer.add_examples({split: examples})  # It takes them one by one.
        ranges = {
            array: [black_white] * stored[array].channels for array, black_white in given.items()
        }
        ranges |= {array: found.found() for array, found in used.items()}
        metadata["ranges"] = {**dict.fromkeys(stored), **ranges}
        writer.close_all()
    except BaseException:
        shutil.rmtree(incomplete, ignore_errors=True)
        raise
    incomplete.rename(path)


def _examples(
    name: str,
    split: str,
    entries: Iterable[Entry],
    first_id: str,
    stored: Mapping[str, Stored],
    label_maps: Sequence[str],
    lists: Mapping[str, list[Any]],
    used: Mapping[str, UsedRange],
) -> Iterator[dict[str, Any]]:
    """Read examples one by one as TFDS takes them; add them to `lists` and to the ranges `used`."""
    seen: set[str] = set()
    for entry in entries:
        if entry.id in seen:
            raise ValueError(f"{name}: two examples of {split} have the id '{entry.id}'")
        seen.add(entry.id)
        parts = entry.load()
        for array, how in stored.items():
            part = parts[array]
            if (found := stored_as(part, how.kind)) != how:
                raise ValueError(
                    f"{name}: the images of a set need the same bands of one type: {array} of "
                    f"{entry.id} has {found}, that of {first_id} has {how}"
                )
            if array in used:
                assert isinstance(part, np.ndarray)
                used[array].add(part)
        # TFDS encodes images with TensorFlow, but takes the bytes of a file as they are.
        files: dict[str, Any] = {}
        for array, part in parts.items():
            if isinstance(part, Encoded):
                files[array] = io.BytesIO(part.content)
            else:
                files[array] = part if part.ndim == 3 else io.BytesIO(encode_png(part))
        lists["ids"].append(entry.id)
        lists["digests"].append(digest_of(parts["image"]))
        lists["label_digests"].append(digest_of_others(parts))
        lists["sizes"].append(list(size_of(parts["image"])))
        lists["label_counts"].append({name: count_labels(parts[name]) for name in label_maps})
        yield {**files, "id": entry.id}
