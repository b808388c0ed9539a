"""The config files, and the checks of a config."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
from ml_collections import ConfigDict

from fcn_jax import config as configs
from fcn_jax.data.voc import VOC
from fcn_jax.models.inputs import CAFFE, Inputs
from fcn_jax.runs import build_model

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
    inputs = Inputs.of({name: {"image": CAFFE} for name in config.inputs})
    for stage in config.stages:
        build_model(config, stage, {"label": VOC}, inputs)
    # What a checkpoint stores gives the same config back.
    assert configs.from_plain(configs.to_plain(config)).to_dict() == config.to_dict()
    with pytest.raises(AttributeError, match="learning_rate"):
        config.lerning_rate = 1.0


THREE = ("fcn32s", "fcn16s", "fcn8s")
# lr_mult and iterations of the published solvers.
SOLVERS = {
    "fcn32s": (1e-10,),
    "fcn16s": (1e-10, 1e-12),
    "fcn8s": (1e-10, 1e-12, 1e-14),
    "fcn8s_atonce": (1e-10,),
    "nyud_color": (1e-10,),
    "nyud_hha": (1e-10,),
    "nyud_color_depth": (1e-10,),
    "nyud_color_hha": (1e-12,),
    "siftflow_fcn32s": (1e-10,),
    "siftflow_fcn16s": (1e-10, 1e-12),
    "siftflow_fcn8s": (1e-10, 1e-12, 1e-12),
    "pascal_context_fcn32s": (1e-10,),
    "pascal_context_fcn16s": (1e-10, 1e-12),
    "pascal_context_fcn8s": (1e-10, 1e-12, 1e-14),
}


@pytest.mark.parametrize("name", SOLVERS)
def test_the_reference_solvers_values(name):
    config = load(FILES[0].parent / f"{name}.py").get_config()
    rates = SOLVERS[name]
    assert config.stages == (("fcn8s_atonce",) if "atonce" in name else THREE[: len(rates)])
    assert configs.per_stage(config, "learning_rate") == rates
    steps = 100_000 if name in THREE else 300_000
    assert configs.per_stage(config, "steps") == (steps,) * len(rates)
    assert (config.momentum, config.weight_decay, config.bias_rate) == (0.99, 5e-4, 2.0)
    assert (config.batch_size, config.padding, config.normalize_loss) == (1, "reference", False)
    assert (config.schedule, config.learned_upsampling) == ("constant", "none")


def test_the_reference_solver_of_alexnet():
    config = load(FILES[0].parent / "fcn_alexnet.py").get_config()
    assert (config.learning_rate, config.momentum, config.weight_decay) == ((1e-4,), 0.9, 5e-4)
    assert (config.normalize_loss, config.accumulate) == (True, 20)
    assert config.steps == (20 * 100_000,)


@pytest.mark.parametrize(
    ("name", "rate"), [("fcn8s", 1e-4), ("fcn_alexnet", 1e-3), ("siftflow_fcn16s", 1e-4)]
)
def test_the_recipe_of_cvpr(name, rate):
    module = load(FILES[0].parent / f"{name}.py")
    config = module.get_config("cvpr")
    configs.validate(config)
    assert (config.batch_size, config.momentum, config.weight_decay) == (20, 0.9, 5e-4)
    skips = len(config.stages) - 1
    assert configs.per_stage(config, "learning_rate") == (rate, *[rate / 100] * skips)
    assert config.learned_upsampling == "intermediate"
    with pytest.raises(ValueError, match="unknown recipe 'cpvr'"):
        module.get_config("cpvr")


@pytest.mark.parametrize(
    ("init", "files"),
    [
        ("", {}),
        ("a=b.npz", {"": "a=b.npz"}),  # the name of a file, since no input is called a
        ("color=x,hha=runs/y", {"color": "x", "hha": "runs/y"}),
        ("hha=x", "give a file for each input, color=FILE,hha=FILE"),
    ],
)
def test_start_weights_by_input(init, files):
    config = configs.default_config()
    config.inputs = ConfigDict({"color": "image", "hha": "hha"})
    config.init = init
    if isinstance(files, dict):
        assert configs.start_files(config) == files
    else:
        with pytest.raises(ValueError, match=files):
            configs.start_files(config)


def test_all_problems_are_reported_together():
    config = configs.default_config()
    config.update(width=-1.0, padding="valid", crop=(3,), steps=(1, 2))
    with pytest.raises(ValueError, match=r"(?s)padding = 'valid'.*steps.*width = -1.0.*crop"):
        configs.validate(config)


def test_only_harmless_fields_may_change_when_a_run_goes_on():
    old = configs.to_plain(configs.default_config())
    new = {**old, "log_every": 7, "data_dir": "elsewhere", "seed": 5}
    assert configs.changed_fields(old, new) == ["seed: 0 -> 5"]
