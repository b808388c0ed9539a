"""Fully convolutional networks: backbones, score layers, and transposed convolutions with skips.

One module runs every variant. What differs between FCN-32s, 16s, 8s and 8s at-once is a row of
`DECODERS`; what differs between backbones is a table in `fcn_jax.models.backbones`; crops and output valid_size
follow from `fcn_jax.geometry`. A network may have several inputs (inputs), each with a backbone of
its own, and several outputs (heads), which share the backbones.
"""

from __future__ import annotations

import dataclasses
import fnmatch
import functools
import itertools
import math
import operator
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, TypeAlias

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import traverse_util
from jaxtyping import Array, Float, Int

from fcn_jax import ops
from fcn_jax.canvas import ValidSize, fill_beyond, fused, through
from fcn_jax.geometry import Window, overlap
from fcn_jax.models.backbones import (
    PADDINGS,
    Backbone,
    BackboneBuilder,
    Conv,
    Layer,
    Norm,
    Padding,
    Pool,
    find_backbone,
)
from fcn_jax.models.border import Border, shared_layers
from fcn_jax.models.decoders import (
    DECODERS,
    Alignment,
    Decoder,
    align,
    smallest_input,
    sources_of,
    window_of,
)
from fcn_jax.models.layers import (
    PRECISIONS,
    Convolution,
    ConvTranspose,
    centred_kernel,
    first_kernel,
)

# ======================================================================== the module


@dataclasses.dataclass(frozen=True)
class _Maps:
    """The maps of a forward pass, and the images' extents in them, by layer name.

    Unless all are wanted, those that no other layer reads may be left out.
    """

    arrays: dict[str, Array]
    extents: dict[str, ValidSize]
    all_wanted: bool

    def add(self, name: str, array: Array, extent: ValidSize) -> None:
        """Files a map; beyond its images it is set to zero, whatever a bias left there."""
        self.arrays[name] = fill_beyond(array, extent)
        self.extents[name] = extent


Places: TypeAlias = dict[str, Any]
"""By layer how its map is divided (`Border`), or its images' extents; ``""`` is the image."""


def _whole(arrays: Mapping[str, Any], places: Places, name: str) -> tuple[Array, ValidSize]:
    """A map and its images' extents; put together if it is in parts."""
    place = places[name]
    if isinstance(place, Border):
        return place.whole(arrays[name]), place.extent
    return arrays[name], place


class FCN(nn.Module):
    """A fully convolutional network; build it with `create_model`.

    Parameters are keyed by the Caffe layer names: ``conv1_1`` ... ``fc7``, ``score_fr``,
    ``score_pool4``, ``upscore2`` and so on, each with ``kernel`` (height, width, in, out) and,
    but for the transposed convolutions, ``bias``. With several inputs the layers of each have its name
    appended (``conv1_1hha``, ``score_frhha``), with several heads ``_`` and the head's name
    (``score_fr_sem``, ``upscore_sem``), as in the published networks.

    Attributes:
        heads: Name and number of classes of every output.
        inputs: Name and number of channels of every input; each has a backbone of its own.
        backbone: The backbone's table.
        decoder: What follows the backbone.
        dropout: Rate after the layers that the backbone marks.
        learned_upsampling: Names of the transposed convolutions that are trained, without a head's name.
        precision: A name in `fcn_jax.models.layers.PRECISIONS`.
        remat: Whether the gradient keeps the backbone's maps after each pooling only, and computes
            those between again.
        freeze: Patterns of names of layers that are not trained, such as ``conv1_*``.
    """

    heads: tuple[tuple[str, int], ...]
    inputs: tuple[tuple[str, int], ...]
    backbone: Backbone
    decoder: Decoder
    dropout: float = 0.5
    learned_upsampling: tuple[str, ...] = ()
    precision: str = "float32"
    remat: bool = False
    freeze: tuple[str, ...] = ()

    @nn.compact
    def __call__(
        self,
        images: Float[Array, "b h w c"] | Mapping[str, Float[Array, "b h w c"]],
        *,
        valid_size: Int[Array, "b 2"] | None = None,
        train: bool = False,
        return_maps: bool = False,
    ) -> Any:
        """Scores every pixel; as a classifier, every cell of the backbone's last map.

        Args:
            images: Float images already normalised (`fcn_jax.Preprocessing`), of any height and
                width from 1 up (a classifier fills smaller images than it was trained on with
                zeros, below and to the right). With several inputs a dictionary of them by name.
            valid_size: True height and width of each image, where they lie in the top left corners of
                a larger canvas. Each then gets the scores that it would get alone.
            train: Whether dropout is active; it then needs ``rngs={"dropout": key}``.
            return_maps: Whether to return every intermediate map as well.

        Returns:
            Logits (b, h, w, num_classes), 0 beyond an image's size; with several heads a dictionary
            of them by name. With ``return_maps`` a pair of that and a dictionary of all maps by
            layer name, transposed convolutions uncropped.

        Raises:
            ValueError: If the images have another rank, are not floating point, differ in size,
                or the inputs are others; or if they are too small for the backbone's padding.
        """
        inputs = self._checked(images)
        if self.classifies:
            inputs = {name: _enlarged(x, self.smallest_image) for name, x in inputs.items()}
        maps = _Maps({}, {}, return_maps)
        for stream, x in inputs.items():
            self._run_backbone(
                maps, fill_beyond(x, valid_size), valid_size, train, self._input_suffix(stream)
            )
        size = next(iter(inputs.values())).shape[1:3]
        beyond = None if self.classifies else valid_size  # a classifier's map has zeros there
        logits = {
            head: fill_beyond(self._decode(maps, suffix, classes, size), beyond)
            for (head, classes), suffix in zip(self.heads, self.head_suffixes(), strict=True)
        }
        result = logits if len(logits) > 1 else next(iter(logits.values()))
        return (result, maps.arrays) if return_maps else result

    def _run_backbone(
        self, maps: _Maps, image: Array, valid_size: ValidSize, train: bool, suffix: str
    ) -> None:
        """Runs the layer table on one input; adds the maps that the scores are read from."""
        height, width = image.shape[1:3]
        places = self._places((height, width), valid_size, whole=maps.all_wanted)
        start = places[""]
        arrays: dict[str, Any] = {"": start.parts_of(image) if isinstance(start, Border) else image}
        for layers, kept in self._segments():

            def run(self: FCN, arrays: dict[str, Any], layers: Any = layers, kept: Any = kept):
                arrays = self._run_layers(layers, arrays, places, train, suffix)
                return arrays if maps.all_wanted else {name: arrays[name] for name in kept}

            # After the last pooling the maps are small, and dropout draws from its key once.
            again = self.remat and isinstance(layers[-1], Pool)
            arrays = (nn.remat(run) if again else run)(self, arrays)
        for name in filter(None, arrays):
            maps.add(f"{name}{suffix}", *_whole(arrays, places, name))

    def _places(self, canvas: tuple[int, int], valid_size: ValidSize, *, whole: bool) -> Places:
        """Of every map the images' extents; of the first ones how they share the border."""
        layers = self._layers
        shared = 0 if whole or ops.plain_chosen() else shared_layers(layers)
        places: dict[str, Any] = {
            "": Border.of_image(canvas, valid_size, layers[0]) if shared else valid_size
        }
        for number, layer in enumerate(layers):
            place = places[sources_of(layer, places)[0]]
            if number < shared:
                places[layer.name] = place.through(window_of(layer))
            else:
                extent = place.extent if isinstance(place, Border) else place
                places[layer.name] = through(window_of(layer), extent)
        return places

    def _segments(self) -> list[tuple[tuple[Layer, ...], tuple[str, ...]]]:
        """The layers up to each pooling, and the maps that are read after them."""
        layers = self._layers
        names = ["", *(layer.name for layer in layers)]
        ends = [n for n, layer in enumerate(layers, 1) if isinstance(layer, Pool)]
        segments = []
        for start, end in itertools.pairwise(dict.fromkeys([0, *ends, len(layers)])):
            later = {source for layer in layers[end:] for source in sources_of(layer, names)}
            later |= {names[end], *(skip.feature for skip in self.alignment.skips)}
            kept = tuple(name for name in names[: end + 1] if name in later)
            segments.append((layers[start:end], kept))
        return segments

    def _run_layers(
        self,
        layers: Sequence[Layer],
        arrays: Mapping[str, Any],
        places: Places,
        train: bool,
        suffix: str,
    ) -> dict[str, Any]:
        """Runs some layers; returns the given maps and theirs, as they leave ReLU and dropout."""
        arrays = dict(arrays)
        for layer in layers:
            sources, window = sources_of(layer, arrays), window_of(layer)
            run, place = self._layer(layer, train, suffix), places[layer.name]
            if isinstance(place, Border):
                (source,) = sources
                arrays[layer.name] = places[source].run(run, window, arrays[source])
                continue
            read = [_whole(arrays, places, source)[0] for source in sources]
            if isinstance(layer, Pool) and not sources[0]:  # other maps are not negative
                read = [fill_beyond(read[0], places[""], -jnp.inf)]
            arrays[layer.name] = fill_beyond(run(window, *read), place)
        return arrays

    def _layer(self, layer: Layer, train: bool, suffix: str) -> Callable[..., Array]:
        """A layer of the table as a function of its window and the maps that it reads."""
        precision = PRECISIONS[self.precision]
        if isinstance(layer, Conv):
            first = layer == self.backbone.layers[0]
            convolution = Convolution(
                layer.channels,
                layer.window,
                layer.groups,
                first_kernel if first else centred_kernel,
                precision.maps,
                precision.products,
                f"{layer.name}{suffix}" in self.frozen_layers,
                name=f"{layer.name}{suffix}",
            )

        def run(window: Window | None, *read: Array) -> Array:
            if window is not None:
                self._check_size(layer.name, window, read[0])
            if isinstance(layer, Conv) and window is not None:
                x = nn.relu(convolution(read[0], window.pad))
            elif isinstance(layer, Pool) and window is not None:
                x = (ops.average_pool if layer.average else ops.max_pool)(read[0], window)
            elif isinstance(layer, Norm):
                x = ops.local_response_norm(read[0], layer.size, layer.alpha, layer.beta)
            else:
                x = jnp.concatenate(read, axis=-1)
            if getattr(layer, "dropout", False):
                x = nn.Dropout(self.dropout, deterministic=not train)(x)
            return x

        return run

    def _decode(self, maps: _Maps, head: str, classes: int, size: tuple[int, ...]) -> Array:
        """The scores of one head; adds its maps."""
        alignment = self.alignment
        if alignment.final is None:
            last = self._layers[-1].name
            return maps.arrays[self._score(maps, self.backbone.classifier, last, head, classes)]

        scores = self._score(maps, "score_fr", self.backbone.layers[-1].name, head, classes)
        for skip in alignment.skips:
            up = self._conv_transpose(maps, skip.upsample, head, classes, scores)
            name = f"score_{skip.feature}"
            fine = self._score(maps, name, skip.feature, head, classes, skip.scale)
            offset = alignment.crops[name]
            scores = f"fuse_{skip.feature}{head}"
            maps.add(
                scores,
                _fuse(maps.arrays[fine], maps.arrays[up], offset),
                fused(offset, maps.extents[fine], maps.extents[up]),
            )
        up = self._conv_transpose(maps, alignment.final, head, classes, scores)
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
        """Adds the scores of a map of the backbone, and returns their name.

        With several inputs it is the name of their mean (late fusion).
        """
        names = []
        for stream, _ in self.inputs:
            suffix = self._input_suffix(stream)
            read = f"{feature}{suffix}"
            names.append(f"{name}{head}{suffix}")
            layer = Convolution(
                classes,
                Window(1),
                precision=self._products,
                frozen=names[-1] in self.frozen_layers,
                name=names[-1],
            )
            maps.add(names[-1], layer(maps.arrays[read] * scale), maps.extents[read])
        if len(names) == 1:
            return names[0]
        mean = f"{name.replace('score_fr', 'score')}{head}_fused"
        scores = [maps.arrays[name] for name in names]
        maps.add(mean, functools.reduce(operator.add, scores) / len(scores), maps.extents[names[0]])
        return mean

    def _conv_transpose(self, maps: _Maps, name: str, head: str, classes: int, scores: str) -> str:
        """Adds the transposed convolution of some scores, and returns its name."""
        window, frozen = (
            self.alignment.transposed_windows[name],
            f"{name}{head}" in self.frozen_layers,
        )
        layer = ConvTranspose(classes, window, self._products, frozen, name=f"{name}{head}")
        maps.add(f"{name}{head}", layer(maps.arrays[scores]), through(window, maps.extents[scores]))
        return f"{name}{head}"

    # ---- checks

    def _checked(self, images: Any) -> dict[str, Array]:
        """The images by input."""
        names = [name for name, _ in self.inputs]
        if not isinstance(images, Mapping) and len(names) == 1:
            images = {names[0]: images}
        given = set(images) if isinstance(images, Mapping) else {"one array"}
        if given != set(names):
            raise ValueError(
                f"the network reads {', '.join(names)}, it was given {', '.join(sorted(given))}; "
                "pass a dictionary with an array for each"
            )
        inputs = dict(images)
        for name, channels in self.inputs:
            _check_images(inputs[name], channels)
        if len({image.shape[:3] for image in inputs.values()}) > 1:
            shapes = {name: image.shape for name, image in inputs.items()}
            raise ValueError(f"the inputs must have one batch, height and width, got {shapes}")
        return {name: inputs[name] for name in names}

    def _check_size(self, layer: str, window: Window, x: Array) -> None:
        try:
            for size in x.shape[1:3]:
                window.output_size(size)
        except ValueError as error:
            raise ValueError(
                f"the image is too small for {layer} ({error}); images must have at least "
                f"{self.smallest_image} pixels a side"
            ) from None

    # ---- properties

    @property
    def _products(self) -> jax.lax.Precision:
        return PRECISIONS[self.precision].products

    def _input_suffix(self, stream: str) -> str:
        return stream if len(self.inputs) > 1 else ""

    def head_suffixes(self) -> tuple[str, ...]:
        """What is appended to the names of each head's layers."""
        return tuple(f"_{name}" for name, _ in self.heads) if len(self.heads) > 1 else ("",)

    @property
    def alignment(self) -> Alignment:
        """Geometry of every map, windows of the transposed convolutions, and the crops."""
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
            f"{name}{head}{self._input_suffix(stream)}"
            for name in names
            for head in self.head_suffixes()
            for stream, _ in self.inputs
        )
        return (*scores, *self.upsampling_layers)

    @property
    def upsampling_layers(self) -> tuple[str, ...]:
        """The transposed convolutions, from coarse to fine."""
        return tuple(
            f"{name}{head}"
            for name in self.alignment.transposed_windows
            for head in self.head_suffixes()
        )

    @property
    def frozen_layers(self) -> tuple[str, ...]:
        """The layers that stay as they are: they receive no gradient.

        Those that match ``freeze``, and the transposed convolutions that are not learned.
        """
        fixed = {
            f"{name}{head}"
            for name in self.alignment.transposed_windows
            if name not in self.learned_upsampling
            for head in self.head_suffixes()
        }
        return tuple(
            name
            for name in self.parameter_layers
            if name in fixed or any(fnmatch.fnmatchcase(name, pattern) for pattern in self.freeze)
        )

    @property
    def parameter_layers(self) -> tuple[str, ...]:
        """The layers that have parameters, in the order they run."""
        convolutions = tuple(
            f"{layer.name}{self._input_suffix(stream)}"
            for stream, _ in self.inputs
            for layer in self.backbone.layers
            if isinstance(layer, Conv)
        )
        return (*convolutions, *self.score_layers)


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
            f"of {height}x{width}; take padding='same', or give the backbone's first layer more"
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
    precision: Literal["float32", "tf32", "bfloat16"] = "float32",
    remat: bool = False,
    freeze: Sequence[str] = (),
) -> FCN:
    """Builds a network by name.

    Args:
        name: ``fcn32s``, ``fcn16s``, ``fcn8s``, ``fcn8s_atonce``; or ``classifier``, the backbone
            with its own last layer, which gives a map of class scores.
        backbone: A name in `fcn_jax.models.backbones.BACKBONES`, ``FILE.py:FUNCTION``, or a function of
            ``(padding, width, fc_width)`` that returns a `fcn_jax.models.backbones.Backbone`. The names of
            the networks are those of backbones of stride 32: fcn16s has one skip, fcn8s two, from the
            maps that the backbone names, whatever their strides.
        num_classes: Channels of the logits; several heads as a dictionary, ``{"sem": 33, …}``.
        inputs: Channels of the image; several inputs as a dictionary, ``{"color": 3, …}``, each
            with a backbone of its own, whose scores are averaged (late fusion).
        padding: ``same`` (60 % of the arithmetic; the default), ``reference`` (the published
            networks), or, for a classifier, ``native`` (as it was trained; its default).
        width: Multiplier of the backbone's channels.
        fc_width: Channels of fc6 and fc7.
        dropout: Rate after fc6 and fc7.
        learned_upsampling: Which transposed convolutions are trained: the ``intermediate`` ones and not
            the last (CVPR 2015), ``none`` (the PAMI models), ``all``, or a tuple of names.
        precision: ``float32``; ``tf32``, which lets GPUs and TPUs round the factors of products;
            or ``bfloat16``, with the backbone's maps in 16 bits. Parameters and logits are float32.
        remat: Train in less memory and more time: only pooled maps are kept for the gradient.
        freeze: Patterns of names of layers that are not trained, such as ``conv1_*``.

    Returns:
        A Linen module: ``model.init(key, images)``, ``model.apply(variables, images)``.

    Raises:
        ValueError: If a name or a value is unknown, or a pattern matches nothing; the message
            lists those there are.
        TypeError: If a number of channels is no whole number.

    Example:
        >>> model = create_model("fcn8s", num_classes=21, width=1 / 16, fc_width=64)
        >>> images = jnp.zeros((1, 37, 50, 3))  # of any size, normalised by `fcn_jax.Preprocessing`
        >>> variables = jax.jit(model.init)(jax.random.key(0), images)
        >>> jax.jit(model.apply)(variables, images).shape
        (1, 37, 50, 21)
    """
    decoder = _choose("model", name, DECODERS)
    build = find_backbone(backbone) if isinstance(backbone, str) else backbone
    padding = padding or ("same" if decoder.upsample else "native")
    _choose("padding", padding, dict.fromkeys(PADDINGS))
    _choose("precision", precision, PRECISIONS)
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

    table = build(padding, width, fc_width)
    names = tuple(align(table, decoder).transposed_windows)  # raises now, not at the first image
    if isinstance(learned_upsampling, str):
        choices = {"intermediate": names[:-1], "none": (), "all": names}
        learned = _choose("learned_upsampling", learned_upsampling, choices)
    else:
        learned = tuple(learned_upsampling)
        if unknown := [layer for layer in learned if layer not in names]:
            raise ValueError(f"{name} has no transposed convolution {unknown[0]!r}; it has {names}")
    model = FCN(heads, streams, table, decoder, dropout, learned, precision, remat, tuple(freeze))
    for pattern in freeze:
        if not fnmatch.filter(model.parameter_layers, pattern):
            layers = ", ".join(model.parameter_layers)
            raise ValueError(f"no layer matches {pattern!r} to freeze; there are {layers}")
    return model


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
        for name, channels in model.inputs
    }


def abstract_params(model: FCN) -> dict[str, Any]:
    """Shapes and types of a network's parameters, without computing any."""
    return jax.eval_shape(model.init, jax.random.key(0), example_images(model))["params"]


def multiply_adds(model: FCN, height: int, width: int) -> int:
    """Multiply-adds of one forward pass on an image: of all convolutions and transposed convolutions.

    Products with the padding count, as they are computed; pooling, normalisation and biases do
    not. A transposed convolution has a kernel between all pairs of classes.

    Raises:
        ValueError: If the network cannot take an image of this size.
    """
    images = _abstract_images(model, height, width)
    run = functools.partial(model.init_with_output, return_maps=True)
    (_, maps), variables = jax.eval_shape(run, jax.random.key(0), images)
    windows = {
        f"{name}{head}": window
        for name, window in model.alignment.transposed_windows.items()
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
