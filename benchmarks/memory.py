"""Peak memory of inference and of training FCN-8s on the CPU, ours beside PyTorch's.

    python benchmarks/memory.py [--shape=1x500x375] [--padding=reference] [--precision=float32]

Each side runs in a fresh process, as a user's script would: it makes a network, compiles if it
must, and does a few passes or steps. Our inference is that of a `Predictor` whose weights come from
a file; other parameters are drawn. Prints the largest resident set so far (getrusage) after
each phase, which tells where the peak comes from, and the ratio of both peaks. All in GiB. Ours
also prints what XLA planned for the compiled program.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import tempfile
from collections.abc import Callable
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
WEIGHTS = flags.DEFINE_string("weights", "", "With --side: the file of our weights.")
SIDE = flags.DEFINE_enum("side", None, (*SIDES, "weights"), "Do this one, in this process.")


def peak() -> float:
    """The largest resident set of this process so far, in GiB."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30


def measure_ours(case: Case) -> dict[str, float]:
    """Peaks after each phase, as train.py and predict.py go through them."""
    import jax
    import jax_fcn8s

    from fcn_jax import load
    from fcn_jax.models.fcn import initial_params

    jax.config.update("jax_platforms", "cpu")
    peaks = {"imports": peak()}
    if case.task == "inference":
        given: Any = {"network": "fcn8s", "padding": case.padding, "precision": PRECISION.value}
        predictor: Any = load(WEIGHTS.value, **given, batch_size=case.shape[0])
        peaks["parameters"] = peak()
        images = list(case.random_batch()["image"])
        return peaks | measure_passes(lambda passes: predictor(images * passes))
    params = [initial_params(jax_fcn8s.build_model(case), jax.random.key(0))]
    jax.block_until_ready(params)
    peaks["parameters"] = peak()
    side: Any = jax_fcn8s.Training(case, PRECISION.value, params.pop())
    peaks["compiled"] = peak()
    peaks |= measure_passes(side.run)
    plan = side.compiled.memory_analysis()
    peaks["planned arguments"] = plan.argument_size_in_bytes / 2**30
    peaks["planned temporaries"] = plan.temp_size_in_bytes / 2**30
    return peaks


def save_random(case: Case, file: str) -> None:
    """Saves random weights."""
    import jax_fcn8s

    from fcn_jax import save_weights

    save_weights(file, jax_fcn8s.random_params(jax_fcn8s.build_model(case)))


def measure_theirs(case: Case) -> dict[str, float]:
    """Peaks of PyTorch after each phase, eager."""
    import torch_fcn8s

    peaks = {"imports": peak()}
    sides = {"inference": torch_fcn8s.Inference, "training": torch_fcn8s.Training}
    side = sides[case.task](case, PRECISION.value, "eager", "cpu")
    peaks["parameters"] = peak()
    return peaks | measure_passes(side.run)


def measure_passes(run: Callable[[int], None]) -> dict[str, float]:
    """Peaks after the first and after the last pass or step."""
    run(1)
    first = peak()
    run(PASSES.value)
    return {"first pass": first, "last pass": peak()}


def measure_apart(side: str, task: str, weights: Path) -> dict[str, float]:
    """Peaks of one side in a fresh process, under the flags of this one."""
    command = [sys.executable, str(Path(__file__).resolve()), *sys.argv[1:]]
    command += [f"--side={side}", f"--tasks={task}", f"--weights={weights}"]
    result = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if result.returncode:
        raise SystemExit(f"memory.py: {side} ended {task} with {result.returncode}; see above")
    return json.loads(result.stdout.splitlines()[-1])


def main(argv: list[str]) -> None:
    """Measures and prints."""
    del argv
    logging.set_verbosity(logging.WARNING)
    case = Case(TASK_LIST.value[0], PADDING.value, parse_shape(SHAPE.value), WIDTH.value)
    if SIDE.value == "weights":  # apart, as what this process held would count in those it starts
        save_random(case, WEIGHTS.value)
        print("{}")
        return
    if SIDE.value:
        measure = measure_ours if SIDE.value == "fcn_jax" else measure_theirs
        print(json.dumps(measure(case)))
        return
    what = f"{PADDING.value} padding, {SHAPE.value}, {PRECISION.value}, in GiB"
    with tempfile.TemporaryDirectory() as folder:
        weights = Path(folder, "weights.npz")
        measure_apart("weights", TASKS[0], weights)
        for task in TASK_LIST.value:
            print(f"\n### {task}, {what}\n")
            last = {}
            for side in SIDES:
                peaks = measure_apart(side, task, weights)
                cells = ", ".join(f"{phase} {value:.2f}" for phase, value in peaks.items())
                print(f"{side:8} {cells}", flush=True)
                last[side] = peaks["last pass"]
            print(f"{'ratio':8} {last['fcn_jax'] / last['PyTorch']:.2f}", flush=True)


if __name__ == "__main__":
    app.run(main)
