"""The run that the campaigns torture: three stages of a tiny network, and its bits."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np

STAGES = ("fcn32s", "fcn16s", "fcn8s")
FIELDS = {
    "dataset_options.train": 8,
    "dataset_options.val": 3,
    "dataset_options.size": 48,
    "backbone": "alexnet",
    "width": 0.05,
    "fc_width": 8,
    "batch_size": 4,
    "epochs": "()",
    "steps": "(5,4,6)",
    "checkpoint_every": 2,
    "eval_every": 3,
    "log_every": 1,
    "samples": 1,
}


def arguments(place: Path, **fields: Any) -> list[str]:
    """Of the command ``train``; run and data in a folder."""
    fields = {**FIELDS, "data_dir": place / "data", **fields}
    return [
        "--config=quickstart",
        f"--workdir={place / 'run'}",
        *(f"--config.{name}={value}" for name, value in fields.items()),
    ]


def bits(workdir: Path) -> dict[str, str]:
    """A digest of all that a finished run says and is, by name, times left out.

    Checkpoints are read by orbax alone. Of the optimiser, too, every array counts.
    """
    import jax
    import orbax.checkpoint as ocp

    found = {}
    for stage in STAGES:
        steps = sorted(
            (p for p in (workdir / "checkpoints" / stage).iterdir() if p.name.isdecimal()),
            key=lambda path: int(path.name),
        )
        found[f"{stage} steps"] = " ".join(path.name for path in steps)
        tree = ocp.PyTreeCheckpointer().restore(steps[-1] / "state")
        for name, value in jax.tree_util.tree_leaves_with_path(tree):
            array = np.asarray(value)
            digest = hashlib.sha256(f"{array.dtype}{array.shape}".encode() + array.tobytes())
            found[f"{stage}{jax.tree_util.keystr(name)}"] = digest.hexdigest()
    records = []
    for line in (workdir / "metrics.jsonl").read_text().splitlines():
        record = json.loads(line)
        for measured in ("images_per_second", "wall_time", "peak_memory_gib"):
            record.pop(measured, None)
        records.append(record)
    found["metrics.jsonl"] = digest_of(json.dumps(records).encode())
    for path in sorted((workdir / "report").rglob("*")) + sorted((workdir / "samples").iterdir()):
        if path.is_file() and path.name != "index.html":  # tells times and commands
            content = path.read_bytes()
            if path.name == "scores.json":  # names the prepared copy, which depends on the place
                content = json.dumps({**json.loads(content), "data": ""}).encode()
            found[str(path.relative_to(workdir))] = digest_of(content)
    return found


def digest_of(content: bytes) -> str:
    """Some hex digits that tell contents apart."""
    return hashlib.sha256(content).hexdigest()


def differences(found: dict[str, str], expected: dict[str, str]) -> list[str]:
    """Names under which two runs differ, of those that the expected one has."""
    return [name for name in expected if found.get(name) != expected[name]]
