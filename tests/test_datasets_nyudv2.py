"""NYUDv2 from small trees in its published layout."""

from __future__ import annotations

import functools
import pickle
import shutil

import numpy as np
import pytest
from dataset_trees import (
    NYU_IDS,
    assert_holds,
    assert_refused,
    nyu_tree,
    save_image,
    save_mat,
    write_list,
)
from PIL import Image

from fcn_jax.data import check_disjoint, open_source, prepare
from fcn_jax.data.files import package_ids
from fcn_jax.data.hha import hha, nyu_camera
from fcn_jax.data.nyudv2 import NYUDV2


@pytest.mark.parametrize("place", ["", "nyud"])
def test_nyudv2(tmp_path, rng, place, capfd):
    written = nyu_tree(tmp_path / "m" / place, rng)
    where = {"data_dir": tmp_path / "d", "manual_dir": tmp_path / "m"}
    for split, names in {**NYU_IDS, "trainval": [*NYU_IDS["train"], *NYU_IDS["val"]]}.items():
        source = open_source("nyudv2", split, **where)
        assert source.ids == tuple(names)
        assert source.modalities == ("image", "depth", "hha")
        assert source.label_maps == {"label": NYUDV2}
        assert source.classes == NYUDV2
        assert list(source[0]) == ["image", "depth", "hha", "label", "id"]
        assert_holds(source, written, ("image", "depth", "hha", "label"))
        assert_holds(
            pickle.loads(pickle.dumps(source)), written, ("image", "depth", "hha", "label")
        )
    assert "test has 2 of the 654 images" in capfd.readouterr().err
    check_disjoint(*(open_source("nyudv2", split, **where) for split in ("trainval", "test")))
    # Prepared, it is found without its files.
    shutil.rmtree(tmp_path / "m")
    assert len(open_source("nyudv2", "val", data_dir=tmp_path / "d")) == 1


def test_nyudv2_lists_are_the_published_ones(shared):
    sizes = {"train": 381, "val": 414, "test": 654}
    lists = {split: package_ids(f"nyudv2_{split}") for split in sizes}
    for split, ids in lists.items():
        assert ids == (shared / f"data/splits/nyud/{split}.txt").read_text().split()
        assert len(ids) == sizes[split]
    assert len({name for ids in lists.values() for name in ids}) == 1449


def test_nyudv2_lists_in_the_tree_win(tmp_path, rng):
    ids = {"train": ["7", "8"], "val": ["9"], "test": ["1"]}
    nyu_tree(tmp_path / "m", rng, ids)
    for split, names in ids.items():
        write_list(tmp_path / f"m/{split}.txt", [f"img_{name}" for name in names])
    where = {"data_dir": tmp_path / "d", "manual_dir": tmp_path / "m"}
    assert open_source("nyudv2", "trainval", **where).ids == ("7", "8", "9")
    for split in ("train", "val"):
        (tmp_path / f"m/{split}.txt").unlink()
    write_list(tmp_path / "m/trainval.txt", ["8", "9"])
    shutil.rmtree(tmp_path / "d")
    assert open_source("nyudv2", "trainval", **where).ids == ("8", "9")
    with pytest.raises(ValueError, match=r"no split 'train'; it has trainval \(2 images\), test"):
        open_source("nyudv2", "train", **where)
    write_list(tmp_path / "m/test.txt", ["1", "9"])
    with pytest.raises(ValueError, match=r"1 images are in both trainval\.txt and test\.txt: 9"):
        prepare("nyudv2", **where)


@pytest.mark.parametrize("camera", [(), (300.0, 310.0, 30.5, 20.5)])
@pytest.mark.parametrize("raw", [False, True])
def test_nyudv2_without_hha_computes_it(tmp_path, rng, camera, raw):
    size = (40, 60) if camera else (425, 560)
    ids = {"train": NYU_IDS["train"][:1], "test": NYU_IDS["test"][:1]}
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


def lose_one(kind, root, rng):
    (root / f"data/{kind}/img_5010.png").unlink()
    return rf"1 of 5 images have no .*/data/{kind}/img_ID\.png: 5010\. Put all .*nyud\.tar\.gz"


def lose_images(root, rng):
    shutil.rmtree(root / "data/images")
    return r"no folders data/images and segmentation.*nyud\.tar\.gz.*manual_dir"


def lose_pairs(root, rng):
    shutil.rmtree(root / "segmentation")
    (root / "segmentation").mkdir()
    return r"no image of its lists with both data/images/img_ID\.png.*nyud\.tar\.gz"


def shallow_depth(root, rng):
    save_image(root / "data/depth/img_5449.png", np.zeros((8, 8), np.uint8))
    return r"img_5449\.png: a depth image is a grey PNG of 16 bits"


def other_size(root, rng):
    save_image(root / "data/depth/img_5449.png", np.ones((3, 4), np.uint16))
    return r"depth/img_5449\.png: 4x3 pixels, but its image .*images/img_5449\.png has"


def unknown_id(root, rng):
    with Image.open(root / "data/images/img_5133.png") as image:
        size = image.size[::-1]
    save_mat(root / "segmentation/img_5133.mat", "segmentation", np.full(size, 41))
    return r"img_5133\.mat: segmentation: label values 41 .*known ids: 0\.\.40"


def other_variable(root, rng):
    save_mat(root / "segmentation/img_5133.mat", "labels", np.ones((4, 4)))
    return r"img_5133\.mat: cannot read segmentation: it holds labels"


def broken_mat(root, rng):
    (root / "segmentation/img_5133.mat").write_bytes(b"MATLAB 5.0 MAT-file" + bytes(200))
    return r"img_5133\.mat: cannot read segmentation"


@pytest.mark.parametrize(
    "damage",
    [
        functools.partial(lose_one, "depth"),
        functools.partial(lose_one, "hha"),
        lose_images,
        lose_pairs,
        shallow_depth,
        other_size,
        unknown_id,
        other_variable,
        broken_mat,
    ],
)
def test_nyudv2_problems_are_named_and_nothing_is_left(tmp_path, rng, damage):
    nyu_tree(tmp_path / "m", rng)
    assert_refused("nyudv2", tmp_path / "m", damage(tmp_path / "m", rng))


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
