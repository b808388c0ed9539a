"""Layouts in which annotation tools export masks: Roboflow, PASCAL VOC and CVAT, Supervisely.

Each brings the names of its classes, which a class file of the person's own replaces.
"""

from __future__ import annotations

import csv
import json
from pathlib import Path

from fcn_jax.classes import VOID_COLOR, ClassRow, ClassTable, voc_color
from fcn_jax.data.images import IMAGE_SUFFIXES
from fcn_jax.data.layouts import (
    SPLITS,
    UNCUT,
    Found,
    by_name,
    files_below,
    find_folders,
    plain,
    stems,
)

SPLIT_OF = {name: split for split, names in SPLITS.items() for name in names}


def find_roboflow(root: Path, table: ClassTable | None) -> Found | None:
    """X.jpg and X_mask.png side by side, and `_classes.csv` with "Pixel Value, Class"."""
    lists = [path for path in files_below(root) if path.name == "_classes.csv"]
    if not lists or (found := find_folders(root, table)) is None:
        return None
    tables = {path: _roboflow_classes(path) for path in lists}
    found.problems += [
        (f"other classes than in {lists[0].relative_to(root)}", path)
        for path in lists
        if tables[path] != tables[lists[0]]
    ]
    found.layout = f"Roboflow's masks; {found.layout}"
    found.classes = tables[lists[0]] if table is None else None
    found.files += lists
    return found


def _roboflow_classes(path: Path) -> ClassTable:
    try:
        text = path.read_text("utf-8-sig")
        header, *rows = [row for row in csv.reader(text.splitlines(), skipinitialspace=True) if row]
        if [cell.strip().lower() for cell in header] != ["pixel value", "class"]:
            raise ValueError(f"its first line is '{', '.join(header)}', not 'Pixel Value, Class'")
        numbered = [(int(raw_id), name.strip()) for raw_id, name in rows]
        return ClassTable(
            tuple(ClassRow(name, voc_color(raw_id % 256), id=raw_id) for raw_id, name in numbered)
        )
    except (ValueError, csv.Error) as error:
        raise ValueError(f"{path}: not Roboflow's classes: {error}") from None


def find_voc(root: Path, table: ClassTable | None) -> Found | None:
    """`JPEGImages`, `SegmentationClass` and lists of names, with CVAT's `labelmap.txt` if any."""
    pictures, labelled = root / "JPEGImages", root / "SegmentationClass"
    lists = sorted((root / "ImageSets/Segmentation").glob("*.txt"))
    if not labelled.is_dir() or not lists:
        return None
    if not pictures.is_dir():
        raise FileNotFoundError(
            f"folder: {root} has SegmentationClass, but no images in JPEGImages; export once more "
            "with images"
        )
    found = Found("as PASCAL VOC: JPEGImages and SegmentationClass, split by ImageSets")
    images = by_name(stems(files_below(pictures), pictures, IMAGE_SUFFIXES), found)
    masks = by_name(stems(files_below(labelled), labelled, IMAGE_SUFFIXES), found)
    of_split = [path for path in lists if path.stem.lower() in SPLIT_OF]
    listed: set[str] = set()
    for path in of_split or lists:
        lines = path.read_text("utf-8-sig").splitlines()
        names = [plain(line.strip()).replace("/", "_") for line in lines if line.strip()]
        names = dict.fromkeys(name for name in names if of_split or name not in listed)
        found.add(
            SPLIT_OF.get(path.stem.lower(), UNCUT),
            {name: images[name] for name in names if name in images},
            {name: masks[name] for name in names if name in masks},
        )
        found.problems += [
            (f"lists {name}, of which there is neither image nor mask", path)
            for name in names
            if name not in images and name not in masks
        ]
        listed.update(names)
    if others := [name for name in images if name not in listed]:
        found.notes.append(f"{len(others)} images are in no list, such as {images[others[0]].name}")
    found.files += of_split or lists
    if table is None and (label_map := root / "labelmap.txt").is_file():
        found.layout = f"CVAT's masks, {found.layout}; classes in labelmap.txt"
        found.classes, found.colored = _cvat_classes(label_map), True
        found.files.append(label_map)
    return found


def _cvat_classes(path: Path) -> ClassTable:
    """The classes of lines ``name:r,g,b:parts:actions``; VOC's colour of void marks void."""
    try:
        lines = [line.strip() for line in path.read_text("utf-8-sig").splitlines()]
        rows = []
        for line in lines:
            if not line or line.startswith("#"):
                continue
            name, color, *_ = line.rsplit(":", 3)
            red, green, blue = map(int, color.split(","))
            ignored = (red, green, blue) == VOID_COLOR
            rows.append(ClassRow(name, (red, green, blue), ignored))
        return ClassTable(tuple(rows))
    except ValueError as error:
        raise ValueError(f"{path}: not lines 'name:r,g,b:parts:actions': {error}") from None


MACHINE, HUMAN = "masks_machine", "masks_human"


def find_supervisely(root: Path, table: ClassTable | None) -> Found | None:
    """`meta.json` with the classes; in every data set `img` and `masks_machine` or `masks_human`.

    Data sets called train, val or test are these splits. Machine masks hold the numbers that
    `obj_class_to_machine_color.json` gives, else 1 for the first class and so on; 0 is background.
    """
    meta = root / "meta.json"
    pictures = sorted(folder for folder in root.glob("*/img") if folder.is_dir())
    if not meta.is_file() or not pictures:
        return None
    kinds = [kind for kind in (MACHINE, HUMAN) if any(root.glob(f"*/{kind}"))]
    if not kinds:
        raise FileNotFoundError(
            f"folder: {root} is a project of Supervisely without masks, whose JSON annotations are "
            "not read; export it with 'Export as masks', or in COCO's format"
        )
    kind, colors = kinds[0], root / "obj_class_to_machine_color.json"
    found = Found(f"Supervisely's: img and {kind}; classes in meta.json", files=[meta])
    for folder in pictures:
        name = folder.parent.name
        images = stems(files_below(folder), folder, IMAGE_SUFFIXES)
        masks = stems(files_below(folder.parent / kind), folder.parent / kind, IMAGE_SUFFIXES)
        for path, stem in masks.items():  # a.png, or a.jpg.png
            if Path(stem).suffix.lower() in IMAGE_SUFFIXES:
                masks[path] = str(Path(stem).with_suffix(""))
        split = SPLIT_OF.get(name.lower(), UNCUT)
        prefix = "" if split else f"{name}/"
        found.add(
            split,
            by_name({path: prefix + stem for path, stem in images.items()}, found),
            by_name({path: prefix + stem for path, stem in masks.items()}, found),
        )
    if len(found.splits) > 1 and UNCUT in found.splits:
        named = ", ".join(sorted(found.splits.keys() - {UNCUT}))
        found.notes.append(f"beside {named} there are images without a split, which are cut")
    if table is None:
        found.colored = kind == HUMAN
        found.classes = _supervisely_classes(meta, colors if kind == MACHINE else None)
        found.files += [colors] if colors.is_file() else []
    return found


def _supervisely_classes(meta: Path, colors: Path | None) -> ClassTable:
    try:
        classes = [
            (str(row["title"]), row["color"]) for row in json.loads(meta.read_text())["classes"]
        ]
        ids = {name: place for place, (name, _) in enumerate(classes, start=1)}
        if colors is not None and colors.is_file():
            given = json.loads(colors.read_text())
            ids = {name: given[name][0] for name, _ in classes if name in given}
            if wrong := [name for name, number in ids.items() if type(number) is not int]:
                raise ValueError(f"{colors.name} gives {wrong[0]} the number {ids[wrong[0]]!r}")
        rows = [ClassRow(name, _hex(color), id=ids[name]) for name, color in classes if name in ids]
        if 0 not in ids.values():
            rows.insert(0, ClassRow("background", (0, 0, 0), id=0))
        return ClassTable(tuple(rows))
    except (ValueError, LookupError, TypeError, RecursionError) as error:
        raise ValueError(f"{meta}: not Supervisely's classes: {error!r}") from None


def _hex(color: object) -> tuple[int, int, int]:
    if not isinstance(color, str):
        raise ValueError(f"the colour {color!r} is not text such as '#ff8000'")
    red, green, blue = bytes.fromhex(color.removeprefix("#"))
    return red, green, blue
