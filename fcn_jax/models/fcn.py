"""Fully convolutional networks: backbones, score layers, and transposed convolutions with skips.

One module runs every variant. What differs between FCN-32s, 16s, 8s and 8s at-once is a row of
`fcn_jax.models.decoders.DECODERS`; what differs between backbones is a table in
`fcn_jax.models.backbones`; crops and the sizes of maps follow from `fcn_jax.geometry`.
"""

from __future__ import annotations

import fnmatch
import functools
import math
import operator
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import traverse_util
from jax.core import max_dim
from jaxtyping import Array, Float

from fcn_jax import ops
from fcn_jax.canvas import Map, Tile, ValidSize, fill_beyond
from fcn_jax.geometry import Cells, TransposedWindow, overlap
from fcn_jax.models import backbones, decoders
from fcn_jax.models.border import SharedMap, share_border
from fcn_jax.models.layers import (
    PRECISIONS,
    Convolution,
    ConvTranspose,
    centred_kernel,
    first_kernel,
)
from fcn_jax.programs import least_memory

Image: TypeAlias = Float[Array | np.ndarray, "b h w _"]
Images: TypeAlias = Image | Mapping[str, Image]
"""A batch of images; by the input's name where a network has several."""

# ======================================================================== the module


class FCN(nn.Module):
    """A fully convolutional network; build it with `create_model`.

    Parameters are keyed by the Caffe layer names: ``conv1_1`` ... ``fc7``, ``score_fr``,
    ``score_pool4``, ``upscore2`` and so on, each with ``kernel`` (height, width, in, out) and,
    but for the transposed convolutions, ``bias``. With several inputs the layers of each have its
    name appended (``conv1_1hha``, ``score_frhha``), with several heads ``_`` and the head's name
    (``score_fr_sem``, ``upscore_sem``), as in the published networks.

    Attributes:
        heads: Name and number of classes of every head.
        inputs: Name and number of channels of every input; each has a backbone of its own.
        backbone: The backbone's table.
        decoder: What follows the backbone.
        dropout: Rate after the layers that the backbone marks.
        learned_upsampling: Names of the transposed convolutions that are trained, without a head's
            name.
        precision: A name in `fcn_jax.models.layers.PRECISIONS`.
        remat: Whether the gradient keeps the backbone's maps after each pooling and sum only, and
            computes those between again.
        freeze: Patterns of names of layers that are not trained, such as ``conv1_*``.

    Example:
        >>> model = create_model("fcn16s", num_classes=3, width=1 / 16, fc_width=8)
        >>> model.alignment.crops
        {'score_pool4': -1, 'upscore16': 8}
        >>> model.frozen_layers
        ('upscore16',)
    """

    heads: tuple[tuple[str, int], ...]
    inputs: tuple[tuple[str, int], ...]
    backbone: backbones.Backbone
    decoder: decoders.Decoder
    dropout: float = 0.5
    learned_upsampling: tuple[str, ...] = ()
    precision: str = "float32"
    remat: bool = False
    freeze: tuple[str, ...] = ()

    @nn.compact
    def __call__(
        self,
        images: Images,
        *,
        valid_size: ValidSize = None,
        tile: Tile | None = None,
        train: bool = False,
        return_maps: bool = False,
    ) -> Any:
        """Scores every pixel; as a classifier, every cell of the backbone's last map.

        Args:
            images: Float images already normalised (`fcn_jax.Preprocessing`), of any height and
                width from 1 up (a classifier fills smaller images than it was trained on with
                zeros, below and to the right). With several inputs a dictionary of them by name.
            valid_size: Height and width of each image, where they lie in the top left corners of a
                larger canvas. Each then gets the scores that it would get alone.
            tile: Where each image lies in a larger one, if it is to get the scores that it gets
                there; only `fcn_interpolated` needs to know it.
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
        images = self._by_input(images)
        _, height, width, _ = next(iter(images.values())).shape
        maps: dict[str, Map] = {}
        for name, image in images.items():
            maps |= self._run_backbone(Map.masked(image, valid_size), name, train, return_maps)
        logits = {}
        for head, _ in self.heads:
            decoded = self._decode(maps, head)
            *_, scores = decoded.values()
            logits[head] = scores.array
            if self.decoder.interpolate:
                full = self._interpolate(scores.array, height, width, valid_size, tile)
                logits[head] = fill_beyond(full, valid_size)
            elif not self.classifies:
                logits[head] = fill_beyond(self._crop(scores.array, height, width), valid_size)
            maps |= decoded
        result = logits if len(logits) > 1 else next(iter(logits.values()))
        return (result, {name: map.array for name, map in maps.items()}) if return_maps else result

    # ---- the backbone

    def _run_backbone(
        self, image: Map, input_name: str, train: bool, keep_all: bool
    ) -> dict[str, Map]:
        """Runs the table of layers; returns the maps that scores are read from, or all."""
        layers, suffix = self.layers, self.input_suffix(input_name)
        kept = [skip.source for skip in self.alignment.skips]
        maps: dict[str, Map | SharedMap] = {"": image}
        if keep_all:
            kept = [layer.name for layer in layers]
        elif not ops.plain_chosen():
            # The same function with less arithmetic.
            maps[""] = share_border(image, layers, PRECISIONS[self.precision].products)
        for segment, read_later in decoders.segments(layers, tuple(kept)):
            run = FCN._run_layers
            # The maps after the last pooling or sum are small.
            if self.remat and isinstance(segment[-1], backbones.Pool | backbones.Add):
                run = nn.remat(run, static_argnums=(2, 3, 4, 5))
            maps = run(self, maps, segment, read_later, suffix, train)
        return {f"{name}{suffix}": map.whole() for name, map in maps.items() if name}

    def _run_layers(
        self,
        maps: Mapping[str, Map | SharedMap],
        layers: Sequence[backbones.Layer],
        kept: frozenset[str],
        suffix: str,
        train: bool,
    ) -> dict[str, Map | SharedMap]:
        """Runs some layers on the maps before them; returns the maps that are kept."""
        maps = dict(maps)
        for layer in layers:
            read = [maps[name] for name in decoders.sources_of(layer, maps)]
            maps[layer.name] = self._run_layer(layer, read, f"{layer.name}{suffix}", train)
        return {name: map for name, map in maps.items() if name in kept}

    def _run_layer(
        self, layer: backbones.Layer, read: Sequence[Map | SharedMap], name: str, train: bool
    ) -> Map | SharedMap:
        """Runs one layer of the table, with the ReLU and the dropout that follow it."""
        if isinstance(layer, backbones.Concat | backbones.Add):
            arrays, (valid_size, *_) = zip(*(map.whole() for map in read), strict=True)
            if isinstance(layer, backbones.Concat):
                x = jnp.concatenate(arrays, axis=-1)
            elif len({array.shape for array in arrays}) > 1:
                shapes = ", ".join(str(array.shape[1:]) for array in arrays)
                raise ValueError(f"{layer.name} adds maps of different shapes: {shapes}")
            else:
                total = functools.reduce(operator.add, arrays)
                x = nn.relu(total) if layer.relu else total
            result = Map(x, valid_size)
        else:
            result = read[0].apply(self._operation(layer, name), decoders.window_of(layer))
        if getattr(layer, "dropout", False):
            x, valid_size = result.whole()
            result = Map(nn.Dropout(self.dropout, deterministic=not train)(x), valid_size)
        return result

    def _operation(
        self, layer: backbones.Conv | backbones.Pool | backbones.Norm, name: str
    ) -> Callable[..., Array]:
        """A layer as a function of a map and a window."""
        if isinstance(layer, backbones.Pool):
            return ops.average_pool if layer.average else ops.max_pool
        if isinstance(layer, backbones.Norm):
            return lambda x, _: ops.local_response_norm(x, layer.size, layer.alpha, layer.beta)
        precision = PRECISIONS[self.precision]
        sums = [each for each in self.layers if isinstance(each, backbones.Add)]
        kernel_init = first_kernel if layer == self.backbone.layers[0] else centred_kernel
        if not layer.relu and layer.name in {each.sources[0] for each in sums}:
            kernel_init = nn.initializers.zeros_init()
        return Convolution(
            layer.channels,
            layer.groups,
            relu=layer.relu,
            kernel_init=kernel_init,
            dtype=precision.maps,
            precision=precision.products,
            frozen=name in self.frozen_layers,
            name=name,
        )

    # ---- the decoder

    def _decode(self, maps: Mapping[str, Map], head: str) -> dict[str, Map]:
        """The maps of one head; the last one has its scores, not yet cropped to the image."""
        alignment, suffix = self.alignment, self.head_suffix(head)
        first = self.backbone.classifier if self.classifies else "score_fr"
        decoded = self._score(maps, first, self.layers[-1].name, head)
        *_, scores = decoded.values()
        for skip in alignment.skips:
            up = self._upsample(scores, skip.upsample, head)
            layer = f"score_{skip.source}"
            fine = self._score(maps, layer, skip.source, head, skip.scale)
            *_, finer = fine.values()
            scores = _fuse(finer, up, alignment.crops[layer])
            fuse = f"fuse_{skip.source}{suffix}"
            decoded |= {f"{skip.upsample}{suffix}": up, **fine, fuse: scores}
        if alignment.final:
            up = self._upsample(scores, alignment.final, head)
            decoded[f"{alignment.final}{suffix}"] = up
        return decoded

    def _score(
        self, maps: Mapping[str, Map], layer: str, source: str, head: str, scale: float = 1.0
    ) -> dict[str, Map]:
        """The scores of a map of every backbone; of several also their mean, at the end."""
        head_suffix, scores = self.head_suffix(head), {}
        for input_name, _ in self.inputs:
            suffix = self.input_suffix(input_name)
            name = f"{layer}{head_suffix}{suffix}"
            convolution = Convolution(
                dict(self.heads)[head],
                precision=PRECISIONS[self.precision].products,
                frozen=name in self.frozen_layers,
                name=name,
            )
            array, valid_size = maps[f"{source}{suffix}"]
            scores[name] = Map(array * scale, valid_size).apply(convolution, decoders.CELL)
        if len(scores) > 1:  # late fusion
            mean = functools.reduce(operator.add, (score.array for score in scores.values()))
            valid_size = next(iter(scores.values())).valid_size
            fused = f"{layer.replace('score_fr', 'score')}{head_suffix}_fused"
            scores[fused] = Map(mean / len(scores), valid_size)
        return scores

    def _upsample(self, scores: Map, layer: str, head: str) -> Map:
        """The transposed convolution of a head's scores."""
        name = f"{layer}{self.head_suffix(head)}"
        precision = PRECISIONS[self.precision].products
        transposed = ConvTranspose(precision, name in self.frozen_layers, name=name)
        return scores.apply(transposed, self.alignment.transposed_windows[layer])

    def _crop(self, scores: Array, height: Cells, width: Cells) -> Float[Array, "b h w c"]:
        """The part of the last map that lies over the image."""
        offset = self.alignment.crops[self.alignment.final or ""]
        if offset < 0 or offset + height > scores.shape[1] or offset + width > scores.shape[2]:
            raise ValueError(
                f"scores of {scores.shape[1]}x{scores.shape[2]} cells at offset {offset} do not "
                f"cover an image of {height}x{width}; take padding='same', or give the backbone's "
                "first layer more"
            )
        return scores[:, offset : offset + height, offset : offset + width]

    def _interpolate(
        self, scores: Array, height: Cells, width: Cells, valid_size: ValidSize, tile: Tile | None
    ) -> Float[Array, "b h w c"]:
        """The scores of the last map brought to the pixels."""
        size = valid_size
        if size is None:
            size = jnp.broadcast_to(jnp.array((height, width)), (scores.shape[0], 2))
        start, size = (0 * size, size) if tile is None else tile
        stride = int(self.alignment.geometry["score_fr"].stride)
        return ops.interpolate_on_canvas(scores, stride, size, height, width, start)

    # ---- checks

    def _by_input(self, images: Images) -> dict[str, Array]:
        """The images by input, checked; a classifier fills up those that are too small."""
        channels = dict(self.inputs)
        if not isinstance(images, Mapping):
            images = {next(iter(channels)) if len(channels) == 1 else "one array": images}
        if set(images) != set(channels):
            raise ValueError(
                f"the network reads {', '.join(channels)}, it was given "
                f"{', '.join(sorted(images))}; pass a dictionary with an array for each"
            )
        for name, array in images.items():
            if getattr(array, "ndim", None) != 4:
                raise ValueError(
                    "images must be an array of the axes (batch, height, width, channels), got "
                    f"{getattr(array, 'shape', type(array).__name__)}; add a batch axis to a "
                    "single image with images[None]"
                )
            if not jnp.issubdtype(array.dtype, jnp.floating):
                raise ValueError(
                    f"images must be floating point and normalised, got {array.dtype}; "
                    "pass them through fcn_jax.Preprocessing().apply first"
                )
            if array.shape[-1] != channels[name]:
                raise ValueError(
                    f"the network reads {channels[name]} channels, the images have "
                    f"{array.shape[-1]}; build it with create_model(inputs=…) for them"
                )
        sizes = {array.shape[:3] for array in images.values()}
        if len(sizes) > 1:
            raise ValueError(
                f"the inputs must have one batch, height and width, got {sorted(sizes)}"
            )
        ((_, height, width),) = sizes
        least = self.smallest_image
        if not self.classifies and (height < least or width < least):
            raise ValueError(
                f"images of {height}x{width} pixels are too small for the backbone; they must have "
                f"at least {least} pixels a side"
            )
        lacking = ((0, 0), *((0, max_dim(0, least - side)) for side in (height, width)), (0, 0))
        return {name: jnp.pad(images[name], lacking) for name in channels}

    # ---- parameters

    def rounded(self, params: Any) -> Any:
        """Parameters in the types that the layers compute in; predictions are the same.

        With precision bfloat16 those of the backbone have half the size, and need not be rounded
        in each pass.
        """
        maps = PRECISIONS[self.precision].maps
        if maps is None:
            return params
        own = set(self.parameter_layers) - set(self.score_layers)
        return {
            layer: jax.tree.map(lambda x: jnp.asarray(x, maps), arrays) if layer in own else arrays
            for layer, arrays in params.items()
        }

    def prepared(self, params: Any, most: int = 2**29) -> dict[str, Any]:
        """The collection ``prepared`` for prediction on a CPU: kernels as it computes with them.

        ``model.apply({"params": params, "prepared": model.prepared(params)}, images)`` is the same
        function in less time, without a gradient to those kernels. `fcn_jax.Predictor` does it.

        Args:
            params: Parameters, or their shapes.
            most: Bytes in all; the later layers keep the form they have. VGG16 takes 236 MB.
        """
        found: dict[str, Any] = {}
        for layer in self.backbone.layers:
            if not isinstance(layer, backbones.Conv) or layer.groups > 1:
                continue
            if layer.window.stride > 1 or layer.window.dilation > 1:
                continue
            for name in (layer.name + self.input_suffix(input_) for input_, _ in self.inputs):
                kernel = ops.prepared_kernel(params[name]["kernel"])
                if kernel is not None and (size := math.prod(kernel.shape) * 4) <= most:
                    found[name], most = {"kernel": kernel}, most - size
        return found

    # ---- properties

    def input_suffix(self, name: str) -> str:
        """What the names of an input's layers end in."""
        return name if len(self.inputs) > 1 else ""

    def head_suffix(self, name: str) -> str:
        """What the names of a head's layers end in."""
        return f"_{name}" if len(self.heads) > 1 else ""

    @property
    def alignment(self) -> decoders.Alignment:
        """Geometry of every map, windows of the transposed convolutions, and the crops."""
        return decoders.align(self.backbone, self.decoder)

    @property
    def classifies(self) -> bool:
        """Whether the network is a classifier, whose scores stay a coarse map."""
        return not self.decoder.upsample

    @property
    def layers(self) -> tuple[backbones.Layer, ...]:
        """The layers before the scores."""
        pool = self.backbone.classifier_pool if self.classifies else ()
        return (*self.backbone.layers, *pool)

    @property
    def smallest_image(self) -> int:
        """The fewest pixels a side that the layers can take; a classifier fills up smaller ones."""
        return decoders.smallest_input(self.layers)

    @property
    def parameter_layers(self) -> tuple[str, ...]:
        """The layers that have parameters, in the order they run."""
        convolutions = tuple(
            f"{layer.name}{suffix}"
            for suffix in map(self.input_suffix, dict(self.inputs))
            for layer in self.backbone.layers
            if isinstance(layer, backbones.Conv)
        )
        return (*convolutions, *self.score_layers)

    @property
    def score_layers(self) -> tuple[str, ...]:
        """The layers whose shape depends on the number of classes."""
        names = ["score_fr", *(f"score_{skip.source}" for skip in self.alignment.skips)]
        if self.classifies:
            names = [self.backbone.classifier]
        scores = tuple(
            f"{layer}{self.head_suffix(head)}{self.input_suffix(name)}"
            for layer in names
            for head, _ in self.heads
            for name, _ in self.inputs
        )
        return (*scores, *self.upsampling_layers)

    @property
    def upsampling_layers(self) -> dict[str, TransposedWindow]:
        """Kernel and factor of every transposed convolution, from coarse to fine."""
        return {
            f"{layer}{self.head_suffix(head)}": window
            for layer, window in self.alignment.transposed_windows.items()
            for head, _ in self.heads
        }

    @property
    def frozen_layers(self) -> tuple[str, ...]:
        """The layers without a gradient: those of ``freeze``, and unlearned upsampling."""
        frozen = {
            f"{layer}{self.head_suffix(head)}"
            for layer in set(self.alignment.transposed_windows) - set(self.learned_upsampling)
            for head, _ in self.heads
        }
        for pattern in self.freeze:
            frozen |= set(fnmatch.filter(self.parameter_layers, pattern))
        return tuple(name for name in self.parameter_layers if name in frozen)


def _fuse(fine: Map, up: Map, offset: int) -> Map:
    """Adds two maps of scores where they overlap; ``offset`` is that of ``fine`` against ``up``."""
    (rows_fine, rows_up), (columns_fine, columns_up) = (
        overlap(offset, *sides)
        for sides in zip(fine.array.shape[1:3], up.array.shape[1:3], strict=True)
    )
    total = fine.array[:, rows_fine, columns_fine] + up.array[:, rows_up, columns_up]
    if fine.valid_size is None or up.valid_size is None:
        return Map(total)
    valid_size = jnp.minimum(up.valid_size, fine.valid_size - offset) - max(0, -offset)
    return Map.masked(total, valid_size)


# ======================================================================== construction


def create_model(
    name: str,
    *,
    backbone: str | backbones.BackboneBuilder = "vgg16",
    num_classes: int | Mapping[str, int] = 21,
    inputs: int | Mapping[str, int] = 3,
    padding: backbones.Padding | None = None,
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
        name: ``fcn32s``, ``fcn16s``, ``fcn8s``, ``fcn8s_atonce``; ``fcn4s`` and ``fcn2s``, which go
            on to finer maps than the paper, for thin things; ``fcn_interpolated``, whose
            scores are interpolated (torchvision's FCNs, with a dilated backbone); or
            ``classifier``, the backbone with its own last layer, which gives a map of class scores.
        backbone: A name in `fcn_jax.models.backbones.BACKBONES`, ``FILE.py:FUNCTION``, or a
            function of ``(padding, width, fc_width)`` that returns a `fcn_jax.Backbone`. The names
            of the networks are those of backbones of stride 32: fcn16s has one skip, fcn8s two, and
            so on, from the maps that the backbone names, whatever their strides.
        num_classes: Channels of the logits; several heads as a dictionary, ``{"sem": 33, …}``.
        inputs: Channels of the image; several inputs as a dictionary, ``{"color": 3, …}``, each
            with a backbone of its own, whose scores are averaged (late fusion).
        padding: ``same`` (60 % of the arithmetic; the default), ``reference`` (the published
            networks), or, for a classifier, ``native`` (as it was trained; its default).
        width: Multiplier of the backbone's channels.
        fc_width: Channels of fc6 and fc7.
        dropout: Rate after fc6 and fc7.
        learned_upsampling: Which transposed convolutions are trained: the ``intermediate`` ones and
            not the last (CVPR 2015), ``none`` (the PAMI models), ``all``, or a tuple of names.
        precision: ``float32``; ``tf32``, which lets GPUs and TPUs round the factors of products;
            or ``bfloat16``, with the backbone's maps in 16 bits. Parameters and logits are float32.
        remat: Train in less memory and more time: only maps after poolings and sums are kept for
            the gradient.
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
    decoder = _choose("model", name, decoders.DECODERS)
    build = backbones.find_backbone(backbone) if isinstance(backbone, str) else backbone
    padding = padding or ("same" if decoder.upsample else "native")
    _choose("padding", padding, dict.fromkeys(backbones.PADDINGS))
    _choose("precision", precision, PRECISIONS)
    if decoder.upsample and padding == "native":
        raise ValueError(
            "padding 'native' leaves too little border to score every pixel; take 'same' or "
            "'reference' (it is for name='classifier')"
        )
    # Labels are stored in 8 bits, of which 255 is void.
    heads = _named_counts("num_classes", num_classes, "label", 255 if decoder.upsample else 2**31)
    channels = _named_counts("inputs", inputs, "image", 2**31)
    if width <= 0 or operator.index(fc_width) < 1:
        raise ValueError(f"width and fc_width must be positive, got {width} and {fc_width}")
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout must be in [0, 1), got {dropout}")

    table = build(padding, width, fc_width)
    # Raises now, not at the first image.
    names = tuple(decoders.align(table, decoder).transposed_windows)
    if isinstance(learned_upsampling, str):
        choices = {"intermediate": names[:-1], "none": (), "all": names}
        learned = _choose("learned_upsampling", learned_upsampling, choices)
    else:
        learned = tuple(learned_upsampling)
        if unknown := [layer for layer in learned if layer not in names]:
            raise ValueError(f"{name} has no transposed convolution {unknown[0]!r}; it has {names}")
    model = FCN(heads, channels, table, decoder, dropout, learned, precision, remat, tuple(freeze))
    for pattern in freeze:
        if not fnmatch.filter(model.parameter_layers, pattern):
            layers = ", ".join(model.parameter_layers)
            raise ValueError(f"no layer matches {pattern!r} to freeze; there are {layers}")
    return model


def _choose(what: str, name: str, choices: Mapping[str, Any]) -> Any:
    if name not in choices:
        raise ValueError(f"unknown {what} {name!r}; choose one of {', '.join(choices)}")
    return choices[name]


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


# ======================================================================== shapes and parameters


def example_images(model: FCN, height: int = 0, width: int = 0) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes and types of one image for tracing; 0 is as few pixels as the network takes, or 32."""
    least = max(32, model.smallest_image)
    return {
        name: jax.ShapeDtypeStruct((1, height or least, width or least, channels), jnp.float32)
        for name, channels in model.inputs
    }


def abstract_params(model: FCN) -> dict[str, Any]:
    """Shapes and types of a network's parameters, without computing any."""
    with ops.plain_forms():  # traces faster, to the same parameters
        return jax.eval_shape(model.init, jax.random.key(0), example_images(model))["params"]


def initial_params(model: FCN, key: Array, names: Sequence[str] | None = None) -> dict[str, Any]:
    """Initial parameters, compiled as one program; with ``names`` a flat dictionary of those."""

    def compute(key: Array) -> Any:
        params = model.lazy_init(key, example_images(model))["params"]
        flat = traverse_util.flatten_dict(params, sep="/")
        return params if names is None else {name: flat[name] for name in names}

    with ops.plain_forms():  # traces faster, to the same parameters
        return jax.jit(compute, compiler_options=least_memory(jax.default_backend()))(key)


def multiply_adds(model: FCN, height: int, width: int) -> int:
    """Multiply-adds of one forward pass on an image, of convolutions and transposed convolutions.

    Products with the padding count, as they are computed; pooling, normalisation and biases do
    not. A transposed convolution has a kernel between all pairs of classes.
    """
    run = functools.partial(model.init_with_output, return_maps=True)
    images = example_images(model, height, width)
    (_, maps), variables = jax.eval_shape(run, jax.random.key(0), images)
    total = 0
    for layer, arrays in variables["params"].items():
        sides = maps[layer].shape[1:3]
        if window := model.upsampling_layers.get(layer):  # each cell read writes one kernel
            sides = ((cells - window.kernel) // window.factor + 1 for cells in sides)
        total += math.prod(sides) * math.prod(arrays["kernel"].shape)
    return total
