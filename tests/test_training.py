"""Whole runs through train.py, eval.py and predict.py, as a person starts them.

The network and the pictures are tiny; what is tested is that a run survives everything.
"""

from __future__ import annotations

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

from fcn_jax.classes import ClassTable
from fcn_jax.data.shapes import SHAPES
from fcn_jax.runs import StageCheckpoints, available_stages, load_run

ROOT = Path(__file__).resolve().parents[1]
STAGES = ("fcn32s", "fcn16s", "fcn8s")
TINY = {
    "dataset_options.train": 12,
    "dataset_options.val": 4,
    "dataset_options.size": 48,
    "width": 0.05,
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
    """A folder for the runs of this file, their data and their compiled programs."""
    return tmp_path_factory.mktemp("runs")


def command(place: Path, workdir: str, **fields) -> list[str]:
    fields = {**TINY, "data_dir": place / "data", **fields}
    return [
        sys.executable,
        str(ROOT / "train.py"),
        f"--config={ROOT / 'configs' / 'quickstart.py'}",
        f"--workdir={place / workdir}",
        *(f"--config.{name}={value}" for name, value in fields.items()),
    ]


def environment(place: Path) -> dict[str, str]:
    # Every start compiles the same programs: keep them.
    return {
        **os.environ,
        "JAX_COMPILATION_CACHE_DIR": str(place / "compiled"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        # Compiling takes most of the time; these networks run fast enough unoptimised.
        "XLA_FLAGS": "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true",
        "PYTHONUNBUFFERED": "1",
    }


def run(place: Path, arguments: list[str]) -> subprocess.CompletedProcess:
    return subprocess.run(
        arguments, env=environment(place), capture_output=True, text=True, timeout=300
    )


def parameters(workdir: Path, stage: str) -> dict[str, np.ndarray]:
    return load_run(workdir, stage, "last").variables["params"]


def losses(workdir: Path) -> list[tuple]:
    records = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    return [(r["stage"], r["step"], r.get("loss"), r.get("eval/mean_iu")) for r in records]


@pytest.fixture(scope="module")
def finished(place):
    """The workdir of an uninterrupted run."""
    done = run(place, command(place, "whole"))
    assert done.returncode == 0, done.stderr
    return place / "whole"


# ======================================================================== a run


def test_a_run_trains_scores_and_draws_every_stage(finished):
    assert available_stages(finished) == list(STAGES)
    for stage, steps in zip(STAGES, (6, 5, 7), strict=True):
        assert load_run(finished, stage, "last").step == steps
        assert load_run(finished, stage, "best").step in (4, steps)
        assert (finished / "samples" / f"{stage}_sample0.png").is_file()
        assert list((finished / "tensorboard" / stage).iterdir())
    tables = json.loads((finished / "classes.json").read_text())
    assert {name: ClassTable.from_dict(t) for name, t in tables.items()} == {"label": SHAPES}
    steps = [(stage, step) for stage, step, loss, _ in losses(finished) if loss is not None]
    assert steps == [
        (stage, step)
        for stage, last in zip(STAGES, (6, 5, 7), strict=True)
        for step in range(1, last + 1)
    ]
    report = (finished / "report" / "scores.json").read_text()
    assert all(stage in report for stage in STAGES)
    assert len(list((finished / "report" / "pictures").iterdir())) == 4


def test_each_stage_starts_from_the_one_before(place, finished):
    done = run(place, command(place, "one", steps="(6,1,1)"))
    assert done.returncode == 0, done.stderr
    # fcn32s is the same run; a single small step later, the backbone is still near it.
    before, after = (parameters(place / "one", stage) for stage in STAGES[:2])
    for name in ("conv1_1", "conv5_3", "fc7"):
        change = np.abs(after[name]["kernel"] - before[name]["kernel"]).max()
        assert 0 < change <= 2e-3
    jax.tree.map(np.testing.assert_array_equal, before, parameters(finished, "fcn32s"))
    assert re.search(r"fcn16s: starts from fcn32s, its last step\n +copied +32 arrays", done.stdout)


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


def test_killed_at_any_moment_the_result_is_the_same_bits(place, finished):
    workdir = place / "killed"
    rng = random.Random(0)
    kills = [
        (saving(workdir), 0.0, signal.SIGKILL),
        (saving(workdir), 0.02, signal.SIGKILL),
        (between_stages(workdir), 0.0, signal.SIGKILL),
        (lambda: True, rng.uniform(4, 8), signal.SIGKILL),
        (saving(workdir), rng.uniform(0, 0.3), signal.SIGKILL),
        (in_the_last_stage(workdir), rng.uniform(0, 0.3), signal.SIGKILL),
    ]
    struck = 0
    for condition, delay, signum in kills:
        process = subprocess.Popen(
            command(place, "killed"),
            env=environment(place),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        wait_until(condition, process)
        time.sleep(delay)
        process.send_signal(signum)
        struck += process.wait(timeout=120) == -signum
    assert struck >= 4, "most kills must hit a run that is under way"
    done = run(place, command(place, "killed"))
    assert done.returncode == 0, done.stderr
    for stage in STAGES:
        jax.tree.map(
            np.testing.assert_array_equal, parameters(workdir, stage), parameters(finished, stage)
        )
    assert losses(workdir) == losses(finished)


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_asked_to_stop_a_run_saves_and_goes_on_later(place, signum):
    name = f"stopped{signum}"
    arguments = command(place, name, steps="(200,1,1)", checkpoint_every=1000, eval_every=0)
    process = subprocess.Popen(
        arguments, env=environment(place), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    for line in process.stdout:
        if line.startswith("fcn32s 3/"):
            process.send_signal(signum)
            break
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 128 + signum
    assert "Traceback" not in errors
    step = int(re.search(r"stopped at fcn32s step (\d+) of 200, all saved", errors).group(1))
    assert load_run(place / name).step == step
    process = subprocess.Popen(
        arguments, env=environment(place), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    first = next(line for line in process.stdout if b"going on from step" in line)
    process.kill()
    process.communicate()
    assert f"fcn32s: going on from step {step}".encode() in first


def test_a_loss_that_is_no_number_stops_the_run_and_spares_the_checkpoint(place):
    fields = {"learning_rate": "(1e30,)", "warmup": 0, "schedule": "step", "schedule_gamma": 1e38}
    fields |= {"schedule_step": 3, "optimizer": "sgd", "checkpoint_every": 1}
    first = run(place, command(place, "diverged", **{**fields, "learning_rate": "(1e-30,)"}))
    assert first.returncode == 2
    message = first.stderr.strip().splitlines()[-1]
    assert re.search(r"fcn32s step \d+: .*(loss|parameters).* on the images \w+, \w+", message)
    assert "the last checkpoint is untouched" in message
    with StageCheckpoints(place / "diverged", "fcn32s", read_only=True) as checkpoints:
        kept = checkpoints.restore_params("last")
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(kept))


def test_a_finished_run_is_left_as_it_is(place, finished):
    before = parameters(finished, "fcn8s")
    done = run(place, command(place, "whole"))
    assert done.returncode == 0
    assert done.stdout.count("finished before") == 3
    jax.tree.map(np.testing.assert_array_equal, before, parameters(finished, "fcn8s"))


# ======================================================================== mistakes


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config.lerning_rate=(1.,)"], "no field 'lerning_rate'; did you mean 'learning_rate'?"),
        (["--config.dataset=shpes"], "unknown data set 'shpes'; there are shapes"),
        (["--config.padding=valid"], "config.padding = 'valid': choose one of same, reference"),
        (["--config.learning_rate=(1.,2.)"], "give one value, or one for each of the 3 stages"),
        (["--config.init=nowhere.npz"], "there is no weight file nowhere.npz"),
        (["--config.seed=zero"], "invalid literal for int"),
        (["--config.eval_split=train"], "are also in"),
        (["--config.eval_split=tset"], "has no split 'tset'; it has train (12 images)"),
        (["--config.batch_size=13"], "more than the 12 training images"),
        (["--wrkdir=x"], "Did you mean: workdir"),
    ],
)
def test_a_mistake_is_one_clear_message(place, finished, arguments, message):
    done = run(place, [*command(place, "mistake"), *arguments])
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) <= 2
    assert not list(place.glob("mistake/checkpoints/*/[0-9]*"))


def test_another_config_is_refused_in_the_folder_of_a_run(place, finished):
    done = run(place, [*command(place, "whole"), "--config.width=0.1"])
    assert done.returncode == 2
    assert "width: 0.05 -> 0.1" in done.stderr


# ======================================================================== eval.py, predict.py


def test_eval_scores_another_split(place, finished):
    arguments = [sys.executable, str(ROOT / "eval.py"), f"--workdir={finished}"]
    done = run(place, [*arguments, "--split=train", f"--output={place / 'report'}"])
    assert done.returncode == 0, done.stderr
    for word in ("fcn32s", "fcn16s", "fcn8s", "mean IU", "background"):
        assert word in done.stdout
    assert (place / "report" / "scores.json").is_file()
    wrong = run(place, [*arguments, "--stage=fcn64s"])
    assert wrong.returncode == 2
    assert "has no checkpoint of 'fcn64s'" in wrong.stderr


def test_predict_does_what_it_can_and_says_what_it_cannot(place, finished):
    """Files of every kind: tests/test_predict.py."""
    images, output = place / "images", place / "predictions"
    images.mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (31, 45, 3), np.uint8)
    Image.fromarray(pixels).save(images / "rgb.png")
    (images / "broken.jpg").write_bytes(b"no image")
    script = [sys.executable, str(ROOT / "predict.py"), f"--workdir={finished}"]
    done = run(place, [*script, str(images), f"--output={output}"])
    assert done.returncode == 1
    assert "broken.jpg" in done.stderr
    assert "Traceback" not in done.stderr
    with Image.open(output / "labels" / "rgb.png") as labels:
        assert labels.size == (45, 31)
        assert np.asarray(labels).max() < 6


# ======================================================================== compiled programs


def test_the_second_start_compiles_nothing(place, tmp_path):
    """Its programs come from the user's cache directory, where the first start left them."""
    environ = {k: v for k, v in environment(place).items() if not k.startswith("JAX_")}
    environ |= {"XDG_CACHE_HOME": str(tmp_path / "cache"), "HOME": str(tmp_path)}
    fields = {"stages": "('fcn32s',)", "steps": "(1,)", "learning_rate": "(1e-3,)"}
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
