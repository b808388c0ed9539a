"""From the names and shapes of weights to the network that they belong to.

Published files hold parameters and no network. Their layers tell which backbone, decoder, heads and
inputs they are of. FCN-8s at-once has the parameters of FCN-8s; its Caffe file has scale layers
besides, and of other files one has to say so.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from fcn_jax.models.backbones import BACKBONES, Backbone, Concat, Conv, Padding
from fcn_jax.models.fcn import FCN, abstract_params, create_model, initial_params
from fcn_jax.models.inputs import CAFFE, Inputs
from fcn_jax.weights.arrays import flatten, unflatten
from fcn_jax.weights.transplanting import transplant


def backbone_layers() -> set[str]:
    """The convolutions of all backbones that there are, but fc6 and fc7."""
    trunks = [build("reference", 1.0, 4096) for build in BACKBONES.values()]
    return {
        layer.name
        for table in trunks
        for layer in table.layers
        if isinstance(layer, Conv) and not layer.dropout
    }


def backbones_of(weights: Mapping[str, np.ndarray]) -> list[str]:
    """The backbones whose convolutions, but for fc6 and fc7, are just those of the weights."""
    kernels = _kernels(weights)
    ours = {name for name in kernels if name in backbone_layers()}
    found = []
    for name, build in BACKBONES.items():
        table = build("reference", 1.0, 4096)
        layers = tuple(layer for layer in table.layers if not getattr(layer, "dropout", False))
        names = {layer.name for layer in layers if isinstance(layer, Conv)}
        if names == ours and _is_backbone(Backbone(layers), kernels, ""):
            found.append(name)
    return found


def _kernels(weights: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {
        key.rpartition("/")[0]: value for key, value in weights.items() if key.endswith("/kernel")
    }


def network_of(
    weights: Mapping[str, np.ndarray], name: str | None = None, padding: Padding | None = None
) -> FCN:
    """The network of some weights: backbone, decoder, widths, classes, heads and inputs.

    Args:
        weights: Arrays by ``layer/kernel`` and ``layer/bias``, as `fcn_jax.weights.load` gives.
        name: The network (``fcn8s_atonce``), where it is not the one that the layers suggest.
        padding: That of the published networks, ``reference``, where None (of a classifier,
            ``native``); networks trained here have ``same`` unless their config says otherwise.

    Returns:
        The network.

    Raises:
        ValueError: If the layers are no backbone's, or it has neither scores nor a classifier.
    """
    kernels = _kernels(weights)
    fits = [
        (len(table.layers), backbone, table, streams)
        for backbone, build in BACKBONES.items()
        if (table := build("reference", 1.0, 4096)) and (streams := _streams(table, kernels))
    ]
    if not fits and (trunks := backbones_of(weights)):
        raise ValueError(
            f"the file has the backbone of {' or '.join(trunks)} without fc6, fc7 and scores: nothing "
            "that scores classes; train a network from it with train.py --config.init"
        )
    if not fits:
        raise ValueError(
            f"the layers {', '.join(list(kernels)[:4])} … are of none of the backbones "
            f"{', '.join(BACKBONES)}; build the network with create_model, and use transplant"
        )
    _, backbone, table, streams = max(fits, key=lambda fit: fit[0])
    suffix = streams[0]
    first, last = table.layers[0], table.layers[-1]
    widest = max(
        (layer for layer in table.layers if isinstance(layer, Conv) and not layer.dropout),
        key=lambda layer: layer.channels,  # the one that rounding distorts least
    )
    decoder, heads = _decoder(table, kernels, suffix)
    scaled_pools = [text for text in getattr(weights, "skipped", ()) if "scale_pool" in text]
    if decoder == "fcn8s" and scaled_pools:
        decoder = "fcn8s_atonce"
    fc6 = kernels[f"{last.name}{suffix}"] if isinstance(last, Conv) else None
    inputs = {stream or "image": _in_channels(first, kernels, stream) for stream in streams}
    return create_model(
        name or decoder,
        backbone=backbone,
        num_classes=heads,
        inputs=inputs,
        width=kernels[f"{widest.name}{suffix}"].shape[-1] / widest.channels,
        fc_width=fc6.shape[-1] if fc6 is not None else 1,
        padding=padding or ("native" if (name or decoder) == "classifier" else "reference"),
        learned_upsampling="none",
    )


def usual_inputs(
    weights: Mapping[str, np.ndarray], model: FCN, feature: str | None = None
) -> Inputs:
    """What the network of some weights reads, and how that is normalised.

    Files of Caffe do not say it. Two inputs and four channels are those of NYUDv2, 40 classes
    its colour network unless ``feature`` says ``hha``, the two heads SIFT Flow's; all others have
    the ImageNet mean.

    Raises:
        ValueError: If the inputs fit neither what the file says nor a published network.
    """
    from fcn_jax.data import DATASETS

    given = getattr(weights, "preprocessing", None) or CAFFE
    streams = dict(model.inputs)
    only = next(iter(streams))
    heads = dict(model.heads)
    nyud, sift = (dict(DATASETS[name].preprocessing) for name in ("nyudv2", "sift_flow"))
    if given != CAFFE:
        inputs = Inputs.of(given)
    elif set(streams) == {"color", "hha"}:
        inputs = Inputs.of({"color": {"image": nyud["image"]}, "hha": {"hha": nyud["hha"]}})
    elif list(streams.values()) == [4]:
        inputs = Inputs.of({only: {"image": nyud["image"], "depth": nyud["depth"]}})
    elif feature == "hha":
        inputs = Inputs.of({only: {"hha": nyud["hha"]}})
    elif list(heads.values()) == [40]:
        inputs = Inputs.of({only: {"image": nyud["image"]}})
    elif set(heads) == {"sem", "geo"}:
        inputs = Inputs.of({only: {"image": sift["image"]}})
    else:
        inputs = Inputs.of({only: {"image": CAFFE}})
    if sorted(inputs.channels.values()) != sorted(streams.values()):
        raise ValueError(
            f"the network reads {streams} channels; what its inputs are is not known: use "
            "fcn_jax.Predictor with fcn_jax.Inputs"
        )
    return inputs


def params_of(weights: Mapping[str, np.ndarray], model: FCN) -> dict[str, Any]:
    """The parameters of a network, all of them from the weights, but for bilinear transposed convolutions.

    Raises:
        ValueError: If an array is missing, or of another shape.
    """
    import jax

    params, report = transplant(abstract_params(model), weights)
    left = [name for name in report.left if name.rpartition("/")[0] not in model.upsampling_layers]
    if left:
        raise ValueError(f"missing in the file: {', '.join(left)}")
    bilinear = initial_params(model, jax.random.key(0), report.left)
    return unflatten({**flatten(params), **bilinear})


def _streams(table: Backbone, kernels: Mapping[str, np.ndarray]) -> list[str]:
    """The suffixes under which all layers of a backbone are there; none if it is another backbone."""
    first = table.layers[0].name
    suffixes = [layer.removeprefix(first) for layer in kernels if layer.startswith(first)]
    return [suffix for suffix in suffixes if _is_backbone(table, kernels, suffix)]


def _is_backbone(table: Backbone, kernels: Mapping[str, np.ndarray], suffix: str) -> bool:
    """Whether every convolution of a backbone is there, of its kernel and groups."""
    channels: dict[str, int] = {}
    last = ""
    for layer in table.layers:
        if isinstance(layer, Concat):
            channels[layer.name] = sum(channels[name] for name in layer.sources)
        elif isinstance(layer, Conv):
            kernel = kernels.get(f"{layer.name}{suffix}")
            if kernel is None:
                return False
            before = channels.get(layer.source or last)
            if not _fits(layer, kernel, before):
                return False
            channels[layer.name] = kernel.shape[-1]
        else:
            channels[layer.name] = channels[layer.source or last]
        last = layer.name
    return True


def _fits(layer: Conv, kernel: np.ndarray, before: int | None) -> bool:
    size = layer.window.kernel
    if kernel.ndim == 2:  # dense, as classifiers have them
        return before is None or kernel.shape[0] == size * size * before
    same = kernel.shape[:2] == (size, size)
    return same and (before is None or kernel.shape[2] * layer.groups == before)


def _in_channels(first: Any, kernels: Mapping[str, np.ndarray], suffix: str) -> int:
    return kernels[f"{first.name}{suffix}"].shape[2]


def _decoder(
    table: Backbone, kernels: Mapping[str, np.ndarray], suffix: str
) -> tuple[str, int | dict[str, int]]:
    """The network's name, and its classes by head."""
    scores = [
        layer.removeprefix("score_fr").removesuffix(suffix)
        for layer in kernels
        if layer.startswith("score_fr") and layer.endswith(suffix)
    ]
    if not scores:
        if table.classifier not in kernels:
            raise ValueError(
                f"the file has a backbone, but neither score_fr nor {table.classifier}: nothing that "
                "scores classes; train a network from it with train.py --config.init"
            )
        return "classifier", kernels[table.classifier].shape[-1]
    head = scores[0]
    skips = sum(f"score_{feature}{head}{suffix}" in kernels for feature in table.skips)
    classes = {
        name.removeprefix("_"): kernels[f"score_fr{name}{suffix}"].shape[-1] for name in scores
    }
    return ("fcn32s", "fcn16s", "fcn8s")[skips], classes if head else classes[""]
