"""From files to files: images are read and results written in threads beside the device.

`find_images` says which files there are and what their results are called; `predict_files` predicts
them. Threads read ahead, the predictor batches and computes, other threads encode and write; how
many images wait between them is bounded. Several processes divide the images by their names
(`share_of`) and tell each other nothing: when one ends early, the others end with their own parts,
and the next run that leaves out what is done does the rest.
"""

from __future__ import annotations

import collections
import dataclasses
import hashlib
import itertools
import math
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias, TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import Array

from fcn_jax.canvas import Batch, CanvasImage, Size
from fcn_jax.data.bands import MOST_PIXELS
from fcn_jax.data.hha import hha, nyu_camera
from fcn_jax.data.images import image_files, read_depth, read_pixels, skipped_files
from fcn_jax.devices import Launch
from fcn_jax.inference.compute import Network, compute
from fcn_jax.inference.outputs import Job, Outputs
from fcn_jax.inference.predictor import Predictor
from fcn_jax.inference.scenes import Scene, is_scene
from fcn_jax.inference.videos import VIDEO_SUFFIXES, Video
from fcn_jax.programs import Programs

# ======================================================================== which images


@dataclasses.dataclass
class Found:
    """The images and videos to predict, and what is to be told of others.

    Attributes:
        jobs: Each image once, with a name of its own for its results.
        videos: Likewise; the results of a frame are called NAME/000000.
        notes: A line for each file that is left out, or whose results have an unexpected name.
    """

    jobs: list[Job]
    videos: list[Job]
    notes: list[str]


def find_images(
    paths: Sequence[Path], output: Path, taken_by: Callable[[str], str | None] = lambda name: None
) -> Found:
    """Finds the images that are given as files or in folders.

    Files in folders keep their place in them; ``output`` is not searched. Where two files would
    get one name (a.jpg and a.png), later ones keep their suffix in it, or get a number.

    Args:
        taken_by: Tells which other file's results of an earlier run have a name already.

    Raises:
        ValueError: If there is no image.
    """
    names: dict[Path, Path] = {}
    notes = []
    for given in paths:
        if not given.is_dir():
            names.setdefault(given.resolve(), Path(given.name))
            continue
        inside = (f for f in sorted(given.rglob("*")) if f.is_file())
        inside = [f for f in inside if not f.resolve().is_relative_to(output.resolve())]
        images, reasons = {*image_files(given, "**/*")}, skipped_files(given, "**/*")
        others = []
        for file in inside:
            if file in images:
                first = names.setdefault(file.resolve(), file.relative_to(given))
                if first != file.relative_to(given):
                    notes.append(f"{file}: left out, it is the same file as {first}")
            elif file in reasons:
                notes.append(f"{file}: left out, {reasons[file]}")
            elif file.suffix.lower() in VIDEO_SUFFIXES:
                notes.append(f"{file}: left out, a video is predicted if it is given by its name")
            else:
                others.append(file.relative_to(given).as_posix())
        if others:
            some = ", ".join(others[:5]) + (", …" if len(others) > 5 else "")
            notes.append(f"{given}: {len(others)} files are no images: {some}")
    if not names:
        raise ValueError(f"no image in {', '.join(map(str, paths))}")
    found: dict[str, Job] = {}  # some file systems take A and a for one name
    folders = {str(parent).casefold() for name in names.values() for parent in name.parents}
    videos = {file for file in names if file.suffix.lower() in VIDEO_SUFFIXES}

    def is_free(name: Path, file: Path) -> bool:
        job, folded = Job(file, name.as_posix()), str(name).casefold()
        first_result = f"{job.name}/000000" if file in videos else job.name
        taken = folded in found or (file in videos and folded in folders)
        return not taken and taken_by(first_result) in (None, job.source["file"])

    for file, name in sorted(names.items(), key=lambda item: item[0] in videos):
        plain = name.with_suffix("")
        numbered = (name.with_name(f"{name.name}_{number}") for number in itertools.count(2))
        candidates = itertools.chain([plain, name], numbered)
        chosen = next(candidate for candidate in candidates if is_free(candidate, file))
        if chosen != plain:
            notes.append(f"{file}: its results are called {chosen}; {plain} is another image's")
        found[str(chosen).casefold()] = Job(file, chosen.as_posix())
    jobs = list(found.values())
    return Found(
        [job for job in jobs if job.file not in videos],
        [job for job in jobs if job.file in videos],
        notes,
    )


def share_of(jobs: Sequence[Job], launch: Launch) -> list[Job]:
    """This process's part of the images, by the order of hashes: another one in each launch.

    So what a process that ended early has left is divided anew by the next run.
    """

    def rank(job: Job) -> bytes:
        named = f"{launch.name}/{job.name}".encode(errors="backslashreplace")
        return hashlib.sha256(named).digest()

    own = {job.name for job in sorted(jobs, key=rank)[launch.this :: launch.number]}
    return [job for job in jobs if job.name in own]


# ======================================================================== reading


class Image(NamedTuple):
    """An image that has been read."""

    pixels: Any  # or the `Scene`
    arrays: dict[str, Any]  # by modality, as `Predictor.parts` takes them


@dataclasses.dataclass(frozen=True)
class Reader:
    """Reads an image, and depth and HHA where the network does.

    Attributes:
        depth: The folder of the depth images, of the same names as the results.
        camera: Of the depth images, the matrix; None is NYUDv2's.
        scenes: Whether georeferenced and giant TIFF files are read in windows.
    """

    predictor: Predictor
    depth: Path | None = None
    camera: Any = None
    scenes: bool = True

    def __call__(self, job: Job) -> Image:
        """An image.

        Raises:
            ValueError: If a file cannot be read, or is of no image that the network reads; it is
                named.
        """
        inputs = self.predictor.inputs
        wanted, channels = inputs.modalities, inputs.preprocessing("image").channels
        in_windows = self.scenes and tuple(wanted) == ("image",)
        if job.frame is not None:
            pixels: Any = job.frame
        elif in_windows and is_scene(job.file):
            pixels = Scene(job.file, channels)
            scaled = self.predictor.scale != 1 or self.predictor.scales != (1,)
            if scaled and math.prod(pixels.shape[:2]) > MOST_PIXELS:
                raise ValueError(
                    f"{job.file} is too large to be scaled at once: take a network that was "
                    "trained at scale 1, without --scales, or cut the file"
                )
        else:
            pixels = read_pixels(job.file, alpha="drop" if channels == 3 else "band")
        arrays: dict[str, Any] = {"image": pixels}
        if self.depth is not None and {"depth", "hha"} & {*wanted}:
            depth = self.depth / f"{job.name}.png"
            arrays["depth"] = read_depth(depth)
            if arrays["depth"].shape != pixels.shape[:2]:
                raise ValueError(f"{depth} and {job.file} differ in size")
            if "hha" in wanted:
                arrays["hha"] = hha(arrays["depth"], self._camera(arrays["depth"].shape))
        return Image(pixels, self.predictor.opened(arrays))

    def _camera(self, size: Size) -> Any:
        if self.camera is not None:
            return self.camera
        try:
            return nyu_camera(*size)
        except ValueError as error:
            raise ValueError(f"{error}; give --camera=fx,fy,cx,cy") from None


T = TypeVar("T")


def read_ahead(
    pool: ThreadPoolExecutor, read: Callable[[Job], T], jobs: Iterable[Job], number: int
) -> Iterator[tuple[Job, Future[T]]]:
    """Images in their order, of which so many are being read or wait."""
    waiting: collections.deque[tuple[Job, Future[T]]] = collections.deque()
    for job in jobs:
        waiting.append((job, pool.submit(read, job)))
        if len(waiting) > number:
            yield waiting.popleft()
    while waiting:
        yield waiting.popleft()


# ======================================================================== predicting


Places: TypeAlias = tuple[tuple[str, str, str], ...]
"""Of each map its name, the head, and the kind: labels, confidence or probabilities."""


class Work(NamedTuple):
    """What is done with images."""

    outputs: Outputs
    read: Reader
    fail: Callable[[Job, BaseException], object]  # told of an image that there are no results of
    progress: Callable[[float], object]  # told how many images are done, and of tiles a fraction
    threads: int = os.cpu_count() or 1  # that read, and as many that write


def predict_files(work: Work, jobs: Iterable[Job]) -> None:
    """Predicts images and writes their outputs, all but what is of the set.

    Raises:
        OSError: If something cannot be written.
    """
    outputs, predictor = work.outputs, work.outputs.predictor
    kinds = {"labels", *outputs.kinds} & {"labels", "confidence", "probabilities"}
    places = tuple(
        (outputs.place(kind, head), head, kind) for head in outputs.tables for kind in sorted(kinds)
    )
    failed = 0

    def parts() -> Iterator[CanvasImage]:
        nonlocal failed
        ahead = 2 * work.threads + predictor.batch_size
        for job, reading in read_ahead(readers, work.read, jobs, ahead):
            maps: dict[str, Any] = {}
            try:
                image = reading.result()
                if isinstance(image.pixels, Scene):
                    maps = outputs.scene_maps(job, image.pixels)
                yield from predictor.parts((job, image.pixels), image.arrays, maps)
            except (ValueError, OSError, MemoryError) as error:
                for each in maps.values():
                    each.discard()
                work.fail(job, error)
                failed += 1

    writing: collections.deque[Future[None]] = collections.deque()
    with (
        ThreadPoolExecutor(work.threads, "read") as readers,
        ThreadPoolExecutor(work.threads, "write") as writers,
    ):
        batches = predictor.each_batch(parts(), predictor.starting(predict_batch, places=places))
        progress: Any = lambda done: work.progress(done + failed)  # noqa: E731
        for computed in predictor.put_together(batches, progress):
            job, pixels = computed.source
            writing.append(writers.submit(outputs.write, job, pixels, computed.result))
            if len(writing) > 2 * work.threads:
                writing.popleft().result()
        while writing:
            writing.popleft().result()


def _compute_places(
    variables: Any,
    batches: tuple[Batch, ...],
    *,
    network: Network,
    canvas: Size,
    places: Places,
) -> dict[str, Array]:
    """The maps of a batch by name."""
    logits = compute(variables, batches, network=network, canvas=canvas, kind="logits")
    results = {}
    for place, head, kind in places:
        if kind == "labels":
            results[place] = jnp.argmax(logits[head], axis=-1).astype(jnp.uint8)
        elif kind == "confidence":
            largest = jax.nn.softmax(logits[head], axis=-1).max(axis=-1)
            results[place] = jnp.round(255 * largest).astype(jnp.uint8)
        else:
            results[place] = jax.nn.softmax(logits[head], axis=-1).astype(jnp.float16)
    return results


predict_batch = Programs(_compute_places)


def predict_video(work: Work, video: Job, before: int, *, resume: bool) -> int:
    """Predicts the frames of a video, and makes a video of their overlays: videos/NAME.mp4.

    Args:
        before: How many images were done before it.
        resume: Whether frames that are done are left out.

    Returns:
        The number of frames, 1 if it cannot be read.
    """
    outputs, number = work.outputs, 0
    try:
        opened = Video(video.file)
    except ValueError as error:
        work.fail(video, error)
        return 1

    def frames() -> Iterator[Job]:
        nonlocal number
        try:
            for frame in opened:
                job = Job(video.file, f"{video.name}/{number:06}", frame)
                number += 1
                if not (resume and outputs.is_done(job)):
                    yield job
        except ValueError as error:
            work.fail(video, error)

    predict_files(work._replace(progress=lambda done: work.progress(before + done)), frames())
    if "overlays" in outputs.kinds:
        outputs.write_videos(video.name, number, opened.rate)
    return number


def predict_heatmaps(work: Work, jobs: Sequence[Job], own: Iterable[Job]) -> int:
    """Computes a class's logits over a process's ``own`` images, and draws all on one scale.

    They are drawn when those of all ``jobs`` are there, by the process that ends last.

    Returns:
        How many images were still missing, so that nothing was drawn.
    """
    outputs, predictor = work.outputs, work.outputs.predictor
    assert outputs.heatmap is not None
    head, number = outputs.heatmap
    with ThreadPoolExecutor(work.threads) as pool:
        for done, (job, reading) in enumerate(read_ahead(pool, work.read, own, work.threads)):
            progress: Any = lambda part, before=done: work.progress(before + part)  # noqa: E731
            try:
                arrays = reading.result().arrays
                logits = predictor.class_map(arrays, number, head, progress=progress)
            except (ValueError, MemoryError) as error:
                work.fail(job, error)
                continue
            outputs.write_logits(job, logits)
        records = {job: outputs.records.read(job.name) for job in jobs}
        there = [r for r in records.values() if r.get("settings") == outputs.settings]
        limits = [record["limits"] for record in there if "limits" in record]
        if len(there) < len(jobs) or not limits:
            return len(jobs) - len(there)
        low, high = min(low for low, _ in limits), max(high for _, high in limits)
        outputs.write_scale((low, high))
        drawn = [job for job, record in records.items() if "limits" in record]
        for job, reading in read_ahead(pool, work.read, drawn, work.threads):
            outputs.draw_heatmap(job, reading.result().pixels, (low, high))
    return 0
