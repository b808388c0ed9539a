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
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from fcn_jax.classes import table_from_names
from fcn_jax.data.files import by_stem, complete, find_folder, named, plan_files, split_lists
from fcn_jax.data.images import Encoded, encoded_image, encoded_pixels, read_depth
from fcn_jax.data.matlab import read_mat_labels
from fcn_jax.data.records import Kind, Plan, Read

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
KINDS: dict[str, Kind] = {"image": "picture", "depth": "depth", "hha": "picture"}


def plan(manual_dir: Path | None, *, camera: Sequence[float] = ()) -> Plan:
    """Plan the data set from the files in `manual_dir`.

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
    camera = tuple(float(value) for value in camera)
    if len(camera) not in (0, 4):
        raise ValueError(f"nyudv2: camera needs fx, fy, cx, cy, not {camera}")
    root = find_folder([manual_dir], (".", "nyud", "nyudv2"), ("data/images", "segmentation"))
    if root is None:
        there = f"{manual_dir} has no folders data/images and segmentation" if manual_dir else ""
        raise FileNotFoundError(
            f"nyudv2: {there or 'no data'}. Download {URL}, extract it, and give its folder nyud "
            "as manual_dir: it holds data/images/img_ID.png, data/depth/img_ID.png, "
            "data/hha/img_ID.png and segmentation/img_ID.mat"
        )
    training = [name for name in ("train", "val") if (root / f"{name}.txt").exists()]
    if not training:
        training = ["trainval"] if (root / "trainval.txt").exists() else ["train", "val"]
    lists = split_lists("nyudv2", root, [*training, "test"], published=True, prefix="img_")
    files = {"image": by_id(root / "data/images"), "label": by_id(root / "segmentation", ".mat")}
    ids = [name for found in complete(lists, files).values() for name in found]
    inputs, computed, notes = _inputs(root, ids)
    readers: dict[str, Read] = {
        "image": encoded_image,
        "depth": read_depth,
        "hha": functools.partial(computed_hha, camera=camera) if computed else encoded_image,
        "label": functools.partial(read_mat_labels, variable="segmentation", table=NYUDV2),
    }
    raw_depths = [raw_depth(inputs["hha"][name]) for name in ids] if computed else []
    return plan_files(
        complete(lists, {**files, **inputs}),
        readers,
        {"label": NYUDV2},
        source=str(root),
        missing=f"nyudv2: {root} holds no image of its lists with both data/images/img_ID.png and "
        f"segmentation/img_ID.mat; both are in {URL}",
        full_sizes={split: FULL_SIZES.get(split, len(names)) for split, names in lists.items()},
        notes=notes,
        modalities={name: KINDS[name] for name in ("image", *inputs)},
        more=[path for path in raw_depths if path.exists()],
        options=camera,
    )


def _inputs(root: Path, ids: Sequence[str]) -> tuple[dict[str, dict[str, Path]], bool, list[str]]:
    """The files of "depth" and "hha" by id, whether HHA has to be computed, and notes on both."""
    inputs = {kind: by_id(root / "data" / kind) for kind in ("depth", "hha")}
    problems = []
    for kind, files in inputs.items():
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
    absent = [kind for kind, files in inputs.items() if not set(ids) <= set(files)]
    if absent == ["hha"]:
        return (
            {**inputs, "hha": inputs["depth"]},
            True,
            ["hha was computed from depth, for there is no data/hha"],
        )
    inputs = {kind: files for kind, files in inputs.items() if kind not in absent}
    left_out = f"there is no {' and no '.join(f'data/{kind}' for kind in absent)}: left out"
    return inputs, False, [left_out] if absent else []


def by_id(folder: Path, suffix: str = ".png") -> dict[str, Path]:
    """The files img_ID of a folder by id."""
    return by_stem(folder, (suffix,), prefix="img_")


def raw_depth(depth: Path) -> Path:
    """Where depth lies as it was measured, if it is there."""
    return depth.parents[1] / "rawdepth" / depth.name


def computed_hha(path: Path, camera: tuple[float, ...]) -> Encoded:
    """HHA of a depth image, and of the depth before holes were filled where that is there.

    Raises:
        ValueError: naming the file, if it has no depth, or a size of which no camera is known.
    """
    from fcn_jax.data.hha import hha, nyu_camera

    depth = read_depth(path)
    raw = read_depth(raw_path) if (raw_path := raw_depth(path)).exists() else None
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
