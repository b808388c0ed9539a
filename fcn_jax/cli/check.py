"""``fcn-jax check DIR``: checks your own images and masks before training."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from fcn_jax.classes import VOID
from fcn_jax.data import folder


def main(argv: Sequence[str] | None = None) -> int:
    """Prints what a folder holds and all of its problems; returns 0 if there are none."""
    parser = argparse.ArgumentParser(
        prog="fcn-jax check",
        description="Check your own images and masks before training.",
        argument_default=argparse.SUPPRESS,  # what is not given is left to `folder.plan`
    )
    parser.add_argument("dir", type=Path, help="the folder of the data (manual_dir)")
    parser.add_argument("--classes", help="class file: csv, json, or one name a line")
    parser.add_argument("--images", help="glob of the images, relative to DIR")
    parser.add_argument("--masks", help="glob of the masks, relative to DIR")
    parser.add_argument("--mask_kind", help="auto, index or color")
    parser.add_argument("--first_id", type=int, help="id of the first class in masks")
    parser.add_argument("--void", type=int, nargs="*", help="further void ids")
    parser.add_argument("--seed", type=int, help="of the cut 8:1:1")
    options = vars(parser.parse_args(argv))

    try:
        found = folder.plan(options.pop("dir").expanduser().absolute(), **options)
    except (ValueError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    problems, pixels = found.check()
    sizes = ", ".join(f"{split} {len(pairs)}" for split, pairs in found.splits.items())
    print(f"{found.root}: {sizes}")
    print(f"layout: {found.found.layout}")
    for note in found.found.notes:
        print(f"note: {note}")
    print(f"classes from {found.class_file or 'the layout'}, in % of the pixels:")
    total = max(int(pixels.sum()), 1)
    for label, name in (*enumerate(found.classes.names), (VOID, "void")):
        print(f"  {label:3} {100 * pixels[label] / total:6.2f}  {name}")
    for problem in problems:
        print(f"problem: {problem}", file=sys.stderr)
    print(f"{len(problems)} problems" if problems else "no problems", file=sys.stderr)
    return 1 if problems else 0
