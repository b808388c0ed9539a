"""Label maps in MATLAB files, read in another process (`fcn_jax.data.mat_reader`)."""

from __future__ import annotations

import atexit
import json
import math
import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
from jaxtyping import Int32, UInt8

from fcn_jax.classes import NO_ID, VOID, ClassTable
from fcn_jax.data.images import whole_ids

SECONDS = 30
"""That one file may take; the process limits its own work to much less."""


def read_mat(path: Path, variable: str) -> Int32[np.ndarray, "h w"]:
    """A map of ids from a `.mat` file: up to version 7 by SciPy; 7.3, which is HDF5, by h5py.

    Of a struct `variable` names the field, as "GTcls/Segmentation".

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: naming the file, if it holds no such map, is damaged, or claims more than half
            a gigabyte.
    """
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file")
    try:
        return whole_ids(_READER.read(path, variable)).astype(np.int32)
    except ValueError as error:
        raise ValueError(f"{path}: cannot read {variable}: {error}") from None


def read_mat_labels(
    path: Path, variable: str, table: ClassTable, void: int = VOID
) -> UInt8[np.ndarray, "h w"]:
    """Labels from a `.mat` file that holds the ids of `table`, in which the id `void` is void."""
    ids = read_mat(path, variable)
    try:
        return table.to_labels(np.where(ids == void, NO_ID, ids))
    except ValueError as error:
        raise ValueError(f"{path}: {variable}: {error}") from None


class _Reader:
    """The process that reads: started with the first file, and again after one that ended it."""

    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        """For a fork, which shares the pipes of its parent's process and needs its own."""
        self.lock = threading.Lock()
        self.process: subprocess.Popen[bytes] | None = None

    def read(self, path: Path, variable: str) -> np.ndarray:
        with self.lock:
            process = self.process = self.process or self._start()
            late = threading.Timer(SECONDS, process.kill)
            late.start()
            try:
                return self._ask(process, json.dumps([str(path.absolute()), variable]))
            except EOFError:
                self.stop()
                what = (
                    f"took over {SECONDS} seconds"
                    if late.finished.is_set()
                    else "crashed or had too much work"
                )
                raise ValueError(f"damaged: its reader {what}") from None
            except ValueError:
                raise
            except (
                BaseException
            ):  # such as Ctrl-C: the answer must not be that to the next question
                self.stop()
                raise
            finally:
                late.cancel()

    def _ask(self, process: subprocess.Popen[bytes], question: str) -> np.ndarray:
        questions, answers = process.stdin, process.stdout
        assert questions
        assert answers
        try:
            questions.write(question.encode() + b"\n")
            questions.flush()
        except BrokenPipeError:
            raise EOFError from None
        line = answers.readline()
        if not line.endswith(b"\n"):
            raise EOFError
        answer = json.loads(line)
        if "error" in answer:
            raise ValueError(answer["error"])
        dtype = np.dtype(answer["dtype"])
        content = answers.read(math.prod(answer["shape"]) * dtype.itemsize)
        if len(content) < math.prod(answer["shape"]) * dtype.itemsize:
            raise EOFError
        return np.frombuffer(content, dtype).reshape(answer["shape"])

    def _start(self) -> subprocess.Popen[bytes]:
        # It looks for SciPy where this process does, but not for modules beside its program.
        threads = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
        return subprocess.Popen(
            [sys.executable, "-P", Path(__file__).with_name("mat_reader.py")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, **threads, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        )

    def stop(self) -> None:
        """Ends the process, if there is one."""
        if self.process:
            self.process.kill()
            self.process.communicate()  # which closes the pipes
            self.process = None


_READER = _Reader()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_READER.forget)
atexit.register(_READER.stop)
