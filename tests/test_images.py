"""Images of every kind become uint8 RGB, and label files ids, without loss."""

from __future__ import annotations

import io
import re

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from fcn_jax.classes import ClassRow, ClassTable
from fcn_jax.data.images import (
    encoded_image,
    image_files,
    pixel_digest,
    read_image,
    read_label,
    read_mask,
    to_rgb,
)
from fcn_jax.data.voc import VOC

TABLE = ClassTable(
    (
        ClassRow("edge", (9, 9, 9), ignored=True),
        ClassRow("road", (128, 64, 128), id=7),
        ClassRow("car", (0, 0, 142), id=26),
    )
)


def write(path, array, mode=None, **options):
    image = Image.fromarray(array)
    (image.convert(mode) if mode else image).save(path, **options)
    return path


@pytest.mark.parametrize("size", [(1, 1), (7, 13)])
def test_modes_without_loss(tmp_path, rng, size):
    rgb = rng.integers(0, 256, (*size, 3), np.uint8)
    grey = rgb[..., 0]
    alpha = rng.integers(0, 256, (*size, 1), np.uint8)
    repeated = np.repeat(grey[..., None], 3, -1)
    files = {
        write(tmp_path / "rgb.png", rgb): rgb,
        write(tmp_path / "rgba.png", np.concatenate([rgb, alpha], -1)): rgb,
        write(tmp_path / "grey.png", grey): repeated,
        write(tmp_path / "grey16.png", grey.astype(np.uint16) * 257): repeated,
        write(tmp_path / "float.tiff", grey.astype(np.float32) / 255): repeated,
        write(tmp_path / "bit.png", (grey > 99) * np.uint8(255), "1"): (repeated > 99) * 255,
        write(tmp_path / "cmyk.tiff", rgb, "CMYK"): rgb,
    }
    palette = Image.fromarray(grey % 4, mode="L")
    palette = Image.frombytes("P", palette.size, palette.tobytes())
    palette.putpalette([v for color in VOC.palette[:4] for v in color.tolist()])
    palette.save(tmp_path / "palette.png")
    files[tmp_path / "palette.png"] = VOC.palette[grey % 4]
    for path, expected in files.items():
        image = read_image(path)
        assert image.dtype == np.uint8, path.name
        np.testing.assert_array_equal(image, expected, err_msg=path.name)
        content, size_read, digest = encoded_image(path)
        assert (size_read, digest) == (size, pixel_digest(expected.astype(np.uint8)))
        np.testing.assert_array_equal(read_image(content), expected, err_msg=path.name)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(tmp_path, rng, orientation):
    rgb = rng.integers(0, 256, (5, 8, 3), np.uint8)
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = write(tmp_path / "a.png", rgb, exif=exif)
    turned = {  # the definition in the EXIF standard: where row 0 and column 0 of the file belong
        1: rgb,
        2: rgb[:, ::-1],
        3: rgb[::-1, ::-1],
        4: rgb[::-1],
        5: rgb.transpose(1, 0, 2),
        6: np.rot90(rgb, -1),
        7: rgb[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(rgb, 1),
    }[orientation]
    np.testing.assert_array_equal(read_image(path), turned)
    content, size, digest = encoded_image(path)
    assert (size, digest) == (turned.shape[:2], pixel_digest(turned))
    np.testing.assert_array_equal(read_image(content), turned)


def test_a_digest_is_of_shape_type_and_pixels(rng):
    pixels = rng.integers(0, 256, (6, 8, 3), np.uint8)
    others = [pixels.reshape(8, 6, 3), pixels.view(np.int8), pixels[::-1], pixels[:, :, 0]]
    digests = {pixel_digest(array) for array in (pixels, *others)}
    assert len(digests) == 5
    assert all(re.fullmatch("[0-9a-f]{16}", digest) for digest in digests)
    assert pixel_digest(np.asfortranarray(pixels)) == pixel_digest(pixels)
    assert pixel_digest(np.repeat(pixels, 2, axis=1)[:, ::2]) == pixel_digest(pixels)


def test_a_renamed_resaved_or_retagged_image_keeps_its_digest(tmp_path, rng):
    rgb = rng.integers(0, 256, (7, 9, 3), np.uint8)
    exif = Image.Exif()
    exif[0x010E] = "a description"
    files = [
        write(tmp_path / "a.png", rgb),
        write(tmp_path / "b.png", rgb, exif=exif, compress_level=1),
        write(tmp_path / "c.bmp", rgb),
        write(tmp_path / "d.webp", rgb, lossless=True),
    ]
    assert len({encoded_image(path).digest for path in files}) == 1
    content = write(tmp_path / "e.jpg", rgb, quality=90).read_bytes()
    described = write_jpeg_comment(content, b"edited")
    assert encoded_image(described).digest == encoded_image(content).digest


def write_jpeg_comment(content: bytes, comment: bytes) -> bytes:
    return content[:2] + b"\xff\xfe" + (len(comment) + 2).to_bytes(2) + comment + content[2:]


def test_broken_images_are_named(tmp_path, rng):
    write(tmp_path / "good.png", rng.integers(0, 256, (40, 40, 3), np.uint8))
    content = (tmp_path / "good.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(content[: len(content) // 2])
    (tmp_path / "text.jpg").write_text("no picture")
    (tmp_path / "empty.png").touch()
    for name in ("cut.png", "text.jpg", "empty.png"):
        for read in (read_image, read_label, encoded_image):
            with pytest.raises(ValueError, match=name):
                read(tmp_path / name)
    with pytest.raises(FileNotFoundError, match=r"none\.png: no such file"):
        read_image(tmp_path / "none.png")


def test_image_files_are_sorted_and_other_files_left(tmp_path):
    for name in ("b.JPG", "a.png", ".hidden.png", "notes.txt", "c.tif"):
        (tmp_path / name).touch()
    assert [path.name for path in image_files(tmp_path)] == ["a.png", "b.JPG", "c.tif"]


# ---- Labels


def test_label_files_of_ids(tmp_path, rng):
    ids = rng.integers(0, 3, (6, 11)).astype(np.uint8)
    palette = Image.frombytes("P", ids.shape[::-1], ids.tobytes())
    palette.putpalette(VOC.palette.ravel().tolist())
    palette.save(tmp_path / "palette.png")
    write(tmp_path / "grey.png", ids)
    write(tmp_path / "wide.png", ids.astype(np.uint16) * 300)
    write(tmp_path / "rgb.png", np.repeat(ids[..., None], 3, -1))
    Image.merge("LA", [Image.fromarray(ids)] * 2).save(tmp_path / "alpha.png")
    for name, factor in {"palette": 1, "grey": 1, "wide": 300, "rgb": 1, "alpha": 1}.items():
        np.testing.assert_array_equal(
            read_label(tmp_path / f"{name}.png"), ids.astype(int) * factor, err_msg=name
        )


def test_masks_tell_the_colors_of_the_entries_in_use(tmp_path):
    ids = np.array([[0, 5, 2], [5, 255, 0]], np.uint8)
    palette = Image.frombytes("P", ids.shape[::-1], ids.tobytes())
    palette.putpalette(VOC.palette.ravel().tolist())
    palette.save(tmp_path / "palette.png")
    mask = read_mask(tmp_path / "palette.png")
    np.testing.assert_array_equal(mask.ids, ids)
    assert mask.colors == {i: tuple(VOC.palette[i].tolist()) for i in (0, 2, 5, 255)}
    assert not mask.by_color
    assert read_mask(write(tmp_path / "grey.png", ids)).colors is None


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P"])
def test_label_files_of_colors(tmp_path, rng, mode):
    ids = rng.choice([0, 7, 26], (6, 11))
    colors = {0: (9, 9, 9), 7: (128, 64, 128), 26: (0, 0, 142)}
    rgb = np.array([[colors[i] for i in row] for row in ids.tolist()], np.uint8)
    image = Image.fromarray(rgb)
    (image.quantize(3) if mode == "P" else image.convert(mode)).save(tmp_path / "m.png")
    kind = "color" if mode == "P" else "auto"
    np.testing.assert_array_equal(read_label(tmp_path / "m.png", TABLE, kind), ids)


def test_colors_of_no_class_are_listed(tmp_path):
    rgb = np.array([[(9, 9, 9), (1, 2, 3)]], np.uint8)
    path = write(tmp_path / "m.png", rgb)
    with pytest.raises(ValueError, match=r"m\.png.*no class: \(1, 2, 3\)"):
        read_label(path, TABLE)
    with pytest.raises(ValueError, match=r"m\.png.*name,r,g,b"):
        read_label(path)


def test_jpeg_labels_are_refused():
    buffer = io.BytesIO()
    Image.fromarray(np.zeros((9, 9), np.uint8)).save(buffer, "JPEG")
    with pytest.raises(ValueError, match=r"mask\.jpg.*PNG"):
        read_label(buffer.getvalue(), name="mask.jpg")


def test_published_label_as_index_and_as_color(shared):
    """VOC's own palette PNG holds ids; the same drawing in colours gives the same ids."""
    ids = read_label(shared / "data/caffe_fcn_demo/label.png", VOC)
    assert set(np.unique(ids)) <= {*range(21), 255}
    np.testing.assert_array_equal(
        read_label(shared / "data/caffe_fcn_demo/label.png", VOC, "color"), ids
    )
    assert set(np.unique(read_label(shared / "data/caffe_fcn_demo/output.png", VOC))) <= {
        *range(21)
    }


# ---- Images in memory

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


def test_the_orientation_of_a_pillow_image_is_applied(rng):
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
