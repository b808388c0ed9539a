"""Trains the networks of a config: the command ``fcn-jax train`` (`fcn_jax/cli/train.py`)."""

import sys

from fcn_jax.cli import run

if __name__ == "__main__":
    sys.exit(run(["train", *sys.argv[1:]]))
