"""The check of annotations at run time, shapes and types of arrays included.

By beartype, for which an int is a float, as for PEP 484; and by jaxtyping, which binds the names of
axes, around it. That takes tens of microseconds a call, several times what beartype alone does, so
it is for functions of arrays alone.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import re
from collections.abc import Callable
from typing import Any, get_args

import jaxtyping
from beartype import BeartypeConf, beartype
from beartype.roar import BeartypeCallHintForwardRefException

check = beartype(conf=BeartypeConf(is_pep484_tower=True, violation_type=TypeError))


def check_package(name: str) -> None:
    """Checks the functions and dataclasses of a package, which must not be imported yet."""
    always = jaxtyping.jaxtyped

    def jaxtyped(typechecker: Any) -> Callable[[Any], Any]:
        def decorate(thing: Any) -> Any:
            if dataclasses.is_dataclass(thing) and not of_arrays(thing.__init__):
                thing.__init__ = checked_from_its_first_call(thing.__init__, check)
            elif inspect.isfunction(thing):
                kind = always(typechecker=typechecker) if of_arrays(thing) else check
                thing = checked_from_its_first_call(thing, kind)
            else:
                thing = always(typechecker=typechecker)(thing)
            return thing

        return decorate

    jaxtyping.jaxtyped = jaxtyped  # by this name the hook decorates
    jaxtyping.install_import_hook(name, "annotations.check")


def checked_from_its_first_call(
    function: Callable[..., Any], decorator: Callable[[Any], Any]
) -> Callable[..., Any]:
    """The function, checked unless jaxtyping is disabled.

    Its check is made when it is first called: making those of all functions takes five seconds.
    """
    checked = None

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        nonlocal checked
        if jaxtyping.config.jaxtyping_disable:
            return function(*args, **kwargs)
        checked = checked or decorator(function)
        try:
            return checked(*args, **kwargs)
        except BeartypeCallHintForwardRefException:  # a type that is imported for pyright alone
            return function(*args, **kwargs)

    return call


def of_arrays(function: Any) -> bool:
    """Whether its annotations, which are text, name types of jaxtyping or aliases of them."""
    names = set(re.findall(r"\w+", " ".join(map(str, function.__annotations__.values()))))
    found = (function.__globals__.get(name) for name in names)
    return any(
        type(each).__module__.startswith("jaxtyping")
        for known in found
        for each in (known, *get_args(known))
    )
