"""One pass on the CPU: the predictor, what is exported of it, and PyTorch's own export.

    python benchmarks/exported.py [--padding=reference] [--shape=500x375] [--turns=5] [--width=1]

FCN-8s with VGG16, 21 classes, random parameters, from a photograph's uint8 to its label map, in
turns A B C D A B C D …; onnxruntime with as many threads as there are cores. PyTorch's export
begins with normalised floats and ends with logits, which spares it a little.
"""

from __future__ import annotations

import os
import statistics
import tempfile
from pathlib import Path

import jax
import machine
import numpy as np
import onnxruntime
import torch
from absl import app, flags
from interleaved import take_turns
from torch_fcn import TorchFCN

import fcn_jax
from fcn_jax.models.fcn import initial_params

PADDING = flags.DEFINE_enum("padding", "reference", ["reference", "same"], "The network's.")
SHAPE = flags.DEFINE_string("shape", "500x375", "Height and width in pixels.")
TURNS = flags.DEFINE_integer("turns", 5, "How often each runs.")
WIDTH = flags.DEFINE_float("width", 1.0, "Multiplier of the channels.")


def main(argv: list[str]) -> None:
    """Measures and prints."""
    del argv
    jax.config.update("jax_platforms", "cpu")
    height, width = map(int, SHAPE.value.split("x"))
    fc_width = max(1, round(4096 * WIDTH.value))
    sizes = {"padding": PADDING.value, "width": WIDTH.value, "fc_width": fc_width}
    model = fcn_jax.create_model("fcn8s", **sizes)
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda array: rng.normal(0, np.prod(array.shape[:3]) ** -0.5, array.shape).astype(
            np.float32
        ),
        initial_params(model, jax.random.key(0)),
    )
    predictor = fcn_jax.Predictor(model, params, canvas=fcn_jax.canvas.exactly)
    image = rng.integers(0, 256, (height, width, 3), np.uint8)
    pixels = np.asarray(predictor.inputs.apply(image[None])).transpose(0, 3, 1, 2)

    with tempfile.TemporaryDirectory() as folder:
        ours, theirs = Path(folder) / "ours.onnx", Path(folder) / "theirs.onnx"
        fcn_jax.export(predictor, ours)
        net = TorchFCN("fcn8s", "vgg16", **sizes).load(params).eval()
        example = (torch.from_numpy(pixels.copy()),)
        with torch.no_grad():
            torch.onnx.export(net, example, str(theirs), dynamo=False)
        sessions = [onnxruntime.InferenceSession(file) for file in (ours, theirs)]
        fcn_jax.export(predictor, Path(folder) / "ours.stablehlo")
        program = stablehlo(Path(folder) / "ours.stablehlo")
    name = sessions[1].get_inputs()[0].name
    runs = {
        "fcn_jax, predictor": lambda: predictor(image),
        "fcn_jax, ONNX": lambda: first(sessions[0], {"image": image[None]}),
        "fcn_jax, StableHLO": lambda: np.asarray(program(image[None]))[0],
        "PyTorch, ONNX": lambda: first(sessions[1], {name: pixels}).argmax(0),
    }
    truth = predictor(image)
    for what, run in runs.items():  # which warms up, too
        equal = (np.asarray(run()) == truth).mean()
        if equal < 0.999:
            raise SystemExit(f"exported.py: {what} gives {1 - equal:.1%} of other labels")
    print("\n".join([*machine.describe(), f"cores {os.cpu_count()}"]))
    print(f"\n{PADDING.value} padding, {height}x{width} pixels")
    print("\n| | median ms | min ms |\n|---|---|---|")
    for what, times in take_turns(runs, TURNS.value).items():
        print(f"| {what} | {1000 * statistics.median(times):.0f} | {1000 * min(times):.0f} |")


def first(session: onnxruntime.InferenceSession, arrays: dict[str, np.ndarray]) -> np.ndarray:
    """What a session gives of the first image."""
    return np.asarray(session.run(None, arrays)[0])[0]


def stablehlo(path: Path):
    """The program of a file as docs/export.md loads it, with its parameters."""
    import zipfile

    import safetensors.numpy

    with zipfile.ZipFile(path) as file:
        network = jax.export.deserialize(bytearray(file.read("program")))
        params = jax.device_put(safetensors.numpy.load(file.read("params.safetensors")))
    call = jax.jit(network.call)
    return lambda images: call(params, images)


if __name__ == "__main__":
    app.run(main)
