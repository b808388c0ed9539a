"""Copying weights into a network's parameters by name, with an account of every array."""

from __future__ import annotations

import dataclasses
import fnmatch
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fcn_jax.weights.arrays import flatten
from fcn_jax.weights.dense import dense_to_conv


@dataclasses.dataclass(frozen=True)
class Report:
    """What a transplant did with each array, by ``layer/kernel`` or ``layer/bias``.

    Attributes:
        copied: Taken as they were.
        reshaped: Dense kernels turned into convolutions.
        widened: First kernels that got a fourth input channel, the mean of the three.
        left: Arrays of the network that kept their initial values.
        unused: Arrays of the source that the network has no place for.
        skipped: What the reader of the file left out (`fcn_jax.weights.Weights.skipped`).
    """

    copied: tuple[str, ...] = ()
    reshaped: tuple[str, ...] = ()
    widened: tuple[str, ...] = ()
    left: tuple[str, ...] = ()
    unused: tuple[str, ...] = ()
    skipped: tuple[str, ...] = ()

    def __str__(self) -> str:
        lines = []
        for field in dataclasses.fields(self):
            names = getattr(self, field.name)
            if field.name == "skipped":
                lines += [f"{field.name:>9} {name}" for name in names]
            elif names or field.name != "widened":
                layers = list(dict.fromkeys(name.rpartition("/")[0] for name in names))
                detail = f": {' '.join(layers)}" if layers else ""
                lines.append(f"{field.name:>9} {len(names):3d} arrays{detail}")
        return "\n".join(lines)


def transplant(
    params: Mapping[str, Any],
    source: Mapping[str, Any],
    replaceable: Sequence[str] = (),
    *,
    inputs: Sequence[str] = (),
    strict: bool = False,
) -> tuple[dict[str, Any], Report]:
    """Copies arrays by name into a parameter tree.

    Two kernels change their shape on the way. A dense kernel (inputs, outputs) becomes the
    convolution of the same function; its inputs are in Caffe's order (channel, row, column). A
    kernel over three channels gets as the filter of a fourth the mean of the three (the paper's
    early fusion of colour and depth).

    Args:
        params: The network's parameters, ``{layer: {"kernel": …, "bias": …}}``, or their shapes
            and types (`fcn_jax.models.fcn.abstract_params`); what is left then stays abstract.
        source: Arrays by ``layer/kernel`` and ``layer/bias``; or one such dictionary for each
            input of a network of several inputs: ``{"color": …, "hha": …}``.
        replaceable: Patterns of layer names whose arrays may be missing or of another shape, and
            then keep their initial values (score layers for another number of classes).
        inputs: The inputs that all start from the one source: the layer ``fc6hha`` takes the
            source's ``fc6`` where the source has no ``fc6hha``. Where the source is one for each
            input, its own keys are the inputs.
        strict: Whether an array of the network that is missing in the source (and not
            replaceable), or an array of the source that is not used, is an error.

    Returns:
        New parameters of the same structure, and the report.

    Raises:
        ValueError: If shapes disagree, or nothing fits at all. The message holds everything that
            does not fit: shapes, and what is missing and left over.
    """
    sources = _Sources.of(source, inputs)
    first = next(iter(params))  # of the other inputs, its name begins so
    filed: dict[str, list[str]] = {field.name: [] for field in dataclasses.fields(Report)}
    result, used = {}, set()
    missing, mismatched = [], []
    for name, old in flatten(params).items():
        result[name] = old
        replace = any(fnmatch.fnmatch(name.rpartition("/")[0], p) for p in replaceable)
        origin = sources.find(name)
        if origin is None:
            filed["left"].append(name)
            if not replace:
                missing.append(name)
            continue
        used.add(origin)
        new = sources.arrays[origin[0]][origin[1]]
        fitted = _fit(new, tuple(old.shape), may_widen=name.startswith(first))
        if fitted is not None:
            how, value = fitted
            filed[how].append(name)
            result[name] = np.asarray(value, old.dtype)
        elif replace:
            filed["left"].append(name)
        else:
            mismatched.append(f"{name}: the file has {new.shape}, the network {tuple(old.shape)}")
    for label, arrays in sources.arrays.items():
        prefix = f"{label}: " if label else ""
        filed["unused"] += [prefix + name for name in arrays if (label, name) not in used]
        filed["skipped"] += [prefix + text for text in getattr(arrays, "skipped", ())]
    report = Report(**{how: tuple(names) for how, names in filed.items()})
    nothing = not (report.copied or report.reshaped or report.widened)
    if mismatched or nothing or (strict and (missing or report.unused)):
        raise ValueError(_message(sources, mismatched, missing, report.unused, nothing))
    return _rebuild(params, result), report


@dataclasses.dataclass(frozen=True)
class _Sources:
    """Where arrays come from.

    Attributes:
        arrays: Flat dictionaries by a label for messages; the label of a single one is empty.
        inputs: The label of each input's source.
    """

    arrays: Mapping[str, Mapping[str, np.ndarray]]
    inputs: Mapping[str, str]

    @classmethod
    def of(cls, source: Mapping[str, Any], inputs: Sequence[str]) -> _Sources:
        nested = [isinstance(value, Mapping) for value in source.values()]
        if not any(nested):
            return cls({"": source}, dict.fromkeys(inputs, ""))
        if not all(nested) or (inputs and set(inputs) != set(source)):
            raise ValueError(
                "source must be one flat dictionary of arrays, or one for each input; got the "
                f"keys {', '.join(source)}" + (f" and the inputs {list(inputs)}" * bool(inputs))
            )
        return cls(source, {label: label for label in source})

    def find(self, name: str) -> tuple[str, str] | None:
        """The label and the name of the array that the network's ``name`` starts from."""
        layer, _, array = name.rpartition("/")
        for suffix, label in self.inputs.items():
            if layer.endswith(suffix):
                for candidate in (name, f"{layer.removesuffix(suffix)}/{array}"):
                    if candidate in self.arrays[label]:
                        return label, candidate
        for label, arrays in self.arrays.items():
            if name in arrays:
                return label, name
        return None


def _fit(new: np.ndarray, shape: tuple[int, ...], may_widen: bool) -> tuple[str, np.ndarray] | None:
    """The array in the network's shape, with the report's word for how; None if it has another."""
    if new.shape == shape:
        return "copied", new
    if len(shape) != 4:
        return None
    height, width, inputs, outputs = shape
    if new.shape == (height * width * inputs, outputs):
        return "reshaped", dense_to_conv(new, shape)
    if may_widen and new.shape == (height, width, 3, outputs) and inputs == 4:
        return "widened", np.concatenate([new, new.mean(2, keepdims=True)], axis=2)
    return None


def _message(
    sources: _Sources,
    mismatched: Sequence[str],
    missing: Sequence[str],
    unused: Sequence[str],
    nothing: bool,
) -> str:
    kinds = [kind for arrays in sources.arrays.values() if (kind := getattr(arrays, "kind", ""))]
    origin = f" ({', '.join(kinds)})" if kinds else ""
    lines = []
    if mismatched:
        lines += [f"weights of another shape{origin}:", *mismatched]
    elif nothing:
        lines.append(f"no array fits the network{origin}")
    else:
        lines.append(f"the file and the network differ{origin}:")
    for title, names in (
        ("missing in the file", missing),
        ("without a place in the network", unused),
    ):
        if names:
            lines.append(f"{title}: {_shortened(names, len(names) if not nothing else 4)}")
    return "\n  ".join(lines)


def _shortened(names: Sequence[str], most: int) -> str:
    return ", ".join(names[:most]) + (" …" if len(names) > most else "")


def _rebuild(tree: Mapping[str, Any], flat: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """The tree with its leaves taken from ``flat``; the inverse of `flatten` at any depth."""
    return {
        name: _rebuild(value, flat, f"{prefix}{name}/")
        if isinstance(value, Mapping)
        else flat[f"{prefix}{name}"]
        for name, value in tree.items()
    }
