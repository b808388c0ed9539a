"""The fully convolutional networks once more, in PyTorch and by hand: the truth of the tests.

Nothing is shared with `fcn_jax`: the layers are written out, the crops of the `reference` padding
are the numbers published with the Caffe models, those of `same` are derived by hand below, and
the convolutions are PyTorch's own.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip(
    "torch", reason="the parity tests need PyTorch: pip install -e .[parity]"
)
F = torch.nn.functional

NETS = ("fcn32s", "fcn16s", "fcn8s", "fcn8s_atonce")
PADDINGS = ("reference", "same")

# Channels at width 1; every convolution is 3x3, every stage ends in a 2x2 pooling.
STAGES = ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))

# Published: Crop layers of the voc-fcn32s/16s/8s prototxt files.
REFERENCE_CROPS = {
    "fcn32s": {"final": 19},
    "fcn16s": {"score_pool4": 5, "final": 27},
    "fcn8s": {"score_pool4": 5, "score_pool3": 9, "final": 31},
    "fcn8s_atonce": {"score_pool4": 5, "score_pool3": 9, "final": 31},
}
# By hand: with no border, cell i of a map of stride s covers the pixels s*i to s*i + s - 1, and a
# kernel of 2f reaches f/2 cells beyond each side of the f that its input cell covers. So upscore2
# (f=2) has 1 cell too many before the skip's first, and the last one (f) has f/2.
SAME_FINAL_CROPS = {"fcn32s": 16, "fcn16s": 8, "fcn8s": 4, "fcn8s_atonce": 4}


class TorchFCN(torch.nn.Module):
    """FCN with a VGG16 backbone; ``forward`` returns every map by its Caffe name, NCHW."""

    def __init__(self, net: str, padding: str, num_classes: int, width: float, fc_width: int):
        super().__init__()
        self.net, self.padding = net, padding
        conv, up = torch.nn.Conv2d, torch.nn.ConvTranspose2d
        channels = 3
        for stage, (features, convs) in enumerate(STAGES, 1):
            out = max(1, round(features * width))
            for index in range(1, convs + 1):
                pad = 100 if padding == "reference" and channels == 3 else 1
                self.add_module(f"conv{stage}_{index}", conv(channels, out, 3, padding=pad))
                channels = out
        self.fc6 = conv(channels, fc_width, 7, padding=0 if padding == "reference" else 3)
        self.fc7 = conv(fc_width, fc_width, 1)
        self.score_fr = conv(fc_width, num_classes, 1)
        pool3, pool4 = (max(1, round(c * width)) for c in (256, 512))

        def upsampling(kernel: int, stride: int) -> torch.nn.Module:
            return up(num_classes, num_classes, kernel, stride=stride, bias=False)

        if net == "fcn32s":
            self.upscore = upsampling(64, 32)
        elif net == "fcn16s":
            self.score_pool4 = conv(pool4, num_classes, 1)
            self.upscore2, self.upscore16 = upsampling(4, 2), upsampling(32, 16)
        else:
            self.score_pool4 = conv(pool4, num_classes, 1)
            self.score_pool3 = conv(pool3, num_classes, 1)
            self.upscore2, self.upscore_pool4 = upsampling(4, 2), upsampling(4, 2)
            self.upscore8 = upsampling(16, 8)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        height, width = x.shape[2:]
        maps: dict[str, torch.Tensor] = {}
        for stage, (_, convs) in enumerate(STAGES, 1):
            for index in range(1, convs + 1):
                name = f"conv{stage}_{index}"
                x = maps[name] = torch.relu(getattr(self, name)(x))
            x = maps[f"pool{stage}"] = F.max_pool2d(x, 2, 2, ceil_mode=True)
        x = maps["fc6"] = torch.relu(self.fc6(x))
        x = maps["fc7"] = torch.relu(self.fc7(x))
        x = maps["score_fr"] = self.score_fr(x)

        scale4, scale3 = (0.01, 0.0001) if self.net == "fcn8s_atonce" else (1.0, 1.0)
        if self.net != "fcn32s":
            x = maps["upscore2"] = self.upscore2(x)
            fine = maps["score_pool4"] = self.score_pool4(maps["pool4"] * scale4)
            x = maps["fuse_pool4"] = self._fuse(x, fine, "score_pool4")
        if self.net in ("fcn8s", "fcn8s_atonce"):
            x = maps["upscore_pool4"] = self.upscore_pool4(x)
            fine = maps["score_pool3"] = self.score_pool3(maps["pool3"] * scale3)
            x = maps["fuse_pool3"] = self._fuse(x, fine, "score_pool3")
        last = {"fcn32s": "upscore", "fcn16s": "upscore16"}.get(self.net, "upscore8")
        x = maps[last] = getattr(self, last)(x)
        if self.padding == "reference":
            crop = REFERENCE_CROPS[self.net]["final"]
        else:
            crop = SAME_FINAL_CROPS[self.net]
        maps["logits"] = x[:, :, crop : crop + height, crop : crop + width]
        return maps

    def _fuse(self, up: torch.Tensor, fine: torch.Tensor, name: str) -> torch.Tensor:
        if self.padding == "reference":  # the skip's scores are cropped to the upsampled ones
            crop = REFERENCE_CROPS[self.net][name]
            return up + fine[:, :, crop : crop + up.shape[2], crop : crop + up.shape[3]]
        return up[:, :, 1 : 1 + fine.shape[2], 1 : 1 + fine.shape[3]] + fine

    def load(self, params: Mapping[str, Any]) -> TorchFCN:
        """Takes the parameters of our tree; every name and shape must fit."""
        # `assign` takes the arrays themselves, also into a network built on the meta device.
        self.load_state_dict(to_state_dict(params), strict=True, assign=True)
        return self


def to_state_dict(params: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """Our tree ({layer: {kernel, bias}}) as PyTorch's flat dictionary."""
    state = {}
    for layer, leaves in params.items():
        state[f"{layer}.weight"] = kernel_to_torch(layer, leaves["kernel"])
        if "bias" in leaves:
            state[f"{layer}.bias"] = torch.from_numpy(np.array(leaves["bias"]))
    return state


def kernel_to_torch(layer: str, kernel: Any) -> torch.Tensor:
    """(h, w, in, out) to a convolution's (out, in, h, w), or a transposed one's (in, out, h, w)."""
    axes = (2, 3, 0, 1) if layer.startswith("up") else (3, 2, 0, 1)
    return torch.from_numpy(np.array(kernel).transpose(axes).copy())


def gradients_to_ours(net: TorchFCN) -> dict[str, dict[str, np.ndarray]]:
    """The gradients of all parameters as our tree."""
    tree: dict[str, dict[str, np.ndarray]] = {}
    for name, parameter in net.named_parameters():
        layer, leaf = name.rsplit(".", 1)
        gradient = parameter.grad.numpy()
        if leaf == "weight":
            axes = (2, 3, 0, 1) if layer.startswith("up") else (2, 3, 1, 0)
            gradient = gradient.transpose(axes)
        tree.setdefault(layer, {})["kernel" if leaf == "weight" else "bias"] = gradient
    return tree


def nchw(x: Any) -> torch.Tensor:
    """An NHWC array as an NCHW tensor."""
    return torch.from_numpy(np.ascontiguousarray(np.asarray(x).transpose(0, 3, 1, 2)))


def nhwc(x: torch.Tensor) -> np.ndarray:
    """An NCHW tensor as an NHWC array."""
    return x.detach().numpy().transpose(0, 2, 3, 1)
