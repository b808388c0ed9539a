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

Mottaghi et al.: The role of context for object detection and semantic segmentation in the wild,
CVPR 2014.
"""

from __future__ import annotations

import functools
import re
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from fcn_jax.classes import load_class_table
from fcn_jax.data.files import by_stem, complete, find_folder, package_file, plan_files, split_lists
from fcn_jax.data.images import IMAGE_SUFFIXES, encoded_image
from fcn_jax.data.matlab import read_mat
from fcn_jax.data.records import Plan

PASCAL_CONTEXT = load_class_table(package_file("pascal_context_classes.txt"))
"""PASCAL-Context: background and the 59 most frequent classes, VOC's twenty first."""

CONTEXT_URL = "https://cs.stanford.edu/~roozbeh/pascal-context/"
VOC_URL = "http://host.robots.ox.ac.uk/pascal/VOC/voc2010/VOCtrainval_03-May-2010.tar"
FULL_SIZES = {"train": 4998, "val": 5105}
CONTEXT_FOLDERS = (".", "pascal-context", "pascal_context", "context", "PASCAL-Context")
# What labels.txt calls a class, where that is not its name in the list of 59.
NAMES_IN_LABELS = {"diningtable": "table", "bedcloth": "bedclothes", "clothes": "cloth"}

Lookup = UInt8[np.ndarray, "65536"]


def plan(manual_dir: Path | None, *, context: str | Path | None = None) -> Plan:
    """What the files in `manual_dir` make.

    Args:
        context: The folder of `trainval` and `labels.txt`; None looks in the usual places.
    """
    devkit = find_folder([manual_dir], ("VOCdevkit/VOC2010", "VOC2010", "."), ["ImageSets/Main"])
    given = None if context is None else Path(context).expanduser().absolute()
    bases = [given] if given else [manual_dir]
    if devkit is not None and given is None:
        bases += [devkit, devkit.parent, devkit.parent.parent]
    labelled = find_folder(bases, CONTEXT_FOLDERS, ["trainval"])
    missing = [] if devkit else [f"VOCdevkit/VOC2010 with ImageSets/Main, from {VOC_URL}"]
    if labelled is None:
        place = f"{given} (option context): " if given else ""
        missing.append(f"{place}trainval/ID.mat and labels.txt, from {CONTEXT_URL}")
    elif not (labelled / "labels.txt").exists():
        missing.append(f"{labelled / 'labels.txt'}, from {CONTEXT_URL}")
    if missing or devkit is None or labelled is None:
        raise FileNotFoundError(
            f"pascal_context: missing in {manual_dir or 'the folder to be given'} (manual_dir): "
            f"{'; and '.join(missing)}"
        )
    lists = split_lists("pascal_context", devkit / "ImageSets/Main", FULL_SIZES)
    files = {
        "image": by_stem(devkit / "JPEGImages", IMAGE_SUFFIXES),
        "label": by_stem(labelled / "trainval", (".mat",)),
    }
    names = labelled / "labels.txt"
    read = functools.partial(read_context_label, lookup=label_lookup(names))
    return plan_files(
        "pascal_context",
        complete(lists, files),
        {"image": encoded_image, "label": read},
        {"label": PASCAL_CONTEXT},
        source=f"{devkit}, {labelled}",
        needs=f"both JPEGImages/ID.jpg ({VOC_URL}) and trainval/ID.mat ({CONTEXT_URL})",
        full_sizes=FULL_SIZES,
        more=[names],
    )


def label_lookup(path: Path) -> Lookup:
    """The label 0..59 of every number of `labels.txt`; those of no class are background, 0."""
    numbers: dict[str, int] = {}
    for row, line in enumerate(path.read_text().splitlines(), start=1):
        if not line.strip():
            continue
        match = re.fullmatch(r"\s*(\d+)\s*:(.*)", line)
        if match is None or not 0 < int(match[1]) < 65536:
            raise ValueError(f"{path}, line {row}: expected 'NUMBER: NAME', got '{line}'")
        numbers.setdefault(match[2].replace(" ", "").strip(), int(match[1]))
    called = [NAMES_IN_LABELS.get(name, name) for name in PASCAL_CONTEXT.names[1:]]
    if missing := [name for name in called if name not in numbers]:
        raise ValueError(
            f"{path}: no label is called {', '.join(missing)}; take the labels.txt with 459 lines "
            f"from {CONTEXT_URL}"
        )
    lookup = np.zeros(65536, np.uint8)
    lookup[[numbers[name] for name in called]] = range(1, len(called) + 1)
    return lookup


def read_context_label(path: Path, lookup: Lookup) -> UInt8[np.ndarray, "h w"]:
    """Labels 0..59 of a `.mat` file that holds numbers of labels.txt."""
    ids = read_mat(path, "LabelMap")
    if ids.min() < 0 or ids.max() >= len(lookup):
        raise ValueError(f"{path}: LabelMap holds {ids.min()}..{ids.max()}, not 1..459")
    return lookup[ids]
