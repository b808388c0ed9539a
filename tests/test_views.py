"""Test-time augmentation beside means, made by hand, of the predictions of single views."""

from __future__ import annotations

import itertools

import flax.linen as nn
import jax
import numpy as np
import pytest
import toy_backbones
from PIL import Image
from random_parameters import random_parameters

import fcn_jax
from fcn_jax.inference.compute import describe_views
from fcn_jax.inference.predictor import Predictor
from fcn_jax.models.inputs import Inputs, Preprocessing

PLAIN = Preprocessing("rgb", (0.0,) * 3, (64.0,) * 3)
pytestmark = pytest.mark.usefixtures("plain_forms")

SCALES = (0.5, 1.0, 1.5)
SIZES = [(97, 131), (64, 80), (1, 1), (1, 300)]


def random_image(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


@pytest.fixture(scope="module")
def network():
    model = fcn_jax.create_model(
        "fcn16s", backbone=toy_backbones.plain, num_classes=3, width=1 / 4, fc_width=8
    )
    return model, {"params": random_parameters(model, seed=0)}, Inputs.of(PLAIN)


def mean_by_hand(network, images, scales, flip=True, **options) -> list[np.ndarray]:
    """Of predictors that see one view each, in float64."""
    total = [0.0] * len(images)
    for scale in scales:
        single = Predictor(*network, scale=scale, **options)
        for number, chances in enumerate(single.probabilities(images)):
            total[number] += chances.astype(np.float64)
        if flip:
            mirrored = single.probabilities([image[:, ::-1] for image in images])
            for number, chances in enumerate(mirrored):
                total[number] += chances[:, ::-1]
    return [chances / len(scales) / (1 + flip) for chances in total]


def test_images_of_mixed_sizes_in_one_batch(network):
    """Each is mirrored and scaled by itself, not with the canvas around it."""
    images = [random_image(*size, seed=i) for i, size in enumerate(SIZES)]
    predictor = Predictor(*network, canvas=(104, 304), batch_size=4, flip=True, scales=SCALES)
    got = predictor.probabilities(images)
    expected = mean_by_hand(network, images, SCALES, canvas=(160, 456), batch_size=4)
    mirrored = predictor.probabilities([image[:, ::-1] for image in images])
    alone = Predictor(*network, scales=SCALES).probabilities(images[0])
    assert np.abs(alone - got[0]).max() > 1e-3  # mirroring changes something
    for size, chances, right, turned in zip(SIZES, got, expected, mirrored, strict=True):
        assert chances.dtype == np.float32
        assert chances.shape == (*size, 3)
        np.testing.assert_allclose(chances, right, atol=1e-5)
        np.testing.assert_allclose(turned[:, ::-1], chances, atol=1e-5)


def test_an_image_alone(network):
    image = random_image(97, 131, seed=9)
    predictor = Predictor(*network, flip=True, scales=(0.5, 1.5))
    (expected,) = mean_by_hand(network, [image], (0.5, 1.5))
    np.testing.assert_allclose(predictor.probabilities(image), expected, atol=1e-5)
    np.testing.assert_allclose(np.exp(predictor.logits(image)), expected, atol=1e-5)
    labels = predictor(image)
    best = np.take_along_axis(expected, labels[..., None].astype(int), -1)[..., 0]
    np.testing.assert_allclose(best, expected.max(-1), atol=1e-5)


class Linear(nn.Module):
    """Two heads from the image and the depth of each pixel; knows nothing of canvases."""

    @nn.compact
    def __call__(self, inputs: dict[str, jax.Array], train: bool) -> dict[str, jax.Array]:
        shift = jax.numpy.arange(inputs["image"].shape[2])[None, None, :, None] / 8.0
        depth = inputs["depth"] + shift  # so that left is another than right
        return {"color": inputs["image"], "near": jax.numpy.concatenate([depth, -depth], axis=-1)}


@pytest.mark.parametrize("scale", [1.0, 0.5])
def test_modalities_heads_and_networks_without_canvas(scale):
    """Sizes that are one at half the scale, and then again several."""
    inputs = Inputs.of(
        {
            "image": {"image": PLAIN},
            "depth": {"depth": Preprocessing("rgb", (5.0,), (1.0,), log=True)},
        }
    )
    heads = {"color": tuple("rgb"), "near": ("far", "near")}
    rng = np.random.default_rng(1)
    images = [
        {
            "image": random_image(side, 40, seed=side),
            "depth": rng.integers(1, 2000, (side, 40)).astype(np.uint16),
        }
        for side in (31, 32, 33)
    ]
    scales = (1.0, 1.5)
    predictor = Predictor(Linear(), {}, inputs, heads, scale=scale, flip=True, scales=scales)
    got = predictor.probabilities(images)
    for number, head in itertools.product(range(3), heads):
        image = images[number]
        total = 0.0
        for factor in scales:
            single = Predictor(Linear(), {}, inputs, heads, scale=scale * factor)
            mirrored = {name: array[:, ::-1] for name, array in image.items()}
            total += single.probabilities(image)[head]
            total += single.probabilities(mirrored)[head][:, ::-1]
        np.testing.assert_allclose(got[number][head], total / 4, atol=1e-5)


class BySize(nn.Module):
    """An overconfident answer for images of 5 rows, a careful one for all others."""

    @nn.compact
    def __call__(self, images: jax.Array, train: bool) -> jax.Array:
        answer = np.array([0, 20] if images.shape[1] == 5 else [3, 0], np.float32)
        return jax.numpy.broadcast_to(answer, (*images.shape[:3], 2))


def test_probabilities_are_averaged_and_not_logits():
    heads = {"label": ("a", "b")}
    predictor = Predictor(BySize(), {}, Inputs.of(PLAIN), heads, scales=SCALES)
    image = random_image(10, 10)
    assert (predictor(image) == 0).all()
    expected = np.broadcast_to([0.635, 0.365], (10, 10, 2))
    np.testing.assert_allclose(predictor.probabilities(image), expected, atol=5e-4)
    np.testing.assert_allclose(predictor.class_map(image, "b"), np.log(0.365), atol=2e-3)
    example = {"image": image, "label": np.ones((10, 10), np.uint8), "id": "a"}
    metrics = fcn_jax.score(predictor, [example])["label"]
    assert metrics.loss == pytest.approx(-np.log(0.365), abs=2e-3)


def test_scores_are_those_of_the_predictions(network):
    examples = [
        {"image": random_image(*size, seed=i), "id": str(i)}
        for i, size in enumerate([(20, 33), (41, 30), (20, 33)])
    ]
    rng = np.random.default_rng(4)
    for example in examples:
        size = example["image"].shape[:2]
        example["label"] = rng.choice(np.array([0, 1, 2, 255], np.uint8), size)
    predictor = Predictor(*network, batch_size=2, flip=True, scales=(1.0, 1.5))
    expected, losses = np.zeros((3, 3), int), []
    for example, chances in zip(
        examples, mean_by_hand(network, [e["image"] for e in examples], (1.0, 1.5)), strict=True
    ):
        label = example["label"]
        valid = label != 255
        np.add.at(expected, (label[valid], chances.argmax(-1)[valid]), 1)
        losses += (-np.log(chances[valid][np.arange(valid.sum()), label[valid]])).tolist()
    np.testing.assert_array_equal(fcn_jax.evaluate(predictor, examples)["label"], expected)
    assert fcn_jax.score(predictor, examples)["label"].loss == pytest.approx(
        np.mean(losses), rel=1e-4
    )


def test_mirrored_images_in_tiles_give_the_whole_image(network):
    model, variables, inputs = network
    image = random_image(150, 333)
    whole = Predictor(model, variables, inputs, flip=True)
    in_tiles = Predictor(model, variables, inputs, flip=True, tile=147, batch_size=2)
    assert len(list(in_tiles.parts(0, {"image": image}))) > 6
    expected = whole.probabilities(image)
    out = np.zeros_like(expected)
    assert in_tiles.probabilities(image, out=out) is out
    np.testing.assert_allclose(out, expected, atol=1e-5)


@pytest.mark.parametrize("scales", [(), (0.0,), (1.0, -1.0), (float("nan"),), (1.0, 1.0)])
def test_scales_must_be_different_factors(network, scales):
    with pytest.raises(ValueError, match="scales must be different positive factors, got"):
        Predictor(*network, scales=scales)


def test_a_classifier_has_one_view():
    model = fcn_jax.create_model("classifier", num_classes=3, width=1 / 16, fc_width=8)
    for options in ({"flip": True}, {"scales": (0.5,)}):
        with pytest.raises(ValueError, match="flip and scales are for networks that score"):
            Predictor(model, {}, **options)


def test_what_is_told():
    assert describe_views(False, (1.0,)) == ""
    assert describe_views(True, (0.5, 1.0)) == (
        "test-time augmentation: mean of the probabilities of 4 views "
        "(scale 0.5, 1, each as it is and mirrored)"
    )


def test_predict_averages_and_says_so(tmp_path, capsys):
    from fcn_jax.cli import predict

    model = fcn_jax.create_model("fcn32s", num_classes=3, width=1 / 16, fc_width=8)
    fcn_jax.save_weights(tmp_path / "net.npz", random_parameters(model, 0))
    Image.fromarray(random_image(33, 40)).save(tmp_path / "a.png")
    arguments = [f"--weights={tmp_path / 'net.npz'}", "--padding=same", str(tmp_path / "a.png")]
    arguments += [f"--output={tmp_path}", "--flip", "--scales=1,1.5"]
    assert predict.main(arguments) == 0
    assert "mean of the probabilities of 4 views" in capsys.readouterr().out
    predictor = fcn_jax.load(tmp_path / "net.npz", padding="same", flip=True, scales=(1.0, 1.5))
    with Image.open(tmp_path / "labels" / "a.png") as labels:
        np.testing.assert_array_equal(np.asarray(labels), predictor(tmp_path / "a.png"))
    for wrong in ("--scales=0", "--scales=1,1"):
        assert predict.main([*arguments[:-1], wrong]) == 2
        assert "scales must be different positive factors" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        predict.main([*arguments[:-1], "--scales=big"])
    assert "'big' is not a list such as 0.5,1,1.5" in capsys.readouterr().err
