"""Class tables: one row per class of a data set, from which everything else derives.

A row holds the class's name, its colour in pictures, whether it counts, and the id it has in the
stored label files. Training sees *labels*: the classes that count, numbered 0..C-1 in the order of
the table, and the void label 255, which never counts.

Example:
    >>> CAMVID.num_classes, CAMVID.names[:3]
    (11, ('sky', 'building', 'pole'))
    >>> CAMVID.to_labels(np.array([[0, 10, 11]]))  # 11 is void in CamVid's files
    array([[  0,  10, 255]], dtype=uint8)
"""

from __future__ import annotations

import csv
import dataclasses
import functools
import io
import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Integer, UInt8

VOID = 255
"""The label of pixels that never count, in files and in memory."""

VOID_COLOR = (224, 224, 192)
"""The colour PASCAL VOC draws void pixels in."""

MAX_CLASSES = VOID  # labels travel as uint8, and 255 is taken


@dataclasses.dataclass(frozen=True)
class ClassRow:
    """One class of a data set.

    Attributes:
        name: What people call the class.
        color: Its colour in pictures and in RGB masks: red, green, blue, 0..255.
        ignored: True for void: these pixels neither train nor score.
        id: The class's value in stored label files; None means the row's place in the table.
        scored: False for a class that trains but is left out of the means over classes, such as
            one that is absent from the test set.
    """

    name: str
    color: tuple[int, int, int]
    ignored: bool = False
    id: int | None = None
    scored: bool = True


@dataclasses.dataclass(frozen=True)
class ClassTable:
    """The classes of a data set, in order.

    Raises:
        ValueError: if there is no class that counts or more than 255, none of them is scored, two
            rows share a name or an id, or a colour is not three integers in 0..255.
    """

    rows: tuple[ClassRow, ...]

    def __post_init__(self) -> None:
        if not 1 <= self.num_classes <= MAX_CLASSES:
            raise ValueError(
                f"a class table needs 1 to {MAX_CLASSES} classes that are not ignored, "
                f"but this one has {self.num_classes}"
            )
        if not self.scored:
            raise ValueError("a class table needs a class that is scored, but this one has none")
        columns: dict[str, list[Any]] = {
            "name": [row.name for row in self.rows],
            "id": list(self.ids),
        }
        for what, values in columns.items():
            repeated = sorted({str(v) for v in values if values.count(v) > 1})
            if repeated:
                raise ValueError(f"two classes have the same {what}: {', '.join(repeated)}")
        for row, raw_id in zip(self.rows, self.ids, strict=True):
            if len(row.color) != 3 or not all(0 <= value <= 255 for value in row.color):
                raise ValueError(f"class '{row.name}': colour {row.color} is not r, g, b in 0..255")
            if raw_id < 0 or raw_id > 65535:
                raise ValueError(f"class '{row.name}': id {raw_id} is not in 0..65535")
            if raw_id == VOID and not row.ignored:
                raise ValueError(f"class '{row.name}': id {VOID} is kept for void")

    @property
    def ids(self) -> tuple[int, ...]:
        """The id of every row in stored label files."""
        return tuple(i if row.id is None else row.id for i, row in enumerate(self.rows))

    @property
    def counted(self) -> tuple[ClassRow, ...]:
        """The rows that count; row j is label j."""
        return tuple(row for row in self.rows if not row.ignored)

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the classes that count; name j belongs to label j."""
        return tuple(row.name for row in self.counted)

    @property
    def num_classes(self) -> int:
        """How many classes count."""
        return len(self.counted)

    @property
    def scored(self) -> tuple[int, ...]:
        """The labels that enter the means over classes: all but those of rows not `scored`."""
        return tuple(label for label, row in enumerate(self.counted) if row.scored)

    @property
    def palette(self) -> UInt8[np.ndarray, "256 3"]:
        """RGB colour of every label: row j for label j, row 255 for void, black elsewhere."""
        palette = np.zeros((256, 3), np.uint8)
        palette[: self.num_classes] = [row.color for row in self.counted]
        void_colors = [row.color for row in self.rows if row.ignored]
        palette[VOID] = void_colors[0] if void_colors else VOID_COLOR
        return palette

    @property
    def raw_to_label(self) -> UInt8[np.ndarray, "256"]:
        """Look-up from stored ids 0..255 to labels; ids of no class become void."""
        lookup = self._lookup[:256]
        return np.where(lookup < 0, VOID, lookup).astype(np.uint8)

    @functools.cached_property
    def _lookup(self) -> np.ndarray:
        lookup = np.full(65536, -1, np.int16)  # -1: an id of no class
        lookup[VOID] = VOID
        label = 0
        for row, raw_id in zip(self.rows, self.ids, strict=True):
            lookup[raw_id] = VOID if row.ignored else label
            label += not row.ignored
        return lookup

    def unknown_ids(self, raw: Integer[np.ndarray, "..."]) -> list[int]:
        """The ids in `raw` that belong to no row and are not 255, in ascending order."""
        values = np.unique(raw)
        inside = (values >= 0) & (values < len(self._lookup))
        known = inside & (self._lookup[np.where(inside, values, 0)] >= 0)
        return [int(value) for value in values[~known]]

    def to_labels(self, raw: Integer[np.ndarray, "*shape"]) -> UInt8[np.ndarray, "*shape"]:
        """Turn stored ids into labels: 0..C-1, and 255 for void.

        Raises:
            ValueError: if an id belongs to no row; the message lists all such ids.
        """
        if unknown := self.unknown_ids(raw):
            shown = ", ".join(map(str, unknown[:10])) + (", ..." if len(unknown) > 10 else "")
            raise ValueError(
                f"label values {shown} belong to no class (known ids: {_ranges(self.ids)}; "
                f"{VOID} is void)"
            )
        return self._lookup[raw].astype(np.uint8)

    def with_void(self, ids: Iterable[int]) -> ClassTable:
        """The table with further ids that are void, whether they are of its rows or of none."""
        void = set(ids)
        rows = tuple(
            dataclasses.replace(row, ignored=True) if raw_id in void else row
            for row, raw_id in zip(self.rows, self.ids, strict=True)
        )
        # Ids of rows without one are their places, which rows added at the end leave as they are.
        extra = sorted(void - set(self.ids) - {VOID})
        more = (ClassRow(f"void {raw_id}", VOID_COLOR, ignored=True, id=raw_id) for raw_id in extra)
        return ClassTable((*rows, *more))

    def to_dict(self) -> dict[str, Any]:
        """The table as JSON types; `from_dict` reads it back."""
        return {"classes": [dataclasses.asdict(row) for row in self.rows]}

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> ClassTable:
        """The table that `to_dict` wrote."""
        rows = (ClassRow(**{**row, "color": tuple(row["color"])}) for row in fields["classes"])
        return cls(tuple(rows))

    def __hash__(self) -> int:
        return hash(self.rows)


def _ranges(ids: tuple[int, ...]) -> str:
    """Ids written short: 0..10, 13."""
    runs: list[list[int]] = []
    for value in sorted(ids):
        if runs and value == runs[-1][1] + 1:
            runs[-1][1] = value
        else:
            runs.append([value, value])
    return ", ".join(str(a) if a == b else f"{a}..{b}" for a, b in runs)


def voc_color(index: int) -> tuple[int, int, int]:
    """Colour `index` of the palette of the PASCAL VOC development kit.

    The bits of the index are dealt in turn to red, green and blue, most significant first, which
    gives 256 colours that are far apart for small indices.
    """
    color = [0, 0, 0]
    for shift in range(7, -1, -1):
        for channel in range(3):
            color[channel] |= (index >> channel & 1) << shift
        index >>= 3
    return color[0], color[1], color[2]


def table_from_names(names: list[str], first_id: int = 0) -> ClassTable:
    """A table of plain names in VOC's palette; the first name has the id `first_id` in files."""
    rows = (
        ClassRow(name, voc_color(i + first_id), id=i + first_id) for i, name in enumerate(names)
    )
    return ClassTable(tuple(rows))


def _with_void_zero(names: list[str], unscored: tuple[str, ...] = ()) -> ClassTable:
    """A table for files in which 0 is void and the names are 1, 2, ..., in VOC's palette."""
    rows = [
        dataclasses.replace(row, scored=row.name not in unscored)
        for row in table_from_names(names, first_id=1).rows
    ]
    return ClassTable((ClassRow("void", (0, 0, 0), ignored=True, id=0), *rows))


def _words(text: str) -> list[str]:
    """The names in a text, separated by commas."""
    return [name.strip() for name in text.replace("\n", " ").split(",")]


def load_class_table(path: str | Path, first_id: int = 0) -> ClassTable:
    """Read a person's class table.

    Three kinds of file are understood:

    * `.csv` with a header: `name`, then `r`, `g`, `b` (or `color` as `#ff8000` or `255 128 0`),
      and optionally `id` (the value in label files), `ignored` (true for void) and `scored`
      (false for a class that trains but is left out of the means);
    * `.json`: a list of names, a list of objects with the same fields as the csv (`color` may be a
      list), an object of name -> colour, or what `ClassTable.to_dict` writes;
    * any other: one name a line.

    Classes without a colour get VOC's palette. Rows without an id count up from `first_id`.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: naming the file and the row, if it cannot be understood.
    """
    path = Path(path)
    try:
        return ClassTable(
            tuple(_row(fields, i, first_id) for i, fields in enumerate(_read_fields(path)))
        )
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: not a class table: {error}") from error


def read_names(path: str | Path) -> list[str]:
    """The class names of a file with one a line; ImageNet's ``n02123045 tabby, …`` without its id.

    Raises:
        FileNotFoundError: if there is no such file.
    """
    lines = Path(path).read_text(encoding="utf-8-sig").splitlines()
    names = [re.sub(r"^n\d{8}\s+", "", line.strip()) for line in lines]
    return [name for name in names if name]


def has_colors(path: str | Path) -> bool:
    """Whether a class file gives every class a colour, as RGB masks need."""
    return all(_given_color(fields) is not None for fields in _read_fields(Path(path)))


def _read_fields(path: Path) -> list[dict[str, Any]]:
    """The rows of a class file as dictionaries with lower-case keys."""
    text = path.read_text(encoding="utf-8-sig")  # spreadsheets like to write a byte order mark
    if path.suffix.lower() == ".csv":
        return _read_csv(text)
    if path.suffix.lower() == ".json":
        return _read_json(json.loads(text))
    names = [line.strip() for line in text.splitlines()]
    return [{"name": name} for name in names if name]


def _read_csv(text: str) -> list[dict[str, Any]]:
    header = text.partition("\n")[0]
    delimiter = max(",;\t", key=header.count)  # some spreadsheets write semicolons
    reader = csv.DictReader(io.StringIO(text), delimiter=delimiter, skipinitialspace=True)
    fields = [str(name).strip().lower() for name in reader.fieldnames or ()]
    if "name" not in fields:
        raise ValueError(f"the first line must name the columns, one of them 'name'; got {fields}")
    reader.fieldnames = fields
    rows = [{k: v.strip() for k, v in row.items() if k and v and v.strip()} for row in reader]
    return [row for row in rows if row]


def _read_json(content: Any) -> list[dict[str, Any]]:
    if isinstance(content, dict) and isinstance(content.get("classes"), list):
        content = content["classes"]
    if isinstance(content, dict):
        return [{"name": name, "color": color} for name, color in content.items()]
    rows = [{"name": item} if isinstance(item, str) else item for item in content]
    if wrong := [row for row in rows if not isinstance(row, dict)]:
        raise ValueError(f"{wrong[0]!r} is neither a name nor an object")
    return [{key.lower(): value for key, value in row.items()} for row in rows]


def _row(fields: dict[str, Any], index: int, first_id: int) -> ClassRow:
    if not fields.get("name"):
        raise ValueError(f"row {index + 1} has no name")
    name = str(fields["name"])
    raw_id = fields.get("id")
    raw_id = index + first_id if raw_id in (None, "") else int(raw_id)
    try:
        color = _given_color(fields)
    except ValueError as error:
        raise ValueError(f"class '{name}': {error}") from None
    ignored = str(fields.get("ignored", "")).lower() in ("true", "yes", "1", "x")
    scored = str(fields.get("scored", "")).lower() not in ("false", "no", "0")
    if color is None:
        color = VOID_COLOR if ignored else voc_color(raw_id % 256)
    return ClassRow(name, color, ignored, raw_id, scored)


def _given_color(fields: dict[str, Any]) -> tuple[int, int, int] | None:
    """The colour a row gives, or None where it gives none."""
    color = fields.get("color", fields.get("colour"))
    if color in (None, "") and all(fields.get(c) not in (None, "") for c in "rgb"):
        color = [fields[c] for c in "rgb"]
    if color in (None, ""):
        return None
    if isinstance(color, str):
        text = color.strip().lstrip("#")
        is_hex = color.strip().startswith("#") and len(text) == 6
        color = bytes.fromhex(text) if is_hex else text.strip("()[]").replace(",", " ").split()
    values = tuple(int(value) for value in color)
    if len(values) != 3:
        raise ValueError(f"colour {values} is not r, g, b")
    return values[0], values[1], values[2]


SHAPES = ClassTable(
    (
        ClassRow("background", (40, 44, 52)),
        ClassRow("disc", (230, 97, 1)),
        ClassRow("box", (253, 200, 60)),
        ClassRow("triangle", (60, 180, 90)),
        ClassRow("ring", (70, 130, 230)),
        ClassRow("star", (190, 90, 200)),
    )
)
"""The made-up data set of `fcn_jax.data.shapes`."""

CAMVID = ClassTable(
    (
        ClassRow("sky", (128, 128, 128)),
        ClassRow("building", (128, 0, 0)),
        ClassRow("pole", (192, 192, 128)),
        ClassRow("road", (128, 64, 128)),
        ClassRow("pavement", (60, 40, 222)),
        ClassRow("tree", (128, 128, 0)),
        ClassRow("sign symbol", (192, 128, 128)),
        ClassRow("fence", (64, 64, 128)),
        ClassRow("car", (64, 0, 128)),
        ClassRow("pedestrian", (64, 64, 0)),
        ClassRow("bicyclist", (0, 128, 192)),
        ClassRow("void", (0, 0, 0), ignored=True),
    )
)
"""CamVid in the eleven classes and colours of the SegNet tutorial; 11 is void in its files."""

VOC = table_from_names(
    [
        "background",
        "aeroplane",
        "bicycle",
        "bird",
        "boat",
        "bottle",
        "bus",
        "car",
        "cat",
        "chair",
        "cow",
        "diningtable",
        "dog",
        "horse",
        "motorbike",
        "person",
        "pottedplant",
        "sheep",
        "sofa",
        "train",
        "tvmonitor",
    ]
)
"""PASCAL VOC: twenty objects and background; 255 in its files is void."""

NYUDV2 = _with_void_zero(
    _words("""
        wall, floor, cabinet, bed, chair, sofa, table, door, window, bookshelf, picture, counter,
        blinds, desk, shelves, curtain, dresser, pillow, mirror, floor mat, clothes, ceiling, books,
        refridgerator, television, paper, towel, shower curtain, box, whiteboard, person,
        night stand, toilet, sink, lamp, bathtub, bag, otherstructure, otherfurniture, otherprop
    """)
)
"""NYUDv2 in the forty classes of Gupta et al. (CVPR 2013), spelt as published; 0 is void."""

SIFT_FLOW_SEMANTIC = _with_void_zero(
    _words("""
        awning, balcony, bird, boat, bridge, building, bus, car, cow, crosswalk, desert, door,
        fence, field, grass, moon, mountain, person, plant, pole, river, road, rock, sand, sea,
        sidewalk, sign, sky, staircase, streetlight, sun, tree, window
    """),
    unscored=("cow", "desert", "moon"),  # absent from the test set
)
"""SIFT Flow's 33 semantic classes; 0 is void."""

SIFT_FLOW_GEOMETRIC = _with_void_zero(["sky", "horizontal", "vertical"])
"""SIFT Flow's three geometric classes; 0 (and -1 in its files) is void."""

PASCAL_CONTEXT = table_from_names(
    [
        *VOC.names,
        *_words("""
            bag, bed, bench, book, building, cabinet, ceiling, clothes, computer, cup, door, fence,
            floor, flower, food, grass, ground, keyboard, light, mountain, mouse, curtain, platform,
            sign, plate, road, rock, shelves, sidewalk, sky, snow, bedcloth, track, tree, truck,
            wall, water, window, wood
        """),
    ]
)
"""PASCAL-Context: background and the 59 most frequent classes, VOC's twenty first."""

OXFORD_IIIT_PET = ClassTable(
    (
        ClassRow("pet", (230, 97, 1), id=1),
        ClassRow("background", (40, 44, 52), id=2),
        ClassRow("not classified", VOID_COLOR, ignored=True, id=3),
    )
)
"""Oxford-IIIT Pet's trimaps: 1 foreground, 2 background; 3, the outline, is "not classified"."""

SCENE_PARSE_150 = _with_void_zero(
    _words("""
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
    """)
)
"""The scene parsing benchmark of ADE20K: 150 classes; 0, everything else, is void."""

SCENE_PARSE_OBJECTS = table_from_names(
    _words("""
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
    """)
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


def usual_names(num_classes: int) -> list[str]:
    """The names that a network of so many classes usually has; numbers where that is unknown."""
    tables = (VOC, NYUDV2, SIFT_FLOW_SEMANTIC, SIFT_FLOW_GEOMETRIC, PASCAL_CONTEXT)
    for table in tables:
        if table.num_classes == num_classes:
            return list(table.names)
    return [f"class {number}" for number in range(num_classes)]
