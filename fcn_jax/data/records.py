"""What all data sets share: what an example is, and how examples are written as a TFDS data set.

A data set's module has a function `plan`, which finds what is there and says which prepared copy
that makes (`Plan`). Only if there is no such copy yet are the examples read and written, by
`fcn_jax.data.writing`, in their order: shuffling is the loader's business. TFDS can read the copy
with `tfds.builder_from_directory`; `fcn_jax.data.source` reads it without, for that would import
what the copy names.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import UInt8, UInt16

from fcn_jax.classes import ClassTable
from fcn_jax.data.bands import Pixels
from fcn_jax.data.images import Encoded, LabelKind, pixel_digest, read_label

VERSION = "4.0.0"
"""Of the prepared copies; those of another version are never read."""

Kind = Literal["picture", "depth"]
"""What an input is: a picture, (h, w, 3) of uint8, or of other bands and types, one for the whole
set; or depth, uint16 (h, w), in millimetres."""

ArrayKind = Literal[Kind, "labels"]

PICTURE: Mapping[str, Kind] = {"image": "picture"}

Part = Encoded | Pixels | UInt16[np.ndarray, "h w"] | UInt8[np.ndarray, "h w"]
"""One array of an example: a picture as the bytes of its file or, where it is not uint8 (h, w, 3),
as it is; a depth image, or a label map."""

Read = Callable[[Path], Part]
"""How a file is read."""


@dataclasses.dataclass(frozen=True)
class Entry:
    """One example to be: its id, and how to get its arrays when its turn comes.

    Entries are sent to other processes: `load` should be a partial of a module's function, with
    what that one example needs.
    """

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
        kept_in: A folder of what was kept to go on after a kill, of no use once all is written.
    """

    splits: Mapping[str, Sequence[Entry]]
    label_maps: Mapping[str, ClassTable]
    source: str
    notes: tuple[str, ...] = ()
    modalities: Mapping[str, Kind] = dataclasses.field(default_factory=lambda: PICTURE)
    value_range: tuple[float, float] | None = None
    kept_in: Path | None = None


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

    return Entry(entry_id, functools.partial(_read_files, files))


def _read_files(files: Mapping[str, tuple[Path, Read]]) -> dict[str, Part]:
    parts = {name: read(path) for name, (path, read) in files.items()}
    check_sizes(parts, {name: str(path) for name, (path, _) in files.items()})
    return parts


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


def features_of(stored: Mapping[str, Stored], label_maps: Collection[str]) -> Any:
    """What a record holds, in TFDS's terms."""
    import tensorflow_datasets as tfds

    arrays = {**stored, **dict.fromkeys(label_maps, LABELS)}
    features = {array: how.feature for array, how in arrays.items()}
    return tfds.features.FeaturesDict({**features, "id": tfds.features.Text()})
