"""Copying weights into a network's parameters by name, with an account of every array."""

from __future__ import annotations

import dataclasses
import fnmatch
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from flax import traverse_util
from jaxtyping import Array

from fcn_jax.weights.arrays import Weights, flatten
from fcn_jax.weights.dense import dense_to_conv


@dataclasses.dataclass(frozen=True)
class Report:
    """What a transplant did with each array, by ``layer/kernel`` or ``layer/bias``.

    Attributes:
        copied: Taken as they were.
        reshaped: Dense kernels turned into convolutions.
        widened: First kernels over three channels that got others: further ones, the mean of the
            three each, or fewer than three, all of them that mean.
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
    inputs: Sequence[str] = (),
) -> tuple[dict[str, Any], Report]:
    """Copies arrays by name into a parameter tree.

    Two kernels change their shape on the way. A dense kernel (inputs, outputs) becomes the
    convolution of the same function; its inputs are in Caffe's order (channel, row, column). A
    first kernel over three channels gets as the filter of each further one the mean of the three
    (the paper's early fusion of colour and depth; images of more bands); where the network reads
    one or two channels, the filter of each is that mean. `Preprocessing.for_images` keeps the size
    of the response.

    Args:
        params: The network's parameters, ``{layer: {"kernel": …, "bias": …}}``, or their shapes
            and types (`fcn_jax.models.fcn.abstract_params`); what is left then stays abstract.
        source: Arrays by ``layer/kernel`` and ``layer/bias``, or a tree of them such as
            ``params``; or one of either for each input of a network of several inputs:
            ``{"color": …, "hha": …}``.
        replaceable: Patterns of layer names whose arrays may be of another shape, and then keep
            their initial values (score layers for another number of classes).
        inputs: The inputs that all start from the one source: the layer ``fc6hha`` takes the
            source's ``fc6`` where the source has no ``fc6hha``. Where the source is one for each
            input, its own keys are the inputs.

    Returns:
        New parameters of the same structure, and the report: what is missing in the source is
        `Report.left`, what the network has no place for `Report.unused`.

    Raises:
        ValueError: If shapes disagree, or nothing fits at all. The message holds everything that
            does not fit: shapes, and what is missing and left over.

    Example:
        >>> params = {"conv1": {"kernel": np.zeros((3, 3, 3, 8)), "bias": np.zeros(8)}}
        >>> new, report = transplant(params, {"conv1/bias": np.ones(8)})
        >>> report.copied, report.left
        (('conv1/bias',), ('conv1/kernel',))
    """
    branches = [value for value in source.values() if isinstance(value, Mapping)]
    if branches and len(branches) == len(source):
        # Arrays of a layer are called kernel and bias, those of an input layer/kernel.
        of_layers = any("/" not in name for branch in branches for name in flatten(branch))
        if of_layers or flatten(params).keys() & flatten(source).keys():
            source, branches = flatten(source), []
    if branches and (len(branches) < len(source) or (inputs and set(inputs) != set(source))):
        raise ValueError(
            "source must be one dictionary or tree of arrays, or one for each input; got the "
            f"keys {', '.join(source)}" + (f" and the inputs {list(inputs)}" * bool(inputs))
        )
    sources = {"": source}
    if branches:
        sources = {
            label: arrays if isinstance(arrays, Weights) else flatten(arrays)
            for label, arrays in source.items()
        }
    label_of = {name: name for name in source} if branches else dict.fromkeys(inputs, "")
    first = next(iter(params))  # of the other inputs, its name begins so
    filed: dict[str, list[str]] = {field.name: [] for field in dataclasses.fields(Report)}
    result, used = {}, set()
    missing, mismatched, unused = [], [], filed["unused"]
    offsets: dict[tuple[str, ...], np.ndarray] = {}
    leaves: dict[tuple[str, ...], Any] = dict(traverse_util.flatten_dict(dict(params)))
    for path, old in leaves.items():
        result[path] = old
        name = "/".join(path)
        origin = _find(name, sources, label_of)
        if origin is None:
            missing.append(name)
            filed["left"].append(name)
            continue
        used.add(origin)
        new = np.asarray(sources[origin[0]][origin[1]])
        if new.ndim == 4 and name.startswith(first) and old.shape[2] < 3 == new.shape[2]:
            new, offsets[path[:-1]] = _normalised(new, sources[origin[0]])
        how, fitted = _fit(new, tuple(old.shape), may_widen=name.startswith(first))
        if fitted is not None:
            filed[how].append(name)
            result[path] = np.asarray(fitted, old.dtype)
        elif any(fnmatch.fnmatch("/".join(path[:-1]), pattern) for pattern in replaceable):
            filed["left"].append(name)
        else:
            mismatched.append(f"{name}: the file has {new.shape}, the network {tuple(old.shape)}")
    for layer, offset in offsets.items():
        bias = "/".join((*layer, "bias"))
        if bias in filed["copied"]:
            result[*layer, "bias"] = result[*layer, "bias"] + offset
    for label, arrays in sources.items():
        prefix = f"{label}: " if label else ""
        unused += [prefix + name for name in arrays if (label, name) not in used]
        filed["skipped"] += [prefix + text for text in getattr(arrays, "skipped", ())]
    report = Report(**{how: tuple(names) for how, names in filed.items()})
    if mismatched or not (report.copied or report.reshaped or report.widened):
        kinds = [kind for arrays in sources.values() if (kind := getattr(arrays, "kind", ""))]
        what = "weights of another shape" if mismatched else "no array fits the network"
        lines = [f"{what} ({', '.join(kinds)}):" if kinds else f"{what}:", *mismatched]
        most = None if mismatched else 4
        no_match = {"missing in the file": missing, "without a place in the network": unused}
        for title, names in no_match.items():
            if names:
                lines.append(f"{title}: {', '.join(names[:most])}{' …' * (names[:most] != names)}")
        if mismatched:
            lines.append("patterns in replaceable let layers keep their initial values instead")
        raise ValueError("\n  ".join(lines))
    return traverse_util.unflatten_dict(result), report


def _find(
    name: str, sources: Mapping[str, Mapping[str, Any]], label_of: Mapping[str, str]
) -> tuple[str, str] | None:
    """The label of the source, and the name there, of what the network's array starts from."""
    layer, _, array = name.rpartition("/")
    candidates = [
        (label, candidate)
        for suffix, label in label_of.items()
        if layer.endswith(suffix)
        for candidate in (name, f"{layer.removesuffix(suffix)}/{array}")
    ]
    candidates += [(label, name) for label in sources]
    return next((found for found in candidates if found[1] in sources[found[0]]), None)


def _normalised(kernel: np.ndarray, source: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """A first kernel over RGB as if all three had one mean and deviation; what its bias lacks."""
    inputs = getattr(source, "inputs", None)
    ways = [way for _, parts in inputs.entries for _, way in parts] if inputs else []
    if not ways or ways[0].channels != 3:
        return kernel, np.zeros(kernel.shape[3], kernel.dtype)
    mean, std = (np.array(values, kernel.dtype) for values in (ways[0].mean, ways[0].std))
    by_std = kernel / std[:, None]
    return by_std * std.mean(), np.einsum("hwco,c->o", by_std, mean.mean() - mean)


def _fit(
    new: np.ndarray, shape: tuple[int, ...], may_widen: bool
) -> tuple[str, Array | np.ndarray | None]:
    """The report's word for how an array fits the network, and the array in its shape."""
    if new.shape == shape:
        return "copied", new
    if len(shape) == 4:
        height, width, inputs, outputs = shape
        if new.shape == (height * width * inputs, outputs):
            return "reshaped", dense_to_conv(new, shape)
        if may_widen and new.shape == (height, width, 3, outputs) != shape:
            kept = new if inputs > 3 else new[:, :, :0]
            mean = new.mean(2, keepdims=True)
            return "widened", np.concatenate([kept, *[mean] * (inputs - kept.shape[2])], axis=2)
    return "left", None
