"""From stored pixels (uint8 pictures, 16-bit depth) to the floats a network was trained on.

`Preprocessing` normalises one modality of an example; `Inputs` says which modalities a network
reads, and in which of its inputs.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt


@dataclasses.dataclass(frozen=True)
class Preprocessing:
    """What a network expects of a modality; it belongs to the parameters and travels with them.

    The default is Caffe's: BGR on the 0..255 scale with the ImageNet mean subtracted.

    Attributes:
        channel_order: Order of the channels the network reads; ``rgb`` is as they are stored.
        mean: Subtracted after scaling, in that order; one value for each channel.
        std: Divided by after that.
        scale: Factor on the stored values before the mean.
        log: Take the natural logarithm of the scaled values, at least 1 (depth).

    Raises:
        ValueError: If the numbers of values differ, or one that divides is 0.

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

    def __post_init__(self) -> None:
        if self.channel_order not in ("bgr", "rgb"):
            raise ValueError(f"channel_order must be bgr or rgb, got {self.channel_order!r}")
        if len(self.mean) not in (1, 3) or len(self.std) != len(self.mean):
            raise ValueError(f"mean and std need 3 values each, or 1 for depth; got {self}")
        if 0 in (*self.std, self.scale):
            raise ValueError(f"std and scale need values of which none is 0; got {self}")

    @property
    def channels(self) -> int:
        """Channels of the modality."""
        return len(self.mean)

    def apply(
        self, images: UInt[Array | np.ndarray, "b h w *c"]
    ) -> Float[Array, "b h w {self.channels}"]:
        """Normalises a batch on the device, to float32.

        Args:
            images: RGB, 0..255; depth without an axis for the one channel.

        Raises:
            ValueError: If the images have another number of channels.
        """
        x = jnp.asarray(images, jnp.float32)
        if self.channels == 1 and x.ndim == 3:
            x = x[..., None]
        if x.ndim != 4 or x.shape[-1] != self.channels:
            raise ValueError(
                f"expected a batch of {self.channels}-channel images, got an array of the shape "
                f"{images.shape}"
            )
        if self.channel_order == "bgr":
            x = x[..., ::-1]
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

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain values, for JSON."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> Preprocessing:
        """The inverse of `to_dict`; lists become tuples."""
        values: Any = {k: tuple(v) if isinstance(v, list) else v for k, v in fields.items()}
        return cls(**values)


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
