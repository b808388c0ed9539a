"""What all data sets share: how examples are written as a TFDS data set.

TFDS's own writer keeps a whole split in memory to shuffle it and, above 1 GB, needs TensorFlow. An
`ExampleBuilder` streams its examples in order into one ArrayRecord file per split instead: order is
the loader's business, memory stays flat, and the progress bar knows the total. Everything else (the
incomplete folder that is renamed when done, the metadata, `as_data_source`,
`tfds.builder_from_directory`) is TFDS's.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import tensorflow_datasets as tfds
from jaxtyping import UInt8, UInt16
from tensorflow_datasets.core.splits import SplitDict
from tensorflow_datasets.core.utils import tqdm_utils

from fcn_jax.classes import ClassTable
from fcn_jax.data.images import (
    Encoded,
    LabelKind,
    encode_png,
    encoded_image,
    read_label,
)

Kind = Literal["picture", "depth", "labels"]
"""What an array of an example is: uint8 (h, w, 3); uint16 (h, w), in mm; uint8 (h, w) labels."""

IMAGE_AND_LABEL: Mapping[str, Kind] = {"image": "picture", "label": "labels"}

Part = Encoded | UInt16[np.ndarray, "h w"] | UInt8[np.ndarray, "h w"]
"""One array of an example: a picture as the bytes of its file, a depth image, or a label map."""

Read = Callable[[Path], Part]
"""How a file is read."""


@dataclasses.dataclass(frozen=True)
class Entry:
    """One example to be: its id, and how to get its arrays when its turn comes."""

    id: str
    load: Callable[[], Mapping[str, Part]]


@dataclasses.dataclass
class Contents:
    """All that a data set will hold, before any pixel is stored.

    Attributes:
        splits: The entries of every split, in the order they will be stored.
        label_maps: The class table of every label map, by its name; they are stored beside the data.
        source: Where the data come from, in words.
        notes: What a person should know about this copy, e.g. how much of the set is there.
    """

    splits: Mapping[str, Sequence[Entry]]
    label_maps: Mapping[str, ClassTable]
    source: str
    notes: tuple[str, ...] = ()


@dataclasses.dataclass
class ExamplesConfig(tfds.core.BuilderConfig):
    """Builder configuration.

    Attributes:
        arrays: What every array of an example is, by its name; inputs first, "image" before others.
    """

    arrays: Mapping[str, Kind] = dataclasses.field(default_factory=lambda: dict(IMAGE_AND_LABEL))


@dataclasses.dataclass
class FilesConfig(ExamplesConfig):
    """Builder configuration of a data set that is made from a person's files.

    Attributes:
        root: The folder of the files; None where they are downloaded.
        options: The data set's options.
    """

    root: Path | None = None
    options: dict[str, Any] = dataclasses.field(default_factory=dict)


def file_entry(entry_id: str, files: Mapping[str, tuple[Path, Read]]) -> Entry:
    """An example made of files.

    Args:
        entry_id: Its id.
        files: The file of every array, and how it is read. All must have the size of the first.
    """

    def load() -> dict[str, Part]:
        parts = {name: read(path) for name, (path, read) in files.items()}
        check_sizes(parts, {name: str(path) for name, (path, _) in files.items()})
        return parts

    return Entry(entry_id, load)


def check_sizes(parts: Mapping[str, Part], names: Mapping[str, str]) -> None:
    """Refuse arrays of different sizes.

    Args:
        parts: The arrays of an example; the first sets the size.
        names: What to call each in the message, e.g. its file.

    Raises:
        ValueError: naming the two that differ, and their sizes.
    """
    sizes = {name: _size(part) for name, part in parts.items()}
    first = next(iter(sizes))
    for name, size in sizes.items():
        if size != sizes[first]:
            raise ValueError(
                f"{names[name]}: {_shown(size)} pixels, but its {first} {names[first]} has "
                f"{_shown(sizes[first])}"
            )


def _size(part: Part) -> tuple[int, int]:
    if isinstance(part, Encoded):
        return part.size
    return part.shape[0], part.shape[1]


def _shown(size: Sequence[int]) -> str:
    return f"{size[1]}x{size[0]}"


def read_labels(
    path: Path,
    table: ClassTable,
    kind: LabelKind = "index",
    colors: ClassTable | None = None,
) -> UInt8[np.ndarray, "h w"]:
    """Labels of a file that holds the ids of `table`, or the colours of `colors`.

    Raises:
        ValueError: naming the file, if it cannot be read or holds ids or colours of no class.
    """
    raw = read_label(path, colors, kind)
    try:
        return table.to_labels(raw)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def image_and_label(
    entry_id: str, image: Path, label: Path, read: Callable[[Path], UInt8[np.ndarray, "h w"]]
) -> Entry:
    """An example of two files, "image" and "label"; `read` turns the second into labels."""
    return file_entry(entry_id, {"image": (image, encoded_image), "label": (label, read)})


class ExampleBuilder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """A TFDS builder of examples for segmentation; a subclass says which there are.

    Its configuration is an `ExamplesConfig`, which says what arrays an example has.
    """

    # Prepared copies of another version are never read. 2: several inputs and label maps.
    VERSION = tfds.core.Version("2.1.0")

    def contents(self, config: Any, dl_manager: tfds.download.DownloadManager) -> Contents:
        """The entries of every split. Find all problems here, before anything is written."""
        raise NotImplementedError

    def _arrays(self) -> Mapping[str, Kind]:
        config: Any = self.builder_config
        return config.arrays

    def _info(self) -> tfds.core.DatasetInfo:
        arrays = {name: _feature(kind) for name, kind in self._arrays().items()}
        return tfds.core.DatasetInfo(
            builder=self,
            description=type(self).__doc__,
            features=tfds.features.FeaturesDict({**arrays, "id": tfds.features.Text()}),
            metadata=tfds.core.MetadataDict(),
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
        contents = self.contents(self.builder_config, dl_manager)
        for note in contents.notes:
            print(f"{self.name}: {note}", file=sys.stderr)
        arrays = self._arrays()
        assert [name for name, kind in arrays.items() if kind == "labels"] == [*contents.label_maps]
        assert self.info.metadata is not None  # see _info
        metadata: Any = self.info.metadata
        metadata.update(
            modalities={name: kind for name, kind in arrays.items() if kind != "labels"},
            label_maps={name: table.to_dict() for name, table in contents.label_maps.items()},
            source=contents.source,
            notes=list(contents.notes),
            ids={name: [] for name in contents.splits},
            digests={name: [] for name in contents.splits},
            sizes={name: [] for name in contents.splits},
        )
        return {
            name: self._generate_examples(name, entries, metadata)
            for name, entries in contents.splits.items()
        }

    def _generate_examples(
        self, split: str, entries: Sequence[Entry], metadata: dict[str, Any]
    ) -> Iterator[tuple[str, dict[str, Any]]]:
        seen: set[str] = set()
        bar = tqdm_utils.tqdm(entries, desc=f"{self.name} {split}", unit=" images")
        for entry in bar:
            if entry.id in seen:
                raise ValueError(f"{self.name}: two examples of {split} have the id '{entry.id}'")
            seen.add(entry.id)
            parts = entry.load()
            # TFDS encodes arrays with TensorFlow, but takes the bytes of a file as they are.
            files = {
                name: part.content if isinstance(part, Encoded) else encode_png(part)
                for name, part in parts.items()
            }
            image = parts["image"]
            size = image.size if isinstance(image, Encoded) else image.shape[:2]
            metadata["ids"][split].append(entry.id)
            metadata["digests"][split].append(hashlib.sha256(files["image"]).hexdigest()[:16])
            metadata["sizes"][split].append(list(size))
            yield (
                entry.id,
                {**{name: io.BytesIO(file) for name, file in files.items()}, "id": entry.id},
            )

    def _download_and_prepare(
        self,
        dl_manager: tfds.download.DownloadManager,
        download_config: tfds.download.DownloadConfig | None = None,
    ) -> None:
        del download_config
        split_infos = [
            self._write_split(name, examples)
            for name, examples in self._split_generators(dl_manager).items()
        ]
        self.info.set_splits(SplitDict(split_infos))

    def _write_split(
        self, split: str, examples: Iterator[tuple[str, dict[str, Any]]]
    ) -> tfds.core.SplitInfo:
        from array_record.python.array_record_module import ArrayRecordWriter

        template = self._get_filename_template(split)
        path = template.sharded_filepath(shard_index=0, num_shards=1)
        writer = ArrayRecordWriter(str(path), "group_size:1")  # one record each: random access
        num_examples = num_bytes = 0
        features: Any = self.info.features
        for _, example in examples:
            record = features.serialize_example(example)
            writer.write(record)
            num_examples += 1
            num_bytes += len(record)
        writer.close()
        return tfds.core.SplitInfo(
            name=split,
            shard_lengths=[num_examples],
            num_bytes=num_bytes,
            filename_template=template,
        )


def _feature(kind: Kind) -> tfds.features.FeatureConnector:
    if kind == "picture":
        return tfds.features.Image(shape=(None, None, 3))
    dtype = np.uint16 if kind == "depth" else np.uint8
    return tfds.features.Image(shape=(None, None, 1), dtype=dtype, encoding_format="png")
