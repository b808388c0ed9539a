"""`folder`: your own images and masks, without writing code.

These layouts are found by themselves; `labels`, `annotations` and other usual names may stand for
`masks`, `valid` or `validation` for `val`:

    DIR/train/images  DIR/train/masks  DIR/val/images  DIR/val/masks  (and test)
    DIR/images/train  DIR/masks/train  DIR/images/val  DIR/masks/val  (and test)
    DIR/images        DIR/masks                  cut into train, val and test
    X.jpg with X_mask.png, X_gt.png, X_label.png … side by side, in any of these or in DIR

and the exports of Roboflow, CVAT and Supervisely, COCO and LabelMe. Any other layout is given as
two globs, `images` and `masks`, relative to DIR. An image and a mask belong together where the
stars matched the same text, whatever the extensions: with `*_rgb.jpg` and `*_gt.png`, `a_rgb.jpg`
belongs to `a_gt.png`. Where the globs hold `{split}`, it stands for train, val and test.

Class names come from `DIR/classes.csv`, `.json` or `.txt` (see
`fcn_jax.classes.load_class_table`). Masks hold ids (grey or palette PNG, .npy), or colours where
the class file gives them.

Before anything is prepared all files are read once and every problem is reported in one list. To
do only that:

    fcn-jax check DIR
"""

from __future__ import annotations

import collections
import csv
import functools
import hashlib
import os
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

from fcn_jax.classes import (
    MAX_CLASSES,
    NO_ID,
    VOID,
    VOID_COLOR,
    ClassTable,
    has_colors,
    has_ids,
    load_class_table,
)
from fcn_jax.data import coco, exports, labelme, layouts, polygons
from fcn_jax.data.bands import Alpha, UsedRange, check_range
from fcn_jax.data.files import fingerprint
from fcn_jax.data.images import LabelKind, encoded_image
from fcn_jax.data.layouts import Drawing, Found
from fcn_jax.data.readings import Reader, Reading, Used, read_all, read_values
from fcn_jax.data.records import Contents, Entry, Part, file_entry, read_labels, size_of
from fcn_jax.data.survey import Survey, examples, ranges

FINDERS: tuple[layouts.Finder, ...] = (
    *(exports.find_roboflow, exports.find_voc, exports.find_supervisely),
    *(layouts.find_folders, coco.find, labelme.find, layouts.find_unmatched),
)
"""The finders of all layouts, in the order in which they are tried; masks come first."""

CLASS_FILES = ("classes.csv", "classes.json", "classes.txt")
SHOWN_PROBLEMS = 100


class FolderPlan:
    """What lies in a folder, before any picture has been read: a `fcn_jax.data.records.Plan`.

    Args:
        data_dir: Where prepared data lie, and what is read of a folder until it is prepared, so
            that a survey goes on after a kill; None keeps nothing.
        classes: The class file, relative to `manual_dir` or the working directory.
        images: Glob of the images, relative to `manual_dir`; may hold `{split}`.
        masks: Glob of the masks.
        mask_kind: "index": masks hold ids; "color": colours, also in grey and palette files;
            "auto": RGB files hold colours, all others ids.
        first_id: The id in masks of the first class, where the class file gives no ids. None: 0,
            unless the masks look otherwise; then it is asked for.
        void: Ids in masks that are void, beside 255.
        skip_unlabeled: Leave out images that have no mask.
        alpha: What a channel called alpha is: "drop" or "band"; None: a TIFF file's is a band if
            most of its pixels are neither opaque nor transparent, and else dropped.
        value_range: The values of images that are black and white. Empty: 0 and 255 of 8-bit
            images, of others what the training images use (`fcn_jax.data.bands.UsedRange`).
        val_fraction, test_fraction: The shares of val and test where images have no splits; 0 for
            none. See `cut`.
        seed: Of that cut.
    """

    def __init__(
        self,
        manual_dir: Path | None,
        *,
        data_dir: Path | None = None,
        classes: str | Path | None = None,
        images: str | None = None,
        masks: str | None = None,
        mask_kind: str = "auto",
        first_id: int | None = None,
        void: int | Sequence[int] = (),
        skip_unlabeled: bool = False,
        alpha: Alpha = None,
        value_range: Sequence[float] = (),
        val_fraction: float = 0.1,
        test_fraction: float = 0.1,
        seed: int = 0,
    ) -> None:
        self.void = (void,) if isinstance(void, int) else tuple(void)
        self.fractions, self.seed = {"val": val_fraction, "test": test_fraction}, seed
        if mask_kind not in ("auto", "index", "color"):
            raise ValueError(f"folder: mask_kind '{mask_kind}' is not one of auto, index, color")
        if not (min(val_fraction, test_fraction) >= 0 and val_fraction + test_fraction < 1):
            raise ValueError(
                f"folder: val_fraction={val_fraction} and test_fraction={test_fraction} must be at "
                "least 0, and less than 1 together"
            )
        if alpha not in (None, "drop", "band"):
            raise ValueError(f"folder: alpha '{alpha}' is not one of drop, band")
        self.alpha: Alpha = alpha
        self.value_range = check_range(value_range)
        self.root = root = existing(manual_dir)
        name = hashlib.sha256(os.fsencode(root)).hexdigest()[:12]
        self.kept_in = data_dir and data_dir / f"folder/surveyed-{name}"
        self.mask_kind: LabelKind = mask_kind
        self.class_file = _class_file(root, classes)
        own = load_class_table(self.class_file, first_id or 0) if self.class_file else None
        self.found = found = find(root, images, masks, own)
        table = found.classes or own
        if found.classes is not None:
            self.numbered, self.colored = True, found.colored
        elif self.class_file is not None:
            self.numbered, self.colored = has_ids(self.class_file), has_colors(self.class_file)
        if table is None:
            raise FileNotFoundError(
                f"folder: {root} has no classes.csv, classes.json or classes.txt. For masks that "
                "hold ids write classes.txt with one class name a line, the first being id 0 "
                "(option first_id); for masks that hold colours write classes.csv with the first "
                "line name,r,g,b. One to be edited is written from the masks by\n"
                f"  fcn-jax check {shlex.quote(str(root))} --write_classes"
            )
        self.table = table
        if self.numbered and first_id:
            raise ValueError(
                f"folder: first_id={first_id} has no effect, as "
                f"{self.class_file if found.classes is None else 'the layout'} gives the ids"
            )
        self.counted = first_id is not None
        self.colors = table if mask_kind == "color" or self.colored else None
        self.skip_unlabeled = skip_unlabeled
        if not found.splits.keys() & {"train", layouts.UNCUT} and not found.unlabeled:
            there = ", ".join(f"{split} ({len(ids)} images)" for split, ids in found.splits.items())
            raise FileNotFoundError(
                f"folder: {root} has no image to train on; it has {there or found.layout}"
            )
        pairs = [pair for split in found.splits.values() for pair in split.values()]
        files = {path for pair in pairs for path in pair if isinstance(path, Path)}
        files |= {*found.files, *filter(None, [self.class_file])}
        options = (classes, images, masks, mask_kind, first_id, self.void, skip_unlabeled)
        options += (alpha, self.value_range)
        self.copy = f"files-{fingerprint(files, options, val_fraction, test_fraction, seed)}"

    @functools.cached_property
    def survey(self) -> Survey:
        """What all images and masks hold, and their splits. Reads them all."""
        tasks = [
            (split, name, *pair)
            for split, ids in self.found.splits.items()
            for name, pair in ids.items()
        ]
        pairs = [(image, mask) for _, _, image, mask in tasks]
        used: Used = collections.defaultdict(UsedRange)
        # Of a layout that brings its classes, files are what masks are drawn from.
        drawn_from = fingerprint(self.found.files, self.found.classes)
        how = self.root, self.colors, self.mask_kind, self.alpha, drawn_from
        read = read_all(pairs, Reader(*how, self.kept_in), used)
        uncut = {
            name: reading.digest or name
            for (split, name, *_), reading in zip(tasks, read, strict=True)
            if split == layouts.UNCUT
        }
        place = cut(uncut, self.fractions, self.seed)
        readings: dict[str, dict[str, Reading]] = {split: {} for split in layouts.SPLITS}
        for (split, name, *_), reading in zip(tasks, read, strict=True):
            readings[split or place[name]][name] = reading
        survey = Survey(
            {split: readings[split] for split in layouts.SPLITS if readings[split]},
            self.table,
            numbered=self.numbered,
            counted=self.counted,
            colored=self.colored,
            void=self.void,
            kind=self.mask_kind,
        )
        survey.look_at_images(used, self.value_range or ())
        for what, path in self.found.problems:
            survey.problems.add(what, self._short(path))
        unlabeled = [self._short(path) for path in self.found.unlabeled]
        if self.skip_unlabeled and unlabeled:
            survey.notes.append(
                f"{len(unlabeled)} images without a mask are left out: {examples(unlabeled)}"
            )
        else:
            for path in unlabeled:
                survey.problems.add("no mask; skip_unlabeled=True leaves such images out", path)
        leftover = [self._short(path) for path in self.found.leftover]
        if leftover:
            survey.warnings.append(f"{len(leftover)} masks without an image: {examples(leftover)}")
        told = [*self.found.told, *(one for reading in read for one in reading.told)]
        survey.notes += [*self.found.notes, *polygons.notes_of(told)]
        files = layouts.files_below(self.root)
        survey.notes += layouts.aside(self.root, files, self.found)
        survey.proposals |= self.found.proposals
        if pairs and all(isinstance(mask, Path) for _, mask in pairs):
            survey.notes += polygons.unread(self.root, files, {*self.found.files})
        if readings["train"] and not readings["val"]:
            survey.warnings.append(
                "there is no split val to score on: move some images there, or give eval_split"
            )
        if not readings["train"]:
            survey.problems.add("there is no image with a mask to train on")
        return survey

    def _short(self, path: Path) -> str:
        return path.relative_to(self.root).as_posix()

    def contents(self) -> Contents:
        """All examples, for the prepared copy; a ValueError lists what ``fcn-jax check`` finds."""
        survey = self.survey
        if problems := survey.problems.lines():
            count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
            lines = [f"  {problem}" for problem in problems[:SHOWN_PROBLEMS]]
            if len(problems) > SHOWN_PROBLEMS:
                lines.append(f"  ... and {len(problems) - SHOWN_PROBLEMS} more")
            lines.append(f"More is told by: fcn-jax check {shlex.quote(str(self.root))}")
            raise ValueError("\n".join([f"folder: {count} in {self.root}:", *lines]))
        splits = {}
        for split, names in survey.readings.items():
            of = self.found.splits
            pairs = {**of.get(layouts.UNCUT, {}), **of.get(split, {})}
            splits[split] = [self._entry(name, *pairs[name]) for name in names]
        return Contents(
            splits,
            {"label": survey.classes},
            str(self.root),
            (*survey.notes,),
            value_range=self.value_range,
            kept_in=self.kept_in,
        )

    def _entry(self, name: str, image: Path, mask: Path | Drawing) -> Entry:
        classes = self.survey.classes
        if not isinstance(mask, Path):
            return Entry(name, functools.partial(_draw, image, mask, classes, self.alpha))
        encoded = functools.partial(encoded_image, alpha=self.alpha)
        read = functools.partial(
            read_labels, table=classes, kind=self.mask_kind, colors=self.colors
        )
        return file_entry(name, {"image": (image, encoded), "label": (mask, read)})


def _draw(image: Path, mask: Drawing, classes: ClassTable, alpha: Alpha) -> dict[str, Part]:
    picture = encoded_image(labelme.image_source(image), str(image), alpha)
    return {"image": picture, "label": classes.to_labels(mask(size_of(picture), []))}


plan = FolderPlan


def existing(manual_dir: Path | None) -> Path:
    """The folder of a person's data; a FileNotFoundError if there is none."""
    if manual_dir is not None and manual_dir.is_dir():
        return manual_dir
    there = f"there is no folder {manual_dir}" if manual_dir else "no data"
    raise FileNotFoundError(
        f"folder: {there}; give the folder of your images and masks as manual_dir "
        "(--config.manual_dir=DIR)"
    )


def find(root: Path, images: str | None, masks: str | None, table: ClassTable | None) -> Found:
    """What lies in a folder: by two globs, or by the first layout that is there.

    Raises:
        ValueError: if only one glob is given, or one is wrong.
        FileNotFoundError: if nothing is found.
    """
    if (images is None) != (masks is None):
        raise ValueError("folder: give both globs, images and masks, or neither")
    if images is not None and masks is not None:
        found = layouts.from_globs(root, images, masks)
        if not found.splits and not found.unlabeled:
            raise FileNotFoundError(f"folder: {root} has no image {images}")
        return found
    for finder in FINDERS:
        if found := finder(root, table):
            return found
    raise FileNotFoundError(
        f"folder: found no images with masks in {root}. Put them into train/images and "
        "train/masks, val/images and val/masks; or all into images and masks, to be cut into "
        "train, val and test; or give two globs, e.g. images='photos/*.jpg' and "
        "masks='labels/*_mask.png'"
    )


def _class_file(root: Path, classes: str | Path | None) -> Path | None:
    """The class file given, or one of the usual names, if there is one."""
    if classes is None:
        places = [root / name for name in CLASS_FILES]
    else:
        given = Path(classes).expanduser()
        places = [root / given, given.absolute()]
    for path in places:
        if path.is_file():
            return path
    if classes is not None:
        raise FileNotFoundError(f"folder: there is no class file {' or '.join(map(str, places))}")
    return None


def cut(digests: Mapping[str, str], fractions: Mapping[str, float], seed: int) -> dict[str, str]:
    """The split of every image, which depends on its digest and the seed alone.

    So no image changes place when others come or go, and copies of one stay together. Of fewer than
    three different images all are in train. Of three and more none of the splits stays empty: the
    image nearest to it joins, which may change when more come.

    Args:
        digests: Of every image, by id.
        fractions: The shares of "val" and "test"; the rest is train.

    Example:
        >>> cut({"a": "60f1", "b": "0c2e", "c": "60f1"}, {"val": 0.1, "test": 0.1}, seed=0)
        {'a': 'train', 'b': 'train', 'c': 'train'}
    """
    places = {
        digest: int(hashlib.sha256(f"{seed} {digest}".encode()).hexdigest()[:13], 16) / 16**13
        for digest in digests.values()
    }
    if len(places) < 3:
        return dict.fromkeys(digests, "train")
    bounds, low = {}, 0.0
    for split, fraction in fractions.items():
        bounds[split] = (low, low + fraction)
        low += fraction
    bounds["train"] = (low, 1.0)
    split_of = {
        digest: next(split for split, (_, high) in bounds.items() if place < high or high == 1)
        for digest, place in places.items()
    }
    for split, (low, high) in bounds.items():
        if low == high or split in split_of.values():
            continue
        sizes = collections.Counter(split_of.values())
        distance = {
            digest: max(low - place, place - high)
            for digest, place in places.items()
            if sizes[split_of[digest]] > 1
        }
        split_of[min(distance, key=lambda digest: (distance[digest], digest))] = split
    return {name: split_of[digest] for name, digest in digests.items()}


def write_classes(
    root: Path,
    path: str = "",
    *,
    images: str | None = None,
    masks: str | None = None,
    mask_kind: LabelKind = "auto",
) -> str:
    """Writes a class file, to be edited, from the values in a folder's masks; says what it wrote.

    It is `classes.csv` in the folder where no path is given.

    Raises:
        ValueError: if there is one, the layout brings its own classes, or masks cannot be read.
    """
    found = find(existing(root), images, masks, None)
    if found.classes is not None:
        raise ValueError(f"folder: the layout brings its classes ({found.layout})")
    target = Path(path).expanduser() if path else root / CLASS_FILES[0]
    for there in [target] if path else [root / name for name in CLASS_FILES]:
        if there.exists():
            raise ValueError(f"folder: {there} exists; give another name, --write_classes=FILE")
    files = [mask for ids in found.splits.values() for _, mask in ids.values()]
    ids, colors = read_values([mask for mask in files if isinstance(mask, Path)], mask_kind)
    void = [raw_id for raw_id in (NO_ID, VOID) if raw_id in ids and set(ids) != {0, VOID}]
    if colors:
        columns = ["name", "r", "g", "b"]
        rows = [[f"class {i}", *color] for i, color in enumerate(sorted(colors - {VOID_COLOR}))]
        what = f"{len(rows)} colours"
    else:
        counted = sorted(set(ids) - set(void))
        columns = ["name", "id", "r", "g", "b"] if any(ids.values()) else ["name", "id"]
        rows = [[f"class {raw_id}", raw_id, *(ids[raw_id] or ())] for raw_id in counted]
        what = f"ids {ranges(counted)}" + "".join(f"; {raw_id} is void" for raw_id in void)
    if not 0 < len(rows) <= MAX_CLASSES:
        raise ValueError(f"folder: the masks hold {len(rows)} values, which are no classes")
    with target.open("x", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([columns, *rows])
    return f"wrote {target}: {what}, of {len(files)} masks. Put in the names of the classes"
