"""A short run of every campaign: ``python -m pytest -n0 -m torture``, some minutes.

The long ones are started one by one, each a program of its own: see docs/reliability.md.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.torture
@pytest.mark.parametrize(
    ("name", "count"),
    [("kills", 10), ("damage", 50), ("mutations", 10_000), ("several", 2), ("scarce", 4)],
)
def test_campaign(tmp_path, name, count):
    if name == "scarce" and os.geteuid() != 0:
        pytest.skip("a small disk is mounted, which needs root")
    program = Path(__file__).with_name(f"{name}.py")
    command = [sys.executable, str(program), f"--count={count}", f"--folder={tmp_path}"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


PREPARED = """
import pathlib, sys
sys.path.insert(0, sys.argv[1])
import kills
from fcn_jax.cli.train import main
from fcn_jax.training import run

def prepare(config, workdir, given, loss, callbacks, *options):
    run.prepare(config, workdir, given, loss, *options)
    raise run.Stopped(f"prepared for {config.stages}", 0)

run._train = prepare
for kind, arguments in kills.ARGUMENTS.items():
    place = pathlib.Path(sys.argv[2], kind)
    place.mkdir()
    assert main(arguments(place)) == 128, kind
"""


def test_the_runs_to_be_killed_can_start(tmp_path):
    """Recipes change, and the campaign itself is started by hand alone."""
    program = [sys.executable, "-c", PREPARED, str(Path(__file__).parent), str(tmp_path)]
    done = subprocess.run(program, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("prepared for ('fcn32s', 'fcn16s', 'fcn8s')") == 2
