"""What a run starts from: its heads, losses and inputs, start weights, and first parameters."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fcn_jax import data, weights
from fcn_jax.classes import ClassTable
from fcn_jax.config import Config, loss_options, stage_model, start_files
from fcn_jax.inference.metrics import BY_CLASS, OVERALL
from fcn_jax.models.backbones import BACKBONES, code_of
from fcn_jax.models.fcn import FCN, abstract_params, initial_params
from fcn_jax.models.inputs import CAFFE, Inputs, Preprocessing
from fcn_jax.models.losses import Loss, balanced_weights, make_loss
from fcn_jax.weights import identify, published

StartWeights = Mapping[str, weights.Weights]
"""The start weights of each input, or those of all under ``""``; empty where there are none."""

SMALL_SET = 5000
"""Images below which a network from random weights stays far behind one from ImageNet weights."""

# ======================================================================== weights


def check_names(names: Iterable[str], backbone: str, width: float) -> None:
    """Raises ValueError if published weights are named that do not exist or fit, before a fetch."""
    for name in names:
        if not weights.is_name(name) or name.startswith("hf:"):
            continue
        row = published.find(name)
        # A dilated backbone has the layers of the classifier that it comes from, and a head.
        theirs, ours = (each.removesuffix("_dilated") for each in (row.backbone, backbone))
        if backbone in BACKBONES and theirs != ours:
            raise ValueError(
                f"config.init: {name} is of config.backbone = {row.backbone!r}, not {backbone!r}"
            )
        if width != 1:
            raise ValueError(f"config.init: {name} has the full width, not config.width = {width}")


def load_start(config: Config, allow_code: bool) -> dict[str, weights.Weights]:
    """The start weights of a config, by input, of whatever bands; none where it names none.

    Raises:
        ValueError: If they are not of its first network.
    """
    own = code_of(os.path.expanduser(config.backbone))
    allowed = allow_code or (own["sha256"] if own else False)
    files = start_files(config)
    start = {name: weights.load(path, allow_code=allowed) for name, path in files.items()}
    first = stage_model(config, config.stages[0])
    check_weights(first, config.backbone, start, config.init, any_bands=True)
    return start


def expect_of_random_weights(dataset: str, images: int, backbone: str) -> str:
    """What to expect of a network that starts from random weights; empty where it is no surprise.

    The data set of shapes is made to be learned from nothing.
    """
    if dataset == "shapes" or images >= SMALL_SET:
        return ""
    rows = (row for row in published.PUBLISHED.values() if row.backbone == backbone)
    name = next((f" (config.init={row.name!r})" for row in rows), "")
    return (
        f"; warning: from random weights {images} training images teach it little more than where "
        f"the most frequent classes lie; a few hundred do well from ImageNet weights{name}"
    )


def check_weights(
    model: FCN, backbone: str, start: StartWeights, origin: str, any_bands: bool = False
) -> None:
    """Raises ValueError with all that does not fit, if the weights are of another backbone.

    What may be missing is fc6, fc7 and the scores (files without a top), not a convolution of the
    backbone. Backbones of the user's own are not checked. With ``any_bands`` the data's are not
    known yet, and the weights may be of any.
    """
    if not start or backbone not in BACKBONES:
        return
    layers = model.backbone.layers
    if any_bands:
        inputs = []
        for name, channels in model.inputs:
            arrays = start.get(name, start.get("", weights.Weights()))
            suffix = name if len(model.inputs) > 1 else ""
            names = (f"{layers[0].name}{suffix}/kernel", f"{layers[0].name}/kernel")
            kernels = [arrays[key] for key in names if key in arrays]
            other = kernels and kernels[0].ndim == 4 and kernels[0].shape[2] != 3
            inputs.append((name, kernels[0].shape[2] if other else channels))
        model = model.clone(inputs=tuple(inputs))
    _, report = transplant(model, start)
    needed = [layer.name for layer in model.backbone.convolutions]
    left = {name.rpartition("/")[0] for name in report.left}
    missing = [name for name in left if name.startswith(tuple(needed))]
    known = identify.backbone_layers() - {layer.name for layer in layers}
    extra = {name.rpartition("/")[0].rpartition(" ")[2] for name in report.unused} & known
    if missing or extra:
        fits = {name for found in start.values() for name in identify.backbones_of(found)}
        advice = f"; they are of {', '.join(sorted(fits))}" if fits else ""
        lines = [f"{origin} does not fit config.backbone = {backbone!r}{advice}"]
        for title, names in (("missing", missing), ("without a place", extra)):
            lines += [f"{title}: {', '.join(sorted(names))}"] if names else []
        raise ValueError("\n  ".join(lines))


def drop_other_scores(start: StartWeights, model: FCN, heads: Mapping[str, ClassTable]) -> None:
    """Removes the score layers of runs whose classes have other names, or in another order.

    Of the same shape, they would be copied as if score j still were that of the same class.
    """
    names = tuple(table.names for table in heads.values())
    for loaded in start.values():
        theirs = tuple(table.names for table in loaded.network.heads.values())
        if theirs and theirs != names:
            for array in list(loaded):
                layer = array.rpartition("/")[0]
                # Of several inputs, score_fr of a file becomes score_frhha.
                if any(score.startswith(layer) for score in model.score_layers):
                    del loaded[array]


def params_from(
    model: FCN, start: StartWeights, key: jax.Array
) -> tuple[dict[str, Any], weights.Report]:
    """Parameters of a network from start weights, and random ones where those have none."""
    params, report = transplant(model, start)
    # Initial values only of what was left: a random number generator takes seconds to compile.
    left = initial_params(model, key, report.left)
    return weights.unflatten({**weights.flatten(params), **left}), report


def transplant(model: FCN, start: StartWeights) -> tuple[dict[str, Any], weights.Report]:
    """Abstract parameters of a network, with start weights where they fit.

    fc6 and fc7 of another width begin anew, as long as the weights are a classifier's: those of a
    segmenter would lose what they have learned.
    """
    segmenter = any(name.startswith("score_fr") for each in start.values() for name in each)
    return weights.transplant(
        abstract_params(model),
        start.get("", start),
        replaceable=(*model.score_layers, *(() if segmenter else ("fc6*", "fc7*"))),
        inputs=[name for name, _ in model.inputs] if len(model.inputs) > 1 else (),
    )


AUTO_CHANGE = 1000.0
"""What a change of all weights of a score layer by one, times its factor, changes scores by."""


def auto_rates(
    model: FCN, layers: Collection[str], params: Any, inputs: Inputs, source: data.Source
) -> dict[str, float]:
    """Factors at which score layers change scores alike, however large the maps are that they read.

    A step of Adam changes every weight by about the rate. What that does to the scores goes with
    the map: with Caffe's VGG16 the means of pool3 and fc7 differ by a factor of 40, and FCN-8s at
    once scales pool3, pool4 and fc7 by 0.0001, 0.01 and 1. With these factors one step moves scores
    by up to `AUTO_CHANGE` rates, as a mean over the cells of the first image's middle (128x128).
    """
    ones = {
        layer: {name: jnp.full_like(x, name == "kernel") for name, x in arrays.items()}
        for layer, arrays in params.items()
        if layer in layers
    }
    example = source[0]
    size = np.shape(example[inputs.modalities[0]])[:2]
    window = tuple(slice(max(0, side // 2 - 64), side // 2 + 64) for side in size)
    arrays = {name: np.asarray(example[name])[window][None] for name in inputs.modalities}

    @jax.jit
    def changes(params: Any, arrays: Any) -> dict[str, jax.Array]:
        applied: Any = model.apply({"params": params}, inputs.apply(arrays), return_maps=True)
        maps = applied[1]
        return {layer: jnp.abs(maps[layer]).mean() for layer in layers}

    found = jax.device_get(changes({**params, **ones}, arrays))
    return {layer: AUTO_CHANGE / max(float(found[layer]), 1e-6) for layer in layers}


# ======================================================================== heads and inputs


def choose_heads(
    chosen: Iterable[str], loss_weights: Iterable[str], source: data.Source
) -> dict[str, ClassTable]:
    """The label maps that are learned, by default all, with their classes.

    Raises:
        ValueError: If one is chosen, or its loss weighted, that the data do not have.
    """
    heads = tuple(chosen) or tuple(source.label_maps)
    for field, names in (("heads", heads), ("loss_weights", loss_weights)):
        if unknown := [name for name in names if name not in source.label_maps]:
            raise ValueError(
                f"config.{field} names {', '.join(unknown)}; {source.name} has the label maps "
                f"{', '.join(source.label_maps)}"
            )
    return {name: source.label_maps[name] for name in heads}


def choose_losses(
    config: Config, source: data.Source, heads: Mapping[str, ClassTable]
) -> tuple[dict[str, Loss], list[str]]:
    """The loss of each head, and what to tell of class weights that are counted from the data.

    Raises:
        ValueError: If there are not as many class weights as classes.
    """
    losses, told = {}, []
    for head, table in heads.items():
        weights = tuple(config.class_weights)
        if weights and isinstance(weights[0], str):
            way = weights[0]
            weights = balanced_weights(way, source.label_counts[head])
            listed = (f"{n} {w:.3g}" for n, w in zip(table.names, weights, strict=True))
            told.append(f"{head}: class weights, {way} frequency: {', '.join(listed)}")
        elif weights and len(weights) != table.num_classes:
            raise ValueError(
                f"config.class_weights = {weights}: {len(weights)} numbers, but {head} has "
                f"{table.num_classes} classes ({', '.join(table.names)})"
            )
        options = {**loss_options(config), "class_weights": weights}
        losses[head] = make_loss(config.loss, **options)
    return losses, told


def check_best(best: str, source: data.Source, heads: Mapping[str, ClassTable]) -> None:
    """Raises ValueError if a metric is none that an evaluation on a source gives as a number."""
    of_heads = {f"{head}/": head for head in heads} if len(heads) > 1 else {"": next(iter(heads))}
    if best in OVERALL:
        return
    for prefix, head in of_heads.items():
        name, _, class_ = best.removeprefix(prefix).partition("/")
        names = heads[head].names
        if not best.startswith(prefix):
            continue
        if name in OVERALL and not class_:
            return
        if name in BY_CLASS and class_ in names:
            if not source.label_counts[head][:, names.index(class_)].any():
                raise ValueError(
                    f"config.best = {best!r}: none of the {len(source)} images to score on holds "
                    f"{class_}, so that it would be NaN; choose another class, or {OVERALL[2]}"
                )
            return
    of = ", ".join(f"{prefix}{name}/CLASS" for prefix in of_heads for name in BY_CLASS)
    raise ValueError(
        f"config.best = {best!r}: there is no such metric; there are {', '.join(OVERALL)}, {of}"
    )


def choose_inputs(
    chosen: Mapping[str, str],
    source: data.Source,
    usual: Mapping[str, Preprocessing],
    start: StartWeights,
) -> Inputs:
    """The modalities of each input, normalised as the start weights expect them.

    Weights of Caffe's kind take the means of the data set, as in the reference; others (RGB from
    0 to 1) bring their own. ``usual`` is how the published networks normalise each modality,
    Caffe's way where it is not listed. Bands, type and range are those of the data
    (`Preprocessing.for_images`).

    Raises:
        ValueError: If an input reads what the data do not have, or the start weights were trained
            on images of other bands.
    """
    inputs: dict[str, dict[str, Preprocessing]] = {}
    for name, joined in chosen.items():
        modalities = joined.split("+")
        if unknown := [modality for modality in modalities if modality not in source.modalities]:
            raise ValueError(
                f"config.inputs.{name} reads {', '.join(unknown)}; {source.name} has "
                f"{', '.join(source.modalities)}"
            )
        inputs[name] = {modality: usual.get(modality, CAFFE) for modality in modalities}
        given = start.get(name, start.get("", weights.Weights())).inputs
        if given is not None and given != Inputs.of(CAFFE):
            known = {modality: part for _, parts in given.entries for modality, part in parts}
            for modality, way in inputs[name].items():
                scaled = way.on_scale_of(known["image"]) if "image" in known else way
                inputs[name][modality] = known.get(modality, scaled)
        for modality, way in inputs[name].items():
            images = (source.channels[modality], source.ranges[modality], source.dtypes[modality])
            if not way.log:
                try:
                    inputs[name][modality] = way.for_images(*images)
                except ValueError as error:
                    raise ValueError(f"{source.name}, {modality}: {error}") from None
    return Inputs.of(inputs)


def check_images(inputs: Inputs, *sources: data.Source) -> None:
    """Raises ValueError if the images have not the bands and the type that a network reads."""
    for source in sources:
        for _, parts in inputs.entries:
            for name, way in parts:
                if name not in source.modalities:
                    raise ValueError(f"the network reads {name}, which {source.name} has not")
                there = (source.channels[name], source.dtypes[name])
                read = (way.channels, "uint16" if way.log else way.dtype)
                if there != read:
                    raise ValueError(
                        f"the network reads {name} of {read[0]} bands of {read[1]}; {source.name} "
                        f"has {there[0]} of {there[1]}"
                    )
