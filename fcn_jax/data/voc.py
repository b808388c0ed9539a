"""PASCAL VOC 2012 segmentation, and SBD's labels joined with it.

Files, either downloaded (2 GB) or given as `manual_dir`, which may be the folder that holds
VOCdevkit, VOCdevkit itself, or VOC2012:

    VOCdevkit/VOC2012/JPEGImages/ID.jpg
    VOCdevkit/VOC2012/SegmentationClass/ID.png          palette PNG: indices are ids, 255 is void
    VOCdevkit/VOC2012/ImageSets/Segmentation/{train,val}.txt

SBD (Hariharan et al., Semantic contours from inverse detectors, ICCV 2011) is looked for beside
them as `benchmark_RELEASE/dataset`, `benchmark_RELEASE`, `SBD` or `sbd`, or given as the option
`sbd`: a folder with `cls/ID.mat` (or `cls/ID.png`), and optionally `img/ID.jpg` and `train.txt`; or
a folder of PNG or .mat labels.

Splits:

* `train`, `val`: the ids of ImageSets, with VOC's labels (1464 and 1449 images). `trainval` is
  understood by `open_source` as both.
* `seg11valid`: the 736 images of VOC 2011 val that are not in SBD's train set, with VOC's labels;
  the published FCN scores are on these.
* `sbd_train`, where SBD is there: the ids of SBD's `train.txt` (8498). An id without an SBD label
  that VOC's `train.txt` lists takes VOC's label; other ids without a label are left out and counted
  in the notes. Without `train.txt`: every id that has an SBD label and is not in seg11valid.
  Photographs come from SBD's `img`, or else from JPEGImages.

Of an incomplete tree the images present are used, and a warning says how many of how many. An image
shared by train and val, or by SBD's train.txt and seg11valid, is an error.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds
from jaxtyping import UInt8

from fcn_jax.classes import table_from_names
from fcn_jax.data.files import (
    by_stem,
    check_reachable,
    complete,
    fingerprint,
    listed_ids,
    package_ids,
    refuse_shared,
    shortfalls,
)
from fcn_jax.data.matlab import read_mat_labels
from fcn_jax.data.records import (
    Contents,
    ExampleBuilder,
    FilesConfig,
    image_and_label,
    read_labels,
)

VOC = table_from_names(
    """
    background, aeroplane, bicycle, bird, boat, bottle, bus, car, cat, chair, cow, diningtable, dog,
    horse, motorbike, person, pottedplant, sheep, sofa, train, tvmonitor
    """
)
"""PASCAL VOC: twenty objects and background; 255 in its files is void."""

VOC_URL = "http://host.robots.ox.ac.uk/pascal/VOC/voc2012/VOCtrainval_11-May-2012.tar"
VOC_SHA256 = "e14f763270cf193d0b5f74b169f44157a4b0c6efa708f4dd0ff78ee691763bcb"
VOC_BYTES = 1999639040
SBD_URL = (
    "http://www.eecs.berkeley.edu/Research/Projects/CS/vision/grouping/semantic_contours/"
    "benchmark.tgz"
)
FULL_SIZES = {"train": 1464, "val": 1449, "seg11valid": 736, "sbd_train": 8498}
SBD_PLACES = ("benchmark_RELEASE/dataset", "benchmark_RELEASE", "SBD", "sbd")
PHOTOGRAPHS = (".jpg", ".jpeg", ".png")

Splits = dict[str, dict[str, dict[str, Path]]]
"""The files "image" and "label" of every id of every split."""


def config(manual_dir: Path | None, *, sbd: str | Path | None = None) -> FilesConfig:
    """Builder configuration.

    Args:
        manual_dir: The folder of the files, extracted or as the official archives; None downloads.
        sbd: The folder of SBD; "download" downloads it; None looks beside VOC's files.

    Raises:
        FileNotFoundError: if the folders do not have the layout; it says what to put where.
        ValueError: if splits share images.
    """
    options = {} if sbd is None else {"sbd": str(sbd)}
    if manual_dir is None:
        return FilesConfig(name=f"download{'-sbd' if sbd else ''}", options=options)
    devkit = _find_devkit(manual_dir)
    archives = [manual_dir / Path(url).name for url in (VOC_URL, SBD_URL)]
    present = [path for path in archives if path.exists()]
    if devkit is None:
        if archives[0] not in present:
            raise FileNotFoundError(f"voc2012: {_what_to_put(manual_dir)}")
        files = present
    else:
        sbd_root = None if sbd == "download" else _find_sbd(sbd, manual_dir, devkit)
        splits, _ = find_splits(devkit, sbd_root)
        files = all_files(splits)
    name = f"files-{fingerprint(set(files), options)}"
    return FilesConfig(name=name, root=manual_dir, options=options)


class Voc2012(ExampleBuilder):
    """PASCAL VOC 2012 segmentation: twenty classes of objects and background."""

    def contents(self, config: FilesConfig, dl_manager: tfds.download.DownloadManager) -> Contents:
        root, options = config.root, config.options
        devkit = (_find_devkit(root) if root else None) or self._fetch_devkit(dl_manager, root)
        sbd_root = self._sbd_root(dl_manager, devkit, root, options.get("sbd"))
        found, notes = find_splits(devkit, sbd_root)
        return voc_contents(found, f"{devkit}, SBD: {sbd_root}", notes)

    def _fetch_devkit(self, dl_manager: tfds.download.DownloadManager, root: Path | None) -> Path:
        folder = _fetch(dl_manager, VOC_URL, root)
        devkit = _find_devkit(folder)
        if devkit is None:
            raise FileNotFoundError(f"voc2012: {folder}, extracted from {VOC_URL}, has no VOC2012")
        return devkit

    def _sbd_root(
        self,
        dl_manager: tfds.download.DownloadManager,
        devkit: Path,
        root: Path | None,
        sbd: str | None,
    ) -> Path | None:
        has_archive = root is not None and (root / Path(SBD_URL).name).exists()
        if sbd != "download":
            found = _find_sbd(sbd, root or devkit, devkit)
            if found is not None or not has_archive:
                return found
        return _find_sbd(None, _fetch(dl_manager, SBD_URL, root), devkit)


def _fetch(dl_manager: tfds.download.DownloadManager, url: str, root: Path | None) -> Path:
    """An archive's contents: extracted from `root` where it lies there, else downloaded.

    Raises:
        FileNotFoundError: if the download fails; the message says which file to put where.
        ValueError: if the archive is not the official one.
    """
    archive = root / Path(url).name if root else None
    try:
        if archive is None or not archive.exists():
            check_reachable(url)
            archive = Path(dl_manager.download(url))
    except Exception as error:  # requests', urllib's, TFDS's and the socket's own types
        raise FileNotFoundError(
            f"voc2012: could not download {url} ({str(error)[:200]}). {_what_to_put(root, url)}"
        ) from error
    if url == VOC_URL:
        _verify(archive)
    return Path(dl_manager.extract(archive))


def _verify(archive: Path) -> None:
    """Refuse an archive of VOC that is not the official one."""
    if (size := archive.stat().st_size) != VOC_BYTES:
        raise ValueError(f"{archive}: {size} bytes, not {VOC_BYTES}: not the whole official file")
    with archive.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != VOC_SHA256:
        raise ValueError(f"{archive}: SHA-256 {found}, not {VOC_SHA256}: not the official file")


def _what_to_put(root: Path | None, url: str = VOC_URL) -> str:
    inside = "VOCdevkit/VOC2012" if url == VOC_URL else "benchmark_RELEASE/dataset"
    what = f"Download {url} yourself and put {Path(url).name}, or the {inside} in it, into"
    if root is None:
        return f"{what} a folder, and give that folder as manual_dir"
    return f"{what} {root}, which has neither"


def voc_contents(splits: Splits, source: str, notes: Sequence[str]) -> Contents:
    """Examples with VOC's labels."""
    entries = {
        split: [
            image_and_label(voc_id, files["image"], files["label"], read_voc_label)
            for voc_id, files in found.items()
        ]
        for split, found in splits.items()
    }
    return Contents(entries, {"label": VOC}, source, tuple(notes))


def all_files(splits: Splits) -> set[Path]:
    """Every file of every split."""
    return {p for found in splits.values() for files in found.values() for p in files.values()}


def find_splits(devkit: Path, sbd_root: Path | None) -> tuple[Splits, tuple[str, ...]]:
    """The files of every id in every split, and notes on what is missing.

    Args:
        devkit: The folder VOC2012.
        sbd_root: The folder of SBD, if there is one.

    Raises:
        FileNotFoundError: if no image of any split is there.
        ValueError: if splits share images.
    """
    folder = devkit / "ImageSets/Segmentation"
    lists: dict[str, Sequence[str]] = {n: listed_ids(folder / f"{n}.txt") for n in ("train", "val")}
    refuse_shared("voc2012", {f"ImageSets {name}": ids for name, ids in lists.items()})
    lists["seg11valid"] = seg11valid_ids()
    images = by_stem(devkit / "JPEGImages", PHOTOGRAPHS)
    labels = by_stem(devkit / "SegmentationClass", (".png",))
    splits = {
        name: complete(ids, {"image": images, "label": labels}) for name, ids in lists.items()
    }
    if sbd_root is not None:
        splits["sbd_train"] = _sbd_train(sbd_root, images, labels, set(lists["train"]))
    notes = shortfalls(splits, FULL_SIZES)
    splits = {name: found for name, found in splits.items() if found}
    if not splits:
        raise FileNotFoundError(
            f"voc2012: {devkit} holds no image of ImageSets/Segmentation/train.txt or val.txt "
            "with both JPEGImages/ID.jpg and SegmentationClass/ID.png"
        )
    return splits, notes


def _sbd_train(
    root: Path, voc_images: dict[str, Path], voc_labels: dict[str, Path], voc_train: set[str]
) -> dict[str, dict[str, Path]]:
    held_out = seg11valid_ids()
    images, labels = sbd_files(root)
    ids = listed_ids(root / "train.txt")
    refuse_shared("voc2012", {"seg11valid": held_out, str(root / "train.txt"): ids})
    if not ids:
        ids = sorted(set(labels) - set(held_out))
    train_labels = {voc_id: path for voc_id, path in voc_labels.items() if voc_id in voc_train}
    return complete(ids, {"image": {**voc_images, **images}, "label": {**train_labels, **labels}})


def sbd_files(root: Path) -> tuple[dict[str, Path], dict[str, Path]]:
    """SBD's photographs and its labels, by id."""
    folder = root / "cls" if (root / "cls").is_dir() else root
    return by_stem(root / "img", PHOTOGRAPHS), by_stem(folder, (".mat", ".png"))


@functools.cache
def seg11valid_ids() -> tuple[str, ...]:
    """The 736 ids of VOC 2011 val that are not in SBD's train set."""
    return tuple(package_ids("seg11valid"))


def read_voc_label(path: Path) -> UInt8[np.ndarray, "h w"]:
    """Labels of a palette PNG of VOC, or of a .mat file of SBD.

    Raises:
        ValueError: naming the file, if it cannot be read or holds ids of no class.
    """
    if path.suffix == ".mat":
        return read_mat_labels(path, "GTcls/Segmentation", VOC)
    return read_labels(path, VOC)


def _find_devkit(manual_dir: Path) -> Path | None:
    """The folder VOC2012, given it or a folder above it."""
    for place in ("VOCdevkit/VOC2012", "VOC2012", "."):
        devkit = manual_dir / place
        if (devkit / "ImageSets" / "Segmentation").is_dir():
            return devkit.resolve()
    return None


def _find_sbd(sbd: str | Path | None, manual_dir: Path, devkit: Path) -> Path | None:
    """The folder with SBD's `cls`: the one given, or one beside VOC's files.

    Raises:
        FileNotFoundError: if a folder is given and has no labels.
    """
    if sbd is not None:
        given = Path(sbd).expanduser().absolute()
        for root in (given, *(given / place for place in ("dataset", *SBD_PLACES))):
            if (root / "cls").is_dir() or by_stem(root, (".mat", ".png")):
                return root
        raise FileNotFoundError(
            f"voc2012: {given} (option sbd) holds no folder cls with ID.mat or ID.png, nor such "
            f"files; it is the folder benchmark_RELEASE/dataset of {SBD_URL}"
        )
    for base in dict.fromkeys((manual_dir, devkit, devkit.parent, devkit.parent.parent)):
        for place in SBD_PLACES:
            if (base / place / "cls").is_dir():
                return base / place
    return None
