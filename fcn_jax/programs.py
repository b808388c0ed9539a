"""How programs are traced and compiled, and how long they are kept: in memory, and between runs."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import functools
import hashlib
import os
import sys
import threading
from collections.abc import Callable, Hashable, Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any, Generic, TypeVar

import flax
import jax
import jaxlib
import numpy as np

from fcn_jax.ops.dispatch import plain_chosen

T = TypeVar("T")

# ======================================================================== options


def least_memory(platform: str) -> dict[str, str]:
    """Options of `jax.jit` for a program that runs a whole network.

    On the CPU they choose the order of operations that takes the least memory; by default XLA
    prefers one that leaves most of them independent. FCN-8s with VGG16 takes a third of the memory
    for an image of 1024x1024 pixels in no more time; a training step two thirds, and 0.93 of the
    time on 2 cores, as the system hands out memory page by page at each step.
    """
    options = {"xla_cpu_scheduler_type": "CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED"}
    return options if platform == "cpu" else {}


_TARGET = jax.make_user_context("")


def compiling_for(platform: str) -> contextlib.AbstractContextManager[None]:
    """Traces what a ``with`` block calls for devices of a platform: ``cpu``, ``gpu`` or ``tpu``."""
    return _TARGET(platform)


def target_platform() -> str:
    """The platform that a program is traced for; outside `compiling_for` that of this process."""
    return _TARGET.value or jax.default_backend()


# ======================================================================== in memory


class Programs(Generic[T]):
    """Programs of a function, compiled with `least_memory` for each set of shapes and options.

    `jax.jit` keeps all programs of a function as long as it lives, and each holds tens of MiB. Here
    each is of a function of its own, which goes when the program is the least recently used and
    there are too many.

    Args:
        function: Of arrays, and of options by keyword that are hashable.
    """

    def __init__(self, function: Callable[..., T]) -> None:
        self._function = function
        self._kept: collections.OrderedDict[Hashable, Callable[..., T]] = collections.OrderedDict()
        self._lock = threading.Lock()

    def __call__(self, most: int, variables: Any, *arrays: Any, **options: Hashable) -> T:
        """Runs the program for these arrays, and keeps at most so many, over all callers."""
        leaves, tree = jax.tree.flatten((variables, arrays))
        shapes = tuple((x.shape, str(x.dtype)) for x in leaves)
        key = (tuple(options.items()), tree, shapes, plain_chosen())
        with self._lock:
            program = self._kept.get(key) or self._found(options, tree, shapes)
            self._kept[key] = program
            self._kept.move_to_end(key)
            while len(self._kept) > most:
                self._kept.popitem(last=False)
        return program(variables, *arrays)

    def lower(
        self, platform: str, in_shardings: Any, *arrays: Any, **options: Hashable
    ) -> jax.stages.Lowered:
        """The program for arrays, or their shapes, lowered for a platform; it is not kept."""
        return self._new(options, platform, in_shardings).lower(*arrays)

    def _new(self, options: Mapping[str, Hashable], platform: str, in_shardings: Any = None) -> Any:
        return jax.jit(
            self._traced_for(platform, options),
            in_shardings=in_shardings,
            compiler_options=least_memory(platform),
        )

    def _traced_for(self, platform: str, options: Mapping[str, Hashable]) -> Callable[..., T]:
        function = self._function

        def run(*arrays: Any) -> T:
            with compiling_for(platform):
                return function(*arrays, **options)

        run.__name__ = run.__qualname__ = function.__name__
        return run

    def _found(
        self, options: Mapping[str, Hashable], tree: Any, shapes: tuple[Any, ...]
    ) -> Callable[..., T]:
        """The program that an earlier run has traced, or a new one."""
        platform = jax.default_backend()
        if _folder is None or platform != "cpu" or jax.device_count() > 1:
            return self._new(options, platform)
        try:
            file = _file_of(self._function, options, tree, shapes)
        except TypeError:  # a network of one's own, whose code may change
            return self._new(options, platform)
        run = self._traced_for(platform, options)

        def of_leaves(*leaves: Any) -> T:
            variables, arrays = jax.tree.unflatten(tree, leaves)
            return run(variables, *arrays)

        of_leaves.__name__ = of_leaves.__qualname__ = run.__name__
        given = [jax.ShapeDtypeStruct(*shape_and_type) for shape_and_type in shapes]
        try:
            traced = _kept_between_runs(file, jax.jit(of_leaves), given)
        except Exception:  # what is wrong with the arrays, jax.jit tells, too
            return self._new(options, platform)
        compiled = jax.jit(traced, compiler_options=least_memory(platform))
        return lambda variables, *arrays: compiled(*jax.tree.leaves((variables, arrays)))


# ======================================================================== between runs

_folder: Path | None = None
"""Where traced programs are kept; None: nowhere."""


def keep_compiled_programs() -> Path | None:
    """Keeps compiled programs in the user's cache directory; None where that cannot be written.

    On a CPU those of `Programs` are kept as they are traced, too: to trace FCN-8s anew takes longer
    than to load what was compiled. ``JAX_COMPILATION_CACHE_DIR`` chooses another directory, and
    empty none at all.
    """
    import platformdirs

    global _folder
    _folder = None
    given = os.environ.get("JAX_COMPILATION_CACHE_DIR")
    if given == "":
        return None
    directory = platformdirs.user_cache_path("fcn_jax", appauthor=False) / "compiled"
    directory = Path(given) if given else directory
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError:
        return None
    _folder = directory
    if given is None:
        jax.config.update("jax_compilation_cache_dir", str(directory))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
    return directory


def _kept_between_runs(file: Path, function: Any, given: list[Any]) -> Callable[..., Any]:
    """A function as it was traced for arrays of the given shapes, now or by an earlier run."""
    from jax import export

    with contextlib.suppress(Exception):  # not there, or damaged: it is traced again
        digest, traced = (content := file.read_bytes())[:32], content[32:]
        if hashlib.sha256(traced).digest() == digest:
            return export.deserialize(bytearray(traced)).call
    exported = export.export(function, platforms=["cpu"])(*given)
    traced = bytes(exported.serialize())
    new = file.with_name(f"{file.name}-{os.getpid()}")
    try:
        new.write_bytes(hashlib.sha256(traced).digest() + traced)
        new.replace(file)
    except OSError:  # such as a full disk: the next run traces again
        with contextlib.suppress(OSError):
            new.unlink(missing_ok=True)
    return exported.call


def _file_of(
    function: Callable[..., Any], options: Mapping[str, Hashable], tree: Any, shapes: Any
) -> Path:
    """The file of a traced program, named by all that tracing depends on.

    Raises:
        TypeError: If that cannot be told.
    """
    assert _folder is not None
    name = _name_of(function)
    told = (name, _told(options), str(tree), shapes, plain_chosen(), _surroundings())
    settings = {name: str(value) for name, value in jax.config.values.items()}
    digest = hashlib.sha256(repr((told, sorted(settings.items()))).encode()).hexdigest()
    return _folder / f"fcn_jax-{digest}-traced"


@functools.cache
def _surroundings() -> tuple[str, ...]:
    """The versions and the source that programs are traced with."""
    versions = (sys.version, *(of.__version__ for of in (jax, jaxlib, flax, np)))
    source = hashlib.sha256()
    files = sorted(Path(__file__).parent.rglob("*.py"))
    if not files:
        raise TypeError("the source cannot be read")
    for file in files:
        source.update(file.read_bytes())
    return (*versions, source.hexdigest())


def _name_of(known: Any) -> str:
    """The name of a function or class of this package, whose source is known; else a TypeError."""
    name = f"{known.__module__}.{known.__qualname__}"
    if not name.startswith("fcn_jax."):
        raise TypeError(f"{name} is not of this package")
    return name


def _told(value: Any) -> str:
    """A value as a text that two values share only if they are equal.

    Raises:
        TypeError: If its class is neither Python's nor of this package.
    """
    if value is None or isinstance(value, str | int | float | Fraction):
        return repr(value)
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key!r}: {_told(of)}" for key, of in value.items()) + "}"
    name = "" if type(value) is tuple else _name_of(type(value))
    if isinstance(value, tuple):
        return f"{name}(" + ", ".join(map(_told, value)) + ")"
    if dataclasses.is_dataclass(value):
        # A Linen module has a parent, too, which is none here.
        fields = [field.name for field in dataclasses.fields(value) if field.name != "parent"]
        return name + _told({field: getattr(value, field) for field in fields})
    raise TypeError(f"{name} has other contents than fields")
