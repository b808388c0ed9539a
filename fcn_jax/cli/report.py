"""Writes one page of several runs side by side, or that of one run again.

    fcn-jax report RUN RUN … [--output=PAGE.html]

Reads the runs' folders and computes nothing: the scores are those that `fcn-jax train` or
`fcn-jax eval` wrote there. The page opens from disk without a network.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from fcn_jax.cli import path, program, told_in_one_line


@told_in_one_line
def main(argv: Sequence[str] | None = None) -> int:
    """Writes the page, and returns the exit code."""
    parser = argparse.ArgumentParser(
        prog=program("report"),
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    text = "the folder of a training run, or a report of it in another place (eval --output)"
    add("runs", metavar="RUN", type=path, nargs="+", help=text)
    output = "default: report/index.html of a single run, runs.html here of several"
    add("--output", metavar="PAGE.html", type=path, help=output)
    args = parser.parse_args(argv)

    from fcn_jax.inference import page

    if len({run.resolve() for run in args.runs}) < len(args.runs):
        raise ValueError("a run is given twice")
    runs = [page.read_run(*page.folders_of(run)) for run in args.runs]
    target = args.output or (runs[0].folder / page.PAGE if len(runs) == 1 else Path("runs.html"))
    if target.is_dir():
        raise ValueError(f"{target} is a folder; give the name of a page, {target}/{page.PAGE}")
    page.write_page(runs, target)
    print(f"report in {target}")
    return 0
