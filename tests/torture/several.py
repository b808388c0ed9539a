"""Two processes train one run; one of them is killed, and the other ends within a minute.

    python tests/torture/several.py [--count 20]

The killed one is either, at a moment drawn over the whole run. The other must end by itself within
a minute, with an exit code that is not 0 and without a traceback. Then both are started again; what
ends is the run that two processes made without interruption, bit for bit. Counted are kills.
"""

from __future__ import annotations

import collections
import functools
import json
import os
import random
import shutil
import signal
import socket
import sys
import time
from pathlib import Path
from typing import Any

import campaign
import kills
import tiny

PATIENCE = 60.0  # seconds that the other may take to end
FIELDS = {"stages": "('fcn32s','fcn16s')", "steps": "(5,6)", "learning_rate": "(1e-3,)"}


def start(place: Path, compiled: Path) -> tuple[list[int], kills.PhaseTold]:
    """Two processes of a run, and what the first is doing."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    told = kills.PhaseTold()
    pids = []
    for process in range(2):
        arguments = [
            *tiny.arguments(place, **FIELDS),
            f"--coordinator=localhost:{port}",
            "--num_processes=2",
            f"--process_id={process}",
        ]
        watched = told if process == 0 else kills.PhaseTold()
        work = functools.partial(kills.train, arguments, watched, compiled)
        output, errors = (place / f"{kind}{process}.txt" for kind in ("output", "errors"))
        pids.append(campaign.fork(work, output, errors))
    return pids, told


def main() -> int:
    """Runs the campaign."""
    torture = campaign.Campaign("several", __doc__, count=20)
    expected = torture.folder / "reference.json"
    if not expected.exists():
        place = torture.folder / "reference"
        seconds = 0.0
        for _ in range(2):  # the second time with compiled programs
            shutil.rmtree(place, ignore_errors=True)
            place.mkdir()
            begun = time.monotonic()
            pids, _ = start(place, torture.folder / "compiled")
            if [campaign.wait(pid, kills.SLOWEST) for pid in pids] != [0, 0]:
                raise SystemExit((place / "errors0.txt").read_text()[-3000:])
            seconds = time.monotonic() - begun
        bits = kills.in_child(place, lambda: tiny.bits(place / "run"))
        expected.write_text(json.dumps([bits, seconds]))
    bits, seconds = json.loads(expected.read_text())

    def trial(number: int, place: Path) -> dict[str, Any]:
        rng = random.Random(f"{torture.seed} {number}")
        tally: collections.Counter[str] = collections.Counter()
        failures, struck = [], 0
        for attempt in range(2):
            pids, told = start(place, torture.folder / "compiled")
            time.sleep(rng.uniform(0.0, 1.0 if attempt else 1.1) * seconds)
            which = rng.randrange(2)
            victim, other = pids[which], pids[1 - which]
            os.kill(victim, signal.SIGKILL)
            killed = campaign.wait(victim, PATIENCE) == -signal.SIGKILL
            begun = time.monotonic()
            code = campaign.wait(other, PATIENCE)
            if not killed:
                break
            struck += 1
            tally[f"process {which} killed"] += 1
            tally[f"killed in: {told.now()}"] += 1
            if code == 0 and told.now() in ("save", "report", "end", "steps"):
                tally["the other had done its part"] += 1
                continue
            # The line comes from a process that outlives the other by a moment.
            for _ in range(100):
                text = (place / f"errors{1 - which}.txt").read_text()
                last = text.strip().splitlines()[-1:] or [""]
                if last[0].startswith("fcn-jax train:"):
                    break
                time.sleep(0.05)
            took = f"{time.monotonic() - begun:.0f} s after the kill in {told.now()}"
            if code is None:
                failures.append(f"the other still ran {took}: {last[0][:200]}")
            elif code == 0:
                failures.append(f"exit code 0 {took}")
            elif "Traceback" in text or "***" in text:
                failures.append(f"exit code {code} {took}, with a traceback: {last[0][:200]}")
            elif not last[0].startswith("fcn-jax train:"):
                failures.append(f"exit code {code} {took}, and no line says why: {last[0][:200]}")
            (place / f"errors{1 - which}.txt").unlink()
        pids, _ = start(place, torture.folder / "compiled")
        codes = [campaign.wait(pid, kills.SLOWEST) for pid in pids]
        if codes != [0, 0]:
            text = "".join((place / f"errors{process}.txt").read_text() for process in range(2))
            failures.append(f"exit codes {codes}: {text.strip()[-300:]}")
        elif different := tiny.differences(
            kills.in_child(place, lambda: tiny.bits(place / "run")), bits
        ):
            failures.append(f"{len(different)} differ: {', '.join(different[:5])}")
        tally["runs of two processes finished"] += 1
        return {"count": struck, "tally": dict(tally), "failures": failures}

    return torture.run(trial)


if __name__ == "__main__":
    sys.exit(main())
