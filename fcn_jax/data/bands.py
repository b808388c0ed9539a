"""Images of other bands and depths than 8-bit RGB: how they are read, and the range they use.

Such an image is an array (h, w, bands) of `DTYPES`: satellite and multispectral TIFF files, .npy
files, and 16-bit PNG files, of which Pillow keeps the upper 8 bits alone. `fcn_jax.data.images`
decides which files these are.

Their numbers mean nothing by themselves: 12-bit pictures lie in 16 bits, reflectances are floats.
`UsedRange` finds what a set uses, which `fcn_jax.Preprocessing` then brings to 0..255.
"""

from __future__ import annotations

import contextlib
import io
import math
import struct
import threading
from collections.abc import Iterator, Sequence
from typing import Any, Literal, TypeAlias

import numpy as np
from jaxtyping import Shaped, UInt8

DTYPES = ("uint8", "uint16", "int16", "float32")

Pixels: TypeAlias = Shaped[np.ndarray, "_ _ _"]
"""An image (h, w, bands) of one of the `DTYPES`; floats are finite."""

Alpha: TypeAlias = Literal["drop", "band"] | None
"""What becomes of a channel that a file calls alpha: None keeps that of a TIFF file if most of its
pixels are neither opaque nor transparent. GDAL and tifffile call any fourth band alpha."""

Range: TypeAlias = tuple[tuple[float, float], ...]
"""For each band the values that are black and white."""

PNG_START = b"\x89PNG\r\n\x1a\n"

DEEP_GREY = ((1, 16), (1, 32), (2, 32), (3, 32))
"""Formats (2 is signed, 3 floating point) and bits of one band that Pillow reads without loss."""

MOST_PIXELS = 178_956_970
"""As Pillow's limit: a larger image is taken for an attack on memory."""

# ======================================================================== reading


def as_pixels(values: Shaped[np.ndarray, "..."]) -> Pixels:
    """An array (h, w) or (h, w, bands) as one of the `DTYPES`.

    Booleans become 0 and 255, other floats float32.

    Raises:
        ValueError: If it is no image, of another type, or holds NaN or infinity.
    """
    pixels = values[..., None] if values.ndim == 2 else values
    if pixels.ndim != 3 or pixels.size == 0:
        raise ValueError(
            f"an image is an array (h, w) or (h, w, bands), not {values.dtype} {values.shape}"
        )
    if pixels.shape[0] <= 64 < pixels.shape[2]:
        raise ValueError(f"the bands are the last axis of an image; {pixels.shape} has them first")
    if pixels.dtype.kind == "b":
        return pixels * np.uint8(255)
    if pixels.dtype.kind == "f":
        with np.errstate(over="ignore"):
            pixels = pixels.astype(np.float32, copy=False)
        check_finite(pixels)
    if pixels.dtype.name not in DTYPES:
        raise ValueError(
            f"an image of {pixels.dtype} is not read; convert it to one of {', '.join(DTYPES)}"
        )
    return pixels.astype(pixels.dtype.newbyteorder("="), copy=False)


def read_npy(content: bytes) -> Pixels:
    """The image in an .npy file; one of Python's objects, which run code, is refused."""
    file = io.BytesIO(content)
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_2_0
    if version == (1, 0):
        read = np.lib.format.read_array_header_1_0
    shape, by_column, dtype = read(file)
    number = math.prod(shape)
    if dtype.hasobject or number * dtype.itemsize > len(content) - file.tell():
        raise ValueError(f"{dtype} of shape {shape} in {len(content)} bytes is no array")
    values = np.frombuffer(content, dtype, number, file.tell())
    return as_pixels(values.reshape(shape, order="F" if by_column else "C"))


def without_alpha(pixels: Pixels, alpha: Alpha) -> Pixels:
    """An image without its last band, which its TIFF file calls alpha, unless it is none."""
    if alpha is None:
        opaque = 1 if pixels.dtype.kind == "f" else np.iinfo(pixels.dtype).max
        last = pixels[..., -1]
        alpha = "band" if np.mean((last != 0) & (last != opaque)) > 0.5 else "drop"
    return pixels if alpha == "band" else pixels[..., :-1]


def is_plain_tiff(content: bytes) -> bool:
    """Whether Pillow reads all of a TIFF file: grey, RGB, CMYK or a palette, on one page."""
    from PIL import Image

    try:
        with Image.open(io.BytesIO(content), formats=["TIFF"]) as image:
            file: Any = image
            for number in range(1, file.n_frames):
                file.seek(number)
                if not file.tag_v2.get(254, 0) & 5:  # neither a preview nor a mask
                    return False
            file.seek(0)
            tags = file.tag_v2
    except Exception:  # Pillow knows no such file, or it is broken: tifffile will say so
        return False
    bits, samples, extra = tags.get(258, (1,)), tags.get(277, 1), tags.get(338, ())
    kind = tags.get(339, (1,))[0], max(bits)
    colors = {2: 3, 5: 4, 6: 3}.get(tags.get(262), 1)
    if samples - colors not in (0, len(extra)) or not set(extra) <= {2, 999}:
        return False
    # Pillow takes the upper 8 bits of 16-bit colour.
    return kind in ((1, 1), (1, 2), (1, 4), (1, 8)) or (samples == 1 and kind in DEEP_GREY)


def read_tiff(content: bytes, alpha: Alpha) -> Pixels:
    """The first image of any other TIFF file; pages of one size and of one band are its bands."""
    try:
        import tifffile
    except ImportError:
        raise ValueError("TIFF files of such bands need tifffile: pip install tifffile") from None
    _refuse_circle(content)
    try:
        with tifffile.TiffFile(io.BytesIO(content)) as file:
            series = file.series[0]
            page: Any = series.pages[0]
            if series.size > min(MOST_PIXELS * page.samplesperpixel, 1100 * len(content)):
                raise ValueError(f"claims {series.shape} values in {len(content)} bytes")
            axes = series.axes
            pixels = series.asarray()
            extra, turned = tuple(page.extrasamples), int(page.tags.valueof(274, default=1))
    except ImportError:
        raise
    except Exception as error:  # tifffile raises what Python raises on wrong bytes
        reason = " ".join(str(error).split())[:200]
        if "imagecodecs" in reason:
            reason += ": pip install 'fcn-jax[tiff]', or save the file uncompressed or deflated"
        raise ValueError(reason or type(error).__name__) from error
    if pixels.ndim == 3 and "S" not in axes[-1:]:
        # Bands come as planes, as pages, or as an axis without a name.
        named = [i for i, axis in enumerate(axes) if axis in "SC"]
        smallest = min(range(3), key=lambda i: pixels.shape[i])
        pixels = np.moveaxis(pixels, named[0] if named else smallest, -1)
    pixels = as_pixels(upright(pixels, turned))
    return without_alpha(pixels, alpha) if extra and extra[-1] in (1, 2) else pixels


def _refuse_circle(content: bytes) -> None:
    """Raises ValueError if the pages of a TIFF file lead back: tifffile would follow for ever."""
    order = "<" if content.startswith(b"II") else ">"
    count, entry, offset, at = ("Q", 20, "Q", 8) if 43 in content[2:4] else ("H", 12, "I", 4)
    pages: set[int] = set()
    with contextlib.suppress(struct.error):  # beyond the end of the file, where tifffile stops
        while page := struct.unpack_from(order + offset, content, at)[0]:
            if page in pages:
                raise ValueError("its pages lead back to one before")
            pages.add(page)
            entries = struct.unpack_from(order + count, content, page)[0]
            at = page + struct.calcsize(count) + entries * entry


def is_deep_png(content: bytes) -> bool:
    """Whether a PNG file has several channels of 16 bits, of which Pillow keeps the upper 8."""
    return content.startswith(PNG_START) and content[24:26] in (b"\x10\2", b"\x10\4", b"\x10\6")


def read_deep_png(content: bytes) -> Shaped[np.ndarray, "h w channels"]:
    """A PNG file of `is_deep_png` as uint16, with its alpha."""
    from PIL import Image

    # Pillow unpacks one byte of each two: the upper, or, told that the lower comes first, the
    # lower. Two channels of 16 bits are four of 8.
    unpacked = {2: ("RGB;16B", "RGB;16L"), 4: ("RGBA",), 6: ("RGBA;16B", "RGBA;16L")}[content[25]]
    turned, halves = 1, []
    for mode in unpacked:
        with Image.open(io.BytesIO(content), formats=["PNG"]) as image:
            image.tile = [tile._replace(args=mode) for tile in image.tile]
            image.load()
            turned = image.getexif().get(274, 1)
            halves.append(np.asarray(image))
    height, width = halves[0].shape[:2]
    parts = (
        np.stack(halves, axis=-1) if len(halves) == 2 else halves[0].reshape(height, width, 2, 2)
    )
    return upright(parts @ np.array([256, 1], np.uint16), turned)


def upright(pixels: Shaped[np.ndarray, "..."], orientation: int) -> Shaped[np.ndarray, "..."]:
    """An image turned as a file's tag of its orientation says."""
    if orientation in (5, 6, 7, 8):
        pixels = np.swapaxes(pixels, 0, 1)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return np.ascontiguousarray(pixels)


# ======================================================================== ranges


def check_range(given: Sequence[float]) -> tuple[float, float] | None:
    """A range that a person gave, None if it is empty; a ValueError if it is none."""
    values = tuple(map(float, given))
    if values and (len(values) != 2 or not np.isfinite(values).all() or values[0] >= values[1]):
        raise ValueError(f"value_range={tuple(given)} must be (low, high), low below high")
    return (values[0], values[1]) if values else None


class UsedRange:
    """Finds for each band the range that the images of a set use, whatever their number.

    It is from the 0.1st to the 99.9th percentile of all pixels, so that a few hot pixels do not
    count; of floats to a part in 500, and never beyond the smallest and the largest value.

    Attributes:
        counts: The pixels of each rank (`_ranks`) in each band.
        limits: The smallest and the largest value of each band.

    Example:
        >>> used = UsedRange()
        >>> used.add(np.arange(4096, dtype=np.uint16).reshape(64, 64, 1))
        >>> used.found()
        ((4.0, 4091.0), (4.0, 4091.0), (4.0, 4091.0))
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.counts: Any = 0
        self.limits: Any = None

    def add(self, pixels: Pixels) -> None:
        """Counts an image; all have one type, and as many bands (grey has three)."""
        flat = pixels.reshape(-1, pixels.shape[2])
        size = 1 << (18 if pixels.dtype == np.float32 else 16)
        counts = np.stack([np.bincount(_ranks(band), minlength=size) for band in flat.T])
        limits = np.stack([flat.min(0), flat.max(0)])
        if len(counts) == 1:
            counts, limits = np.repeat(counts, 3, axis=0), np.repeat(limits, 3, axis=1)
        self.merge(counts, limits)

    def merge(
        self, counts: Shaped[np.ndarray, "bands ranks"], limits: Shaped[np.ndarray, "2 bands"]
    ) -> None:
        """Adds what another has counted of other images of the set."""
        with self._lock:
            self.counts = self.counts + counts
            before = limits if self.limits is None else self.limits
            self.limits = np.stack(
                [np.minimum(before[0], limits[0]), np.maximum(before[1], limits[1])]
            )

    def found(self) -> Range:
        """The range of each band.

        Raises:
            ValueError: If a band has one value everywhere.
        """
        found = []
        for number, (counts, least, most) in enumerate(
            zip(self.counts, *self.limits.tolist(), strict=True), start=1
        ):
            if least == most:
                raise ValueError(
                    f"band {number} is {least:g} in all pixels of all training images: leave it "
                    "out of the files, or give its range (option value_range)"
                )
            total = np.cumsum(counts)
            rank = np.searchsorted(total, 0.001 * total[-1], side="right")
            low = max(least, float(_least_of_rank(rank, self.limits.dtype)))
            rank = np.searchsorted(total, 0.999 * total[-1])
            # The least of the next rank bounds the floats of this one.
            rank += self.limits.dtype == np.float32
            high = min(most, float(_least_of_rank(rank, self.limits.dtype)))
            found.append((float(low), float(high)) if low < high else (float(least), float(most)))
        return tuple(found)


def _ranks(values: Shaped[np.ndarray, "n"]) -> Shaped[np.ndarray, "n"]:
    """Whole numbers from 0 in the order of the values; floats that are close share one."""
    if values.dtype == np.float32:
        # The bits of floats are in their order, but for the sign's.
        bits = np.ascontiguousarray(values).view(np.uint32)
        return np.where(bits >> 31, ~bits, bits | np.uint32(1 << 31)) >> np.uint32(14)
    return values.astype(np.int32) + (1 << 15) if values.dtype == np.int16 else values


def _least_of_rank(rank: Any, dtype: np.dtype) -> Any:
    """The inverse of `_ranks`: the smallest value of a rank."""
    if dtype == np.float32:
        bits = np.uint32(min(int(rank) << 14, 0xFFFFFFFF))
        return (bits & np.uint32(0x7FFFFFFF) if bits >> 31 else ~bits).view(np.float32)
    return rank - (1 << 15) if dtype == np.int16 else rank


def parts_of(image: Any) -> Iterator[Shaped[np.ndarray, "..."]]:
    """An array, or what is sliced like one, in parts that fit any memory."""
    rows = max(1, (1 << 24) // math.prod(image.shape[1:]))
    for start in range(0, image.shape[0], rows):
        yield np.asarray(image[start : start + rows])


def check_finite(image: Any) -> None:
    """Raises ValueError if an image of floats holds NaN or infinity."""
    if np.dtype(image.dtype).kind == "f":
        wrong = sum(int(np.count_nonzero(~np.isfinite(part))) for part in parts_of(image))
        if wrong:
            raise ValueError(
                f"{wrong} of {math.prod(image.shape)} values are NaN or infinite; give them a "
                "finite value"
            )


def check_bright(image: Any) -> None:
    """Raises ValueError if an image that is no 8-bit one would be nearly black.

    That is if its largest value, and it is not 0, is below a quarter of what counts as white:
    65535, and of floats 1, or 255 if one is above 1. So a 12-bit picture is not taken for a night.
    """
    if image.dtype != np.uint16 and np.dtype(image.dtype).kind != "f":
        return
    most, white = 0.0, 65535.0
    for part in parts_of(image):
        most = max(most, float(part.max()))
        if image.dtype != np.uint16:
            white = 1.0 if most <= 1 else 255.0
        elif most >= white / 4:
            return
    if 0 < most < white / 4:
        used = 2 ** math.ceil(math.log2(most + 1)) - 1 if white == 65535 else most
        raise ValueError(
            f"its values end at {most:g}, where {white:g} is white: nearly black. Give the values "
            f"that are black and white, such as value_range=(0, {used:g})"
        )


def picture(
    pixels: Pixels, used: Sequence[tuple[float, float]] | None = None
) -> UInt8[np.ndarray, "h w 3"]:
    """An image for people: its first three bands, or its first in grey, from black to white.

    ``used`` are the values of each band that are black and white; None is 0 and 255.
    """
    shown = pixels[..., : 3 if pixels.shape[2] >= 3 else 1]
    if used is not None:
        low, high = np.array(used[: shown.shape[2]], np.float32).T
        shown = np.clip((shown.astype(np.float32) - low) / (high - low), 0, 1) * 255
    rounded = np.rint(shown).astype(np.uint8)
    return rounded if rounded.shape[2] == 3 else np.repeat(rounded, 3, axis=2)
