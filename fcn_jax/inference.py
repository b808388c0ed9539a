"""From images to logits and label maps at the images' own size.

`Predictor` is the short way for whole images; `full_size_logits` is the pure function under it,
which `fcn_jax.evaluation` uses as well, so that a score and a picture never disagree.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float, Shaped, UInt8

from fcn_jax import ops
from fcn_jax.alignment import Geometry
from fcn_jax.networks import FCN
from fcn_jax.preprocessing import Features, Inputs, Preprocessing

if TYPE_CHECKING:
    from fcn_jax.training.checkpoints import Run


@dataclasses.dataclass(frozen=True)
class Predictor:
    """A trained network that takes images as they are: uint8 RGB of any size.

    A network of several inputs takes a dictionary of features instead of an image, such as
    ``{"image": uint8 (h, w, 3), "depth": uint16 (h, w)}``; one of several heads gives a
    dictionary of results. Compiled once for each image size it meets.

    Attributes:
        model: The network.
        variables: Its parameters, ``{"params": ...}``.
        preprocessing: How it was trained to see pixels; `Inputs` where it reads more than an image.
        scale: Factor on height and width before the network; results are at the original size.

    Example:
        >>> predictor = Predictor.from_run(load_run("runs/camvid"))
        >>> labels = predictor.labels(image)  # uint8 (h, w)
    """

    model: nn.Module
    variables: Any
    preprocessing: Preprocessing | Inputs = dataclasses.field(default_factory=Preprocessing)
    scale: float = 1.0

    @classmethod
    def from_run(cls, run: Run) -> Predictor:
        """The predictor of a trained workdir (`fcn_jax.training.checkpoints.load_run`)."""
        config: Any = run.config
        return cls(run.model, run.variables, run.inputs, config.scale)

    def logits(self, image: UInt8[np.ndarray, "h w 3"] | Features) -> Any:
        """Scores of every pixel for each class, float32 (h, w, c), left on the device.

        Of a classifier: of every cell of its map.

        Raises:
            ValueError: If the image is not uint8 of the shape (h, w, 3), or a feature is missing.
        """
        return jax.tree.map(lambda logits: logits[0], self._run(_logits, image))

    def labels(self, image: UInt8[np.ndarray, "h w 3"] | Features) -> Any:
        """The most likely class of every pixel, uint8 (h, w); of a classifier, of every cell.

        Raises:
            ValueError: If the image is not uint8 of the shape (h, w, 3), or a feature is missing.
        """
        return jax.tree.map(lambda labels: np.asarray(labels[0]), self._run(_labels, image))

    def score_map(
        self, image: UInt8[np.ndarray, "h w 3"] | Features, class_number: int, head: str = ""
    ) -> Float[np.ndarray, "h w"]:
        """The scores of one class over an image, at its size; also of a classifier.

        Args:
            image: As for `logits`.
            class_number: Counted from 0.
            head: Which head's class, where the network has several.

        Raises:
            ValueError: If there is no such head or class.
        """
        logits = self.logits(image)
        if isinstance(logits, dict):
            if head not in logits:
                raise ValueError(f"the network has no head {head!r}; it has {', '.join(logits)}")
            logits = logits[head]
        if not 0 <= class_number < logits.shape[-1]:
            raise ValueError(f"there is no class {class_number} among {logits.shape[-1]}")
        scores = np.asarray(logits[..., class_number])
        if not isinstance(self.model, FCN) or not self.model.classifies:
            return scores
        inputs = Inputs.of(self.preprocessing)
        size = _by_name(image, inputs)[inputs.features[0]].shape[:2]
        cells = self.model.alignment.geometry[self.model.backbone.classifier]
        return over_image(scores, cells, size, self.scale)

    @property
    def features(self) -> tuple[str, ...]:
        """The features that the network reads."""
        return Inputs.of(self.preprocessing).features

    @property
    def classifies(self) -> bool:
        """Whether the network is a classifier, whose logits are a coarse map."""
        return isinstance(self.model, FCN) and self.model.classifies

    def __call__(self, images: Iterable[UInt8[np.ndarray, "h w 3"] | Features]) -> list[Any]:
        """Label maps of several images; their sizes may differ."""
        return [self.labels(image) for image in images]

    def _run(self, function: Any, image: Any) -> Any:
        inputs = Inputs.of(self.preprocessing)
        features = _by_name(image, inputs)
        resized = resize_features({name: features[name] for name in inputs.features}, self.scale)
        return function(
            self.model,
            self.variables,
            {name: value[None] for name, value in resized.items()},
            preprocessing=inputs,
            size=features[inputs.features[0]].shape[:2],
        )


def _by_name(image: Any, inputs: Inputs) -> dict[str, np.ndarray]:
    """An example's features; a bare image stands for the only one."""
    features = dict(image) if isinstance(image, Mapping) else {inputs.features[0]: image}
    if missing := [name for name in inputs.features if name not in features]:
        raise ValueError(
            f"the network reads {', '.join(inputs.features)}; {', '.join(missing)} is missing: "
            "pass a dictionary with all of them"
        )
    sizes = {name: features[name].shape[:2] for name in inputs.features}
    if len(set(sizes.values())) > 1:
        raise ValueError(f"the features of an image must have one size, got {sizes}")
    return features


def full_size_logits(
    model: nn.Module,
    variables: Any,
    images: UInt8[Array, "b h w 3"] | Features,
    *,
    preprocessing: Preprocessing | Inputs,
    size: tuple[int, int],
) -> Any:
    """Normalises, runs the network, and interpolates its logits to ``size``; jit-able.

    Args:
        model: The network.
        variables: Its parameters.
        images: RGB, already at the size the network is to see (`resize_image`); or a dictionary
            of features.
        preprocessing: Applied on the device.
        size: Height and width of the result; a classifier's map stays as it is.

    Returns:
        float32 (b, height, width, classes); with several heads a dictionary of them.
    """
    logits = model.apply(variables, Inputs.of(preprocessing).apply(images), train=False)
    if isinstance(model, FCN) and model.classifies:
        return logits

    def resize(logits: Float[Array, "b h w c"]) -> Float[Array, "b height width c"]:
        same = logits.shape[1:3] == tuple(size)
        return logits if same else ops.resize_bilinear(logits, *size)

    return jax.tree.map(resize, logits)


def over_image(
    scores: Float[np.ndarray, "h w"],
    cells: Geometry,
    size: tuple[int, int],
    scale: float = 1.0,
) -> Float[np.ndarray, "height width"]:
    """Spreads a coarse map over the image that it was computed from, bilinearly.

    Args:
        scores: One value for each cell.
        cells: Where the cells lie (``model.alignment.geometry``).
        size: Height and width of the image. Beyond the outermost cells their values go on.
        scale: Factor at which the network saw the image.
    """
    for axis, pixels in enumerate(size):
        seen = (np.arange(pixels) + 0.5) * max(1, round(pixels * scale)) / pixels - 0.5
        place = (seen - float(cells.offset)) / float(cells.stride)
        place = place.clip(0, scores.shape[axis] - 1)
        low = np.floor(place).astype(int)
        high = np.minimum(low + 1, scores.shape[axis] - 1)
        part = (place - low).reshape([-1 if a == axis else 1 for a in range(2)])
        scores = scores.take(low, axis) * (1 - part) + scores.take(high, axis) * part
    return scores


def most_likely(logits: Any) -> Any:
    """The class of the largest logit of each pixel, uint8 (b, h, w); for each head."""
    return jax.tree.map(lambda x: jnp.argmax(x, axis=-1).astype(jnp.uint8), logits)


def resize_features(
    features: Mapping[str, Shaped[np.ndarray, "h w *c"]], scale: float
) -> dict[str, Shaped[np.ndarray, "h2 w2 *c"]]:
    """Resizes pictures bilinearly, and depth by nearest: between near and far there is nothing."""
    return {
        name: nearest(value, scale) if is_depth(value) else resize_image(value, scale)
        for name, value in features.items()
    }


def is_depth(value: Shaped[np.ndarray, "h w *c"]) -> bool:
    """Whether a feature is a depth image: 16 bits, millimetres."""
    return value.dtype == np.uint16 and value.ndim == 2


def nearest(values: Shaped[np.ndarray, "h w"], scale: float) -> Shaped[np.ndarray, "h2 w2"]:
    """Resizes a map by a factor without mixing its values, pixel centres aligned."""
    sides = [max(1, round(side * scale)) for side in values.shape]
    # In integers, since Pillow's nearest neighbour rounds either way where two are as near.
    rows, columns = (
        (2 * np.arange(new) + 1) * old // (2 * new)
        for new, old in zip(sides, values.shape, strict=True)
    )
    return values[np.ix_(rows, columns)]


def resize_image(image: UInt8[np.ndarray, "h w 3"], scale: float) -> UInt8[np.ndarray, "h2 w2 3"]:
    """Resizes an image by a factor, as training does: bilinear, antialiased, at least 1 pixel.

    Raises:
        ValueError: If the image is not uint8 of the shape (h, w, 3), or the factor not positive.
    """
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or image.size == 0:
        raise ValueError(
            f"an image must be uint8 RGB of the shape (h, w, 3) (or depth uint16 (h, w)), got "
            f"{image.dtype} {image.shape}; fcn_jax.data.images.read_image makes one of any file"
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
    images: Features,
    *,
    preprocessing: Inputs,
    size: tuple[int, int],
) -> Any:
    return most_likely(
        full_size_logits(model, variables, images, preprocessing=preprocessing, size=size)
    )
