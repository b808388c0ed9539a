"""MATLAB files: label maps of any type and version, and what is refused."""

from __future__ import annotations

import concurrent.futures
import os
import signal
import struct
import subprocess
import sys
import zlib

import h5py
import numpy as np
import pytest
import scipy.io
from dataset_trees import save_mat

from fcn_jax.data import matlab
from fcn_jax.data.matlab import read_mat


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.float64, bool])
def test_read_mat_of_any_type(tmp_path, rng, dtype):
    values = rng.integers(0, 2 if dtype is bool else 100, (5, 7)).astype(dtype)
    save_mat(tmp_path / "a.mat", "S", values, dtype)
    read = read_mat(tmp_path / "a.mat", "S")
    assert read.dtype == np.int32
    np.testing.assert_array_equal(read, values)


def test_read_mat_of_version_7_3(tmp_path, rng):
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
        "none": np.zeros((0, 0)),
        "cells": np.array([[1, "a"]], object),
    }
    scipy.io.savemat(tmp_path / "a.mat", contents)
    for name in contents:
        with pytest.raises(ValueError, match=rf"a\.mat: .*{name}"):
            read_mat(tmp_path / "a.mat", name)
    with pytest.raises(ValueError, match=r"cannot read other: it holds .*fractions, volume, text"):
        read_mat(tmp_path / "a.mat", "other")
    with pytest.raises(FileNotFoundError, match=r"b\.mat"):
        read_mat(tmp_path / "b.mat", "S")


# ---- Files that crash, reach elsewhere, or claim what is not there


def test_a_file_that_crashes_scipy_is_refused_and_the_next_one_read(tmp_path, rng):
    values = rng.integers(0, 100, (5, 7)).astype(np.uint8)
    scipy.io.savemat(tmp_path / "good.mat", {"S": values})
    content = bytearray((tmp_path / "good.mat").read_bytes())
    messages = []
    for place in range(128, len(content)):  # of 0xc0, whose change to 0x7f is known to crash
        damaged = content.copy()
        damaged[place] = 0x7F
        (tmp_path / "bad.mat").write_bytes(damaged)
        try:  # some still can be read
            read_mat(tmp_path / "bad.mat", "S")
        except ValueError as error:
            messages.append(str(error))
    assert all(message.startswith(f"{tmp_path}/bad.mat: ") for message in messages)
    assert any("its reader crashed" in message for message in messages)
    np.testing.assert_array_equal(read_mat(tmp_path / "good.mat", "S"), values)


def test_a_file_that_takes_too_long_is_refused(tmp_path, monkeypatch):
    scipy.io.savemat(tmp_path / "a.mat", {"S": np.eye(3)})
    read_mat(tmp_path / "a.mat", "S")
    process = matlab._READER.process
    assert process
    os.kill(process.pid, signal.SIGSTOP)
    monkeypatch.setattr(matlab, "SECONDS", 0.2)
    with pytest.raises(ValueError, match=r"a\.mat: .*took over 0\.2 seconds"):
        read_mat(tmp_path / "a.mat", "S")
    monkeypatch.undo()
    np.testing.assert_array_equal(read_mat(tmp_path / "a.mat", "S"), np.eye(3))


def claim_many_cells(path):
    """Some hundred bytes that say they are 169 million cells."""
    scipy.io.savemat(path, {"S": np.array([[1, "a"]], object)})
    content = path.read_bytes()
    dimensions = struct.pack("<ii", 1, 2)
    assert content.count(dimensions) == 1
    path.write_bytes(content.replace(dimensions, struct.pack("<ii", 13000, 13000)))


def test_a_small_file_that_makes_much_work_is_refused(tmp_path):
    claim_many_cells(tmp_path / "a.mat")
    matlab._READER.stop()
    start = os.times()
    with pytest.raises(ValueError, match=r"a\.mat: cannot read S: .*(work|memory)"):
        read_mat(tmp_path / "a.mat", "S")
    matlab._READER.stop()
    end = os.times()
    work = end.children_user + end.children_system - start.children_user - start.children_system
    assert work < 4  # with all that the process did before


def test_an_interrupted_question_is_not_answered_to_the_next(tmp_path, monkeypatch):
    for name in "ab":
        scipy.io.savemat(tmp_path / f"{name}.mat", {"S": np.full((2, 2), ord(name))})
    read_mat(tmp_path / "a.mat", "S")

    def interrupted(text):
        raise KeyboardInterrupt

    monkeypatch.setattr(matlab.json, "loads", interrupted)
    with pytest.raises(KeyboardInterrupt):
        read_mat(tmp_path / "a.mat", "S")
    monkeypatch.undo()
    assert read_mat(tmp_path / "b.mat", "S")[0, 0] == ord("b")


def test_readers_share_a_process_and_forks_have_their_own(tmp_path):
    for i in range(40):
        scipy.io.savemat(tmp_path / f"{i}.mat", {"S": np.full((2, 3), i)})
    files = [tmp_path / f"{i}.mat" for i in range(40)]
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda path: read_mat(path, "S")[0, 0], files))
    assert found == list(range(40))
    process = matlab._READER.process
    assert process
    code = f"""
import os, pathlib
from fcn_jax.data.matlab import _READER, read_mat
read = lambda i: read_mat(pathlib.Path({str(tmp_path)!r}) / f"{{i}}.mat", "S")[0, 0]
assert read(1) == 1
parent = _READER.process.pid
child = os.fork()
if not child:
    os._exit(not (read(2) == 2 and _READER.process.pid != parent))
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
assert read(3) == 3 and _READER.process.pid == parent
print(parent)
"""
    done = subprocess.run(
        [sys.executable, "-W", "error::ResourceWarning", "-c", code], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    with pytest.raises(ProcessLookupError):  # it ended with its caller
        os.kill(int(done.stdout), 0)


def claim_much(path):
    """One zipped kilobyte that says it is a matrix of 4 GiB."""
    element = struct.pack("<II", 14, 1 << 31)  # miMATRIX
    element += struct.pack("<IIII", 6, 8, 6, 0)  # flags: double
    element += struct.pack("<IIii", 5, 8, 1 << 14, 1 << 14)  # dimensions
    element += struct.pack("<HH4s", 1, 1, b"S") + struct.pack("<II", 9, 1 << 31) + bytes(1 << 20)
    packed = zlib.compress(element)
    header = b"MATLAB 5.0 MAT-file".ljust(124) + struct.pack("<HH", 0x0100, 0x4D49)
    path.write_bytes(header + struct.pack("<II", 15, len(packed)) + packed)


def test_a_claim_of_much_memory_is_refused(tmp_path):
    claim_much(tmp_path / "a.mat")
    with pytest.raises(ValueError, match=r"a\.mat: cannot read S: "):
        read_mat(tmp_path / "a.mat", "S")


def external_link(file, path):
    file["S"] = h5py.ExternalLink(path, "secret")


def external_group(file, path):
    file["T"] = h5py.ExternalLink(path, "/")


def soft_link(file, path):
    file["other"] = np.zeros((2, 2), np.uint8)
    file["S"] = h5py.SoftLink("/other")


def external_storage(file, path):
    file.create_dataset("S", (4, 4), "u1", external=[(path, 0, 16)])


def virtual(file, path):
    layout = h5py.VirtualLayout((4, 4), "u1")
    layout[:] = h5py.VirtualSource(path, "secret", (4, 4))
    file.create_virtual_dataset("S", layout)


def claim(file, path):
    file.create_dataset("S", (120_000, 120_000), "u1", chunks=(1000, 1000), compression="gzip")


def unwritten(file, path):
    file.create_dataset("S", (120_000, 120_000), "u1")


@pytest.mark.parametrize(
    ("add", "message"),
    [
        (external_link, "link to elsewhere"),
        (external_group, "T is a link to elsewhere"),
        (soft_link, "link to elsewhere"),
        (external_storage, "lies in another file"),
        (virtual, "lies in another file"),
        (claim, "claims 14400000000 bytes in a file of"),
        (unwritten, "has no 14400000000 bytes in the file"),
    ],
)
def test_files_of_7_3_that_reach_out_or_claim_too_much(tmp_path, add, message):
    secret = tmp_path / "secret"
    with h5py.File(secret, "w") as file:
        file["secret"] = np.full((4, 4), 77, np.uint8)
    path = tmp_path / "a.mat"
    with h5py.File(path, "w", userblock_size=512) as file:
        add(file, str(secret))
    with path.open("r+b") as file:
        file.write(b"MATLAB 7.3 MAT-file".ljust(124) + b"\x00\x02IM")
    variable = "T/secret" if add is external_group else "S"
    with pytest.raises(ValueError, match=rf"a\.mat: cannot read {variable}: .*{message}") as caught:
        read_mat(path, variable)
    assert "77" not in str(caught.value).replace(str(path), "")
