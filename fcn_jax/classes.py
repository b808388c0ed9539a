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
import numbers
import re
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Integer, UInt8

VOID = 255
"""The label of pixels that never count; in files it is void too, unless a class has this id."""

NO_ID = -1
"""What some tools store where there is no class: void in every file."""

VOID_COLOR = (224, 224, 192)
"""The colour PASCAL VOC draws void pixels in."""

MAX_CLASSES = VOID  # labels travel as uint8, and 255 is taken
MAX_BYTES = 1 << 22  # of a class file; 65535 rows take less
_STRIP = 1 << 17  # ids looked up at a time, which bounds the memory


@dataclasses.dataclass(frozen=True)
class ClassRow:
    """One class of a data set.

    Attributes:
        name: What people call the class.
        color: Its colour in pictures and in RGB masks: red, green, blue, 0..255.
        ignored: True for void: these pixels neither train nor score.
        id: The class's value in stored label files; None means the row's place in the table. A
            class that counts has 255 only if it says so, as in black and white masks.
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
            whole = all(isinstance(value, numbers.Integral) for value in row.color)
            if not whole or len(row.color) != 3 or not all(0 <= v <= 255 for v in row.color):
                raise ValueError(f"class '{row.name}': colour {row.color} is not r, g, b in 0..255")
            if not (0 <= raw_id <= 65535 or (raw_id == NO_ID and row.ignored)):
                raise ValueError(f"class '{row.name}': id {raw_id} is not in 0..65535")

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
    def void_ids(self) -> tuple[int, ...]:
        """The ids that are void in stored label files, whether or not a row has them."""
        of_rows = dict(zip(self.ids, self.rows, strict=True))
        ignored = {raw_id for raw_id, row in of_rows.items() if row.ignored}
        return tuple(sorted({NO_ID, *ignored} | ({VOID} - set(of_rows))))

    @functools.cached_property
    def _lookup(self) -> np.ndarray:
        # Place 65536 is that of all ids outside 0..65535 but -1, whose place is the last.
        lookup = np.full(65538, -1, np.int16)  # -1: an id of no class
        lookup[[VOID, NO_ID]] = VOID
        ignored = np.array([row.ignored for row in self.rows])
        lookup[list(self.ids)] = np.where(ignored, VOID, np.cumsum(~ignored) - 1)
        return lookup

    def to_labels(self, raw: Integer[np.ndarray, "*shape"]) -> UInt8[np.ndarray, "*shape"]:
        """Turn stored ids into labels: 0..C-1, and 255 for void, which is -1 and 255 in files.

        Raises:
            ValueError: if an id belongs to no row; the message lists the smallest of such ids.
        """
        values, labels = raw.reshape(-1), np.empty(raw.size, np.uint8)
        unknown = np.zeros(0, np.int64)
        for start in range(0, raw.size, _STRIP):
            ids = values[start : start + _STRIP].astype(np.int64)
            found = self._lookup[np.where((ids >= NO_ID) & (ids < 65536), ids, 65536)]
            labels[start : start + _STRIP] = found
            if (found < 0).any():
                unknown = np.union1d(unknown, ids[found < 0])[:1000]
        if unknown.size:
            shown = ", ".join(map(str, unknown[:10])) + (", ..." if len(unknown) > 10 else "")
            ids = np.sort([raw_id for raw_id in self.ids if raw_id != NO_ID])
            runs = np.split(ids, np.flatnonzero(np.diff(ids) > 1) + 1)
            known = ", ".join(f"{r[0]}..{r[-1]}" if len(r) > 1 else str(r[0]) for r in runs)
            void = NO_ID if VOID in self.ids else VOID
            raise ValueError(
                f"label values {shown} belong to no class (known ids: {known}; {void} is void)"
            )
        return labels.reshape(raw.shape)

    def with_ids(self, ids: Sequence[int]) -> ClassTable:
        """The same classes under other ids in files: (0, 255) for masks in black and white."""
        pairs = zip(self.rows, ids, strict=True)
        return ClassTable(tuple(dataclasses.replace(row, id=raw_id) for row, raw_id in pairs))

    def with_void(self, ids: Iterable[int]) -> ClassTable:
        """The table with further ids that are void, whether they are of its rows or of none."""
        void = set(ids)
        rows = tuple(
            dataclasses.replace(row, ignored=True) if raw_id in void else row
            for row, raw_id in zip(self.rows, self.ids, strict=True)
        )
        # Ids of rows without one are their places, which rows added at the end leave as they are.
        extra = sorted(void - set(self.ids) - {VOID, NO_ID})
        more = (ClassRow(f"void {raw_id}", VOID_COLOR, ignored=True, id=raw_id) for raw_id in extra)
        return ClassTable((*rows, *more))

    def to_dict(self) -> dict[str, Any]:
        """The table as JSON types; `from_dict` reads it back."""
        return {"classes": [dataclasses.asdict(row) for row in self.rows]}

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> ClassTable:
        """The table that `to_dict` wrote; a ValueError if it is none."""
        try:
            rows = (ClassRow(**{**row, "color": tuple(row["color"])}) for row in fields["classes"])
            return cls(tuple(rows))
        except (LookupError, TypeError, AttributeError) as error:
            raise ValueError(f"not a class table: {_one_line(error)}") from error


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
        fields = enumerate(_read_fields(Path(path)))
        return ClassTable(tuple(_row(row, index, first_id) for index, row in fields))
    # A RecursionError is what the parser says to thousands of brackets.
    except (ValueError, LookupError, TypeError, csv.Error, RecursionError) as error:
        raise ValueError(f"{path}: not a class table: {_one_line(error)}") from error


def read_names(path: str | Path) -> list[str]:
    """The names of a file with one a line; ImageNet's ``n02123045 tabby, …`` without its id."""
    try:
        lines = _read_text(Path(path)).splitlines()
    except ValueError as error:
        raise ValueError(f"{path}: not a list of names: {error}") from error
    names = [re.sub(r"^n\d{8}\s+", "", line.strip()) for line in lines]
    return [name for name in names if name]


def has_colors(path: str | Path) -> bool:
    """Whether a class file gives every class a colour, as RGB masks need."""
    return all(_given_color(fields) is not None for fields in _read_fields(Path(path)))


def has_ids(path: str | Path) -> bool:
    """Whether a class file gives the ids of masks for any of its classes."""
    return any(fields.get("id") not in (None, "") for fields in _read_fields(Path(path)))


def _read_text(path: Path) -> str:
    with path.expanduser().open("rb") as file:
        content = file.read(MAX_BYTES + 1)
    if len(content) > MAX_BYTES:
        raise ValueError(f"more than {MAX_BYTES >> 20} MiB, which is no list of names")
    try:
        return content.decode("utf-8-sig")  # spreadsheets like to write a byte order mark
    except UnicodeDecodeError as error:
        place = f"byte 0x{content[error.start]:02x} at {error.start}"
        raise ValueError(f"not UTF-8 text ({place}); save it as UTF-8") from None


def _one_line(error: Exception) -> str:
    """The words of an error, short enough for a message."""
    text = " ".join((str(error) or type(error).__name__).split())
    return text if len(text) <= 300 else f"{text[:300]} ..."


COLUMNS = ("name", "id", "r", "g", "b", "color", "colour", "ignored", "scored")


def _read_fields(path: Path) -> list[dict[str, Any]]:
    """The rows of a class file as dictionaries of `COLUMNS`."""
    text = _read_text(path)
    rows: Any
    if path.suffix.lower() == ".csv":
        rows = _csv_rows(text)
    elif path.suffix.lower() == ".json":
        rows = json.loads(text, object_pairs_hook=_each_once, parse_constant=_no_number)
        if isinstance(rows, dict) and isinstance(rows.get("classes"), list):
            rows = rows["classes"]
        if isinstance(rows, dict):
            rows = [{"name": name, "color": color} for name, color in rows.items()]
        if not isinstance(rows, list):
            raise ValueError("neither a list nor an object")
    else:
        rows = [line for line in map(str.strip, text.splitlines()) if line]
        columns = re.split("[,;\t]", rows[0].lower()) if rows else []
        if len(columns) > 1 and "name" in map(str.strip, columns):
            raise ValueError(f"its first line names columns; call it {path.stem}.csv")
    rows = [{"name": row} if isinstance(row, str) else row for row in rows]
    for i, row in enumerate(rows):
        if not isinstance(row, dict):
            raise ValueError(f"row {i + 1}: {str(row)[:40]} is neither a name nor an object")
        rows[i] = _each_once([(key.strip().lower(), value) for key, value in row.items()])
        if unknown := rows[i].keys() - {*COLUMNS}:
            raise ValueError(
                f"row {i + 1}: '{min(unknown)}' is no field; there are {', '.join(COLUMNS)}"
            )
    return rows


def _csv_rows(text: str) -> list[dict[str, str]]:
    """The cells of every row that are not empty, by the name of their column in lower case."""
    header = text.partition("\n")[0]
    delimiter = max(",;\t", key=header.count)  # some spreadsheets write semicolons
    lines = csv.reader(io.StringIO(text), delimiter=delimiter, skipinitialspace=True, strict=True)
    columns = [cell.strip().lower() for cell in next(lines, [])]
    if "name" not in columns:
        raise ValueError(f"the first line must name the columns, one of them 'name': {header}")
    if unknown := set(filter(None, columns)) - {*COLUMNS}:
        raise ValueError(f"'{min(unknown)}' is no column; there are {', '.join(COLUMNS)}")
    rows = []
    for cells in lines:
        filled = [(i, cell.strip()) for i, cell in enumerate(cells) if cell.strip()]
        if any(i >= len(columns) or not columns[i] for i, _ in filled):
            raise ValueError(f"line {lines.line_num} has a cell in a column without a name")
        if filled:
            rows.append(_each_once([(columns[i], cell) for i, cell in filled]))
    return rows


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        counts = collections.Counter(name for name, _ in pairs)
        raise ValueError(f"'{counts.most_common(1)[0][0]}' is given twice")
    return fields


def _no_number(text: str) -> Any:
    raise ValueError(f"{text} is no number")


def _row(fields: dict[str, Any], index: int, first_id: int) -> ClassRow:
    name = fields.get("name", "")
    if not str(name).strip():
        raise ValueError(f"row {index + 1} has no name")
    name = str(name) if isinstance(name, int) else name
    if (
        not isinstance(name, str)
        or len(name) > 200
        or re.search("[\x00-\x1f\x7f-\x9f\ud800-\udfff]", name)
    ):
        raise ValueError(f"row {index + 1}: {str(name)[:40]!r} is no name of up to 200 characters")
    try:
        raw_id = index + first_id
        if fields.get("id") not in (None, ""):
            raw_id = _whole(fields["id"])
        elif raw_id == VOID:
            raise ValueError(f"id {VOID} is void, unless a column 'id' gives it")
        color = _given_color(fields)
        ignored, scored = _flag(fields, "ignored", False), _flag(fields, "scored", True)
    except ValueError as error:
        raise ValueError(f"row {index + 1}, class '{name}': {error}") from None
    if color is None:
        color = VOID_COLOR if ignored else voc_color(raw_id % 256)
    return ClassRow(name, color, ignored, raw_id, scored)


def _flag(fields: dict[str, Any], name: str, default: bool) -> bool:
    text = str(fields.get(name, "")).strip().lower()
    if text in ("true", "yes", "1", "x"):
        return True
    if text not in ("", "none", "false", "no", "0"):
        raise ValueError(f"{name} is true or false, not '{text[:40]}'")
    return default if text in ("", "none") else False


def _given_color(fields: dict[str, Any]) -> tuple[int, int, int] | None:
    """The colour a row gives, or None where it gives none."""
    given = [fields[name] for name in ("color", "colour") if fields.get(name) not in (None, "", [])]
    channels = [fields[name] for name in "rgb" if fields.get(name) not in (None, "")]
    if len(given) + bool(channels) > 1:
        raise ValueError("its colour is given twice")
    color = given[0] if given else channels
    if isinstance(color, str):
        is_hex = re.fullmatch("#[0-9a-fA-F]{6}", color)
        color = list(bytes.fromhex(color[1:])) if is_hex else re.sub("[][(),]", " ", color).split()
    if not isinstance(color, list) or len(color) not in (0, 3):
        raise ValueError(f"colour {str(color)[:40]} is not r, g, b")
    return (_whole(color[0]), _whole(color[1]), _whole(color[2])) if color else None


def _whole(value: Any) -> int:
    """A number written without a point; others would lose something."""
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    if isinstance(value, str) and re.fullmatch(r"\s*[+-]?[0-9]{1,9}\s*", value):
        return int(value)
    raise ValueError(f"{str(value)[:40]} is not a whole number")
