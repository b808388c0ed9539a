"""Segments photographs with a trained network, or shows where a class is seen.

    python predict.py --workdir=DIR IMAGES... --output=DIR [--stage=fcn8s] [--checkpoint=best]
    python predict.py --weights=FILE IMAGES... --output=DIR [--model=fcn8s] [--classes=FILE]
    python predict.py --weights=FILE IMAGES... --output=DIR --heatmap="tabby cat"
    python predict.py --workdir=runs/nyud_color_hha IMAGES... --output=DIR --depth=DIR
    python predict.py --workdir=DIR LARGE_IMAGE --output=DIR --tile=1024

IMAGES are files, or folders to search. Writes labels/NAME.png (class numbers, shown in the
classes' colours) and overlays/NAME.png (colours over the photograph), at the photographs' size;
with --heatmap instead heatmaps/NAME.png, the class's scores over the photograph. FILE holds
published weights of any kind that fcn_jax.weights.load reads, also of a classifier. For networks
that read depth or HHA, --depth names the folder of the 16-bit depth images, of the same names.
Large images are computed in tiles, with the same result; smaller tiles take less memory.
A file that cannot be read is reported, the others are done all the same, and the exit code is 1.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image

    from fcn_jax.classes import ClassTable
    from fcn_jax.inference.predictor import Predictor

    Advance = Callable[[int, int], object]  # called with the tiles that are done, and all
    Draw = Callable[[dict[str, np.ndarray], Advance], dict[str, Image.Image]]

SUFFIXES = {".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The command line's values."""
    parser = argparse.ArgumentParser(
        prog="predict.py",
        usage="python predict.py (--workdir=DIR | --weights=FILE) IMAGES... --output=DIR "
        "[options]; --help lists them",
        description="Segments photographs with a trained network, or shows where a class is seen.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("images", nargs="+", type=Path, help="image files, or folders to search")
    add("--output", required=True, type=Path, help="the folder for the results")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--workdir", help="the folder of a training run")
    source.add_argument("--weights", help="a weight file, of a classifier or an FCN")
    add("--stage", help="such as fcn16s; default: the last trained")
    add("--checkpoint", choices=("best", "last"), default="best", help="default: best")
    add("--model", help="the weights' network; default: as their layers suggest")
    add("--padding", help="of the weights' network; default: reference, of a classifier native")
    add("--feature", help="what weights of one input read: image (default) or hha")
    add("--classes", help="file of class names for --weights; default: by their number")
    add("--heatmap", help="draw the scores of this class: a name, HEAD/NAME, or a number from 0")
    add("--depth", type=Path, help="folder of the depth images, PNG of 16 bits in millimetres")
    add(
        "--precision",
        choices=("float32", "tf32", "bfloat16"),
        help="default: as in training, or float32",
    )
    add("--tile", type=int, help="largest side of a tile, in pixels; default: 2048")
    add("--camera", type=camera, help="fx,fy,cx,cy of the depth images; default: NYUDv2's")
    return parser.parse_intermixed_args(argv)


def camera(text: str) -> Any:
    """The camera matrix of four numbers from the command line."""
    import numpy as np

    try:
        fx, fy, cx, cy = map(float, text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not fx,fy,cx,cy") from None
    return np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1]])


def find_images(paths: Iterable[Path], output: Path) -> list[tuple[Path, Path]]:
    """Each image file once, with a name of its own for the results (no suffix).

    Files in folders keep their place in them; ``output`` is not searched. Where two files would
    get one name (a.jpg and a.png), later ones keep their suffix in it, or get a number.

    Raises:
        ValueError: If the folders hold no image.
    """
    paths = list(paths)
    found: dict[Path, Path] = {}
    for path in paths:
        inside = sorted(path.rglob("*")) if path.is_dir() else [path]
        for file in inside:
            if path.is_dir():
                ours = file.resolve().is_relative_to(output.resolve())
                hidden = file.name.startswith(".")  # such as ._a.jpg, which macOS leaves behind
                if ours or hidden or file.suffix.lower() not in SUFFIXES or not file.is_file():
                    continue
            name = file.relative_to(path) if path.is_dir() else Path(file.name)
            found.setdefault(file.resolve(), name)
    if not found:
        raise ValueError(f"no image in {', '.join(map(str, paths))}")
    taken: set[str] = set()
    return [(file, _unique(name, taken)) for file, name in found.items()]


def _unique(name: Path, taken: set[str]) -> Path:
    numbered = (name.with_name(f"{name.name}_{number}") for number in itertools.count(2))
    candidates = itertools.chain([name.with_suffix(""), name], numbered)
    # Some file systems take A and a for one name.
    chosen = next(c for c in candidates if str(c).casefold() not in taken)
    taken.add(str(chosen).casefold())
    return chosen


# ======================================================================== the network


@dataclasses.dataclass(frozen=True)
class Network:
    """What predicts.

    Attributes:
        title: What it is, for people.
        predictor: The network itself.
        tables: The classes of each head; their names alone matter for a classifier.
    """

    title: str
    predictor: Predictor
    tables: dict[str, list[str] | ClassTable]

    def names(self, head: str) -> list[str]:
        """The class names of a head."""
        table = self.tables[head]
        return table if isinstance(table, list) else list(table.names)


def load_network(args: argparse.Namespace) -> Network:
    """The network of a run, or of a weight file."""
    folder = Path(args.weights or "")
    if args.weights and folder.is_dir():  # a run's folder, or that of one of its stages
        args.workdir, args.weights = args.weights, None
        if folder.parent.name == "checkpoints":
            args.workdir, args.stage = folder.parent.parent, folder.name
    unused = ("model", "padding", "feature", "classes") if args.workdir else ("stage",)
    if given := [f"--{name}" for name in unused if getattr(args, name)]:
        source = "--workdir" if args.workdir else "--weights"
        raise ValueError(f"{', '.join(given)} has no meaning with {source}")
    network = load_run_network(args) if args.workdir else load_weights_network(args)
    if args.tile is None:
        return network
    predictor = dataclasses.replace(network.predictor, tile=args.tile)
    return dataclasses.replace(network, predictor=predictor)


def load_run_network(args: argparse.Namespace) -> Network:
    """The network of a run."""
    from fcn_jax.inference.predictor import Predictor
    from fcn_jax.runs import load_run

    run = load_run(args.workdir, args.stage, args.checkpoint, args.precision)
    return Network(f"{run.stage} step {run.step}", Predictor.from_run(run), dict(run.heads))


def load_weights_network(args: argparse.Namespace) -> Network:
    """The network that a file's layers tell."""
    from fcn_jax import classes, data, weights
    from fcn_jax.inference.predictor import Predictor
    from fcn_jax.models.decoders import DECODERS

    loaded = weights.load(args.weights)
    model = weights.network_of(loaded, args.model, args.padding)
    model = model.clone(precision=args.precision or model.precision)
    inputs = weights.usual_inputs(loaded, model, args.feature)
    predictor = Predictor(model, {"params": weights.params_of(loaded, model)}, inputs)
    if args.model is None and model.decoder == DECODERS["fcn8s"]:
        print("predict.py: taken for fcn8s; if it is fcn8s_atonce, say --model=fcn8s_atonce")
    tables: dict[str, list[str] | ClassTable] = {}
    for head, number in model.heads:
        names = data.usual_names(number)
        if args.classes:
            names = classes.read_names(args.classes)
            if len(model.heads) > 1 or len(names) != number:
                raise ValueError(
                    f"{args.classes} names {len(names)} classes, the network has "
                    + " and ".join(str(count) for _, count in model.heads)
                )
        tables[head] = names if model.classifies else classes.table_from_names(names)
    return Network(loaded.kind, predictor, tables)


def find_class(wanted: str, network: Network) -> tuple[str, int]:
    """The head and the number of a class, by its name, a part of it, or the number.

    Raises:
        ValueError: If no class or several are meant; the message lists some.
    """
    head_name, _, name = wanted.rpartition("/")
    heads = [head_name] if head_name in network.tables else list(network.tables)
    name = name if head_name in network.tables else wanted
    every = [(head, i, text) for head in heads for i, text in enumerate(network.names(head))]
    tests: list[Callable[[int, str], bool]] = [
        lambda number, text: str(number) == name,
        lambda number, text: text.casefold() == name.casefold(),
        lambda number, text: name.casefold() in [p.strip().casefold() for p in text.split(",")],
        lambda number, text: name.casefold() in text.casefold(),
    ]
    for fits in tests:
        found = [(head, number, text) for head, number, text in every if fits(number, text)]
        if len(found) == 1:
            return found[0][:2]
        if found:
            meant = ", ".join(
                f"{head}/{text}" if len(heads) > 1 else text for head, _, text in found
            )
            raise ValueError(f"--heatmap={wanted} may mean {meant}; give one of them")
    known = ", ".join(text for _, _, text in every[:20])
    hint = "" if not known.startswith("class 0") else "; --classes=FILE gives them names"
    raise ValueError(f"--heatmap={wanted}: there is no such class; there are {known} …{hint}")


# ======================================================================== pictures


def draw_labels(network: Network, features: Any, progress: Advance) -> Any:
    """Label map and overlay of an image, by folder; for each head."""
    from PIL import Image

    from fcn_jax import drawing

    tables: Any = network.tables
    labels = network.predictor.labels(features, progress=progress)
    labels = labels if isinstance(labels, dict) else {next(iter(tables)): labels}
    pictures = {}
    for head, values in labels.items():
        suffix = f"_{head}" if len(labels) > 1 else ""
        overlay = drawing.overlay(features["image"], values, tables[head])
        pictures[f"labels{suffix}"] = drawing.palette_image(values, tables[head])
        pictures[f"overlays{suffix}"] = Image.fromarray(overlay)
    return pictures


def draw_heatmap(
    predictor: Predictor, head: str, number: int, features: Any, progress: Advance
) -> Any:
    """The scores of a class over an image."""
    from PIL import Image

    from fcn_jax import drawing

    scores = predictor.score_map(features, number, head, progress=progress)
    return {"heatmaps": Image.fromarray(drawing.heatmap(features["image"], scores))}


def read_features(
    file: Path, name: Path, wanted: tuple[str, ...], depth_folder: Path | None, camera: Any
) -> Any:
    """An image, and depth and HHA where the network reads them."""
    from fcn_jax.data.hha import hha, nyu_camera
    from fcn_jax.data.images import read_depth, read_image

    features = {"image": read_image(file)}
    if depth_folder is not None:
        depth = depth_folder / f"{name}.png"
        features["depth"] = read_depth(depth)
        if features["depth"].shape != features["image"].shape[:2]:
            raise ValueError(f"{depth} and {file} differ in size")
    if "hha" in wanted:
        if camera is None:
            try:
                camera = nyu_camera(*features["depth"].shape)
            except ValueError as error:
                raise ValueError(f"{file}: {error}; give --camera=fx,fy,cx,cy") from None
        features["hha"] = hha(features["depth"], camera)
    return features


# ======================================================================== the program


def main(argv: list[str] | None = None) -> int:
    """Predicts, and returns the exit code."""
    args = parse(argv)

    import functools

    from absl import logging

    from fcn_jax.devices import keep_compiled_programs

    logging.set_verbosity(logging.ERROR)  # below it orbax tells a great deal
    keep_compiled_programs()
    try:
        files = find_images(args.images, args.output)
        network = load_network(args)
        title, predictor = network.title, network.predictor
        if args.heatmap:
            head, number = find_class(args.heatmap, network)
            title = f"{title}: {network.names(head)[number]}"
            draw: Draw = functools.partial(draw_heatmap, predictor, head, number)
        elif predictor.classifies:
            raise ValueError(f"{title} is a classifier: give --heatmap=CLASS")
        else:
            draw = functools.partial(draw_labels, network)
        needs_depth = bool({"depth", "hha"} & set(predictor.modalities))
        if needs_depth and args.depth is None:
            raise ValueError(f"{title} reads {', '.join(predictor.modalities)}: give --depth=DIR")
        read = functools.partial(
            read_features,
            wanted=predictor.modalities,
            depth_folder=args.depth if needs_depth else None,
            camera=args.camera,
        )
        args.output.mkdir(parents=True, exist_ok=True)
    except (ValueError, OSError) as error:
        print(f"predict.py: {error}", file=sys.stderr)
        return 2
    failed = predict(files, args.output, read, draw, title)
    print(f"{len(files) - failed} of {len(files)} images in {args.output}")
    return 1 if failed else 0


def predict(
    files: list[tuple[Path, Path]],
    output: Path,
    read: Callable[[Path, Path], Any],
    draw: Draw,
    title: str,
) -> int:
    """Draws every file; returns how many could not be."""
    import jax
    from rich.progress import Progress

    failed = 0
    with Progress() as bars:
        total = bars.add_task(title, total=len(files))
        for file, name in files:
            tiles = bars.add_task(f"tiles of {file.name}", total=None, visible=False)

            def show(done: int, number: int, tiles: Any = tiles) -> None:
                bars.update(tiles, completed=done, total=number, visible=True)

            try:
                for kind, picture in draw(read(file, name), show).items():
                    target = output / kind / f"{name}.png"
                    target.parent.mkdir(parents=True, exist_ok=True)
                    picture.save(target)
            except (ValueError, OSError) as error:
                failed += 1
                named = "" if str(file) in str(error) else f"{file}: "
                print(f"predict.py: {named}{error}", file=sys.stderr)
            except (MemoryError, jax.errors.JaxRuntimeError) as error:
                failed += 1
                reason = str(error)[:200]
                print(f"predict.py: {file}: too large? {reason}; try --tile=1024", file=sys.stderr)
            bars.remove_task(tiles)
            bars.advance(total)
    return failed
