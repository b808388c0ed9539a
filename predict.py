"""Segments photographs: ``fcn-jax predict`` without installing (`fcn_jax/cli/predict.py`)."""

import sys

from fcn_jax.cli import run

if __name__ == "__main__":
    sys.exit(run(["predict", *sys.argv[1:]]))
