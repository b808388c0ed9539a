"""Fully convolutional networks: a trunk, score layers, and up-convolutions with skips.

One module runs every variant. What differs between FCN-32s, 16s, 8s and 8s at-once is a row of
`DECODERS`; what differs between trunks is a table in `fcn_jax.backbones`; crops and output sizes
follow from `fcn_jax.alignment`.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import operator
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import traverse_util
from jaxtyping import Array, Float

from fcn_jax import ops
from fcn_jax.alignment import PIXELS, Geometry, UpWindow, crop_offset, overlap
from fcn_jax.backbones import BACKBONES, Backbone, Conv, Layer, Padding

# ======================================================================== tables


@dataclasses.dataclass(frozen=True)
class Skip:
    """One skip: upsample the scores so far to a finer map's stride and add that map's scores.

    Attributes:
        upsample: Name of the up-convolution.
        feature: Name of the trunk's map; its score layer is ``score_<feature>``.
        scale: Fixed factor on the map before its score layer (FCN-8s at-once).
    """

    upsample: str
    feature: str
    scale: float = 1.0


@dataclasses.dataclass(frozen=True)
class Decoder:
    """Skips from coarse to fine, and the name of the last up-convolution, to single pixels."""

    skips: tuple[Skip, ...]
    final: str


DECODERS: dict[str, Decoder] = {
    "fcn32s": Decoder((), "upscore"),
    "fcn16s": Decoder((Skip("upscore2", "pool4"),), "upscore16"),
    "fcn8s": Decoder((Skip("upscore2", "pool4"), Skip("upscore_pool4", "pool3")), "upscore8"),
    "fcn8s_atonce": Decoder(
        (Skip("upscore2", "pool4", 0.01), Skip("upscore_pool4", "pool3", 0.0001)), "upscore8"
    ),
}

# ======================================================================== alignment


@dataclasses.dataclass(frozen=True)
class Alignment:
    """Where every map of a network lies over the image, and the crops that follow.

    Attributes:
        geometry: Stride, offset and receptive field of every map by name.
        up_windows: Kernel and factor of every up-convolution by name.
        crops: The offset of every crop under the name of the layer that is cropped in the
            published networks: the skip's score layer, and the last up-convolution. A negative
            offset of a skip means that the upsampled scores are cropped instead, by as much.
    """

    geometry: Mapping[str, Geometry]
    up_windows: Mapping[str, UpWindow]
    crops: Mapping[str, int]


@functools.cache
def align(layers: tuple[Layer, ...], decoder: Decoder) -> Alignment:
    """Aligns a decoder with a trunk.

    Raises:
        ValueError: If the decoder names a map that the trunk lacks, if the strides of the skips
            do not divide each other, or if the maps' cells do not coincide.
    """
    geometry: dict[str, Geometry] = {}
    up_windows: dict[str, UpWindow] = {}
    crops: dict[str, int] = {}

    current = PIXELS
    for layer in layers:
        current = geometry[layer.name] = current.then(layer.window)
    geometry["score_fr"] = current

    def upsample(name: str, source: Geometry, target: Geometry) -> Geometry:
        factor = source.stride / target.stride
        if factor.denominator != 1 or factor < 2:
            raise ValueError(
                f"{name} would upsample from stride {source.stride} to {target.stride}; "
                "skips must go from coarse to fine by whole factors"
            )
        up_windows[name] = UpWindow.bilinear(int(factor))
        geometry[name] = source.then(up_windows[name])
        return geometry[name]

    for skip in decoder.skips:
        if skip.feature not in geometry:
            known = ", ".join(layer.name for layer in layers)
            raise ValueError(f"the trunk has no map {skip.feature!r} to skip from; it has {known}")
        fine = geometry[f"score_{skip.feature}"] = geometry[skip.feature]
        up = upsample(skip.upsample, current, fine)
        offset = crops[f"score_{skip.feature}"] = crop_offset(fine, up)
        current = geometry[f"fuse_{skip.feature}"] = dataclasses.replace(
            up if offset >= 0 else fine,
            receptive_field=max(up.receptive_field, fine.receptive_field),
        )
    up = upsample(decoder.final, current, PIXELS)
    crops[decoder.final] = crop_offset(up, PIXELS)
    return Alignment(geometry, up_windows, crops)


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


class FCN(nn.Module):
    """A fully convolutional network; build it with `create_model`.

    Parameters are keyed by the Caffe layer names: ``conv1_1`` ... ``fc7``, ``score_fr``,
    ``score_pool4``, ``upscore2`` and so on, each with ``kernel`` (height, width, in, out) and,
    but for the up-convolutions, ``bias``.

    Attributes:
        num_classes: Channels of the logits.
        layers: The trunk's table.
        decoder: The skips.
        dropout: Rate after the layers that the trunk marks.
        learned_upsampling: Names of the up-convolutions that are trained.
    """

    num_classes: int
    layers: tuple[Layer, ...]
    decoder: Decoder
    dropout: float = 0.5
    learned_upsampling: tuple[str, ...] = ()

    @nn.compact
    def __call__(
        self,
        images: Float[Array, "b h w c"],
        *,
        train: bool = False,
        return_maps: bool = False,
    ) -> Any:
        """Scores every pixel.

        Args:
            images: Float images already normalised (`fcn_jax.Preprocessing`), of any height and
                width from 1 up.
            train: Whether dropout is active; it then needs ``rngs={"dropout": key}``.
            return_maps: Whether to return every intermediate map as well.

        Returns:
            Logits (b, h, w, num_classes); with ``return_maps`` a pair of them and a dictionary
            of all maps by layer name, up-convolutions uncropped.

        Raises:
            ValueError: If the images have another rank, or are not floating point.
        """
        _check_images(images)
        alignment = self.alignment
        maps = self._trunk(images, train)
        score = functools.partial(
            nn.Conv,
            self.num_classes,
            (1, 1),
            padding=0,
            kernel_init=nn.initializers.zeros_init(),
            conv_general_dilated=ops.convolution,
        )

        last = self.layers[-1].name
        logits = maps["score_fr"] = score(name="score_fr")(maps[last])
        for skip in self.decoder.skips:
            up = maps[skip.upsample] = self._up_convolution(skip.upsample)(logits)
            name = f"score_{skip.feature}"
            fine = maps[name] = score(name=name)(maps[skip.feature] * skip.scale)
            logits = maps[f"fuse_{skip.feature}"] = _fuse(fine, up, alignment.crops[name])
        final = self.decoder.final
        up = maps[final] = self._up_convolution(final)(logits)
        logits = _crop_to_image(up, alignment.crops[final], images.shape)
        return (logits, maps) if return_maps else logits

    def _trunk(self, x: Array, train: bool) -> dict[str, Array]:
        """Runs the layer table; every map by name, as it leaves ReLU and dropout."""
        maps = {}
        for index, layer in enumerate(self.layers):
            if isinstance(layer, Conv):
                window = layer.window
                x = nn.Conv(
                    layer.features,
                    (window.kernel, window.kernel),
                    strides=window.stride,
                    padding=window.pad,
                    kernel_init=_centred_kernel if index else _first_kernel,
                    conv_general_dilated=ops.convolution,
                    name=layer.name,
                )(x)
                x = nn.relu(x)
                if layer.dropout:
                    x = nn.Dropout(self.dropout, deterministic=not train)(x)
            else:
                x = ops.max_pool(x, layer.window)
            maps[layer.name] = x
        return maps

    def _up_convolution(self, name: str) -> UpConv:
        window = self.alignment.up_windows[name]
        return UpConv(self.num_classes, window, name in self.learned_upsampling, name=name)

    @property
    def alignment(self) -> Alignment:
        """Geometry of every map, windows of the up-convolutions, and the crops."""
        return align(self.layers, self.decoder)

    @property
    def score_layers(self) -> tuple[str, ...]:
        """The layers whose shape depends on the number of classes."""
        skips = self.decoder.skips
        scores = ["score_fr", *(f"score_{skip.feature}" for skip in skips)]
        return (*scores, *self.upsampling_layers)

    @property
    def upsampling_layers(self) -> tuple[str, ...]:
        """The up-convolutions, from coarse to fine."""
        return _upsampling_layers(self.decoder)

    @property
    def frozen_layers(self) -> tuple[str, ...]:
        """The up-convolutions that stay as they are."""
        return tuple(n for n in self.upsampling_layers if n not in self.learned_upsampling)


def _upsampling_layers(decoder: Decoder) -> tuple[str, ...]:
    return (*(skip.upsample for skip in decoder.skips), decoder.final)


def _fuse(fine: Array, up: Array, offset: int) -> Array:
    """Adds two score maps where they overlap; ``offset`` is that of ``fine`` against ``up``."""
    rows_fine, rows_up = overlap(offset, fine.shape[1], up.shape[1])
    columns_fine, columns_up = overlap(offset, fine.shape[2], up.shape[2])
    return fine[:, rows_fine, columns_fine] + up[:, rows_up, columns_up]


def _crop_to_image(up: Array, offset: int, image_shape: tuple[int, ...]) -> Array:
    _, height, width, _ = image_shape
    if offset < 0 or offset + height > up.shape[1] or offset + width > up.shape[2]:
        raise ValueError(
            f"scores of {up.shape[1]}x{up.shape[2]} cells at offset {offset} do not cover an image "
            f"of {height}x{width}; give the trunk's first layer more padding"
        )
    return up[:, offset : offset + height, offset : offset + width]


def _check_images(images: Array) -> None:
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


# ======================================================================== construction


def create_model(
    name: str,
    *,
    backbone: str | Backbone = "vgg16",
    num_classes: int = 21,
    padding: Padding = "same",
    width: float = 1.0,
    fc_width: int = 4096,
    dropout: float = 0.5,
    learned_upsampling: Literal["intermediate", "none", "all"] | tuple[str, ...] = "intermediate",
) -> FCN:
    """Builds a network by name.

    Args:
        name: ``fcn32s``, ``fcn16s``, ``fcn8s`` or ``fcn8s_atonce``.
        backbone: A name in `fcn_jax.backbones.BACKBONES`, or a function of ``(padding, width,
            fc_width)`` that returns a table of layers.
        num_classes: Channels of the logits.
        padding: ``reference`` (the published networks) or ``same`` (half the arithmetic).
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
    build = _choose("backbone", backbone, BACKBONES) if isinstance(backbone, str) else backbone
    _choose("padding", padding, {"reference": None, "same": None})
    if operator.index(num_classes) not in range(1, 256):
        raise ValueError(f"num_classes must be from 1 to 255 (255 is void), got {num_classes}")
    if width <= 0 or operator.index(fc_width) < 1:
        raise ValueError(f"width and fc_width must be positive, got {width} and {fc_width}")
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout must be in [0, 1), got {dropout}")

    names = _upsampling_layers(decoder)
    if isinstance(learned_upsampling, str):
        choices = {"intermediate": names[:-1], "none": (), "all": names}
        learned = _choose("learned_upsampling", learned_upsampling, choices)
    else:
        learned = tuple(learned_upsampling)
        if unknown := [layer for layer in learned if layer not in names]:
            raise ValueError(f"{name} has no up-convolution {unknown[0]!r}; it has {names}")

    layers = tuple(build(padding, width, fc_width))
    align(layers, decoder)  # raises now, not at the first image, if they do not fit
    return FCN(num_classes, layers, decoder, dropout, learned)


def abstract_params(model: FCN) -> dict[str, Any]:
    """Shapes and types of a network's parameters, without computing any."""
    image = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    return jax.eval_shape(model.init, jax.random.key(0), image)["params"]


def initial_params(model: FCN, key: Array, names: Sequence[str] | None = None) -> dict[str, Any]:
    """Initial parameters of a network, compiled as one program.

    Args:
        model: The network.
        key: Random key.
        names: Compute only these arrays, ``layer/kernel`` or ``layer/bias``; None is all.

    Returns:
        The parameter tree; with ``names`` a flat dictionary of them.
    """
    image = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)

    def compute(key: Array) -> Any:
        params: Any = model.lazy_init(key, image)["params"]
        if names is None:
            return params
        flat = traverse_util.flatten_dict(params, sep="/")
        return {name: flat[name] for name in names}

    return jax.jit(compute)(key)


def _choose(what: str, name: str, choices: Mapping[str, Any]) -> Any:
    if name not in choices:
        raise ValueError(f"unknown {what} {name!r}; choose one of {', '.join(choices)}")
    return choices[name]
