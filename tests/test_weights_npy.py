"""``vgg16.npy`` of TensorFlow's networks: read as numpy writes it, and as Python 2 did."""

from __future__ import annotations

import io
import os
import pickle
import struct
import time
import tracemalloc

import numpy as np
import pytest

from fcn_jax import Inputs, Preprocessing
from fcn_jax.weights import load

SHAPES = {"conv1_1": (3, 3, 3, 4), "conv5_3": (3, 3, 4, 6), "fc6": (2 * 2 * 6, 5), "fc7": (5, 3)}


@pytest.fixture
def layers(rng) -> dict[str, list[np.ndarray]]:
    return {
        name: [rng.normal(size=shape).astype(np.float32), np.arange(shape[-1], dtype=np.float32)]
        for name, shape in SHAPES.items()
    }


def header(name: str = "|O") -> bytes:
    stream = io.BytesIO()
    described = {"descr": name, "fortran_order": False, "shape": ()}
    np.lib.format.write_array_header_1_0(stream, described)
    return stream.getvalue()


def as_python_2(layers) -> bytes:
    """The pickle that Python 2's numpy.save wrote: protocol 2, and arrays' bytes as its strings."""

    def string(data: bytes) -> bytes:
        short = len(data) < 256
        return (b"U" + bytes([len(data)]) if short else b"T" + struct.pack("<i", len(data))) + data

    def array(values: bytes, shape: tuple[int, ...], code: str, order: str) -> bytes:
        numbers = b"(" + b"".join(b"K" + bytes([n]) for n in shape) + b"t"
        kind = b"cnumpy\ndtype\n" + string(code.encode()) + b"K\0K\1\x87R"
        last = b"J\xff\xff\xff\xff" * 2 + (b"K\0" if code != "O8" else b"K?")
        kind += b"(K\3" + string(order.encode()) + b"NNN" + last + b"tb"
        begin = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\0\x85" + string(b"b")
        return begin + b"\x87R(K\1" + numbers + kind + b"\x89" + values + b"tb"

    content = b"}("
    for name, (kernel, bias) in layers.items():
        content += string(name.encode()) + b"]("
        content += array(string(kernel.tobytes()), kernel.shape, "f4", "<")
        content += array(string(bias.tobytes()), bias.shape, "f4", "<") + b"e"
    content += b"u"
    return header() + b"\x80\2" + array(b"]" + content + b"a", (), "O8", "|") + b"."


def write(path, layers, form) -> None:
    if form == "python 2":
        path.write_bytes(as_python_2(layers))
        read = np.load(path, allow_pickle=True, encoding="latin1").item()  # the test's own check
        np.testing.assert_array_equal(read["fc6"][0], layers["fc6"][0])
        return
    names = {"list": (0, 1), "numbers": (0, 1), "names": ("weights", "biases")}[form]
    saved = {n: dict(zip(names, pair, strict=True)) for n, pair in layers.items()}
    np.save(path, layers if form == "list" else saved, allow_pickle=True)


@pytest.mark.parametrize("form", ["list", "numbers", "names", "python 2"])
def test_vgg_of_tensorflow(tmp_path, layers, rng, form):
    write(tmp_path / "vgg16.npy", layers, form)
    loaded = load(tmp_path / "vgg16.npy")
    assert set(loaded) == {f"{name}/{kind}" for name in SHAPES for kind in ("kernel", "bias")}
    for name in ("conv1_1", "conv5_3", "fc7"):
        np.testing.assert_array_equal(loaded[f"{name}/kernel"], layers[name][0])
        np.testing.assert_array_equal(loaded[f"{name}/bias"], layers[name][1])
    pool5 = rng.normal(size=(2, 2, 6)).astype(np.float32)  # TensorFlow flattens (row, column, ch.)
    expected = pool5.reshape(-1) @ layers["fc6"][0]
    ours = pool5.transpose(2, 0, 1).reshape(-1) @ loaded["fc6/kernel"]
    np.testing.assert_allclose(ours, expected, rtol=1e-5)
    assert loaded.inputs == Inputs.of(Preprocessing("bgr", (103.939, 116.779, 123.68)))


def test_other_memory_orders_and_types(tmp_path, layers):
    layers["conv1_1"][0] = np.asfortranarray(layers["conv1_1"][0])
    layers["conv5_3"][0] = layers["conv5_3"][0].astype(">f4")
    layers["fc7"][0] = layers["fc7"][0].astype(np.float64)
    np.save(tmp_path / "a.npy", layers, allow_pickle=True)
    loaded = load(tmp_path / "a.npy")
    for name in ("conv1_1", "conv5_3", "fc7"):
        np.testing.assert_array_equal(loaded[f"{name}/kernel"], np.float32(layers[name][0]))


def test_other_layers_are_named(tmp_path, layers):
    others = {"mean": np.ones(3), "upscore": layers["fc7"], "fc8": [np.ones((3, 2)), 5]}
    np.save(tmp_path / "a.npy", {**layers, **others}, allow_pickle=True)
    loaded = load(tmp_path / "a.npy")
    assert len(loaded) == 8
    assert loaded.skipped == tuple(f"{name} (another layer)" for name in others)


class Runs:
    """What a stranger may pickle."""

    def __init__(self, mark: str) -> None:
        self.mark = mark

    def __reduce__(self):
        return os.system, (f"touch {self.mark}",)


@pytest.mark.parametrize("place", ["value", "list", "alone"])
def test_nothing_is_run(tmp_path, layers, place):
    mark = tmp_path / "ran"
    bad = Runs(str(mark))
    saved = {"value": {**layers, "x": bad}, "list": {"conv1_1": [bad, bad]}, "alone": bad}[place]
    np.save(tmp_path / "a.npy", saved, allow_pickle=True)
    with pytest.raises(ValueError, match=r"a\.npy: asks for 'posix\.system'.* was not run"):
        load(tmp_path / "a.npy")
    assert not mark.exists()


@pytest.mark.parametrize(
    ("saved", "message"),
    [
        ({"a": 1}, "a dictionary without layers conv1_1 to fc8 of .* it has a"),
        ({}, "it has nothing"),
        ([1, 2], "no dictionary of layers"),
        (np.array([{}, {}], object), "no dictionary of layers"),
    ],
)
def test_other_objects(tmp_path, saved, message):
    np.save(tmp_path / "a.npy", np.array(saved, object), allow_pickle=True)
    with pytest.raises(ValueError, match=rf"a\.npy: .*{message}"):
        load(tmp_path / "a.npy")


def test_a_damaged_file_is_a_value_error(tmp_path, layers):
    """Cut at any place, or with bytes flipped, it is refused, or reads as arrays."""
    rng = np.random.default_rng(1)
    for form in ("list", "python 2"):
        write(tmp_path / "a.npy", layers, form)
        content = (tmp_path / "a.npy").read_bytes()
        refused = 0
        for trial in range(150):
            broken = bytearray(content)
            if trial % 2:
                del broken[rng.integers(1, len(content)) :]
            else:
                broken[rng.integers(0, len(content))] ^= int(rng.integers(1, 256))
            (tmp_path / "b.npy").write_bytes(broken)
            try:
                assert all(array.dtype == np.float32 for array in load(tmp_path / "b.npy").values())
            except ValueError:
                refused += 1
        assert refused > 75


@pytest.mark.parametrize(
    "content",
    [
        b"\x80\2" + b"]0" * 5_000_000 + b"].",
        b"\x80\4\x95" + struct.pack("<Q", 10_000_000) + b"]0" * 4_999_999 + b"].",
        b"\x80\2T\xff\xff\xff\x7f" + b"a" * 100,
        b"\x80\2\x8d" + struct.pack("<Q", 1 << 60) + b"a" * 100,
        b"\x80\2" + b"(" * 2_000_000 + b"t" * 2_000_000 + b".",
        b"\x80\2]q\0h\0a.",  # a list that holds itself
    ],
    ids=["opcodes", "frame", "string", "text", "marks", "circle"],
)
def test_one_error_in_little_time(tmp_path, content):
    (tmp_path / "a.npy").write_bytes(header() + content)
    start = time.process_time()
    with pytest.raises(ValueError, match=r"a\.npy: "):
        load(tmp_path / "a.npy")
    assert time.process_time() - start < 3


def test_large_arrays_are_not_copied_before_they_are_needed(tmp_path):
    kernel = np.ones((3, 3, 512, 512), np.float32)
    np.save(tmp_path / "a.npy", {"conv5_1": [kernel, kernel[0, 0, 0]]}, allow_pickle=True)
    tracemalloc.start()
    load(tmp_path / "a.npy")
    assert tracemalloc.get_traced_memory()[1] < 1.5 * kernel.nbytes
    tracemalloc.stop()


def test_protocols(tmp_path, layers):
    for protocol in (3, 4):  # 5 is none of numpy.save
        content = pickle.dumps(np.array(layers, object), protocol)
        (tmp_path / "a.npy").write_bytes(header() + content)
        assert len(load(tmp_path / "a.npy")) == 8
