"""Writing weights and reading them back."""

from __future__ import annotations

import functools
import inspect
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import state_dicts

from fcn_jax import Preprocessing, create_model, weights
from fcn_jax.geometry import Window
from fcn_jax.models.backbones import Backbone, Conv, Pool
from fcn_jax.models.fcn import abstract_params
from fcn_jax.models.inputs import Inputs
from fcn_jax.weights import Weights, flatten, load, save

SUFFIXES = [".npz", ".safetensors", ".pth"]
RGB = Inputs.of(Preprocessing("rgb", (0.1, 0.2, 0.3), (0.4, 0.5, 0.6), 1 / 255))


def params(seed: int = 0) -> dict[str, dict[str, np.ndarray]]:
    """Every kind of array, with the names of several networks."""
    rng = np.random.default_rng(seed)
    shapes = {
        "conv1_1": (3, 3, 3, 4),
        "inception_3a/5x5_reduce": (1, 1, 4, 2),
        "fc6": (12, 5),
        "score_fr_sem": (1, 1, 5, 7),
        "upscore2_sem": (4, 4, 7, 6),
    }
    tree = {name: {"kernel": rng.normal(size=s).astype(np.float32)} for name, s in shapes.items()}
    for name, shape in shapes.items():
        if not name.startswith("up"):
            tree[name]["bias"] = rng.normal(size=shape[-1]).astype(np.float32)
    return tree


def assert_equal(loaded: Weights, tree) -> None:
    flat = flatten(tree)
    assert set(loaded) == set(flat)
    for name, value in flat.items():
        assert loaded[name].dtype == np.float32
        assert loaded[name].shape == value.shape
        assert loaded[name].tobytes("C") == np.asarray(value).tobytes("C"), name


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("inputs", [None, Inputs.of(Preprocessing()), RGB])
def test_round_trip(tmp_path, suffix, inputs):
    path = tmp_path / f"weights{suffix}"
    save(path, params(), inputs=inputs)
    assert_equal(load(path), params())
    assert load(path).inputs == inputs
    assert os.listdir(tmp_path) == [path.name]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_several_inputs(tmp_path, suffix):
    depth = Preprocessing("rgb", (7.844,), (1.0,), log=True)
    inputs = Inputs.of(
        {"color": {"image": Preprocessing("rgb"), "depth": depth}, "hha": {"hha": Preprocessing()}}
    )
    save(tmp_path / f"weights{suffix}", params(), inputs=inputs)
    assert load(tmp_path / f"weights{suffix}").inputs == inputs


@pytest.mark.parametrize("kind", ["npz", "safetensors", "pytorch-fcn"])
def test_any_name_and_any_memory_order(tmp_path, kind):
    """Told by content; flat and jax arrays; transposed views; bfloat16, which float32 holds."""
    flat = flatten(params())
    flat["fc6/kernel"] = np.asfortranarray(flat["fc6/kernel"])
    flat["conv1_1/kernel"] = jnp.asarray(flat["conv1_1/kernel"])
    flat["score_fr_sem/bias"] = jnp.asarray(flat["score_fr_sem/bias"], jnp.bfloat16)
    save(tmp_path / "weights.of.mine", flat, kind, RGB)
    loaded = load(tmp_path / "weights.of.mine")
    assert_equal(loaded, {n: np.asarray(a, np.float32) for n, a in flat.items()})
    loaded.trained_on = frozenset(f"{number:016x}" for number in range(50_000))
    save(tmp_path / "again", loaded, kind)  # with the inputs and the digests that they carry
    assert load(tmp_path / "again").inputs == loaded.inputs == RGB
    assert load(tmp_path / "again").trained_on == loaded.trained_on


def test_numpy_reads_the_npz(tmp_path):
    save(tmp_path / "a.npz", params())
    with np.load(tmp_path / "a.npz") as archive:
        for name, value in flatten(params()).items():
            np.testing.assert_array_equal(archive[name], value)


def test_the_library_reads_the_safetensors(tmp_path):
    library = pytest.importorskip("safetensors.numpy")
    save(tmp_path / "a.safetensors", params())
    loaded = library.load_file(tmp_path / "a.safetensors")
    assert set(loaded) == set(flatten(params()))
    for name, value in flatten(params()).items():
        np.testing.assert_array_equal(loaded[name], value)


@pytest.mark.parametrize("mapped", [False, True])
def test_pytorch_loads_the_state_dict(tmp_path, mapped):
    torch = pytest.importorskip("torch")
    save(tmp_path / "a.pth", params(), inputs=RGB)
    state = torch.load(tmp_path / "a.pth", weights_only=True, mmap=mapped)
    assert list(state) == [
        name.replace("/kernel", ".weight").replace("/bias", ".bias") for name in flatten(params())
    ]
    tree = params()
    for layer, axes in (("conv1_1", (3, 2, 0, 1)), ("upscore2_sem", (2, 3, 0, 1)), ("fc6", (1, 0))):
        tensor = state[f"{layer}.weight"]
        np.testing.assert_array_equal(tensor.numpy(), tree[layer]["kernel"].transpose(axes))
        assert tensor.is_contiguous()
        assert tensor.data_ptr() % 64 == 0 or not mapped


def test_pytorch_loads_it_into_a_module(tmp_path):
    """With ``_metadata`` of ours in the dictionary, strictly."""
    torch = pytest.importorskip("torch")
    net = torch.nn.Sequential()
    net.conv1_1 = torch.nn.Conv2d(3, 4, 3)
    net.upscore = torch.nn.ConvTranspose2d(4, 4, 8, stride=4, bias=False)
    tree = {
        "conv1_1": params()["conv1_1"],
        "upscore": {"kernel": np.random.default_rng(1).normal(size=(8, 8, 4, 4)).astype("f4")},
    }
    save(tmp_path / "a.pth", tree, inputs=RGB)
    result = net.load_state_dict(torch.load(tmp_path / "a.pth", weights_only=True), strict=True)
    assert not result.missing_keys
    assert not result.unexpected_keys
    # What PyTorch saves again is what was there.
    torch.save(net.state_dict(), tmp_path / "b.pth")
    assert_equal(load(tmp_path / "b.pth"), tree)


@pytest.mark.parametrize("name", ["fcn32s", "fcn16s", "fcn8s"])
def test_pytorch_fcns_state_dict_bit_for_bit(tmp_path, name):
    """Theirs, read and written again, is theirs."""
    torch = pytest.importorskip("torch")
    arrays = state_dicts.pytorch_fcn(name)
    torch.save({n: torch.from_numpy(a) for n, a in arrays.items()}, tmp_path / "theirs.pth")
    save(tmp_path / "ours.pth", load(tmp_path / "theirs.pth"))
    again = torch.load(tmp_path / "ours.pth", weights_only=True)
    assert set(again) == set(arrays)
    for key, value in arrays.items():
        np.testing.assert_array_equal(again[key].numpy(), value)


def own_backbone(padding, width, fc_width):
    """With names that no published network has."""
    halve = Window(2, stride=2, ceil=True)
    layers = (Conv("stem", 4, Window(3, pad=1)), Pool("half", halve), Pool("quarter", halve))
    return Backbone((*layers, Conv("top", fc_width, Window(3, pad=1))), skips=("half",))


NETWORKS = {
    "fcn8s": ("fcn8s", {}),
    "classifier": ("classifier", {"backbone": "vgg11"}),
    "alexnet": ("fcn32s", {"backbone": "alexnet"}),
    "googlenet": ("fcn16s", {"backbone": "googlenet"}),
    "heads": ("fcn16s", {"num_classes": {"sem": 4, "geo": 3}}),
    "inputs": ("fcn32s", {"inputs": {"color": 3, "hha": 3}}),
    "own backbone": ("fcn16s", {"backbone": own_backbone}),
}


@functools.cache
def shapes_of(name):
    decoder, options = NETWORKS[name]
    model = create_model(decoder, **{"num_classes": 4, "width": 0.03, "fc_width": 6, **options})
    return abstract_params(model)


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("name", NETWORKS)
def test_whole_networks(tmp_path, name, suffix):
    shapes = shapes_of(name)
    rng = np.random.default_rng(0)
    tree = jax.tree.map(lambda s: rng.standard_normal(s.shape, np.float32), shapes)
    save(tmp_path / f"net{suffix}", tree)
    loaded = load(tmp_path / f"net{suffix}")
    assert_equal(loaded, tree)
    back, report = weights.transplant(shapes, loaded)
    assert report.left == report.unused == report.reshaped == ()
    assert jax.tree.all(jax.tree.map(np.array_equal, back, tree))


def test_a_failed_save_leaves_the_old_file(tmp_path):
    path = tmp_path / "weights.pth"
    save(path, params())
    before = path.read_bytes()
    dotted = {"conv1_1/kernel": np.zeros((1, 1, 1, 1)), "a.b/kernel": np.zeros((1, 1, 1, 1))}
    with pytest.raises(ValueError, match=r"hold no dot.*a\.b\.weight"):
        save(path, dotted)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == [path.name]


def test_all_that_cannot_be_saved_in_one_message(tmp_path):
    arrays = {
        "a/kernel": np.full((1, 1, 1, 1), np.nan, np.float32),
        "b/gamma": np.zeros(3, np.float32),
        "kernel": np.zeros((2, 2), np.float32),
        "c/bias": np.array([1 / 3]),
        "d/bias": np.zeros((2, 2), np.float32),
        "e/bias": np.array([0.5]),
    }
    with pytest.raises(ValueError, match="cannot save") as caught:
        save(tmp_path / "a.npz", arrays)
    text = str(caught.value)
    for part in ("a/kernel: NaN", "b/gamma (3,): expected", "kernel (2, 2): ", "d/bias (2, 2)"):
        assert part in text
    assert "c/bias: float64 values that float32 cannot hold" in text
    assert "e/bias" not in text
    assert not os.listdir(tmp_path)


def test_an_unknown_kind(tmp_path):
    with pytest.raises(ValueError, match=r"a\.bin; end it with one of \.npz"):
        save(tmp_path / "a.bin", params())
    with pytest.raises(ValueError, match="kind as one of npz, safetensors, pytorch-fcn"):
        inspect.unwrap(save)(tmp_path / "a.npz", params(), kind="h5")  # without its checks of types
