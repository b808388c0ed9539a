"""Class tables: one row per class of a data set, from which everything else derives.

A row holds the class's name, its colour in pictures, whether it counts, and the id it has in the
stored label files. Training sees *labels*: the classes that count, numbered 0..C-1 in the order of
the table, and the void label 255, which never counts.

The tables of the known data sets stand in the data sets' modules: `fcn_jax.data.voc.VOC`, ...
"""

from __future__ import annotations

import collections
import csv
import dataclasses
import functools
import io
import json
import re
from collections.abc import Collection, Iterable
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

    Example:
        >>> sky, road = ClassRow("sky", (128, 128, 128)), ClassRow("road", (128, 64, 128))
        >>> table = ClassTable((sky, road, ClassRow("unlabelled", (0, 0, 0), ignored=True)))
        >>> table.names
        ('sky', 'road')
        >>> table.to_labels(np.array([[0, 1, 2]]))
        array([[  0,   1, 255]], dtype=uint8)
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
        for what, values in (("name", [row.name for row in self.rows]), ("id", self.ids)):
            counts = collections.Counter(map(str, values))
            if repeated := sorted(value for value, count in counts.items() if count > 1):
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

    @functools.cached_property
    def _lookup(self) -> np.ndarray:
        lookup = np.full(65536, -1, np.int16)  # -1: an id of no class
        lookup[VOID] = VOID
        ignored = np.array([row.ignored for row in self.rows])
        lookup[list(self.ids)] = np.where(ignored, VOID, np.cumsum(~ignored) - 1)
        return lookup

    def to_labels(self, raw: Integer[np.ndarray, "*shape"]) -> UInt8[np.ndarray, "*shape"]:
        """Turn stored ids into labels: 0..C-1, and 255 for void.

        Raises:
            ValueError: if an id belongs to no row; the message lists all such ids.
        """
        values = np.unique(raw)
        inside = (values >= 0) & (values < len(self._lookup))
        known = inside & (self._lookup[np.where(inside, values, 0)] >= 0)
        if unknown := values[~known].tolist():
            shown = ", ".join(map(str, unknown[:10])) + (", ..." if len(unknown) > 10 else "")
            ids = np.sort(self.ids)
            runs = np.split(ids, np.flatnonzero(np.diff(ids) > 1) + 1)
            ids = ", ".join(f"{r[0]}..{r[-1]}" if len(r) > 1 else str(r[0]) for r in runs)
            raise ValueError(
                f"label values {shown} belong to no class (known ids: {ids}; {VOID} is void)"
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


def voc_color(index: int) -> tuple[int, int, int]:
    """Colour `index` of the palette of the PASCAL VOC development kit.

    The bits of the index are dealt in turn to red, green and blue, most significant first.
    """
    red, green, blue = (
        sum((index >> 3 * bit + channel & 1) << 7 - bit for bit in range(8)) for channel in range(3)
    )
    return red, green, blue


def table_from_names(
    names: str | Iterable[str],
    first_id: int = 0,
    *,
    void_id: int | None = None,
    unscored: Collection[str] = (),
) -> ClassTable:
    """A table of plain names in VOC's palette.

    Args:
        names: The classes in order, as a sequence or as one text with commas between them.
        first_id: The id in stored label files of the first name; the others follow.
        void_id: An id that is void in these files, beside 255.
        unscored: The names of classes that are left out of the means (`ClassRow.scored`).

    Example:
        >>> table_from_names("cat, dog", first_id=1).to_labels(np.array([2, 1]))
        array([1, 0], dtype=uint8)
    """
    if isinstance(names, str):
        names = map(str.strip, names.split(","))
    rows = [
        ClassRow(name, voc_color(i), id=i, scored=name not in unscored)
        for i, name in enumerate(names, start=first_id)
    ]
    if void_id is not None:
        rows.insert(0, ClassRow("void", (0, 0, 0), ignored=True, id=void_id))
    return ClassTable(tuple(rows))


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
    try:
        rows = (_row(fields, i, first_id) for i, fields in enumerate(_read_fields(Path(path))))
        return ClassTable(tuple(rows))
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: not a class table: {error}") from error


def read_names(path: str | Path) -> list[str]:
    """The names of a file with one a line; ImageNet's ``n02123045 tabby, …`` without its id."""
    lines = Path(path).read_text(encoding="utf-8-sig").splitlines()
    names = [re.sub(r"^n\d{8}\s+", "", line.strip()) for line in lines]
    return [name for name in names if name]


def has_colors(path: str | Path) -> bool:
    """Whether a class file gives every class a colour, as RGB masks need."""
    return all(_given_color(fields) is not None for fields in _read_fields(Path(path)))


def _read_fields(path: Path) -> list[dict[str, Any]]:
    """The rows of a class file as dictionaries with lower-case keys."""
    text = path.read_text(encoding="utf-8-sig")  # spreadsheets like to write a byte order mark
    rows: Any
    if path.suffix.lower() == ".csv":
        header = text.partition("\n")[0]
        delimiter = max(",;\t", key=header.count)  # some spreadsheets write semicolons
        lines = csv.DictReader(io.StringIO(text), delimiter=delimiter, skipinitialspace=True)
        if "name" not in [str(column).strip().lower() for column in lines.fieldnames or ()]:
            raise ValueError(f"the first line must name the columns, one of them 'name': {header}")
        rows = [{k: v.strip() for k, v in line.items() if k and v and v.strip()} for line in lines]
        rows = list(filter(None, rows))
    elif path.suffix.lower() == ".json":
        rows = json.loads(text)
        if isinstance(rows, dict) and isinstance(rows.get("classes"), list):
            rows = rows["classes"]
        if isinstance(rows, dict):
            rows = [{"name": name, "color": color} for name, color in rows.items()]
    else:
        rows = [line for line in map(str.strip, text.splitlines()) if line]
    rows = [{"name": row} if isinstance(row, str) else row for row in rows]
    if wrong := [row for row in rows if not isinstance(row, dict)]:
        raise ValueError(f"{wrong[0]!r} is neither a name nor an object")
    return [{key.strip().lower(): value for key, value in row.items()} for row in rows]


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
    color = fields.get("color") or fields.get("colour")
    if not color:
        color = [fields[c] for c in "rgb" if fields.get(c) not in (None, "")]
    if isinstance(color, str):
        is_hex = re.fullmatch("#[0-9a-fA-F]{6}", color)
        color = bytes.fromhex(color[1:]) if is_hex else re.sub(r"[][(),]", " ", color).split()
    values = tuple(int(value) for value in color)
    if not values:
        return None
    if len(values) != 3:
        raise ValueError(f"colour {values} is not r, g, b")
    return values[0], values[1], values[2]
