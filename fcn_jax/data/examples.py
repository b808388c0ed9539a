"""Examples of a program's own as a source: lists, data sets of PyTorch, Hugging Face's rows."""

from __future__ import annotations

import collections
import copy
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Literal, SupportsIndex, TypeAlias

import numpy as np

from fcn_jax.classes import MAX_CLASSES, VOID, ClassTable, table_from_names
from fcn_jax.data.bands import UsedRange, as_pixels
from fcn_jax.data.images import pixel_digest, pixels_of, whole_ids
from fcn_jax.data.records import digest_of_others
from fcn_jax.data.source import Source
from fcn_jax.data.transforms import arrays, check_example, size_of

Classes: TypeAlias = ClassTable | Sequence[str]
"""Of a label map: a table, or the names of the ids 0, 1, …"""

Kind: TypeAlias = Literal["picture", "depth", "labels"]


class Examples(Source):
    """Any object with a length and an index, as a source for training and evaluation.

    Each row is a dictionary of an ``image`` and one or more label maps of its size; other pictures
    and depth come along if the first row has them, and all else is left out:

    * Pictures are Pillow's, or arrays (h, w, bands), whose type may be uint8, uint16, int16 or
      floating point, and grey ones (h, w). ``image`` always is one.
    * Label maps are Pillow's images of one band, palettes included, or arrays (h, w): ids of
      classes, and 255 and -1 for void. Any name will do, ``label`` is usual.
    * An array uint16 (h, w) is depth in millimetres, unless ``classes`` names it.
    * ``id`` is what messages and reports call the example; by default the row's number.

    All rows are read at once, for sizes and digests: a run knows its images by their pixels, as it
    knows those of a folder. They are read again, by several threads, when they are needed, and
    must then be the same: random changes are the config's (``flip``, ``crop`` and others).

    Args:
        rows: Whatever has ``len(rows)`` and ``rows[i]``.
        classes: Those of the label map, or of several by its name. By default the attribute
            ``classes`` of ``rows``; without one, as many as the labels show, named "class 0", ….
        columns: Where rows have other names: each name here, and the row's for it, such as
            ``{"image": "photo", "label": "mask"}``. Other columns are then left out.
        name: What messages call the source.

    Raises:
        ValueError: If a row is no such example, is not like the first, or is another when it is
            read again; it is named.

    Example:
        >>> image, mask = np.zeros((40, 50, 3), np.uint8), np.zeros((40, 50), np.int64)
        >>> rows = [{"photo": image, "mask": mask}]
        >>> columns = {"image": "photo", "label": "mask"}
        >>> source = Examples(rows, ["ground", "tree"], columns=columns)
        >>> source.ids, source.classes.names, source[0]["label"].dtype
        (('0',), ('ground', 'tree'), dtype('uint8'))
    """

    def __init__(
        self,
        rows: Any,
        classes: Classes | Mapping[str, Classes] | None = None,
        *,
        columns: Mapping[str, str] | None = None,
        name: str = "examples",
    ) -> None:
        self.name, self.split, self.notes, self.origin = name, "", (), type(rows).__name__
        self._source, self._columns = rows, dict(columns or {})
        if len(rows) == 0:
            raise ValueError(f"{name} is empty")
        classes = getattr(rows, "classes", None) if classes is None else classes
        by_name: Mapping[str, Any] = classes if isinstance(classes, Mapping) else {}

        # ---- What a row is, by the first
        row = self._row(0)
        self._kinds: dict[str, Kind] = {}
        for key, value in row.items():
            if kind := _kind_of(key, value, key in by_name):
                self._kinds[key] = kind
        maps = [key for key, kind in self._kinds.items() if kind == "labels"]
        if absent := [key for key in by_name if key not in maps] or (not maps and ["label map"]):
            raise ValueError(f"{name}[0] has no {absent[0]} among {', '.join(map(str, row))}")
        if "image" not in self._kinds:
            raise ValueError(
                f"{name}[0] has no image among {', '.join(map(str, row))}; say which it is, such "
                "as columns={'image': 'photo', 'label': 'mask'}"
            )
        if len(maps) > 1 and classes is not None and not by_name:
            raise ValueError(f"{name} has the label maps {', '.join(maps)}: give classes by name")
        every = [f"class {i}" for i in range(MAX_CLASSES)]
        known: Any = every if classes is None else classes
        self.label_maps = {key: _table(by_name.get(key, known)) for key in maps}

        # ---- Every row
        self._rows: Any = range(len(rows))
        counts: dict[str, list[np.ndarray]] = {key: [] for key in maps}
        how: dict[str, tuple[int, str]] = {}
        used: dict[str, UsedRange] = {}
        read: list[tuple[str, str, str, tuple[int, int]]] = []
        for index in self._rows:
            example = self._example(index)
            parts = arrays(example)
            for key, value in parts.items():
                if key in maps:
                    counts[key].append(np.bincount(value.ravel(), minlength=VOID + 1)[:VOID])
                    continue
                now = (value.shape[2] if value.ndim == 3 else 1, value.dtype.name)
                if how.setdefault(key, now) != now:
                    raise ValueError(
                        f"{name}[{index}]: {key} has {now[0]} bands of {now[1]}, in the first row "
                        f"{how[key][0]} of {how[key][1]}"
                    )
                if value.ndim == 3 and value.dtype != np.uint8:
                    used.setdefault(key, UsedRange()).add(value)
            digests = pixel_digest(parts["image"]), digest_of_others(parts)
            read.append((example["id"], *digests, size_of(example)))
        self.ids, self.digests, self.label_digests, self.sizes = zip(*read, strict=True)
        ((often, times),) = collections.Counter(self.ids).most_common(1)
        if times > 1:
            raise ValueError(f"{times} rows of {name} have the id {often!r}")
        self.modalities = ("image", *(key for key in how if key != "image"))
        self.channels = {key: how[key][0] for key in self.modalities}
        self.dtypes = {key: how[key][1] for key in self.modalities}
        self.ranges = {key: used[key].found() if key in used else None for key in how}
        pixels = {key: np.stack(each).astype(np.int64) for key, each in counts.items()}
        if classes is None:
            seen = {
                key: int(np.flatnonzero(each.sum(0)).max(initial=0)) for key, each in pixels.items()
            }
            self.label_maps = {key: _table(every[: last + 1]) for key, last in seen.items()}
            self.notes = (f"{name}: as many classes as its labels show; Examples can name them",)
        self.label_counts = {
            key: pixels[key][:, : table.num_classes] for key, table in self.label_maps.items()
        }
        self[0]  # of rows that are drawn at random, one tells it

    def _row(self, index: int) -> dict[str, Any]:
        row = self._source[index]
        if not isinstance(row, Mapping):
            raise ValueError(
                f"{self.name}[{index}] is a {type(row).__name__}; rows are dictionaries such as "
                "{'image': …, 'label': …, 'id': …}"
            )
        if not self._columns:
            return dict(row)
        columns = {"id": "id", **self._columns} if "id" in row else self._columns
        if absent := [column for column in columns.values() if column not in row]:
            raise ValueError(f"{self.name}[{index}] has no {absent[0]} among {', '.join(row)}")
        return {key: row[column] for key, column in columns.items()}

    def _example(self, index: int) -> dict[str, Any]:
        """A row as an example of arrays."""
        row = self._row(index)
        example: dict[str, Any] = {"id": str(row.get("id", index))}
        try:
            for key, kind in self._kinds.items():
                if key not in row:
                    raise ValueError(f"it has no {key}")
                example[key] = _as_array(row[key], kind, self.label_maps.get(key))
            return check_example(example)
        except (ValueError, TypeError) as error:
            raise ValueError(f"{self.name}[{index}]: {error}") from None

    def __getitem__(self, index: SupportsIndex) -> dict[str, Any]:
        position = index.__index__()
        if not -len(self) <= position < len(self):
            raise IndexError(f"{self!r} has no example {position}")
        example = self._example(self._rows[position])
        now = pixel_digest(example["image"]), digest_of_others(arrays(example))
        if now != (self.digests[position], self.label_digests[position]):
            raise ValueError(
                f"{self.name}[{self._rows[position]}] is not what it was when it was read before; "
                "rows must not change: leave random changes to the config (flip, crop, …)"
            )
        return example

    def without(self, digests: Collection[str]) -> Examples:
        """As of a `Source`."""
        kept = [i for i, digest in enumerate(self.digests) if digest not in digests]
        source = copy.copy(self)
        source._rows = [self._rows[i] for i in kept]
        for name in ("ids", "digests", "label_digests", "sizes"):
            setattr(source, name, tuple(getattr(self, name)[i] for i in kept))
        source.label_counts = {name: counts[kept] for name, counts in self.label_counts.items()}
        return source

    def __len__(self) -> int:
        return len(self.ids)

    def __repr__(self) -> str:
        return f"Examples({self.name!r}, {len(self)} of a {self.origin})"


def _kind_of(key: str, value: Any, labelled: bool) -> Kind | None:
    """What a value of a row is; None if it is no array of an example."""
    if hasattr(value, "getbands"):  # one of Pillow's
        return "picture" if key == "image" or len(value.getbands()) > 1 else "labels"
    if not hasattr(value, "__array__") or np.ndim(value) not in (2, 3):
        return None
    if key == "image" or np.ndim(value) == 3:
        return "picture"
    return "depth" if np.asarray(value).dtype == np.uint16 and not labelled else "labels"


def _as_array(value: Any, kind: Kind, table: ClassTable | None) -> np.ndarray:
    """A value of a row as the array that an example has for it."""
    if kind == "picture":
        picture = hasattr(value, "getbands")
        pixels = pixels_of(value, "drop") if picture else as_pixels(np.asarray(value))
        return np.repeat(pixels, 3, axis=2) if pixels.shape[2] == 1 else pixels
    values = np.asarray(value)
    if table is None:
        return values
    if values.ndim != 2 or values.dtype.kind not in "uibf":
        raise ValueError(
            f"a label map holds a class for each pixel, not {values.dtype} of {values.shape}"
        )
    return table.to_labels(whole_ids(values))


def _table(classes: Classes) -> ClassTable:
    return classes if isinstance(classes, ClassTable) else table_from_names(classes)
