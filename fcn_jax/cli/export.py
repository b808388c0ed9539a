"""Writes a trained network as a file for other programs: ONNX, StableHLO, or its weights.

    fcn-jax export RUN --format=onnx                       writes RUN's name, such as mine.onnx
    fcn-jax export RUN --output=mine.stablehlo --result=logits
    fcn-jax export FILE --format=torch --padding=same      FILE holds weights, or is a name of some

RUN is the folder of a training run, FILE a weight file, or a name that fcn-jax weights lists.
onnx and stablehlo are programs from stored pixels to label maps, for batches of any number and
images of any size, with the preprocessing, the run's scale, and the classes' names and colours
inside; --precision is of stablehlo. safetensors and torch (a state dict) are the weights alone.
onnx needs pip install 'fcn-jax[export]'.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

from absl import logging

from fcn_jax.cli import NETWORK, add_network, path, program, told_in_one_line
from fcn_jax.exporting import SUFFIXES, export
from fcn_jax.inference.compute import Result


@told_in_one_line
def main(argv: Sequence[str] | None = None) -> int:
    """Exports, and returns the exit code."""
    parser = argparse.ArgumentParser(
        prog=program("export"),
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    formats = list(dict.fromkeys(SUFFIXES.values()))
    add("source", metavar="RUN|FILE", help="the folder of a run, or weights")
    add("--format", choices=formats, help="default: by the suffix of --output")
    add("--output", type=path, help="the file to write; default: here, under the source's name")
    add("--result", choices=get_args(Result), help="what a program gives; default: labels")
    add_network(parser)
    args = parser.parse_args(argv)
    if args.output is None and args.format is None:
        parser.error(f"give --format (one of {', '.join(formats)}) or --output=FILE")

    logging.set_verbosity(logging.FATAL)  # orbax tells a great deal, and errors twice
    output = args.output
    if output is None:
        suffix = next(suffix for suffix, format in SUFFIXES.items() if format == args.format)
        folder = Path(args.source.rpartition(":")[2]).expanduser().resolve()
        output = Path(f"{folder.name if folder.is_dir() else folder.stem}{suffix}")
    options = {name: getattr(args, name) for name in NETWORK}
    written = export(args.source, output, args.format, result=args.result, **options)
    print(f"{written} ({written.stat().st_size / 1e6:.1f} MB)")
    return 0
