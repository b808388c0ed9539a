"""Checkpoints and the other files of a run: whole, or told and replaced by what is whole."""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import random
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from random_parameters import random_parameters
from test_training import run as run_command

from fcn_jax import config as configs
from fcn_jax import runs
from fcn_jax.checkpoints import Damaged, StageCheckpoints, digest_arrays, note
from fcn_jax.classes import table_from_names
from fcn_jax.cli import eval as eval_command
from fcn_jax.cli import train as train_command
from fcn_jax.models.inputs import CAFFE, Inputs
from fcn_jax.runs import load_run, read_config
from fcn_jax.training.journal import Journal
from fcn_jax.training.step import init_state

STAGE = "fcn32s"
HERE = jax.sharding.SingleDeviceSharding(jax.devices()[0])
SCORES = {2: 0.75, 4: 0.25, 6: 0.5}


def make_config() -> configs.Config:
    config = configs.default_config()
    config.backbone = f"{Path(__file__).parent / 'toy_backbones.py'}:plain"
    config.stages, config.width, config.fc_width = (STAGE,), 0.25, 3
    return config


@pytest.fixture(scope="module")
def states():
    """Train states of a tiny network by step."""
    heads, inputs = {"label": table_from_names(["a", "b"])}, Inputs.of(CAFFE)
    model = runs.build_model(make_config(), STAGE, heads, inputs)
    return {
        step: init_state(random_parameters(model, step), optax.trace(0.9))._replace(
            step=np.int32(step)
        )
        for step in SCORES
    }


@pytest.fixture(scope="module")
def saved(states, tmp_path_factory):
    """A run of one stage with the checkpoints 2, which is the best, 4 and 6."""
    folder = tmp_path_factory.mktemp("saved") / "run"
    folder.mkdir()
    config, heads = make_config(), {"label": table_from_names(["a", "b"])}
    (folder / "config.json").write_text(json.dumps(configs.to_plain(config), indent=2))
    described = runs.describe_run(config, heads, Inputs.of(CAFFE))
    with StageCheckpoints(folder, STAGE) as checkpoints:
        for step, state in states.items():
            metrics = {"mean_iu": SCORES[step]}
            checkpoints.save(step, state, {"next_batch": step}, described, metrics)
    return folder


@pytest.fixture
def copy(saved, tmp_path):
    return Path(shutil.copytree(saved, tmp_path / "run"))


def stage_of(folder: Path) -> Path:
    return folder / "checkpoints" / STAGE


def files_of(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def read(folder: Path, like, told: list[str], *, read_only: bool = True):
    """What training, prediction of the last and of the best checkpoint get of a run."""
    with StageCheckpoints(folder, STAGE, read_only=read_only, tell=told.append) as checkpoints:
        state, position = checkpoints.restore(jax.eval_shape(lambda: like), HERE)
        assert position == {"next_batch": int(state.step)}
        return state, checkpoints.load("last"), checkpoints.load("best")


def assert_same(found, expected) -> None:
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(one, other)


# ======================================================================== what is kept


def test_what_is_saved_comes_back_with_digests_of_all_bytes(saved, states):
    told = []
    state, (last, run, params), (best, _, best_params) = read(saved, states[6], told)
    assert not told
    assert_same(state, states[6])
    assert (last, best) == (6, 2)
    assert_same(params, states[6].params)
    assert_same(best_params, states[2].params)
    assert run["config"]["fc_width"] == 3
    text = (stage_of(saved) / "6" / "description" / "metadata").read_text()
    digests = json.loads(text)["arrays"]
    assert len(digests) == len(jax.tree.leaves(states[6]))
    for layer, arrays in states[6].params.items():
        for name, array in arrays.items():
            kind, _, rest = digests[f"params/{layer}/{name}"].partition(" ")
            shape, _, digest = rest.rpartition(" ")
            assert (kind, shape) == ("float32", str(array.shape))
            expected = hashlib.sha256(np.asarray(array).tobytes()).hexdigest()
            assert expected.startswith(digest)
            assert len(digest) >= 16


@pytest.mark.parametrize(
    ("scores", "kept"),
    [
        ([None, None, None, None], [3, 4]),
        ([0.1, 0.9, 0.2, 0.3], [2, 3, 4]),
        ([0.5, 0.9, math.nan, 0.95], [3, 4]),
        ([math.nan, 0.2, 0.2, 0.1], [3, 4]),
        ([0.7, math.nan, None, 0.1], [1, 3, 4]),
    ],
)
def test_the_last_two_and_the_best_are_kept(tmp_path, scores, kept):
    state = {"params": {"a": {"bias": np.zeros(2, np.float32)}}}
    for half in (slice(2), slice(2, 4)):  # the second half by another process, as it were
        with StageCheckpoints(tmp_path, STAGE) as checkpoints:
            for step, score in list(enumerate(scores, 1))[half]:
                metrics = None if score is None else {"mean_iu": score}
                checkpoints.save(step, state, {}, {}, metrics)
    with StageCheckpoints(tmp_path, STAGE, read_only=True) as checkpoints:
        assert checkpoints.steps() == kept
        known = [s for s in scores if s is not None and not math.isnan(s)]
        best = max(kept, key=lambda step: (scores[step - 1] in known, scores[step - 1] or 0, step))
        assert checkpoints.load("best")[0] == (best if known else 4)


# ======================================================================== damage


def flip(path: Path, rng: random.Random) -> None:
    content = bytearray(path.read_bytes())
    bit = rng.randrange(8 * len(content))
    content[bit // 8] ^= 1 << bit % 8
    path.write_bytes(content)


def cut(path: Path, rng: random.Random) -> None:
    os.truncate(path, rng.randrange(path.stat().st_size))


def remove(path: Path, rng: random.Random) -> None:
    del rng
    path.unlink()


@pytest.mark.parametrize(("harm", "each"), [(flip, 3), (cut, 1), (remove, 1)])
def test_damage_of_any_file_is_told_or_changes_nothing(
    copy, states, harm: Callable[[Path, random.Random], None], each, capfd
):
    rng = random.Random(0)
    detected = 0
    for path in files_of(stage_of(copy) / "6") * each:
        content = path.read_bytes()
        harm(path, rng)
        told: list[str] = []
        state, (last, _, params), (best, _, best_params) = read(copy, states[6], told)
        path.write_bytes(content)
        detected += bool(told)
        for text in told:
            assert re.match(rf"{stage_of(copy) / '6'}/\w+ is damaged.*; step [24] is used", text)
            assert "\n" not in text
            assert len(text) < 600
        assert int(state.step) == 6 or told
        assert last == 6 or told
        assert_same(state, states[int(state.step)])
        assert_same(params, states[last].params)
        assert best == 2
        assert_same(best_params, states[2].params)
    assert detected >= 4 * each
    assert capfd.readouterr() == ("", "")  # no traceback of a library's thread


def test_another_checkpoints_arrays_are_not_taken_for_its_own(copy, states):
    """They are whole for orbax; only digests tell them apart."""
    shutil.rmtree(stage_of(copy) / "6" / "state")
    shutil.copytree(stage_of(copy) / "2" / "state", stage_of(copy) / "6" / "state")
    told: list[str] = []
    state, *_ = read(copy, states[6], told)
    assert_same(state, states[4])
    assert re.search(r"6/state is damaged: \S+, \S+, \S+ and \d+ more not what was saved", told[0])


def test_a_damaged_checkpoint_is_set_aside_by_training_alone(copy, states):
    (stage_of(copy) / "6" / "state" / "_METADATA").write_text("{")
    told: list[str] = []
    read(copy, states[6], told)
    assert (stage_of(copy) / "6").is_dir()
    assert "set aside" not in "".join(told)
    (stage_of(copy) / "6.damaged").mkdir()  # of an earlier time
    told.clear()
    state, *_ = read(copy, states[6], told, read_only=False)
    assert int(state.step) == 4
    (text,) = told  # what is set aside is not met again
    assert "set aside as 6.damaged1; step 4 is used instead" in text
    assert (stage_of(copy) / "6.damaged1" / "state" / "_METADATA").read_text() == "{"
    (stage_of(copy) / "4" / "_CHECKPOINT_METADATA").write_bytes(b"\xff")
    with StageCheckpoints(copy, STAGE) as checkpoints:  # neither stands in the way of the next
        checkpoints.save(6, states[6], {"next_batch": 6}, {}, None)
    state, *_ = read(copy, states[6], told)
    assert_same(state, states[6])
    assert sorted(path.name for path in stage_of(copy).iterdir()) == [
        *("2", "4", "6", "6.damaged", "6.damaged1")
    ]


@pytest.mark.parametrize(
    "harmed", ["2/description/metadata", "2/state/manifest.ocdbt"], ids=["score", "arrays"]
)
def test_instead_of_a_damaged_best_checkpoint_the_next_best_is_used(copy, harmed, capsys):
    (stage_of(copy) / harmed).write_bytes(b"x")
    note.cache_clear()
    assert load_run(copy, allow_code=True).step == 6
    line = capsys.readouterr().err
    assert re.fullmatch(r"note: \S+/2/\w+ is damaged \(.*\); step 6 is used instead\n", line)


def test_without_a_whole_checkpoint_one_line_tells_what_to_do(copy, states):
    for step in SCORES:
        flip(stage_of(copy) / str(step) / "description" / "metadata", random.Random(step))
    before = sorted(stage_of(copy).rglob("*"))
    for reading in (
        lambda: read(copy, states[6], []),
        lambda: read(copy, states[6], [], read_only=False),
        lambda: load_run(copy, STAGE, allow_code=True),
        lambda: read_config(copy),
    ):
        with pytest.raises(Damaged, match=r"6/description is damaged.* no checkpoint in") as caught:
            reading()
        assert "bring one back from a copy, or remove that folder" in str(caught.value)
        assert "\n" not in str(caught.value)
    assert sorted(stage_of(copy).rglob("*")) == before


def test_what_is_no_damage_sets_nothing_aside(copy, states, monkeypatch):
    other = states[6]._replace(params={**states[6].params, "more": {"bias": np.zeros(1)}})
    with pytest.raises(ValueError, match="of another network or optimiser: params/more/bias is"):
        read(copy, other, [], read_only=False)

    def too_many(*_args, **_options):
        raise ValueError(f"RESOURCE_EXHAUSTED: {os.strerror(errno.EMFILE)} at ...")

    monkeypatch.setattr(ocp.PyTreeCheckpointHandler, "restore", too_many)
    with pytest.raises(OSError, match=r"6/state cannot be read: Too many open files"):
        read(copy, states[6], [], read_only=False)
    assert not list(stage_of(copy).glob("*.damaged*"))


# ======================================================================== NaN, failing saves


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("branch", ["params", "opt_state"])
def test_nan_and_inf_are_neither_saved_nor_restored(tmp_path, monkeypatch, value, branch):
    state = {key: {"fc": {"bias": np.ones(3, np.float32)}} for key in ("params", "opt_state")}
    with StageCheckpoints(tmp_path, STAGE) as checkpoints:
        checkpoints.save(1, state, {}, {}, None)
    state[branch]["fc"]["bias"][1] = value
    with StageCheckpoints(tmp_path, STAGE) as checkpoints:
        with pytest.raises(ValueError, match=rf"/2: not saved, NaN or Inf in {branch}/fc/bias"):
            checkpoints.save(2, state, {}, {}, None)
        assert checkpoints.steps() == [1]
        digests, bad = digest_arrays(state)
        assert bad == [f"{branch}/fc/bias"]
        monkeypatch.setattr("fcn_jax.checkpoints.digest_arrays", lambda _: (digests, []))
        checkpoints.save(2, state, {}, {}, None)
    monkeypatch.undo()
    told: list[str] = []
    with StageCheckpoints(tmp_path, STAGE, read_only=True, tell=told.append) as checkpoints:
        restored, _ = checkpoints.restore(jax.eval_shape(lambda: state), HERE)
    assert restored[branch]["fc"]["bias"][1] == 1
    assert re.search(rf"2/state is unusable: NaN or Inf in {branch}/fc/bias; step 1 is", told[0])


@pytest.mark.parametrize("method", ["save", "close"])
def test_a_save_that_fails_is_one_line_and_leaves_nothing_half(tmp_path, monkeypatch, method):
    """Also where it fails in the background, which shows on leaving."""

    def save(step: int) -> None:
        with StageCheckpoints(tmp_path, STAGE) as checkpoints:
            state = {"params": {"a": {"bias": np.zeros(2, np.float32)}}}
            checkpoints.save(step, state, {}, {}, None)

    def fail(manager, *_args, **_options):
        if method == "close":
            manager.wait_until_finished()
            shutil.rmtree(stage_of(tmp_path) / "2")
        (stage_of(tmp_path) / "2.orbax-checkpoint-tmp").mkdir()
        raise ValueError(f"RESOURCE_EXHAUSTED: writing ...\n{os.strerror(errno.ENOSPC)}: ...")

    save(1)
    monkeypatch.setattr(ocp.CheckpointManager, method, fail)
    with pytest.raises(OSError, match="cannot save") as caught:
        save(2)
    assert str(caught.value) == (
        f"cannot save a checkpoint in {stage_of(tmp_path)}: No space left on device; "
        "those saved before are untouched"
    )
    assert [path.name for path in stage_of(tmp_path).iterdir()] == ["1"]


# ======================================================================== config.json


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (None, "is missing"),
        (b"", r"is damaged \(Expecting value"),
        (b'{"stages": [', r"is damaged \("),
        (b"\xff\xfe", r"is damaged \("),
        (b"[1]", r"is damaged \("),
        (b"null", r"is damaged \("),
        (b"[" * 100_000, r"is damaged \("),
        (b'{"stages": ["fcn32s"]}', "has other fields than the checkpoint"),
        (("fc_width", 9), r"differs from the checkpoint \(fc_width: 3 -> 9\)"),
        (("fc_width", "a"), r"is damaged \("),
        (("lr", 1), r"is damaged \(lr = 1: there is no such field"),
        (("log_every", -1), r"is damaged \(log_every = -1: give a whole number"),
    ],
)
def test_a_damaged_config_is_replaced_by_the_checkpoints(copy, content, problem, capsys):
    path = copy / "config.json"
    if content is None:
        path.unlink()
    elif isinstance(content, tuple):
        path.write_text(json.dumps({**json.loads(path.read_text()), content[0]: content[1]}))
    else:
        path.write_bytes(content)
    note.cache_clear()
    assert configs.to_plain(read_config(copy)) == configs.to_plain(make_config())
    assert load_run(copy, allow_code=True).step == 2
    line = capsys.readouterr().err
    expected = rf"note: {path} {problem}.*; the config in the checkpoint counts\n"
    assert re.fullmatch(expected, line)


def test_fields_that_are_free_to_change_are_taken_from_the_config_file(copy, capsys):
    path = copy / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "data_dir": "elsewhere"}))
    assert read_config(copy).data_dir == "elsewhere"
    assert capsys.readouterr().err == ""


# ======================================================================== metrics.jsonl

STAGES = ("fcn32s", "fcn16s")
GOOD = [
    {"stage": "fcn32s", "step": 1, "loss": 1.5},
    {"stage": "fcn32s", "step": 2, "loss": 1.25},
    {"stage": "fcn16s", "step": 1, "loss": 1.125},
    {"stage": "fcn16s", "step": 2, "loss": math.nan},
]
LINES = [json.dumps(record).encode() + b"\n" for record in GOOD]
ANOTHER = LINES[1].replace(b"1.25", b"1.24")


@pytest.mark.parametrize(
    ("content", "kept", "told"),
    [
        (b"".join(LINES), LINES, ""),
        (b"".join([*LINES, b'{"stage": "fcn16s", "step": 3, "loss": 1}\n']), LINES, ""),
        (b"".join(LINES) + b'{"stage": "fcn1', LINES, ""),  # killed while it wrote
        (b"".join([*LINES, b"\xff\n"]), LINES, "1 lines are left out"),
        (b"".join([*LINES[:2], b'{"loss": "\xff"}\n', *LINES[2:]]), LINES, "1 lines are left"),
        (b"".join([b"[1]\n3\nnull\n{}\n", *LINES]), LINES, "4 lines are left out"),
        (b"".join([b'{"stage": "fcn32s", "step": "1"}\n', *LINES]), LINES, "1 lines are left"),
        (b"".join([b'{"stage": ["fcn32s"], "step": 1}\n', *LINES]), LINES, "1 lines are left"),
        (b"".join([b'{"stage": "fcn64s", "step": 1}\n', *LINES]), LINES, "1 lines are left out"),
        (b"[" * 100_000 + b"\n" + b"".join(LINES), LINES, "1 lines are left out"),
        (b"".join(LINES[:3]), LINES[:3], "records before fcn16s step 2 are missing"),
        (b"".join(LINES[2:]), LINES[2:], "records before fcn16s step 2 are missing"),
        (b"", [], "records before fcn16s step 2 are missing"),
        (None, [], "records before fcn16s step 2 are missing"),
        (b"".join([LINES[0], LINES[2], LINES[3]]), [LINES[0], *LINES[2:]], "was changed since"),
        (b"".join(LINES).replace(b"1.25", b"1.24"), [LINES[0], ANOTHER, *LINES[2:]], "mistrust"),
    ],
)
def test_metrics_are_cut_to_their_good_lines(tmp_path, monkeypatch, content, kept, told):
    said: list[str] = []
    monkeypatch.setattr(Journal, "say", lambda _, text: said.append(text))
    path = tmp_path / "metrics.jsonl"
    if content is not None:
        path.write_bytes(content)
    with Journal(tmp_path, STAGES) as journal:
        journal.rewind("fcn16s", 2, hashlib.sha256(b"".join(LINES)).hexdigest())
        journal.record("fcn16s", 3, {"loss": 1.0})
    assert path.read_bytes().splitlines(keepends=True)[:-1] == kept
    assert json.loads(path.read_bytes().splitlines()[-1])["step"] == 3
    assert len(said) == bool(told)
    if told:
        assert said[0].startswith(f"{path} was ")
        assert told in said[0]


# ======================================================================== whole runs


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A finished run of six steps, and its command."""
    place = tmp_path_factory.mktemp("trained")
    fields = {
        "dataset_options.train": 12,
        "dataset_options.val": 4,
        "dataset_options.size": 48,
        "backbone": make_config().backbone,
        "width": 0.5,
        "fc_width": 8,
        "batch_size": 4,
        "epochs": "()",
        "steps": "(6,)",
        "stages": f"('{STAGE}',)",
        "learning_rate": "(1e-3,)",
        "checkpoint_every": 2,
        "eval_every": 4,
        "log_every": 1,
        "samples": 1,
        "data_dir": place / "data",
    }
    argv = ["--config=quickstart", *(f"--config.{name}={v}" for name, v in fields.items())]
    code, _, errors = run_command(train_command.main, [*argv, f"--workdir={place / 'run'}"])
    assert code == 0, errors
    return place / "run", argv


def records(folder: Path) -> list[dict]:
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    measured = {"images_per_second", "wall_time", "peak_memory_gib"}  # each time anew
    return [{k: v for k, v in line.items() if k not in measured} for line in lines]


def test_a_run_with_a_damaged_checkpoint_ends_with_the_same_bits(trained, tmp_path):
    whole, argv = trained
    folder = Path(shutil.copytree(whole, tmp_path / "run"))
    arrays = files_of(stage_of(folder) / "6" / "state" / "ocdbt.process_0" / "d")
    flip(max(arrays, key=lambda path: path.stat().st_size), random.Random(1))
    (folder / "config.json").unlink()
    (folder / "samples" / f"{STAGE}_sample0.png").write_bytes(b"")
    shutil.rmtree(folder / "tensorboard")
    code, text, errors = run_command(eval_command.main, ["--allow_code", f"--workdir={folder}"])
    assert code == 0, errors
    assert "config.json is missing; the config in the checkpoint counts" in errors
    code, text, errors = run_command(train_command.main, [*argv, f"--workdir={folder}"])
    assert code == 0, errors
    assert re.search(r"6/state is damaged.*; set aside as 6.damaged; step 4 is used", text)
    assert f"{STAGE}: going on from step 4" in text
    for which in ("best", "last"):
        one, other = (load_run(place, which=which, allow_code=True) for place in (folder, whole))
        assert one.step == other.step
        assert_same(one.variables, other.variables)
    assert records(folder) == records(whole)
    assert (folder / "config.json").read_text() == (whole / "config.json").read_text()
    assert (folder / "samples" / f"{STAGE}_sample0.png").stat().st_size > 0


def test_a_run_without_a_whole_checkpoint_is_not_begun_anew(trained, tmp_path):
    whole, argv = trained
    folder = Path(shutil.copytree(whole, tmp_path / "run"))
    for path in stage_of(folder).glob("*/state/manifest.ocdbt"):
        path.unlink()
    for main, given in ((train_command.main, argv), (eval_command.main, ["--allow_code"])):
        code, _, errors = run_command(main, [*given, f"--workdir={folder}"])
        assert code == 2
        assert re.search(r"6/state is damaged .* no checkpoint in \S+ is whole", errors)
        assert len(errors.splitlines()) == 1
    assert sorted(path.name for path in stage_of(folder).iterdir()) == ["4", "6"]
