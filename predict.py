"""Segments photographs: ``fcn-jax predict`` without installing (`fcn_jax/cli/predict.py`)."""

import sys

from fcn_jax.cli.predict import main

if __name__ == "__main__":
    sys.exit(main())
