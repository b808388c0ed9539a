"""A data set of many examples: how fast it is prepared, and what opening it takes.

    python benchmarks/many_examples.py --examples=200000 [--folder=DIR] [--processes=2]

The images are tiny (9x8 pixels), so that what is measured is what each example costs besides its
pixels. What is in the folder from an earlier run is opened again, and one that was killed goes on.
A fresh process tells seconds and resident memory: of the imports, of opening the set, of its first
example, of 2000 others, and of the lists that training asks for.
"""

from __future__ import annotations

import argparse
import functools
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np


def main() -> None:
    """Prepares, and has a fresh process open it."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--examples", type=int, default=200_000)
    parser.add_argument("--folder", help="where the set is kept; by default it is removed")
    parser.add_argument("--processes", type=int, help="by default as many as there are cores")
    parser.add_argument("--open", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.open:
        open_set(Path(args.open))
        return

    from fcn_jax.data import writing
    from fcn_jax.data.records import VERSION, Contents, Entry
    from fcn_jax.data.voc import VOC

    with tempfile.TemporaryDirectory() as temporary:
        path = Path(args.folder or temporary) / f"many/of{args.examples}/{VERSION}"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            names = {"train": range(args.examples), "val": range(args.examples, args.examples + 1)}
            splits = {
                split: [Entry(f"2026/{i:08d}", functools.partial(draw, i)) for i in numbers]
                for split, numbers in names.items()
            }
            contents = Contents(splits, {"label": VOC}, "benchmarks/many_examples.py")
            writing.write(contents, path, "Noise.", processes=args.processes)
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
            print(f"peak of the process that prepared: {peak:.0f} MiB")
        subprocess.run([sys.executable, __file__, f"--open={path}"], check=True)


def draw(number: int) -> dict[str, Any]:
    """An image of noise, and its labels."""
    from fcn_jax.data.images import encoded_pixels

    rng = np.random.default_rng(number)
    image = encoded_pixels(rng.integers(0, 256, (8, 9, 3), np.uint8))
    return {"image": image, "label": rng.integers(0, 21, (8, 9), np.uint8)}


def open_set(path: Path) -> None:
    """Prints a table."""

    def imports() -> None:
        import tensorflow_datasets as tfds
        from array_record.python import array_record_data_source

        from fcn_jax.data import loader

        del array_record_data_source, loader
        _ = tfds.features.FeaturesDict, tfds.core.ReadInstruction, tfds.decode.SkipDecoding

    print("| | seconds | resident, MiB more |\n|---|---|---|")
    measured("imports", imports)
    from fcn_jax.data import Source

    source = measured("opening", lambda: Source(path, "train"))
    measured("the first example", lambda: source[0])
    chosen = np.random.default_rng(0).integers(len(source), size=2000).tolist()
    measured("2000 others", lambda: [source[i]["id"] for i in chosen][:0])
    for name in ("sizes", "ids", "digests", "label_digests", "label_counts"):
        measured(name, lambda name=name: getattr(source, name))


def measured(what: str, run: Callable[[], Any]) -> Any:
    """Runs and prints a row."""
    before, begun = resident_mib(), time.perf_counter()
    result = run()
    seconds = time.perf_counter() - begun
    print(f"| {what} | {seconds:.3f} | {resident_mib() - before:.1f} |")
    return result


def resident_mib() -> float:
    """Of this process now (Linux)."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20


if __name__ == "__main__":
    main()
