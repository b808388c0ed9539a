"""A trained network as a file for other programs: a program that they run, or its weights.

`export` writes all formats. `onnx` and `stablehlo` hold the programs, for batches of any number and
images of any size, with the preprocessing inside (`resizing` scales the images); the weights alone
go through `fcn_jax.weights`.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

import jax
import numpy as np

from fcn_jax import weights
from fcn_jax.classes import ClassTable
from fcn_jax.exporting import onnx, stablehlo
from fcn_jax.inference.compute import Result
from fcn_jax.inference.predictor import Predictor, load
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
    source: str | Path | Predictor,
    path: str | Path,
    format: Format | None = None,
    *,
    result: Result | None = None,
    **options: Any,
) -> Path:
    """Writes a trained network to a file that other programs read.

    ``onnx`` and ``stablehlo`` are programs from the stored pixels, uint8 (batch, height, width, 3)
    for networks that read RGB, to label maps, uint8 (batch, height, width); batch, height and width
    are free, from 1 on. They hold the preprocessing, with the scale that the network was trained
    at, and tell the names and colours of the classes.
    All images of a batch have one size; canvases, tiles and test-time augmentation are the
    `Predictor`'s. ``safetensors`` and ``torch`` (a state dict) are the weights alone, which
    `fcn_jax.load` reads back with the same results.

    The file appears under its name when it is complete.

    Args:
        source: What `fcn_jax.load` takes, a run's folder or weights; or a predictor.
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
        >>> import fcn_jax, jax
        >>> from fcn_jax.models.fcn import initial_params
        >>> model = fcn_jax.create_model("fcn32s", width=1 / 16, fc_width=8)
        >>> params = initial_params(model, jax.random.key(0))
        >>> fcn_jax.export(fcn_jax.Predictor(model, params), "fcn32s.safetensors").name
        'fcn32s.safetensors'
        >>> fcn_jax.load("fcn32s.safetensors").model.backbone == model.backbone
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
        raise ValueError(f"{path} is a folder; give the name of the file to write")
    if result not in (None, *get_args(Result)):
        raise ValueError(f"unknown result {result!r}; choose one of {', '.join(get_args(Result))}")
    writer = {"onnx": onnx, "stablehlo": stablehlo}.get(format or "")
    if writer is onnx:
        onnx.library()  # before anything is read
    elif writer is None and result is not None:
        raise ValueError(f"result: of no meaning with {format}, which holds the weights alone")
    predictor = source if isinstance(source, Predictor) else load(source, **options)
    model = predictor.model
    if not isinstance(model, FCN):
        raise ValueError(f"only an FCN can be exported, this is a {type(model).__name__}")
    view, *others = predictor.views
    if others:
        raise ValueError("flip and scales are the Predictor's: what is exported sees an image once")
    params = jax.tree.map(np.asarray, predictor.variables.get("params", predictor.variables))
    path.parent.mkdir(parents=True, exist_ok=True)
    if writer is None:
        saved = saveable(predictor, model, params)
        if not isinstance(source, Predictor):
            allowed = options.get("allow_code", False)
            saved.trained_on = weights.load(source, allow_code=allowed).trained_on
        weights.save(path, saved, "safetensors" if format == "safetensors" else "pytorch-fcn")
        return path
    about = describe(predictor, model, result or "labels")
    with tempfile.TemporaryDirectory(prefix=".export.", dir=path.parent) as folder:
        program = Path(folder) / path.name
        of = (model, params, predictor.inputs, view.scale)
        writer.write(program, *of, result or "labels", about)
        for file in sorted(Path(folder).iterdir(), reverse=True):  # what another refers to first
            file.replace(path.parent / file.name)
    return path


def describe(predictor: Predictor, model: FCN, result: Result) -> dict[str, Any]:
    """What a program reads and gives, as plain values for its metadata.

    ``inputs`` and ``outputs`` have the type and the axes of each; ``outputs``, called as the heads,
    also the names of the classes, and their colours but where they are too many for a label map.
    """
    inputs = {}
    for name in predictor.inputs.modalities:
        way = predictor.inputs.preprocessing(name)
        depth = way.channels == 1
        dtype = "uint16" if depth and way.range is None else way.dtype
        axes = ["batch", "height", "width", *([] if depth else [way.channels])]
        inputs[name] = {"dtype": dtype, "axes": axes}
    sides = ["rows", "columns"] if predictor.classifies else ["height", "width"]
    outputs = {}
    for head, number in model.heads:
        dtype, axes = "float32", ["batch", *sides, number]
        if result == "labels":
            dtype, axes = "uint8" if number <= 256 else "int32", axes[:-1]
        classes = predictor.heads[head]
        table: dict[str, Any] = {"names": list(predictor.names(head))}
        if isinstance(classes, ClassTable):
            table["colors"] = [list(row.color) for row in classes.counted]
        outputs[head] = {"dtype": dtype, "axes": axes, **table}
    return {
        "network": network_name(model),
        "result": result,
        "inputs": inputs,
        "outputs": outputs,
    }


def network_name(model: FCN) -> str:
    """The name of a network's decoder."""
    return next((name for name, row in DECODERS.items() if row == model.decoder), "")


def saveable(predictor: Predictor, model: FCN, params: Any) -> weights.Weights:
    """The weights, with all that `fcn_jax.load` needs to make the same network of them.

    Raises:
        ValueError: If it would make another one, since the backbone is one's own.
    """
    saved = weights.Weights(weights.flatten(params), predictor.inputs)
    name = network_name(model)
    for padding in PADDINGS:
        try:
            same = weights.network_of(saved, name, padding)
        except ValueError:
            continue
        if (same.backbone, same.decoder) == (model.backbone, model.decoder):
            tables = {
                h: table for h, table in predictor.heads.items() if isinstance(table, ClassTable)
            }
            saved.network = weights.Network(
                name, padding, scale=predictor.scale, precision=model.precision, heads=tables
            )
            return saved
    raise ValueError(
        "the network has a backbone of its own, which weights alone do not tell: export it as "
        "onnx or stablehlo"
    )
