"""Segments photographs with a trained network.

    python predict.py --workdir=DIR IMAGES... --output=DIR [--stage=fcn8s] [--checkpoint=best]

IMAGES are files, or folders to search. Writes labels/NAME.png (class numbers, shown in the
classes' colours) and overlays/NAME.png (colours over the photograph), at the photographs' size.
A file that cannot be read is reported, the others are done all the same, and the exit code is 1.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Iterable
from pathlib import Path

SUFFIXES = {".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The command line's values."""
    parser = argparse.ArgumentParser(
        prog="predict.py",
        usage="python predict.py --workdir=DIR IMAGES... --output=DIR [options]; --help lists them",
        description="Segments photographs with a trained network.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("images", nargs="+", type=Path, help="image files, or folders to search")
    add("--workdir", required=True, help="the folder of a training run")
    add("--output", required=True, type=Path, help="the folder for labels and overlays")
    add("--stage", help="such as fcn16s; default: the last trained")
    add("--checkpoint", choices=("best", "last"), default="best", help="default: best")
    return parser.parse_intermixed_args(argv)


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


def main(argv: list[str] | None = None) -> int:
    """Predicts, and returns the exit code."""
    args = parse(argv)

    import jax
    from absl import logging
    from PIL import Image
    from rich.progress import track

    from fcn_jax import drawing
    from fcn_jax.data.images import read_image
    from fcn_jax.inference import Predictor
    from fcn_jax.training.checkpoints import load_run

    logging.set_verbosity(logging.ERROR)  # below it orbax tells a great deal
    try:
        files = find_images(args.images, args.output)
        run = load_run(args.workdir, args.stage, args.checkpoint)
        args.output.mkdir(parents=True, exist_ok=True)
    except (ValueError, OSError) as error:
        print(f"predict.py: {error}", file=sys.stderr)
        return 2

    predictor = Predictor.from_run(run)
    failed = 0
    for file, name in track(files, f"{run.stage} step {run.step}"):
        try:
            image = read_image(file)
            labels = predictor.labels(image)
            overlay = Image.fromarray(drawing.overlay(image, labels, run.classes))
            for kind, picture in (
                ("labels", drawing.palette_image(labels, run.classes)),
                ("overlays", overlay),
            ):
                target = args.output / kind / f"{name}.png"
                target.parent.mkdir(parents=True, exist_ok=True)
                picture.save(target)
        except (ValueError, OSError) as error:
            failed += 1
            print(f"predict.py: {error}", file=sys.stderr)
        except (MemoryError, jax.errors.JaxRuntimeError) as error:
            failed += 1
            print(f"predict.py: {file}: too large? {str(error)[:200]}", file=sys.stderr)
    print(f"{len(files) - failed} of {len(files)} images in {args.output}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
