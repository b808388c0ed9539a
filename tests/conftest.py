"""Settings and fixtures that every test shares."""

from __future__ import annotations

import os
from pathlib import Path

# The scripts would keep compiled programs in the user's cache directory.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", "")

import jax
import pytest

# Mixed ranks and dtypes are bugs here: the package must broadcast and convert on purpose.
jax.config.update("jax_numpy_rank_promotion", "raise")

SHARED = Path(__file__).resolve().parents[2] / "shared"


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real data and weights beside the repository; skips where it is absent."""
    if not SHARED.is_dir():
        pytest.skip(f"real data and weights are not at {SHARED}")
    return SHARED
