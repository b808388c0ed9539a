"""What a run tells while it goes on: its records, loggers, callbacks, pictures, a progress bar.

Only the first process of a multi-process run writes, prints or calls. No number is computed here.
"""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import importlib.metadata
import json
import math
import os
import platform
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import jax
from PIL import Image
from rich.console import Console
from rich.progress import Progress, TaskID

from fcn_jax import __version__
from fcn_jax.inference.page import PAGE, read_run, write_page
from fcn_jax.runs import write_whole
from fcn_jax.training.loggers import Logger, TensorBoard
from fcn_jax.training.pace import in_words

Callback: TypeAlias = Callable[[str, int, Mapping[str, float]], object]
"""``callback(stage, step, values)``, called with what metrics.jsonl gets: ``{"loss": …,
"learning_rate": …}`` after every `log_every` steps, ``{"eval/mean_iu": …}`` after an evaluation.
What it raises ends the run."""


PAGE_SECONDS = 10.0
"""From one page to the next at least, since drawing the curves takes 0.4."""


class Journal:
    """The records of a run in its workdir; a context manager. A silent one records nothing.

    Args:
        loggers: Others than TensorBoard, which is always there.
        callbacks: Called with every record.
    """

    def __init__(
        self,
        workdir: Path,
        stages: tuple[str, ...],
        *,
        silent: bool = False,
        loggers: Sequence[Logger] = (),
        callbacks: Sequence[Callback] = (),
    ) -> None:
        self._workdir = workdir
        self._stages = stages
        self._loggers = (TensorBoard(workdir / "tensorboard"), *loggers)
        self._callbacks = callbacks
        self._silent = silent
        self._console = Console(quiet=silent, soft_wrap=True)
        self._progress: Progress | None = None
        self._told: set[str] = set()  # of the page
        self._page_due = -math.inf  # when it may be written again
        self._page_is_old = False
        self._begun = time.monotonic()
        self._earlier: float | None = None  # seconds of training before this start

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *error: object) -> None:
        if self._page_is_old:
            self.page(at_once=True)
        for logger in self._loggers:
            logger.close()

    def say(self, text: str) -> None:
        """Prints a line above the progress bar."""
        self._console.print(text, markup=False, highlight=False)

    def start(self) -> None:
        """Appends to starts.jsonl when and with what the run starts, or goes on."""
        if not self._silent:
            with (self._workdir / "starts.jsonl").open("a", encoding="utf-8") as file:
                file.write(json.dumps(describe_start()) + "\n")

    # ------------------------------------------------------------------ numbers and pictures

    def digest(self) -> str:
        """Of metrics.jsonl, for a checkpoint to carry."""
        path = self._workdir / "metrics.jsonl"
        return hashlib.sha256(path.read_bytes()).hexdigest() if path.exists() else ""

    def rewind(self, stage: str, step: int, digest: str = "") -> None:
        """Forgets what was recorded beyond a step, before a run goes on from a checkpoint there.

        What is damaged or missing of the records up to there is told; with the `digest` that they
        had in the checkpoint, also that a number is another.
        """
        if self._silent:
            return
        path, rank = self._workdir / "metrics.jsonl", self._stages.index(stage)
        raw = path.read_bytes() if path.exists() else b""
        lines = raw.splitlines()
        places = [self._place(line) for line in lines]
        kept = [
            line
            for line, place in zip(lines, places, strict=True)
            if place is not None and place <= (rank, step)
        ]
        text = b"".join(b"%s\n" % line for line in kept)
        if text != raw:
            write_whole(path, text.decode())

        # A kill can cut the last line short: that is no damage.
        if self._earlier is None:
            self._earlier = float(json.loads(kept[-1]).get("wall_time", 0)) if kept else 0.0

        unreadable = places[: None if raw.endswith(b"\n") else -1].count(None)
        if unreadable:
            self.say(f"{path} was damaged: {unreadable} lines are left out")
        # A checkpoint is saved after its step has been recorded, a stage begins after another.
        reached = {place for place in places if place is not None}
        stages = {stage for stage, _ in reached}
        if (step and (rank, step) not in reached) or not stages.issuperset(range(rank)):
            self.say(f"{path} was damaged: records before {stage} step {step} are missing")
        elif digest and not unreadable and digest != hashlib.sha256(text).hexdigest():
            self.say(
                f"{path} was changed since {stage} step {step} was saved; mistrust its numbers"
            )

    def _place(self, line: bytes) -> tuple[int, int] | None:
        """The stage and step of a line of metrics.jsonl; None if it is damaged."""
        try:
            record = json.loads(line)
            stage, step = self._stages.index(record.pop("stage")), record.pop("step")
            numbers = all(isinstance(value, int | float) for value in record.values())
            return (stage, step) if numbers and isinstance(step, int) else None
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            return None

    def record(self, stage: str, step: int, values: Mapping[str, float]) -> None:
        """Appends numbers to metrics.jsonl, and hands them to loggers and callbacks.

        With them the ``wall_time``: seconds that the run has taken, in all its starts.
        """
        if self._silent:
            return
        seconds = (self._earlier or 0.0) + time.monotonic() - self._begun
        values = {**values, "wall_time": round(seconds, 3)}
        with (self._workdir / "metrics.jsonl").open("a") as file:
            file.write(json.dumps({"stage": stage, "step": step, **values}) + "\n")
        for call in (*(logger.record for logger in self._loggers), *self._callbacks):
            call(stage, step, values)

    def picture(self, stage: str, step: int, name: str, image: Image.Image) -> None:
        """Saves a sample prediction in samples/, and hands it to the loggers."""
        if self._silent:
            return
        folder = self._workdir / "samples"
        folder.mkdir(exist_ok=True)
        image.save(folder / f"{stage}_{name}.png")
        for logger in self._loggers:
            logger.picture(stage, step, name, image)

    def page(self, *, at_once: bool = False) -> None:
        """Writes the report's page of what there is so far; the first time it tells where.

        Unless ``at_once``, not within `PAGE_SECONDS` of the last time; leaving makes up for it.
        """
        if self._silent:
            return
        self._page_is_old = not at_once and time.monotonic() < self._page_due
        if self._page_is_old:
            return
        path = self._workdir / "report" / PAGE
        text = f"curves and samples, written after evaluations: {path}"
        try:
            write_page([read_run(self._workdir, path.parent, training=True)], path, training=True)
        except (OSError, ValueError) as error:  # no reason to end the run
            text = f"{path} could not be written: {error}"
        self._page_due = time.monotonic() + PAGE_SECONDS
        if text not in self._told:
            self.say(text)
            self._told.add(text)

    # ------------------------------------------------------------------ progress

    @contextlib.contextmanager
    def progress(self, stage: str, step: int, steps: int) -> Iterator[None]:
        """Shows a bar for a stage; without a terminal, `advance` prints lines instead."""
        if not self._silent:
            for logger in self._loggers:
                logger.begin(stage, step)
        if self._silent or not sys.stdout.isatty():
            yield
            return
        with Progress(console=self._console) as self._progress:
            self._progress.add_task(stage, total=steps, completed=step)
            yield
        self._progress = None

    def advance(
        self,
        stage: str,
        step: int,
        steps: int,
        loss: float,
        rate: float,
        batch_size: int,
        line: bool = True,
    ) -> None:
        """Moves the bar: loss per pixel, images per second, and the time that is left.

        Where there is no bar it prints a ``line``. A rate of 0 is not known yet.
        """
        text = f"{stage} {step}/{steps}  loss {loss:.4f}/px"
        text += f"  {rate:.1f} images/s" if rate else ""
        if self._progress is not None:
            self._progress.update(TaskID(0), completed=step, description=text)
        elif line:
            left = (steps - step) * batch_size / rate if rate else 0.0
            self.say(f"{text}  {in_words(left)} left" if left else text)


def describe_start() -> dict[str, Any]:
    """The command, commit, versions and devices of this program, and the time, as plain values.

    The commit is that of the package's clone, ``-dirty`` where files differ; None elsewhere.
    """
    called = sys.argv[0]
    name = "python -m fcn_jax" if called.endswith("__main__.py") else os.path.basename(called)
    packages = ("jax", "jaxlib", "flax", "optax", "numpy")
    versions = {package: importlib.metadata.version(package) for package in packages}
    root, commit = Path(__file__).parents[2], None
    if (root / ".git").exists():  # not that of another project, in which the package is installed
        git = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=12"]
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            commit = subprocess.check_output(
                [*git, "--exclude=*"], stderr=subprocess.DEVNULL, text=True, timeout=20
            )
    kinds = [device.device_kind for device in jax.devices()]
    return {
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": f"{name} {shlex.join(sys.argv[1:])}".strip(),
        "commit": commit and commit.strip(),
        "versions": {
            "fcn_jax": __version__,
            "python": platform.python_version(),
            **versions,
        },
        "devices": ", ".join(f"{kinds.count(kind)} × {kind}" for kind in dict.fromkeys(kinds)),
        "processes": jax.process_count(),
    }
