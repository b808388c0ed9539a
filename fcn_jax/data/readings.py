"""What a person's images and masks hold, one by one, from one reading of all of them.

They are read in parts, by several processes where there are many. Where a data set is prepared what
was read is kept, a file for each part, so that after a kill only the other parts are read. The
file's name is a hash of all that the part's reading depends on: sizes and times of the files, the
options, the versions of what reads them. So what has changed since is read again.
"""

from __future__ import annotations

import collections
import concurrent.futures
import dataclasses
import functools
import hashlib
import json
import os
import zlib
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import PIL
from jaxtyping import Integer

from fcn_jax import __version__
from fcn_jax.classes import ClassTable
from fcn_jax.data.bands import Alpha, UsedRange
from fcn_jax.data.images import LabelKind, encoded_image, read_image, read_mask
from fcn_jax.data.labelme import image_source
from fcn_jax.data.layouts import Drawing, DrawingError, Told
from fcn_jax.data.processes import Progress, processes_for, tell, worker_processes
from fcn_jax.data.records import Stored, digest_of, size_of, stored_as

READERS = 4
PART = 50
"""Images of a part, in the mean: as many are read once more, by each process, after a kill."""

STRIP = 1 << 20  # pixels
MANY = 1000  # colours; more are a photograph's

Color: TypeAlias = tuple[int, int, int]

Pair: TypeAlias = tuple[Path, Path | Drawing]

Used: TypeAlias = defaultdict[Stored, UsedRange]
"""The range that images use, for each combination of bands and type."""


@dataclasses.dataclass(frozen=True, slots=True)
class Reading:
    """An image with its mask, as they were read.

    Attributes:
        image: The image's path, as messages show it.
        mask: The mask's path; the image's where masks are drawn.
        digest: See `fcn_jax.data.images.pixel_digest`; empty if the image cannot be read.
        form: The image's bands and type, if it can be read.
        ids: The pixels of every id in the mask.
        colors: See `fcn_jax.data.images.Mask`.
        stored: Whether the mask's numbers are its ids; they are not where colours were looked up.
        problems: What is wrong with either, as `fcn_jax.data.survey.Problems.add` takes it.
        told: What a drawing told.
    """

    image: str
    mask: str
    digest: str
    form: Stored | None
    ids: Mapping[int, int]
    colors: Mapping[int, Color] | None
    stored: bool
    problems: tuple[tuple[str, ...], ...] = ()
    told: tuple[tuple[str, str], ...] = ()


@dataclasses.dataclass(frozen=True)
class Reader:
    """How the images and masks of a folder are read.

    Attributes:
        root: The folder.
        colors: The colours that masks are read by; None: they hold ids.
        kind: How masks store classes.
        alpha: What a channel called alpha is.
        drawn_from: A fingerprint of what drawings are made from, besides the image.
        kept_in: The folder where what was read is kept; None keeps nothing.
    """

    root: Path
    colors: ClassTable | None
    kind: LabelKind
    alpha: Alpha
    drawn_from: str = ""
    kept_in: Path | None = None

    def file(self, part: Sequence[Pair]) -> Path | None:
        """Where the readings of a part are kept; None if nowhere, or if a file is missing."""
        if self.kept_in is None:
            return None
        how = (self.root, self.colors, self.kind, self.alpha, self.drawn_from)
        digest = hashlib.sha256(repr((__version__, PIL.__version__, how)).encode())
        for path in (path for pair in part for path in pair):
            try:
                status = path.stat() if isinstance(path, Path) else None
            except OSError:
                return None
            line = f"{path}\0{status.st_size}\0{status.st_mtime_ns}" if status else "drawn"
            digest.update(f"{line}\n".encode(errors="surrogateescape"))
        return self.kept_in / f"{digest.hexdigest()[:32]}.npz"


def read_all(pairs: Sequence[Pair], reader: Reader, used: Used) -> list[Reading]:
    """Reads all images and masks: many of them in processes, few in threads.

    Images that are not of 8 bits are added to ``used``.

    Raises:
        OSError: If a process is killed.
    """
    name = "Reading images and masks"
    goes_on = "the same command goes on with the images that are left"
    remedy = goes_on if reader.kept_in else "give the command again"
    parts = [*_parts(pairs, reader.root)]
    known = [_kept(reader.file(part), used) for part in parts]
    left = [part for part, readings in zip(parts, known, strict=True) if readings is None]
    number = sum(map(len, left))
    if number < len(pairs):
        tell(f"{name}: goes on after {len(pairs) - number:,} of {len(pairs):,} images")
    processes = processes_for(number)
    with (
        concurrent.futures.ThreadPoolExecutor(READERS)  # decoding leaves Python's lock
        if processes == 1
        else worker_processes(processes, str(reader.root), remedy) as pool,
        Progress(name, len(pairs), len(pairs) - number) as progress,
    ):
        found = pool.map(functools.partial(_read_part, reader), left)
        readings: list[Reading] = []
        for of_part in known:
            if of_part is None:
                of_part, ranges = next(found)
                _merge(ranges, used)
                progress.add(len(of_part))
            readings += of_part
        return readings


def _parts(pairs: Sequence[Pair], root: Path) -> Iterator[list[Pair]]:
    """All pairs in their order, cut before images whose names have a certain hash.

    So an image that comes or goes changes its own part alone.
    """
    size = max(1, min(PART, len(pairs) // (4 * READERS)))
    part: list[Pair] = []
    for pair in pairs:
        name = os.fsencode(_short(pair[0], root))
        if part and (zlib.crc32(name) % size == 0 or len(part) == 2 * size):
            yield part
            part = []
        part.append(pair)
    if part:
        yield part


Ranges: TypeAlias = dict[Stored, tuple[Any, Any]]
"""What `UsedRange.merge` takes."""


def _merge(ranges: Ranges, used: Used) -> None:
    for form, one in ranges.items():
        used[form].merge(*one)


def _read_part(reader: Reader, part: Sequence[Pair]) -> tuple[list[Reading], Ranges]:
    """Some images and masks, in a thread or a process of its own."""
    used: Used = defaultdict(UsedRange)
    file = reader.file(part)
    readings = [_read(*pair, reader, used) for pair in part]
    ranges: Ranges = {form: (found.counts, found.limits) for form, found in used.items()}
    # What is wrong may be mended by other means than the file: rights, or a library that it needs.
    sound = not any(reading.problems for reading in readings)
    if file and sound and file == reader.file(part):  # else one has changed meanwhile
        _keep(file, readings, ranges)
    return readings, ranges


def _keep(file: Path, readings: Sequence[Reading], ranges: Ranges) -> None:
    rows = [
        [
            *(one.image, one.mask, one.digest, one.form, [*one.ids.items()]),
            *(one.colors and [*one.colors.items()], one.stored, one.told),
        ]
        for one in readings
    ]
    text = json.dumps({"readings": rows, "forms": [*ranges]})
    arrays: dict[str, Any] = {"text": np.frombuffer(text.encode(), np.uint8)}
    for number, (counts, limits) in enumerate(ranges.values()):
        arrays |= {f"counts.{number}": counts, f"limits.{number}": limits}
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_name(f"{file.name}.{os.getpid()}")
    with temporary.open("wb") as opened:
        np.savez_compressed(opened, allow_pickle=False, **arrays)
    temporary.replace(file)


def _kept(file: Path | None, used: Used) -> list[Reading] | None:
    """What `_keep` kept, if it is there and whole."""
    if file is None or not file.is_file():
        return None
    try:
        with np.load(file, allow_pickle=False) as arrays:  # which compares checksums
            content = json.loads(arrays["text"].tobytes())
            ranges = {
                Stored(*form): (arrays[f"counts.{number}"], arrays[f"limits.{number}"])
                for number, form in enumerate(content["forms"])
            }
        readings = [
            Reading(
                *(image, mask, digest, form and Stored(*form), dict(ids)),
                colors and {index: tuple(color) for index, color in colors},
                stored,
                told=tuple((text, where) for text, where in told),
            )
            for image, mask, digest, form, ids, colors, stored, told in content["readings"]
        ]
    except Exception:  # of a damaged file NumPy and zlib raise many types
        return None
    _merge(ranges, used)
    return readings


def _read(image: Path, mask: Path | Drawing, reader: Reader, used: Used) -> Reading:
    root = reader.root
    names = _short(image, root), _short(mask if isinstance(mask, Path) else image, root)
    problems = []
    told: Told = []
    size, digest, form = None, "", None
    ids, palette, by_color = np.zeros((0, 0), np.int32), None, not isinstance(mask, Path)
    try:
        picture = encoded_image(image_source(image), str(image), reader.alpha)
        size, digest, form = size_of(picture), digest_of(picture), stored_as(picture)
        if isinstance(picture, np.ndarray) and picture.dtype != np.uint8:
            used[form].add(picture)
        del picture
    except (ValueError, OSError) as error:
        problems.append((_without_path(error, image), names[0]))
    try:
        if isinstance(mask, Path):
            ids, palette, by_color = read_mask(mask, reader.colors, reader.kind)
        elif size:
            ids = mask(size, told)
    except DrawingError as error:
        problems.append((error.what, error.where))
    except (ValueError, OSError) as error:
        what, colon, found = _without_path(error, mask).partition("colours of no class: ")
        alone = f"{names[1]}: {what}{colon}{found}"
        place = f"{names[1]} ({found})" if found else names[1]
        problems.append(((what + colon).removesuffix(": "), place, alone))
    else:
        if size and ids.shape != size:
            own, other = ("{1}x{0}".format(*shape) for shape in (ids.shape, size))
            turned = " (width and height are exchanged)" if ids.shape == size[::-1] else ""
            problems.append(
                (
                    f"masks of another size than their image{turned}",
                    f"{names[1]} ({own}, not {other})",
                    f"{names[1]}: {own} pixels, but its image {names[0]} has {other}{turned}",
                )
            )
    found = digest, form, _counts(ids), palette, not by_color, tuple(problems), tuple(told)
    return Reading(*names, *found)


def read_values(
    files: Collection[Path], kind: LabelKind
) -> tuple[dict[int, Color | None], set[Color]]:
    """The values in masks, without a class table.

    Returns:
        The ids, with the colours that palettes give them; and the colours, where masks are RGB or
        palettes differ, else none.
    """
    ids: dict[int, Color | None] = {}
    colors: set[Color] = set()
    in_colors = False
    with concurrent.futures.ThreadPoolExecutor(READERS) as pool:
        for values in pool.map(lambda path: _values(path, kind), files):
            if isinstance(values, set):
                in_colors, colors = True, (colors | values if len(colors) < MANY else colors)
                continue
            for raw_id, color in values.items():
                known = ids.get(raw_id)
                in_colors = in_colors or (None not in (known, color) and known != color)
                grey = raw_id % 256
                colors.add(color or (grey, grey, grey))
                ids[raw_id] = color or known
    return ids, (colors if in_colors else set())


def _values(path: Path, kind: LabelKind) -> dict[int, Color | None] | set[Color]:
    """The ids of a mask with their colours in a palette, or the colours of an RGB mask."""
    try:
        if kind != "color":
            mask = read_mask(path, None, kind)
            return {raw_id: (mask.colors or {}).get(raw_id) for raw_id in _counts(mask.ids)}
    except ValueError as error:
        if "RGB mask" not in str(error):
            raise
    codes: set[int] = set()
    pixels = read_image(path).reshape(-1, 3)
    for start in range(0, len(pixels), STRIP):
        strip = pixels[start : start + STRIP].astype(np.int32)
        codes.update(np.unique(strip @ np.array([1 << 16, 1 << 8, 1], np.int32))[:MANY].tolist())
    red_green_blue = ((code >> 16, code >> 8 & 255, code & 255) for code in codes)
    return set(red_green_blue)


def _short(path: Path, root: Path) -> str:
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else str(path)


def _without_path(error: Exception, path: Path | Drawing) -> str:
    return str(error).removeprefix(f"{path}: ")


def _counts(ids: Integer[np.ndarray, "h w"]) -> dict[int, int]:
    """The pixels of every id; a strip at a time, as counting takes 8 bytes a pixel."""
    pixels: collections.Counter[int] = collections.Counter()
    flat = ids.reshape(-1)
    for start in range(0, flat.size, STRIP):
        strip = flat[start : start + STRIP]
        if strip.min() >= 0 and strip.max() < 65536:
            counts = np.bincount(strip)
            values = np.flatnonzero(counts)
            counts = counts[values]
        else:
            values, counts = np.unique(strip, return_counts=True)
        pixels.update(dict(zip(values.tolist(), counts.tolist(), strict=True)))
    return dict(pixels)
