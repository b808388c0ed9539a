"""`folder`: a person's own images and masks, without writing code.

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

    python -m fcn_jax.data.folder DIR
"""

from __future__ import annotations

import argparse
import concurrent.futures
import dataclasses
import hashlib
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from jaxtyping import Int64, UInt8

from fcn_jax.classes import VOID, ClassTable, has_colors, load_class_table
from fcn_jax.data.files import fingerprint
from fcn_jax.data.images import LabelKind, image_files
from fcn_jax.data.records import Contents, Plan, image_and_label, read_labels

SPLITS = ("train", "val", "test")
MASK_FOLDERS = ("masks", "labels", "annotations")
LAYOUTS = (
    ("{split}/images/*", "{split}/MASKS/*"),
    ("images/{split}/*", "MASKS/{split}/*"),
    ("images/*", "MASKS/*"),
)
CLASS_FILES = ("classes.csv", "classes.json", "classes.txt")
SHOWN_PROBLEMS = 100


@dataclasses.dataclass(frozen=True)
class Found:
    """What lies in a folder, before any file has been read.

    Attributes:
        root: The folder.
        globs: The globs of images and masks.
        splits: Image and mask of every id in every split.
        classes: The class table.
        class_file: Where it came from.
        colors: The class table where its colours may stand in masks, else None.
        mask_kind: Whether masks hold ids or colours.
        problems: What is wrong already.
    """

    root: Path
    globs: tuple[str, str]
    splits: Mapping[str, Mapping[str, tuple[Path, Path]]]
    classes: ClassTable
    class_file: Path
    colors: ClassTable | None
    mask_kind: LabelKind
    problems: tuple[str, ...]

    def read_mask(self, path: Path) -> UInt8[np.ndarray, "h w"]:
        """Labels of a mask file: 0..C-1, or 255 for void."""
        return read_labels(path, self.classes, self.mask_kind, self.colors)


def plan(
    manual_dir: Path | None,
    *,
    classes: str | Path | None = None,
    images: str | None = None,
    masks: str | None = None,
    mask_kind: LabelKind = "auto",
    first_id: int = 0,
    void: Sequence[int] = (),
    seed: int = 0,
) -> Plan:
    """Plan the data set.

    Args:
        manual_dir: The folder of the data.
        classes: The class file, relative to `manual_dir` or the working directory.
        images: Glob of the images, relative to `manual_dir`; may hold `{split}`.
        masks: Glob of the masks.
        mask_kind: "index": masks hold ids; "color": colours, also in grey and palette files;
            "auto": RGB files hold colours, all others ids.
        first_id: The id in masks of the first class, where the class file gives no ids.
        void: Ids in masks that are void, beside 255.
        seed: Of the cut into train, val and test, for layouts without splits.

    Raises:
        FileNotFoundError: if there are no images, masks or classes; the message says what to put
            where.
        ValueError: if the class file or an option cannot be understood.
    """
    options = {
        "classes": classes,
        "images": images,
        "masks": masks,
        "mask_kind": mask_kind,
        "first_id": first_id,
        "void": tuple(void),
        "seed": seed,
    }
    found = find(manual_dir, **options)
    pairs = [pair for split in found.splits.values() for pair in split.values()]
    files = {path for pair in pairs for path in pair} | {found.class_file}

    def contents() -> Contents:
        problems, _ = check(found)
        if problems:
            raise ValueError(_listed(problems, found.root))
        splits = {
            split: [
                image_and_label(name, image, mask, found.read_mask)
                for name, (image, mask) in pairs.items()
            ]
            for split, pairs in found.splits.items()
        }
        return Contents(splits, {"label": found.classes}, source=str(found.root))

    return Plan(f"files-{fingerprint(files, options)}", contents)


def find(
    root: Path | None,
    *,
    classes: str | Path | None = None,
    images: str | None = None,
    masks: str | None = None,
    mask_kind: LabelKind = "auto",
    first_id: int = 0,
    void: Sequence[int] = (),
    seed: int = 0,
) -> Found:
    """Find images, masks and classes of a folder, without reading a picture. See `plan`."""
    if root is None:
        raise FileNotFoundError("folder: give the folder of your images and masks as manual_dir")
    if mask_kind not in ("auto", "index", "color"):
        raise ValueError(f"folder: mask_kind '{mask_kind}' is not one of auto, index, color")
    globs = _globs(root, images, masks)
    class_file = _class_file(root, classes)
    table = load_class_table(class_file, first_id).with_void(void)
    problems: list[str] = []
    if "{split}" in globs[0]:
        splits = {
            split: _pairs(
                root, globs[0].format(split=split), globs[1].format(split=split), problems
            )
            for split in SPLITS
        }
    else:
        splits = _cut(_pairs(root, *globs, problems), seed)
    if not splits["train"] and not problems:
        raise FileNotFoundError(f"folder: {root} has no image {globs[0].format(split='train')}")
    splits = {split: pairs for split, pairs in splits.items() if pairs}
    colors = table if mask_kind == "color" or has_colors(class_file) else None
    return Found(root, globs, splits, table, class_file, colors, mask_kind, tuple(problems))


def check(found: Found) -> tuple[list[str], Int64[np.ndarray, "256"]]:
    """Read every image and mask once.

    Returns:
        All problems, each naming its file; and how many pixels have each label.
    """
    from tensorflow_datasets.core.utils import tqdm_utils

    problems = list(found.problems)
    pixels = np.zeros(256, np.int64)
    owners: dict[str, tuple[str, Path]] = {}
    tasks = [
        (split, image, mask) for split, ids in found.splits.items() for image, mask in ids.values()
    ]
    with concurrent.futures.ThreadPoolExecutor(4) as pool:  # decoding leaves Python's lock
        results = pool.map(lambda task: _examine(found, *task[1:]), tasks)
        bar = tqdm_utils.tqdm(results, total=len(tasks), desc="folder check", unit=" images")
        for (split, image, _), (problem, counts, digest) in zip(tasks, bar, strict=True):
            pixels += counts
            if problem:
                problems.append(_relative(problem, found.root))
            other_split, other = owners.setdefault(digest, (split, image))
            if digest and other_split != split:
                problems.append(
                    f"{image.relative_to(found.root)}: the same image as "
                    f"{other.relative_to(found.root)}, in {split} and in {other_split}"
                )
    if not problems and np.count_nonzero(pixels[:VOID]) < 2 and found.classes.num_classes > 1:
        problems.append(_one_class(found, pixels))
    return problems, pixels


def _examine(found: Found, image: Path, mask: Path) -> tuple[str, Int64[np.ndarray, "256"], str]:
    """The problem of a pair or "", pixels of each label, and a digest of the image's pixels."""
    try:
        parts: Any = image_and_label("", image, mask, found.read_mask).load()
    except (ValueError, OSError) as error:
        return str(error), np.zeros(256, np.int64), ""
    counts = np.bincount(parts["label"].ravel(), minlength=256)
    return "", counts, hashlib.sha256(parts["image"].content).hexdigest()


def _one_class(found: Found, pixels: Int64[np.ndarray, "256"]) -> str:
    present = [found.classes.names[i] for i in np.flatnonzero(pixels[:VOID])]
    text = f"all pixels of all masks are {present[0] if present else 'void'}"
    if pixels[VOID]:
        text += (
            f" or void ({VOID}). If {VOID} is a class in your masks, give the classes' colours in "
            "classes.csv (name,r,g,b, e.g. background,0,0,0 and thing,255,255,255) and the option "
            "mask_kind='color'"
        )
    return text


def _globs(root: Path, images: str | None, masks: str | None) -> tuple[str, str]:
    """The globs given, or those of the first layout that is there."""
    if (images is None) != (masks is None):
        raise ValueError("folder: give both globs, images and masks, or neither")
    if images is not None and masks is not None:
        if ("{split}" in images) != ("{split}" in masks):
            raise ValueError("folder: {split} must be in both globs, images and masks, or neither")
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
        "give two globs, e.g. images='photos/*.jpg' and masks='truth/*_mask.png'"
    )


def _class_file(root: Path, classes: str | Path | None) -> Path:
    candidates = CLASS_FILES if classes is None else (classes,)
    places = [root / Path(name).expanduser() for name in candidates]
    if classes is not None:
        places.append(Path(classes).expanduser().absolute())
    for path in places:
        if path.is_file():
            return path
    if classes is not None:
        raise FileNotFoundError(f"folder: there is no class file {places[0]} or {places[1]}")
    raise FileNotFoundError(
        f"folder: {root} has no classes.csv, classes.json or classes.txt. For masks that hold ids "
        "write classes.txt with one class name a line, the first being id 0 (option first_id); for "
        "masks that hold colours write classes.csv with the first line name,r,g,b"
    )


def _pairs(
    root: Path, image_glob: str, mask_glob: str, problems: list[str]
) -> dict[str, tuple[Path, Path]]:
    """Image and mask of every id; images without a mask, and doubles, go to `problems`."""
    images = _by_stars(root, image_glob, problems)
    masks = _by_stars(root, mask_glob, problems)
    for name in sorted(set(images) - set(masks)):
        image = images[name].relative_to(root)
        problems.append(f"{image}: no mask ({mask_glob} with '{name}' for the stars)")
    return {name: (images[name], masks[name]) for name in images if name in masks}


def _by_stars(root: Path, glob: str, problems: list[str]) -> dict[str, Path]:
    """The image files of a glob, by the text its stars matched."""
    pattern = _star_pattern(glob)
    found: dict[str, Path] = {}
    for path in image_files(root, glob):
        match = pattern.fullmatch(path.relative_to(root).with_suffix("").as_posix())
        name = "_".join(filter(None, match.groups())).replace("/", "_") if match else path.stem
        if name in found:
            other = found[name].relative_to(root)
            problems.append(f"{path.relative_to(root)}: has the same name as {other}")
        found.setdefault(name, path)
    return found


def _star_pattern(glob: str) -> re.Pattern[str]:
    """A regular expression with a group for every star of a glob, without the extension."""
    parts = {"**/": "(?:(.*)/)?", "**": "(.*)", "*": "([^/]*)", "?": "([^/])"}
    without_suffix = PurePosixPath(glob).with_suffix("").as_posix()
    tokens = re.split(r"(\*\*/|\*\*|\*|\?)", without_suffix)
    return re.compile("".join(parts.get(token, re.escape(token)) for token in tokens))


def _cut(pairs: dict[str, tuple[Path, Path]], seed: int) -> dict[str, dict[str, tuple[Path, Path]]]:
    """Cut 8:1:1 into train, val and test, at least one each; fewer than three are all train."""
    names = sorted(pairs)
    order = np.random.default_rng(seed).permutation(len(names))
    tenth = max(1, round(len(names) / 10))
    places = {"val": order[:tenth], "test": order[tenth : 2 * tenth], "train": order[2 * tenth :]}
    if len(names) < 3:
        places = {"train": order, "val": order[:0], "test": order[:0]}
    return {
        split: {names[i]: pairs[names[i]] for i in sorted(places[split].tolist())}
        for split in SPLITS
    }


def _relative(message: str, root: Path) -> str:
    return message.replace(f"{root}/", "")


def _listed(problems: Sequence[str], root: Path) -> str:
    """One message of all problems."""
    lines = [f"  {problem}" for problem in problems[:SHOWN_PROBLEMS]]
    if len(problems) > SHOWN_PROBLEMS:
        lines.append(f"  ... and {len(problems) - SHOWN_PROBLEMS} more; all are listed by")
        lines.append(f"  python -m fcn_jax.data.folder {root}")
    count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
    return "\n".join([f"folder: {count} in {root}:", *lines])


def describe(found: Found, pixels: Int64[np.ndarray, "256"]) -> str:
    """What was found: splits, and each class's share of the pixels."""
    sizes = ", ".join(f"{split} {len(pairs)}" for split, pairs in found.splits.items())
    lines = [f"{found.root}: images {found.globs[0]}, masks {found.globs[1]}: {sizes}"]
    lines.append(f"classes from {found.class_file}, in % of the pixels:")
    total = max(int(pixels.sum()), 1)
    names: dict[int, str] = {**dict(enumerate(found.classes.names)), VOID: "void"}
    lines += [f"  {label:3} {100 * pixels[label] / total:6.2f}  {names[label]}" for label in names]
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Check a folder and print all problems; returns the number for the shell, 0 for none."""
    parser = argparse.ArgumentParser(
        prog="python -m fcn_jax.data.folder",
        description="Check your own images and masks before training.",
    )
    parser.add_argument("dir", type=Path, help="the folder of the data (manual_dir)")
    parser.add_argument("--classes", help="class file: csv, json, or one name a line")
    parser.add_argument("--images", help="glob of the images, relative to DIR")
    parser.add_argument("--masks", help="glob of the masks, relative to DIR")
    parser.add_argument("--mask_kind", default="auto", help="auto, index or color")
    parser.add_argument("--first_id", type=int, default=0, help="id of the first class in masks")
    parser.add_argument("--void", type=int, nargs="*", default=(), help="further void ids")
    parser.add_argument("--seed", type=int, default=0, help="of the cut 8:1:1")
    options: dict[str, Any] = vars(parser.parse_args(argv))
    try:
        found = find(options.pop("dir").expanduser().absolute(), **options)
    except (ValueError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    problems, pixels = check(found)
    print(describe(found, pixels))
    for problem in problems:
        print(f"problem: {problem}", file=sys.stderr)
    print(f"{len(problems)} problems" if problems else "no problems", file=sys.stderr)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
