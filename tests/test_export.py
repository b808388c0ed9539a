"""What is exported computes the same function in other programs, for any batch and any size."""

from __future__ import annotations

import dataclasses
import itertools
import json
import re
import sys
import zipfile
import zlib
from fractions import Fraction
from pathlib import Path

import jax
import numpy as np
import onnx
import onnxruntime
import pytest
import toy_backbones
from PIL import Image
from random_parameters import random_parameters
from toy_runs import make_run

import fcn_jax
from fcn_jax import cli, exporting
from fcn_jax.canvas import scaled_side
from fcn_jax.data import transforms
from fcn_jax.data.shapes import SHAPES
from fcn_jax.exporting import resizing
from fcn_jax.geometry import Window
from fcn_jax.models.backbones import BACKBONES, PADDINGS, Backbone, Concat, Conv, Pool
from fcn_jax.models.decoders import DECODERS
from fcn_jax.models.fcn import initial_params
from fcn_jax.models.inputs import Inputs, Preprocessing

CANVAS = (97, 131)
SIZES = [(1, 1), (64, 80), (97, 131), (33, 2)]


def two_paths(padding, width, fc_width):
    """The backbone of docs/networks.md: a pooling of stride 3 that rounds up."""
    border = 60 if padding == "reference" else 1
    return Backbone(
        layers=(
            Conv("stem", 32, Window(3, pad=border)),
            Pool("pool1", Window(3, stride=3, ceil=True)),
            Conv("wide", 64, Window(3, pad=1)),
            Conv("narrow", 64, Window(1), source="pool1"),
            Concat("both", sources=("wide", "narrow")),
            Pool("pool2", Window(2, stride=2, ceil=True)),
            Conv("top", fc_width, Window(3, pad=1), dropout=True),
        ),
        skips=("both",),
    )


def gaps(padding, width, fc_width):
    """Poolings of which a window may lie wholly in the padding, and is dropped then."""
    border = 20 if padding == "reference" else 1
    return Backbone(
        layers=(
            Conv("stem", 4, Window(3, pad=border)),
            Pool("pool1", Window(2, stride=2, pad=1, ceil=True)),
            Pool("pool2", Window(2, stride=3, ceil=True)),
            Conv("top", fc_width, Window(9, pad=4)),
        ),
    )


def predictor_of(
    name="fcn16s", backbone=toy_backbones.forked, inputs=None, heads=4, scale=1.0, **fields
):
    """A narrow network with random parameters. All images lie on one canvas: one compilation."""
    if inputs is not None:
        fields["inputs"] = inputs.channels
    small = {"width": 1 / 16, "fc_width": 8, "num_classes": heads}
    model = fcn_jax.create_model(name, backbone=backbone, **(small | fields))
    canvas = fcn_jax.canvas.exactly if model.classifies else CANVAS
    inputs = inputs or Inputs.of(Preprocessing())
    params = random_parameters(model, 0)
    return fcn_jax.Predictor(model, params, inputs, scale=scale, canvas=canvas)


def random_images(predictor, sizes, seed=0):
    """Arrays of what the network reads, by modality, for each size."""
    rng = np.random.default_rng(seed)
    told = exporting.describe(predictor, predictor.model, "labels")["inputs"]
    return [
        {
            name: rng.integers(0, np.iinfo(read["dtype"]).max, (*size, *read["axes"][3:])).astype(
                read["dtype"]
            )
            for name, read in told.items()
        }
        for size in sizes
    ]


def session(path: Path) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def by_head(predictor, result):
    return result if len(predictor.heads) > 1 else {next(iter(predictor.heads)): result}


def assert_equal(predictor, sizes, run, result="logits"):
    """``run`` gives what the predictor gives, for each size and for rows of a batch."""
    images = random_images(predictor, sizes)
    for arrays in images:
        truth = by_head(predictor, predictor.logits(arrays))
        for head, found in run({name: array[None] for name, array in arrays.items()}).items():
            assert found.shape == (1, *truth[head].shape)
            error = np.abs(found[0] - truth[head]).max()
            assert error <= 1e-4 * max(1.0, np.abs(truth[head]).max()), (
                arrays["image"].shape,
                head,
            )


def onnx_runner(predictor, path, result="logits"):
    fcn_jax.export(predictor, path, result=result)
    running = session(path)
    names = [output.name for output in running.get_outputs()]
    return lambda arrays: dict(zip(names, running.run(None, arrays), strict=True))


DEPTH = Preprocessing("rgb", (7.844,), (1.0,), log=True)
BANDS = Preprocessing(
    "bgr", (90.0, 100.0, 110.0, 95.0), (2.0,) * 4, 1 / 2, range=((100, 3000),) * 4, dtype="uint16"
)
CASES = {
    "every layer": {},
    "reference": {"padding": "reference"},
    "stride of 3": {"backbone": two_paths},
    "stride of 3, reference": {"backbone": two_paths, "padding": "reference"},
    "gaps": {"name": "fcn32s", "backbone": gaps},
    "alexnet": {"name": "fcn32s", "backbone": "alexnet", "padding": "reference"},
    "heads": {"backbone": toy_backbones.plain, "heads": {"sem": 3, "geo": 2}},
    "late fusion": {
        "backbone": toy_backbones.plain,
        "inputs": Inputs.of({"color": {"image": Preprocessing()}, "hha": {"hha": Preprocessing()}}),
    },
    "depth": {
        "backbone": toy_backbones.plain,
        "inputs": Inputs.of({"image": {"image": Preprocessing(), "depth": DEPTH}}),
    },
    "bands": {"backbone": toy_backbones.plain, "inputs": Inputs.of(BANDS)},
    "at once": {"name": "fcn8s_atonce", "backbone": toy_backbones.plain, "padding": "reference"},
    "interpolated": {"name": "fcn_interpolated", "backbone": "resnet18"},
}


@pytest.mark.parametrize("case", CASES)
def test_onnx(case, tmp_path):
    predictor = predictor_of(**CASES[case])
    assert_equal(predictor, SIZES, onnx_runner(predictor, tmp_path / "net.onnx"))


USUAL = [
    *(
        ("fcn8s", backbone, padding)
        for backbone in ("vgg16", "googlenet")
        for padding in PADDINGS[:2]
    ),
    *(("fcn32s", backbone, "reference") for backbone in ("alexnet", "alexnet_torchvision")),
    *(("fcn8s", backbone, "same") for backbone in ("resnet18", "googlenet_torchvision")),
    *(("fcn_interpolated", "resnet50_dilated", "same"), ("classifier", "alexnet", "native")),
]


def networks(usual):
    """All networks, of which the usual ones are tested often."""
    marks = {True: pytest.mark.slow, False: pytest.mark.torture}
    every = itertools.product(DECODERS, BACKBONES, ("same", "reference", "native"))
    rows = [pytest.param(*row, marks=marks[row in usual]) for row in every]
    return pytest.mark.parametrize(("name", "backbone", "padding"), rows)


def predictor_of_row(name, backbone, padding):
    """That of a row of `networks`; a row that does not go together is skipped, if not usual."""
    try:
        return predictor_of(name, backbone, padding=padding)
    except ValueError as error:  # no such skips, or scores that cannot be interpolated
        if (name, backbone, padding) in USUAL:
            raise
        pytest.skip(str(error))


@networks(USUAL)
def test_onnx_of_every_network(name, backbone, padding, tmp_path):
    """30 random sizes and the traps; a classifier, which is compiled for each size, fewer."""
    rng = np.random.default_rng(zlib.crc32(f"{name} {backbone} {padding}".encode()))
    classifies = name == "classifier"
    sizes = [(64, 80), (1, 1), *((side, 50) for side in (2, 3, 31, 32, 33, 97))]
    sizes += [tuple(map(int, rng.integers(1, np.add(CANVAS, 1)))) for _ in range(22)]
    predictor = predictor_of_row(name, backbone, padding)
    run = onnx_runner(predictor, tmp_path / "net.onnx")
    assert_equal(predictor, [(64, 80), (1, 1), (230, 241)] if classifies else sizes, run)


def test_rows_of_a_batch_are_independent(tmp_path):
    """One session takes batches of 1, 2 and 5."""
    predictor = predictor_of(name="fcn32s", backbone="alexnet", padding="reference")
    run = onnx_runner(predictor, tmp_path / "net.onnx")
    images = np.stack([each["image"] for each in random_images(predictor, [(33, 40)] * 5)])
    alone = [run({"image": image[None]})["label"][0] for image in images]
    for number in (1, 2, 5):
        together = run({"image": images[:number]})["label"]
        np.testing.assert_allclose(together, np.stack(alone[:number]), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("result", ["labels", "probabilities"])
def test_results_of_onnx(result, tmp_path):
    predictor = predictor_of()
    (image,) = random_images(predictor, [(40, 51)])
    found = onnx_runner(predictor, tmp_path / "net.onnx", result)({"image": image["image"][None]})
    logits = np.sort(predictor.logits(image), axis=-1)
    sure = logits[..., -1] - logits[..., -2] > 1e-4 * np.abs(logits).max()
    assert sure.mean() > 0.99
    if result == "labels":
        assert found["label"].dtype == np.uint8
        assert np.array_equal(found["label"][0][sure], predictor(image)[sure])
    else:
        np.testing.assert_allclose(found["label"][0], predictor.probabilities(image), atol=1e-5)


def test_fixed_transposed_convolutions_are_of_each_class(tmp_path):
    """Those that mix no classes; the others are not."""
    predictor = predictor_of(backbone=toy_backbones.plain)
    params = dict(predictor.variables)
    final = predictor.model.alignment.final
    bilinear = initial_params(predictor.model, jax.random.key(0))[final]
    fixed = fcn_jax.Predictor(predictor.model, {**params, final: bilinear}, canvas=CANVAS)
    run = onnx_runner(fixed, tmp_path / "net.onnx")
    kinds = [n for n in onnx.load(tmp_path / "net.onnx").graph.node if n.op_type == "ConvTranspose"]
    groups = {n.name: next(a.i for a in n.attribute if a.name == "group") for n in kinds}
    assert groups == {"upscore2": 1, final: 4}
    assert_equal(fixed, [(31, 44)], run)


# ================================================================================ the scale

TIES = [(1, 1), (45, 15), (64, 80), (3, 61)]
"""Sizes that are rounded; 0.7 * 45 is 31.5 but for floats."""

SMALL = {"backbone": toy_backbones.plain}
SCALED = {
    "half": {**SMALL, "scale": 0.5},
    "0.7": {**SMALL, "scale": 0.7},
    "larger": {**SMALL, "scale": 1.5},
    "a third": {**SMALL, "scale": 1 / 3, "padding": "reference", "name": "fcn32s"},
    "heads": {**CASES["heads"], "scale": 0.7},
    "depth": {**CASES["depth"], "scale": 0.7},
    "bands": {**CASES["bands"], "scale": 0.7},
    "classifier": {"name": "classifier", "scale": 0.5},
}


def scaled_cases(*left_out):
    """Those of one input and one head are tested often."""
    marks = [[] if case in ("half", "0.7", "larger") else [pytest.mark.slow] for case in SCALED]
    rows = zip(SCALED, marks, strict=True)
    rows = [pytest.param(case, marks=mark) for case, mark in rows if case not in left_out]
    return pytest.mark.parametrize("case", rows)


@scaled_cases()
def test_onnx_at_a_scale(case, tmp_path):
    predictor = predictor_of(**SCALED[case])
    sizes = TIES[1:] if case == "classifier" else TIES
    assert_equal(predictor, sizes, onnx_runner(predictor, tmp_path / "net.onnx"))


@scaled_cases("bands")
def test_stablehlo_at_a_scale(case, tmp_path):
    predictor = predictor_of(**SCALED[case])
    run = stablehlo_runner(predictor, tmp_path / "net.stablehlo")
    assert_equal(predictor, TIES[:2], run)


def test_the_scale_of_the_only_view_counts(tmp_path):
    predictor = dataclasses.replace(predictor_of(**SCALED["half"]), scale=1.0, scales=(0.5,))
    assert_equal(predictor, TIES[1:2], onnx_runner(predictor, tmp_path / "net.onnx"))


@pytest.mark.parametrize("runner", ["onnx_runner", "stablehlo_runner"])
def test_labels_at_a_scale(runner, tmp_path):
    predictor = predictor_of(**SCALED["half"])
    (image,) = random_images(predictor, [(41, 67)])
    run = globals()[runner](predictor, tmp_path / f"net.{runner.removesuffix('_runner')}", "labels")
    found, logits = run({"image": image["image"][None]})["label"][0], predictor.logits(image)
    best = np.take_along_axis(logits, found[..., None].astype(int), axis=-1)[..., 0]
    assert found.shape == (41, 67)
    assert (logits.max(axis=-1) - best).max() <= 1e-4 * np.abs(logits).max()
    assert (found == predictor(image)).mean() > 0.99


@pytest.mark.parametrize(
    ("dtype", "bands", "apart"), [("uint8", (3,), 0), ("uint16", (), 0), ("uint16", (2,), 1)]
)
@pytest.mark.parametrize("scale", [0.5, 0.7, 1.5])
def test_images_are_scaled_inside_as_pillow_does(dtype, bands, apart, scale):
    rng = np.random.default_rng(0)
    image = rng.integers(0, np.iinfo(dtype).max, (45, 62, *bands), endpoint=True).astype(dtype)
    image[:10] = image.max()  # no sum of weights makes more of white
    truth = transforms.resize({"image": image}, scale)["image"]
    found = np.asarray(jax.jit(lambda x: resizing.scaled(x, scale))(image[None]))[0]
    assert found.dtype == truth.dtype
    assert found.shape == truth.shape
    different = np.abs(found.astype(int) - truth)
    assert different.max() <= apart
    assert (different > 0).mean() < 0.01


@pytest.mark.parametrize("scale", [0.05, 0.3, 0.5, 0.7, 0.35, 1 / 3, 1.1, 1.5, 2.0])
def test_no_more_pixels_lie_under_a_triangle_than_are_summed(scale):
    """Sides are the fraction's, rounded half to even; and both ways all weights are found."""
    for side in range(1, 500):
        exact = side * Fraction(scale).limit_denominator(1000)
        new = scaled_side(side, scale)
        assert new == max(1, round(exact))
        for before, after, factor in ((side, new, scale), (new, side, 1 / scale)):
            widest = 2 * max(Fraction(before, after), Fraction(1))
            assert resizing.most_pixels(factor) >= widest


# ================================================================================ the file


def test_versions_and_metadata_of_onnx(tmp_path):
    """Old runtimes open it, and it tells classes and colours."""
    predictor = predictor_of(heads=SHAPES.num_classes, backbone=toy_backbones.plain)
    named = fcn_jax.Predictor(predictor.model, predictor.variables, heads={"label": SHAPES})
    fcn_jax.export(named, tmp_path / "net.onnx")
    model = onnx.load(tmp_path / "net.onnx")
    assert model.ir_version == 8
    assert [opset.version for opset in model.opset_import] == [17]
    onnx.checker.check_model(model, full_check=True)
    onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True)
    told = {entry.key: json.loads(entry.value) for entry in model.metadata_props}
    assert told["outputs"]["label"]["names"] == list(SHAPES.names)
    assert told["outputs"]["label"]["colors"] == [list(row.color) for row in SHAPES.counted]
    assert told["inputs"] == {"image": {"dtype": "uint8", "axes": ["batch", "height", "width", 3]}}
    running = session(tmp_path / "net.onnx")
    assert [(one.name, one.type, one.shape) for one in running.get_inputs()] == [
        ("image", "tensor(uint8)", ["batch", "height", "width", 3])
    ]
    assert [(one.name, one.type, one.shape) for one in running.get_outputs()] == [
        ("label", "tensor(uint8)", ["batch", "height", "width"])
    ]


def test_the_example_of_the_page(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    predictor = predictor_of(backbone=toy_backbones.plain)
    fcn_jax.export(predictor, "mine.onnx")
    (arrays,) = random_images(predictor, [(40, 51)])
    Image.fromarray(arrays["image"]).save("photo.jpg")
    page = Path(__file__).parents[1] / "docs" / "export.md"
    blocks = re.findall(r"```python\n(import .*?)```", page.read_text(), re.DOTALL)
    names: dict = {}
    exec(next(block for block in blocks if "onnxruntime" in block), names)
    found = predictor("photo.jpg")
    assert names["labels"].shape == (1, *found.shape)
    assert (names["labels"][0] == found).mean() > 0.99
    assert "class 3" in capsys.readouterr().out


def test_weights_beside_the_graph(tmp_path, monkeypatch):
    """What protobuf cannot hold is in a second file; both are moved together."""
    monkeypatch.setattr(exporting.onnx, "MAX_BYTES", 1000)
    predictor = predictor_of()
    (tmp_path / "here").mkdir()
    fcn_jax.export(predictor, tmp_path / "here" / "net.onnx", result="logits")
    there = (tmp_path / "here").rename(tmp_path / "there")
    assert sorted(file.name for file in there.iterdir()) == ["net.onnx", "net.onnx.data"]
    running = session(there / "net.onnx")
    assert_equal(predictor, [(31, 44)], lambda arrays: {"label": running.run(None, arrays)[0]})


def test_a_failed_export_leaves_what_was_there(tmp_path, monkeypatch):
    (tmp_path / "net.onnx").write_text("before")
    monkeypatch.setattr(exporting.onnx.library().checker, "check_model", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        fcn_jax.export(predictor_of(), tmp_path / "net.onnx")
    assert [file.name for file in tmp_path.iterdir()] == ["net.onnx"]
    assert (tmp_path / "net.onnx").read_text() == "before"


# ============================================================================== StableHLO


def stablehlo_runner(predictor, path, result="logits"):
    """The loader of docs/export.md, but for its last line."""
    fcn_jax.export(predictor, path, result=result)
    page = Path(__file__).parents[1] / "docs" / "export.md"
    (loader,) = re.findall(
        r"```python\n(import json, zipfile\n.*?)labels = ", page.read_text(), re.S
    )
    names: dict = {}
    exec(loader.replace("mine.stablehlo", str(path)), names)
    network = jax.jit(names["network"].call)
    only = len(predictor.inputs.modalities) == 1

    def run(arrays):
        result = network(names["params"], next(iter(arrays.values())) if only else arrays)
        return {head: np.asarray(array) for head, array in by_head(predictor, result).items()}

    return run


@pytest.mark.parametrize("case", ["reference", "stride of 3", "heads"])
def test_stablehlo(case, tmp_path):
    predictor = predictor_of(**CASES[case])
    run = stablehlo_runner(predictor, tmp_path / "net.stablehlo")
    assert_equal(predictor, [(1, 1), (64, 80)], run)


@pytest.mark.parametrize("case", ["depth", "late fusion", "bands"])
@pytest.mark.slow
def test_stablehlo_of_others(case, tmp_path):
    predictor = predictor_of(**CASES[case])
    run = stablehlo_runner(predictor, tmp_path / "net.stablehlo")
    assert_equal(predictor, [(1, 1), (64, 80)], run)


@networks(USUAL[1::3])
def test_stablehlo_of_every_network(name, backbone, padding, tmp_path):
    """Each can be traced for all platforms, with free sizes, and runs on this one."""
    predictor = predictor_of_row(name, backbone, padding)
    run = stablehlo_runner(predictor, tmp_path / "net.stablehlo")
    assert_equal(predictor, [(1, 1), (47, 66)], run)


def test_stablehlo_for_all_platforms(tmp_path):
    fcn_jax.export(predictor_of(), tmp_path / "net.stablehlo")
    with zipfile.ZipFile(tmp_path / "net.stablehlo") as file:
        program = file.read("program")
        about = json.loads(file.read("metadata.json"))
    assert str(Path(fcn_jax.__file__).parent).encode() not in program  # of whoever exported it
    network = jax.export.deserialize(bytearray(program))
    assert network.platforms == ("cpu", "cuda", "tpu")
    assert [str(side) for side in network.out_avals[0].shape] == ["batch", "height", "width"]
    assert about["outputs"]["label"]["names"] == [f"class {number}" for number in range(4)]


def test_fc6_is_a_product_where_sizes_are_free():
    """XLA's convolution of fc6 on small maps takes many times as long."""
    from jax import export

    def fc6(x):
        kernel = jax.numpy.ones((7, 7, 2, 4))
        return fcn_jax.ops.convolution(x, kernel, 1, ((3, 3), (3, 3)))

    shape = jax.ShapeDtypeStruct(export.symbolic_shape("b, h, w, 2"), np.float32)
    exported = export.export(jax.jit(fc6), platforms=("cpu",))(shape)
    assert "dot_general" in exported.mlir_module()
    assert "stablehlo.convolution" not in exported.mlir_module()
    x = np.random.default_rng(0).normal(size=(2, 4, 5, 2)).astype(np.float32)
    np.testing.assert_allclose(exported.call(x), jax.jit(fc6)(x), rtol=1e-5, atol=1e-5)


# ================================================================================ weights


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
@pytest.mark.parametrize("padding", ["same", "reference"])
def test_weights_are_read_back_as_the_same_network(suffix, padding, tmp_path):
    predictor = predictor_of("fcn8s_atonce", "vgg11", padding=padding, heads=SHAPES.num_classes)
    ways = {"inputs": predictor.inputs, "heads": {"label": SHAPES}, "scale": 0.5}
    named = fcn_jax.Predictor(predictor.model, predictor.variables, **ways)
    again = fcn_jax.load(fcn_jax.export(named, tmp_path / f"net{suffix}"))
    assert again.model.backbone == named.model.backbone
    assert again.model.decoder == named.model.decoder
    assert (again.inputs, again.heads, again.scale) == (named.inputs, named.heads, 0.5)
    jax.tree.map(np.testing.assert_array_equal, again.variables["params"], dict(named.variables))


def test_a_state_dict_is_pytorchs(tmp_path):
    torch = pytest.importorskip("torch")
    from torch_fcn import TorchFCN

    predictor = predictor_of("fcn8s", "vgg11", padding="reference")
    fcn_jax.export(predictor, tmp_path / "net.pth")
    net = TorchFCN("fcn8s", "vgg11", "reference", heads=4, width=1 / 16, fc_width=8)
    net.load_state_dict(torch.load(tmp_path / "net.pth"), assign=True)
    (arrays,) = random_images(predictor, [(20, 31)])
    pixels = torch.from_numpy(np.array(predictor.inputs.apply(arrays["image"][None])))
    logits = net.eval()(pixels.permute(0, 3, 1, 2)).detach().permute(0, 2, 3, 1)[0]
    truth = predictor.logits(arrays)
    np.testing.assert_allclose(logits, truth, atol=1e-5 * np.abs(truth).max())


# ============================================================================= what is refused


@pytest.mark.parametrize(
    ("file", "options", "message"),
    [
        ("net.tflite", {}, "end it with one of .onnx, .stablehlo"),
        ("net.onnx", {"result": "classes"}, "unknown result 'classes'"),
        ("net.pth", {"result": "logits"}, "result: of no meaning with torch"),
        ("", {"format": "onnx"}, "is a folder"),
        ("net.pth", {}, "a backbone of its own"),
    ],
)
@pytest.mark.usefixtures("unchecked_annotations")
def test_what_cannot_be_written_is_told(file, options, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        fcn_jax.export(predictor_of(), tmp_path / file, **options)
    assert not list(tmp_path.iterdir())


def test_augmentation_is_refused(tmp_path):
    twice = dataclasses.replace(predictor_of(), flip=True)
    with pytest.raises(ValueError, match="sees an image once"):
        fcn_jax.export(twice, tmp_path / "net.onnx")


def test_a_missing_library_is_named_before_anything_is_read(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(ValueError, match=r"pip install 'fcn-jax\[export\]'"):
        fcn_jax.export("there/is/no/run", tmp_path / "a.onnx")


# ============================================================================== the command


def test_the_command(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    run = make_run(tmp_path / "mine", {"label": SHAPES}, Inputs.of(Preprocessing()))
    assert cli.main(["export", str(run), "--format=onnx", "--allow_code"]) == 0
    assert capsys.readouterr().out.splitlines()[0].startswith("mine.onnx (0.")
    predictor = fcn_jax.load(run, allow_code=True)
    (image,) = random_images(predictor, [(20, 31)])
    labels = session(tmp_path / "mine.onnx").run(None, {"image": image["image"][None]})[0]
    assert np.array_equal(labels[0], predictor(image))
    assert cli.main(["export", "nowhere", "--format=onnx"]) == 2
    assert "nowhere is neither a weight file nor" in capsys.readouterr().err
