"""Images and maps at other sizes, on the host.

What a network sees of an example that is scaled, and how a coarse map lies over an image; training,
prediction and evaluation share it. The device's interpolation of logits is in `fcn_jax.ops`.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from jaxtyping import Float, Shaped, UInt8

from fcn_jax.alignment import Geometry


def over_image(
    scores: Float[np.ndarray, "h w"],
    cells: Geometry,
    size: tuple[int, int],
    scale: float = 1.0,
) -> Float[np.ndarray, "height width"]:
    """Spreads a coarse map over the image that it was computed from, bilinearly.

    Args:
        scores: One value for each cell.
        cells: Where the cells lie (``model.alignment.geometry``).
        size: Height and width of the image. Beyond the outermost cells their values go on.
        scale: Factor at which the network saw the image.
    """
    for axis, pixels in enumerate(size):
        seen = (np.arange(pixels) + 0.5) * max(1, round(pixels * scale)) / pixels - 0.5
        place = (seen - float(cells.offset)) / float(cells.stride)
        place = place.clip(0, scores.shape[axis] - 1)
        low = np.floor(place).astype(int)
        high = np.minimum(low + 1, scores.shape[axis] - 1)
        part = (place - low).reshape([-1 if a == axis else 1 for a in range(2)])
        scores = scores.take(low, axis) * (1 - part) + scores.take(high, axis) * part
    return scores


def resize_features(
    features: Mapping[str, Shaped[np.ndarray, "h w *c"]], scale: float
) -> dict[str, Shaped[np.ndarray, "h2 w2 *c"]]:
    """Resizes pictures bilinearly, and depth by nearest: between near and far there is nothing."""
    return {
        name: nearest(value, scale) if is_depth(value) else resize_image(value, scale)
        for name, value in features.items()
    }


def is_depth(value: Shaped[np.ndarray, "h w *c"]) -> bool:
    """Whether a feature is a depth image: 16 bits, millimetres."""
    return value.dtype == np.uint16 and value.ndim == 2


def nearest(values: Shaped[np.ndarray, "h w"], scale: float) -> Shaped[np.ndarray, "h2 w2"]:
    """Resizes a map by a factor without mixing its values, pixel centres aligned."""
    sides = [max(1, round(side * scale)) for side in values.shape]
    # In integers, since Pillow's nearest neighbour rounds either way where two are as near.
    rows, columns = (
        (2 * np.arange(new) + 1) * old // (2 * new)
        for new, old in zip(sides, values.shape, strict=True)
    )
    return values[np.ix_(rows, columns)]


def resize_image(image: UInt8[np.ndarray, "h w 3"], scale: float) -> UInt8[np.ndarray, "h2 w2 3"]:
    """Resizes an image by a factor, as training does: bilinear, antialiased, at least 1 pixel.

    Raises:
        ValueError: If the image is not uint8 of the shape (h, w, 3), or the factor not positive.
    """
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or image.size == 0:
        raise ValueError(
            f"an image must be uint8 RGB of the shape (h, w, 3) (or depth uint16 (h, w)), got "
            f"{image.dtype} {image.shape}; fcn_jax.data.images.read_image makes one of any file"
        )
    if scale <= 0:
        raise ValueError(f"scale must be positive, got {scale}")
    height, width = (max(1, round(side * scale)) for side in image.shape[:2])
    if (height, width) == image.shape[:2]:
        return image
    from PIL import Image

    return np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR))
