"""StableHLO: a network as a program that jax runs on CPUs, GPUs and TPUs, without this package.

The file is a zip archive, uncompressed: ``program`` is that of `jax.export`, a function of the
parameters and the images; ``params.safetensors`` are the parameters by ``layer/kernel`` and
``layer/bias``; ``metadata.json`` tells what it reads and gives.
"""

from __future__ import annotations

import itertools
import json
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
from jax import export

from fcn_jax.canvas import scaled_side
from fcn_jax.exporting import resizing
from fcn_jax.inference.compute import Result, result_of
from fcn_jax.models.fcn import FCN
from fcn_jax.models.inputs import Inputs
from fcn_jax.weights import flatten, unflatten

PLATFORMS = ("cpu", "cuda", "tpu")


def write(
    path: Path,
    model: FCN,
    params: Mapping[str, Any],
    inputs: Inputs,
    scale: float,
    result: Result,
    about: Mapping[str, Any],
) -> None:
    """Writes the program, its parameters and what there is to tell of it.

    Args:
        path: Where to.
        model: The network.
        params: Its parameters.
        inputs: What it reads.
        scale: Factor on height and width before the network; results are at the images' size.
        result: What the program gives.
        about: The metadata; its ``inputs`` have the type and the axes of what is read, its
            ``outputs`` are called as the heads.
    """
    import safetensors.numpy

    heads, flat = list(about["outputs"]), flatten(params)
    abstract = {name: jax.ShapeDtypeStruct(a.shape, a.dtype) for name, a in flat.items()}

    def network(params: Mapping[str, Any], arrays: Any) -> Any:
        return model.apply({"params": unflatten(params)}, inputs.apply(arrays))

    def traced(function: Callable[..., Any], least: int) -> export.Exported:
        """A function of parameters and images of at least so many pixels a side."""
        scope = export.SymbolicScope((f"height >= {least}", f"width >= {least}"))
        images = {
            name: jax.ShapeDtypeStruct(
                export.symbolic_shape(", ".join(map(str, read["axes"])), scope=scope), read["dtype"]
            )
            for name, read in about["inputs"].items()
        }
        only = images if len(images) > 1 else next(iter(images.values()))
        return export.export(jax.jit(function), platforms=PLATFORMS)(abstract, only)

    def program(params: Mapping[str, Any], arrays: Any) -> Any:
        size = jax.tree.leaves(arrays)[0].shape[1:3]
        if scale != 1:
            arrays = jax.tree.map(lambda array: resizing.scaled(array, scale, least), arrays)
        logits: Any = run(params, arrays)
        by_head = logits if len(heads) > 1 else {heads[0]: logits}
        if scale != 1 and not model.classifies:
            by_head = {head: resizing.restored(x, size, scale) for head, x in by_head.items()}
        results = {head: result_of(by_head[head], result) for head in heads}
        return results if len(heads) > 1 else results[heads[0]]

    least = 1 if model.classifies else model.smallest_image
    smallest = next(side for side in itertools.count(1) if scaled_side(side, scale) >= least)
    limit: int = jax.config.jax_traceback_in_locations_limit  # type: ignore[attr-defined]
    jax.config.update("jax_traceback_in_locations_limit", 0)  # no paths of this machine in it
    try:
        # At a scale by itself: jax takes long over layers of images whose size was computed.
        run = network if scale == 1 else traced(network, least).call
        serialised = traced(program, smallest).serialize()
    finally:
        jax.config.update("jax_traceback_in_locations_limit", limit)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("program", serialised)
        archive.writestr("params.safetensors", safetensors.numpy.save(flat))
        archive.writestr("metadata.json", json.dumps(about, indent=1))
