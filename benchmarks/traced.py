"""Where the time of FCN-8s goes on this device, kernel by kernel, from a trace by jax.

    python benchmarks/traced.py --output=DIR [--tasks=training,inference] [--shape=16x500x500]
        [--padding=same] [--precision=bfloat16] [--steps=3] [--top=10]

Traces some steps or passes of the programs that `fcn8s.py` times, and prints a table of the
kernels that take most of the time, those of one name together: ms and calls in one step, and the
part of the time of all kernels. The line above it tells how long a step took, tracing included.
The traces stay in DIR, for Perfetto (ui.perfetto.dev) or TensorBoard. On a CPU the kernels are
XLA's operations.
"""

from __future__ import annotations

import argparse
import collections
import gzip
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax_fcn8s
import machine
from cases import Case, parse_shape
from interleaved import seconds


class Kernel(NamedTuple):
    """All calls of one name in a trace."""

    name: str
    calls: int
    ms: float


def read_trace(folder: Path) -> list[Kernel]:
    """The kernels of the newest trace in a folder, those that take longest first.

    Raises:
        SystemExit: If there is no trace, or none of its events is a kernel.
    """
    files = sorted(folder.rglob("*.trace.json.gz"), key=lambda file: file.stat().st_mtime)
    if not files:
        raise SystemExit(f"traced.py: jax has written no *.trace.json.gz in {folder}")
    with gzip.open(files[-1], "rt") as file:
        events = json.load(file)["traceEvents"]
    calls: collections.Counter[str] = collections.Counter()
    microseconds: collections.Counter[str] = collections.Counter()
    for event in kernel_events(events):
        calls[event["name"]] += 1
        microseconds[event["name"]] += event["dur"]
    if not calls:
        raise SystemExit(f"traced.py: no kernel in {files[-1]}; is CUPTI installed?")
    return [Kernel(name, calls[name], 1e-3 * us) for name, us in microseconds.most_common()]


def kernel_events(events: Sequence[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """What ran: on the streams of a GPU or, where the trace has no GPU, XLA's operations.

    Further rows of a GPU tell the same time again, by operation and by module.
    """
    named = [event for event in events if event.get("ph") == "M" and "name" in event["args"]]
    processes = {e["pid"]: e["args"]["name"] for e in named if e["name"] == "process_name"}
    threads = {(e["pid"], e["tid"]): e["args"]["name"] for e in named if e["name"] == "thread_name"}
    has_gpu = any("GPU" in name for name in processes.values())
    for event in events:
        if event.get("ph") != "X" or "dur" not in event:
            continue
        if has_gpu:
            on_gpu = "GPU" in processes.get(event["pid"], "")
            ran = on_gpu and threads.get((event["pid"], event["tid"]), "").startswith("Stream")
        else:
            ran = "hlo_op" in event.get("args", {})
        if ran:
            yield event


def table(kernels: Sequence[Kernel], steps: int, top: int) -> list[str]:
    """The lines of a table, of one step."""
    whole = sum(kernel.ms for kernel in kernels)
    lines = ["| ms | of all | calls | kernel |", "|---|---|---|---|"]
    for name, calls, ms in kernels[:top]:
        cells = f"{ms / steps:.3f} | {ms / whole:.2f} | {calls / steps:g}"
        lines.append(f"| {cells} | {name[:110].replace('|', '/')} |")
    rest = kernels[top:]
    if rest:
        ms, calls = sum(kernel.ms for kernel in rest), sum(kernel.calls for kernel in rest)
        cells = f"{ms / steps:.3f} | {ms / whole:.2f} | {calls / steps:g}"
        lines.append(f"| {cells} | {len(rest)} others |")
    return lines


def trace(case: Case, precision: str, steps: int, folder: Path) -> tuple[list[Kernel], float]:
    """The kernels of some steps or passes of a case, and the seconds that these took."""
    model = jax_fcn8s.build_model(case)
    sides = {"inference": jax_fcn8s.Inference, "training": jax_fcn8s.Training}
    side = sides[case.task](case, precision, jax_fcn8s.random_params(model))
    side.run(1)
    with jax.profiler.trace(str(folder)):
        taken = seconds(lambda: side.run(steps))
    return read_trace(folder), taken


def read_arguments() -> argparse.Namespace:
    """The flags of the command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--output", type=Path, required=True, help="where the traces are written")
    parser.add_argument("--tasks", default="training,inference", help="what is traced")
    parser.add_argument("--padding", choices=("reference", "same"), default="same")
    parser.add_argument("--shape", default="16x500x500", help="BATCHxHEIGHTxWIDTH")
    parser.add_argument("--precision", choices=("float32", "tf32", "bfloat16"), default="bfloat16")
    parser.add_argument("--width", type=float, default=1.0, help="multiplier of the channels")
    parser.add_argument("--steps", type=int, default=3, help="steps or passes in a trace")
    parser.add_argument("--top", type=int, default=10, help="rows of a table")
    return parser.parse_args()


def main() -> None:
    """Traces and prints."""
    given = read_arguments()
    (device, *_) = jax.devices()
    print("\n".join([*machine.describe(), f"device       {device.device_kind}"]), flush=True)
    for task in given.tasks.split(","):
        case = Case(task, given.padding, parse_shape(given.shape), given.width)
        kernels, taken = trace(case, given.precision, given.steps, given.output / task)
        ms = sum(kernel.ms for kernel in kernels) / given.steps
        print(
            f"\n### {task}, {given.padding} padding, {given.shape}, {given.precision}: "
            f"kernels take {ms:.2f} ms, a step {1000 * taken / given.steps:.2f} ms\n"
        )
        print("\n".join(table(kernels, given.steps, given.top)), flush=True)


if __name__ == "__main__":
    main()
