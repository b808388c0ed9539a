"""Trains the networks of a config: the command ``fcn-jax train`` (`fcn_jax/cli/train.py`)."""

import sys

from fcn_jax.cli.train import main

if __name__ == "__main__":
    sys.exit(main())
