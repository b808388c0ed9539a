"""Reading PyTorch's files: what PyTorch writes, and what it would be foolish to run."""

from __future__ import annotations

import collections
import os
import pickle
import struct
import subprocess
import sys
import zipfile

import numpy as np
import pytest
import state_dicts

from fcn_jax import Inputs, Preprocessing
from fcn_jax.weights import load

torch = pytest.importorskip("torch")

IMAGENET = Inputs.of(Preprocessing("rgb", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), 1 / 255))


def tensors(arrays):
    return collections.OrderedDict((n, torch.from_numpy(np.array(a))) for n, a in arrays.items())


def saved(tmp_path, value, legacy=False, **options):
    path = tmp_path / "weights.bin"
    torch.save(value, path, _use_new_zipfile_serialization=not legacy, **options)
    return path


def in_our_layout(weight: np.ndarray) -> np.ndarray:
    return weight.T if weight.ndim == 2 else np.moveaxis(weight, (0, 1), (3, 2))


def assert_layers_are(weights, arrays, names) -> None:
    """Weights hold exactly these layers of a state dict, under our names."""
    assert set(weights) == {f"{n}/{kind}" for n in names.values() for kind in ("kernel", "bias")}
    for theirs, ours in names.items():
        expected = in_our_layout(arrays[f"{theirs}.weight"])
        np.testing.assert_array_equal(weights[f"{ours}/kernel"], expected)
        np.testing.assert_array_equal(weights[f"{ours}/bias"], arrays[f"{theirs}.bias"])
        assert weights[f"{ours}/kernel"].dtype == np.float32


# ======================================================================== networks

TORCHVISION = {"classifier.0": "fc6", "classifier.3": "fc7", "classifier.6": "fc8"}
TIMM = {"pre_logits.fc1": "fc6", "pre_logits.fc2": "fc7", "head.fc": "fc8"}


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("origin", ["torchvision", "timm"])
@pytest.mark.parametrize("name", ["vgg11", "vgg13", "vgg16", "vgg19"])
def test_vgg(tmp_path, name, origin, legacy):
    arrays = state_dicts.vgg(name, timm=origin == "timm")
    weights = load(saved(tmp_path, tensors(arrays), legacy))
    names = state_dicts.vgg_names(name) | (TIMM if origin == "timm" else TORCHVISION)
    assert_layers_are(weights, arrays, names)
    assert weights.kind == f"{origin} {name}"
    assert weights.inputs == IMAGENET
    assert weights.skipped == ()


@pytest.mark.parametrize("name", ["vgg11", "vgg13", "vgg16", "vgg19"])
def test_a_trunk_alone(tmp_path, name):
    arrays = state_dicts.vgg(name, classifier=False)
    weights = load(saved(tmp_path, tensors(arrays)))
    assert_layers_are(weights, arrays, state_dicts.vgg_names(name))


def test_alexnet(tmp_path):
    arrays = state_dicts.alexnet()
    weights = load(saved(tmp_path, tensors(arrays)))
    assert_layers_are(weights, arrays, state_dicts.ALEXNET_NAMES)
    assert (weights.kind, weights.inputs) == ("torchvision alexnet", IMAGENET)


def batch_norm_of(arrays, convolution, norm, epsilon, size):
    """PyTorch's convolution and batch norm at inference, on a random map."""
    weight = torch.from_numpy(arrays[f"{convolution}.weight"]).double()
    bias = arrays.get(f"{convolution}.bias")
    maps = torch.from_numpy(np.random.default_rng(1).normal(size=(1, weight.shape[1], size, size)))
    out = torch.nn.functional.conv2d(
        maps, weight, None if bias is None else torch.from_numpy(bias).double()
    )
    mean, variance, gamma, beta = (
        torch.from_numpy(arrays[f"{norm}.{name}"]).double()
        for name in ("running_mean", "running_var", "weight", "bias")
    )
    out = torch.nn.functional.batch_norm(out, mean, variance, gamma, beta, eps=epsilon)
    return maps, out.numpy()


def convolved(maps, weights, layer):
    kernel = np.moveaxis(weights[f"{layer}/kernel"], (3, 2), (0, 1)).astype(np.float64)
    bias = torch.from_numpy(weights[f"{layer}/bias"].astype(np.float64))
    return torch.nn.functional.conv2d(maps, torch.from_numpy(kernel), bias).numpy()


@pytest.mark.parametrize("name", ["vgg11_bn", "vgg13_bn", "vgg16_bn", "vgg19_bn"])
def test_vgg_with_batch_norm_computes_the_same_without(tmp_path, name):
    arrays = state_dicts.vgg(name)
    weights = load(saved(tmp_path, tensors(arrays)))
    assert weights.kind == f"torchvision {name}"
    assert weights.skipped == ()
    for theirs, ours in state_dicts.vgg_names(name).items():
        index = int(theirs.removeprefix("features."))
        maps, truth = batch_norm_of(arrays, theirs, f"features.{index + 1}", 1e-5, 4)
        np.testing.assert_allclose(convolved(maps, weights, ours), truth, rtol=1e-5, atol=1e-4)


def test_googlenet_computes_the_same_without_batch_norm(tmp_path):
    arrays = state_dicts.googlenet()
    weights = load(saved(tmp_path, tensors(arrays)))
    names = state_dicts.googlenet_names()
    layers = {name.rpartition("/")[0] for name in weights}
    assert layers == {ours for ours, _ in names.values()} | {"loss3/classifier"}
    for theirs, (ours, size) in names.items():
        maps, truth = batch_norm_of(arrays, f"{theirs}.conv", f"{theirs}.bn", 1e-3, size + 1)
        np.testing.assert_allclose(convolved(maps, weights, ours), truth, rtol=1e-5, atol=1e-4)
    np.testing.assert_array_equal(weights["loss3/classifier/kernel"], arrays["fc.weight"].T)
    assert weights.skipped == ("aux1 (10 arrays)", "aux2 (10 arrays)")
    # RGB from -1 to 1: what torchvision's transform_input makes of its usual normalisation.
    assert weights.inputs == Inputs.of(Preprocessing("rgb", (0.5,) * 3, (0.5,) * 3, 1 / 255))


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("name", ["fcn32s", "fcn16s", "fcn8s"])
def test_pytorch_fcn(tmp_path, name, legacy):
    arrays = state_dicts.pytorch_fcn(name)
    weights = load(saved(tmp_path, tensors(arrays), legacy))
    assert set(weights) == {
        n.replace(".weight", "/kernel").replace(".bias", "/bias") for n in arrays
    }
    up_layers = state_dicts.FCN_LAYERS[name][1]
    for theirs, value in arrays.items():
        layer, _, kind = theirs.partition(".")
        if kind == "bias":
            np.testing.assert_array_equal(weights[f"{layer}/bias"], value)
        elif layer in up_layers:  # (in, out, height, width)
            np.testing.assert_array_equal(
                weights[f"{layer}/kernel"], np.moveaxis(value, (0, 1), (2, 3))
            )
        else:
            np.testing.assert_array_equal(weights[f"{layer}/kernel"], in_our_layout(value))
    assert name in weights.kind
    assert weights.inputs == Inputs.of(Preprocessing())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("legacy", [False, True])
def test_other_floats(tmp_path, dtype, legacy):
    state = {n: t.to(dtype) for n, t in tensors(state_dicts.vgg("vgg11")).items()}
    weights = load(saved(tmp_path, state, legacy))
    truth = state["features.0.weight"].float().numpy()
    np.testing.assert_array_equal(weights["conv1_1/kernel"], in_our_layout(truth))


@pytest.mark.parametrize("name", ["vgg16", "googlenet", "timm"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_safetensors_as_the_library_writes_them(tmp_path, name, dtype):
    library = pytest.importorskip("safetensors.torch")
    arrays = {
        "vgg16": lambda: state_dicts.vgg("vgg16"),
        "googlenet": state_dicts.googlenet,
        "timm": lambda: state_dicts.vgg("vgg16", timm=True),
    }[name]()
    state = {n: t if n.endswith("tracked") else t.to(dtype) for n, t in tensors(arrays).items()}
    library.save_file(state, tmp_path / "model.bin", metadata={"format": "pt"})
    loaded, truth = load(tmp_path / "model.bin"), load(saved(tmp_path, state))
    assert loaded.kind == truth.kind
    assert loaded.inputs == truth.inputs
    assert loaded.skipped == truth.skipped
    assert set(loaded) == set(truth)
    for key, value in truth.items():
        np.testing.assert_array_equal(loaded[key], value)


# ======================================================================== how it is saved


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize(
    ("wrapper", "prefix"),
    [
        ("state_dict", "module."),
        ("model_state_dict", "_orig_mod.module."),
        ("model_state", "model."),
        ("model", "encoder."),
        ("params", "backbone."),
        ("weights", "net."),
    ],
)
def test_checkpoints_of_training_scripts(tmp_path, wrapper, prefix, legacy):
    """With an optimiser's state, numbers and numpy scalars beside the state dict."""
    arrays = state_dicts.vgg("vgg11")
    state = collections.OrderedDict((prefix + n, t) for n, t in tensors(arrays).items())
    parameter = torch.nn.Parameter(torch.ones(3))
    optimizer = torch.optim.SGD([parameter], lr=0.1, momentum=0.9)
    parameter.sum().backward()
    optimizer.step()
    checkpoint = {
        "epoch": 3,
        "arch": "VGG",
        wrapper: state,
        "optim_state_dict": optimizer.state_dict(),
        "best_mean_iu": np.float64(0.5),
        "other": [1, (2.5, None), {3: True}, 2**40, torch.device("cpu")],
    }
    weights = load(saved(tmp_path, checkpoint, legacy))
    assert_layers_are(weights, arrays, state_dicts.vgg_names("vgg11") | TORCHVISION)


def test_a_prefix_of_some_names_is_not_taken_off(tmp_path):
    names = tensors(state_dicts.vgg("vgg11"))
    half = {("module." if i % 2 else "") + name: names[name] for i, name in enumerate(names)}
    message = r"11 of 22 names begin with module\. \(module\.features\.0\.bias\), others do not"
    with pytest.raises(ValueError, match=message):
        load(saved(tmp_path, half, False))


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "model."])
def test_a_prefix_of_the_classifier_alone(tmp_path, prefix):
    """Where the rest would be read as a backbone without a classifier."""
    names = tensors(state_dicts.vgg("vgg16"))
    some = {(prefix if "classifier" in n else "") + n: tensor for n, tensor in names.items()}
    with pytest.raises(ValueError, match=rf"begin with {prefix} \({prefix}classifier\.0\.weight"):
        load(saved(tmp_path, some, False))


def test_nothing_is_taken_off_inside_a_name(tmp_path):
    arrays = state_dicts.vgg("vgg16")
    inside = {name.replace("features.", "features.module."): a for name, a in arrays.items()}
    with pytest.raises(ValueError, match=r"unknown network \(features\.module\.0\.weight"):
        load(saved(tmp_path, tensors(inside), False))


AVERAGES = [("state_dict", "state_dict_ema"), ("model", "model_ema"), ("params", "params_ema")]


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize(("raw", "averaged"), AVERAGES)
def test_averaged_weights_are_taken_and_told(tmp_path, capsys, raw, averaged, legacy):
    """As timm does; `n_averaged` is of PyTorch's AveragedModel."""
    arrays = state_dicts.vgg("vgg16")
    plus_one = {name: array + 1 for name, array in arrays.items()}
    ema = {f"module.{name}": tensor for name, tensor in tensors(plus_one).items()}
    ema["n_averaged"] = torch.tensor(5)
    checkpoint = {raw: tensors(arrays), averaged: ema, "epoch": 3}
    weights = load(saved(tmp_path, checkpoint, legacy))
    assert_layers_are(weights, plus_one, state_dicts.vgg_names("vgg16") | TORCHVISION)
    text = f"the averaged weights {averaged} are taken, not {raw}"
    assert weights.skipped == (text,)
    assert text in capsys.readouterr().err


@pytest.mark.parametrize(
    "keys", [("model", "net"), ("state_dict_ema", "model_ema"), ("state_dict", "weights")]
)
def test_several_sets_are_refused(tmp_path, keys):
    state = tensors(state_dicts.vgg("vgg16"))
    with pytest.raises(ValueError, match="several sets of weights: " + ", ".join(keys)):
        load(saved(tmp_path, dict.fromkeys(keys, state), False))


def test_what_holds_no_tensors_is_no_set(tmp_path):
    arrays = state_dicts.vgg("vgg16")
    checkpoint = {"params": {"lr": 0.1}, "ema": None, "model_ema": {}, "net": tensors(arrays)}
    checkpoint = {"state_dict": {"model": checkpoint}}
    weights = load(saved(tmp_path, checkpoint, False))
    assert_layers_are(weights, arrays, state_dicts.vgg_names("vgg16") | TORCHVISION)


def test_a_dictionary_that_holds_itself(tmp_path):
    checkpoint = {}
    checkpoint["model"] = {"model": checkpoint}
    with pytest.raises(ValueError, match="a dictionary without tensors"):
        load(saved(tmp_path, checkpoint, False))


@pytest.mark.parametrize("legacy", [False, True])
def test_parameters_and_shared_and_strided_storages(tmp_path, legacy):
    arrays = state_dicts.vgg("vgg11")
    state = tensors(arrays)
    state["features.0.weight"] = torch.nn.Parameter(state["features.0.weight"])
    # A view of a larger storage from its middle on, with the axes in another order.
    kernel = state["features.3.weight"]
    wide = torch.zeros(kernel.shape[1], 3, 3, kernel.shape[0] + 5)
    view = wide.permute(3, 0, 1, 2)[2:-3]
    view.copy_(kernel)
    state["features.3.weight"] = view
    # Two layers in one storage.
    both = torch.cat([state["features.0.bias"], state["features.3.bias"]])
    size = len(state["features.0.bias"])
    state["features.0.bias"], state["features.3.bias"] = both[:size], both[size:]
    weights = load(saved(tmp_path, state, legacy))
    assert_layers_are(weights, arrays, state_dicts.vgg_names("vgg11") | TORCHVISION)


def test_tensors_as_python_2_and_old_pytorch_wrote_them(tmp_path):
    """Names of ``_rebuild_tensor``, a Parameter that is called and then set, text as bytes."""
    arrays = state_dicts.vgg("vgg11", classifier=False)

    def text(value: str) -> bytes:
        return b"U" + bytes([len(value)]) + value.encode()

    def integer(value: int) -> bytes:
        return b"J" + struct.pack("<i", value)

    def integers(values) -> bytes:
        return b"(" + b"".join(map(integer, values)) + b"t"

    pairs = b""
    for key, (name, value) in enumerate(arrays.items()):
        strides = [s // 4 for s in value.strides]
        storage = text("storage") + b"ctorch.cuda\nFloatStorage\n" + text(str(key))
        storage += text("cuda:0") + integer(value.size) + b"N"
        tensor = b"ctorch._utils\n_rebuild_tensor\n((" + storage + b"tQ" + integer(0)
        tensor += integers(value.shape) + integers(strides) + b"tR"
        tensor = b"ctorch.nn.parameter\nParameter\n(" + tensor + b"tR(\x88\x89Ntb"
        pairs += b"]" + b"(" + text(name) + tensor + b"e"
    body = b"ccollections\nOrderedDict\n(](" + pairs + b"etR"
    content = b"".join(
        b"\x80\x02" + part + b"."
        for part in (
            b"\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19",
            b"M\xe9\x03",
            b"}(" + text("little_endian") + b"\x88u",
            body,
            b"](" + b"".join(text(str(key)) for key in range(len(arrays))) + b"e",
        )
    )
    for value in arrays.values():
        content += struct.pack("<q", value.size) + value.tobytes()
    path = tmp_path / "old.pth"
    path.write_bytes(content)
    truth = torch.load(path, map_location="cpu", weights_only=True)  # the test's own check
    np.testing.assert_array_equal(
        truth["features.0.weight"].detach().numpy(), arrays["features.0.weight"]
    )
    assert_layers_are(load(path), arrays, state_dicts.vgg_names("vgg11"))


# ======================================================================== refusals


@pytest.mark.parametrize(
    ("names", "message"),
    [
        # torchvision's DeepLab; a ResNet of detectron2, alone and in a detector, and MSRA's; timm's
        # ResNet-50-D and SE-ResNet.
        (("backbone.conv1.weight", "classifier.0.convs.0.0.weight"), "a segmentation network, but"),
        (("stem.conv1.weight", "res2.0.conv1.weight"), "a ResNet of Caffe or detectron2"),
        (("backbone.bottom_up.res2.0.conv1.weight", "proposal.weight"), "a ResNet of Caffe or det"),
        (("conv1.weight", "res2a_branch2a.weight"), "a ResNet of Caffe or detectron2"),
        (
            ("conv1.0.weight", "layer1.0.conv1.weight", "layer1.0.downsample.1.weight"),
            "another dep",
        ),
        (("conv1.weight", "layer1.0.conv1.weight", "layer1.0.se.fc1.weight"), "another depth"),
        (
            ("backbone.features.0.weight", "head.0.weight"),
            r"save its backbone alone, model\.backbone\.",
        ),
        (("conv1.weight", "layer1.0.conv1.weight", "fc.weight"), "a ResNet of another depth"),
        (("features.0.weight", "features.3.weight"), r"unknown network \(features\.0\.weight"),
        (("encoder.weight",), "known are .*torchvision vgg16.*pytorch-fcn"),
    ],
)
def test_other_networks_are_refused_by_what_they_are(tmp_path, names, message):
    path = saved(tmp_path, {name: torch.zeros(2, 2, 3, 3) for name in names})
    with pytest.raises(ValueError, match=rf"weights\.bin: .*{message}"):
        load(path)


def test_all_that_is_wrong_with_a_network_in_one_message(tmp_path):
    arrays = state_dicts.vgg("vgg16_bn")
    del arrays["features.0.bias"]
    del arrays["features.1.running_var"]
    arrays["features.41.weight"] = np.zeros(3, np.float32)
    arrays["classifier.3.weight"] = np.zeros(3, np.float32)
    with pytest.raises(ValueError, match="a torchvision vgg16_bn with mistakes") as caught:
        load(saved(tmp_path, tensors(arrays)))
    for part in (
        "features.1.running_var is missing",
        "features.41.weight has the shape (3,), expected (16,)",
        "classifier.3.weight has the shape (3,), expected 2 or 4 axes",
    ):
        assert part in str(caught.value)


class Calls:
    """Pickles as a call of a function."""

    def __init__(self, function, *arguments):
        self.function, self.arguments = function, arguments

    def __reduce__(self):
        return self.function, self.arguments


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize(
    ("function", "name"),
    [
        (os.system, r"(posix|nt)\.system"),
        (eval, r"(__builtin__|builtins)\.eval"),
        (getattr, r"(__builtin__|builtins)\.getattr"),
    ],
)
def test_a_pickle_that_calls_something_is_refused_by_name(
    tmp_path, function, name, legacy, protocol
):
    mark = tmp_path / "was here"
    state = tensors(state_dicts.vgg("vgg11"))
    state["hostile"] = Calls(function, f"open({str(mark)!r}, 'w')", "x")
    path = saved(tmp_path, state, legacy, pickle_protocol=protocol)
    with pytest.raises(ValueError, match=rf"weights\.bin: asks for '{name}'.*not run"):
        load(path)
    assert not mark.exists()


def test_a_whole_model_is_refused_with_the_remedy(tmp_path):
    path = saved(tmp_path, torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3)))
    with pytest.raises(ValueError, match=r"asks for 'torch\.nn\..*Save model\.state_dict\(\)"):
        load(path)


def test_a_plain_pickle_is_refused(tmp_path):
    path = tmp_path / "weights.pkl"
    path.write_bytes(pickle.dumps({"conv1_1.weight": np.zeros(3)}))
    with pytest.raises(ValueError, match="a Python pickle of another kind"):
        load(path)


def rewritten(path, **members):
    """An archive of torch.save with some members replaced."""
    with zipfile.ZipFile(path) as archive:
        content = {name: archive.read(name) for name in archive.namelist()}
    folder = next(name for name in content if name.endswith("data.pkl")).removesuffix("data.pkl")
    with zipfile.ZipFile(path, "w") as archive:
        for name, value in content.items():
            changed = members.get(name.removeprefix(folder).replace(".", "_").replace("/", "_"))
            if changed is not None:
                value = changed(value) if callable(changed) else changed
            archive.writestr(name, value)
    return path


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        # The first tensor is (4, 3, 3, 3) with the strides (27, 9, 3, 1).
        (b"(K\x04K\x03K\x03K\x03t", b"(K\x05K\x03K\x03K\x03t", "not within its storage"),
        (b"(K\x1bK\tK\x03K\x01t", b"(K\x1bK\tK\x03J\xff\xff\xff\x7ft", "not within its storage"),
        (b"(K\x1bK\tK\x03K\x01t", b"(K\x00K\x00K\x00J\xff\xff\xff\xfft", "impossible offset"),
        (
            b"(K\x04K\x03K\x03K\x03tq",
            b"(J\x00\x00\x00\x40K\x01K\x01K\x01tq",
            "not within its storage",
        ),
        (b"(K\x1bK\tK\x03K\x01t", b"(K\x1bK\tK\x03t", "a storage, a shape and strides"),
    ],
)
def test_views_beyond_their_storage(tmp_path, old, new, message):
    path = saved(tmp_path, tensors(state_dicts.vgg("vgg11")))

    def change(pickled: bytes) -> bytes:
        assert old in pickled
        return pickled.replace(old, new, 1)

    with pytest.raises(ValueError, match=message):
        load(rewritten(path, data_pkl=change))


def test_an_expanded_element_that_claims_4_gib(tmp_path):
    state = tensors(state_dicts.vgg("vgg11"))
    state["features.0.weight"] = torch.zeros(1).expand(1 << 10, 1 << 10, 1 << 5, 1 << 5)
    with pytest.raises(ValueError, match=r"features\.0\.weight: a view .*storage of 1 numbers"):
        load(saved(tmp_path, state))


def test_a_storage_that_many_tensors_view_whole(tmp_path):
    big = torch.zeros(1 << 20)
    state = {f"t{i}": big for i in range(50)}
    with pytest.raises(ValueError, match=r"tensors of \d+ bytes in a file of"):
        load(saved(tmp_path, state))


def test_big_endian_and_compressed_archives(tmp_path):
    path = saved(tmp_path, tensors(state_dicts.vgg("vgg11")))
    with pytest.raises(ValueError, match="big-endian"):
        load(rewritten(path, byteorder=b"big"))
    path = saved(tmp_path, tensors(state_dicts.vgg("vgg11")))
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    with pytest.raises(ValueError, match="is compressed, which PyTorch never does"):
        load(path)


def test_a_pickle_that_copies_without_end(tmp_path):
    """A hundred bytes that make ten thousand tuples of ten thousand numbers."""
    numbers = b"](" + b"K\x01" * 10_000 + b"eq\x00"
    copies = b"ctorch\nSize\n(h\x00tR" * 10_000
    path = saved(tmp_path, tensors(state_dicts.vgg("vgg11")))
    body = b"\x80\x02" + numbers + copies + b"."
    with pytest.raises(ValueError, match="copies the same values"):
        load(rewritten(path, data_pkl=body))


def test_an_index_that_asks_for_a_large_memo(tmp_path):
    """CPython's own machine reserves 32 GiB for this one opcode."""
    path = saved(tmp_path, tensors(state_dicts.vgg("vgg11")))
    with pytest.raises(ValueError, match="not a dictionary"):
        load(rewritten(path, data_pkl=b"\x80\x02]r\xff\xff\xff\xff."))


def test_a_file_that_is_cut(tmp_path):
    for legacy in (False, True):
        path = saved(tmp_path, tensors(state_dicts.vgg("vgg11")), legacy)
        content = path.read_bytes()
        for part in (0.1, 0.5, 0.999):
            path.write_bytes(content[: int(len(content) * part)])
            with pytest.raises(ValueError, match=r"weights\.bin: "):
                load(path)


def test_nan_is_refused(tmp_path):
    state = tensors(state_dicts.vgg("vgg11"))
    state["features.3.weight"][0, 0, 0, 0] = float("nan")
    state["classifier.0.bias"][0] = float("inf")
    with pytest.raises(ValueError, match=r"NaN or Inf in conv2_1/kernel, fc6/bias"):
        load(saved(tmp_path, state))


def test_importing_the_readers_is_cheap():
    code = "import sys, fcn_jax.weights; print({'torch', 'h5py', 'safetensors'} & set(sys.modules))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "set()"
