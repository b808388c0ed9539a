"""AlexNet, GoogLeNet, two heads and late fusion in PyTorch and by hand: the truth of the tests.

As in `torch_reference` nothing is shared with `fcn_jax`. A network is a function that calls
PyTorch's operations in the order of the published definitions; kernels and crops of the decoders
are the table `DECODERS`, whose numbers are published or derived by hand beside them.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from torch_reference import kernel_to_torch, nchw, nhwc, torch

F = torch.nn.functional


class Layers:
    """The parameters by Caffe name in float64, and every map that was computed with them."""

    def __init__(self, params: Mapping[str, Any]):
        self.tensors = {}
        for layer, leaves in params.items():
            kernel = leaves["kernel"]
            dense = kernel.ndim == 2
            kernel = torch.from_numpy(kernel.T.copy()) if dense else kernel_to_torch(layer, kernel)
            self.tensors[layer, "kernel"] = kernel.double()
            if "bias" in leaves:
                self.tensors[layer, "bias"] = torch.from_numpy(np.array(leaves["bias"])).double()
        for tensor in self.tensors.values():
            tensor.requires_grad_()
        self.maps: dict[str, torch.Tensor] = {}
        self.used: set[str] = set()

    def keep(self, name: str, x: torch.Tensor) -> torch.Tensor:
        assert name not in self.maps, name
        self.maps[name] = x
        return x

    def conv(self, name: str, x, stride=1, pad=0, groups=1, relu=True) -> torch.Tensor:
        self.used.add(name)
        kernel, bias = self.tensors[name, "kernel"], self.tensors[name, "bias"]
        x = F.conv2d(x, kernel, bias, stride=stride, padding=pad, groups=groups)
        return self.keep(name, torch.relu(x) if relu else x)

    def up(self, name: str, x, size: int, factor: int) -> torch.Tensor:
        self.used.add(name)
        kernel = self.tensors[name, "kernel"]
        assert kernel.shape[2:] == (size, size), name
        return self.keep(name, F.conv_transpose2d(x, kernel, stride=factor))

    def dense(self, name: str, x, relu=True) -> torch.Tensor:
        self.used.add(name)
        x = F.linear(x, self.tensors[name, "kernel"], self.tensors[name, "bias"])
        return self.keep(name, torch.relu(x) if relu else x)

    def gradients(self) -> dict[str, np.ndarray]:
        """Flat, in our layout."""
        gradients = {}
        for (layer, leaf), tensor in self.tensors.items():
            gradient = tensor.grad.numpy()
            if leaf == "kernel":
                axes = (2, 3, 0, 1) if layer.startswith("up") else (2, 3, 1, 0)
                gradient = gradient.transpose(axes)
            gradients[f"{layer}/{leaf}"] = gradient
        return gradients


# ======================================================================== backbones
# Each ends in the last map before fc6, or before the average pooling; `s` is the stream's name.
# The padding `native` is the classifier's.


def alexnet(layers: Layers, x, padding: str, s: str = "") -> torch.Tensor:
    """CaffeNet: pooling before normalisation; conv2, conv4 and conv5 in two groups."""
    border, pool_pad = {"reference": (100, 0), "same": (5, 1), "native": (0, 0)}[padding]

    def pool(number: int, x):
        x = F.max_pool2d(x, 3, 2, pool_pad, ceil_mode=True)
        return layers.keep(f"pool{number}{s}", x)

    def norm(number: int, x):
        return layers.keep(f"norm{number}{s}", F.local_response_norm(x, 5, 1e-4, 0.75, 1.0))

    x = norm(1, pool(1, layers.conv(f"conv1{s}", x, stride=4, pad=border)))
    x = norm(2, pool(2, layers.conv(f"conv2{s}", x, pad=2, groups=2)))
    x = layers.conv(f"conv3{s}", x, pad=1)
    x = layers.conv(f"conv4{s}", x, pad=1, groups=2)
    return pool(5, layers.conv(f"conv5{s}", x, pad=1, groups=2))


def googlenet(layers: Layers, x, padding: str, s: str = "") -> torch.Tensor:
    """BVLC's, without its average pooling."""
    border, pool_pad = {"reference": (100, 0), "same": (3, 1), "native": (3, 0)}[padding]

    def pool(number: int, x):
        x = F.max_pool2d(x, 3, 2, pool_pad, ceil_mode=True)
        return layers.keep(f"pool{number}/3x3_s2{s}", x)

    def norm(name: str, x):
        return layers.keep(f"{name}{s}", F.local_response_norm(x, 5, 1e-4, 0.75, 1.0))

    def inception(module: str, x):
        name = f"inception_{module}"
        one = layers.conv(f"{name}/1x1{s}", x)
        three = layers.conv(f"{name}/3x3{s}", layers.conv(f"{name}/3x3_reduce{s}", x), pad=1)
        five = layers.conv(f"{name}/5x5{s}", layers.conv(f"{name}/5x5_reduce{s}", x), pad=2)
        pooled = layers.keep(f"{name}/pool{s}", F.max_pool2d(x, 3, 1, 1, ceil_mode=True))
        projected = layers.conv(f"{name}/pool_proj{s}", pooled)
        return layers.keep(f"{name}/output{s}", torch.cat([one, three, five, projected], 1))

    x = norm("pool1/norm1", pool(1, layers.conv(f"conv1/7x7_s2{s}", x, stride=2, pad=border)))
    x = layers.conv(f"conv2/3x3{s}", layers.conv(f"conv2/3x3_reduce{s}", x), pad=1)
    x = pool(2, norm("conv2/norm2", x))
    x = pool(3, inception("3b", inception("3a", x)))
    for module in ("4a", "4b", "4c", "4d", "4e"):
        x = inception(module, x)
    x = pool(4, x)
    return inception("5b", inception("5a", x))


def vgg(layers: Layers, x, padding: str, s: str = "", convs=(1, 1, 2, 2, 2)) -> torch.Tensor:
    """VGG11, or another by its convolutions in each stage; without any padding as ``valid``."""
    for stage, number in enumerate(convs, 1):
        for index in range(1, number + 1):
            border = 100 if padding == "reference" and (stage, index) == (1, 1) else 1
            border = 0 if padding == "valid" else border
            x = layers.conv(f"conv{stage}_{index}{s}", x, pad=border)
        x = layers.keep(f"pool{stage}{s}", F.max_pool2d(x, 2, 2, ceil_mode=True))
    return x


TRUNKS: dict[str, Callable[..., torch.Tensor]] = {
    "alexnet": alexnet,
    "googlenet": googlenet,
    "vgg11": vgg,
    "vgg16": functools.partial(vgg, convs=(2, 2, 3, 3, 3)),
}
FC6_PADS = {"reference": 0, "same": 3}


def dense_classifier(layers: Layers, x, backbone: str, padding: str = "native") -> torch.Tensor:
    """The scores (images, classes) of the classifier as it was trained, its last layers dense."""
    x = TRUNKS[backbone](layers, x, padding)
    if backbone == "googlenet":
        assert x.shape[2:] == (7, 7)
        x = layers.keep("pool5/7x7_s1", F.avg_pool2d(x, 7, 1))
        return layers.dense("loss3/classifier", x.flatten(1), relu=False)
    x = layers.dense("fc7", layers.dense("fc6", x.flatten(1)))
    return layers.dense("fc8", x, relu=False)


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
    # Published: Crop offsets of voc-fcn-alexnet, siftflow-fcn32s/16s/8s, nyud-fcn32s.
    ("alexnet", "reference", "fcn32s"): (Up("upscore", 63, 32, 18),),
    ("vgg11", "reference", "fcn32s"): (Up("upscore", 64, 32, 19),),
    ("vgg11", "reference", "fcn16s"): (
        Up("upscore2", 4, 2, 0, "pool4", 5),
        Up("upscore16", 32, 16, 27),
    ),
    ("vgg11", "reference", "fcn8s"): (
        Up("upscore2", 4, 2, 0, "pool4", 5),
        Up("upscore_pool4", 4, 2, 0, "pool3", 9),
        Up("upscore8", 16, 8, 31),
    ),
    # Half a kernel beyond the block that a cell of VGG covers (see `torch_reference`).
    ("vgg11", "same", "fcn32s"): (Up("upscore", 64, 32, 16),),
    ("vgg11", "same", "fcn16s"): (Up("upscore2", 4, 2, 1, "pool4"), Up("upscore16", 32, 16, 8)),
    ("vgg11", "same", "fcn8s"): (
        Up("upscore2", 4, 2, 1, "pool4"),
        Up("upscore_pool4", 4, 2, 1, "pool3"),
        Up("upscore8", 16, 8, 4),
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


def forward(
    layers: Layers,
    images: Mapping[str, torch.Tensor],
    *,
    backbone: str,
    padding: str,
    net: str,
    heads: tuple[str, ...] = ("",),
) -> dict[str, torch.Tensor]:
    """Logits by head, NCHW.

    Args:
        layers: Parameters; collects the maps.
        images: NCHW by stream; the name of a single one is empty.
        backbone: A name in `TRUNKS`.
        padding: ``reference`` or ``same``.
        net: ``fcn32s``, ``fcn16s`` or ``fcn8s``.
        heads: Their names; that of a single one is empty.
    """
    streams = tuple(images)
    tops = {s: TRUNKS[backbone](layers, x, padding, s) for s, x in images.items()}
    if backbone != "googlenet":
        for s, x in tops.items():
            x = layers.conv(f"fc6{s}", x, pad=FC6_PADS[padding])
            tops[s] = layers.conv(f"fc7{s}", x)
    height, width = images[streams[0]].shape[2:]

    def score(name: str, head: str, maps: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Late fusion: half of each stream's scores."""
        scores = [layers.conv(f"{name}{head}{s}", maps[s], relu=False) for s in streams]
        if len(scores) == 1:
            return scores[0]
        fused = "score" if name == "score_fr" else name
        return layers.keep(f"{fused}{head}_fused", 0.5 * scores[0] + 0.5 * scores[1])

    logits = {}
    for head in heads:
        suffix = f"_{head}" if head else ""
        x = score("score_fr", suffix, tops)
        for up in DECODERS[backbone, padding, net]:
            x = layers.up(f"{up.name}{suffix}", x, up.kernel, up.factor)
            x = x[:, :, up.crop :, up.crop :]
            if not up.skip:
                x = x[:, :, :height, :width]
                continue
            maps = {s: layers.maps[f"{up.skip}{s}"] for s in streams}
            fine = score(f"score_{up.skip}", suffix, maps)[:, :, up.crop_skip :, up.crop_skip :]
            rows, columns = (min(x.shape[axis], fine.shape[axis]) for axis in (2, 3))
            x = x[:, :, :rows, :columns] + fine[:, :, :rows, :columns]
            layers.keep(f"fuse_{up.skip}{suffix}", x)
        logits[head] = x
    return logits


__all__ = ["DECODERS", "TRUNKS", "Layers", "dense_classifier", "forward", "nchw", "nhwc", "torch"]
