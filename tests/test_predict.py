"""``fcn-jax predict`` with networks of every kind: runs, files, classifiers, depth, heads."""

from __future__ import annotations

import functools
from fractions import Fraction
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image
from random_parameters import random_parameters
from toy_runs import make_run

import fcn_jax
from fcn_jax import drawing, weights
from fcn_jax.cli import predict as cli_predict
from fcn_jax.data.nyudv2 import NYUDV2
from fcn_jax.data.sift_flow import SIFT_FLOW_GEOMETRIC, SIFT_FLOW_SEMANTIC
from fcn_jax.data.voc import VOC
from fcn_jax.geometry import Geometry
from fcn_jax.inference.pipeline import find_images
from fcn_jax.inference.predictor import Predictor, load, over_image
from fcn_jax.models.inputs import CAFFE, Inputs, Preprocessing

HHA = Preprocessing("rgb", (132.431, 94.076, 118.477))
NYUD = {
    "image": Preprocessing(mean=(116.190, 97.203, 92.318)),
    "hha": HHA,
    "depth": Preprocessing("rgb", (7.844,), (1.0,), log=True),
}
small = functools.partial(fcn_jax.create_model, width=1 / 16, fc_width=8)


@pytest.fixture
def plain_operations():
    """They compile faster in networks of many layers, and compute more slowly."""
    with fcn_jax.ops.plain_forms():
        yield


@pytest.fixture
def photos(tmp_path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for name, size in (("a", (40, 50)), ("b", (33, 61))):
        Image.fromarray(rng.integers(0, 256, (*size, 3), np.uint8)).save(folder / f"{name}.png")
    return folder


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image)


@pytest.fixture(scope="module")
def workdir(tmp_path_factory) -> Path:
    return make_run(tmp_path_factory.mktemp("voc") / "run", {"label": VOC}, Inputs.of(CAFFE))


@pytest.fixture(scope="module")
def two_heads(tmp_path_factory) -> Path:
    heads = {"sem": SIFT_FLOW_SEMANTIC, "geo": SIFT_FLOW_GEOMETRIC}
    return make_run(tmp_path_factory.mktemp("sift_flow") / "run", heads, Inputs.of(CAFFE))


def predict(argv: list[str]) -> int:
    """The command; the runs of this file have a backbone of their own."""
    return cli_predict.main([*argv, "--allow_code"])


# ======================================================================== heat maps


def save_classifier(path: Path, classes: int) -> tuple[fcn_jax.FCN, dict]:
    model = small("classifier", backbone="alexnet", num_classes=classes)
    params = random_parameters(model, 0)
    weights.save(path, params, inputs=Inputs.of(CAFFE))
    return model, params


def test_heat_map_of_a_classifier(tmp_path, capsys):
    """The class's score of each cell, at the cell's place over the image, as colours."""
    model, params = save_classifier(tmp_path / "net.npz", 7)
    image = np.random.default_rng(1).integers(0, 256, (260, 300, 3), np.uint8)
    Image.fromarray(image).save(tmp_path / "cat.png")
    names = ["n01440764 tench, Tinca tinca", "n02123045 tabby, tabby cat", *"cdefg"]
    (tmp_path / "names.txt").write_text("\n".join(names))
    for wanted in ("tabby cat", "1", "TABBY"):
        done = predict(
            [
                str(tmp_path / "cat.png"),
                f"--weights={tmp_path / 'net.npz'}",
                f"--classes={tmp_path / 'names.txt'}",
                f"--heatmap={wanted}",
                f"--output={tmp_path / wanted}",
            ]
        )
        assert done == 0, capsys.readouterr().err
        drawn = pixels(tmp_path / wanted / "heatmaps/cat.png")
        cells = jax.jit(model.apply)({"params": params}, CAFFE.apply(image[None]))[0, :, :, 1]
        assert cells.shape == (2, 4)
        # Cell (0, 0) is the classifier on the first 227 x 227 pixels, whose middle is 113.
        scores = over_image(np.asarray(cells), Geometry(*map(Fraction, (32, 113, 355))), (260, 300))
        expected = drawing.heatmap(image, scores)
        # The last bits of compiled scores may round a colour to its neighbour.
        np.testing.assert_allclose(drawn.astype(int), expected.astype(int), atol=1)
        assert "1 of 1 images" in capsys.readouterr().out


def test_over_image_is_linear_between_the_cells():
    scores = np.array([[0.0, 4.0], [8.0, 12.0]])
    spread = over_image(scores, Geometry(*map(Fraction, (4, 2, 1))), (9, 8))
    rows, columns = np.clip(np.arange(9) - 2, 0, 4), np.clip(np.arange(8) - 2, 0, 4)
    np.testing.assert_allclose(spread, 2.0 * rows[:, None] + columns)


def test_heat_map_of_a_run(tmp_path, workdir, photos):
    out = tmp_path / "out"
    assert predict([str(photos), f"--workdir={workdir}", f"--output={out}", "--heatmap=cat"]) == 0
    images = {name: pixels(photos / f"{name}.png") for name in ("a", "b")}
    logits = load(workdir, allow_code=True).class_map(images.values(), "cat")
    limits = float(min(map(np.min, logits))), float(max(map(np.max, logits)))  # of both
    for (name, image), cat in zip(images.items(), logits, strict=True):
        expected = drawing.heatmap(image, cat, limits=limits)
        np.testing.assert_array_equal(pixels(out / f"heatmaps/{name}.png"), expected)
        np.testing.assert_array_equal(np.load(out / f"heatmaps/{name}.npy"), cat)
    assert pixels(out / "heatmap_scale.png").ndim == 3


def test_heat_map_colours():
    image = np.full((1, 5, 3), 100, np.uint8)
    scores = np.array([[-2.0, 0.0, 2.0, 4.0, 6.0]])
    drawn = drawing.heatmap(image, scores, alpha=1.0)[0]
    expected = [(0, 0, 128), (0, 128, 255), (128, 255, 128), (255, 128, 0), (128, 0, 0)]
    np.testing.assert_allclose(drawn, expected, atol=1)
    np.testing.assert_array_equal(drawing.heatmap(image, scores, alpha=0.0), image)


# ======================================================================== large images


def test_tiles_give_the_same_labels(tmp_path, workdir, photos, capsys):
    photo = np.random.default_rng(3).integers(0, 256, (200, 150, 3), np.uint8)
    Image.fromarray(photo).save(photos / "large.png")
    given = [str(photos / "a.png"), str(photos / "large.png"), f"--workdir={workdir}"]
    for folder, tile in (("whole", 2048), ("tiles", 130)):
        assert predict([*given, f"--output={tmp_path / folder}", f"--tile={tile}"]) == 0
    for name in ("a", "large"):
        whole, tiles = (
            pixels(tmp_path / f"{kind}/labels/{name}.png") for kind in ("whole", "tiles")
        )
        np.testing.assert_array_equal(tiles, whole)
    assert predict([*given, f"--output={tmp_path / 'tiles'}", "--tile=100"]) == 1
    error = capsys.readouterr().err
    assert "large.png: tiles of 100 pixels are too small" in error
    assert "a.png" not in error
    assert predict([*given, f"--output={tmp_path / 'tiles'}", "--tile=0"]) == 2
    assert "tile must be positive, got 0" in capsys.readouterr().err


# ======================================================================== files


def test_files_of_any_mode(workdir, tmp_path, capsys) -> None:
    rng = np.random.default_rng(0)
    folder, output = tmp_path / "photos", tmp_path / "photos" / "out"
    (folder / "sub").mkdir(parents=True)
    rgb = rng.integers(0, 256, (9, 14, 3), np.uint8)
    Image.fromarray(rgb).save(folder / "a.png")
    Image.fromarray(rgb).convert("RGBA").save(folder / "sub" / "a.PNG")
    Image.fromarray(rgb[..., 0]).save(folder / "a.bmp")
    exif = Image.Exif()
    exif[0x0112] = 6  # rotated by a quarter
    Image.fromarray(rgb).save(folder / "turned.jpg", exif=exif)
    sixteen = rng.integers(0, 65536, (5, 8), np.uint16)
    Image.fromarray(sixteen).save(tmp_path / "deep.png")
    (folder / "broken.jpg").write_bytes(b"no photograph")
    (folder / "notes.txt").touch()
    arguments = [f"--workdir={workdir}", f"--output={output}"]
    files = [folder, tmp_path / "deep.png", tmp_path / "missing.png", folder / "a.png"]
    expected = {
        "a.png": (9, 14),  # of a.bmp, the first
        "a.png.png": (9, 14),
        "sub/a.png": (9, 14),
        "turned.png": (14, 9),
        "deep.png": (5, 8),
    }
    for _ in range(2):  # what the first run wrote is no input of the second
        assert predict([*arguments, *map(str, files)]) == 1
        error = capsys.readouterr().err
        assert "broken.jpg" in error
        assert "missing.png" in error
        assert "Traceback" not in error
        for kind in ("labels", "overlays"):
            written = sorted(p for p in (output / kind).rglob("*") if p.is_file())
            assert {p.relative_to(output / kind).as_posix() for p in written} == set(expected)
    predictor = load(workdir, allow_code=True)
    for name, size in expected.items():
        with Image.open(output / "labels" / name) as labels:
            assert labels.mode == "P"
            assert labels.size == size[::-1]
            assert np.asarray(labels).max() < VOC.num_classes
            if name in ("a.png.png", "sub/a.png"):
                np.testing.assert_array_equal(np.asarray(labels), predictor(rgb))
        with Image.open(output / "overlays" / name) as overlay:
            assert overlay.size == size[::-1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["WORKDIR", "photo"], "nowhere is neither a weight file nor the folder"),
        (["--stage=fcn16s", "photo"], "no checkpoint of 'fcn16s'"),
        (["empty"], "no image in"),
    ],
)
def test_what_is_wrong_is_one_line(workdir, tmp_path, capsys, arguments, message) -> None:
    Image.new("RGB", (4, 4)).save(tmp_path / "photo.png")
    (tmp_path / "empty").mkdir()
    places = {
        "WORKDIR": "--workdir=nowhere",
        "photo": str(tmp_path / "photo.png"),
        "empty": str(tmp_path / "empty"),
    }
    fixed = [f"--workdir={workdir}", f"--output={tmp_path / 'out'}"]
    given = [places.get(argument, argument) for argument in arguments]
    assert predict(fixed + given) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_names_never_overwrite_each_other(tmp_path) -> None:
    names = ["a/x.jpg", "b/x.jpg", "b/X.png", "b/x.jpg.png", "c/x.jpg"]
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    found = find_images([tmp_path / name for name in names], tmp_path / "out").jobs
    assert len({job.name.casefold() for job in found}) == len(names)
    assert found[0].name == "x"


@pytest.mark.parametrize(
    "arguments",
    [
        ["--workdir=x", "--output=y"],
        ["--output=y", "a.png"],
        ["--workdir=x", "--output=y", "a.png", "--checkpoint=third"],
        ["--workdir=x", "--output=y", "a.png", "--camera=1,2,3"],
        ["--weights=x", "--output=y", "a.png", "--padding=valid"],
    ],
)
def test_wrong_flags_end_with_code_2(arguments: list[str], capsys) -> None:
    with pytest.raises(SystemExit) as stop:
        predict(arguments)
    assert stop.value.code == 2
    assert capsys.readouterr().err.count("\n") == 2  # the usage and the error


def test_the_folder_of_the_user(monkeypatch, tmp_path, workdir, photos):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "mine").symlink_to(workdir)
    assert predict(["~/photos", "--workdir=~/mine", "--output=~/out"]) == 0
    assert (tmp_path / "out/labels/b.png").is_file()


# ======================================================================== weight files


@pytest.mark.usefixtures("plain_operations")
@pytest.mark.parametrize("suffix", ["npz", "safetensors"])
def test_weights_alone_segment(tmp_path, photos, suffix):
    model = small(
        "fcn32s",
        backbone="vgg11",
        num_classes=21,
        padding="reference",
        learned_upsampling="none",
    )
    params = random_parameters(model, 0)
    weights.save(tmp_path / f"net.{suffix}", params, inputs=Inputs.of(HHA))
    out = tmp_path / "out"
    given = [str(photos), f"--weights={tmp_path / f'net.{suffix}'}", f"--output={out}"]
    assert predict(given) == 0
    labels = pixels(out / "labels/b.png")
    expected = Predictor(model, {"params": params}, Inputs.of(HHA))(pixels(photos / "b.png"))
    np.testing.assert_array_equal(labels, expected)
    assert (out / "overlays/b.png").is_file()


def test_weights_of_no_network_are_refused(tmp_path, photos, capsys):
    given = [str(photos), f"--weights={tmp_path / 'x.npz'}", f"--output={tmp_path / 'o'}"]
    weights.save(tmp_path / "x.npz", {"ip1/kernel": np.ones((3, 2), np.float32)})
    assert predict(given) == 2
    assert "the layers ip1 … are of none of the backbones vgg11" in capsys.readouterr().err
    backbone = weights.flatten(random_parameters(small("fcn32s", padding="reference"), 0))
    backbone = {name: value for name, value in backbone.items() if name.startswith(("conv", "fc"))}
    weights.save(tmp_path / "x.npz", backbone)
    assert predict(given) == 2
    assert "has the backbone of vgg16 without score_fr or fc8" in capsys.readouterr().err
    backbone = {name: value for name, value in backbone.items() if name.startswith("conv")}
    weights.save(tmp_path / "x.npz", backbone)
    assert predict(given) == 2
    assert "has the backbone of vgg16 without fc6" in capsys.readouterr().err


def test_questions_that_a_network_cannot_answer(tmp_path, photos, capsys):
    save_classifier(tmp_path / "net.npz", 7)
    given = [str(photos), f"--weights={tmp_path / 'net.npz'}", f"--output={tmp_path / 'o'}"]
    (tmp_path / "names.txt").write_text("big cat\nsmall cat\n")
    for more, message in [
        ([], "is a classifier: give --heatmap=CLASS"),
        (["--heatmap=dog"], "there is no such class; there are class 0, class 1"),
        (["--heatmap=class"], "may mean class 0, class 1"),
        (
            [f"--classes={tmp_path / 'names.txt'}", "--heatmap=0"],
            "the network has {'label': 7} classes by head, but the names are of {'label': 2}",
        ),
    ]:
        assert predict([*given, *more]) == 2
        assert message in capsys.readouterr().err


# ======================================================================== inputs and heads


def test_two_heads_give_two_label_maps(tmp_path, two_heads, photos):
    out = tmp_path / "out"
    assert predict([str(photos), f"--workdir={two_heads}", f"--output={out}"]) == 0
    labels = load(two_heads, allow_code=True)(pixels(photos / "a.png"))
    for head in ("sem", "geo"):
        np.testing.assert_array_equal(pixels(out / f"labels_{head}/a.png"), labels[head])
        assert (out / f"overlays_{head}/a.png").is_file()


def test_depth_is_read_beside_the_photographs(tmp_path, photos, capsys):
    from fcn_jax.data.hha import hha

    inputs = Inputs.of({"color": {"image": CAFFE}, "hha": {"hha": HHA}})
    workdir = make_run(tmp_path / "run", {"label": NYUDV2}, inputs)
    out = tmp_path / "out"
    given = [str(photos / "a.png"), f"--workdir={workdir}", f"--output={out}"]
    assert predict(given) == 2
    assert "reads image, hha: give --depth=DIR" in capsys.readouterr().err
    depth = np.random.default_rng(2).integers(1000, 3000, (40, 50)).astype(np.uint16)
    (tmp_path / "depth").mkdir()
    Image.fromarray(depth).save(tmp_path / "depth/a.png")
    given += [f"--depth={tmp_path / 'depth'}", "--camera=50,50,25,20"]
    assert predict(given) == 0
    camera = np.array([[50, 0, 25], [0, 50, 20], [0, 0, 1.0]])
    images = {"image": pixels(photos / "a.png"), "hha": hha(depth, camera)}
    expected = load(workdir, allow_code=True)(images)
    np.testing.assert_array_equal(pixels(out / "labels/a.png"), expected)


@pytest.fixture
def depths(tmp_path, photos) -> Path:
    folder = tmp_path / "depths"
    folder.mkdir()
    rng = np.random.default_rng(2)
    for file in photos.iterdir():
        depth = rng.integers(1000, 3000, pixels(file).shape[:2]).astype(np.uint16)
        Image.fromarray(depth).save(folder / file.name)
    return folder


@pytest.mark.usefixtures("plain_operations")
@pytest.mark.parametrize(
    ("network", "expected"),
    [
        (
            {"inputs": {"color": 3, "hha": 3}},
            {"color": {"image": NYUD["image"]}, "hha": {"hha": NYUD["hha"]}},
        ),
        ({"inputs": 4}, {"image": {"image": NYUD["image"], "depth": NYUD["depth"]}}),
        ({}, {"image": {"image": NYUD["image"]}}),
    ],
    ids=["late fusion", "early fusion", "colour"],
)
def test_published_networks_of_nyud_get_their_inputs(tmp_path, photos, depths, network, expected):
    """Their files do not say what they read; their layers do."""
    from fcn_jax.data.hha import hha

    model = small(
        "fcn32s", num_classes=40, padding="reference", learned_upsampling="none", **network
    )
    params = random_parameters(model, 0)
    weights.save(tmp_path / "net.npz", params)
    predictor = load(tmp_path / "net.npz")
    assert predictor.inputs == Inputs.of(expected)
    assert predictor.model == model
    if len(expected) == 1:
        return  # a predictor of such inputs is the same wherever it comes from
    given = [str(photos / "a.png"), f"--weights={tmp_path / 'net.npz'}", "--camera=50,50,25,20"]
    out = tmp_path / "out"
    assert predict([*given, f"--output={out}", f"--depth={depths}"]) == 0
    camera = np.array([[50, 0, 25], [0, 50, 20], [0, 0, 1.0]])
    images = {"image": pixels(photos / "a.png"), "hha": hha(pixels(depths / "a.png"), camera)}
    expected_labels = Predictor(model, {"params": params}, Inputs.of(expected))(images)
    np.testing.assert_array_equal(pixels(out / "labels/a.png"), expected_labels)


def test_one_depth_image_that_does_not_fit_leaves_the_others(tmp_path, photos, depths, capsys):
    inputs = Inputs.of({"color_depth": {"image": CAFFE, "depth": NYUD["depth"]}})
    workdir = make_run(tmp_path / "run", {"label": NYUDV2}, inputs)
    Image.fromarray(np.ones((3, 4), np.uint16)).save(depths / "a.png")
    out = tmp_path / "out"
    given = [str(photos), f"--workdir={workdir}", f"--output={out}", f"--depth={depths}"]
    assert predict(given) == 1
    assert "a.png differ in size" in capsys.readouterr().err
    assert (out / "labels/b.png").is_file()


def test_the_folder_of_a_run_is_its_run(workdir, photos):
    """However it is given, and the photographs likewise."""
    image = photos / "a.png"
    expected = load(workdir, allow_code=True)(image)
    for source in (workdir / "checkpoints" / "fcn32s", str(workdir)):
        np.testing.assert_array_equal(load(source, allow_code=True)(pixels(image)), expected)
    output = photos / "labels_of_weights"
    assert predict([str(image), f"--weights={workdir}", f"--output={output}"]) == 0
    np.testing.assert_array_equal(pixels(output / "labels/a.png"), expected)


def test_a_class_of_one_of_two_heads(tmp_path, two_heads, photos, capsys):
    out = tmp_path / "out"
    given = [str(photos), f"--workdir={two_heads}", f"--output={out}"]
    assert predict([*given, "--heatmap=sky"]) == 2
    assert "may mean sem/sky, geo/sky" in capsys.readouterr().err
    given[0] += "/a.png"
    assert predict([*given, "--heatmap=geo/sky"]) == 0
    image = pixels(photos / "a.png")
    logits = load(two_heads, allow_code=True).logits(image)["geo"]
    expected = drawing.heatmap(image, logits[..., 0])
    drawn = pixels(out / "heatmaps/a.png")
    np.testing.assert_allclose(drawn.astype(int), expected.astype(int), atol=1)


def test_small_images_are_filled_up_for_a_classifier(tmp_path):
    model, params = save_classifier(tmp_path / "net.npz", 7)
    image = np.random.default_rng(1).integers(0, 256, (40, 230, 3), np.uint8)
    Image.fromarray(image).save(tmp_path / "a.png")
    given = [str(tmp_path / "a.png"), f"--weights={tmp_path / 'net.npz'}", "--heatmap=3"]
    assert predict([*given, f"--output={tmp_path / 'out'}"]) == 0
    x = np.asarray(CAFFE.apply(image[None]))
    filled = np.pad(x, ((0, 0), (0, model.smallest_image - 40), (0, 0), (0, 0)))
    small, whole = (jax.jit(model.apply)({"params": params}, images) for images in (x, filled))
    np.testing.assert_array_equal(small, whole)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--model=fcn9s"], "unknown model 'fcn9s'; choose one of"),
        (["--stage=fcn8s"], "stage: of no meaning with a weight file"),
    ],
)
def test_wrong_values_are_one_line(tmp_path, photos, capsys, flags, message):
    save_classifier(tmp_path / "net.npz", 7)
    given = [str(photos), f"--weights={tmp_path / 'net.npz'}", f"--output={tmp_path / 'o'}"]
    assert predict([*given, *flags]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
