"""The command ``fcn-jax``: arguments and messages, nothing else.

Each command is a module of this folder with ``main(argv) -> exit code``; ``train.py``, ``eval.py``
and ``predict.py`` of a clone call the same functions.
"""

from __future__ import annotations

import difflib
import importlib
import sys
from collections.abc import Sequence
from pathlib import Path

COMMANDS = {
    "train": "train the networks of a config and write a report",
    "eval": "score the networks of a run and write its report again",
    "predict": "segment images with a run or a weight file",
    "check": "check your own images and masks before training",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command that the first argument names, and returns its exit code."""
    name, *rest = list(sys.argv[1:] if argv is None else argv) or ["--help"]
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
        near = difflib.get_close_matches(name, COMMANDS, n=1)
        hint = f"did you mean {near[0]}?" if near else f"choose one of {', '.join(COMMANDS)}"
        print(f"fcn-jax: there is no command {name!r}; {hint}", file=sys.stderr)
        return 2
    return importlib.import_module(f"fcn_jax.cli.{name}").main(rest)


def program(command: str) -> str:
    """How `command` was called, for its messages: "fcn-jax train", or "train.py" in a clone."""
    script = f"{command}.py"
    return script if Path(sys.argv[0]).name == script else f"fcn-jax {command}"


def path(text: str) -> Path:
    """A path from the command line, whose ``~`` is the user's folder."""
    return Path(text).expanduser()
