"""SBD, the Semantic Boundaries Dataset, by itself: VOC's classes on 11355 photographs.

    DIR/img/ID.jpg
    DIR/cls/ID.mat          GTcls.Segmentation: ids 0..20; no void
    DIR/train.txt  DIR/val.txt

DIR is `benchmark_RELEASE/dataset` of the published archive; a folder above it may be given too.
To train on SBD and score on seg11valid, use `voc2012` with its split `sbd_train`.

Hariharan et al.: Semantic contours from inverse detectors, ICCV 2011.
"""

from __future__ import annotations

from pathlib import Path

from fcn_jax.data.files import complete, find_root, plan_files, split_lists
from fcn_jax.data.records import Plan
from fcn_jax.data.voc import READERS, SBD_PLACES, SBD_URL, VOC, sbd_files

FULL_SIZES = {"train": 8498, "val": 2857}


def plan(manual_dir: Path | None) -> Plan:
    """What the files in `manual_dir` make."""
    root = find_root(
        "sbd",
        manual_dir,
        (".", "dataset", *SBD_PLACES),
        ["cls"],
        url=SBD_URL,
        what="its folder benchmark_RELEASE/dataset, which holds img, cls, train.txt and val.txt,",
    )
    return plan_files(
        "sbd",
        complete(split_lists("sbd", root, FULL_SIZES), sbd_files(root)),
        READERS,
        {"label": VOC},
        source=str(root),
        needs=f"both img/ID.jpg and cls/ID.mat; they are in {SBD_URL}",
        full_sizes=FULL_SIZES,
    )
