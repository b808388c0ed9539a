"""From uint8 RGB to what the networks read."""

from __future__ import annotations

import json

import numpy as np
import pytest

from fcn_jax import Preprocessing
from fcn_jax.models.inputs import Inputs


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


def test_survives_json():
    preprocessing = Preprocessing("rgb", (1.5, 2.25, 3.0), (4.0, 5.0, 6.0), 0.125)
    text = json.dumps(preprocessing.to_dict())
    assert Preprocessing.from_dict(json.loads(text)) == preprocessing


@pytest.mark.usefixtures("unchecked_annotations")
@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"channel_order": "gbr"}, "bgr or rgb, got 'gbr'"),
        ({"mean": (1.0,)}, "one value each"),
        ({"std": (1.0, 0.0, 1.0)}, "none is 0"),
        ({"scale": 0.0}, "none is 0"),
    ],
)
def test_fields_are_checked(fields, message):
    with pytest.raises(ValueError, match=message):
        Preprocessing(**fields)


# ======================================================================== inputs

COLOR = Preprocessing()
DEPTH = Preprocessing("rgb", (7.844,), (1.0,), log=True)
HHA = Preprocessing("rgb", (132.431, 94.076, 118.477))


def random_arrays(size: tuple[int, int] = (4, 5)) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(3)
    return {
        "image": rng.integers(0, 256, (2, *size, 3), np.uint8),
        "hha": rng.integers(0, 256, (2, *size, 3), np.uint8),
        "depth": rng.integers(0, 9999, (2, *size)).astype(np.uint16),
    }


def test_depth_is_read_as_its_logarithm():
    depth = np.array([[[0, 1, 1000, 65535]]], np.uint16)
    expected = np.log([1.0, 1.0, 1000.0, 65535.0]) - 7.844  # 0 is missing, and no number's log
    result = DEPTH.apply(depth)
    assert result.shape == (1, 1, 4, 1)
    np.testing.assert_allclose(np.asarray(result).ravel(), expected, rtol=1e-5)


def test_early_fusion_joins_the_channels():
    arrays = random_arrays()
    inputs = Inputs.of({"color_depth": {"image": COLOR, "depth": DEPTH}})
    result = inputs.apply(arrays)
    assert inputs.channels == {"color_depth": 4}
    np.testing.assert_array_equal(result[..., :3], COLOR.apply(arrays["image"]))
    np.testing.assert_array_equal(result[..., 3:], DEPTH.apply(arrays["depth"]))


def test_late_fusion_gives_every_input_its_own():
    arrays = random_arrays()
    inputs = Inputs.of({"color": {"image": COLOR}, "hha": {"hha": HHA}})
    result = inputs.apply(arrays)
    assert inputs.modalities == ("image", "hha")
    np.testing.assert_array_equal(result["color"], COLOR.apply(arrays["image"]))
    expected = arrays["hha"] - np.array(HHA.mean)  # in the stored order of channels
    np.testing.assert_allclose(result["hha"], expected, atol=1e-4)


def test_inputs_survive_json():
    inputs = Inputs.of({"color": {"image": COLOR, "depth": DEPTH}, "hha": {"hha": HHA}})
    assert Inputs.from_dict(json.loads(json.dumps(inputs.to_dict()))) == inputs


def test_an_image_alone_stands_for_the_only_modality():
    image = random_arrays()["image"]
    np.testing.assert_array_equal(Inputs.of(COLOR).apply(image), COLOR.apply(image))


def test_what_is_missing_is_named():
    inputs = Inputs.of({"color": {"image": COLOR}, "hha": {"hha": HHA}})
    with pytest.raises(ValueError, match="reads image, hha; hha is missing"):
        inputs.apply({"image": random_arrays()["image"]})
    with pytest.raises(ValueError, match="batch of 1-channel images"):
        DEPTH.apply(random_arrays()["image"])


def test_other_modalities_follow_the_range_of_the_weights():
    """HHA for weights that expect RGB from 0 to 1 divided by a deviation."""
    torchvision = Preprocessing("rgb", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), 1 / 255)
    hha = random_arrays()["hha"]
    result = HHA.on_scale_of(torchvision).apply(hha)
    expected = (hha / 255 - np.array(HHA.mean) / 255) / np.array(torchvision.std)
    np.testing.assert_allclose(result, expected, atol=1e-5)
    assert DEPTH.on_scale_of(torchvision) == DEPTH
