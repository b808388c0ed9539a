"""What is written of predictions: the files of each image, and those of the whole set.

    labels/NAME.png       class numbers, shown in the classes' colours; of a scene NAME.tif
    overlays/NAME.png     bright colours over the photograph
    confidence/NAME.png   probability of the class that was chosen, 255 is certain; of a scene .tif
    probabilities/NAME.npz, polygons/NAME.geojson, coco.json    on demand
    heatmaps/NAME.png, heatmaps/NAME.npy, heatmap_scale.png     instead, for one class
    legend.png  areas.csv  skipped.csv
    .done/NAME.json       a record of each image: of which file and how it was made, and its areas

Every file is complete from the moment it has its name, and an image's record is written last. The
files of the set are put together from the records, whichever process wrote them.
"""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import hashlib
import itertools
import json
import math
import os
import shutil
import struct
import zlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple, TextIO, TypeAlias, get_args

import numpy as np
from jaxtyping import Float, Shaped, UInt8

from fcn_jax import drawing
from fcn_jax.canvas import Size
from fcn_jax.checkpoints import digest_arrays
from fcn_jax.classes import ClassTable
from fcn_jax.data import bands
from fcn_jax.data.images import read_image, to_rgb
from fcn_jax.inference import videos
from fcn_jax.inference.predictor import Predictor
from fcn_jax.inference.scenes import (
    Scene,
    SceneMap,
    rasterio_for,
    read_reduced,
    reduced_size,
    regions,
)

Kind: TypeAlias = Literal["labels", "overlays", "confidence", "probabilities", "coco", "geojson"]
"""What can be written of an image."""

KINDS: tuple[Kind, ...] = get_args(Kind)
USUAL: tuple[Kind, ...] = ("labels", "overlays", "confidence")

MAPS = {"labels": "uint8", "confidence": "uint8", "probabilities": "float32"}
"""The kinds that are maps of a scene, and their types in its files."""

MOST_SHOWN = {"photograph": 1 << 26, "scene": 1 << 24}
"""Pixels of an overlay; those of larger images are reduced to about as many."""


class Job(NamedTuple):
    """An image that is to be predicted."""

    file: Path
    name: str  # of its results, without a suffix
    frame: UInt8[np.ndarray, "h w 3"] | None = None  # of a video, which is the file

    @property
    def source(self) -> dict[str, Any]:
        """What tells whether the file is still the same."""
        found = {"file": os.fsencode(self.file.resolve()).decode(errors="backslashreplace")}
        with contextlib.suppress(OSError):
            status = self.file.stat()
            found |= {"bytes": status.st_size, "changed": status.st_mtime_ns}
        return found


class Records(NamedTuple):
    """The records of the images whose results lie in a folder.

    Attributes:
        output: The folder.
        of_heatmaps: Whether they are of heat maps, which may lie beside predictions.
    """

    output: Path
    of_heatmaps: bool = False

    @property
    def folder(self) -> Path:
        """Where the records themselves lie."""
        return self.output / (".done_heatmaps" if self.of_heatmaps else ".done")

    def read(self, name: str) -> dict[str, Any]:
        """The record of an image; an empty one where there is none."""
        with contextlib.suppress(OSError, ValueError):
            found = json.loads((self.folder / f"{name}.json").read_text(encoding="utf-8"))
            return found if isinstance(found, dict) else {}
        return {}

    def owner(self, name: str) -> str | None:
        """The file whose results have a name."""
        source = self.read(name).get("source")
        return source.get("file") if isinstance(source, dict) else None

    def names(self) -> list[str]:
        """The names of all images."""
        files = (file.relative_to(self.folder) for file in self.folder.rglob("*.json"))
        return sorted(file.with_suffix("").as_posix() for file in files)


@dataclasses.dataclass
class Outputs:
    """Writes what is wanted of images to a folder; several threads and processes may at once.

    Attributes:
        records: Of the folder where all is written.
        predictor: What the results come from.
        kinds: What is written of each image.
        alpha: Weight of the colours in overlays.
        clear: Classes without colour in overlays and without polygons, by name in any case; None
            are those called background.
        heatmap: The head and the number of a class whose heat maps are written instead.
        settings: A digest of all that the files follow from besides the images: the network and
            its parameters, its inputs and classes, and the fields above.

    Raises:
        ValueError: If a head has more classes than a label map holds, ``clear`` names none, or what
            is wanted needs a package that is not installed.
    """

    records: Records
    predictor: Predictor
    kinds: Collection[Kind] = USUAL
    alpha: float = 0.5
    clear: Collection[str] | None = None
    heatmap: tuple[str, int] | None = None
    settings: str = dataclasses.field(init=False)

    def __post_init__(self) -> None:
        if not 0 <= self.alpha <= 1:
            raise ValueError(f"alpha must be from 0 to 1, not {self.alpha}")
        if {"coco", "geojson"} & {*self.kinds}:
            rasterio_for("drawing outlines")
        self.tables: dict[str, ClassTable] = {}
        if self.heatmap is None:
            for head, classes in self.predictor.heads.items():
                if not isinstance(classes, ClassTable):
                    raise ValueError(f"a label map holds 255 classes, {head} has {len(classes)}")
                self.tables[head] = classes
        names = {name.casefold() for table in self.tables.values() for name in table.names}
        self._clear = {"background"} if self.clear is None else {*map(str.casefold, self.clear)}
        if self.clear and (unknown := self._clear - names):
            known = ", ".join(name for table in self.tables.values() for name in table.names)
            raise ValueError(f"clear: no class {', '.join(sorted(unknown))}; there are {known}")
        self._bright = {head: drawing.bright(table) for head, table in self.tables.items()}
        model: Any = self.predictor.model
        follows_from = [
            digest_arrays(self.predictor.variables)[0],
            getattr(getattr(model, "alignment", None), "geometry", type(model).__name__),
            [getattr(model, name, None) for name in ("padding", "precision", "decoder")],
            self.predictor.inputs.to_dict(),
            [(head, self.predictor.names(head)) for head in self.predictor.heads],
            [table.palette.tolist() for table in self.tables.values()],
            [self.predictor.views, sorted(self.kinds), self.alpha, sorted(self._clear)],
            self.heatmap,
        ]
        self.settings = hashlib.sha256(repr(follows_from).encode()).hexdigest()[:16]

    # ---- names

    def place(self, kind: str, head: str) -> str:
        """The folder of a kind of result of a head, which is also the result's key."""
        return kind if len(self.predictor.heads) == 1 else f"{kind}_{head}"

    def is_done(self, job: Job) -> bool:
        """Whether all files of an image are there, of the same file and by the same settings."""
        record = self.records.read(job.name)
        with contextlib.suppress(OSError, KeyError, TypeError, AttributeError):
            return (
                record["settings"] == self.settings
                and record["source"] == job.source
                and all(
                    (self.records.output / n).stat().st_size == b
                    for n, b in record["files"].items()
                )
            )
        return False

    def _unfinished(self, name: str) -> Path:
        """Where a file is written until it is complete: no other process writes there."""
        file = self.records.output / ".unfinished" / str(os.getpid()) / name
        file.parent.mkdir(parents=True, exist_ok=True)
        return file

    def _finish(self, names: Iterable[str]) -> dict[str, int]:
        """Gives complete files their names; returns their sizes in bytes."""
        sizes = {}
        for name in names:
            file, target = self._unfinished(name), self.records.output / name
            sizes[name] = file.stat().st_size
            target.parent.mkdir(parents=True, exist_ok=True)
            file.replace(target)
        return sizes

    # ---- one image

    def scene_maps(self, job: Job, scene: Scene) -> dict[str, SceneMap]:
        """The maps of a scene that are written while it is computed, by `place`.

        Raises:
            ValueError: If outlines for COCO are wanted, which are for images in memory.
        """
        if "coco" in self.kinds:
            raise ValueError(f"{job.file}: coco is for photographs; of scenes take geojson")
        maps = {}
        for head, table in self.tables.items():
            for kind in {"labels", *self.kinds} & {*MAPS}:
                classes = table if kind == "labels" else None
                maps[self.place(kind, head)] = SceneMap(
                    self._unfinished(f"{self.place(kind, head)}/{job.name}.tif"),
                    scene,
                    MAPS[kind],
                    bands=table.num_classes if kind == "probabilities" else None,
                    names=() if kind == "confidence" else table.names,
                    classes=classes,
                )
        return maps

    def write(self, job: Job, image: Any, result: Mapping[str, Any]) -> None:
        """Writes what is wanted of an image, and then its record.

        Args:
            image: Its pixels, or the `Scene`.
            result: By `place`, arrays or the `scene_maps`.
        """
        files, areas, annotations, size = [], [], [], image.shape[:2]

        def new(kind: str, head: str, suffix: str) -> Path:
            files.append(f"{self.place(kind, head)}/{job.name}{suffix}")
            return self._unfinished(files[-1])

        for head, table in self.tables.items():
            labels: Any = result[self.place("labels", head)]
            if isinstance(labels, SceneMap):
                for kind in {"labels", *self.kinds} & {*MAPS}:
                    result[self.place(kind, head)].close()
                    new(kind, head, ".tif")
                counts, labels = labels.counts, labels.file
            else:
                counts = np.bincount(labels.ravel(), minlength=256)
                self._write_maps(head, result, new)
            areas += [[head, name, i, int(counts[i])] for i, name in enumerate(table.names)]
            clear = [i for i, name in enumerate(table.names) if name.casefold() in self._clear]
            if "overlays" in self.kinds:
                photograph, shown = self._to_draw(image, labels)
                drawn = drawing.overlay(
                    photograph, shown, self._bright[head], alpha=self.alpha, clear=clear
                )
                new("overlays", head, ".png").write_bytes(png(drawn))
            if "geojson" in self.kinds:
                reference = image.reference if isinstance(image, Scene) else None
                write_geojson(
                    new("polygons", head, ".geojson"), regions(labels, clear), table, reference
                )
            if "coco" in self.kinds:
                annotations += [
                    [head, label, annotation(outline, size)]
                    for outline, label in regions(labels, clear)
                ]
        for name in [n for n in files if n.startswith("labels") and "labels" not in self.kinds]:
            files.remove(name)
            self._unfinished(name).unlink()
        suffix = job.file.suffix if job.frame is None else ".png"
        record = {"size": size, "areas": areas, "annotations": annotations}
        self._record(job, **record, image=f"{job.name}{suffix}", files=self._finish(files))

    def _write_maps(
        self, head: str, result: Mapping[str, Any], new: Callable[[str, str, str], Path]
    ) -> None:
        """Writes the maps of an image in memory."""
        maps: dict[str, Any] = {kind: result.get(self.place(kind, head)) for kind in MAPS}
        if "labels" in self.kinds:
            content = png(maps["labels"], self.tables[head].palette)
            new("labels", head, ".png").write_bytes(content)
        if "confidence" in self.kinds:
            new("confidence", head, ".png").write_bytes(png(maps["confidence"]))
        if "probabilities" in self.kinds:
            with new("probabilities", head, ".npz").open("wb") as file:
                names = np.array(self.tables[head].names)
                np.savez_compressed(file, probabilities=maps["probabilities"], classes=names)

    def _to_draw(
        self, image: Any, labels: Any
    ) -> tuple[UInt8[np.ndarray, "_ _ 3"], UInt8[np.ndarray, "_ _"]]:
        """The photograph and its labels, reduced if they are large."""
        if isinstance(image, Scene):
            size = reduced_size(image.shape[:2], MOST_SHOWN["scene"])
            return self.photograph(image.reduced(size)), read_reduced(labels, size)
        step = math.ceil(math.sqrt(math.prod(image.shape[:2]) / MOST_SHOWN["photograph"]))
        return self.photograph(image[::step, ::step]), labels[::step, ::step]

    def photograph(self, pixels: Shaped[np.ndarray, "h w ..."]) -> UInt8[np.ndarray, "h w 3"]:
        """What people see of an image."""
        way = self.predictor.inputs.preprocessing("image")
        is_rgb = way.range is None and way.channels == 3
        return to_rgb(pixels) if is_rgb else bands.picture(pixels, way.range)

    def write_logits(self, job: Job, logits: Float[np.ndarray, "h w"]) -> None:
        """Writes the logits of the heat map's class; `draw_heatmap` needs those of all images."""
        name = f"heatmaps/{job.name}.npy"
        with self._unfinished(name).open("wb") as file:
            np.save(file, logits.astype(np.float32))
        limits = [float(logits.min()), float(logits.max())]
        self._record(job, limits=limits, files=self._finish([name]))

    def draw_heatmap(self, job: Job, image: Any, limits: tuple[float, float]) -> None:
        """Writes a heat map on the scale of the set."""
        logits, name = (
            np.load(self.records.output / f"heatmaps/{job.name}.npy"),
            f"heatmaps/{job.name}.png",
        )
        drawn = drawing.heatmap(self.photograph(image), logits, limits=limits)
        self._unfinished(name).write_bytes(png(drawn))
        self._finish([name])

    def fail(self, job: Job, reason: str) -> None:
        """Records why there are no results of an image."""
        self._record(job, reason=reason)

    def _record(self, job: Job, **fields: Any) -> None:
        target = self.records.folder / f"{job.name}.json"
        target.parent.mkdir(parents=True, exist_ok=True)
        fields = {"name": job.name, "source": job.source, "settings": self.settings, **fields}
        temporary = self._unfinished(f"record/{job.name}.json")
        temporary.write_text(json.dumps(fields))
        temporary.replace(target)

    # ---- the set

    def write_videos(self, name: str, frames: int, rate: float) -> None:
        """Writes the overlays of a video's frames as a video, if all are there."""
        for head in self.tables:
            folder = self.records.output / self.place("overlays", head) / name
            pictures = [folder / f"{number:06}.png" for number in range(frames)]
            if pictures and all(picture.exists() for picture in pictures):
                target = f"{self.place('videos', head)}/{name}.mp4"
                drawn = (read_image(picture) for picture in pictures)
                videos.write_video(self._unfinished(target), drawn, rate)
                self._finish([target])

    def write_legends(self) -> None:
        """Writes the legend of each head, of all its classes."""
        for head, table in self._bright.items():
            name = f"{self.place('legend', head)}.png"
            drawing.legend(table).save(self._unfinished(name), format="PNG")
            self._finish([name])

    def write_scale(self, limits: tuple[float, float]) -> None:
        """Writes the scale of the heat maps."""
        head, number = self.heatmap or ("", 0)
        title = f"logits of {self.predictor.names(head)[number]}"
        drawing.color_bar(*limits, title).save(self._unfinished("heatmap_scale.png"), format="PNG")
        self._finish(["heatmap_scale.png"])

    def put_together(self) -> None:
        """Writes the files of the set, of all records in the folder.

        Several processes may be at their ends at once: who writes last has read all records.
        """
        names, before = self.records.names(), None
        while names != before:
            self._write_rows("areas.csv", AREAS, self._areas(names))
            self._write_rows("skipped.csv", SKIPPED, self._skipped(names))
            if "coco" in self.kinds:
                self._write_coco(names)
            names, before = self.records.names(), names
        shutil.rmtree(self.records.output / ".unfinished" / str(os.getpid()), ignore_errors=True)
        with contextlib.suppress(OSError):  # other processes are at work
            (self.records.output / ".unfinished").rmdir()

    def _areas(self, names: Iterable[str]) -> Iterator[list[Any]]:
        for name in names:
            areas = self.records.read(name).get("areas", [])
            of_head: dict[str, int] = {}
            for head, _, _, pixels in areas:
                of_head[head] = of_head.get(head, 0) + pixels
            for head, called, number, pixels in areas:
                share = pixels / max(1, of_head[head])
                yield [name, head, number, called, pixels, f"{share:.6f}"]

    def _skipped(self, names: Iterable[str]) -> Iterator[list[Any]]:
        for record in map(self.records.read, names):
            if "reason" in record:
                yield [record["source"]["file"], record["reason"]]

    def _write_rows(self, name: str, heading: list[str], rows: Iterator[list[Any]]) -> None:
        """Writes a table, or removes the one that was there if it has no row."""
        first = next(rows, None)
        if first is None:
            (self.records.output / name).unlink(missing_ok=True)
            return
        file = self._unfinished(name)
        with file.open("w", encoding="utf-8", errors="backslashreplace", newline="") as opened:
            writer = csv.writer(opened)
            writer.writerow(heading)
            writer.writerows([no_formula(cell) for cell in row] for row in (first, *rows))
        self._finish([name])

    def _write_coco(self, names: list[str]) -> None:
        """Writes the outlines of all images as one file of COCO."""
        ids = {}
        for head, table in self.tables.items():
            for label in range(table.num_classes):
                ids[head, label] = len(ids) + 1
        categories = [
            {"id": number, "name": self.tables[head].names[label], "supercategory": head}
            for (head, label), number in ids.items()
        ]
        numbers = itertools.count(1)

        def images() -> Iterator[dict[str, Any]]:
            for number, name in enumerate(names, start=1):
                if "annotations" in (record := self.records.read(name)):
                    height, width = record["size"]
                    fields = {"id": number, "file_name": record["image"]}
                    yield fields | {"height": height, "width": width}

        def annotations() -> Iterator[dict[str, Any]]:
            for number, name in enumerate(names, start=1):
                for head, label, fields in self.records.read(name).get("annotations", []):
                    if (head, label) in ids:  # not of other classes that were here before
                        numbered = {"id": next(numbers), "image_id": number}
                        yield numbered | {"category_id": ids[head, label], **fields}

        with self._unfinished("coco.json").open("w") as file:
            file.write(f'{{"categories": {json.dumps(categories)}')
            for name, items in (("images", images()), ("annotations", annotations())):
                _write_list(file, f', "{name}": ', items)
            file.write("}")
        self._finish(["coco.json"])


AREAS = ["image", "head", "number", "class", "pixels", "share"]
SKIPPED = ["file", "reason"]

# ======================================================================== formats


def no_formula(cell: Any) -> Any:
    """A cell of a table that no spreadsheet program takes for a formula: with an apostrophe."""
    return f"'{cell}" if isinstance(cell, str) and cell[:1] in set("=+-@\t\r") else cell


def png(
    pixels: UInt8[np.ndarray, "h w *c"], palette: UInt8[np.ndarray, "256 3"] | None = None
) -> bytes:
    """A PNG file of 8-bit grey, RGB, or numbers that a palette shows.

    Pillow would hold the interpreter's lock while it compresses, so that only one thread could.
    """
    height, width = pixels.shape[:2]
    rows = np.ascontiguousarray(pixels).reshape(height, -1)
    filtered = np.empty((height, 1 + rows.shape[1]), np.uint8)
    filtered[:, 0] = 0 if palette is not None else 2  # photographs: differences to the row above
    filtered[:, 1:] = rows
    if palette is None:
        filtered[1:, 1:] -= rows[:-1]
    kind = 3 if palette is not None else 2 if pixels.ndim == 3 else 0
    chunks = {b"IHDR": struct.pack(">IIBBBBB", width, height, 8, kind, 0, 0, 0)}
    if palette is not None:
        chunks[b"PLTE"] = palette.tobytes()
    chunks |= {b"IDAT": zlib.compress(filtered.data, 3), b"IEND": b""}
    content = [
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in chunks.items()
    ]
    return bands.PNG_START + b"".join(content)


def write_geojson(
    file: Path,
    outlines: Iterable[tuple[dict[str, Any], int]],
    classes: ClassTable,
    reference: str | None = None,
) -> None:
    """Writes outlines with their classes as GeoJSON: in pixels, or as the reference system says."""

    def features() -> Iterator[dict[str, Any]]:
        for outline, label in outlines:
            properties = {"class": classes.names[label], "number": label}
            yield {"type": "Feature", "properties": properties, "geometry": outline}

    with file.open("w") as opened:
        opened.write('{"type": "FeatureCollection"')
        if reference is not None:
            named = {"type": "name", "properties": {"name": reference}}
            opened.write(f', "crs": {json.dumps(named)}')
        _write_list(opened, ', "features": ', features())
        opened.write("}")


def annotation(outline: dict[str, Any], size: Size) -> dict[str, Any]:
    """A region as an annotation of COCO: a polygon, or where it has holes, runs of its mask."""
    rings = [np.array(ring)[:-1] for ring in outline["coordinates"]]
    after = [np.roll(ring, -1, axis=0) for ring in rings]
    sums = [
        (a[:, 0] * b[:, 1] - a[:, 1] * b[:, 0]).sum() for a, b in zip(rings, after, strict=True)
    ]
    areas = [float(abs(doubled)) / 2 for doubled in sums]
    low, high = rings[0].min(axis=0), rings[0].max(axis=0)
    segmentation: Any = [rings[0].ravel().tolist()]
    if len(rings) > 1:
        from rasterio import features

        mask: Any = features.rasterize([(outline, 1)], out_shape=size, dtype="uint8")
        mask = mask.T.ravel()  # by columns
        ends = np.flatnonzero(np.diff(mask, prepend=0, append=2))
        segmentation = {"size": [*size], "counts": np.diff(ends, prepend=0).tolist()}
    return {
        "segmentation": segmentation,
        "area": areas[0] - sum(areas[1:]),
        "bbox": [*low.tolist(), *(high - low).tolist()],
        "iscrowd": 0,
    }


def _write_list(file: TextIO, before: str, items: Iterable[dict[str, Any]]) -> None:
    """Writes a list of JSON, one item at a time."""
    file.write(f"{before}[")
    for number, item in enumerate(items):
        file.write(f"{',' if number else ''}\n{json.dumps(item)}")
    file.write("]")
