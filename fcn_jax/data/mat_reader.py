"""The program that reads `.mat` files in a process of its own, for `fcn_jax.data.matlab`.

One damaged byte can crash SciPy's reader, and a few can claim any memory: here that ends this
process, which has a limit, and not the caller's. It starts fast, for it imports nothing of the
package. For every line [path, variable] of JSON on its input it writes a line of JSON, either
{"error": text} or {"dtype", "shape"}, after which the array's bytes follow.
"""

from __future__ import annotations

import contextlib
import json
import os
import runpy
import signal
import sys
from pathlib import Path
from typing import Any

import numpy as np
import scipy.io

MOST_BYTES = 1 << 29  # of one array: 8192 x 8192 doubles
MEMORY = 3 << 29  # of this process


def read(path: Path, variable: str) -> np.ndarray:
    """A variable, or the field of a struct, as "GTcls/Segmentation"."""
    names = variable.split("/")
    try:
        content: Any = scipy.io.loadmat(path, variable_names=names[:1])
    except NotImplementedError:  # SciPy's word for version 7.3, which is HDF5
        return _read_hdf5(path, names)
    if names[0] not in content:
        raise ValueError(f"it holds {_named(name for name, *_ in scipy.io.whosmat(path))}")
    for name in names:
        fields = content.dtype.names if isinstance(content, np.ndarray) else content
        if name not in (fields or ()):
            raise ValueError(f"it holds {_named(fields or ())}")
        content = content[name]
        while isinstance(content, np.ndarray) and content.dtype == object and content.size == 1:
            content = content.flat[0]  # a struct's field is a 1x1 array of objects
    return np.asarray(content)


def _read_hdf5(path: Path, names: list[str]) -> np.ndarray:
    import h5py

    hdf5 = runpy.run_path(str(Path(__file__).with_name("hdf5.py")))
    with h5py.File(path, "r", locking=False) as file:
        data: Any = file
        for name in names:
            try:
                data = hdf5["member"](data, name)
            except KeyError:
                raise ValueError(f"it holds {_named(data)}") from None
        if not isinstance(data, h5py.Dataset):
            raise ValueError("it is a struct")
        _check_kind(data.dtype, data.shape or ())
        hdf5["checked_size"]("/".join(names), data, path.stat().st_size, MOST_BYTES)
        return data[()].T  # MATLAB stores columns first


def _check_kind(dtype: np.dtype, shape: tuple[int, ...]) -> None:
    if len(shape) != 2 or 0 in shape or dtype.kind not in "uibf":
        raise ValueError(f"it is no map of ids: {dtype} of shape {shape}")


def _named(names: Any) -> str:
    return ", ".join(str(name)[:40] for name in list(names)[:20] if name[:2] != "__") or "nothing"


def _limit_work(seconds: float) -> None:
    """After so many seconds of work, whatever else the machine does, the process is ended."""
    if hasattr(signal, "setitimer"):  # Windows has none
        signal.setitimer(signal.ITIMER_PROF, seconds)


def main() -> None:
    """Answers until its input ends, which it does with the caller's process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the caller's business
    with contextlib.suppress(ImportError, ValueError, OSError):  # Windows has no limits
        import resource

        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints must not get between answers
    for line in sys.stdin.buffer:
        path, variable = json.loads(line)
        content = b""
        try:
            _limit_work(1.0 + Path(path).stat().st_size / (4 << 20))
            array = read(Path(path), variable)
            _check_kind(array.dtype, array.shape)
            array = array.astype(array.dtype.newbyteorder("="), copy=False)
            answer = {"dtype": array.dtype.str, "shape": array.shape}
            content = array.tobytes()
        except MemoryError:
            answer = {"error": "it takes too much memory"}
        except Exception as error:  # SciPy and h5py raise many types for broken files
            text = " ".join((str(error) or type(error).__name__).split())
            answer = {"error": text[:300]}
        _limit_work(0)  # no more
        answers.write(json.dumps(answer).encode() + b"\n")
        answers.write(content)
        answers.flush()


if __name__ == "__main__":
    main()
