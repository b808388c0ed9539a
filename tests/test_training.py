"""Whole runs, started by the commands; in this process wherever that tells as much.

The network and the pictures are tiny; what is tested is that a run survives everything.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from fcn_jax import devices, programs
from fcn_jax.checkpoints import StageCheckpoints
from fcn_jax.cli import eval as eval_command
from fcn_jax.cli import predict as predict_command
from fcn_jax.cli import train as train_command
from fcn_jax.runs import available_stages, load_run
from fcn_jax.training.journal import Journal

ROOT = Path(__file__).resolve().parents[1]
STAGES = ("fcn32s", "fcn16s", "fcn8s")
TINY = {
    "dataset_options.train": 12,
    "dataset_options.val": 4,
    "dataset_options.size": 48,
    "backbone": f"{Path(__file__).parent / 'toy_backbones.py'}:plain",
    "width": 0.5,
    "fc_width": 8,
    "batch_size": 4,
    "epochs": "()",
    "steps": "(6,5,7)",
    "checkpoint_every": 2,
    "eval_every": 4,
    "log_every": 1,
    "samples": 1,
}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder for the runs of this file and their data."""
    return tmp_path_factory.mktemp("runs")


def arguments(place: Path, workdir: str, **fields) -> list[str]:
    fields = {**TINY, "data_dir": place / "data", **fields}
    return [
        "--config=quickstart",
        f"--workdir={place / workdir}",
        *(f"--config.{name}={value}" for name, value in fields.items()),
    ]


def command(place: Path, workdir: str, **fields) -> list[str]:
    """The same as a program of its own."""
    return [sys.executable, str(ROOT / "train.py"), *arguments(place, workdir, **fields)]


def environment(place: Path) -> dict[str, str]:
    """Of programs; they share the compiled programs of this process."""
    del place
    return {**os.environ, "PYTHONUNBUFFERED": "1"}


def run(main, argv: list[str]) -> tuple[int, str, str]:
    """A command in this process: its exit code, and what it printed."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(argv)
    return code, out.getvalue(), err.getvalue()


def train(place: Path, workdir: str, *flags: str, **fields) -> tuple[int, str, str]:
    return run(train_command.main, [*arguments(place, workdir, **fields), *flags])


def parameters(workdir: Path, stage: str) -> dict[str, np.ndarray]:
    return load_run(workdir, stage, "last", allow_code=True).variables["params"]


def losses(workdir: Path) -> list[tuple]:
    records = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    return [(r["stage"], r["step"], r.get("loss"), r.get("eval/mean_iu")) for r in records]


@pytest.fixture(scope="module")
def finished(place):
    """The workdir of an uninterrupted run."""
    code, _, errors = train(place, "whole")
    assert code == 0, errors
    return place / "whole"


def assert_same_bits(workdir: Path, expected: Path) -> None:
    for stage in STAGES:
        jax.tree.map(
            np.testing.assert_array_equal, parameters(workdir, stage), parameters(expected, stage)
        )
    assert losses(workdir) == losses(expected)


# ======================================================================== a run


def test_a_run_trains_scores_and_draws_every_stage(finished):
    assert available_stages(finished) == list(STAGES)
    for stage, steps in zip(STAGES, (6, 5, 7), strict=True):
        assert load_run(finished, stage, "last", allow_code=True).step == steps
        assert load_run(finished, stage, "best", allow_code=True).step in (4, steps)
        assert (finished / "samples" / f"{stage}_sample0.png").is_file()
        assert list((finished / "tensorboard" / stage).iterdir())
    steps = [(stage, step) for stage, step, loss, _ in losses(finished) if loss is not None]
    assert steps == [
        (stage, step)
        for stage, last in zip(STAGES, (6, 5, 7), strict=True)
        for step in range(1, last + 1)
    ]
    report = (finished / "report" / "scores.json").read_text()
    assert all(stage in report for stage in STAGES)
    assert len(list((finished / "report" / "pictures").iterdir())) == 4
    page = (finished / "report" / "index.html").read_text()
    assert page.count('class="shot"') == 4
    assert "is being trained" not in page


def test_each_stage_starts_from_the_one_before(place, finished):
    code, text, errors = train(place, "one", steps="(6,1,1)")
    assert code == 0, errors
    # fcn32s is the same run; a single small step later, the backbone is still near it.
    before, after = (parameters(place / "one", stage) for stage in STAGES[:2])
    for name in ("stem", "middle", "top"):
        change = np.abs(after[name]["kernel"] - before[name]["kernel"]).max()
        assert 0 < change <= 2e-3
    jax.tree.map(np.testing.assert_array_equal, before, parameters(finished, "fcn32s"))
    assert re.search(r"fcn16s: starts from fcn32s, its last step\n +copied +8 arrays", text)
    # Progress is told from the first step on, and once how long all of it will take.
    lines = text[text.index("fcn32s: compiling") :].splitlines()
    assert re.fullmatch(r"fcn32s 1/6  loss \d+\.\d{4}/px  .* left", lines[1])
    (estimate,) = re.findall(r"(?<=\n)about .* in all: .* to score(?=\n)", text)
    assert lines.index(estimate) < [line[:10] for line in lines].index("fcn32s 3/6")


def test_a_finished_run_is_left_as_it_is(place, finished):
    before = parameters(finished, "fcn8s")
    code, text, _ = train(place, "whole")
    assert code == 0
    assert text.count("finished before") == 3
    jax.tree.map(np.testing.assert_array_equal, before, parameters(finished, "fcn8s"))


# ======================================================================== interruptions


def wait_until(condition, process, deadline=120.0):
    end = time.monotonic() + deadline
    while time.monotonic() < end and process.poll() is None:
        if condition():
            return
        time.sleep(0.002)


def saving(workdir: Path):
    return lambda: any(workdir.glob("checkpoints/*/*orbax-checkpoint-tmp*"))


def between_stages(workdir: Path):
    def condition():
        second = workdir / "checkpoints" / "fcn16s"
        return second.is_dir() and not any(second.glob("[0-9]*"))

    return condition


def in_the_last_stage(workdir: Path):
    return lambda: any((workdir / "checkpoints" / "fcn8s").glob("[0-9]*"))


def kill(place: Path, workdir: str, condition, delay: float, **fields) -> bool:
    """Starts a run and kills it; whether it was still under way."""
    process = subprocess.Popen(
        command(place, workdir, **fields),
        env=environment(place),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    wait_until(condition, process)
    time.sleep(delay)
    process.send_signal(signal.SIGKILL)
    return process.wait(timeout=120) == -signal.SIGKILL


def test_killed_while_it_saves_the_result_is_the_same_bits(place, finished):
    workdir = place / "killed_once"
    assert kill(place, "killed_once", saving(workdir), 0.0)
    code, _, errors = train(place, "killed_once")
    assert code == 0, errors
    assert_same_bits(workdir, finished)


@pytest.mark.slow
def test_killed_at_any_moment_the_result_is_the_same_bits(place, finished):
    workdir = place / "killed"
    rng = random.Random(0)
    kills = [
        (saving(workdir), 0.02),
        (between_stages(workdir), 0.0),
        (lambda: True, rng.uniform(4, 8)),
        (saving(workdir), rng.uniform(0, 0.3)),
        (in_the_last_stage(workdir), rng.uniform(0, 0.3)),
    ]
    struck = sum(kill(place, "killed", condition, delay) for condition, delay in kills)
    assert struck >= 3, "most kills must hit a run that is under way"
    code, _, errors = train(place, "killed")
    assert code == 0, errors
    assert_same_bits(workdir, finished)


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_asked_to_stop_a_run_saves_and_goes_on_later(place, monkeypatch, signum):
    name = f"stopped{signum}"
    fields = {"steps": "(200,1,1)", "checkpoint_every": 1000, "eval_every": 0}
    fields["log_every"] = 3
    advance, handler = Journal.advance, signal.getsignal(signum)

    def stop(*given):
        advance(*given)
        if given[2] == 3:
            signal.raise_signal(signum)

    with monkeypatch.context() as patch:
        patch.setattr(Journal, "advance", stop)
        code, _, errors = train(place, name, **fields)
    assert code == 128 + signum
    assert signal.getsignal(signum) is handler
    step = int(re.search(r"stopped at fcn32s step (\d+) of 200, all saved", errors).group(1))
    assert step == 4  # the step after the first that was logged
    assert load_run(place / name, allow_code=True).step == step

    class Enough(Exception):
        pass

    def enough(journal, text):
        del journal
        if "going on" in text:
            raise Enough(text)

    monkeypatch.setattr(Journal, "say", enough)
    with pytest.raises(Enough, match=f"fcn32s: going on from step {step}"):
        train(place, name, **fields)


def test_a_program_that_is_asked_to_stop_says_so_without_a_traceback(place):
    process = subprocess.Popen(
        command(place, "asked", steps="(2000,1,1)", checkpoint_every=1000, eval_every=0),
        env=environment(place),
        stdout=subprocess.PIPE,
        stderr=(place / "asked.txt").open("w"),  # a pipe that nobody reads yet could fill
        text=True,
    )
    next(line for line in process.stdout if line.startswith("fcn32s 3/"))
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=120)
    errors = (place / "asked.txt").read_text()
    assert process.returncode == 128 + signal.SIGTERM
    assert "Traceback" not in errors
    assert re.search(r"train.py: stopped at fcn32s step \d+ of 2000, all saved", errors)


def test_a_loss_that_is_no_number_stops_the_run_and_spares_the_checkpoint(place):
    fields = {"learning_rate": "(1e-30,)", "warmup": 0, "schedule": "step", "schedule_gamma": 1e38}
    fields |= {"schedule_step": 3, "optimizer": "sgd", "checkpoint_every": 1, "eval_every": 0}
    code, _, errors = train(place, "diverged", **fields)
    assert code == 2
    message = errors.strip().splitlines()[-1]
    assert re.search(r"fcn32s step \d+: .*(loss|parameters).* on the images \w+, \w+", message)
    assert "the last checkpoint is untouched" in message
    with StageCheckpoints(place / "diverged", "fcn32s", read_only=True) as checkpoints:
        _, _, kept = checkpoints.load("last")
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(kept))


# ======================================================================== mistakes


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"dataset": "shpes"}, "unknown data set 'shpes'; there are shapes"),
        ({"padding": "valid"}, "config.padding = 'valid': choose one of same, reference"),
        ({"learned_upsampling": "foo"}, "= 'foo': choose one of intermediate, none, all"),
        ({"learning_rate": "text"}, "config.learning_rate = ('text',): give a tuple; for each"),
        (
            {"steps": "(2.5,1,1)"},
            "config.steps = (2.5, 1, 1): give a tuple; for each entry give a w",
        ),
        ({"loss_weights": "{'label':'a'}"}, "config.loss_weights = {'label': 'a'}: give a dict"),
        ({"inputs": "{'image':None}"}, "config.inputs = {'image': None}: give a dictionary; for"),
        ({"seed": 10**20}, "config.seed = 100000000000000000000: give a whole number from 0 to"),
        ({"width": "1e400"}, "config.width = inf: give a number above 0 and at most 64"),
        ({"weight_decay": "nan"}, "config.weight_decay = nan: give a number at least 0"),
        ({"epochs": "(1e30,)", "steps": "()"}, "steps; give fewer than 2147483648"),
        ({"learning_rate": "(1.,2.)"}, "give one value, or one for each of the 3 stages"),
        ({"init": "nowhere.npz"}, "there is no weight file nowhere.npz"),
        ({"eval_split": "train"}, "are also in"),
        ({"eval_split": "tset"}, "has no split 'tset'; it has train (12 images)"),
        ({"batch_size": 13}, "more than the 12 training images"),
        ({"heads": "(1,)"}, "config.heads = (1,): give a tuple"),
        ({"class_weights": "1,2"}, "(1, 2): 2 numbers, but label has 6 classes (background, "),
    ],
)
def test_a_mistake_is_one_clear_message_and_nothing_is_written(place, finished, fields, message):
    code, _, errors = train(place, "mistake", **fields)
    assert code == 2
    assert message in errors
    assert len(errors.strip().splitlines()) == 1
    assert not (place / "mistake").exists()
    assert len(list((place / "data" / "shapes").iterdir())) == 1  # nor are other data prepared


def test_another_config_is_refused_in_the_folder_of_a_run(place, finished):
    before = (finished / "config.json").read_text()
    code, _, errors = train(place, "whole", width=0.25)
    assert code == 2
    assert "width: 0.5 -> 0.25" in errors
    assert (finished / "config.json").read_text() == before


def test_a_damaged_config_is_named(tmp_path):
    (tmp_path / "config.json").write_text('{"stages": [')
    with pytest.raises(ValueError, match=r"config\.json is damaged .*; restore it"):
        available_stages(tmp_path)


def test_a_platform_that_is_not_there(monkeypatch):
    def fail():
        raise AssertionError

    monkeypatch.setenv("JAX_PLATFORMS", "cuda")
    monkeypatch.setattr(jax, "devices", fail)
    with pytest.raises(ValueError, match="JAX_PLATFORMS=cuda: there is no such device; unset it"):
        devices.data_mesh()


# ======================================================================== eval.py, predict.py


def test_eval_scores_another_split(place, finished):
    argv = ["--allow_code", f"--workdir={finished}"]
    output = ["--split=train", f"--output={place / 'report'}"]
    code, _, errors = run(eval_command.main, [*argv, *output])
    assert code == 2
    assert "was trained on 12 (train_00000, train_00001, train_00002, ...)" in errors
    assert not (place / "report").exists()
    code, text, errors = run(eval_command.main, [*argv, *output, "--include_training_images"])
    assert code == 0, errors
    assert "scores include images that were trained on: 12 (train_00000" in text
    for word in ("fcn32s", "fcn16s", "fcn8s", "mean IU", "background"):
        assert word in text
    assert (place / "report" / "scores.json").is_file()
    code, _, errors = run(eval_command.main, [*argv, "--stage=fcn64s"])
    assert code == 2
    assert "has no checkpoint of 'fcn64s'" in errors


def test_predict_does_what_it_can_and_says_what_it_cannot(place, finished):
    """Files of every kind: tests/test_predict.py."""
    images, output = place / "images", place / "predictions"
    images.mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (31, 45, 3), np.uint8)
    Image.fromarray(pixels).save(images / "rgb.png")
    (images / "broken.jpg").write_bytes(b"no image")
    argv = ["--allow_code", f"--workdir={finished}", str(images), f"--output={output}"]
    code, _, errors = run(predict_command.main, argv)
    assert code == 1
    assert "broken.jpg" in errors
    with Image.open(output / "labels" / "rgb.png") as labels:
        assert labels.size == (45, 31)
        assert np.asarray(labels).max() < 6


# ======================================================================== compiled programs


def test_compiled_programs_are_kept_in_the_users_cache_directory(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR")
    set_options = {}
    monkeypatch.setattr(jax.config, "update", lambda name, value: set_options.update({name: value}))
    folder = programs.keep_compiled_programs()
    assert folder is not None
    assert folder.is_dir()
    assert set_options["jax_compilation_cache_dir"] == str(folder)
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "")
    assert programs.keep_compiled_programs() is None


@pytest.mark.slow
def test_the_second_start_compiles_nothing(place, tmp_path):
    """Its programs come from the user's cache directory, where the first start left them."""
    environ = {k: v for k, v in environment(place).items() if not k.startswith("JAX_")}
    environ |= {"XDG_CACHE_HOME": str(tmp_path / "cache"), "HOME": str(tmp_path)}
    fields = {"stages": "('fcn32s',)", "steps": "(1,)", "learning_rate": "(1e-3,)"}
    # Only what takes half a second to compile is kept: a deeper network, by the slower emitters.
    fields |= {"backbone": "vgg16", "width": 0.05}
    environ["XLA_FLAGS"] = (
        "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
    )
    for start in ("first", "second"):
        done = subprocess.run(
            command(place, f"cache_{start}", **fields),
            env=environ,
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, done.stderr
        programs = {path.name for path in (tmp_path / "cache").rglob("*-cache")}
        if start == "first":
            kept = programs
    assert kept
    assert programs == kept
