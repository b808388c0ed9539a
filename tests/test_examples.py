"""The examples run as they stand, but for fewer steps of narrower networks."""

from __future__ import annotations

import io
import os
import runpy
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image
from random_parameters import random_parameters

import fcn_jax
from fcn_jax import ops

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with ops.plain_forms():  # which compile faster
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> str:
    """Where the pictures are drawn, once."""
    return str(tmp_path_factory.mktemp("data"))


def main_of(name: str):
    return runpy.run_path(str(EXAMPLES / f"{name}.py"))["main"]


def test_every_example_is_tried_here():
    text = Path(__file__).read_text()
    assert all(path.stem in text for path in EXAMPLES.glob("*.py"))


@pytest.mark.slow
def test_a_loop_of_ones_own(folder):
    assert 0 < main_of("own_loop")(steps=2, width=1 / 16, folder=folder) < 1
    assert len(fcn_jax.load_weights("own_loop.safetensors").trained_on) == 200


def test_its_loss_by_a_direct_definition(rng):
    logits = rng.normal(size=(2, 5, 7, 3)).astype(np.float32)
    labels = rng.integers(0, 3, (2, 5, 7)).astype(np.uint8)
    labels[0, :2] = 255
    total = weights = 0.0
    for b, i, j in np.ndindex(labels.shape):
        if labels[b, i, j] == 255:
            continue
        right = j + 1 < 7 and labels[b, i, j + 1] != labels[b, i, j]
        below = i + 1 < 5 and labels[b, i + 1, j] != labels[b, i, j]
        weight = 5.0 if right or below else 1.0
        chosen = logits[b, i, j]
        total += weight * (np.log(np.exp(chosen).sum()) - chosen[labels[b, i, j]])
        weights += weight
    border_loss = runpy.run_path(str(EXAMPLES / "own_loop.py"))["border_loss"]
    assert float(border_loss(logits, labels)) == pytest.approx(total / weights, rel=1e-5)


def test_features_for_a_probe(folder):
    """Even random filters tell more than the largest class does."""
    model = fcn_jax.create_model("classifier", num_classes=3, width=1 / 16, fc_width=8)
    fcn_jax.save_weights("vgg.npz", random_parameters(model, 0))
    right = main_of("features_for_a_probe")("vgg.npz", "pool2", width=1 / 16, folder=folder)
    assert 0.5 < right <= 1


@pytest.mark.slow
def test_other_classes(folder):
    model = fcn_jax.create_model("fcn8s", padding="reference", width=1 / 16, fc_width=8)
    fcn_jax.save_weights("voc.npz", random_parameters(model, 0))
    small = {"width": 1 / 16, "fc_width": 8, "steps": (2,), "crop": (32, 32), "log_every": 1}
    predictor = main_of("other_classes")("voc.npz", folder=folder, **small)
    assert predictor.heads["label"].names == ("background", "thing")
    kept = jax.device_get(predictor.variables["params"]["conv2_1"]["kernel"])
    np.testing.assert_array_equal(kept, fcn_jax.load_weights("voc.npz")["conv2_1/kernel"])
    assert (Path("runs/other_classes/report") / "scores.json").is_file()


@pytest.mark.slow
def test_a_mesh_of_ones_own(folder):
    """Four devices, which a process must ask for before jax starts."""
    call = f"main(steps=2, width=1 / 16, folder={folder!r})"
    code = f"import runpy; main = runpy.run_path({str(EXAMPLES / 'own_mesh.py')!r})['main']; {call}"
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=4"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "FCN_JAX_PLAIN_OPS": "1", "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "4 devices, 2 images each" in done.stdout


@pytest.mark.slow
def test_ray_predict(tmp_path, rng):
    """A folder, and the same as Parquet, on a local Ray: the predictor's own label maps."""
    ray = pytest.importorskip("ray", reason="Ray is an extra: pip install -e .[ray]")
    parquet = pytest.importorskip("pyarrow.parquet")
    import pyarrow

    model = fcn_jax.create_model("fcn32s", num_classes=3, width=1 / 16, fc_width=8)
    fcn_jax.save_weights("net.npz", random_parameters(model, 0))
    predictor = fcn_jax.load("net.npz", padding="same")
    (tmp_path / "photos").mkdir()
    images = {f"{n}.png": rng.integers(0, 256, (33 + n, 50, 3), np.uint8) for n in range(5)}
    for name, image in images.items():
        Image.fromarray(image).save(tmp_path / "photos" / name)
    (tmp_path / "photos/broken.png").write_bytes(b"nothing")
    files = sorted((tmp_path / "photos").iterdir())
    columns = {"path": [str(f) for f in files], "bytes": [f.read_bytes() for f in files]}
    parquet.write_table(pyarrow.table(columns), tmp_path / "images.parquet")

    environment = {"PYTHONPATH": str(EXAMPLES.parent), "JAX_PLATFORMS": "cpu"}
    ray.init(num_cpus=2, include_dashboard=False, runtime_env={"env_vars": environment})
    try:
        for given, output in (("photos", "labels"), ("images.parquet", "more")):
            options = {"padding": "same", "batch_size": 2}
            main_of("ray_predict")(tmp_path / "net.npz", tmp_path / given, output, **options)
            rows = parquet.read_table(output).to_pylist()
            found = {Path(row["path"]).name: row for row in rows}
            assert "not an image" in found.pop("broken.png")["error"]
            assert set(found) == set(images)
            for name, row in found.items():
                labels = np.asarray(Image.open(io.BytesIO(row["labels"])))
                np.testing.assert_array_equal(labels, predictor(images[name]))
                assert row["pixels"] == np.bincount(labels.ravel(), minlength=3).tolist()
                assert row["error"] is None
    finally:
        ray.shutdown()
