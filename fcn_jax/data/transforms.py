"""Random transforms of an image together with its label map, for training.

Each takes an example and an explicit generator and returns a new example; nothing here reads
files. An example is a dictionary of arrays of one height and width, and its ``id``. Type and rank
tell what an array is: (h, w, bands) is a picture (``image``, mostly uint8 RGB; ``hha``), uint16
(h, w) depth in millimetres, uint8 (h, w) a label map (``label``, or several of other names), whose
void is 255.
"""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from jaxtyping import Float, Shaped

from fcn_jax.canvas import Size, scaled_size, stack
from fcn_jax.classes import VOID
from fcn_jax.data.bands import DTYPES, Range

if TYPE_CHECKING:
    import PIL.Image

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
    """What happens to a training example: resize, rotation, crop, flips, colours, in this order.

    The places change of all arrays together, the colours of ``image`` alone.

    Attributes:
        scale: Factor on every image's height and width.
        scale_range: Lowest and highest random factor besides, drawn log-uniformly.
        rotation: Most degrees of a random rotation to either side (`rotate`).
        crop: Height and width of a random crop; None keeps the whole image.
        flip: Mirror left to right with probability 1/2.
        vertical_flip: Turn upside down with probability 1/2.
        jitter: Brightness, contrast and saturation change by random factors in 1 ± jitter;
            saturation where there are three bands.
        grey: Probability that the three bands become one brightness; a single band is grey already.
        blur: Largest standard deviation of a random Gaussian blur, in pixels.
        jpeg: Lowest quality of a random JPEG compression; the highest is 100, and 0 is none. Other
            than three bands are compressed one by one.
        value_range: (black, white) of each band of ``image``; None is (0, 255).
    """

    scale: float = 1.0
    scale_range: tuple[float, float] = (1.0, 1.0)
    crop: tuple[int, int] | None = None
    flip: bool = False
    jitter: float = 0.0
    value_range: Range | None = None
    vertical_flip: bool = False
    rotation: float = 0.0
    blur: float = 0.0
    jpeg: int = 0
    grey: float = 0.0

    def check_bands(self, bands: int) -> None:
        """Raises ValueError if an image of so many bands cannot be changed so."""
        if self.grey > 0 and bands not in (1, 3):
            raise ValueError(
                f"config.grey = {self.grey}: an image of {bands} bands cannot become grey, those "
                "of 1 and of 3 can; set it to 0"
            )

    def __call__(self, example: Example, rng: np.random.Generator) -> Example:
        """Transforms an example; the same generator state gives the same result."""
        # ---- All arrays
        factor = self.scale
        if self.scale_range != (1.0, 1.0):
            factor *= np.exp(rng.uniform(*np.log(self.scale_range)))
        example = resize(example, factor)
        if self.rotation > 0:
            black = [low for low, _ in self.value_range or ()]
            example = rotate(example, rng.uniform(-self.rotation, self.rotation), black)
        if self.crop is not None:  # an image that is smaller along an axis stays whole there
            window = []
            for have, want in zip(size_of(example), self.crop, strict=True):
                start = int(rng.integers(max(0, have - want) + 1))
                window.append(slice(start, start + want))
            example |= {name: value[*window] for name, value in arrays(example).items()}
        if self.flip and rng.random() >= 0.5:
            example |= {name: value[:, ::-1] for name, value in arrays(example).items()}
        if self.vertical_flip and rng.random() >= 0.5:
            example |= {name: value[::-1] for name, value in arrays(example).items()}

        # ---- The image alone
        if self.jitter > 0:
            example["image"] = self._jittered(
                example["image"], rng.uniform(1 - self.jitter, 1 + self.jitter, 3).tolist()
            )
        if self.grey > 0 and rng.random() < self.grey:
            example["image"] = self._grey(example["image"])
        if self.blur > 0:
            example["image"] = blurred(example["image"], rng.uniform(0, self.blur))
        if self.jpeg > 0:
            quality = int(rng.integers(self.jpeg, 100, endpoint=True))
            example["image"] = self._compressed(example["image"], quality)
        return example

    def _black_and_white(self, bands: int) -> Float[np.ndarray, "2 bands"]:
        return np.array(self.value_range or [(0, 255)] * bands, np.float32).T

    def _jittered(
        self, image: Shaped[np.ndarray, "h w c"], factors: Sequence[float]
    ) -> Shaped[np.ndarray, "h w c"]:
        """An image with its brightness, contrast and saturation changed by factors."""
        if image.dtype == np.uint8 and image.shape[2] == 3:
            from PIL import Image, ImageEnhance

            picture = Image.fromarray(np.ascontiguousarray(image))
            changes = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)
            for change, factor in zip(changes, factors, strict=True):
                picture = change(picture).enhance(factor)
            return np.asarray(picture)
        brightness, contrast, saturation = factors
        black, _ = self._black_and_white(image.shape[2])
        values = (image.astype(np.float32) - black) * brightness
        values = blended(values, values.mean(axis=(0, 1)), contrast)
        if image.shape[2] == 3:
            values = blended(values, values.mean(axis=2, keepdims=True), saturation)
        return as_type(values + black, image.dtype)

    def _grey(self, image: Shaped[np.ndarray, "h w c"]) -> Shaped[np.ndarray, "h w c"]:
        """An image of three bands that all have its brightness (ITU-R BT.601, as Pillow's)."""
        self.check_bands(image.shape[2])
        if image.shape[2] == 1:
            return image
        black, white = self._black_and_white(3)
        brightness = (image - black) / (white - black) @ np.array([0.299, 0.587, 0.114], np.float32)
        return as_type(black + brightness[..., None] * (white - black), image.dtype)

    def _compressed(
        self, image: Shaped[np.ndarray, "h w c"], quality: int
    ) -> Shaped[np.ndarray, "h w c"]:
        """An image with what JPEG changes in it; what is finer than 8 bits stays."""
        from PIL import Image

        def through_jpeg(pixels: np.ndarray) -> np.ndarray:
            file = io.BytesIO()
            Image.fromarray(pixels).save(file, "JPEG", quality=quality)
            return np.asarray(Image.open(file))

        black, white = self._black_and_white(image.shape[2])
        eight_bits = as_type((image - black) * (255 / (white - black)), np.dtype(np.uint8))
        if image.shape[2] == 3:
            found = through_jpeg(eight_bits)
        else:
            found = np.stack([through_jpeg(band) for band in np.moveaxis(eight_bits, 2, 0)], axis=2)
        noise = found.astype(np.float32) - eight_bits
        return as_type(image + noise * ((white - black) / 255), image.dtype)


def blended(
    values: Shaped[np.ndarray, "h w c"], plain: Shaped[np.ndarray, "..."], factor: float
) -> Shaped[np.ndarray, "h w c"]:
    """Values with their distance from plain ones multiplied by a factor."""
    return plain + factor * (values - plain)


def as_type(values: Shaped[np.ndarray, "..."], dtype: np.dtype) -> Shaped[np.ndarray, "..."]:
    """Floats as the nearest values of a type."""
    if dtype.kind != "f":
        limits = np.iinfo(dtype)
        values = np.clip(np.rint(values), limits.min, limits.max)
    return values.astype(dtype)


def resize(example: Mapping[str, object], factor: float) -> Example:
    """Scales all arrays to at least 1 pixel, with their pixels' centres aligned.

    Pictures (h, w, bands) are interpolated bilinearly, with antialiasing. Of depth and label maps
    (h, w) the nearest pixel is taken: between two depths or two classes there is nothing.
    """
    resized = {}
    for name, value in arrays(example).items():
        if value.ndim != 2:
            resized[name] = resize_image(value, factor)
            continue
        sides = scaled_size(value.shape, factor)
        # In integers, since Pillow's nearest neighbour rounds either way where two are as near.
        rows, columns = (
            (2 * np.arange(new) + 1) * old // (2 * new)
            for new, old in zip(sides, value.shape, strict=True)
        )
        resized[name] = value[np.ix_(rows, columns)]
    return {**example, **resized}


def rotate(example: Mapping[str, object], degrees: float, black: Sequence[float] = ()) -> Example:
    """Rotates all arrays counter-clockwise about the image's centre; the size stays.

    Pictures are interpolated bilinearly, of depth and label maps the nearest pixel is taken. Where
    the image does not reach, label maps are void, depth is 0, ``image`` is ``black`` (of each band;
    0 by default), and other pictures are 0.
    """
    from PIL import Image

    height, width = size_of(example)
    cosine, sine = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
    # Where a pixel's centre comes from, as Pillow takes it.
    matrix = np.array([[cosine, -sine], [sine, cosine]])
    middle = np.array([width, height]) / 2
    shift = middle - matrix @ middle
    y, x = np.arange(height)[:, None] + 0.5, np.arange(width)[None] + 0.5
    columns, rows = (a * x + b * y + c for (a, b), c in zip(matrix, shift, strict=True))
    inside = (columns >= 0) & (columns < width) & (rows >= 0) & (rows < height)
    nearest = rows[inside].astype(int), columns[inside].astype(int)
    coefficients = np.column_stack([matrix, shift]).ravel().tolist()
    how = Image.Transform.AFFINE, coefficients, Image.Resampling.BILINEAR

    moved = {}
    for name, value in arrays(example).items():
        if value.ndim == 2:
            moved[name] = np.full_like(value, VOID if is_label(value) else 0)
            moved[name][inside] = value[nearest]
        else:
            # In floats: Pillow cuts off the fractions of 8-bit values.
            turned = by_pillow(
                value.astype(np.float32), lambda picture: picture.transform(picture.size, *how)
            )
            moved[name] = as_type(turned, value.dtype)
            moved[name][~inside] = black if name == "image" and black else 0
    return {**example, **moved}


def blurred(image: Shaped[np.ndarray, "h w c"], sigma: float) -> Shaped[np.ndarray, "h w c"]:
    """An image after a Gaussian blur; its border goes on beyond it."""
    from scipy import ndimage

    values = ndimage.gaussian_filter(image.astype(np.float32), (sigma, sigma, 0), mode="nearest")
    return as_type(values, image.dtype)


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
        is_picture = value.ndim == 3 and value.dtype.name in DTYPES
        known = is_picture or (value.ndim == 2 and value.dtype in (np.uint8, np.uint16))
        if not known or value.shape[:2] != (height, width):
            raise ValueError(
                f"{example['id']}: expected uint8 pictures (h, w, 3), or others (h, w, bands) of "
                f"{', '.join(DTYPES)}, uint8 label maps (h, w) and uint16 depth (h, w) of one "
                f"size, got {name} {value.dtype} {value.shape} where others have {height}x{width}"
            )
    if not any(map(is_label, arrays(example).values())):
        found = ", ".join(arrays(example))
        raise ValueError(f"{example['id']}: there is no label map among {found}")
    return example


def resize_image(
    image: Shaped[np.ndarray, "..."], scale: float
) -> Shaped[np.ndarray, "height width c"]:
    """Scales an image, as training does: bilinear, antialiased, at least 1 pixel."""
    if image.dtype.name not in DTYPES or image.ndim != 3 or image.size == 0:
        raise ValueError(
            "an image must be uint8 RGB of the shape (h, w, 3), or (h, w, bands) of "
            f"{', '.join(DTYPES)} (or depth uint16 (h, w)), got {image.dtype} {image.shape}; "
            "fcn_jax.data.images.to_rgb makes one of any other"
        )
    if scale <= 0:
        raise ValueError(f"scale must be positive, got {scale}")
    height, width = scaled_size(image.shape[:2], scale)
    if (height, width) == image.shape[:2]:
        return image
    from PIL import Image

    how = Image.Resampling.BILINEAR

    def by_axis(picture: Image.Image) -> Image.Image:
        # Width first: left to itself, Pillow 13 begins with either, whose rounding differs.
        return picture.resize((width, picture.height), how).resize((width, height), how)

    return by_pillow(image, by_axis)


def by_pillow(
    image: Shaped[np.ndarray, "_ _ c"], change: Callable[[PIL.Image.Image], PIL.Image.Image]
) -> Shaped[np.ndarray, "_ _ c"]:
    """An image changed by a function of Pillow's images: 8-bit RGB, or floats of one band."""
    from PIL import Image

    if image.dtype == np.uint8 and image.shape[2] == 3:
        return np.array(change(Image.fromarray(np.ascontiguousarray(image))))
    # Band by band, and in floats, which Pillow takes for what they are.
    bands = np.moveaxis(image.astype(np.float32), 2, 0)
    changed = [np.asarray(change(Image.fromarray(np.ascontiguousarray(band)))) for band in bands]
    return as_type(np.stack(changed, axis=-1), image.dtype)
