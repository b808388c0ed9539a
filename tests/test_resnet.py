"""ResNets and torchvision's FCNs: from their files to the same numbers as torchvision's modules.

The reference is `torch_resnet`. It gave the very bits of torchvision 0.28's own modules for
resnet18, 34, 50, 101, fcn_resnet50 and fcn_resnet101 at full width; the wheels of torchvision and
of PyTorch for CPUs do not go together, so that it cannot be asked itself here.
"""

from __future__ import annotations

import collections

import jax
import numpy as np
import pytest
import state_dicts
from caffe_files import Layer, caffemodel

import fcn_jax
from fcn_jax import ops, weights
from fcn_jax.cli import train as train_command
from fcn_jax.geometry import Window
from fcn_jax.models.backbones import BACKBONES, Add, Backbone, Conv, Pool
from fcn_jax.models.inputs import CAFFE, Inputs, Preprocessing
from fcn_jax.training.init import check_names

pytestmark = pytest.mark.usefixtures("exact_products")

FULL = 64
"""Channels of the first convolution of the networks that there are."""


@pytest.fixture(scope="module")
def torch():
    return pytest.importorskip("torch")


def saved(torch, path, arrays):
    torch.save(
        collections.OrderedDict((n, torch.from_numpy(np.array(a))) for n, a in arrays.items()), path
    )
    return path


def in_float64(torch, arrays):
    return {n: torch.from_numpy(np.array(a)).double() for n, a in arrays.items()}


def network(loaded, float64=False):
    model = weights.network_of(loaded, loaded.network.name)
    params = weights.params_of(loaded, model)
    return model, jax.tree.map(lambda leaf: leaf.astype(float) if float64 else leaf, params)


def assert_close(ours, truth):
    assert ours.shape == truth.shape
    assert np.abs(np.asarray(ours) - truth).max() < 1e-5 * np.abs(truth).max()


# ======================================================================== parity


@pytest.mark.parametrize(
    "name",
    ["resnet18", *(pytest.param(f"resnet{n}", marks=pytest.mark.slow) for n in (34, 50))],
)
def test_classifiers(torch, tmp_path, name, rng):
    from torch_resnet import classify

    arrays = state_dicts.resnet(name)
    loaded = weights.load(saved(torch, tmp_path / "w.pth", arrays))
    assert (loaded.kind, loaded.skipped) == (f"torchvision or timm {name}", ())
    model, params = network(loaded)
    x = rng.normal(size=(2, 224, 224, 3)).astype(np.float32)
    truth = classify(
        torch.from_numpy(np.moveaxis(x, -1, 1)).double(), in_float64(torch, arrays), name
    )
    with ops.plain_forms():
        ours = jax.jit(model.apply)({"params": params}, x)
    assert_close(ours[:, 0, 0], truth.numpy())


def test_fcn_resnet50_of_photographs_of_odd_sizes(torch, tmp_path, rng):
    """On one canvas, larger than both; by file alone, with the auxiliary head."""
    from torch_resnet import segment

    arrays = state_dicts.fcn_resnet("resnet50", auxiliary=True)
    path = saved(torch, tmp_path / "fcn_resnet50_coco.pth", arrays)
    loaded = weights.load(path)
    assert loaded.kind == "torchvision fcn_resnet50"
    assert loaded.skipped == ("aux_classifier (8 arrays)",)
    predictor = fcn_jax.load(path, batch_size=2, canvas=(80, 80))
    assert predictor.names("label")[15] == "person"
    photographs = [rng.integers(0, 256, (*size, 3), np.uint8) for size in ((33, 61), (70, 17))]
    with ops.plain_forms():
        logits = predictor.logits(photographs)
        again = predictor(photographs[0])
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    for photograph, ours in zip(photographs, logits, strict=True):
        x = np.moveaxis((photograph / 255 - mean) / std, -1, 0)[None]
        truth = segment(torch.from_numpy(x), in_float64(torch, arrays), "resnet50")
        truth = np.moveaxis(truth.numpy()[0], 0, -1)
        assert_close(ours, truth)
    np.testing.assert_array_equal(again, logits[0].argmax(-1))


@pytest.mark.slow
@pytest.mark.parametrize(("name", "float64"), [("resnet50", True), ("resnet101", False)])
def test_fcns_at_full_width(torch, tmp_path, name, float64, rng):
    from torch_resnet import segment

    arrays = state_dicts.fcn_resnet(name, FULL)
    loaded = weights.load(saved(torch, tmp_path / "w.pth", arrays))
    with jax.enable_x64(float64):
        model, params = network(loaded, float64)
        x = rng.normal(size=(1, 61, 77, 3)).astype(np.float64 if float64 else np.float32)
        ours = np.asarray(jax.jit(model.apply)({"params": params}, x))
    assert ours.dtype == x.dtype
    truth = segment(
        torch.from_numpy(np.moveaxis(x, -1, 1)).double(), in_float64(torch, arrays), name
    )
    assert_close(ours, np.moveaxis(truth.numpy(), 1, -1))


# ======================================================================== weights


@pytest.mark.parametrize("auxiliary", [True, False])
def test_files_of_pytorch_and_safetensors_hold_the_same(torch, tmp_path, auxiliary):
    from safetensors.numpy import save_file

    arrays = state_dicts.fcn_resnet("resnet50", 2, auxiliary=auxiliary)
    save_file(arrays, tmp_path / "model.safetensors")
    of_torch = weights.load(saved(torch, tmp_path / "w.pth", arrays))
    other = weights.load(tmp_path / "model.safetensors")
    assert (other.kind, other.inputs, other.network) == (
        of_torch.kind,
        of_torch.inputs,
        of_torch.network,
    )
    assert set(other) == set(of_torch)
    assert all(np.array_equal(other[name], of_torch[name]) for name in other)
    ours = tmp_path / "ours.safetensors"  # without what only a state dict tells
    weights.save(ours, dict(other))
    model = weights.network_of(weights.load(ours))
    assert model.decoder.interpolate
    assert model == weights.network_of(other, other.network.name)


def test_a_running_variance_as_small_as_10_times_epsilon(tmp_path):
    """Epsilon is torchvision's 1e-5; with the 1e-3 of GoogLeNet kernels were a third of theirs."""
    from safetensors.numpy import save_file

    arrays = state_dicts.resnet("resnet18", 2)
    for name in arrays:
        if name.endswith("running_var"):
            arrays[name] = np.full_like(arrays[name], 1e-4)
    save_file(arrays, tmp_path / "w.safetensors")
    loaded = weights.load(tmp_path / "w.safetensors")
    layers = {
        "conv1": ("conv1", "bn1"),
        "layer2_0/downsample": ("layer2.0.downsample.0", "layer2.0.downsample.1"),
        "layer4_1/conv2": ("layer4.1.conv2", "layer4.1.bn2"),
    }
    for ours, (conv, norm) in layers.items():
        factor = arrays[f"{norm}.weight"].astype(float) / np.sqrt(1e-4 + 1e-5)
        kernel = arrays[f"{conv}.weight"] * factor[:, None, None, None]
        bias = arrays[f"{norm}.bias"] - arrays[f"{norm}.running_mean"] * factor
        np.testing.assert_allclose(
            loaded[f"{ours}/kernel"], kernel.transpose(2, 3, 1, 0), rtol=1e-5
        )
        np.testing.assert_allclose(loaded[f"{ours}/bias"], bias, rtol=1e-5, atol=1e-6)


def test_a_name_tells_network_and_preprocessing(torch, tmp_path, monkeypatch):
    path = saved(torch, tmp_path / "file.pth", state_dicts.fcn_resnet("resnet50", 2))
    monkeypatch.setattr(weights.fetching, "fetch", lambda row: path)
    predictor = fcn_jax.load("torchvision:fcn_resnet50_coco")
    expected = fcn_jax.create_model(
        "fcn_interpolated", backbone="resnet50_dilated", width=1 / 32, learned_upsampling="none"
    )
    assert predictor.model == expected
    way = predictor.inputs.preprocessing("image")
    assert (way.channel_order, way.mean, way.scale) == ("rgb", (0.485, 0.456, 0.406), 1 / 255)
    assert predictor.names("label")[:2] == ("background", "aeroplane")


def test_a_dilated_backbone_starts_from_the_classifier():
    check_names(["torchvision:resnet50", "torchvision:fcn_resnet50_coco"], "resnet50_dilated", 1.0)
    with pytest.raises(ValueError, match=r"is of config\.backbone = 'resnet101', not 'resnet50_"):
        check_names(["torchvision:resnet101"], "resnet50_dilated", 1.0)


def tiny_run(start, workdir, **fields):
    fields = {
        "width": 1 / 16,
        "init": start,
        "batch_size": 4,
        "eval_batch_size": 4,
        "log_every": 1,
        "dataset_options.train": 8,
        "dataset_options.val": 4,
        "dataset_options.size": 48,
        "epochs": "()",
        "learning_rate": 1e-3,
        "warmup": 0,
        "samples": 0,
        **fields,
    }
    given = [f"--config.{name}={value}" for name, value in fields.items()]
    with ops.plain_forms():  # compile faster
        train_command.main(["--config=quickstart", f"--workdir={workdir}", *given])
    return fcn_jax.load(workdir)


@pytest.mark.slow
def test_training_stage_by_stage(torch, tmp_path, rng):
    start = saved(torch, tmp_path / "start.pth", state_dicts.resnet("resnet18"))
    two = {"stages": "('fcn32s','fcn16s')", "steps": "(2,3)"}
    predictor = tiny_run(start, tmp_path / "run", backbone="resnet18", **two)
    assert predictor.model.decoder.skips == (1.0,)
    params, loaded = weights.flatten(predictor.variables["params"]), weights.load(start)
    moved = [name for name in loaded if name in params and (params[name] != loaded[name]).any()]
    assert {"conv1/kernel", "layer1_0/conv2/kernel", "layer4_1/conv2/bias"} <= set(moved)
    photograph = rng.integers(0, 256, (33, 47, 3), np.uint8)
    weights.save(tmp_path / "saved.npz", weights.load(tmp_path / "run"))
    again = fcn_jax.load(tmp_path / "saved.npz")
    np.testing.assert_array_equal(again.logits(photograph), predictor.logits(photograph))


@pytest.mark.slow
def test_torchvisions_fcn_is_trained_on(torch, tmp_path):
    start = saved(torch, tmp_path / "start.pth", state_dicts.fcn_resnet("resnet50"))
    fields = {"backbone": "resnet50_dilated", "stages": "fcn_interpolated", "steps": 2}
    predictor = tiny_run(start, tmp_path / "run", **fields)
    assert predictor.model.decoder.interpolate
    assert predictor(np.zeros((33, 47, 3), np.uint8)).shape == (33, 47)


def test_a_resnet_of_caffe_is_refused(tmp_path):
    """conv1 has the shape of torchvision's, and the strides of the others lie elsewhere."""
    path = tmp_path / "ResNet-50-model.caffemodel"
    layers = [
        Layer(name, blobs=[np.ones((4, 3, 7, 7), np.float32)])
        for name in ("conv1", "res2a_branch1", "res2a_branch2a")
    ]
    path.write_bytes(caffemodel(layers, "plain"))
    with pytest.raises(
        ValueError, match=r"strides in the 1x1 convolutions .* torchvision:resnet50"
    ):
        weights.load(path)


def test_a_wide_resnet_has_the_names_and_other_shapes(tmp_path):
    """wide_resnet50_2 and resnext50_32x4d."""
    from safetensors.numpy import save_file

    arrays = state_dicts.resnet("resnet50", 2)
    for name in arrays:
        if name == "layer1.0.conv1.weight":
            arrays[name] = np.ones((4, 2, 1, 1), np.float32)
        if name.startswith("layer1.0.bn1") and arrays[name].ndim:
            arrays[name] = np.ones(4, np.float32)
    save_file(arrays, tmp_path / "w.safetensors")
    with pytest.raises(ValueError, match="are of none of the backbones"):
        fcn_jax.load(tmp_path / "w.safetensors")


@pytest.mark.parametrize("bands", [1, 2, 4])
def test_a_grey_photograph_is_to_fewer_bands_what_it_is_to_rgb(bands, rng):
    """The first layer, away from the border; of torchvision's weights, and of Caffe's.

    The plain sum of the kernels would be 10 % off, their mean a third of it. Of four equal bands
    the response keeps its size.
    """
    for way in (Preprocessing("rgb", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), 1 / 255), CAFFE):
        three = weights.Weights(
            {
                "conv1/kernel": rng.normal(size=(7, 7, 3, 5)).astype(np.float32),
                "conv1/bias": rng.normal(size=5).astype(np.float32),
            },
            Inputs.of(way),
        )
        shapes = {"conv1": {"kernel": np.zeros((7, 7, bands, 5)), "bias": np.zeros(5)}}
        few, report = weights.transplant(shapes, three)
        assert report.widened == ("conv1/kernel",)
        grey = rng.integers(0, 256, (1, 7, 7, 1), np.uint8)

        def response(arrays, way, number, grey=grey):
            x = np.asarray(way.apply(np.repeat(grey, number, axis=3)), float)
            return np.einsum("bhwc,hwco->o", x, arrays["kernel"]) + arrays["bias"]

        truth = response(weights.unflatten(three)["conv1"], way, 3)
        got = response(few["conv1"], way.for_images(bands), bands)
        close = 1e-4 if bands < 3 else 0.1
        np.testing.assert_allclose(got, truth, atol=close * np.abs(truth).max())


# ======================================================================== tables


def test_where_a_dilated_resnet_dilates():
    """torchvision's first blocks dilate as the stage before did."""
    layers = BACKBONES["resnet50_dilated"]("same", 1.0, 1).layers
    windows = {layer.name: layer.window for layer in layers if isinstance(layer, Conv)}
    for block, dilation in {
        **dict.fromkeys(("layer1_0", "layer2_0", "layer2_3", "layer3_0"), 1),
        **dict.fromkeys(("layer3_1", "layer3_5", "layer4_0"), 2),
        **dict.fromkeys(("layer4_1", "layer4_2"), 4),
    }.items():
        stride = 2 if block == "layer2_0" else 1
        window = Window(3, stride, pad=dilation, dilation=dilation)
        assert windows[f"{block}/conv2"] == window
    geometry = fcn_jax.create_model("fcn_interpolated", backbone="resnet50_dilated").alignment
    assert {geometry.geometry[f"layer{stage}"].stride for stage in (2, 3, 4)} == {8}
    with pytest.raises(ValueError, match="unknown backbone 'resnet18_dilated'; choose one of"):
        fcn_jax.create_model("fcn_interpolated", backbone="resnet18_dilated")


def test_skips_of_resnets():
    alignment = fcn_jax.create_model("fcn8s", backbone="resnet101").alignment
    strides = {name: alignment.geometry[name].stride for name in ("layer4", "layer3", "layer2")}
    assert strides == {"layer4": 32, "layer3": 16, "layer2": 8}
    assert [skip.source for skip in alignment.skips] == ["layer3", "layer2"]


def table(*layers):
    return lambda padding, width, fc_width: Backbone((Conv("stem", 4, Window(3, pad=1)), *layers))


def test_a_sum_of_different_channels_is_refused():
    """Of one channel, it would be added to each."""
    backbone = table(Conv("narrow", 1, Window(1)), Add("sum", ("stem", "narrow")))
    model = fcn_jax.create_model("fcn_interpolated", backbone=backbone)
    with pytest.raises(ValueError, match=r"sum adds maps of different shapes: \(\d+, \d+, 4\)"):
        fcn_jax.models.fcn.abstract_params(model)


def test_a_padded_pool_of_negative_values_is_refused():
    """Zeros around a small image on a large canvas would win."""
    negative = Conv("negative", 4, Window(3, pad=1), relu=False)
    pool = Pool("pool", Window(3, stride=2, pad=1))
    with pytest.raises(ValueError, match="pool takes the largest values of negative, which may"):
        fcn_jax.create_model("fcn32s", backbone=table(negative, pool))
    summed = Add("sum", ("negative", "stem"))
    fcn_jax.create_model("fcn32s", backbone=table(negative, summed, pool))
    with pytest.raises(ValueError, match="of sum, which may"):
        fcn_jax.create_model(
            "fcn32s", backbone=table(negative, Add("sum", ("negative", "stem"), relu=False), pool)
        )


def test_a_block_starts_as_its_shortcut():
    """Without normalisation a deep sum of random branches would grow with every block."""
    model = fcn_jax.create_model("fcn32s", backbone="resnet18", width=1 / 16)
    names = ["layer1_0/conv2/kernel", "layer2_0/conv1/kernel", "layer2_0/downsample/kernel"]
    values = fcn_jax.models.fcn.initial_params(model, jax.random.key(0), names)
    assert [bool(np.asarray(values[name]).any()) for name in names] == [False, True, True]
