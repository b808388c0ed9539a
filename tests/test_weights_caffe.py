"""Reading `.caffemodel` files, written here from the numbers of caffe.proto."""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from caffe_files import Layer, caffemodel, chunk, number

from fcn_jax import Inputs, Preprocessing
from fcn_jax.weights import caffe, load

RNG = np.random.default_rng(0)


def normal(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape, np.float32)


LAYERS = [
    Layer("data", "Data"),
    Layer("conv1", "Convolution", [normal(6, 3, 5, 4), normal(6)]),
    Layer("relu1", "ReLU"),
    Layer("conv2", "Convolution", [normal(4, 3, 3, 3), normal(4)], group=2),
    Layer("inception_3a/1x1", "Convolution", [normal(4, 4, 1, 1)]),
    Layer("ip", "InnerProduct", [normal(7, 24), normal(7)]),
]


def read(tmp_path, content: bytes):
    (tmp_path / "net.weights").write_bytes(content)
    return load(tmp_path / "net.weights")


def by_hand(layers) -> dict[str, np.ndarray]:
    """What the layers hold, written out element by element where it is no plain copy."""
    arrays = {}
    for layer in layers:
        if not layer.blobs:
            continue
        blob = layer.blobs[0]
        if blob.ndim == 2:
            kernel = np.zeros(blob.shape[::-1], np.float32)
            for o, i in np.ndindex(*blob.shape):
                kernel[i, o] = blob[o, i]
        else:
            out, inputs, height, width = blob.shape
            kernel = np.zeros((height, width, inputs, out), np.float32)
            for o, i, y, x in np.ndindex(*blob.shape):
                kernel[y, x, i, o] = blob[o, i, y, x]
        arrays[f"{layer.name}/kernel"] = kernel
        if len(layer.blobs) > 1:
            arrays[f"{layer.name}/bias"] = layer.blobs[1]
    return arrays


@pytest.mark.parametrize("generation", ["plain", "v1", "v0"])
@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("double", [False, True])
@pytest.mark.parametrize(("pieces", "packed"), [(1, True), (3, True), (1, False)])
def test_every_age_of_the_format(tmp_path, generation, legacy, double, pieces, packed):
    content = caffemodel(LAYERS, generation, legacy, double, pieces, packed)
    weights = read(tmp_path, content)
    truth = by_hand(LAYERS)
    assert set(weights) == set(truth)
    for name, value in truth.items():
        assert weights[name].dtype == np.float32
        np.testing.assert_array_equal(weights[name], value, err_msg=name)
    assert weights.kind == "Caffe model"
    assert weights.inputs == Inputs.of(Preprocessing())
    assert weights.skipped == ()


def test_the_library_writes_what_is_read(tmp_path):
    """protobuf itself as the writer, from a schema given here."""
    pytest.importorskip("google.protobuf")
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

    field = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(name="net.proto", syntax="proto2")
    for message, fields in {
        "Shape": [("dim", 1, field.TYPE_INT64, True)],
        "Blob": [("shape", 7, "Shape", False), ("data", 5, field.TYPE_FLOAT, True)],
        "Layer": [
            ("name", 1, field.TYPE_STRING, False),
            ("type", 2, field.TYPE_STRING, False),
            ("blobs", 7, "Blob", True),
        ],
        "Net": [("name", 1, field.TYPE_STRING, False), ("layer", 100, "Layer", True)],
    }.items():
        described = file.message_type.add(name=message)
        for name, number_, kind, repeated in fields:
            added = described.field.add(name=name, number=number_, label=3 if repeated else 1)
            if isinstance(kind, str):
                added.type, added.type_name = field.TYPE_MESSAGE, kind
            else:
                added.type = kind
                added.options.packed = repeated
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    net = message_factory.GetMessageClass(pool.FindMessageTypeByName("Net"))(name="a network" * 40)
    values = normal(2, 3, 4, 5)
    layer = net.layer.add(name="conv", type="Convolution")
    layer.blobs.add(data=values.ravel().tolist(), shape={"dim": values.shape})
    weights = read(tmp_path, net.SerializeToString())
    np.testing.assert_array_equal(weights["conv/kernel"], values.transpose(2, 3, 1, 0))


@pytest.mark.parametrize("generation", ["plain", "v1"])
@pytest.mark.parametrize(("group", "inputs", "outputs"), [(1, 4, 6), (2, 4, 6), (5, 5, 5)])
def test_a_deconvolution_adds_its_kernel_to_the_output(
    tmp_path, generation, group, inputs, outputs
):
    """Caffe's definition in loops, with groups, against our transposed convolution."""
    weight = normal(inputs, outputs // group, 4, 4)
    layer = Layer("upscore", "Deconvolution", [weight], group=group)
    kernel = read(tmp_path, caffemodel([layer], generation))["upscore/kernel"]
    assert kernel.shape == (4, 4, inputs, outputs)

    maps = normal(inputs, 3, 2)
    truth = np.zeros((outputs, 2 * 2 + 4, 2 * 1 + 4))
    for i, o, y, x in itertools.product(range(inputs), range(outputs), range(3), range(2)):
        part = outputs // group
        if i * group // inputs == o // part:
            patch = truth[o, 2 * y : 2 * y + 4, 2 * x : 2 * x + 4]
            patch += maps[i, y, x] * weight[i, o % part]

    from fcn_jax.ops import conv_transpose

    out = conv_transpose(jnp.asarray(maps.transpose(1, 2, 0))[None], jnp.asarray(kernel), 2)[0]
    np.testing.assert_allclose(np.transpose(out, (2, 0, 1)), truth, atol=1e-5)


def test_a_grouped_convolution_is_that_of_lax(tmp_path):
    weight = normal(6, 2, 3, 3)
    layer = Layer("conv2", "Convolution", [weight, normal(6)], group=2)
    kernel = read(tmp_path, caffemodel([layer]))["conv2/kernel"]
    maps = normal(4, 5, 5)
    halves = [
        np.array(
            [
                [
                    [
                        (weight[o] * maps[part * 2 : part * 2 + 2, y : y + 3, x : x + 3]).sum()
                        for x in range(3)
                    ]
                    for y in range(3)
                ]
                for o in range(part * 3, part * 3 + 3)
            ]
        )
        for part in range(2)
    ]
    out = jax.lax.conv_general_dilated(
        jnp.asarray(maps.transpose(1, 2, 0))[None],
        jnp.asarray(kernel),
        (1, 1),
        "VALID",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=2,
        precision="highest",
    )[0]
    np.testing.assert_allclose(np.transpose(out, (2, 0, 1)), np.concatenate(halves), atol=1e-5)


def test_a_transposed_dense_layer(tmp_path):
    weight = normal(5, 3)
    layer = Layer("ip", "InnerProduct", [weight, normal(3)], transpose=True)
    np.testing.assert_array_equal(read(tmp_path, caffemodel([layer]))["ip/kernel"], weight)


def test_the_four_channel_layer_has_its_usual_name(tmp_path):
    layer = Layer("conv1_1_bgrd", "Convolution", [normal(4, 4, 3, 3), normal(4)])
    assert set(read(tmp_path, caffemodel([layer]))) == {"conv1_1/kernel", "conv1_1/bias"}


def test_other_layers_with_arrays_are_named(tmp_path):
    others = [
        Layer("scale_pool3", "Scale", [normal(1)]),
        Layer("bn1", "BatchNorm", [normal(4), normal(4), normal(1)]),
    ]
    weights = read(tmp_path, caffemodel([*LAYERS, *others]))
    assert set(weights) == set(by_hand(LAYERS))
    assert weights.skipped == ("scale_pool3 (Scale, 1 arrays)", "bn1 (BatchNorm, 3 arrays)")


def test_all_problems_in_one_message(tmp_path):
    layers = [
        Layer("a", "Convolution", [normal(4, 3, 3)]),
        Layer("b", "Convolution", [normal(4, 3, 3, 3), normal(5)]),
        Layer("c", "InnerProduct", [normal(2, 2, 3)]),
        Layer("d", "Deconvolution", [normal(3, 1, 2, 2)], group=2),
        Layer("e", "Convolution", [normal(1, 1, 1, 1)] * 3),
        Layer("f", "Deconvolution", [normal(9, 1, 1, 1)], group=0),
        Layer("g", "Convolution", [normal(0)]),
        Layer("h", "Convolution", [normal(1, 1, 1, 1)]),
        Layer("h", "Convolution", [normal(1, 1, 1, 1)]),
    ]
    with pytest.raises(ValueError, match=r"net\.weights: layers that cannot be read") as caught:
        read(tmp_path, caffemodel(layers))
    for part in (
        "a (Convolution): has a kernel (4, 3, 3), expected 4 axes",
        "b (Convolution): has 4 outputs and a bias (5,)",
        "c (InnerProduct): has a kernel (2, 2, 3), expected 2 axes",
        "d (Deconvolution): 3 inputs do not divide into 2 groups",
        "e (Convolution): has 3 blobs",
        "f (Deconvolution): 9 inputs do not divide into 0 groups",
        "g (Convolution): a blob (0,) without values",
        "h: two layers of that name",
    ):
        assert part in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (caffemodel(LAYERS[:1]), "without any weights"),
        (caffemodel(LAYERS)[:-5], "claims"),
        (
            chunk(1, "net") + chunk(100, chunk(1, "a") + chunk(7, b"\x2a\xff\xff\xff\xff\x0f")),
            "claims 4294967295",
        ),
        (chunk(1, "net") + chunk(100, number(7, 3)), "field 7 is no message"),
        (chunk(1, "net") + chunk(100, chunk(7, b"")), "without a name"),
        (chunk(1, "net") + b"\xa2\x06\xff\xff\xff", "an integer without an end"),
    ],
)
def test_damage_is_named(tmp_path, content, message):
    with pytest.raises(ValueError, match=rf"net\.weights: .*{message}"):
        read(tmp_path, content)


def test_too_many_fields(tmp_path, monkeypatch):
    assert caffe.MAX_FIELDS <= 300_000  # which take a second
    monkeypatch.setattr(caffe, "MAX_FIELDS", 1000)
    with pytest.raises(ValueError, match="more fields than any network has"):
        read(tmp_path, chunk(1, "net") + number(4, 1) * 1000)


def test_a_kernel_that_disagrees_with_its_shape(tmp_path):
    layer = chunk(1, "conv") + chunk(2, "Convolution")
    shape = chunk(7, chunk(1, b"\xff\xff\xff\xff\x0f" * 4))
    with pytest.raises(ValueError, match=r"conv .*: 8 bytes for a blob \(4294967295, "):
        read(tmp_path, chunk(1, "n") + chunk(100, layer + chunk(7, shape + chunk(5, b"12345678"))))


# ======================================================================== real files


LENET = {
    "conv1/kernel": (5, 5, 1, 20),
    "conv1/bias": (20,),
    "conv2/kernel": (5, 5, 20, 50),
    "conv2/bias": (50,),
    "ip1/kernel": (800, 500),
    "ip1/bias": (500,),
    "ip2/kernel": (500, 10),
    "ip2/bias": (10,),
}


@pytest.mark.parametrize("name", ["lenet_v1", "lenet_v2"])
def test_caffes_own_files_of_two_ages(shared, name):
    path = shared / "weights" / "caffemodels" / f"{name}.caffemodel"
    weights = load(path)
    assert {name: value.shape for name, value in weights.items()} == LENET
    # The kernel's bytes as they lie in the file: field 5, 2000 bytes.
    content = path.read_bytes()
    start = content.index(b"\x2a\xd0\x0f") + 3
    values = np.frombuffer(content[start : start + 2000], "<f4").reshape(20, 1, 5, 5)
    for o, y, x in [(0, 0, 0), (0, 0, 1), (0, 1, 0), (7, 3, 2), (19, 4, 4)]:
        assert weights["conv1/kernel"][y, x, 0, o] == values[o, 0, y, x]


def test_caffes_own_deconvolutions(shared):
    weights = load(shared / "weights" / "caffemodels" / "superres_deconv.caffemodel")
    assert weights["upsample/deconv/kernel"].shape == (3, 3, 32, 32)
    # The other transposed convolution repeats each pixel, as its name says.
    np.testing.assert_array_equal(weights["nearest/kernel"], np.ones((2, 2, 1, 1)))
