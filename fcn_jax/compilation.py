"""Where compiled programs are kept, so that the second start of a script compiles nothing.

For the scripts; importing the package changes no setting of jax.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path


def keep_compiled_programs() -> Path | None:
    """Turns jax's persistent compilation cache on, in the user's cache directory.

    ``JAX_COMPILATION_CACHE_DIR`` chooses another directory, and empty none at all.

    Returns:
        The directory, or None where the cache stays off (also if it cannot be written).
    """
    import jax

    given = os.environ.get("JAX_COMPILATION_CACHE_DIR")
    if given is not None:
        return Path(given) if given else None
    directory = _user_cache() / "fcn_jax" / "compiled"
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError:
        return None
    jax.config.update("jax_compilation_cache_dir", str(directory))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
    return directory


def _user_cache() -> Path:
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA", Path.home() / "AppData" / "Local"))
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
