"""A run's folder belongs to one program at a time that trains in it."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

NAME = ".lock"

_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP)


@contextlib.contextmanager
def locked(workdir: Path, tell: Callable[[str], object]) -> Iterator[None]:
    """Keeps other programs from training in a folder, which is made if absent.

    The lock is that of the file system: it is gone when its process is, even if killed. Where a
    network folder has none, this is told and all goes on. If nothing has been written at the end,
    folders that were made are removed. Evaluation and prediction only read, and need no lock.

    Raises:
        ValueError: If another program trains there; the message names the process and its machine.
        OSError: If the folder cannot be made or written to.
    """
    import filelock

    made = [folder for folder in (workdir, *workdir.parents) if not folder.exists()]
    if workdir.exists() and not workdir.is_dir():
        raise NotADirectoryError(f"{workdir} is a file; give --workdir another folder")
    workdir.mkdir(parents=True, exist_ok=True)
    file = workdir / NAME
    lock = filelock.FileLock(file, timeout=0)
    try:
        lock.acquire()
        file.write_text(f"process {os.getpid()} on {socket.gethostname()}\n")
    except filelock.Timeout:
        holder = ""
        with contextlib.suppress(OSError):
            holder = file.read_text(errors="replace").strip()
        raise ValueError(
            f"{workdir} is in use: {holder or 'another process'} trains in it; wait for it, or "
            "give another --workdir"
        ) from None
    except (OSError, NotImplementedError) as error:
        if isinstance(error, OSError) and error.errno not in _NO_LOCKS:
            raise
        tell(f"there are no locks in {workdir}; let no other program train in it")
    try:
        yield
    finally:
        if made and set(os.listdir(workdir)) <= {NAME}:
            file.unlink(missing_ok=True)
            for folder in made:
                with contextlib.suppress(OSError):
                    folder.rmdir()
        lock.release()
