"""What holds for every data set: prepared once, found again, or refused."""

from __future__ import annotations

import json
import multiprocessing
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dataset_trees import nyu_tree
from PIL import Image

from fcn_jax.data import DATASETS, Source, check_disjoint, open_source, prepare, row_of

SMALL: dict[str, Any] = {"train": 6, "val": 3, "size": 48}


def test_shapes_are_made_once_and_alike_everywhere(tmp_path):
    sources = [open_source("shapes", "train", data_dir=tmp_path / d, **SMALL) for d in "ab"]
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}
    again = open_source("shapes", "train", data_dir=tmp_path / "a", **SMALL)
    after = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}
    assert before == after
    assert len(again) == 6
    for one, other, third in zip(*sources, again, strict=True):
        assert one["id"] == other["id"] == third["id"]
        np.testing.assert_array_equal(one["image"], other["image"])
        np.testing.assert_array_equal(one["label"], third["label"])
    seeded = open_source("shapes", "train", data_dir=tmp_path / "a", **SMALL, seed=1)
    assert (seeded[0]["image"] != again[0]["image"]).any()


def test_shapes_hold_every_class_void_and_thin_parts(tmp_path):
    source = open_source("shapes", "train", data_dir=tmp_path, train=40, val=1)
    labels = np.stack([example["label"] for example in source])
    share = np.bincount(labels.ravel(), minlength=256) / labels.size
    assert labels.shape == (40, 96, 96)
    assert set(np.flatnonzero(share)) == {0, 1, 2, 3, 4, 5, 255}
    assert share[1:6].min() > 0.01
    assert 0.01 < share[255] < 0.15
    check_disjoint(source, open_source("shapes", "val", data_dir=tmp_path, train=40, val=1))
    # Thin parts: a good share of the shapes' pixels lies in no 5x5 square of one shape.
    shape = (labels > 0) & (labels < 6)
    windows: Any = np.lib.stride_tricks.sliding_window_view(shape, (5, 5), axis=(1, 2))
    fits = windows.all((-2, -1))
    kept = np.zeros_like(shape)
    for row in range(5):
        for column in range(5):
            kept[:, row : row + 92, column : column + 92] |= fits
    assert 0.1 < 1 - kept.sum() / shape.sum() < 0.6


def test_source_is_a_sequence_with_a_stable_name(tmp_path):
    path = prepare("shapes", data_dir=tmp_path / "a", **SMALL)
    source = Source(path, "val")
    assert source[-1]["id"] == source[np.int64(2)]["id"] == source.ids[2]
    for outside in (3, -4):
        with pytest.raises(IndexError):
            source[outside]
    copy = pickle.loads(pickle.dumps(source))
    np.testing.assert_array_equal(copy[1]["image"], source[1]["image"])
    assert repr(copy) == repr(source)
    moved = shutil.copytree(path, tmp_path / "elsewhere" / "2.1.0")
    assert repr(Source(moved, "val")) == repr(source)
    np.testing.assert_array_equal(Source(moved, "val")[0]["image"], source[0]["image"])


def test_copies_of_another_version_are_refused(tmp_path):
    path = prepare("shapes", data_dir=tmp_path, **SMALL)
    metadata = json.loads((path / "metadata.json").read_text())
    metadata["classes"] = metadata.pop("label_maps")["label"]  # as version 1.0.0 had it
    (path / "metadata.json").write_text(json.dumps(metadata))
    with pytest.raises(ValueError, match="prepared by another version of fcn_jax; delete it"):
        Source(path, "train")


def test_split_expressions(tmp_path):
    def ids(split):
        return list(open_source("shapes", split, data_dir=tmp_path, **SMALL).ids)

    train, val = ids("train"), ids("val")
    for split, expected in {
        "train[:50%]": train[:3],
        "train[4:]": train[4:],
        "val+train[-1:]": val + train[-1:],
    }.items():
        assert ids(split) == expected
        source = open_source("shapes", split, data_dir=tmp_path, **SMALL)
        assert [example["id"] for example in source] == expected
    for wrong, message in {
        "test": r"no split 'test'; it has train \(6 images\), val \(3 images\)",
        "train[": "cannot read|no split",
        "": "no split ''",
        "train[:0]": "holds no image",
    }.items():
        with pytest.raises(ValueError, match=message):
            ids(wrong)


def test_unknown_names_list_what_exists(tmp_path):
    message = r"'cityscapes'; there are shapes, camvid, .*, folder, and tfds:NAME"
    with pytest.raises(ValueError, match=message):
        prepare("cityscapes", data_dir=tmp_path)
    with pytest.raises(ValueError, match="no option 'sede'; it has train, val, size, seed"):
        prepare("shapes", data_dir=tmp_path, sede=1)
    with pytest.raises(ValueError, match="train=0"):
        prepare("shapes", data_dir=tmp_path, train=0)
    with pytest.raises(FileNotFoundError, match=r"no folder .*nowhere"):
        prepare("camvid", data_dir=tmp_path, manual_dir=tmp_path / "nowhere")
    for name in ("camvid", "folder"):
        with pytest.raises(FileNotFoundError, match="manual_dir"):
            prepare(name, data_dir=tmp_path)


def test_no_tensorflow_and_a_cheap_import(tmp_path):
    code = (
        "import sys, fcn_jax.data as d\n"
        "assert 'tensorflow_datasets' not in sys.modules\n"
        f"s = d.open_source('shapes', 'val', data_dir={str(tmp_path)!r}, train=1, val=1)\n"
        "s[0]\n"
        "assert 'tensorflow' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[1])


def test_killed_preparation_is_never_taken_for_complete(tmp_path):
    options = {**SMALL, "train": 700}
    code = (
        "import fcn_jax.data as d\n"
        f"d.prepare('shapes', data_dir={str(tmp_path)!r}, train=700, val=3, size=48)\n"
    )
    root = Path(__file__).parents[1]
    process = subprocess.Popen([sys.executable, "-c", code], cwd=root, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not list(tmp_path.rglob("*array_record*")) and time.monotonic() < deadline:
        time.sleep(0.02)
    time.sleep(0.3)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    (config_dir,) = (tmp_path / "shapes").iterdir()
    assert [path.name[:11] for path in config_dir.iterdir()] == ["incomplete."]
    source = open_source("shapes", "train", data_dir=tmp_path, **options)
    assert len(source) == 700
    assert source[699]["image"].shape == (48, 48, 3)
    assert [path.name for path in config_dir.iterdir()] == ["2.1.0"]  # and nothing left over


def _prepare_small(data_dir: Path) -> str:
    return str(prepare("shapes", data_dir=data_dir, train=60, val=3, size=48))


def test_processes_may_prepare_at_once(tmp_path):
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        paths = pool.map(_prepare_small, [tmp_path, tmp_path])
    assert paths[0] == paths[1]
    assert len(Source(paths[0], "train")) == 60


def test_the_documentation_has_every_data_set():
    text = (Path(__file__).parents[1] / "docs/data.md").read_text()
    for name in (*DATASETS, "tfds:NAME"):
        assert f"| `{name}` |" in text
        if name != "folder":  # which has a page of its own
            assert f"## `{name}`" in text


@pytest.mark.parametrize("name", ["nyudv2", "sift_flow", "pascal_context", "sbd"])
def test_without_files_the_message_says_what_to_put_where(tmp_path, name):
    for manual_dir in (None, tmp_path):
        with pytest.raises(FileNotFoundError, match=f"^{name}: .*http") as caught:
            prepare(name, data_dir=tmp_path / "d", manual_dir=manual_dir)
        assert "manual_dir" in str(caught.value)
        assert manual_dir is None or str(manual_dir) in str(caught.value)


def test_a_copy_of_an_earlier_version_is_not_read(tmp_path, rng):
    nyu_tree(tmp_path / "m", rng)
    where = {"data_dir": tmp_path / "d", "manual_dir": tmp_path / "m"}
    path = prepare("nyudv2", **where)
    path.rename(path.with_name("1.0.0"))
    with pytest.raises(FileNotFoundError, match="nyudv2: no data"):
        prepare("nyudv2", data_dir=tmp_path / "d")
    assert prepare("nyudv2", **where) == path


def test_preprocessing_is_the_references():
    """B, G, R means of the reference implementation's data layers."""
    assert DATASETS["nyudv2"].preprocessing["image"].mean == (116.190, 97.203, 92.318)
    hha, depth = (DATASETS["nyudv2"].preprocessing[name] for name in ("hha", "depth"))
    assert hha.channel_order == "rgb"  # the reference does not flip HHA
    assert hha.mean == (132.431, 94.076, 118.477)
    assert (depth.mean, depth.std, depth.log) == ((7.844,), (1.0,), True)
    assert DATASETS["sift_flow"].preprocessing["image"].mean == (114.578, 115.294, 108.353)
    assert DATASETS["pascal_context"].preprocessing["image"].mean == (104.007, 116.669, 122.679)
    assert row_of("tfds:anything").preprocessing == {}


def test_real_camvid_and_voc(shared, tmp_path):
    camvid = {"data_dir": tmp_path, "manual_dir": shared / "data/CamVid"}
    train, val = (open_source("camvid", split, **camvid) for split in ("train", "val"))
    assert (len(train), len(val)) == (367, 101)
    check_disjoint(train, val)
    raw = np.array(Image.open(shared / f"data/CamVid/valannot/{val.ids[0]}.png"))
    np.testing.assert_array_equal(val[0]["label"], np.where(raw == 11, 255, raw))
    voc = {"data_dir": tmp_path, "manual_dir": shared / "data"}
    train, val = (open_source("voc2012", split, **voc) for split in ("train", "val"))
    assert (len(train), len(val)) == (60, 40)
    check_disjoint(train, val)
    with pytest.raises(ValueError, match="seg11valid has 0 of the 736 images"):
        open_source("voc2012", "seg11valid", **voc)  # none of the sample is in it
    for example in val:
        assert example["image"].shape[:2] == example["label"].shape
        assert set(np.unique(example["label"])) <= {*range(21), 255}


def test_prepared_copies_are_plain_tfds(tmp_path):
    """TFDS reads them without this package's builders."""
    import tensorflow_datasets as tfds

    path = prepare("shapes", data_dir=tmp_path, **SMALL)
    builder: Any = tfds.builder_from_directory(str(path))
    assert builder.info.splits["val"].num_examples == 3
    example = builder.as_data_source(split="val")[0]
    assert example["image"].shape == (48, 48, 3)
    assert example["label"].shape == (48, 48, 1)
    assert json.loads((path / "metadata.json").read_text())["label_maps"]["label"]["classes"]
