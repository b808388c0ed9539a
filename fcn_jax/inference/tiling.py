"""Where to cut an image into tiles whose results, put together, are those of the whole image.

A tile is a window of the image that the network sees as an image of its own. It gets the whole
image's logits if two things hold. Its first pixel lies at a multiple of all strides, so that the
cells of every map lie over the same pixels as those of the whole image. And only pixels whose
receptive field lies inside the tile are kept, since the others see its border (the padding of
every layer, and poolings that round up); where the tile's border is that of the image, they are
right to see it. So neighbouring tiles overlap by twice the context: half a receptive field, 245
pixels for FCN-8s with VGG16. `fcn_jax.Predictor` computes them.
"""

from __future__ import annotations

import dataclasses
import itertools
import math

from fcn_jax.canvas import Size, canvas_side, round_up
from fcn_jax.models.fcn import FCN


@dataclasses.dataclass(frozen=True)
class Span:
    """A tile along one axis, in pixels of the image."""

    seen: slice  # by the network
    kept: slice  # of its results

    @property
    def kept_inside(self) -> slice:
        """``kept`` in pixels of the tile."""
        return slice(self.kept.start - self.seen.start, self.kept.stop - self.seen.start)


def context(model: FCN) -> int:
    """Pixels on each side of a pixel on which its logits may depend.

    Raises:
        ValueError: If the network is a classifier.
    """
    if model.classifies:
        raise ValueError(
            "a classifier's map is not computed in tiles; reduce the image, or build a network "
            "that scores every pixel (fcn32s, fcn16s, fcn8s, fcn8s_atonce)"
        )
    *_, last = model.alignment.geometry.values()
    reach = (last.receptive_field - 1) / 2
    if model.decoder.interpolate:
        # The map is stretched over the image: the two cells around a pixel are centred within a
        # stride of a place that is up to half a stride away from it.
        reach += 3 * last.stride / 2 + last.offset
    return math.ceil(reach)


def total_stride(model: FCN) -> int:
    """The pixels by which an image must be shifted to shift all maps by whole cells."""
    strides = [geometry.stride for geometry in model.alignment.geometry.values()]
    return math.lcm(*(stride.numerator for stride in strides))


def tiles(
    model: FCN, size: Size, tile: int, *, mirrored: bool = False
) -> tuple[list[tuple[Span, Span]], Size]:
    """The rows and columns of an image's tiles, and the canvas on which all of them fit.

    Their sides have at most ``tile`` pixels, and fewer where no more tiles are needed then. If they
    are to be tiles of the ``mirrored`` image as well, the last pixel of each lies at a multiple of
    all strides from the image's last column.

    Raises:
        ValueError: If the network is a classifier, or the tiles would be all overlap; the
            message says which are large enough.
    """
    overlap, stride = context(model), total_stride(model)
    rest = size[1] % stride if mirrored else 0
    rows, height = _spans(size[0], tile, overlap, stride)
    columns, width = _spans(size[1], tile, overlap, stride, rest)
    return list(itertools.product(rows, columns)), (height, width)


def _spans(
    size: int, tile: int, context: int, stride: int, rest: int = 0
) -> tuple[list[Span], int]:
    """The tiles along one axis, ``rest`` pixels longer than whole strides; the canvas's side."""
    if size <= tile:
        return [Span(slice(0, size), slice(0, size))], min(tile, canvas_side(size))
    least = round_up(2 * context + stride, stride) + rest
    if tile < least:
        raise ValueError(
            f"tiles of {tile} pixels are too small: logits depend on {context} pixels on each "
            f"side, so that they must have at least {least}"
        )
    tile -= rest
    tile -= tile % stride
    kept = (tile - 2 * context) // stride * stride  # the pixels between two tiles
    # The smallest tiles of which no more are needed: an image a little larger than a tile would
    # else be computed twice along this axis. Multiples of 128, so that images of similar size
    # share a program.
    number = 1 + math.ceil((size - tile) / kept)
    overlaps = (number - 1) * (2 * context + stride - 1)
    side = round_up(math.ceil((size + overlaps) / number), 128)
    side = min(tile, round_up(side, stride))
    kept = (side - 2 * context) // stride * stride
    # The last tile ends at or just beyond the image, wherever its first pixel may lie.
    last = round_up(size - side, stride)
    starts = [*range(0, last, kept), last]
    cuts = [0, *(start + context for start in starts[1:]), size]
    spans = [
        Span(slice(start, min(start + side + rest, size)), slice(first, stop))
        for start, first, stop in zip(starts, cuts[:-1], cuts[1:], strict=True)
    ]
    return spans, side + rest
