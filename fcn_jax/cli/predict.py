"""Segments photographs with a trained network, or shows where a class is seen.

    fcn-jax predict --workdir=DIR IMAGES... --output=DIR [--stage=fcn8s] [--checkpoint=best]
    fcn-jax predict --weights=FILE IMAGES... --output=DIR [--model=fcn8s] [--classes=FILE]
    fcn-jax predict --weights=FILE IMAGES... --output=DIR --heatmap="tabby cat"
    fcn-jax predict --weights=caffe:fcn8s-heavy-pascal IMAGES... --output=DIR
    fcn-jax predict --workdir=runs/nyud_color_hha IMAGES... --output=DIR --depth=DIR
    fcn-jax predict --workdir=DIR LARGE_IMAGE --output=DIR --tile=1024

IMAGES are files, or folders to search. Writes labels/NAME.png (class numbers, shown in the
classes' colours) and overlays/NAME.png (colours over the photograph), at the photographs' size;
with --heatmap instead heatmaps/NAME.png, the class's logits over the photograph. FILE holds
published weights of any kind that fcn_jax.load_weights reads, also of a classifier; or it is a name
that fcn-jax weights lists, or hf:OWNER/REPO of the Hugging Face Hub. For networks that read depth
or HHA, --depth names the folder of the 16-bit depth images, of the same names.
Large images are computed in tiles, with the same result; smaller tiles take less memory.
--flip and --scales average the probabilities of several views of each image.
A file that cannot be read is reported, the others are done all the same, and the exit code is 1.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import logging
from jaxtyping import Float
from PIL import Image
from rich.progress import Progress

import fcn_jax
from fcn_jax import drawing
from fcn_jax.cli import add_views, path, program, told_in_one_line
from fcn_jax.data import bands
from fcn_jax.data.hha import hha, nyu_camera
from fcn_jax.data.images import image_files, read_depth, read_pixels, to_rgb
from fcn_jax.devices import find_devices, keep_compiled_programs
from fcn_jax.inference.predictor import describe_views
from fcn_jax.models.decoders import DECODERS
from fcn_jax.models.inputs import Inputs
from fcn_jax.weights import is_name

LOADED = (
    *("stage", "which", "network", "padding", "modality", "classes", "precision", "tile"),
    *("value_range", "allow_code", "flip", "scales"),
)


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
    add("--stage", help="such as fcn16s; default: the last trained")
    add(
        "--checkpoint", dest="which", choices=("best", "last"), default="best", help="default: best"
    )
    add("--model", dest="network", help="the weights' network; default: as their layers suggest")
    paddings, usual = ("reference", "same", "native"), "reference, of a classifier native"
    add("--padding", choices=paddings, help=f"of the weights' network; default: {usual}")
    add("--modality", choices=("image", "hha"), help="what weights of one input read")
    add("--classes", type=path, help="file of class names for --weights; default: by their number")
    add("--heatmap", help="draw the logits of this class: a name, HEAD/NAME, or a number from 0")
    add("--depth", type=path, help="folder of the depth images, PNG of 16 bits in millimetres")
    precisions = ("float32", "tf32", "bfloat16")
    add("--precision", choices=precisions, help="default: as in training, or float32")
    add("--tile", type=int, default=2048, help="largest side of a tile in pixels; default: 2048")
    add_views(parser)
    add("--allow_code", action="store_true", help="run the file of the run's own backbone")
    add("--camera", type=camera, help="fx,fy,cx,cy of the depth images; default: NYUDv2's")
    add(
        "--value_range",
        type=value_range,
        metavar="LOW,HIGH",
        help="values of the images that are black and white; default: as in training",
    )
    return parser.parse_intermixed_args(argv)


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


def find_images(paths: Sequence[Path], output: Path) -> list[tuple[Path, Path]]:
    """Each image file once, with a name of its own for the results (no suffix).

    Files in folders keep their place in them; ``output`` is not searched. Where two files would
    get one name (a.jpg and a.png), later ones keep their suffix in it, or get a number.

    Raises:
        ValueError: If the folders hold no image.
    """
    names: dict[Path, Path] = {}
    for given in paths:
        for file in image_files(given, "**/*") if given.is_dir() else [given]:
            if given.is_dir() and file.resolve().is_relative_to(output.resolve()):
                continue
            name = file.relative_to(given) if given.is_dir() else Path(file.name)
            names.setdefault(file.resolve(), name)
    if not names:
        raise ValueError(f"no image in {', '.join(map(str, paths))}")
    found: dict[str, tuple[Path, Path]] = {}  # some file systems take A and a for one name
    for file, name in names.items():
        numbered = (name.with_name(f"{name.name}_{number}") for number in itertools.count(2))
        candidates = itertools.chain([name.with_suffix(""), name], numbered)
        chosen = next(c for c in candidates if str(c).casefold() not in found)
        found[str(chosen).casefold()] = (file, chosen)
    return list(found.values())


def read_modalities(
    file: Path, name: Path, args: argparse.Namespace, inputs: Inputs
) -> dict[str, Any]:
    """An image, and depth and HHA where the network reads them."""
    wanted = inputs.modalities
    alpha = "band" if inputs.preprocessing("image").channels != 3 else "drop"
    arrays: dict[str, Any] = {"image": read_pixels(file, alpha=alpha)}
    if "depth" in wanted or "hha" in wanted:
        depth = args.depth / f"{name}.png"
        arrays["depth"] = read_depth(depth)
        if arrays["depth"].shape != arrays["image"].shape[:2]:
            raise ValueError(f"{depth} and {file} differ in size")
    if "hha" in wanted:
        try:
            matrix = nyu_camera(*arrays["depth"].shape) if args.camera is None else args.camera
        except ValueError as error:
            raise ValueError(f"{error}; give --camera=fx,fy,cx,cy") from None
        arrays["hha"] = hha(arrays["depth"], matrix)
    return arrays


def draw(
    predictor: fcn_jax.Predictor,
    arrays: dict[str, Any],
    chosen: tuple[str, int] | None,
    progress: Callable[[float], object],
) -> dict[str, Image.Image]:
    """By folder: label map and overlay of each head, or the heat map of a class (head, number)."""
    way = predictor.inputs.preprocessing("image")
    is_rgb = way.range is None and way.channels == 3
    photo = to_rgb(arrays["image"]) if is_rgb else bands.picture(arrays["image"], way.range)
    if chosen is not None:
        logits = predictor.class_map(arrays, chosen[1], chosen[0], progress=progress)
        return {"heatmaps": Image.fromarray(drawing.heatmap(photo, logits))}
    labels: Any = predictor(arrays, progress=progress)
    tables: Any = predictor.heads
    pictures = {}
    for head, table in tables.items():
        values, suffix = (labels, "") if len(tables) == 1 else (labels[head], f"_{head}")
        pictures[f"labels{suffix}"] = drawing.palette_image(values, table)
        pictures[f"overlays{suffix}"] = Image.fromarray(drawing.overlay(photo, values, table))
    return pictures


@told_in_one_line
def main(argv: Sequence[str] | None = None) -> int:
    """Predicts, and returns the exit code."""
    args = parse(argv)
    logging.set_verbosity(logging.FATAL)  # orbax tells a great deal, and errors twice
    keep_compiled_programs()
    find_devices()
    source = args.workdir or args.weights
    files = find_images(args.images, args.output)
    loaded = {name: getattr(args, name) for name in LOADED}
    predictor = fcn_jax.load(source, **loaded)
    suggested = args.weights and not is_name(source) and not args.network
    if suggested and predictor.model.decoder == DECODERS["fcn8s"]:
        print("taken for fcn8s; if it is fcn8s_atonce, say --model=fcn8s_atonce")
    chosen = predictor.find_class(args.heatmap) if args.heatmap else None
    if chosen is None and predictor.classifies:
        raise ValueError(f"{source} is a classifier: give --heatmap=CLASS")
    reads = predictor.inputs.modalities
    if not set(reads) <= {"image"} and args.depth is None:
        raise ValueError(f"{source} reads {', '.join(reads)}: give --depth=DIR")
    if views := describe_views(args.flip, args.scales):
        print(views)
    args.output.mkdir(parents=True, exist_ok=True)

    failed = 0
    title = "images" if chosen is None else predictor.names(chosen[0])[chosen[1]]
    with Progress() as bars:
        bar = bars.add_task(title, total=len(files))
        for number, (file, name) in enumerate(files):

            def show(done: float, before: int = number) -> None:
                bars.update(bar, completed=before + done)

            pictures = {}
            try:
                arrays = read_modalities(file, name, args, predictor.inputs)
                pictures = draw(predictor, arrays, chosen, show)
            except (ValueError, OSError, MemoryError, jax.errors.JaxRuntimeError) as error:
                reason = str(error)
                if not isinstance(error, ValueError | OSError):
                    remedy = "--tile=1024" if args.scales == (1.0,) else "fewer --scales"
                    reason = f"too large? {reason[:200]}; try {remedy}"
                reason = reason if str(file) in reason else f"{file}: {reason}"
                print(f"{program('predict')}: {reason}", file=sys.stderr)
                failed += 1
            for folder, picture in pictures.items():  # where one cannot be written, none can
                target = args.output / folder / f"{name}.png"
                target.parent.mkdir(parents=True, exist_ok=True)
                temporary = target.with_name(f".{target.name}.tmp")
                picture.save(temporary, format="PNG")
                temporary.replace(target)
            show(1)
    print(f"{len(files) - failed} of {len(files)} images in {args.output}")
    return 1 if failed else 0
