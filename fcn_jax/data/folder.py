"""`folder`: your own images and masks, without writing code.

Three layouts are found by themselves (`labels` or `annotations` may stand for `masks`):

    DIR/train/images  DIR/train/masks  DIR/val/images  DIR/val/masks  (and test)
    DIR/images/train  DIR/masks/train  DIR/images/val  DIR/masks/val  (and test)
    DIR/images        DIR/masks                  cut 8:1:1 into train, val and test by a seed

Any other is given as two globs, `images` and `masks`, relative to DIR. An image and a mask belong
together where the stars matched the same text, whatever the extensions: with `*_rgb.jpg` and
`*_gt.png`, `a_rgb.jpg` belongs to `a_gt.png`. Where the globs hold `{split}`, it stands for train,
val and test.

Class names come from `DIR/classes.csv`, `.json` or `.txt` (see
`fcn_jax.classes.load_class_table`). Masks hold ids (grey or palette PNG), or colours where the
class file gives them.

Before anything is prepared all files are read once and every problem is reported in one list. To
do only that:

    fcn-jax check DIR
"""

from __future__ import annotations

import concurrent.futures
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Int64, UInt8

from fcn_jax.classes import VOID, has_colors, load_class_table
from fcn_jax.data import layouts
from fcn_jax.data.files import fingerprint
from fcn_jax.data.images import Encoded, LabelKind, encoded_image
from fcn_jax.data.layouts import Drawing, Pairs
from fcn_jax.data.records import Contents, Entry, Part, file_entry, read_labels

CLASS_FILES = ("classes.csv", "classes.json", "classes.txt")
SHOWN_PROBLEMS = 100


class FolderPlan:
    """What lies in a folder, before any picture has been read: a `fcn_jax.data.records.Plan`.

    Args:
        classes: The class file, relative to `manual_dir` or the working directory.
        images: Glob of the images, relative to `manual_dir`; may hold `{split}`.
        masks: Glob of the masks.
        mask_kind: "index": masks hold ids; "color": colours, also in grey and palette files;
            "auto": RGB files hold colours, all others ids.
        first_id: The id in masks of the first class, where the class file gives no ids.
        void: Ids in masks that are void, beside 255.
        seed: Of the cut into train, val and test, for layouts without splits.
    """

    def __init__(
        self,
        manual_dir: Path | None,
        *,
        classes: str | Path | None = None,
        images: str | None = None,
        masks: str | None = None,
        mask_kind: str = "auto",
        first_id: int = 0,
        void: Sequence[int] = (),
        seed: int = 0,
    ) -> None:
        if manual_dir is None or not manual_dir.is_dir():
            there = f"there is no folder {manual_dir}" if manual_dir else "no data"
            raise FileNotFoundError(
                f"folder: {there}; give the folder of your images and masks as manual_dir"
            )
        if mask_kind not in ("auto", "index", "color"):
            raise ValueError(f"folder: mask_kind '{mask_kind}' is not one of auto, index, color")
        self.root = root = manual_dir
        if (images is None) != (masks is None):
            raise ValueError("folder: give both globs, images and masks, or neither")
        class_file = _class_file(root, classes)
        table = load_class_table(class_file, first_id) if class_file else None
        if images is not None and masks is not None:
            found = layouts.from_globs(root, images, masks)
            if not found.splits and not found.unlabeled:
                raise FileNotFoundError(f"folder: {root} has no image {images}")
        else:
            found = layouts.find(root, table)
        if found is None:
            raise FileNotFoundError(
                f"folder: found no images with masks in {root}. Put them into train/images and "
                "train/masks, val/images and val/masks; or all into images and masks, to be cut "
                "8:1:1; or give two globs, e.g. images='photos/*.jpg' and masks='labels/*_mask.png'"
            )
        if found.classes is None and class_file is None:
            raise FileNotFoundError(
                f"folder: {root} has no classes.csv, classes.json or classes.txt. For masks that "
                "hold ids write classes.txt with one class name a line, the first being id 0 "
                "(option first_id); for masks that hold colours write classes.csv with the first "
                "line name,r,g,b"
            )
        self.found = found
        self.class_file = class_file
        classes_ = found.classes or table
        assert classes_ is not None
        self.classes = classes_.with_void(void)
        self.mask_kind: LabelKind = mask_kind
        in_colors = mask_kind == "color" or (
            found.colored if found.classes else class_file and has_colors(class_file)
        )
        self.colors = self.classes if in_colors else None  # that masks may hold
        # What is wrong before any file has been read.
        self.problems = [f"{path.relative_to(root)}: {what}" for what, path in found.problems]
        self.problems += [f"{path.relative_to(root)}: no mask" for path in found.unlabeled]
        splits = dict(found.splits)
        splits |= _cut(splits.pop(layouts.UNCUT, {}), seed) if layouts.UNCUT in splits else {}
        self.splits: dict[str, Pairs] = {split: pairs for split, pairs in splits.items() if pairs}
        if not splits.get("train") and not self.problems:
            raise FileNotFoundError(f"folder: {root} has no image to train on: {found.layout}")
        pairs = [pair for split in splits.values() for pair in split.values()]
        files = {path for pair in pairs for path in pair if isinstance(path, Path)}
        files |= {*found.files, *filter(None, [class_file])}
        options = (classes, images, masks, mask_kind, first_id, tuple(void), seed)
        self.copy = f"files-{fingerprint(files, options)}"

    def contents(self) -> Contents:
        """All examples, for the prepared copy; a ValueError lists what `check` finds."""
        problems, _ = self.check()
        if problems:
            count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
            lines = [f"  {problem}" for problem in problems[:SHOWN_PROBLEMS]]
            if len(problems) > SHOWN_PROBLEMS:
                lines.append(f"  ... and {len(problems) - SHOWN_PROBLEMS} more; all are listed by")
                lines.append(f"  fcn-jax check {self.root}")
            raise ValueError("\n".join([f"folder: {count} in {self.root}:", *lines]))
        splits = {
            split: [self._entry(name, *pair) for name, pair in pairs.items()]
            for split, pairs in self.splits.items()
        }
        return Contents(splits, {"label": self.classes}, source=str(self.root))

    def check(self) -> tuple[list[str], Int64[np.ndarray, "256"]]:
        """Read every image and mask once: all problems, and how many pixels have each label."""
        from tensorflow_datasets.core.utils import tqdm_utils

        problems = list(self.problems)
        pixels = np.zeros(256, np.int64)
        first_of: dict[str, tuple[str, Path]] = {}
        tasks = [(split, *pair) for split, ids in self.splits.items() for pair in ids.values()]
        with concurrent.futures.ThreadPoolExecutor(4) as pool:  # decoding leaves Python's lock
            results = pool.map(lambda task: self._read(*task[1:]), tasks)
            bar = tqdm_utils.tqdm(results, total=len(tasks), desc="folder check", unit=" images")
            for (split, image, _), (problem, counts, digest) in zip(tasks, bar, strict=True):
                pixels += counts
                if problem:
                    problems.append(problem.replace(f"{self.root}/", ""))
                other_split, other = first_of.setdefault(digest, (split, image))
                if digest and other_split != split:
                    problems.append(
                        f"{image.relative_to(self.root)}: the same image as "
                        f"{other.relative_to(self.root)}, in {split} and in {other_split}"
                    )
        present = [self.classes.names[i] for i in np.flatnonzero(pixels[:VOID])]
        if not problems and len(present) < 2 and self.classes.num_classes > 1:
            text = f"all pixels of all masks are {present[0] if present else 'void'}"
            if pixels[VOID]:
                text += (
                    f" or void ({VOID}). If {VOID} is a class in your masks, give the classes' "
                    "colours in classes.csv (name,r,g,b, e.g. background,0,0,0 and "
                    "thing,255,255,255) and the option mask_kind='color'"
                )
            problems.append(text)
        return problems, pixels

    def _read(self, image: Path, mask: Path | Drawing) -> tuple[str, Int64[np.ndarray, "256"], str]:
        """The problem of a pair or "", pixels of each label, and the image's digest."""
        try:
            parts = self._entry("", image, mask).load()
        except (ValueError, OSError) as error:
            return str(error), np.zeros(256, np.int64), ""
        picture, label = parts["image"], parts["label"]
        assert isinstance(picture, Encoded)
        assert isinstance(label, np.ndarray)
        counts = np.bincount(label.ravel(), minlength=256)
        return "", counts, picture.digest

    def _entry(self, name: str, image: Path, mask: Path | Drawing) -> Entry:
        def read(path: Path) -> UInt8[np.ndarray, "h w"]:
            return read_labels(path, self.classes, self.mask_kind, self.colors)

        def draw() -> dict[str, Part]:
            assert not isinstance(mask, Path)
            picture = encoded_image(image)
            return {"image": picture, "label": self.classes.to_labels(mask(picture.size))}

        if not isinstance(mask, Path):
            return Entry(name, draw)
        return file_entry(name, {"image": (image, encoded_image), "label": (mask, read)})


plan = FolderPlan


def _class_file(root: Path, classes: str | Path | None) -> Path | None:
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


def _cut(pairs: Pairs, seed: int) -> dict[str, Pairs]:
    """Cut 8:1:1 into train, val and test, at least one each; fewer than three are all train."""
    names = sorted(pairs)
    order = np.random.default_rng(seed).permutation(len(names))
    tenth = max(1, round(len(names) / 10)) if len(names) >= 3 else 0
    places = {"train": order[2 * tenth :], "val": order[:tenth], "test": order[tenth : 2 * tenth]}
    return {
        split: {names[i]: pairs[names[i]] for i in sorted(place.tolist())}
        for split, place in places.items()
    }
