"""Layouts: how images and masks lie in a person's folder, and which of them belong together.

A finder looks at a folder and returns what it `Found`, or None where its layout is not there.
`fcn_jax.data.folder.FINDERS` holds all, in the order in which they are tried. Nothing is decoded
here.
"""

from __future__ import annotations

import collections
import dataclasses
import itertools
import os
import re
import unicodedata
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import TypeAlias

import numpy as np
from jaxtyping import Integer

from fcn_jax.classes import ClassTable
from fcn_jax.data.files import folders_below
from fcn_jax.data.images import IMAGE_SUFFIXES, skipped_files

SPLITS: Mapping[str, Sequence[str]] = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation"),
    "test": ("test", "testing"),
}
"""The splits, and the names of folders and lists that mean them."""

UNCUT = ""
"""Stands for a split where images have none yet."""

JPEG_SUFFIXES = (".jpg", ".jpeg", ".jpe", ".jfif")

Told: TypeAlias = list[tuple[str, str]]
"""What a person should know of objects: a text, and the object of which it is true."""

Drawing: TypeAlias = Callable[[tuple[int, int], Told], Integer[np.ndarray, "h w"]]
"""Makes the ids of an image of a (height, width), or raises a `DrawingError`.

What is odd about an object, it adds to what is `Told`.
"""


class DrawingError(ValueError):
    """What is wrong with an annotation, and `where`: its file and what it is called there."""

    def __init__(self, what: str, where: str) -> None:
        super().__init__(f"{where}: {what}")
        self.what, self.where = what, where


Pairs: TypeAlias = dict[str, tuple[Path, Path | Drawing]]
"""Image and mask of every id."""


@dataclasses.dataclass
class Found:
    """What lies in a folder, before any picture has been read.

    Attributes:
        layout: The layout in words, for the check.
        splits: Images with their masks by split; under `UNCUT` those that have no split.
        unlabeled: Images that have no mask.
        leftover: Masks that have no image.
        classes: The classes of the masks, where the layout brings them; None: the class file's.
        colored: Whether the colours of `classes` are those of colour masks.
        problems: What is wrong, each with the file that it is true of.
        notes: What a person should know.
        told: What of single objects; drawings tell more.
        files: Further files on which the prepared copy depends.
        proposals: Options with which more may be found.
    """

    layout: str
    splits: dict[str, Pairs] = dataclasses.field(default_factory=dict)
    unlabeled: list[Path] = dataclasses.field(default_factory=list)
    leftover: list[Path] = dataclasses.field(default_factory=list)
    classes: ClassTable | None = None
    colored: bool = False
    problems: list[tuple[str, Path]] = dataclasses.field(default_factory=list)
    notes: list[str] = dataclasses.field(default_factory=list)
    told: Told = dataclasses.field(default_factory=list)
    files: list[Path] = dataclasses.field(default_factory=list)
    proposals: dict[str, str] = dataclasses.field(default_factory=dict)

    def add(self, split: str, images: Mapping[str, Path], masks: Mapping[str, Path]) -> None:
        """Adds the images and masks of a split that share a name, and those left over."""
        pairs = {name: (images[name], masks[name]) for name in images if name in masks}
        if pairs:
            self.splits.setdefault(split, {}).update(pairs)
        self.unlabeled += [path for name, path in images.items() if name not in masks]
        self.leftover += [path for name, path in masks.items() if name not in images]


Finder: TypeAlias = Callable[[Path, ClassTable | None], Found | None]
"""Looks for its layout in a folder; the table is that of the person's class file, if any."""


def files_below(root: Path) -> list[Path]:
    """The files of a folder and of those below it, in order, without hidden ones."""
    found = []
    for folder, folders, names in folders_below(root):
        folders[:] = [name for name in folders if not name.startswith((".", "__MACOSX"))]
        found += [Path(folder, name) for name in names if not name.startswith(".")]
    return sorted(found, key=lambda path: path.parts)  # paths themselves compare slowly


def plain(path: PurePosixPath | str) -> str:
    """A path or name with Unicode's composed letters; macOS writes them decomposed."""
    return unicodedata.normalize("NFC", str(path))


def aside(root: Path, files: Iterable[Path], found: Found) -> list[str]:
    """Notes about those files of a folder that are none of what is `found` in it, and why."""
    pairs = [pair for ids in found.splits.values() for pair in ids.values()]
    used = {path for pair in pairs for path in pair if isinstance(path, Path)}
    used |= {*found.unlabeled, *found.leftover, *found.files}
    places = {path.parent for path in used}
    groups: dict[tuple[str, str], list[Path]] = collections.defaultdict(list)
    for path in files:
        if path not in used and path.suffix.lower() in IMAGE_SUFFIXES:
            groups[path.parent.relative_to(root).as_posix(), "not of this layout"].append(path)
    for folder in sorted(places):
        for path, why in skipped_files(folder).items():
            if path not in used:
                groups[folder.relative_to(root).as_posix(), why].append(path)
    return [
        f"{folder}: left out {len(paths)} files, such as {paths[0].name}: {why}"
        for (folder, why), paths in groups.items()
    ]


# ======================================================================== globs


def from_globs(root: Path, images: str, masks: str) -> Found:
    """Images and masks of two globs relative to `root`, where the stars matched the same text.

    Where both hold `{split}`, it stands for the names of `SPLITS`.

    Raises:
        ValueError: if only one holds `{split}`, or a glob leads out of the folder.
    """
    if ("{split}" in images) != ("{split}" in masks):
        raise ValueError("folder: {split} must be in both globs, images and masks, or neither")
    images, masks = _inside(root, images), _inside(root, masks)
    found = Found(f"images {images}, masks {masks}")
    files = files_below(root)
    splits = SPLITS if "{split}" in images else {UNCUT: ("",)}
    for split, names in splits.items():
        for name in names:
            of_images, of_masks = (glob.replace("{split}", name) for glob in (images, masks))
            found.add(
                split,
                _by_stars(root, files, of_images, IMAGE_SUFFIXES, found),
                _by_stars(root, files, of_masks, IMAGE_SUFFIXES, found),
            )
    return found


def _inside(root: Path, glob: str) -> str:
    """The glob relative to `root`."""
    path = Path(os.path.normpath(root / Path(glob).expanduser()))
    if not path.is_relative_to(root):
        raise ValueError(f"folder: '{glob}' must be relative to {root}, and lie in it")
    return path.relative_to(root).as_posix()


def _by_stars(
    root: Path, files: Iterable[Path], glob: str, suffixes: Sequence[str], found: Found
) -> dict[str, Path]:
    """The files of a glob that have one of the suffixes, by the text that its stars matched."""
    # A regular expression with a group for every star, without the extension.
    parts = {"**/": "(?:(.*)/)?", "**": "(.*)", "*": "([^/]*)", "?": "([^/])"}
    without_suffix = PurePosixPath(plain(glob)).with_suffix("").as_posix()
    tokens = re.split(r"(\*\*/|\*\*|\*|\?|\[[^]]+\])", without_suffix)
    pattern = re.compile(
        "".join(
            parts.get(token) or (f"({token})" if token.startswith("[") else re.escape(token))
            for token in tokens
        )
    )
    suffix = PurePosixPath(glob).suffix.lower() or ".*"
    named = {}
    for path in files:
        if path.suffix.lower() not in suffixes or not fnmatchcase(path.suffix.lower(), suffix):
            continue
        stem = path.relative_to(root).with_suffix("").as_posix()
        if match := pattern.fullmatch(plain(stem)):
            named[path] = "_".join(filter(None, match.groups())) or plain(path.stem)
    return by_name(named, found)


def by_name(names: Mapping[Path, str], found: Found) -> dict[str, Path]:
    """Files by their names, folders joined by _; doubles are problems of what is `found`."""
    files: dict[str, Path] = {}
    for path, name in names.items():
        name = name.replace("/", "_")
        if name in files:
            found.problems.append((f"has the same name as {files[name].name}", path))
        files.setdefault(name, path)
    return files


# ======================================================================== folders of usual names

IMAGE_FOLDERS = ("images", "image", "imgs", "img", "photos", "jpegimages")
MASK_FOLDERS = (
    *("masks", "mask", "labels", "label", "annotations", "annotation", "segmentationclass"),
    *("gt", "ground_truth", "groundtruth", "segmentation", "segmentations"),
)
TEMPLATES = (
    ("{split}/IMAGES", "{split}/MASKS"),
    ("IMAGES/{split}", "MASKS/{split}"),
    ("{split}_IMAGES", "{split}_MASKS"),
    ("IMAGES_{split}", "MASKS_{split}"),
    ("{split}", "{split}annot"),
    ("{split}", "{split}_MASKS"),
    ("IMAGES", "MASKS"),
    ("{split}/IMAGES", "{split}/IMAGES"),
    ("IMAGES/{split}", "IMAGES/{split}"),
    ("{split}", "{split}"),
    ("IMAGES", "IMAGES"),
    ("", ""),
)
"""Folders of images and of masks. Where they are one, the ends of names tell masks."""

MASK_ENDS = (
    *("", "_mask", "_masks", "_gt", "_seg", "_segmentation", "_label", "_labels", "_L"),
    *("-mask", "-seg", "-label", ".mask"),
)
IMAGE_ENDS = ("", "_image", "_img", "_rgb", "_sat")


def find_folders(root: Path, table: ClassTable | None) -> Found | None:
    """Images and masks in folders of usual names, or side by side with usual ends of names."""
    found = next((found for found in _in_folders(root) if found.splits), None)
    if found:
        found.proposals = {}
    return found


def find_unmatched(root: Path, table: ClassTable | None) -> Found | None:
    """Images and masks in folders of usual names, none of which belong together."""
    found = next((found for found in _in_folders(root) if found.leftover and found.unlabeled), None)
    if found is None:
        return None
    images, masks = ({plain(p.stem) for p in paths} for paths in (found.unlabeled, found.leftover))
    added, taken = _affix(images, masks), _affix(masks, images)
    for name, (before, after) in (("masks", added), ("images", taken)):
        if before or after:
            glob = found.proposals[name]
            found.proposals[name] = f"{glob.removesuffix('*')}{before}*{after}.*"
            return found
    found.proposals = {}
    return found


def _affix(stems: Collection[str], longer: Collection[str]) -> tuple[str, str]:
    """What stands before and after most of some names in longer ones; ("", "") if nothing does."""
    affixes: collections.Counter[tuple[str, str]] = collections.Counter()
    for stem in sorted(stems)[:20]:
        for name in longer:
            before, there, after = name.partition(stem)
            if there and name != stem:
                affixes[before, after] += 1
    if not affixes:
        return "", ""
    before, after = max(affixes, key=lambda affix: (affixes[affix], affix))
    fits = sum(f"{before}{stem}{after}" in longer for stem in stems)
    return (before, after) if 2 * fits > len(stems) else ("", "")


def _in_folders(root: Path) -> Iterable[Found]:
    """What there is for every template of folders that are there."""
    files = files_below(root)
    inside = {file.parent for file in files}
    inside |= {up for folder in inside for up in folder.parents}
    inside = {folder for folder in inside if root in folder.parents}
    folders = {plain(folder.relative_to(root).as_posix()).lower(): folder for folder in inside}
    folders[""] = root
    for image_place, mask_place in TEMPLATES:
        for image_name, mask_name in itertools.product(
            IMAGE_FOLDERS if "IMAGES" in image_place else [""],
            MASK_FOLDERS if "MASKS" in mask_place else [""],
        ):
            places = {
                (split, name): [
                    place.format(split=name)
                    .replace("IMAGES", image_name)
                    .replace("MASKS", mask_name)
                    for place in (image_place, mask_place)
                ]
                for split, names in (SPLITS if "{split}" in image_place else {UNCUT: [""]}).items()
                for name in names
            }
            globs = [
                f"{place.replace('IMAGES', image_name).replace('MASKS', mask_name)}/*".lstrip("/")
                for place in (image_place, mask_place)
            ]
            found = Found("", proposals=dict(zip(("images", "masks"), globs, strict=True)))
            words = [
                _add_folders(found, split, files, folders[images], folders[masks], root)
                for (split, _), (images, masks) in places.items()
                if images in folders and masks in folders
            ]
            found.layout = "; ".join(filter(None, words))
            if found.layout:
                yield found


def _add_folders(
    found: Found, split: str, files: Sequence[Path], images_in: Path, masks_in: Path, root: Path
) -> str:
    """Adds the images and masks of two folders; returns them in words, "" if there are none."""
    beside = images_in == masks_in
    images = stems(files, images_in, IMAGE_SUFFIXES)
    masks = stems(files, masks_in, IMAGE_SUFFIXES)
    best, most = ("", ""), 0
    for ends in itertools.product(IMAGE_ENDS, MASK_ENDS):
        of_images, of_masks = _chosen(images, masks, ends, beside)
        if (count := len(set(of_images.values()) & set(of_masks.values()))) > most:
            best, most = ends, count
        if most == min(len(images), len(masks)):
            break  # no other ends give more
    if not images or not masks or (beside and not most):
        return ""
    of_images, of_masks = _chosen(images, masks, best, beside)
    found.add(split, by_name(of_images, found), by_name(of_masks, found))
    aside = [path for path in images if path not in of_images and path not in of_masks]
    names = ["X.jpg", "X.png"] if beside and not best[1] else [f"X{end}" for end in best]
    image_place, mask_place = (
        "." if folder == root else folder.relative_to(root).as_posix()
        for folder in (images_in, masks_in)
    )
    if not beside:
        found.unlabeled += aside
        found.leftover += [path for path in masks if path not in of_masks]
    elif aside:
        found.notes.append(
            f"{image_place}: {len(aside)} files are neither {names[0]} nor {names[1]}, "
            f"such as {aside[0].name}"
        )
    named = f" ({names[0]} with {names[1]})" if any(best) or beside else ""
    return f"images in {image_place}, masks in {mask_place}{named}" + (split and f": {split}")


def stems(files: Sequence[Path], folder: Path, suffixes: Sequence[str]) -> dict[Path, str]:
    """Paths without suffix, relative to a folder, of the files below it with some suffixes."""
    start = f"{folder}{os.sep}"
    return {
        path: plain(PurePosixPath(str(path)[len(start) :]).with_suffix(""))
        for path in files
        if path.suffix.lower() in suffixes and str(path).startswith(start)
    }


def _chosen(
    images: Mapping[Path, str], masks: Mapping[Path, str], ends: tuple[str, str], beside: bool
) -> tuple[dict[Path, str], dict[Path, str]]:
    """The images and masks that end so, by what comes before; side by side no file is both."""

    def ending(stems: Mapping[Path, str], end: str) -> dict[Path, str]:
        return {
            path: stem.removesuffix(end)
            for path, stem in stems.items()
            if stem.endswith(end) and path.stem != end
        }

    of_images, of_masks = ending(images, ends[0]), ending(masks, ends[1])
    if beside and not ends[1]:  # a JPEG is no mask: X.jpg with X.png
        of_images = {path: s for path, s in of_images.items() if _is_jpeg(path)}
        of_masks = {path: s for path, s in of_masks.items() if not _is_jpeg(path)}
    elif beside:
        of_images = {path: stem for path, stem in of_images.items() if path not in of_masks}
    return of_images, of_masks


def _is_jpeg(path: Path) -> bool:
    return path.suffix.lower() in JPEG_SUFFIXES
