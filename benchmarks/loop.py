"""The training loop beside the bare step: does the loader keep the device busy?

    python benchmarks/loop.py --config=configs/camvid_fcn8s.py [--config.FIELD=VALUE ...]

Times, in turns (A B A B), N steps on one batch that stays on the device, and N steps on batches
from the loader, with the same compiled step. Prints medians and their ratio, and the loader alone.
"""

from __future__ import annotations

import statistics
import time
from typing import Any

import jax
from absl import app, flags
from ml_collections import config_flags

CONFIG = config_flags.DEFINE_config_file("config", "configs/quickstart.py")
STEPS = flags.DEFINE_integer("steps", 10, "Steps in each turn.")
TURNS = flags.DEFINE_integer("turns", 3, "Turns of each kind.")


def main(argv: list[str]) -> None:
    """Measures and prints."""
    del argv
    from fcn_jax import config as configs
    from fcn_jax import data
    from fcn_jax.networks import initial_params
    from fcn_jax.preprocessing import CAFFE, Inputs
    from fcn_jax.training import run
    from fcn_jax.training.checkpoints import build_model
    from fcn_jax.training.step import create_state, data_mesh, make_train_step

    config: Any = CONFIG.value
    source = data.open_source(config.dataset, config.train_split, **configs.data_options(config))
    stage = run.Stage(0, config.stages[-1], 10**6, 1e-12)
    inputs = Inputs.of(CAFFE)
    model = build_model(config, stage.name, source.heads, inputs)
    optimizer = run.make_stage_optimizer(config, model, stage)
    mesh = data_mesh()
    state = create_state(initial_params(model, jax.random.key(0)), optimizer, mesh)
    step = make_train_step(model, optimizer, inputs, mesh, key=jax.random.key(0))

    with run.stage_batches(config, source, stage, mesh) as batches:
        fixed, _ = next(batches)

        def turn(take: Any) -> float:
            nonlocal state
            start = time.perf_counter()
            for _ in range(STEPS.value):
                state, figures = step(state, take())
            jax.block_until_ready((state, figures))
            return (time.perf_counter() - start) / STEPS.value

        turn(lambda: fixed)  # compiles
        times: dict[str, list[float]] = {"bare step": [], "step with loader": []}
        for _ in range(TURNS.value):
            times["bare step"].append(turn(lambda: fixed))
            times["step with loader"].append(turn(lambda: next(batches)[0]))

        start = time.perf_counter()
        for _ in range(5 * STEPS.value):
            next(batches)
        alone = 5 * STEPS.value * config.batch_size / (time.perf_counter() - start)

    medians = {name: statistics.median(values) for name, values in times.items()}
    for name, seconds in medians.items():
        print(f"{name:>18}  {1000 * seconds:8.1f} ms  {config.batch_size / seconds:8.2f} images/s")
    ratio = medians["step with loader"] / medians["bare step"]
    print(f"{'ratio':>18}  {ratio:8.3f}")
    print(f"{'loader alone':>18}  {alone:8.1f} images/s")


if __name__ == "__main__":
    app.run(main)
