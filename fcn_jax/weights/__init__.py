"""Start weights: files of other programs and of this one, and transplanting them by name.

`load` turns a file into `Weights`: a flat dictionary of numpy arrays under the Caffe layer names,
with kernels in our layout and with what the network expects of its input. `transplant` copies them
into a network's parameters and reports what it did. `save` writes them.

A format is a row of `_READERS`. Readers believe no length and no name that a file states, run
nothing that it asks for, and raise `ValueError`; `load` adds the path.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from fcn_jax.weights import caffe, hdf5, keras, npz, safetensors, torch, zipped
from fcn_jax.weights.arrays import Weights, flatten, unflatten
from fcn_jax.weights.dense import conv_to_dense, convolutionalize, dense_to_conv, to_dense
from fcn_jax.weights.identify import network_of, params_of, usual_inputs
from fcn_jax.weights.saving import save
from fcn_jax.weights.transplanting import Report, transplant

__all__ = [
    "Report",
    "Weights",
    "conv_to_dense",
    "convolutionalize",
    "dense_to_conv",
    "flatten",
    "load",
    "network_of",
    "params_of",
    "save",
    "to_dense",
    "transplant",
    "unflatten",
    "usual_inputs",
]

HEAD = 4096
"""Bytes at a file's beginning by which it is recognised."""


def _read_zip(path: Path) -> Weights:
    with zipped.open_zip(path) as archive:
        pickled = any(name.endswith("data.pkl") for name in archive.namelist())
    return torch.read_zip(path) if pickled else npz.read(path)


_READERS: tuple[tuple[Callable[[bytes], bool], Callable[[Path], Weights]], ...] = (
    (zipped.recognises, _read_zip),
    (hdf5.recognises, keras.read),
    (torch.recognises_legacy, torch.read_legacy),
    (safetensors.recognises, safetensors.read),
    (caffe.recognises, caffe.read),  # the last: it has no signature
)

_STRANGERS: tuple[tuple[Callable[[bytes], bool], str], ...] = (
    (lambda head: not head, "is empty"),
    (
        lambda head: head.startswith(b"version https://git-lfs"),
        "is not the file but a pointer to it; fetch it with git lfs pull",
    ),
    (
        lambda head: head.lstrip()[:1] == b"<",
        "is a web page; the download went to a page that shows or refuses the file",
    ),
    (lambda head: head.startswith(b"\x1f\x8b"), "is compressed; unpack it with gunzip"),
    (
        lambda head: head.startswith(b"\x80"),
        "is a Python pickle of another kind than PyTorch's; reading it could run anything",
    ),
)
"""Other things that weight files turn out to be, and what to say of them."""


def load(path: str | Path) -> Weights:
    """Reads a weight file, told by its content and not by its suffix.

    Known are Caffe's ``.caffemodel``; PyTorch's ``.pth`` and ``.safetensors`` of torchvision's
    and timm's VGG, of torchvision's AlexNet and GoogLeNet (`torch_names.NETWORKS`) and of
    pytorch-fcn; Keras' ``.h5`` of VGG; ``.npz`` with Caffe's names; what `save` writes; and the
    folder of a training run (its last stage, or ``checkpoints/STAGE`` in it; the best checkpoint).

    Args:
        path: A file, or the folder of a run.

    Returns:
        float32 arrays under our names and in our layout, with their preprocessing. A network with
        Caffe's weights under torchvision's names (``vgg16_from_caffe.pth``) looks like
        torchvision's: set ``preprocessing`` to ``Preprocessing()`` there.

    Raises:
        FileNotFoundError: If there is no such file, or the folder is no run's.
        ValueError: If the file is of no known kind, damaged, or holds NaN or Inf. The message
            names the file and everything that is wrong with it.
    """
    path = Path(path)
    if path.is_dir():
        return _load_run(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no weight file {path}")
    with path.open("rb") as file:
        head = file.read(HEAD)
    read = next((read for recognises, read in _READERS if recognises(head)), None)
    if read is None:
        raise ValueError(f"{path} {_strange(head)}")
    try:
        weights = read(path)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    if bad := [name for name, value in weights.items() if not _is_finite(value)]:
        raise ValueError(f"{path}: NaN or Inf in {', '.join(bad)}; the file is unusable")
    return weights


def _strange(head: bytes) -> str:
    remarks = (remark for recognises, remark in _STRANGERS if recognises(head))
    return next(
        remarks,
        "is no weight file that fcn_jax can read; it reads .caffemodel, .pth, .safetensors, .h5, "
        ".npz, and the folder of a training run",
    )


def _is_finite(values: np.ndarray) -> bool:
    """Whether there is neither NaN nor Inf, found without a second array of that size."""
    return not values.size or bool(np.isfinite(values.min()) and np.isfinite(values.max()))


def _load_run(path: Path) -> Weights:
    """The best checkpoint of the last stage of a run, or of the stage whose folder it is."""
    from fcn_jax.runs import load_run  # brings in orbax

    stage = None
    if path.parent.name == "checkpoints" and (path.parents[1] / "config.json").is_file():
        path, stage = path.parents[1], path.name
    run = load_run(path, stage)
    arrays = flatten(run.variables["params"])
    weights = Weights(arrays, run.inputs.sole or run.inputs, f"fcn_jax {run.stage}")
    if bad := [name for name, value in weights.items() if not _is_finite(np.asarray(value))]:
        raise ValueError(f"{path}: NaN or Inf in {', '.join(bad)}; the checkpoint is unusable")
    return weights
