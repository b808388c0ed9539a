"""A disk that fills up, too few file handles, too little memory: one line, and nothing is lost.

    python tests/torture/scarce.py [--count 40]        Linux, and rights to mount (root)

A trial starts a run where there is too little of something, how much is drawn. It ends by itself
within a minute, with one line and an exit code that is not 0, unless there was enough. Then, with
enough of it, the same command ends with the bits of a run that never lacked anything.
"""

from __future__ import annotations

import collections
import ctypes
import functools
import os
import random
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import campaign
import kills
import tiny

PATIENCE = 60.0  # seconds
NEEDED = 3000  # KiB that a run and its data take, and more

_own_mounts = False


def mount(place: Path, kilobytes: int, again: bool = False) -> None:
    """A file system of a size at a folder, which no other process sees; ``again`` changes it."""
    global _own_mounts
    if not _own_mounts:  # CLONE_NEWNS
        if ctypes.CDLL(None, use_errno=True).unshare(0x20000):
            raise SystemExit(f"cannot mount here: {os.strerror(ctypes.get_errno())}")
        subprocess.run(["mount", "--make-rprivate", "/"], check=True)
        _own_mounts = True
    place.mkdir(exist_ok=True)
    options = f"{'remount,' if again else ''}size={kilobytes}k"
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(place)], check=True)


def limited(kind: int, most: int, arguments: list[str], output: Path, errors: Path) -> int:
    """The process id of the command, a program of its own, under a limit of the system."""
    with output.open("a") as out, errors.open("a") as err:
        return subprocess.Popen(
            [sys.executable, str(campaign.ROOT / "train.py"), *arguments],
            stdout=out,
            stderr=err,
            preexec_fn=lambda: resource.setrlimit(kind, (most, most)),
        ).pid


def main() -> int:
    """Runs the campaign."""
    torture = campaign.Campaign("scarce", __doc__, count=40)
    bits, _ = kills.reference(torture.folder, "shapes")
    compiled = torture.folder / "compiled"

    def trial(number: int, place: Path) -> dict[str, Any]:
        rng = random.Random(f"{torture.seed} {number}")
        arguments = tiny.arguments(place)
        plain: Callable[[], int] = functools.partial(
            kills.train, arguments, kills.PhaseTold(), compiled
        )
        what = ("disk of the run", "disk of the data", "file handles", "memory")[number % 4]
        folder = place / ("data" if "data" in what else "run")
        output, errors = place / "output.txt", place / "errors.txt"
        if "disk" in what:
            mount(folder, rng.randint(1, 200 if "data" in what else 2000))
            pid = campaign.fork(plain, output, errors)
        elif what == "file handles":
            pid = limited(resource.RLIMIT_NOFILE, rng.randint(8, 300), arguments, output, errors)
        else:
            most = rng.randint(200, 6000) << 20
            pid = limited(resource.RLIMIT_AS, most, arguments, output, errors)
        tally: collections.Counter[str] = collections.Counter()
        failures = []
        code = campaign.wait(pid, PATIENCE)
        lines = [line for line in errors.read_text().splitlines() if "\r" not in line and line]
        lines = [line for line in lines if "images/s" not in line and "Preparing" not in line]
        if code == 0:
            tally[f"{what}: enough"] += 1
        else:
            tally[f"{what}: too little"] += 1
            if code is None:
                failures.append(f"{what}: hangs: {lines[-1:]}")
            elif "Traceback" in "".join(lines):
                failures.append(f"{what}: a traceback of {len(lines)} lines: {lines[-1][:200]}")
            elif code < 0 or len(lines) != 1:
                failures.append(f"{what}: exit code {code}, {len(lines)} lines: {lines[-2:]}")
        if "disk" in what:
            mount(folder, 10 * NEEDED, again=True)
        code = campaign.wait(campaign.fork(plain, output, place / "errors2.txt"), kills.SLOWEST)
        if code != 0:
            text = (place / "errors2.txt").read_text().strip()
            failures.append(f"{what}: afterwards exit code {code}: {text[-200:]}")
        elif different := tiny.differences(
            kills.in_child(place, lambda: tiny.bits(place / "run")), bits
        ):
            failures.append(f"{what}: {len(different)} differ: {', '.join(different[:5])}")
        else:
            tally[f"{what}: afterwards the same bits"] += 1
        if "disk" in what:
            subprocess.run(["umount", str(folder)], check=True)
        return {"tally": dict(tally), "failures": failures}

    return torture.run(trial)


if __name__ == "__main__":
    sys.exit(main())
