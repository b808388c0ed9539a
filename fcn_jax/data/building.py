"""What all data sets share: how image and label pairs are written as a TFDS data set.

TFDS's own writer keeps a whole split in memory to shuffle it and, above 1 GB, needs TensorFlow. A
`PairBuilder` streams its pairs in order into one ArrayRecord file per split instead: order is the
loader's business, memory stays flat, and the progress bar knows the total. Everything else (the
incomplete folder that is renamed when done, the metadata, `as_data_source`,
`tfds.builder_from_directory`) is TFDS's.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from jaxtyping import UInt8
from PIL import Image
from tensorflow_datasets.core.splits import SplitDict
from tensorflow_datasets.core.utils import tqdm_utils

from fcn_jax.classes import ClassTable
from fcn_jax.data.images import LabelKind, encoded_image, read_label

Encoded = tuple[bytes, UInt8[np.ndarray, "h w"]]
"""An image as the bytes of its file, and its labels: 0..C-1 or 255."""


@dataclasses.dataclass(frozen=True)
class Pair:
    """One example to be: its id, and how to get its image and labels when its turn comes."""

    id: str
    load: Callable[[], Encoded]


@dataclasses.dataclass
class Contents:
    """All that a data set will hold, before any pixel is stored.

    Attributes:
        splits: The pairs of every split, in the order they will be stored.
        classes: The class table; it is stored beside the data.
        source: Where the data come from, in words.
        notes: What a person should know about this copy, e.g. how much of the set is there.
    """

    splits: Mapping[str, Sequence[Pair]]
    classes: ClassTable
    source: str
    notes: tuple[str, ...] = ()


@dataclasses.dataclass
class FilesConfig(tfds.core.BuilderConfig):
    """Builder configuration of a data set that is made from a person's files.

    Attributes:
        root: The folder of the files; None where they are downloaded.
        options: The data set's options.
    """

    root: Path | None = None
    options: dict[str, Any] = dataclasses.field(default_factory=dict)


def file_pair(
    pair_id: str, image: Path, label: Path, read: Callable[[Path], UInt8[np.ndarray, "h w"]]
) -> Pair:
    """A pair of files; `read` turns the label file into labels."""

    def load() -> Encoded:
        content, size = encoded_image(image)
        labels = read(label)
        if labels.shape != size:
            raise ValueError(
                f"{label}: {_size(labels.shape)} pixels, but its image {image} has {_size(size)}"
            )
        return content, labels

    return Pair(pair_id, load)


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


def fingerprint(files: Iterable[Path], *options: Any) -> str:
    """A short hash of files' names, sizes and times, and of options.

    It names the prepared copy, so that a changed source is prepared anew and two sources are never
    taken for each other.
    """
    digest = hashlib.sha256(repr(options).encode())
    for path in sorted(files):
        status = path.stat()
        digest.update(f"{path}\0{status.st_size}\0{status.st_mtime_ns}\n".encode())
    return digest.hexdigest()[:12]


def named(items: Iterable[Any], limit: int = 5) -> str:
    """The first few of many names, for a message."""
    names = [str(item) for item in items]
    return ", ".join(names[:limit]) + (", ..." if len(names) > limit else "")


def _size(shape: Sequence[int]) -> str:
    return f"{shape[1]}x{shape[0]}"


class PairBuilder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """A TFDS builder of image and label pairs; a subclass says which pairs there are."""

    VERSION = tfds.core.Version("1.0.0")

    def contents(self, config: Any, dl_manager: tfds.download.DownloadManager) -> Contents:
        """The pairs of every split. Find all problems here, before anything is written."""
        raise NotImplementedError

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description=type(self).__doc__,
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(None, None, 3)),
                    "label": tfds.features.Image(shape=(None, None, 1), encoding_format="png"),
                    "id": tfds.features.Text(),
                }
            ),
            metadata=tfds.core.MetadataDict(),
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
        contents = self.contents(self.builder_config, dl_manager)
        for note in contents.notes:
            print(f"{self.name}: {note}", file=sys.stderr)
        assert self.info.metadata is not None  # see _info
        self.info.metadata.update(
            classes=contents.classes.to_dict(),
            source=contents.source,
            notes=list(contents.notes),
            ids={name: [pair.id for pair in pairs] for name, pairs in contents.splits.items()},
            digests={name: [] for name in contents.splits},
        )
        return {
            name: self._generate_examples(name, pairs, self.info.metadata["digests"][name])
            for name, pairs in contents.splits.items()
        }

    def _generate_examples(
        self, split: str, pairs: Sequence[Pair], digests: list[str]
    ) -> Iterator[tuple[str, dict[str, Any]]]:
        bar = tqdm_utils.tqdm(pairs, desc=f"{self.name} {split}", unit=" images")
        for pair in bar:
            image, labels = pair.load()
            digests.append(hashlib.sha256(image).hexdigest()[:16])
            # TFDS encodes arrays with TensorFlow, but takes a PIL image without; a grey one, for
            # OpenCV would decode a palette as colours.
            yield (
                pair.id,
                {"image": io.BytesIO(image), "label": Image.fromarray(labels), "id": pair.id},
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
