"""The training loop beside the bare step: does the loader keep the device busy?

    python benchmarks/loop.py --config=configs/camvid.py [--config.FIELD=VALUE ...]

Times, in turns (A B A B), N steps on one batch that stays on the device, and N steps on batches
from the loader whose losses are watched and then checked, as the loop of `fcn_jax.training.loop`
does, with the same compiled step. Prints medians and their ratio, and the loader alone.
"""

from __future__ import annotations

import statistics
from typing import Any

import jax
from absl import app, flags, logging
from interleaved import seconds, take_turns
from ml_collections import config_flags

CONFIG = config_flags.DEFINE_config_file("config", "configs/quickstart.py")
STEPS = flags.DEFINE_integer("steps", 10, "Steps in each turn.")
TURNS = flags.DEFINE_integer("turns", 3, "Turns of each kind.")


def main(argv: list[str]) -> None:
    """Measures and prints."""
    del argv
    from fcn_jax import config as configs
    from fcn_jax import data
    from fcn_jax.devices import data_mesh
    from fcn_jax.models.fcn import initial_params
    from fcn_jax.models.inputs import CAFFE, Inputs
    from fcn_jax.training.loop import mean_losses
    from fcn_jax.training.stages import make_stages
    from fcn_jax.training.step import create_state, make_train_step

    logging.set_verbosity(logging.WARNING)
    config: Any = CONFIG.value
    source = data.open_source(config.dataset, config.train_split, **configs.data_options(config))
    inputs, mesh = Inputs.of(CAFFE), data_mesh()
    config.stages, config.steps, config.learning_rate = config.stages[-1:], (10**6,), (1e-12,)
    (stage,) = make_stages(config, source, source.label_maps, inputs, mesh)
    params = initial_params(stage.model, jax.random.key(0))
    state = create_state(params, stage.optimizer, mesh)
    step = make_train_step(stage.model, stage.optimizer, inputs, mesh, key=stage.key)

    with stage.batches as batches:
        fixed, _ = next(batches)

        def bare() -> None:
            nonlocal state
            for _ in range(STEPS.value):
                state, _ = step(state, fixed)
            jax.block_until_ready(state)

        def loop() -> None:
            nonlocal state
            reports = []
            for number in range(STEPS.value):
                batch, ids = next(batches)
                state, report = step(state, batch)
                reports.append((number, ids, report))
            mean_losses(stage.name, reports)

        kinds = {"bare step": bare, "training loop": loop}
        for warm_up in kinds.values():
            warm_up()  # compiles
        times = take_turns(kinds, TURNS.value)
        loads = 5 * STEPS.value
        alone = seconds(lambda: [next(batches) for _ in range(loads)])
    show({name: statistics.median(values) for name, values in times.items()}, config.batch_size)
    print(f"{'loader alone':>18}  {loads * config.batch_size / alone:8.1f} images/s")


def show(medians: dict[str, float], batch_size: int) -> None:
    """Prints medians, given in seconds for all steps of a turn."""
    for name, median in medians.items():
        one = median / STEPS.value
        print(f"{name:>18}  {1000 * one:8.1f} ms  {batch_size / one:8.2f} images/s")
    bare, loaded = medians.values()
    print(f"{'ratio':>18}  {loaded / bare:8.3f}")


if __name__ == "__main__":
    app.run(main)
