"""SBD, the Semantic Boundaries Dataset, by itself: VOC's classes on 11355 photographs.

    DIR/img/ID.jpg
    DIR/cls/ID.mat          GTcls.Segmentation: ids 0..20; no void
    DIR/train.txt  DIR/val.txt

DIR is `benchmark_RELEASE/dataset` of the published archive; a folder above it may be given too.
Splits: `train` (8498 images), `val` (2857). Of an incomplete tree the images present are used, and
a warning says how many of how many. To train on SBD and score on seg11valid, use `voc2012` with its
split `sbd_train`.

Hariharan et al.: Semantic contours from inverse detectors, ICCV 2011.
"""

from __future__ import annotations

from pathlib import Path

from fcn_jax.data.files import complete, find_folder, plan_files, split_lists
from fcn_jax.data.records import Plan
from fcn_jax.data.voc import READERS, SBD_PLACES, SBD_URL, VOC, sbd_files

FULL_SIZES = {"train": 8498, "val": 2857}


def plan(manual_dir: Path | None) -> Plan:
    """Plan the data set from the files in `manual_dir`.

    Raises:
        FileNotFoundError: if the folder does not have the layout; it says what to put where.
        ValueError: if the splits share images.
    """
    root = find_folder([manual_dir], (".", "dataset", *SBD_PLACES), ["cls"])
    if root is None:
        there = f"{manual_dir} holds no folder cls with ID.mat" if manual_dir else "not found"
        raise FileNotFoundError(
            f"sbd: {there}. Download {SBD_URL}, extract it, and give the place of its folder "
            "benchmark_RELEASE/dataset, which holds img, cls, train.txt and val.txt, as manual_dir"
        )
    lists = split_lists("sbd", root, FULL_SIZES)
    return plan_files(
        complete(lists, sbd_files(root)),
        READERS,
        {"label": VOC},
        source=str(root),
        missing=f"sbd: {root} holds no id of train.txt or val.txt with both img/ID.jpg and "
        f"cls/ID.mat. They are in benchmark_RELEASE/dataset of {SBD_URL}",
        full_sizes=FULL_SIZES,
    )
