"""The benchmarks run, and what that of FCN-8s compares computes the same function."""

from __future__ import annotations

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
