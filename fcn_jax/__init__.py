"""Fully Convolutional Networks for semantic segmentation (Long, Shelhamer, Darrell) in JAX.

Importing this package needs jax, flax and numpy only; data sets (`fcn_jax.data`) and training
(`fcn_jax.training`) are imported by name where they are used.
"""

from fcn_jax.alignment import Geometry, UpWindow, Window, compose, crop_offset
from fcn_jax.losses import VOID, cross_entropy
from fcn_jax.metrics import ConfusionMatrix, Scores, scores
from fcn_jax.networks import FCN, create_model
from fcn_jax.preprocessing import Preprocessing

__all__ = [
    "FCN",
    "VOID",
    "ConfusionMatrix",
    "Geometry",
    "Preprocessing",
    "Scores",
    "UpWindow",
    "Window",
    "compose",
    "create_model",
    "crop_offset",
    "cross_entropy",
    "scores",
]
