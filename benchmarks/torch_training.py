"""PyTorch's trainings that ours are compared with: FCN-8s at once, written straightforwardly."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from cases import MEAN_BGR, VOID
from PIL import Image
from torch.nn import functional
from torch_fcn import TorchFCN

MEAN = np.array(MEAN_BGR, np.float32)


class Recipe(NamedTuple):
    """What is trained: AdamW on the mean cross-entropy, the rate falling as (1 - part) ** 0.9.

    An image is resized by ``scale`` times a random factor within ``scales``, drawn log-uniformly,
    cut or filled to ``crop`` (height, width), and mirrored half of the time.
    """

    batch: int
    rate: float
    crop: tuple[int, int]
    scales: tuple[float, float] = (1.0, 1.0)
    scale: float = 0.5
    decay: float = 5e-4
    fc_width: int = 512


class Network(NamedTuple):
    """A trained network: ``predict`` gives the label map of an image, at the image's size."""

    predict: Callable[[np.ndarray], np.ndarray]
    steps: int


def train(
    examples: Sequence[Any],
    weights: Path,
    recipe: Recipe,
    part: Callable[[int], float],
    *,
    seed: int = 0,
    device: str = "cpu",
) -> Network:
    """Trains until the ``part`` of the training that so many steps are is 1.

    The weights are of Caffe's kind (BGR, minus the mean), and what they lack begins as ours does.
    """
    import jax

    from fcn_jax import create_model, load_weights
    from fcn_jax.training.init import params_from

    torch.manual_seed(seed)
    torch.set_float32_matmul_precision("high")  # of GPUs
    pairs = [(Image.fromarray(e["image"]), Image.fromarray(e["label"])) for e in examples]
    classes = examples.classes.num_classes  # pyright: ignore[reportAttributeAccessIssue]
    model = create_model("fcn8s_atonce", num_classes=classes, fc_width=recipe.fc_width)
    params, _ = params_from(model, {"": load_weights(weights)}, jax.random.key(seed))
    net = TorchFCN("fcn8s_atonce", heads=classes, fc_width=recipe.fc_width).load(params)
    net = net.train().to(device)
    optimizer = torch.optim.AdamW(net.parameters(), lr=recipe.rate, weight_decay=recipe.decay)
    rng, order = random.Random(seed), []

    def resized(image: Image.Image, factor: float, filter: Image.Resampling) -> Image.Image:
        return image.resize((round(image.width * factor), round(image.height * factor)), filter)

    def example() -> tuple[np.ndarray, np.ndarray]:
        image, label = pairs[order.pop()]
        factor = recipe.scale * np.exp(rng.uniform(*np.log(recipe.scales)))
        image = resized(image, factor, Image.Resampling.BILINEAR)
        label = resized(label, factor, Image.Resampling.NEAREST)
        left, top = (
            rng.randint(0, max(0, side - most))
            for side, most in zip(image.size, recipe.crop[::-1], strict=True)
        )
        window = (slice(top, top + recipe.crop[0]), slice(left, left + recipe.crop[1]))
        pixels, labels = np.asarray(image)[window], np.asarray(label)[window]
        whole = np.zeros((*recipe.crop, 3), np.float32), np.full(recipe.crop, VOID, np.int64)
        height, width = labels.shape
        whole[0][:height, :width] = pixels[..., ::-1] - MEAN
        whole[1][:height, :width] = labels
        return whole if rng.random() < 0.5 else (whole[0][:, ::-1], whole[1][:, ::-1])

    steps = 0
    while (gone := part(steps)) < 1:
        for group in optimizer.param_groups:
            group["lr"] = recipe.rate * (1 - gone) ** 0.9
        if len(order) < recipe.batch:
            order[:0] = rng.sample(range(len(pairs)), len(pairs))
        batch = zip(*(example() for _ in range(recipe.batch)), strict=True)
        images, labels = map(np.stack, batch)
        logits = net(torch.from_numpy(images.transpose(0, 3, 1, 2).copy()).to(device))
        target = torch.from_numpy(labels).to(device)
        loss = functional.cross_entropy(logits, target, ignore_index=VOID)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        steps += 1
        if steps in (1, 3, 10) or steps % 50 == 0:
            print(f"PyTorch step {steps}  loss {loss.item():.4f}/px", flush=True)

    def predict(image: np.ndarray) -> np.ndarray:
        small = resized(Image.fromarray(image), recipe.scale, Image.Resampling.BILINEAR)
        pixels = np.asarray(small)[..., ::-1] - MEAN
        with torch.inference_mode():
            logits = net(torch.from_numpy(pixels.transpose(2, 0, 1)[None].copy()).to(device))
            logits = functional.interpolate(logits, image.shape[:2], mode="bilinear")
        return logits[0].argmax(0).cpu().numpy().astype(np.uint8)

    net.eval()
    return Network(predict, steps)
