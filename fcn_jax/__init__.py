"""Fully Convolutional Networks for semantic segmentation (Long, Shelhamer, Darrell) in JAX.

Importing this package needs jax, flax and numpy only; data sets (`fcn_jax.data`) and training
(`fcn_jax.training`) are imported by name where they are used.
"""

from fcn_jax.alignment import Geometry, UpWindow, Window, compose, crop_offset
from fcn_jax.backbones import Backbone
from fcn_jax.classes import VOID, ClassTable
from fcn_jax.inference import Predictor, predict, predict_tiled
from fcn_jax.losses import cross_entropy
from fcn_jax.metrics import ConfusionMatrix, Scores, scores
from fcn_jax.networks import FCN, create_model
from fcn_jax.preprocessing import Inputs, Preprocessing
from fcn_jax.weights import convolutionalize, transplant
from fcn_jax.weights import load as load_weights
from fcn_jax.weights import save as save_weights

__all__ = [
    "FCN",
    "VOID",
    "Backbone",
    "ClassTable",
    "ConfusionMatrix",
    "Geometry",
    "Inputs",
    "Predictor",
    "Preprocessing",
    "Scores",
    "UpWindow",
    "Window",
    "compose",
    "convolutionalize",
    "create_model",
    "crop_offset",
    "cross_entropy",
    "load_weights",
    "predict",
    "predict_tiled",
    "save_weights",
    "scores",
    "transplant",
]
