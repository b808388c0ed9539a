"""Classification backbones as tables of layers.

The table alone decides the forward pass (`fcn_jax.models.fcn`), the geometry
(`fcn_jax.geometry`) and the parameter names, which are those of the Caffe models.

A backbone of your own is a function of ``(padding, width, fc_width)`` that returns a `Backbone`:

    def tiny(padding, width, fc_width):
        halve = Window(2, stride=2, ceil=True)
        return Backbone(
            layers=(
                Conv("stem", 16, Window(3, pad=1)),
                Pool("pool1", halve),
                Conv("middle", 32, Window(3, pad=1)),
                Pool("pool2", halve),
                Conv("top", fc_width, Window(3, pad=1), dropout=True),
            ),
            skips=("pool1",),
        )

    model = create_model("fcn16s", backbone=tiny)  # one skip, here from stride 4 to stride 2

Configs name it by its file: ``config.backbone = "my_backbones.py:tiny"``. A run's checkpoints hold
that name with the file's digest; whoever loads them must allow the code to run (docs/safety.md).
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import importlib
import importlib.util
import sys
import types
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, TypeAlias

from fcn_jax.geometry import Window

Padding: TypeAlias = Literal["reference", "same", "native"]
"""``reference``: 100 pixels before the first convolution and a valid fc6, the published networks.
``same``: every layer padded so that its cells reach over the whole image, no further border; 60 %
of the arithmetic for VGG16 at 500x500. ``native``: as the classifier was trained, so that its score
map is 1x1 at the training size; too little border for the scores of every pixel."""

PADDINGS: tuple[Padding, ...] = ("reference", "same", "native")


# ======================================================================== layers


@dataclasses.dataclass(frozen=True)
class Conv:
    """Convolution, then ReLU unless ``relu`` is unset, then dropout where ``dropout`` is set.

    Attributes:
        name: Caffe's name of the layer.
        channels: Channels of its output.
        window: Kernel, stride, padding and dilation.
        groups: Parts that the channels are split into, each convolved on its own.
        dropout: Whether dropout follows in training.
        source: The map it reads; None is the layer before.
        relu: Whether ReLU follows.
    """

    name: str
    channels: int
    window: Window
    groups: int = 1
    dropout: bool = False
    source: str | None = None
    relu: bool = True


@dataclasses.dataclass(frozen=True)
class Pool:
    """Pooling: the largest value of each window, or the mean."""

    name: str
    window: Window
    average: bool = False
    source: str | None = None


@dataclasses.dataclass(frozen=True)
class Norm:
    """Local response normalisation across channels (Krizhevsky et al. 2012, section 3.3)."""

    name: str
    size: int = 5
    alpha: float = 1e-4
    beta: float = 0.75
    source: str | None = None


@dataclasses.dataclass(frozen=True)
class Concat:
    """The channels of several maps, one after the other; then dropout where it is set."""

    name: str
    sources: tuple[str, ...]
    dropout: bool = False


@dataclasses.dataclass(frozen=True)
class Add:
    """The sum of maps of one shape, then ReLU unless it is unset, then dropout where it is set.

    The first of ``sources`` is the branch that learns a residual (He et al. 2016): if it is a
    convolution without ReLU, its kernel starts as zeros, so that at the start the sum is the rest.
    """

    name: str
    sources: tuple[str, ...]
    relu: bool = True
    dropout: bool = False


Layer: TypeAlias = Conv | Pool | Norm | Concat | Add


@dataclasses.dataclass(frozen=True)
class Backbone:
    """A backbone.

    Attributes:
        layers: In the order they run. Strides, offsets and receptive fields of all maps follow
            (`fcn_jax.models.decoders.align`).
        skips: Names of the maps that finer scores may be read from, from coarse to fine.
        classifier: Name of the last layer of the network as a classifier; empty where it is none.
        classifier_pool: What a classifier has between the backbone and its last layer.

    Example:
        >>> conv, pool = Conv("conv1", 8, Window(3, pad=1)), Pool("pool1", Window(2, stride=2))
        >>> small = Backbone((conv, pool, Conv("conv2", 16, Window(3, pad=1))), skips=("pool1",))
        >>> [layer.name for layer in small.layers]
        ['conv1', 'pool1', 'conv2']
    """

    layers: tuple[Layer, ...]
    skips: tuple[str, ...] = ()
    classifier: str = "fc8"
    classifier_pool: tuple[Layer, ...] = ()

    @property
    def convolutions(self) -> tuple[Conv, ...]:
        """The convolutions but those with dropout, fc6 and fc7."""
        layers = [layer for layer in self.layers if isinstance(layer, Conv)]
        return tuple(layer for layer in layers if not layer.dropout)


BackboneBuilder: TypeAlias = Callable[[Padding, float, int], Backbone]
"""From the padding, the multiplier of all channels, and the channels of fc6 and fc7."""


def scaled(channels: int, width: float, multiple: int = 1) -> int:
    """The number of channels of a layer at a width multiplier: a multiple, and at least that."""
    return multiple * max(1, round(channels * width / multiple))


# ======================================================================== the networks


def vgg(
    padding: Padding, width: float, fc_width: int, convs_per_stage: tuple[int, ...]
) -> Backbone:
    """VGG (Simonyan and Zisserman 2015), its classifier turned into convolutions.

    Five stages of 3x3 convolutions, each ended by a 2x2 pooling that rounds up, then fc6 (7x7)
    and fc7 (1x1) with dropout.
    """
    border, fc6_pad = {"reference": (100, 0), "same": (1, 3), "native": (1, 0)}[padding]
    layers: list[Layer] = []
    for stage, convs in enumerate(convs_per_stage, 1):
        channels = scaled(64 * 2 ** min(stage - 1, 3), width)
        for conv in range(1, convs + 1):
            pad = border if not layers else 1
            layers.append(Conv(f"conv{stage}_{conv}", channels, Window(3, pad=pad)))
        layers.append(Pool(f"pool{stage}", Window(2, stride=2, ceil=True)))
    layers.append(Conv("fc6", fc_width, Window(7, pad=fc6_pad), dropout=True))
    layers.append(Conv("fc7", fc_width, Window(1), dropout=True))
    return Backbone(tuple(layers), skips=("pool4", "pool3", "pool2", "pool1"))


def alexnet(padding: Padding, width: float, fc_width: int, *, caffe: bool = True) -> Backbone:
    """AlexNet as the published FCN uses it (CaffeNet: pooling before normalisation, two groups).

    Without ``caffe`` as torchvision has it (Krizhevsky 2014: narrower, no groups, no
    normalisation). ``same`` centres every window with a stride on a cell, also the first: without
    it the cells begin up to 28 pixels inside the image, and an image of a few pixels leaves none.
    """
    channels = (96, 256, 384, 384, 256) if caffe else (64, 192, 384, 256, 256)
    groups = 2 if caffe else 1
    one, two, three, four, five = (scaled(number, width, multiple=groups) for number in channels)
    native = 0 if caffe else 2
    border, fc6_pad = {"reference": (100, 0), "same": (5, 3), "native": (native, 0)}[padding]
    ceil = caffe or padding != "native"
    pool = Window(3, stride=2, pad=int(padding == "same"), ceil=ceil)
    layers = (
        Conv("conv1", one, Window(11, stride=4, pad=border)),
        Pool("pool1", pool),
        *([Norm("norm1")] if caffe else []),
        Conv("conv2", two, Window(5, pad=2), groups),
        Pool("pool2", pool),
        *([Norm("norm2")] if caffe else []),
        Conv("conv3", three, Window(3, pad=1)),
        Conv("conv4", four, Window(3, pad=1), groups),
        Conv("conv5", five, Window(3, pad=1), groups),
        Pool("pool5", pool),
        Conv("fc6", fc_width, Window(6, pad=fc6_pad), dropout=True),
        Conv("fc7", fc_width, Window(1), dropout=True),
    )
    return Backbone(layers, skips=("pool2", "pool1", "conv1"))


# Channels of each module: 1x1; 3x3_reduce, 3x3; 5x5_reduce, 5x5; pool_proj (Szegedy et al. 2015,
# table 1).
_INCEPTIONS = {
    "3a": (64, 96, 128, 16, 32, 32),
    "3b": (128, 128, 192, 32, 96, 64),
    "4a": (192, 96, 208, 16, 48, 64),
    "4b": (160, 112, 224, 24, 64, 64),
    "4c": (128, 128, 256, 24, 64, 64),
    "4d": (112, 144, 288, 32, 64, 64),
    "4e": (256, 160, 320, 32, 128, 128),
    "5a": (256, 160, 320, 32, 128, 128),
    "5b": (384, 192, 384, 48, 128, 128),
}


def googlenet(padding: Padding, width: float, fc_width: int, *, caffe: bool = True) -> Backbone:
    """GoogLeNet (Inception v1) up to its last inception module, without the auxiliary heads.

    The final average pooling belongs to the classifier: the paper drops it, and reads the scores
    from the last module. The reference promised this network and did not publish it; the skips
    from the pools are our own. ``fc_width`` is not used: there is no fc6.

    Without ``caffe`` as torchvision has it: no local response normalisation (its batch
    normalisation is folded into the convolutions when its weights are read), kernels of 3 in the
    layers called 5x5, and of 2 in the last pooling.
    """
    del fc_width
    border = {"reference": 100, "same": 3, "native": 3}[padding]
    # As for AlexNet: centred on the first cell.
    pool = Window(3, stride=2, pad=int(padding == "same"), ceil=True)
    pool4 = pool if caffe else Window(2, stride=2, ceil=True)
    large = Window(5, pad=2) if caffe else Window(3, pad=1)
    conv = functools.partial(scaled, width=width)

    layers: list[Layer] = [
        Conv("conv1/7x7_s2", conv(64), Window(7, stride=2, pad=border)),
        Pool("pool1/3x3_s2", pool),
        *([Norm("pool1/norm1")] if caffe else []),
        Conv("conv2/3x3_reduce", conv(64), Window(1)),
        Conv("conv2/3x3", conv(192), Window(3, pad=1)),
        *([Norm("conv2/norm2")] if caffe else []),
        Pool("pool2/3x3_s2", pool),
    ]
    for number, channels in _INCEPTIONS.items():
        one, three_reduce, three, five_reduce, five, projection = map(conv, channels)
        source, module = layers[-1].name, f"inception_{number}"
        branches = tuple(f"{module}/{branch}" for branch in ("1x1", "3x3", "5x5", "pool_proj"))
        layers += [
            Conv(f"{module}/1x1", one, Window(1), source=source),
            Conv(f"{module}/3x3_reduce", three_reduce, Window(1), source=source),
            Conv(f"{module}/3x3", three, Window(3, pad=1)),
            Conv(f"{module}/5x5_reduce", five_reduce, Window(1), source=source),
            Conv(f"{module}/5x5", five, large),
            Pool(f"{module}/pool", Window(3, pad=1, ceil=True), source=source),
            Conv(f"{module}/pool_proj", projection, Window(1)),
            Concat(f"{module}/output", branches, dropout=number == "5b"),
        ]
        if number == "3b":
            layers.append(Pool("pool3/3x3_s2", pool))
        if number == "4e":
            layers.append(Pool("pool4/3x3_s2", pool4))
    return Backbone(
        tuple(layers),
        skips=("pool3/3x3_s2", "pool2/3x3_s2", "pool1/3x3_s2", "conv1/7x7_s2"),
        classifier="loss3/classifier",
        classifier_pool=(Pool("pool5/7x7_s1", Window(7), average=True),),
    )


def resnet(
    padding: Padding,
    width: float,
    fc_width: int,
    blocks: tuple[int, int, int, int],
    *,
    bottleneck: bool = True,
    dilated: bool = False,
) -> Backbone:
    """ResNet (He et al. 2016) as torchvision has it: strides in the 3x3 convolutions.

    The names are torchvision's; a stage's last sum has the stage's. Batch normalisation is folded
    into the convolutions when weights are read. ``fc_width`` is not used: there is no fc6.

    With ``dilated`` the backbone of torchvision's FCNs: `layer3` and `layer4` dilate their 3x3
    convolutions, by 2 and 4, in place of their strides, so that all stay at stride 8 (the first
    block of a stage still dilates as the stage before did); then the 3x3 convolution of its head.
    """
    del fc_width
    if dilated and not bottleneck:
        raise ValueError("torchvision dilates ResNets of bottlenecks only: 50 and 101 layers")
    channels = functools.partial(scaled, width=width)
    border = 100 if padding == "reference" else 3
    layers: list[Layer] = [
        Conv("conv1", channels(64), Window(7, stride=2, pad=border)),
        Pool("maxpool", Window(3, stride=2, pad=1)),
    ]
    dilation = 1
    for stage, number in enumerate(blocks, 1):
        inner = channels(64 * 2 ** (stage - 1))
        outer = channels(256 * 2 ** (stage - 1)) if bottleneck else inner
        for block in range(number):
            name, source = f"layer{stage}_{block}", layers[-1].name
            stride = 2 if stage > 1 and block == 0 else 1
            before = dilation
            if dilated and stage > 2 and stride == 2:
                stride, dilation = 1, 2 * dilation
            by = before if block == 0 else dilation
            strided = Window(3, stride=stride, pad=by, dilation=by)
            if bottleneck:
                layers += [
                    Conv(f"{name}/conv1", inner, Window(1), source=source),
                    Conv(f"{name}/conv2", inner, strided),
                    Conv(f"{name}/conv3", outer, Window(1), relu=False),
                ]
            else:
                layers += [
                    Conv(f"{name}/conv1", inner, strided, source=source),
                    Conv(f"{name}/conv2", inner, Window(3, pad=1), relu=False),
                ]
            branch, shortcut = layers[-1].name, source
            if block == 0 and (stage > 1 or bottleneck):
                shortcut = f"{name}/downsample"
                down = Window(1, stride=stride)
                layers.append(Conv(shortcut, outer, down, source=source, relu=False))
            total = f"layer{stage}" if block == number - 1 else name
            layers.append(Add(total, (branch, shortcut)))
    if dilated:
        layers.append(Conv("head", channels(512), Window(3, pad=1), dropout=True))
    return Backbone(
        tuple(layers),
        skips=("layer1", "conv1") if dilated else ("layer3", "layer2", "layer1", "conv1"),
        classifier="" if dilated else "fc",
        classifier_pool=(Pool("avgpool", Window(7), average=True),),
    )


# ======================================================================== by name

BACKBONES: dict[str, BackboneBuilder] = {
    "vgg11": functools.partial(vgg, convs_per_stage=(1, 1, 2, 2, 2)),
    "vgg13": functools.partial(vgg, convs_per_stage=(2, 2, 2, 2, 2)),
    "vgg16": functools.partial(vgg, convs_per_stage=(2, 2, 3, 3, 3)),
    "vgg19": functools.partial(vgg, convs_per_stage=(2, 2, 4, 4, 4)),
    "alexnet": alexnet,
    "alexnet_torchvision": functools.partial(alexnet, caffe=False),
    "googlenet": googlenet,
    "googlenet_torchvision": functools.partial(googlenet, caffe=False),
    "resnet18": functools.partial(resnet, blocks=(2, 2, 2, 2), bottleneck=False),
    "resnet34": functools.partial(resnet, blocks=(3, 4, 6, 3), bottleneck=False),
    "resnet50": functools.partial(resnet, blocks=(3, 4, 6, 3)),
    "resnet101": functools.partial(resnet, blocks=(3, 4, 23, 3)),
    "resnet50_dilated": functools.partial(resnet, blocks=(3, 4, 6, 3), dilated=True),
    "resnet101_dilated": functools.partial(resnet, blocks=(3, 4, 23, 3), dilated=True),
}


def find_backbone(name: str) -> BackboneBuilder:
    """The builder of a name in `BACKBONES`, or of ``FILE.py:FUNCTION`` or ``MODULE:FUNCTION``.

    The file of one's own is run: names that somebody else chose go to `find_trusted`.
    """
    if name in BACKBONES:
        return BACKBONES[name]
    file = _file_of(name)
    try:
        return _run(name, file, file.read_bytes())
    except OSError as error:
        raise ValueError(f"backbone {name!r} cannot be loaded: {error}") from error


def code_of(name: str) -> dict[str, str] | None:
    """The file of a backbone of one's own and its sha256; None for a name in `BACKBONES`."""
    if name in BACKBONES:
        return None
    file = _file_of(name)
    return {"file": str(file), "sha256": hashlib.sha256(file.read_bytes()).hexdigest()}


def find_trusted(name: str, code: Any, allow_code: bool | str, origin: str) -> BackboneBuilder:
    """The builder of a name that a file or folder gives, which may be a stranger's.

    Args:
        name: As for `find_backbone`. A relative path leads from where the code was when it was
            described, or, if it is there no more, from here.
        code: What `code_of` gave when it was described.
        allow_code: Whether code of its own may be run; text is the sha256 of what may be.
        origin: What names it, for messages.

    Raises:
        ValueError: If the code is not allowed, missing, or not what was described.
    """
    if name in BACKBONES:
        return BACKBONES[name]
    if not (isinstance(code, Mapping) and all(isinstance(v, str) for v in code.values())) or not {
        "file",
        "sha256",
    } <= set(code):
        raise ValueError(f"{origin} names the code {name!r} without its digest: it is not run")
    file, digest = Path(code["file"]), code["sha256"]
    if allow_code is not True and allow_code != digest:
        raise ValueError(
            f"{origin} would run the code {file} (backbone {name!r}); if you trust that file, "
            "allow it with allow_code=True, or --allow_code"
        )
    if not file.is_file():
        file = _file_of(name)
    try:
        content = file.read_bytes()
    except OSError as error:
        raise ValueError(f"{origin} needs the code {file}: {error.strerror}") from None
    if hashlib.sha256(content).hexdigest() != digest:
        raise ValueError(
            f"{origin} needs {file} as it was in training, but the file has changed: bring it back"
        )
    return _run(name, file, content)


def _file_of(name: str) -> Path:
    """The file of ``FILE.py:FUNCTION`` or ``MODULE:FUNCTION``."""
    path, _, function = name.rpartition(":")
    if not path or not function:
        known = ", ".join(BACKBONES)
        raise ValueError(
            f"unknown backbone {name!r}; choose one of {known}, or FILE.py:FUNCTION of your own"
        )
    if path.endswith(".py"):
        return Path(path).expanduser().absolute()
    try:
        spec = importlib.util.find_spec(path)
    except (ImportError, ValueError):
        spec = None
    if spec is None or spec.origin is None or not Path(spec.origin).is_file():
        raise ValueError(f"backbone {name!r} cannot be loaded: there is no module {path!r}")
    return Path(spec.origin)


@functools.cache
def _run(name: str, file: Path, content: bytes) -> BackboneBuilder:
    """The function of a file whose content is run: what was compared, whatever lies there now."""
    path, _, function = name.rpartition(":")
    try:
        if not path.endswith(".py"):
            return getattr(importlib.import_module(path), function)
        module = types.ModuleType(f"backbones_{file.stem}")
        module.__file__ = str(file)
        sys.modules[module.__name__] = module  # dataclasses look for it
        exec(compile(content, str(file), "exec"), module.__dict__)
        return getattr(module, function)
    except (ImportError, OSError, AttributeError, SyntaxError) as error:
        raise ValueError(f"backbone {name!r} cannot be loaded: {error}") from error
