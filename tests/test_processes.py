"""How commands end: signals, locks and limits of the machine, each in one line and a code not 0."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys

import jax
import numpy as np
import pytest
from random_parameters import random_parameters
from test_parallel import start_two
from test_training import ROOT, arguments, command, environment, place, train
from toy_backbones import plain

import fcn_jax
from fcn_jax.cli import _ends
from fcn_jax.training.lock import locked
from fcn_jax.training.loop import noted_signals

__all__ = ["place"]  # the fixture

# ======================================================================== signals


def start(*argv: str, env: dict[str, str] | None = None, **options) -> subprocess.Popen:
    """A command as a program, in a process group of its own, as in a terminal."""
    return subprocess.Popen(
        [sys.executable, str(ROOT / "train.py"), *argv],
        env={**environment(ROOT), **(env or {})},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        **options,
    )


@pytest.mark.parametrize(
    ("signum", "module", "line"),
    [
        (signal.SIGINT, "numpy", "train.py: interrupted"),
        (signal.SIGINT, "flax", "train.py: interrupted"),
        (signal.SIGINT, "tensorstore", "train.py: interrupted"),
        (signal.SIGHUP, "jax", "train.py: SIGHUP"),
    ],
)
def test_a_signal_in_the_imports_is_one_line(place, signum, module, line):
    """Imports swallow an exception or print it with all their frames."""
    process = start(*arguments(place, "early"), env={"PYTHONPROFILEIMPORTTIME": "1"})
    lines, imported = [], "import time:"
    for text in process.stderr:  # a line for each module, as it is imported
        if text.startswith(imported) and text.rpartition("|")[2].strip() == module:
            os.killpg(process.pid, signum)
        if not text.startswith(imported):
            lines.append(text.strip())
    assert process.wait(timeout=60) == 128 + signum
    assert lines == [line]


def test_ignored_signals_stay_ignored():
    """As SIGHUP is under nohup."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with noted_signals() as received:
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
            signal.raise_signal(signal.SIGHUP)
            assert received == []
            signal.raise_signal(signal.SIGTERM)
            assert received == [signal.SIGTERM]
    finally:
        signal.signal(signal.SIGHUP, before)


# ======================================================================== the lock


def test_a_second_run_in_a_folder_is_told_who_trains_there(place, tmp_path):
    workdir = place / "locked"
    with locked(workdir, pytest.fail):
        (workdir / "something").touch()
        before = {path: path.stat().st_mtime_ns for path in workdir.iterdir()}
        code, _, errors = train(place, "locked")
        assert code == 2
        assert f"{workdir} is in use: process {os.getpid()} on " in errors
        assert errors.count("\n") == 1
        assert {path: path.stat().st_mtime_ns for path in workdir.iterdir()} == before
    with locked(workdir, pytest.fail):  # it is free again
        pass
    assert (workdir / "something").exists()


def test_a_folder_in_which_nothing_was_written_is_gone(tmp_path):
    with pytest.raises(KeyError), locked(tmp_path / "runs" / "one", pytest.fail):
        raise KeyError
    assert list(tmp_path.iterdir()) == []


def test_a_killed_program_leaves_no_lock(tmp_path):
    code = (
        "import pathlib, os, sys; from fcn_jax.training.lock import locked\n"
        "with locked(pathlib.Path(sys.argv[1]), print): os.kill(os.getpid(), 9)"
    )
    environ = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "run")], env=environ)
    assert done.returncode == -signal.SIGKILL
    with locked(tmp_path / "run", pytest.fail):
        pass


@pytest.mark.parametrize(
    "error", [OSError(errno.ENOLCK, "No locks available"), NotImplementedError]
)
def test_a_network_folder_without_locks_is_told(tmp_path, monkeypatch, error):
    import filelock

    def fail(*_, **__):
        raise error

    monkeypatch.setattr(filelock.FileLock, "acquire", fail)
    told: list[str] = []
    with locked(tmp_path / "run", told.append):
        pass
    assert len(told) == 1
    assert "no locks" in told[0]


def test_a_workdir_that_is_a_file_is_named(place):
    (place / "file").write_text("mine")
    code, _, errors = train(place, "file")
    assert code == 2
    assert errors.count("\n") == 1
    assert f"{place / 'file'} is a file" in errors
    assert (place / "file").read_text() == "mine"


# ======================================================================== several processes

LEADER = """W1126 06:34:04.70 10957 preemption_sync_manager.cc:147] Failed: Socket closed
Additional GRPC error information from remote target coordination_service
E1126 06:34:04.70 10957 coordination_service_agent.cc:289] Polled an error
F1126 06:34:04.71 10957 client.h:80] Terminating process. Either the leader task was preempted
*** Check failure stack trace: ***
    @     0x7f3782c40634  absl::lts_20260107::log_internal::LogMessage::SendToLog()
"""
OTHER = """a note
E1126 06:33:55.80 7956 coordination_service.cc:1549] tasks (stopped sending heartbeats):
3
The tasks have crashed.
"""


@pytest.mark.parametrize(
    ("log", "lines"),
    [
        ("a note\nanother\n", ["a note", "another"]),
        (LEADER, ["train.py: process 0 of this run has ended"]),
        (OTHER, ["a note", "train.py: process 3 of this run has ended"]),
        (
            f"{OTHER}train.py: process 3 of this run\n",
            ["a note", "train.py: process 3 of this run"],
        ),
    ],
)
def test_the_log_of_a_lost_process_is_one_line(log, lines):
    script = ROOT / "fcn_jax" / "cli" / "_peers.py"
    told = subprocess.run(
        [sys.executable, "-I", "-S", script, "train.py"], input=log, capture_output=True, text=True
    ).stderr.splitlines()
    assert len(told) == len(lines)
    assert all(line.startswith(start) for line, start in zip(told, lines, strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("lost", [0, 1])
def test_a_process_that_is_killed_ends_the_others(tmp_path, lost):
    processes = start_two(tmp_path, "two", steps="(100000,)", checkpoint_every=1000)
    next(line for line in processes[0].stdout if line.startswith("fcn16s 3/"))
    processes[lost].kill()
    _, errors = processes[1 - lost].communicate(timeout=60)
    processes[lost].communicate()
    assert processes[1 - lost].returncode not in (0, None)
    *_, last = errors.splitlines()  # before it the first one tells of the data
    assert last.startswith(f"train.py: process {lost} of this run has ended")
    assert "stack trace" not in errors


# ======================================================================== limits


@pytest.mark.parametrize(
    ("limit", "message"),
    [("-v 2000000", "GiB of memory may be addressed; raise ulimit -v"), ("-n 64", "ulimit -n")],
)
def test_a_limit_that_is_too_low_is_told_at_once(place, limit, message):
    """Below it jax crashes or waits for ever, without a word."""
    line = f"ulimit {limit}; exec " + " ".join(f"'{word}'" for word in command(place, "limited"))
    line = line.replace("('", '("').replace("',)", '",)')
    done = subprocess.run(
        ["bash", "-c", line], env=environment(place), capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 2
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not (place / "limited").exists()


def wrapped(inner: BaseException) -> BaseException:
    """As orbax raises what happened in its threads."""
    try:
        try:
            raise inner
        except BaseException as error:
            raise RuntimeError("save failed") from error
    except RuntimeError as error:
        return error


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "a/b"), "no space left on the disk (a/b"),
        (wrapped(OSError(errno.ENOSPC, "No space left on device")), "no space left on the disk"),
        (ValueError("RESOURCE_EXHAUSTED: writing x: No space left on device"), "no space left"),
        (OSError(errno.EMFILE, "Too many open files"), "raise ulimit -n"),
        (OSError(errno.EROFS, "Read-only file system", "w"), "w: Read-only file system"),
        (MemoryError(), "out of memory; lower config.batch_size"),
        (RuntimeError("can't start new thread"), "out of memory"),
        (jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9"), "lower"),
        (jax.errors.JaxRuntimeError("UNKNOWN: Gloo AllGather failed: reset"), "another process"),
        (RuntimeError("Worker process was terminated unexpectedly"), "a worker process died"),
        (ValueError("of ours"), "of ours"),
    ],
)
def test_errors_of_the_machine_are_one_line(error, message):
    line = _ends.explain(error)
    assert message in line
    assert "\n" not in line


@pytest.mark.parametrize("error", [TypeError("x"), KeyError("x"), RuntimeError("x")])
def test_mistakes_of_the_program_keep_their_traceback(error):
    assert _ends.explain(error) is None


FULL = """
import errno, sys
from fcn_jax import cli
from fcn_jax.cli import check
def fail(*_): raise OSError(errno.ENOSPC, "No space left on device", "x")
import threading, time
def main(argv):
    threading.Thread(target=fail).start()
    time.sleep(100)
check.main = main
cli.run(["check"])
"""


def test_a_failing_thread_ends_the_program():
    environ = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", FULL], env=environ, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 2
    assert done.stderr.startswith("fcn-jax check: no space left on the disk (x: No space")
    assert len(done.stderr.splitlines()) == 1


# ======================================================================== programs


def test_a_predictor_keeps_so_many_programs():
    from fcn_jax.inference.compute import compute_batch

    model = fcn_jax.create_model("fcn32s", backbone=plain, num_classes=2, fc_width=2)
    params = random_parameters(model, 0)
    predictor = fcn_jax.Predictor(model, params, batch_size=1, programs=2)
    for side in (32, 40, 48):
        assert predictor(np.zeros((side, 32, 3), np.uint8)).shape == (side, 32)
    assert len(compute_batch._kept) == 2
    with pytest.raises(ValueError, match="programs must be positive"):
        fcn_jax.Predictor(model, params, programs=0)
