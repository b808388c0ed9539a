"""Fully convolutional networks: trunks, score layers, and up-convolutions with skips.

One module runs every variant. What differs between FCN-32s, 16s, 8s and 8s at-once is a row of
`DECODERS`; what differs between trunks is a table in `fcn_jax.backbones`; crops and output sizes
follow from `fcn_jax.alignment`. A network may have several inputs (streams), each with a trunk of
its own, and several outputs (heads), which share the trunks.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import operator
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import traverse_util
from jaxtyping import Array, Float, Int

from fcn_jax import ops
from fcn_jax.alignment import PIXELS, Geometry, UpWindow, Window, crop_offset, overlap
from fcn_jax.backbones import (
    PADDINGS,
    Backbone,
    BackboneBuilder,
    Concat,
    Conv,
    Layer,
    Norm,
    Padding,
    Pool,
    find_backbone,
)
from fcn_jax.extents import Extent, fill_beyond, fused, through

# ======================================================================== tables


@dataclasses.dataclass(frozen=True)
class Decoder:
    """What follows the trunk.

    Attributes:
        skips: One entry for each finer map whose scores are added, from coarse to fine: the fixed
            factor on the map before its score layer (1 but for FCN-8s at-once).
        upsample: Whether scores are brought to the image's size; False is a classifier, whose
            map of class scores stays at the trunk's stride.
    """

    skips: tuple[float, ...] = ()
    upsample: bool = True


DECODERS: dict[str, Decoder] = {
    "fcn32s": Decoder(),
    "fcn16s": Decoder((1.0,)),
    "fcn8s": Decoder((1.0, 1.0)),
    "fcn8s_atonce": Decoder((0.01, 0.0001)),
    "classifier": Decoder(upsample=False),
}

SEGMENTERS = tuple(name for name, decoder in DECODERS.items() if decoder.upsample)
"""The networks that score every pixel."""

# ======================================================================== alignment


@dataclasses.dataclass(frozen=True)
class Skip:
    """One skip of a network.

    Attributes:
        upsample: Name of the up-convolution of the scores so far.
        feature: Name of the trunk's map; its score layer is ``score_<feature>``.
        scale: Fixed factor on the map before its score layer.
    """

    upsample: str
    feature: str
    scale: float


@dataclasses.dataclass(frozen=True)
class Alignment:
    """Where every map of a network lies over the image, and the crops that follow.

    Attributes:
        geometry: Stride, offset and receptive field of every map by name.
        skips: The skips, from coarse to fine.
        final: Name of the last up-convolution; None for a classifier.
        up_windows: Kernel and factor of every up-convolution by name.
        crops: The offset of every crop under the name of the layer that is cropped in the
            published networks: the skip's score layer, and the last up-convolution. A negative
            offset of a skip means that the upsampled scores are cropped instead, by as much.
    """

    geometry: Mapping[str, Geometry]
    skips: tuple[Skip, ...]
    final: str | None
    up_windows: Mapping[str, UpWindow]
    crops: Mapping[str, int]


@functools.cache
def align(backbone: Backbone, decoder: Decoder) -> Alignment:
    """Aligns a decoder with a trunk.

    Up-convolutions are bilinear: of kernel ``2 factor`` as a rule, and of ``2 factor - 1`` where
    only so the cells coincide (63 instead of 64 for FCN-AlexNet).

    Raises:
        ValueError: If a layer reads a map that is not there, or maps that do not lie over each
            other; if the decoder needs more skips than the trunk names, the strides of the skips
            do not divide each other, or the cells cannot be made to coincide.
    """
    skips: list[Skip] = []
    up_windows: dict[str, UpWindow] = {}
    crops: dict[str, int] = {}
    if not decoder.upsample:
        layers = (*backbone.layers, *backbone.classifier_pool)
        geometry = trunk_geometry(layers)
        geometry[backbone.classifier] = geometry[layers[-1].name]
        return Alignment(geometry, (), None, up_windows, crops)
    geometry = trunk_geometry(backbone.layers)
    current = geometry["score_fr"] = geometry[backbone.layers[-1].name]

    def upsample(name: str, source: Geometry, target: Geometry) -> Geometry:
        up_windows[name] = _bilinear_window(name, source, target)
        geometry[name] = source.then(up_windows[name])
        return geometry[name]

    for name, feature, scale in _named_skips(backbone, decoder):
        fine = geometry[f"score_{feature}"] = geometry[feature]
        up = upsample(name, current, fine)
        offset = crops[f"score_{feature}"] = crop_offset(fine, up)
        current = geometry[f"fuse_{feature}"] = dataclasses.replace(
            up if offset >= 0 else fine,
            receptive_field=max(up.receptive_field, fine.receptive_field),
        )
        skips.append(Skip(name, feature, scale))
    final = f"upscore{current.stride}" if skips else "upscore"
    if final in up_windows:  # from stride 2: upscore2 is the first, whatever its factor
        final = "upscore"
    up = upsample(final, current, PIXELS)
    crops[final] = crop_offset(up, PIXELS)
    return Alignment(geometry, tuple(skips), final, up_windows, crops)


def trunk_geometry(layers: Sequence[Layer]) -> dict[str, Geometry]:
    """Stride, offset and receptive field of every map of a trunk, by name.

    Raises:
        ValueError: If a layer reads a map that is not there, two have one name, or the maps that
            a layer concatenates do not lie over each other.
    """
    geometry: dict[str, Geometry] = {}
    for layer in layers:
        sources = [geometry[name] if name else PIXELS for name in _sources(layer, geometry)]
        if layer.name in geometry:
            raise ValueError(f"the trunk has two layers called {layer.name!r}")
        if len({(source.stride, source.offset) for source in sources}) > 1:
            raise ValueError(f"the maps of {layer.name} do not lie over each other: {sources}")
        widest = max(sources, key=lambda source: source.receptive_field)
        window = _window(layer)
        geometry[layer.name] = widest.then(window) if window else widest
    return geometry


def _sources(layer: Layer, before: Iterable[str]) -> tuple[str, ...]:
    """The maps that a layer reads, given those before it; an empty name is the image."""
    before = list(before)
    last = before[-1] if before else ""
    names = layer.sources if isinstance(layer, Concat) else (layer.source or last,)
    if unknown := [name for name in names if name and name not in before]:
        raise ValueError(
            f"{layer.name} reads {unknown[0]!r}, which is no layer before it; there are "
            f"{', '.join(before) or 'none'}"
        )
    return names


def _named_skips(backbone: Backbone, decoder: Decoder) -> list[tuple[str, str, float]]:
    """Up-convolution, map and scale of every skip; the Caffe names of the up-convolutions."""
    known = [layer.name for layer in backbone.layers]
    features = backbone.skips[: len(decoder.skips)]
    if missing := [name for name in features if name not in known]:
        raise ValueError(
            f"the trunk has no map {missing[0]!r} to skip from; it has {', '.join(known)}"
        )
    if len(features) < len(decoder.skips):
        raise ValueError(
            f"the network needs {len(decoder.skips)} maps to skip from, the trunk names "
            f"{', '.join(features) or 'none'}; list their names as Backbone(skips=…)"
        )
    names = ["upscore2", *(f"upscore_{feature}" for feature in features)]
    return list(zip(names, features, decoder.skips, strict=False))


def _bilinear_window(name: str, source: Geometry, target: Geometry) -> UpWindow:
    """The bilinear up-convolution from one map to another's stride."""
    factor = source.stride / target.stride
    if factor.denominator != 1 or factor < 2:
        raise ValueError(
            f"{name} would upsample from stride {source.stride} to {target.stride}; "
            "skips must go from coarse to fine by whole factors"
        )
    even = UpWindow.bilinear(int(factor))
    odd = UpWindow(2 * even.factor - 1, even.factor)
    for window in (even, odd):
        distance = (source.then(window).offset - target.offset) / target.stride
        if distance.denominator == 1:
            return window
    return even  # crop_offset tells what is wrong


# ======================================================================== initial values

_he_normal = nn.initializers.variance_scaling(2.0, "fan_in", "normal")


def _centred_kernel(key: Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> Array:
    """He normal (He et al. 2015) whose weights add up to zero in each filter.

    What leaves a ReLU has a large mean, and through many layers of plain random filters only that
    mean survives: all cells look alike, and training from scratch stalls for epochs. Filters that
    add up to zero do not see it. The factor restores the variance that the mean took part in:
    after a ReLU, E[x^2] / Var[x] = 1 / (1 - 1 / pi).
    """
    kernel = _he_normal(key, shape, dtype)
    if shape[0] * shape[1] * shape[2] > 1:
        kernel -= kernel.mean((0, 1, 2), keepdims=True)
    return kernel * (1 - 1 / math.pi) ** -0.5


def _first_kernel(key: Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> Array:
    """He normal for pixels on the 0..255 scale, whose standard deviation is about 64."""
    return _he_normal(key, shape, dtype) / 64


def _bilinear(key: Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> Array:
    del key  # nothing about it is random
    return jnp.asarray(ops.bilinear_kernel(shape[0], shape[-1]), dtype)


# ======================================================================== the module


class UpConv(nn.Module):
    """Up-convolution without bias, started as bilinear interpolation.

    Attributes:
        features: Channels in and out.
        window: Kernel size and factor.
        learned: Whether the kernel receives a gradient.
    """

    features: int
    window: UpWindow
    learned: bool

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 c"]:
        size = self.window.kernel
        kernel = self.param("kernel", _bilinear, (size, size, self.features, self.features))
        if not self.learned:
            kernel = jax.lax.stop_gradient(kernel)
        return ops.up_convolution(x, kernel, self.window.factor)


@dataclasses.dataclass(frozen=True)
class _Maps:
    """The maps of a forward pass, and the images' extents in them, by layer name."""

    arrays: dict[str, Array]
    extents: dict[str, Extent]

    def add(self, name: str, array: Array, extent: Extent) -> None:
        """Files a map; beyond its images it is set to zero, whatever a bias left there."""
        self.arrays[name] = fill_beyond(array, extent)
        self.extents[name] = extent


def _window(layer: Layer) -> Window | None:
    return layer.window if isinstance(layer, Conv | Pool) else None


class FCN(nn.Module):
    """A fully convolutional network; build it with `create_model`.

    Parameters are keyed by the Caffe layer names: ``conv1_1`` ... ``fc7``, ``score_fr``,
    ``score_pool4``, ``upscore2`` and so on, each with ``kernel`` (height, width, in, out) and,
    but for the up-convolutions, ``bias``. With several streams the layers of each have its name
    appended (``conv1_1hha``, ``score_frhha``), with several heads ``_`` and the head's name
    (``score_fr_sem``, ``upscore_sem``), as in the published networks.

    Attributes:
        heads: Name and number of classes of every output.
        streams: Name and number of channels of every input; each has a trunk of its own.
        backbone: The trunk's table.
        decoder: What follows the trunk.
        dropout: Rate after the layers that the trunk marks.
        learned_upsampling: Names of the up-convolutions that are trained, without a head's name.
    """

    heads: tuple[tuple[str, int], ...]
    streams: tuple[tuple[str, int], ...]
    backbone: Backbone
    decoder: Decoder
    dropout: float = 0.5
    learned_upsampling: tuple[str, ...] = ()

    @nn.compact
    def __call__(
        self,
        images: Float[Array, "b h w c"] | Mapping[str, Float[Array, "b h w c"]],
        *,
        sizes: Int[Array, "b 2"] | None = None,
        train: bool = False,
        return_maps: bool = False,
    ) -> Any:
        """Scores every pixel; as a classifier, every cell of the trunk's last map.

        Args:
            images: Float images already normalised (`fcn_jax.Preprocessing`), of any height and
                width from 1 up (a classifier fills smaller images than it was trained on with
                zeros, below and to the right). With several streams a dictionary of them by name.
            sizes: True height and width of each image, where they lie in the top left corners of
                a larger canvas. Each then gets the scores that it would get alone.
            train: Whether dropout is active; it then needs ``rngs={"dropout": key}``.
            return_maps: Whether to return every intermediate map as well.

        Returns:
            Logits (b, h, w, num_classes), 0 beyond an image's size; with several heads a dictionary
            of them by name. With ``return_maps`` a pair of that and a dictionary of all maps by
            layer name, up-convolutions uncropped.

        Raises:
            ValueError: If the images have another rank, are not floating point, differ in size,
                or the streams are others; or if they are too small for the trunk's padding.
        """
        inputs = self._checked(images)
        if self.classifies:
            inputs = {name: _enlarged(x, self.smallest_image) for name, x in inputs.items()}
        maps = _Maps({}, {})
        for stream, x in inputs.items():
            self._run_trunk(maps, fill_beyond(x, sizes), sizes, train, self._stream_suffix(stream))
        size = next(iter(inputs.values())).shape[1:3]
        beyond = None if self.classifies else sizes  # a classifier's map has zeros there
        logits = {
            head: fill_beyond(self._decode(maps, suffix, classes, size), beyond)
            for (head, classes), suffix in zip(self.heads, self.head_suffixes(), strict=True)
        }
        result = logits if len(logits) > 1 else next(iter(logits.values()))
        return (result, maps.arrays) if return_maps else result

    def _run_trunk(
        self, maps: _Maps, image: Array, sizes: Extent, train: bool, suffix: str
    ) -> None:
        """Runs the layer table on one stream; adds its maps as they leave ReLU and dropout."""
        before: list[str] = []
        for layer in self._layers:
            sources = [f"{name}{suffix}" if name else "" for name in _sources(layer, before)]
            read = [maps.arrays[name] if name else image for name in sources]
            extent = maps.extents[sources[0]] if sources[0] else sizes
            if isinstance(layer, Pool) and not sources[0]:  # other maps are not negative
                read = [fill_beyond(read[0], extent, -jnp.inf)]
            result = self._run(layer, read, train, suffix)
            maps.add(f"{layer.name}{suffix}", result, through(_window(layer), extent))
            before.append(layer.name)

    def _run(self, layer: Layer, read: list[Array], train: bool, suffix: str) -> Array:
        """One layer of the table."""
        x = read[0]
        if isinstance(layer, Conv | Pool):
            self._check_size(layer, x)
        if isinstance(layer, Conv):
            first = layer == self.backbone.layers[0]
            x = nn.Conv(
                layer.features,
                (layer.window.kernel, layer.window.kernel),
                strides=layer.window.stride,
                padding=layer.window.pad,
                feature_group_count=layer.groups,
                kernel_init=_first_kernel if first else _centred_kernel,
                conv_general_dilated=ops.convolution,
                name=f"{layer.name}{suffix}",
            )(x)
            x = nn.relu(x)
        elif isinstance(layer, Pool):
            x = (ops.average_pool if layer.average else ops.max_pool)(x, layer.window)
        elif isinstance(layer, Norm):
            x = ops.local_response_norm(x, layer.size, layer.alpha, layer.beta)
        else:
            x = jnp.concatenate(read, axis=-1)
        if getattr(layer, "dropout", False):
            x = nn.Dropout(self.dropout, deterministic=not train)(x)
        return x

    def _decode(self, maps: _Maps, head: str, classes: int, size: tuple[int, ...]) -> Array:
        """The scores of one head; adds its maps."""
        alignment = self.alignment
        if alignment.final is None:
            last = self._layers[-1].name
            return maps.arrays[self._score(maps, self.backbone.classifier, last, head, classes)]

        scores = self._score(maps, "score_fr", self.backbone.layers[-1].name, head, classes)
        for skip in alignment.skips:
            up = self._up_convolution(maps, skip.upsample, head, classes, scores)
            name = f"score_{skip.feature}"
            fine = self._score(maps, name, skip.feature, head, classes, skip.scale)
            offset = alignment.crops[name]
            scores = f"fuse_{skip.feature}{head}"
            maps.add(
                scores,
                _fuse(maps.arrays[fine], maps.arrays[up], offset),
                fused(offset, maps.extents[fine], maps.extents[up]),
            )
        up = self._up_convolution(maps, alignment.final, head, classes, scores)
        return _crop_to_image(maps.arrays[up], alignment.crops[alignment.final], size)

    def _score(
        self,
        maps: _Maps,
        name: str,
        feature: str,
        head: str,
        classes: int,
        scale: float = 1.0,
    ) -> str:
        """Adds the scores of a map of the trunk, and returns their name.

        With several streams it is the name of their mean (late fusion).
        """
        names = []
        for stream, _ in self.streams:
            suffix = self._stream_suffix(stream)
            layer = nn.Conv(
                classes,
                (1, 1),
                padding=0,
                kernel_init=nn.initializers.zeros_init(),
                conv_general_dilated=ops.convolution,
                name=f"{name}{head}{suffix}",
            )
            read = f"{feature}{suffix}"
            names.append(f"{name}{head}{suffix}")
            maps.add(names[-1], layer(maps.arrays[read] * scale), maps.extents[read])
        if len(names) == 1:
            return names[0]
        mean = f"{name.replace('score_fr', 'score')}{head}_fused"
        scores = [maps.arrays[name] for name in names]
        maps.add(mean, functools.reduce(operator.add, scores) / len(scores), maps.extents[names[0]])
        return mean

    def _up_convolution(self, maps: _Maps, name: str, head: str, classes: int, scores: str) -> str:
        """Adds the up-convolution of some scores, and returns its name."""
        window, learned = self.alignment.up_windows[name], name in self.learned_upsampling
        up = UpConv(classes, window, learned, name=f"{name}{head}")(maps.arrays[scores])
        maps.add(f"{name}{head}", up, through(window, maps.extents[scores]))
        return f"{name}{head}"

    # ---- checks

    def _checked(self, images: Any) -> dict[str, Array]:
        """The images by stream."""
        names = [name for name, _ in self.streams]
        if not isinstance(images, Mapping) and len(names) == 1:
            images = {names[0]: images}
        given = set(images) if isinstance(images, Mapping) else {"one array"}
        if given != set(names):
            raise ValueError(
                f"the network reads {', '.join(names)}, it was given {', '.join(sorted(given))}; "
                "pass a dictionary with an array for each"
            )
        inputs = dict(images)
        for name, channels in self.streams:
            _check_images(inputs[name], channels)
        if len({image.shape[:3] for image in inputs.values()}) > 1:
            shapes = {name: image.shape for name, image in inputs.items()}
            raise ValueError(f"the inputs must have one batch, height and width, got {shapes}")
        return {name: inputs[name] for name in names}

    def _check_size(self, layer: Conv | Pool, x: Array) -> None:
        try:
            for size in x.shape[1:3]:
                layer.window.output_size(size)
        except ValueError as error:
            raise ValueError(
                f"the image is too small for {layer.name} ({error}); images must have at least "
                f"{self.smallest_image} pixels a side"
            ) from None

    # ---- properties

    def _stream_suffix(self, stream: str) -> str:
        return stream if len(self.streams) > 1 else ""

    def head_suffixes(self) -> tuple[str, ...]:
        """What is appended to the names of each head's layers."""
        return tuple(f"_{name}" for name, _ in self.heads) if len(self.heads) > 1 else ("",)

    @property
    def alignment(self) -> Alignment:
        """Geometry of every map, windows of the up-convolutions, and the crops."""
        return align(self.backbone, self.decoder)

    @property
    def classifies(self) -> bool:
        """Whether the network is a classifier, whose scores stay a coarse map."""
        return not self.decoder.upsample

    @property
    def _layers(self) -> tuple[Layer, ...]:
        """The layers before the scores."""
        pool = self.backbone.classifier_pool if self.classifies else ()
        return (*self.backbone.layers, *pool)

    @property
    def smallest_image(self) -> int:
        """The fewest pixels a side that the layers can take; a classifier fills up smaller ones."""
        return smallest_input(self._layers)

    @property
    def score_layers(self) -> tuple[str, ...]:
        """The layers whose shape depends on the number of classes."""
        names = ["score_fr", *(f"score_{skip.feature}" for skip in self.alignment.skips)]
        if self.alignment.final is None:
            names = [self.backbone.classifier]
        scores = tuple(
            f"{name}{head}{self._stream_suffix(stream)}"
            for name in names
            for head in self.head_suffixes()
            for stream, _ in self.streams
        )
        return (*scores, *self.upsampling_layers)

    @property
    def upsampling_layers(self) -> tuple[str, ...]:
        """The up-convolutions, from coarse to fine."""
        return tuple(
            f"{name}{head}" for name in self.alignment.up_windows for head in self.head_suffixes()
        )

    @property
    def frozen_layers(self) -> tuple[str, ...]:
        """The up-convolutions that stay as they are."""
        return tuple(
            f"{name}{head}"
            for name in self.alignment.up_windows
            if name not in self.learned_upsampling
            for head in self.head_suffixes()
        )


def smallest_input(layers: Sequence[Layer]) -> int:
    """The fewest cells a side that a chain of layers can take."""

    def fits(size: int) -> bool:
        sizes: dict[str, int] = {}
        try:
            for layer in layers:
                before = next(sizes[name] if name else size for name in _sources(layer, sizes))
                window = _window(layer)
                sizes[layer.name] = window.output_size(before) if window else before
        except ValueError:
            return False
        return True

    size = 1
    while not fits(size):
        size += 1
    return size


def _fuse(fine: Array, up: Array, offset: int) -> Array:
    """Adds two score maps where they overlap; ``offset`` is that of ``fine`` against ``up``."""
    rows_fine, rows_up = overlap(offset, fine.shape[1], up.shape[1])
    columns_fine, columns_up = overlap(offset, fine.shape[2], up.shape[2])
    return fine[:, rows_fine, columns_fine] + up[:, rows_up, columns_up]


def _crop_to_image(up: Array, offset: int, size: tuple[int, ...]) -> Array:
    height, width = size
    if offset < 0 or offset + height > up.shape[1] or offset + width > up.shape[2]:
        raise ValueError(
            f"scores of {up.shape[1]}x{up.shape[2]} cells at offset {offset} do not cover an image "
            f"of {height}x{width}; take padding='same', or give the trunk's first layer more"
        )
    return up[:, offset : offset + height, offset : offset + width]


def _enlarged(x: Array, smallest: int) -> Array:
    """Zeros below and to the right of images that are smaller."""
    lacking = [(0, max(0, smallest - side)) for side in x.shape[1:3]]
    return jnp.pad(x, ((0, 0), *lacking, (0, 0)))


def _check_images(images: Any, channels: int) -> None:
    if not hasattr(images, "ndim"):
        raise ValueError(f"images must be an array, got {type(images).__name__}")
    if images.ndim != 4:
        raise ValueError(
            f"images must have the axes (batch, height, width, channels), got the shape "
            f"{images.shape}; add a batch axis to a single image with images[None]"
        )
    if not jnp.issubdtype(images.dtype, jnp.floating):
        raise ValueError(
            f"images must be floating point and normalised, got {images.dtype}; "
            "pass them through fcn_jax.Preprocessing().apply first"
        )
    if images.shape[-1] != channels:
        raise ValueError(
            f"the network reads {channels} channels, the images have {images.shape[-1]}; build it "
            "with create_model(inputs=…) for them"
        )


# ======================================================================== construction


def create_model(
    name: str,
    *,
    backbone: str | BackboneBuilder = "vgg16",
    num_classes: int | Mapping[str, int] = 21,
    inputs: int | Mapping[str, int] = 3,
    padding: Padding | None = None,
    width: float = 1.0,
    fc_width: int = 4096,
    dropout: float = 0.5,
    learned_upsampling: Literal["intermediate", "none", "all"] | tuple[str, ...] = "intermediate",
) -> FCN:
    """Builds a network by name.

    Args:
        name: ``fcn32s``, ``fcn16s``, ``fcn8s``, ``fcn8s_atonce``; or ``classifier``, the trunk
            with its own last layer, which gives a map of class scores.
        backbone: A name in `fcn_jax.backbones.BACKBONES`, ``FILE.py:FUNCTION``, or a function of
            ``(padding, width, fc_width)`` that returns a `fcn_jax.backbones.Backbone`. The names of
            the networks are those of trunks of stride 32: fcn16s has one skip, fcn8s two, from the
            maps that the trunk names, whatever their strides.
        num_classes: Channels of the logits; several heads as a dictionary, ``{"sem": 33, …}``.
        inputs: Channels of the image; several streams as a dictionary, ``{"color": 3, …}``, each
            with a trunk of its own, whose scores are averaged (late fusion).
        padding: ``same`` (60 % of the arithmetic; the default), ``reference`` (the published
            networks), or, for a classifier, ``native`` (as it was trained; its default).
        width: Multiplier of the trunk's channels.
        fc_width: Channels of fc6 and fc7.
        dropout: Rate after fc6 and fc7.
        learned_upsampling: Which up-convolutions are trained: the ``intermediate`` ones and not
            the last (CVPR 2015), ``none`` (the PAMI models), ``all``, or a tuple of names.

    Returns:
        A Linen module: ``model.init(key, images)``, ``model.apply(variables, images)``.

    Raises:
        ValueError: If a name or a value is unknown; the message lists the known ones.
        TypeError: If a number of channels is no whole number.

    Example:
        >>> model = create_model("fcn8s", num_classes=21)
        >>> images = jnp.zeros((1, 375, 500, 3))
        >>> variables = model.init(jax.random.key(0), images)
        >>> model.apply(variables, images).shape
        (1, 375, 500, 21)
    """
    decoder = _choose("model", name, DECODERS)
    build = find_backbone(backbone) if isinstance(backbone, str) else backbone
    padding = padding or ("same" if decoder.upsample else "native")
    _choose("padding", padding, dict.fromkeys(PADDINGS))
    if decoder.upsample and padding == "native":
        raise ValueError(
            "padding 'native' leaves too little border to score every pixel; take 'same' or "
            "'reference' (it is for name='classifier')"
        )
    # Labels are stored in 8 bits, of which 255 is void.
    heads = _named_counts("num_classes", num_classes, "label", 255 if decoder.upsample else 2**31)
    streams = _named_counts("inputs", inputs, "image", 2**31)
    if width <= 0 or operator.index(fc_width) < 1:
        raise ValueError(f"width and fc_width must be positive, got {width} and {fc_width}")
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout must be in [0, 1), got {dropout}")

    trunk = build(padding, width, fc_width)
    names = tuple(align(trunk, decoder).up_windows)  # raises now, not at the first image
    if isinstance(learned_upsampling, str):
        choices = {"intermediate": names[:-1], "none": (), "all": names}
        learned = _choose("learned_upsampling", learned_upsampling, choices)
    else:
        learned = tuple(learned_upsampling)
        if unknown := [layer for layer in learned if layer not in names]:
            raise ValueError(f"{name} has no up-convolution {unknown[0]!r}; it has {names}")
    return FCN(heads, streams, trunk, decoder, dropout, learned)


def _named_counts(
    what: str, value: int | Mapping[str, int], name: str, most: int
) -> tuple[tuple[str, int], ...]:
    """Numbers of channels by name, from one number or several."""
    counts = dict(value) if isinstance(value, Mapping) else {name: value}
    if wrong := [name for name in counts if not re.fullmatch(r"\w+", name)]:
        raise ValueError(f"{what}: {wrong[0]!r} is no name; use letters, digits and _")
    for number in counts.values() or [0]:
        if not 1 <= operator.index(number) <= most:
            limit = f"from 1 to {most} (255 is void)" if most == 255 else "positive"
            raise ValueError(f"{what} must be {limit}, got {value}")
    return tuple(counts.items())


def example_images(model: FCN, height: int = 0, width: int = 0) -> Any:
    """Shapes and types of a network's input, one image that it can take, for tracing.

    Args:
        model: The network.
        height: Of the image; 0 is as few pixels as the network takes, or 32.
        width: See ``height``.
    """
    least = max(32, model.smallest_image)
    images = _abstract_images(model, height or least, width or least)
    return images if len(images) > 1 else next(iter(images.values()))


def _abstract_images(model: FCN, height: int, width: int) -> dict[str, jax.ShapeDtypeStruct]:
    return {
        name: jax.ShapeDtypeStruct((1, height, width, channels), jnp.float32)
        for name, channels in model.streams
    }


def abstract_params(model: FCN) -> dict[str, Any]:
    """Shapes and types of a network's parameters, without computing any."""
    return jax.eval_shape(model.init, jax.random.key(0), example_images(model))["params"]


def multiply_adds(model: FCN, height: int, width: int) -> int:
    """Multiply-adds of one forward pass on an image: of all convolutions and up-convolutions.

    Products with the padding count, as they are computed; pooling, normalisation and biases do
    not. An up-convolution has a kernel between all pairs of classes.

    Raises:
        ValueError: If the network cannot take an image of this size.
    """
    images = _abstract_images(model, height, width)
    run = functools.partial(model.init_with_output, return_maps=True)
    (_, maps), variables = jax.eval_shape(run, jax.random.key(0), images)
    windows = {
        f"{name}{head}": window
        for name, window in model.alignment.up_windows.items()
        for head in model.head_suffixes()
    }
    total = 0
    for layer, arrays in variables["params"].items():
        rows, columns = maps[layer].shape[1:3]
        if layer in windows:  # each cell of its input writes one kernel
            kernel, factor = windows[layer].kernel, windows[layer].factor
            rows, columns = ((size - kernel) // factor + 1 for size in (rows, columns))
        total += rows * columns * math.prod(arrays["kernel"].shape)
    return total


def initial_params(model: FCN, key: Array, names: Sequence[str] | None = None) -> dict[str, Any]:
    """Initial parameters of a network, compiled as one program.

    Args:
        model: The network.
        key: Random key.
        names: Compute only these arrays, ``layer/kernel`` or ``layer/bias``; None is all.

    Returns:
        The parameter tree; with ``names`` a flat dictionary of them.
    """
    images = example_images(model)

    def compute(key: Array) -> Any:
        params: Any = model.lazy_init(key, images)["params"]
        if names is None:
            return params
        flat = traverse_util.flatten_dict(params, sep="/")
        return {name: flat[name] for name in names}

    return jax.jit(compute)(key)


def _choose(what: str, name: str, choices: Mapping[str, Any]) -> Any:
    if name not in choices:
        raise ValueError(f"unknown {what} {name!r}; choose one of {', '.join(choices)}")
    return choices[name]
