"""Times of several runs, taken in turns so that a shared machine's load falls on all alike."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping

# What spins for more work after a run, as threads of PyTorch and onnxruntime do, goes to sleep.
REST_SECONDS = 0.05


def take_turns(
    runs: Mapping[str, Callable[[], object]], turns: int, until: float = math.inf
) -> dict[str, list[float]]:
    """Seconds of each run in each turn: A B C A B C …

    Args:
        runs: By name; each returns when its work is done, and has run before to warm up.
        turns: How often each runs.
        until: Of `time.monotonic`: past it no other turn begins; the first always does.
    """
    times: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(turns):
        if turn and time.monotonic() > until:
            break
        for name, run in runs.items():
            time.sleep(REST_SECONDS)
            times[name].append(seconds(run))
    return times


def seconds(run: Callable[[], object]) -> float:
    """Wall-clock seconds of one run."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start
