"""Segments photographs, scenes and videos with a trained network, or shows where a class is seen.

    fcn-jax predict --workdir=DIR IMAGES... --output=DIR [--stage=fcn8s] [--checkpoint=best]
    fcn-jax predict --weights=FILE IMAGES... --output=DIR [--model=fcn8s] [--classes=FILE]
    fcn-jax predict --weights=FILE IMAGES... --output=DIR --heatmap="tabby cat"
    fcn-jax predict --weights=caffe:fcn8s-heavy-pascal IMAGES... --output=DIR
    fcn-jax predict --workdir=runs/nyud_color_hha IMAGES... --output=DIR --depth=DIR
    fcn-jax predict --workdir=DIR scene.tif --output=DIR --write=labels,geojson
    srun -n 4 fcn-jax predict --workdir=DIR IMAGES... --output=DIR --resume

IMAGES are files, or folders to search; also videos, and georeferenced TIFF files, whose results
keep the reference. Writes labels/NAME.png (class numbers, shown in the classes' colours),
overlays/NAME.png (bright colours over the photograph), confidence/NAME.png (probability of the
class that was chosen; 255 is certain), legend.png and areas.csv; --write chooses, and has more.
With --heatmap instead heatmaps/NAME.png: the class's logits over the photograph, on one scale.
FILE holds published weights of any kind that fcn_jax.load_weights reads, also of a classifier; or
it is a name that fcn-jax weights lists, or hf:OWNER/REPO of the Hugging Face Hub. For networks that
read depth or HHA, --depth names the folder of the 16-bit depth images, of the same names.
Large images are computed in tiles, with the same result; smaller tiles take less memory.
--flip and --scales average the probabilities of several views of each image.
Processes that srun or mpirun starts share the images. --resume leaves out what is done.
A file that cannot be read is reported, the others are done all the same, and the exit code is 1.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import jax
import numpy as np
from absl import logging
from jaxtyping import Float
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

import fcn_jax
from fcn_jax.cli import NETWORK, add_network, add_views, path, program, told_in_one_line
from fcn_jax.devices import find_devices, local_mesh, share_work
from fcn_jax.inference import pipeline
from fcn_jax.inference.compute import describe_views
from fcn_jax.inference.outputs import KINDS, USUAL, Job, Outputs, Records
from fcn_jax.models.decoders import DECODERS
from fcn_jax.programs import keep_compiled_programs
from fcn_jax.weights import is_name

LOADED = (*NETWORK, "tile", "value_range", "flip", "scales")


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line's values; those of `LOADED` are called as by `fcn_jax.load`."""
    parser = argparse.ArgumentParser(
        prog=program("predict"),
        usage="%(prog)s (--workdir=DIR | --weights=FILE) IMAGES... --output=DIR [options]; "
        "--help lists them",
        description="Segments photographs with a trained network, or shows where a class is seen.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("images", nargs="+", type=path, help="image files, or folders to search")
    add("--output", required=True, type=path, help="the folder for the results")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--workdir", type=path, help="the folder of a training run")
    source.add_argument("--weights", help="a weight file, of a classifier or an FCN, or its name")
    add_network(parser)
    add(
        "--write",
        type=kinds,
        default=USUAL,
        help=f"what, of {', '.join(KINDS)}; default: the first three",
    )
    add(
        "--alpha",
        type=float,
        default=0.5,
        help="weight of the colours in overlays, 0 to 1; default: 0.5",
    )
    clear = "classes without colour in overlays and without outlines; default: background"
    add("--clear", type=lambda text: tuple(filter(None, text.split(","))), help=clear)
    add(
        "--resume", action="store_true", help="leave out images that are done, by the same settings"
    )
    add("--heatmap", help="draw the logits of this class: a name, HEAD/NAME, or a number from 0")
    add("--depth", type=path, help="folder of the depth images, PNG of 16 bits in millimetres")
    add("--tile", type=int, default=2048, help="largest side of a tile in pixels; default: 2048")
    add_views(parser)
    add("--camera", type=camera, help="fx,fy,cx,cy of the depth images; default: NYUDv2's")
    add(
        "--value_range",
        type=value_range,
        metavar="LOW,HIGH",
        help="values of the images that are black and white; default: as in training",
    )
    return parser.parse_intermixed_args(argv)


def kinds(text: str) -> tuple[str, ...]:
    """What is to be written, from the command line."""
    chosen = tuple(text.split(","))
    if unknown := [kind for kind in chosen if kind not in KINDS]:
        known = ", ".join(KINDS)
        raise argparse.ArgumentTypeError(f"{unknown[0]!r} is none of {known}")
    return chosen


def value_range(text: str) -> tuple[float, float]:
    """The range of two numbers from the command line."""
    try:
        low, high = map(float, text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not LOW,HIGH") from None
    return low, high


def camera(text: str) -> Float[np.ndarray, "3 3"]:
    """The camera matrix of four numbers from the command line."""
    try:
        fx, fy, cx, cy = map(float, text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not fx,fy,cx,cy") from None
    return np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1]])


class Rate(ProgressColumn):
    """How many images are done in a second."""

    def render(self, task: Task) -> Text:
        """Of the last images, or of all once they are done."""
        speed = task.finished_speed or task.speed
        return Text(f"{speed:.1f} images/s" if speed else "")


@told_in_one_line
def main(argv: Sequence[str] | None = None) -> int:
    """Predicts, and returns the exit code."""
    args = parse(argv)
    logging.set_verbosity(logging.FATAL)  # orbax tells a great deal, and errors twice
    keep_compiled_programs()
    launch = share_work()
    find_devices()
    source = args.workdir or args.weights
    records = Records(args.output, args.heatmap is not None)
    found = pipeline.find_images(args.images, args.output, records.owner)
    loaded = {name: getattr(args, name) for name in LOADED}
    if (devices := jax.local_device_count()) > 1:
        loaded |= {"mesh": local_mesh(), "batch_size": 8 * devices}
    predictor = fcn_jax.load(source, **loaded)
    suggested = args.weights and not is_name(source) and not args.network
    if suggested and predictor.model.decoder == DECODERS["fcn8s"]:
        print("taken for fcn8s; if it is fcn8s_atonce, say --model=fcn8s_atonce")
    chosen = predictor.find_class(args.heatmap) if args.heatmap else None
    if chosen is None and predictor.classifies:
        raise ValueError(f"{source} is a classifier: give --heatmap=CLASS")
    if chosen is not None and found.videos:
        raise ValueError(f"{found.videos[0].file}: heat maps are of images, not of videos")
    reads = predictor.inputs.modalities
    if not set(reads) <= {"image"} and args.depth is None:
        raise ValueError(f"{source} reads {', '.join(reads)}: give --depth=DIR")
    outputs = Outputs(
        records, predictor, args.write, alpha=args.alpha, clear=args.clear, heatmap=chosen
    )
    notes = found.notes if launch.this == 0 else []
    if black_to_white := predictor.inputs.preprocessing("image").range:
        ranges = ", ".join(f"{low:g}..{high:g}" for low, high in dict.fromkeys(black_to_white))
        given = "as given" if args.value_range else "as in training"
        notes = [*notes, f"the images' values are black to white over {ranges}, {given}"]
    for text in filter(None, (describe_views(args.flip, args.scales), *notes)):
        print(text)
    args.output.mkdir(parents=True, exist_ok=True)
    drawing = ThreadPoolExecutor(1, "legend")  # beside the first images
    legends = drawing.submit(outputs.write_legends)

    own = pipeline.share_of(found.jobs, launch)
    left = [job for job in own if not (args.resume and outputs.is_done(job))]
    if args.resume:
        print(f"{len(own) - len(left)} of {len(own)} images were done before")
    own_videos = pipeline.share_of(found.videos, launch)
    started, failed = time.monotonic(), 0
    title = "images" if chosen is None else predictor.names(chosen[0])[chosen[1]]
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), Rate())
    with Progress(*columns, TimeRemainingColumn(), disable=launch.this > 0) as bars:
        bar = bars.add_task(title, total=len(left))

        def fail(job: Job, error: BaseException) -> None:
            nonlocal failed
            reason = str(error) or type(error).__name__
            if isinstance(error, MemoryError):
                reason = f"too large for the memory: {reason[:200]}; try --tile=1024"
            reason = reason if str(job.file) in reason else f"{job.file}: {reason}"
            print(f"{program('predict')}: {reason}", file=sys.stderr)
            outputs.fail(job, reason)
            failed += 1

        reader = pipeline.Reader(predictor, args.depth, args.camera, scenes=chosen is None)
        work = pipeline.Work(outputs, reader, fail, lambda done: bars.update(bar, completed=done))
        missing, done = 0, len(left)
        if chosen is not None:
            legends.result()  # Matplotlib draws one figure at a time
            missing = pipeline.predict_heatmaps(work, found.jobs, left)
        else:
            pipeline.predict_files(work, left)
            for video in own_videos:
                done += pipeline.predict_video(work, video, done, resume=args.resume)
    legends.result()
    outputs.put_together()
    if missing:
        print(
            f"{missing} images are left to other processes: the last of these draws the heat maps"
        )
    who = f"process {launch.this} of {launch.number}: " if launch.number > 1 else ""
    rate = (done - failed) / max(1e-9, time.monotonic() - started)
    print(f"{who}{done - failed} of {done} images in {args.output}, {rate:.3g} images/s")
    return 1 if failed else 0
