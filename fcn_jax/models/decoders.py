"""What follows a backbone: the tables of the decoders, and how a decoder lies over a backbone.

The published crops, kernels and names of the transposed convolutions follow from `align`.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Iterable, Mapping, Sequence

from fcn_jax.geometry import PIXELS, Geometry, TransposedWindow, Window, crop_offset
from fcn_jax.models.backbones import Add, Backbone, Concat, Conv, Layer, Pool

# ======================================================================== tables


@dataclasses.dataclass(frozen=True)
class Decoder:
    """What follows the backbone.

    Attributes:
        skips: One entry for each finer map whose scores are added, from coarse to fine: the fixed
            factor on the map before its score layer (1 but for FCN-8s at-once).
        upsample: Whether scores are brought to the image's size; False is a classifier, whose
            map of class scores stays at the backbone's stride.
        interpolate: Whether that is done by interpolation, as in torchvision's FCNs: the border of
            the map is laid over the border of the image, whatever its size. Otherwise by a
            transposed convolution.
    """

    skips: tuple[float, ...] = ()
    upsample: bool = True
    interpolate: bool = False


DECODERS: dict[str, Decoder] = {
    "fcn32s": Decoder(),
    "fcn16s": Decoder((1.0,)),
    "fcn8s": Decoder((1.0, 1.0)),
    "fcn8s_atonce": Decoder((0.01, 0.0001)),
    "fcn4s": Decoder((1.0,) * 3),  # these two go further than the paper
    "fcn2s": Decoder((1.0,) * 4),
    "fcn_interpolated": Decoder(interpolate=True),
    "classifier": Decoder(upsample=False),
}

SEGMENTERS = tuple(name for name, decoder in DECODERS.items() if decoder.upsample)
"""The networks that score every pixel."""

# ======================================================================== layers

CELL = Window(1)
"""The window of what works cell by cell."""


def window_of(layer: Layer) -> Window:
    """The window a layer reads its input through."""
    return layer.window if isinstance(layer, Conv | Pool) else CELL


def sources_of(layer: Layer, before: Iterable[str]) -> tuple[str, ...]:
    """The maps that a layer reads, given those before it; an empty name is the image."""
    before = list(before)
    last = before[-1] if before else ""
    names = layer.sources if isinstance(layer, Concat | Add) else (layer.source or last,)
    if unknown := [name for name in names if name and name not in before]:
        raise ValueError(
            f"{layer.name} reads {unknown[0]!r}, which is no layer before it; there are "
            f"{', '.join(filter(None, before)) or 'none'}"
        )
    return names


@functools.cache
def smallest_input(layers: tuple[Layer, ...]) -> int:
    """The fewest cells a side that some layers can take."""
    size = 1
    while min(cells_of(layers, size).values()) < 1:
        size += 1
    return size


def cells_of(layers: tuple[Layer, ...], size: int) -> dict[str, int]:
    """The cells along a side of every map, by name, of an image of so many pixels."""
    cells = {"": size}
    for layer, (source, *_) in zip(layers, maps_read(layers), strict=True):
        cells[layer.name] = window_of(layer).cells(cells[source])
    return cells


@functools.cache
def maps_read(layers: tuple[Layer, ...]) -> list[tuple[str, ...]]:
    """The maps that each layer reads."""
    names = ["", *(layer.name for layer in layers)]
    return [sources_of(layer, names[: n + 1]) for n, layer in enumerate(layers)]


@functools.cache
def segments(
    layers: tuple[Layer, ...], scored: tuple[str, ...]
) -> list[tuple[tuple[Layer, ...], frozenset[str]]]:
    """The layers up to each pooling or sum, and which maps layers or scores read after them."""
    reads = maps_read(layers)
    ends = [n for n, layer in enumerate(layers, 1) if isinstance(layer, Pool | Add)]
    ends += [len(layers)] * (ends[-1:] != [len(layers)])
    return [
        (layers[start:end], frozenset([layers[end - 1].name, *scored, *sum(reads[end:], ())]))
        for start, end in zip([0, *ends], ends, strict=False)
    ]


# ======================================================================== alignment


@dataclasses.dataclass(frozen=True)
class Skip:
    """One skip of a network; its score layer is ``score_<source>``.

    Attributes:
        upsample: Name of the transposed convolution of the scores so far.
        source: Name of the backbone's map.
        scale: Fixed factor on the map before its score layer.
    """

    upsample: str
    source: str
    scale: float


@dataclasses.dataclass(frozen=True)
class Alignment:
    """Where every map of a network lies over the image, and the crops that follow.

    Attributes:
        geometry: Stride, offset and receptive field of every map by name.
        skips: The skips, from coarse to fine.
        final: Name of the last transposed convolution; None for a classifier, and where scores are
            interpolated.
        transposed_windows: Kernel and factor of every transposed convolution by name.
        crops: The offset of every crop by the layer that is cropped in the published networks: the
            skip's score layer, and the last transposed convolution. A negative offset of a skip
            means that the upsampled scores are cropped instead, by as much.
    """

    geometry: Mapping[str, Geometry]
    skips: tuple[Skip, ...]
    final: str | None
    transposed_windows: Mapping[str, TransposedWindow]
    crops: Mapping[str, int]


@functools.cache
def align(backbone: Backbone, decoder: Decoder) -> Alignment:
    """Aligns a decoder with a backbone; raises ValueError if they do not fit together."""
    if not decoder.upsample:
        if not backbone.classifier:
            raise ValueError("the backbone has no classifier; build a network that scores pixels")
        layers = (*backbone.layers, *backbone.classifier_pool)
        geometry = backbone_geometry(layers)
        geometry[backbone.classifier] = geometry[layers[-1].name]
        return Alignment(geometry, (), None, {}, {})
    geometry = backbone_geometry(backbone.layers)
    windows: dict[str, TransposedWindow] = {}
    crops: dict[str, int] = {}
    scores = geometry["score_fr"] = geometry[backbone.layers[-1].name]
    skips = _skips(backbone, decoder)
    for skip in skips:
        fine = geometry[f"score_{skip.source}"] = geometry[skip.source]
        windows[skip.upsample] = _bilinear_window(skip.upsample, scores, fine)
        up = geometry[skip.upsample] = scores.then(windows[skip.upsample])
        offset = crops[f"score_{skip.source}"] = crop_offset(fine, up)
        scores = geometry[f"fuse_{skip.source}"] = dataclasses.replace(
            up if offset >= 0 else fine,
            receptive_field=max(up.receptive_field, fine.receptive_field),
        )
    if decoder.interpolate:
        _check_interpolation(backbone.layers, scores)
        return Alignment(geometry, skips, None, windows, crops)
    final = f"upscore{scores.stride}" if skips else "upscore"
    if final in windows:  # from stride 2: upscore2 is the first, whatever its factor
        final = "upscore"
    windows[final] = _bilinear_window(final, scores, PIXELS)
    geometry[final] = scores.then(windows[final])
    crops[final] = crop_offset(geometry[final], PIXELS)
    return Alignment(geometry, skips, final, windows, crops)


def backbone_geometry(layers: Sequence[Layer]) -> dict[str, Geometry]:
    """Stride, offset and receptive field of every map of a backbone, by name."""
    geometry: dict[str, Geometry] = {}
    for layer in layers:
        sources = [geometry[name] if name else PIXELS for name in sources_of(layer, geometry)]
        if layer.name in geometry:
            raise ValueError(f"the backbone has two layers called {layer.name!r}")
        if len({(source.stride, source.offset) for source in sources}) > 1:
            raise ValueError(f"the maps of {layer.name} do not lie over each other: {sources}")
        widest = max(sources, key=lambda source: source.receptive_field)
        geometry[layer.name] = widest.then(window_of(layer))
    _check_poolings(tuple(layers))
    return geometry


def _check_poolings(layers: tuple[Layer, ...]) -> None:
    """Raises ValueError if the zeros beyond a map, on a larger canvas, could win a max pooling."""
    may_be_negative = {"": True}
    for layer, sources in zip(layers, maps_read(layers), strict=True):
        negative = any(may_be_negative[name] for name in sources)
        if isinstance(layer, Pool) and not layer.average:
            if negative and (layer.window.pad or layer.window.ceil):
                raise ValueError(
                    f"{layer.name} takes the largest values of {sources[0] or 'the image'}, which "
                    "may all be negative, and reaches beyond it (pad, ceil); let it read a layer "
                    "with ReLU"
                )
        elif isinstance(layer, Conv):
            negative = not layer.relu
        elif isinstance(layer, Add):
            negative = negative and not layer.relu
        may_be_negative[layer.name] = negative


def _check_interpolation(layers: tuple[Layer, ...], scores: Geometry) -> None:
    """Raises ValueError unless the last map covers each image with no cell more than needed."""
    stride = math.ceil(scores.stride)
    exact = all(
        cells_of(layers, size)[layers[-1].name] == -(-size // stride)
        for size in range(1, 4 * stride + 1)
    )
    if not (exact and 0 <= scores.offset < stride == scores.stride):
        raise ValueError(
            "the backbone's last map reaches beyond the image or does not cover it, so that its "
            "scores cannot be interpolated; take padding='same', or another network than "
            "fcn_interpolated"
        )


def _skips(backbone: Backbone, decoder: Decoder) -> tuple[Skip, ...]:
    """The skips with the Caffe names of their transposed convolutions."""
    known = [layer.name for layer in backbone.layers]
    sources = backbone.skips[: len(decoder.skips)]
    if missing := [name for name in sources if name not in known]:
        raise ValueError(
            f"the backbone has no map {missing[0]!r} to skip from; it has {', '.join(known)}"
        )
    if len(sources) < len(decoder.skips):
        raise ValueError(
            f"the network needs {len(decoder.skips)} maps to skip from, the backbone names "
            f"{', '.join(sources) or 'none'}; list their names as Backbone(skips=…)"
        )
    names = ["upscore2", *(f"upscore_{source}" for source in sources)]
    return tuple(map(Skip, names, sources, decoder.skips))


def _bilinear_window(name: str, source: Geometry, target: Geometry) -> TransposedWindow:
    """The bilinear transposed convolution from one map to another's stride.

    Its kernel is ``2 factor`` as a rule, and ``2 factor - 1`` where only so the cells coincide (63
    instead of 64 for FCN-AlexNet).
    """
    factor = source.stride / target.stride
    if factor.denominator != 1 or factor < 2:
        raise ValueError(
            f"{name} would upsample from stride {source.stride} to {target.stride}; "
            "skips must go from coarse to fine by whole factors"
        )
    even = TransposedWindow.bilinear(int(factor))
    odd = TransposedWindow(2 * even.factor - 1, even.factor)
    distance = (source.then(odd).offset - target.offset) / target.stride
    return odd if distance.denominator == 1 else even
