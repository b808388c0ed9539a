"""PyTorch's side of the benchmarks: a straightforward FCN-8s, its passes and its train step.

What a careful user of PyTorch would write, and no more: in-place ReLU, the fused optimiser, and
cuDNN's search for the best kernels.
"""

from __future__ import annotations

import importlib.util
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from cases import (
    BIAS_RATE,
    CLASSES,
    DROPOUT,
    LEARNING_RATE,
    MEAN_BGR,
    MOMENTUM,
    VOID,
    WEIGHT_DECAY,
    Case,
)
from torch import nn
from torch.nn import functional

# Of score_pool4 and score_pool3 against the upsampled scores (of which as much is cut off where
# the number is negative), and of the last transposed convolution against the image. Those of `reference`
# are the Crop layers of the published voc-fcn8s; `fcn_jax.models.decoders.align` derives both.
CROPS = {"reference": (5, 9, 31), "same": (-1, -1, 4)}

CONVOLUTIONS = (2, 2, 3, 3, 3)
FEATURES = (64, 128, 256, 512, 512)


class FCN8s(nn.Module):
    """FCN-8s with a VGG16 backbone; images uint8 (b, h, w, 3) in, float32 logits (b, c, h, w) out."""

    mean: torch.Tensor

    def __init__(self, case: Case):
        super().__init__()
        self.crops = CROPS[case.padding]
        self.memory_format = torch.contiguous_format
        self.register_buffer("mean", torch.tensor(MEAN_BGR), persistent=False)
        wide = case.padding == "reference"
        inputs = 3
        for stage, (count, features) in enumerate(zip(CONVOLUTIONS, FEATURES, strict=True), 1):
            for index in range(1, count + 1):
                pad = 100 if wide and stage == index == 1 else 1
                layer = nn.Conv2d(inputs, case.channels(features), 3, padding=pad)
                self.add_module(f"conv{stage}_{index}", layer)
                inputs = case.channels(features)
        self.fc6 = nn.Conv2d(inputs, case.fc_width, 7, padding=0 if wide else 3)
        self.fc7 = nn.Conv2d(case.fc_width, case.fc_width, 1)
        self.score_fr = nn.Conv2d(case.fc_width, CLASSES, 1)
        self.score_pool4 = nn.Conv2d(case.channels(FEATURES[3]), CLASSES, 1)
        self.score_pool3 = nn.Conv2d(case.channels(FEATURES[2]), CLASSES, 1)
        self.upscore2 = nn.ConvTranspose2d(CLASSES, CLASSES, 4, 2, bias=False)
        self.upscore_pool4 = nn.ConvTranspose2d(CLASSES, CLASSES, 4, 2, bias=False)
        self.upscore8 = nn.ConvTranspose2d(CLASSES, CLASSES, 16, 8, bias=False)
        for layer in (self.upscore2, self.upscore_pool4, self.upscore8):
            layer.requires_grad_(False)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        height, width = images.shape[1:3]
        x = (images.flip(-1).float() - self.mean).permute(0, 3, 1, 2)
        x = x.to(self.fc6.weight.dtype).contiguous(memory_format=self.memory_format)
        pools = []
        for stage, count in enumerate(CONVOLUTIONS, 1):
            for index in range(1, count + 1):
                x = functional.relu(getattr(self, f"conv{stage}_{index}")(x), inplace=True)
            x = functional.max_pool2d(x, 2, 2, ceil_mode=True)
            pools.append(x)
        for layer in (self.fc6, self.fc7):
            x = functional.relu(layer(x), inplace=True)
            x = functional.dropout(x, DROPOUT, self.training)
        x = self.score_fr(x)
        x = add_skip(self.upscore2(x), self.score_pool4(pools[3]), self.crops[0])
        x = add_skip(self.upscore_pool4(x), self.score_pool3(pools[2]), self.crops[1])
        crop = self.crops[2]
        x = self.upscore8(x)[:, :, crop : crop + height, crop : crop + width]
        return x.float()

    @classmethod
    def with_params(cls, case: Case, params: Mapping[str, Mapping[str, Any]]) -> FCN8s:
        """The network with copies of our parameters, ``{layer: {kernel, bias}}``."""
        state = {}
        for layer, arrays in params.items():
            axes = (2, 3, 0, 1) if layer.startswith("up") else (3, 2, 0, 1)
            kernel = np.asarray(arrays["kernel"]).transpose(axes)
            state[f"{layer}.weight"] = torch.from_numpy(kernel.copy())
            if "bias" in arrays:
                state[f"{layer}.bias"] = torch.from_numpy(np.array(arrays["bias"]))
        model = cls(case)
        model.load_state_dict(state)
        return model


def add_skip(up: torch.Tensor, fine: torch.Tensor, crop: int) -> torch.Tensor:
    """The sum of upsampled and finer scores, where both are."""
    if crop >= 0:
        return up + fine[:, :, crop : crop + up.shape[2], crop : crop + up.shape[3]]
    return up[:, :, -crop : fine.shape[2] - crop, -crop : fine.shape[3] - crop] + fine


# ======================================================================== passes and steps


def place(model: FCN8s, device: str, channels_last: bool) -> FCN8s:
    """The network on its device, in one of PyTorch's two layouts."""
    if channels_last:
        model.memory_format = torch.channels_last
    return model.to(device, memory_format=model.memory_format)  # pyright: ignore[reportCallIssue]


def set_products(precision: str, device: str) -> None:
    """Lets GPUs round the factors of float32 products to tf32, or not; cuDNN seeks the best."""
    if device == "cuda":
        torch.backends.cudnn.benchmark = True
        torch.backends.cudnn.allow_tf32 = precision == "tf32"
        torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"


def synchronize(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


class Inference:
    """Logits of a batch of uint8 images that lies on the device; bfloat16 is the whole model's."""

    def __init__(self, case: Case, precision: str, form: str, device: str, params: Any = None):
        self.precision, self.device = precision, device
        self.images = torch.from_numpy(case.random_batch()["image"]).to(device)
        model = FCN8s.with_params(case, params) if params else FCN8s(case)
        model = place(model, device, form != "eager").eval()
        if precision == "bfloat16":
            for layer in model.children():  # but not the mean of the pixels
                layer.bfloat16()
        self.model = torch.compile(model) if form == "compile" else model

    def run(self, passes: int) -> None:
        """So many passes, until the last is done."""
        set_products(self.precision, self.device)
        with torch.inference_mode():
            for _ in range(passes):
                self.model(self.images)
        synchronize(self.device)

    def logits(self) -> np.ndarray:
        """float32 (b, h, w, classes)."""
        set_products(self.precision, self.device)
        with torch.inference_mode():
            return self.model(self.images).permute(0, 2, 3, 1).cpu().numpy()


class Training:
    """Steps on one batch that stays on the device; bfloat16 is autocast."""

    def __init__(self, case: Case, precision: str, form: str, device: str, params: Any = None):
        self.precision, self.device = precision, device
        batch = case.random_batch()
        self.images = torch.from_numpy(batch["image"]).to(device)
        self.labels = torch.from_numpy(batch["label"]).to(device)
        model = FCN8s.with_params(case, params) if params else FCN8s(case)
        model = place(model, device, form != "eager").train()
        self.optimizer = make_optimizer(model)
        self.model = torch.compile(model) if form == "compile" else model

    def run(self, steps: int) -> None:
        """So many steps, until the last is done."""
        set_products(self.precision, self.device)
        for _ in range(steps):
            self.optimizer.zero_grad()
            half = self.precision == "bfloat16"
            with torch.autocast(self.device, torch.bfloat16, enabled=half):
                logits = self.model(self.images)
            functional.cross_entropy(
                logits, self.labels.long(), ignore_index=VOID, reduction="sum"
            ).backward()
            self.optimizer.step()
        synchronize(self.device)


def make_optimizer(model: FCN8s) -> torch.optim.SGD:
    """The solver's rule; biases at twice the rate and not decayed."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim == 4], "weight_decay": WEIGHT_DECAY},
        {"params": [p for p in trained if p.ndim == 1], "lr": BIAS_RATE * LEARNING_RATE},
    ]
    return torch.optim.SGD(groups, lr=LEARNING_RATE, momentum=MOMENTUM, fused=True)


def compiler_problem(device: str) -> str:
    """Why torch.compile does not work here; empty if it does."""
    try:
        torch.compile(lambda x: x.sin() + 1)(torch.ones(4, device=device))
    except Exception as error:  # whatever a compiler's absence ends in
        return next(iter(str(error).splitlines()), type(error).__name__)
    return ""


def forget_compiled() -> None:
    """Drops what torch.compile has made; after eight networks it would give up on the ninth."""
    torch.compiler.reset()


def matrix_product(precision: str, side: int, device: str) -> Callable[[int], None]:
    """So many products of two square matrices, until the last is done; the peak of the device."""
    dtype = torch.bfloat16 if precision == "bfloat16" else torch.float32
    factors = torch.ones((2, side, side), dtype=dtype, device=device) / side

    def run(products: int) -> None:
        set_products(precision, device)
        for _ in range(products):
            torch.mm(factors[0], factors[1])
        synchronize(device)

    return run


# ======================================================================== onnxruntime


PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}


def onnx_problem(device: str) -> str:
    """Why the network cannot run in onnxruntime here; empty if it can."""
    for package in ("onnx", "onnxruntime"):
        if importlib.util.find_spec(package) is None:
            return f"{package} is not installed"
    import onnxruntime  # pyright: ignore[reportMissingImports]

    has_provider = PROVIDERS[device] in onnxruntime.get_available_providers()
    return "" if has_provider else f"onnxruntime {onnxruntime.__version__} has no GPU"


class OnnxInference:
    """Passes of the exported network through onnxruntime in float32, from images on the host."""

    def __init__(self, case: Case, device: str, params: Any):
        import onnxruntime  # pyright: ignore[reportMissingImports]

        self.images = case.random_batch()["image"]
        model = FCN8s.with_params(case, params).eval()
        with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
            path = str(Path(folder) / "fcn8s.onnx")
            images = torch.from_numpy(self.images)
            torch.onnx.export(model, (images,), path, input_names=["images"], dynamo=False)
            self.session = onnxruntime.InferenceSession(path, providers=[PROVIDERS[device]])

    def run(self, passes: int) -> None:
        """So many passes, until the last is done."""
        for _ in range(passes):
            self.session.run(None, {"images": self.images})

    def logits(self) -> np.ndarray:
        """float32 (b, h, w, classes)."""
        (logits,) = self.session.run(None, {"images": self.images})
        return np.asarray(logits).transpose(0, 2, 3, 1)
