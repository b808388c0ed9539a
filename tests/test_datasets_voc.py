"""PASCAL VOC joined with SBD, under other names, and as the official archives."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
from dataset_trees import VOC_IDS, random_image, save_palette, save_sbd, voc_tree

from fcn_jax.data import check_disjoint, open_source, prepare


@pytest.mark.parametrize("kind", ["mat", "png", "plain folder"])
@pytest.mark.parametrize("listed", [True, False])
def test_sbd_is_joined(tmp_path, rng, kind, listed):
    written = voc_tree(tmp_path / "m/VOCdevkit/VOC2012", rng, VOC_IDS)
    root = tmp_path / "m" / ("benchmark_RELEASE/dataset" if kind == "mat" else "SBD")
    folder = root if kind == "plain folder" else root / "cls"
    save = save_sbd if kind == "mat" else save_palette
    labels = {}
    for name in ("2008_1", "2010_7", "2007_000033"):  # of train, of neither, and of seg11valid
        size = written[name]["label"].shape if name in written else (9, 14)
        labels[name] = rng.integers(0, 21, size)
        save(folder / f"{name}.{'mat' if kind == 'mat' else 'png'}", labels[name])
    image = random_image(root / "img/2010_7.jpg", rng, (9, 14))
    options = {"sbd": str(root)} if kind == "plain folder" else {}
    expected = {"2008_1": labels["2008_1"], "2010_7": labels["2010_7"]}
    if listed:
        (root / "train.txt").write_text("2010_7\n2008_2\n2010_unlabelled\n")
        expected = {"2010_7": labels["2010_7"], "2008_2": written["2008_2"]["label"]}
    where = {"data_dir": tmp_path / "d", "manual_dir": tmp_path / "m", **options}
    train = open_source("voc2012", "sbd_train", **where)
    assert set(train.ids) == set(expected)
    for example in train:
        np.testing.assert_array_equal(example["label"], expected[example["id"]])
        if example["id"] == "2010_7":
            np.testing.assert_array_equal(example["image"], image)
    check_disjoint(train, open_source("voc2012", "seg11valid", **where))


def test_copies_under_other_names_are_found(tmp_path, rng):
    voc_tree(tmp_path / "VOC2012", rng, VOC_IDS)
    for folder, suffix in (("JPEGImages", "jpg"), ("SegmentationClass", "png")):
        path = tmp_path / "VOC2012" / folder
        shutil.copy(path / f"2008_1.{suffix}", path / f"2008_3.{suffix}")
    where = {"data_dir": tmp_path / "d", "manual_dir": tmp_path}
    train, val = (open_source("voc2012", split, **where) for split in ("train", "val"))
    with pytest.raises(ValueError, match=r"1 of 2 images .*2008_3 \(= 2008_1\)"):
        check_disjoint(train, val)


def test_voc_that_cannot_be_downloaded_says_what_to_put_where(tmp_path, monkeypatch):
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")  # nobody listens: as good as offline
    message = r"VOCtrainval_11-May-2012\.tar.*VOCdevkit/VOC2012.*manual_dir"
    with pytest.raises(FileNotFoundError, match=message):
        prepare("voc2012", data_dir=tmp_path / "d")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"VOCtrainval_11-May-2012\.tar.*empty"):
        prepare("voc2012", data_dir=tmp_path / "d", manual_dir=tmp_path / "empty")
    (tmp_path / "empty/VOCtrainval_11-May-2012.tar").write_bytes(b"half of it")
    with pytest.raises(ValueError, match="10 bytes, not 1999639040"):
        prepare("voc2012", data_dir=tmp_path / "d", manual_dir=tmp_path / "empty")
