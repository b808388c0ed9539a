"""Random transforms of an image together with its label map, for training.

Each takes an example and an explicit generator and returns a new example; nothing here reads
files or knows of batches. An example is ``{"image": uint8 (h, w, 3) RGB, "label": uint8 (h, w),
"id": str}``; void is 255.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageEnhance

from fcn_jax.classes import VOID
from fcn_jax.inference import resize_image

Example = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Augmentation:
    """What happens to a training example, in this order: resize, crop, flip, jitter.

    Attributes:
        scale: Factor on every image's height and width.
        scale_range: Lowest and highest random factor besides, drawn log-uniformly.
        crop: Height and width of a random crop; None keeps the whole image.
        flip: Mirror left to right with probability 1/2.
        jitter: Strength of random brightness, contrast and saturation; 0 is none.
    """

    scale: float = 1.0
    scale_range: tuple[float, float] = (1.0, 1.0)
    crop: tuple[int, int] | None = None
    flip: bool = False
    jitter: float = 0.0

    def __call__(self, example: Example, rng: np.random.Generator) -> Example:
        """Transforms an example; the same generator state gives the same result."""
        factor = self.scale
        if self.scale_range != (1.0, 1.0):
            factor *= np.exp(rng.uniform(*np.log(self.scale_range)))
        example = resize(example, factor)
        if self.crop is not None:
            example = random_crop(example, self.crop, rng)
        if self.flip:
            example = random_flip(example, rng)
        if self.jitter > 0:
            example = random_jitter(example, self.jitter, rng)
        return example


def resize(example: Example, factor: float) -> Example:
    """Scales both, at least to 1 pixel: the image bilinearly (antialiased), the label by nearest.

    Both take pixel centres as the points that correspond.
    """
    label = example["label"]
    height, width = (max(1, round(side * factor)) for side in label.shape)
    if (height, width) == label.shape:
        return example
    image = resize_image(example["image"], factor)
    # In integers, since Pillow's nearest neighbour rounds either way where two are as near.
    rows, columns = (
        (2 * np.arange(new) + 1) * old // (2 * new)
        for new, old in zip((height, width), label.shape, strict=True)
    )
    return {**example, "image": image, "label": label[np.ix_(rows, columns)]}


def random_crop(example: Example, size: tuple[int, int], rng: np.random.Generator) -> Example:
    """Cuts a window of at most ``size`` (height, width) at a random place.

    Along an axis on which the image is smaller it is kept whole; the batch fills the rest with
    void.
    """
    window = []
    for have, want in zip(example["label"].shape, size, strict=True):
        start = int(rng.integers(max(0, have - want) + 1))
        window.append(slice(start, start + want))
    rows, columns = window
    return {
        **example,
        "image": example["image"][rows, columns],
        "label": example["label"][rows, columns],
    }


def random_flip(example: Example, rng: np.random.Generator) -> Example:
    """Mirrors left to right with probability 1/2."""
    if rng.random() < 0.5:
        return example
    return {**example, "image": example["image"][:, ::-1], "label": example["label"][:, ::-1]}


def random_jitter(example: Example, strength: float, rng: np.random.Generator) -> Example:
    """Changes brightness, contrast and saturation by factors in 1 ± strength."""
    image = Image.fromarray(np.ascontiguousarray(example["image"]))
    for change in (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color):
        image = change(image).enhance(float(rng.uniform(1 - strength, 1 + strength)))
    return {**example, "image": np.asarray(image)}


def place_on_canvas(
    examples: list[Example], canvas: tuple[int, int] | None, multiple: int = 32
) -> dict[str, np.ndarray]:
    """Stacks examples of mixed sizes: each in the top left corner, the rest black and void.

    Args:
        examples: At least one.
        canvas: Height and width; None takes the largest of each, rounded up to ``multiple``
            where sizes differ, so that few canvas sizes (and compilations) occur.
        multiple: See ``canvas``.

    Returns:
        ``image`` uint8 (b, h, w, 3), ``label`` uint8 (b, h, w), ``size`` int32 (b, 2) true
        height and width of each image, ``id`` array of str (b,).

    Raises:
        ValueError: If an image is larger than the canvas; names it.
    """
    sizes = np.array([example["label"].shape for example in examples], np.int32)
    if canvas is None:
        height, width = sizes.max(axis=0).tolist()
        if (sizes != sizes[0]).any():
            height, width = (-(-side // multiple) * multiple for side in (height, width))
    else:
        height, width = canvas
    batch: dict[str, np.ndarray] = {
        "image": np.zeros((len(examples), height, width, 3), np.uint8),
        "label": np.full((len(examples), height, width), VOID, np.uint8),
        "size": sizes,
        "id": np.array([example["id"] for example in examples]),
    }
    for row, (example, (rows, columns)) in enumerate(zip(examples, sizes, strict=True)):
        if rows > height or columns > width:
            raise ValueError(
                f"{example['id']}: the image of {rows}x{columns} pixels does not fit the canvas "
                f"of {height}x{width}; enlarge config.canvas, or set config.crop to it"
            )
        batch["image"][row, :rows, :columns] = example["image"]
        batch["label"][row, :rows, :columns] = example["label"]
    return batch


def check_example(example: Example) -> Example:
    """Returns a sound example.

    Raises:
        ValueError: If the arrays are not uint8 of one size; names the example.
    """
    image: UInt8[np.ndarray, "h w 3"] = example["image"]
    label: UInt8[np.ndarray, "h w"] = example["label"]
    good = image.dtype == label.dtype == np.uint8 and image.shape == (*label.shape, 3)
    if not good:
        raise ValueError(
            f"{example['id']}: expected uint8 image (h, w, 3) and label (h, w), got "
            f"{image.dtype} {image.shape} and {label.dtype} {label.shape}"
        )
    return example
