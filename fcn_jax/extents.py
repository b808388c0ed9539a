"""Images of different sizes on one canvas: which cells of a map belong to which image.

An extent is int32 (b, 2), the height and width in cells of each image's part of a map, which
begins in the top left corner; None means that all images fill the canvas. A layer computed on the
canvas gives each image what it would get alone, if the cells beyond its extent hold what lies
beyond an image: zeros before a convolution, nothing (minus infinity) before a maximum. No arrays
of parameters here, and no layers.
"""

from __future__ import annotations

from typing import TypeAlias

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from fcn_jax.alignment import UpWindow, Window


def canvas_side(side: int) -> int:
    """The side of the canvas for an image of so many pixels.

    Four sides in each octave, and none below 32: 32, 40, 48, 56, 64, 80, … 384, 448, 512, 640, …
    So a canvas is less than a quarter longer than its image (an eighth on average), and a data set
    of any sizes up to 1000 pixels needs 20 sides, most of them rarely.
    """
    step = 1 << max(3, (side - 1).bit_length() - 3)
    return max(32, -(-side // step) * step)


Extent: TypeAlias = Int[Array, "b 2"] | None


def fill_beyond(
    x: Float[Array, "b h w c"], extent: Extent, fill: float = 0.0
) -> Float[Array, "b h w c"]:
    """Overwrites the cells beyond each image."""
    if extent is None:
        return x
    rows = jnp.arange(x.shape[1])[None, :] < extent[:, 0, None]
    columns = jnp.arange(x.shape[2])[None, :] < extent[:, 1, None]
    inside = (rows[:, :, None] & columns[:, None, :])[..., None]
    return jnp.where(inside, x, jnp.array(fill, x.dtype))


def through(window: Window | UpWindow | None, extent: Extent) -> Extent:
    """The extent of what a layer computes; None of a window leaves it."""
    if extent is None or window is None:
        return extent
    if isinstance(window, UpWindow):
        return (extent - 1) * window.factor + window.kernel
    return window.cells(extent)


def fused(offset: int, fine: Extent, up: Extent) -> Extent:
    """The extent of two aligned maps' overlap; ``offset`` is that of ``fine`` against ``up``."""
    if fine is None or up is None:
        return None
    return jnp.minimum(up, fine - offset) - max(0, -offset)
