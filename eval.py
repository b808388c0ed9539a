"""Scores the networks of a run: ``fcn-jax eval`` without installing (`fcn_jax/cli/eval.py`)."""

import sys

from fcn_jax.cli.eval import main

if __name__ == "__main__":
    sys.exit(main())
