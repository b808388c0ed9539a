"""Tiles: their places by arithmetic, and results that are those of the whole image."""

from __future__ import annotations

import dataclasses
import functools

import jax
import numpy as np
import pytest
import toy_backbones
from compilations import counted_compilations
from random_parameters import random_parameters

import fcn_jax
from fcn_jax.inference import tiling
from fcn_jax.inference.predictor import Predictor
from fcn_jax.models.inputs import CAFFE, Inputs, Preprocessing

pytestmark = pytest.mark.usefixtures("plain_forms")

small = functools.partial(
    fcn_jax.create_model, num_classes=3, width=1 / 16, fc_width=8, learned_upsampling="all"
)


def random_image(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def whole_image_logits(model, params, image: np.ndarray) -> np.ndarray:
    """By the network itself, which knows nothing of tiles."""
    return np.asarray(jax.jit(model.apply)({"params": params}, CAFFE.apply(image[None]))[0])


def logits_in_tiles(model, params, image: np.ndarray, tile: int) -> np.ndarray:
    """Also where the image has no more pixels than a tile: its canvas has."""
    return Predictor(model, params, tile=tile, canvas=lambda side: 8 * tile).logits(image)


def relative_error(got: np.ndarray, expected: np.ndarray) -> float:
    return float(np.abs(got - expected).max() / np.abs(expected).max())


# ======================================================================== places


@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize("seed", range(20))
def test_tiles_cover_an_image_with_all_that_it_needs(seed: int, mirrored: bool):
    rng = np.random.default_rng(seed)
    model = small("fcn8s", backbone=toy_backbones.plain)
    context, stride = tiling.context(model), tiling.total_stride(model)
    size = tuple(rng.integers(1, 2000, 2).tolist())
    largest = int(rng.integers(2 * context + 3 * stride, 500))
    tiles, canvas = tiling.tiles(model, size, largest, mirrored=mirrored)
    covered = np.zeros(size, int)
    for tile in tiles:
        covered[tile[0].kept, tile[1].kept] += 1
        for span, side, length in zip(tile, canvas, size, strict=True):
            seen, kept = span.seen, span.kept
            assert seen.start % stride == 0
            assert (length - seen.stop) % stride == 0 or span is tile[0] or not mirrored
            assert seen.stop - seen.start <= side <= largest
            assert seen.start <= max(0, kept.start - context)
            assert seen.stop >= min(length, kept.stop + context)
            assert seen.start + span.kept_inside.start == kept.start
            # A canvas is not filled where the image ends, and nowhere else.
            assert seen.stop == length or seen.stop - seen.start == side
    np.testing.assert_array_equal(covered, 1)


def test_a_little_more_than_a_tile_is_not_computed_twice():
    model = small("fcn8s")
    tiles, (height, width) = tiling.tiles(model, (2100, 2048), 2048)
    assert len(tiles) == 2
    assert width == 2048
    assert height <= 1.1 * (2100 + 2 * 245) / 2


@pytest.mark.parametrize(
    ("name", "pixels"),
    # VGG16's fc7 sees 404 pixels; each transposed convolution adds its kernel less one, in pixels.
    [("fcn32s", (404 + 63 - 1) / 2), ("fcn8s", (404 + 32 * 3 / 2 + 16 * 3 / 2 + 15 - 1) / 2)],
)
@pytest.mark.parametrize("padding", ["same", "reference"])
def test_the_context_of_published_networks(name, padding, pixels):
    model = small(name, padding=padding)
    assert tiling.context(model) == pixels
    assert tiling.total_stride(model) == 32


# ======================================================================== results

CASES = [
    ("fcn32s", toy_backbones.plain, "same"),
    ("fcn16s", toy_backbones.forked, "reference"),
    ("fcn8s", toy_backbones.forked, "same"),
    ("fcn8s_atonce", toy_backbones.plain, "same"),
    ("fcn8s", toy_backbones.residual, "same"),
    # Interpolation stretches the map by a factor that depends on the size of the whole image.
    ("fcn_interpolated", toy_backbones.residual, "same"),
    ("fcn_interpolated", toy_backbones.forked, "same"),
]


@pytest.mark.parametrize(("net", "backbone", "padding"), CASES)
def test_tiles_give_the_whole_image(net, backbone, padding):
    model = small(net, backbone=backbone, padding=padding, width=1 / 4)
    params = random_parameters(model, 0)
    rng = np.random.default_rng(len(net))
    stride = tiling.total_stride(model)
    least = 2 * tiling.context(model) + stride
    tile = least + int(rng.integers(stride, 2 * stride))
    image = random_image(*(least + 2 * stride + rng.integers(0, 3 * stride, 2)))
    assert len(tiling.tiles(model, image.shape[:2], tile)[0]) >= 4
    got = logits_in_tiles(model, params, image, tile)
    expected = whole_image_logits(model, params, image)
    assert got.dtype == np.float32
    assert got.shape == expected.shape
    assert relative_error(got, expected) < 1e-5


def test_tiles_of_the_published_network_give_the_whole_image():
    model = small("fcn8s", padding="reference")
    params = random_parameters(model, 0)
    image = random_image(40, 717)
    got = logits_in_tiles(model, params, image, 600)
    assert relative_error(got, whole_image_logits(model, params, image)) < 1e-5


@pytest.fixture(scope="module")
def toy():
    model = small("fcn8s", backbone=toy_backbones.plain, width=1 / 4)
    return model, random_parameters(model, 0)


TILE = 131


@pytest.mark.parametrize(("context", "stride"), [(30, 16), (49, 1)])
def test_less_context_or_another_phase_would_be_seen(toy, monkeypatch, context, stride):
    """That the tests above can fail."""
    model, params = toy
    image = random_image(180, 60)
    expected = whole_image_logits(model, params, image)
    monkeypatch.setattr(tiling, "context", lambda model: context)
    monkeypatch.setattr(tiling, "total_stride", lambda model: stride)
    got = logits_in_tiles(model, params, image, 120)
    assert relative_error(got, expected) > 1e-3


def test_one_program_for_all_tiles_and_similar_images(toy):
    model, params = toy
    with counted_compilations() as compiled:
        for size in ((211, 340), (200, 333)):
            Predictor(model, params, tile=TILE)(random_image(*size))
    assert len(compiled) <= 1


@dataclasses.dataclass
class FileOfPixels:
    """All that an image must have; it remembers the most that was read at a time."""

    pixels: np.ndarray
    most: int = 0

    @property
    def shape(self) -> tuple[int, ...]:
        return self.pixels.shape

    @property
    def dtype(self) -> np.dtype:
        return self.pixels.dtype

    def __getitem__(self, part: tuple[slice, slice]) -> np.ndarray:
        read = self.pixels[part]
        self.most = max(self.most, read.shape[0] * read.shape[1])
        return read


def test_pixels_are_read_by_tiles_and_labels_written_to_a_file(toy, tmp_path):
    model, params = toy
    image = random_image(333, 250)
    file = FileOfPixels(image)
    out = np.memmap(tmp_path / "labels", np.uint8, "w+", shape=(333, 250))
    calls = []
    got = Predictor(model, params, tile=TILE)(file, out=out, progress=calls.append)
    assert got is out
    assert file.most <= TILE**2
    count = len(tiling.tiles(model, (333, 250), TILE)[0])
    assert calls == [tile / count for tile in range(1, count + 1)]
    logits = whole_image_logits(model, params, image)
    best = np.take_along_axis(logits, np.asarray(out)[..., None].astype(int), -1)[..., 0]
    np.testing.assert_allclose(best, logits.max(-1), atol=1e-5 * np.abs(logits).max())


def test_large_images_are_tiled_without_asking(toy):
    model, params = toy
    images = [random_image(*size) for size in ((200, 180), (40, 50))]
    whole, in_tiles = Predictor(model, params), Predictor(model, params, tile=TILE)
    assert [len(list(in_tiles.parts(0, {"image": image}))) > 1 for image in images] == [True, False]
    expected = whole.logits(images)
    for got, logits in zip(in_tiles.logits(images), expected, strict=True):
        assert relative_error(got, logits) < 1e-5
    np.testing.assert_array_equal(in_tiles(images[0]), expected[0].argmax(-1))
    out = np.zeros((40, 50), np.uint8)  # also of what is in one piece
    assert in_tiles(images[1], out=out) is out
    np.testing.assert_array_equal(out, expected[1].argmax(-1))


def test_large_images_are_scored_in_tiles(toy):
    model, params = toy
    images = [random_image(*size) for size in ((200, 180), (40, 50))]
    labels = [np.random.default_rng(2).integers(0, 3, i.shape[:2], np.uint8) for i in images]
    examples = [
        {"image": image, "label": label, "id": str(number)}
        for number, (image, label) in enumerate(zip(images, labels, strict=True))
    ]
    predictor = Predictor(model, params, tile=TILE)
    visited = {}
    counts = fcn_jax.evaluate(
        predictor, examples, visit=lambda example, maps: visited.update({example["id"]: maps})
    )["label"]
    expected = np.zeros((3, 3), np.int64)
    for number, (image, label) in enumerate(zip(images, labels, strict=True)):
        predicted = predictor(image)
        np.testing.assert_array_equal(visited[str(number)]["label"], predicted)
        np.add.at(expected, (label, predicted), 1)
    np.testing.assert_array_equal(counts, expected)


@pytest.mark.parametrize("dtype", [np.uint16, np.float32])
def test_tiles_of_other_types_are_converted_alike(toy, dtype):
    """A tile that holds small values only is no picture from 0 to 1."""
    model, params = toy
    image = random_image(200, 100)
    image[:100] = np.random.default_rng(1).integers(0, 2, (100, 100, 3), np.uint8)
    values = image.astype(dtype) * (257 if dtype is np.uint16 else 1)
    predictor = Predictor(model, params, tile=TILE)
    np.testing.assert_array_equal(predictor(values), predictor(image))


def test_several_modalities_and_heads():
    model = small(
        "fcn32s",
        backbone=toy_backbones.plain,
        num_classes={"sem": 3, "geo": 2},
        inputs={"color": 3, "far": 1},
        width=1 / 4,
    )
    params = random_parameters(model, 0)
    far = Preprocessing("rgb", (7.0,), (1.0,), log=True)
    inputs = Inputs.of({"color": {"image": CAFFE}, "far": {"depth": far}})
    depth = np.random.default_rng(1).integers(0, 9000, (140, 201)).astype(np.uint16)
    images = {"image": random_image(140, 201), "depth": depth}
    expected = Predictor(model, params, inputs)(images)
    out = {head: np.zeros((140, 201), np.uint8) for head in ("geo", "sem")}
    got = Predictor(model, params, inputs, tile=TILE)(images, out=out)
    for head, labels in expected.items():
        assert got[head] is out[head]
        np.testing.assert_array_equal(out[head], labels)


# ======================================================================== mistakes


def test_mistakes(toy):
    model, params = toy
    image = random_image(200, 180)
    predictor = Predictor(model, params, tile=TILE)
    with pytest.raises(ValueError, match=r"113 pixels are too small: .* 49 .* at least 128"):
        Predictor(model, params, tile=113)(image)
    with pytest.raises(ValueError, match=r"out must be uint8 \(200, 180\), got int64 \(200, 180\)"):
        predictor(image, out=np.zeros((200, 180), np.int64))
    with pytest.raises(ValueError, match=r"out must be float32 \(200, 180, 3\), got"):
        predictor.logits(image, out=np.zeros((200, 180), np.uint8))
    with pytest.raises(ValueError, match="out must be a dictionary of arrays for label"):
        predictor(image, out={"geo": np.zeros((200, 180), np.uint8)})
    with pytest.raises(ValueError, match="out is for the result of one image"):
        predictor([image], out=np.zeros((200, 180), np.uint8))
    with pytest.raises(ValueError, match="a classifier's map is not computed in tiles"):
        tiling.tiles(small("classifier"), (200, 180), TILE)
    with pytest.raises(ValueError, match="out is for an FCN that scores every pixel"):
        Predictor(small("classifier"), {})(image, out=np.zeros((200, 180), np.uint8))
