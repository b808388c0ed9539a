"""Settings and fixtures that every test shares."""

from __future__ import annotations

import atexit
import gc
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    # Tests compile many programs twice: in both workers, in scripts, or as a function made anew.
    # The first process makes the folder; its workers and the scripts inherit the variable.
    os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="fcn_jax_tests_")
    atexit.register(shutil.rmtree, os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")

# Compiling takes much of the tests' time, and unoptimised machine code is right as well; the older
# emitters of fused operations make it in less than half the time, and one module a program instead
# of several makes a gradient in half to three quarters of that. A test at full size asks for an
# optimised program itself.
os.environ.setdefault(
    "XLA_FLAGS",
    "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
    " --xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1",
)

import annotations
import jax
import numpy as np
import pytest
from jaxtyping import config

annotations.check_package("fcn_jax")

# Tracing makes objects by the million, few of which are garbage: looking for it 70 times less often
# takes a fifth off tests that mostly trace, such as test_backbones.py.
gc.set_threshold(50_000)

# Mixed ranks and dtypes are bugs here: the package must broadcast and convert on purpose.
jax.config.update("jax_numpy_rank_promotion", "raise")

SHARED = Path(__file__).resolve().parents[2] / "shared"


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real data and weights beside the repository; skips where it is absent."""
    if not SHARED.is_dir():
        pytest.skip(f"real data and weights are not at {SHARED}")
    return SHARED


@pytest.fixture(autouse=True)
def traced_programs_are_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """A command that a test calls begins to keep them; the tests after it are not to."""
    from fcn_jax import programs

    monkeypatch.setattr(programs, "_folder", None)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.fixture
def unchecked_annotations() -> Iterator[None]:
    """What breaks an annotation reaches the function, whose own message can then be tested."""
    config.update("jaxtyping_disable", True)
    yield
    config.update("jaxtyping_disable", False)


@pytest.fixture(scope="module")
def plain_forms() -> Iterator[None]:
    """Compile in half the time; for modules that test something else, on networks of few classes.

    The plain transposed convolution takes the square of the classes: a second a step for 20.
    """
    from fcn_jax import ops

    with ops.plain_forms():
        yield


@pytest.fixture
def exact_products() -> Iterator[None]:
    """Accelerators round the factors of matrix products unless told otherwise."""
    with jax.default_matmul_precision("highest"):
        yield


@pytest.fixture
def one_torch_thread() -> Iterator[None]:
    """PyTorch's threads spend several times the work of small maps on waiting."""
    torch = pytest.importorskip("torch")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
