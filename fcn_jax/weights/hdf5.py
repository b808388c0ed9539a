"""HDF5 files that nobody vouches for.

The HDF5 library follows what a file says: links into other files, filters, sizes. So the file's
structure is looked at first, and only plain datasets of believable size are read. h5py 3.16 brings
HDF5 2.0, which took 80000 mutated files without a crash or a slow read; earlier ones are known to
crash.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from fcn_jax.weights.arrays import most_bytes

SIGNATURE = b"\x89HDF\r\n\x1a\n"
MAX_OBJECTS = 5000
MAX_DEPTH = 12
_FILTERS = {1: "gzip", 2: "shuffle", 3: "fletcher32"}
"""The library's own filters; others are loaded from wherever its environment points."""


def recognises(head: bytes) -> bool:
    """Whether a file has the signature, at the start or behind a user block."""
    return any(head.startswith(SIGNATURE, start) for start in (0, 512, 1024, 2048))


def read_arrays(path: Path, without: tuple[str, ...] = ()) -> dict[str, np.ndarray]:
    """Reads every floating-point dataset of a file by its path, such as ``conv1/kernel:0``.

    Groups at the root that are in ``without`` are not entered.
    """
    import h5py  # costs 0.2 s

    size = path.stat().st_size
    try:
        with h5py.File(path, "r", locking=False) as file:
            found = dict(_datasets(file, without))
            arrays = {name: data for name, data in found.items() if data.dtype.kind == "f"}
            total = sum(_checked_size(name, data, size) for name, data in arrays.items())
            if total > most_bytes(size):
                raise ValueError(f"arrays of {total} bytes in a file of {size}")
            return {name: data[...] for name, data in arrays.items()}
    except ValueError:
        raise
    # What h5py raises for a damaged file is any of OSError, RuntimeError, KeyError, TypeError …
    except Exception as error:
        raise ValueError(f"a damaged HDF5 file: {str(error)[:200]}") from error


def _datasets(root: Any, without: tuple[str, ...]) -> Iterator[tuple[str, Any]]:
    """The datasets of a file; each object is looked at, none is read."""
    import h5py

    left = [(root, "", 0)]
    count = 0
    while left:
        group, prefix, depth = left.pop()
        for name in group:
            count += 1
            if count > MAX_OBJECTS or depth > MAX_DEPTH:
                raise ValueError("more or deeper groups than any network has")
            if not prefix and name in without:
                continue
            if not isinstance(group.get(name, getlink=True), h5py.HardLink):
                raise ValueError(f"{prefix}{name} is a link to elsewhere, which is not followed")
            value = group[name]
            if isinstance(value, h5py.Group):
                left.append((value, f"{prefix}{name}/", depth + 1))
            elif isinstance(value, h5py.Dataset):
                yield f"{prefix}{name}", value


def _checked_size(name: str, data: Any, file_size: int) -> int:
    """The bytes of a dataset in memory, once it is clear that it is plainly stored."""
    size = math.prod(data.shape) * data.dtype.itemsize if data.shape is not None else 0
    properties = data.id.get_create_plist()
    filters = {properties.get_filter(i)[0] for i in range(properties.get_nfilters())}
    if data.is_virtual or data.external:
        raise ValueError(f"{name} lies in another file, which is not read")
    if unknown := filters - set(_FILTERS):
        raise ValueError(f"{name} is packed by filter {unknown.pop()}; known are {_FILTERS}")
    if data.chunks is None:
        if size != data.id.get_storage_size() or size > file_size:
            raise ValueError(f"{name} has no {size} bytes in the file, as {data.shape} needs")
    elif max(size, math.prod(data.chunks) * data.dtype.itemsize) > most_bytes(file_size):
        raise ValueError(f"{name} {data.shape} claims {size} bytes in a file of {file_size}")
    return size
