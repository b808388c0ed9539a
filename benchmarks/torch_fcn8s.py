"""PyTorch's side of the benchmarks: passes and train steps of the FCN-8s of `torch_fcn`.

What a careful user of PyTorch would write, and no more: in-place ReLU, the fused optimiser, and
cuDNN's search for the best kernels.
"""

from __future__ import annotations

import importlib.util
import tempfile
from collections.abc import Callable
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
from torch_fcn import TorchFCN


class FCN8s(nn.Module):
    """FCN-8s with VGG16, from images uint8 (b, h, w, 3) to logits float32 (b, classes, h, w)."""

    mean: torch.Tensor

    def __init__(self, case: Case, params: Any = None):
        super().__init__()
        self.memory_format = torch.contiguous_format
        self.register_buffer("mean", torch.tensor(MEAN_BGR), persistent=False)
        self.net = TorchFCN(
            "fcn8s",
            padding=case.padding,
            heads=CLASSES,
            width=case.width,
            fc_width=case.fc_width,
            dropout=DROPOUT,
        )
        if params is None:
            self.net.initialize()
        else:
            self.net.load(params)
        for layer in self.net.children():
            layer.requires_grad_(not isinstance(layer, nn.ConvTranspose2d))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = (images.flip(-1).float() - self.mean).permute(0, 3, 1, 2)
        x = x.to(next(self.net.parameters()).dtype).contiguous(memory_format=self.memory_format)
        return self.net(x).float()


# ======================================================================== passes and steps


def to_device(model: FCN8s, device: str, channels_last: bool) -> FCN8s:
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
        model = to_device(FCN8s(case, params), device, form != "eager").eval()
        if precision == "bfloat16":
            model.net.bfloat16()  # but not the mean of the pixels
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
        model = to_device(FCN8s(case, params), device, form != "eager").train()
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
        model = FCN8s(case, params).eval()
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
