"""The fully convolutional networks in PyTorch, by hand: what ours are tested and timed against.

Nothing is shared with `fcn_jax`. The layers stand here in the order of the published definitions,
the crops are published numbers or derived by hand beside the table `DECODERS`, and the arithmetic
is PyTorch's own.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

Maps: TypeAlias = dict[str, torch.Tensor]

NETS = ("fcn32s", "fcn16s", "fcn8s", "fcn8s_atonce", "fcn4s", "fcn2s")
PADDINGS = ("reference", "same")

# ======================================================================== backbones
# Each runs on one input and returns its last map before fc6 or the average pooling, and the maps
# by name that skips may read. `s` is the name of the input, which every layer's name ends in. The
# padding `native` is the classifier's; VGG also runs without any padding, as `valid`.


def vgg(
    net: TorchFCN, x: torch.Tensor, s: str, convolutions: tuple[int, ...]
) -> tuple[torch.Tensor, Maps]:
    """VGG by the number of 3x3 convolutions in each stage."""
    pad = 0 if net.padding == "valid" else 1
    border = 100 if net.padding == "reference" else pad
    pools: Maps = {}
    for stage, count in enumerate(convolutions, 1):
        for index in range(1, count + 1):
            first = stage == index == 1
            channels = net.scaled((64, 128, 256, 512, 512)[stage - 1])
            name = f"conv{stage}_{index}{s}"
            x = net.conv(name, x, channels, 3, pad=border if first else pad)
        x = pools[f"pool{stage}"] = net.keep(
            f"pool{stage}{s}", F.max_pool2d(x, 2, 2, ceil_mode=True)
        )
    return x, pools


def alexnet(net: TorchFCN, x: torch.Tensor, s: str) -> tuple[torch.Tensor, Maps]:
    """CaffeNet: pooling before normalisation; conv2, conv4 and conv5 in two groups."""
    border, pool_pad = {"reference": (100, 0), "same": (5, 1), "native": (0, 0)}[net.padding]
    pools: Maps = {}

    def pool(number: int, x: torch.Tensor) -> torch.Tensor:
        x = F.max_pool2d(x, 3, 2, pool_pad, ceil_mode=True)
        pools[f"pool{number}"] = net.keep(f"pool{number}{s}", x)
        return x

    even = functools.partial(net.scaled, multiple=2)
    x = pool(1, net.conv(f"conv1{s}", x, even(96), 11, stride=4, pad=border))
    x = net.norm(f"norm1{s}", x)
    x = pool(2, net.conv(f"conv2{s}", x, even(256), 5, pad=2, groups=2))
    x = net.norm(f"norm2{s}", x)
    x = net.conv(f"conv3{s}", x, even(384), 3, pad=1)
    x = net.conv(f"conv4{s}", x, even(384), 3, pad=1, groups=2)
    x = net.conv(f"conv5{s}", x, even(256), 3, pad=1, groups=2)
    return pool(5, x), pools


def googlenet(net: TorchFCN, x: torch.Tensor, s: str) -> tuple[torch.Tensor, Maps]:
    """BVLC's, without its average pooling."""
    border, pool_pad = {"reference": (100, 0), "same": (3, 1), "native": (3, 0)}[net.padding]
    pools: Maps = {}

    def conv(name: str, x: torch.Tensor, channels: int, kernel: int, **options: Any) -> Any:
        return net.conv(f"{name}{s}", x, net.scaled(channels), kernel, **options)

    def pool(number: int, x: torch.Tensor) -> torch.Tensor:
        x = F.max_pool2d(x, 3, 2, pool_pad, ceil_mode=True)
        pools[f"pool{number}/3x3_s2"] = net.keep(f"pool{number}/3x3_s2{s}", x)
        return x

    def inception(
        module: str, x: torch.Tensor, one: int, before_3: int, three: int, before_5: int,
        five: int, projected: int,
    ) -> torch.Tensor:  # fmt: skip
        name = f"inception_{module}"
        largest = net.keep(f"{name}/pool{s}", F.max_pool2d(x, 3, 1, 1, ceil_mode=True))
        branches = [
            conv(f"{name}/1x1", x, one, 1),
            conv(f"{name}/3x3", conv(f"{name}/3x3_reduce", x, before_3, 1), three, 3, pad=1),
            conv(f"{name}/5x5", conv(f"{name}/5x5_reduce", x, before_5, 1), five, 5, pad=2),
            conv(f"{name}/pool_proj", largest, projected, 1),
        ]
        return net.keep(f"{name}/output{s}", torch.cat(branches, 1))

    x = pool(1, conv("conv1/7x7_s2", x, 64, 7, stride=2, pad=border))
    x = net.norm(f"pool1/norm1{s}", x)
    x = conv("conv2/3x3", conv("conv2/3x3_reduce", x, 64, 1), 192, 3, pad=1)
    x = pool(2, net.norm(f"conv2/norm2{s}", x))
    x = inception("3a", x, 64, 96, 128, 16, 32, 32)
    x = pool(3, inception("3b", x, 128, 128, 192, 32, 96, 64))
    x = inception("4a", x, 192, 96, 208, 16, 48, 64)
    x = inception("4b", x, 160, 112, 224, 24, 64, 64)
    x = inception("4c", x, 128, 128, 256, 24, 64, 64)
    x = inception("4d", x, 112, 144, 288, 32, 64, 64)
    x = pool(4, inception("4e", x, 256, 160, 320, 32, 128, 128))
    x = inception("5a", x, 256, 160, 320, 32, 128, 128)
    return inception("5b", x, 384, 192, 384, 48, 128, 128), pools


BACKBONES: dict[str, Callable[..., tuple[torch.Tensor, Maps]]] = {
    "vgg11": functools.partial(vgg, convolutions=(1, 1, 2, 2, 2)),
    "vgg16": functools.partial(vgg, convolutions=(2, 2, 3, 3, 3)),
    "alexnet": alexnet,
    "googlenet": googlenet,
}
FC6 = {"vgg11": 7, "vgg16": 7, "alexnet": 6}
"""Kernel of fc6; GoogLeNet has none."""
TRAINED_AT = {"vgg11": 224, "vgg16": 224, "alexnet": 227, "googlenet": 224}
"""Pixels a side of the images that the classifiers were trained on."""

# ======================================================================== decoders


@dataclasses.dataclass(frozen=True)
class Up:
    """A transposed convolution, and what is cropped after it.

    Attributes:
        name: Of the layer.
        kernel: Its kernel.
        factor: Its factor.
        crop: Cells dropped at its start.
        skip: The backbone's map whose scores are added; none for the last.
        crop_skip: Cells dropped at the start of those.
    """

    name: str
    kernel: int
    factor: int
    crop: int
    skip: str = ""
    crop_skip: int = 0


# Where cell 0 of a map lies, in pixels: a convolution or pooling of kernel k and padding p on a map
# of stride s moves it by s * ((k - 1) / 2 - p), a transposed convolution by factor f by
# -s * (k - 1) / (2 f). What is cropped is the difference of two such numbers, in cells.
DECODERS: dict[tuple[str, str, str], tuple[Up, ...]] = {
    # Published: the Crop layers of voc-fcn32s/16s/8s and of voc-fcn-alexnet.
    ("vgg", "reference", "fcn32s"): (Up("upscore", 64, 32, 19),),
    ("vgg", "reference", "fcn16s"): (
        Up("upscore2", 4, 2, 0, "pool4", 5),
        Up("upscore16", 32, 16, 27),
    ),
    ("vgg", "reference", "fcn8s"): (
        Up("upscore2", 4, 2, 0, "pool4", 5),
        Up("upscore_pool4", 4, 2, 0, "pool3", 9),
        Up("upscore8", 16, 8, 31),
    ),
    ("alexnet", "reference", "fcn32s"): (Up("upscore", 63, 32, 18),),
    # Further: pool3 at -95.5, pool2 (stride 4) at -97.5, pool1 (2) at -98.5; fuse_pool3 at -23.5.
    # upscore_pool3 at -23.5 - 6: 17 cells of 4 after pool2's; upscore4 at -33. Or upscore_pool2
    # at -32.5: 33 cells of 2 after pool1's; upscore at -34.
    ("vgg", "reference", "fcn4s"): (
        Up("upscore2", 4, 2, 0, "pool4", 5),
        Up("upscore_pool4", 4, 2, 0, "pool3", 9),
        Up("upscore_pool3", 4, 2, 0, "pool2", 17),
        Up("upscore4", 8, 4, 33),
    ),
    ("vgg", "reference", "fcn2s"): (
        Up("upscore2", 4, 2, 0, "pool4", 5),
        Up("upscore_pool4", 4, 2, 0, "pool3", 9),
        Up("upscore_pool3", 4, 2, 0, "pool2", 17),
        Up("upscore_pool2", 4, 2, 0, "pool1", 33),
        Up("upscore", 4, 2, 34),
    ),
    # With no border, cell i of VGG's map of stride s covers the pixels s * i to s * i + s - 1, and
    # a kernel of 2 f reaches f / 2 cells beyond each side of the f that its input cell covers. So
    # upscore2 has 1 cell too many before the skip's first, and the last one has f / 2.
    ("vgg", "same", "fcn32s"): (Up("upscore", 64, 32, 16),),
    ("vgg", "same", "fcn16s"): (Up("upscore2", 4, 2, 1, "pool4"), Up("upscore16", 32, 16, 8)),
    ("vgg", "same", "fcn8s"): (
        Up("upscore2", 4, 2, 1, "pool4"),
        Up("upscore_pool4", 4, 2, 1, "pool3"),
        Up("upscore8", 16, 8, 4),
    ),
    ("vgg", "same", "fcn4s"): (
        Up("upscore2", 4, 2, 1, "pool4"),
        Up("upscore_pool4", 4, 2, 1, "pool3"),
        Up("upscore_pool3", 4, 2, 1, "pool2"),
        Up("upscore4", 8, 4, 2),
    ),
    ("vgg", "same", "fcn2s"): (
        Up("upscore2", 4, 2, 1, "pool4"),
        Up("upscore_pool4", 4, 2, 1, "pool3"),
        Up("upscore_pool3", 4, 2, 1, "pool2"),
        Up("upscore_pool2", 4, 2, 1, "pool1"),
        Up("upscore", 4, 2, 1),
    ),
    # conv1 at 5 - 100 = -95; pool1 (stride 4) -91, pool2 (8) -83, pool5 (16) -67; fc6 (32) +80: 13.
    # upscore2 with kernel 3 starts 16 earlier, at -3: five cells of 16 after pool2's -83. Then
    # upscore16 with kernel 31 at -18.
    ("alexnet", "reference", "fcn16s"): (
        Up("upscore2", 3, 2, 0, "pool2", 5),
        Up("upscore16", 31, 16, 18),
    ),
    # All windows are centred on cell 0 but fc6's (6, padded by 3): -16. upscore starts 31 earlier.
    ("alexnet", "same", "fcn32s"): (Up("upscore", 63, 32, 47),),
    # upscore2 at -32, pool2 at 0; upscore16 at -15.
    ("alexnet", "same", "fcn16s"): (Up("upscore2", 3, 2, 2, "pool2"), Up("upscore16", 31, 16, 15)),
    # conv1 at 3 - 100 = -97; pool1 (stride 2) -95, pool2 (4) -91, pool3 (8) -83, pool4 (16) -67.
    ("googlenet", "reference", "fcn32s"): (Up("upscore", 63, 32, 98),),
    # upscore2 at -67 - 16 = -83, where pool3 is; the next at -83 - 8 = -91, where pool2 is.
    ("googlenet", "reference", "fcn8s"): (
        Up("upscore2", 3, 2, 0, "pool3/3x3_s2"),
        Up("upscore_pool3/3x3_s2", 3, 2, 0, "pool2/3x3_s2"),
        Up("upscore8", 15, 8, 98),
    ),
    # All at 0.
    ("googlenet", "same", "fcn32s"): (Up("upscore", 63, 32, 31),),
    ("googlenet", "same", "fcn8s"): (
        Up("upscore2", 3, 2, 1, "pool3/3x3_s2"),
        Up("upscore_pool3/3x3_s2", 3, 2, 1, "pool2/3x3_s2"),
        Up("upscore8", 15, 8, 7),
    ),
}
AT_ONCE_SCALES = {"pool4": 0.01, "pool3": 0.0001}
"""FCN-8s at-once is FCN-8s whose pools are scaled before their score layers."""

# ======================================================================== the network


class TorchFCN(nn.Module):
    """A network with parameters called by Caffe's names; NCHW in and out, images normalised.

    Attributes:
        net: One of `NETS`, or ``classifier``: the network as it was trained on ImageNet, its last
            layers dense.
        backbone: A name in `BACKBONES`.
        padding: One of `PADDINGS`; of a classifier ``native``, of VGG's also ``valid``.
        heads: Name and classes of every output; a number is one output.
        inputs: Name and channels of every input; a number is one input.
        width: Multiplier of the backbone's channels.
        fc_width: Channels of fc6 and fc7.
        dropout: Rate of dropout in training.
    """

    def __init__(
        self,
        net: str,
        backbone: str = "vgg16",
        padding: str = "same",
        *,
        heads: int | Mapping[str, int] = 21,
        inputs: int | Mapping[str, int] = 3,
        width: float = 1.0,
        fc_width: int = 4096,
        dropout: float = 0.5,
    ):
        super().__init__()
        self.net, self.backbone, self.padding = net, backbone, padding
        self.heads = dict(heads) if isinstance(heads, Mapping) else {"": heads}
        self.inputs = dict(inputs) if isinstance(inputs, Mapping) else {"": inputs}
        self.width, self.fc_width, self.dropout = width, fc_width, dropout
        self.record: Maps | None = None
        # One pass over shapes alone makes the layers, each when it is first met.
        self.complete = False
        side = {"native": TRAINED_AT[backbone], "valid": 404}.get(padding, 32)
        with torch.device("meta"):
            self({name: torch.empty(1, c, side, side) for name, c in self.inputs.items()})
        self.complete = True

    def initialize(self) -> TorchFCN:
        """Draws random parameters, as PyTorch does for each layer."""
        self.to_empty(device="cpu")
        for layer in self.children():
            layer.reset_parameters()  # pyright: ignore[reportCallIssue]
        return self

    def load(self, params: Mapping[str, Mapping[str, Any]]) -> TorchFCN:
        """Takes copies of our parameters, ``{layer: {kernel, bias}}``; all of them must fit."""
        state = {}
        for name, arrays in params.items():
            kernel = np.asarray(arrays["kernel"])
            state[f"{name}.weight"] = kernel.transpose(self._axes(name)[0])
            if "bias" in arrays:
                state[f"{name}.bias"] = np.asarray(arrays["bias"])
        tensors = {name: torch.from_numpy(array.copy()) for name, array in state.items()}
        self.load_state_dict(tensors, assign=True)
        return self

    def gradients(self) -> dict[str, np.ndarray]:
        """Of all parameters, in our layout: by ``layer/kernel`` and ``layer/bias``."""
        found = {}
        for name, parameter in self.named_parameters():
            layer, leaf = name.rsplit(".", 1)
            assert parameter.grad is not None, name
            gradient = parameter.grad.numpy()
            if leaf == "weight":
                gradient = gradient.transpose(self._axes(layer)[1])
            found[f"{layer}/{'kernel' if leaf == 'weight' else 'bias'}"] = gradient
        return found

    def _axes(self, layer: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The order of our kernel's axes here, and of the kernel's here with us."""
        kind = self.get_submodule(layer)
        if isinstance(kind, nn.Linear):
            return (1, 0), (1, 0)
        if isinstance(kind, nn.ConvTranspose2d):
            return (2, 3, 0, 1), (2, 3, 0, 1)
        return (3, 2, 0, 1), (2, 3, 1, 0)

    @property
    def transposed(self) -> tuple[Up, ...]:
        """The transposed convolutions, from coarse to fine."""
        family = "vgg" if self.backbone.startswith("vgg") else self.backbone
        return DECODERS[family, self.padding, self.net.removesuffix("_atonce")]

    # ---- layers

    def scaled(self, channels: int, multiple: int = 1) -> int:
        """The channels of a layer of the backbone that has so many at width 1."""
        return multiple * max(1, round(channels * self.width / multiple))

    def keep(self, name: str, x: torch.Tensor) -> torch.Tensor:
        """Records a map if maps are wanted."""
        if self.record is not None:
            assert name not in self.record, name
            self.record[name] = x
        return x

    def conv(
        self,
        name: str,
        x: torch.Tensor,
        channels: int,
        kernel: int,
        stride: int = 1,
        pad: int = 0,
        groups: int = 1,
        relu: bool = True,
    ) -> torch.Tensor:
        """Convolution, and ReLU unless told otherwise."""
        if not self.complete:
            layer = nn.Conv2d(x.shape[1], channels, kernel, stride, pad, groups=groups)
            self.add_module(name, layer)
        x = getattr(self, name)(x)
        return self.keep(name, F.relu(x, inplace=True) if relu else x)

    def dense(self, name: str, x: torch.Tensor, outputs: int) -> torch.Tensor:
        """A product with all cells of the maps."""
        x = x.flatten(1)
        if not self.complete:
            self.add_module(name, nn.Linear(x.shape[1], outputs))
        return self.keep(name, getattr(self, name)(x))

    def up(self, name: str, x: torch.Tensor, kernel: int, factor: int) -> torch.Tensor:
        """Transposed convolution without bias."""
        if not self.complete:
            classes = x.shape[1]
            self.add_module(name, nn.ConvTranspose2d(classes, classes, kernel, factor, bias=False))
        return self.keep(name, getattr(self, name)(x))

    def norm(self, name: str, x: torch.Tensor) -> torch.Tensor:
        """Local response normalisation."""
        return self.keep(name, F.local_response_norm(x, 5, 1e-4, 0.75, 1.0))

    def drop(self, x: torch.Tensor) -> torch.Tensor:
        """Dropout."""
        return F.dropout(x, self.dropout, self.training)

    # ---- passes

    def with_maps(self, images: Any) -> tuple[Any, Maps]:
        """The logits, and every map by Caffe's name."""
        self.record = {}
        logits, maps, self.record = self(images), self.record, None
        return logits, maps

    def forward(self, images: Any) -> Any:
        """Logits, by head if these have names; images by input if these have names."""
        images = images if isinstance(images, dict) else {"": images}
        if self.net == "classifier":
            (x,) = images.values()
            return self._classify(BACKBONES[self.backbone](self, x, "")[0])
        tops: Maps = {}
        skips: dict[str, Maps] = {}
        for s, x in images.items():
            x, skips[s] = BACKBONES[self.backbone](self, x, s)
            if self.backbone in FC6:
                pad = 0 if self.padding == "reference" else 3
                x = self.conv(f"fc6{s}", x, self.fc_width, FC6[self.backbone], pad=pad)
                x = self.drop(x)
                x = self.conv(f"fc7{s}", x, self.fc_width, 1)
            tops[s] = self.drop(x)
        height, width = next(iter(images.values())).shape[2:]
        logits = {head: self._decode(head, tops, skips, height, width) for head in self.heads}
        return logits.get("", logits)

    def _classify(self, x: torch.Tensor) -> torch.Tensor:
        """The logits (images, classes)."""
        if self.backbone == "googlenet":
            assert x.shape[2:] == (7, 7)
            x = self.keep("pool5/7x7_s1", F.avg_pool2d(x, 7, 1))
            return self.dense("loss3/classifier", self.drop(x), self.heads[""])
        for name in ("fc6", "fc7"):
            x = self.drop(F.relu(self.dense(name, x, self.fc_width)))
        return self.dense("fc8", x, self.heads[""])

    def _decode(
        self, head: str, tops: Maps, skips: Mapping[str, Maps], height: int, width: int
    ) -> torch.Tensor:
        """The logits of one head."""
        suffix = f"_{head}" if head else ""
        classes = self.heads[head]

        def score(name: str, maps: Maps) -> torch.Tensor:
            """Of several inputs the mean of their scores (late fusion)."""
            scores = [
                self.conv(f"{name}{suffix}{s}", x, classes, 1, relu=False) for s, x in maps.items()
            ]
            if len(scores) == 1:
                return scores[0]
            fused = "score" if name == "score_fr" else name
            return self.keep(f"{fused}{suffix}_fused", 0.5 * scores[0] + 0.5 * scores[1])

        x = score("score_fr", tops)
        for up in self.transposed:
            x = self.up(f"{up.name}{suffix}", x, up.kernel, up.factor)[:, :, up.crop :, up.crop :]
            if not up.skip:
                break
            read = {s: maps[up.skip] for s, maps in skips.items()}
            if self.net == "fcn8s_atonce":
                read = {s: AT_ONCE_SCALES[up.skip] * x for s, x in read.items()}
            fine = score(f"score_{up.skip}", read)[:, :, up.crop_skip :, up.crop_skip :]
            rows, columns = (min(x.shape[axis], fine.shape[axis]) for axis in (2, 3))
            x = x[:, :, :rows, :columns] + fine[:, :, :rows, :columns]
            self.keep(f"fuse_{up.skip}{suffix}", x)
        return x[:, :, :height, :width]


# ======================================================================== layouts


def nchw(x: Any) -> torch.Tensor:
    """An NHWC array as an NCHW tensor."""
    return torch.from_numpy(np.ascontiguousarray(np.asarray(x).transpose(0, 3, 1, 2)))


def nhwc(x: torch.Tensor) -> np.ndarray:
    """An NCHW tensor as an NHWC array."""
    return x.detach().numpy().transpose(0, 2, 3, 1)
