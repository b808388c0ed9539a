"""Classification trunks as tables of layers.

A backbone is a function of ``(padding, width, fc_width)`` that returns its layers in order; the
table alone decides the forward pass (`fcn_jax.networks`), the geometry (`fcn_jax.alignment`) and
the parameter names, which are those of the Caffe models. No arrays live here.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Literal, TypeAlias

from fcn_jax.alignment import Window

Padding: TypeAlias = Literal["reference", "same"]
"""``reference``: 100 pixels before the first convolution and a valid fc6, the published networks.
``same``: no extra border, fc6 padded to keep its size; about half the arithmetic."""


@dataclasses.dataclass(frozen=True)
class Conv:
    """Convolution, then ReLU, then dropout where ``dropout`` is set."""

    name: str
    features: int
    window: Window
    dropout: bool = False


@dataclasses.dataclass(frozen=True)
class Pool:
    """Max pooling."""

    name: str
    window: Window


Layer: TypeAlias = Conv | Pool
Backbone: TypeAlias = Callable[[Padding, float, int], tuple[Layer, ...]]


def scaled(features: int, width: float) -> int:
    """The number of channels of a layer at a width multiplier, at least 1."""
    return max(1, round(features * width))


def vgg(
    convs_per_stage: tuple[int, ...], padding: Padding, width: float, fc_width: int
) -> tuple[Layer, ...]:
    """VGG (Simonyan and Zisserman 2015), its classifier turned into convolutions.

    Five stages of 3x3 convolutions, each ended by a 2x2 pooling that rounds up, then fc6 (7x7)
    and fc7 (1x1) with dropout.
    """
    border, fc6_pad = {"reference": (100, 0), "same": (1, 3)}[padding]
    layers: list[Layer] = []
    for stage, convs in enumerate(convs_per_stage, 1):
        features = scaled(64 * 2 ** min(stage - 1, 3), width)
        for conv in range(1, convs + 1):
            pad = border if not layers else 1
            layers.append(Conv(f"conv{stage}_{conv}", features, Window(3, pad=pad)))
        layers.append(Pool(f"pool{stage}", Window(2, stride=2, ceil=True)))
    layers.append(Conv("fc6", fc_width, Window(7, pad=fc6_pad), dropout=True))
    layers.append(Conv("fc7", fc_width, Window(1), dropout=True))
    return tuple(layers)


def vgg16(padding: Padding, width: float, fc_width: int) -> tuple[Layer, ...]:
    """VGG with 16 weight layers: 13 convolutions, fc6 and fc7 (and the classifier, left out)."""
    return vgg((2, 2, 3, 3, 3), padding, width, fc_width)


BACKBONES: dict[str, Backbone] = {"vgg16": vgg16}
