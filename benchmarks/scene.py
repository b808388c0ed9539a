"""Memory and speed as a georeferenced scene is predicted in windows (`pip install 'fcn-jax[geo]'`).

    python benchmarks/scene.py [--side=40000] [--tile=2048]

A small network in this process writes labels, overlay and confidence of a square scene; a line for
each tenth of it: the part done, megapixels per second, the largest resident set so far in MiB,
which is to stay where it is.
"""

from __future__ import annotations

import resource
import tempfile
import time
from pathlib import Path

import jax
import machine
import numpy as np
import rasterio
from absl import app, flags
from rasterio.transform import from_origin
from rasterio.windows import Window

from fcn_jax import Predictor, create_model
from fcn_jax.data.voc import VOC
from fcn_jax.inference import pipeline
from fcn_jax.inference.outputs import USUAL, Job, Outputs, Records
from fcn_jax.models.fcn import initial_params

SIDE = flags.DEFINE_integer("side", 40_000, "Pixels of a side.", lower_bound=1024)
TILE = flags.DEFINE_integer("tile", 2048, "Largest side of a window.")


def write_scene(file: Path, side: int) -> None:
    """Noise in blocks, the same every 1024 pixels, compressed."""
    block = np.random.default_rng(0).integers(0, 256, (3, 64, 64), np.uint8)
    block = block.repeat(16, 1).repeat(16, 2)
    options = {"driver": "GTiff", "tiled": True, "compress": "deflate", "crs": "EPSG:32632"}
    options |= {"transform": from_origin(500_000, 5_400_000, 1, 1)}
    options |= {"height": side, "width": side, "count": 3, "dtype": "uint8"}
    with rasterio.open(file, "w", **options) as scene:
        for top in range(0, side, 1024):
            for left in range(0, side, 1024):
                height, width = min(1024, side - top), min(1024, side - left)
                place = Window(left, top, width, height)  # type: ignore[call-arg]
                scene.write(block[:, :height, :width], window=place)


def main(argv: list[str]) -> None:
    """Predicts and prints."""
    del argv
    jax.config.update("jax_platforms", "cpu")
    print(*machine.describe(), sep="\n")
    model = create_model("fcn32s", num_classes=21, backbone="alexnet", width=1 / 16, fc_width=8)
    variables = {"params": initial_params(model, jax.random.key(0))}
    predictor = Predictor(model, variables, heads={"label": VOC}, tile=TILE.value)
    with tempfile.TemporaryDirectory() as temporary:
        folder, start = Path(temporary), time.perf_counter()
        write_scene(folder / "scene.tif", SIDE.value)
        print(f"written in {time.perf_counter() - start:.0f} s", flush=True)
        outputs = Outputs(Records(folder / "out"), predictor, USUAL)

        def fail(job: Job, error: BaseException) -> None:
            raise SystemExit(f"{job.file}: {error}")

        start, told = time.perf_counter(), 0

        def progress(done: float) -> None:
            nonlocal told
            if 10 * done >= told + 1:
                told = int(10 * done)
                rate = done * SIDE.value**2 / 1e6 / (time.perf_counter() - start)
                peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
                print(f"| {done:.2f} | {rate:.2f} | {peak:.0f} |", flush=True)

        print("| done | megapixels/s | MiB |\n|---|---|---|", flush=True)
        work = pipeline.Work(outputs, pipeline.Reader(predictor), fail, progress)
        pipeline.predict_files(work, [Job(folder / "scene.tif", "scene")])


if __name__ == "__main__":
    app.run(main)
