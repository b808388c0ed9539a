"""Start weights: files of other programs and of this one, and transplanting them by name.

`load` turns a file into `Weights`: a flat dictionary of numpy arrays under the Caffe layer names,
with kernels in our layout and with what the network expects of its inputs. `transplant` copies them
into a network's parameters and reports what it did. `save` writes them.

Published files come by name (`published`), through a cache (`fetching`); those of the Hugging Face
Hub by their repository (`hub`).

A format is a row of `_READERS`. Files are untrusted: readers check every length and name that a
file states, run nothing that it asks for, and raise `ValueError`; `load` adds the path.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from fcn_jax.weights import caffe, fetching, hub, keras, npy, npz, safetensors, torch, zipped
from fcn_jax.weights.arrays import Network, Weights, flatten, unflatten
from fcn_jax.weights.dense import conv_to_dense, convolutionalize, dense_to_conv, to_dense
from fcn_jax.weights.identify import network_of, params_of, usual_inputs
from fcn_jax.weights.published import ORIGINS, PIXELS, find
from fcn_jax.weights.saving import save
from fcn_jax.weights.transplanting import Report, transplant

if TYPE_CHECKING:
    from fcn_jax.runs import Run

__all__ = [
    "Network",
    "Report",
    "Weights",
    "conv_to_dense",
    "convolutionalize",
    "dense_to_conv",
    "flatten",
    "is_name",
    "load",
    "network_of",
    "of_run",
    "params_of",
    "save",
    "to_dense",
    "transplant",
    "unflatten",
    "usual_inputs",
]


def _read_zip(path: Path) -> Weights:
    with zipped.open_zip(path) as archive:
        if "model.weights.h5" in archive.namelist():
            raise ValueError("Keras' newer format; save it again with model.save('FILE.h5')")
        pickled = any(name.endswith("data.pkl") for name in archive.namelist())
    return torch.read_zip(path) if pickled else npz.read(path)


_READERS: tuple[tuple[Callable[[bytes], bool], Callable[[Path], Weights]], ...] = (
    (lambda head: head.startswith(zipped.SIGNATURE), _read_zip),
    (keras.recognises, keras.read),
    (torch.recognises_legacy, torch.read_legacy),
    (safetensors.recognises, safetensors.read),
    (npy.recognises, npy.read),
    (caffe.recognises, caffe.read),  # the last: it has no signature
)

_STRANGERS = {
    b"MATLAB": "is a .mat file, perhaps of MatConvNet, which is not read",
    b"\x08": "looks like an ONNX file, which is not read; take the file that it was made from",
    b"\xfd7zXZ": "is compressed; unpack it with unxz",
    b"version https://git-lfs": "is not the file but a pointer to it; fetch it with git lfs pull",
    b"<": "is a web page; the download went to a page that shows or refuses the file",
    b"\x1f\x8b": "is compressed; unpack it with gunzip",
    b"\x80": "is a Python pickle of another kind than PyTorch's; reading it could run anything",
    b"": "is no weight file that fcn_jax can read (.caffemodel .pth .safetensors .h5 .npz)",
}
"""Beginnings of other things that weight files turn out to be, and what to say of them."""


def is_name(source: str | Path) -> bool:
    """Whether it names weights, such as ``torchvision:vgg16`` or ``hf:OWNER/REPO``."""
    origin, colon, _ = str(source).partition(":")
    return colon != "" and origin in (*ORIGINS, "hf")


def load(path: str | Path, *, allow_code: bool | str = False) -> Weights:
    """Reads published weights by name, or a weight file, told by its content and not by its suffix.

    Names are those that ``fcn-jax weights`` lists (``torchvision:vgg16``), which are fetched into a
    cache and checked, and ``hf:OWNER/REPO`` or ``hf:OWNER/REPO/FILE`` of the Hugging Face Hub.
    Known files are Caffe's ``.caffemodel``; PyTorch's ``.pth`` and ``.safetensors`` of
    torchvision's and timm's VGG, of torchvision's AlexNet and GoogLeNet (`torch_names.NETWORKS`)
    and of pytorch-fcn; Keras' ``.h5`` of VGG; ``.npz`` with Caffe's names, and TensorFlow's
    ``vgg16_weights.npz`` and ``vgg16.npy``; what `save` writes; and the folder of a training run
    (its last stage, or ``checkpoints/STAGE`` in it; the best checkpoint).

    Args:
        path: A name, a file, or the folder of a run.
        allow_code: Whether a run's own backbone may be loaded (`fcn_jax.runs.load_run`).

    Returns:
        float32 arrays under our names and in our layout, with the inputs they expect. A network
        with Caffe's weights under torchvision's names (``vgg16_from_caffe.pth``) looks like
        torchvision's: take it by name (``pytorch-fcn:vgg16``), or set ``inputs`` to
        ``Inputs.of(Preprocessing())``.

    Raises:
        FileNotFoundError: If there is no such file, or the folder is no run's.
        OSError: If a named file cannot be fetched (`fetching.fetch`).
        ValueError: If the file is of no known kind, damaged, or holds NaN or Inf. The message
            names the file and everything that is wrong with it.

    Example:
        >>> save("small.npz", {"conv1": {"kernel": np.ones((3, 3, 3, 8)), "bias": np.zeros(8)}})
        >>> {name: array.shape for name, array in load("small.npz").items()}
        {'conv1/kernel': (3, 3, 3, 8), 'conv1/bias': (8,)}
    """
    name = str(path)
    if name.startswith("hf:"):
        return _load_file(hub.fetch(name))
    if is_name(name):
        row = find(name)
        file = fetching.fetch(row)
        try:
            weights = _load_file(file)
        except ValueError as error:
            fetching.check_read(row, error)
            raise
        fetching.check_read(row, None)
        weights.kind, weights.inputs = name, PIXELS[row.pixels][1]
        modality = "hha" if row.pixels == "hha" else None
        weights.network = Network(row.network, modality=modality)
        return weights
    path = Path(path).expanduser()
    if not path.is_dir():
        return _load_file(path)
    from fcn_jax.runs import load_run  # brings in orbax

    stage = None  # the last
    if path.parent.name == "checkpoints" and not (path / "config.json").exists():
        path, stage = path.parents[1], path.name
    return of_run(load_run(path, stage, allow_code=allow_code))


def of_run(run: Run) -> Weights:
    """The weights of a trained network, with all that `save` can tell of it."""
    arrays = {name: np.asarray(array) for name, array in flatten(run.variables["params"]).items()}
    network = Network(
        run.stage,
        run.config.padding,
        scale=float(run.config.scale),
        precision=run.config.precision,
        heads=run.heads,
    )
    kind = f"fcn_jax {run.stage}"
    return _in_float32(
        Weights(arrays, run.inputs, kind, trained_on=run.trained_on, network=network), kind
    )


def _load_file(path: Path) -> Weights:
    if not path.is_file():
        raise FileNotFoundError(
            f"there is no weight file {path}; published weights have names, such as "
            "torchvision:vgg16, which `fcn-jax weights` lists"
        )
    with path.open("rb") as file:
        head = file.read(4096)
    read = next((read for recognises, read in _READERS if recognises(head)), None)
    if read is None:
        texts = [text for start, text in _STRANGERS.items() if head.lstrip().startswith(start)]
        raise ValueError(f"{path} {texts[0] if head else 'is empty'}")
    try:
        weights = read(path)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    return _in_float32(weights, path)


def _in_float32(weights: Weights, origin: str | Path) -> Weights:
    """The weights in float32; a ValueError if they hold NaN or Inf."""
    bad = []
    for name, array in weights.items():
        with np.errstate(over="ignore", invalid="ignore"):  # values beyond float32 become Inf
            # In the memory order of the array, which may be a transposed view of the file.
            array = array.astype(np.float32, order="K", copy=not array.flags.writeable)
        weights[name] = array
        # Smallest and largest values tell it without a second array of that size.
        if array.size and not np.isfinite([array.min(), array.max()]).all():
            bad.append(name)
    if bad:
        raise ValueError(f"{origin}: NaN or Inf in {', '.join(bad)}; these weights are unusable")
    return weights
