"""PASCAL-Context: whole scenes on VOC 2010's photographs, in 59 classes and background.

    DIR/VOCdevkit/VOC2010/JPEGImages/ID.jpg
    DIR/VOCdevkit/VOC2010/ImageSets/Main/{train,val}.txt
    DIR/trainval/ID.mat               LabelMap: 1..459
    DIR/labels.txt                    a line "NUMBER: NAME" for each of the 459

DIR may also be VOCdevkit or VOC2010 itself; `trainval` and `labels.txt` are looked for in DIR, in
`pascal-context`, `pascal_context`, `context` or `PASCAL-Context` of it, and above VOC2010, or given
as the option `context`.

The 459 labels become the 59 classes by name, without spaces, as in the reference implementation;
of the 59, diningtable, bedcloth and clothes are called table, bedclothes and cloth in labels.txt.
Every other label is background, so that no pixel is void.

Splits: `train` (4998 images), `val` (5105), those of ImageSets/Main that have a label file;
`trainval` is understood by `open_source` as both. Of an incomplete tree the images present are
used, and a warning says how many of how many.

Mottaghi et al.: The role of context for object detection and semantic segmentation in the wild,
CVPR 2014.
"""

from __future__ import annotations

import functools
import re
from pathlib import Path
from typing import NamedTuple

import numpy as np
import tensorflow_datasets as tfds
from jaxtyping import UInt8

from fcn_jax.classes import table_from_names
from fcn_jax.data.files import (
    by_stem,
    complete,
    fingerprint,
    listed_ids,
    refuse_shared,
    shortfalls,
)
from fcn_jax.data.matlab import read_mat
from fcn_jax.data.records import Contents, ExampleBuilder, FilesConfig, image_and_label
from fcn_jax.data.voc import VOC

PASCAL_CONTEXT = table_from_names(
    f"""
    {", ".join(VOC.names)},
    bag, bed, bench, book, building, cabinet, ceiling, clothes, computer, cup, door, fence,
    floor, flower, food, grass, ground, keyboard, light, mountain, mouse, curtain, platform,
    sign, plate, road, rock, shelves, sidewalk, sky, snow, bedcloth, track, tree, truck, wall,
    water, window, wood
    """
)
"""PASCAL-Context: background and the 59 most frequent classes, VOC's twenty first."""

CONTEXT_URL = "https://cs.stanford.edu/~roozbeh/pascal-context/"
VOC_URL = "http://host.robots.ox.ac.uk/pascal/VOC/voc2010/VOCtrainval_03-May-2010.tar"
FULL_SIZES = {"train": 4998, "val": 5105}
CONTEXT_FOLDERS = (".", "pascal-context", "pascal_context", "context", "PASCAL-Context")
# What labels.txt calls a class, where that is not its name in the list of 59.
NAMES_IN_LABELS = {"diningtable": "table", "bedcloth": "bedclothes", "clothes": "cloth"}

Splits = dict[str, dict[str, dict[str, Path]]]
Lookup = UInt8[np.ndarray, "65536"]


class Roots(NamedTuple):
    """Where the files lie: the folder VOC2010, and the one that holds trainval and labels.txt."""

    devkit: Path
    context: Path


def config(manual_dir: Path | None, *, context: str | Path | None = None) -> FilesConfig:
    """Builder configuration for the files in `manual_dir`.

    Args:
        manual_dir: The folder of the data.
        context: The folder of `trainval` and `labels.txt`; None looks in the usual places.

    Raises:
        FileNotFoundError: if a folder does not have the layout; it says what to put where.
        ValueError: if the splits share images.
    """
    roots = _roots(manual_dir, context)
    splits, _ = find_splits(roots)
    files = {p for ids in splits.values() for paths in ids.values() for p in paths.values()}
    name = f"files-{fingerprint(files | {roots.context / 'labels.txt'})}"
    return FilesConfig(name=name, root=manual_dir, options={"context": context})


class PascalContext(ExampleBuilder):
    """PASCAL-Context: whole scenes in 59 classes and background."""

    def contents(self, config: FilesConfig, dl_manager: tfds.download.DownloadManager) -> Contents:
        del dl_manager
        roots = _roots(config.root, config.options["context"])
        splits, notes = find_splits(roots)
        lookup = label_lookup(roots.context / "labels.txt")
        read = functools.partial(read_context_label, lookup=lookup)
        entries = {
            split: [
                image_and_label(name, paths["image"], paths["label"], read)
                for name, paths in ids.items()
            ]
            for split, ids in splits.items()
        }
        source = f"{roots.devkit}, {roots.context}"
        return Contents(entries, {"label": PASCAL_CONTEXT}, source=source, notes=notes)


def label_lookup(path: Path) -> Lookup:
    """The label 0..59 of every number of `labels.txt`; those of no class are background, 0.

    Raises:
        ValueError: naming the file, if a line is not "NUMBER: NAME" or a class is missing.
    """
    numbers: dict[str, int] = {}
    for row, line in enumerate(path.read_text().splitlines(), start=1):
        if not line.strip():
            continue
        match = re.fullmatch(r"\s*(\d+)\s*:(.*)", line)
        if match is None or not 0 < int(match[1]) < 65536:
            raise ValueError(f"{path}, line {row}: expected 'NUMBER: NAME', got '{line}'")
        numbers.setdefault(match[2].replace(" ", "").strip(), int(match[1]))
    lookup = np.zeros(65536, np.uint8)
    missing = []
    for label, name in enumerate(PASCAL_CONTEXT.names[1:], start=1):
        number = numbers.get(NAMES_IN_LABELS.get(name, name))
        if number is None:
            missing.append(NAMES_IN_LABELS.get(name, name))
        else:
            lookup[number] = label
    if missing:
        raise ValueError(
            f"{path}: no label is called {', '.join(missing)}; take the labels.txt with 459 lines "
            f"from {CONTEXT_URL}"
        )
    return lookup


def read_context_label(path: Path, lookup: Lookup) -> UInt8[np.ndarray, "h w"]:
    """Labels 0..59 of a `.mat` file that holds numbers of labels.txt.

    Raises:
        ValueError: naming the file, if it cannot be read or holds numbers that are no labels.
    """
    ids = read_mat(path, "LabelMap")
    if ids.min() < 0 or ids.max() >= len(lookup):
        raise ValueError(f"{path}: LabelMap holds {ids.min()}..{ids.max()}, not 1..459")
    return lookup[ids]


def find_splits(roots: Roots) -> tuple[Splits, tuple[str, ...]]:
    """The files of every id in every split, and notes on what is missing.

    Raises:
        FileNotFoundError: if no image of any split is there.
        ValueError: if the splits share images.
    """
    folder = roots.devkit / "ImageSets/Main"
    lists = {split: listed_ids(folder / f"{split}.txt") for split in FULL_SIZES}
    refuse_shared("pascal_context", {f"Main/{split}.txt": ids for split, ids in lists.items()})
    files = {
        "image": by_stem(roots.devkit / "JPEGImages", (".jpg", ".jpeg", ".png")),
        "label": by_stem(roots.context / "trainval", (".mat",)),
    }
    splits = {split: complete(ids, files) for split, ids in lists.items()}
    notes = shortfalls(splits, FULL_SIZES)
    splits = {split: found for split, found in splits.items() if found}
    if not splits:
        raise FileNotFoundError(
            f"pascal_context: no id of {folder}/train.txt or val.txt has both "
            f"{roots.devkit}/JPEGImages/ID.jpg ({VOC_URL}) and {roots.context}/trainval/ID.mat "
            f"({CONTEXT_URL})"
        )
    return splits, notes


def _roots(manual_dir: Path | None, context: str | Path | None) -> Roots:
    """Where the files lie.

    Raises:
        FileNotFoundError: listing everything that is missing.
    """
    devkit = _devkit(manual_dir)
    place = None if context is None else Path(context).expanduser().absolute()
    bases = [place] if place else [manual_dir]
    if devkit is not None and place is None:
        bases += [devkit, devkit.parent, devkit.parent.parent]
    candidates = [base / folder for base in bases if base for folder in CONTEXT_FOLDERS]
    found = [path for path in candidates if (path / "trainval").is_dir()]
    missing = []
    if devkit is None:
        missing.append(f"VOCdevkit/VOC2010 with JPEGImages and ImageSets/Main, from {VOC_URL}")
    if not found:
        missing.append(
            f"the folder trainval of ID.mat, with labels.txt beside it, from {CONTEXT_URL}"
            + (f", in {place} (option context)" if place else "")
        )
    elif not (found[0] / "labels.txt").exists():
        missing.append(f"{found[0] / 'labels.txt'}, from {CONTEXT_URL}")
    if missing or devkit is None:
        raise FileNotFoundError(
            f"pascal_context: missing in {manual_dir or 'the folder to be given'} (manual_dir): "
            f"{'; and '.join(missing)}"
        )
    return Roots(devkit, found[0].resolve())


def _devkit(manual_dir: Path | None) -> Path | None:
    """The folder VOC2010, given it or a folder above it."""
    for place in ("VOCdevkit/VOC2010", "VOC2010", ".") if manual_dir else ():
        devkit = (manual_dir or Path()) / place
        if (devkit / "ImageSets/Main").is_dir():
            return devkit.resolve()
    return None
