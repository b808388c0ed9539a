"""Read images and label files of any kind as arrays.

Files may be grey, have alpha, a palette, 16 bits or an EXIF orientation, or be CMYK. Here they
become what the rest of the package works with: uint8 RGB images or those of other bands and types
(`fcn_jax.data.bands`), and integer label maps with one id per pixel. Pillow decodes whatever it can
decode without loss, so that training and prediction see the same pixels on every machine (OpenCV
silently turns palette masks into colours), and only the formats listed here: of others some would
start a program. What is large is read in strips, to bound the memory.

A file is a path or its bytes; messages call it `name`, or the path where that is None. Where there
is no such file the functions raise FileNotFoundError; where it cannot be read, ValueError.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import warnings
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Array, Integer, Shaped, UInt8, UInt16

from fcn_jax.classes import VOID, VOID_COLOR, ClassTable
from fcn_jax.data import bands

if TYPE_CHECKING:
    import PIL.Image

LabelKind = Literal["auto", "index", "color"]
"""How a mask stores classes: as ids, as colours, or as the file suggests."""

IMAGE_SUFFIXES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".tif", ".tiff", ".bmp", ".gif", ".webp"),
    *(".pbm", ".pgm", ".pnm", ".ppm", ".tga", ".jp2", ".avif", ".heic", ".heif", ".npy"),
)
"""Files that count as images or masks when a folder is searched, for whatever purpose."""

_FORMATS = (
    *("JPEG", "PNG", "TIFF", "BMP", "GIF", "WEBP", "PPM", "TGA", "JPEG2000", "AVIF"),
)  # Pillow's names; HEIF is a package of its own
_OTHER_SUFFIXES = (
    *(".arw", ".cr2", ".cr3", ".dng", ".nef", ".orf", ".raf", ".rw2", ".raw", ".psd", ".xcf"),
    *(".svg", ".eps", ".exr", ".hdr", ".dds", ".ico", ".jxl", ".jxr", ".dcm", ".nii", ".img"),
)  # of pictures that are not read
_STRIP = 1 << 17  # pixels

EXIF_ORIENTATION = 0x0112
TIFF_STARTS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
SIXTEEN_BIT_MODES = ("I;16", "I;16L", "I;16B", "I;16N", "I")


def read_image(source: str | Path | bytes, name: str | None = None) -> UInt8[np.ndarray, "h w 3"]:
    """Read a grey or colour image of any mode, of an animation the first frame, as RGB.

    See `to_rgb`. Images of other bands are refused.
    """
    pixels = read_pixels(source, name, alpha="drop")
    try:
        if pixels.shape[2] not in (1, 3):
            raise ValueError(f"has {pixels.shape[2]} bands; a grey or RGB image is read here")
        return to_rgb(pixels)
    except ValueError as error:
        raise ValueError(f"{_called(source, name)}: {error}") from None


def read_pixels(
    source: str | Path | bytes, name: str | None = None, alpha: bands.Alpha = None
) -> bands.Pixels:
    """Read an image file with the bands and the type that it has.

    Grey and colour of 8 bits are uint8 (h, w, 3). All else is (h, w, bands) of uint8, uint16, int16
    or float32: 16-bit and floating-point files (grey ones have one band), TIFF files of any bands,
    .npy files. Alpha is dropped where ``alpha`` does not say otherwise.

    Raises:
        ValueError: If it cannot be read, is of another type, or holds NaN or infinity.
        FileNotFoundError: If there is no such file.
    """
    name = _called(source, name)
    if not isinstance(source, bytes):
        if not Path(source).exists():
            raise FileNotFoundError(f"{name}: no such file")
        source = Path(source).read_bytes()
    try:
        if source.startswith(b"\x93NUMPY"):
            pixels = bands.read_npy(source)
        elif source[:4] in TIFF_STARTS and not bands.is_plain_tiff(source):
            pixels = bands.read_tiff(source, alpha)
        elif bands.is_deep_png(source):
            pixels = bands.read_deep_png(source)
            pixels = pixels if alpha == "band" or pixels.shape[2] == 3 else pixels[..., :-1]
        else:
            with _opened(source, name) as image:
                pixels = pixels_of(image, alpha)
    except Exception as error:  # as in `_opened`
        reason = _words(error)
        raise ValueError(reason if reason.startswith(name) else f"{name}: {reason}") from error
    is_grey = pixels.dtype == np.uint8 and pixels.shape[2] == 1
    return np.repeat(pixels, 3, axis=2) if is_grey else pixels


def pixels_of(image: PIL.Image.Image, alpha: bands.Alpha) -> bands.Pixels:
    """What a Pillow image holds; see `read_pixels`."""
    keeps = alpha == "band" or (alpha is None and image.format == "TIFF")
    image = _upright(image)
    if image.mode in SIXTEEN_BIT_MODES:
        return _sixteen_bits(image)[..., None]
    if image.mode == "F":
        return bands.as_pixels(np.asarray(image))
    if keeps and image.mode in ("RGBA", "RGBa", "LA", "La", "PA"):
        grey = image.mode in ("LA", "La")
        pixels = bands.without_alpha(np.array(image.convert("LA" if grey else "RGBA")), alpha)
        return np.repeat(pixels, 3, axis=2) if pixels.shape[2] == 1 else pixels
    return to_rgb(image)


def _called(source: str | Path | bytes, name: str | None) -> str:
    """What messages call a file."""
    return name or (str(source) if not isinstance(source, bytes) else "image")


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
        image = _upright(image)
        if image.mode not in (*SIXTEEN_BIT_MODES, "F"):
            rgb = np.empty((image.height, image.width, 3), np.uint8)
            for rows, colors in _strips(image):
                rgb[rows] = colors
            return rgb
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


def _upright(image: PIL.Image.Image) -> PIL.Image.Image:
    """The image as a viewer shows it."""
    from PIL import ImageOps

    turned = image.getexif().get(EXIF_ORIENTATION, 1) != 1
    return ImageOps.exif_transpose(image) if turned else image  # which copies in any case


def _strips(image: PIL.Image.Image) -> Iterator[tuple[slice, UInt8[np.ndarray, "h w 3"]]]:
    """An image's RGB colours, a few rows at a time."""
    step = max(1, _STRIP // image.width)
    for top in range(0, image.height, step):
        bottom = min(top + step, image.height)
        strip = image.crop((0, top, image.width, bottom)).convert("RGB")
        yield slice(top, bottom), np.asarray(strip)


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
    """Read a mask file as the class ids it stores, one per pixel.

    * Grey files of 1, 8, 16 or 32 bits and `.npy` files of two axes hold ids.
    * RGB files hold colours, which are looked up in `table`. Without a table they are refused,
      unless the three channels are equal everywhere: then the file is a map of ids stored as RGB.
    * Palette files hold ids, too. But programs renumber palettes, so that colours decide where
      `table` knows them and they contradict the indices. Where it knows some of these colours only
      the file is refused. A palette of other colours is decoration. GIF files, which every program
      renumbers, are read by colour or refused.
    * `kind="color"` also reads palette and grey files by colour; `kind="index"` never does.

    An EXIF orientation is applied as to images; alpha is dropped. The void colour of VOC,
    (224, 224, 192), and the colours of ignored rows become the ids of void. Formats that change
    values, such as JPEG, and files of several pictures are refused.
    """
    if not isinstance(source, bytes) and Path(source).suffix.lower() == ".npy":
        return Mask(_npy_ids(Path(source), name or str(source)), None, False)
    with _opened(source, name, as_mask=True) as opened:
        in_gif, image = opened.format == "GIF", _upright(opened)
        if image.mode in ("LA", "La"):
            image = image.convert("L")
        if image.mode in ("P", "PA") and kind != "color":
            return _palette_mask(image, table if kind == "auto" else None, in_gif)
        if image.mode in ("RGB", "RGBA", "RGBX", "RGBa"):
            return Mask(_rgb_ids(image, table, kind), None, True)
        if kind == "color" and image.mode in ("1", "L", "P", "PA"):
            return Mask(_rgb_ids(image, table, kind), None, True)
        values = np.asarray(image)
        if values.ndim != 2 or kind == "color":
            raise ValueError(f"mode {image.mode} is neither one id per pixel nor RGB")
        return Mask(whole_ids(values), None, False)


def whole_ids(values: Shaped[np.ndarray, "h w"]) -> Integer[np.ndarray, "h w"]:
    """Numbers of any type as integers; a ValueError names one that is no id."""
    if values.dtype.kind == "b" or values.dtype in (np.uint8, np.uint16, np.int8, np.int16):
        return values.astype(np.uint8) if values.dtype.kind == "b" else values
    with np.errstate(invalid="ignore"):  # infinity and NaN become something else, and are refused
        ids = values.astype(np.int32)
    if (wrong := ids != values).any():
        raise ValueError(f"holds {values[wrong][0]}, which is no class id")
    return ids


def _npy_ids(path: Path, name: str) -> Integer[np.ndarray, "h w"]:
    if not path.exists():
        raise FileNotFoundError(f"{name}: no such file")
    _ignore_warnings()
    try:
        # Mapped, so that a header cannot claim more than there is; objects are refused.
        values = np.lib.format.open_memmap(path, mode="r")
        if values.ndim != 2 or values.dtype.kind not in "uibf" or not values.size:
            raise ValueError(f"{values.dtype} of shape {values.shape} is not one id per pixel")
        return whole_ids(np.asarray(values).astype(values.dtype.newbyteorder("="), copy=False))
    except Exception as error:  # NumPy raises many types for broken headers
        raise ValueError(f"{name}: {_words(error)}") from error


def _ids_by_color(table: ClassTable) -> dict[tuple[int, ...], list[int]]:
    """The ids of each colour: several where rows that count share it."""
    ids: dict[tuple[int, ...], list[int]] = {}
    for row, raw_id in zip(table.rows, table.ids, strict=True):
        ids.setdefault(row.color, []).append(raw_id)
    if VOID in table.void_ids:
        ids.setdefault(VOID_COLOR, [VOID])
    return {c: i[:1] if set(i) <= set(table.void_ids) else i for c, i in ids.items()}


def _palette_mask(image: PIL.Image.Image, table: ClassTable | None, in_gif: bool) -> Mask:
    """The mask of a palette file, by its indices or by its colours."""
    band = image.getchannel("P") if image.mode == "PA" else image
    flat = image.getpalette("RGB") or []
    palette = dict(enumerate(zip(flat[::3], flat[1::3], flat[2::3], strict=True)))
    used = [index for index, count in enumerate(band.histogram()[:256]) if count]
    colors = {index: palette[index] for index in used if index in palette}
    in_gif = in_gif and any(color != (i, i, i) for i, color in colors.items())  # no grey levels
    by_color = _ids_by_color(table) if table else {}
    known = {i: by_color[color] for i, color in colors.items() if color in by_color}
    void = set(table.void_ids) if table else set()
    # A palette that has a class's colour in its place, too, is padded with it and not renumbered.
    padded = {i for i, ids in known.items() if any(palette.get(own) == palette[i] for own in ids)}
    indices_fit = all(i in {*ids, *padded} or {i, *ids} <= void for i, ids in known.items())
    if indices_fit and not in_gif:
        return Mask(np.asarray(band), colors, False)
    if unclear := [i for i in used if len(known.get(i, ())) != 1 or i in padded - {*known[i]}]:
        shown = ", ".join(f"{i} {colors.get(i, 'without a colour')}" for i in unclear[:3])
        if in_gif:
            raise ValueError(
                f"GIF renumbers ids; store masks as PNG, or give the colour of each class (the "
                f"palette entries {shown} have that of no one class)"
            )
        raise ValueError(
            f"the colours of its palette contradict its indices, but the entries {shown} have the "
            "colour of no one class: give each colour in the class file, or mask_kind='index' if "
            "the indices are the ids"
        )
    lookup = np.zeros(256, _smallest_type(ids[0] for ids in known.values()))
    lookup[used] = [known[index][0] for index in used]
    return Mask(lookup[np.asarray(band)], colors, not indices_fit)


def _rgb_ids(
    image: PIL.Image.Image, table: ClassTable | None, kind: LabelKind
) -> Integer[np.ndarray, "h w"]:
    """The ids of an image's colours, in strips."""
    if table is None or kind == "index":
        ids = np.empty((image.height, image.width), np.uint8)
        for rows, colors in _strips(image):
            ids[rows] = colors[..., 0]
            if not np.array_equal(colors.min(-1), colors.max(-1)):
                if kind == "index":
                    raise ValueError("is an RGB picture, not one id per pixel")
                raise ValueError(
                    "is an RGB mask: give the colour of each class in a csv file with the columns "
                    "name,r,g,b (or json); one to be edited is written by fcn-jax check DIR "
                    "--write_classes=FILE.csv"
                )
        return ids
    by_color = _ids_by_color(table)
    if shared := [color for color, ids in by_color.items() if len(ids) > 1]:
        names = [row.name for row in table.rows if row.color == shared[0]]
        raise ValueError(f"colours cannot tell the classes {', '.join(names)}: all are {shared[0]}")
    ids_by_code = {int.from_bytes(color): ids[0] for color, ids in sorted(by_color.items())}
    codes = np.array([*ids_by_code], np.int32)
    code_ids = np.array([*ids_by_code.values()], _smallest_type(ids_by_code.values()))
    ids = np.empty((image.height, image.width), code_ids.dtype)
    unknown = np.zeros(0, np.int32)
    for rows, colors in _strips(image):
        red, green, blue = (colors[..., channel].astype(np.int32) for channel in range(3))
        strip = (red << 16) | (green << 8) | blue
        places = np.minimum(np.searchsorted(codes, strip), len(codes) - 1)
        ids[rows] = code_ids[places]
        if (wrong := codes[places] != strip).any():
            unknown = np.union1d(unknown, strip[wrong])[:1000]
    if unknown.size:
        shown = ", ".join(str(tuple(code.to_bytes(3))) for code in unknown[:5].tolist())
        more = f" and {len(unknown) - 5} more" if len(unknown) > 5 else ""
        raise ValueError(f"colours of no class: {shown}{more}")
    return ids


def _smallest_type(ids: Iterable[int]) -> np.dtype:
    values = [*ids]
    return np.result_type(np.min_scalar_type(min(values)), np.min_scalar_type(max(values)))


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


def image_files(
    folder: Path, pattern: str = "*", suffixes: Sequence[str] = IMAGE_SUFFIXES
) -> list[Path]:
    """The files in a folder that have the suffix of an image, in the order of their names."""
    return sorted(
        path
        for path in folder.glob(pattern)
        if path.suffix.lower() in suffixes and not path.name.startswith(".") and path.is_file()
    )


def skipped_files(folder: Path, pattern: str = "*") -> dict[Path, str]:
    """The files that look like images but that `image_files` leaves out, and why."""
    from PIL import Image

    _ignore_warnings()
    skipped = {}
    paths = folder.glob(pattern)  # most are images, and need no more than their names
    odd = (p for p in paths if p.name[0] == "." or p.suffix.lower() not in IMAGE_SUFFIXES)
    for path in sorted(path for path in odd if path.is_file()):
        suffix = path.suffix.lower()
        if suffix in IMAGE_SUFFIXES:
            skipped[path] = "its name begins with a dot"
        elif suffix in _OTHER_SUFFIXES:
            skipped[path] = f"{suffix} files are not read; convert it to PNG or TIFF"
        else:
            # PPM and TGA, which hardly have a header, would be found in any file.
            formats = [name for name in _FORMATS if name not in ("PPM", "TGA")]
            with contextlib.suppress(Exception), Image.open(path, formats=formats) as file:
                skipped[path] = f"holds a {file.format} image, but its name does not say so"
    return skipped


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


def encoded_image(
    source: str | Path | bytes, name: str | None = None, alpha: bands.Alpha = None
) -> Encoded | bands.Pixels:
    """An image for storage; one that is not 8-bit RGB stays an array (`read_pixels`).

    Upright 8-bit RGB and grey JPEG and PNG files are stored as they are, which costs neither time
    nor quality; every other kind is read and written as PNG.
    """
    if not isinstance(source, bytes):
        name = name or str(source)
        source = Path(source).read_bytes()
    if source.startswith((b"\xff\xd8", bands.PNG_START)) and not bands.is_deep_png(source):
        with _opened(source, name) as image:
            upright = image.getexif().get(EXIF_ORIENTATION, 1) == 1
            if image.format in ("JPEG", "PNG") and image.mode in ("RGB", "L") and upright:
                return Encoded(source, (image.height, image.width), pixel_digest(to_rgb(image)))
    return encoded(read_pixels(source, name, alpha), _called(source, name))


def encoded(values: Shaped[np.ndarray, "..."], name: str) -> Encoded | bands.Pixels:
    """An array (h, w) or (h, w, bands) for storage; see `encoded_image`."""
    try:
        pixels = bands.as_pixels(values)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None
    if pixels.dtype != np.uint8 or pixels.shape[2] not in (1, 3):
        return pixels
    return encoded_pixels(np.repeat(pixels, 3, axis=2) if pixels.shape[2] == 1 else pixels)


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


class _File(io.BufferedReader):
    """Reads no more than is left of a file, however long a chunk of it calls itself.

    Python allocates what is asked for first, and Pillow asks for what a chunk of a PNG file says.
    """

    def read(self, size: int | None = -1, /) -> bytes:
        """The next ``size`` bytes, or what is left."""
        left = os.fstat(self.fileno()).st_size - self.tell()
        return super().read(left if size is None or size < 0 else min(size, left))


@contextlib.contextmanager
def _opened(
    source: str | Path | bytes, name: str | None, as_mask: bool = False
) -> Iterator[PIL.Image.Image]:
    """A decoded Pillow image; every failure becomes a ValueError that names the file."""
    from PIL import Image

    name = name or (str(source) if not isinstance(source, bytes) else "image")
    if not isinstance(source, bytes) and not Path(source).exists():
        raise FileNotFoundError(f"{name}: no such file")
    _ignore_warnings()
    try:
        with (
            io.BytesIO(source) if isinstance(source, bytes) else _File(io.FileIO(source)) as file,
            Image.open(file, formats=_formats(file)) as image,
        ):
            if as_mask:
                _refuse_as_mask(image, file)
            _refuse_false_size(image, file)
            image.load()
            yield image
    except Image.UnidentifiedImageError:
        raise ValueError(f"{name}: not an image file that can be read") from None
    except Image.DecompressionBombError:
        most = 2 * (Image.MAX_IMAGE_PIXELS or 0)
        raise ValueError(
            f"{name}: more than the {most} pixels that are read at once; cut it into smaller images"
        ) from None
    # Pillow's decoders raise many types for broken files, SyntaxError and struct.error among them.
    except Exception as error:
        raise ValueError(f"{name}: {_words(error)}") from error


def _formats(file: io.BufferedIOBase) -> list[str]:
    """What Pillow may take a file for. HEIF, which is large, is loaded once such a file is met."""
    start = file.read(64)
    file.seek(0)
    brands = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
    if start[4:12] not in [b"ftyp" + brand for brand in brands] or b"avif" in start:
        return [*_FORMATS]
    try:
        import pillow_heif
    except ImportError:
        raise ValueError("a HEIC image, which needs pip install 'fcn-jax[heic]'") from None
    pillow_heif.register_heif_opener()
    return [*_FORMATS, "HEIF"]


def _refuse_as_mask(image: PIL.Image.Image, file: io.BufferedIOBase) -> None:
    """Raises a ValueError for files that blur ids, or hold more pictures than one."""
    compression = image.info.get("compression")  # of TIFF
    lossy = image.format in ("JPEG", "MPO", "JPEG2000", "AVIF", "HEIF")
    if image.format == "WEBP":
        file.seek(12)
        lossy = file.read(4) != b"VP8L"
    if lossy or compression in ("jpeg", "tiff_jpeg", "webp"):
        raise ValueError(f"{image.format} blurs label values; store masks as PNG")
    frames = range(getattr(image, "n_frames", 1))
    if image.format == "TIFF" and len(frames) > 1:
        frames = [i for i in frames if not _is_preview(image, i)]
        image.seek(0)
    if len(frames) > 1:
        raise ValueError(f"holds {len(frames)} pictures; a mask is one: store it as PNG")


def _refuse_false_size(image: Any, file: io.BufferedIOBase) -> None:
    """Raises a ValueError for a damaged header; Pillow would make up black pixels, for seconds."""
    place, (width, height) = file.tell(), image.size
    size = file.seek(0, io.SEEK_END)
    file.seek(place)
    # Deflate makes at most 8256 pixels of one bit from a byte.
    if width * height > max(1 << 24, 10_000 * size):
        raise ValueError(f"damaged: it cannot hold {width}x{height} pixels in {size} bytes")
    if image.format == "TIFF" and image.tile:
        rows = max(tile[1][3] for tile in image.tile)
        if rows < height:
            raise ValueError(f"damaged: it holds {rows} of {height} rows")


def _is_preview(image: Any, page: int) -> bool:
    image.seek(page)
    return bool(image.tag_v2.get(254, 0) & 1)  # NewSubfileType: of reduced resolution


def _ignore_warnings() -> None:
    """Libraries warn of odd headers and of many pixels; a file is read, or refused in one line.

    Threads share filters, so that none may be set and taken back around a call.
    """
    warnings.filterwarnings("ignore", module=r"PIL\.|numpy\.lib")


def _words(error: Exception) -> str:
    return " ".join((str(error) or type(error).__name__).split())
