"""One pass over an image beside the same classifier slid over it: the paper's section 4.1.

    python benchmarks/convolutionalization.py [--side=384] [--turns=3] [--width=1.0]

The VGG16 classifier gives a map of logits for an image of 384x384; without convolutionalisation
its 36 entries take 36 windows of 224x224 at a stride of 32. Times, in turns (A B C A B C), the one
pass, the windows one by one, and the windows in batches. Prints medians and their ratios.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable

import jax
import numpy as np
from absl import app, flags
from interleaved import take_turns

BACKBONE = flags.DEFINE_string("backbone", "vgg16", "The classifier's backbone.")
SIDE = flags.DEFINE_integer("side", 384, "Side of the image.")
WINDOW = flags.DEFINE_integer("window", 224, "Side of the windows.")
STRIDE = flags.DEFINE_integer("stride", 32, "Pixels between two windows.")
BATCH = flags.DEFINE_integer("batch", 12, "Windows in a batch.")
TURNS = flags.DEFINE_integer("turns", 3, "Turns of each kind.")
WIDTH = flags.DEFINE_float("width", 1.0, "Multiplier of the channels, fc6 and fc7 included.")


def cut_windows(image: np.ndarray) -> np.ndarray:
    """(windows, side, side, 3) of an image (1, height, width, 3)."""
    starts = range(0, SIDE.value - WINDOW.value + 1, STRIDE.value)
    side = WINDOW.value
    return np.stack([image[0, i : i + side, j : j + side] for i in starts for j in starts])


def main(argv: list[str]) -> None:
    """Measures and prints."""
    del argv
    from fcn_jax.models.fcn import create_model, initial_params

    model = create_model(
        "classifier",
        backbone=BACKBONE.value,
        num_classes=1000,
        width=WIDTH.value,
        fc_width=round(4096 * WIDTH.value),
    )
    variables = {"params": initial_params(model, jax.random.key(0))}
    image = np.random.default_rng(0).normal(0, 64, (1, SIDE.value, SIDE.value, 3))
    image = image.astype(np.float32)
    windows = cut_windows(image)
    forward = jax.jit(model.apply)

    def batches(size: int) -> None:
        for start in range(0, len(windows), size):
            jax.block_until_ready(forward(variables, windows[start : start + size]))

    kinds: dict[str, Callable[[], None]] = {
        "one pass": lambda: jax.block_until_ready(forward(variables, image)),
        f"{len(windows)} windows one by one": lambda: batches(1),
        f"{len(windows)} windows in batches of {BATCH.value}": lambda: batches(BATCH.value),
    }
    for run in kinds.values():
        run()  # compiles
    times = take_turns(kinds, TURNS.value)

    rows, columns = forward(variables, image).shape[1:3]
    print(f"{BACKBONE.value}, {SIDE.value}x{SIDE.value} pixels, a map of {rows}x{columns} logits")
    one = statistics.median(times["one pass"])
    for name, values in times.items():
        median = statistics.median(values)
        print(f"{name:>32}  {1000 * median:9.1f} ms  {median / one:6.2f} times the one pass")


if __name__ == "__main__":
    app.run(main)
