"""Peak memory of inference and of training FCN-8s on the CPU, ours beside PyTorch's.

    python benchmarks/memory.py [--shape=1x500x375] [--padding=reference] [--precision=float32]

Each side runs in a fresh process, as a user's script would: it makes a network, compiles if it
must, and does a few passes or steps. Prints the largest resident set so far (getrusage) after
each phase, which tells where the peak comes from, and the ratio of both peaks. All in GiB. Ours
also prints what XLA planned for the compiled program.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

from absl import app, flags, logging
from cases import TASKS, Case, parse_shape

SIDES = ("fcn_jax", "PyTorch")

TASK_LIST = flags.DEFINE_list("tasks", ",".join(TASKS), "What is done.")
SHAPE = flags.DEFINE_string("shape", "1x500x375", "BATCHxHEIGHTxWIDTH.")
PADDING = flags.DEFINE_enum("padding", "reference", ("reference", "same"), "Of both networks.")
PRECISION = flags.DEFINE_enum("precision", "float32", ("float32", "bfloat16"), "Of both.")
WIDTH = flags.DEFINE_float("width", 1.0, "Multiplier of the channels, fc6 and fc7 included.")
PASSES = flags.DEFINE_integer("passes", 3, "Passes or steps after the first.")
SIDE = flags.DEFINE_enum("side", None, SIDES, "Measure this one, in this process.")


def peak() -> float:
    """The largest resident set of this process so far, in GiB."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30


def measure_ours(case: Case) -> dict[str, float]:
    """Peaks after each phase, as train.py and predict.py go through them."""
    import jax
    import jax_fcn8s

    from fcn_jax.models.fcn import initial_params

    jax.config.update("jax_platforms", "cpu")
    peaks = {"imports": peak()}
    params = initial_params(jax_fcn8s.build_model(case), jax.random.key(0))
    jax.block_until_ready(params)
    peaks["parameters"] = peak()
    sides = {"inference": jax_fcn8s.Inference, "training": jax_fcn8s.Training}
    side: Any = sides[case.task](case, PRECISION.value, params)
    del params
    peaks["compiled"] = peak()
    peaks |= measure_passes(side)
    plan = side.compiled.memory_analysis()
    peaks["planned arguments"] = plan.argument_size_in_bytes / 2**30
    peaks["planned temporaries"] = plan.temp_size_in_bytes / 2**30
    return peaks


def measure_theirs(case: Case) -> dict[str, float]:
    """Peaks of PyTorch after each phase, eager."""
    import torch_fcn8s

    peaks = {"imports": peak()}
    sides = {"inference": torch_fcn8s.Inference, "training": torch_fcn8s.Training}
    side = sides[case.task](case, PRECISION.value, "eager", "cpu")
    peaks["parameters"] = peak()
    return peaks | measure_passes(side)


def measure_passes(side: Any) -> dict[str, float]:
    """Peaks after the first and after the last pass or step."""
    side.run(1)
    first = peak()
    side.run(PASSES.value)
    return {"first pass": first, "last pass": peak()}


def measure_apart(side: str, task: str) -> dict[str, float]:
    """Peaks of one side in a fresh process, under the flags of this one."""
    command = [sys.executable, str(Path(__file__).resolve()), *sys.argv[1:]]
    result = subprocess.run(
        [*command, f"--side={side}", f"--tasks={task}"], stdout=subprocess.PIPE, text=True
    )
    if result.returncode:
        raise SystemExit(f"memory.py: {side} ended {task} with {result.returncode}; see above")
    return json.loads(result.stdout.splitlines()[-1])


def main(argv: list[str]) -> None:
    """Measures and prints."""
    del argv
    logging.set_verbosity(logging.WARNING)
    case = Case(TASK_LIST.value[0], PADDING.value, parse_shape(SHAPE.value), WIDTH.value)
    if SIDE.value:
        measure = measure_ours if SIDE.value == "fcn_jax" else measure_theirs
        print(json.dumps(measure(case)))
        return
    for task in TASK_LIST.value:
        print(f"\n### {task}, {PADDING.value} padding, {SHAPE.value}, {PRECISION.value}, in GiB\n")
        last = {}
        for side in SIDES:
            peaks = measure_apart(side, task)
            cells = ", ".join(f"{phase} {value:.2f}" for phase, value in peaks.items())
            print(f"{side:8} {cells}", flush=True)
            last[side] = peaks["last pass"]
        print(f"{'ratio':8} {last['fcn_jax'] / last['PyTorch']:.2f}", flush=True)


if __name__ == "__main__":
    app.run(main)
