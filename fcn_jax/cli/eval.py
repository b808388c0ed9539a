"""Scores the networks of a run on whole images, and writes a report.

    fcn-jax eval --workdir=DIR [--split=SPLIT] [--stage=all] [--output=DIR] …

Prints the paper's four metrics, precision, F1, the loss, the IU of each image, boundary IU and F1,
and tables of all classes. Writes DIR/report: index.html to look at, scores.json, per_class.csv,
images_STAGE.csv, confusion matrices and pictures side by side.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence

from absl import logging

from fcn_jax import data
from fcn_jax.cli import add_views, path, program, told_in_one_line
from fcn_jax.config import data_options
from fcn_jax.devices import find_devices
from fcn_jax.programs import keep_compiled_programs


def count(text: str) -> int:
    """A number of images from the command line."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of images")
    return int(text)


def part(text: str) -> float:
    """A part of something from the command line."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not between 0 and 1")
    return value


@told_in_one_line
def main(argv: Sequence[str] | None = None) -> int:
    """Evaluates, and returns the exit code."""
    parser = argparse.ArgumentParser(
        prog=program("eval"),
        usage="%(prog)s --workdir=DIR [options]; --help lists them",
        description="Scores the networks of a run on whole images, and writes a report.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--workdir", required=True, type=path, help="the folder of a training run")
    add("--split", help="the images to score; default: the run's own evaluation split")
    add("--stage", default="all", help="such as fcn8s, or fcn32s,fcn8s; default: all trained")
    add("--checkpoint", choices=("best", "last"), default="best", help="default: best")
    add("--limit", type=count, default=0, help="score the first N images only; 0: all")
    add("--pictures", type=count, default=8, help="images to draw; default: 8")
    add("--precision", choices=("float32", "tf32", "bfloat16"), help="default: as in training")
    add(
        "--include_training_images",
        action="store_true",
        help="score images as well that the run was trained on; default: they are left out",
    )
    width = "how far from boundaries the boundary metrics look: part of an image's diagonal"
    add("--boundary_width", type=part, default=0.02, help=f"{width}; default: 0.02")
    add_views(parser)
    add("--allow_code", action="store_true", help="run the file of the run's own backbone")
    add("--output", type=path, help="the report's folder; default: WORKDIR/report")
    add("--data_dir", type=path, help="where data sets are prepared; default: as in training")
    add("--manual_dir", type=path, help="the data set's original files; default: as in training")
    args = parser.parse_args(argv)

    from fcn_jax.inference import report
    from fcn_jax.runs import read_config

    logging.set_verbosity(logging.FATAL)  # orbax tells a great deal, and errors twice
    keep_compiled_programs()
    find_devices()
    config = read_config(args.workdir)
    for field in ("data_dir", "manual_dir"):
        config[field] = str(getattr(args, field) or config[field])
    split = args.split or config.eval_split
    source = data.open_source(config.dataset, split, **data_options(config))
    report.evaluate_run(
        args.workdir,
        source,
        stages=None if args.stage == "all" else args.stage.split(","),
        which=args.checkpoint,
        output=args.output,
        limit=args.limit,
        pictures=args.pictures,
        precision=args.precision,
        include_training_images=args.include_training_images,
        boundary_width=args.boundary_width,
        flip=args.flip,
        scales=args.scales,
        allow_code=args.allow_code,
    )
    return 0
