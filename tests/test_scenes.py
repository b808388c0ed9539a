"""GeoTIFF files predicted in windows: the labels of the whole image, at the same place on earth."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from toy_runs import make_run

import fcn_jax
from fcn_jax.classes import table_from_names
from fcn_jax.cli import predict as cli_predict
from fcn_jax.inference import pipeline, scenes
from fcn_jax.models.inputs import CAFFE, Inputs

rasterio = pytest.importorskip("rasterio", reason="GeoTIFF files are read by rasterio")

TABLE = table_from_names(["background", "field", "wood", "water"])
PLACE = rasterio.transform.from_origin(500_000, 5_400_000, 10, 10)


def write_scene(path: Path, pixels: np.ndarray, **options) -> Path:
    """A GeoTIFF of an array (h, w, bands)."""
    given = {"driver": "GTiff", "crs": "EPSG:32632", "transform": PLACE, "tiled": True, **options}
    height, width, count = pixels.shape
    given |= {"height": height, "width": width, "count": count, "dtype": pixels.dtype.name}
    with rasterio.open(path, "w", **given) as file:
        file.write(np.moveaxis(pixels, -1, 0))
    return path


def blocks(height: int, width: int, bands: int = 3, seed: int = 0) -> np.ndarray:
    """Fields of one value each, 0..255, on which networks decide differently."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (-(-height // 23), -(-width // 23), bands))
    return coarse.repeat(23, 0).repeat(23, 1)[:height, :width]


def read(path: Path) -> np.ndarray:
    with rasterio.open(path) as file:
        return file.read(1)


def of_range(low: float, high: float, dtype: str, bands: int = 3) -> Inputs:
    """What a network reads that was trained on images of a range."""
    return Inputs.of(CAFFE.for_images(bands, ((low, high),) * bands, dtype))


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """The folder of a run that reads images of a kind."""
    kinds = {
        "rgb": Inputs.of(CAFFE),
        "uint16": of_range(100, 10_000, "uint16"),
        "float32": of_range(0, 255, "float32"),
        "bands": of_range(0, 255, "uint8", 4),
    }
    folder = tmp_path_factory.mktemp("runs")
    return lambda kind: (
        folder / kind
        if (folder / kind).exists()
        else make_run(folder / kind, {"label": TABLE}, kinds[kind])
    )


@pytest.fixture
def predict(tmp_path, runs, capsys):
    """Predicts a scene with a run; the folder of the results."""

    def run(kind: str, *options: str, code: int = 0) -> Path:
        out = tmp_path / "out"
        given = [str(tmp_path / "scene.tif"), f"--workdir={runs(kind)}", f"--output={out}"]
        assert cli_predict.main([*given, "--allow_code", *options]) == code
        return out

    return run


def test_a_scene_keeps_its_reference(tmp_path, predict, runs):
    """And gets the labels, the confidences and the areas of the image that it is."""
    pixels = blocks(150, 133).astype(np.uint8)
    scene = write_scene(tmp_path / "scene.tif", pixels)
    out = predict("rgb", "--write=labels,overlays,confidence,probabilities,geojson", "--tile=128")
    predictor = fcn_jax.load(runs("rgb"), allow_code=True)
    labels, chances = predictor(pixels), predictor.probabilities(pixels)
    assert len(np.unique(labels)) > 1
    with rasterio.open(scene) as given, rasterio.open(out / "labels/scene.tif") as file:
        assert (file.crs, file.transform, file.shape) == (given.crs, given.transform, given.shape)
        assert (file.nodata, file.count, file.dtypes) == (255, 1, ("uint8",))
        assert file.colormap(1)[1][:3] == TABLE.rows[1].color
        assert [file.tags(1)[f"class_{i}"] for i in range(4)] == list(TABLE.names)
        np.testing.assert_array_equal(file.read(1), labels)
    confidence = read(out / "confidence/scene.tif").astype(int)
    np.testing.assert_allclose(confidence, 255 * chances.max(-1), atol=0.51)
    with rasterio.open(out / "probabilities/scene.tif") as file:
        assert file.descriptions == TABLE.names
        np.testing.assert_allclose(file.read(), np.moveaxis(chances, -1, 0), atol=1e-3)
    with Image.open(out / "overlays/scene.png") as overlay:
        assert overlay.size == (133, 150)
    with (out / "areas.csv").open() as file:
        counted = [int(row["pixels"]) for row in csv.DictReader(file)]
    assert counted == np.bincount(labels.ravel(), minlength=4).tolist()
    outlines = json.loads((out / "polygons/scene.geojson").read_text())
    assert outlines["crs"]["properties"]["name"] == "urn:ogc:def:crs:EPSG::32632"
    from rasterio import features

    shapes = [(f["geometry"], f["properties"]["number"]) for f in outlines["features"]]
    drawn = features.rasterize(shapes, labels.shape, fill=0, transform=PLACE, dtype="uint8")
    np.testing.assert_array_equal(drawn, labels)  # the background is 0, which has no outline


@pytest.mark.parametrize(
    "tile", [512, *(pytest.param(tile, marks=pytest.mark.slow) for tile in (544, 1024))]
)
def test_the_last_rows_and_columns(tmp_path, predict, runs, tile):
    """Tiles that end at the border, none of which is dropped or stretched."""
    pixels = blocks(1312, 1079).astype(np.uint8)
    write_scene(tmp_path / "scene.tif", pixels, compress="deflate")
    out = predict("rgb", "--write=labels", f"--tile={tile}")
    whole = fcn_jax.load(runs("rgb"), allow_code=True, tile=4096)(pixels)
    np.testing.assert_array_equal(read(out / "labels/scene.tif"), whole)


@pytest.mark.parametrize(
    "nodata", [None, pytest.param(float("nan"), marks=pytest.mark.slow), -9999.0]
)
def test_missing_floats_do_not_spread(tmp_path, predict, runs, nodata):
    """They are void, and around them the labels are those with the documented fill."""
    pixels = blocks(300, 280).astype(np.float32)
    filled = pixels.copy()
    filled[:32, :32] = scenes.NO_DATA
    pixels[:32, :32, 1 if nodata is None else 0] = np.nan if nodata is None else nodata
    write_scene(tmp_path / "scene.tif", pixels, nodata=nodata)
    out = predict("float32", "--tile=256")
    labels = read(out / "labels/scene.tif")
    corner = np.zeros(labels.shape, bool)
    corner[:32, :32] = True
    expected = fcn_jax.load(runs("float32"), allow_code=True)(filled)
    np.testing.assert_array_equal(labels, np.where(corner, 255, expected))
    np.testing.assert_array_equal(read(out / "confidence/scene.tif") == 0, corner)
    with (out / "areas.csv").open() as file:
        assert sum(int(row["pixels"]) for row in csv.DictReader(file)) == labels.size - 1024


@pytest.mark.parametrize("how", ["nodata", "alpha", "mask"])
def test_what_has_no_data_is_void(tmp_path, predict, runs, how):
    pixels = blocks(60, 70).astype(np.uint8) | 1
    pixels[5:9, 5:9, 0] = 0  # one band of it alone is a colour
    missing = np.zeros((60, 70), bool)
    missing[40:, 50:] = True
    filled = np.where(missing[..., None], np.uint8(0), pixels)
    scene = tmp_path / "scene.tif"
    if how == "nodata":
        write_scene(scene, filled, nodata=0)
    elif how == "alpha":
        alpha = np.where(missing, np.uint8(0), np.uint8(255))
        write_scene(scene, np.dstack([pixels, alpha]), photometric="RGB", alpha="YES")
    else:
        write_scene(scene, pixels)
        with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True), rasterio.open(scene, "r+") as file:
            file.write_mask(~missing)
    out = predict("rgb")
    expected = fcn_jax.load(runs("rgb"), allow_code=True)(filled)
    np.testing.assert_array_equal(read(out / "labels/scene.tif"), np.where(missing, 255, expected))


def test_the_scale_is_that_of_training_whatever_the_tile(tmp_path, predict, runs, capsys):
    rng = np.random.default_rng(0)
    left, right = rng.integers(100, 200, (400, 200, 3)), rng.integers(3000, 10_000, (400, 200, 3))
    pixels = np.concatenate([left, right], axis=1).astype(np.uint16)
    write_scene(tmp_path / "scene.tif", pixels)
    whole = fcn_jax.load(runs("uint16"), allow_code=True)(pixels)
    for tile in (256, 512):
        out = predict("uint16", "--write=labels", f"--tile={tile}")
        np.testing.assert_array_equal(read(out / "labels/scene.tif"), whole)
        told = "the images' values are black to white over 100..10000, as in training"
        assert told in capsys.readouterr().out
    # A network of 8-bit images has no scale for these.
    out = predict("rgb", code=1)
    assert "its values end at 9999, where 65535 is white" in capsys.readouterr().err
    assert not [*(out / ".unfinished").rglob("*.tif")]


def test_other_bands_than_colours(tmp_path, predict, runs, capsys):
    """A fourth band that its file calls alpha is a band to a network of four; grey is RGB."""
    pixels = blocks(60, 70, bands=4).astype(np.uint8)
    write_scene(tmp_path / "scene.tif", pixels, photometric="RGB", alpha="YES")
    out = predict("bands", "--write=labels")
    expected = fcn_jax.load(runs("bands"), allow_code=True)(pixels)
    np.testing.assert_array_equal(read(out / "labels/scene.tif"), expected)
    write_scene(tmp_path / "scene.tif", pixels[..., :1])
    predict("bands", code=1)
    assert "scene.tif: image has 1 bands, the network reads 4" in capsys.readouterr().err
    predict("rgb", "--write=labels")
    grey = pixels[..., :1].repeat(3, axis=2)
    rgb = fcn_jax.load(runs("rgb"), allow_code=True)
    np.testing.assert_array_equal(read(out / "labels/scene.tif"), rgb(grey))


def test_a_palette_is_looked_up(tmp_path, predict, runs):
    indices = blocks(60, 70, bands=1).astype(np.uint8)
    palette = np.random.default_rng(1).integers(0, 256, (256, 3), np.uint8)
    scene = write_scene(tmp_path / "scene.tif", indices, photometric="palette")
    with rasterio.open(scene, "r+") as file:
        file.write_colormap(1, {i: tuple(c) for i, c in enumerate(palette.tolist())})
    out = predict("rgb", "--write=labels")
    expected = fcn_jax.load(runs("rgb"), allow_code=True)(palette[indices[..., 0]])
    np.testing.assert_array_equal(read(out / "labels/scene.tif"), expected)


def test_giant_files_without_reference_are_read_in_windows(tmp_path, predict, runs, monkeypatch):
    monkeypatch.setattr(scenes, "MOST_PIXELS", 3000)
    pixels = blocks(60, 70).astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / "scene.tif")
    out = predict("rgb", "--write=labels")
    expected = fcn_jax.load(runs("rgb"), allow_code=True)(pixels)
    np.testing.assert_array_equal(read(out / "labels/scene.tif"), expected)


def test_a_scene_that_cannot_be_scaled_in_windows(tmp_path, predict, monkeypatch, capsys):
    monkeypatch.setattr(pipeline, "MOST_PIXELS", 3000)
    write_scene(tmp_path / "scene.tif", blocks(60, 70).astype(np.uint8))
    predict("rgb", "--scales=0.5,1", code=1)
    assert "scene.tif is too large to be scaled at once" in capsys.readouterr().err


def test_mistakes(tmp_path, predict, monkeypatch, capsys):
    scene = write_scene(tmp_path / "scene.tif", blocks(60, 70).astype(np.uint8), compress="lzw")
    predict("rgb", "--write=coco", code=1)
    assert "scene.tif: coco is for photographs; of scenes take geojson" in capsys.readouterr().err
    content = scene.read_bytes()
    scene.write_bytes(content[: len(content) // 2])
    out = predict("rgb", code=1)
    assert "scene.tif: " in capsys.readouterr().err
    assert not [*out.rglob("*.tif")]
    monkeypatch.setitem(sys.modules, "rasterio", None)
    predict("rgb", code=1)
    error = capsys.readouterr().err
    assert "georeferenced, or too large to be read at once, which needs rasterio" in error
    assert "pip install 'fcn-jax[geo]'" in error


MEMORY = """
import resource, sys
from fcn_jax.cli import predict
from fcn_jax.inference import outputs, scenes
# What grows at first, up to these limits.
scenes._CACHE = 16 << 20
outputs.MOST_SHOWN["scene"] = 1 << 20
assert predict.main(sys.argv[1:]) == 0
print("peak", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
"""


@pytest.mark.slow
def test_memory_does_not_grow_with_the_scene(tmp_path, runs):
    """A file of 9 times the pixels takes no more, where its arrays would be 160 MiB larger."""
    peaks = {}
    for side in (2048, 6144):
        options = {"driver": "GTiff", "crs": "EPSG:32632", "transform": PLACE, "tiled": True}
        options |= {"height": side, "width": side, "count": 3, "dtype": "uint8", "SPARSE_OK": True}
        with rasterio.open(tmp_path / "scene.tif", "w", **options):
            pass  # nothing is stored, and 0 is read
        given = [str(tmp_path / "scene.tif"), f"--workdir={runs('rgb')}", "--allow_code"]
        given += [f"--output={tmp_path / str(side)}", "--tile=1024"]
        done = subprocess.run(
            [sys.executable, "-c", MEMORY, *given], capture_output=True, text=True, check=True
        )
        peaks[side] = int(done.stdout.split()[-1])
    assert peaks[6144] - peaks[2048] < 60, peaks
