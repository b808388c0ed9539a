"""Files that are damaged by chance, and files that are made to do harm.

Whatever a file holds, `load` reads it or raises one `ValueError` that names it, within about
a second and without much memory.
"""

from __future__ import annotations

import io
import json
import struct
import time
import tracemalloc
import zipfile
import zlib

import numpy as np
import pytest
import state_dicts
from caffe_files import Layer, caffemodel, chunk

from fcn_jax.weights import load, save

MUTATIONS = 60

# ======================================================================== small files of each kind


def normal(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(shape, np.float32)


LAYERS = [
    Layer("conv1", "Convolution", [normal(2, 3, 2, 2), normal(2)]),
    Layer("fc", "InnerProduct", [normal(2, 3), normal(2)]),
    Layer("upscore", "Deconvolution", [normal(2, 1, 2, 2)], group=2),
    Layer("scale", "Scale", [normal(2)]),
]


def write_caffe(path, generation):
    path.write_bytes(caffemodel(LAYERS, generation, legacy=generation != "plain"))


def write_torch(path, legacy):
    torch = pytest.importorskip("torch")
    arrays = state_dicts.vgg("vgg11", classifier=False)
    state = {name: torch.from_numpy(value) for name, value in arrays.items()}
    torch.save(state, path, _use_new_zipfile_serialization=not legacy)


def write_own(path, kind):
    params = {
        "conv1_1/kernel": normal(2, 2, 3, 2),
        "fc6/kernel": normal(3, 2),
        "fc6/bias": normal(2),
    }
    save(path, params, kind)


def write_timm(path):
    """safetensors by hand: the names of a network, two bytes a value."""
    header, data = {}, b""
    for name, value in state_dicts.vgg("vgg11", timm=True, classifier=False).items():
        raw = value.astype(np.float16).tobytes()
        offsets = [len(data), len(data) + len(raw)]
        header[name] = {"dtype": "F16", "shape": value.shape, "data_offsets": offsets}
        data += raw
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)


def write_npz(path, write):
    write(path.with_suffix(".npz"), **{"conv1/w": normal(2, 3, 2, 2), "conv1/b": normal(2)})
    path.with_suffix(".npz").rename(path)


def write_keras(path):
    h5py = pytest.importorskip("h5py")
    with h5py.File(path, "w") as file:
        file.attrs["layer_names"] = [b"block1_conv1", b"block2_conv1"]
        for place in state_dicts.VGG_NAMES["vgg11"].split():
            layer = "block{}_conv{}".format(*place.split("_"))
            file[f"{layer}/{layer}/kernel:0"] = normal(3, 3, 2, 2)
            file[f"{layer}/{layer}/bias:0"] = normal(2)
            file[layer].attrs["weight_names"] = [f"{layer}/kernel:0".encode()]


def write_npy(path: Path) -> None:
    rng = np.random.default_rng(0)
    layers = {"conv1_1": (3, 3, 3, 4), "conv1_2": (3, 3, 4, 4)}
    content = {
        name: [rng.normal(size=shape).astype(np.float32), np.zeros(shape[-1], np.float32)]
        for name, shape in layers.items()
    }
    with path.open("wb") as file:
        np.save(file, np.array(content), allow_pickle=True)


WRITERS = {
    "caffemodel": lambda path: write_caffe(path, "plain"),
    "caffemodel V1": lambda path: write_caffe(path, "v1"),
    "PyTorch archive": lambda path: write_torch(path, legacy=False),
    "PyTorch legacy": lambda path: write_torch(path, legacy=True),
    "pytorch-fcn": lambda path: write_own(path, "pytorch-fcn"),
    "safetensors": lambda path: write_own(path, "safetensors"),
    "timm safetensors": write_timm,
    "npz": lambda path: write_npz(path, np.savez),
    "npz, compressed": lambda path: write_npz(path, np.savez_compressed),
    "Keras": write_keras,
    "TensorFlow npy": write_npy,
}


# ======================================================================== chance


def mutated(content: bytes, rng: np.random.Generator) -> bytes:
    """A cut, an insertion, a deletion, or some bytes set to likely troublemakers."""
    broken = bytearray(content)
    start = int(rng.integers(len(content)))
    # Half of them where the structure is: at the beginning and at the end.
    if rng.random() < 0.5:
        start = int(rng.integers(min(300, len(content)))) * int(rng.choice([1, -1])) % len(content)
    match rng.integers(6):
        case 0:
            del broken[start:]
        case 1:
            broken[start:start] = rng.bytes(int(rng.integers(1, 20)))
        case 2:
            del broken[start : start + int(rng.integers(1, 20))]
        case 3:
            word = int(rng.choice([0, 2**31 - 1, 2**32 - 1, 2**40, 2**62, len(content)]))
            broken[start : start + 8] = word.to_bytes(8, "little")
        case _:
            for position in (start, *rng.integers(0, len(content), rng.integers(3))):
                broken[position] = int(rng.choice([0, 1, 127, 128, 255, rng.integers(256)]))
    return bytes(broken)


@pytest.mark.parametrize("kind", WRITERS)
@pytest.mark.parametrize("count", [MUTATIONS, pytest.param(1000, marks=pytest.mark.slow)])
def test_mutations(tmp_path, kind, count):
    path, damaged = tmp_path / "whole", tmp_path / "damaged.bin"
    WRITERS[kind](path)
    truth, content = load(path), path.read_bytes()
    rng = np.random.default_rng(zlib.crc32(kind.encode()))
    refusals, slowest = [], 0.0
    for _ in range(count):
        damaged.write_bytes(mutated(content, rng))
        start = time.perf_counter()
        try:
            loaded = load(damaged)
        except ValueError as error:
            refusals.append(str(error))
        else:
            assert all(np.isfinite(value).all() for value in loaded.values())
            assert all(value.dtype == np.float32 for value in loaded.values())
            assert sum(value.nbytes for value in loaded.values()) < 1 << 20
        slowest = max(slowest, time.perf_counter() - start)
    assert truth
    assert len(refusals) > count // 20
    assert all("damaged.bin" in message and len(message) < 2000 for message in refusals)
    assert slowest < 2, "seconds for one file"


# ======================================================================== intent


def archive(members: dict[str, bytes], compression: int = zipfile.ZIP_DEFLATED) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", compression) as zipped:
        for name, content in members.items():
            zipped.writestr(name, content)
    return out.getvalue()


def npy(shape: tuple[int, ...], data: bytes = b"") -> bytes:
    header = repr({"descr": "<f4", "fortran_order": False, "shape": shape}).encode()
    header += b" " * (-(10 + len(header) + 1) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + data


def npz_bomb() -> bytes:
    """200 MB of zeros in 200 kB."""
    zeros = bytes(200 << 20)
    return archive({"conv1/w.npy": npy((50 << 20, 1, 1, 1), zeros)})


def npz_claims() -> bytes:
    """A list of members that says 4 GiB."""
    content = bytearray(archive({"conv1/w.npy": npy((1, 1, 1, 1), bytes(4))}))
    entry = content.rindex(b"PK\x01\x02")
    content[entry + 24 : entry + 28] = b"\xff\xff\xff\xf0"
    return bytes(content)


def npz_overlapping() -> bytes:
    """Five hundred members that are all the same megabyte of the file."""
    whole = archive({"conv1/w.npy": npy((1 << 18, 1, 1, 1), bytes(1 << 20))}, zipfile.ZIP_STORED)
    directory = whole.rindex(b"PK\x01\x02")
    end = whole.rindex(b"PK\x05\x06")
    entry = bytearray(whole[directory:end])
    entries = b""
    for index in range(500):
        entry[46:57] = b"c%04d/w.npy" % index
        entries += entry
    tail = bytearray(whole[end:])
    tail[8:12] = struct.pack("<HH", 500, 500)
    tail[12:20] = struct.pack("<II", len(entries), directory)
    return whole[:directory] + entries + tail


def npz_long_directory() -> bytes:
    content = bytearray(archive({"conv1/w.npy": npy((1, 1, 1, 1), bytes(4))}) + bytes(8 << 20))
    end = content.rindex(b"PK\x05\x06")
    tail = content[end : end + 22]
    del content[end : end + 22]
    tail[12:20] = struct.pack("<II", 8 << 20, len(content) - (8 << 20))
    return bytes(content + tail)


def encrypted() -> bytes:
    content = bytearray(archive({"a/w.npy": npy((1, 1, 1, 1), bytes(4))}))
    content[content.rindex(b"PK\x01\x02") + 8] |= 1
    return bytes(content)


def npz_header(header: bytes) -> bytes:
    member = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header
    return archive({"conv1/w.npy": member})


def safetensors(header: object, data: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def tensor(shape, begin, end, dtype="F32"):
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def legacy_torch(body: bytes, storages: bytes = b"") -> bytes:
    magic = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
    rest = (b"M\xe9\x03", b"}(X\r\x00\x00\x00little_endian\x88u", body)
    return magic + b"".join(b"\x80\x02" + part + b"." for part in rest) + storages


def text(letters: int) -> bytes:
    """The opcode of a text of that length."""
    return b"X" + struct.pack("<I", letters) + b"a" * letters


def torch_archive(pickled: bytes) -> bytes:
    return archive({"archive/data.pkl": pickled, "archive/data/0": bytes(64)}, zipfile.ZIP_STORED)


HOSTILE = {
    "Caffe, a layer of 4 GiB": (
        chunk(1, "n") + b"\xa2\x06\xff\xff\xff\xff\x0f",
        "claims 4294967295",
    ),
    "Caffe, transposed convolution of a million groups": (
        caffemodel([Layer("up", "Deconvolution", [np.zeros((10**6, 1, 1, 1))], group=10**6)]),
        "beyond any network",
    ),
    "Caffe, a shape of a thousand axes": (
        chunk(1, "n")
        + chunk(
            100,
            chunk(1, "a") + chunk(2, "Convolution") + chunk(7, chunk(7, chunk(1, b"\x01" * 999))),
        ),
        "more than 32 integers",
    ),
    "npz, a bomb": (npz_bomb, "claims to hold"),
    "npz, a length of 4 GiB": (npz_claims, "claims to hold"),
    "npz, members over each other": (npz_overlapping, "claims to hold"),
    "npz, a directory of 8 MB": (npz_long_directory, "list of members claims"),
    "npz, an array of 4 GiB": (
        archive({"a/w.npy": npy((1 << 30, 1, 1, 1))}),
        " 0 bytes for an array",
    ),
    "npz, objects": (
        npz_header(b"{'descr': '|O', 'fortran_order': False, 'shape': (1,)}\n"),
        " 0 bytes for an array of object",
    ),
    "npz, a header of brackets": (npz_header(b"(" * 9000), "no numpy array"),
    "npz, a header of calls": (
        npz_header(b"__import__('os').system('x')\n"),
        "no numpy array: malformed",
    ),
    "npz, a negative size": (archive({"a/w.npy": npy((-1, 1))}), "bytes for an array"),
    "npz, encrypted": (encrypted, "encrypted"),
    "safetensors, a header of 4 GiB": (b"\xff\xff\xff\xff\0\0\0\0" + b'{"a":', "claims 4294967295"),
    "safetensors, an array of 4 GiB": (
        safetensors({"a/kernel": tensor([1 << 30, 1], 0, 1 << 32)}),
        "damaged: .*incomplete metadata, file not fully covered",
    ),
    "safetensors, arrays over each other": (
        safetensors({f"a{i}/kernel": tensor([2, 2], 0, 16) for i in range(100)}, bytes(16)),
        "damaged: .*invalid offset",
    ),
    "safetensors, brackets": (safetensors(b'{"a":' + b"[" * 500_000), "header"),
    "safetensors, a number of a million digits": (
        safetensors(b'{"a":' + b"9" * 1_000_000 + b"}"),
        "damaged: .*invalid JSON",
    ),
    "safetensors, negative": (
        safetensors({"a/kernel": tensor([-1, -4], 0, 16)}, bytes(16)),
        "damaged: .*integer `-1`",
    ),
    "safetensors, a strange type": (
        safetensors({"a/kernel": tensor([4], 0, 16, "X" * 9999)}),
        "header",
    ),
    "PyTorch, runs a command": (
        legacy_torch(b"cos\nsystem\n(X\x04\x00\x00\x00exittR"),
        r"asks for 'os\.system'",
    ),
    "PyTorch, a string of 4 GiB": (
        torch_archive(b"\x80\x02X\xff\xff\xff\xffabc."),
        "ends early",
    ),
    "PyTorch, a string of 2^63 bytes": (
        torch_archive(b"\x80\x04\x8d" + b"\xff" * 7 + b"\x7fabc."),
        "ends early",
    ),
    "PyTorch, a memo of 2^32 places": (
        torch_archive(b"\x80\x02}r\xff\xff\xff\xff."),
        "without tensors",
    ),
    "PyTorch, nested without end": (
        torch_archive(b"\x80\x02" + b"]" * 400_000 + b"."),
        "holds a list, not a dictionary",
    ),
    "PyTorch, dictionaries without end": (
        torch_archive(b"\x80\x02" + b"}" * 400_000 + b"."),
        "a dictionary without tensors",
    ),
    "PyTorch, an opcode that makes sets": (
        torch_archive(b"\x80\x04(K\x01\x91."),
        "an opcode that no dictionary of tensors needs",
    ),
    "PyTorch, a key nested deeply": (
        torch_archive(b"\x80\x02})" + b"\x85" * 200_000 + b"Ns."),
        r"nested key \(tuple\)",
    ),
    "PyTorch, a key of two million digits": (
        torch_archive(
            b"\x80\x02}\x8b" + struct.pack("<I", 1_000_000) + b"\x7f" * 1_000_000 + b"Ns."
        ),
        r"long or nested key \(int\)",
    ),
    "PyTorch, a text of a million letters as a key": (
        torch_archive(b"\x80\x02}" + text(1_000_000) + b"Ns."),
        r"long or nested key \(str\)",
    ),
    "PyTorch, a long text split into letters over and over": (
        torch_archive(
            b"\x80\x02" + text(500_000) + b"q\x00" + b"ctorch\nSize\nh\x00\x85R" * 9000 + b"."
        ),
        "copies the same values",
    ),
    "PyTorch, calls with a hundred thousand arguments": (
        torch_archive(
            b"\x80\x02(" + b"K\x01" * 100_000 + b"tq\x00" + b"ctorch\ndevice\nh\x00R" * 9000 + b"."
        ),
        "copies the same values",
    ),
    "PyTorch, a reference of a hundred thousand parts": (
        torch_archive(b"\x80\x02(" + b"K\x01" * 100_000 + b"tQ."),
        "a reference to something else",
    ),
    "PyTorch, sets the code of a function": (
        torch_archive(b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n}X\x08\x00\x00\x00__code__Nsb."),
        "not a dictionary",
    ),
    "PyTorch, a storage of 4 GiB": (
        legacy_torch(
            b"}X\x01\x00\x00\x00actorch._utils\n_rebuild_tensor_v2\n((X\x07\x00\x00\x00storage"
            b"ctorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpuJ\xff\xff\xff\x3fNtQ"
            b"K\x00J\xff\xff\xff\x3f\x85K\x01\x85\x89NtRs",
            b"\x80\x02]X\x01\x00\x00\x000a." + struct.pack("<q", (1 << 30) - 1) + bytes(16),
        ),
        "truncated: a storage of 4294967292 bytes",
    ),
    "PyTorch, many big numbers": (
        torch_archive(
            b"\x80\x02" + b"\x8b" + struct.pack("<I", 15_000_000) + b"\x7f" * 15_000_000 + b"."
        ),
        "data.pkl has 15000008 bytes",
    ),
    "HDF5, cut to its signature": (b"\x89HDF\r\n\x1a\n" + bytes(2000), "damaged HDF5"),
    "HDF5, all lengths at once": (
        b"\x89HDF\r\n\x1a\n" + b"\0\0\0\0\0\x08\x08\0" + b"\xff" * 4000,
        "damaged",
    ),
    "empty": (b"", "is empty"),
    "a web page": (b"\n <!DOCTYPE html><html>", "web page"),
    "a pointer of Git LFS": (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
    "compressed": (b"\x1f\x8b\x08\x00", "gunzip"),
    "a plain pickle": (b"\x80\x04\x95", "Python pickle"),
    "a text": (b"a page that says: not found", "no weight file that fcn_jax can read"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_one_error_in_a_second_and_little_memory(tmp_path, name):
    content, message = HOSTILE[name]
    path = tmp_path / "hostile.bin"
    path.write_bytes(content() if callable(content) else content)
    tracemalloc.start()
    start = time.process_time()
    try:
        with pytest.raises(ValueError, match=message) as caught:
            load(path)
        seconds = time.process_time() - start
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert "hostile.bin" in str(caught.value)
    assert len(str(caught.value)) < 1000
    assert peak < (100 << 20) + 3 * path.stat().st_size
    assert seconds < 5  # of processors; ten times slower under tracemalloc than without
