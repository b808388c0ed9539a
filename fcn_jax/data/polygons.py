"""What COCO and LabelMe files share: how they are read, which image they mean, what is on top.

Such a file lists objects, drawn on an image in its own coordinates, and the name or number of each
one's class. A `Drawing` of it makes the ids of the image; nothing is drawn before.
"""

from __future__ import annotations

import collections
import dataclasses
import itertools
import json
import mmap
import os
import re
import unicodedata
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path, PureWindowsPath
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float64, Int32, Int64

from fcn_jax.classes import MAX_CLASSES, NO_ID, ClassRow, ClassTable, voc_color
from fcn_jax.data.images import IMAGE_SUFFIXES
from fcn_jax.data.layouts import SPLITS, UNCUT, Drawing, Found, Told, by_name, plain

MAX_JSON = 1 << 30  # bytes; COCO's largest has 450 MB
MAX_SIDE = 10**6  # pixels; also how far from an image a coordinate may lie
MAX_OUTLINE = 10**6  # pixels along an object's polygons; pycocotools takes 100 bytes for each
IGNORE = "__ignore__"
BACKGROUND = ("background", "_background_", "__background__")
NO_OBJECT = ""
"""Stands for the name of the class of pixels without an object."""


# ======================================================================== files


def read_json(path: Path, keep: Callable[[dict[str, Any]], Any] | None = None) -> Any:
    """The content of a JSON file; `keep` makes of every object what is kept of it.

    Raises:
        ValueError: if it is none, too large or nested too deeply; the message names the file.
    """
    try:
        if path.stat().st_size > MAX_JSON:
            raise ValueError(f"more than {MAX_JSON >> 20} MiB")
        return json.loads(path.read_text("utf-8-sig"), object_hook=keep)
    except RecursionError:
        raise ValueError(f"{path}: nested too deeply to be annotations") from None
    except ValueError as error:
        raise ValueError(f"{path}: cannot be read as JSON: {error}") from None


def holds(path: Path, words: Iterable[bytes]) -> bool:
    """Whether a file holds all these words, which is known without reading it into memory."""
    with open(path, "rb") as file:
        if not os.fstat(file.fileno()).st_size:
            return False
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            return all(content.find(word) >= 0 for word in words)


def unread(root: Path, files: Iterable[Path], read: Collection[Path]) -> list[str]:
    """Notes about files that hold annotations and are not `read`."""
    found: dict[str, list[Path]] = {"COCO": [], "LabelMe": []}
    jsons = (path for path in files if path.suffix.lower() == ".json" and path not in read)
    for path in itertools.islice(jsons, 1000):
        if holds(path, (b'"images"', b'"annotations"')):
            found["COCO"].append(path)
        elif holds(path, (b'"shapes"', b'"imagePath"')):
            found["LabelMe"].append(path)
    return [
        f"{len(paths)} annotation files of {tool}, such as {paths[0].relative_to(root)}, are not "
        "read, as there are masks"
        for tool, paths in found.items()
        if paths
    ]


def split_of(path: Path, root: Path) -> str:
    """The split that the last part of a path below `root` names, as train2017; or UNCUT."""
    for name in reversed(path.relative_to(root).parts):
        words = re.split("[^a-z]+", name.lower())
        for split, names in SPLITS.items():
            if set(names) & set(words):
                return split
    return UNCUT


def gather(found: Found, drawings: Mapping[str, Mapping[Path, Drawing]]) -> None:
    """Adds the drawings of each split's images to what is `found`, named by the images' paths."""
    if len(drawings) > 1:
        for path in drawings.get(UNCUT, ()):
            found.problems.append(("is of no split, while other images are", path))
    for split, of_images in drawings.items():
        folder = os.path.commonpath([path.parent for path in of_images])
        names = {
            path: plain(path.relative_to(folder).with_suffix("").as_posix()) for path in of_images
        }
        images = by_name(names, found)
        found.splits[split] = {name: (path, of_images[path]) for name, path in images.items()}


class Images:
    """The image files below a folder, by the names that annotation files give them.

    These may have separators of Windows, and folders that are not there: of a path that begins
    outside, as `C:\\\\photos\\\\a.jpg` or `../photos/a.jpg`, the end decides.
    """

    def __init__(self, root: Path, files: Iterable[Path]) -> None:
        self.root = root
        self.paths: dict[str, Path] = {}  # by the path relative to root, in composed letters
        self._ends: dict[str, list[tuple[str, ...]]] = collections.defaultdict(list)
        for path in files:
            if path.suffix.lower() in IMAGE_SUFFIXES:
                parts = tuple(plain(part) for part in path.relative_to(root).parts)
                self.paths["/".join(parts)] = path
                self._ends[parts[-1]].append(parts)

    def find(self, name: str, file: Path, split: str = UNCUT) -> list[Path]:
        """What `file`, of some split, may mean by `name`: one image, none, or several.

        Images of other splits are not meant.
        """
        given = PureWindowsPath(plain(name))
        parts = tuple(part for part in given.parts if part != given.anchor)
        beside = os.path.relpath(os.path.normpath(file.parent / Path(*parts)), self.root)
        if not given.anchor and plain(beside) in self.paths:
            return [self.paths[plain(beside)]]
        inside = not given.anchor and ".." not in parts
        parts = tuple(part for part in parts if part != "..")
        found: list[tuple[str, ...]] = []
        while parts and not found:
            found = [path for path in self._ends[parts[-1]] if path[-len(parts) :] == parts]
            parts = () if inside else parts[1:]
        paths = [self.paths["/".join(path)] for path in found]
        if split == UNCUT:
            return paths
        of_split = [path for path in paths if split_of(path.parent, self.root) == split]
        return of_split or [path for path in paths if split_of(path.parent, self.root) == UNCUT]


def notes_of(told: Iterable[tuple[str, str]]) -> list[str]:
    """A note for each text that is `Told`: of how many objects it is true, and three of them."""
    objects: dict[str, set[str]] = collections.defaultdict(set)  # twice counts once
    for text, where in told:
        objects[text].add(where)
    return [f"{text}: {named(sorted(places))}" for text, places in objects.items()]


def named(items: Sequence[object]) -> str:
    """How many there are, and the first three."""
    return f"{len(items)} ({', '.join(map(shown, items[:3]))}{', ...' if len(items) > 3 else ''})"


def shown(value: object) -> str:
    """What a file holds, fit for a line of a message."""
    text = str(value)
    text = text if len(text) <= 150 else f"{text[:150]}..."
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)


# ======================================================================== classes


def class_ids(
    names: Sequence[str], table: ClassTable | None, file: Path
) -> tuple[ClassTable, Mapping[str, int]]:
    """The table of classes called `names` in `file`, and the id of every name.

    Background comes first, as the class of pixels without an object, and `__ignore__` is void. If
    there is a person's table, it names and orders the classes, and may lack some of the names.
    """
    if table is None:
        others = [name for name in names if name.lower() not in (*BACKGROUND, IGNORE)]
        rows = [
            ClassRow(name, voc_color(i % 256), id=i)
            for i, name in enumerate(["background", *others])
        ]
    else:
        rows = [
            dataclasses.replace(row, id=i, ignored=row.ignored or row.name == IGNORE)
            for row, i in zip(table.rows, table.ids, strict=True)
        ]
        if not any(row.name.lower() in BACKGROUND for row in rows):
            free = min({*range(MAX_CLASSES + 1)} - {*table.ids})
            rows.insert(0, ClassRow("background", voc_color(0), id=free))
    try:
        table = ClassTable(tuple(rows))
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from None
    ids = dict(zip((row.name for row in rows), table.ids, strict=True))
    if odd := [name for name in names if {"Cc", "Cs"} & {*map(unicodedata.category, name)}]:
        raise ValueError(f"{file}: the class name {odd[0]!r:.80} holds control characters")
    background = next(i for name, i in ids.items() if name.lower() in BACKGROUND)
    ids |= {name: background for name in names if name.lower() in BACKGROUND}
    return table, {IGNORE: NO_ID, **ids, NO_OBJECT: background}


# ======================================================================== coordinates


class Frame(NamedTuple):
    """The picture whose coordinates are given, and the image on which they are drawn.

    Attributes:
        height, width: Of the picture, in pixels.
        size: Height and width of the image.
        turned: Whether the picture's sides are those of the file without its EXIF orientation.
    """

    height: int
    width: int
    size: tuple[int, int]
    turned: bool = False

    @classmethod
    def of(
        cls,
        stated: tuple[object, object],
        size: tuple[int, int],
        stored: Callable[[], tuple[int, int]],
    ) -> Frame:
        """The frame of a stated (height, width), or that of the image where both are None.

        Objects are drawn on the upright picture, as people see it. Many programs state the size
        that the file has without its EXIF orientation (`stored`, called if need be); where that
        is so, height and width are swapped. An image may also be a smaller or larger copy.

        Raises:
            ValueError: if the stated size is none, or has other proportions than the image.
        """
        if stated == (None, None):
            return cls(*size, size)
        height, width = map(_side, stated)
        if _same_shape((height, width), size):
            return cls(height, width, size)
        if _same_shape((height, width), stored()):
            return cls(width, height, size, turned=True)
        raise ValueError(
            f"drawn on a picture of {width}x{height}, but its image has {size[1]}x{size[0]}, "
            "which is no copy of it at another size"
        )

    def scaled(self, points: Float64[np.ndarray, "n 2"]) -> Float64[np.ndarray, "n 2"]:
        """Points (x, y) of the picture as points of the image."""
        return points * (self.size[1] / self.width, self.size[0] / self.height)

    def nearest(self) -> tuple[Int64[np.ndarray, "h"], Int64[np.ndarray, "w"]]:
        """The picture's row of every row of the image, and its column of every column."""
        rows, columns = (np.arange(side) + 0.5 for side in self.size)
        rows, columns = rows * self.height // self.size[0], columns * self.width // self.size[1]
        return rows.astype(np.int64), columns.astype(np.int64)

    def tell(self, told: Told, where: str) -> None:
        """Tells what is surprising about the frame of the file or entry `where`."""
        if self.turned:
            told.append(
                ("states the size without EXIF orientation; drawn on the upright image", where)
            )
        if (self.height, self.width) != self.size:
            told.append(
                ("drawn on a picture of another size, and scaled to that of the image", where)
            )

    def check(self, points: Float64[np.ndarray, "n 2"], told: Told, where: str) -> None:
        """Tells if points lie outside; a ValueError if all do, or if the picture may be another."""
        low, high = points.min(0), points.max(0)
        sides = np.array([self.width, self.height])
        if (high < 0).any() or (low > sides).any():
            raise ValueError(f"lies outside of its picture of {self.width}x{self.height}")
        if (low < -1).any() or (high > sides + 1).any():
            if self.turned:
                raise ValueError(
                    f"leaves the upright picture of {self.width}x{self.height}; if it was drawn on "
                    "the picture without its EXIF orientation, take that out of the image"
                )
            told.append(("reaches beyond its picture, where it is cut off", where))


def _side(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or value != value // 1:
        raise ValueError(f"the stated side {value!r:.60} is no number of pixels")
    if not 1 <= value <= MAX_SIDE:
        raise ValueError(f"the stated side of {value} pixels is not in 1..{MAX_SIDE}")
    return int(value)


def _same_shape(stated: tuple[int, int], size: tuple[int, int]) -> bool:
    """Whether one is the other at another scale, with sides rounded in any way."""
    return abs(size[1] * stated[0] - size[0] * stated[1]) < max(stated)


def packed(values: Any) -> Any:
    """Numbers as an array, with less memory; anything else as it is, to be refused when drawn."""
    try:
        array = np.array(values)
    except ValueError:  # lists of several lengths
        return values
    return array if array.dtype.kind in "iuf" else values


def points_of(values: Any) -> Float64[np.ndarray, "n 2"]:
    """Coordinates x, y, one after the other or in pairs, as points.

    Raises:
        ValueError: if they are none, or lie far from any image.
    """
    points = packed(values)
    if not isinstance(points, np.ndarray):
        raise ValueError("its points are no list of numbers x, y")
    in_pairs = points.ndim == 2 and points.shape[1] == 2
    if not (in_pairs or (points.ndim == 1 and not points.size % 2)):
        raise ValueError("its points are no pairs of x and y")
    points = points.astype(np.float64).reshape(-1, 2)
    far = ~(np.abs(points) <= MAX_SIDE)  # written so that NaN is far too
    if far.any():
        raise ValueError(f"its coordinate {points[far][0]:g} lies far from any image")
    return points


def check_outlines(outlines: Sequence[Float64[np.ndarray, "_ 2"]]) -> None:
    """Raises a ValueError where polygons of an object take too much time or memory to draw."""
    steps = (np.abs(outline - np.roll(outline, 1, 0)).max(1).sum() for outline in outlines)
    if (length := sum(steps)) > MAX_OUTLINE:
        raise ValueError(f"its outline of {length:.0f} pixels is longer than {MAX_OUTLINE}")


def classes_of(
    objects: Int32[np.ndarray, "h w"],
    ids: Sequence[int],
    names: Sequence[str],
    told: Told,
) -> Int32[np.ndarray, "h w"]:
    """The class ids of a map of objects: ids[i] for the object i, called names[i].

    Object 0 is the background. Objects of which no pixel is seen are told.
    """
    seen = np.bincount(objects.ravel(), minlength=len(ids))
    for i in (np.flatnonzero(seen[1:] == 0) + 1).tolist():
        told.append(("hidden by objects on top of it", names[i]))
    return np.array(ids, np.int32)[objects]
