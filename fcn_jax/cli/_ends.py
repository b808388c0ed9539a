"""How a command ends: signals, limits of the machine and errors, each in one line.

It is loaded before jax and everything else that takes long, so that Ctrl-C is heard at once.
Exit codes: 0 done; 1 something of what was asked for failed; 2 the command could not do its work;
128 + n ended by signal n, 130 for Ctrl-C.
"""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from typing import NoReturn

# ======================================================================== at once

_ending = threading.Lock()


def end(line: str, code: int) -> NoReturn:
    """Ends the program with a last line, whatever its threads and worker processes are doing."""
    while not _ending.acquire(blocking=False):
        time.sleep(60)  # another thread is at it
    with contextlib.suppress(OSError, ValueError, AttributeError):
        if sys.stdout.isatty():  # a progress bar has hidden the cursor
            line = f"\x1b[?25h\n{line}"
    with contextlib.suppress(OSError):
        os.write(2, f"{line}\n".encode(errors="replace") if line else b"")
    # A pipe that nobody reads must not keep it alive.
    flush = threading.Thread(target=_flush, daemon=True)
    with contextlib.suppress(RuntimeError):
        flush.start()
        flush.join(1.0)
    if multiprocessing := sys.modules.get("multiprocessing"):
        for child in multiprocessing.active_children():
            child.kill()
    os._exit(code)


def _flush() -> None:
    with contextlib.suppress(OSError, ValueError, AttributeError):
        sys.stdout.flush()
        sys.stderr.flush()


# ======================================================================== signals


def end_on_signals(program: str) -> None:
    """Ctrl-C, SIGTERM and SIGHUP end the program with one line, even in the middle of C code.

    A Python handler alone would wait for the main thread, which compiles for seconds, and an
    exception raised in one is lost in callbacks and destructors: a thread waits for them instead.
    Whoever has set another handler, as training does to save first, gets the first signal; the
    second always ends the program. Signals that are ignored, as by nohup, stay ignored.
    """
    names = ("SIGINT", "SIGTERM", "SIGHUP")
    signals = {getattr(signal, name) for name in names if hasattr(signal, name)}

    def stop(signum: int, _: object = None) -> None:
        text = "interrupted" if signum == signal.SIGINT else signal.Signals(signum).name
        end(f"{program}: {text}", 128 + signum)

    for signum in signals:
        if signal.getsignal(signum) is not signal.SIG_IGN:
            signal.signal(signum, stop)
    listen, told = socket.socketpair()
    told.setblocking(False)
    signal.set_wakeup_fd(told.detach(), warn_on_full_buffer=False)

    def watch() -> None:
        number = 0
        while True:
            signum = listen.recv(1)[0]
            if signum in signals:
                number += 1
                if number > 1 or signal.getsignal(signum) is stop:
                    stop(signum)

    threading.Thread(target=watch, name="signals", daemon=True).start()


def end_on_failing_threads(program: str) -> None:
    """An error in a thread ends the program: whoever waits for the thread would wait for ever."""

    def hook(failed: threading.ExceptHookArgs) -> None:
        error = failed.exc_value
        if error is None or isinstance(error, SystemExit):
            return
        if line := explain(error):
            end(f"{program}: {line}", 2)
        end("".join(traceback.format_exception(error)).rstrip(), 1)

    threading.excepthook = hook


def tell_lost_process(program: str) -> None:
    """From now on the log of jax's C++ code about a lost process is one line that names it."""
    read, write = os.pipe()
    script = os.path.join(os.path.dirname(__file__), "_peers.py")
    with contextlib.suppress(OSError):
        # In a session of its own: it does not hear Ctrl-C, and ends after this process.
        subprocess.Popen(
            [sys.executable, "-I", "-S", script, program], stdin=read, start_new_session=True
        )
        os.dup2(write, 2)
    os.close(read)
    os.close(write)


# ======================================================================== limits of the machine

LEAST_FILES = 128


def check_limits() -> None:
    """Raises OSError where a limit of the shell would let jax crash or wait for ever.

    Threads that cannot be started and memory that cannot be reserved are not reported by the C++
    code that asks for them.
    """
    try:
        import resource
    except ImportError:  # there are no such limits
        return
    files, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    if files != resource.RLIM_INFINITY and files < 4096:
        files = 4096 if most == resource.RLIM_INFINITY else min(most, 4096)
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (files, most))
    if 0 <= files < LEAST_FILES:
        raise OSError(f"only {files} files may be open; raise ulimit -n to {LEAST_FILES} or more")
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    # Each core has threads of several libraries, whose stacks count though hardly used.
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1
    least = 3.5 + cores / 8
    if limit != resource.RLIM_INFINITY and limit < least * 2**30:
        raise OSError(
            f"only {limit / 2**30:.1f} GiB of memory may be addressed; raise ulimit -v to "
            f"{least:.1f} GiB ({least * 2**20:.0f}) or more, or lift it"
        )


# ======================================================================== errors

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_TEXTS = {
    "disk": ("No space left", "Disk quota exceeded", "File too large"),
    "files": ("Too many open files",),
    "memory": (
        *("RESOURCE_EXHAUSTED", "Out of memory", "out of memory", "bad_alloc"),
        *(
            "Cannot allocate memory",
            "not enough memory",
            "can't start new thread",
            "Resource temporarily unavailable",
        ),
    ),
}
"""What messages of C++ code, and of errors that wrap others, hold where something has run out."""

_LOWER = {
    "train": "lower config.batch_size, config.crop or config.eval_batch_size, or set config.remat",
    "eval": "use a device with more memory, or --precision=bfloat16",
    "predict": "try --tile=1024 or fewer --scales; --resume leaves out what is done",
}


def explain(error: BaseException, command: str = "train") -> str | None:
    """What to tell of an error that is no mistake of the program; None where a traceback helps."""
    for each in _chain(error):
        text = _as_text(each)
        code = each.errno if isinstance(each, OSError) else None
        first = " ".join(text.split())[:300]
        if code in _FULL or _holds(text, "disk"):
            return (
                f"no space left on the disk ({first}); what was saved before is untouched: free "
                "some and run the same command again"
            )
        if code in (errno.EMFILE, errno.ENFILE) or _holds(text, "files"):
            return f"too many open files ({first}); raise ulimit -n and run the same command again"
        if isinstance(each, MemoryError) or code == errno.ENOMEM or _holds(text, "memory"):
            reason = f" ({first})" if first else ""
            return f"out of memory{reason}; {_LOWER.get(command, 'free some')}"
        if "Unable to initialize backend" in text:
            return f"JAX_PLATFORMS={os.environ.get('JAX_PLATFORMS', '')}: {first}"
        if type(each).__name__ == "BrokenProcessPool" or "Worker process was" in text:
            return "a worker process died, perhaps for want of memory; try config.num_workers=0"
    if isinstance(error, ValueError | OSError):
        # Notes tell which example it was.
        text = "\n".join((_as_text(error), *getattr(error, "__notes__", ())))
        return text or type(error).__name__
    if type(error).__name__ in ("JaxRuntimeError", "XlaRuntimeError"):
        text = " ".join(str(error).split())[:400]
        if any(sign in text for sign in ("Gloo", "NCCL", "heartbeat", "Socket closed")):
            return _lost_process()
        return f"the device failed: {text}"
    return None


def _lost_process() -> str:
    """What to tell when the others cannot be reached: which one is gone, if that is known."""
    import jax

    who = "another process"
    if jax.process_count() == 2:
        who = f"process {1 - jax.process_index()}"
    elif jax.process_count() > 2:
        time.sleep(50)  # jax finds out which, and ends this process: `tell_lost_process`
    return (
        f"{who} of this run has ended; its own output tells why. Start all of them again: they go "
        "on from the last checkpoint"
    )


def _chain(error: BaseException) -> Iterator[BaseException]:
    """An error, and those that it was raised from or holds."""
    waiting, seen = [error], set()
    while waiting:
        each = waiting.pop(0)
        if id(each) not in seen:
            seen.add(id(each))
            yield each
            context = None if each.__suppress_context__ else each.__context__
            waiting += [e for e in (each.__cause__, context) if e is not None]
            waiting += getattr(each, "exceptions", ())


def _holds(text: str, what: str) -> bool:
    return any(sign in text for sign in _TEXTS[what])


def _as_text(error: BaseException) -> str:
    """``FILE: No such file or directory``, where str() begins with ``[Errno 2]``."""
    if isinstance(error, OSError) and error.strerror and error.filename:
        return f"{os.fsdecode(error.filename)}: {error.strerror}"
    return str(error)
