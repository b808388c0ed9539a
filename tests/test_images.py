"""Images of every kind become uint8 RGB, and label files ids, without loss."""

from __future__ import annotations

import contextlib
import io
import re
import subprocess
import sys
import tracemalloc
import warnings
import zlib
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from fcn_jax.classes import ClassRow, ClassTable
from fcn_jax.data.images import (
    encode_png,
    encoded_image,
    image_files,
    pixel_digest,
    read_image,
    read_label,
    read_mask,
    read_pixels,
    skipped_files,
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
        if path.stem in ("grey16", "float"):  # kept as they are, for the set's range
            assert encoded_image(path).dtype in (np.uint16, np.float32)
            continue
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


# ---- Masks whose palette was renumbered

PALETTE_TABLE = ClassTable(
    (
        ClassRow("sky", (0, 0, 0)),
        ClassRow("road", (128, 64, 128)),
        ClassRow("car", (0, 0, 142)),
        ClassRow("edge", (9, 9, 9), ignored=True, id=7),
    )
)
COLORS = {0: (0, 0, 0), 1: (128, 64, 128), 2: (0, 0, 142), 7: (9, 9, 9), 255: (224, 224, 192)}


def palette_file(path, index, entries):
    """A palette file whose entry i has the colour entries[i]."""
    image = Image.frombytes("P", index.shape[::-1], index.astype(np.uint8).tobytes())
    flat = np.zeros((max(entries) + 1, 3), np.uint8)
    for i, color in entries.items():
        flat[i] = color
    image.putpalette(flat.ravel().tolist())
    image.save(path, optimize=False)
    return path


@pytest.mark.parametrize("suffix", ["png", "gif", "tif", "bmp"])
@pytest.mark.parametrize("order", [(0, 1, 2, 7, 255), (7, 255, 1, 0, 2), (2, 0), (1,), (255, 7)])
def test_colors_decide_where_palettes_are_renumbered(tmp_path, rng, suffix, order):
    ids = rng.choice(order, (9, 11)).astype(np.uint8)
    index = np.array([order.index(i) for i in ids.ravel().tolist()]).reshape(ids.shape)
    path = palette_file(
        tmp_path / f"m.{suffix}", index, {k: COLORS[i] for k, i in enumerate(order)}
    )
    labels = PALETTE_TABLE.to_labels(ids)
    mask = read_mask(path, PALETTE_TABLE)
    np.testing.assert_array_equal(PALETTE_TABLE.to_labels(mask.ids), labels)
    assert mask.by_color == (order != (0, 1, 2, 7, 255) or len(order) > 3)
    if suffix == "gif":
        with pytest.raises(ValueError, match=r"m\.gif: GIF renumbers ids; store masks as PNG, or"):
            read_mask(path)
        with pytest.raises(ValueError, match="GIF renumbers"):
            read_mask(path, PALETTE_TABLE, "index")
    else:
        np.testing.assert_array_equal(read_mask(path, PALETTE_TABLE, "index").ids, index)
        np.testing.assert_array_equal(read_mask(path).ids, index)


def test_palettes_in_the_order_of_the_ids_and_decorative_ones_leave_indices_alone(tmp_path, rng):
    """Whatever colours void and unused entries have, and whatever the palette's length."""
    ids = rng.choice([0, 1, 2, 255], (9, 11)).astype(np.uint8)
    ramp = {i: (i, i, i) for i in range(256)}  # black is the sky's colour in its place
    noise = {i: tuple(rng.integers(150, 255, 3).tolist()) for i in range(256)}
    padded = {**dict.fromkeys(range(256), (0, 0, 0)), 1: COLORS[1], 2: COLORS[2]}  # void is black
    cyclic = {i: COLORS[i % 3] for i in range(256)}
    for entries in (COLORS, ramp, noise, padded, cyclic, {**noise, 1: COLORS[1]}):
        for present in (ids, np.where(ids == 0, 255, ids)):
            mask = read_mask(palette_file(tmp_path / "m.png", present, entries), PALETTE_TABLE)
            np.testing.assert_array_equal(mask.ids, present)
            assert not mask.by_color
    short = palette_file(tmp_path / "m.png", ids, COLORS).read_bytes()
    place = short.index(b"PLTE")
    assert int.from_bytes(short[place - 4 : place]) == 768


def test_palettes_of_which_only_some_colors_are_known_are_refused(tmp_path):
    index = np.array([[0, 1, 2]])
    entries = {0: COLORS[2], 1: (1, 2, 3), 2: COLORS[0]}
    path = palette_file(tmp_path / "m.png", index, entries)
    with pytest.raises(ValueError, match=r"m\.png: .* contradict .* 1 \(1, 2, 3\) have .*'index'"):
        read_mask(path, PALETTE_TABLE)
    np.testing.assert_array_equal(read_mask(path, PALETTE_TABLE, "index").ids, index)
    with pytest.raises(ValueError, match=r"colours of no class: \(1, 2, 3\)"):
        read_mask(path, PALETTE_TABLE, "color")
    gif = palette_file(tmp_path / "m.gif", index, {**entries, 0: COLORS[0]})
    with pytest.raises(ValueError, match=r"m\.gif: GIF renumbers .* 1 \(1, 2, 3\)"):
        read_mask(gif, PALETTE_TABLE)


def test_classes_of_one_color_are_told_apart_by_indices_only(tmp_path):
    rows = (*PALETTE_TABLE.rows, ClassRow("van", COLORS[2], id=3))
    table = ClassTable(rows)
    index = np.array([[0, 2, 3]])
    entries = {0: COLORS[0], 2: COLORS[2], 3: COLORS[2]}
    np.testing.assert_array_equal(
        read_mask(palette_file(tmp_path / "m.png", index, entries), table).ids, index
    )
    moved = palette_file(tmp_path / "n.png", np.array([[0, 1]]), {0: COLORS[2], 1: COLORS[0]})
    with pytest.raises(ValueError, match="contradict"):
        read_mask(moved, table)
    rgb = write(tmp_path / "rgb.png", np.array([[COLORS[0]]], np.uint8))
    with pytest.raises(ValueError, match="cannot tell the classes car, van: all are"):
        read_mask(rgb, table)


def test_renumbered_masks_of_voc_have_the_right_classes(shared, tmp_path):
    """As editors write them: only the colours in use, the most frequent first."""
    files = sorted((shared / "data/VOCdevkit/VOC2012/SegmentationClass").glob("*.png"))[::20]
    contradicting = 0
    for path in files:
        with Image.open(path) as image:
            ids, rgb = np.array(image), np.array(image.convert("RGB"))
        codes, index, counts = np.unique(
            rgb.astype(int) @ (65536, 256, 1), return_inverse=True, return_counts=True
        )
        rank = np.argsort(np.argsort(-counts))
        entries = {int(rank[i]): tuple(code.to_bytes(3)) for i, code in enumerate(codes.tolist())}
        stored = palette_file(tmp_path / "m.png", rank[index].reshape(ids.shape), entries)
        mask = read_mask(stored, VOC)
        np.testing.assert_array_equal(mask.ids, ids)
        contradicting += mask.by_color
    assert contradicting > len(files) // 2


# ---- Masks of other kinds


def test_gif_keeps_ids_only_as_grey_levels_in_their_places(tmp_path):
    path = write(tmp_path / "m.gif", np.array([[0, 1, 2]], np.uint8))
    np.testing.assert_array_equal(read_mask(path).ids, [[0, 1, 2]])
    path = write(tmp_path / "m.gif", np.array([[2, 5, 8]], np.uint8))
    with pytest.raises(ValueError, match="GIF renumbers ids"):
        read_mask(path)


@pytest.mark.parametrize(
    ("suffix", "options"),
    [
        ("jpg", {}),
        ("webp", {"lossless": False}),
        ("jp2", {}),
        ("avif", {}),
        ("tif", {"compression": "jpeg"}),
    ],
)
def test_masks_in_formats_that_change_values_are_refused(tmp_path, suffix, options):
    path = write(tmp_path / f"m.{suffix}", np.zeros((16, 16, 3), np.uint8), **options)
    with pytest.raises(ValueError, match=rf"m\.{suffix}: \w+ blurs .* store masks as PNG"):
        read_mask(path, PALETTE_TABLE)
    assert read_image(path).shape == (16, 16, 3)


def test_lossless_webp_keeps_colors(tmp_path, rng):
    ids = rng.choice([0, 1, 2], (9, 11))
    rgb = np.array([COLORS[i] for i in ids.ravel().tolist()], np.uint8).reshape(9, 11, 3)
    path = write(tmp_path / "m.webp", rgb, lossless=True)
    np.testing.assert_array_equal(read_mask(path, PALETTE_TABLE).ids, ids)


@pytest.mark.parametrize("suffix", ["gif", "png", "tif"])
def test_masks_of_several_pictures_are_refused(tmp_path, suffix):
    frames = [Image.new("L", (5, 4), value) for value in (1, 200)]
    path = tmp_path / f"m.{suffix}"
    frames[0].save(path, save_all=True, append_images=frames[1:])
    with pytest.raises(ValueError, match=rf"m\.{suffix}: .*2 pictures"):
        read_mask(path)
    if suffix == "tif":  # the pages are bands
        assert read_pixels(path).shape == (4, 5, 2)
    else:
        assert read_image(path).shape == (4, 5, 3)  # of an animation the first frame


def test_a_mask_with_its_own_previews_is_one_picture(tmp_path, rng):
    ids = rng.integers(0, 9, (8, 12)).astype(np.uint8)
    preview = Image.fromarray(ids[::2, ::2])
    preview.encoderinfo = {"tiffinfo": {254: 1}}
    Image.fromarray(ids).save(tmp_path / "m.tif", save_all=True, append_images=[preview])
    np.testing.assert_array_equal(read_mask(tmp_path / "m.tif").ids, ids)


@pytest.mark.parametrize("mode", ["L", "P", "RGB", "I;16"])
@pytest.mark.parametrize("orientation", [3, 6])
def test_exif_orientation_of_masks(tmp_path, rng, mode, orientation):
    ids = rng.choice([0, 1, 2], (5, 8)).astype(np.uint16 if mode == "I;16" else np.uint8)
    exif = Image.Exif()
    exif[0x0112] = orientation
    if mode == "P":
        image = Image.open(palette_file(tmp_path / "p.png", ids, COLORS))
    elif mode == "RGB":
        image = Image.fromarray(np.array([COLORS[0], COLORS[1], COLORS[2]], np.uint8)[ids])
    else:
        image = Image.fromarray(ids)
    image.save(tmp_path / "m.png", exif=exif)
    turned = np.rot90(ids, {3: 2, 6: -1}[orientation])
    np.testing.assert_array_equal(read_mask(tmp_path / "m.png", PALETTE_TABLE).ids, turned)


@pytest.mark.parametrize("dtype", [np.int32, np.float32])
def test_signed_masks_keep_minus_one(tmp_path, dtype):
    ids = np.array([[-1, 0, 300], [7, -1, 70000]])
    Image.fromarray(ids.astype(dtype)).save(tmp_path / "m.tif")
    np.testing.assert_array_equal(read_mask(tmp_path / "m.tif").ids, ids)


@pytest.mark.parametrize("value", [0.5, np.nan, np.inf])
def test_fractions_are_no_ids(tmp_path, value):
    values = np.array([[1, value]], np.float32)
    Image.fromarray(values).save(tmp_path / "m.tif")
    np.save(tmp_path / "m.npy", values)
    for name in ("m.tif", "m.npy"):
        with pytest.raises(ValueError, match=rf"{name}: holds {value}, which is no class id"):
            read_mask(tmp_path / name)


@pytest.mark.parametrize(
    "dtype", ["u1", "i1", "<u2", ">u2", "<i4", ">i4", "<i8", "<u8", "<f4", ">f8", "<f2", "?"]
)
@pytest.mark.parametrize("order", ["C", "F"])
def test_npy_masks(tmp_path, rng, dtype, order):
    ids = np.asarray(rng.integers(0, 2 if dtype == "?" else 100, (5, 7)).astype(dtype), order=order)
    if np.dtype(dtype).kind in "if":
        ids[2, 3] = -1
    np.save(tmp_path / "m.npy", ids)
    found = read_mask(tmp_path / "m.npy", PALETTE_TABLE).ids
    assert found.dtype.kind in "ui"
    assert found.dtype.isnative
    np.testing.assert_array_equal(found, ids.astype(int))
    assert PALETTE_TABLE.to_labels(np.where(ids.astype(int) < 0, found, 1))[2, 3] in (1, 255)


NO_NPY = {
    "3 axes": np.zeros((2, 3, 1), np.uint8),
    "1 axis": np.zeros(3, np.uint8),
    "no pixel": np.zeros((0, 3), np.uint8),
    "complex": np.zeros((2, 3), complex),
    "words": np.array([["a"]]),
    "objects": np.array([[None]]),
    "dates": np.zeros((2, 2), "M8[s]"),
    "fields": np.zeros((2, 2), [("a", "u1")]),
    "too large": np.array([[2**40]]),
}


@pytest.mark.parametrize("case", NO_NPY)
def test_npy_files_that_are_no_masks(tmp_path, case):
    np.save(tmp_path / "m.npy", NO_NPY[case], allow_pickle=True)
    with pytest.raises(ValueError, match=r"m\.npy: "):
        read_mask(tmp_path / "m.npy")


def test_broken_npy_files_are_named_and_claim_no_memory(tmp_path):
    path = tmp_path / "m.npy"
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(
            file, {"descr": "|u1", "fortran_order": False, "shape": (10**6, 10**7)}
        )
    for content in (path.read_bytes(), b"", b"\x93NUMPY", b"no array", b"PK\x03\x04"):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"m\.npy: "):
            read_mask(path)
    with pytest.raises(FileNotFoundError, match="none"):
        read_mask(tmp_path / "none.npy")


# ---- Files that are opened, and those that are not


@pytest.mark.parametrize("text", [b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n"])
def test_other_formats_are_not_opened_whatever_their_name(tmp_path, monkeypatch, text):
    (tmp_path / "a.png").write_bytes(text)
    monkeypatch.setattr("subprocess.check_call", lambda *_: pytest.fail("started a program"))
    for read in (read_image, read_mask, encoded_image):
        with pytest.raises(ValueError, match=r"a\.png: not an image file that can be read"):
            read(tmp_path / "a.png")


def test_files_that_look_like_images_but_are_left_out_are_told(tmp_path, rng):
    rgb = rng.integers(0, 256, (5, 6, 3), np.uint8)
    png = write(tmp_path / "kept.png", rgb).read_bytes()
    for name in ("none", "odd.picture", ".hidden.png", "raw.CR2", "notes.txt", "Thumbs.db"):
        (tmp_path / name).write_bytes(png if "s" not in name else b"words and numbers" * 9)
    (tmp_path / "folder.dng").mkdir()
    skipped = {path.name: why for path, why in skipped_files(tmp_path).items()}
    assert skipped == {
        ".hidden.png": "its name begins with a dot",
        "none": "holds a PNG image, but its name does not say so",
        "odd.picture": "holds a PNG image, but its name does not say so",
        "raw.CR2": ".cr2 files are not read; convert it to PNG or TIFF",
    }


def test_heic_is_read_where_its_package_is(tmp_path, rng, monkeypatch):
    heif = pytest.importorskip("pillow_heif")
    heif.register_heif_opener()
    grey = np.full((64, 64, 3), 90, np.uint8)
    grey[:32] = 200
    path = write(tmp_path / "a.heic", grey, quality=100)
    assert np.abs(read_image(path).astype(int) - grey).max() < 12
    with pytest.raises(ValueError, match=r"a\.heic: HEIF blurs label values"):
        read_mask(path)
    assert image_files(tmp_path) == [path]
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    with pytest.raises(ValueError, match=r"a\.heic: a HEIC image, .*pip install 'fcn-jax\[heic\]'"):
        read_image(path)


@pytest.mark.parametrize("times", [1, 2])
def test_many_pixels_give_no_warning_and_too_many_one_line(tmp_path, monkeypatch, times):
    path = write(tmp_path / "a.png", np.zeros((50, 40, 3), np.uint8))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 2000 // times - 1)
    with warnings.catch_warnings(action="error"):
        if times == 1:
            assert read_image(path).shape == (50, 40, 3)
        else:
            with pytest.raises(ValueError, match=r"a\.png: more than the 1998 pixels"):
                read_image(path)


def test_a_header_that_claims_more_than_the_file_holds(tmp_path, rng):
    """Pillow would make up the rest, in black."""
    path = write(tmp_path / "a.png", rng.integers(0, 9, (23, 17), np.uint8))
    content = path.read_bytes()
    header = b"IHDR" + (17).to_bytes(4, "big") + (1 << 23).to_bytes(4, "big") + content[24:29]
    path.write_bytes(content[:12] + header + zlib.crc32(header).to_bytes(4, "big") + content[33:])
    with pytest.raises(ValueError, match=r"a\.png: damaged: it cannot hold 17x8388608 pixels in"):
        read_label(path)
    path = write(tmp_path / "a.tif", rng.integers(0, 9, (23, 17), np.uint8))
    content = bytearray(path.read_bytes())
    with Image.open(path) as image:
        assert image.tag_v2[257] == 23
    entry = content.index((257).to_bytes(2, "little") + (4).to_bytes(2, "little"))
    content[entry + 8 : entry + 12] = (40).to_bytes(4, "little")
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"a\.tif: damaged: it holds 23 of 40 rows"):
        read_label(path)


MEMORY = r"""
import concurrent.futures, re, sys
import numpy as np
from fcn_jax.classes import ClassRow, ClassTable
from fcn_jax.data.images import read_mask
rows = [ClassRow(str(i), (i, 2 * i, 255 - i), id=3 * i) for i in range(90)]
table = ClassTable(tuple(rows))
def read(path):
    return table.to_labels(read_mask(path, table).ids)
def peak():
    return int(re.search(r"VmHWM:\s+(\d+)", open("/proc/self/status").read())[1]) * 1024
read(sys.argv[1])
before = peak()
with concurrent.futures.ThreadPoolExecutor(4) as pool:
    [*pool.map(read, sys.argv[2:])]
print(peak() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak is told by Linux")
def test_masks_take_little_memory_with_four_readers_at_once(tmp_path, rng):
    side = 2000
    colors = np.array([(i, 2 * i, 255 - i) for i in range(90)], np.uint8)
    ids = np.kron(rng.integers(0, 90, (side // 20, side // 20)), np.ones((20, 20), int))
    image = Image.fromarray(colors[ids]).convert("RGBA")
    image.save(tmp_path / "large.png", compress_level=1)
    image.crop((0, 0, 99, 99)).save(tmp_path / "small.png")
    files = [str(tmp_path / "small.png"), *[str(tmp_path / "large.png")] * 4]
    taken = subprocess.run(
        [sys.executable, "-c", MEMORY, *files], capture_output=True, text=True, check=True
    )
    assert int(taken.stdout) / (4 * side * side) < 12


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


def test_a_false_length_in_a_png_file_claims_no_memory(tmp_path, rng):
    path = tmp_path / "mask.png"
    ids = rng.integers(0, 3, (17, 23)).astype(np.uint8)
    content = bytearray(encode_png(ids))
    length = content.rindex(b"IDAT") - 4
    content[length : length + 4] = (2**31 - 1).to_bytes(4, "big")
    path.write_bytes(content)
    tracemalloc.start()
    try:
        with contextlib.suppress(ValueError):
            np.testing.assert_array_equal(read_mask(path).ids, ids)
        assert tracemalloc.get_traced_memory()[1] < 2**24
    finally:
        tracemalloc.stop()
