"""Scores the networks of a run: ``fcn-jax eval`` without installing (`fcn_jax/cli/eval.py`)."""

import sys

from fcn_jax.cli import run

if __name__ == "__main__":
    sys.exit(run(["eval", *sys.argv[1:]]))
