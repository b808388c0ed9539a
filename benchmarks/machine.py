"""The machine and the environment that a benchmark runs in."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import sys
from pathlib import Path

# Two levers that gain on some CPUs, for whatever runs in the process: large pages for what malloc
# maps, and XLA without its YNN fusions, which are slower than its own matrix products in float32.
LEVERS = {
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
    "XLA_FLAGS": "--xla_cpu_experimental_ynn_fusion_type=",
}
_SEPARATORS = {"GLIBC_TUNABLES": ":", "XLA_FLAGS": " "}
_SWITCHES = (*LEVERS, "OMP_NUM_THREADS", "FCN_JAX_PLAIN_OPS", "JAX_DEFAULT_MATMUL_PRECISION")
_PACKAGES = ("jax", "jaxlib", "flax", "torch", "onnxruntime", "numpy")
_INSTRUCTIONS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16")


def pull_levers() -> None:
    """Starts this program again with both levers set, unless they are.

    glibc reads its tunables before a program begins.
    """
    missing = {name: value for name, value in LEVERS.items() if value not in os.getenv(name, "")}
    if not missing:
        return
    for name, value in missing.items():
        given = os.getenv(name)
        os.environ[name] = f"{given}{_SEPARATORS[name]}{value}" if given else value
    sys.stdout.flush()
    os.execv(sys.executable, sys.orig_argv)


def describe() -> list[str]:
    """Lines that tell hardware, versions and settings."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    model, instructions = _cpu()
    versions = [f"python {platform.python_version()}"]
    for package in _PACKAGES:
        try:
            versions.append(f"{package} {importlib.metadata.version(package)}")
        except importlib.metadata.PackageNotFoundError:
            versions.append(f"no {package}")
    switches = [f"{name}={os.environ[name]}" for name in _SWITCHES if os.environ.get(name)]
    return [
        f"CPU          {model}, {cores} cores, {instructions or 'unknown instructions'}",
        f"versions     {', '.join(versions)}",
        f"environment  {', '.join(switches) or 'default'}",
    ]


def _cpu() -> tuple[str, str]:
    """Model, and which of the vector instructions it has."""
    path = Path("/proc/cpuinfo")
    fields: dict[str, str] = {}
    if path.is_file():
        pairs = (line.partition(":") for line in path.read_text().splitlines())
        fields = {name.strip(): value.strip() for name, _, value in pairs}
    flags = fields.get("flags", "").split()
    known = " ".join(name for name in _INSTRUCTIONS if name in flags)
    return fields.get("model name") or platform.processor() or platform.machine(), known
