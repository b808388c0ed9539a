"""Random values for every parameter of a network, the zero-initialised and the fixed ones too."""

from __future__ import annotations

import functools
import math
from typing import Any

import jax
import numpy as np

from fcn_jax.models import fcn

abstract_params = functools.cache(fcn.abstract_params)


def random_parameters(model: Any, seed: int) -> dict[str, Any]:
    """float32 arrays, scaled so that every map has values of the size of the image's.

    Transposed convolution kernels are random as well and hence not bilinear, score layers not zero.
    """
    rng = np.random.default_rng(seed)

    def leaf(path: Any, shape: Any) -> np.ndarray:
        values = rng.standard_normal(shape.shape, np.float32)
        if path[-1].key == "bias":
            return values * np.float32(0.3)
        return values * np.float32(math.sqrt(2 / math.prod(shape.shape[:3])))

    return jax.tree_util.tree_map_with_path(leaf, abstract_params(model))
