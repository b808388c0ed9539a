"""What the campaigns share: trials in processes of their own, resumable, counted.

A campaign is a script: ``python tests/torture/NAME.py [--count N] [--seed S] [--folder DIR]``.
Each finished trial is a line of DIR/results.jsonl, and what a trial does follows from the seed and
its number alone. So a campaign may be killed itself, goes on where it was, and any failure can be
seen again: ``--replay NUMBER`` does that one trial with its output shown.

Trials run in children of one process that has imported everything but has not touched a device:
a fork costs milliseconds where a new program costs seconds. Linux only.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import ctypes
import faulthandler
import importlib
import json
import os
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

# Set before jax is imported. Compiling takes most of the time of networks this small, and programs
# that are not optimised are right as well.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault(
    "XLA_FLAGS", "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
)

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

# The modules that a run would import when it needs them.
LATE = (
    *("fcn_jax.cli.train", "fcn_jax.cli.eval", "fcn_jax.cli.predict", "fcn_jax.cli.check"),
    *("fcn_jax.training.run", "fcn_jax.inference.report", "fcn_jax.weights"),
    *("tensorflow_datasets", "array_record.python.array_record_module", "tensorboardX", "grain"),
    *("matplotlib.figure", "matplotlib.backends.backend_agg", "PIL.Image", "scipy.io", "h5py"),
)


class Campaign:
    """A folder with the results of the trials so far, and the arguments it was started with."""

    def __init__(self, name: str, description: str | None, count: int) -> None:
        parser = argparse.ArgumentParser(description=(description or "").partition("\n")[0])
        add = parser.add_argument
        add("--count", type=int, default=count, help=f"how many; default: {count}")
        add("--seed", type=int, default=0, help="another seed makes other trials")
        add("--folder", type=Path, default=Path("/tmp/fcn_jax_torture") / name, help="of results")
        add("--jobs", type=int, default=os.cpu_count() or 1, help="trials at a time")
        add("--only", help="of this kind alone, where a campaign has several")
        add("--replay", type=int, metavar="NUMBER", help="do one trial again, and show its output")
        args = parser.parse_args()
        self.count, self.seed = args.count, args.seed
        self.jobs, self.only, self.replay = args.jobs, args.only, args.replay
        self.folder: Path = args.folder.absolute() / f"seed{args.seed}"
        self.folder.mkdir(parents=True, exist_ok=True)
        self.results_file = self.folder / "results.jsonl"
        os.environ["JAX_COMPILATION_CACHE_DIR"] = str(self.folder / "compiled")
        for module in LATE:
            with contextlib.suppress(ImportError):
                importlib.import_module(module)

    def results(self) -> list[dict[str, Any]]:
        """Of the trials that are done; a line that a kill cut short is left out."""
        results = []
        if self.results_file.exists():
            for line in self.results_file.read_text().splitlines():
                with contextlib.suppress(ValueError):
                    results.append(json.loads(line))
        return results

    def run(self, trial: Callable[[int, Path], dict[str, Any]]) -> int:
        """Does trials until their counts add up to ``count``; prints the sums; the exit code.

        Args:
            trial: Is given its number and an empty folder, and returns its result: "count" is how
                much it adds (1 by default), "tally" maps words to numbers that are summed,
                "failures" lists what should not be.
        """
        if self.replay is not None:
            print(json.dumps(self._one(trial, self.replay), indent=2))
            return 0
        started, before = time.time(), self._total()
        if before:
            print(f"going on: {before} of {self.count} were done before")
        drivers = [
            fork(lambda part=part: self._drive(trial, part), None) for part in range(self.jobs)
        ]
        while drivers:
            drivers = [pid for pid in drivers if not os.waitpid(pid, os.WNOHANG)[0]]
            time.sleep(1)
            if sys.stdout.isatty():
                print(f"\r{self._total()} of {self.count}", end="", flush=True)
        return self._summary(time.time() - started)

    def _drive(self, trial: Callable[[int, Path], dict[str, Any]], part: int) -> None:
        """Every ``jobs``-th trial that is not done, until the sum is reached."""
        done = {result["trial"] for result in self.results()}
        number = part
        while self._total() < self.count:
            if number not in done:
                result = self._one(trial, number)
                with self.results_file.open("a") as file:
                    file.write(json.dumps({"trial": number, **result}) + "\n")
            number += self.jobs

    def _one(self, trial: Callable[[int, Path], dict[str, Any]], number: int) -> dict[str, Any]:
        folder = self.folder / f"trial{number}"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        begun = time.monotonic()
        result = trial(number, folder)
        if not result.get("failures") and self.replay is None:
            shutil.rmtree(folder, ignore_errors=True)
        return {**result, "seconds": round(time.monotonic() - begun, 2)}

    def _total(self) -> int:
        return sum(result.get("count", 1) for result in self.results())

    def _summary(self, seconds: float) -> int:
        tally: collections.Counter[str] = collections.Counter()
        failures = []
        for result in self.results():
            tally.update(result.get("tally", {}))
            failures += [(result["trial"], text) for text in result.get("failures", [])]
        print(f"\n{self._total()} in all, {seconds:.0f} s now; results in {self.folder}")
        for name, number in sorted(tally.items()):
            print(f"  {number:>8}  {name}")
        print(f"  {len(failures):>8}  FAILURES")
        for number, text in failures[:20]:
            print(f"  trial {number}: {text}")
        return 1 if failures else 0


def fork(work: Callable[[], object], output: Path | None, errors: Path | None = None) -> int:
    """The process id of a child that does some work, and ends with 1 if that raises.

    Its standard output goes to the end of a file, and standard error there or to another; None:
    they stay.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid == 0:
        _in_child(work, output, errors or output)
    return pid


def _in_child(work: Callable[[], object], output: Path | None, errors: Path | None) -> NoReturn:
    code = 1
    try:
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: it ends with its parent
        signal.signal(signal.SIGINT, signal.default_int_handler)
        for path, descriptor in ((output, 1), (errors, 2)):
            if path is not None:
                file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
                os.dup2(file, descriptor)
                os.close(file)
        faulthandler.enable()
        result = work()
        code = result if isinstance(result, int) else 0
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def wait(pid: int, seconds: float) -> int | None:
    """A child's exit code, negative for a signal; None if it had to be killed at the end."""
    end = time.monotonic() + seconds
    while True:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() > end:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            return None
        time.sleep(0.002)


@contextlib.contextmanager
def replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    """An attribute that is another for a while."""
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)
