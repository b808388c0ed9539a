"""Label maps at the images' own size, beside Pillow's interpolation and direct arithmetic."""

from __future__ import annotations

import functools

import flax.linen as nn
import jax
import numpy as np
import pytest
from PIL import Image
from random_parameters import random_parameters

from fcn_jax.inference import Predictor, resize_image
from fcn_jax.networks import create_model
from fcn_jax.preprocessing import Preprocessing

PLAIN = Preprocessing(channel_order="rgb", mean=(0.0, 0.0, 0.0))


class Linear(nn.Module):
    """Scores of each pixel from its colour alone."""

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
    labels = predictor.labels(image)
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
    predictor = predictor_of(parameters, preprocessing=PLAIN, scale=scale)
    np.testing.assert_allclose(predictor.logits(image), expected, rtol=1e-4, atol=1e-2)
    assert predictor.labels(image).shape == size


def test_enlarged_images_give_labels_at_full_size(parameters) -> None:
    flat = np.full((5, 9, 3), (30, 200, 90), np.uint8)
    plain, enlarged = (
        predictor_of(parameters, preprocessing=PLAIN, scale=scale) for scale in (1.0, 2.5)
    )
    np.testing.assert_allclose(enlarged.logits(flat), plain.logits(flat), rtol=1e-5, atol=1e-3)


def test_several_images_of_mixed_sizes(parameters) -> None:
    images = [random_image(*size, seed=i) for i, size in enumerate([(3, 4), (9, 2), (3, 4)])]
    predictor = predictor_of(parameters)
    for image, labels in zip(images, predictor(images), strict=True):
        np.testing.assert_array_equal(labels, predictor.labels(image))
    assert predictor([]) == []


def test_the_networks_of_the_package() -> None:
    model = create_model("fcn8s", num_classes=4, width=0.05, fc_width=8)
    image = random_image(35, 50)
    variables = {"params": random_parameters(model, seed=0)}
    apply = jax.jit(functools.partial(model.apply, train=False))
    logits = apply(variables, Preprocessing().apply(jax.numpy.asarray(image[None])))
    labels = Predictor(model, variables).labels(image)
    # Compiled otherwise, sums round otherwise, which can turn a tie.
    best = np.take_along_axis(np.asarray(logits[0]), labels[..., None].astype(int), -1)[..., 0]
    np.testing.assert_allclose(best, logits[0].max(axis=-1), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((4, 5, 3), np.float32),
        np.zeros((4, 5), np.uint8),
        np.zeros((4, 5, 4), np.uint8),
        np.zeros((2, 4, 5, 3), np.uint8),
        np.zeros((0, 5, 3), np.uint8),
    ],
)
def test_what_is_no_image_is_refused(parameters, image: np.ndarray) -> None:
    with pytest.raises(ValueError, match="uint8 RGB"):
        predictor_of(parameters).labels(image)


@pytest.mark.parametrize("scale", [0.0, -1.0])
def test_scale_must_be_positive(scale: float) -> None:
    with pytest.raises(ValueError, match="scale must be positive"):
        resize_image(random_image(4, 5), scale)
