"""The config files, and the checks of a config."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from fcn_jax import config as configs
from fcn_jax.training.checkpoints import build_model

FILES = sorted((Path(__file__).parents[1] / "configs").glob("*.py"))


def load(path: Path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_config_is_valid_and_says_its_command(path):
    module = load(path)
    config = module.get_config()
    configs.validate(config)
    assert f"python train.py --config=configs/{path.name}" in module.__doc__
    assert set(config) == set(configs.default_config())
    for stage in config.stages:
        build_model(config, stage, 21)
    # What a checkpoint stores gives the same config back.
    assert configs.from_plain(configs.to_plain(config)).to_dict() == config.to_dict()
    with pytest.raises(AttributeError, match="learning_rate"):
        config.lerning_rate = 1.0


@pytest.mark.parametrize(
    ("name", "stages", "rates", "steps"),
    [
        ("fcn32s", ("fcn32s",), (1e-10,), 100_000),
        ("fcn16s", ("fcn32s", "fcn16s"), (1e-10, 1e-12), 100_000),
        ("fcn8s", ("fcn32s", "fcn16s", "fcn8s"), (1e-10, 1e-12, 1e-14), 100_000),
        ("fcn8s_atonce", ("fcn8s_atonce",), (1e-10,), 300_000),
    ],
)
def test_the_reference_solvers_values(name, stages, rates, steps):
    config = load(FILES[0].parent / f"{name}.py").get_config()
    assert config.stages == stages
    assert configs.per_stage(config, "learning_rate") == rates
    assert configs.per_stage(config, "steps") == (steps,) * len(stages)
    assert (config.momentum, config.weight_decay, config.bias_rate) == (0.99, 5e-4, 2.0)
    assert (config.batch_size, config.padding, config.normalize_loss) == (1, "reference", False)
    assert (config.schedule, config.learned_upsampling) == ("constant", "none")


def test_all_problems_are_reported_together():
    config = configs.default_config()
    config.update(width=-1.0, padding="valid", crop=(3,), steps=(1, 2))
    with pytest.raises(ValueError, match=r"(?s)padding = 'valid'.*steps.*width = -1.0.*crop"):
        configs.validate(config)


def test_only_harmless_fields_may_change_when_a_run_goes_on():
    old = configs.to_plain(configs.default_config())
    new = {**old, "log_every": 7, "data_dir": "elsewhere", "seed": 5}
    assert configs.changed_fields(old, new) == ["seed: 0 -> 5"]
