"""From images to logits and label maps at the images' own size.

`Predictor` is the short way for whole images; `full_size_logits` is the pure function under it,
which `fcn_jax.evaluation` uses as well, so that a score and a picture never disagree.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float, UInt8

from fcn_jax import ops
from fcn_jax.preprocessing import Preprocessing

if TYPE_CHECKING:
    from fcn_jax.training.checkpoints import Run


@dataclasses.dataclass(frozen=True)
class Predictor:
    """A trained network that takes images as they are: uint8 RGB of any size.

    Compiled once for each image size it meets.

    Attributes:
        model: The network.
        variables: Its parameters, ``{"params": ...}``.
        preprocessing: How it was trained to see pixels.
        scale: Factor on height and width before the network; results are at the original size.

    Example:
        >>> predictor = Predictor.from_run(load_run("runs/camvid"))
        >>> labels = predictor.labels(image)  # uint8 (h, w)
    """

    model: nn.Module
    variables: Any
    preprocessing: Preprocessing = dataclasses.field(default_factory=Preprocessing)
    scale: float = 1.0

    @classmethod
    def from_run(cls, run: Run) -> Predictor:
        """The predictor of a trained workdir (`fcn_jax.training.checkpoints.load_run`)."""
        config: Any = run.config
        return cls(run.model, run.variables, run.preprocessing, config.scale)

    def logits(self, image: UInt8[np.ndarray, "h w 3"]) -> Float[Array, "h w c"]:
        """Scores of every pixel for each class, float32, left on the device.

        Raises:
            ValueError: If the image is not uint8 of the shape (h, w, 3).
        """
        images = resize_image(image, self.scale)[None]
        return _logits(
            self.model,
            self.variables,
            images,
            preprocessing=self.preprocessing,
            size=image.shape[:2],
        )[0]

    def labels(self, image: UInt8[np.ndarray, "h w 3"]) -> UInt8[np.ndarray, "h w"]:
        """The most likely class of every pixel.

        Raises:
            ValueError: If the image is not uint8 of the shape (h, w, 3).
        """
        images = resize_image(image, self.scale)[None]
        labels = _labels(
            self.model,
            self.variables,
            images,
            preprocessing=self.preprocessing,
            size=image.shape[:2],
        )
        return np.asarray(labels[0])

    def __call__(
        self, images: Iterable[UInt8[np.ndarray, "h w 3"]]
    ) -> list[UInt8[np.ndarray, "h w"]]:
        """Label maps of several images; their sizes may differ."""
        return [self.labels(image) for image in images]


def full_size_logits(
    model: nn.Module,
    variables: Any,
    images: UInt8[Array, "b h w 3"],
    *,
    preprocessing: Preprocessing,
    size: tuple[int, int],
) -> Float[Array, "b height width c"]:
    """Normalises, runs the network, and interpolates its logits to ``size``; jit-able.

    Args:
        model: The network.
        variables: Its parameters.
        images: RGB, already at the size the network is to see (`resize_image`).
        preprocessing: Applied on the device.
        size: Height and width of the result.
    """
    logits: Any = model.apply(variables, preprocessing.apply(images), train=False)
    if logits.shape[1:3] == tuple(size):
        return logits
    return ops.resize_bilinear(logits, *size)


def most_likely(logits: Float[Array, "b h w c"]) -> UInt8[Array, "b h w"]:
    """The class of the largest logit of each pixel."""
    return jnp.argmax(logits, axis=-1).astype(jnp.uint8)


def resize_image(image: UInt8[np.ndarray, "h w 3"], scale: float) -> UInt8[np.ndarray, "h2 w2 3"]:
    """Resizes an image by a factor, as training does: bilinear, antialiased, at least 1 pixel.

    Raises:
        ValueError: If the image is not uint8 of the shape (h, w, 3), or the factor not positive.
    """
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or image.size == 0:
        raise ValueError(
            f"an image must be uint8 RGB of the shape (h, w, 3), got {image.dtype} {image.shape}; "
            "fcn_jax.data.images.read_image makes one of any file"
        )
    if scale <= 0:
        raise ValueError(f"scale must be positive, got {scale}")
    height, width = (max(1, round(side * scale)) for side in image.shape[:2])
    if (height, width) == image.shape[:2]:
        return image
    from PIL import Image

    return np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR))


# Modules and preprocessings are frozen dataclasses: as static arguments they share one cache of
# compiled functions between all predictors of the same network.
_STATIC = ("model", "preprocessing", "size")

_logits = jax.jit(full_size_logits, static_argnames=_STATIC)


@functools.partial(jax.jit, static_argnames=_STATIC)
def _labels(
    model: nn.Module,
    variables: Any,
    images: UInt8[Array, "b h w 3"],
    *,
    preprocessing: Preprocessing,
    size: tuple[int, int],
) -> UInt8[Array, "b height width"]:
    return most_likely(
        full_size_logits(model, variables, images, preprocessing=preprocessing, size=size)
    )
