"""What is timed: FCN-8s with a VGG16 backbone on one batch, and the recipe it is trained by.

No jax and no PyTorch here: both sides read it, each in a process that may not have the other.
"""

from __future__ import annotations

import dataclasses

import numpy as np

TASKS = ("inference", "training")
CLASSES = 21
VOID = 255
MEAN_BGR = (104.00699, 116.66877, 122.67892)

# The published solver of FCN-8s: the loss summed over the pixels, biases at twice the rate and
# not decayed, transposed convolutions fixed.
LEARNING_RATE = 1e-14
MOMENTUM = 0.99
WEIGHT_DECAY = 5e-4
BIAS_RATE = 2.0
DROPOUT = 0.5


@dataclasses.dataclass(frozen=True)
class Case:
    """One task on one batch.

    Attributes:
        task: ``inference`` or ``training``.
        padding: ``reference`` or ``same``.
        shape: Images in the batch, their height and their width in pixels.
        width: Multiplier of the channels, fc6 and fc7 included.
    """

    task: str
    padding: str
    shape: tuple[int, int, int]
    width: float = 1.0

    @property
    def fc_width(self) -> int:
        """Channels of fc6 and fc7."""
        return max(1, round(4096 * self.width))

    def random_batch(self) -> dict[str, np.ndarray]:
        """Images uint8 (b, h, w, 3), and labels uint8 (b, h, w) of which a tenth is void."""
        rng = np.random.default_rng(0)
        labels = rng.integers(0, CLASSES, self.shape, np.uint8)
        labels[rng.random(self.shape) < 0.1] = VOID
        return {"image": rng.integers(0, 256, (*self.shape, 3), np.uint8), "label": labels}


def parse_shape(text: str) -> tuple[int, int, int]:
    """``BATCHxHEIGHTxWIDTH`` as numbers.

    Raises:
        ValueError: If these are not three positive whole numbers.
    """
    parts = text.split("x")
    if len(parts) != 3 or not all(part.isdigit() and int(part) for part in parts):
        raise ValueError(f"the shape {text!r} is not BATCHxHEIGHTxWIDTH, such as 1x500x375")
    batch, height, width = map(int, parts)
    return batch, height, width
