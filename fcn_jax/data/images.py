"""Read an image or a label file of any kind into an array.

People's files come grey, with alpha, with a palette, rotated by an EXIF tag, with 16 bits or in
CMYK. Here they become what the rest of the package works with: uint8 RGB images, and integer label
maps with one id per pixel. Only Pillow decodes, always, so that training and prediction see the
same pixels on every machine (OpenCV turns palette masks into colours without a word).
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Int32, Num, UInt8, UInt16
from PIL import Image, ImageOps

from fcn_jax.classes import VOID, ClassTable

LabelKind = Literal["auto", "index", "color"]
"""How a label file stores classes: as ids, as colours, or as its mode suggests."""

EXTENSIONS = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".tif", ".tiff", ".bmp", ".gif", ".webp"),
    *(".pbm", ".pgm", ".pnm", ".ppm", ".tga", ".jp2"),
)
"""Files that count as images when a folder is searched."""

EXIF_ORIENTATION = 0x0112
_SIXTEEN_BIT = ("I;16", "I;16L", "I;16B", "I;16N", "I")


def read_image(source: str | Path | bytes, name: str | None = None) -> UInt8[np.ndarray, "h w 3"]:
    """Read an image file of any mode as uint8 RGB, upright.

    Grey is repeated over the channels; alpha is dropped; palettes are looked up; 16-bit grey is
    scaled from 0..65535 to 0..255; CMYK is converted; an EXIF orientation is applied. Of an
    animation the first frame is read.

    Args:
        source: A path, or the bytes of the file.
        name: What to call the image in messages; the path where None.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: naming the file, if it cannot be read as an image.
    """
    with _opened(source, name) as image:
        return _to_rgb(ImageOps.exif_transpose(image))


def _to_rgb(image: Image.Image) -> UInt8[np.ndarray, "h w 3"]:
    if image.mode in _SIXTEEN_BIT:
        grey = _sixteen_to_eight_bits(np.asarray(image))
    elif image.mode == "F":
        grey = _float_to_eight_bits(np.asarray(image))
    else:
        return np.array(image.convert("RGB"))
    return np.repeat(grey[..., None], 3, axis=-1)


def _sixteen_to_eight_bits(values: Num[np.ndarray, "h w"]) -> UInt8[np.ndarray, "h w"]:
    wide = values.astype(np.int64)
    if wide.min() < 0 or wide.max() > 65535:
        raise ValueError(f"integer values {wide.min()}..{wide.max()} are outside 16 bits")
    return ((wide * 255 + 32767) // 65535).astype(np.uint8)


def _float_to_eight_bits(values: Num[np.ndarray, "h w"]) -> UInt8[np.ndarray, "h w"]:
    low, high = float(values.min()), float(values.max())
    if not (low >= 0 and high <= 255):  # written so that NaN is refused too
        raise ValueError(f"floating-point values {low}..{high} are outside 0..1 and 0..255")
    return np.rint(values * (255 if high <= 1 else 1)).astype(np.uint8)


def read_label(
    source: str | Path | bytes,
    table: ClassTable | None = None,
    kind: LabelKind = "auto",
    name: str | None = None,
) -> Int32[np.ndarray, "h w"]:
    """Read a label file as the class ids it stores, one per pixel.

    * Grey files of 1, 8 or 16 bits hold ids; so do palette files, whose colours are decoration.
    * RGB files hold colours, looked up in `table`. With no table they are refused, unless the three
      channels are equal everywhere: that is an index map some tool wrote as RGB.
    * `kind="color"` also reads palette and grey files by colour; `kind="index"` never does.

    Alpha is dropped. The void colour of VOC, (224, 224, 192), and the colours of ignored rows
    become the ids of void.

    Args:
        source: A path, or the bytes of the file.
        table: Class colours for RGB masks.
        kind: Whether the pixels are ids or colours.
        name: What to call the file in messages; the path where None.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: naming the file, if it cannot be read, is a JPEG (whose compression blurs ids),
            or holds colours of no class.
    """
    with _opened(source, name) as image:
        if image.format in ("JPEG", "MPO"):
            raise ValueError(f"{image.format} blurs label values; store masks as PNG")
        if image.mode in ("LA", "La"):
            image = image.convert("L")
        if kind == "color" or image.mode in ("RGB", "RGBA", "RGBX", "RGBa"):
            return _colors_to_ids(np.asarray(image.convert("RGB")), table, kind)
        return _indices(image)


def _indices(image: Image.Image) -> Int32[np.ndarray, "h w"]:
    if image.mode == "PA":
        image = image.getchannel("P")
    values = np.asarray(image)
    if values.ndim != 2:
        raise ValueError(f"mode {image.mode} has {values.shape[-1]} channels; masks have 1 or RGB")
    ids = values.astype(np.int32)
    if not np.array_equal(ids, values):
        raise ValueError("holds fractions, which are no class ids")
    return ids


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
    codes = _color_code(colors)
    by_code = {_color_code(np.array((224, 224, 192), np.uint8)).item(): VOID}
    for row, raw_id in zip(table.rows, table.ids, strict=True):
        by_code[_color_code(np.array(row.color, np.uint8)).item()] = raw_id
    present, inverse = np.unique(codes, return_inverse=True)
    unknown = [code for code in present.tolist() if code not in by_code]
    if unknown:
        shown = ", ".join(f"({c >> 16}, {c >> 8 & 255}, {c & 255})" for c in unknown[:5])
        more = f" and {len(unknown) - 5} more" if len(unknown) > 5 else ""
        raise ValueError(f"colours of no class: {shown}{more}")
    ids = np.array([by_code[code] for code in present.tolist()], np.int32)
    return ids[inverse].reshape(codes.shape)


def _color_code(colors: UInt8[np.ndarray, "*shape 3"]) -> Int32[np.ndarray, "*shape"]:
    red, green, blue = (colors[..., i].astype(np.int32) for i in range(3))
    return red << 16 | green << 8 | blue


def read_depth(source: str | Path | bytes, name: str | None = None) -> UInt16[np.ndarray, "h w"]:
    """Read a depth image: a 16-bit grey file in millimetres, 0 where nothing was measured.

    Args:
        source: A path, or the bytes of the file.
        name: What to call the file in messages; the path where None.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: naming the file, if it cannot be read or has other than 16 bits.
    """
    with _opened(source, name) as image:
        if image.mode not in _SIXTEEN_BIT:
            raise ValueError(
                "a depth image is a grey PNG of 16 bits in millimetres, but this one has mode "
                f"{image.mode} of {len(image.getbands())} channels of 8 bits"
            )
        values = np.asarray(image).astype(np.int64)
        if values.min() < 0 or values.max() > 65535:
            raise ValueError(f"depths {values.min()}..{values.max()} are outside 16 bits")
        return values.astype(np.uint16)


def image_files(folder: Path, pattern: str = "*") -> list[Path]:
    """The files in a folder that have an image's extension, in the order of their names."""
    return sorted(
        path
        for path in folder.glob(pattern)
        if path.suffix.lower() in EXTENSIONS and not path.name.startswith(".") and path.is_file()
    )


class Encoded(NamedTuple):
    """An image as the bytes of its file, and its (height, width) in pixels."""

    content: bytes
    size: tuple[int, int]


def encoded_image(source: str | Path | bytes, name: str | None = None) -> Encoded:
    """An image for storage.

    Upright 8-bit RGB and grey JPEG and PNG files are stored as they are, which costs neither time
    nor quality; every other kind is read and written as PNG.

    Args:
        source: A path, or the bytes of the file.
        name: What to call the image in messages; the path where None.

    Raises:
        FileNotFoundError, ValueError: as `read_image`.
    """
    if not isinstance(source, bytes):
        name = name or str(source)
        source = Path(source).read_bytes()
    with _opened(source, name) as image:
        upright = image.getexif().get(EXIF_ORIENTATION, 1) == 1
        if image.format in ("JPEG", "PNG") and image.mode in ("RGB", "L") and upright:
            return Encoded(source, (image.height, image.width))
    return encoded_pixels(read_image(source, name))


def encoded_pixels(pixels: UInt8[np.ndarray, "h w 3"]) -> Encoded:
    """An RGB array for storage, as PNG."""
    return Encoded(encode_png(pixels), (pixels.shape[0], pixels.shape[1]))


def encode_png(pixels: UInt8[np.ndarray, "h w *c"] | UInt16[np.ndarray, "h w"]) -> bytes:
    """A uint8 RGB image or a single-channel map of 8 or 16 bits as the bytes of a PNG file."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG", compress_level=4)
    return buffer.getvalue()


@contextlib.contextmanager
def _opened(source: str | Path | bytes, name: str | None) -> Iterator[Image.Image]:
    """A decoded Pillow image; every failure becomes a ValueError that names the file."""
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
