"""torchvision's ResNets and its FCNs on them in PyTorch, written from torchvision 0.28's source.

`torchvision/models/resnet.py` and `torchvision/models/segmentation/fcn.py`, at inference, as
functions of a state dict; any number of channels will do.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import state_dicts
import torch.nn.functional as F
from torch import Tensor

Tensors = Mapping[str, Tensor]


def conv_norm(x: Tensor, t: Tensors, conv: str, norm: str, **options: Any) -> Tensor:
    """A convolution without bias, then batch normalisation with the running statistics."""
    x = F.conv2d(x, t[f"{conv}.weight"], **options)
    mean, variance, gamma, beta = (
        t[f"{norm}.{name}"] for name in ("running_mean", "running_var", "weight", "bias")
    )
    return F.batch_norm(x, mean, variance, gamma, beta, eps=1e-5)


def block(x: Tensor, t: Tensors, name: str, stride: int, dilation: int) -> Tensor:
    """A BasicBlock or, with a third convolution, a Bottleneck."""
    three = {"stride": stride, "padding": dilation, "dilation": dilation}
    if f"{name}.conv3.weight" in t:
        y = F.relu(conv_norm(x, t, f"{name}.conv1", f"{name}.bn1"))
        y = F.relu(conv_norm(y, t, f"{name}.conv2", f"{name}.bn2", **three))
        y = conv_norm(y, t, f"{name}.conv3", f"{name}.bn3")
    else:
        assert dilation == 1  # BasicBlock raises NotImplementedError
        y = F.relu(conv_norm(x, t, f"{name}.conv1", f"{name}.bn1", **three))
        y = conv_norm(y, t, f"{name}.conv2", f"{name}.bn2", padding=1)
    down = f"{name}.downsample"
    if f"{down}.0.weight" in t:
        x = conv_norm(x, t, f"{down}.0", f"{down}.1", stride=stride)
    return F.relu(y + x)


def stages(x: Tensor, t: Tensors, name: str, dilated: bool) -> list[Tensor]:
    """The maps of layer1 to layer4; ``replace_stride_with_dilation`` is [False, True, True]."""
    x = F.relu(conv_norm(x, t, "conv1", "bn1", stride=2, padding=3))
    x = F.max_pool2d(x, 3, stride=2, padding=1)
    maps, dilation = [], 1
    for stage, blocks in enumerate(state_dicts.RESNET_BLOCKS[name], 1):
        stride = 1 if stage == 1 else 2
        previous_dilation = dilation
        if dilated and stage > 2:
            dilation *= stride
            stride = 1
        x = block(x, t, f"layer{stage}.0", stride, previous_dilation)
        for number in range(1, blocks):
            x = block(x, t, f"layer{stage}.{number}", 1, dilation)
        maps.append(x)
    return maps


def classify(x: Tensor, t: Tensors, name: str) -> Tensor:
    """ResNet.forward: (b, classes)."""
    x = F.adaptive_avg_pool2d(stages(x, t, name, dilated=False)[-1], 1).flatten(1)
    return F.linear(x, t["fc.weight"], t["fc.bias"])


def segment(x: Tensor, t: Tensors, name: str) -> Tensor:
    """FCN.forward, its ``out``: (b, classes, height, width)."""
    backbone = {key.removeprefix("backbone."): value for key, value in t.items()}
    y = stages(x, backbone, name, dilated=True)[-1]
    y = F.relu(conv_norm(y, t, "classifier.0", "classifier.1", padding=1))
    y = F.conv2d(y, t["classifier.4.weight"], t["classifier.4.bias"])
    return F.interpolate(y, size=x.shape[-2:], mode="bilinear", align_corners=False)
