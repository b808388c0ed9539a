"""StableHLO: a network as a program that jax runs on CPUs, GPUs and TPUs, without this package.

The file is a zip archive, uncompressed: ``program`` is that of `jax.export`, a function of the
parameters and the images; ``params.safetensors`` are the parameters by ``layer/kernel`` and
``layer/bias``; ``metadata.json`` tells what it reads and gives.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
from jax import export

from fcn_jax.inference.predictor import Result, result_of
from fcn_jax.models.fcn import FCN
from fcn_jax.models.inputs import Inputs
from fcn_jax.weights import flatten, unflatten

PLATFORMS = ("cpu", "cuda", "tpu")


def library() -> None:
    """Raises ValueError where the package is missing with which jax writes programs."""
    try:
        import flatbuffers  # noqa: F401  # type: ignore[import-untyped]
    except ImportError:
        raise ValueError("StableHLO needs flatbuffers: pip install 'fcn-jax[export]'") from None


def write(
    path: Path,
    model: FCN,
    params: Mapping[str, Any],
    inputs: Inputs,
    result: Result,
    about: Mapping[str, Any],
) -> None:
    """Writes the program, its parameters and what there is to tell of it.

    Args:
        path: Where to.
        model: The network.
        params: Its parameters.
        inputs: What it reads.
        result: What the program gives.
        about: The metadata; its ``inputs`` have the type and the axes of what is read, its
            ``outputs`` are called as the heads.
    """
    import safetensors.numpy

    heads = list(about["outputs"])

    def program(params: Mapping[str, Any], arrays: Any) -> Any:
        logits: Any = model.apply({"params": unflatten(params)}, inputs.apply(arrays))
        by_head = logits if len(heads) > 1 else {heads[0]: logits}
        results = {head: result_of(by_head[head], result) for head in heads}
        return results if len(heads) > 1 else results[heads[0]]

    flat = flatten(params)
    least = 1 if model.classifies else model.smallest_image
    scope = export.SymbolicScope((f"height >= {least}", f"width >= {least}"))
    images = {
        name: jax.ShapeDtypeStruct(
            export.symbolic_shape(", ".join(map(str, read["axes"])), scope=scope), read["dtype"]
        )
        for name, read in about["inputs"].items()
    }
    abstract = {name: jax.ShapeDtypeStruct(a.shape, a.dtype) for name, a in flat.items()}
    limit: int = jax.config.jax_traceback_in_locations_limit  # type: ignore[attr-defined]
    jax.config.update("jax_traceback_in_locations_limit", 0)  # no paths of this machine in it
    try:
        exported = export.export(jax.jit(program), platforms=PLATFORMS)(
            abstract, images if len(images) > 1 else next(iter(images.values()))
        )
        serialised = exported.serialize()
    finally:
        jax.config.update("jax_traceback_in_locations_limit", limit)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("program", serialised)
        archive.writestr("params.safetensors", safetensors.numpy.save(flat))
        archive.writestr("metadata.json", json.dumps(about, indent=1))
