"""Images in memory of every kind, as uint8 RGB."""

from __future__ import annotations

import io

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from fcn_jax.data.images import read_image, to_rgb

SIZES = [(1, 1), (1, 3), (3, 1), (7, 13), (4, 3)]


@pytest.mark.parametrize("size", SIZES)
def test_arrays_of_every_kind(rng, size):
    rgb = rng.integers(0, 256, (*size, 3), np.uint8)
    grey, alpha = rgb[..., :1], rng.integers(0, 256, (*size, 1), np.uint8)
    repeated = np.repeat(grey, 3, axis=2)
    for image, expected in (
        (rgb, rgb),
        (jnp.asarray(rgb), rgb),
        (np.concatenate([rgb, alpha], 2), rgb),
        (grey, repeated),
        (grey[..., 0], repeated),
        (np.concatenate([grey, alpha], 2), repeated),
        (grey.astype(np.uint16) * 257, repeated),
        (rgb.astype(np.uint16) * 257, rgb),
        (rgb.astype(np.float32) / 255, rgb),
        (rgb.astype(np.float64) / 255, rgb),
        (np.maximum(rgb, 2).astype(np.float32), np.maximum(rgb, 2)),
        (grey[..., 0] > 99, (repeated > 99) * 255),
    ):
        found = to_rgb(image)
        assert found.dtype == np.uint8
        np.testing.assert_array_equal(found, expected, err_msg=f"{image.dtype} {image.shape}")
    assert np.shares_memory(to_rgb(rgb), rgb)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "LA", "P", "CMYK", "1", "I;16", "I", "F"])
def test_pillow_images_are_converted_as_their_files(rng, mode):
    rgb = Image.fromarray(rng.integers(0, 256, (7, 13, 3), np.uint8))
    if mode in ("I;16", "I"):
        image = Image.fromarray(rng.integers(0, 65536, (7, 13)).astype(np.uint16))
        image = image if mode == "I;16" else image.convert("I")
    elif mode == "F":
        image = Image.fromarray(rng.random((7, 13), np.float32))
    else:
        image = rgb.convert(mode)
    file = io.BytesIO()
    image.save(file, "TIFF")
    np.testing.assert_array_equal(to_rgb(image), read_image(file.getvalue()))


def test_an_exif_orientation_is_applied(rng):
    rgb = rng.integers(0, 256, (7, 13, 3), np.uint8)
    image = Image.fromarray(rgb)
    image.getexif()[0x0112] = 3
    np.testing.assert_array_equal(to_rgb(image), rgb[::-1, ::-1])


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((4, 5, 5), np.uint8), r"1 to 4 channels, got uint8 \(4, 5, 5\)"),
        (np.zeros(4, np.uint8), r"\(h, w\) .* got uint8 \(4,\)"),
        (np.zeros((0, 5, 3), np.uint8), r"got uint8 \(0, 5, 3\)"),
        (np.zeros((4, 5), np.int64), "int64 may hold 8 or 16 bits; convert it to uint8 or uint16"),
        (np.full((4, 5), np.nan), "values nan..nan are outside 0..1 and 0..255"),
        (np.full((4, 5), -0.1), "values -0.1..-0.1 are outside"),
        (np.full((4, 5), 256.0), r"values 256\.0..256\.0 are outside"),
        (Image.new("I", (4, 5), 70000), "values 70000..70000 are outside 16 bits"),
    ],
)
def test_what_is_no_image_is_refused(image, message):
    with pytest.raises(ValueError, match=message):
        to_rgb(image)
