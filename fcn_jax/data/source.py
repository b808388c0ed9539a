"""Random access to one split of a prepared data set."""

from __future__ import annotations

import bisect
import contextlib
import copy
import itertools
import json
import math
import re
import zlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, SupportsIndex

import numpy as np
from jaxtyping import Int64

from fcn_jax.classes import ClassTable
from fcn_jax.data.bands import DTYPES, Pixels, Range
from fcn_jax.data.images import read_depth, read_image, read_label
from fcn_jax.data.records import VERSION, Stored, features_of
from fcn_jax.data.writing import columns, shard_file


class Source:
    """One split of a prepared data set: `len(source)`, `source[i]`, and its class tables.

    An example is a dictionary of arrays of one height and width, and its "id", a str:

    * pictures, uint8 (h, w, 3): "image", which is RGB, and others such as "hha"; where the data
      set has other bands or types, (h, w, bands) of uint8, uint16, int16 or float32, grey ones
      with their band three times;
    * "depth", where there is one, uint16 (h, w): millimetres, 0 where nothing was measured;
    * label maps, uint8 (h, w): 0..C-1, and 255 for void. A single one is called "label".

    Examples are in the order of the data set, without shuffling.

    A source can be pickled: the copy opens the files again when first read, so that it costs
    little to send to a worker process.

    Opening one costs the same for any number of examples: what is told of each (`ids`, `digests`,
    `label_digests`, `sizes`, `label_counts`) stays in files until it is asked for.

    Args:
        path: The folder of the prepared data set, as returned by `fcn_jax.data.prepare`.
        split: A split name, or an expression of TFDS: "train[:10%]", "train+val".

    Attributes:
        modalities: The names of the inputs, "image" first.
        channels: The number of channels of each input.
        dtypes: The type of each input's arrays, by name.
        ranges: For each input (black, white) of every channel; None of 8 bits and of depth.
        label_maps: The class table of every label map, by its name.
        ids: The id of every example.
        digests: The `fcn_jax.data.images.pixel_digest` of every image.
        label_digests: A digest of all else of every example: its label maps, its depth.
        sizes: Height and width of every image.
        label_counts: The pixels of each class in every image, int64 (examples, classes), by the
            label map's name.
        notes: What a person should know about this copy of the data, e.g. missing images.
        origin: Where the data come from, in words.

    Raises:
        ValueError: if the split does not exist; the message lists those that do. If the copy was
            prepared by another version of this package.
    """

    def __init__(self, path: str | Path, split: str) -> None:
        self.path = Path(path).expanduser()
        self.split = split
        metadata = _metadata(self.path)
        self.name: str = metadata["name"]
        self.label_maps: dict[str, ClassTable] = metadata["label_maps"]
        self._stored: dict[str, Stored] = metadata["modalities"]
        self.modalities = tuple(self._stored)
        self.channels = {name: how.channels for name, how in self._stored.items()}
        self.dtypes = {name: how.dtype for name, how in self._stored.items()}
        self.ranges: dict[str, Range | None] = metadata["ranges"]
        self.notes: tuple[str, ...] = metadata["notes"]
        self.origin: str = metadata["source"]
        self._shards: dict[str, list[int]] = metadata["shards"]
        self._parts = _parts(split, split_sizes(self.path), self.name, self.notes)
        self._kept: np.ndarray | None = None  # the positions that are left, where not all are
        for part, _ in self._parts:
            self._mapped(part)  # damage is told at once

    def without(self, digests: Collection[str]) -> Source:
        """A source of the same split that leaves out the images of some digests."""
        kept = [i for i, digest in enumerate(self.digests) if digest not in digests]
        source = copy.copy(self)  # of what a pickle has
        source._kept = np.array(kept, np.int64) if self._kept is None else self._kept[kept]
        return source

    @cached_property
    def ids(self) -> tuple[str, ...]:
        with _damage_named(self.path, "lists"):
            return tuple(name.decode() for name in self._column("ids").tolist())

    @cached_property
    def digests(self) -> tuple[str, ...]:
        with _damage_named(self.path, "lists"):
            return tuple(digest.decode() for digest in self._column("digests").tolist())

    @cached_property
    def label_digests(self) -> tuple[str, ...]:
        with _damage_named(self.path, "lists"):
            return tuple(digest.decode() for digest in self._column("label_digests").tolist())

    @cached_property
    def sizes(self) -> tuple[tuple[int, int], ...]:
        with _damage_named(self.path, "lists"):
            sizes = self._column("sizes")
            if len(wrong := sizes[(sizes < 1).any(axis=1)]):
                raise ValueError(f"{wrong[0].tolist()} is no size")
            kinds, which = np.unique(sizes, axis=0, return_inverse=True)
            shared = [(height, width) for height, width in kinds.tolist()]
            return tuple(shared[kind] for kind in which.ravel().tolist())

    @cached_property
    def label_counts(self) -> dict[str, Int64[np.ndarray, "examples classes"]]:
        with _damage_named(self.path, "lists"):
            counts = {name: self._column(f"label_counts.{name}") for name in self.label_maps}
            pixels = self._column("sizes").astype(np.int64).prod(axis=1)
            for name, of_images in counts.items():
                if of_images.min() < 0 or (of_images > pixels[:, None]).any():
                    raise ValueError(f"the pixels of {name} cannot be so many")
            return counts

    def _column(self, name: str) -> np.ndarray:
        """A list of the examples; one piece of it in a file stays there, mapped into memory."""
        pieces = [self._mapped(split)[name][rows.start : rows.stop] for split, rows in self._parts]
        column = pieces[0] if len(pieces) == 1 else np.concatenate(pieces)
        return column if self._kept is None else column[self._kept]

    def _mapped(self, split: str) -> dict[str, np.ndarray]:
        """The lists of a whole split."""
        if split not in self._lists:
            lists = {}
            for name, (dtype, shape) in columns(self.label_maps).items():
                file = f"lists/{split}.{name}.npy"
                with _damage_named(self.path, file):
                    found = np.load(self.path / file, mmap_mode="r", allow_pickle=False)
                    lists[name] = found
                    kind = found.dtype.kind if dtype == "S" else found.dtype
                    if (kind, found.shape) != (dtype, (sum(self._shards[split]), *shape)):
                        raise ValueError(f"it holds {found.dtype} of shape {found.shape}")
            self._lists[split] = lists
        return self._lists[split]

    @cached_property
    def _lists(self) -> dict[str, dict[str, np.ndarray]]:
        return {}

    @property
    def classes(self) -> ClassTable:
        """The class table of the first label map."""
        return next(iter(self.label_maps.values()))

    def _place(self, position: int) -> tuple[str, int]:
        """The split of an example, and its place there."""
        place = position if self._kept is None else int(self._kept[position])
        for split, rows in self._parts:
            if place < len(rows):
                return split, rows[place]
            place -= len(rows)
        raise IndexError(position)

    @cached_property
    def _records(self) -> dict[tuple[str, int], Any]:
        """The shards that have been read from."""
        return {}

    def _record(self, split: str, row: int) -> bytes:
        """What is stored of an example."""
        from array_record.python.array_record_data_source import ArrayRecordDataSource

        ends = list(itertools.accumulate(self._shards[split]))
        number = bisect.bisect_right(ends, row)
        length = self._shards[split][number]
        file = shard_file(self.name.split("/")[0], split, number)
        with _damage_named(self.path, file):
            if (split, number) not in self._records:
                if not (self.path / file).is_file():
                    raise ValueError("no such file")
                records = ArrayRecordDataSource([str(self.path / file)])
                if len(records) != length:
                    raise ValueError(f"holds {len(records)} of {length} images")
                self._records[split, number] = records
            return self._records[split, number][row - ends[number] + length]

    @cached_property
    def _features(self) -> Any:
        """Not read from features.json, which TFDS takes for code to import."""
        return features_of(self._stored, self.label_maps)

    def __len__(self) -> int:
        if self._kept is not None:
            return len(self._kept)
        return sum(len(rows) for _, rows in self._parts)

    def __getitem__(self, index: SupportsIndex) -> dict[str, Any]:
        import tensorflow_datasets as tfds

        position = index.__index__()
        if not -len(self) <= position < len(self):
            raise IndexError(f"{self!r} has no example {position}")
        split, row = self._place(range(len(self))[position])
        lists, stored = self._mapped(split), self._record(split, row)
        name = lists["ids"][row].decode(errors="replace")
        with _damage_named(self.path, what=f"image {row} of {split} ({name})"):
            # Undecoded: TFDS would decode with OpenCV on one machine, with Pillow on another.
            skip = dict.fromkeys((*self.modalities, *self.label_maps), tfds.decode.SkipDecoding())
            record = self._features.deserialize_example_np(stored, decoders=skip)
            example_id = record["id"].decode()
            if record["id"] != lists["ids"][row]:
                raise ValueError(f"its id is {example_id}")
            example: dict[str, Any] = {}
            for name, how in self._stored.items():
                if how.kind == "depth":
                    example[name] = read_depth(record[name], example_id)
                elif how[1:] == (3, "uint8"):
                    example[name] = read_image(record[name], example_id)
                else:
                    height, width = lists["sizes"][row].tolist()
                    example[name] = _decompressed(record[name], how, (height, width))
            for name in self.label_maps:
                label = read_label(record[name], kind="index", name=example_id)
                example[name] = label.astype(np.uint8)
            return {**example, "id": example_id}

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return (self[i] for i in range(len(self)))

    def __repr__(self) -> str:
        # grain compares this when it resumes: it tells data sets apart, not where they lie.
        return f"Source({self.name!r}, split={self.split!r}, examples={len(self)})"

    def __getstate__(self) -> dict[str, Any]:
        # All that is read from files again; sources of another kind have no such properties.
        read = {n for n, value in vars(type(self)).items() if isinstance(value, cached_property)}
        return {name: value for name, value in self.__dict__.items() if name not in read}


def _decompressed(record: dict[str, Any], how: Stored, size: tuple[int, int]) -> Pixels:
    """A picture that is no file, of the size that it must have; grey ones get three channels."""
    shape = tuple(int(side) for side in record["shape"])
    if shape not in ((*size, how.channels), (*size, 1)):
        raise ValueError(f"its shape is {shape}")
    dtype = np.dtype(how.dtype)
    number = math.prod(shape) * dtype.itemsize
    values = zlib.decompressobj().decompress(record["value"], number + 1)
    pixels = np.frombuffer(values, dtype).reshape(shape)
    return pixels if shape[2] == how.channels else np.repeat(pixels, how.channels, axis=2)


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


def _parts(
    split: str, sizes: Mapping[str, int], name: str, notes: tuple[str, ...]
) -> list[tuple[str, range]]:
    """The splits and their rows that a split expression selects, in its order."""
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
    rows = [(part.splitname, range(sizes[part.splitname])[part.from_ : part.to]) for part in parts]
    rows = [(splitname, numbers) for splitname, numbers in rows if numbers]
    if not rows:
        raise ValueError(f"{name}: the split '{split}' holds no image")
    return rows


def split_sizes(path: str | Path) -> dict[str, int]:
    """The number of examples in every split of a prepared data set."""
    return {name: sum(lengths) for name, lengths in _metadata(Path(path))["shards"].items()}


@contextlib.contextmanager
def _damage_named(folder: Path, file: str = "", what: str = "") -> Iterator[None]:
    """Anything that is wrong with a file of a prepared data set, as a ValueError of one line."""
    try:
        yield
    except Exception as error:  # what readers raise on wrong bytes is of many types
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise ValueError(
            f"{folder / file} is damaged: {f'{what}: ' if what else ''}{reason}; delete {folder} "
            "and prepare the data set again"
        ) from error


def _metadata(folder: Path) -> dict[str, Any]:
    """What stands beside the records of a prepared data set, and its name, after a check.

    Raises:
        ValueError: If a file is damaged, or of another version of this package.
    """
    with _damage_named(folder, "dataset_info.json"):
        info = json.loads((folder / "dataset_info.json").read_text())
        names = [info["name"], info.get("configName") or "", info["version"]]
        if not all(isinstance(name, str) for name in names) or not re.fullmatch(r"\w+", names[0]):
            raise ValueError("it does not name the data set")
    with _damage_named(folder, "metadata.json"):
        content = json.loads((folder / "metadata.json").read_text())
        if not isinstance(content, dict):
            raise ValueError("it is no description of a prepared data set")
    keys = {"label_maps", "modalities", "notes", "ranges", "shards"}
    if info["version"] != VERSION or not keys <= set(content):
        raise ValueError(
            f"{folder} was prepared by another version of fcn_jax; delete it and prepare the data "
            "set again"
        )
    with _damage_named(folder, "metadata.json"):
        label_maps = {
            name: ClassTable.from_dict(table) for name, table in content["label_maps"].items()
        }
        for split, lengths in content["shards"].items():
            if not lengths or any(type(n) is not int or not 0 < n < 2**31 for n in lengths):
                raise ValueError(f"{split} has shards of {lengths!r:.80}")
        stored = {name: Stored(**how) for name, how in content["modalities"].items()}
        for name, how in stored.items():
            known = how.kind in ("picture", "depth") and how.dtype in DTYPES
            if not known or type(how.channels) is not int or how.channels < 1:
                raise ValueError(f"{name} is {how}")
        return {
            "name": "/".join(filter(None, names)),
            "shards": content["shards"],
            "label_maps": label_maps,
            "modalities": stored,
            "source": str(content.get("source", "")),
            "notes": tuple(map(str, content["notes"])),
            "ranges": {name: _range(content["ranges"][name], how) for name, how in stored.items()},
        }


def _range(given: Any, how: Stored) -> Range | None:
    if given is None:
        return None
    found = tuple((float(low), float(high)) for low, high in given)
    sound = all(math.isfinite(low) and math.isfinite(high) and low < high for low, high in found)
    if len(found) != how.channels or not sound:
        raise ValueError(f"{given} are no ranges of {how.channels} channels")
    return found
