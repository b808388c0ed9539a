"""Shows a network in the browser: drop a photograph, see its classes, download the mask.

    fcn-jax serve RUN [--port=7860] [--stage=fcn8s] [--checkpoint=best]
    fcn-jax serve caffe:fcn8s-heavy-pascal

RUN is the folder of a training run, a weight file, or a name that fcn-jax weights lists. Only
programs on this machine reach the page, unless --host says otherwise. Photographs are removed as
soon as they are shown; larger ones than --max_megabytes or --max_megapixels are refused.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from absl import logging

import fcn_jax
from fcn_jax.cli import NETWORK, add_network, program, told_in_one_line
from fcn_jax.devices import find_devices
from fcn_jax.inference import demo
from fcn_jax.programs import keep_compiled_programs


@told_in_one_line
def main(argv: Sequence[str] | None = None) -> int:
    """Serves until it is stopped, and returns the exit code."""
    parser = argparse.ArgumentParser(
        prog=program("serve"),
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    usual = demo.Limits()
    add = parser.add_argument
    add("run", help="the folder of a run, a weight file, or the name of one")
    add("--host", default="127.0.0.1", help="0.0.0.0 lets in whoever reaches this machine")
    add("--port", type=int, help="default: the first from 7860 on that is free")
    add("--max_megabytes", type=float, default=usual.megabytes, help="default: %(default)g")
    add("--max_megapixels", type=float, default=usual.megapixels, help="default: %(default)g")
    add_network(parser)
    args = parser.parse_args(argv)
    limits = demo.Limits(args.max_megabytes, args.max_megapixels)
    if min(limits) <= 0:
        raise ValueError("--max_megabytes and --max_megapixels must be positive")

    logging.set_verbosity(logging.FATAL)  # orbax tells a great deal
    keep_compiled_programs()
    find_devices()
    predictor = fcn_jax.load(args.run, **{name: getattr(args, name) for name in NETWORK})
    from fcn_jax.training.loop import noted_signals

    title = Path(args.run).resolve().name if Path(args.run).exists() else args.run
    with demo.served(predictor, title, args.host, args.port, limits) as address:
        print(f"{address} shows {args.run}; Ctrl-C ends it", flush=True)
        if args.host != "127.0.0.1":
            print("note: whoever reaches this machine may use it", file=sys.stderr)
        with noted_signals() as signals:
            while not signals:
                time.sleep(0.2)
    return 0
