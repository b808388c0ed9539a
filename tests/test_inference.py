"""Label maps at the images' own size, beside Pillow's interpolation and direct arithmetic."""

from __future__ import annotations

import functools

import flax.linen as nn
import jax
import numpy as np
import pytest
import toy_backbones
from compilations import counted_compilations
from PIL import Image
from random_parameters import random_parameters

import fcn_jax
from fcn_jax import ops
from fcn_jax.canvas import canvas_side, exactly
from fcn_jax.data.transforms import resize_image
from fcn_jax.geometry import Window
from fcn_jax.inference.predictor import Predictor
from fcn_jax.models.backbones import Backbone, Conv, Padding, Pool
from fcn_jax.models.fcn import create_model
from fcn_jax.models.inputs import CAFFE, Inputs, Preprocessing

pytestmark = pytest.mark.usefixtures("plain_forms")

PLAIN = Inputs.of(Preprocessing(channel_order="rgb", mean=(0.0, 0.0, 0.0)))


class Linear(nn.Module):
    """Logits of each pixel from its colour alone."""

    classes: int = 5

    @nn.compact
    def __call__(self, images: jax.Array, train: bool) -> jax.Array:
        assert not train
        return nn.Conv(self.classes, (1, 1), name="score")(images)


def random_image(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


@pytest.fixture(scope="module")
def parameters() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(7)
    kernel = rng.normal(size=(1, 1, 3, 5)).astype(np.float32)
    return kernel, rng.normal(size=5).astype(np.float32) * 100


def predictor_of(parameters, **fields) -> Predictor:
    kernel, bias = parameters
    variables = {"params": {"score": {"kernel": kernel, "bias": bias}}}
    return Predictor(Linear(), variables, **fields)


@pytest.mark.parametrize("size", [(1, 1), (7, 12), (33, 47)])
def test_logits_are_those_of_the_normalised_image(parameters, size: tuple[int, int]) -> None:
    image = random_image(*size)
    mean = np.array([104.00699, 116.66877, 122.67892])
    expected = (image[..., ::-1] - mean) @ parameters[0][0, 0].astype(np.float64) + parameters[1]
    predictor = predictor_of(parameters)
    logits = np.asarray(predictor.logits(image))
    assert logits.dtype == np.float32
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-3)
    labels = predictor(image)
    assert labels.dtype == np.uint8
    np.testing.assert_array_equal(labels, expected.argmax(axis=-1))


@pytest.mark.parametrize("size", [(1, 1), (6, 10), (41, 33)])
@pytest.mark.parametrize("scale", [0.5, 0.3])
def test_reduced_images_give_labels_at_full_size(parameters, size, scale: float) -> None:
    image = random_image(*size)
    height, width = (max(1, round(side * scale)) for side in size)
    small = Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR)
    scores = np.asarray(small, np.float32) @ parameters[0][0, 0] + parameters[1]
    expected = np.stack(
        [
            np.asarray(
                Image.fromarray(np.ascontiguousarray(scores[..., c])).resize(
                    size[::-1], Image.Resampling.BILINEAR
                )
            )
            for c in range(scores.shape[-1])
        ],
        axis=-1,
    )
    predictor = predictor_of(parameters, inputs=PLAIN, scale=scale)
    np.testing.assert_allclose(predictor.logits(image), expected, rtol=1e-4, atol=1e-2)
    assert predictor(image).shape == size


def test_enlarged_images_give_labels_at_full_size(parameters) -> None:
    flat = np.full((5, 9, 3), (30, 200, 90), np.uint8)
    plain, enlarged = (predictor_of(parameters, inputs=PLAIN, scale=scale) for scale in (1.0, 2.5))
    np.testing.assert_allclose(enlarged.logits(flat), plain.logits(flat), rtol=1e-5, atol=1e-3)


def test_several_images_of_mixed_sizes(parameters) -> None:
    images = [random_image(*size, seed=i) for i, size in enumerate([(3, 4), (9, 2), (3, 4)])]
    predictor = predictor_of(parameters)
    for image, labels in zip(images, predictor(images), strict=True):
        np.testing.assert_array_equal(labels, predictor(image))
    assert predictor([]) == []


def test_the_networks_of_the_package() -> None:
    model = create_model("fcn8s", num_classes=4, width=0.05, fc_width=8)
    image = random_image(35, 50)
    variables = {"params": random_parameters(model, seed=0)}
    apply = jax.jit(functools.partial(model.apply, train=False))
    logits = apply(variables, Preprocessing().apply(jax.numpy.asarray(image[None])))
    labels = Predictor(model, variables)(image)
    # Compiled otherwise, sums round otherwise, which can turn a tie.
    best = np.take_along_axis(np.asarray(logits[0]), labels[..., None].astype(int), -1)[..., 0]
    np.testing.assert_allclose(best, logits[0].max(axis=-1), rtol=1e-4, atol=1e-4)


IMAGE = random_image(6, 5)


@pytest.mark.parametrize(
    ("image", "same"),
    [
        (IMAGE[..., 0], IMAGE[..., [0, 0, 0]]),
        (IMAGE[..., [0, 1, 2, 0]], IMAGE),
        (IMAGE.astype(np.uint16) * 257, IMAGE),
        ((IMAGE / 255).astype(np.float32), IMAGE),
        (IMAGE.astype(np.float64), IMAGE),
        (jax.numpy.asarray(IMAGE), IMAGE),
        (Image.fromarray(IMAGE), IMAGE),
        (Image.fromarray(IMAGE[..., 0]), IMAGE[..., [0, 0, 0]]),
    ],
    ids=["grey", "RGBA", "16 bits", "0..1", "0..255", "jax", "Pillow", "Pillow grey"],
)
def test_images_of_every_kind(parameters, image, same) -> None:
    predictor = predictor_of(parameters)
    np.testing.assert_array_equal(predictor(image), predictor(same))


def test_files_and_batches(parameters, tmp_path) -> None:
    Image.fromarray(IMAGE).save(tmp_path / "a.png")
    predictor = predictor_of(parameters)
    expected = predictor(IMAGE)
    for images in (tmp_path / "a.png", str(tmp_path / "a.png"), {"image": tmp_path / "a.png"}):
        np.testing.assert_array_equal(predictor(images), expected)
    for images in ([IMAGE], (IMAGE for _ in range(1)), IMAGE[None]):
        (labels,) = predictor(images)
        np.testing.assert_array_equal(labels, expected)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((4, 5, 3), np.int64), "8 or 16 bits; convert it to uint8"),
        (np.full((4, 5, 3), 256.0), "outside 0..1 and 0..255"),
        (np.full((4, 5, 3), np.nan), "outside 0..1 and 0..255"),
        (np.zeros((4, 5, 5), np.uint8), "5 bands, the network reads 3"),
        (np.zeros((0, 5, 3), np.uint8), r"uint8 \(0, 5, 3\)"),
    ],
)
def test_what_is_no_image_is_refused(parameters, image: np.ndarray, message: str) -> None:
    predictor = predictor_of(parameters)
    with pytest.raises(ValueError, match=message):
        predictor(image)
    with pytest.raises(ValueError, match=f"image 1: .*{message}"):
        predictor([IMAGE, image])


def test_probabilities_and_maps_of_a_class(parameters) -> None:
    heads = {"label": fcn_jax.classes.table_from_names("sky, tree, street, tree frog, car")}
    predictor = predictor_of(parameters, heads=heads)
    logits = predictor.logits(IMAGE).astype(np.float64)
    powers = np.exp(logits - logits.max(-1, keepdims=True))
    expected = powers / powers.sum(-1, keepdims=True)
    probabilities = predictor.probabilities([IMAGE])[0]
    assert probabilities.dtype == np.float32
    np.testing.assert_allclose(probabilities, expected, atol=1e-6)
    for class_ in (1, "1", "TREE", "label/tree"):
        (values,) = predictor.class_map([IMAGE], class_)
        np.testing.assert_array_equal(values, predictor.logits(IMAGE)[..., 1])
    assert predictor.find_class("frog") == ("label", 3)
    for wanted, message in {
        "s": "'s' may mean sky, street; give one of them",
        "5": "'5': there is no such class; there are sky, tree",
    }.items():
        with pytest.raises(ValueError, match=message):
            predictor.class_map(IMAGE, wanted)
    with pytest.raises(ValueError, match="no head 'geo'; it has label"):
        predictor.class_map(IMAGE, 0, "geo")


@pytest.mark.parametrize("scale", [0.0, -1.0])
def test_scale_must_be_positive(scale: float) -> None:
    with pytest.raises(ValueError, match="scale must be positive"):
        resize_image(random_image(4, 5), scale)


# ======================================================================== many images


@pytest.fixture(scope="module")
def toy():
    model = create_model(
        "fcn8s", backbone=toy_backbones.plain, num_classes=4, width=1 / 4, fc_width=8
    )
    return model, random_parameters(model, seed=0)


def alone(model, params, image: np.ndarray, scale: float = 1.0) -> np.ndarray:
    """The logits of an image by the network itself, without canvas and batch."""

    def run(params, seen):
        logits = model.apply({"params": params}, CAFFE.apply(seen))
        return jax.image.resize(logits, (1, *image.shape[:2], logits.shape[3]), "bilinear")

    return np.asarray(jax.jit(run)(params, resize_image(image, scale)[None])[0])


SIZES = [(1, 1), (33, 47), (70, 40), (34, 41), (33, 47)]


@pytest.mark.parametrize(
    "options",
    [
        {"batch_size": 3},
        {"batch_size": 1, "canvas": exactly},
        {"batch_size": 2, "canvas": lambda side: 80, "scale": 0.6},
        {"batch_size": 8, "canvas": (128, 96), "scale": 1.7},
    ],
    ids=["default", "no canvas", "reduced", "enlarged"],
)
def test_each_image_gets_its_own_logits_in_order(toy, options):
    model, params = toy
    images = [random_image(*size, seed=i) for i, size in enumerate(SIZES)]
    done = []
    predictor = Predictor(model, params, **options)
    results = predictor.logits(iter(images), progress=done.append)
    assert done == list(range(1, len(images) + 1))
    for image, result in zip(images, results, strict=True):
        expected = alone(model, params, image, options.get("scale", 1.0))
        assert result.dtype == np.float32
        assert result.shape == expected.shape
        np.testing.assert_allclose(result, expected, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize("scale", [1.0, 0.5])
def test_images_that_fill_their_canvas_need_no_masks(toy, monkeypatch, scale):
    """As a GPU computes them, beside others in turn."""
    monkeypatch.setattr(Predictor, "_platform", "gpu")
    model, params = toy
    predictor = Predictor(model, params, scale=scale, canvas=lambda side: -(-side // 8) * 8)
    for size in (48, 64), (45, 61):
        image = random_image(*size)
        expected = alone(model, params, image, scale)
        atol = 1e-5 * np.abs(expected).max()
        np.testing.assert_allclose(predictor.logits(image), expected, atol=atol)
        (part,) = predictor.parts(0, predictor.opened(image))
        (batch,) = predictor._batches([part], 1)
        assert (batch.valid_size is None) == (size == (48, 64))


def test_labels_are_those_of_the_logits(toy):
    model, params = toy
    images = [random_image(*size, seed=i) for i, size in enumerate(SIZES)]
    predictor = Predictor(model, {"params": params}, batch_size=3)
    for image, got, logits in zip(images, predictor(images), predictor.logits(images), strict=True):
        assert got.dtype == np.uint8
        assert got.shape == image.shape[:2]
        assert got.base is None  # keeps no canvas in memory
        np.testing.assert_array_equal(got, logits.argmax(-1))


def test_a_canvas_is_compiled_once(toy):
    """Whatever the number of its images: one, some, or several batches."""
    model, params = toy
    sizes = np.random.default_rng(5).integers(33, 49, (30, 2)).tolist()
    images = [random_image(*size, seed=i) for i, size in enumerate([*sizes, (7, 50)])]
    canvases = {tuple(map(canvas_side, image.shape[:2])) for image in images}
    predictor = Predictor(model, params, batch_size=4)
    predictor([])
    with counted_compilations() as compiled:
        predictor(images)
    assert len(compiled) == len(canvases) == 5
    with counted_compilations() as compiled:
        predictor(images[::-1])
    assert compiled == []


def test_single_images_share_the_program_of_their_canvas(toy):
    model, params = toy
    predictor = Predictor(model, params)
    predictor(random_image(64, 64))
    with counted_compilations() as compiled:
        for height, width in ((57, 58), (64, 60), (60, 61)):
            assert predictor(random_image(height, width)).shape == (height, width)
    assert compiled == []


def test_large_canvases_come_in_small_batches(toy):
    model, params = toy
    asked = []

    def images():
        for number in range(12):
            asked.append(number)
            yield random_image(60, 60, number)

    done = []
    # Two canvases of 64 x 64 at a time: the third image is asked for when two are on their way.
    predictor = Predictor(model, params, batch_size=8, tile=96)
    predictor(images(), progress=lambda _: done.append(len(asked)))
    assert done[0] <= 6


def test_mistakes(toy):
    model, params = toy
    with pytest.raises(ValueError, match=r"image 1: the image of 4x90 .* canvas of 80x80"):
        Predictor(model, params, canvas=(80, 80))([random_image(3, 4), random_image(4, 90)])
    with pytest.raises(FileNotFoundError, match=r"photo\.jpg: no such file"):
        Predictor(model, params)(["photo.jpg"])
    with pytest.raises(ValueError, match="batch_size must be positive, got 0"):
        Predictor(model, params, batch_size=0)
    with pytest.raises(ValueError, match=r"has \{'label': 4\} classes by head, but the names"):
        Predictor(model, params, heads={"label": ("one", "two")})


def test_a_classifier_sees_images_of_mixed_sizes():
    model = create_model("classifier", backbone=toy_backbones.forked, num_classes=300, width=1 / 4)
    params = random_parameters(model, seed=0)
    images = [random_image(*size, seed=i) for i, size in enumerate([(5, 3), (70, 61)])]
    params["answer"]["bias"][270:] += 100  # classes whose numbers take more than 8 bits
    predictor = Predictor(model, params)
    labels, logits = predictor(images), predictor.logits(images)
    for image, result, got in zip(images, logits, labels, strict=True):
        expected = np.asarray(jax.jit(model.apply)({"params": params}, CAFFE.apply(image[None])))[0]
        np.testing.assert_allclose(result, expected, atol=1e-5 * np.abs(expected).max())
        np.testing.assert_array_equal(got, result.argmax(-1))
        assert got.min() > 255


def wide(padding: Padding, width: float, fc_width: int) -> Backbone:
    """Layers whose kernels are prepared, one without ReLU, and others between them."""
    del width
    border = 16 if padding == "reference" else 2
    layers = (
        Conv("stem", 32, Window(5, pad=border)),
        Conv("first", 32, Window(3, pad=1)),
        Pool("pool1", Window(2, stride=2, ceil=True)),
        Conv("second", 96, Window(3, pad=1), relu=False),
        Conv("apart", 64, Window(3, pad=1), groups=2),
        Conv("wide", 64, Window(3, pad=2, dilation=2)),
        Conv("third", 32, Window(3, pad=1)),
        Pool("pool2", Window(2, stride=2, ceil=True)),
        Conv("top", fc_width, Window(3, pad=1), dropout=True),
    )
    return Backbone(layers, skips=("pool1",))


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="kernels are prepared for the CPU")
@pytest.mark.parametrize("padding", ["same", "reference"])
def test_kernels_are_prepared_for_the_same_logits(padding):
    """On a canvas larger than the image."""
    model = create_model("fcn16s", backbone=wide, padding=padding, num_classes=3, fc_width=8)
    params = random_parameters(model, 0)
    image = random_image(53, 90)
    with ops.plain_forms(False):
        predictor = Predictor(model, {"params": params})
        logits = predictor.logits(image)
    assert list(predictor.on_device["prepared"]) == ["first", "second", "third"]
    expected = np.asarray(jax.jit(model.apply)({"params": params}, CAFFE.apply(image[None])))[0]
    np.testing.assert_allclose(logits, expected, atol=1e-5 * np.abs(expected).max())
    first_and_third = 6 * 6 * 4 * (32 * 32 + 64 * 32)
    assert list(model.prepared(params, most=first_and_third)) == ["first", "third"]


@pytest.mark.usefixtures("unchecked_annotations")  # jax lowers with no arrays in its trees
def test_what_is_lowered_is_what_runs():
    """Depth beside the image, half the size: the arguments fit, and the result."""
    color, depth = PLAIN.entries[0][1][0][1], Preprocessing("rgb", (0.0,), (1.0,))
    inputs = Inputs.of({"a": {"image": color}, "b": {"depth": depth}})
    options = {"backbone": toy_backbones.plain, "inputs": inputs.channels, "fc_width": 8}
    model = create_model("fcn32s", num_classes=3, **options)
    predictor = Predictor(model, random_parameters(model, 0), inputs, scale=0.5, batch_size=2)
    rng, size = np.random.default_rng(0), (67, 90)
    image = {
        "image": random_image(*size),
        "depth": rng.integers(0, 2**16, size, np.uint16),
    }
    expected = predictor.logits(image)
    program = predictor.lower(size, "logits").compile()
    batches = predictor.each_batch(
        (part for _ in range(2) for part in predictor.parts(0, predictor.opened(image))),
        lambda _, batches: program(predictor.on_device, batches),
    )
    first, second = predictor.put_together(batches)
    np.testing.assert_array_equal(first.result["label"], second.result["label"])
    np.testing.assert_allclose(first.result["label"], expected, rtol=1e-4, atol=1e-4)
