"""The command ``fcn-jax``: arguments and messages, nothing else.

Each command is a module of this folder with ``main(argv) -> exit code``; ``train.py``, ``eval.py``
and ``predict.py`` of a clone call the same functions. How they end is told in `cli._ends`.
"""

from __future__ import annotations

import argparse
import functools
import gc
import importlib
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

from fcn_jax.cli import _ends

COMMANDS = {
    "train": "train the networks of a config and write a report",
    "eval": "score the networks of a run and write its report again",
    "report": "write one page of several runs side by side",
    "predict": "segment images with a run or a weight file",
    "serve": "show a network in the browser, for photographs that are dropped there",
    "check": "check your own images and masks before training",
    "weights": "list published weights, or fetch some",
    "export": "write a network as ONNX, StableHLO or weights for other programs",
    "push": "put a run on the Hugging Face Hub, with a model card",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command that the first argument names, and returns its exit code.

    Without arguments, those of the command line, and as a program of its own (`run`).
    """
    if argv is None:
        return run(sys.argv[1:])
    name, *rest = list(argv) or ["--help"]
    if name in ("-h", "--help", "help"):
        print("usage: fcn-jax COMMAND [arguments]\n\nCommands:")
        for command, purpose in COMMANDS.items():
            print(f"  {command:<9}{purpose}")
        print("\n`fcn-jax COMMAND --help` lists the arguments of a command.")
        return 0
    if name in ("-V", "--version"):
        from fcn_jax import __version__

        print(f"fcn-jax {__version__}")
        return 0
    if name not in COMMANDS:
        import difflib

        near = difflib.get_close_matches(name, COMMANDS, n=1)
        hint = f"did you mean {near[0]}?" if near else f"choose one of {', '.join(COMMANDS)}"
        print(f"fcn-jax: there is no command {name!r}; {hint}", file=sys.stderr)
        return 2
    return importlib.import_module(f"fcn_jax.cli.{name}").main(rest)


def run(argv: Sequence[str]) -> int:
    """`main` as a program: it also answers to signals, and no thread can keep it from ending."""
    command = next(iter(argv), "")
    name = program(command) if command in COMMANDS else "fcn-jax"
    _ends.end_on_signals(name)
    _ends.end_on_failing_threads(name)
    # Importing and tracing make objects by the million, few of which are garbage: looking for it 70
    # times less often takes 8 % off `predict` of a photograph.
    gc.set_threshold(50_000)
    # A helper of multiprocessing cleans up after an end at once, and would tell of it.
    sys.warnoptions.append("ignore:resource_tracker:UserWarning")
    try:
        if command in ("train", "eval", "predict", "serve"):
            _ends.check_limits()
        code = main(argv)
    except Exception as error:
        line = _ends.explain(error, command)
        if line is None:
            traceback.print_exc()
            _ends.end("", 1)
        _ends.end(f"{name}: {line}", 2)
    if code:  # threads, or other processes, may never come to an end
        _ends.end("", code)
    return code


def told_in_one_line(
    main: Callable[[Sequence[str] | None], int],
) -> Callable[[Sequence[str] | None], int]:
    """A command's ``main``, whose errors that are no mistakes of the program are a line and 2."""
    command = main.__module__.rpartition(".")[2]

    @functools.wraps(main)
    def call(argv: Sequence[str] | None = None) -> int:
        code = 2
        try:
            return main(argv)
        except KeyboardInterrupt:
            line, code = "interrupted", 130
        except Exception as error:
            line = _ends.explain(error, command)
            if line is None:
                raise
        print(f"{program(command)}: {line}", file=sys.stderr)
        return code

    return call


def program(command: str) -> str:
    """How `command` was called, for its messages: "fcn-jax train", or "train.py" in a clone."""
    script = f"{command}.py"
    return script if os.path.basename(sys.argv[0]) == script else f"fcn-jax {command}"


NETWORK = (
    *("stage", "which", "network", "padding", "modality", "classes", "precision", "allow_code"),
)
"""What `add_network` adds, as `fcn_jax.load` calls it."""


def add_network(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments that say which network of a run, or of weights, is loaded."""
    add = parser.add_argument
    add("--stage", help="such as fcn16s; default: the last trained")
    add(
        "--checkpoint", dest="which", choices=("best", "last"), default="best", help="default: best"
    )
    add("--model", dest="network", help="the weights' network; default: as their layers suggest")
    paddings, usual = ("reference", "same", "native"), "reference, of a classifier native"
    add("--padding", choices=paddings, help=f"of the weights' network; default: {usual}")
    add("--modality", choices=("image", "hha"), help="what weights of one input read")
    add("--classes", type=path, help="file of class names for weights; default: by their number")
    precisions = ("float32", "tf32", "bfloat16")
    add("--precision", choices=precisions, help="default: as in training, or float32")
    add("--allow_code", action="store_true", help="run the file of the run's own backbone")


def add_views(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of test-time augmentation."""

    def factors(text: str) -> tuple[float, ...]:
        try:
            return tuple(map(float, text.split(",")))
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is not a list such as 0.5,1,1.5") from None

    flip = "average the probabilities with those of the mirrored image"
    parser.add_argument("--flip", action="store_true", help=flip)
    scales = "average the probabilities at these scales, such as 0.5,1,1.5"
    parser.add_argument("--scales", type=factors, default=(1.0,), help=f"{scales}; default: 1")


def path(text: str) -> Path:
    """A path from the command line, whose ``~`` is the user's folder."""
    return Path(text).expanduser()
