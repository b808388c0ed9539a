"""The loader alone: images a second, per core and for numbers of threads and processes.

    python benchmarks/loader.py [--photographs=DIR] [--step_rate=976]

Photographs of VOC's size (500x375, JPEG) with masks, made here or those of a folder that
`fcn-jax train --config=folder` would take, are read, scaled by 0.5 to 2, mirrored and cropped to
500x500, and put into batches of 16. The first table takes the steps one after the other, in one
thread; images per second of the CPU's time, which other programs on the machine disturb little.
The second is the loader as training runs it, by the clock. ``--step_rate`` is what a device takes,
in images a second: the last line says how many cores that asks for.
"""

from __future__ import annotations

import argparse
import math
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

BATCH = 16


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--photographs", help="a folder of images and masks")
    parser.add_argument("--images", type=int, default=160, help="to make, and to load of each kind")
    parser.add_argument("--workers", default="0,1,2", help="numbers of processes to try")
    parser.add_argument(
        "--threads", default="1,2", help="numbers of threads to try, of each process"
    )
    parser.add_argument("--step_rate", type=float, default=976.0, help="images/s of a device")
    args = parser.parse_args()

    from fcn_jax import data
    from fcn_jax.data.loader import training_batches
    from fcn_jax.data.transforms import Augmentation, stack_examples

    augmentation = Augmentation(scale_range=(0.5, 2.0), flip=True, crop=(500, 500))
    with tempfile.TemporaryDirectory() as place:
        folder = Path(args.photographs or make_photographs(Path(place) / "made", args.images))
        source = data.open_source("folder", "train", data_dir=place, manual_dir=folder)
        count = min(args.images, len(source)) // BATCH * BATCH
        examples: list[Any] = []
        augmented: list[Any] = []
        generators = [np.random.default_rng(i) for i in range(count)]

        def decode() -> None:
            examples[:] = [source[i] for i in range(count)]

        def augment() -> None:
            augmented[:] = map(augmentation, examples, generators)

        def batch() -> None:
            for start in range(0, count, BATCH):
                stack_examples(augmented[start : start + BATCH], (500, 500))

        source[0]  # imports
        rows = {step.__name__: cpu_seconds(step) / count for step in (decode, augment, batch)}
        rows["all"] = sum(rows.values())
        print(f"{count} photographs of {source.sizes[0][1]}x{source.sizes[0][0]} and others")
        print("\n| one thread | ms of CPU an image | images/s of a core |\n|---|---|---|")
        for name, seconds in rows.items():
            print(f"| {name} | {1000 * seconds:.2f} | {1 / seconds:.0f} |")

        print("\n| processes | threads of each | images/s |\n|---|---|---|")
        for workers in map(int, args.workers.split(",")):
            for threads in map(int, args.threads.split(",")):
                options = {"batch_size": BATCH, "seed": 0, "augmentation": augmentation}
                with training_batches(
                    source, **options, num_workers=workers, read_threads=threads
                ) as batches:
                    for _ in range(8 + workers):  # starts processes, and fills what is read ahead
                        next(batches)
                    begun = time.perf_counter()
                    for _ in range(count // BATCH):
                        next(batches)
                    seconds = time.perf_counter() - begun
                print(f"| {workers} | {threads} | {count / seconds:.0f} |", flush=True)
        cores = math.ceil(args.step_rate * rows["all"])
        print(f"\nA step that takes {args.step_rate:.0f} images/s asks for {cores} such cores.")


def cpu_seconds(step: Callable[[], object]) -> float:
    """Seconds of the CPU that all threads of this process take."""
    begun = time.process_time()
    step()
    return time.process_time() - begun


def make_photographs(folder: Path, count: int) -> Path:
    """Smooth noise with grain, whose JPEG files are about as large as VOC's, and masks of blobs."""
    from PIL import Image

    rng = np.random.default_rng(0)
    for kind in ("images", "masks"):
        (folder / kind).mkdir(parents=True)
    (folder / "classes.txt").write_text("".join(f"class {i}\n" for i in range(21)))
    for i in range(count):
        width, height = ((500, 375), (375, 500))[i % 4 == 3]
        coarse = Image.fromarray(rng.integers(0, 256, (12, 16, 3), np.uint8))
        smooth = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC), np.float64)
        grain = rng.normal(0, 12, (height, width, 1))
        picture = Image.fromarray(np.clip(smooth + grain, 0, 255).astype(np.uint8))
        picture.save(folder / f"images/{i:05d}.jpg", quality=85)
        blobs = Image.fromarray(rng.integers(0, 21, (6, 8), np.uint8))
        blobs.resize((width, height), Image.Resampling.NEAREST).save(folder / f"masks/{i:05d}.png")
    return folder


if __name__ == "__main__":
    main()
