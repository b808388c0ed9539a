"""What is read of HDF5 files, which may come from anywhere: Keras' weights and MATLAB's 7.3.

HDF5 can point into other files, load filters from wherever the environment says, and claim any
size. This module imports nothing of the package, for `mat_reader` runs it in a bare process.
"""

from __future__ import annotations

import math
from typing import Any

_FILTERS = {1: "gzip", 2: "shuffle", 3: "fletcher32"}
"""The library's own filters; others are loaded from wherever its environment points."""


def member(group: Any, name: str, prefix: str = "") -> Any:
    """The object of a name in a group; `prefix` is where the group lies, for messages.

    Raises:
        KeyError: if there is none.
        ValueError: if it is a link, which may lead into another file.
    """
    import h5py

    link = group.get(name, getlink=True)
    if link is None:
        raise KeyError(name)
    if not isinstance(link, h5py.HardLink):
        raise ValueError(f"{prefix}{name} is a link to elsewhere, which is not followed")
    return group[name]


def checked_size(name: str, data: Any, file_size: int, most: int) -> int:
    """The bytes of a dataset in memory, once it is clear that it is plainly stored.

    Raises:
        ValueError: if it lies in another file, needs a foreign filter, or claims more than the
            file holds or, packed, than `most`.
    """
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
    elif max(size, math.prod(data.chunks) * data.dtype.itemsize) > most:
        raise ValueError(f"{name} {data.shape} claims {size} bytes in a file of {file_size}")
    return size
