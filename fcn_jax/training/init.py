"""What a run starts from: its inputs and label maps, start weights, and first parameters."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
from ml_collections import ConfigDict

from fcn_jax import config as configs
from fcn_jax import data, weights
from fcn_jax.classes import ClassTable
from fcn_jax.models.backbones import BACKBONES, Conv
from fcn_jax.models.fcn import FCN, abstract_params, create_model, initial_params
from fcn_jax.models.inputs import CAFFE, Inputs, Preprocessing
from fcn_jax.weights import identify

# ======================================================================== weights


def load_weights(config: ConfigDict) -> dict[str, weights.Weights]:
    """The start weights of each input, or of all under ``""``; empty where there are none."""
    return {name: weights.load(path) for name, path in configs.start_files(config).items()}


def check_weights(config: ConfigDict, start: dict[str, weights.Weights]) -> None:
    """Refuses weights of another network, before anything is spent or written.

    Missing may be fc6, fc7 and the scores (files without a top), not a convolution of the backbone.

    Raises:
        ValueError: With all that does not fit.
    """
    if not start or config.backbone not in BACKBONES:
        return
    model = _first_network(config)
    _, report = _transplant(model, start)
    layers = model.backbone.layers
    needed = [layer.name for layer in layers if isinstance(layer, Conv) and not layer.dropout]
    left = {name.rpartition("/")[0] for name in report.left}
    missing = [name for name in left if name.startswith(tuple(needed))]
    known = identify.backbone_layers() - {layer.name for layer in layers}
    extra = {name.rpartition("/")[0].rpartition(" ")[2] for name in report.unused} & known
    if missing or extra:
        fits = {name for found in start.values() for name in identify.backbones_of(found)}
        advice = f"; they are of {', '.join(sorted(fits))}" if fits else ""
        lines = [f"{config.init} does not fit config.backbone = {config.backbone!r}{advice}"]
        for title, names in (("missing", missing), ("without a place", extra)):
            lines += [f"{title}: {', '.join(sorted(names))}"] if names else []
        raise ValueError("\n  ".join(lines))


def _first_network(config: ConfigDict) -> FCN:
    """The network of the first stage, as far as it is known before the data are."""
    channels = {"depth": 1}
    inputs = {
        stream: sum(channels.get(feature, 3) for feature in joined.split("+"))
        for stream, joined in config.inputs.items()
    }
    return create_model(
        config.stages[0],
        backbone=config.backbone,
        inputs=inputs,
        padding=config.padding,
        width=config.width,
        fc_width=config.fc_width,
    )


def params_from(
    model: FCN, start: Mapping[str, weights.Weights], key: jax.Array
) -> tuple[dict[str, Any], weights.Report]:
    """Parameters of a network from weights by input, and random ones where those have none."""
    params, report = _transplant(model, start)
    # Initial values only of what was left: a random number generator takes seconds to compile.
    left = initial_params(model, key, report.left)
    return weights.unflatten({**weights.flatten(params), **left}), report


def _transplant(
    model: FCN, start: Mapping[str, weights.Weights]
) -> tuple[dict[str, Any], weights.Report]:
    """Abstract parameters of a network, with start weights where they fit."""
    return weights.transplant(
        abstract_params(model),
        start.get("", start),
        replaceable=model.score_layers,
        inputs=[name for name, _ in model.inputs] if len(model.inputs) > 1 else (),
    )


# ======================================================================== inputs and label maps


def choose_heads(config: ConfigDict, source: data.Source) -> dict[str, ClassTable]:
    """The label maps that are learned, with their classes."""
    chosen = tuple(config.heads) or tuple(source.label_maps)
    for field, names in (("heads", chosen), ("loss_weights", tuple(config.loss_weights))):
        if unknown := [name for name in names if name not in source.label_maps]:
            raise ValueError(
                f"config.{field} names {', '.join(unknown)}; {config.dataset} has the label maps "
                f"{', '.join(source.label_maps)}"
            )
    return {name: source.label_maps[name] for name in chosen}


def choose_inputs(
    config: ConfigDict, source: data.Source, start: dict[str, weights.Weights]
) -> Inputs:
    """The features of each input, normalised as the start weights expect them.

    Weights of Caffe's kind take the means of the data set, as in the reference; others (RGB from
    0 to 1) bring their own.
    """
    usual = data.row_of(config.dataset).preprocessing
    streams: dict[str, dict[str, Preprocessing]] = {}
    for stream, joined in config.inputs.items():
        found = start.get(stream, start.get(""))
        features = joined.split("+")
        if unknown := [name for name in features if name not in source.modalities]:
            raise ValueError(
                f"config.inputs.{stream} reads {', '.join(unknown)}; {config.dataset} has "
                f"{', '.join(source.modalities)}"
            )
        streams[stream] = {
            name: _normalisation(name, usual.get(name, CAFFE), found) for name in features
        }
    return Inputs.of(streams)


def _normalisation(
    feature: str, usual: Preprocessing, start: weights.Weights | None
) -> Preprocessing:
    """How a feature is normalised, given the data set's way and the start weights."""
    if start is None or start.inputs is None or start.inputs == Inputs.of(CAFFE):
        return usual
    known = {name: part for _, parts in start.inputs.entries for name, part in parts}
    if feature in known:
        return known[feature]
    return usual.on_scale_of(known["image"]) if "image" in known else usual
