"""Puts a trained network on the Hugging Face Hub: weights as safetensors, and a model card.

    fcn-jax push RUN OWNER/REPO --license=apache-2.0      needs pip install 'fcn-jax[hub]'
    fcn-jax push RUN OWNER/REPO --output=DIR              writes the files, and pushes nothing

The card has the classes, the scores of the run's report, the data, the preprocessing, the licence
and how to use it: fcn_jax.load("hf:OWNER/REPO"). Log in before with: hf auth login
"""

from __future__ import annotations

import argparse
import re
import tempfile
from collections.abc import Sequence
from pathlib import Path

from absl import logging

from fcn_jax import weights
from fcn_jax.cli import path, program, told_in_one_line
from fcn_jax.weights import hub


def repository(text: str) -> str:
    """OWNER/REPO from the command line."""
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", text):
        raise argparse.ArgumentTypeError(f"{text!r} is not OWNER/REPO")
    return text


@told_in_one_line
def main(argv: Sequence[str] | None = None) -> int:
    """Pushes, and returns the exit code."""
    parser = argparse.ArgumentParser(
        prog=program("push"),
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("workdir", metavar="RUN", type=path, help="the folder of a training run")
    add("repo", metavar="OWNER/REPO", type=repository, help="made if it is not there")
    add("--stage", help="such as fcn16s; default: the last trained")
    add("--checkpoint", choices=("best", "last"), default="best", help="default: best")
    add("--license", default="unknown", help="short name for the card, such as apache-2.0")
    add("--private", action="store_true", help="make a repository that only its owner sees")
    add("--output", type=path, help="write the files to this folder, and push nothing")
    args = parser.parse_args(argv)

    from fcn_jax.runs import load_run

    logging.set_verbosity(logging.FATAL)  # orbax tells a great deal, and errors twice
    if args.output is None:
        hub.library()  # before anything is read
    run = load_run(args.workdir, args.stage, args.checkpoint)
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.output or Path(temporary)
        hub.write(run, weights.of_run(run), args.workdir, folder, args.repo, args.license)
        if args.output:
            print(f"{folder / hub.FILE} and README.md; nothing is pushed")
        else:
            print(hub.push(folder, args.repo, args.private))
    return 0
