"""`tfds:NAME`: any data set of TensorFlow Datasets with an image and a mask, without TensorFlow.

NAME is what TFDS calls it: `oxford_iiit_pet`, `cityscapes/semantic_segmentation`, `my_set:1.2.0`.
The copy that TFDS has prepared is looked for in the option `tfds_dir`, or else in `data_dir` and in
TFDS's own folder ($TFDS_DATA_DIR, or ~/tensorflow_datasets), as

    DIR/NAME/[CONFIG/]VERSION/dataset_info.json

and need not be one of TFDS's own. Files of ArrayRecord and of TFRecord are read. A copy that is not
there is downloaded and prepared by TFDS into `data_dir`; some of its data sets need TensorFlow for
that, and some files that a person has to fetch (`manual_dir`).

The images and masks are then stored once more in this package's form, with labels 0..C-1 and 255.
`READY` says which features of the known data sets they are and what classes their masks hold. For
any other name the options `image` and `mask`, and `classes` (a class file) or `num_classes`.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import os
import re
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import filelock
import numpy as np
import tensorflow_datasets as tfds
from jaxtyping import Integer, UInt8

from fcn_jax.classes import (
    VOID_COLOR,
    ClassRow,
    ClassTable,
    load_class_table,
    table_from_names,
)
from fcn_jax.data.files import check_reachable, fingerprint
from fcn_jax.data.images import (
    IMAGE_SUFFIXES,
    encoded_image,
    encoded_pixels,
    read_image,
    read_label,
)
from fcn_jax.data.records import VERSION as PREPARED_VERSION
from fcn_jax.data.records import Contents, Entry, Part, Plan, check_sizes

OXFORD_IIIT_PET = ClassTable(
    (
        ClassRow("pet", (230, 97, 1), id=1),
        ClassRow("background", (40, 44, 52), id=2),
        ClassRow("not classified", VOID_COLOR, ignored=True, id=3),
    )
)
"""Oxford-IIIT Pet's trimaps: 1 foreground, 2 background; 3, the outline, is "not classified"."""

SCENE_PARSE_150 = table_from_names(
    """
    wall, building, sky, floor, tree, ceiling, road, bed, windowpane, grass, cabinet, sidewalk,
    person, earth, door, table, mountain, plant, curtain, chair, car, water, painting, sofa,
    shelf, house, sea, mirror, rug, field, armchair, seat, fence, desk, rock, wardrobe, lamp,
    bathtub, railing, cushion, base, box, column, signboard, chest of drawers, counter, sand,
    sink, skyscraper, fireplace, refrigerator, grandstand, path, stairs, runway, case,
    pool table, pillow, screen door, stairway, river, bridge, bookcase, blind, coffee table,
    toilet, flower, book, hill, bench, countertop, stove, palm, kitchen island, computer,
    swivel chair, boat, bar, arcade machine, hovel, bus, towel, light, truck, tower, chandelier,
    awning, streetlight, booth, television receiver, airplane, dirt track, apparel, pole, land,
    bannister, escalator, ottoman, bottle, buffet, poster, stage, van, ship, fountain,
    conveyer belt, canopy, washer, plaything, swimming pool, stool, barrel, basket, waterfall,
    tent, bag, minibike, cradle, oven, ball, food, step, tank, trade name, microwave, pot,
    animal, bicycle, lake, dishwasher, screen, blanket, sculpture, hood, sconce, vase,
    traffic light, tray, ashcan, fan, pier, crt screen, plate, monitor, bulletin board, shower,
    radiator, glass, clock, flag
    """,
    first_id=1,
    void_id=0,
)
"""The scene parsing benchmark of ADE20K: 150 classes; 0, everything else, is void."""

SCENE_PARSE_OBJECTS = table_from_names(
    """
    other, bed, windowpane, cabinet, person, door, table, curtain, chair, car, painting, sofa,
    shelf, mirror, armchair, seat, fence, desk, wardrobe, lamp, bathtub, railing, cushion, box,
    column, signboard, chest of drawers, counter, sink, fireplace, refrigerator, stairs, case,
    pool table, pillow, screen door, bookcase, coffee table, toilet, flower, book, bench,
    countertop, stove, palm, kitchen island, computer, swivel chair, boat, arcade machine, bus,
    towel, light, truck, chandelier, awning, streetlight, booth, television receiver, airplane,
    apparel, pole, bannister, ottoman, bottle, van, ship, fountain, washer, plaything, stool,
    barrel, basket, bag, minibike, oven, ball, food, step, trade name, microwave, pot, animal,
    bicycle, dishwasher, screen, sculpture, hood, sconce, vase, traffic light, tray, ashcan,
    fan, plate, monitor, bulletin board, radiator, glass, clock, flag
    """
)
"""The hundred object classes of ADE20K's instance task (Places Challenge 2017); 0 is all else."""

CITYSCAPES = ClassTable(
    (
        ClassRow("road", (128, 64, 128), id=7),
        ClassRow("sidewalk", (244, 35, 232), id=8),
        ClassRow("building", (70, 70, 70), id=11),
        ClassRow("wall", (102, 102, 156), id=12),
        ClassRow("fence", (190, 153, 153), id=13),
        ClassRow("pole", (153, 153, 153), id=17),
        ClassRow("traffic light", (250, 170, 30), id=19),
        ClassRow("traffic sign", (220, 220, 0), id=20),
        ClassRow("vegetation", (107, 142, 35), id=21),
        ClassRow("terrain", (152, 251, 152), id=22),
        ClassRow("sky", (70, 130, 180), id=23),
        ClassRow("person", (220, 20, 60), id=24),
        ClassRow("rider", (255, 0, 0), id=25),
        ClassRow("car", (0, 0, 142), id=26),
        ClassRow("truck", (0, 0, 70), id=27),
        ClassRow("bus", (0, 60, 100), id=28),
        ClassRow("train", (0, 80, 100), id=31),
        ClassRow("motorcycle", (0, 0, 230), id=32),
        ClassRow("bicycle", (119, 11, 32), id=33),
        ClassRow("unlabeled", (0, 0, 0), ignored=True, id=0),
        ClassRow("ego vehicle", (0, 0, 0), ignored=True, id=1),
        ClassRow("rectification border", (0, 0, 0), ignored=True, id=2),
        ClassRow("out of roi", (0, 0, 0), ignored=True, id=3),
        ClassRow("static", (0, 0, 0), ignored=True, id=4),
        ClassRow("dynamic", (111, 74, 0), ignored=True, id=5),
        ClassRow("ground", (81, 0, 81), ignored=True, id=6),
        ClassRow("parking", (250, 170, 160), ignored=True, id=9),
        ClassRow("rail track", (230, 150, 140), ignored=True, id=10),
        ClassRow("guard rail", (180, 165, 180), ignored=True, id=14),
        ClassRow("bridge", (150, 100, 100), ignored=True, id=15),
        ClassRow("tunnel", (150, 120, 90), ignored=True, id=16),
        ClassRow("polegroup", (153, 153, 153), ignored=True, id=18),
        ClassRow("caravan", (0, 0, 90), ignored=True, id=29),
        ClassRow("trailer", (0, 0, 110), ignored=True, id=30),
    )
)
"""Cityscapes: the nineteen classes of its benchmark out of the ids 0..33 of its label files."""

VERSION = r"\d+\.\d+\.\d+"


@dataclasses.dataclass(frozen=True)
class ReadySet:
    """A row of `READY`.

    Attributes:
        image: The feature that holds the image.
        mask: The feature that holds the ids of the classes; None where a person has to say.
        classes: What the ids mean; None where the data set itself may say.
        ids: The feature that names an example; None numbers them.
        splits: The splits to store, where they are there; empty: all.
        objects: The classes of a copy whose masks are RGB with the class in red and a number for
            each object in green; None where there is no such copy.
    """

    image: str = "image"
    mask: str | None = None
    classes: ClassTable | None = None
    ids: str | None = None
    splits: tuple[str, ...] = ()
    objects: ClassTable | None = None


READY: Mapping[str, ReadySet] = {
    "oxford_iiit_pet": ReadySet("image", "segmentation_mask", OXFORD_IIIT_PET, ids="file_name"),
    # TFDS 4.9 takes the masks of the instance task of the Places Challenge 2017; copies made of the
    # scene parsing task's have one id per pixel. TFDS calls the validation images "test".
    "scene_parse150": ReadySet("image", "annotation", SCENE_PARSE_150, objects=SCENE_PARSE_OBJECTS),
    "cityscapes": ReadySet(
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
    """Plan the data set.

    Args:
        manual_dir: The files that a person has to fetch for TFDS, where it prepares the data set.
        name: What TFDS calls the data set.
        data_dir: Where this package's prepared data sets lie.
        tfds_dir: Where TFDS's copy lies; None looks in `data_dir` and TFDS's own folder.
        image: The feature that holds the image.
        mask: The feature that holds the ids of the classes.
        ids: The feature that names an example.
        classes: The class file, see `fcn_jax.classes.load_class_table`.
        num_classes: The number of classes, where there is no class file; 0: not given.
        first_id: The id of the first class in masks, where the class file gives none.
        void: Ids in masks that are void, beside 255.

    Raises:
        FileNotFoundError: if there is no such data set, nor can it be downloaded and prepared; the
            message says what to do. If there is no such class file.
        ValueError: if several copies could be meant, or an option cannot be understood.
    """
    if classes is not None and num_classes:
        raise ValueError(f"tfds:{name}: give classes or num_classes, not both")
    row = READY.get(re.split("[/:]", name)[0], ReadySet())
    if mask not in (None, row.mask):  # the row's classes are those of its own mask
        row = dataclasses.replace(row, classes=None, objects=None)
    table = _class_table(classes, num_classes, first_id, void)
    row = dataclasses.replace(
        row,
        image=image or row.image,
        mask=mask or row.mask,
        classes=table or (row.classes and row.classes.with_void(void)),
        ids=ids or row.ids,
        objects=None if table else row.objects,
    )
    options = hashlib.sha256(repr((row, first_id, tuple(void))).encode()).hexdigest()[:8]
    stem = f"{re.sub('[/:]', '-', name)}-{options}"
    places = [Path(tfds_dir).expanduser().absolute()] if tfds_dir else [data_dir, _tfds_folder()]
    root = find_copy(name, places)
    if root is None and (copy := _only_conversion(stem, data_dir)):
        return Plan(copy, lambda: _contents(name, None, row, first_id, void))
    if root is None:
        data_dir.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(data_dir / ".tfds.lock"):
            root = find_copy(name, places) or _fetch(name, places[0], manual_dir)
    files = [path for path in root.iterdir() if path.is_file()]
    return Plan(f"{stem}-{fingerprint(files)}", lambda: _contents(name, root, row, first_id, void))


def _contents(
    data_set: str, root: Path | None, row: ReadySet, first_id: int, void: Sequence[int]
) -> Contents:
    """The entries of the copy that TFDS prepared."""
    assert root is not None
    name = f"tfds:{data_set}"
    builder: Any = tfds.builder_from_directory(str(root))
    _check_features(name, row, builder.info.features)
    table = row.classes or _named_classes(name, row, builder, first_id, void)
    records = {
        split: _Records(builder, split, row)
        for split in builder.info.splits
        if not row.splits or split in row.splits
    }
    records = {split: found for split, found in records.items() if len(found)}
    if not records:
        raise ValueError(f"{name}: {root} holds no image in a split with labels")
    notes: tuple[str, ...] = ()
    red = row.objects is not None and any(map(_has_objects, records.values()))
    if red and row.objects:
        table = row.objects
        notes = (
            "its masks are those of the instance task: a hundred classes of objects, and "
            "'other' for everything else",
        )
    splits = {split: _Entries(found, split, table, red) for split, found in records.items()}
    return Contents(splits, {"label": table}, source=str(root), notes=notes)


def find_copy(name: str, places: Sequence[Path]) -> Path | None:
    """The folder of the copy that TFDS prepared, in the first place that has one.

    Of several versions the newest is taken.

    Args:
        name: NAME, NAME/CONFIG, NAME:VERSION or NAME/CONFIG:VERSION.
        places: Folders in which TFDS's data sets lie.

    Raises:
        ValueError: if the name cannot be understood, or has several configurations there.
    """
    match = re.fullmatch(rf"(\w+)(?:/([^/:]+))?(?::({VERSION}))?", name)
    if match is None:
        raise ValueError(f"tfds:{name}: expected tfds:NAME, tfds:NAME/CONFIG or tfds:NAME:1.2.3")
    data_set, wanted_config, wanted_version = match.groups()
    for place in places:
        copies: dict[str, dict[tuple[int, ...], Path]] = {}
        folder = place / data_set
        infos = (folder.glob(f"{depth}/dataset_info.json") for depth in ("*", "*/*"))
        for path in (info.parent for info in itertools.chain(*infos)):
            given = "" if path.parent == folder else path.parent.name
            if not re.fullmatch(VERSION, path.name):  # such as what a killed process left
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


def _tfds_folder() -> Path:
    return Path(os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets").expanduser().absolute()


def _only_conversion(stem: str, data_dir: Path) -> str | None:
    """The configuration of the copy in this package's form whose origin is no longer there."""
    copies = sorted(data_dir.glob(f"tfds/{stem}-*/{PREPARED_VERSION}/dataset_info.json"))
    if len(copies) > 1:
        raise ValueError(
            f"several copies have been made of a TFDS data set that is no longer there; delete all "
            f"but one of {', '.join(str(path.parents[1]) for path in copies)}"
        )
    return copies[0].parents[1].name if copies else None


def _fetch(name: str, tfds_dir: Path, manual_dir: Path | None) -> Path:
    """Have TFDS download and prepare a data set.

    Raises:
        FileNotFoundError: if that fails for any reason; the message says what to do instead.
    """
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


def _class_table(
    classes: str | Path | None, num_classes: int, first_id: int, void: Sequence[int]
) -> ClassTable | None:
    """The table that the options give, if they do."""
    if classes is not None:
        path = Path(classes).expanduser()
        if not path.is_file():
            raise FileNotFoundError(f"there is no class file {path.absolute()} (option classes)")
        return load_class_table(path, first_id).with_void(void)
    if num_classes:
        names = [f"class {number}" for number in range(num_classes)]
        return table_from_names(names, first_id).with_void(void)
    return None


def _check_features(name: str, row: ReadySet, features: Mapping[str, Any]) -> None:
    """Refuse names of features that are not there.

    Raises:
        ValueError: naming the features that are.
    """
    there = ", ".join(f"{key} ({type(value).__name__})" for key, value in features.items())
    for option, feature in (("image", row.image), ("mask", row.mask), ("ids", row.ids)):
        if feature is None and option != "ids":
            raise ValueError(f"{name}: say which feature is the {option} ({option}=): {there}")
        if feature is not None and feature not in features:
            raise ValueError(f"{name}: there is no feature '{feature}' ({option}=); it has {there}")


def _named_classes(
    name: str, row: ReadySet, builder: Any, first_id: int, void: Sequence[int]
) -> ClassTable:
    """The class names that TFDS knows of a mask (`tfds.features.LabeledImage`).

    Raises:
        ValueError: if it knows none.
    """
    names = getattr(builder.info.features[row.mask], "names", None)
    if not names:
        raise ValueError(
            f"{name}: say what the ids in '{row.mask}' mean: classes=FILE (names, and colours if "
            "you like) or num_classes=N, with first_id and void if they do not start at 0"
        )
    return table_from_names(list(names), first_id).with_void(void)


class _Records(Sequence[dict[str, Any]]):
    """The features in use of every example of a split, images as the bytes of their files."""

    def __init__(self, builder: Any, split: str, row: ReadySet) -> None:
        self.row = row
        names = [name for name in (row.image, row.mask, row.ids) if name]
        # The features of no use here are not even parsed. (PartialDecoding needs TensorFlow.)
        every = builder.info.features
        self.features = tfds.features.FeaturesDict({name: every[name] for name in names})
        self.skip = dict.fromkeys((row.image, row.mask), tfds.decode.SkipDecoding())
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

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: Any) -> Any:
        if not 0 <= index < len(self):
            raise IndexError(index)
        features: Any = self.features
        return features.deserialize_example_np(self.records[index], decoders=self.skip)


class TFRecords(Sequence[bytes]):
    """Random access to the records of TFRecord files.

    A record is its length (8 bytes, little-endian), a checksum of that (4), the content and a
    checksum of that (4). The checksums are not looked at: images have their own.

    Raises:
        ValueError: naming the file that ends within a record.
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

    def __getitem__(self, index: Any) -> Any:
        path, start, length = self.places[index]
        with path.open("rb") as file:
            file.seek(start)
            return file.read(length)


class _Entries(Sequence[Entry]):
    """The examples of a split, each read when its turn comes."""

    def __init__(self, records: _Records, split: str, table: ClassTable, red: bool) -> None:
        self.records = records
        self.split = split
        self.table = table
        self.red = red

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: Any) -> Any:
        record = self.records[index]
        row = self.records.row
        entry_id = f"{self.split}_{index:06d}"
        if row.ids:
            entry_id = _as_id(record[row.ids])

        def load() -> dict[str, Part]:
            names = {"image": f"{entry_id}, {row.image}", "label": f"{entry_id}, {row.mask}"}
            image = record[row.image]
            if isinstance(image, bytes):
                picture = encoded_image(image, names["image"])
            else:
                picture = encoded_pixels(np.ascontiguousarray(image, np.uint8))
            try:
                ids = _mask_ids(record[row.mask], self.red, names["label"])
                parts: dict[str, Part] = {"image": picture, "label": self.table.to_labels(ids)}
            except ValueError as error:
                text = str(error).removeprefix(f"{names['label']}: ")
                raise ValueError(f"{names['label']}: {text}") from None
            check_sizes(parts, names)
            return parts

        return Entry(entry_id, load)


def _as_id(value: Any) -> str:
    """The id of an example from a feature of text or numbers: without extension and slashes."""
    text = value.decode() if isinstance(value, bytes) else str(value)
    stem, dot, suffix = text.rpartition(".")
    return (stem if f"{dot}{suffix}".lower() in IMAGE_SUFFIXES else text).replace("/", "_")


def _mask_ids(value: Any, red: bool, name: str) -> Integer[np.ndarray, "h w"]:
    """The ids of a mask: an image file's, or those of an array (h, w) or (h, w, 1)."""
    if not isinstance(value, bytes):
        ids = np.asarray(value)
        ids = ids[..., 0] if ids.ndim == 3 and ids.shape[-1] == 1 else ids
        if ids.ndim != 2 or ids.dtype.kind not in "uib":
            raise ValueError(f"not a map of ids: {ids.dtype} of shape {ids.shape}")
        return ids.astype(np.int32)
    if red:
        return read_image(value, name)[..., 0].astype(np.int32)
    return read_label(value, kind="index", name=name)


def _has_objects(records: _Records, looked_at: int = 16) -> bool:
    """Whether masks hold a class in red and the number of an object in green."""
    return any(
        not _is_grey(read_image(records[index][records.row.mask], f"mask {index}"))
        for index in range(min(looked_at, len(records)))
    )


def _is_grey(image: UInt8[np.ndarray, "h w 3"]) -> bool:
    return bool((image[..., :1] == image).all())
