"""Georeferenced and giant TIFF files, read and written in windows, so that memory stays bounded.

A `Scene` takes the place of an image's array in a `fcn_jax.Predictor`, a `SceneMap` that of its
result: the predictor's tiles are the windows. rasterio (GDAL) does the rest, the extra ``geo``.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Shaped, UInt8

from fcn_jax.canvas import Size
from fcn_jax.classes import VOID, ClassTable
from fcn_jax.data.bands import MOST_PIXELS
from fcn_jax.data.images import TIFF_STARTS

NO_DATA = 0
"""What the network reads where a scene has no data."""

_GEOREFERENCES = (33550, 33922, 34264)  # tags: scale, tie points, transformation
_CACHE = 256 << 20  # bytes of blocks that GDAL keeps; by default a twentieth of the memory

Window = tuple[slice, slice]
"""Rows and columns."""


def is_scene(file: Path) -> bool:
    """Whether a file is a TIFF that is georeferenced, or too large to be read at once."""
    import tifffile

    try:
        with file.open("rb") as opened:
            if opened.read(4) not in TIFF_STARTS:
                return False
        with tifffile.TiffFile(file) as tiff:
            page: Any = tiff.pages[0]
            large = page.imagewidth * page.imagelength > MOST_PIXELS
            return large or any(tag in page.tags for tag in _GEOREFERENCES)
    except Exception:  # it is missing or broken, which whoever reads it will say
        return False


def rasterio_for(what: str) -> Any:
    """The package rasterio; a ValueError names the extra where it is missing."""
    try:
        import rasterio
        import rasterio.env
        import rasterio.errors
    except ImportError:
        raise ValueError(f"{what} needs rasterio: pip install 'fcn-jax[geo]'") from None
    import warnings

    # A giant TIFF file may have no reference, which is no reason to warn.
    warnings.filterwarnings("ignore", category=rasterio.errors.NotGeoreferencedWarning)
    rasterio.env.set_gdal_config("GDAL_CACHEMAX", _CACHE)
    return rasterio


class Scene:
    """A TIFF file as an array (h, w, bands) whose parts are read when they are asked for.

    A pixel has no data where one of its floats is NaN, infinite or the file's nodata value, where
    all its whole numbers are the nodata value, or where the file's mask or alpha says so. It is
    read as `NO_DATA`.

    Args:
        channels: Of the network. An alpha band beyond them is a mask and no band; for three, a
            palette is looked up.

    Raises:
        ValueError: If it cannot be read, or rasterio is not installed.
    """

    def __init__(self, file: Path, channels: int) -> None:
        rasterio = rasterio_for(f"{file} is georeferenced, or too large to be read at once, which")
        from rasterio.enums import ColorInterp, MaskFlags

        try:
            self.file = rasterio.open(file, driver="GTiff")
        except rasterio.errors.RasterioError as error:
            raise ValueError(f"{file}: {' '.join(str(error).split())}") from None
        bands = list(self.file.indexes)
        has_alpha = self.file.colorinterp[-1] == ColorInterp.alpha and len(bands) > 1
        if has_alpha and len(bands) > channels:
            bands.pop()
        flags = self.file.mask_flag_enums[0]
        # The mask of a file, or its alpha, unless that band is one that the network reads.
        self._masked = MaskFlags.per_dataset in flags and not (
            has_alpha and self.file.count in bands
        )
        self._bands = bands
        self._palette = None
        if channels == 3 and self.file.colorinterp[0] == ColorInterp.palette:
            self._palette = np.zeros((256, 3), np.uint8)
            for number, color in self.file.colormap(1).items():
                self._palette[number] = color[:3]
        number = len(bands) if self._palette is None else 3
        self.shape = (self.file.height, self.file.width, number)
        self.dtype = np.dtype(self.file.dtypes[0])
        if len(set(self.file.dtypes)) > 1:
            raise ValueError(f"{file}: its bands have the types {', '.join(self.file.dtypes)}")

    def __getitem__(self, index: Any) -> Shaped[np.ndarray, "h w bands"]:
        """The pixels of some rows, or rows and columns: slices."""
        rows, columns = index if isinstance(index, tuple) else (index, slice(None))
        height, width, _ = self.shape
        return self._read(slice(*rows.indices(height)), slice(*columns.indices(width)))[0]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        """All pixels."""
        return np.asarray(self[:], dtype)

    def valid(self, rows: slice, columns: slice) -> Bool[np.ndarray, "h w"]:
        """Where a window has data."""
        return self._read(rows, columns)[1]

    def _read(
        self, rows: slice, columns: slice, shape: Size | None = None
    ) -> tuple[Shaped[np.ndarray, "h w bands"], Bool[np.ndarray, "h w"]]:
        """Pixels of a window, perhaps reduced to a shape, and where they are valid."""
        from rasterio.errors import RasterioError
        from rasterio.windows import Window as Place

        window = Place.from_slices(rows, columns)
        of_bands = shape and (len(self._bands), *shape)
        try:
            values = self.file.read(self._bands, window=window, out_shape=of_bands)
            valid = np.ones(values.shape[1:], bool)
            if self._masked:
                valid = self.file.read_masks(1, window=window, out_shape=shape) > 0
        except RasterioError as error:
            raise ValueError(f"{self.file.name}: {' '.join(str(error).split())}") from None
        nodata = self.file.nodata
        if self.dtype.kind == "f":
            valid &= (np.isfinite(values) & (values != nodata)).all(axis=0)
        elif nodata is not None:
            valid &= (values != nodata).any(axis=0)
        if self._palette is not None:
            values = np.moveaxis(self._palette[values[0]], -1, 0)
        return np.moveaxis(np.where(valid, values, self.dtype.type(NO_DATA)), 0, -1), valid

    def reduced(self, size: Size) -> Shaped[np.ndarray, "h w bands"]:
        """The whole scene at another size."""
        height, width, _ = self.shape
        return self._read(slice(0, height), slice(0, width), size)[0]

    @property
    def reference(self) -> str | None:
        """The reference system of its coordinates."""
        crs = self.file.crs
        code = crs and crs.to_epsg()
        return f"urn:ogc:def:crs:EPSG::{code}" if code else crs and crs.to_wkt()

    def close(self) -> None:
        """Closes the file."""
        self.file.close()


class SceneMap:
    """A map of a scene, as an array that is written window by window: a GeoTIFF file.

    It has the scene's reference. Pixels without data become void (255) in label maps, 0 in others.

    Args:
        file: The file, which is complete when the map has been closed.
        bands: None for a map (h, w), else of one (h, w, bands).
        names: Of the bands, or of the classes.
        classes: Of a label map, whose colours the file gets; pixels are counted in ``counts``.
    """

    def __init__(
        self,
        file: Path,
        scene: Scene,
        dtype: str,
        *,
        bands: int | None = None,
        names: Sequence[str] = (),
        classes: ClassTable | None = None,
    ) -> None:
        rasterio = rasterio_for(str(file))
        self.file, self._scene, self._void = file, scene, VOID if classes else 0
        self.shape = scene.shape[:2] if bands is None else (*scene.shape[:2], bands)
        self.dtype, self.counts = np.dtype(dtype), np.zeros(256, np.int64)
        given, kind = scene.file, {"float32": 3}.get(dtype, 2)
        self._file = rasterio.open(
            file,
            "w",
            driver="GTiff",
            height=scene.shape[0],
            width=scene.shape[1],
            count=bands or 1,
            dtype=dtype,
            crs=given.crs or given.gcps[1],
            nodata=self._void,
            tiled=True,
            blockxsize=512,
            blockysize=512,
            compress="deflate",
            predictor=kind if not classes else 1,
            BIGTIFF="IF_SAFER",
            **({"gcps": given.gcps[0]} if given.gcps[0] else {"transform": given.transform}),
        )
        self._file.update_tags(AREA_OR_POINT=given.tags().get("AREA_OR_POINT", "Area"))
        if given.rpcs:
            self._file.rpcs = given.rpcs
        if classes:
            palette = classes.palette.tolist()
            self._file.write_colormap(1, {i: tuple(color) for i, color in enumerate(palette)})
            self._file.update_tags(1, **{f"class_{i}": name for i, name in enumerate(names)})
        else:
            for band, name in enumerate(names, start=1):
                self._file.set_band_description(band, name)

    def __setitem__(self, window: Window, values: Shaped[np.ndarray, "_ _ *bands"]) -> None:
        """Writes a window; what has no data is not taken from the values."""
        if self._file.closed:  # an error ended the image, whose other tiles were on their way
            return
        from rasterio.windows import Window as Place

        valid = self._scene.valid(*window)
        planes = np.moveaxis(values, -1, 0) if values.ndim == 3 else values[None]
        planes = np.where(valid, planes, self.dtype.type(self._void))  # of the window's size
        if self._void:
            self.counts += np.bincount(planes[0][valid], minlength=256)
        self._file.write(planes, window=Place.from_slices(*window))

    def close(self) -> None:
        """Completes the file."""
        self._file.close()

    def discard(self) -> None:
        """Removes the file, which is not to be completed."""
        self._file.close()
        self.file.unlink()


def reduced_size(size: Size, most_pixels: int) -> Size:
    """The largest size of an image's proportions with no more pixels."""
    factor = min(1.0, (most_pixels / math.prod(size)) ** 0.5)
    return max(1, int(size[0] * factor)), max(1, int(size[1] * factor))


def read_reduced(file: Path, size: Size) -> UInt8[np.ndarray, "h w"]:
    """A label map's file at another size: the nearest pixels."""
    import rasterio

    with rasterio.open(file) as opened:
        return opened.read(1, out_shape=size)


def regions(
    labels: UInt8[np.ndarray, "h w"] | Path, left_out: Collection[int] = ()
) -> Iterator[tuple[dict[str, Any], int]]:
    """The outline of every region of one class, along the pixels' edges, and its label.

    Regions are connected by edges, not by corners; void has none. Outlines are GeoJSON polygons,
    in pixels (x to the right, y down), or in the coordinates of a label map's file.
    """
    rasterio_for("drawing outlines")
    import rasterio
    from rasterio import features

    skipped = {VOID, *left_out}
    with contextlib.ExitStack() as stack:
        options, source = {}, labels
        if isinstance(labels, Path):
            file = stack.enter_context(rasterio.open(labels))
            source, options = rasterio.band(file, 1), {"transform": file.transform}
        for outline, label in features.shapes(source, connectivity=4, **options):
            if int(label) not in skipped:
                yield outline, int(label)
