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

* `train`, `val`: the ids of ImageSets, with VOC's labels.
* `seg11valid`: VOC 2011 val without SBD's train set, with VOC's labels.
* `sbd_train`, where SBD is there: the ids of SBD's `train.txt`. An id without an SBD label that
  VOC's `train.txt` lists takes VOC's label; other ids without a label are left out and counted in
  the notes. Without `train.txt`: every id that has an SBD label and is not in seg11valid.
  Photographs come from SBD's `img`, or else from JPEGImages.
"""

from __future__ import annotations

import hashlib
import shutil
import tarfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from fcn_jax.classes import load_class_table
from fcn_jax.data import files
from fcn_jax.data.images import IMAGE_SUFFIXES, encoded_image
from fcn_jax.data.matlab import read_mat_labels
from fcn_jax.data.records import Contents, Plan, Read, read_labels

VOC = load_class_table(files.package_file("voc_classes.txt"))
"""PASCAL VOC: twenty objects and background; 255 in its files is void."""

VOC_URL = "http://host.robots.ox.ac.uk/pascal/VOC/voc2012/VOCtrainval_11-May-2012.tar"
VOC_BYTES = 1999639040
VOC_SHA256 = "e14f763270cf193d0b5f74b169f44157a4b0c6efa708f4dd0ff78ee691763bcb"
SBD_URL = (
    "http://www.eecs.berkeley.edu/Research/Projects/CS/vision/grouping/semantic_contours/"
    "benchmark.tgz"
)
FULL_SIZES = {"train": 1464, "val": 1449, "seg11valid": 736, "sbd_train": 8498}
SBD_PLACES = ("benchmark_RELEASE/dataset", "benchmark_RELEASE", "SBD", "sbd")


def plan(manual_dir: Path | None, data_dir: Path, *, sbd: str | Path | None = None) -> Plan:
    """What the files in `manual_dir`, extracted or packed, make; None downloads them.

    Args:
        sbd: The folder of SBD; "download" downloads it; None looks beside VOC's files.
    """
    packed = {
        url: path
        for url in (VOC_URL, SBD_URL)
        if manual_dir and (path := manual_dir / Path(url).name).exists()
    }
    devkit = _find_devkit(manual_dir)
    if manual_dir is None:
        copy = f"download{'-sbd' if sbd else ''}"
    elif devkit is not None:
        sbd_root = None if sbd == "download" else _find_sbd(sbd, manual_dir, devkit)
        copy = _plan_extracted(devkit, sbd_root, packed.values(), str(sbd)).copy
    elif VOC_URL in packed:
        copy = f"files-{files.fingerprint(packed.values(), str(sbd))}"
    else:
        raise FileNotFoundError(f"voc2012: {_what_to_put(manual_dir)}")

    def contents() -> Contents:
        found = devkit or _find_devkit(_fetch(VOC_URL, manual_dir, data_dir))
        if found is None:
            raise FileNotFoundError(f"voc2012: the archive {VOC_URL} has no folder VOC2012")
        root = None if sbd == "download" else _find_sbd(sbd, manual_dir or found, found)
        if root is None and (sbd == "download" or SBD_URL in packed):
            root = _find_sbd(None, _fetch(SBD_URL, manual_dir, data_dir), found)
        return _plan_extracted(found, root).contents()

    return Plan(copy, contents)


def _plan_extracted(
    devkit: Path, sbd_root: Path | None, more: Iterable[Path] = (), options: object = None
) -> Plan:
    """What the folder VOC2012 makes, and that of SBD if there is one."""
    lists = files.split_lists("voc2012", devkit / "ImageSets/Segmentation", ("train", "val"))
    held_out = files.read_ids(files.package_file("seg11valid.txt"))
    paths = {
        "image": files.by_stem(devkit / "JPEGImages", IMAGE_SUFFIXES),
        "label": files.by_stem(devkit / "SegmentationClass", (".png",)),
    }
    splits = files.complete({**lists, "seg11valid": held_out}, paths)
    if sbd_root is not None:
        sbd = sbd_files(sbd_root)
        ids = files.split_lists("voc2012", sbd_root, ["train"])["train"]
        files.refuse_shared("voc2012", {"seg11valid": held_out, str(sbd_root / "train.txt"): ids})
        of_train = {name: paths["label"].get(name) for name in lists["train"]}
        joined = {
            "image": {**paths["image"], **sbd["image"]},
            "label": {**{name: path for name, path in of_train.items() if path}, **sbd["label"]},
        }
        ids = ids or sorted({*sbd["label"]} - {*held_out})
        splits |= files.complete({"sbd_train": ids}, joined)
    return files.plan_files(
        "voc2012",
        splits,
        READERS,
        {"label": VOC},
        source=f"{devkit}, SBD: {sbd_root}",
        needs="both JPEGImages/ID.jpg and SegmentationClass/ID.png",
        full_sizes=FULL_SIZES,
        more=more,
        options=options,
    )


def _fetch(url: str, manual_dir: Path | None, data_dir: Path) -> Path:
    """The folder of an archive's contents; it lies in `manual_dir` or is downloaded."""
    import tensorflow_datasets as tfds

    downloads = data_dir / "downloads"
    archive = manual_dir / Path(url).name if manual_dir else None
    try:
        if archive is None or not archive.exists():
            files.check_reachable(url)
            manager = tfds.download.DownloadManager(download_dir=str(downloads))
            archive = Path(manager.download(url))
    except Exception as error:  # requests', urllib's, TFDS's and the socket's own types
        raise FileNotFoundError(
            f"voc2012: could not download {url} ({str(error)[:200]}). "
            f"{_what_to_put(manual_dir, url)}"
        ) from error
    if url == VOC_URL:
        with archive.open("rb") as file:
            size, found = archive.stat().st_size, hashlib.file_digest(file, "sha256").hexdigest()
        if (size, found) != (VOC_BYTES, VOC_SHA256):
            raise ValueError(
                f"{archive}: {size} bytes of SHA-256 {found}: not the official file, which has "
                f"{VOC_BYTES} bytes and {VOC_SHA256}"
            )
    # TFDS needs TensorFlow to extract.
    extracted = downloads / "extracted" / files.fingerprint([archive])
    if not extracted.exists():
        incomplete = extracted.with_name(f"incomplete.{extracted.name}")
        shutil.rmtree(incomplete, ignore_errors=True)
        safe: Any = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}  # 3.11.4 on
        shutil.unpack_archive(archive, incomplete, **safe)
        incomplete.rename(extracted)
    return extracted


def _what_to_put(manual_dir: Path | None, url: str = VOC_URL) -> str:
    inside = "VOCdevkit/VOC2012" if url == VOC_URL else "benchmark_RELEASE/dataset"
    where = f"{manual_dir}, which has neither" if manual_dir else "the folder given as manual_dir"
    return f"Download {url} yourself and put {Path(url).name}, or the {inside} in it, into {where}"


def sbd_files(root: Path) -> dict[str, dict[str, Path]]:
    """SBD's photographs and its labels, by id."""
    folder = root / "cls" if (root / "cls").is_dir() else root
    return {
        "image": files.by_stem(root / "img", IMAGE_SUFFIXES),
        "label": files.by_stem(folder, (".mat", ".png")),
    }


def read_voc_label(path: Path) -> UInt8[np.ndarray, "h w"]:
    """Labels of a palette PNG of VOC, or of a .mat file of SBD."""
    if path.suffix == ".mat":
        return read_mat_labels(path, "GTcls/Segmentation", VOC)
    return read_labels(path, VOC)


READERS: dict[str, Read] = {"image": encoded_image, "label": read_voc_label}


def _find_devkit(folder: Path | None) -> Path | None:
    """The folder VOC2012, given it or a folder above it."""
    places = ("VOCdevkit/VOC2012", "VOC2012", ".")
    return files.find_folder([folder], places, ["ImageSets/Segmentation"])


def _find_sbd(sbd: str | Path | None, manual_dir: Path, devkit: Path) -> Path | None:
    """The folder of SBD: the one given, or one with `cls` beside VOC's files."""
    if sbd is None:
        bases = (manual_dir, devkit, devkit.parent, devkit.parent.parent)
        return files.find_folder(bases, SBD_PLACES, ["cls"])
    given = Path(sbd).expanduser().absolute()
    places = (".", "dataset", *SBD_PLACES)
    if root := files.find_folder([given], places, ["cls"]):
        return root
    for place in places:
        if files.by_stem(given / place, (".mat", ".png")):
            return given / place
    raise FileNotFoundError(
        f"voc2012: {given} (option sbd) holds no folder cls with ID.mat or ID.png, nor such "
        f"files; it is the folder benchmark_RELEASE/dataset of {SBD_URL}"
    )
