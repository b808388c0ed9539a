"""Label maps in MATLAB files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int32, UInt8

from fcn_jax.classes import NO_ID, VOID, ClassTable


def read_mat(path: Path, variable: str) -> Int32[np.ndarray, "h w"]:
    """A map of ids from a `.mat` file: up to version 7 by SciPy; 7.3, which is HDF5, by h5py.

    Of a struct `variable` names the field, as "GTcls/Segmentation".
    """
    import scipy.io

    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file")
    try:
        value = _field(scipy.io.loadmat(path), variable)
    except NotImplementedError:  # SciPy's word for version 7.3
        value = _read_hdf5(path, variable)
    except Exception as error:  # SciPy raises many types for broken files
        raise ValueError(f"{path}: cannot read {variable}: {error}") from error
    if value.ndim != 2 or value.dtype.kind not in "uibf":
        raise ValueError(
            f"{path}: cannot read {variable} as a map of ids: {value.dtype} of shape {value.shape}"
        )
    with np.errstate(invalid="ignore"):  # infinity and NaN become something else, and are refused
        ids = value.astype(np.int32)
    if not np.array_equal(ids, value):
        raise ValueError(f"{path}: {variable} holds fractions, which are no class ids")
    return ids


def read_mat_labels(
    path: Path, variable: str, table: ClassTable, void: int = VOID
) -> UInt8[np.ndarray, "h w"]:
    """Labels from a `.mat` file that holds the ids of `table`, in which the id `void` is void."""
    ids = read_mat(path, variable)
    try:
        return table.to_labels(np.where(ids == void, NO_ID, ids))
    except ValueError as error:
        raise ValueError(f"{path}: {variable}: {error}") from None


def _field(content: Any, variable: str) -> np.ndarray:
    """A variable, or the field of a struct, out of what SciPy returns."""
    for name in variable.split("/"):
        names = content.dtype.names if isinstance(content, np.ndarray) else content
        if name not in (names or ()):
            there = [key for key in names or () if not key.startswith("__")]
            raise ValueError(f"it holds {', '.join(there) or 'nothing'}")
        content = content[name]
        while isinstance(content, np.ndarray) and content.dtype == object and content.size == 1:
            content = content.flat[0]  # a struct's field is a 1x1 array of objects
    return np.asarray(content)


def _read_hdf5(path: Path, variable: str) -> np.ndarray:
    try:
        import h5py

        with h5py.File(path) as file:
            dataset: Any = file[variable]
            return np.asarray(dataset[()]).T  # MATLAB stores columns first
    except ImportError:
        raise ValueError(
            f"{path}: MATLAB's version 7.3, which needs h5py (pip install h5py), or save it again "
            "with save(..., '-v7')"
        ) from None
    except Exception as error:  # h5py raises many types for broken files
        raise ValueError(f"{path}: cannot read {variable}: {error}") from error
