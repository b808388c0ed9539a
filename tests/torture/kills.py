"""Kills at random moments of every phase of a run; what ends is the uninterrupted run, bit for bit.

    python tests/torture/kills.py [--count 300]

A trial starts the command ``train`` in a child, kills it with SIGKILL, starts it again, kills it
again, and lets it finish at last. A moment is drawn over the time a whole run takes, or in a phase:
so long after one has begun. Every eighth run has no compiled programs, every ninth is the command
started as a program of its own, every fifth has the data in a folder of files. Counted are the
kills that struck a run under way, of those runs whose every array of the last checkpoints
(parameters and optimiser), metrics.jsonl, scores, report and samples were the same bits at the end.
"""

from __future__ import annotations

import collections
import faulthandler
import json
import mmap
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import campaign
import numpy as np
import tiny
from PIL import Image

PHASES = (
    *("start", "data", "first state", "compile and first step", "steps"),
    *("score", "save", "restore", "journal rewound", "report", "end"),
)
SLOWEST = 300.0  # seconds that a run may take


class PhaseTold:
    """A byte shared with the child, in which it says what it is doing."""

    def __init__(self) -> None:
        self.shared = mmap.mmap(-1, 1)

    def enter(self, phase: str) -> None:
        """Called in the child."""
        self.shared[0] = PHASES.index(phase)

    def now(self) -> str:
        """Called in the parent."""
        return PHASES[self.shared[0]]

    def around(self, owner: Any, name: str, phase: str, after: str | None = None) -> None:
        """From now on the phase is told while a function runs; and after it another."""
        function = getattr(owner, name)

        def told(*args: Any, **kwargs: Any) -> Any:
            before = self.now()
            self.enter(phase)
            result = function(*args, **kwargs)
            self.enter(after or before)
            return result

        setattr(owner, name, told)


def train(arguments: Sequence[str], told: PhaseTold, compiled: Path) -> int:
    """The command, in a child: all that ``fcn-jax train`` does from its first line on."""
    import jax

    from fcn_jax import cli, data
    from fcn_jax.checkpoints import StageCheckpoints
    from fcn_jax.inference import report
    from fcn_jax.training import run
    from fcn_jax.training.journal import Journal

    jax.config.update("jax_compilation_cache_dir", str(compiled))
    told.around(data, "open_source", "data")
    told.around(run, "make_stages", "first state", after="first state")
    told.around(StageCheckpoints, "restore", "restore")
    told.around(Journal, "rewind", "journal rewound", after="compile and first step")
    told.around(Journal, "record", "steps", after="steps")
    told.around(run, "score", "score")
    told.around(StageCheckpoints, "save", "save", after="steps")
    told.around(report, "evaluate_run", "report", after="end")
    faulthandler.disable()  # as in a program of its own
    return cli.run(["train", *arguments])


def write_folder(place: Path) -> list[str]:
    """A folder of images and masks, and the arguments that train on it."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 8), ("val", 3)):
        for kind in ("images", "masks"):
            (place / "files" / split / kind).mkdir(parents=True)
        for number in range(count):
            labels = rng.integers(0, 3, (6, 6)).repeat(8, 0).repeat(8, 1).astype(np.uint8)
            noise = rng.integers(0, 60, (48, 48, 3))
            image = (labels[..., None] * 80 + noise).astype(np.uint8)
            Image.fromarray(image).save(place / f"files/{split}/images/{number}.png")
            Image.fromarray(labels).save(place / f"files/{split}/masks/{number}.png")
    (place / "files" / "classes.txt").write_text("ground\ntree\nhouse\n")
    options = {
        name: value
        for name, value in tiny.FIELDS.items()
        if not name.startswith("dataset_options.")
    }
    options |= {"dataset": "folder", "data_dir": place / "data", "manual_dir": place / "files"}
    options |= {
        "stages": tiny.STAGES,
        "init": "",
        "flip": True,
        "learning_rate": "(1e-3,)",
        "optimizer": "adam",
        "warmup": 0,
    }
    options |= {"normalize_loss": True, "crop": "()", "bias_rate": 1.0, "schedule": "constant"}
    return [
        "--config=folder",
        f"--workdir={place / 'run'}",
        *(f"--config.{name}={value}" for name, value in options.items()),
    ]


def reference(folder: Path, kind: str) -> tuple[dict[str, str], float]:
    """Bits and seconds of an uninterrupted run, made once."""
    file = folder / f"reference_{kind}.json"
    if not file.exists():
        place = folder / f"reference_{kind}"
        seconds = 0.0
        for _ in range(2):  # the second time with compiled programs
            shutil.rmtree(place, ignore_errors=True)
            place.mkdir()
            begun = time.monotonic()
            arguments = ARGUMENTS[kind](place)
            pid = campaign.fork(
                lambda arguments=arguments: train(arguments, PhaseTold(), folder / "compiled"),
                place / "output.txt",
            )
            if campaign.wait(pid, SLOWEST) != 0:
                raise SystemExit((place / "output.txt").read_text()[-3000:])
            seconds = time.monotonic() - begun
        bits = in_child(place, lambda: tiny.bits(place / "run"))
        file.write_text(json.dumps([bits, seconds]))
    bits, seconds = json.loads(file.read_text())
    return bits, seconds


ARGUMENTS: dict[str, Callable[[Path], list[str]]] = {
    "shapes": tiny.arguments,
    "folder": write_folder,
}


def in_child(place: Path, compute: Callable[[], Any]) -> Any:
    """What a child computes, which may touch devices."""
    answer = place / "answer.json"
    pid = campaign.fork(lambda: answer.write_text(json.dumps(compute())) and 0, place / "bits.txt")
    if campaign.wait(pid, SLOWEST) != 0:
        return {"error": (place / "bits.txt").read_text()[-2000:]}
    return json.loads(answer.read_text())


def strike(
    rng: random.Random, start: Callable[[], int], told: PhaseTold | None, seconds: float
) -> tuple[str | None, int | None]:
    """Starts a run and kills it; the phase it was in, or None and its exit code if it had ended."""
    if told is not None:
        told.enter("start")
    pid = start()
    begun = time.monotonic()
    if told is None or rng.random() < 0.5:
        due, phase = begun + rng.uniform(0.0, 1.05) * seconds, None
    else:
        due, phase = begun + SLOWEST, rng.choice(PHASES[1:-1])
    pause = rng.choice([0.0, rng.uniform(0, 0.02), rng.uniform(0, 0.3)])
    while time.monotonic() < due:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            return None, os.waitstatus_to_exitcode(status)
        if phase is not None and told is not None and told.now() == phase:
            due, phase = time.monotonic() + pause, None
        time.sleep(0.0005)
    os.kill(pid, signal.SIGKILL)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if code != -signal.SIGKILL:
        return None, code
    return (told.now() if told else "as a program"), None


def main() -> int:
    """Runs the campaign."""
    torture = campaign.Campaign("kills", __doc__, count=300)
    references = {kind: reference(torture.folder, kind) for kind in ARGUMENTS}

    def trial(number: int, place: Path) -> dict[str, Any]:
        rng = random.Random(f"{torture.seed} {number}")
        kind = "folder" if number % 5 == 4 else "shapes"
        program = number % 9 == 8
        bits, seconds = references[kind]
        arguments = ARGUMENTS[kind](place)
        compiled = place / "compiled" if number % 8 == 7 else torture.folder / "compiled"
        told = PhaseTold()

        def start() -> int:
            output = place / "output.txt"
            if not program:
                return campaign.fork(lambda: train(arguments, told, compiled), output)
            with output.open("a") as file:
                return subprocess.Popen(
                    [sys.executable, str(campaign.ROOT / "train.py"), *arguments],
                    stdout=file,
                    stderr=file,
                    env={**os.environ, "JAX_COMPILATION_CACHE_DIR": str(compiled)},
                ).pid

        tally: collections.Counter[str] = collections.Counter()
        failures, kills, code = [], 0, None
        factor = 2.5 if program or compiled.parent == place else 1.0
        for _ in range(rng.randint(1, 3) if program else rng.randint(2, 8)):
            phase, code = strike(rng, start, None if program else told, factor * seconds)
            if phase is None:
                break
            kills += 1
            tally[f"kills: {phase}"] += 1
            if any((place / "run").glob("checkpoints/*/*tmp*")):
                tally["kills that left a half-written checkpoint"] += 1
        if code is None:
            code = campaign.wait(start(), SLOWEST)
        if code != 0:
            failures.append(f"exit code {code}: {last_line(place / 'output.txt')}")
        else:
            different = tiny.differences(in_child(place, lambda: tiny.bits(place / "run")), bits)
            if different:
                failures.append(f"{len(different)} differ: {', '.join(different[:5])}")
            text = (place / "output.txt").read_text()
            if "Traceback" in text:
                failures.append("a traceback in the output")
        tally["runs killed and finished"] += 1
        return {"count": kills, "tally": dict(tally), "failures": failures}

    return torture.run(trial)


def last_line(file: Path) -> str:
    """Of a text."""
    return (file.read_text().strip().splitlines() or [""])[-1]


if __name__ == "__main__":
    sys.exit(main())
