"""MATLAB files: label maps of any type and version, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.io
from dataset_trees import save_mat

from fcn_jax.data.matlab import read_mat


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.float64, bool])
def test_read_mat_of_any_type(tmp_path, rng, dtype):
    values = rng.integers(0, 2 if dtype is bool else 100, (5, 7)).astype(dtype)
    save_mat(tmp_path / "a.mat", "S", values, dtype)
    read = read_mat(tmp_path / "a.mat", "S")
    assert read.dtype == np.int32
    np.testing.assert_array_equal(read, values)


def test_read_mat_of_version_7_3(tmp_path, rng):
    h5py = pytest.importorskip("h5py")
    values = rng.integers(0, 100, (5, 7)).astype(np.uint8)
    path = tmp_path / "a.mat"
    with h5py.File(path, "w", userblock_size=512) as file:
        file["S"] = values.T  # MATLAB stores columns first
        file["GTcls/Segmentation"] = values.T + 1
    header = b"MATLAB 7.3 MAT-file, Platform: GLNXA64".ljust(124) + b"\x00\x02IM"
    with path.open("r+b") as file:
        file.write(header)
    np.testing.assert_array_equal(read_mat(path, "S"), values)
    np.testing.assert_array_equal(read_mat(path, "GTcls/Segmentation"), values + 1)
    with pytest.raises(ValueError, match=r"a\.mat: cannot read T"):
        read_mat(path, "T")


def test_read_mat_refuses_what_is_no_map_of_ids(tmp_path):
    contents = {
        "fractions": np.full((2, 2), 0.5),
        "volume": np.zeros((2, 2, 2)),
        "text": "words",
        "infinite": np.full((2, 2), np.inf),
    }
    scipy.io.savemat(tmp_path / "a.mat", contents)
    for name in contents:
        with pytest.raises(ValueError, match=rf"a\.mat: .*{name}"):
            read_mat(tmp_path / "a.mat", name)
    with pytest.raises(FileNotFoundError, match=r"b\.mat"):
        read_mat(tmp_path / "b.mat", "S")
