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

import tensorflow_datasets as tfds

from fcn_jax.data.files import complete, fingerprint, listed_ids, refuse_shared, shortfalls
from fcn_jax.data.records import Contents, ExampleBuilder, FilesConfig
from fcn_jax.data.voc import SBD_PLACES, SBD_URL, Splits, all_files, sbd_files, voc_contents

FULL_SIZES = {"train": 8498, "val": 2857}


def config(manual_dir: Path | None) -> FilesConfig:
    """Builder configuration for the files in `manual_dir`.

    Raises:
        FileNotFoundError: if the folder does not have the layout; it says what to put where.
        ValueError: if the splits share images.
    """
    root = _root(manual_dir)
    splits, _ = _find_splits(root)
    return FilesConfig(name=f"files-{fingerprint(all_files(splits))}", root=root)


class Sbd(ExampleBuilder):
    """SBD: VOC's twenty classes of objects and background, on all of VOC 2011's photographs."""

    def contents(self, config: FilesConfig, dl_manager: tfds.download.DownloadManager) -> Contents:
        del dl_manager
        root = _root(config.root)
        splits, notes = _find_splits(root)
        return voc_contents(splits, str(root), notes)


def _root(manual_dir: Path | None) -> Path:
    """The folder that holds `cls`: the given one, or one of the usual ones in it."""
    for place in (".", "dataset", *SBD_PLACES) if manual_dir else ():
        if (root := (manual_dir or Path()) / place / "cls").is_dir():
            return root.parent.resolve()
    there = f"{manual_dir} holds no folder cls with ID.mat" if manual_dir else "not found"
    raise FileNotFoundError(
        f"sbd: {there}. Download {SBD_URL}, extract it, and give the place of its folder "
        "benchmark_RELEASE/dataset, which holds img, cls, train.txt and val.txt, as manual_dir"
    )


def _find_splits(root: Path) -> tuple[Splits, tuple[str, ...]]:
    lists = {split: listed_ids(root / f"{split}.txt") for split in FULL_SIZES}
    refuse_shared("sbd", {f"{split}.txt": ids for split, ids in lists.items()})
    images, labels = sbd_files(root)
    splits = {
        split: complete(ids, {"image": images, "label": labels}) for split, ids in lists.items()
    }
    notes = shortfalls(splits, FULL_SIZES)
    splits = {split: found for split, found in splits.items() if found}
    if not splits:
        raise FileNotFoundError(
            f"sbd: {root} holds no id of train.txt or val.txt with both img/ID.jpg and cls/ID.mat. "
            f"They are in benchmark_RELEASE/dataset of {SBD_URL}"
        )
    return splits, notes
