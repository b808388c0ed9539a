"""Prepared copies: the same bytes from any number of processes, after a kill too, at any size."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import multiprocessing
import os
import pickle
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fcn_jax.data import Source, prepare, shapes, writing
from fcn_jax.data.records import VERSION, Contents, Entry, Part
from fcn_jax.data.shapes import SHAPES


def draw(number: int) -> dict[str, Part]:
    return shapes._load((0, 0, number), 48)


def draw_or_fail(number: int, failing: tuple[int, ...]) -> dict[str, Part]:
    if number in failing:
        time.sleep(number == 3)  # the later one fails first
        raise ValueError(f"photo{number}.png: it is no image")
    return draw(number)


def draw_or_die(number: int) -> dict[str, Part]:
    if number == 5 and multiprocessing.parent_process() is not None:
        os.kill(os.getpid(), 9)
    return draw(number)


def contents(load: Callable[[int], Any] = draw, train: int = 7) -> Contents:
    def entries(split: str, numbers: range) -> list[Entry]:
        return [Entry(f"{split}/grün_{i}", functools.partial(load, i)) for i in numbers]

    splits = {"train": entries("train", range(train)), "val": entries("val", range(90, 93))}
    return Contents(splits, {"label": SHAPES}, "drawn")


def write(folder: Path, what: Contents | None = None, processes: int = 1) -> Path:
    path = folder / f"drawn/a/{VERSION}"
    path.parent.mkdir(parents=True, exist_ok=True)
    writing.write(what or contents(), path, "Shapes.", {"options": {}}, processes)
    assert [each.name for each in path.parent.iterdir()] == [VERSION]
    return path


def bytes_of(copy: Path) -> dict[str, str]:
    files = {str(p.relative_to(copy)): p for p in sorted(copy.rglob("*")) if p.is_file()}
    return {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in files.items()}


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
    monkeypatch.setattr(writing, "SMALLEST_SHARD", 3)


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(writing, "SMALLEST_SHARD", 3)
        return write(tmp_path_factory.mktemp("whole"))


def test_a_copy_of_several_shards(whole):
    import tensorflow_datasets as tfds

    source = Source(whole, "train")
    assert source.ids == tuple(f"train/grün_{i}" for i in range(7))
    for number, example in enumerate(source):
        image, label = shapes.draw_example(np.random.default_rng((0, 0, number)), 48)
        np.testing.assert_array_equal(example["image"], image)
        np.testing.assert_array_equal(example["label"], label)
        counts = np.bincount(label.ravel(), minlength=256)[:6]
        np.testing.assert_array_equal(source.label_counts["label"][number], counts)
        assert source.sizes[number] == (48, 48)
    mixed = Source(whole, "val+train[2:5]")
    assert mixed.ids == (*Source(whole, "val").ids, *source.ids[2:5])
    assert [example["id"] for example in mixed] == [*mixed.ids]
    rest = mixed.without([mixed.digests[0], mixed.digests[4]])
    assert rest.ids == (*mixed.ids[1:4], mixed.ids[5]) == tuple(each["id"] for each in rest)
    rest = pickle.loads(pickle.dumps(rest.without(rest.digests[:1])))
    assert (rest.ids, rest[-1]["id"]) == ((*mixed.ids[2:4], mixed.ids[5]), mixed.ids[5])
    np.testing.assert_array_equal(rest.label_counts["label"][-1], source.label_counts["label"][4])

    # TFDS reads all shards, and knows how much there is.
    builder: Any = tfds.builder_from_directory(str(whole))
    assert builder.info.splits["train"].shard_lengths == [3, 3, 1]
    by_tfds = builder.as_data_source(split="train")
    assert [example["id"].decode() for example in by_tfds] == [*source.ids]
    np.testing.assert_array_equal(by_tfds[6]["image"], source[6]["image"])
    records = sum(len(by_tfds.data_source[i]) for i in range(7))
    assert builder.info.splits["train"].num_bytes == records


def test_processes_write_the_same_bytes(tmp_path, whole, capfd):
    copy = write(tmp_path, processes=2)
    assert bytes_of(copy) == bytes_of(whole)
    assert "drawn: 10 images prepared in" in (told := capfd.readouterr().err)
    assert "images/s, 2 processes)" in told


# Prepares, and stays at the image of number 5.
KILLED = """
import functools, sys
sys.path.insert(0, {tests!r})
import test_writing
from fcn_jax.data import writing

writing.SMALLEST_SHARD = 3
if __name__ == "__main__":
    folder = test_writing.Path({folder!r})
    load = functools.partial(test_writing.draw_slowly, folder)
    test_writing.write(folder, test_writing.contents(load), {processes})
"""


def draw_slowly(folder: Path, number: int) -> dict[str, Part]:
    if number == 5:
        (folder / "process").write_text(str(os.getpid()))
        time.sleep(200)
    return draw(number)


def is_there(process: int) -> bool:
    with contextlib.suppress(ProcessLookupError):
        os.kill(process, 0)
        state = Path(f"/proc/{process}/stat")  # where nobody waits for it a zombie is left
        return not (state.exists() and ") Z" in state.read_text())
    return False


@pytest.mark.parametrize("processes", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_killed_preparation_goes_on(tmp_path, whole, processes, capfd):
    script = tmp_path / "prepare.py"
    options = {"tests": str(Path(__file__).parent), "folder": str(tmp_path)}
    script.write_text(KILLED.format(**options, processes=processes))
    root = str(Path(__file__).parents[1])
    process = subprocess.Popen(
        [sys.executable, str(script)], env={**os.environ, "PYTHONPATH": root}
    )
    incomplete = tmp_path / f"drawn/a/incomplete.{VERSION}"
    complete = {1: ["train-00000.npz"], 2: ["train-00000.npz", "train-00002.npz", "val-00000.npz"]}
    end = time.monotonic() + 120
    while not (
        (tmp_path / "process").exists()
        and sorted(p.name for p in incomplete.glob("lists/*")) == complete[processes]
    ):
        assert time.monotonic() < end
        time.sleep(0.02)
    process.kill()
    process.wait()
    own = int((tmp_path / "process").read_text())
    while is_there(own):  # a process that prepares ends with the first one
        assert time.monotonic() < end
        time.sleep(0.1)
    assert not incomplete.with_name(VERSION).exists()

    drawn: list[int] = []

    def count(number: int) -> dict[str, Part]:
        drawn.append(number)
        return draw(number)

    copy = write(tmp_path, contents(count))
    left = {1: [3, 4, 5, 6, 90, 91, 92], 2: [3, 4, 5]}[processes]
    assert drawn == [0, *left]  # the first image tells what all are
    assert bytes_of(copy) == bytes_of(whole)
    assert f"drawn: goes on after {10 - len(left)} of 10 images" in capfd.readouterr().err


def stop_at(number: int, last: int) -> dict[str, Part]:
    if number == last:
        raise KeyboardInterrupt
    return draw(number)


@pytest.mark.parametrize("damage", ["", "other ids", "other notes", "short file", "list left out"])
def test_only_whole_shards_of_the_same_plan_are_taken_over(tmp_path, whole, damage):
    path = tmp_path / f"drawn/a/{VERSION}"
    path.parent.mkdir(parents=True)
    with pytest.raises(KeyboardInterrupt):
        writing.write(
            contents(functools.partial(stop_at, last=5)), path, "Shapes.", {"options": {}}
        )
    incomplete = path.with_name(f"incomplete.{VERSION}")
    shard = incomplete / "copy/drawn-train.array_record-00000"
    assert shard.stat().st_size
    drawn: list[int] = []

    def count(number: int) -> dict[str, Part]:
        drawn.append(number)
        return draw(number)

    what = contents(count)
    if damage == "other ids":
        entries = [Entry(f"b{entry.id}", entry.load) for entry in what.splits["train"]]
        what = Contents({**what.splits, "train": entries}, what.label_maps, what.source)
    elif damage == "other notes":
        what = Contents(what.splits, what.label_maps, what.source, ("half of it",))
    elif damage == "short file":
        shard.write_bytes(shard.read_bytes()[:-1])
    elif damage == "list left out":
        (incomplete / "lists/train-00000.npz").unlink()
    copy = write(tmp_path, what)
    assert drawn == [0, *range(3 if not damage else 0, 7), 90, 91, 92]
    assert (bytes_of(copy) == bytes_of(whole)) == (not damage.startswith("other"))
    assert len(list(Source(copy, "train"))) == 7


def test_a_full_disk_leaves_what_is_complete(tmp_path, monkeypatch):
    def full(number: int) -> dict[str, Part]:
        if number == 4:
            raise OSError(28, "No space left on device")
        return draw(number)

    with pytest.raises(OSError, match="No space left"):
        write(tmp_path, contents(full))
    assert list(tmp_path.glob("drawn/a/incomplete.*/lists/train-00000.npz"))


@pytest.mark.parametrize("processes", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_the_first_wrong_example_is_told(tmp_path, processes):
    fail = functools.partial(draw_or_fail, failing=(3, 6))
    with pytest.raises(ValueError, match=r"^photo3\.png: it is no image$"):
        write(tmp_path, contents(fail), processes)
    assert not list((tmp_path / "drawn/a").iterdir())


def test_two_examples_of_one_id_are_refused_before_any_is_read(tmp_path):
    what = contents(lambda number: pytest.fail(f"photograph {number} was read"))
    entries = [*what.splits["train"][:6], what.splits["train"][0]]
    with pytest.raises(ValueError, match="drawn: two examples of train have the id 'train/grün_0'"):
        write(tmp_path, Contents({"train": entries}, what.label_maps, "drawn"))
    assert not list((tmp_path / "drawn/a").iterdir())


@pytest.mark.slow
def test_a_killed_process_is_told(tmp_path, whole):
    with pytest.raises(OSError, match="was killed, perhaps for want of memory; the same command"):
        write(tmp_path, contents(draw_or_die), 2)
    assert bytes_of(write(tmp_path, contents(draw_or_die))) == bytes_of(whole)


def test_few_images_start_no_processes(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "loky", None)
    prepare("shapes", data_dir=tmp_path, train=5, val=2, size=48)


# ======================================================================== size


def blown_up(copy: Path, examples: int) -> Path:
    """A copy that says to hold so many examples, the same three over and over."""
    metadata = json.loads((copy / "metadata.json").read_text())
    (copy / "metadata.json").write_text(
        json.dumps({**metadata, "shards": {**metadata["shards"], "train": [examples]}})
    )
    for path in copy.glob("lists/train.*.npy"):
        column = np.load(path)
        many = np.resize(column, (examples, *column.shape[1:]))
        np.save(path, many)
    return copy


def test_opening_costs_nothing_of_each_example(tmp_path):
    peaks, seconds = {}, {}
    for examples in (300, 200_000):
        copy = blown_up(write(tmp_path / str(examples)), examples)
        Source(copy, "val")  # imports
        tracemalloc.start()
        begun = time.perf_counter()
        source = Source(copy, "train[:90%]+val")
        seconds[examples] = time.perf_counter() - begun
        assert len(source) == examples * 9 // 10 + 3
        assert source._place(examples // 2) == ("train", examples // 2)
        assert len(pickle.dumps(source)) < 4000
        peaks[examples] = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peaks[200_000] < peaks[300] + 20_000
    assert seconds[200_000] < 1
    assert len(source.ids) == len(source.digests) == len(source.sizes) == 180_003
    assert source.label_counts["label"].shape == (180_003, 6)
