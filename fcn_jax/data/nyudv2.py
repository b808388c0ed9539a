"""NYUDv2: indoor scenes with depth, in forty classes.

    DIR/data/images/img_ID.png
    DIR/data/depth/img_ID.png         16 bits, millimetres, 0 where nothing was measured
    DIR/data/hha/img_ID.png           disparity, height, angle, in the order of the channels
    DIR/segmentation/img_ID.mat       segmentation: 0 void, 1..40
    DIR/{train,val,test}.txt          ids, one a line; without them the published lists are used
    DIR/data/rawdepth/img_ID.png      depth before holes were filled, if HHA has to be computed

This is the layout of nyud.tar.gz, which the reference implementation points to; DIR may also be a
folder that holds `nyud`. Without `data/hha`, HHA is computed (`fcn_jax.data.hha`). If DIR has
`trainval.txt` alone, that is stored as it is.

Silberman, Hoiem, Kohli, Fergus: Indoor segmentation and support inference from RGBD images, ECCV
2012. The forty classes, depth and HHA: Gupta et al., CVPR 2013 and ECCV 2014.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from fcn_jax.classes import read_names, table_from_names
from fcn_jax.data import files
from fcn_jax.data.images import Encoded, encoded_image, encoded_pixels, read_depth
from fcn_jax.data.matlab import read_mat_labels
from fcn_jax.data.records import Kind, Plan, Read

NYUDV2 = table_from_names(
    read_names(files.package_file("nyudv2_classes.txt")), first_id=1, void_id=0
)
"""NYUDv2 in the forty classes of Gupta et al. (CVPR 2013), spelt as published; 0 is void."""

URL = "http://dl.caffe.berkeleyvision.org/nyud.tar.gz"
FULL_SIZES = {"train": 381, "val": 414, "test": 654}
KINDS: dict[str, Kind] = {"image": "picture", "depth": "depth", "hha": "picture"}


def plan(manual_dir: Path | None, *, camera: Sequence[float] = ()) -> Plan:
    """What the files in `manual_dir` make.

    Args:
        camera: Focal lengths and centre of the depth images, (fx, fy, cx, cy) in pixels, the first
            pixel's centre being (0, 0), where HHA has to be computed. Empty: NYUDv2's own, for
            images of 640x480, or 560x425 without the white border.
    """
    camera = tuple(float(value) for value in camera)
    if len(camera) not in (0, 4):
        raise ValueError(f"nyudv2: camera needs fx, fy, cx, cy, not {camera}")
    root = files.find_root(
        "nyudv2",
        manual_dir,
        (".", "nyud", "nyudv2"),
        ("data/images", "segmentation"),
        url=URL,
        what="its folder nyud, which holds data/images, data/depth, data/hha and segmentation,",
    )
    training = [name for name in ("train", "val") if (root / f"{name}.txt").exists()]
    if not training:
        training = ["trainval"] if (root / "trainval.txt").exists() else ["train", "val"]
    lists = files.split_lists("nyudv2", root, [*training, "test"], published=True, prefix="img_")
    paths = {"image": by_id(root / "data/images"), "label": by_id(root / "segmentation", ".mat")}
    ids = [name for found in files.complete(lists, paths).values() for name in found]
    inputs, computed, notes = _inputs(root, ids)
    readers: dict[str, Read] = {
        "image": encoded_image,
        "depth": read_depth,
        "hha": functools.partial(computed_hha, camera=camera) if computed else encoded_image,
        "label": functools.partial(read_mat_labels, variable="segmentation", table=NYUDV2),
    }
    return files.plan_files(
        "nyudv2",
        files.complete(lists, {**paths, **inputs}),
        readers,
        {"label": NYUDV2},
        source=str(root),
        needs=f"both data/images/img_ID.png and segmentation/img_ID.mat; both are in {URL}",
        full_sizes={split: FULL_SIZES.get(split, len(names)) for split, names in lists.items()},
        notes=notes,
        modalities={name: KINDS[name] for name in ("image", *inputs)},
        more=by_id(root / "data/rawdepth").values() if computed else (),
        options=camera,
    )


def _inputs(root: Path, ids: Sequence[str]) -> tuple[dict[str, dict[str, Path]], bool, list[str]]:
    """The files of "depth" and "hha" by id, whether HHA has to be computed, and notes on both."""
    inputs = {kind: by_id(root / "data" / kind) for kind in ("depth", "hha")}
    missing = {kind: [i for i in ids if i not in paths] for kind, paths in inputs.items()}
    problems = [
        f"{len(absent)} of {len(ids)} images have no {root}/data/{kind}/img_ID.png: "
        + files.named(absent)
        for kind, absent in missing.items()
        if 0 < len(absent) < len(ids)
    ]
    if problems:
        raise FileNotFoundError(
            f"nyudv2: {'; '.join(problems)}. Put all of them there, from {URL}, or take the whole "
            "folder away: HHA is then computed from depth, and without depth left out"
        )
    if missing["hha"] and not missing["depth"]:
        note = "hha was computed from depth, for there is no data/hha"
        return {**inputs, "hha": inputs["depth"]}, True, [note]
    absent = [kind for kind in inputs if missing[kind]]
    left_out = f"there is no {' and no '.join(f'data/{kind}' for kind in absent)}: left out"
    found = {kind: paths for kind, paths in inputs.items() if kind not in absent}
    return found, False, [left_out] if absent else []


def by_id(folder: Path, suffix: str = ".png") -> dict[str, Path]:
    """The files img_ID of a folder by id."""
    return files.by_stem(folder, (suffix,), prefix="img_")


def computed_hha(path: Path, camera: tuple[float, ...]) -> Encoded:
    """HHA of a depth image, and of the depth before holes were filled where that is there."""
    from fcn_jax.data.hha import hha, nyu_camera

    depth = read_depth(path)
    raw_path = path.parents[1] / "rawdepth" / path.name
    raw = read_depth(raw_path) if raw_path.exists() else None
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
