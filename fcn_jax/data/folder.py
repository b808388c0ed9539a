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
import re
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import TypeAlias

import numpy as np
from jaxtyping import Int64, UInt8

from fcn_jax.classes import VOID, has_colors, load_class_table
from fcn_jax.data.files import fingerprint
from fcn_jax.data.images import Encoded, LabelKind, encoded_image, image_files
from fcn_jax.data.records import Contents, Entry, file_entry, read_labels

SPLITS = ("train", "val", "test")
MASK_FOLDERS = ("masks", "labels", "annotations")
LAYOUTS = (
    ("{split}/images/*", "{split}/MASKS/*"),
    ("images/{split}/*", "MASKS/{split}/*"),
    ("images/*", "MASKS/*"),
)
CLASS_FILES = ("classes.csv", "classes.json", "classes.txt")
SHOWN_PROBLEMS = 100

Pairs: TypeAlias = Mapping[str, tuple[Path, Path]]
"""Image and mask of every id."""


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
        self.globs = _globs(root, images, masks)
        self.class_file = _class_file(root, classes)
        self.classes = load_class_table(self.class_file, first_id).with_void(void)
        self.mask_kind: LabelKind = mask_kind
        in_colors = mask_kind == "color" or has_colors(self.class_file)
        self.colors = self.classes if in_colors else None  # that masks may hold
        self.problems: list[str] = []  # what is wrong before any file has been read
        if "{split}" in self.globs[0]:
            splits = {}
            for split in SPLITS:
                of_images, of_masks = (glob.format(split=split) for glob in self.globs)
                splits[split] = _pairs(root, of_images, of_masks, self.problems)
        else:
            splits = _cut(_pairs(root, *self.globs, self.problems), seed)
        self.splits: dict[str, Pairs] = {split: pairs for split, pairs in splits.items() if pairs}
        if not splits["train"] and not self.problems:
            glob = self.globs[0].format(split="train")
            raise FileNotFoundError(f"folder: {root} has no image {glob}")
        pairs = [pair for split in splits.values() for pair in split.values()]
        files = {path for pair in pairs for path in pair} | {self.class_file}
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

    def _read(self, image: Path, mask: Path) -> tuple[str, Int64[np.ndarray, "256"], str]:
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

    def _entry(self, name: str, image: Path, mask: Path) -> Entry:
        def read(path: Path) -> UInt8[np.ndarray, "h w"]:
            return read_labels(path, self.classes, self.mask_kind, self.colors)

        return file_entry(name, {"image": (image, encoded_image), "label": (mask, read)})


plan = FolderPlan


def _globs(root: Path, images: str | None, masks: str | None) -> tuple[str, str]:
    """The globs given, or those of the first layout that is there."""
    if (images is None) != (masks is None):
        raise ValueError("folder: give both globs, images and masks, or neither")
    if images is not None and masks is not None:
        if ("{split}" in images) != ("{split}" in masks):
            raise ValueError("folder: {split} must be in both globs, images and masks, or neither")
        for glob in (images, masks):
            if glob.startswith(("/", "~")):
                raise ValueError(f"folder: '{glob}' must be relative to {root}")
        return images, masks
    for image_glob, mask_glob in LAYOUTS:
        if not image_files(root, image_glob.format(split="train")):
            continue
        for name in MASK_FOLDERS:
            candidate = mask_glob.replace("MASKS", name)
            if Path(root / candidate.format(split="train")).parent.is_dir():
                return image_glob, candidate
    raise FileNotFoundError(
        f"folder: found no images with masks in {root}. Put them into train/images and "
        "train/masks, val/images and val/masks; or all into images and masks, to be cut 8:1:1; or "
        "give two globs, e.g. images='photos/*.jpg' and masks='labels/*_mask.png'"
    )


def _class_file(root: Path, classes: str | Path | None) -> Path:
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
    raise FileNotFoundError(
        f"folder: {root} has no classes.csv, classes.json or classes.txt. For masks that hold ids "
        "write classes.txt with one class name a line, the first being id 0 (option first_id); for "
        "masks that hold colours write classes.csv with the first line name,r,g,b"
    )


def _pairs(root: Path, image_glob: str, mask_glob: str, problems: list[str]) -> Pairs:
    """Image and mask of every id; images without a mask, and doubles, go to `problems`."""
    images = _by_stars(root, image_glob, problems)
    masks = _by_stars(root, mask_glob, problems)
    for name in sorted(set(images) - set(masks)):
        image = images[name].relative_to(root)
        problems.append(f"{image}: no mask ({mask_glob} with '{name}' for the stars)")
    return {name: (images[name], masks[name]) for name in images if name in masks}


def _by_stars(root: Path, glob: str, problems: list[str]) -> dict[str, Path]:
    """The image files of a glob, by the text its stars matched."""
    # A regular expression with a group for every star, without the extension.
    parts = {"**/": "(?:(.*)/)?", "**": "(.*)", "*": "([^/]*)", "?": "([^/])"}
    tokens = re.split(r"(\*\*/|\*\*|\*|\?)", PurePosixPath(glob).with_suffix("").as_posix())
    pattern = re.compile("".join(parts.get(token, re.escape(token)) for token in tokens))
    found: dict[str, Path] = {}
    for path in image_files(root, glob):
        match = pattern.fullmatch(path.relative_to(root).with_suffix("").as_posix())
        name = "_".join(filter(None, match.groups())).replace("/", "_") if match else path.stem
        if name in found:
            other = found[name].relative_to(root)
            problems.append(f"{path.relative_to(root)}: has the same name as {other}")
        found.setdefault(name, path)
    return found


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
