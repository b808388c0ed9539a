"""COCO's JSON files as a layout of `folder`: polygons and run lengths, drawn as pycocotools does.

Whatever else a file states about an object, its `segmentation` says which pixels it covers. COCO
knows no order of objects, so larger ones lie below smaller ones. Groups of objects that were not
told apart (`iscrowd`) are void, pixels of no object are background.
"""

from __future__ import annotations

import collections
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeGuard

import numpy as np
from jaxtyping import Int32, Int64

from fcn_jax.classes import NO_ID, ClassTable
from fcn_jax.data import polygons
from fcn_jax.data.images import stored_size
from fcn_jax.data.layouts import Drawing, DrawingError, Found, Told, files_below
from fcn_jax.data.polygons import NO_OBJECT, Frame, Images, named, shown

KEPT = (
    *("images", "annotations", "categories", "id", "file_name", "height", "width", "name"),
    *("supercategory", "image_id", "category_id", "iscrowd", "segmentation", "counts", "size"),
    "segments_info",
)
"""The fields that are read; of all others nothing is kept, so that a file takes little memory."""


def find(root: Path, table: ClassTable | None) -> Found | None:
    """The images of all COCO files in a folder, with their annotations as drawings.

    The split stands in a file's name or that of a folder, as in
    `annotations/instances_train2017.json` and `train/_annotations.coco.json`. Where there are
    files called instances, others are not read.

    Raises:
        ValueError: naming the file, if one cannot be read, or is a panoptic one.
    """
    below = files_below(root)
    words = (b'"images"', b'"annotations"')
    files = [
        path for path in below if path.suffix.lower() == ".json" and polygons.holds(path, words)
    ]
    chosen = [path for path in files if path.name.startswith("instances")] or files
    contents = {path: polygons.read_json(path, _kept) for path in chosen}
    contents = {path: content for path, content in contents.items() if _is_coco(content)}
    if not contents:
        return None
    for path, content in contents.items():
        if any("segments_info" in _object(fields) for fields in content["annotations"]):
            raise ValueError(
                f"{path}: COCO's panoptic annotations are not read; take the files instances_*.json"
            )
    try:
        import pycocotools.mask as _  # noqa: F401
    except ImportError:
        raise ValueError(
            f"{next(iter(contents))}: COCO's annotations need pycocotools: "
            "pip install 'fcn-jax[coco]'"
        ) from None

    at = {path: path.relative_to(root).as_posix() for path in files}
    found = Found(
        f"COCO annotations of {', '.join(at[path] for path in contents)}; pixels of no annotation "
        "are background, crowds are void",
        files=[*contents],
    )
    if others := [at[path] for path in files if path not in contents]:
        found.notes.append(f"files that are not read: {named(others)}")
    categories = {
        path: _categories(path, content, found.notes) for path, content in contents.items()
    }
    # A class is known by its name: files may number them differently.
    first = {name: i for ids in reversed(categories.values()) for i, name in ids.items()}
    names = sorted(first, key=first.__getitem__)
    found.classes, ids = polygons.class_ids(names, table, root)

    images = Images(root, below)
    drawings: dict[str, dict[Path, Drawing]] = collections.defaultdict(dict)
    for path, content in contents.items():
        wrong: dict[str, list[object]] = collections.defaultdict(list)
        split = polygons.split_of(path, root)
        for entry in _entries(content, categories[path], ids, wrong):
            places = images.find(entry.name, path, split)
            if len(places) != 1:
                text = "images that fit several files" if places else "images that are not there"
                wrong[text].append(entry.name)
            elif any(places[0] in others for others in drawings.values()):
                wrong["images listed before"].append(entry.name)
            else:
                if not entry.objects:
                    text = "images without an annotation, which are background"
                    found.told.append((text, entry.name))
                drawings[split][places[0]] = functools.partial(_draw, at[path], places[0], entry)
        found.problems += [(f"{text}: {named(items)}", path) for text, items in wrong.items()]
    polygons.gather(found, drawings)
    listed = {path for drawn in drawings.values() for path in drawn}
    if unlisted := [name for name, path in images.paths.items() if path not in listed]:
        found.notes.append(f"images that no file lists, left out: {named(unlisted)}")
    return found


# ======================================================================== what a file states


class _Entry(NamedTuple):
    """An image of a file: its name there, and its (height, width) and annotations as stated."""

    name: str
    stated: tuple[Any, Any]
    background: int
    objects: list[_Object]


class _Object(NamedTuple):
    """An annotation: its id in the file, that of its class in the table, and its segmentation."""

    id: object
    label: int
    segmentation: Any


def _kept(fields: dict[str, Any]) -> dict[str, Any]:
    """What is kept of an object of JSON, its numbers as arrays."""
    kept = {key: fields[key] for key in KEPT if key in fields}
    if isinstance(parts := kept.get("segmentation"), list):
        kept["segmentation"] = [polygons.packed(part) for part in parts]
    if "segments_info" in kept:
        kept["segments_info"] = None
    if "counts" in kept:
        kept["counts"] = polygons.packed(kept["counts"])
    return kept


def _is_coco(content: Any) -> bool:
    lists = ("images", "annotations", "categories")
    return isinstance(content, dict) and all(isinstance(content.get(k), list) for k in lists)


def _categories(path: Path, content: dict[str, Any], notes: list[str]) -> dict[int, str]:
    """The names of a file's categories by their ids."""
    rows = content["categories"]
    for row in rows:
        fields = row if isinstance(row, dict) else {}
        if not _is_id(fields.get("id"), int) or not str(fields.get("name") or "").strip():
            raise ValueError(
                f"{path}: the category {row!r:.100} has no id that is a number, or no name"
            )
    keys = (_object(fields).get("category_id") for fields in content["annotations"])
    used = {key for key in keys if _is_id(key, int)}
    names: dict[int, str] = {}
    for row in rows:
        key, name = row["id"], str(row["name"])
        members = [other for other in rows if other.get("supercategory") == name]
        if key not in used and members and row not in members:  # as Roboflow writes
            notes.append(
                f"category {name!r:.80} is left out: a group of others, without annotations"
            )
        elif key in names or name in names.values():
            raise ValueError(f"{path}: two categories have the id {key} or the name {name!r:.80}")
        else:
            names[key] = name
    return names


def _object(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _is_id(value: Any, *types: type) -> TypeGuard[Any]:
    return isinstance(value, types) and not isinstance(value, bool)


def _entries(
    content: dict[str, Any],
    categories: Mapping[int, str],
    ids: Mapping[str, int],
    wrong: dict[str, list[object]],
) -> list[_Entry]:
    """The images of a file, with their annotations and class ids; what is not right is `wrong`."""
    entries: dict[int | str, _Entry] = {}
    for number, fields in enumerate(content["images"]):
        fields = _object(fields)
        key, name = fields.get("id"), fields.get("file_name")
        if not _is_id(key, int, str) or not isinstance(name, str) or not name:
            wrong["images without an id or a file_name"].append(f"number {number}")
        elif key in entries:
            wrong["ids of two images"].append(key)
        else:
            stated = fields.get("height"), fields.get("width")
            entries[key] = _Entry(name, stated, ids[NO_OBJECT], [])
    for number, fields in enumerate(content["annotations"]):
        fields = _object(fields)
        key, category = fields.get("image_id"), fields.get("category_id")
        name = categories.get(category) if _is_id(category, int) else None
        parts = fields.get("segmentation")
        if not _is_id(key, int, str) or key not in entries:
            problem = "annotations of images that are not listed"
        elif name is None:
            problem = "annotations of categories that are not listed"
        elif name not in ids:
            problem = f"annotations of {name!r:.80}, which the class file lacks"
        elif parts is None or (isinstance(parts, list) and not parts):
            problem = "annotations without a segmentation (a box does not tell pixels)"
        elif fields.get("iscrowd") not in (None, 0, 1):
            problem = "annotations whose iscrowd is neither 0 nor 1"
        else:
            label = NO_ID if fields.get("iscrowd") else ids[name]
            entries[key].objects.append(_Object(fields.get("id", f"number {number}"), label, parts))
            continue
        wrong[problem].append(fields.get("id", f"number {number}"))
    return [*entries.values()]


# ======================================================================== drawing


def _draw(
    at: str, image: Path, entry: _Entry, size: tuple[int, int], told: Told
) -> Int32[np.ndarray, "h w"]:
    """The class ids of an image of this size: a `fcn_jax.data.layouts.Drawing`."""
    try:
        frame = Frame.of(entry.stated, size, lambda: stored_size(image))
    except ValueError as error:
        raise DrawingError(str(error), shown(f"{at}: image {entry.name}")) from None
    frame.tell(told, f"{entry.name} in {at}")
    drawn = []
    for found in entry.objects:
        where = f"annotation {found.id} of {at}"
        try:
            counts = _counts(found.segmentation, frame, told, where)
        except ValueError as error:
            name = shown(f"{at}: annotation {found.id} of image {entry.name}")
            raise DrawingError(str(error), name) from None
        if area := int(counts[1::2].sum()):
            drawn.append((area, counts, found.label, where))
        else:
            told.append(("covers no pixel", where))
    drawn.sort(key=lambda one: -one[0])  # in a stable way
    objects = np.zeros(size[0] * size[1], np.int32)
    for number, (_, counts, _, _) in enumerate(drawn, start=1):
        ends = np.cumsum(counts).tolist()
        for start, end in zip(ends[::2], ends[1::2], strict=False):
            objects[start:end] = number
    labels = [entry.background, *(one[2] for one in drawn)]
    names = ["", *(one[3] for one in drawn)]
    return polygons.classes_of(objects.reshape(size[::-1]).T, labels, names, told)


def _counts(segmentation: Any, frame: Frame, told: Told, where: str) -> Int64[np.ndarray, "runs"]:
    """An object as lengths of runs down the columns of the image, outside and inside in turn."""
    if isinstance(segmentation, list):
        return _from_polygons(segmentation, frame, told, where)
    if isinstance(segmentation, dict):
        return _from_runs(segmentation, frame)
    raise ValueError("its segmentation is neither a list of polygons nor run lengths")


def _from_polygons(
    parts: list[Any], frame: Frame, told: Told, where: str
) -> Int64[np.ndarray, "runs"]:
    import pycocotools.mask

    outlines = [polygons.points_of(part) for part in parts]
    if any(len(outline) < 2 for outline in outlines):
        raise ValueError("a polygon needs a list of at least three x, y, but one has less than two")
    if any(len(outline) == 2 for outline in outlines):
        told.append(("has polygons of only 2 points, which cover nothing", where))
        outlines = [outline for outline in outlines if len(outline) > 2]
    if not outlines:
        return np.array([frame.size[0] * frame.size[1]])
    frame.check(np.concatenate(outlines), told, where)
    outlines = [frame.scaled(outline) for outline in outlines]
    polygons.check_outlines(outlines)
    flat: Any = [outline.ravel() for outline in outlines]
    merged: Any = pycocotools.mask.merge(pycocotools.mask.frPyObjects(flat, *frame.size))
    return _uncompressed(merged["counts"])


def _from_runs(runs: dict[str, Any], frame: Frame) -> Int64[np.ndarray, "runs"]:
    size, counts = runs.get("size"), runs.get("counts")
    if size != [frame.height, frame.width]:
        raise ValueError(
            f"its run lengths are of [height, width] {size!r:.60}, but its image has "
            f"[{frame.height}, {frame.width}]"
        )
    if isinstance(counts, str):
        counts = _uncompressed(counts.encode())
    if not isinstance(counts, np.ndarray) or counts.ndim != 1 or counts.dtype.kind not in "iu":
        raise ValueError("its run lengths are neither whole numbers nor a compressed text")
    pixels = frame.height * frame.width
    if counts.min() < 0 or counts.sum(dtype=np.float64) != pixels:  # float, which cannot wrap
        raise ValueError(
            f"its run lengths make {counts.sum(dtype=np.float64):.0f} pixels, but its image has "
            f"{pixels} ({frame.width}x{frame.height})"
        )
    counts = counts.astype(np.int64)
    if (frame.height, frame.width) == frame.size:
        return counts
    # Of a picture at another size the nearest pixel counts.
    rows, columns = frame.nearest()
    places = (columns[:, None] * frame.height + rows).ravel()
    inside = np.searchsorted(np.cumsum(counts), places, side="right") % 2
    changes = np.flatnonzero(np.diff(inside, prepend=0, append=-1))
    return np.diff(changes, prepend=0)


def _uncompressed(text: bytes) -> Int64[np.ndarray, "runs"]:
    """The run lengths in a text: numbers of 5 bits a character, lowest first, signed.

    From the third on, a number is the difference to the one before the last.
    """
    values = np.frombuffer(text, np.uint8).astype(np.int64) - 48
    last = np.flatnonzero(values & 32 == 0)  # character of every number
    digits = np.diff(last, prepend=-1)
    if not len(values) or values.min() < 0 or values.max() > 63 or values[-1] & 32:
        raise ValueError("its run lengths are no compressed text of COCO")
    if digits.max() > 12:
        raise ValueError("its run lengths hold a number of more than 60 bits")
    first = last - digits + 1
    places = np.arange(len(values)) - np.repeat(first, digits)
    numbers = np.add.reduceat((values & 31) << 5 * places, first)
    numbers -= np.where(values[last] & 16, 1 << 5 * digits, 0)
    for start in (1, 2):
        numbers[start::2] = np.cumsum(numbers[start::2])
    return numbers
