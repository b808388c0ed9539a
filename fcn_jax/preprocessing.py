"""From uint8 RGB pixels, as files store them, to the floats a network was trained on."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

import jax.numpy as jnp
from jaxtyping import Array, Float, Int, UInt8


@dataclasses.dataclass(frozen=True)
class Preprocessing:
    """What a network expects of its input; it belongs to the parameters and travels with them.

    The default is Caffe's: BGR on the 0..255 scale with the ImageNet mean subtracted.

    Attributes:
        channel_order: Order of the channels the network reads.
        mean: Subtracted after scaling, in that order.
        std: Divided by after that.
        scale: Factor on the 0..255 values before the mean.
    """

    channel_order: Literal["bgr", "rgb"] = "bgr"
    mean: tuple[float, ...] = (104.00699, 116.66877, 122.67892)
    std: tuple[float, ...] = (1.0, 1.0, 1.0)
    scale: float = 1.0

    def __post_init__(self) -> None:
        if self.channel_order not in ("bgr", "rgb"):
            raise ValueError(f"channel_order must be bgr or rgb, got {self.channel_order!r}")
        if len(self.mean) != 3 or len(self.std) != 3 or 0 in (*self.std, self.scale):
            raise ValueError(
                f"mean and std need 3 values each, std and scale none that is 0; got {self}"
            )

    def apply(
        self, images: UInt8[Array, "b h w 3"], size: Int[Array, "b 2"] | None = None
    ) -> Float[Array, "b h w 3"]:
        """Normalises a batch on the device.

        Args:
            images: RGB, 0..255.
            size: True height and width of each image on the canvas. Pixels beyond become
                exactly 0, the value of the networks' own border padding.

        Returns:
            float32.
        """
        x = jnp.asarray(images, jnp.float32)
        if self.channel_order == "bgr":
            x = x[..., ::-1]
        mean, std = (jnp.array(v, jnp.float32)[None, None, None] for v in (self.mean, self.std))
        x = (x * self.scale - mean) / std
        if size is None:
            return x
        rows = jnp.arange(x.shape[1])[None, :] < size[:, 0, None]
        columns = jnp.arange(x.shape[2])[None, :] < size[:, 1, None]
        return jnp.where((rows[:, :, None] & columns[:, None, :])[..., None], x, 0.0)

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain values, for JSON."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> Preprocessing:
        """The inverse of `to_dict`; lists become tuples."""
        values: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value
            for name, value in fields.items()
        }
        return cls(**values)
