"""Objects of rare classes, cut out of one training image and pasted into another.

Ghiasi et al. 2021, https://arxiv.org/abs/2012.07177: where an object lands needs no care.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from fcn_jax.classes import VOID
from fcn_jax.data.transforms import Example, arrays, is_label, size_of


class CopyPaste:
    """Pastes into some examples a connected piece of a rare class of another example.

    Rare are the classes that have fewer pixels than the median class, in the first label map. Each
    is as likely as the others, and each image that holds it.

    Args:
        source: The training examples, as `fcn_jax.data.open_source` gives.
        share: The probability that an example gets a piece.

    Attributes:
        rare: The labels of the rare classes.

    Raises:
        ValueError: If no class is rarer than another.
    """

    def __init__(self, source: Any, share: float) -> None:
        self.source, self.share = source, share
        by_image = next(iter(source.label_counts.values()))
        total = by_image.sum(axis=0)
        self.rare = np.flatnonzero((total > 0) & (total < np.median(total[total > 0])))
        if not len(self.rare):
            raise ValueError(
                f"config.copy_paste = {share}: in {source!r} no class has fewer pixels than the "
                "median class; set it to 0"
            )
        self._holders = [np.flatnonzero(by_image[:, label]) for label in self.rare]

    def __call__(self, example: Example, rng: np.random.Generator) -> Example:
        """An example with a piece pasted, or as it is; a function of the generator's state."""
        if rng.random() >= self.share:
            return example
        chosen = rng.integers(len(self.rare))
        donor = self.source[int(rng.choice(self._holders[chosen]))]
        return paste(example, donor, int(self.rare[chosen]), rng)


def paste(example: Example, donor: Example, label: int, rng: np.random.Generator) -> Example:
    """Pastes a connected piece of a class of another example, in all arrays, at a random place.

    The piece's middle lies in the image, what reaches beyond is cut off. Only pixels that have a
    class in all of the donor's label maps travel.
    """
    from scipy import ndimage

    maps = [value for value in arrays(donor).values() if is_label(value)]
    travels = (maps[0] == label) & np.all([labels != VOID for labels in maps], axis=0)
    if not travels.any():
        return example
    pieces = np.zeros(travels.shape, np.int32)
    ndimage.label(travels, output=pieces)
    piece = pieces == rng.choice(pieces[travels])
    places = []
    for cells, side in zip(np.nonzero(piece), size_of(example), strict=True):
        places.append(cells - (cells.min() + cells.max()) // 2 + rng.integers(side))
    inside = np.all([(p >= 0) & (p < s) for p, s in zip(places, size_of(example), strict=True)], 0)
    into = tuple(place[inside] for place in places)
    pasted = {name: value.copy() for name, value in arrays(example).items()}
    for name, value in pasted.items():
        value[into] = donor[name][piece][inside]
    return {**example, **pasted}
