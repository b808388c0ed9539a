"""What holds for every data set: prepared once, found again, or refused."""

from __future__ import annotations

import concurrent.futures
import functools
import json
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fcn_jax.data import DATASETS, Source, check_disjoint, open_source, prepare, row_of
from fcn_jax.data.records import VERSION

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


def test_label_counts_need_no_pass(tmp_path):
    source = open_source("shapes", "train[1:5]", data_dir=tmp_path, **SMALL)
    classes = source.classes.num_classes
    counts = [np.bincount(example["label"].ravel(), minlength=256)[:classes] for example in source]
    np.testing.assert_array_equal(source.label_counts["label"], counts)
    assert all(0 < sum(of_image) < 48 * 48 for of_image in counts)  # there is void
    rest = source.without(source.digests[1:3])
    np.testing.assert_array_equal(rest.label_counts["label"], [counts[0], counts[3]])


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
    moved = shutil.copytree(path, tmp_path / "elsewhere" / VERSION)
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


# A process that prepares one set completely, and is killed while it prepares another.
PREPARING = """
import sys
import fcn_jax.data
assert "tensorflow_datasets" not in sys.modules  # importing is cheap
import fcn_jax.data.shapes as shapes

folder, draw, drawn = sys.argv[1], shapes.draw_example, []

def draw_slowly(*args):
    drawn.append(args)
    if len(drawn) == 5:
        print("writing", flush=True)
        sys.stdin.readline()
    return draw(*args)

shapes.draw_example = draw_slowly
for seed in (0, 1):
    drawn.clear()
    fcn_jax.data.prepare("shapes", data_dir=folder, train=6, val=3, size=48, seed=seed)
    assert "tensorflow" not in sys.modules
    print("prepared", flush=True)
    sys.stdin.readline()
"""


@pytest.fixture
def preparing(tmp_path) -> Iterator[tuple[subprocess.Popen[str], Callable[[], None], Callable]]:
    """The process, what lets it go on, and what waits for a line of it."""
    process = subprocess.Popen(
        [sys.executable, "-c", PREPARING, str(tmp_path)],
        cwd=Path(__file__).parents[1],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    yield process, functools.partial(print, file=process.stdin, flush=True), process.stdout.readline
    process.kill()
    process.wait()


def test_processes_wait_for_one_another(tmp_path, preparing, capsys):
    process, go_on, said = preparing
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        assert said() == "writing\n"
        waiting = pool.submit(prepare, "shapes", data_dir=tmp_path, **SMALL)
        assert not concurrent.futures.wait([waiting], timeout=0.3).done
        go_on()
        assert said() == "prepared\n"
        path = waiting.result(timeout=60)
        assert "Preparing" not in capsys.readouterr().err
        changed = {file.stat().st_mtime_ns for file in path.iterdir()}
        go_on()

        # What a killed process leaves is never taken for complete; its lock is dropped.
        assert said() == "writing\n"
        (folder,) = tmp_path.glob("shapes/*-seed1")
        assert [path.name[:11] for path in folder.iterdir()] == ["incomplete."]
        waiting = pool.submit(prepare, "shapes", data_dir=tmp_path, **SMALL, seed=1)
        assert not concurrent.futures.wait([waiting], timeout=0.3).done
        process.kill()
        source = Source(waiting.result(timeout=60), "train")
    assert source[5]["image"].shape == (48, 48, 3)
    assert [path.name for path in folder.iterdir()] == [VERSION]  # and nothing left over
    # Who waited for the first copy found it.
    assert len(Source(path, "train")) == 6
    assert {file.stat().st_mtime_ns for file in path.iterdir()} == changed


def test_the_documentation_has_every_data_set():
    text = (Path(__file__).parents[1] / "docs/data.md").read_text()
    for name in (*DATASETS, "tfds:NAME"):
        assert f"| `{name}` |" in text
        if name != "folder":  # which has a page of its own
            assert f"## `{name}`" in text


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
