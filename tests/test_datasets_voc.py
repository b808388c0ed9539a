"""PASCAL VOC joined with SBD, under other names, and as the official archives."""

from __future__ import annotations

import functools
import hashlib
import http.server
import shutil
import tarfile
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dataset_trees import SBD_IDS, VOC_IDS, random_image, save_palette, save_sbd, sbd_tree, voc_tree

from fcn_jax.data import check_disjoint, open_source, prepare, voc


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
    with pytest.raises(
        ValueError, match=r"10 bytes .* not the official file, which has 1999639040"
    ):
        prepare("voc2012", data_dir=tmp_path / "d", manual_dir=tmp_path / "empty")


@pytest.fixture
def archives(tmp_path, rng, monkeypatch) -> Path:
    """A folder of VOC's and SBD's archives, small ones that are taken for the official ones."""
    voc_tree(tmp_path / "made/VOCdevkit/VOC2012", rng)
    sbd_tree(tmp_path / "made/benchmark_RELEASE/dataset", rng)
    folder = tmp_path / "archives"
    folder.mkdir()
    for url, inside in ((voc.VOC_URL, "VOCdevkit"), (voc.SBD_URL, "benchmark_RELEASE")):
        mode: Any = "w:gz" if url.endswith("tgz") else "w"
        with tarfile.open(folder / Path(url).name, mode) as archive:
            archive.add(tmp_path / "made" / inside, inside)
    content = (folder / Path(voc.VOC_URL).name).read_bytes()
    monkeypatch.setattr(voc, "VOC_BYTES", len(content))
    monkeypatch.setattr(voc, "VOC_SHA256", hashlib.sha256(content).hexdigest())
    return folder


def assert_both_are_read(**where) -> None:
    assert open_source("voc2012", "train", **where).ids == tuple(VOC_IDS["train"])
    assert open_source("voc2012", "sbd_train", **where).ids == tuple(SBD_IDS["train"])


def test_archives_are_extracted(tmp_path, archives):
    assert_both_are_read(data_dir=tmp_path / "d", manual_dir=archives)
    # VOC as files, with SBD's archive beside it.
    (archives / Path(voc.VOC_URL).name).unlink()
    shutil.move(tmp_path / "made/VOCdevkit", archives)
    assert_both_are_read(data_dir=tmp_path / "e", manual_dir=archives)


def test_an_archive_of_other_contents_is_refused(tmp_path, archives, monkeypatch):
    monkeypatch.setattr(voc, "VOC_SHA256", "0" * 64)
    with pytest.raises(ValueError, match=r"not the official file, which has .* and 0000"):
        prepare("voc2012", data_dir=tmp_path / "d", manual_dir=archives)


def test_archives_are_downloaded(tmp_path, archives, monkeypatch):
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(archives))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        for name in ("VOC_URL", "SBD_URL"):
            file = Path(getattr(voc, name)).name
            monkeypatch.setattr(voc, name, f"http://127.0.0.1:{server.server_port}/{file}")
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        assert_both_are_read(data_dir=tmp_path / "d", sbd="download")
        server.shutdown()
    assert list((tmp_path / "d/downloads").iterdir())
