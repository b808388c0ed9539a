"""Operations that are linear in each of their arrays, as primitives of jax.

Of ``y = f(a, b)``, linear in both, the sum of ``y * g`` is linear in a, b and g. So the gradients
to a and b are functions of the same kind, of the two others, and each other's gradients. Given one
function for each, all derivatives of any order, forward and reverse, are computed by them.
`jax.custom_vjp` knows no forward mode, and of `jax.custom_jvp` jax finds the transpose itself.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.core import ShapedArray
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir


def multilinear(
    name: str,
    compute: Callable[..., Any],
    shape_of: Callable[..., tuple[int, ...]],
    parts: Sequence[str],
    constants: int = 0,
    fold: Callable[..., Any] | None = None,
) -> Callable[..., Any]:
    """An operation on arrays that are called ``parts``, of which one is computed from the others.

    Args:
        compute: ``compute(*constants, *others, of=part, **options)``, the others in their order.
        shape_of: The shape of its result, from the same arguments.
        constants: How many arrays come first that nothing is differentiated by.
        fold: Given those arguments and ``axes``, a function of arrays with one more axis (None
            where an array has none) for `jax.vmap`, which returns the result with that axis first;
            None where it has no better one than ``compute``, mapped.

    Returns:
        A function like ``compute``; options must be hashable.
    """
    primitive = Primitive(name)

    def others(of: str) -> list[str]:
        return [part for part in parts if part != of]

    @functools.lru_cache(256)
    def program(**options: Any) -> Callable[..., Any]:
        return jax.jit(functools.partial(compute, **options))

    primitive.def_impl(lambda *arrays, **options: program(**options)(*arrays))
    primitive.def_abstract_eval(
        lambda *arrays, **options: ShapedArray(shape_of(*arrays, **options), arrays[-1].dtype)
    )
    mlir.register_lowering(primitive, mlir.lower_fun(compute, multiple_results=False))

    def derivative(index: int) -> Callable[..., Any]:
        def by_tangent(tangent: Any, *arrays: Any, **options: Any) -> Any:
            return primitive.bind(*arrays[:index], tangent, *arrays[index + 1 :], **options)

        return by_tangent

    arguments = range(constants, constants + len(parts) - 1)
    ad.defjvp(primitive, *[None] * constants, *map(derivative, arguments))

    def transpose(gradient: Any, *arrays: Any, of: str, **options: Any) -> list[Any]:
        unknown = next(i for i, array in enumerate(arrays) if ad.is_undefined_primal(array))
        wanted = others(of)[unknown - constants]
        known = dict(zip(others(of), arrays[constants:], strict=True)) | {of: gradient}
        linear = [known[part] for part in others(wanted)]
        result: list[Any] = [None] * len(arrays)
        result[unknown] = primitive.bind(*arrays[:constants], *linear, of=wanted, **options)
        return result

    ad.primitive_transposes[primitive] = transpose

    def batched(arrays: Sequence[Any], axes: Sequence[Any], **options: Any) -> tuple[Any, int]:
        better = fold and fold(*arrays, axes=axes, **options)
        mapped = better or jax.vmap(functools.partial(compute, **options), in_axes=tuple(axes))
        return mapped(*arrays), 0

    batching.primitive_batchers[primitive] = batched
    return primitive.bind
