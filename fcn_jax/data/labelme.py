"""LabelMe's JSON files as a layout of `folder`: shapes of one image each, drawn as LabelMe does.

Shapes lie on top of each other in the order of the file. Pixels of no shape are background, as are
those of shapes called `_background_`; `__ignore__` is void. An image may lie in its JSON file.
"""

from __future__ import annotations

import base64
import collections
import functools
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float64, Int32, Int64

from fcn_jax.classes import ClassTable, load_class_table
from fcn_jax.data import polygons
from fcn_jax.data.images import IMAGE_SUFFIXES, read_label, stored_size
from fcn_jax.data.layouts import Drawing, DrawingError, Found, Told, files_below
from fcn_jax.data.polygons import NO_OBJECT, Frame, Images, named, shown

AREAS = ("polygon", "rectangle", "circle", "oriented_rectangle", "rotation", "mask")
"""The shapes that cover pixels; points and lines do not."""

LABELS = "labels.txt"
"""LabelMe's own class file."""

MAX_WORK = 2 * 10**8  # points of a polygon times rows of its image; Pillow goes through all


class _File(NamedTuple):
    """What is kept of a JSON file: all but the image. `name` is its path in the folder."""

    path: Path
    name: str
    image: str
    stated: tuple[Any, Any]
    embedded: bool
    shapes: list[_Shape]


class _Shape(NamedTuple):
    """One shape as stated, and how messages call it."""

    name: str
    label: str
    kind: str
    points: Any
    mask: Any


def find(root: Path, table: ClassTable | None) -> Found | None:
    """The images of all LabelMe files in a folder, with their shapes as drawings.

    Classes are the labels in alphabetical order, or those of the class file, which may also be
    LabelMe's labels.txt. Names of folders tell the splits.
    """
    below = files_below(root)
    files, damaged, others = [], [], []
    for path in below:
        if path.suffix.lower() == ".json" and path.name != "classes.json":
            try:
                file = _read(path, root)
            except ValueError as error:
                damaged.append((str(error).removeprefix(f"{path}: "), path))
            else:
                files.append(file) if file else others.append(path.relative_to(root).as_posix())
    if not files and not damaged:
        return None
    found = Found(
        "LabelMe files; pixels of no shape are background, those of __ignore__ are void",
        problems=damaged,
        files=[file.path for file in files],
    )
    if others:
        found.notes.append(f"JSON files that are not LabelMe's, not read: {named(others)}")
    if table is None and (root / LABELS).is_file():
        table = load_class_table(root / LABELS)
        found.files.append(root / LABELS)
    used: dict[str, list[str]] = collections.defaultdict(list)
    for file in files:
        for shape in file.shapes:
            if shape.kind in AREAS:
                used[shape.label].append(f"{file.name} {shape.name}")
    found.classes, ids = polygons.class_ids(sorted(used), table, root)
    for label in sorted(set(used) - set(ids)):
        text = f"the class file lacks the label {label!r:.80} of {named(used[label])}"
        found.problems.append((text, root))

    images = Images(root, below)
    drawings: dict[str, dict[Path, Drawing]] = collections.defaultdict(dict)
    for file in files:
        split = polygons.split_of(file.path.parent, root)
        places = images.find(file.image, file.path, split)
        if not places and file.embedded:
            places = [file.path]
        if not places:
            names = [f"{file.path.stem}{suffix}" for suffix in IMAGE_SUFFIXES]
            places = [path for name in names for path in images.find(name, file.path, split)]
            if len(places) == 1:
                text = "imagePath is not there; took the image of the file's name"
                found.told.append((text, file.name))
        if len(places) != 1:
            text = "may be one of several files" if places else "is not there"
            found.problems.append((f"its image {file.image!r:.80} {text}", file.path))
        elif any(places[0] in drawn for drawn in drawings.values()):
            found.problems.append(
                (f"its image {file.image!r:.80} is that of another file", file.path)
            )
        else:
            split = split or polygons.split_of(places[0].parent, root)
            drawings[split][places[0]] = functools.partial(_draw, file, places[0], ids)
    polygons.gather(found, drawings)
    taken = {path for drawn in drawings.values() for path in drawn}
    found.unlabeled = [path for path in images.paths.values() if path not in taken]
    return found


def image_source(path: Path) -> Path | bytes:
    """An image file, or the one that lies in a LabelMe file.

    Raises:
        ValueError: if a LabelMe file has none; the message names the file.
    """
    if path.suffix.lower() != ".json":
        return path
    try:
        return base64.b64decode(polygons.read_json(path)["imageData"], validate=True)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: its imageData is no image: {error}") from None


def _read(path: Path, root: Path) -> _File | None:
    """A JSON file, if it is LabelMe's."""
    content = polygons.read_json(path) if polygons.holds(path, [b'"shapes"']) else None
    if not isinstance(content, dict) or not {"imagePath", "imageData"} & content.keys():
        return None
    stated = content.get("imageHeight"), content.get("imageWidth")
    if not isinstance(content.get("shapes"), list):
        raise ValueError("its shapes are no list")
    shapes = []
    for number, fields in enumerate(content["shapes"]):
        name = f"shapes[{number}]"
        label = fields.get("label") if isinstance(fields, dict) else None
        if not isinstance(label, str) or not label:
            raise ValueError(f"{name} has no label")
        kind, points = fields.get("shape_type") or "polygon", polygons.packed(fields.get("points"))
        shapes.append(_Shape(f"{name} {label!r:.80}", label, str(kind), points, fields.get("mask")))
    embedded = isinstance(content.get("imageData"), str)
    image = str(content.get("imagePath"))
    return _File(path, path.relative_to(root).as_posix(), image, stated, embedded, shapes)


# ======================================================================== drawing


def _draw(
    file: _File, image: Path, ids: Mapping[str, int], size: tuple[int, int], told: Told
) -> Int32[np.ndarray, "h w"]:
    """The class ids of an image of this size: a `fcn_jax.data.layouts.Drawing`."""
    from PIL import Image

    def stored() -> tuple[int, int]:
        return stored_size(image_source(image), str(image))

    try:
        frame = Frame.of(file.stated, size, stored)
    except ValueError as error:
        raise DrawingError(str(error), file.name) from None
    frame.tell(told, file.name)
    objects = Image.new("I", (size[1], size[0]))  # as many bytes a pixel as objects need
    names = [""]
    classes = [ids[NO_OBJECT]]
    for shape in file.shapes:
        where = f"{file.name} {shape.name}"
        if shape.kind not in AREAS:
            told.append((f"a {shown(shape.kind)} covers no pixels and is not drawn", where))
            continue
        try:
            if _paint(objects, len(names), shape, frame, told, where):
                names.append(where)
                classes.append(ids[shape.label])
        except ValueError as error:
            raise DrawingError(str(error), where) from None
    return polygons.classes_of(np.asarray(objects), classes, names, told)


def _paint(objects: Any, number: int, shape: _Shape, frame: Frame, told: Told, where: str) -> bool:
    """Draws a shape as LabelMe's `shape_to_mask` does; False, and told, if it covers no pixel.

    Circles alone are drawn here: Pillow's are half a pixel wider than their radius.
    """
    from PIL import Image, ImageDraw

    points = polygons.points_of(shape.points)
    counts = {"circle": (2,), "mask": (2,), "rectangle": (2, 4)}.get(shape.kind)
    if counts and len(points) not in counts:
        raise ValueError(f"a {shape.kind} has {counts[0]} points, but this one {len(points)}")
    if not counts and len(points) < 3:
        told.append(("a polygon of fewer than 3 points covers no pixel", where))
        return False
    if len(points) * objects.height > MAX_WORK:
        raise ValueError(f"a polygon of {len(points)} points takes too long to draw")
    if shape.kind == "circle":
        radius = math.dist(*points)
        frame.check(points[0] + np.array([[-radius], [radius]]), told, where)
        mask, corner = _disc(frame.scaled(points), frame.size)
    elif shape.kind == "mask":
        frame.check(points, told, where)
        corners = points.astype(np.int64)
        mask, corner = _cut_out(_png_mask(shape.mask, corners), corners, frame)
    else:
        frame.check(points, told, where)
        points = frame.scaled(points)
        polygons.check_outlines([points])
        draw, ink = ImageDraw.Draw(objects), {"fill": number, "outline": number}
        if len(points) == 2:
            draw.rectangle([*points.min(0), *points.max(0)], **ink)
        else:
            draw.polygon(points.ravel().tolist(), **ink)
        return True
    if not mask.any():
        told.append(("covers no pixel", where))
        return False
    objects.paste(number, corner, Image.fromarray(mask * np.uint8(255)))
    return True


def _disc(
    points: Float64[np.ndarray, "2 2"], size: tuple[int, int]
) -> tuple[Bool[np.ndarray, "h w"], tuple[int, int]]:
    """The pixels of an image within a circle, given by its centre and a point on it.

    Returns them in a mask of the circle's box, and the box's left and top in the image.
    """
    center, radius = points[0], math.dist(*points)
    left, top = np.maximum(np.ceil(center - radius), 0).astype(int)
    right, bottom = np.minimum(np.floor(center + radius) + 1, size[::-1]).astype(int)
    rows, columns = np.ogrid[top : max(top, bottom), left : max(left, right)]
    distances = (rows - center[1]) ** 2 + (columns - center[0]) ** 2
    return distances <= ((points[1] - center) ** 2).sum(), (int(left), int(top))


def _png_mask(content: Any, corners: Int64[np.ndarray, "2 2"]) -> Bool[np.ndarray, "h w"]:
    """Where a PNG file, in base64, is not 0; it spans the corners, its first and last pixel."""
    try:
        file = base64.b64decode(content, validate=True)
    except (TypeError, ValueError):
        raise ValueError("its mask is no PNG file in base64") from None
    mask = read_label(file, kind="index", name="its mask") != 0
    width, height = corners[1] - corners[0] + 1
    if mask.shape != (height, width):
        raise ValueError(
            f"its mask has {mask.shape[1]}x{mask.shape[0]} pixels, but its points span "
            f"{width}x{height}"
        )
    return mask


def _cut_out(
    mask: Bool[np.ndarray, "a b"], corners: Int64[np.ndarray, "2 2"], frame: Frame
) -> tuple[Bool[np.ndarray, "h w"], tuple[int, int]]:
    """What of a mask between corners of the picture lies in the image, and its left and top."""
    rows, columns = frame.nearest()
    rows, columns = rows - corners[0, 1], columns - corners[0, 0]
    row = np.flatnonzero((rows >= 0) & (rows < mask.shape[0]))
    column = np.flatnonzero((columns >= 0) & (columns < mask.shape[1]))
    corner = [int(places[0]) if len(places) else 0 for places in (column, row)]
    return mask[np.ix_(rows[row], columns[column])], (corner[0], corner[1])
