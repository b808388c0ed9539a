"""A run's folder that names code: it runs only if that is allowed, and only what was trained with.

The folder's checkpoint is as train.py writes it; the code beside it leaves a mark when it runs.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from random_parameters import random_parameters
from test_training import run

import fcn_jax
from fcn_jax import config as configs
from fcn_jax import weights
from fcn_jax.checkpoints import StageCheckpoints
from fcn_jax.classes import table_from_names
from fcn_jax.cli import eval as eval_command
from fcn_jax.cli import predict as predict_command
from fcn_jax.cli import train as train_command
from fcn_jax.models import backbones
from fcn_jax.models.inputs import CAFFE, Inputs
from fcn_jax.runs import build_model, describe_run, load_run

CODE = """
from pathlib import Path
from fcn_jax.geometry import Window
from fcn_jax.models.backbones import Backbone, Conv
MARK = Path(__file__).with_name("ran")
MARK.touch()

def small(padding, width, fc_width):
    return Backbone((Conv("only", 4, Window(4, stride=2, pad=1)),))
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """A run's folder, with its code beside it."""
    place = tmp_path_factory.mktemp("strange")
    (place / "own.py").write_text(CODE)
    config = configs.default_config()
    config.update(stages=("fcn32s",), backbone=f"{place / 'own.py'}:small", dataset="shapes")
    heads, inputs = {"label": table_from_names(["a", "b"])}, Inputs.of(CAFFE)
    state = {"params": random_parameters(build_model(config, "fcn32s", heads, inputs), 0)}
    description = describe_run(config, heads, inputs)
    (place / "run").mkdir()
    (place / "run" / "config.json").write_text(config.to_json())
    with StageCheckpoints(place / "run", "fcn32s") as checkpoints:
        checkpoints.save(1, state, {}, description, None)
    return place


@pytest.fixture
def stranger(made, tmp_path, monkeypatch) -> Path:
    """A copy of it; nothing has run yet."""
    backbones._run.cache_clear()
    shutil.copytree(made / "run", tmp_path / "run")
    (made / "own.py").write_text(CODE)
    (made / "ran").unlink(missing_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "run"


def commands(folder: Path) -> list:
    image = f"--output={folder.parent / 'out'}"
    return [
        (predict_command.main, [f"--workdir={folder}", str(folder), image]),
        (predict_command.main, [f"--workdir={folder}", "x.png", image]),
        (eval_command.main, [f"--workdir={folder}", f"--data_dir={folder.parent}"]),
        (
            train_command.main,
            ["--config=quickstart", f"--config.init={folder}", f"--workdir={folder.parent / 'n'}"],
        ),
    ]


def test_nothing_runs_unless_it_is_allowed(made, stranger):
    for load in (load_run, fcn_jax.load, weights.load):
        with pytest.raises(ValueError, match=r"own\.py.*allow it with allow_code=True, or --allow"):
            load(stranger)
    for main, argv in commands(stranger)[1:]:
        code, _, errors = run(main, argv)
        assert code == 2
        assert "--allow_code" in errors or "images" in errors, errors
        assert errors.strip().count("\n") <= 3
    assert not (made / "ran").exists()


def test_allowed_code_runs_and_predicts(made, stranger):
    assert fcn_jax.load(stranger, allow_code=True).names("label") == ("a", "b")
    assert (made / "ran").exists()
    assert weights.load(stranger, allow_code=True)


@pytest.mark.parametrize("allow", [True, "0" * 64])
def test_changed_code_does_not_run(made, stranger, allow):
    (made / "own.py").write_text(CODE + "# changed\n")
    message = "the file has changed" if allow is True else "allow it"
    with pytest.raises(ValueError, match=message):
        load_run(stranger, allow_code=allow)
    assert not (made / "ran").exists()


def test_missing_code_is_named(made, stranger):
    (made / "own.py").unlink()
    with pytest.raises(ValueError, match=r"needs the code .*own\.py: No such file"):
        load_run(stranger, allow_code=True)


@pytest.mark.parametrize("code", [None, {}, {"file": 3, "sha256": "x"}, ["own.py"]])
def test_a_name_without_a_digest_does_not_run(made, stranger, code):
    with pytest.raises(ValueError, match="without its digest"):
        backbones.find_trusted(f"{made / 'own.py'}:small", code, True, "run")
    assert not (made / "ran").exists()


def test_modules_are_not_imported_either(made, stranger, monkeypatch):
    monkeypatch.syspath_prepend(str(made))
    name, described = "own:small", backbones.code_of("own:small")
    with pytest.raises(ValueError, match="allow it"):
        backbones.find_trusted(name, described, False, "run")
    assert not (made / "ran").exists()
    assert backbones.find_trusted(name, described, True, "run")("same", 1.0, 8).layers


def test_code_is_found_where_its_relative_name_leads(made, stranger):
    """Where it was in training; if it is there no more, from here: but only that same file."""
    described = backbones.code_of(f"{made / 'own.py'}:small")
    described["file"] = "/nowhere/own.py"
    shutil.copy(made / "own.py", stranger.parent / "own.py")
    assert backbones.find_trusted("own.py:small", described, True, "run")
    (stranger.parent / "own.py").write_text("raise RuntimeError")
    with pytest.raises(ValueError, match="has changed"):
        backbones.find_trusted("own.py:small", described, True, "run")
