"""Videos as frames, and overlays of frames as a video: imageio with ffmpeg, the extra ``video``."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

VIDEO_SUFFIXES = (
    *(".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".wmv", ".mts"),
)


def _imageio(file: Path) -> Any:
    # imageio would fork to keep Ctrl-C from ffmpeg, which programs of many threads must not.
    os.environ.setdefault("IMAGEIO_FFMPEG_NO_PREVENT_SIGINT", "1")
    try:
        import imageio.v2
        import imageio_ffmpeg  # noqa: F401
    except ImportError:
        raise ValueError(
            f"{file}: a video needs imageio and ffmpeg: pip install 'fcn-jax[video]'"
        ) from None
    return imageio.v2


class Video:
    """A video that is read.

    Attributes:
        rate: Frames per second.
        about: About how many frames there are.

    Raises:
        ValueError: If it cannot be read, or imageio is not installed.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        imageio = _imageio(file)
        with self._telling():
            self._reader = imageio.get_reader(file, format="FFMPEG")
            about = self._reader.get_meta_data()
            self.rate = float(about["fps"])
            self.about = max(1, round(about["fps"] * about["duration"]))

    def __iter__(self) -> Iterator[UInt8[np.ndarray, "h w 3"]]:
        """The frames, upright."""
        with self._telling(), self._reader:
            for frame in self._reader:
                yield np.asarray(frame)

    @contextlib.contextmanager
    def _telling(self) -> Iterator[None]:
        try:
            yield
        except (OSError, RuntimeError, KeyError, IndexError, ValueError):  # as ffmpeg's output is
            raise ValueError(f"{self._file}: not a video that ffmpeg can read") from None


def write_video(file: Path, frames: Iterable[UInt8[np.ndarray, "h w 3"]], rate: float) -> None:
    """Writes frames of one size as a video (H.264), with so many per second."""
    imageio = _imageio(file)
    options = {"fps": rate, "codec": "libx264", "macro_block_size": 2}
    with imageio.get_writer(file, format="FFMPEG", **options) as writer:
        for frame in frames:
            # Sides are even in this format: the last row and column are repeated.
            height, width, _ = frame.shape
            writer.append_data(np.pad(frame, [(0, height % 2), (0, width % 2), (0, 0)], "edge"))
