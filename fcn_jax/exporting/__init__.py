"""A trained network as a file for other programs: a program that they run, or its weights.

`export` writes all formats. `onnx` and `stablehlo` hold the programs, for batches of any number and
images of any size, with the preprocessing inside; the weights alone go through `fcn_jax.weights`.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, TypeAlias

from fcn_jax import weights
from fcn_jax.classes import ClassTable
from fcn_jax.exporting import onnx, stablehlo
from fcn_jax.inference.predictor import Predictor, Result, load
from fcn_jax.models.backbones import PADDINGS
from fcn_jax.models.decoders import DECODERS
from fcn_jax.models.fcn import FCN

Format: TypeAlias = Literal["onnx", "stablehlo", "safetensors", "torch"]

SUFFIXES: dict[str, Format] = {
    ".onnx": "onnx",
    ".stablehlo": "stablehlo",
    ".safetensors": "safetensors",
    ".pth": "torch",
    ".pt": "torch",
}
"""The format of a file's name; the first suffix of each is the usual one."""


def export(
    network: str | Path | Predictor,
    path: str | Path,
    format: Format | None = None,
    *,
    result: Result | None = None,
    **options: Any,
) -> Path:
    """Writes a trained network to a file that other programs read.

    ``onnx`` and ``stablehlo`` are programs from the stored pixels, uint8 (batch, height, width, 3)
    for networks that read RGB, to label maps, uint8 (batch, height, width); batch, height and width
    are free, from 1 on. They hold the preprocessing, and tell the names and colours of the classes.
    All images of a batch have one size; canvases, tiles and test-time augmentation are the
    `Predictor`'s. ``safetensors`` and ``torch`` (a state dict) are the weights alone, which
    `fcn_jax.load` reads back with the same results.

    The file appears under its name when it is complete.

    Args:
        network: What `fcn_jax.load` takes, a run's folder or weights, or a predictor.
        path: The file to write; its folder is made where it is not there.
        format: None goes by the suffix, one of `SUFFIXES`.
        result: What a program gives: ``labels`` (None), ``logits`` or ``probabilities``; these
            are float32 (batch, height, width, classes).
        **options: As for `fcn_jax.load`, such as ``stage``.

    Returns:
        The path. ONNX of more than 2 GB has its weights in a second file beside it, ``PATH.data``.

    Raises:
        FileNotFoundError, ValueError: As `fcn_jax.load`; or if the format is unknown or cannot hold
            the network, or a library is missing that writes it.

    Example:
        >>> import jax
        >>> model = fcn_jax.create_model("fcn32s", num_classes=21, width=1 / 16, fc_width=8)
        >>> params = fcn_jax.models.fcn.initial_params(model, jax.random.key(0))
        >>> fcn_jax.export(fcn_jax.Predictor(model, params), "fcn32s.safetensors").name
        'fcn32s.safetensors'
        >>> fcn_jax.load("fcn32s.safetensors").model == model
        True
    """
    path = Path(path).expanduser()
    format = format or SUFFIXES.get(path.suffix)
    if format not in SUFFIXES.values():
        raise ValueError(
            f"cannot tell what to write to {path}; end it with one of {', '.join(SUFFIXES)}, or "
            f"give format as one of {', '.join(dict.fromkeys(SUFFIXES.values()))}"
        )
    if path.is_dir():
        raise ValueError(f"{path} is a folder; give the file to write")
    writers: dict[Format, Callable[..., None]] = {"onnx": onnx.write, "stablehlo": stablehlo.write}
    if format == "onnx":
        onnx.library()  # before anything is read
    if format == "stablehlo":
        stablehlo.library()
    elif result is not None and format not in writers:
        raise ValueError(f"result: of no meaning with {format}, which holds the weights alone")
    predictor = network if isinstance(network, Predictor) else load(network, **options)
    if not isinstance(predictor.model, FCN):
        raise ValueError(f"only an FCN can be exported, this is {type(predictor.model).__name__}")
    if format not in writers:
        trained_on = ()
        if not isinstance(network, Predictor):
            allowed = options.get("allow_code", False)
            trained_on = weights.load(network, allow_code=allowed).trained_on
        saved = weights_of(predictor)
        path.parent.mkdir(parents=True, exist_ok=True)
        kind = "pytorch-fcn" if format == "torch" else format
        weights.save(path, saved, kind, trained_on=trained_on)
        return path
    check_plain(predictor)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".export", dir=path.parent) as folder:
        writers[format](Path(folder) / path.name, predictor, result or "labels", describe(...))
        for file in sorted(Path(folder).iterdir(), reverse=True):  # what others refer to comes first
            file.replace(path.parent / file.name)
    return path
