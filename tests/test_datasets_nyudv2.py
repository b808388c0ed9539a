"""NYUDv2's depth and HHA: computed, left out, and those of a real frame."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
from dataset_trees import (
    NYU_IDS,
    assert_holds,
    nyu_tree,
    save_image,
    save_mat,
)
from PIL import Image

from fcn_jax.data import open_source, prepare
from fcn_jax.data.hha import hha, nyu_camera

CAMERA = (300.0, 310.0, 30.5, 20.5)


# The size at which the camera is known takes long: once.
@pytest.mark.parametrize(("camera", "raw"), [((), True), (CAMERA, False), (CAMERA, True)])
def test_nyudv2_without_hha_computes_it(tmp_path, rng, camera, raw):
    size = (40, 60) if camera else (425, 560)
    ids = {"train": NYU_IDS["train"][:1]}
    written = nyu_tree(tmp_path / "m", rng, ids, kinds=("depth",), size=size)
    fx, fy, cx, cy = camera or (0, 0, 0, 0)
    matrix = np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1]]) if camera else nyu_camera(*size)
    for name, arrays in written.items():
        raw_depth = None
        if raw:
            raw_depth = arrays["depth"] * (rng.random(size) < 0.8).astype(np.uint16)
            save_image(tmp_path / f"m/data/rawdepth/img_{name}.png", raw_depth)
        arrays["hha"] = hha(arrays["depth"], matrix, raw_depth)
    source = open_source(
        "nyudv2", "train", data_dir=tmp_path / "d", manual_dir=tmp_path / "m", camera=camera
    )
    assert source.modalities == ("image", "depth", "hha")
    assert "hha was computed from depth" in "\n".join(source.notes)
    assert_holds(source, written, ("image", "depth", "hha", "label"))


def test_nyudv2_of_another_size_needs_a_camera(tmp_path, rng):
    nyu_tree(tmp_path / "m", rng, kinds=("depth",), size=(20, 30))
    where = {"data_dir": tmp_path / "d", "manual_dir": tmp_path / "m"}
    with pytest.raises(ValueError, match=r"img_5449\.png: cannot compute HHA .*camera"):
        prepare("nyudv2", **where)
    with pytest.raises(ValueError, match="camera needs fx, fy, cx, cy"):
        prepare("nyudv2", **where, camera=(1.0, 2.0))


@pytest.mark.parametrize("kinds", [(), ("hha",)])
def test_nyudv2_without_depth(tmp_path, rng, kinds):
    written = nyu_tree(tmp_path / "m", rng, kinds=kinds)
    source = open_source("nyudv2", "train", data_dir=tmp_path / "d", manual_dir=tmp_path / "m")
    assert source.modalities == ("image", *kinds)
    left_out = "no data/depth: left out" if kinds else "no data/depth and no data/hha: left out"
    assert left_out in "\n".join(source.notes)
    assert_holds(source, written, ("image", *kinds, "label"))


def test_real_nyudv2_frame(shared, tmp_path):
    """The sample's colour, depth and raw depth, laid out as published."""
    sample = shared / "data/nyud_sample"
    root = tmp_path / "m"
    for folder, kind in (("images", "images"), ("depth", "depth"), ("rawdepth", "rawdepth")):
        (root / "data" / folder).mkdir(parents=True)
        shutil.copy(sample / f"rcnn-depth_{kind}.png", root / f"data/{folder}/img_5449.png")
    save_mat(root / "segmentation/img_5449.mat", "segmentation", np.ones((425, 560)))
    source = open_source("nyudv2", "train", data_dir=tmp_path / "d", manual_dir=root)
    example = source[0]
    depth = np.array(Image.open(sample / "rcnn-depth_depth.png"))
    np.testing.assert_array_equal(example["depth"], depth)
    np.testing.assert_array_equal(
        example["image"], np.array(Image.open(sample / "rcnn-depth_images.png"))
    )
    disparity = 31000 / np.maximum(depth / 10, 100)  # Gupta et al.'s, depth in centimetres
    assert np.abs(example["hha"][..., 0] - np.clip(disparity, 0, 255)).max() <= 1
