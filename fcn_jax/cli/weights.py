"""Lists published weights: licence, size, what they belong to, and which are in the cache.

    fcn-jax weights                        all of them
    fcn-jax weights torchvision:vgg16      fetches it, for a machine that has no network later

The names are those that --config.init, predict --weights and fcn_jax.load take. FCN_JAX_CACHE=DIR
is another cache folder. Fetched files are checked against their published hashes, or, where there
is none, against that of the first fetch.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from fcn_jax.cli import program, told_in_one_line
from fcn_jax.weights import load
from fcn_jax.weights.fetching import cache_folder, cached_path
from fcn_jax.weights.published import PIXELS, PUBLISHED, find


@told_in_one_line
def main(argv: Sequence[str] | None = None) -> int:
    """Lists or fetches, and returns the exit code."""
    parser = argparse.ArgumentParser(
        prog=program("weights"),
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="fetched into the cache")
    args = parser.parse_args(argv)
    for row in map(find, args.names):
        load(row.name)  # reads it as well: of some no hash is known
        print(cached_path(row))
    if args.names:
        return 0
    head = ("name", "cached", "MB", "licence", "network", "pixels")
    rows = [
        (
            row.name,
            "yes" if cached_path(row).is_file() else "",
            str(row.megabytes),
            row.licence,
            f"{row.network or 'start weights'} on {row.backbone}",
            PIXELS[row.pixels][0],
        )
        for row in PUBLISHED.values()
    ]
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    for line in (head, *rows):
        print(
            "  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip()
        )
    print(f"\nThe cache is {cache_folder()}. Others: hf:OWNER/REPO of the Hugging Face Hub.")
    return 0
