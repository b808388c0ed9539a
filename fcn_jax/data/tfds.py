"""`tfds:NAME`: any data set of TensorFlow Datasets with an image and a mask, without TensorFlow.

NAME is what TFDS calls it: `oxford_iiit_pet`, `cityscapes/semantic_segmentation`, `my_set:1.2.0`.
The copy that TFDS has prepared is looked for in the option `tfds_dir`, or else in `data_dir` and in
TFDS's own folder ($TFDS_DATA_DIR, or ~/tensorflow_datasets), as

    DIR/NAME/[CONFIG/]VERSION/dataset_info.json

and need not be one of TFDS's own. ArrayRecord and TFRecord files are read. If there is no copy,
TFDS downloads and prepares one in `data_dir`.
"""

from __future__ import annotations

import copy
import dataclasses
import json
import os
import re
import struct
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import filelock
import numpy as np
import tensorflow_datasets as tfds
from jaxtyping import Integer

from fcn_jax.classes import ClassTable, load_class_table, read_names, table_from_names
from fcn_jax.data import images
from fcn_jax.data.files import check_reachable, fingerprint, package_file
from fcn_jax.data.records import Contents, Entry, Part, Plan, check_sizes, prepared_copy

OXFORD_IIIT_PET = load_class_table(package_file("oxford_iiit_pet_classes.csv"))
"""Oxford-IIIT Pet's trimaps: 1 foreground, 2 background; 3, the outline, is "not classified"."""

SCENE_PARSE_150 = table_from_names(
    read_names(package_file("scene_parse150_classes.txt")), first_id=1, void_id=0
)
"""The scene parsing benchmark of ADE20K: 150 classes; 0, everything else, is void."""

SCENE_PARSE_OBJECTS = load_class_table(package_file("scene_parse150_objects_classes.txt"))
"""The hundred object classes of ADE20K's instance task (Places Challenge 2017); 0 is all else."""

CITYSCAPES = load_class_table(package_file("cityscapes_classes.csv"))
"""Cityscapes: the nineteen classes of its benchmark out of the ids 0..33 of its label files."""

VERSION_NUMBER = r"\d+\.\d+\.\d+"


@dataclasses.dataclass(frozen=True)
class TfdsSet:
    """A row of `TFDS_SETS`.

    Attributes:
        image: TFDS's feature that holds the image.
        mask: The one that holds the ids of the classes; empty where it must be given.
        classes: What the ids mean; None where the data set may name them itself.
        ids: The one that names an example; None numbers them.
        splits: The splits to store, where they are there; empty: all.
        objects: The classes of a copy whose masks are RGB with the class in red and a number for
            each object in green; None where there is no such copy.
    """

    image: str = "image"
    mask: str = ""
    classes: ClassTable | None = None
    ids: str | None = None
    splits: tuple[str, ...] = ()
    objects: ClassTable | None = None


TFDS_SETS: Mapping[str, TfdsSet] = {
    "oxford_iiit_pet": TfdsSet("image", "segmentation_mask", OXFORD_IIIT_PET, ids="file_name"),
    # TFDS 4.9 takes the masks of the instance task of the Places Challenge 2017; copies made of the
    # scene parsing task's have one id per pixel. TFDS calls the validation images "test".
    "scene_parse150": TfdsSet("image", "annotation", SCENE_PARSE_150, objects=SCENE_PARSE_OBJECTS),
    "cityscapes": TfdsSet(
        "image_left",
        "segmentation_label",
        CITYSCAPES,
        ids="image_id",
        splits=("train", "validation", "train_extra"),  # the labels of test are not published
    ),
}


def plan(
    manual_dir: Path | None,
    data_dir: Path,
    name: str,
    *,
    tfds_dir: str | Path | None = None,
    image: str | None = None,
    mask: str | None = None,
    ids: str | None = None,
    classes: str | Path | None = None,
    num_classes: int = 0,
    first_id: int = 0,
    void: Sequence[int] = (),
) -> Plan:
    """What the copy that TFDS prepared makes; TFDS prepares it first if need be.

    Args:
        tfds_dir: Where TFDS's copy lies; None looks in `data_dir` and TFDS's own folder.
        image: TFDS's feature that holds the image.
        mask: The one that holds the ids of the classes.
        ids: The one that names an example.
        classes: The class file, see `fcn_jax.classes.load_class_table`.
        num_classes: The number of classes, where there is no class file; 0: not given.
        first_id: The id of the first class in masks, where the class file gives none.
        void: Ids in masks that are void, beside 255.
    """
    if classes is not None and num_classes:
        raise ValueError(f"tfds:{name}: give classes or num_classes, not both")
    row = TFDS_SETS.get(re.split("[/:]", name)[0], TfdsSet())
    table, objects = row.classes, row.objects
    if classes is not None or num_classes or mask not in (None, row.mask):
        table, objects = None, None  # the row's are those of its own mask
    if classes is not None:
        path = Path(classes).expanduser().absolute()
        if not path.is_file():
            raise FileNotFoundError(f"there is no class file {path} (option classes)")
        table = load_class_table(path, first_id)
    elif num_classes:
        table = table_from_names([f"class {number}" for number in range(num_classes)], first_id)
    row = dataclasses.replace(
        row,
        image=image or row.image,
        mask=mask or row.mask,
        classes=table and table.with_void(void),
        ids=ids or row.ids,
        objects=objects,
    )
    options = fingerprint((), row, first_id, tuple(void))
    stem = f"{re.sub('[/:]', '-', name)}-{options}"
    own_folder = Path(os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets")
    places = [Path(tfds_dir)] if tfds_dir else [data_dir, own_folder]
    places = [place.expanduser().absolute() for place in places]
    root = find_copy(name, places)
    if root is None:
        # The copy in this package's form does without the one that it was made from.
        if made := prepared_copy(data_dir / "tfds", f"{stem}-*"):
            return Plan(made.parent.name, lambda: _contents(name, made, row, first_id, void))
        data_dir.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(data_dir / ".tfds.lock"):
            root = find_copy(name, places) or _fetch(name, places[0], manual_dir)
    files = [path for path in root.iterdir() if path.is_file()]
    return Plan(f"{stem}-{fingerprint(files)}", lambda: _contents(name, root, row, first_id, void))


def find_copy(name: str, places: Sequence[Path]) -> Path | None:
    """The folder of the newest copy that TFDS prepared, in the first place that has one."""
    match = re.fullmatch(rf"(\w+)(?:/([^/:]+))?(?::({VERSION_NUMBER}))?", name)
    if match is None:
        raise ValueError(f"tfds:{name}: expected tfds:NAME, tfds:NAME/CONFIG or tfds:NAME:1.2.3")
    data_set, wanted_config, wanted_version = match.groups()
    for place in places:
        copies: dict[str, dict[tuple[int, ...], Path]] = {}
        folder = place / data_set
        for info in (*folder.glob("*/dataset_info.json"), *folder.glob("*/*/dataset_info.json")):
            path = info.parent
            given = "" if path.parent == folder else path.parent.name
            if not re.fullmatch(VERSION_NUMBER, path.name):  # such as what a killed process left
                continue
            if wanted_config in (None, given) and wanted_version in (None, path.name):
                number = tuple(int(part) for part in path.name.split("."))
                copies.setdefault(given, {})[number] = path
        if len(copies) > 1:
            named = ", ".join(f"tfds:{data_set}/{given}" for given in sorted(copies))
            raise ValueError(f"tfds:{name}: {place} has several; choose one of {named}")
        for versions in copies.values():
            return versions[max(versions)]
    return None


def _fetch(name: str, tfds_dir: Path, manual_dir: Path | None) -> Path:
    """Have TFDS download and prepare a data set; the message of a failure says what else to do."""
    try:
        builder = tfds.builder(name, data_dir=str(tfds_dir), file_format="array_record")
        urls = list(builder.url_infos or ())
        if urls and not (tfds_dir / "downloads").exists():
            check_reachable(urls[0])
        builder.download_and_prepare(
            file_format="array_record",
            download_config=tfds.download.DownloadConfig(
                manual_dir=None if manual_dir is None else str(manual_dir)
            ),
        )
    # TFDS, requests and the builders raise their own types; NAME's builder may exit as well.
    except (Exception, SystemExit) as error:
        reason = " ".join(str(error).split())[:700] or type(error).__name__
        needs = "it needs TensorFlow (pip install tensorflow). " if "tensorflow" in reason else ""
        raise FileNotFoundError(
            f"tfds:{name} is not in {tfds_dir}, and TFDS could not prepare it: {needs}{reason}. "
            'Prepare it where there is a network and TensorFlow, with python -c "import '
            f"tensorflow_datasets as tfds; tfds.builder('{name}', data_dir='DIR')"
            '.download_and_prepare()", and give DIR as the option tfds_dir'
        ) from error
    return Path(builder.data_dir)


def check_features(root: Path) -> None:
    """Raises ValueError if TFDS would import other code than its own to read a prepared copy.

    A copy names the classes of its features, and TFDS imports whatever module is named.
    """
    path = root / "features.json"
    if not path.is_file():
        return

    def classes(value: Any) -> Iterator[object]:
        if isinstance(value, dict):
            yield from (
                value[key]
                for key in ("pythonClassName", "python_class_name", "type")
                if key in value
            )
            for item in value.values():
                yield from classes(item)
        elif isinstance(value, list):
            for item in value:
                yield from classes(item)

    try:
        named = [*classes(json.loads(path.read_text()))]
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged: {error}; prepare the data set again") from None
    for found in named:
        if not isinstance(found, str):
            continue  # a column may be called "type"
        if "." in found and not re.fullmatch(r"tensorflow_datasets\.core\.features(\.\w+)+", found):
            raise ValueError(
                f"{path} names {found}, which is none of TFDS's own features: it is not read, for "
                "that would run its code"
            )


def _contents(name: str, root: Path, row: TfdsSet, first_id: int, void: Sequence[int]) -> Contents:
    """The examples of the copy that TFDS prepared."""
    check_features(root)
    builder: Any = tfds.builder_from_directory(str(root))
    features: Mapping[str, Any] = builder.info.features
    there = ", ".join(f"{key} ({type(value).__name__})" for key, value in features.items())
    for option, feature in (("image", row.image), ("mask", row.mask), ("ids", row.ids)):
        if not feature and option != "ids":
            raise ValueError(f"tfds:{name}: say which feature is the {option} ({option}=): {there}")
        if feature and feature not in features:
            raise ValueError(
                f"tfds:{name}: there is no feature '{feature}' ({option}=); it has {there}"
            )
    table = row.classes
    if table is None:
        names = getattr(features[row.mask], "names", None)  # of tfds.features.LabeledImage
        if not names:
            raise ValueError(
                f"tfds:{name}: say what the ids in '{row.mask}' mean: classes=FILE (names, and "
                "colours if you like) or num_classes=N, with first_id and void if they do not "
                "start at 0"
            )
        table = table_from_names(list(names), first_id).with_void(void)
    splits = {
        split: _Split(builder, split, row, table)
        for split in builder.info.splits
        if not row.splits or split in row.splits
    }
    splits = {split: entries for split, entries in splits.items() if len(entries)}
    if not splits:
        raise ValueError(f"tfds:{name}: {root} holds no image in a split with labels")
    if row.objects is None or not any(entries.has_objects() for entries in splits.values()):
        return Contents(splits, {"label": table}, source=str(root))
    for entries in splits.values():
        entries.table, entries.red = row.objects, True
    note = "its masks are those of the instance task: a hundred classes of objects, and 'other'"
    return Contents(splits, {"label": row.objects}, source=str(root), notes=(note,))


class _Split(Sequence[Entry]):
    """The examples of a split of a copy that TFDS prepared, each read when its turn comes."""

    def __init__(self, builder: Any, split: str, row: TfdsSet, table: ClassTable) -> None:
        self.split, self.row, self.table = split, row, table
        self.red = False  # whether masks are RGB with the class in red
        # The other features are not even parsed. (PartialDecoding needs TensorFlow.)
        every = builder.info.features
        used = [name for name in (row.image, row.mask, row.ids) if name]
        self.features: Any = tfds.features.FeaturesDict({name: every[name] for name in used})
        paths = [Path(path) for path in builder.info.splits[split].filepaths]
        file_format = getattr(builder.info.file_format, "value", "tfrecord")  # None: an old copy
        if file_format == "array_record":
            from array_record.python.array_record_data_source import ArrayRecordDataSource

            self.records: Any = ArrayRecordDataSource([str(path) for path in paths])
        elif file_format == "tfrecord":
            self.records = TFRecords(paths)
        else:
            raise ValueError(
                f"{builder.data_dir}: files of {file_format} cannot be read; prepare the data set "
                "with file_format='array_record'"
            )

        self.numbers = range(len(self.records))

    def __len__(self) -> int:
        return len(self.numbers)

    def record(self, index: int) -> Mapping[str, Any]:
        """The features in use of a record, images as the bytes of their files."""
        undecoded = dict.fromkeys((self.row.image, self.row.mask), tfds.decode.SkipDecoding())
        return self.features.deserialize_example_np(self.records[index], decoders=undecoded)

    def has_objects(self, looked_at: int = 16) -> bool:
        """Whether masks hold a class in red and the number of an object in green."""
        masks = (self.record(i)[self.row.mask] for i in range(min(looked_at, len(self))))
        return any(np.ptp(images.read_image(mask, "mask"), axis=2).any() for mask in masks)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            part = copy.copy(self)
            part.numbers = self.numbers[index]
            return part
        number = self.numbers[index]
        record = self.record(number)
        entry_id = f"{self.split}_{number:06d}"
        if self.row.ids:
            value = record[self.row.ids]
            path = PurePosixPath(value.decode() if isinstance(value, bytes) else str(value))
            name = path.with_suffix("") if path.suffix.lower() in images.IMAGE_SUFFIXES else path
            entry_id = str(name).replace("/", "_")

        def load() -> dict[str, Part]:
            row = self.row
            names = {"image": f"{entry_id}, {row.image}", "label": f"{entry_id}, {row.mask}"}
            image = record[row.image]
            if isinstance(image, bytes):
                picture = images.encoded_image(image, names["image"])
            else:
                picture = images.encoded(np.asarray(image), names["image"])
            try:
                labels = self.table.to_labels(_mask_ids(record[row.mask], self.red))
            except ValueError as error:
                text = str(error).removeprefix("image: ")
                raise ValueError(f"{names['label']}: {text}") from None
            parts: dict[str, Part] = {"image": picture, "label": labels}
            check_sizes(parts, names)
            return parts

        return Entry(entry_id, load)


def _mask_ids(mask: object, red: bool) -> Integer[np.ndarray, "h w"]:
    """The ids of a mask: an image file's, or those of an array (h, w) or (h, w, 1)."""
    if isinstance(mask, bytes):
        return (
            images.read_image(mask)[..., 0].astype(np.int32)
            if red
            else images.read_label(mask, kind="index")
        )
    ids = np.asarray(mask)
    ids = ids[..., 0] if ids.ndim == 3 and ids.shape[-1] == 1 else ids
    if ids.ndim != 2 or ids.dtype.kind not in "uib":
        raise ValueError(f"not a map of ids: {ids.dtype} of shape {ids.shape}")
    return ids.astype(np.int32)


class TFRecords:
    """Random access to the records of TFRecord files.

    A record is its length (8 bytes, little-endian), a checksum of that (4), the content and a
    checksum of that (4). The checksums are ignored: images have their own.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        self.places: list[tuple[Path, int, int]] = []
        for path in paths:
            size, start = path.stat().st_size, 0
            with path.open("rb") as file:
                while start < size:
                    file.seek(start)
                    header = file.read(8)
                    length = struct.unpack("<Q", header)[0] if len(header) == 8 else size
                    if start + length + 16 > size:
                        raise ValueError(f"{path}: not a whole TFRecord file: ends in a record")
                    self.places.append((path, start + 12, length))
                    start += length + 16

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: int) -> bytes:
        path, start, length = self.places[index]
        with path.open("rb") as file:
            file.seek(start)
            return file.read(length)
