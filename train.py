"""Trains the networks of a config: ``fcn-jax train`` without installing (`fcn_jax/cli/train.py`)."""

import sys

from fcn_jax.cli.train import main

if __name__ == "__main__":
    sys.exit(main())
