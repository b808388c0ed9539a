"""Backbones as somebody writes them in a file of their own."""

from __future__ import annotations

from fcn_jax.geometry import Window
from fcn_jax.models.backbones import Add, Backbone, Concat, Conv, Norm, Padding, Pool, scaled

HALVE = Window(2, stride=2, ceil=True)


def plain(padding: Padding, width: float, fc_width: int) -> Backbone:
    """A chain of layers of stride 16, with a border of 16 pixels for ``reference``."""
    border = 16 if padding == "reference" else 2
    return Backbone(
        layers=(
            Conv("stem", scaled(8, width), Window(5, pad=border)),
            Pool("pool2", HALVE),
            Conv("middle", scaled(16, width), Window(3, pad=1)),
            Pool("pool3", HALVE),
            Pool("pool4", HALVE),
            Pool("pool5", HALVE),
            Conv("top", fc_width, Window(3, pad=1), dropout=True),
        ),
        skips=("pool4", "pool3", "pool2"),
    )


def forked(padding: Padding, width: float, fc_width: int) -> Backbone:
    """Every kind of layer, strides of 2, 4 and 12, names of its own, two branches."""
    border = 30 if padding == "reference" else 2
    channels = scaled(8, width, multiple=2)
    return Backbone(
        layers=(
            Conv("stem", channels, Window(5, stride=2, pad=border)),
            Norm("norm", size=3, alpha=0.01),
            Conv("wide", 2 * channels, Window(3, pad=1), groups=2),
            Conv("narrow", channels, Window(1), source="norm"),
            Concat("both", ("wide", "narrow")),
            Pool("half", HALVE),
            Pool("third", Window(3, stride=3, ceil=True)),
            Conv("top", fc_width, Window(3, pad=1), dropout=True),
        ),
        skips=("half", "both"),
        classifier="answer",
        classifier_pool=(Pool("mean", Window(2), average=True),),
    )


def residual(padding: Padding, width: float, fc_width: int) -> Backbone:
    """A small ResNet of stride 8: a pool with padding, sums, dilation, one sum without ReLU."""
    border = 20 if padding == "reference" else 2
    channels = scaled(8, width)
    return Backbone(
        layers=(
            Conv("stem", channels, Window(5, stride=2, pad=border)),
            Pool("pool", Window(3, stride=2, pad=1)),
            Conv("block1/conv1", channels, Window(3, pad=1)),
            Conv("block1/conv2", channels, Window(3, pad=1), relu=False),
            Add("block1", ("block1/conv2", "pool")),
            Conv("block2/conv1", channels, Window(3, stride=2, pad=1)),
            Conv("block2/conv2", 2 * channels, Window(3, pad=2, dilation=2), relu=False),
            Conv("down", 2 * channels, Window(1, stride=2), source="block1", relu=False),
            Add("block2", ("block2/conv2", "down"), relu=False),
            Conv("top", fc_width, Window(3, pad=4, dilation=4), dropout=True),
        ),
        skips=("block1", "stem"),
        classifier="answer",
    )
