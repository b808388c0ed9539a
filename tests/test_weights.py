"""Reading start weights and transplanting them by name."""

from __future__ import annotations

import dataclasses
import zipfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from random_parameters import random_parameters

import fcn_jax
from fcn_jax import Preprocessing, weights
from fcn_jax.data.shapes import SHAPES
from fcn_jax.models.fcn import abstract_params
from fcn_jax.models.inputs import Inputs
from fcn_jax.weights import dense_to_conv, flatten, load, transplant


@pytest.fixture
def caffe_file(tmp_path):
    """A small network as Caffe names it: a convolution, a dense layer, a classifier."""
    rng = np.random.default_rng(0)
    arrays = {
        "conv1/w": rng.normal(size=(6, 3, 3, 5)).astype(np.float16),  # out, in, height, width
        "conv1/b": rng.normal(size=6).astype(np.float32),
        "fc6/w": rng.normal(size=(8, 6 * 4 * 5)).astype(np.float32),
        "fc6/b": rng.normal(size=(1, 1, 1, 8)),  # Caffe's legacy blobs have four axes
    }
    np.savez(tmp_path / "weights.npz", **arrays)
    return tmp_path / "weights.npz", arrays


@pytest.fixture
def params():
    shapes = {
        "conv1": {"kernel": (3, 5, 3, 6), "bias": (6,)},
        "fc6": {"kernel": (4, 5, 6, 8), "bias": (8,)},
        "score_fr": {"kernel": (1, 1, 8, 2), "bias": (2,)},
    }
    return jax.tree.map(np.zeros, shapes, is_leaf=lambda leaf: isinstance(leaf, tuple))


# ======================================================================== reading


def test_vgg_of_tensorflow(tmp_path):
    """``vgg16_weights.npz``: kernels (height, width, in, out), fc6 over (row, column, channel)."""
    rng = np.random.default_rng(0)
    shapes = {"conv1_1_W": (3, 3, 3, 4), "conv5_3_W": (3, 3, 4, 6), "fc6_W": (2 * 2 * 6, 5)}
    arrays = {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    arrays |= {"conv1_1_b": np.arange(4.0), "fc6_b": np.arange(5.0)}
    np.savez(tmp_path / "vgg16_weights.npz", **arrays)
    loaded = load(tmp_path / "vgg16_weights.npz")
    np.testing.assert_array_equal(loaded["conv1_1/kernel"], arrays["conv1_1_W"])
    np.testing.assert_array_equal(loaded["conv1_1/bias"], np.arange(4))
    pool5 = rng.normal(size=(2, 2, 6)).astype(np.float32)
    expected = pool5.reshape(-1) @ arrays["fc6_W"]
    ours = pool5.transpose(2, 0, 1).reshape(-1) @ loaded["fc6/kernel"]  # Caffe's order
    np.testing.assert_allclose(ours, expected, rtol=1e-5)
    assert loaded.inputs == Inputs.of(Preprocessing("rgb", (123.68, 116.779, 103.939)))

    arrays["fc6_W"] = np.ones((23, 5), np.float32)
    np.savez(tmp_path / "wrong.npz", **arrays)
    with pytest.raises(ValueError, match=r"wrong\.npz: fc6_W has 23 inputs: no square map of 6"):
        load(tmp_path / "wrong.npz")


def test_arrays_arrive_in_our_layout(caffe_file):
    path, arrays = caffe_file
    loaded = load(path)
    assert set(loaded) == {"conv1/kernel", "conv1/bias", "fc6/kernel", "fc6/bias"}
    assert all(value.dtype == np.float32 for value in loaded.values())
    assert loaded["conv1/kernel"].shape == (3, 5, 3, 6)
    for out, inp, row, column in [(0, 0, 0, 0), (5, 2, 1, 4), (3, 1, 2, 0)]:
        value = np.float32(arrays["conv1/w"][out, inp, row, column])
        assert loaded["conv1/kernel"][row, column, inp, out] == value
    np.testing.assert_array_equal(loaded["fc6/kernel"], arrays["fc6/w"].T)
    assert loaded["fc6/bias"].shape == (8,)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no weight file .*none\.npz"):
        load(tmp_path / "none.npz")


def test_a_file_of_another_kind_is_refused(tmp_path):
    (tmp_path / "weights.npz").write_text("a page that says: not found")
    with pytest.raises(ValueError, match=r"weights\.npz is no weight file"):
        load(tmp_path / "weights.npz")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"MATLAB 5.0 MAT-file, Platform", "is a .mat file"),
        (b"MATLAB 7.3 MAT-file".ljust(512) + b"\x89HDF\r\n\x1a\n", "is a .mat file"),
        (b"\x08\x07\x12\x07pytorch", "looks like an ONNX file"),
        (b"<!doctype html>", "is a web page"),
        (b"version https://git-lfs.github.com/spec/v1", "is not the file but a pointer"),
        (b"\xfd7zXZ\0", "is compressed; unpack it with unxz"),
        (b"", "is empty"),
    ],
)
def test_other_files_are_named(tmp_path, content, message):
    (tmp_path / "weights.h5").write_bytes(content)
    with pytest.raises(ValueError, match=rf"weights\.h5 {message}"):
        load(tmp_path / "weights.h5")


def test_what_other_programs_save_is_named(tmp_path):
    np.save(tmp_path / "array.npy", np.ones((2, 3)))
    with pytest.raises(ValueError, match=r"array\.npy: a single array of float64 and \(2, 3\)"):
        load(tmp_path / "array.npy")
    with zipfile.ZipFile(tmp_path / "a.keras", "w") as archive:
        archive.writestr("model.weights.h5", b"")
    with pytest.raises(ValueError, match=r"a\.keras: Keras' newer format; .*FILE\.h5"):
        load(tmp_path / "a.keras")


@pytest.mark.parametrize("compressed", [False, True])
def test_a_damaged_file_is_a_value_error_that_names_it(tmp_path, compressed):
    """Cut at any place, or with bytes flipped, it either reads as it was or is refused."""
    path, damaged = tmp_path / "weights.npz", tmp_path / "damaged.npz"
    kernel = np.random.default_rng(0).normal(size=(4, 3, 3, 3)).astype(np.float32)
    (np.savez_compressed if compressed else np.savez)(path, **{"conv1/w": kernel})
    truth, content = load(path)["conv1/kernel"], path.read_bytes()
    rng, refusals = np.random.default_rng(1), []
    for trial in range(300):
        broken = bytearray(content)
        if trial % 3 == 0:
            del broken[rng.integers(1, len(content)) :]
        else:
            for position in rng.integers(0, len(content), 1 + trial % 4):
                broken[position] ^= int(rng.integers(1, 256))
        damaged.write_bytes(broken)
        try:
            loaded = load(damaged)
        except ValueError as error:
            refusals.append(str(error))
        else:
            for value in loaded.values():
                np.testing.assert_array_equal(value, truth)
    assert len(refusals) > 100
    assert all("damaged.npz" in message for message in refusals)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("kernel", np.zeros(3)),
        ("conv1/gamma", np.zeros(3)),
        ("conv1/w", np.zeros((3, 3, 3))),
        ("conv1/w", np.zeros((3, 3), np.int64)),
    ],
)
def test_arrays_of_unknown_meaning_are_refused(tmp_path, name, value):
    np.savez(tmp_path / "weights.npz", **{name: value, "conv2/b": np.zeros(3)})
    with pytest.raises(ValueError, match=rf"weights\.npz: expected .* found {name} "):
        load(tmp_path / "weights.npz")


def test_nan_is_refused(tmp_path):
    np.savez(tmp_path / "weights.npz", **{"a/b": np.array([1, np.nan]), "c/b": np.array([np.inf])})
    with pytest.raises(ValueError, match="NaN or Inf in a/bias, c/bias"):
        load(tmp_path / "weights.npz")


# ======================================================================== transplanting


def test_every_array_is_accounted_for(caffe_file, params):
    source = load(caffe_file[0])
    source["fc8/kernel"] = np.zeros((2, 2), np.float32)
    new, report = transplant(params, source)
    assert {name: set(arrays) for name, arrays in dataclasses.asdict(report).items()} == {
        "copied": {"conv1/kernel", "conv1/bias", "fc6/bias"},
        "reshaped": {"fc6/kernel"},
        "widened": set(),
        "left": {"score_fr/kernel", "score_fr/bias"},
        "unused": {"fc8/kernel"},
        "skipped": set(),
    }
    np.testing.assert_array_equal(new["conv1"]["kernel"], source["conv1/kernel"])
    assert new["score_fr"]["kernel"] is params["score_fr"]["kernel"]
    assert not params["conv1"]["kernel"].any()  # the given parameters are as they were
    assert jax.tree.structure(new) == jax.tree.structure(params)
    text = str(report)
    for line in ("copied   3 arrays: conv1 fc6", "reshaped   1 arrays: fc6", "left   2 arrays"):
        assert line in text
    assert "unused   1 arrays: fc8" in text


def test_a_dense_layer_becomes_the_convolution_of_the_same_function(caffe_file, params):
    """fc6 as Caffe computes it, from the flattened (channel, row, column) map."""
    path, arrays = caffe_file
    kernel = transplant(params, load(path))[0]["fc6"]["kernel"]
    maps = np.random.default_rng(1).normal(size=(3, 6, 4, 5)).astype(np.float32)  # NCHW
    dense = maps.reshape(3, -1) @ arrays["fc6/w"].T
    convolved = jax.lax.conv_general_dilated(
        jnp.asarray(maps.transpose(0, 2, 3, 1)),
        jnp.asarray(kernel),
        (1, 1),
        "VALID",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        precision="highest",
    )
    np.testing.assert_allclose(convolved[:, 0, 0], dense, atol=1e-5)


def test_vggs_fc6_and_fc7_by_shape():
    """4096 x 25088 in Caffe; here the columns stand for themselves."""
    columns = np.broadcast_to(np.arange(25088, dtype=np.float32), (2, 25088))
    kernel = dense_to_conv(columns.T, (7, 7, 512, 2))
    assert kernel[3, 4, 100, 1] == 100 * 49 + 3 * 7 + 4
    fc7 = np.random.default_rng(0).normal(size=(5, 4))
    np.testing.assert_array_equal(dense_to_conv(fc7, (1, 1, 5, 4))[0, 0], fc7)


def test_all_mismatches_in_one_error(caffe_file, params):
    params["conv1"]["bias"] = np.zeros(7)
    params["fc6"]["kernel"] = np.zeros((4, 5, 6, 9))
    with pytest.raises(ValueError, match="another shape") as caught:
        transplant(params, load(caffe_file[0]))
    message = str(caught.value)
    assert "conv1/bias: the file has (6,), the network (7,)" in message
    assert "fc6/kernel: the file has (120, 8), the network (4, 5, 6, 9)" in message


def test_replaceable_layers_keep_their_initial_values(caffe_file, params):
    source = load(caffe_file[0])
    source |= {"score_fr/kernel": np.ones((1, 1, 8, 21)), "score_fr/bias": np.ones(21)}
    with pytest.raises(ValueError, match="score_fr/kernel"):
        transplant(params, source)
    new, report = transplant(params, source, replaceable=("score_*",))
    assert set(report.left) == {"score_fr/kernel", "score_fr/bias"}
    assert not new["score_fr"]["kernel"].any()


def test_what_is_missing_and_left_over_is_told_with_the_shapes(caffe_file, params):
    source = load(caffe_file[0])
    source["fc8/kernel"] = np.zeros((2, 2), np.float32)
    params["conv1"]["bias"] = np.zeros(7)
    with pytest.raises(ValueError, match=r"weights of another shape \(Caffe blobs") as caught:
        transplant(params, source)
    message = str(caught.value)
    assert "conv1/bias: the file has (6,), the network (7,)" in message
    assert "missing in the file: score_fr/bias, score_fr/kernel" in message
    assert "without a place in the network: fc8/kernel" in message


def test_a_fourth_channel_is_the_mean_of_the_three(caffe_file, params):
    path, arrays = caffe_file
    params["conv1"]["kernel"] = np.zeros((3, 5, 4, 6), np.float32)
    new, report = transplant(params, load(path))
    assert report.widened == ("conv1/kernel",)
    assert "widened   1 arrays: conv1" in str(report)
    blob = arrays["conv1/w"].astype(np.float32)
    for out in range(6):
        for channel in range(3):
            np.testing.assert_array_equal(
                new["conv1"]["kernel"][:, :, channel, out], blob[out, channel]
            )
        np.testing.assert_allclose(
            new["conv1"]["kernel"][:, :, 3, out], blob[out].sum(0) / 3, rtol=1e-5, atol=1e-6
        )


def test_no_other_kernel_is_widened(params):
    source = {"fc6/kernel": np.zeros((4, 5, 5, 8)), "conv1/bias": np.zeros(6)}
    with pytest.raises(ValueError, match=r"fc6/kernel: the file has \(4, 5, 5, 8\)"):
        transplant(params, source)


# ======================================================================== inputs


def stream_params(*streams: str) -> dict[str, dict[str, np.ndarray]]:
    """A network of two backbones and one transposed convolution."""
    tree = {f"conv1{s}": {"kernel": np.zeros((3, 3, 3, 4)), "bias": np.zeros(4)} for s in streams}
    tree |= {f"score_fr{s}": {"kernel": np.zeros((1, 1, 4, 2))} for s in streams}
    return tree | {"upscore": {"kernel": np.zeros((4, 4, 2, 2))}}


def stream_source(seed: int) -> weights.Weights:
    tree = stream_params("")
    rng = np.random.default_rng(seed)
    filled = {name: rng.standard_normal(a.shape, np.float32) for name, a in flatten(tree).items()}
    return weights.Weights(filled, kind=f"file {seed}", skipped=[f"something of {seed}"])


def test_streams_start_from_their_own_files():
    color, hha = stream_source(1), stream_source(2)
    hha["fc8/kernel"] = np.zeros((2, 2), np.float32)
    new, report = transplant(stream_params("color", "hha"), {"color": color, "hha": hha})
    for layer in ("conv1", "score_fr"):
        np.testing.assert_array_equal(new[f"{layer}color"]["kernel"], color[f"{layer}/kernel"])
        np.testing.assert_array_equal(new[f"{layer}hha"]["kernel"], hha[f"{layer}/kernel"])
    np.testing.assert_array_equal(new["upscore"]["kernel"], color["upscore/kernel"])
    assert report.left == ()
    assert set(report.unused) == {"hha: fc8/kernel", "hha: upscore/kernel"}
    assert report.skipped == ("color: something of 1", "hha: something of 2")


def test_streams_start_from_one_file():
    source = stream_source(1)
    params = stream_params("color", "hha")
    new, report = transplant(params, source, inputs=["color", "hha"])
    for stream in ("color", "hha"):
        np.testing.assert_array_equal(new[f"conv1{stream}"]["bias"], source["conv1/bias"])
    assert report.left == report.unused == ()
    _, report = transplant(params, source)  # without inputs the names differ
    assert "conv1color/kernel" in report.left
    assert "conv1/kernel" in report.unused


def test_a_network_of_streams_passes_through():
    """Its own arrays come before those that would do for any input."""
    rng = np.random.default_rng(0)
    params = stream_params("color", "hha")
    own = {n: rng.standard_normal(a.shape, np.float32) for n, a in flatten(params).items()}
    source = {**own, "conv1/kernel": np.zeros((3, 3, 3, 4))}
    new, report = transplant(params, source, inputs=("color", "hha"))
    assert report.unused == ("conv1/kernel",)
    for name, value in flatten(new).items():
        np.testing.assert_array_equal(value, own[name])


def test_sources_that_are_neither_flat_nor_by_stream():
    params = stream_params("color", "hha")
    with pytest.raises(ValueError, match="one dictionary or tree of arrays, or one for each input"):
        transplant(params, {"color": stream_source(1), "conv1/kernel": np.zeros(3)})
    with pytest.raises(ValueError, match=r"got the keys color and the inputs \['hha'\]"):
        transplant(params, {"color": stream_source(1)}, inputs=["hha"])


# ======================================================================== trees


@pytest.mark.parametrize("name", ["params", "googlenet", "streams"])
def test_a_tree_of_parameters_is_a_source(name, params, rng):
    """What `model.init` gives, of this network or of one with other scores."""
    if name == "googlenet":
        model = fcn_jax.create_model("fcn8s", backbone="googlenet", num_classes=2, width=1 / 16)
        params = jax.tree.map(lambda leaf: np.zeros(leaf.shape), abstract_params(model))
    elif name == "streams":
        params = stream_params("color", "hha")
    old = jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape), jnp.float32), params)
    new, report = transplant(params, old)
    assert report.left == report.unused == ()
    jax.tree.map(np.testing.assert_array_equal, new, old)
    # Wrapped, as variables are.
    again, report = transplant(params, {"params": old})
    assert report.left == report.unused == ()
    jax.tree.map(np.testing.assert_array_equal, again, old)


def test_trees_of_other_networks_and_of_inputs(params):
    other = {**params, "score_fr": {"kernel": np.ones((1, 1, 8, 5))}, "fc8": {"bias": np.ones(2)}}
    _, report = transplant(params, other, replaceable=("score_*",))
    assert set(report.left) == {"score_fr/bias", "score_fr/kernel"}
    assert report.unused == ("fc8/bias",)
    with pytest.raises(ValueError, match="no array fits the network"):
        transplant(params, {"other": {"kernel": np.ones((3, 5, 3, 6))}})
    trees = {"color": weights.unflatten(stream_source(1)), "hha": stream_source(2)}
    new, _ = transplant(stream_params("color", "hha"), trees)
    assert jax.tree.all(jax.tree.map(lambda leaf: bool(leaf.any()), new))
    np.testing.assert_array_equal(new["conv1hha"]["bias"], trees["hha"]["conv1/bias"])
    np.testing.assert_array_equal(new["conv1color"]["bias"], trees["color"]["conv1"]["bias"])


def test_layer_names_may_hold_slashes():
    tree = {"inception_3a/1x1": {"kernel": np.ones((1, 1, 2, 2))}, "a": {"bias": np.ones(2)}}
    flat = flatten(tree)
    assert set(flat) == {"inception_3a/1x1/kernel", "a/bias"}
    assert set(weights.unflatten(flat)) == set(tree)
    new, _ = transplant(tree, {"inception_3a/1x1/kernel": np.zeros((1, 1, 2, 2))})
    assert jax.tree.structure(new) == jax.tree.structure(tree)
    assert not new["inception_3a/1x1"]["kernel"].any()


def test_trees_of_any_depth_keep_their_form():
    tree = {"block": {"conv": {"kernel": np.ones((1, 1, 2, 2))}}, "a": {"bias": np.ones(2)}}
    new, report = transplant(tree, {"block/conv/kernel": np.zeros((1, 1, 2, 2))})
    assert jax.tree.structure(new) == jax.tree.structure(tree)
    assert report.left == ("a/bias",)


def test_nothing_that_fits_is_an_error(params):
    with pytest.raises(ValueError, match="no array fits the network"):
        transplant(params, {"features.0/kernel": np.zeros((3, 3, 3, 6))})


def test_our_own_parameters_pass_through(params):
    new, report = transplant(params, flatten(params))
    assert report.left == report.unused == report.reshaped == ()
    assert jax.tree.all(jax.tree.map(np.array_equal, new, params))


# ======================================================================== folders of runs


@pytest.fixture
def run_folder(tmp_path):
    """A run of two stages, of which the second is of HHA images; its parameters by stage."""
    import optax

    from fcn_jax import checkpoints, runs
    from fcn_jax import config as configs
    from fcn_jax.training.step import init_state

    config = configs.default_config()
    config.stages, config.width, config.fc_width = ("fcn32s", "fcn16s", "fcn8s"), 1 / 64, 3
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text(config.to_json())
    heads, inputs = {"label": SHAPES}, Inputs.of({"image": {"hha": HHA}})
    params = {}
    for seed, stage in enumerate(("fcn32s", "fcn16s")):
        model = runs.build_model(config, stage, heads, inputs)
        params[stage] = random_parameters(model, seed)
        with checkpoints.StageCheckpoints(tmp_path / "run", stage) as saver:
            described = runs.describe_run(config, heads, inputs)
            saver.save(0, init_state(params[stage], optax.sgd(0.1)), {}, described, None)
    return tmp_path / "run", params


HHA = Preprocessing("rgb", (132.431, 94.076, 118.477), (1.0, 1.0, 1.0))


def test_the_folder_of_a_run(run_folder):
    folder, params = run_folder
    for path, stage in (
        (folder, "fcn16s"),  # the last stage that has a checkpoint
        (folder / "checkpoints" / "fcn16s", "fcn16s"),
        (folder / "checkpoints" / "fcn32s", "fcn32s"),
    ):
        loaded = load(path)
        assert loaded.kind == f"fcn_jax {stage}"
        assert loaded.inputs == Inputs.of({"image": {"hha": HHA}})
        assert set(loaded) == set(flatten(params[stage]))
        for name, value in flatten(params[stage]).items():
            np.testing.assert_array_equal(loaded[name], value)
    _, report = transplant(params["fcn16s"], load(folder))
    assert report.left == report.unused == ()
    assert len(report.copied) == len(load(folder))


def test_a_folder_that_is_no_runs(tmp_path):
    with pytest.raises(FileNotFoundError, match="no folder of a training run"):
        load(tmp_path)


# ======================================================================== the real backbone


def vgg16_shapes(width: float = 1.0):
    return abstract_params(fcn_jax.create_model("fcn8s", width=width, fc_width=8))


def test_the_real_trunk(shared):
    path = shared / "weights" / "vgg16_imagenet_trunk_fp16.npz"
    new, report = transplant(vgg16_shapes(), load(path))
    assert len(report.copied) == 26
    assert report.reshaped == report.unused == ()
    left = {"fc6", "fc7", "score_fr", "score_pool4", "score_pool3"}
    left |= {"upscore2", "upscore_pool4", "upscore8"}
    assert {name.partition("/")[0] for name in report.left} == left
    with np.load(path) as archive:
        for layer in ("conv1_1", "conv3_2", "conv5_3"):
            kernel = archive[f"{layer}/w"].astype(np.float32).transpose(2, 3, 1, 0)
            np.testing.assert_array_equal(new[layer]["kernel"], kernel)
            np.testing.assert_array_equal(new[layer]["bias"], archive[f"{layer}/b"])


def test_the_real_trunk_does_not_fit_half_the_width(shared):
    source = load(shared / "weights" / "vgg16_imagenet_trunk_fp16.npz")
    with pytest.raises(ValueError, match="another shape") as caught:
        transplant(vgg16_shapes(width=0.5), source)
    assert str(caught.value).count("the file has") == 26


def test_readers_are_a_table():
    """Another format is one more row."""
    assert all(len(row) == 2 and all(map(callable, row)) for row in weights._READERS)
