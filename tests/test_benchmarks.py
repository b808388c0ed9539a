"""The benchmarks run, and what that of FCN-8s compares computes the same function."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from random_parameters import random_parameters
from toy_backbones import plain

import fcn_jax

pytest.importorskip("torch", reason="the benchmarks' peer is PyTorch: pip install -e .[parity]")

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


def run(script: str, *arguments: str, folder: Path | None = None) -> str:
    """What a benchmark prints; not of plain forms, which take long unoptimised, as tests are."""
    result = subprocess.run(
        [sys.executable, str(BENCHMARKS / script), *arguments],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.mark.slow
def test_both_networks_give_the_same_logits():
    """The benchmark compares them itself, with random weights, in both paddings."""
    text = run(
        "fcn8s.py",
        "--device=cpu",
        "--tasks=inference",
        "--width=0.0625",
        "--shapes=2x37x50",
        "--precisions=float32",
        "--peers=eager",
        "--turns=1",
        "--nopeak",
    )
    rows = [line.split("|")[1:-1] for line in text.splitlines() if line.startswith("| ")]
    table = [[cell.strip() for cell in row] for row in rows]
    assert [row[0] for row in table] == ["variant", "fcn_jax", "PyTorch eager"] * 2
    for ours, theirs in (table[1:3], table[4:6]):
        assert 0 < float(ours[8]) < 1e-5  # equal but for rounding
        assert float(theirs[4]) == float(theirs[5]) == 1
        assert float(ours[4]) > 0


SMALL_RUN = (
    *(f"--config={BENCHMARKS.parent}/configs/quickstart.py", "--config.dataset_options.train=12"),
    *("--config.dataset_options.val=4", "--config.dataset_options.size=48"),
    f"--config.backbone={Path(__file__).with_name('toy_backbones.py')}:plain",
    *("--config.fc_width=8", "--config.batch_size=4"),
)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "printed"),
    [
        (("loop.py", *SMALL_RUN, "--steps=2", "--turns=1"), "loader alone"),
        (("convolutionalization.py", "--width=0.05", "--side=256", "--turns=1"), "2x2 logits"),
        (("memory.py", "--width=0.05", "--shape=1x33x40", "--tasks=training"), "ratio"),
        (("operations.py", "--only=AlexNet pool1", "--turns=1"), "and gradient"),
        (("exported.py", "--width=0.05", "--shape=33x40", "--turns=1"), "PyTorch, ONNX"),
        (("loader.py", "--images=32", "--workers=0", "--threads=1"), "such cores"),
        (("many_examples.py", "--examples=300"), "| opening |"),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else "",
)
def test_the_others_run(arguments, printed, tmp_path):
    assert printed in run(*arguments, folder=tmp_path)


@pytest.mark.usefixtures("one_torch_thread")
def test_a_step_of_both(monkeypatch):
    """All that is trained moves, the transposed convolutions stay."""
    import jax_fcn8s
    import torch_fcn8s
    from cases import Case

    case = Case("training", "same", (1, 33, 40), width=1 / 16)
    model = fcn_jax.create_model("fcn8s", backbone=plain, fc_width=8, learned_upsampling="none")
    monkeypatch.setattr(jax_fcn8s, "build_model", lambda case, precision: model)
    monkeypatch.setattr(jax_fcn8s, "LEARNING_RATE", 1e-6)
    monkeypatch.setattr(torch_fcn8s, "LEARNING_RATE", 1e-6)
    params = random_parameters(model, 0)
    with fcn_jax.ops.plain_forms():
        ours = jax_fcn8s.Training(case, "float32", params)
    ours.run(2)
    assert int(ours.state.step) == 2
    for layer, arrays in ours.state.params.items():
        for name, after in arrays.items():
            assert np.any(after != params[layer][name]) != layer.startswith("up")

    # So few channels may all be dead; with this seed none is.
    torch = pytest.importorskip("torch")
    torch.manual_seed(1)
    theirs = torch_fcn8s.Training(case, "float32", "eager", "cpu")
    before = {name: value.clone() for name, value in theirs.model.net.state_dict().items()}
    theirs.run(2)
    for name, after in theirs.model.net.state_dict().items():
        assert bool((after != before[name]).any()) != name.startswith("up")


def test_a_wrong_shape_is_named():
    from cases import parse_shape

    assert parse_shape("4x128x96") == (4, 128, 96)
    for wrong in ("3x20", "1x0x5", "1x2x3x4", "axbxc", ""):
        with pytest.raises(ValueError, match="is not BATCHxHEIGHTxWIDTH"):
            parse_shape(wrong)


@pytest.mark.slow
def test_the_checks_of_a_gpu_run_on_a_cpu(tmp_path):
    """All that `gpu.py` does on a GPU, small: the command is right on the day that one is there."""
    text = run("gpu.py", "--tiny", f"--output={tmp_path / 'checks'}", folder=tmp_path)
    rows = [line.split("|")[1:3] for line in text.splitlines() if line.startswith("| ")]
    states = {part.strip(): state.strip() for part, state in rows}
    for part in ("batch16", "quickstart", "killed", "profile"):
        assert states[part] == "done"
    assert "| PyTorch channels_last  |" in text
    assert "both runs agree in every metric to the bit" in text  # as they do on a CPU
    assert "others |" in text  # of the kernels of a profile
    assert (tmp_path / "checks" / "summary.md").read_text().strip() in text


def test_a_part_that_fails_is_told(tmp_path, monkeypatch, capsys):
    """The others go on; what the time cuts is no failure."""
    import gpu

    def part(name: str, program: str, limit: float = 60) -> gpu.Part:
        def start(place: gpu.Place, until: float) -> None:
            gpu.run_program(place, name, ["-c", program], until)

        return gpu.Part(name, limit, start, lambda place: gpu.printed_tables(place, name))

    monkeypatch.setattr(gpu, "SHORTEST", 0)
    sleep = "import time; print('| a row |', flush=True); time.sleep(60)"
    parts = (
        part("breaks", "raise SystemExit('no driver')"),
        part("sleeps", sleep, limit=0.5),
        part("works", "print('### 1 row')"),
        part("late", sleep),
        part("later", ""),
    )
    monkeypatch.setattr(gpu, "PARTS", parts)
    monkeypatch.setattr(gpu.signal, "signal", lambda *_: None)
    monkeypatch.setattr(gpu, "require_gpu", lambda place, until: None)

    def status(folder: str, *arguments: str) -> int:
        monkeypatch.setattr(sys, "argv", ["gpu.py", f"--output={tmp_path / folder}", *arguments])
        return gpu.main()

    assert status("all", "--minutes=0.1") == 1
    text = capsys.readouterr().out
    for row in (
        "| breaks | failed | ",
        "| status 1: no driver |",
        "| sleeps | too slow | ",
        "| works | done | ",
        "| late | cut | ",
        "| later | not run | 0 | no time was left |",
        "### 1 row",
    ):
        assert row in text
    assert status("cut", "--minutes=0.01", "--parts=late") == 0
    assert "| a row |" in (tmp_path / "all" / "summary.md").read_text()
    with pytest.raises(SystemExit, match="is not empty"):
        status("all")
    with pytest.raises(SystemExit, match="no part 'x'; there are breaks, sleeps"):
        status("other", "--parts=x")


def test_kernels_are_those_on_the_streams_of_a_gpu(tmp_path):
    """Rows that tell their time again, and the host's, do not count."""
    import traced

    names = {1: "Stream #13(Compute)", 2: "XLA Ops"}
    events: list[dict] = [
        {"ph": "M", "pid": 1, "name": "process_name", "args": {"name": "/device:GPU:0"}},
        {"ph": "M", "pid": 9, "name": "process_name", "args": {"name": "/host:CPU"}},
        *(
            {"ph": "M", "pid": 1, "tid": tid, "name": "thread_name", "args": {"name": name}}
            for tid, name in names.items()
        ),
        *({"ph": "X", "pid": 1, "tid": 1, "name": "gemm", "ts": 0, "dur": 500} for _ in range(4)),
        {"ph": "X", "pid": 1, "tid": 1, "name": "copy|", "ts": 9, "dur": 6000},
        {"ph": "X", "pid": 1, "tid": 2, "name": "dot.1", "dur": 500, "args": {"hlo_op": "dot.1"}},
        {"ph": "X", "pid": 9, "tid": 1, "name": "host", "dur": 900, "args": {"hlo_op": "host"}},
    ]
    with gzip.open(tmp_path / "a.trace.json.gz", "wt") as file:
        json.dump({"traceEvents": events}, file)
    kernels = traced.read_trace(tmp_path)
    assert kernels == [("copy|", 1, 6.0), ("gemm", 4, 2.0)]
    rows = traced.table(kernels, steps=2, top=1)
    assert rows[2:] == ["| 3.000 | 0.75 | 0.5 | copy/ |", "| 1.000 | 0.25 | 2 | 1 others |"]
