"""From an image as people have it to the arrays that a network reads: files, Pillow's, arrays."""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from fcn_jax.canvas import Size
from fcn_jax.data.bands import check_bright, check_finite
from fcn_jax.data.images import pixels_of, read_depth, read_pixels, to_rgb
from fcn_jax.models.inputs import Inputs, Preprocessing


@dataclasses.dataclass(frozen=True)
class Opener:
    """Opens images for a network.

    Attributes:
        inputs: What the network reads.
        any_type: Whether the range of ``inputs`` is for images of whatever type; else they must be
            of the type that it was trained on, unless that is RGB of 8 bits.
    """

    inputs: Inputs
    any_type: bool = False

    def __call__(self, image: Any) -> dict[str, Any]:
        """What the network reads of an image, by modality: arrays, or what is sliced like them.

        Files are read. What is left to be converted can be done tile by tile (`pixels`).

        Raises:
            ValueError: If a modality is missing or no image, their sizes differ, or the network was
                trained on images of another type.
            FileNotFoundError: If there is no such file.
        """
        given = image if isinstance(image, Mapping) else {self.inputs.modalities[0]: image}
        if missing := [name for name in self.inputs.modalities if name not in given]:
            raise ValueError(
                f"the network reads {', '.join(self.inputs.modalities)}; {', '.join(missing)} is "
                "missing: pass a dictionary with all of them"
            )
        arrays = {name: self._opened(name, given[name]) for name in self.inputs.modalities}
        sizes = {name: array.shape[:2] for name, array in arrays.items()}
        if len(set(sizes.values())) > 1:
            raise ValueError(f"the modalities of an image must have one size, got {sizes}")
        return arrays

    def _opened(self, name: str, given: Any) -> Any:
        """One modality of an image."""
        way, is_file = self._ways[name], isinstance(given, str | os.PathLike)
        alpha = "drop" if way.channels == 3 else "band"
        if name in self._depths:
            array = read_depth(Path(given).expanduser()) if is_file else given
        elif is_file:
            array = read_pixels(Path(given).expanduser(), alpha=alpha)
        else:
            array = pixels_of(given, alpha) if hasattr(given, "getbands") else given
        if not hasattr(array, "dtype"):
            array = np.asarray(array)
        if len(array.shape) not in (2, 3) or 0 in array.shape:
            raise ValueError(f"{name} is no image: {array.dtype} {array.shape}")
        if name in self._depths:
            if array.dtype != np.uint16 or len(array.shape) != 2:
                raise ValueError(f"{name} must be uint16 (h, w), got {array.dtype} {array.shape}")
            return array
        called = f"{given}: " if is_file else ""
        bands = array.shape[2] if len(array.shape) == 3 else 1
        # Arrays of two and four channels may be grey and RGB with alpha.
        fitting = {way.channels} | ({1} if way.channels == 3 else set())
        if is_rgb(way) and not is_file:
            fitting |= {2, 4}
        try:
            if bands not in fitting:
                raise ValueError(f"{name} has {bands} bands, the network reads {way.channels}")
            if is_rgb(way):
                check_bright(array)
                return array if array.dtype in (np.uint8, np.uint16) else to_rgb(np.asarray(array))
            is_float = np.dtype(array.dtype).kind == "f"
            check_finite(array)
            if array.dtype == way.dtype or (way.dtype == "float32" and is_float):
                return array
            if self.any_type and np.dtype(array.dtype).kind in "buif":
                return array
            black, white = (way.range or ((0, 255),))[0]
            raise ValueError(
                f"{name} is {array.dtype}; the network was trained on {way.dtype} images of the "
                f"range {black:g}..{white:g}: give the values of this one that are black and "
                "white, value_range=(low, high)"
            )
        except ValueError as error:
            text = str(error)
            raise ValueError(text if text.startswith(called) else f"{called}{text}") from None

    def pixels(self, name: str, array: Any) -> np.ndarray:
        """An opened array, or a tile of it, as the network's inputs take it.

        (h, w, channels) of the type that it was trained on; a depth image stays uint16 (h, w).
        """
        way, values = self._ways[name], np.asarray(array)
        if name in self._depths:
            return values
        if is_rgb(way):
            return to_rgb(values)
        pixels = values if values.ndim == 3 else values[..., None]
        pixels = pixels.astype(way.dtype, copy=False)
        grey = pixels.shape[2] == 1 < way.channels
        return np.repeat(pixels, way.channels, axis=2) if grey else pixels

    @functools.cached_property
    def _ways(self) -> dict[str, Preprocessing]:
        """The normalisation of each modality."""
        return dict(part for _, parts in self.inputs.entries for part in parts)

    @functools.cached_property
    def _depths(self) -> set[str]:
        """The modalities that are depth images: those of one channel."""
        return {name for name, way in self._ways.items() if way.channels == 1}

    def black(self, size: Size) -> dict[str, np.ndarray]:
        """An image of a size, all zeros, as it is opened."""
        depth = np.zeros(size, np.uint16)
        return {
            name: depth if name in self._depths else np.zeros((*size, way.channels), way.dtype)
            for name, way in self._ways.items()
        }


def is_rgb(way: Preprocessing) -> bool:
    """Whether a modality is RGB of 8 bits, to which images of any kind are brought."""
    return way.range is None and way.channels == 3
