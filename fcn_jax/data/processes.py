"""Processes that share the reading of many images: how many, how they begin and end, what is seen.

What they do is told them (`fcn_jax.data.writing`, `fcn_jax.data.readings`).
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import os
import signal
import sys
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


def tell(text: str) -> None:
    """Prints a line for the person who waits."""
    print(text, file=sys.stderr)


class Progress(contextlib.AbstractContextManager["Progress"]):
    """How many images of ``total`` are done: a bar on a terminal, elsewhere a line each minute."""

    def __init__(self, name: str, total: int, done: int) -> None:
        from rich import progress
        from rich.console import Console

        console = Console(stderr=True)
        self.done, self._total, self._before = done, total, done
        self._begun = self._told = time.monotonic()
        self._name = name
        self._bar = progress.Progress(
            *("{task.description}", progress.BarColumn(), progress.MofNCompleteColumn()),
            *("images, {task.fields[rate]:.0f} images/s", progress.TimeRemainingColumn()),
            console=console,
            disable=not console.is_terminal,
            transient=True,
        )
        self._task = self._bar.add_task(name, total=total, completed=done, rate=0.0)
        self._bar.start()

    def add(self, images: int) -> None:
        """So many more are done."""
        self.done += images
        now = time.monotonic()
        rate = (self.done - self._before) / max(now - self._begun, 1e-3)
        self._bar.update(self._task, completed=self.done, rate=rate)
        if self._bar.disable and now - self._told > 60:
            self._told = now
            tell(f"{self._name}: {self.done:,} of {self._total:,} images, {rate:.0f} images/s")

    def __exit__(self, *_: object) -> None:
        self._bar.stop()
