"""How busy `fcn-jax predict` keeps the device: images per second, and the part of the time.

    python benchmarks/predict.py --images=500 --photographs=VOCdevkit/VOC2012/JPEGImages
    python benchmarks/predict.py --images=500 --precision=bfloat16      # on a GPU

Photographs of many sizes go through the command's own pipeline (`fcn_jax.inference.pipeline`): read
from JPEG files, computed, and written as label maps, overlays and confidence maps. *Busy* is the
time that the device needs for the same batches alone, when they lie in its memory already, divided
by the time that all took. Both are of warm programs: a first pass over the photographs compiles.

On the CPU the device is what also reads and writes, so that busy is below 1 by their work.
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
import time
from pathlib import Path
from typing import Any

import jax
import machine
import numpy as np
from PIL import Image

import fcn_jax
from fcn_jax.data.voc import VOC
from fcn_jax.inference import pipeline
from fcn_jax.inference.outputs import KINDS, USUAL, Job, Outputs, Records
from fcn_jax.models.fcn import initial_params
from fcn_jax.programs import keep_compiled_programs


def write_photographs(folder: Path, given: Path | None, number: int, sizes: int) -> list[Path]:
    """JPEG files of so many sizes around 500x375, made of given ones or of noise in blocks."""
    rng = np.random.default_rng(0)
    shapes = [(375, 500)] + [
        (int(rng.integers(250, 501)), int(rng.integers(250, 501))) for _ in range(sizes - 1)
    ]
    sources = sorted(given.rglob("*.jpg")) if given else []
    written = []
    for index, (height, width) in zip(range(number), itertools.cycle(shapes), strict=False):
        if sources:
            image = Image.open(sources[index % len(sources)]).convert("RGB")
        else:
            image = Image.fromarray(rng.integers(0, 256, (40, 50, 3), np.uint8))
        written.append(folder / f"{index:05}.jpg")
        image.resize((width, height), Image.Resampling.BICUBIC).save(written[-1], quality=92)
    return written


def main() -> None:
    """Measures, and prints a line for each turn."""
    parser = argparse.ArgumentParser(description="How busy predict keeps the device.")
    add = parser.add_argument
    add("--images", type=int, default=500)
    add("--photographs", type=Path, help="a folder of JPEG files; default: pictures made here")
    add("--sizes", type=int, default=8, help="different sizes of the photographs")
    add("--model", default="fcn8s")
    add("--width", type=float, default=1.0, help="part of the network's channels")
    add("--precision", default="float32", choices=("float32", "tf32", "bfloat16"))
    add("--batch_size", type=int, default=8)
    add("--threads", type=int, default=pipeline.Work._field_defaults["threads"])
    add("--write", default=",".join(USUAL), help=f"of {', '.join(KINDS)}")
    add("--turns", type=int, default=2)
    args = parser.parse_args()
    keep_compiled_programs()
    print(*machine.describe(), f"device       {jax.devices()[0].device_kind}", sep="\n")

    model = fcn_jax.create_model(
        args.model, num_classes=21, width=args.width, precision=args.precision, padding="reference"
    )
    params = initial_params(model, jax.random.key(0))
    predictor = fcn_jax.Predictor(
        model, {"params": params}, heads={"label": VOC}, batch_size=args.batch_size
    )
    kept: list[Any] = []  # the batches, on the device
    seconds = {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        files = write_photographs(folder, args.photographs, args.images, args.sizes)
        jobs = [Job(file, file.stem) for file in files]
        outputs = Outputs(Records(folder / "out"), predictor, tuple(args.write.split(",")))

        def fail(job: Job, error: BaseException) -> None:
            raise SystemExit(f"{job.file}: {error}")

        reader = pipeline.Reader(predictor)
        work = pipeline.Work(outputs, reader, fail, lambda done: None, args.threads)
        original = pipeline.predict_batch

        def keep(*arguments: Any, **options: Any) -> Any:
            kept.append((arguments, options))
            return original(*arguments, **options)

        pipeline.predict_batch = keep  # type: ignore[assignment]
        pipeline.predict_files(work, jobs)
        pipeline.predict_batch = original
        for turn in range(args.turns):
            start = time.perf_counter()
            pipeline.predict_files(work, jobs)
            seconds["all"] = time.perf_counter() - start
            start = time.perf_counter()
            results: list[Any] = []
            for arguments, options in kept:
                results.append(original(*arguments, **options))
                if len(results) > 2:
                    jax.block_until_ready(results.pop(0))
            jax.block_until_ready(results)
            seconds["device"] = time.perf_counter() - start
            start = time.perf_counter()
            for job in jobs:
                reader(job)
            seconds["reading"] = time.perf_counter() - start
            print(
                f"turn {turn}: {args.images / seconds['all']:.2f} images/s, "
                f"busy {seconds['device'] / seconds['all']:.3f} "
                f"({seconds['device']:.2f} of {seconds['all']:.2f} s; {len(kept)} batches; "
                f"one thread would read in {seconds['reading']:.2f} s)",
                flush=True,
            )


if __name__ == "__main__":
    main()
