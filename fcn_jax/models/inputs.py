"""From stored pixels (pictures of any bands and type, depth) to the floats of a network.

`Preprocessing` normalises one modality of an example; `Inputs` says which modalities a network
reads, and in which of its inputs.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Real


@dataclasses.dataclass(frozen=True)
class Preprocessing:
    """What a network expects of a modality; it belongs to the parameters and travels with them.

    The default is Caffe's: BGR on the 0..255 scale with the ImageNet mean subtracted.

    Attributes:
        channel_order: Order of the channels the network reads; ``rgb`` is as they are stored,
            ``bgr`` turns the first three around and leaves further bands where they are.
        mean: Subtracted after scaling, in that order; one value for each channel.
        std: Divided by after that.
        scale: Factor on the values before the mean.
        log: Take the natural logarithm of the scaled values, at least 1 (depth).
        range: For each channel as it is stored the values that become 0 and 255 before all else;
            what lies beyond becomes 0 or 255, too. None: pictures of 8 bits, and depth, as they
            are stored.
        dtype: With a range, the type of the images that it is of.

    Raises:
        ValueError: If the numbers of values differ, one that divides is 0, or a range is empty.

    Example:
        >>> black = jnp.zeros((1, 2, 2, 3), jnp.uint8)
        >>> print(Preprocessing().apply(black)[0, 0, 0])
        [-104.00699 -116.66877 -122.67892]
    """

    channel_order: Literal["bgr", "rgb"] = "bgr"
    mean: tuple[float, ...] = (104.00699, 116.66877, 122.67892)
    std: tuple[float, ...] = (1.0, 1.0, 1.0)
    scale: float = 1.0
    log: bool = False
    range: tuple[tuple[float, float], ...] | None = None
    dtype: str = "uint8"

    def __post_init__(self) -> None:
        if self.channel_order not in ("bgr", "rgb"):
            raise ValueError(f"channel_order must be bgr or rgb, got {self.channel_order!r}")
        if not self.mean or len(self.std) != len(self.mean):
            raise ValueError(f"mean and std need one value each for every channel; got {self}")
        if 0 in (*self.std, self.scale):
            raise ValueError(f"std and scale need values of which none is 0; got {self}")
        if self.range is None:
            return
        sound = all(np.isfinite(pair).all() and pair[0] < pair[1] for pair in self.range)
        if len(self.range) != len(self.mean) or not sound:
            raise ValueError(f"range needs (low, high), low < high, for every channel; got {self}")

    @property
    def channels(self) -> int:
        """Channels of the modality."""
        return len(self.mean)

    def apply(
        self, images: Real[Array | np.ndarray, "b h w *c"]
    ) -> Float[Array, "b h w {self.channels}"]:
        """Normalises a batch on the device, to float32.

        Args:
            images: RGB, 0..255; depth without an axis for the one channel; with a range any bands,
                of its type.

        Raises:
            ValueError: If the images have another number of channels, or another type than those
                of the range.
        """
        if self.range is not None and images.dtype != np.dtype(self.dtype):
            raise ValueError(
                f"the network's range is of {self.dtype} images, these are {images.dtype}"
            )
        x = jnp.asarray(images, jnp.float32)
        if self.channels == 1 and x.ndim == 3:
            x = x[..., None]
        if x.ndim != 4 or x.shape[-1] != self.channels:
            raise ValueError(
                f"expected a batch of {self.channels}-channel images, got an array of the shape "
                f"{images.shape}"
            )
        if self.range is not None:
            low, high = np.array(self.range, np.float32).T[:, None, None, None]
            x = jnp.clip((x - low) * (255 / (high - low)), 0, 255)
        if self.channel_order == "bgr":
            x = (
                jnp.concatenate([x[..., 2::-1], x[..., 3:]], -1)
                if len(self.mean) > 3
                else x[..., ::-1]
            )
        mean, std = (jnp.array(v, jnp.float32)[None, None, None] for v in (self.mean, self.std))
        x = x * self.scale
        if self.log:
            x = jnp.log(jnp.maximum(x, 1.0))
        return (x - mean) / std

    def on_scale_of(self, other: Preprocessing) -> Preprocessing:
        """This modality's normalisation, brought to the range that ``other``'s weights expect.

        HHA, for example, keeps its own mean and channel order.
        """
        if self.log or self.channels != other.channels:
            return self
        mean = tuple(m / self.scale * other.scale for m in self.mean)
        return dataclasses.replace(self, mean=mean, std=other.std, scale=other.scale)

    def for_images(
        self,
        channels: int,
        range: tuple[tuple[float, float], ...] | None = None,
        dtype: str = "uint8",
    ) -> Preprocessing:
        """This normalisation for images of other bands, or of another type and range.

        All bands are brought to 0..255. Bands beyond three (or the two that there are) have the
        mean of the three means and of the three deviations. All deviations are multiplied by the
        number of bands over three: so a first kernel that has been widened
        (`fcn_jax.weights.transplant`) responds to equal bands as it did to three.

        Raises:
            ValueError: If this one is of other bands than these, and not of three.
        """
        if channels == self.channels:
            return dataclasses.replace(self, range=range, dtype=dtype)
        if self.channels != 3:
            raise ValueError(
                f"a normalisation of {self.channels} bands does not fit images of {channels}"
            )
        kept = 3 if channels > 3 else 0
        mean, std = (
            (*values[:kept], *[sum(values) / 3] * (channels - kept))
            for values in (self.mean, self.std)
        )
        return dataclasses.replace(
            self,
            channel_order=self.channel_order if kept else "rgb",
            mean=mean,
            std=tuple(value * channels / 3 for value in std),
            range=range,
            dtype=dtype,
        )

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain values, for JSON."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> Preprocessing:
        """The inverse of `to_dict`; lists become tuples."""

        def tuples(value: Any) -> Any:
            return tuple(map(tuples, value)) if isinstance(value, list) else value

        return cls(**{name: tuples(value) for name, value in fields.items()})


CAFFE = Preprocessing()
"""What networks trained with Caffe on ImageNet expect."""


@dataclasses.dataclass(frozen=True)
class Inputs:
    """What a network reads of an example.

    Attributes:
        entries: For each input of the network its name, and the modalities it reads with their
            normalisation; the channels of several modalities are joined (early fusion).

    Example:
        >>> color, depth = Preprocessing(), Preprocessing("rgb", (7.844,), (1.0,), log=True)
        >>> Inputs.of({"image": {"image": color, "depth": depth}}).channels
        {'image': 4}
    """

    entries: tuple[tuple[str, tuple[tuple[str, Preprocessing], ...]], ...]

    @classmethod
    def of(
        cls, given: Preprocessing | Inputs | Mapping[str, Mapping[str, Preprocessing]]
    ) -> Inputs:
        """The inputs of a network that reads images alone, or of named inputs of modalities."""
        if isinstance(given, Inputs):
            return given
        if isinstance(given, Preprocessing):
            given = {"image": {"image": given}}
        return cls(tuple((name, tuple(parts.items())) for name, parts in given.items()))

    @property
    def modalities(self) -> tuple[str, ...]:
        """The modalities that are read, each once."""
        return tuple(dict.fromkeys(name for _, parts in self.entries for name, _ in parts))

    @property
    def channels(self) -> dict[str, int]:
        """Channels of each input, for `create_model`."""
        return {name: sum(part.channels for _, part in parts) for name, parts in self.entries}

    def preprocessing(self, modality: str) -> Preprocessing:
        """How a modality is normalised; Caffe's way if it is not read."""
        found = (part for _, parts in self.entries for name, part in parts if name == modality)
        return next(found, CAFFE)

    def with_range(self, low: float, high: float) -> Inputs:
        """These inputs for images, as float32, of which other values are black and white.

        Raises:
            ValueError: If no image is read, or the range is empty.
        """
        if "image" not in self.modalities:
            raise ValueError(f"the network reads {', '.join(self.modalities)}; a range is of image")
        entries = {
            name: {
                read: part.for_images(part.channels, ((low, high),) * part.channels, "float32")
                if read == "image"
                else part
                for read, part in parts
            }
            for name, parts in self.entries
        }
        return Inputs.of(entries)

    def apply(
        self, arrays: Mapping[str, Array | np.ndarray] | Array | np.ndarray
    ) -> Float[Array, "b h w _"] | dict[str, Float[Array, "b h w _"]]:
        """Normalises a batch on the device.

        Args:
            arrays: Batches by modality, more than are read will do; an array where one is read.

        Returns:
            float32 (b, h, w, c); by the input's name where there are several inputs.

        Raises:
            ValueError: If a modality is missing.
        """
        if not isinstance(arrays, Mapping):
            arrays = {self.modalities[0]: arrays}
        if missing := [name for name in self.modalities if name not in arrays]:
            raise ValueError(
                f"the network reads {', '.join(self.modalities)}; {', '.join(missing)} is missing"
            )
        inputs = {
            name: jnp.concatenate([part.apply(arrays[read]) for read, part in parts], axis=-1)
            for name, parts in self.entries
        }
        return inputs if len(inputs) > 1 else next(iter(inputs.values()))

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain values, for JSON."""
        return {
            name: {modality: part.to_dict() for modality, part in parts}
            for name, parts in self.entries
        }

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> Inputs:
        """The inverse of `to_dict`."""
        entries = {
            name: {modality: Preprocessing.from_dict(part) for modality, part in parts.items()}
            for name, parts in fields.items()
        }
        return cls.of(entries)
