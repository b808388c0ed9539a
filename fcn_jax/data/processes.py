"""Processes that share the reading of many images: how many, and how they begin and end.

What they do is told them (`fcn_jax.data.writing`, `fcn_jax.data.survey`).
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator

FEW = 600
"""Images that one process reads alone, as others take seconds to start."""


def processes_for(images: int) -> int:
    """How many processes should share so many images: 1, or one for each core."""
    if images <= FEW:
        return 1
    import loky

    return loky.cpu_count()  # it knows of containers and affinity


@contextlib.contextmanager
def worker_processes(number: int, name: str, remedy: str) -> Iterator[concurrent.futures.Executor]:
    """So many processes, which end when the block does, or this process is killed.

    Raises:
        OSError: If one of them is killed; it names the data set, ``name``, and the ``remedy``.
    """
    # Unlike those of the standard library its processes do not run the main script once more.
    from loky import ProcessPoolExecutor

    pool = ProcessPoolExecutor(number, initializer=_begin)
    try:
        yield pool
    except concurrent.futures.BrokenExecutor as error:
        raise OSError(
            f"{name}: a process that prepared images was killed, perhaps for want of memory; "
            f"{remedy} (fewer processes: LOKY_MAX_CPU_COUNT=2)"
        ) from error
    finally:
        pool.shutdown(wait=True, kill_workers=True)


def _begin() -> None:
    """Ctrl-C is for the first process, which ends the others; they end when it is killed, too."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    first = os.getppid()

    def end_with_it() -> None:
        while os.getppid() == first:  # an orphan gets another parent
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=end_with_it, daemon=True).start()
