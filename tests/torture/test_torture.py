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
