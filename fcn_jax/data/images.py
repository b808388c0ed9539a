"""Read images and label files of any kind as arrays.

Files may be grey, have alpha, a palette, 16 bits or an EXIF orientation, or be CMYK. Here they
become what the rest of the package works with: uint8 RGB images, and integer label maps with one id
per pixel. Pillow alone decodes, so that training and prediction see the same pixels on every
machine (OpenCV silently turns palette masks into colours).

A file is a path or its bytes; messages call it `name`, or the path where that is None. Where there
is no such file the functions raise FileNotFoundError; where it cannot be read, ValueError.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np
from jaxtyping import Array, Int32, Integer, Shaped, UInt8, UInt16

from fcn_jax.classes import VOID, VOID_COLOR, ClassTable

if TYPE_CHECKING:
    import PIL.Image

LabelKind = Literal["auto", "index", "color"]
"""How a label file stores classes: as ids, as colours, or as its mode suggests."""

IMAGE_SUFFIXES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".tif", ".tiff", ".bmp", ".gif", ".webp"),
    *(".pbm", ".pgm", ".pnm", ".ppm", ".tga", ".jp2"),
)
"""Files that count as images when a folder is searched."""

EXIF_ORIENTATION = 0x0112
SIXTEEN_BIT_MODES = ("I;16", "I;16L", "I;16B", "I;16N", "I")


def read_image(source: str | Path | bytes, name: str | None = None) -> UInt8[np.ndarray, "h w 3"]:
    """Read an image file of any mode, of an animation the first frame, as RGB; see `to_rgb`."""
    with _opened(source, name) as image:
        return to_rgb(image)


def to_rgb(
    image: PIL.Image.Image | Shaped[Array | np.ndarray, "..."],
) -> UInt8[np.ndarray, "h w 3"]:
    """An image of any kind as uint8 RGB.

    Grey is repeated over the channels; alpha is dropped; 16 bits are scaled from 0..65535 to
    0..255. Floating-point values are taken as 0..1, or as 0..255 if one is above 1. Of Pillow's
    images, palettes are looked up, CMYK is converted and an EXIF orientation is applied.

    An array has the shape (h, w) or (h, w, channels) with 1 (grey), 2 (grey, alpha), 3 (RGB) or 4
    (RGBA) channels, and is copied only where it is not uint8 RGB already.

    Raises:
        ValueError: if it is no such image, or holds values outside these ranges.
    """
    if isinstance(image, (np.ndarray, Array)):
        values = np.asarray(image)
    else:
        from PIL import ImageOps

        image = ImageOps.exif_transpose(image)
        if image.mode not in (*SIXTEEN_BIT_MODES, "F"):
            return np.array(image.convert("RGB"))
        values = np.asarray(image) if image.mode == "F" else _sixteen_bits(image)
    pixels = values[..., None] if values.ndim == 2 else values
    if pixels.ndim != 3 or pixels.size == 0 or pixels.shape[2] > 4:
        raise ValueError(
            "an image is an array (h, w) or (h, w, channels) of 1 to 4 channels, got "
            f"{values.dtype} {values.shape}"
        )
    values = pixels[..., : 1 if pixels.shape[2] < 3 else 3]
    if values.dtype == np.uint16:
        values = ((values.astype(np.uint32) * 255 + 32767) // 65535).astype(np.uint8)
    elif values.dtype == np.bool_:
        values = values * np.uint8(255)
    elif np.issubdtype(values.dtype, np.floating):
        low, high = float(values.min()), float(values.max())
        if not (low >= 0 and high <= 255):  # written so that NaN is refused too
            raise ValueError(f"floating-point values {low}..{high} are outside 0..1 and 0..255")
        values = np.rint(values * (255 if high <= 1 else 1)).astype(np.uint8)
    elif values.dtype != np.uint8:
        raise ValueError(
            f"an image of {values.dtype} may hold 8 or 16 bits; convert it to uint8 or uint16"
        )
    return np.repeat(values, 3, axis=2) if values.shape[2] == 1 else values


def _sixteen_bits(image: PIL.Image.Image) -> UInt16[np.ndarray, "h w"]:
    values = np.asarray(image)
    if values.min() < 0 or values.max() > 65535:
        raise ValueError(f"values {values.min()}..{values.max()} are outside 16 bits")
    return values.astype(np.uint16)


class Mask(NamedTuple):
    """What a person's mask file holds.

    Attributes:
        ids: The id of every pixel, in whatever integer type holds them.
        colors: Of a palette file the colour of every entry in use, by its index; None of others.
            Where the masks of a set give one index several colours, their indices cannot all be
            ids.
        by_color: Whether the file was read by its colours, so that its indices are not its ids.
    """

    ids: Integer[np.ndarray, "h w"]
    colors: dict[int, tuple[int, int, int]] | None
    by_color: bool


def read_label(
    source: str | Path | bytes,
    table: ClassTable | None = None,
    kind: LabelKind = "auto",
    name: str | None = None,
) -> Integer[np.ndarray, "h w"]:
    """The ids alone of `read_mask`."""
    return read_mask(source, table, kind, name).ids


def read_mask(
    source: str | Path | bytes,
    table: ClassTable | None = None,
    kind: LabelKind = "auto",
    name: str | None = None,
) -> Mask:
    """Read a label file as the class ids it stores, one per pixel.

    * Grey files of 1, 8 or 16 bits hold ids; so do palette files, whose colours are decoration.
    * RGB files hold colours, which are looked up in `table`. Without a table they are refused,
      unless the three channels are equal everywhere: then the file is a map of ids stored as RGB.
    * `kind="color"` also reads palette and grey files by colour; `kind="index"` never does.

    Alpha is dropped. The void colour of VOC, (224, 224, 192), and the colours of ignored rows
    become the ids of void.
    """
    with _opened(source, name) as image:
        if image.format in ("JPEG", "MPO"):
            raise ValueError(f"{image.format} blurs label values; store masks as PNG")
        if image.mode in ("LA", "La"):
            image = image.convert("L")
        if kind == "color" or image.mode in ("RGB", "RGBA", "RGBX", "RGBa"):
            return Mask(_colors_to_ids(np.asarray(image.convert("RGB")), table, kind), None, True)
        values = np.asarray(image.getchannel("P") if image.mode == "PA" else image)
        if values.ndim != 2:
            channels = values.shape[-1]
            raise ValueError(f"mode {image.mode} has {channels} channels; masks have 1 or RGB")
        ids = values.astype(np.int32)
        if not np.array_equal(ids, values):
            raise ValueError("holds fractions, which are no class ids")
        colors = None
        if image.mode in ("P", "PA"):
            palette = np.array(image.getpalette("RGB") or []).reshape(-1, 3).tolist()
            used = np.flatnonzero(np.bincount(values.ravel(), minlength=256)).tolist()
            colors = {i: tuple(palette[i]) for i in used if i < len(palette)}
        return Mask(ids, colors, False)


def _colors_to_ids(
    colors: UInt8[np.ndarray, "h w 3"], table: ClassTable | None, kind: LabelKind
) -> Int32[np.ndarray, "h w"]:
    if table is None or kind == "index":
        if np.array_equal(colors.min(-1), colors.max(-1)):
            return colors[..., 0].astype(np.int32)
        if kind == "index":
            raise ValueError("is an RGB picture, not one id per pixel")
        raise ValueError(
            "is an RGB mask: give the colour of each class in a csv file with the columns "
            "name,r,g,b (or json)"
        )
    codes = colors.astype(np.int32) @ np.array([1 << 16, 1 << 8, 1], np.int32)
    by_code = {int.from_bytes(VOID_COLOR): VOID} if VOID in table.void_ids else {}
    by_code |= {
        int.from_bytes(row.color): raw_id for row, raw_id in zip(table.rows, table.ids, strict=True)
    }
    present, inverse = np.unique(codes, return_inverse=True)
    if unknown := [tuple(code.to_bytes(3)) for code in present.tolist() if code not in by_code]:
        more = f" and {len(unknown) - 5} more" if len(unknown) > 5 else ""
        raise ValueError(f"colours of no class: {', '.join(map(str, unknown[:5]))}{more}")
    ids = np.array([by_code[code] for code in present.tolist()], np.int32)
    return ids[inverse].reshape(codes.shape)


def stored_size(source: str | Path | bytes, name: str | None = None) -> tuple[int, int]:
    """Height and width of an image as the file stores it, whatever its EXIF orientation."""
    with _opened(source, name) as image:
        return image.height, image.width


def read_depth(source: str | Path | bytes, name: str | None = None) -> UInt16[np.ndarray, "h w"]:
    """Read a depth image: a 16-bit grey file in millimetres, 0 where nothing was measured."""
    with _opened(source, name) as image:
        if image.mode not in SIXTEEN_BIT_MODES:
            raise ValueError(
                "a depth image is a grey PNG of 16 bits in millimetres, but this one has mode "
                f"{image.mode} of {len(image.getbands())} channels of 8 bits"
            )
        return _sixteen_bits(image)


def image_files(folder: Path, pattern: str = "*") -> list[Path]:
    """The files in a folder that have the suffix of an image, in the order of their names."""
    return sorted(
        path
        for path in folder.glob(pattern)
        if path.suffix.lower() in IMAGE_SUFFIXES
        and not path.name.startswith(".")
        and path.is_file()
    )


class Encoded(NamedTuple):
    """An image as the bytes of its file, its (height, width) in pixels, and its `pixel_digest`."""

    content: bytes
    size: tuple[int, int]
    digest: str


def pixel_digest(pixels: Shaped[np.ndarray, "..."]) -> str:
    """16 hex digits that tell images apart by their decoded, upright pixels.

    A copy under another name, in another lossless format or with other metadata is the same image.
    """
    values = np.ascontiguousarray(pixels)
    digest = hashlib.sha256(f"{values.dtype.name} {values.shape}".encode())
    digest.update(values.data)
    return digest.hexdigest()[:16]


def encoded_image(source: str | Path | bytes, name: str | None = None) -> Encoded:
    """An image for storage.

    Upright 8-bit RGB and grey JPEG and PNG files are stored as they are, which costs neither time
    nor quality; every other kind is read and written as PNG.
    """
    if not isinstance(source, bytes):
        name = name or str(source)
        source = Path(source).read_bytes()
    with _opened(source, name) as image:
        upright = image.getexif().get(EXIF_ORIENTATION, 1) == 1
        if image.format in ("JPEG", "PNG") and image.mode in ("RGB", "L") and upright:
            return Encoded(source, (image.height, image.width), pixel_digest(to_rgb(image)))
    return encoded_pixels(read_image(source, name))


def encoded_pixels(pixels: UInt8[np.ndarray, "h w 3"]) -> Encoded:
    """An RGB array for storage, as PNG."""
    size = (pixels.shape[0], pixels.shape[1])
    return Encoded(encode_png(pixels), size, pixel_digest(pixels))


def encode_png(pixels: UInt8[np.ndarray, "h w *c"] | UInt16[np.ndarray, "h w"]) -> bytes:
    """A uint8 RGB image or a single-channel map of 8 or 16 bits as the bytes of a PNG file."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG", compress_level=4)
    return buffer.getvalue()


@contextlib.contextmanager
def _opened(source: str | Path | bytes, name: str | None) -> Iterator[PIL.Image.Image]:
    """A decoded Pillow image; every failure becomes a ValueError that names the file."""
    from PIL import Image

    name = name or (str(source) if not isinstance(source, bytes) else "image")
    if not isinstance(source, bytes) and not Path(source).exists():
        raise FileNotFoundError(f"{name}: no such file")
    try:
        with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as image:
            image.load()
            yield image
    except Image.UnidentifiedImageError:
        raise ValueError(f"{name}: not an image file that can be read") from None
    # Pillow's decoders raise many types for broken files, SyntaxError and struct.error among them.
    except Exception as error:
        raise ValueError(f"{name}: {error}") from error
