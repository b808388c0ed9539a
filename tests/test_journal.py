"""What a run tells while it goes on, and to whom. Damaged records: test_checkpoints.py."""

from __future__ import annotations

import json
import sys
import time
from unittest.mock import ANY

import numpy as np
import pytest
from PIL import Image

from fcn_jax import config as configs
from fcn_jax.training import run as training
from fcn_jax.training.journal import Journal
from fcn_jax.training.loggers import WeightsAndBiases


class Heard:
    """A logger that keeps what it is told."""

    def __init__(self):
        self.calls = []

    def begin(self, stage, step):
        self.calls.append(("begin", stage, step))

    def record(self, stage, step, values):
        self.calls.append(("record", stage, step, values))

    def picture(self, stage, step, name, image):
        self.calls.append(("picture", stage, step, name, np.asarray(image).shape))

    def close(self):
        self.calls.append(("close",))


def tell(journal):
    with journal, journal.progress("fcn32s", 4, 10):
        journal.record("fcn32s", 5, {"loss": 0.5})
        journal.picture("fcn32s", 5, "sample0", Image.new("RGB", (4, 3)))


def test_loggers_and_callbacks_are_told_what_is_recorded(tmp_path):
    heard, called = Heard(), []
    callback = lambda *given: called.append(given)  # noqa: E731
    tell(Journal(tmp_path, ("fcn32s",), loggers=[heard], callbacks=[callback]))
    assert heard.calls == [
        ("begin", "fcn32s", 4),
        ("record", "fcn32s", 5, {"loss": 0.5, "wall_time": ANY}),
        ("picture", "fcn32s", 5, "sample0", (3, 4, 3)),
        ("close",),
    ]
    assert called == [("fcn32s", 5, {"loss": 0.5, "wall_time": ANY})]
    assert json.loads((tmp_path / "metrics.jsonl").read_text()) == {
        "stage": "fcn32s",
        "step": 5,
        "loss": 0.5,
        "wall_time": ANY,
    }
    assert list((tmp_path / "tensorboard" / "fcn32s").iterdir())


def test_other_processes_tell_nobody(tmp_path):
    heard, called = Heard(), []
    callback = lambda *given: called.append(given)  # noqa: E731
    tell(Journal(tmp_path, ("fcn32s",), silent=True, loggers=[heard], callbacks=[callback]))
    assert heard.calls == [("close",)]
    assert not called
    assert not list(tmp_path.iterdir())


def test_the_wall_time_goes_on_where_the_run_does(tmp_path):
    """What was lost to a kill does not count."""
    with Journal(tmp_path, ("fcn32s",)) as journal:
        for step, seconds in ((1, 100), (2, 5000)):
            journal._begun = time.monotonic() - seconds
            journal.record("fcn32s", step, {"loss": 0.5})
    with Journal(tmp_path, ("fcn32s",)) as journal:
        journal.rewind("fcn32s", 1)
        journal.rewind("fcn32s", 1)
        journal.record("fcn32s", 2, {"loss": 0.5})
    records = map(json.loads, (tmp_path / "metrics.jsonl").read_text().splitlines())
    first, second = (record["wall_time"] for record in records)
    assert 100 <= first < second < 150


# ======================================================================== Weights & Biases


def history(path):
    """The logged rows of a .wandb file: records of LevelDB's log format, each a protobuf."""
    from wandb.proto import wandb_internal_pb2

    raw, place, part = path.read_bytes(), 7, b""
    while place + 7 <= len(raw):
        if (left := 32768 - place % 32768) < 7:
            place += left
        length, kind = int.from_bytes(raw[place + 4 : place + 6], "little"), raw[place + 6]
        part += raw[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or the last part
            record, part = wandb_internal_pb2.Record.FromString(part), b""
            if record.WhichOneof("record_type") == "history":
                items = record.history.item
                yield {"/".join(i.nested_key) or i.key: json.loads(i.value_json) for i in items}


def test_weights_and_biases_offline(tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    logger = WeightsAndBiases(tmp_path, configs.to_plain(configs.default_config()))
    tell(Journal(tmp_path, ("fcn32s",), loggers=[logger]))
    wandb.teardown()  # its process writes the file, and may not have done so when a run is finished
    (path,) = tmp_path.glob("wandb/offline-run-*/*.wandb")
    numbers, picture = history(path)
    assert numbers.items() > {"fcn32s/loss": 0.5, "fcn32s/step": 5}.items()
    assert picture["fcn32s/step"] == 5
    (file,) = path.parent.glob("files/media/images/fcn32s/sample0*.png")
    assert Image.open(file).size == (4, 3)


def test_without_its_package_nothing_begins(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    config = configs.load_config("quickstart")
    config.logger = "wandb"
    with pytest.raises(
        ValueError, match=r"config\.logger = 'wandb': .*; pip install 'fcn-jax\[wand"
    ):
        training.train(config, tmp_path / "run")
    assert not list(tmp_path.iterdir())
