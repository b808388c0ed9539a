"""NYUDv2: indoor scenes with depth, in forty classes.

    DIR/data/images/img_ID.png
    DIR/data/depth/img_ID.png         16 bits, millimetres, 0 where nothing was measured
    DIR/data/hha/img_ID.png           disparity, height, angle, in the order of the channels
    DIR/segmentation/img_ID.mat       segmentation: 0 void, 1..40
    DIR/{train,val,test}.txt          ids, one a line; without them the published lists are used

This is the layout of nyud.tar.gz, which the reference implementation points to; DIR may also be a
folder that holds `nyud`. Splits: `train` (381 images), `val` (414), `test` (654); `trainval` is
understood by `open_source` as train and val. A list of DIR wins over the published one; if it has
`trainval.txt` alone, that is stored as it is.

Examples have "image", "depth" and "hha". Where `data/hha` is missing, HHA is computed from depth
(`fcn_jax.data.hha`), with NYUDv2's camera or the one given, and from `data/rawdepth/img_ID.png`,
depth before holes were filled, where that is there. What no image has is left out. Of an incomplete
tree the images present are used, and a warning says how many of how many; but depth or HHA that
only some of them have is an error.

Silberman, Hoiem, Kohli, Fergus: Indoor segmentation and support inference from RGBD images, ECCV
2012. The forty classes, depth and HHA: Gupta et al., CVPR 2013 and ECCV 2014.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import tensorflow_datasets as tfds

from fcn_jax.classes import table_from_names
from fcn_jax.data.files import (
    complete,
    fingerprint,
    listed_ids,
    named,
    package_ids,
    refuse_shared,
    shortfalls,
)
from fcn_jax.data.images import Encoded, encoded_image, encoded_pixels, read_depth
from fcn_jax.data.matlab import read_mat_labels
from fcn_jax.data.records import (
    Contents,
    Entry,
    ExampleBuilder,
    FilesConfig,
    Kind,
    Read,
    file_entry,
)

NYUDV2 = table_from_names(
    """
    wall, floor, cabinet, bed, chair, sofa, table, door, window, bookshelf, picture, counter,
    blinds, desk, shelves, curtain, dresser, pillow, mirror, floor mat, clothes, ceiling, books,
    refridgerator, television, paper, towel, shower curtain, box, whiteboard, person,
    night stand, toilet, sink, lamp, bathtub, bag, otherstructure, otherfurniture, otherprop
    """,
    first_id=1,
    void_id=0,
)
"""NYUDv2 in the forty classes of Gupta et al. (CVPR 2013), spelt as published; 0 is void."""

URL = "http://dl.caffe.berkeleyvision.org/nyud.tar.gz"
FULL_SIZES = {"train": 381, "val": 414, "test": 654}

ById = Mapping[str, Path]


class Found(NamedTuple):
    """What lies in a folder.

    Attributes:
        splits: "image", "label" and, where there are, "depth" and "hha" of every id of every split.
        raw_depth: Depth as measured, by id, if there is any.
        arrays: What every array of an example is.
        computed: Whether HHA has to be computed; its file is then the depth image.
        notes: What a person should know.
    """

    splits: Mapping[str, Mapping[str, Mapping[str, Path]]]
    raw_depth: ById
    arrays: Mapping[str, Kind]
    computed: bool
    notes: tuple[str, ...]


def config(manual_dir: Path | None, *, camera: Sequence[float] = ()) -> FilesConfig:
    """Builder configuration for the files in `manual_dir`.

    Args:
        manual_dir: The folder of the data.
        camera: Focal lengths and centre of the depth images, (fx, fy, cx, cy) in pixels, the first
            pixel's centre being (0, 0), where HHA has to be computed. Empty: NYUDv2's own, for
            images of 640x480, or 560x425 without the white border.

    Raises:
        FileNotFoundError: if the folder does not have the layout, or some images have no depth or
            HHA though others have; it says what to put where.
        ValueError: if splits share images, or the camera is not four numbers.
    """
    options = {"camera": tuple(float(value) for value in camera)}
    if len(camera) not in (0, 4):
        raise ValueError(f"nyudv2: camera needs fx, fy, cx, cy, not {tuple(camera)}")
    root = _root(manual_dir)
    found = find(root)
    files = {p for ids in found.splits.values() for paths in ids.values() for p in paths.values()}
    name = f"files-{fingerprint(files | set(found.raw_depth.values()), options)}"
    return FilesConfig(name=name, root=root, options=options, arrays=found.arrays)


class Nyudv2(ExampleBuilder):
    """NYUDv2: colour, depth and HHA of indoor scenes, in forty classes."""

    def contents(self, config: FilesConfig, dl_manager: tfds.download.DownloadManager) -> Contents:
        del dl_manager
        root = _root(config.root)
        found = find(root)
        entries = {
            split: [
                _entry(name, paths, found, config.options["camera"]) for name, paths in ids.items()
            ]
            for split, ids in found.splits.items()
        }
        return Contents(entries, {"label": NYUDV2}, source=str(root), notes=found.notes)


def _entry(name: str, paths: Mapping[str, Path], found: Found, camera: tuple[float, ...]) -> Entry:
    readers: dict[str, Read] = {
        "image": encoded_image,
        "depth": read_depth,
        "hha": encoded_image,
        "label": functools.partial(read_mat_labels, variable="segmentation", table=NYUDV2),
    }
    if found.computed:
        raw = found.raw_depth.get(name)
        readers["hha"] = functools.partial(_computed_hha, raw_depth=raw, camera=camera)
    return file_entry(name, {array: (paths[array], readers[array]) for array in found.arrays})


def _computed_hha(path: Path, raw_depth: Path | None, camera: tuple[float, ...]) -> Encoded:
    """HHA of a depth image.

    Raises:
        ValueError: naming the file, if it has no depth, or a size of which no camera is known.
    """
    from fcn_jax.data.hha import hha, nyu_camera

    depth = read_depth(path)
    raw = None if raw_depth is None else read_depth(raw_depth)
    try:
        if camera:
            fx, fy, cx, cy = camera
            matrix = np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1]], np.float64)
        else:
            matrix = nyu_camera(*depth.shape)
        return encoded_pixels(hha(depth, matrix, raw))
    except ValueError as error:
        raise ValueError(
            f"{path}: cannot compute HHA (option camera=(fx, fy, cx, cy)): {error}"
        ) from None


def find(root: Path) -> Found:
    """Find the files of a folder, without reading a picture.

    Raises:
        FileNotFoundError, ValueError: see `config`.
    """
    lists = _lists(root)
    images, depth, hha, raw_depth = (
        _by_id(root / "data" / kind, ".png") for kind in ("images", "depth", "hha", "rawdepth")
    )
    labels = _by_id(root / "segmentation", ".mat")
    splits = {
        split: complete(ids, {"image": images, "label": labels}) for split, ids in lists.items()
    }
    own = {split: len(ids) for split, ids in lists.items()}
    notes = list(shortfalls(splits, {**own, **{k: v for k, v in FULL_SIZES.items() if k in own}}))
    splits = {split: found for split, found in splits.items() if found}
    ids = [name for found in splits.values() for name in found]
    if not ids:
        raise FileNotFoundError(
            f"nyudv2: {root} holds no image of its lists with both data/images/img_ID.png and "
            f"segmentation/img_ID.mat; both are in {URL}"
        )
    inputs, computed = _depth_inputs(root, ids, depth, hha, notes)
    for found in splits.values():
        for name, paths in found.items():
            paths.update({array: files[name] for array, files in inputs.items()})
    kinds: dict[str, Kind] = {"depth": "depth", "hha": "picture"}
    arrays: dict[str, Kind] = {"image": "picture"}
    arrays.update({name: kinds[name] for name in inputs})
    arrays["label"] = "labels"
    used = {name: raw_depth[name] for name in ids if name in raw_depth} if computed else {}
    return Found(splits, used, arrays, computed, tuple(notes))


def _depth_inputs(
    root: Path, ids: Sequence[str], depth: ById, hha: ById, notes: list[str]
) -> tuple[dict[str, ById], bool]:
    """The files of "depth" and "hha" by id, and whether HHA is to be computed from its file."""
    problems = []
    for kind, files in (("depth", depth), ("hha", hha)):
        missing = [name for name in ids if name not in files]
        if 0 < len(missing) < len(ids):
            problems.append(
                f"{len(missing)} of {len(ids)} images have no {root}/data/{kind}/img_ID.png: "
                f"{named(missing)}"
            )
    if problems:
        raise FileNotFoundError(
            f"nyudv2: {'; '.join(problems)}. Put all of them there, from {URL}, or take the whole "
            "folder away: HHA is then computed from depth, and without depth left out"
        )
    inputs: dict[str, ById] = {}
    if ids[0] in depth:
        inputs["depth"] = depth
    if ids[0] in hha:
        inputs["hha"] = hha
    elif "depth" in inputs:
        inputs["hha"] = depth
        notes.append("hha was computed from depth, for there is no data/hha")
        return inputs, True
    absent = [kind for kind in ("depth", "hha") if kind not in inputs]
    if absent:
        notes.append(f"there is no {' and no '.join(f'data/{kind}' for kind in absent)}: left out")
    return inputs, False


def _lists(root: Path) -> dict[str, list[str]]:
    """The ids of every split: of the lists in the folder, else of the published ones."""
    training = [name for name in ("train", "val") if (root / f"{name}.txt").exists()]
    if not training and (root / "trainval.txt").exists():
        training = ["trainval"]
    lists = {name: listed_ids(root / f"{name}.txt") for name in training}
    if not training:
        lists = {name: package_ids(f"nyudv2_{name}") for name in ("train", "val")}
    test = root / "test.txt"
    lists["test"] = listed_ids(test) if test.exists() else package_ids("nyudv2_test")
    lists = {name: [_plain(entry) for entry in ids] for name, ids in lists.items()}
    refuse_shared("nyudv2", {f"{name}.txt": ids for name, ids in lists.items()})
    return lists


def _by_id(folder: Path, suffix: str) -> dict[str, Path]:
    """The files img_ID of a folder by id."""
    if not folder.is_dir():
        return {}
    return {_plain(path.stem): path for path in folder.glob(f"img_*{suffix}")}


def _plain(name: str) -> str:
    return name.removeprefix("img_")


def _root(manual_dir: Path | None) -> Path:
    """The folder that holds data/images: the given one, or `nyud` in it."""
    for root in (manual_dir, manual_dir / "nyud", manual_dir / "nyudv2") if manual_dir else ():
        if (root / "data/images").is_dir() and (root / "segmentation").is_dir():
            return root.resolve()
    there = f"{manual_dir} has no folders data/images and segmentation" if manual_dir else "no data"
    raise FileNotFoundError(
        f"nyudv2: {there}. Download {URL}, extract it, and give its folder nyud as manual_dir: it "
        "holds data/images/img_ID.png, data/depth/img_ID.png, data/hha/img_ID.png and "
        "segmentation/img_ID.mat"
    )
