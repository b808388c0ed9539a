"""Random access to one split of a prepared data set."""

from __future__ import annotations

import copy
import functools
import json
import re
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any, SupportsIndex

import numpy as np

from fcn_jax.classes import ClassTable
from fcn_jax.data.images import read_depth, read_image, read_label


class Source:
    """One split of a prepared data set: `len(source)`, `source[i]`, and its class tables.

    An example is a dictionary of arrays of one height and width, and its "id", a str:

    * pictures, uint8 (h, w, 3): "image", which is RGB, and others such as "hha";
    * "depth", where there is one, uint16 (h, w): millimetres, 0 where nothing was measured;
    * label maps, uint8 (h, w): 0..C-1, and 255 for void. A single one is called "label".

    Examples are in the order of the data set, without shuffling.

    A source can be pickled: the copy opens the files again when first read, so that it costs
    little to send to a worker process.

    Args:
        path: The folder of the prepared data set, as returned by `fcn_jax.data.prepare`.
        split: A split name, or an expression of TFDS: "train[:10%]", "train+val".

    Attributes:
        modalities: The names of the inputs, "image" first.
        label_maps: The class table of every label map, by its name.
        ids: The id of every example.
        digests: The `fcn_jax.data.images.pixel_digest` of every image.
        label_digests: A digest of all else of every example: its label maps, its depth.
        sizes: Height and width of every image.
        notes: What a person should know about this copy of the data, e.g. missing images.
        origin: Where the data come from, in words.

    Raises:
        ValueError: if the split does not exist; the message lists those that do. If the copy was
            prepared by another version of this package.
    """

    def __init__(self, path: str | Path, split: str) -> None:
        self.path = Path(path).expanduser()
        self.split = split
        metadata = json.loads((self.path / "metadata.json").read_text())
        info = json.loads((self.path / "dataset_info.json").read_text())
        self.name = "/".join(filter(None, (info["name"], info.get("configName"), info["version"])))
        if not {"label_maps", "label_digests"} <= set(metadata):
            raise ValueError(
                f"{self.path} was prepared by another version of fcn_jax; delete it and prepare "
                "the data set again"
            )
        self.label_maps = {
            name: ClassTable.from_dict(table) for name, table in metadata["label_maps"].items()
        }
        self._kinds: dict[str, str] = metadata["modalities"]
        self.modalities = tuple(self._kinds)
        self.notes = tuple(metadata["notes"])
        self.origin: str = metadata["source"]
        sizes = {name: len(ids) for name, ids in metadata["ids"].items()}
        rows = _rows(split, sizes, self.name, self.notes)
        self._positions = tuple(range(len(rows)))  # of the examples among those of the split
        self.ids = tuple(metadata["ids"][name][i] for name, i in rows)
        self.digests = tuple(metadata["digests"][name][i] for name, i in rows)
        self.label_digests = tuple(metadata["label_digests"][name][i] for name, i in rows)
        self.sizes = tuple(tuple(metadata["sizes"][name][i]) for name, i in rows)

    def without(self, digests: Collection[str]) -> Source:
        """A source of the same split that leaves out the images of some digests."""
        kept = [i for i, digest in enumerate(self.digests) if digest not in digests]
        source = copy.copy(self)
        source._positions = tuple(self._positions[i] for i in kept)
        for name in ("ids", "digests", "label_digests", "sizes"):
            setattr(source, name, tuple(getattr(self, name)[i] for i in kept))
        return source

    @property
    def classes(self) -> ClassTable:
        """The class table of the first label map."""
        return next(iter(self.label_maps.values()))

    @functools.cached_property
    def _reader(self) -> Sequence[dict[str, Any]]:
        """The records of the split, images as the bytes of their files."""
        import tensorflow_datasets as tfds

        # Undecoded: TFDS would decode with OpenCV on one machine, with Pillow on another.
        skip = dict.fromkeys((*self.modalities, *self.label_maps), tfds.decode.SkipDecoding())
        builder: Any = tfds.builder_from_directory(str(self.path))
        return builder.as_data_source(split=self.split, decoders=skip)

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: SupportsIndex) -> dict[str, Any]:
        position = index.__index__()
        if not -len(self) <= position < len(self):
            raise IndexError(f"{self!r} has no example {position}")
        record = self._reader[self._positions[position % len(self)]]
        example_id = record["id"].decode()
        inputs = {
            name: (read_depth if kind == "depth" else read_image)(record[name], example_id)
            for name, kind in self._kinds.items()
        }
        labels = {
            name: read_label(record[name], kind="index", name=example_id).astype(np.uint8)
            for name in self.label_maps
        }
        return {**inputs, **labels, "id": example_id}

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return (self[i] for i in range(len(self)))

    def __repr__(self) -> str:
        # grain compares this when it resumes: it tells data sets apart, not where they lie.
        return f"Source({self.name!r}, split={self.split!r}, examples={len(self)})"

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_reader"}


def unseen(source: Source, trained_on: Collection[str], remedy: str) -> tuple[Source, str]:
    """The images of a source that were not trained on, and what to tell of the others, or "".

    Args:
        trained_on: Digests of the images that a network was trained on (`fcn_jax.runs.Run`).
        remedy: What to do if none is left.

    Raises:
        ValueError: If none is left.
    """
    pairs = zip(source.digests, source.ids, strict=True)
    seen = [name for digest, name in pairs if digest in trained_on]
    if not seen:
        return source, ""
    text = f"of the {len(source)} images of {source!r} the run, or one that it started from, was "
    text += f"trained on {examples_of(seen)}"
    if len(seen) == len(source):
        raise ValueError(f"{text}, so that scores mean nothing: {remedy}")
    return source.without(trained_on), f"{text}: they are left out of the scores"


def examples_of(names: Sequence[str]) -> str:
    """How many there are, and three of them: ``5 (a, b, c, ...)``."""
    return f"{len(names)} ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})"


def check_disjoint(train: Source, val: Source) -> None:
    """Refuse to score on images that were trained on.

    Images are compared by content, so that a copy under another name is found too.
    """
    of_train = dict(zip(train.digests, train.ids, strict=True))
    shared = [
        name if name == of_train[digest] else f"{name} (= {of_train[digest]})"
        for digest, name in zip(val.digests, val.ids, strict=True)
        if digest in of_train
    ]
    if shared:
        more = ", ..." if len(shared) > 5 else ""
        raise ValueError(
            f"{len(shared)} of {len(val)} images of {val!r} are also in {train!r}: "
            f"{', '.join(shared[:5])}{more}. Scores on images that were trained on mean nothing: "
            "choose other splits or remove the copies"
        )


def _rows(
    split: str, sizes: dict[str, int], name: str, notes: tuple[str, ...]
) -> list[tuple[str, int]]:
    """(split, position) of every example that a split expression selects."""
    import tensorflow_datasets as tfds

    asked = re.findall(r"(?:^|\+)\s*([^\[+\s]+)", split)
    unknown = [part for part in asked if part not in sizes]
    if unknown or not asked:
        known = ", ".join(f"{k} ({n} images)" for k, n in sizes.items())
        message = f"{name} has no split '{unknown[0] if unknown else split}'; it has {known}"
        raise ValueError("; ".join([message, *notes]))
    infos = {
        part: tfds.core.SplitInfo(name=part, shard_lengths=[n], num_bytes=0)
        for part, n in sizes.items()
    }
    try:
        parts = tfds.core.ReadInstruction.from_spec(split).to_absolute(infos)
    except (AssertionError, ValueError) as error:
        raise ValueError(f"{name}: cannot read the split '{split}': {error}") from error
    rows = [
        (part.splitname, i)
        for part in parts
        for i in range(sizes[part.splitname])[part.from_ : part.to]
    ]
    if not rows:
        raise ValueError(f"{name}: the split '{split}' holds no image")
    return rows


def split_sizes(path: str | Path) -> dict[str, int]:
    """The number of examples in every split of a prepared data set."""
    metadata = json.loads((Path(path) / "metadata.json").read_text())
    return {name: len(ids) for name, ids in metadata["ids"].items()}
