"""Reading Keras' `.h5` files, written here with h5py under every path that Keras has used."""

from __future__ import annotations

import numpy as np
import pytest
import state_dicts

from fcn_jax import Inputs, Preprocessing
from fcn_jax.weights import load

h5py = pytest.importorskip("h5py")

SIDE = 2  # of the map before fc1, 7 in the real network


def vgg(name: str, top: bool = True) -> dict[str, dict[str, np.ndarray]]:
    """Arrays by Keras' layer; each convolution has one channel more than the last."""
    rng = np.random.default_rng(0)
    layers = {}
    channels = 3
    for place in state_dicts.VGG_NAMES[name].split():
        stage, conv = place.split("_")
        layers[f"block{stage}_conv{conv}"] = {
            "kernel": rng.normal(size=(3, 3, channels, channels + 1)).astype(np.float32),
            "bias": rng.normal(size=channels + 1).astype(np.float32),
        }
        channels += 1
    sizes = {"fc1": (SIDE * SIDE * channels, 9), "fc2": (9, 8), "predictions": (8, 6)}
    for layer, shape in sizes.items() if top else ():
        layers[layer] = {
            "kernel": rng.normal(size=shape).astype(np.float32),
            "bias": rng.normal(size=shape[1]).astype(np.float32),
        }
    return layers


def keras_1(layer, kind, number):
    return f"{layer}/{layer}_{'W' if kind == 'kernel' else 'b'}_1:0"


def keras_2(layer, kind, number):
    return f"{layer}/{layer}/{kind}:0"


def keras_2_model(layer, kind, number):
    return f"model_weights/{layer}/{layer}/{kind}:0"


def keras_2_nested(layer, kind, number):
    return f"model_weights/vgg16/{layer}/{kind}:0"


def keras_3_legacy(layer, kind, number):
    return f"model_weights/{layer}/{layer}/{kind}"


def keras_3(layer, kind, number):
    group = "conv2d" if layer.startswith("block") else "dense"
    return f"layers/{group}{f'_{number}' if number else ''}/vars/{0 if kind == 'kernel' else 1}"


def keras_3_named(layer, kind, number):
    return f"layers/{layer}/vars/{0 if kind == 'kernel' else 1}"


PATHS = [
    keras_1, keras_2, keras_2_model, keras_2_nested, keras_3_legacy, keras_3, keras_3_named,
]  # fmt: skip


def write(path, layers, path_of=keras_2, **options):
    numbers = {True: 0, False: 0}
    with h5py.File(path, "w", libver=options.pop("libver", None)) as file:
        file.attrs["layer_names"] = [name.encode() for name in layers]
        file.attrs["backend"] = "tensorflow"
        for layer, arrays in layers.items():
            convolution = layer.startswith("block")
            for kind, value in arrays.items():
                name = path_of(layer, kind, numbers[convolution])
                file.create_dataset(name, data=value, **options)
            numbers[convolution] += 1
        file.create_group("model_weights/block1_pool" if "model" in path_of.__name__ else "pool")
    return path


@pytest.mark.parametrize("path_of", PATHS)
@pytest.mark.parametrize(("name", "top"), [("vgg16", True), ("vgg16", False), ("vgg19", True)])
def test_every_path(tmp_path, path_of, name, top):
    layers = vgg(name, top)
    weights = load(write(tmp_path / "model.bin", layers, path_of))
    places = state_dicts.VGG_NAMES[name].split()
    expected = {f"conv{place}" for place in places} | ({"fc6", "fc7", "fc8"} if top else set())
    assert {key.rpartition("/")[0] for key in weights} == expected
    for place in places:
        theirs = layers["block{}_conv{}".format(*place.split("_"))]
        np.testing.assert_array_equal(weights[f"conv{place}/kernel"], theirs["kernel"])
        np.testing.assert_array_equal(weights[f"conv{place}/bias"], theirs["bias"])
    assert weights.kind == f"Keras {name}"
    assert weights.inputs == Inputs.of(Preprocessing("bgr", (103.939, 116.779, 123.68)))
    assert weights.skipped == ()
    if top:
        for theirs, ours in {"fc2": "fc7", "predictions": "fc8"}.items():
            np.testing.assert_array_equal(weights[f"{ours}/kernel"], layers[theirs]["kernel"])


def test_the_first_dense_layer_reads_channels_first(tmp_path):
    """The same scores from a map flattened Caffe's way as from Keras' way."""
    layers = vgg("vgg16")
    weights = load(write(tmp_path / "model.h5", layers))
    channels = layers["fc1"]["kernel"].shape[0] // SIDE**2
    maps = np.random.default_rng(1).normal(size=(3, SIDE, SIDE, channels))
    theirs = maps.reshape(3, -1) @ layers["fc1"]["kernel"]
    ours = maps.transpose(0, 3, 1, 2).reshape(3, -1) @ weights["fc6/kernel"]
    np.testing.assert_allclose(ours, theirs, rtol=1e-6)


@pytest.mark.parametrize("libver", ["earliest", "latest"])
@pytest.mark.parametrize(
    "options", [{}, {"compression": "gzip", "shuffle": True}, {"dtype": "f2"}, {"dtype": ">f8"}]
)
def test_versions_and_packings_of_hdf5(tmp_path, libver, options):
    layers = vgg("vgg16", top=False)
    weights = load(write(tmp_path / "model.h5", layers, libver=libver, **options))
    kernel = layers["block1_conv1"]["kernel"].astype(options.get("dtype", "f4"))
    np.testing.assert_array_equal(weights["conv1_1/kernel"], kernel.astype(np.float32))


def test_what_training_added_is_left_out(tmp_path):
    layers = vgg("vgg16", top=False)
    path = write(tmp_path / "model.h5", layers, keras_2_model)
    with h5py.File(path, "a") as file:
        file["model_weights/my_head/my_head/kernel:0"] = np.ones((4, 2), np.float32)
        file["model_weights/my_head/my_head/bias:0"] = np.ones(2, np.float32)
        file["model_weights/scale/scale/gamma:0"] = np.ones(2, np.float32)
        file["optimizer_weights/Adam/block1_conv1/kernel:0"] = np.ones((3, 3, 3, 4), np.float32)
        file["optimizer_weights/iterations:0"] = 3
    weights = load(path)
    np.testing.assert_array_equal(weights["conv1_1/kernel"], layers["block1_conv1"]["kernel"])
    assert set(weights.skipped) == {
        "model_weights/scale/scale/gamma:0 (2,)",
        "my_head (another layer)",
    }


def test_a_user_block_before_the_file(tmp_path):
    with h5py.File(tmp_path / "model.h5", "w", userblock_size=1024) as file:
        file["conv/conv/kernel:0"] = np.zeros((3, 3, 3, 4), np.float32)
    with pytest.raises(ValueError, match="a Keras file of another network, with the layers conv"):
        load(tmp_path / "model.h5")


def test_all_that_is_wrong_in_one_message(tmp_path):
    layers = vgg("vgg16")
    del layers["block1_conv1"]["bias"]
    layers["block2_conv1"]["kernel"] = layers["block2_conv1"]["kernel"].transpose(3, 2, 0, 1)
    layers["fc2"]["bias"] = np.zeros(3, np.float32)
    with pytest.raises(ValueError, match="a Keras vgg16 with mistakes") as caught:
        load(write(tmp_path / "model.h5", layers))
    for part in ("block1_conv1 has no bias", "block2_conv1 has a kernel (", "fc2 has a kernel (9,"):
        assert part in str(caught.value)


def test_a_dense_layer_over_no_square_map(tmp_path):
    layers = vgg("vgg16")
    layers["fc1"]["kernel"] = np.zeros((48, 9), np.float32)
    with pytest.raises(ValueError, match="48 inputs: no square map of 16 channels"):
        load(write(tmp_path / "model.h5", layers))


# ======================================================================== hostile files


def hostile(tmp_path, add):
    path = write(tmp_path / "model.h5", vgg("vgg16", top=False))
    with h5py.File(path, "a") as file:
        add(file)
    return path


def add_external_link(file):
    file["elsewhere"] = h5py.ExternalLink("/etc/passwd", "/")


def add_soft_link(file):
    file["elsewhere"] = h5py.SoftLink("/block1_conv1")


def add_external_data(file):
    file.create_dataset("a/kernel:0", (4,), "f4", external=[("/etc/passwd", 0, 16)])


def add_virtual_data(file):
    layout = h5py.VirtualLayout((4,), "f4")
    layout[:] = h5py.VirtualSource("/etc/passwd", "data", (4,))
    file.create_virtual_dataset("a/kernel:0", layout)


def add_unwritten_array(file):
    file.create_dataset("a/kernel:0", (1 << 33,), "f4")


def add_bomb(file):
    file.create_dataset("a/kernel:0", (1 << 30,), "f4", chunks=(1 << 20,), compression="gzip")


def add_large_chunk(file):
    file.create_dataset("a/kernel:0", (1,), "f4", maxshape=(None,), chunks=(1 << 28,))


def add_cycle(file):
    file["loop"] = file["/"]


def add_many_groups(file):
    for index in range(5001):
        file.create_group(f"group{index}")


@pytest.mark.parametrize(
    ("add", "message"),
    [
        (add_external_link, "elsewhere is a link to elsewhere"),
        (add_soft_link, "elsewhere is a link to elsewhere"),
        (add_external_data, "a/kernel:0 lies in another file"),
        (add_virtual_data, "a/kernel:0 lies in another file"),
        (add_unwritten_array, r"a/kernel:0 has no 34359738368 bytes in the file"),
        (add_bomb, r"a/kernel:0 \(1073741824,\) claims 4294967296 bytes"),
        (add_large_chunk, r"a/kernel:0 \(1,\) claims"),
        (add_cycle, "more or deeper groups"),
        (add_many_groups, "more or deeper groups"),
    ],
)
def test_files_that_reach_out_or_claim_too_much(tmp_path, add, message):
    with pytest.raises(ValueError, match=rf"model\.h5: {message}"):
        load(hostile(tmp_path, add))


def test_a_cut_file(tmp_path):
    path = write(tmp_path / "model.h5", vgg("vgg16"))
    content = path.read_bytes()
    for part in (0.05, 0.5, 0.99):
        path.write_bytes(content[: int(len(content) * part)])
        with pytest.raises(ValueError, match=r"model\.h5: a damaged HDF5 file"):
            load(path)
