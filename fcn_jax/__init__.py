"""Fully Convolutional Networks for semantic segmentation (Long, Shelhamer, Darrell) in JAX.

Importing this package needs jax, flax and numpy only; data sets (`fcn_jax.data`) and training
(`fcn_jax.training`) are imported by name where they are used. The public names are looked up when
they are first used, so that a command hears Ctrl-C before jax is loaded.
"""

import importlib
import importlib.util
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fcn_jax.classes import VOID, ClassTable
    from fcn_jax.exporting import export
    from fcn_jax.geometry import Geometry, TransposedWindow, Window, compose, crop_offset
    from fcn_jax.inference.evaluation import evaluate, score
    from fcn_jax.inference.metrics import ConfusionMatrix, Metrics, compute_metrics, score_image
    from fcn_jax.inference.predictor import Predictor, load
    from fcn_jax.models.backbones import Backbone
    from fcn_jax.models.fcn import FCN, create_model
    from fcn_jax.models.inputs import Inputs, Preprocessing
    from fcn_jax.models.losses import cross_entropy
    from fcn_jax.weights import convolutionalize, transplant
    from fcn_jax.weights import load as load_weights
    from fcn_jax.weights import save as save_weights

__version__ = "0.1.0"

# Where each name comes from; `load_weights` and `save_weights` are `load` and `save` there.
_HOMES = {
    "classes": "VOID ClassTable",
    "exporting": "export",
    "geometry": "Geometry TransposedWindow Window compose crop_offset",
    "inference.evaluation": "evaluate score",
    "inference.metrics": "ConfusionMatrix Metrics compute_metrics score_image",
    "inference.predictor": "Predictor load",
    "models.backbones": "Backbone",
    "models.fcn": "FCN create_model",
    "models.inputs": "Inputs Preprocessing",
    "models.losses": "cross_entropy",
    "weights": "convolutionalize load_weights save_weights transplant",
}

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
    "export",
    "load",
    "load_weights",
    "save_weights",
    "score",
    "score_image",
    "transplant",
]


def __getattr__(name: str) -> Any:
    """A public name, with which all of them are imported; or a module of the package."""
    if name in __all__:
        for home, names in _HOMES.items():
            module = importlib.import_module(f"fcn_jax.{home}")
            for public in names.split():
                globals()[public] = getattr(module, public.removesuffix("_weights"))
        return globals()[name]
    if importlib.util.find_spec(f"fcn_jax.{name}") is None:
        raise AttributeError(f"module 'fcn_jax' has no attribute {name!r}")
    return importlib.import_module(f"fcn_jax.{name}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
