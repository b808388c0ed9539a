"""What a file of this package says of its arrays besides their values: JSON of a few lines."""

from __future__ import annotations

import json

from fcn_jax.models.inputs import Inputs, Preprocessing

MAX_SIZE = 1 << 16


def encode(preprocessing: Preprocessing | Inputs | None) -> bytes:
    """What the network expects of its inputs, as JSON."""
    fields = None if preprocessing is None else Inputs.of(preprocessing).to_dict()
    return json.dumps({"preprocessing": fields}).encode()


def decode(content: bytes) -> Preprocessing | Inputs | None:
    """The inverse of `encode`; nothing is nothing, and an image alone its `Preprocessing`.

    Raises:
        ValueError: If this is no such JSON.
    """
    if not content:
        return None
    if len(content) > MAX_SIZE:
        raise ValueError(f"metadata of {len(content)} bytes")
    try:
        fields = json.loads(content)["preprocessing"]
        if fields is None:
            return None
        inputs = Inputs.from_dict(fields)
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"damaged metadata: {str(error)[:80]}") from error
    return inputs.sole or inputs
