"""The checks of a machine with a GPU, in turn, by one command, within a time.

    python benchmarks/gpu.py --output=DIR [--minutes=9.5] [--parts=batch16,quickstart,...] [--tiny]

Parts, in the order of what would be missed most:

- batch16: `fcn8s.py`, batch 16 of 500x500, tf32 and bfloat16, beside PyTorch in channels_last and
  by torch.compile, both tasks, same padding, with the part of the measured peak of products;
- quickstart: ``fcn-jax train --config=quickstart`` with its scores;
- killed: the same, ended by ``kill -9`` in its last stage and started again; do both agree?
- profile: `traced.py`, the ten kernels that take most of a step and of a pass of batch16;
- batch1, reference16, reference1: as batch16, with other batches and paddings;
- eager, batch4, float32: the other forms, batch and precision.

Each part has a limit of its own, by which the first four are sure of their time; the others run if
some is left (``--minutes=40`` for all). One that fails or runs out of time is told, and the others
go on. Ends with 1 if one failed, or was slower than its own limit; one that the minutes cut is no
failure, and what it had printed counts.

DIR, which must be new or empty, gets a log of each part, runs, traces, and summary.md, written anew
after each part. Prepared data and compiled programs lie in a temporary folder: ``first s`` of the
timings is from nothing compiled, the killed run starts with the programs of the first. ``--tiny``
runs small forms of the first four parts on the CPU, in a minute, to see that all works.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

HERE = Path(__file__).resolve().parent

LAST_STAGE = "fcn8s"
SCORE = "eval/mean_iu"
SHORTEST = 20.0
"""Seconds; with less left a part does not begin: it would not have imported jax and PyTorch."""

WIND_DOWN = 50.0
"""Seconds of its limit in which `fcn8s.py` builds nothing more, as a build may take as long."""


class Failed(Exception):
    """A part has failed; why, in a line."""


class OutOfTime(Exception):
    """A part did not end within its limit."""


@dataclasses.dataclass(frozen=True)
class Place:
    """What all parts share.

    Attributes:
        output: The folder of the results.
        scratch: That of prepared data and compiled programs.
        tiny: Whether all is small, and runs on the CPU.
    """

    output: Path
    scratch: Path
    tiny: bool

    def log(self, part: str) -> Path:
        """Where a part's programs print."""
        return self.output / f"{part}.log"

    def environment(self) -> dict[str, str]:
        """That of all programs: fcn_jax is found, and nothing is written beside it."""
        given = os.environ
        found = filter(None, (str(HERE.parent), given.get("PYTHONPATH")))
        kept = {
            "JAX_COMPILATION_CACHE_DIR": "jax",
            "TORCHINDUCTOR_CACHE_DIR": "inductor",
            "TRITON_CACHE_DIR": "triton",
            "PYTHONPYCACHEPREFIX": "pycache",
        }
        return {
            **{name: str(self.scratch / folder) for name, folder in kept.items()},
            **given,
            "PYTHONPATH": os.pathsep.join(found),
            "JAX_PLATFORMS": "cpu" if self.tiny else "cuda,cpu",
        }


@dataclasses.dataclass(frozen=True)
class Part:
    """One check.

    Attributes:
        name: Of the part and its log.
        limit: Seconds it may take.
        run: Runs it until a time of `time.monotonic`; raises `Failed` or `OutOfTime`.
        found: Lines that tell what there is of it, also after it was cut.
    """

    name: str
    limit: float
    run: Callable[[Place, float], None]
    found: Callable[[Place], list[str]]


# ======================================================================== programs


def run_program(
    place: Place,
    part: str,
    arguments: Sequence[str],
    until: float,
    enough: Callable[[], bool] | None = None,
) -> None:
    """Runs a Python program, which prints to the part's log.

    Args:
        place: Where.
        part: Whose program it is.
        arguments: Of Python.
        until: Of `time.monotonic`: then it is killed, with all processes that it started.
        enough: If given, it is killed as soon as this is true.

    Raises:
        Failed: If it ends with another status than 0, or before there was enough.
        OutOfTime: If it is killed for the time.
    """
    log = place.log(part)
    with log.open("a", encoding="utf-8") as file:
        print(f"$ python {' '.join(arguments)}", file=file, flush=True)
        process = subprocess.Popen(
            [sys.executable, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            env=place.environment(),
            cwd=place.output,
            start_new_session=True,
        )
    try:
        while process.poll() is None:
            if time.monotonic() > until:
                raise OutOfTime
            if enough is not None and enough():
                return
            time.sleep(0.02)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    if process.returncode:
        raise Failed(f"status {process.returncode}: {last_line(log)}")
    if enough is not None:
        raise Failed("it ended before it could be killed")


def require_gpu(place: Place, until: float) -> None:
    """Ends the command where jax would train on the CPU.

    Raises:
        SystemExit: If jax finds no GPU.
    """
    check = "import jax; print(jax.devices()); raise SystemExit(jax.default_backend() != 'gpu')"
    try:
        run_program(place, "device", ["-c", check], until)
    except (Failed, OutOfTime) as error:
        raise SystemExit(
            f"gpu.py: jax finds no GPU ({error}); pip install jax[cuda13], or give --tiny"
        ) from None


def last_line(log: Path) -> str:
    """The last line that says something."""
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines()]
    return next((line for line in reversed(lines) if line), "it printed nothing")


def printed_tables(place: Place, part: str) -> list[str]:
    """The lines of a benchmark's log that are results, not progress."""
    log = place.log(part)
    lines = log.read_text(errors="replace").splitlines() if log.exists() else []
    shown = ("|", "### ", "peak ", "device ", "versions ", "left out")
    kept = [line for line in lines if line.startswith(shown)]
    return [f"\n{line}\n" if line.startswith("#") else line for line in kept]


# ======================================================================== timings and profile


def timings(
    name: str,
    limit: float,
    *,
    padding: str = "same",
    shapes: str,
    precisions: str = "tf32,bfloat16",
    peers: str = "channels_last,compile",
) -> Part:
    """A part that times FCN-8s beside PyTorch."""
    real = [f"--shapes={shapes}", f"--precisions={precisions}", f"--peers={peers}", "--device=gpu"]
    real += ["--turns=3", "--steps=10"]
    tiny = ["--shapes=1x32x32", "--precisions=float32", "--peers=channels_last", "--device=cpu"]
    tiny += ["--turns=1", "--width=0.02"]

    def run(place: Place, until: float) -> None:
        left = until - time.monotonic()
        run_program(
            place,
            name,
            [
                str(HERE / "fcn8s.py"),
                *(tiny if place.tiny else real),
                f"--paddings={padding}",
                f"--seconds={left if place.tiny else max(1.0, left - WIND_DOWN):.0f}",
            ],
            until,
        )
        if not any(line.startswith("peak ") for line in printed_tables(place, name)):
            raise Failed("no peak of matrix products was measured")

    return Part(name, limit, run, lambda place: printed_tables(place, name))


def profile(place: Place, until: float) -> None:
    """Traces a step and a pass."""
    tiny = ["--shape=1x32x32", "--precision=float32", "--width=0.02", "--steps=1"]
    output = f"--output={place.output / 'profile'}"
    arguments = [str(HERE / "traced.py"), output, *(tiny if place.tiny else [])]
    run_program(place, "profile", arguments, until)


# ======================================================================== the quickstart

TINY_RUN = (
    *("--config.dataset_options.train=12", "--config.dataset_options.val=4"),
    *("--config.dataset_options.size=48", "--config.width=0.05", "--config.fc_width=8"),
    *("--config.epochs=()", "--config.steps=(60,)", "--config.learning_rate=(1e-3,)"),
    *(f"--config.stages=('{LAST_STAGE}',)", "--config.batch_size=4", "--config.backbone=vgg11"),
    *("--config.checkpoint_every=20", "--config.log_every=20"),
)


def train_command(place: Place, part: str) -> list[str]:
    """Arguments of Python that train the quickstart in a folder of the part's name."""
    return [
        *("-m", "fcn_jax", "train", "--config=quickstart"),
        f"--workdir={place.output / part}",
        f"--config.data_dir={place.scratch / 'data'}",
        *(TINY_RUN if place.tiny else ()),
    ]


def quickstart(place: Place, until: float) -> None:
    """Trains it to its end."""
    run_program(place, "quickstart", train_command(place, "quickstart"), until)
    require_scores(place, "quickstart")


def killed(place: Place, until: float) -> None:
    """Trains it until its last stage has a checkpoint, kills it there, and starts it again."""
    command = train_command(place, "killed")
    folder = place.output / "killed" / "checkpoints" / LAST_STAGE
    run_program(place, "killed", command, until, lambda: any(saved_steps(folder)))
    with place.log("killed").open("a", encoding="utf-8") as file:
        print(f"killed with SIGKILL after step {max(saved_steps(folder))}", file=file)
    run_program(place, "killed", command, until)
    if f"{LAST_STAGE}: going on from step" not in place.log("killed").read_text(errors="replace"):
        raise Failed("the second start did not go on from a checkpoint of the first")
    require_scores(place, "killed")


def saved_steps(folder: Path) -> Iterator[int]:
    """The steps of the whole checkpoints of a stage; others have longer names."""
    names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    return (int(name) for name in names if name.isdigit())


def evaluations(place: Place, part: str) -> dict[str, dict[str, float]]:
    """The last metrics of each stage; of a run that was cut what there is."""
    path = place.output / part / "metrics.jsonl"
    found = {}
    for line in path.read_text().splitlines() if path.exists() else ():
        with contextlib.suppress(ValueError):  # the last line may be cut short
            record = json.loads(line)
            metrics = {name: v for name, v in record.items() if name.startswith("eval/")}
            if metrics:
                found[record["stage"]] = metrics
    return found


def require_scores(place: Place, part: str) -> None:
    """Raises `Failed` unless the last stage was scored."""
    if SCORE not in evaluations(place, part).get(LAST_STAGE, {}):
        raise Failed(f"{LAST_STAGE} has no {SCORE} in metrics.jsonl")


def scores(place: Place, part: str) -> list[str]:
    """A line with the mean IU of each stage."""
    found = evaluations(place, part)
    listed = [f"{stage} {metrics[SCORE]:.4f}" for stage, metrics in found.items()]
    return [f"mean IU of {part}: {', '.join(listed)}"] if listed else []


def agreement(place: Place) -> list[str]:
    """The scores of the run that was killed, and whether they are those of the other one."""
    lines = scores(place, "killed")
    one, other = evaluations(place, "quickstart"), evaluations(place, "killed")
    if not (one.keys() == other.keys() and LAST_STAGE in one):
        return lines
    if one == other:
        return [*lines, "both runs agree in every metric to the bit"]
    first, second = one[LAST_STAGE][SCORE], other[LAST_STAGE][SCORE]
    return [
        *lines,
        f"both runs do not agree to the bit: mean IU of {LAST_STAGE} {first:.4f} and "
        f"{second:.4f}, a difference of {abs(first - second):.4f}",
    ]


# ======================================================================== all of them

PARTS = (
    timings("batch16", 270, shapes="16x500x500"),
    Part("quickstart", 110, quickstart, lambda place: scores(place, "quickstart")),
    Part("killed", 110, killed, agreement),
    Part("profile", 75, profile, lambda place: printed_tables(place, "profile")),
    timings("batch1", 170, shapes="1x500x500"),
    timings("reference16", 200, shapes="16x500x500", padding="reference"),
    timings("reference1", 170, shapes="1x500x500", padding="reference"),
    timings("eager", 240, shapes="16x500x500,1x500x500", peers="eager", padding="same,reference"),
    timings("batch4", 400, shapes="4x500x500", padding="same,reference"),
    timings(
        "float32",
        300,
        shapes="16x500x500,1x500x500",
        precisions="float32",
        peers="eager,channels_last,compile",
    ),
)
TINY_PARTS = 4


@dataclasses.dataclass
class Outcome:
    """How a part ended: its ``state`` in words, why if it did not end well, and its seconds."""

    part: Part
    state: str
    why: str = ""
    seconds: float = 0.0

    @property
    def is_failure(self) -> bool:
        return self.state in ("failed", "too slow")


def attempt(part: Part, place: Place, end: float) -> Outcome:
    """Runs a part within its limit and what is left of all the time."""
    start = time.monotonic()
    if end - start < SHORTEST:
        return Outcome(part, "not run", "no time was left")
    state, why = "done", ""
    try:
        part.run(place, min(start + part.limit, end))
    except OutOfTime:
        is_last = start + part.limit > end
        state = "cut" if is_last else "too slow"
        why = "all the time was over" if is_last else f"not done within its {part.limit:.0f} s"
    except (Failed, OSError) as error:
        state, why = "failed", str(error)
    return Outcome(part, state, why, time.monotonic() - start)


def summary(outcomes: Sequence[Outcome], place: Place) -> list[str]:
    """How all parts ended, and what was found, as Markdown."""
    lines = ["| part | state | seconds | why |", "|---|---|---|---|"]
    for outcome in outcomes:
        why = outcome.why.replace("|", "/")
        lines.append(f"| {outcome.part.name} | {outcome.state} | {outcome.seconds:.0f} | {why} |")
    for outcome in outcomes:
        found = outcome.part.found(place)
        if found:
            lines += ["", f"## {outcome.part.name}", "", *found]
    return lines


def read_arguments() -> argparse.Namespace:
    """The flags of the command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--output", type=Path, required=True, help="a new or empty folder")
    parser.add_argument("--minutes", type=float, default=9.5, help="of all parts")
    parser.add_argument("--parts", default="", help="their names, in turn; empty: all")
    parser.add_argument("--tiny", action="store_true", help="small, on the CPU")
    return parser.parse_args()


def chosen_parts(names: str, tiny: bool) -> list[Part]:
    """The parts of some names, in their order.

    Raises:
        SystemExit: If there is none of a name.
    """
    if not names:
        return list(PARTS[:TINY_PARTS] if tiny else PARTS)
    known = {part.name: part for part in PARTS}
    for name in names.split(","):
        if name not in known:
            raise SystemExit(f"gpu.py: there is no part {name!r}; there are {', '.join(known)}")
    return [known[name] for name in names.split(",")]


def main() -> int:
    """Runs the parts, and prints the summary."""
    arguments = read_arguments()
    end = time.monotonic() + 60 * arguments.minutes
    parts = chosen_parts(arguments.parts, arguments.tiny)
    output = arguments.output.resolve()
    output.mkdir(parents=True, exist_ok=True)
    if any(output.iterdir()):
        raise SystemExit(f"gpu.py: {output} is not empty: a run in it would go on; give a new one")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # ends programs, too

    outcomes: list[Outcome] = []
    lines: list[str] = []
    with tempfile.TemporaryDirectory(prefix="fcn_jax_gpu_", ignore_cleanup_errors=True) as scratch:
        place = Place(output, Path(scratch), arguments.tiny)
        if not place.tiny:
            require_gpu(place, end)
        for part in parts:
            print(f"{part.name} …", end=" ", flush=True)
            outcomes.append(attempt(part, place, end))
            print(f"{outcomes[-1].state}, {outcomes[-1].seconds:.0f} s", flush=True)
            lines = summary(outcomes, place)
            (output / "summary.md").write_text("\n".join([*lines, ""]), encoding="utf-8")
    print("\n".join(["", *lines]), flush=True)
    return int(any(outcome.is_failure for outcome in outcomes))


if __name__ == "__main__":
    sys.exit(main())
