"""Images of other bands and depths than 8-bit RGB, from files to predictions."""

from __future__ import annotations

import io
import json
import struct
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
import tifffile
import toy_backbones
from PIL import Image

import fcn_jax
from fcn_jax import Preprocessing, weights
from fcn_jax.data import Source, bands, open_source, prepare
from fcn_jax.data.folder import FolderPlan
from fcn_jax.data.images import encoded_image, pixel_digest, read_image, read_pixels
from fcn_jax.data.loader import training_batches
from fcn_jax.data.tfds import check_features
from fcn_jax.data.transforms import Augmentation, check_example, resize
from fcn_jax.inference.predictor import Predictor
from fcn_jax.models.inputs import CAFFE, Inputs


def random_pixels(rng: np.random.Generator, shape: tuple[int, ...], dtype: str) -> np.ndarray:
    return (rng.random(shape) * 200 - (50 if dtype in ("int16", "float32") else 0)).astype(dtype)


# ======================================================================== reading


@pytest.mark.parametrize("dtype", bands.DTYPES)
@pytest.mark.parametrize("number", [2, 4, 5])
@pytest.mark.parametrize("layout", ["contig", "separate", "plain"])
def test_tiff_files_of_any_bands(tmp_path, rng, dtype, number, layout):
    pixels = random_pixels(rng, (13, 17, number), dtype)
    stored = np.ascontiguousarray(np.moveaxis(pixels, -1, 0)) if layout == "separate" else pixels
    options = {} if layout == "plain" else {"photometric": "minisblack", "planarconfig": layout}
    tifffile.imwrite(tmp_path / "a.tif", stored, **options)
    read = read_pixels(tmp_path / "a.tif")
    assert read.dtype == dtype
    np.testing.assert_array_equal(read, pixels)
    np.testing.assert_array_equal(encoded_image(tmp_path / "a.tif"), pixels)
    if (layout, number) == ("plain", 4):
        return  # called alpha, which is dropped where RGB is read
    with pytest.raises(ValueError, match=rf"a\.tif: has {number} bands"):
        read_image(tmp_path / "a.tif")


def test_alpha_of_a_tiff_file_is_a_band_if_it_is_none(tmp_path, rng):
    pixels = rng.integers(0, 256, (9, 12, 4), np.uint8)
    opaque = pixels.copy()
    opaque[..., 3] = np.where(rng.random((9, 12)) < 0.2, 0, 255)
    for name, array in {"infrared": pixels, "opaque": opaque}.items():
        tifffile.imwrite(tmp_path / f"{name}.tif", array)  # which calls both alpha
        with tifffile.TiffFile(tmp_path / f"{name}.tif") as file:
            assert file.pages[0].extrasamples == (2,)
    np.testing.assert_array_equal(read_pixels(tmp_path / "infrared.tif"), pixels)
    np.testing.assert_array_equal(read_pixels(tmp_path / "opaque.tif"), opaque[..., :3])
    np.testing.assert_array_equal(read_pixels(tmp_path / "opaque.tif", alpha="band"), opaque)
    dropped = read_pixels(tmp_path / "infrared.tif", alpha="drop")
    np.testing.assert_array_equal(dropped, pixels[..., :3])
    tifffile.imwrite(tmp_path / "x.tif", pixels, photometric="rgb", extrasamples=["unspecified"])
    np.testing.assert_array_equal(read_pixels(tmp_path / "x.tif"), pixels)


def test_previews_in_a_tiff_file_are_no_bands(tmp_path, rng):
    pixels = rng.integers(0, 256, (16, 20, 3), np.uint8)
    with tifffile.TiffWriter(tmp_path / "a.tif") as file:
        file.write(pixels, photometric="rgb", metadata=None)
        file.write(pixels[::2, ::2], photometric="rgb", subfiletype=1, metadata=None)
    np.testing.assert_array_equal(read_pixels(tmp_path / "a.tif"), pixels)


def png(pixels: np.ndarray, color_type: int) -> bytes:
    """A PNG of 16 bits, its rows filtered by turns with nothing, the left and the upper pixel."""
    height, width, channels = pixels.shape
    rows = pixels.astype(">u2").view(np.uint8).reshape(height, -1)
    step, lines = 2 * channels, []
    for y, row in enumerate(rows):
        left, up = np.zeros_like(row), rows[y - 1] if y else np.zeros_like(row)
        left[step:] = row[:-step]
        lines.append(bytes([y % 3]) + (row - [0 * row, left, up][y % 3]).tobytes())

    def chunk(kind: bytes, content: bytes) -> bytes:
        size, check = len(content), zlib.crc32(kind + content)
        return struct.pack(">I", size) + kind + content + struct.pack(">I", check)

    header = struct.pack(">IIBBBBB", width, height, 16, color_type, 0, 0, 0)
    data = zlib.compress(b"".join(lines))
    return bands.PNG_START + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


@pytest.mark.parametrize(("channels", "color_type"), [(2, 4), (3, 2), (4, 6)])
def test_png_files_of_16_bits_lose_none(rng, channels, color_type):
    pixels = rng.integers(0, 4096, (10, 7, channels)).astype(np.uint16)
    content = png(pixels, color_type)
    np.testing.assert_array_equal(read_pixels(content, alpha="band"), pixels)
    kept = channels - (channels in (2, 4))
    np.testing.assert_array_equal(encoded_image(content), pixels[..., :kept])


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float64", ">u2", "bool"])
@pytest.mark.parametrize("shape", [(5, 7), (5, 7, 3), (5, 7, 6)])
def test_npy_files(tmp_path, rng, dtype, shape):
    pixels = (rng.random(shape) * 2).astype(dtype)
    np.save(tmp_path / "a.npy", pixels)
    read = read_pixels(tmp_path / "a.npy")
    expected = pixels if pixels.ndim == 3 else pixels[..., None]
    expected = expected * 255 if dtype == "bool" else expected.astype(np.dtype(dtype))
    np.testing.assert_allclose(read, np.broadcast_to(expected, read.shape), rtol=1e-6)
    assert read.dtype.name in bands.DTYPES


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.full((4, 5, 2), np.nan, np.float32), "40 of 40 values are NaN or infinite"),
        (np.full((4, 5), 1e300), "20 of 20 values are NaN or infinite"),
        (np.zeros((4, 5), np.int64), "image of int64 is not read; convert it"),
        (np.zeros((4, 300, 300), np.uint8), "bands are the last axis"),
        (np.zeros((4, 5, 2, 2), np.uint8), "an image is an array"),
        (np.array([[{}]]), "is no array"),
    ],
)
def test_what_is_no_image_is_refused(tmp_path, values, message):
    np.save(tmp_path / "a.npy", values)
    with pytest.raises(ValueError, match=rf"a\.npy: .*{message}"):
        read_pixels(tmp_path / "a.npy")


@pytest.mark.parametrize("big", [False, True])
def test_pages_that_lead_in_a_circle_are_refused(tmp_path, rng, big):
    path = tmp_path / "circle.tif"
    tifffile.imwrite(path, rng.integers(0, 9, (2, 9, 11, 5), np.uint8), bigtiff=big)
    with tifffile.TiffFile(path) as file:
        pages = [page.offset for page in file.pages]
    content, entries = bytearray(path.read_bytes()), struct.Struct("<Q" if big else "<H")
    count = entries.unpack_from(content, pages[-1])[0]
    after = pages[-1] + entries.size + count * (20 if big else 12)
    struct.pack_into("<Q" if big else "<I", content, after, pages[-1])
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"circle\.tif: its pages lead back to one before"):
        read_pixels(path)


def test_a_file_cannot_claim_more_than_it_holds(tmp_path, rng):
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        file, {"descr": "<u2", "fortran_order": False, "shape": (1 << 20, 1 << 16)}
    )
    with pytest.raises(ValueError, match="is no array"):
        read_pixels(file.getvalue())
    tifffile.imwrite(tmp_path / "a.tif", rng.integers(0, 9, (9, 9, 5), np.uint8))
    content = bytearray((tmp_path / "a.tif").read_bytes())
    with tifffile.TiffFile(tmp_path / "a.tif") as opened:
        for tag in (256, 257):
            offset = opened.pages[0].tags[tag].valueoffset
            content[offset : offset + 4] = struct.pack("<I", 1 << 20)
    with pytest.raises(ValueError, match="image"):
        read_pixels(bytes(content))


# ======================================================================== ranges


@pytest.mark.parametrize("dtype", ["uint16", "int16", "float32"])
def test_the_used_range_is_that_of_the_percentiles(rng, dtype):
    images = [(rng.normal(300, 90, (40, 50, 3)) * [1, 9, 40]).astype(dtype) for _ in range(5)]
    images[0][0, 0] = 32000  # a hot pixel
    used = bands.UsedRange()
    for image in images:
        used.add(image)
    every = np.concatenate([image.reshape(-1, 3) for image in images]).astype(np.float64)
    expected = np.percentile(every, [0.1, 99.9], axis=0).T
    np.testing.assert_allclose(used.found(), expected, rtol=0.005, atol=3)


def test_a_band_of_one_value_has_no_range():
    used = bands.UsedRange()
    used.add(np.dstack([np.arange(12).reshape(3, 4), np.full((3, 4), 7)]).astype(np.uint16))
    with pytest.raises(ValueError, match=r"band 2 is 7 in all pixels.*value_range"):
        used.found()


def test_pictures_show_the_first_three_bands_through_the_range():
    pixels = np.arange(0, 4000, 100, np.uint16).reshape(2, 5, 4)
    shown = bands.picture(pixels, ((1000, 3000),) * 4)
    expected = np.rint(np.clip((pixels[..., :3] - 1000.0) / 2000, 0, 1) * 255)
    np.testing.assert_array_equal(shown, expected)
    assert bands.picture(pixels[..., :2], ((0, 5000),) * 2).shape == (2, 5, 3)


# ======================================================================== prepared


def write_set(root: Path, rng, dtype="uint16", number=4, count=6) -> dict[str, np.ndarray]:
    (root / "images").mkdir(parents=True)
    (root / "masks").mkdir()
    (root / "classes.txt").write_text("ground\nleaf\n")
    written = {}
    for i in range(count):
        pixels = rng.integers(0, 250, (8 + i, 11, number)).astype(dtype)
        pixels = pixels * 16 if dtype == "uint16" else pixels
        tifffile.imwrite(root / f"images/{i}.tif", pixels, photometric="minisblack")
        mask = (np.arange(pixels[..., 0].size) % 2).reshape(pixels.shape[:2]).astype(np.uint8)
        Image.fromarray(mask).save(root / f"masks/{i}.png")
        written[str(i)] = pixels
    return written


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
def test_a_set_of_five_bands(tmp_path, rng, dtype):
    written = write_set(tmp_path / "m", rng, dtype, 5)
    where = {"data_dir": tmp_path / "d", "manual_dir": tmp_path / "m"}
    source = open_source("folder", "train", **where)
    assert (source.channels, source.dtypes) == ({"image": 5}, {"image": dtype})
    for example, digest in zip(source, source.digests, strict=True):
        assert example["image"].dtype == dtype
        np.testing.assert_array_equal(example["image"], written[example["id"]])
        assert digest == pixel_digest(written[example["id"]])
    if dtype == "uint8":
        assert source.ranges["image"] is None
    else:
        every = np.concatenate([example["image"].reshape(-1, 5) for example in source])
        expected = np.stack([every.min(0), every.max(0)], axis=1)
        np.testing.assert_allclose(source.ranges["image"], expected, rtol=0.005)
    given = open_source("folder", "train", **where, value_range=(0, 4095))
    assert given.ranges["image"] == ((0.0, 4095.0),) * 5
    assert given.path != source.path


@pytest.mark.parametrize(
    ("dtype", "number"), [("uint16", 1), ("uint16", 4), ("int16", 2), ("float32", 5)]
)
@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_the_loader_gives_the_values_of_the_files(tmp_path, dtype, number, workers):
    """To the bit, whatever lies on the canvas beside them; flips and crops only move them."""
    rng = np.random.default_rng(0)
    written = {}
    (tmp_path / "m/images").mkdir(parents=True)
    (tmp_path / "m/masks").mkdir()
    (tmp_path / "m/classes.txt").write_text("ground\nleaf\n")
    for i in range(8):
        bits = rng.integers(0, 2**16, (9, 12, number), np.uint16)
        pixels = bits.view(dtype) if dtype != "float32" else rng.normal(size=bits.shape)
        written[str(i)] = pixels = pixels.astype(dtype)
        tifffile.imwrite(tmp_path / f"m/images/{i}.tif", pixels, photometric="minisblack")
        Image.fromarray(rng.integers(0, 2, (9, 12), np.uint8)).save(tmp_path / f"m/masks/{i}.png")
    source = open_source("folder", "train", data_dir=tmp_path / "d", manual_dir=tmp_path / "m")
    options = {"batch_size": 4, "seed": 0, "canvas": (10, 13), "num_workers": workers}
    with training_batches(source, augmentation=Augmentation(), **options) as batches:
        for _, (batch, names) in zip(range(3), batches, strict=False):
            assert batch["image"].dtype == dtype
            for image, name in zip(np.asarray(batch["image"]), names, strict=True):
                expected = np.repeat(written[name], 3 if number == 1 else 1, axis=2)
                np.testing.assert_array_equal(image[:9, :12], expected)
    flipping = Augmentation(flip=True, crop=(5, 7))
    with training_batches(source, augmentation=flipping, batch_size=4, seed=0) as batches:
        batch, names = next(batches)
    for image, name in zip(np.asarray(batch["image"]), names, strict=True):
        every = np.repeat(written[name], 3 if number == 1 else 1, axis=2)
        windows = np.lib.stride_tricks.sliding_window_view(every, (5, 7), axis=(0, 1))
        windows = np.moveaxis(windows, 2, -1)
        assert any((windows == way).all((-3, -2, -1)).any() for way in (image, image[:, ::-1]))


def test_grey_of_16_bits_is_three_bands_with_its_range(tmp_path, rng):
    written = write_set(tmp_path / "m", rng, "uint16", 1)
    source = open_source("folder", "train", data_dir=tmp_path / "d", manual_dir=tmp_path / "m")
    example = source[0]
    assert source.channels == {"image": 3}
    np.testing.assert_array_equal(
        example["image"],
        np.repeat(written[example["id"]].reshape(*example["label"].shape, 1), 3, 2),
    )
    assert source.ranges["image"][0][1] < 4096


def test_images_of_a_set_have_the_same_bands(tmp_path, rng):
    write_set(tmp_path / "m", rng)
    tifffile.imwrite(tmp_path / "m/images/3.tif", rng.integers(0, 9, (11, 11, 4), np.uint8))
    plan = FolderPlan(tmp_path / "m")
    (problem,) = plan.survey.problems.lines()
    assert "images/3.tif: an image of 4 bands of uint8, where most are of 4 bands of uint16" in (
        problem
    )
    (tmp_path / "m/images/3.tif").unlink()
    (tmp_path / "m/masks/3.png").unlink()
    plan = FolderPlan(tmp_path / "m")
    assert not len(plan.survey.problems)
    assert any("4 bands of uint16, and use" in note for note in plan.survey.notes)
    with pytest.raises(ValueError, match=r"value_range=\(9, 3\) must be"):
        FolderPlan(tmp_path / "m", value_range=(9, 3))


# ======================================================================== prepared by a stranger


def small_copy(folder: Path) -> Path:
    return prepare("shapes", data_dir=folder, train=3, val=1, size=48)


EVIL = {"pythonClassName": "evil_module.Feature", "text": {}}


def test_what_a_copy_names_is_not_imported(tmp_path, monkeypatch):
    (tmp_path / "evil_module.py").write_text("raise SystemExit('it ran')")
    monkeypatch.syspath_prepend(tmp_path)
    path = small_copy(tmp_path / "d")
    features = json.loads((path / "features.json").read_text())
    check_features(path)
    features["featuresDict"]["features"]["image"] = EVIL
    (path / "features.json").write_text(json.dumps(features))
    assert Source(path, "train")[0]["image"].shape == (48, 48, 3)
    for key in ("pythonClassName", "python_class_name", "type"):
        features["featuresDict"]["features"]["image"] = {key: "evil_module.Feature"}
        (path / "features.json").write_text(json.dumps(features))
        with pytest.raises(ValueError, match=r"features.json names evil_module\.Feature"):
            check_features(path)
    assert "evil_module" not in sys.modules


@pytest.mark.parametrize("name", ["metadata.json", "dataset_info.json"])
@pytest.mark.parametrize("content", ["", "{", "[]", "null", '{"a": 1e400}', "[" * 100_000])
def test_damaged_descriptions_are_named(tmp_path, name, content):
    path = small_copy(tmp_path)
    (path / name).write_text(content)
    with pytest.raises(ValueError, match=r"(damaged|another version).* delete .* and prepare") as e:
        Source(path, "train")
    assert "\n" not in str(e.value)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("shards", {"train": [2.5], "val": [1]}),
        ("shards", {"train": [4, -1], "val": [1]}),
        ("shards", {"train": [], "val": [1]}),
        ("shards", [3, 1]),
        ("modalities", {"image": {"kind": "picture", "channels": "3", "dtype": "uint8"}}),
        ("modalities", {"image": {"kind": "picture", "channels": 3, "dtype": "object"}}),
        ("ranges", {"image": [[1, 0]] * 3}),
        ("ranges", {"image": [[0, 1]]}),
        ("label_maps", {"label": {}}),
        ("notes", 7),
    ],
)
def test_descriptions_must_be_sound(tmp_path, key, value):
    path = small_copy(tmp_path)
    metadata = json.loads((path / "metadata.json").read_text())
    (path / "metadata.json").write_text(json.dumps({**metadata, key: value}))
    with pytest.raises(
        ValueError, match=r"metadata\.json is damaged: .*prepare the data set again"
    ):
        Source(path, "train")


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("ids", np.array([b"a", b"b"])),
        ("ids", np.array(["a", "b", "c"])),
        ("digests", np.array([b"a", b"b", b"c"])),
        ("sizes", np.ones((3, 3), np.int32)),
        ("sizes", np.ones((3, 2))),
        ("label_digests", np.array([b"a", None, 3])),
        ("label_counts.label", np.ones((3, 5), np.int64)),
    ],
)
def test_lists_of_another_form_are_named(tmp_path, name, values):
    path = small_copy(tmp_path)
    file = path / f"lists/train.{name}.npy"
    whole = file.read_bytes()
    np.save(file, values)
    for content in (file.read_bytes(), b"", whole[:100], whole[:-1]):
        file.write_bytes(content)
        with pytest.raises(ValueError, match=rf"train\.{name}\.npy is damaged: .*; delete") as e:
            Source(path, "train")
        assert f"delete {path} and" in str(e.value)
    file.unlink()
    with pytest.raises(ValueError, match=rf"train\.{name}\.npy is damaged: .*No such file"):
        Source(path, "train")
    assert len(list(Source(path, "val"))) == 1


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("ids", b"\xff"),
        ("digests", b"\xff"),
        ("sizes", (-1, 48)),
        ("label_counts.label", -1),
        ("label_counts.label", 48 * 48 + 1),
        ("label_counts.label", 2**62),
    ],
)
def test_lists_must_be_sound_where_they_are_read(tmp_path, name, value):
    path = small_copy(tmp_path)
    file = path / f"lists/train.{name}.npy"
    values = np.load(file)
    values[1] = value
    np.save(file, values)
    source = Source(path, "train")
    with pytest.raises(ValueError, match=r"lists is damaged: .*prepare the data set again"):
        getattr(source, name.split(".")[0])
    if name == "ids":
        with pytest.raises(
            ValueError, match=r"is damaged: image 1 of train .*its id is train_00001"
        ):
            source[1]


def test_damaged_records_are_named(tmp_path):
    path = small_copy(tmp_path)
    records = path / "shapes-train.array_record-00000"
    content = records.read_bytes()
    for damaged in (b"", content[: len(content) // 2], content[::-1]):
        records.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"shapes-train.* is damaged: .*prepare"):
            list(Source(path, "train"))
    records.unlink()
    with pytest.raises(ValueError, match=r"shapes-train.* is damaged: no such file"):
        list(Source(path, "train"))


# ======================================================================== the network's side


def test_a_range_becomes_0_to_255(rng):
    images = rng.integers(-900, 5000, (2, 6, 7, 4)).astype(np.int16)
    used = ((0.0, 1000.0), (-500.0, 500.0), (10.0, 4000.0), (1.0, 2.0))
    way = CAFFE.for_images(4, used, "int16")
    low, high = np.array(used).T
    scaled = np.clip((images - low) / (high - low), 0, 1) * 255
    order = [2, 1, 0, 3]  # blue, green, red, and the fourth
    means = np.array([*CAFFE.mean, sum(CAFFE.mean) / 3])
    np.testing.assert_allclose(way.apply(images), (scaled[..., order] - means) / (4 / 3), atol=1e-3)
    assert Preprocessing.from_dict(json.loads(json.dumps(way.to_dict()))) == way
    with pytest.raises(ValueError, match="range is of int16 images, these are uint8"):
        way.apply(images.astype(np.uint8))


@pytest.mark.parametrize("number", [1, 2, 4, 13])
def test_widened_kernels_respond_to_equal_bands_as_before(rng, number):
    kernel = rng.normal(size=(3, 3, 3, 5)).astype(np.float32)
    params = {"conv1": {"kernel": np.zeros((3, 3, number, 5), np.float32), "bias": np.zeros(5)}}
    new, report = weights.transplant(params, {"conv1/kernel": kernel, "conv1/bias": np.zeros(5)})
    assert report.widened == ("conv1/kernel",)
    if number > 3:
        np.testing.assert_array_equal(new["conv1"]["kernel"][:, :, :3], kernel)
    np.testing.assert_allclose(new["conv1"]["kernel"][:, :, -1], kernel.mean(2), rtol=1e-5)
    plain = Preprocessing("rgb", (100.0,) * 3, (2.0,) * 3)
    grey = rng.integers(0, 256, (1, 3, 3, 1), np.uint8)
    three = np.asarray(plain.apply(np.repeat(grey, 3, axis=3)))
    several = np.asarray(plain.for_images(number).apply(np.repeat(grey, number, axis=3)))
    np.testing.assert_allclose(
        np.einsum("bhwc,hwco->bo", several, new["conv1"]["kernel"]),
        np.einsum("bhwc,hwco->bo", three, kernel),
        rtol=1e-3,
        atol=1e-3,
    )


@pytest.mark.parametrize("dtype", bands.DTYPES)
@pytest.mark.parametrize("number", [2, 3, 4])
def test_augmentation_of_any_bands(rng, dtype, number):
    image = random_pixels(rng, (24, 30, number), dtype)
    label = rng.integers(0, 3, (24, 30), np.uint8)
    example = check_example({"image": image, "label": label, "id": "a"})
    halved = resize(example, 0.5)["image"]
    one_by_one = [
        np.asarray(Image.fromarray(band.astype(np.float32)).resize((15, 12), 2))
        for band in np.moveaxis(image, -1, 0)
    ]
    assert halved.dtype == dtype
    np.testing.assert_allclose(halved, np.stack(one_by_one, -1), atol=1)
    augmentation = Augmentation(
        flip=True, crop=(20, 20), jitter=0.3, value_range=((-5.0, 250.0),) * number
    )
    first, again = (augmentation(example, np.random.default_rng(1)) for _ in range(2))
    np.testing.assert_array_equal(first["image"], again["image"])
    assert first["image"].shape == (20, 20, number)
    assert first["image"].dtype == dtype
    plain = Augmentation(flip=True, crop=(20, 20))(example, np.random.default_rng(1))
    np.testing.assert_array_equal(first["label"], plain["label"])
    assert (first["image"] != plain["image"]).any()


# ======================================================================== prediction


def predictor_of(way: Preprocessing, **options) -> Predictor:
    model = fcn_jax.create_model(
        "fcn32s", backbone=toy_backbones.plain, num_classes=3, inputs=way.channels, fc_width=8
    )
    params = fcn_jax.models.fcn.initial_params(model, fcn_jax.models.fcn.jax.random.key(0))
    rng = np.random.default_rng(0)
    params["score_fr"]["kernel"] = rng.normal(size=params["score_fr"]["kernel"].shape)
    return Predictor(model, {"params": params}, Inputs.of(way), **options)


def test_prediction_of_many_bands(tmp_path, rng):
    way = CAFFE.for_images(4, ((0.0, 4095.0),) * 4, "uint16")
    predictor = predictor_of(way)
    pixels = rng.integers(0, 4096, (40, 50, 4)).astype(np.uint16)
    tifffile.imwrite(tmp_path / "a.tif", pixels)
    logits = predictor.logits(pixels)
    np.testing.assert_array_equal(predictor.logits(tmp_path / "a.tif"), logits)
    saved = np.lib.format.open_memmap(
        tmp_path / "a.npy", "w+", shape=pixels.shape, dtype=pixels.dtype
    )
    saved[:] = pixels
    np.testing.assert_array_equal(predictor.logits(saved), logits)
    for wrong, message in {
        "uint8": r"image is uint8; the network was trained on uint16 .*0\.\.4095.*value_range",
        "float32": "image is float32",
    }.items():
        with pytest.raises(ValueError, match=message):
            predictor(pixels.astype(wrong))
    with pytest.raises(ValueError, match="image has 3 bands, the network reads 4"):
        predictor(pixels[..., :3])
    eighth = predictor_of(way, value_range=(0, 4095 / 8))
    np.testing.assert_allclose(eighth.logits((pixels / 8).astype(np.float32)), logits, atol=1e-3)


def test_twelve_bits_are_not_nearly_black_without_a_word(tmp_path, rng):
    grey = rng.integers(0, 4096, (40, 50)).astype(np.uint16)
    Image.fromarray(grey).save(tmp_path / "a.png")
    predictor = predictor_of(CAFFE)
    for image in (grey, tmp_path / "a.png", Image.open(tmp_path / "a.png")):
        with pytest.raises(ValueError, match=r"end at 409\d, .*value_range=\(0, 4095\)"):
            predictor(image)
    with pytest.raises(ValueError, match=r"end at 0.0999.*, where 1 is white"):
        predictor((grey / 40950).astype(np.float32))
    ranged = predictor_of(CAFFE, value_range=(0, 4095))
    eight = np.repeat((grey / 4095 * 255)[..., None], 3, axis=2).astype(np.float32)
    expected = predictor_of(CAFFE, value_range=(0, 255)).logits(eight)
    np.testing.assert_allclose(ranged.logits(tmp_path / "a.png"), expected, atol=1e-3)
    assert predictor(np.zeros((40, 50), np.uint16)).shape == (40, 50)
