"""Every operation that has a fast form: plain, fast and PyTorch, in turns (A B C A B C).

    python benchmarks/operations.py [--only=conv3_2,pool1] [--turns=5]

One table: medians of wall-clock milliseconds, their ratios, temporary memory as XLA plans it, and
the largest error of the fast form relative to the largest value. The shapes are those of VGG16 at
1x500x375 (reference padding) and at 4x128x128 (same padding), and some of AlexNet and GoogLeNet.
PyTorch is left out where it is not installed.
"""

from __future__ import annotations

import dataclasses
import functools
import statistics
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags
from interleaved import take_turns

from fcn_jax import ops
from fcn_jax.geometry import TransposedWindow, Window

ONLY = flags.DEFINE_string("only", "", "Names of layers, or parts of them; all if empty.")
TURNS = flags.DEFINE_integer("turns", 5, "Turns of each kind.")


@dataclasses.dataclass(frozen=True)
class Layer:
    """An operation and its input (b, h, w, i).

    Without outputs it is a pooling, with a factor a transposed convolution.
    """

    shape: tuple[int, int, int, int]
    outputs: int = 0
    kernel: int = 3
    pad: int = 1
    stride: int = 1
    groups: int = 1
    factor: int = 0


LAYERS = {
    "conv1_1 500x375": Layer((1, 500, 375, 3), 64, pad=100),
    "conv1_2 500x375": Layer((1, 698, 573, 64), 64),
    "conv2_2 500x375": Layer((1, 349, 287, 128), 128),
    "conv3_2 500x375": Layer((1, 175, 144, 256), 256),
    "conv4_2 500x375": Layer((1, 88, 72, 512), 512),
    "conv5_1 500x375": Layer((1, 44, 36, 512), 512),
    "fc6 500x375": Layer((1, 22, 18, 512), 4096, kernel=7, pad=0),
    "pool1 500x375": Layer((1, 698, 573, 64), kernel=2, pad=0, stride=2),
    "pool3 500x375": Layer((1, 175, 144, 256), kernel=2, pad=0, stride=2),
    "upscore8 500x375": Layer((1, 70, 54, 21), 21, kernel=16, factor=8),
    "conv1_2 4x128x128": Layer((4, 128, 128, 64), 64),
    "conv2_2 4x128x128": Layer((4, 64, 64, 128), 128),
    "conv3_2 4x128x128": Layer((4, 32, 32, 256), 256),
    "conv4_2 4x128x128": Layer((4, 16, 16, 512), 512),
    "conv5_1 4x128x128": Layer((4, 8, 8, 512), 512),
    "fc6 4x128x128": Layer((4, 4, 4, 512), 4096, kernel=7, pad=3),
    "pool1 4x128x128": Layer((4, 128, 128, 64), kernel=2, pad=0, stride=2),
    "upscore8 4x128x128": Layer((4, 16, 16, 21), 21, kernel=16, factor=8),
    "AlexNet conv2": Layer((4, 27, 27, 96), 256, kernel=5, pad=2, groups=2),
    "AlexNet conv4": Layer((4, 13, 13, 384), 384, groups=2),
    "AlexNet pool1": Layer((4, 55, 55, 96), kernel=3, pad=0, stride=2),
    "GoogLeNet conv2/3x3": Layer((4, 56, 56, 64), 192),
    "GoogLeNet 3a/1x1": Layer((4, 28, 28, 192), 64, kernel=1, pad=0),
    "GoogLeNet 3a/3x3": Layer((4, 28, 28, 96), 128),
    "GoogLeNet 3a/pool": Layer((4, 28, 28, 192), stride=1),
}


# ======================================================================== ours


def operation(layer: Layer) -> Callable[..., jax.Array]:
    """The operation as a function of its arrays."""
    if layer.factor:
        return functools.partial(ops.conv_transpose, factor=layer.factor)
    if not layer.outputs:
        window = Window(layer.kernel, layer.stride, layer.pad, ceil=True)
        return functools.partial(ops.max_pool, window=window)
    return functools.partial(
        ops.convolution,
        stride=layer.stride,
        padding=[(layer.pad, layer.pad)] * 2,
        groups=layer.groups,
    )


def random_arrays(layer: Layer) -> list[np.ndarray]:
    """Input and kernel, the input without negative values as after a ReLU."""
    rng = np.random.default_rng(0)
    arrays = [np.maximum(rng.standard_normal(layer.shape, np.float32), 0)]
    if layer.outputs:
        shape = (layer.kernel, layer.kernel, layer.shape[-1] // layer.groups, layer.outputs)
        scale = np.float32(np.prod(shape[:3]) ** -0.5)
        arrays.append(rng.standard_normal(shape, np.float32) * scale)
    return arrays


def passes(layer: Layer) -> dict[str, Callable[..., Any]]:
    """Forward, and each gradient by itself, as functions of (arrays, gradient of the output)."""
    run = operation(layer)

    def gradient(index: int, arrays: list[jax.Array], cotangent: jax.Array) -> jax.Array:
        def of_one(array: jax.Array) -> jax.Array:
            return run(*arrays[:index], array, *arrays[index + 1 :])

        return jax.vjp(of_one, arrays[index])[1](cotangent)[0]

    kinds: dict[str, Callable[..., Any]] = {"forward": lambda arrays, _: run(*arrays)}
    if layer.outputs:
        kinds["input gradient"] = functools.partial(gradient, 0)
        kinds["kernel gradient"] = functools.partial(gradient, 1)
    else:  # what it remembers is part of the price
        kinds["and gradient"] = lambda arrays, cotangent: jax.vjp(run, *arrays)[1](cotangent)[0]
    return kinds


# ======================================================================== PyTorch's


def torch_passes(
    layer: Layer, arrays: list[np.ndarray], cotangent: np.ndarray
) -> dict[str, Callable[[], Any]]:
    """The same in PyTorch; empty where it is not installed."""
    try:
        import torch
    except ImportError:
        return {}
    nchw = [torch.from_numpy(a.transpose(0, 3, 1, 2).copy()) for a in (arrays[0], cotangent)]
    x, gradient = nchw
    functional = torch.nn.functional
    if not layer.outputs:
        x.requires_grad_(True)

        def pool() -> Any:
            return functional.max_pool2d(x, layer.kernel, layer.stride, layer.pad, ceil_mode=True)

        return {
            "forward": pool,
            "and gradient": lambda: torch.autograd.grad(pool(), x, gradient),
        }
    axes = (2, 3, 0, 1) if layer.factor else (3, 2, 0, 1)
    kernel = torch.from_numpy(arrays[1].transpose(axes).copy())
    stride, pad = ([layer.factor] * 2, [0, 0]) if layer.factor else ([1, 1], [layer.pad] * 2)
    transposed = bool(layer.factor)

    def forward() -> Any:
        return torch.ops.aten.convolution(
            x, kernel, None, stride, pad, [1, 1], transposed, [0, 0], layer.groups
        )

    def backward(wanted: list[bool]) -> Any:
        return torch.ops.aten.convolution_backward(
            gradient, x, kernel, None, stride, pad, [1, 1], transposed, [0, 0], layer.groups, wanted
        )

    return {
        "forward": forward,
        "input gradient": lambda: backward([True, False, False]),
        "kernel gradient": lambda: backward([False, True, False]),
    }


# ======================================================================== measurement


def measure(runs: dict[str, Callable[[], Any]]) -> dict[str, float]:
    """Median milliseconds of each, taken in turns after a first that warms up."""
    take_turns(runs, 1)
    times = take_turns(runs, TURNS.value)
    return {name: 1000 * statistics.median(values) for name, values in times.items()}


def report(name: str, layer: Layer) -> None:
    """Prints the lines of a layer."""
    arrays = random_arrays(layer)
    shape = jax.eval_shape(operation(layer), *arrays).shape
    if layer.factor:
        sizes = [TransposedWindow(layer.kernel, layer.factor).cells(s) for s in layer.shape[1:3]]
        assert list(shape[1:3]) == sizes
    cotangent = np.random.default_rng(1).standard_normal(shape, np.float32)
    peers = torch_passes(layer, arrays, cotangent)
    on_device = jax.device_put((arrays, cotangent))
    for kind, function in passes(layer).items():
        runs: dict[str, Callable[[], Any]] = {}
        results, memory = {}, {}
        for form in ("plain", "fast"):
            with ops.plain_forms(form == "plain"):
                compiled = jax.jit(function).lower(*on_device).compile()
            results[form] = np.asarray(compiled(*on_device))
            analysis = compiled.memory_analysis()
            memory[form] = analysis.temp_size_in_bytes / 2**20 if analysis else float("nan")
            runs[form] = lambda run=compiled: jax.block_until_ready(run(*on_device))
        if kind in peers:
            runs["torch"] = peers[kind]
        medians = measure(runs)
        error = np.abs(results["fast"] - results["plain"]).max() / np.abs(results["plain"]).max()
        fast, plain, peer = (medians.get(form, float("nan")) for form in ("fast", "plain", "torch"))
        print(
            f"{name:20} {kind:16} {plain:9.1f} {fast:9.1f} {peer:9.1f} {fast / plain:7.2f} "
            f"{fast / peer:7.2f} {memory['plain']:7.0f} {memory['fast']:7.0f} {error:9.1e}",
            flush=True,
        )


def main(argv: list[str]) -> None:
    """Measures and prints."""
    del argv
    jnp.zeros(()).block_until_ready()
    print(
        f"{'layer':20} {'pass':16} {'plain ms':>9} {'fast ms':>9} {'torch ms':>9} {'/plain':>7} "
        f"{'/torch':>7} {'MiB':>7} {'MiB':>7} {'error':>9}"
    )
    wanted = [part for part in ONLY.value.split(",") if part]
    for name, layer in LAYERS.items():
        if not wanted or any(part in name for part in wanted):
            report(name, layer)


if __name__ == "__main__":
    app.run(main)
