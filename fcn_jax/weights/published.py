"""Published weights by name: where each file lies, its hash, its licence, and what it belongs to.

A file is a row of ``published.csv``, and nothing else needs to know it. `fcn-jax weights` lists
them. A row without a network is to start training from.
"""

from __future__ import annotations

import csv
import difflib
from pathlib import Path
from typing import NamedTuple

from fcn_jax.models.inputs import CAFFE, Inputs
from fcn_jax.weights import keras, torch_names


class Published(NamedTuple):
    """A published weight file.

    Attributes:
        name: ``ORIGIN:NAME``, by which it is loaded.
        backbone: Whose layers it holds.
        network: ``classifier``, a decoder's name, or empty where it is none that we compute.
        pixels: What the network reads, one of `PIXELS`.
        megabytes: Its size in 10^6 bytes, about.
        licence: Of the weights, as far as it is known.
        hash: ``sha256:…``, ``sha1:…`` or ``md5:…``, of which the beginning is enough; empty where
            none is known.
        file: Its name in the cache.
        url: Where it lies.
    """

    name: str
    backbone: str
    network: str
    pixels: str
    megabytes: int
    licence: str
    hash: str
    file: str
    url: str


PIXELS = {
    "caffe": ("BGR, 0 to 255 minus the mean", Inputs.of(CAFFE)),
    "keras": ("BGR, 0 to 255 minus the mean", keras.INPUTS),
    "imagenet": ("RGB, 0 to 1 by mean and deviation", torch_names.IMAGENET),
    "symmetric": ("RGB, -1 to 1", torch_names.SYMMETRIC),
    "hha": ("HHA of a depth image", Inputs.of(CAFFE)),  # NYUDv2's means, as `usual_inputs` has them
}
"""What networks read: in words, and as `Inputs`."""


def _rows() -> dict[str, Published]:
    with Path(__file__).with_name("published.csv").open(newline="", encoding="utf-8") as file:
        rows = [
            Published(**{**row, "megabytes": int(row["megabytes"])}) for row in csv.DictReader(file)
        ]
    return {row.name: row for row in rows}


PUBLISHED = _rows()
"""Every file by its name."""

ORIGINS = tuple(dict.fromkeys(name.partition(":")[0] for name in PUBLISHED))
"""What names begin with."""


def find(name: str) -> Published:
    """The row of a name.

    Raises:
        ValueError: If there is none; the message has the nearest ones.
    """
    if name not in PUBLISHED:
        near = [known for known in PUBLISHED if known.startswith(name)]
        near += difflib.get_close_matches(name, PUBLISHED) if not near else []
        near += [known for known in PUBLISHED if known.startswith(f"{name.partition(':')[0]}:")]
        raise ValueError(
            f"there are no published weights {name}; did you mean {' or '.join(near[:3])}? "
            "`fcn-jax weights` lists all"
        )
    return PUBLISHED[name]
