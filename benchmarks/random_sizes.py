"""Memory as images of random sizes are predicted, each on a canvas of its own size.

    python benchmarks/random_sizes.py [--images=10000] [--programs=32] [--largest=400]

A small network in this process; a line for each tenth of the images: the resident set in MiB, the
programs made so far (compiled, or read from `JAX_COMPILATION_CACHE_DIR`), images/s. A cache of
programs without a bound would grow all the time.
"""

from __future__ import annotations

import time
from pathlib import Path

import jax
import numpy as np
from absl import app, flags

from fcn_jax import Predictor, create_model
from fcn_jax.models.fcn import initial_params

IMAGES = flags.DEFINE_integer("images", 10_000, "How many.", lower_bound=10)
PROGRAMS = flags.DEFINE_integer("programs", 32, "Compiled programs that are kept.")
LARGEST = flags.DEFINE_integer("largest", 400, "Most pixels of a side.")


def resident() -> float:
    """The resident set of this process in MiB (Linux)."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 2**20


def main(argv: list[str]) -> None:
    """Predicts and prints."""
    del argv
    jax.config.update("jax_platforms", "cpu")
    compiled = 0

    def count(event: str, duration_secs: float, **__: str | int) -> None:
        nonlocal compiled
        del duration_secs
        compiled += event == "/jax/core/compile/backend_compile_duration"

    model = create_model("fcn32s", num_classes=5, backbone="alexnet", width=1 / 16, fc_width=8)
    variables = {"params": initial_params(model, jax.random.key(0))}
    predictor = Predictor(model, variables, programs=PROGRAMS.value)
    jax.monitoring.register_event_duration_secs_listener(count)
    rng = np.random.default_rng(0)
    print("| images | MiB | compiled | images/s |\n|---|---|---|---|", flush=True)
    start = time.perf_counter()
    for number in range(1, IMAGES.value + 1):
        size = rng.integers(1, LARGEST.value + 1, 2)
        image = rng.integers(0, 256, (*size, 3), np.uint8)
        if predictor(image).shape != image.shape[:2]:
            raise SystemExit(f"another size than {image.shape}")
        if number % (IMAGES.value // 10) == 0:
            rate = number / (time.perf_counter() - start)
            print(f"| {number} | {resident():.0f} | {compiled} | {rate:.1f} |", flush=True)


if __name__ == "__main__":
    app.run(main)
