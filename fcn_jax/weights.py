"""Start weights: reading files of other programs and transplanting them into our parameters.

A reader turns a file into `Weights`: a flat dictionary of numpy arrays under the Caffe layer
names, with kernels in our layout. `transplant` then copies by name and reports what it did. Never
here: our own checkpoints' bookkeeping (`fcn_jax.training.checkpoints`).
"""

from __future__ import annotations

import dataclasses
import fnmatch
import zipfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from flax import traverse_util

Weights = dict[str, np.ndarray]
"""Arrays by ``layer/kernel`` (height, width, in, out; dense: in, out) and ``layer/bias``."""


# ======================================================================== readers


def load(path: str | Path) -> Weights:
    """Reads a weight file, told by its content and not by its suffix.

    Known: ``.npz`` with Caffe names (``conv1_1/w``, ``conv1_1/b``).

    Returns:
        float32 arrays under our names and in our layout.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is of no known kind, damaged, or holds NaN or Inf.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no weight file {path}")
    for recognises, read in _READERS:
        if recognises(path):
            weights = read(path)
            break
    else:
        raise ValueError(f"{path} is no weight file that fcn_jax can read; it reads .npz")
    if bad := [name for name, value in weights.items() if not np.isfinite(value).all()]:
        raise ValueError(f"{path}: NaN or Inf in {', '.join(bad)}; the file is unusable")
    return weights


def _read_npz(path: Path) -> Weights:
    """Caffe's blobs in a numpy archive: ``LAYER/w`` (out, in, height, width) and ``LAYER/b``."""
    weights: Weights = {}
    problems = []
    try:
        with np.load(path, allow_pickle=False) as archive:
            for name in archive.files:
                layer, _, kind = name.rpartition("/")
                value = archive[name]
                if not layer or kind not in ("w", "b") or value.dtype.kind != "f":
                    problems.append(f"{name} ({value.dtype}, {value.shape})")
                elif kind == "b":
                    weights[f"{layer}/bias"] = value.reshape(-1).astype(np.float32)
                elif value.ndim == 4:
                    kernel = value.transpose(2, 3, 1, 0).astype(np.float32)
                    weights[f"{layer}/kernel"] = np.ascontiguousarray(kernel)
                elif value.ndim == 2:
                    weights[f"{layer}/kernel"] = value.T.astype(np.float32)
                else:
                    problems.append(f"{name} ({value.dtype}, {value.shape})")
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, RuntimeError, ValueError) as error:
        raise ValueError(f"{path} is damaged or no numpy archive of arrays: {error}") from error
    if problems:
        raise ValueError(
            f"{path}: expected floating-point arrays named LAYER/w (2 or 4 axes) and LAYER/b, "
            f"found {', '.join(problems)}"
        )
    return weights


_READERS: tuple[tuple[Callable[[Path], bool], Callable[[Path], Weights]], ...] = (
    (zipfile.is_zipfile, _read_npz),
)


# ======================================================================== transplant


@dataclasses.dataclass(frozen=True)
class Report:
    """What a transplant did with each array, by ``layer/kernel`` or ``layer/bias``.

    Attributes:
        copied: Taken as they were.
        reshaped: Dense kernels turned into convolutions.
        left: Arrays of the network that kept their initial values.
        unused: Arrays of the source that the network has no place for.
    """

    copied: tuple[str, ...] = ()
    reshaped: tuple[str, ...] = ()
    left: tuple[str, ...] = ()
    unused: tuple[str, ...] = ()

    def __str__(self) -> str:
        lines = []
        for field in dataclasses.fields(self):
            names = getattr(self, field.name)
            layers = list(dict.fromkeys(name.rpartition("/")[0] for name in names))
            detail = f": {' '.join(layers)}" if layers else ""
            lines.append(f"{field.name:>9} {len(names):3d} arrays{detail}")
        return "\n".join(lines)


def transplant(
    params: Mapping[str, Any], source: Mapping[str, np.ndarray], replaceable: Sequence[str] = ()
) -> tuple[dict[str, Any], Report]:
    """Copies arrays by name into a parameter tree.

    A dense kernel (inputs, outputs) becomes the convolution of the same function where the
    number of weights agrees; its inputs are in Caffe's order (channel, row, column).

    Args:
        params: The network's parameters, ``{layer: {"kernel": …, "bias": …}}``, or their shapes
            and types (`fcn_jax.networks.abstract_params`); what is left then stays abstract.
        source: Arrays by ``layer/kernel`` and ``layer/bias``.
        replaceable: Patterns of layer names whose arrays may have another shape, and then keep
            their initial values (score layers for another number of classes).

    Returns:
        New parameters of the same structure, and the report.

    Raises:
        ValueError: If shapes disagree (all of them in one message), or nothing fits at all.
    """
    target = flatten(params)
    result = dict(target)
    copied, reshaped, left, problems = [], [], [], []
    for name, old in target.items():
        new = source.get(name)
        if new is None:
            left.append(name)
        elif new.shape == old.shape:
            result[name] = np.asarray(new, old.dtype)
            copied.append(name)
        elif new.ndim == 2 and len(old.shape) == 4 and _dense_fits(new, old):
            result[name] = np.asarray(dense_to_conv(new, old.shape), old.dtype)
            reshaped.append(name)
        elif any(fnmatch.fnmatch(name.rpartition("/")[0], p) for p in replaceable):
            left.append(name)
        else:
            problems.append(f"{name}: the file has {new.shape}, the network {tuple(old.shape)}")
    if problems:
        raise ValueError("weights of another shape:\n  " + "\n  ".join(problems))
    if not copied and not reshaped:
        raise ValueError(
            f"no array fits the network: the file has {', '.join(list(source)[:4])} …, the "
            f"network {', '.join(list(target)[:4])} …"
        )
    unused = tuple(name for name in source if name not in target)
    report = Report(tuple(copied), tuple(reshaped), tuple(left), unused)
    return unflatten(result), report


def flatten(params: Mapping[str, Any]) -> Weights:
    """A parameter tree as `Weights`: arrays by ``layer/kernel`` and ``layer/bias``."""
    flat: Any = traverse_util.flatten_dict(dict(params), sep="/")
    return flat


def unflatten(flat: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `flatten`."""
    return traverse_util.unflatten_dict(dict(flat), sep="/")


def _dense_fits(dense: np.ndarray, kernel: Any) -> bool:
    height, width, inputs, outputs = kernel.shape
    return dense.shape == (height * width * inputs, outputs)


def dense_to_conv(dense: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """The convolution kernel of a dense layer over a flattened (channel, row, column) map.

    Args:
        dense: (channels * height * width, outputs).
        shape: (height, width, channels, outputs) of the kernel.
    """
    height, width, inputs, outputs = shape
    return dense.reshape(inputs, height, width, outputs).transpose(1, 2, 0, 3)
