"""Several devices and several processes: what they compute together is what one computes."""

from __future__ import annotations

import functools
import inspect
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import pytest
from four_devices import MESHES, QUICK, SLOW
from test_training import command, environment, losses, parameters, train

from fcn_jax import devices
from fcn_jax.training import loop
from fcn_jax.training.step import StepReport

HERE = Path(__file__).parent
FOUR_DEVICES = "--xla_force_host_platform_device_count=4"

# ======================================================================== four devices


@pytest.fixture(scope="module")
def on_four_devices(tmp_path_factory) -> Callable[[str], dict[str, np.ndarray]]:
    """What a program of tests/four_devices.py computes, in a process of its own."""

    @functools.cache
    def results(program: str) -> dict[str, np.ndarray]:
        file = tmp_path_factory.mktemp("four") / f"{program}.npz"
        subprocess.run(
            [sys.executable, str(HERE / "four_devices.py"), str(file), program],
            check=True,
            env={
                **os.environ,
                "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} {FOUR_DEVICES}",
                "JAX_PLATFORMS": "cpu",
                "PYTHONPATH": f"{HERE}{os.pathsep}{HERE.parent}",
            },
        )
        with np.load(file) as arrays:
            return dict(arrays)

    return results


@pytest.mark.parametrize(
    ("program", "computed", "mesh"),
    [
        pytest.param(name, f"{function.__name__}/{case}", mesh, marks=marks)
        for name, program, marks in (("QUICK", QUICK, ()), ("SLOW", SLOW, (pytest.mark.slow,)))
        for function, case, meshes in program
        for mesh in meshes[1:]
    ],
)
def test_devices_together_compute_what_one_does(on_four_devices, program, computed, mesh):
    """Loss, all gradients, steps and logits, where batches, rows or both are divided; odd sizes."""
    results = on_four_devices(program)
    of_one = {
        name.removeprefix(f"{computed}/one/"): value
        for name, value in results.items()
        if name.startswith(f"{computed}/one/")
    }
    cost = of_one.pop("flops", None)
    assert of_one
    for name, expected in of_one.items():
        found = results[f"{computed}/{mesh}/{name}"]
        largest = max(np.abs(expected).max(), np.finfo(np.float32).tiny)
        assert np.abs(found - expected).max() / largest < 1e-5, name
    if cost is not None:
        # Each device has its part of the work to do, and what the parts share.
        parts = np.prod(MESHES[mesh])
        assert results[f"{computed}/{mesh}/flops"] < 2.5 * cost / parts


# ======================================================================== a run


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return probe.getsockname()[1]


FIELDS = {"stages": "('fcn16s',)", "optimizer": "sgd", "learning_rate": "(1e-2,)", "warmup": 0}
FIELDS |= {"dropout": 0.0, "steps": "(6,)", "eval_every": 0, "checkpoint_every": 3}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("parallel")


@pytest.fixture(scope="module")
def alone(place):
    """The workdir of a run on one device."""
    code, _, errors = train(place, "alone", **FIELDS)
    assert code == 0, errors
    return place / "alone"


def start_two(place: Path, workdir: str, **fields: Any) -> list[subprocess.Popen]:
    """Two processes of one run, which talk through a socket."""
    port = free_port()
    return [
        subprocess.Popen(
            [
                *command(place, workdir, **{**FIELDS, **fields}),
                f"--coordinator=localhost:{port}",
                "--num_processes=2",
                f"--process_id={process}",
            ],
            env=environment(place),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for process in range(2)
    ]


def assert_same_run(workdir: Path, alone: Path) -> None:
    found, expected = parameters(workdir, "fcn16s"), parameters(alone, "fcn16s")
    for layer, arrays in expected.items():
        for name, value in arrays.items():
            bound = 1e-5 * np.abs(value).max()
            np.testing.assert_allclose(found[layer][name], value, atol=bound, err_msg=layer)
    for record, truth in zip(losses(workdir), losses(alone), strict=True):
        (*at, loss, score), (*expected_at, expected_loss, expected_score) = record, truth
        assert at == expected_at
        if expected_loss is None:
            assert score == pytest.approx(expected_score, abs=1e-3)  # a pixel may tip
        else:
            assert loss == pytest.approx(expected_loss, rel=1e-5)


@pytest.mark.slow
def test_two_processes_train_as_one_does(place, alone):
    """Also when one of them is asked to stop: both do, at one step, and go on later."""
    # Stopped in the middle, as soon as the first step is told.
    processes = start_two(place, "two", steps="(200,)")
    for line in processes[0].stdout:
        if line.startswith("fcn16s 1/"):
            processes[1].send_signal(signal.SIGTERM)
            break
    outputs = [process.communicate(timeout=200) for process in processes]
    assert {process.returncode for process in processes} == {128 + signal.SIGTERM}, outputs
    stops = [re.search(r"stopped at fcn16s step (\d+) of 200", errors) for _, errors in outputs]
    assert stops[0].group(1) == stops[1].group(1)

    processes = start_two(place, "two_whole")
    outputs = [process.communicate(timeout=200) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    (text, _), (other_text, _) = outputs
    assert "2 cpu device(s) of 2 processes" in text
    assert "fcn16s" not in other_text  # one process tells for all
    assert_same_run(place / "two_whole", alone)
    pictures = place / "two_whole" / "samples"
    assert list(pictures.iterdir())


@pytest.mark.slow
def test_a_run_that_divides_images_over_devices(place, alone):
    """Two devices for each image, two images at a time."""
    variables = environment(place)
    variables["XLA_FLAGS"] += f" {FOUR_DEVICES}"
    arguments = command(place, "shards", **FIELDS, spatial_shards=2)
    done = subprocess.run(arguments, env=variables, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert_same_run(place / "shards", alone)


@pytest.mark.slow
def test_a_run_that_keeps_its_state_in_parts(place, alone):
    """Begun with two parts and images on two devices, killed, gone on with four parts."""
    variables = environment(place)
    variables["XLA_FLAGS"] += f" {FOUR_DEVICES}"
    fields = {**FIELDS, "ema": 0.5}
    for workdir, forms in (
        ("whole", [{}]),
        ("parts", [{"spatial_shards": 2, "shard_parameters": True}, {"shard_parameters": True}]),
    ):
        for form in forms:
            shutil.rmtree(place / workdir / "checkpoints" / "fcn16s" / "6", ignore_errors=True)
            arguments = command(place, workdir, **fields, **form)
            done = subprocess.run(
                arguments, env=variables, capture_output=True, text=True, timeout=300
            )
            assert done.returncode == 0, done.stderr
    assert "going on from step 3" in done.stdout
    assert_same_run(place / "parts", place / "whole")


@pytest.mark.usefixtures("unchecked_annotations")
def test_where_a_state_lies(monkeypatch):
    """In parts along the longest axis that they divide, the last of several; or whole."""
    monkeypatch.setattr(devices, "automatic", lambda mesh: mesh)  # of devices that there are
    mesh = jax.sharding.AbstractMesh((4, 2), ("data", "height"))
    shapes = [(3, 3, 64, 64), (7, 7, 512, 256), (1, 1, 21, 6), (8,), (21,), (0,), ()]
    tree = [jax.ShapeDtypeStruct(shape, np.float32) for shape in shapes]
    split = inspect.unwrap(devices.state_shardings)(tree, mesh, split=True)
    assert [tuple(sharding.spec) for sharding in split] == [
        (None, None, None, "data"),
        (None, None, "data"),
        (),
        ("data",),
        (),
        (),
        (),
    ]


# ======================================================================== mistakes


def test_devices_that_cannot_be_divided_are_named():
    count = jax.device_count()
    with pytest.raises(ValueError, match=rf"spatial_shards = 7 does not divide the {count} dev"):
        devices.data_mesh(7)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((None, 2, 0), "need --coordinator=HOST:PORT"),
        (("localhost", 2, 0), "--coordinator=localhost must be HOST:PORT, auto or none"),
        (("auto", None, None), "give every process --coordinator=HOST:PORT"),
    ],
)
def test_processes_that_cannot_find_each_other_say_what_is_missing(arguments, message):
    with pytest.raises(ValueError, match=message):
        devices.join_processes(*arguments)


@pytest.mark.parametrize("launcher", [{}, {"SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0"}])
def test_a_program_that_was_started_once_stays_alone(monkeypatch, launcher):
    for name, value in launcher.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(jax.distributed, "initialize", lambda *_: pytest.fail("joined"))
    devices.join_processes()


def test_what_a_launcher_says_is_believed(monkeypatch):
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "4")
    monkeypatch.setenv("SLURM_PROCID", "3")
    given = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda *arguments: given.append(arguments))
    devices.join_processes()
    devices.join_processes("head:1234")
    devices.join_processes("head:1234", 2, 1)
    assert given == [(None, 4, 3), ("head:1234", 4, 3), ("head:1234", 2, 1)]


# ======================================================================== waiting for the devices


def test_only_logging_waits_for_the_devices(monkeypatch):
    """What a step reports is looked at when it is logged or told, and not before."""
    looked: list[int] = []
    taken = 0

    class OnDevice:
        """A number that tells when the host looks at it."""

        dtype, shape, ndim = np.dtype(np.float32), (), 0

        def __array__(self, dtype=None, copy=None):
            looked.append(taken)
            return np.array(0.5, dtype or np.float32)

        def __float__(self) -> float:
            looked.append(taken)
            return 0.5

        __bool__ = __int__ = __float__

    def train_step(state, batch):
        nonlocal taken
        taken += 1
        zero = np.zeros((), np.int32)
        report: Any = StepReport(OnDevice(), {"label": OnDevice()}, zero, zero, OnDevice())
        return state, report

    class Batches:
        def __next__(self):
            return {}, ["image"]

        def get_state(self):
            return {}

    journal = SimpleNamespace(record=lambda *_: None, advance=lambda *_: None, digest=lambda: "")
    stage: Any = SimpleNamespace(
        name="fcn32s",
        steps=10,
        batch_size=1,
        batches=Batches(),
        rate=lambda step: 0.1,
        plateau=False,
        patience=0,
        best="mean_iu",
    )
    state: Any = SimpleNamespace(step=np.zeros((), np.int32), params=np.zeros(1), used=np.zeros(1))
    seconds = functools.partial(loop.Pace, clock=lambda: float(taken))  # one for each step
    monkeypatch.setattr(loop, "Pace", seconds)
    # Stand-ins are not of the types that the annotations name, which the tests check.
    inspect.unwrap(loop.take_steps)(
        stage,
        train_step,
        state,
        loop.Evaluations(),
        log_every=4,
        save_every=1000,
        score_every=0,
        score=lambda *_: None,
        save=lambda *_, **__: None,
        journal=journal,
        work=None,
        stop=[],
    )
    assert taken == 10
    assert sorted(set(looked)) == [1, 2, 3, 4, 6, 8, 9, 10]  # told at 1, 2, 3, 4, 6, 9
