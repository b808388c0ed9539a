"""Counts what XLA compiles: whole programs, and also the small ones of single operations."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import jax

_EVENT = "/jax/core/compile/backend_compile_duration"
_compiled: list[str] = []


def _listen(event: str, duration_secs: float, **kwargs: object) -> None:
    del duration_secs
    if event == _EVENT:
        _compiled.append(str(kwargs.get("fun_name", "")))


jax.monitoring.register_event_duration_secs_listener(_listen)


@contextlib.contextmanager
def counted_compilations() -> Iterator[list[str]]:
    """A list that, after the block, names what was compiled inside it."""
    before, names = len(_compiled), []
    yield names
    names += _compiled[before:]
