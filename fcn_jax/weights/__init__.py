"""Start weights: files of other programs and of this one, and transplanting them by name.

`load` turns a file into `Weights`: a flat dictionary of numpy arrays under the Caffe layer names,
with kernels in our layout and with what the network expects of its inputs. `transplant` copies them
into a network's parameters and reports what it did. `save` writes them.

A format is a row of `_READERS`. Files are untrusted: readers check every length and name that a
file states, run nothing that it asks for, and raise `ValueError`; `load` adds the path.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from fcn_jax.weights import caffe, keras, npz, safetensors, torch, zipped
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
    (caffe.recognises, caffe.read),  # the last: it has no signature
)

_STRANGERS = {
    b"version https://git-lfs": "is not the file but a pointer to it; fetch it with git lfs pull",
    b"<": "is a web page; the download went to a page that shows or refuses the file",
    b"\x1f\x8b": "is compressed; unpack it with gunzip",
    b"\x93NUMPY": "is a single array or a pickle; give weights as .npz, an array for each name",
    b"\x80": "is a Python pickle of another kind than PyTorch's; reading it could run anything",
    b"": "is no weight file that fcn_jax can read (.caffemodel .pth .safetensors .h5 .npz)",
}
"""Beginnings of other things that weight files turn out to be, and what to say of them."""


def load(path: str | Path, *, allow_code: bool | str = False) -> Weights:
    """Reads a weight file, told by its content and not by its suffix.

    Known are Caffe's ``.caffemodel``; PyTorch's ``.pth`` and ``.safetensors`` of torchvision's
    and timm's VGG, of torchvision's AlexNet and GoogLeNet (`torch_names.NETWORKS`) and of
    pytorch-fcn; Keras' ``.h5`` of VGG; ``.npz`` with Caffe's names, and TensorFlow's
    ``vgg16_weights.npz``; what `save` writes; and the folder of a training run (its last stage,
    or ``checkpoints/STAGE`` in it; the best checkpoint).

    Args:
        path: A file, or the folder of a run.
        allow_code: Whether a run's own backbone may be loaded (`fcn_jax.runs.load_run`).

    Returns:
        float32 arrays under our names and in our layout, with the inputs they expect. A network
        with Caffe's weights under torchvision's names (``vgg16_from_caffe.pth``) looks like
        torchvision's: set ``inputs`` to ``Inputs.of(Preprocessing())`` there.

    Raises:
        FileNotFoundError: If there is no such file, or the folder is no run's.
        ValueError: If the file is of no known kind, damaged, or holds NaN or Inf. The message
            names the file and everything that is wrong with it.

    Example:
        >>> save("small.npz", {"conv1": {"kernel": np.ones((3, 3, 3, 8)), "bias": np.zeros(8)}})
        >>> {name: array.shape for name, array in load("small.npz").items()}
        {'conv1/kernel': (3, 3, 3, 8), 'conv1/bias': (8,)}
    """
    path = Path(path).expanduser()
    if path.is_dir():
        from fcn_jax.runs import load_run  # brings in orbax

        stage = None  # the last
        if path.parent.name == "checkpoints" and not (path / "config.json").exists():
            path, stage = path.parents[1], path.name
        run = load_run(path, stage, allow_code=allow_code)
        arrays = {name: np.asarray(a) for name, a in flatten(run.variables["params"]).items()}
        kind = f"fcn_jax {run.stage}"
        weights = Weights(arrays, run.inputs, kind, trained_on=run.trained_on)
        weights.classes = tuple(table.names for table in run.heads.values())
    elif not path.is_file():
        raise FileNotFoundError(f"there is no weight file {path}")
    else:
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
        raise ValueError(f"{path}: NaN or Inf in {', '.join(bad)}; these weights are unusable")
    return weights
