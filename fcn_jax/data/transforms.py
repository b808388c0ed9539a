"""Random transforms of an image together with its label map, for training.

Each takes an example and an explicit generator and returns a new example; nothing here reads
files. An example is a dictionary of arrays of one height and width, and its ``id``. Type and rank
tell what an array is: uint8 (h, w, 3) is a picture (``image``, RGB; ``hha``), uint16 (h, w) depth
in millimetres, uint8 (h, w) a label map (``label``, or several of other names), whose void is 255.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
from jaxtyping import Shaped, UInt8

from fcn_jax.canvas import Size, stack
from fcn_jax.classes import VOID

Example: TypeAlias = dict[str, Any]


def arrays(example: Mapping[str, object]) -> dict[str, np.ndarray]:
    """The arrays of an example, by name."""
    return {name: value for name, value in example.items() if isinstance(value, np.ndarray)}


def is_label(value: Shaped[np.ndarray, "..."]) -> bool:
    """Whether an array of an example is a label map."""
    return value.ndim == 2 and value.dtype == np.uint8


def size_of(example: Mapping[str, object]) -> Size:
    """Height and width of an example."""
    height, width = next(iter(arrays(example).values())).shape[:2]
    return height, width


@dataclasses.dataclass(frozen=True)
class Augmentation:
    """What happens to a training example, in this order: resize, crop, flip, jitter.

    Attributes:
        scale: Factor on every image's height and width.
        scale_range: Lowest and highest random factor besides, drawn log-uniformly.
        crop: Height and width of a random crop; None keeps the whole image.
        flip: Mirror left to right with probability 1/2.
        jitter: Brightness, contrast and saturation change by random factors in 1 ± jitter.
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
        if self.crop is not None:  # an image that is smaller along an axis stays whole there
            window = []
            for have, want in zip(size_of(example), self.crop, strict=True):
                start = int(rng.integers(max(0, have - want) + 1))
                window.append(slice(start, start + want))
            example |= {name: value[*window] for name, value in arrays(example).items()}
        if self.flip and rng.random() >= 0.5:
            example |= {name: value[:, ::-1] for name, value in arrays(example).items()}
        if self.jitter > 0:
            from PIL import Image, ImageEnhance

            image = Image.fromarray(np.ascontiguousarray(example["image"]))
            for change in (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color):
                image = change(image).enhance(float(rng.uniform(1 - self.jitter, 1 + self.jitter)))
            example["image"] = np.asarray(image)
        return example


def resize(example: Mapping[str, object], factor: float) -> Example:
    """Scales all arrays to at least 1 pixel, with their pixels' centres aligned.

    Pictures (h, w, 3) are interpolated bilinearly, with antialiasing. Of depth and label maps
    (h, w) the nearest pixel is taken: between two depths or two classes there is nothing.
    """
    resized = {}
    for name, value in arrays(example).items():
        if value.ndim != 2:
            resized[name] = resize_image(value, factor)
            continue
        sides = [max(1, round(side * factor)) for side in value.shape]
        # In integers, since Pillow's nearest neighbour rounds either way where two are as near.
        rows, columns = (
            (2 * np.arange(new) + 1) * old // (2 * new)
            for new, old in zip(sides, value.shape, strict=True)
        )
        resized[name] = value[np.ix_(rows, columns)]
    return {**example, **resized}


def stack_examples(examples: Sequence[Example], canvas: Size) -> dict[str, np.ndarray]:
    """Makes a batch of examples of any sizes: each in the top left corner, the rest black and void.

    Beside the arrays the batch has ``valid_size``, int32 (b, 2), and ``id``, str (b,).
    """
    sizes = np.array([size_of(example) for example in examples], np.int32)
    for example, (rows, columns) in zip(examples, sizes, strict=True):
        if rows > canvas[0] or columns > canvas[1]:
            raise ValueError(
                f"{example['id']}: the image of {rows}x{columns} pixels does not fit the canvas "
                f"of {canvas[0]}x{canvas[1]}; enlarge config.canvas, or set config.crop to it"
            )
    batch = {"valid_size": sizes, "id": np.array([example["id"] for example in examples])}
    for name, first in arrays(examples[0]).items():
        values = [example[name] for example in examples]
        batch[name] = stack(values, canvas, len(values), VOID if is_label(first) else 0)
    return batch


def check_example(example: Example) -> Example:
    """Returns a sound example; of another, the ValueError names the array."""
    height, width = size_of(example)
    for name, value in arrays(example).items():
        kind = (value.dtype.name, *value.shape[2:])
        known = kind in (("uint8", 3), ("uint8",), ("uint16",))
        if not known or value.shape[:2] != (height, width):
            raise ValueError(
                f"{example['id']}: expected uint8 pictures (h, w, 3), uint8 label maps (h, w) and "
                f"uint16 depth (h, w) of one size, got {name} {value.dtype} {value.shape} where "
                f"others have {height}x{width}"
            )
    if not any(map(is_label, arrays(example).values())):
        found = ", ".join(arrays(example))
        raise ValueError(f"{example['id']}: there is no label map among {found}")
    return example


def resize_image(image: Shaped[np.ndarray, "..."], scale: float) -> UInt8[np.ndarray, "h w 3"]:
    """Scales an image, as training does: bilinear, antialiased, at least 1 pixel."""
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or image.size == 0:
        raise ValueError(
            f"an image must be uint8 RGB of the shape (h, w, 3) (or depth uint16 (h, w)), got "
            f"{image.dtype} {image.shape}; fcn_jax.data.images.to_rgb makes one of any other"
        )
    if scale <= 0:
        raise ValueError(f"scale must be positive, got {scale}")
    height, width = (max(1, round(side * scale)) for side in image.shape[:2])
    if (height, width) == image.shape[:2]:
        return image
    from PIL import Image

    return np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR))
