"""From uint8 RGB to what the networks read."""

from __future__ import annotations

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fcn_jax import Preprocessing


@pytest.fixture
def images() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (2, 5, 7, 3), np.uint8)


def test_default_is_caffes(images):
    result = np.asarray(Preprocessing().apply(images))
    assert result.dtype == np.float32
    red, green, blue = (images[..., c].astype(np.float64) for c in range(3))
    truth = np.stack([blue - 104.00699, green - 116.66877, red - 122.67892], axis=-1)
    np.testing.assert_allclose(result, truth, atol=1e-5)


def test_scale_then_mean_then_std_in_rgb(images):
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    preprocessing = Preprocessing("rgb", mean, std, 1 / 255)
    truth = (images / 255 - mean) / std
    np.testing.assert_allclose(preprocessing.apply(images), truth, atol=1e-5)


def test_pixels_outside_the_true_size_are_exactly_zero(images):
    size = np.array([[5, 4], [2, 7]], np.int32)
    result = np.asarray(jax.jit(Preprocessing().apply)(images, size))
    whole = np.asarray(Preprocessing().apply(images))
    for image, full, (height, width) in zip(result, whole, size, strict=True):
        np.testing.assert_array_equal(image[:height, :width], full[:height, :width])
        assert not image[height:].any()
        assert not image[:, width:].any()


def test_padding_with_mean_colour_is_padding_with_zeros(images):
    """A canvas gives the first layer what its own zero padding would."""
    canvas = np.zeros((2, 9, 9, 3), np.uint8)
    canvas[:, :5, :7] = images
    result = Preprocessing().apply(canvas, jnp.array([[5, 7], [5, 7]]))
    np.testing.assert_array_equal(result[:, :5, :7], Preprocessing().apply(images))
    assert float(jnp.abs(result).sum()) == float(jnp.abs(result[:, :5, :7]).sum())


def test_survives_json():
    preprocessing = Preprocessing("rgb", (1.5, 2.25, 3.0), (4.0, 5.0, 6.0), 0.125)
    text = json.dumps(preprocessing.to_dict())
    assert Preprocessing.from_dict(json.loads(text)) == preprocessing


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"channel_order": "gbr"}, "bgr or rgb, got 'gbr'"),
        ({"mean": (1.0,)}, "3 values"),
        ({"std": (1.0, 0.0, 1.0)}, "none that is 0"),
        ({"scale": 0.0}, "none that is 0"),
    ],
)
def test_fields_are_checked(fields, message):
    with pytest.raises(ValueError, match=message):
        Preprocessing(**fields)
