"""Array operations the networks are made of: pure functions, no parameters, no modules.

Some have two forms. The plain form is what `jax.lax` offers, and defines the operation. The fast
form computes the same function (up to rounding) on the CPU, where XLA's own is slow, or on CUDA
devices. It is chosen when a program is lowered for one of those, never by the caller. An operation
that would gain nothing has the plain form only. Gains in the docstrings are time, fast over plain,
on 2 cores of a shared machine with AVX-512, in float32, for VGG16's layers at 500x375 pixels with
the reference padding unless they say otherwise; ``benchmarks/operations.py`` measures them again.

All have derivatives of any order, in forward and reverse mode (`jax.jvp`, `jax.jacfwd`,
Hessian-vector products); `fcn_jax.ops.multilinear` says how.

`plain_forms` asks for the plain form everywhere, for study or on a new backend. In a program for
images of any size (`jax.export`), forms that depend on sizes are plain.
"""

from fcn_jax.ops.convolutions import (
    convolution,
    convolution_prepared,
    kernel_formats,
    prepared_kernel,
    takes_prepared_kernel,
)
from fcn_jax.ops.dispatch import plain_chosen, plain_forms, sizes_known
from fcn_jax.ops.pooling import average_pool, local_response_norm, max_pool
from fcn_jax.ops.upsampling import (
    bilinear_kernel,
    conv_transpose,
    interpolate_on_canvas,
    resize_bilinear_on_canvas,
)

__all__ = [
    "average_pool",
    "bilinear_kernel",
    "conv_transpose",
    "convolution",
    "convolution_prepared",
    "interpolate_on_canvas",
    "kernel_formats",
    "local_response_norm",
    "max_pool",
    "plain_chosen",
    "plain_forms",
    "prepared_kernel",
    "resize_bilinear_on_canvas",
    "sizes_known",
    "takes_prepared_kernel",
]
