"""What ``fcn-jax predict`` writes of many images, and what is left when something comes between."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image
from toy_runs import make_run

import fcn_jax
from fcn_jax import devices, drawing
from fcn_jax.classes import ClassTable, table_from_names
from fcn_jax.cli import predict as cli_predict
from fcn_jax.data.camvid import CAMVID
from fcn_jax.data.sift_flow import SIFT_FLOW_GEOMETRIC
from fcn_jax.data.voc import VOC
from fcn_jax.inference import outputs
from fcn_jax.inference.scenes import regions
from fcn_jax.models.inputs import CAFFE, Inputs

NAMES = ("background", "=1+1", "tree, small", "</script><img src=x>", "道路", '-a"b')
TABLE = table_from_names(list(NAMES))


def random_image(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image)


@pytest.fixture(scope="module")
def workdir(tmp_path_factory) -> Path:
    return make_run(tmp_path_factory.mktemp("names") / "run", {"label": TABLE}, Inputs.of(CAFFE))


@pytest.fixture(scope="module")
def predictor(workdir) -> fcn_jax.Predictor:
    return fcn_jax.load(workdir, allow_code=True)


@pytest.fixture
def photos(tmp_path) -> Path:
    (tmp_path / "photos/sub").mkdir(parents=True)
    for name, size, seed in (("=a", (40, 50), 0), ("b", (33, 61), 1), ("sub/b", (40, 50), 2)):
        Image.fromarray(random_image(*size, seed)).save(tmp_path / f"photos/{name}.png")
    return tmp_path / "photos"


@pytest.fixture
def predict(workdir, photos, tmp_path):
    """The command on all photographs or given ones; its exit code."""

    def run(*options: str, images: tuple[Path, ...] = (photos,)) -> int:
        given = (*map(str, images), f"--workdir={workdir}", f"--output={tmp_path / 'out'}")
        return cli_predict.main([*given, "--allow_code", *options])

    return run


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


# ======================================================================== one image


def test_everything_of_a_photograph(predict, photos, tmp_path, predictor):
    assert predict("--write=labels,overlays,confidence,probabilities", "--alpha=0.7") == 0
    out = tmp_path / "out"
    table = []
    for name in ("=a", "b", "sub/b"):
        image = pixels(photos / f"{name}.png")
        labels, chances = predictor(image), predictor.probabilities(image)
        np.testing.assert_array_equal(pixels(out / f"labels/{name}.png"), labels)
        confidence = pixels(out / f"confidence/{name}.png").astype(int)
        np.testing.assert_allclose(confidence, 255 * chances.max(-1), atol=0.51)
        with np.load(out / f"probabilities/{name}.npz") as saved:
            assert saved["probabilities"].dtype == np.float16
            np.testing.assert_allclose(saved["probabilities"], chances, atol=1e-3)
            assert tuple(saved["classes"]) == NAMES
        bright = drawing.bright(TABLE)
        expected = drawing.overlay(image, labels, bright, alpha=0.7, clear=[0])
        np.testing.assert_array_equal(pixels(out / f"overlays/{name}.png"), expected)
        edge = drawing.overlay(image, labels, bright, alpha=0)  # the borders alone
        clear = (labels == 0) & (edge == image).all(-1)
        assert clear.any()
        np.testing.assert_array_equal(expected[clear], image[clear])
        counts = np.bincount(labels.ravel(), minlength=6)
        cell = {"=a": "'=a"}.get(name, name)
        called = ("background", "'=1+1", *NAMES[2:5], "'-a\"b")
        for number, count in enumerate(counts):
            share = f"{count / labels.size:.6f}"
            table.append([cell, "label", str(number), called[number], str(count), share])
    assert [list(row.values()) for row in rows(out / "areas.csv")] == table
    assert pixels(out / "legend.png").ndim == 3
    assert not (out / ".unfinished").exists()
    assert not (out / "skipped.csv").exists()


@pytest.mark.parametrize("size", [(1, 1), (7, 13), (40, 3)])
@pytest.mark.parametrize("kind", ["grey", "rgb", "palette"])
def test_png_files_hold_every_pixel(size, kind):
    image = random_image(*size)
    image = image if kind == "rgb" else image[..., 0]
    palette = TABLE.palette if kind == "palette" else None
    with Image.open(io.BytesIO(outputs.png(image, palette))) as read:
        assert read.mode == {"grey": "L", "rgb": "RGB", "palette": "P"}[kind]
        np.testing.assert_array_equal(np.asarray(read), image)
        if palette is not None:
            np.testing.assert_array_equal(np.asarray(read.convert("RGB")), palette[image])


@pytest.mark.parametrize("table", [VOC, CAMVID, table_from_names([f"c{i}" for i in range(200)])])
def test_bright_colours_differ_and_keep_hues(table: ClassTable):
    bright = drawing.bright(table)
    assert bright.names == table.names
    colors = np.array([row.color for row in bright.counted])
    apart = np.abs(colors[:, None] - colors[None]).max(-1) + 255 * np.eye(len(colors), dtype=int)
    assert apart.min() >= (50 if len(colors) < 30 else 10)
    assert colors.max(axis=1).min() > 170
    if table is VOC:
        assert bright.rows[1].color == (255, 0, 0)  # aeroplane is (128, 0, 0)


def test_a_legend_breaks_into_columns():
    long = drawing.legend(table_from_names([f"class {i}" for i in range(60)]))
    short = drawing.legend(table_from_names([f"class {i}" for i in range(30)]))
    assert long.width > 1.5 * short.width
    assert long.height < 1.5 * short.height


def test_200_classes_keep_their_numbers():
    labels = np.random.default_rng(0).permutation(200).astype(np.uint8).reshape(8, 25)
    table = table_from_names([f"class {i}" for i in range(200)])
    with Image.open(io.BytesIO(outputs.png(labels, table.palette))) as read:
        np.testing.assert_array_equal(np.asarray(read), labels)


# ======================================================================== outlines


def test_outlines_are_the_regions(predict, photos, tmp_path):
    """Read back by COCO's own program and by GDAL, they are the label maps, holes and all."""
    pytest.importorskip("pycocotools")
    from pycocotools.coco import COCO
    from rasterio import features

    assert predict("--write=labels,coco,geojson", "--clear=tree, small") == 2  # two names
    assert predict("--write=labels,coco,geojson", "--clear=道路") == 0
    coco, out = COCO(tmp_path / "out/coco.json"), tmp_path / "out"
    assert [c["name"] for c in coco.dataset["categories"]] == list(NAMES)
    named = {image["file_name"]: image["id"] for image in coco.dataset["images"]}
    assert set(named) == {"=a.png", "b.png", "sub/b.png"}
    for file, number in named.items():
        labels = pixels(out / "labels" / file).copy()
        labels[labels == 4] = 255
        drawn = np.full(labels.shape, 255, np.uint8)
        for each in coco.imgToAnns[number]:
            mask = coco.annToMask(each).astype(bool)
            assert mask.sum() == each["area"]
            assert (drawn[mask] == 255).all()
            drawn[mask] = each["category_id"] - 1
        np.testing.assert_array_equal(drawn, labels)
        content = json.loads((out / f"polygons/{file[:-4]}.geojson").read_text())
        shapes = [(f["geometry"], f["properties"]["number"]) for f in content["features"]]
        assert {f["properties"]["class"] for f in content["features"]} <= set(NAMES)
        drawn = features.rasterize(shapes, out_shape=labels.shape, fill=255, dtype="uint8")
        np.testing.assert_array_equal(drawn, labels)


def test_an_outline_with_a_hole():
    labels = np.zeros((7, 9), np.uint8)
    labels[1:6, 2:8] = 1
    labels[3, 4:6] = 0
    (outline,) = (o for o, label in regions(labels) if label == 1)
    found = outputs.annotation(outline, labels.shape)
    assert found["area"] == 28
    assert found["bbox"] == [2, 1, 6, 5]
    runs = np.repeat(
        np.arange(len(found["segmentation"]["counts"])) % 2, found["segmentation"]["counts"]
    )
    np.testing.assert_array_equal(runs.reshape(9, 7).T, labels)


# ======================================================================== again, and beside others


def test_resume_leaves_out_what_is_done(predict, photos, tmp_path, capsys):
    out = tmp_path / "out"
    assert predict("--write=labels,confidence") == 0

    def again(*options: str) -> str:
        assert predict("--write=labels,confidence", "--resume", *options) == 0
        return next(line for line in capsys.readouterr().out.splitlines() if "before" in line)

    written = {file: file.stat().st_mtime_ns for file in out.rglob("*.png")}
    assert again() == "3 of 3 images were done before"
    changed = [f for f in written if f.stat().st_mtime_ns != written[f]]
    assert [file.name for file in changed] == ["legend.png"]
    (out / "labels/b.png").unlink()
    assert again() == "2 of 3 images were done before"
    (out / "confidence/=a.png").write_bytes(b"")  # as after a power cut
    assert again() == "2 of 3 images were done before"
    Image.fromarray(random_image(33, 61, 9)).save(photos / "b.png")
    assert again() == "2 of 3 images were done before"
    assert again("--flip") == "0 of 3 images were done before"
    assert again("--flip", "--tile=700") == "3 of 3 images were done before"
    assert len(rows(out / "areas.csv")) == 18


def test_files_that_fail_are_told_and_tried_again(predict, photos, tmp_path, capsys):
    (photos / "c.jpg").write_bytes(b"nothing")
    assert predict("--write=labels") == 1
    assert "2 of 3" not in capsys.readouterr().out
    (row,) = rows(tmp_path / "out/skipped.csv")
    assert row["file"] == str(photos / "c.jpg")
    assert "not an image" in row["reason"]
    Image.fromarray(random_image(40, 50)).save(photos / "c.jpg")
    assert predict("--write=labels", "--resume") == 0
    assert "1 of 1 images" in capsys.readouterr().out
    assert not (tmp_path / "out/skipped.csv").exists()


def test_a_giant_image_is_refused_and_the_others_are_done(predict, photos, tmp_path, capsys):
    Image.new("1", (20_000, 10_000)).save(photos / "giant.png")
    assert predict("--write=labels") == 1
    captured = capsys.readouterr()
    assert "giant.png: more than the 178956970 pixels that are read at once" in captured.err
    assert captured.err.count("\n") == 1
    assert "3 of 4 images" in captured.out


def test_what_is_left_out_is_named(predict, photos, tmp_path, capsys):
    for name in ("notes.txt", "raw.cr2", "clip.mp4"):
        (photos / name).write_text("text")
    Image.fromarray(random_image(5, 6)).save(photos / "photo.dat", format="PNG")
    (photos / "link.png").symlink_to(photos / "b.png")
    Image.fromarray(random_image(40, 50)).save(photos / "b.jpg")
    assert predict("--write=labels") == 0
    told = capsys.readouterr().out
    for text in (
        "1 files are no images: notes.txt",
        "raw.cr2: left out, .cr2 files are not read",
        "photo.dat: left out, holds a PNG image, but its name does not say so",
        "link.png: left out, it is the same file as b.png",
        "clip.mp4: left out, a video is predicted if it is given by its name",
        "b.png: its results are called b.png; b is another image's",
    ):
        assert text in told


def test_another_folder_does_not_take_the_names(predict, photos, tmp_path, capsys):
    """Nor does the same one, again, give them new names."""
    assert predict("--write=labels") == 0
    labels = tmp_path / "out/labels"
    first = (labels / "b.png").read_bytes()
    (tmp_path / "more").mkdir()
    Image.fromarray(random_image(33, 61, 7)).save(tmp_path / "more/b.png")
    for _ in range(2):
        assert predict("--write=labels", images=(tmp_path / "more",)) == 0
        assert "its results are called b.png; b is another image's" in capsys.readouterr().out
        assert (labels / "b.png").read_bytes() == first
        assert sorted(f.name for f in labels.glob("*.png")) == ["=a.png", "b.png", "b.png.png"]
    assert len(rows(tmp_path / "out/areas.csv")) == 24


def test_processes_share_the_images(predict, photos, tmp_path, monkeypatch, capsys):
    """Each does its part; what one that died has left is done by the next run."""
    for seed in range(5):
        Image.fromarray(random_image(40, 50, seed)).save(photos / f"{seed}.png")
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "2")
    parts = {}
    for process in (0, 1):
        monkeypatch.setenv("SLURM_PROCID", str(process))
        before = {*(tmp_path / "out/labels").rglob("*.png")}
        assert predict("--write=labels") == 0
        parts[process] = {*(tmp_path / "out/labels").rglob("*.png")} - before
        assert f"process {process} of 2: {len(parts[process])} of" in capsys.readouterr().out
    assert all(parts.values())
    assert len(parts[0] | parts[1]) == 8
    assert len(rows(tmp_path / "out/areas.csv")) == 8 * 6
    for file in parts[1]:
        file.unlink()
    monkeypatch.delenv("SLURM_STEP_NUM_TASKS")
    assert predict("--write=labels", "--resume") == 0
    assert f"{len(parts[0])} of 8 images were done before" in capsys.readouterr().out
    assert all(file.exists() for file in parts[1])


def test_the_last_process_draws_the_heat_maps(predict, photos, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "2")
    for process in (1, 0):
        assert not [*(tmp_path / "out").rglob("heatmaps/*.png")]
        monkeypatch.setenv("OMPI_COMM_WORLD_RANK", str(process))
        assert predict("--heatmap=道路") == 0
    assert "images are left to other processes" in capsys.readouterr().out
    assert len([*(tmp_path / "out/heatmaps").rglob("*.png")]) == 3


@pytest.mark.parametrize(
    ("environment", "expected", "gpu"),
    [
        ({}, (1, 0, "//"), None),
        ({"SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0"}, (1, 0, "//"), None),
        (
            {"SLURM_STEP_NUM_TASKS": "8", "SLURM_PROCID": "5", "SLURM_LOCALID": "1"},
            (8, 5, "//"),
            "1",
        ),
        ({"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_RANK": "1"}, (2, 1, "//"), "1"),
        (
            {"JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "1", "CUDA_VISIBLE_DEVICES": "3"},
            (2, 1, "//"),
            None,  # it sees one already
        ),
    ],
)
def test_a_process_keeps_to_one_gpu(environment, expected, gpu, monkeypatch, tmp_path):
    for name in ("0000:01", "0000:02", "0000:03", "0000:04"):
        (tmp_path / name).mkdir()
    monkeypatch.setattr(devices, "_GPUS", str(tmp_path))
    chosen = []
    monkeypatch.setattr(jax.config, "update", lambda name, value: chosen.append(value))
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert devices.share_work() == expected
    assert chosen == [gpu] * (gpu is not None)


# ======================================================================== videos


def test_a_video_frame_by_frame(predict, tmp_path, predictor, capsys, monkeypatch):
    monkeypatch.setenv("IMAGEIO_FFMPEG_NO_PREVENT_SIGINT", "1")  # no fork, which jax warns of
    imageio = pytest.importorskip("imageio.v2")
    pytest.importorskip("imageio_ffmpeg")
    clip, out = tmp_path / "clip.mp4", tmp_path / "out"
    frames = [random_image(40, 50, seed) for seed in range(3)]
    with imageio.get_writer(clip, fps=5, macro_block_size=2) as writer:
        for frame in frames:
            writer.append_data(frame)
    decoded = [np.asarray(frame) for frame in imageio.get_reader(clip)]
    (tmp_path / "broken.mp4").write_text("nothing")
    assert predict(images=(clip, tmp_path / "broken.mp4")) == 1
    assert "broken.mp4: not a video that ffmpeg can read" in capsys.readouterr().err
    for number, frame in enumerate(decoded):
        np.testing.assert_array_equal(
            pixels(out / f"labels/clip/{number:06}.png"), predictor(frame)
        )
    reader = imageio.get_reader(out / "videos/clip.mp4")
    assert reader.count_frames() == 3
    assert reader.get_meta_data()["fps"] == 5
    drawn = pixels(out / "overlays/clip/000001.png").astype(float)
    assert np.abs(np.asarray(reader.get_data(1)) - drawn).mean() < 40  # noise is compressed badly
    assert len(rows(out / "areas.csv")) == 18
    (out / "labels/clip/000001.png").unlink()
    assert predict("--resume", images=(clip,)) == 0
    assert (out / "labels/clip/000001.png").exists()
    assert predict("--heatmap=1", images=(clip,)) == 2
    assert "heat maps are of images, not of videos" in capsys.readouterr().err


# ======================================================================== mistakes


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--alpha=1.5", "alpha must be from 0 to 1, not 1.5"),
        ("--clear=dog", "clear: no class dog; there are background, =1+1"),
        ("--heatmap=dog", "there is no such class"),
    ],
)
def test_mistakes_are_one_line(predict, capsys, tmp_path, option, message):
    assert predict(option) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_kind_that_is_none(predict, capsys):
    with pytest.raises(SystemExit):
        predict("--write=label")
    assert "'label' is none of labels, overlays" in capsys.readouterr().err


def test_missing_packages_are_asked_for(predict, photos, tmp_path, monkeypatch, capsys):
    import sys

    monkeypatch.setitem(sys.modules, "rasterio", None)
    assert predict("--write=geojson") == 2
    assert "drawing outlines needs rasterio: pip install 'fcn-jax[geo]'" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "imageio.v2", None)
    (tmp_path / "clip.mp4").write_text("text")
    assert predict(images=(tmp_path / "clip.mp4",)) == 1
    assert "clip.mp4: a video needs imageio and ffmpeg" in capsys.readouterr().err


def test_two_heads_have_files_of_their_own(tmp_path, photos):
    heads = {"sem": TABLE, "geo": SIFT_FLOW_GEOMETRIC}
    workdir, out = make_run(tmp_path / "run", heads, Inputs.of(CAFFE)), tmp_path / "out"
    given = [str(photos / "b.png"), f"--workdir={workdir}", f"--output={out}", "--allow_code"]
    assert cli_predict.main([*given, "--write=overlays,confidence,coco"]) == 0
    files = {f.relative_to(out).as_posix() for f in out.rglob("*") if f.is_file()}
    expected = {f"{kind}_{h}/b.png" for kind in ("overlays", "confidence") for h in heads}
    expected |= {"legend_sem.png", "legend_geo.png", "areas.csv", "coco.json", ".done/b.json"}
    assert files == expected
    assert {row["head"] for row in rows(out / "areas.csv")} == {"sem", "geo"}
