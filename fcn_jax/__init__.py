"""Fully Convolutional Networks for semantic segmentation (Long, Shelhamer, Darrell) in JAX.

Importing this package needs jax, flax and numpy only; data sets (`fcn_jax.data`) and training
(`fcn_jax.training`) are imported by name where they are used.
"""

from fcn_jax.classes import VOID, ClassTable
from fcn_jax.geometry import Geometry, TransposedWindow, Window, compose, crop_offset
from fcn_jax.inference.evaluation import evaluate
from fcn_jax.inference.metrics import ConfusionMatrix, Metrics, compute_metrics
from fcn_jax.inference.predictor import Predictor, load
from fcn_jax.models.backbones import Backbone
from fcn_jax.models.fcn import FCN, create_model
from fcn_jax.models.inputs import Inputs, Preprocessing
from fcn_jax.models.losses import cross_entropy
from fcn_jax.weights import convolutionalize, transplant
from fcn_jax.weights import load as load_weights
from fcn_jax.weights import save as save_weights

__version__ = "0.1.0"

__all__ = [
    "FCN",
    "VOID",
    "Backbone",
    "ClassTable",
    "ConfusionMatrix",
    "Geometry",
    "Inputs",
    "Metrics",
    "Predictor",
    "Preprocessing",
    "TransposedWindow",
    "Window",
    "compose",
    "compute_metrics",
    "convolutionalize",
    "create_model",
    "crop_offset",
    "cross_entropy",
    "evaluate",
    "load",
    "load_weights",
    "save_weights",
    "transplant",
]
