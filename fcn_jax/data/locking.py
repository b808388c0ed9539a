"""One process at a time prepares a data set."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def lock(data_dir: Path, name: str) -> Iterator[None]:
    """Hold the lock of a data set; other processes wait, and then find what was prepared."""
    try:
        import fcntl
    except ImportError:  # not a POSIX system: two processes at once would both do the work
        yield
        return
    data_dir.mkdir(parents=True, exist_ok=True)
    # The kernel drops the lock when its process ends, however that happens.
    with open(os.path.join(data_dir, f".{name}.lock"), "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
