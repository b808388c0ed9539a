"""The config files, the fields of a config, and their checks."""

from __future__ import annotations

import math
from pathlib import Path

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from fcn_jax import classes, data
from fcn_jax import config as configs
from fcn_jax.cli import train as command
from fcn_jax.inference import report
from fcn_jax.training.optimizer import make_optimizer, make_schedule

FOLDER = Path(__file__).parents[1] / "configs"
NAMES = sorted(path.stem for path in FOLDER.glob("*.py"))


# ======================================================================== the config files


@pytest.mark.parametrize("name", NAMES)
def test_every_config_is_valid_and_says_its_command(name):
    config = configs.load_config(name)
    configs.validate(config)
    text = (FOLDER / f"{name}.py").read_text()
    commands = (f"python train.py --config=configs/{name}.py", f"fcn-jax train --config={name}")
    assert any(f"    {command}" in text for command in commands)
    assert set(config) == set(configs.default_config())
    # What a checkpoint stores gives the same config back.
    assert configs.from_plain(configs.to_plain(config)).to_dict() == config.to_dict()
    with pytest.raises(AttributeError, match="learning_rate"):
        config.lerning_rate = 1.0


def test_a_config_is_found_by_name_and_by_file(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "mine.py").write_text((FOLDER / "fcn8s.py").read_text())
    monkeypatch.chdir(FOLDER.parent)
    for name in ("fcn8s", "configs/fcn8s.py", str(FOLDER / "fcn8s.py"), "~/mine.py"):
        assert len(configs.load_config(name).stages) == 3
        assert configs.load_config(f"{name}:32s").stages == ("fcn32s",)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("quikstart", "no config 'quikstart'; did you mean quickstart? there are camvid, fcn8s, "),
        ("configs/nowhere.py", "no config 'configs/nowhere.py'; there are camvid, fcn8s"),
        ("fcn8s:cpvr", "'cpvr': give at most one of each of 8s or 16s or 32s or atonce; pami or "),
        ("fcn8s:32s,16s", "'32s,16s': give at most one"),
        ("quickstart:32s", "takes 0 positional arguments"),
    ],
)
def test_a_config_that_is_not_there(name, message):
    with pytest.raises(ValueError, match="config") as caught:
        configs.load_config(name)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("import nowhere", "ModuleNotFoundError: No module named 'nowhere'"),
        ("def get_config(", "SyntaxError: '(' was never closed"),
        ("x = 1", "has no attribute 'get_config'"),
        ("1 / 0", "ZeroDivisionError: division by zero"),
        ("{}['a']", "KeyError: 'a'"),
        ("\x00", "SyntaxError: source code string cannot contain null bytes"),
        ("def get_config(): return get_config()", "RecursionError: "),
        ("def get_config(): pass", "get_config() gives None; begin with default_config()"),
        (
            "from ml_collections import ConfigDict as get_config",
            "the config has no dataset; begin with default_config()",
        ),
    ],
)
def test_a_config_file_that_cannot_be_run_is_named(tmp_path, text, message):
    (tmp_path / "mine.py").write_text(text)
    with pytest.raises(ValueError, match=r"mine\.py: ") as caught:
        configs.load_config(str(tmp_path / "mine.py"))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


# ======================================================================== published values

IN_TURN = ("fcn32s", "fcn16s", "fcn8s")
# lr_mult and iterations of the published solvers.
SOLVERS = {
    "fcn8s:32s": (1e-10,),
    "fcn8s:16s": (1e-10, 1e-12),
    "fcn8s": (1e-10, 1e-12, 1e-14),
    "fcn8s:atonce": (1e-10,),
    "nyud:color": (1e-10,),
    "nyud:hha": (1e-10,),
    "nyud:color_depth": (1e-10,),
    "nyud:color_hha": (1e-12,),
    "siftflow:32s": (1e-10,),
    "siftflow:16s": (1e-10, 1e-12),
    "siftflow": (1e-10, 1e-12, 1e-12),
    "pascal_context:32s": (1e-10,),
    "pascal_context:16s": (1e-10, 1e-12),
    "pascal_context": (1e-10, 1e-12, 1e-14),
}


@pytest.mark.parametrize("name", SOLVERS)
def test_the_reference_solvers_values(name):
    config = configs.load_config(name)
    rates = SOLVERS[name]
    assert config.stages == (("fcn8s_atonce",) if "atonce" in name else IN_TURN[: len(rates)])
    assert configs.per_stage(config, "learning_rate") == rates
    steps = 100_000 if name in ("fcn8s:32s", "fcn8s:16s", "fcn8s") else 300_000
    assert configs.per_stage(config, "steps") == (steps,) * len(rates)
    assert (config.momentum, config.weight_decay, config.bias_rate) == (0.99, 5e-4, 2.0)
    assert (config.batch_size, config.padding, config.normalize_loss) == (1, "reference", False)
    assert (config.schedule, config.learned_upsampling) == ("constant", "none")


def test_the_reference_solver_of_alexnet():
    config = configs.load_config("fcn_alexnet")
    assert (config.learning_rate, config.momentum, config.weight_decay) == ((1e-4,), 0.9, 5e-4)
    assert (config.normalize_loss, config.accumulate) == (True, 20)
    assert config.steps == (20 * 100_000,)


@pytest.mark.parametrize(
    ("name", "rate"),
    [
        ("fcn8s:cvpr", 1e-4),
        ("fcn_alexnet:cvpr", 1e-3),
        ("fcn_googlenet", 5e-5),
        ("siftflow:16s,cvpr", 1e-4),
        ("nyud:hha,cvpr", 1e-4),
        ("pascal_context:cvpr,32s", 1e-4),
    ],
)
def test_the_recipe_of_cvpr(name, rate):
    config = configs.load_config(name)
    configs.validate(config)
    assert (config.batch_size, config.momentum, config.weight_decay) == (20, 0.9, 5e-4)
    skips = len(config.stages) - 1
    assert configs.per_stage(config, "learning_rate") == (rate, *[rate / 100] * skips)
    assert config.learned_upsampling == "intermediate"


# ======================================================================== fields


def test_every_optimizer_and_schedule_that_a_config_may_choose_is_there():
    for name in configs.OPTIMIZERS:
        make_optimizer(name, make_schedule("constant", 0.1, 10))
    for name in configs.SCHEDULES:
        make_schedule(name, 0.1, 10, step_size=3)


def test_every_field_has_a_default_of_its_kind_and_a_meaning():
    config = configs.default_config()
    for section in configs.FIELDS.values():
        for name, field in section.items():
            assert field.kind.fits(config[name]), name
            assert field.meaning.endswith(".")


LARGE, NOT_NUMBERS = 10**20, (math.nan, math.inf, -math.inf, 1e400, 10**400, "a", None, True)
NUMBERS = ("scale", "jitter", "width", "dropout", "schedule_gamma", "momentum", "weight_decay")
NUMBERS += ("bias_rate", "clip_norm", "cell_fraction", "ema", "ohem_threshold")
WHOLE = ("num_workers", "fc_width", "spatial_shards", "batch_size", "accumulate", "warmup")
WHOLE += ("schedule_step", "seed", "eval_batch_size", "eval_every", "checkpoint_every")
WHOLE += ("log_every", "samples", "patience", "schedule_patience", "ohem_least")
WRONG = [
    *((name, value) for name in NUMBERS for value in (-1.0, *NOT_NUMBERS)),
    *((name, value) for name in WHOLE for value in (-1, LARGE, 2.5, *NOT_NUMBERS)),
    *((name, 0) for name in ("scale", "width", "fc_width", "batch_size", "log_every")),
    *((name, 1.0) for name in ("dropout", "momentum", "jitter")),
    *((name, (value,)) for name in ("epochs", "learning_rate") for value in (0, *NOT_NUMBERS)),
    *(("steps", (value, 1, 1)) for value in (0, 2.5, LARGE, *NOT_NUMBERS)),
    *(("learning_rate", value) for value in ((), (1.0, 2.0), "text")),
    *(("steps", value) for value in ((1, 2), (1, 1, 1, 1))),
    *(("epochs", value) for value in ((1.0, 2.0), ())),
    *(("stages", value) for value in ((), ("fcn8s", "fcn8s"), ("fcn64s",), ("classifier",), (1,))),
    *(("heads", value) for value in ((1,), ("",), (None,))),
    *(("crop", value) for value in ((3,), (3, 0), (3.0, 3), (1, 2, 3), ("a", "b"))),
    *(("canvas", value) for value in ((3,), (-1, 3))),
    *(("scale_range", value) for value in ((), (2.0, 1.0), (0.0, 1.0), (math.nan, 1.0))),
    *(("inputs", value) for value in ({}, {"image": None}, {"image": ""}, {"image": "a+a"})),
    ("inputs", {"a b": "image"}),
    *(("loss_weights", {"label": value}) for value in (0.0, *NOT_NUMBERS)),
    *((name, {1: "a"}) for name in ("inputs", "loss_weights", "dataset_options")),
    ("backbone", "x" * 10**6),
    *((name, "foo") for name in ("learned_upsampling", "padding", "precision")),
    *((name, "foo") for name in ("optimizer", "schedule", "backbone", "dataset", "freeze")),
    *((name, ("foo",)) for name in ("freeze", "stages")),
    ("backbone", "nowhere.py:f"),
    ("dataset", ""),
    ("schedule", "step"),
    ("init", "image=a,hha=b"),
    *(("loss", value) for value in ("", "dise", "dice+", "-1*dice", "dice*2")),
    *(("label_smoothing", value) for value in (1.0, *NOT_NUMBERS)),
    *(("focal_gamma", value) for value in (-1.0, *NOT_NUMBERS)),
    *(("class_weights", (value,)) for value in (0.0, -1.0, *NOT_NUMBERS)),
    *(("class_weights", value) for value in ("inverse", ("inverse", "median"), ("inverse", 1.0))),
    *(("layer_rates", value) for value in ("fc6=2", ("fc6",), ("fc6=",), ("=2",), ("fc6=0",))),
    *(("layer_rates", (f"fc6={value}",)) for value in ("x", "-1", "nan", "inf", "1=2")),
    *(("layer_rates", (rate,)) for rate in ("score_pool9=2", "fc*=auto", "score_*=auto")),
    *(("tversky", value) for value in ((), (1.0,), (0.0, 1.0), (1.0, 1.0, 1.0))),
]


@pytest.mark.parametrize(("name", "value"), WRONG, ids=lambda value: str(value)[:30])
def test_a_wrong_value_is_one_line_that_names_the_field_and_the_remedy(name, value):
    config = configs.default_config()
    config.steps = (10,)
    if name == "epochs":
        config.steps = ()
    wrong = ConfigDict({**config.to_dict(), name: value})
    with pytest.raises(ValueError, match="config") as caught:
        configs.validate(wrong)
    message = str(caught.value)
    named = "schedule_step" if (name, value) == ("schedule", "step") else name
    assert message.startswith(f"config.{named} = ")
    assert "\n" not in message
    assert 8 < len(message.split(": ", 1)[1]) < len(message) < 2000  # the remedy


@pytest.mark.parametrize(
    ("loss", "field", "value"),
    [
        ("dice", "class_weights", ("median",)),
        ("cross_entropy+dice", "focal_gamma", 1.0),
        ("focal", "label_smoothing", 0.1),
        ("dice", "tversky", (0.5, 0.6)),
        ("0.5*focal", "ohem_least", 3),
    ],
)
def test_a_field_that_the_loss_does_not_take_is_refused(loss, field, value):
    config = configs.default_config()
    config.update(steps=(10,), loss=loss, **{field: value})
    with pytest.raises(
        ValueError, match=rf"^config\.{field} = .*: no part of the loss .* takes it$"
    ):
        configs.validate(config)
    config.loss = "cross_entropy + 0.5*focal+ohem+tversky"
    configs.validate(config)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"patience": 3}, "config.patience = 3: it counts evaluations: give config.eval_every"),
        ({"schedule": "plateau"}, "config.schedule_step = 0: the schedule 'plateau' needs the st"),
        (
            {"schedule": "plateau", "schedule_step": 5, "schedule_gamma": 1.5},
            "config.schedule_gamma = 1.5: the schedule 'plateau' needs a factor below 1",
        ),
    ],
)
def test_what_patience_and_plateau_need(given, message):
    config = configs.default_config()
    config.update(steps=(10,), **given)
    with pytest.raises(ValueError, match="config") as caught:
        configs.validate(config)
    assert str(caught.value).startswith(message)


def test_where_evaluations_end_a_stage_their_distance_is_no_longer_free():
    old, new = configs.default_config(), configs.default_config()
    new.eval_every = 10
    assert configs.changed_fields(old, new) == []
    old.patience = new.patience = 2
    assert configs.changed_fields(old, new) == ["eval_every: 0 -> 10"]


def test_all_problems_are_reported_together():
    config = configs.default_config()
    config.update(width=-1.0, padding="valid", crop=(3,), steps=(1, 2))
    with pytest.raises(ValueError, match=r"(?s)padding = 'valid'") as caught:
        configs.validate(config)
    lines = str(caught.value).splitlines()
    assert {line.split()[0] for line in lines} == {
        *("config.crop", "config.padding", "config.width", "config.steps")
    }


def test_a_field_that_does_not_exist():
    config = configs.load_config("quickstart")
    wrong = ConfigDict({**config.to_dict(), "lerning_rate": 1.0})
    with pytest.raises(ValueError, match=r"no such field; did you mean 'learning_rate'\?"):
        configs.validate(wrong)


def test_lengths_are_given_as_steps_or_as_epochs():
    """What stands in the file for three stages does not matter where one is trained for steps."""
    config = configs.load_config("folder:gpu")
    command.set_fields(config, ["--config.stages=fcn8s", "--config.steps=(10,)"])
    assert config.epochs == (5.0, 5.0, 20.0)
    configs.validate(config)
    command.set_fields(config, ["--config.steps=()"])
    with pytest.raises(ValueError, match="each of the 1 stages"):
        configs.validate(config)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ((), 200),
        (("--config.epochs=(3,)",), 24),  # of 32 images in fours
        (("--config.epochs", "(3,)"), 24),
        (("--config.epochs=(3,)", "--config.steps=(7,)"), 7),
    ],
)
def test_epochs_that_are_given_count_although_the_file_has_steps(given, expected):
    config = configs.load_config("folder:cpu")
    command.set_fields(config, given)
    assert configs.stage_steps(config, 32) == (expected,)


@pytest.mark.parametrize("backend", ["cpu", "gpu", "tpu"])
def test_the_devices_choose_the_recipe_for_a_folder_and_it_is_told(backend, monkeypatch, capsys):
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    recipe = "cpu" if backend == "cpu" else "gpu"
    chosen = configs.load_config("folder").to_dict()
    assert f"--config=folder is folder:{recipe} here" in capsys.readouterr().err
    for given in ("cpu", "gpu"):
        assert (configs.load_config(f"folder:{given}").to_dict() == chosen) == (given == recipe)
    assert capsys.readouterr().err == ""
    with pytest.raises(ValueError, match="at most one of each of cpu or gpu"):
        configs.load_config("folder:cuda")


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"steps": (7,), "epochs": (5.0, 5.0)}, (7, 7, 7)),
        ({"epochs": (2.5, 0.01, 1.0)}, (8, 1, 3)),  # of 13 images in fours
        ({"epochs": (1e30,)}, r"epochs = \(1e\+30,\): 3.25e\+30 steps; give fewer than 2147483648"),
    ],
)
def test_the_steps_of_stages(fields, expected):
    config = configs.default_config()
    config.update(batch_size=4, **fields)
    if isinstance(expected, tuple):
        assert configs.stage_steps(config, 13) == expected
        return
    with pytest.raises(ValueError, match=expected):
        configs.stage_steps(config, 13)


def test_only_harmless_fields_may_change_when_a_run_goes_on():
    old, new = configs.default_config(), configs.default_config()
    new.update(log_every=7, data_dir="elsewhere", seed=5)
    assert configs.changed_fields(old, new) == ["seed: 0 -> 5"]


# ======================================================================== files


@pytest.mark.parametrize(
    ("init", "files"),
    [
        ("", {}),
        ("a=b.npz", {"": "a=b.npz"}),  # the name of a file, since no input is called a
        ("~/a.npz", {"": "/home/me/a.npz"}),
        ("color=x,hha=runs/y", {"color": "x", "hha": "runs/y"}),
        ("color=~/x, hha=~/y", {"color": "/home/me/x", "hha": "/home/me/y"}),
        ("hha=x", "give a file for each input, color=FILE,hha=FILE"),
    ],
)
def test_start_weights_by_input(init, files, monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    config = configs.default_config()
    config.inputs = ConfigDict({"color": "image", "hha": "hha"})
    config.init = init
    if isinstance(files, dict):
        assert configs.start_files(config) == files
    else:
        with pytest.raises(ValueError, match=files):
            configs.start_files(config)


def test_the_home_directory_in_every_path(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "mine.py").write_text((Path(__file__).parent / "toy_backbones.py").read_text())
    config = configs.load_config("folder")
    config.update(manual_dir="~/files", data_dir="~/data", backbone="~/mine.py:plain")
    config.dataset_options.classes = "~/classes.txt"
    options = configs.data_options(config)
    assert options["manual_dir"] == f"{tmp_path}/files"
    assert options["data_dir"] == f"{tmp_path}/data"
    assert options["classes"] == f"{tmp_path}/classes.txt"
    configs.validate(config)

    (tmp_path / "classes.txt").write_text("cat\ndog\n")
    assert classes.load_class_table("~/classes.txt").names == ("cat", "dog")
    assert classes.read_names("~/classes.txt") == ["cat", "dog"]
    copy = data.prepare("shapes", data_dir="~/data", train=1, val=1, size=48)
    source = data.Source(f"~/{copy.relative_to(tmp_path)}", "train")
    assert source.ids == ("train_00000",)
    report.write([], source, "~/report")
    report.draw_confusion(
        "~/c.png", np.eye(2, dtype=np.int64), classes.load_class_table("~/classes.txt")
    )
    assert {path.name for path in tmp_path.iterdir()} > {"report", "c.png"}
    monkeypatch.setattr(
        "fcn_jax.training.run.train", lambda config, workdir, **_: given.append(workdir)
    )
    monkeypatch.setattr(report, "evaluate_run", lambda workdir, *_, **__: given.append(workdir))
    given: list[Path] = []
    assert command.main(["--config=quickstart", "--workdir=~/run"]) == 0
    assert given == [tmp_path / "run"] * 2


# ======================================================================== the command line


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config.lerning_rate=(1.,)"], "no field 'lerning_rate'; did you mean 'learning_rate'?"),
        (["--config.nowhere.momentum=0.9"], "no field 'nowhere'"),
        (["--config.inputs.hha=hha"], "--config.inputs=\"{'hha': …}\""),
        (["--config.steps=(1," + 9999 * "x"], "flag --config.steps=(1,xxx"),
        (["--config.seed=" + 5000 * "1"], "flag --config.seed=1111"),
        (["--config.seed=zero"], "invalid literal for int"),
        (["--config.width=1e"], "could not convert string to float"),
        (["--config.inputs={'image'"], "Failed to parse"),
        (["--config.class_weights=mean"], "or one of inverse, median"),
        (["--wrkdir=x"], "unexpected argument '--wrkdir=x'; --help lists"),
        (["more"], "unexpected argument 'more'"),
    ],
)
def test_a_mistake_on_the_command_line_is_one_line(arguments, message, capsys):
    assert command.main(["--config=quickstart", *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert len(error) < 2000


def test_options_of_the_data_set_need_not_stand_in_the_config_file():
    config = configs.load_config("quickstart")
    given = {
        "seed": "3",
        "void": "(0, 7)",
        "images": "a*.png",
        "classes": "",
        "masks": "[[[",
        "a": "1",
    }
    command.set_fields(
        config, [f"--config.dataset_options.{name}={value}" for name, value in given.items()]
    )
    expected = {
        "seed": 3,
        "void": (0, 7),
        "images": "a*.png",
        "classes": "",
        "masks": "[[[",
        "a": 1,
    }
    assert config.dataset_options.to_dict() == {"train": 400, "val": 100, "size": 96, **expected}
    with pytest.raises(ValueError, match="shapes has no option 'a'; it has train, val, size, seed"):
        data.open_source("shapes", "train", data_dir="nowhere", a=1)
    with pytest.raises(
        ValueError, match=r"shapes: an option of the wrong kind in {'train': 'x'}: "
    ):
        data.open_source("shapes", "train", data_dir="nowhere", train="x")


def test_fields_are_set_from_the_command_line():
    config = configs.load_config("quickstart")
    arguments = ["--config.steps=(7,)", "--config.seed", "2", "--config.accumulate", "2"]
    arguments += ["--config.steps=(1,2,3)", "--config.width=0.5", "--config.flip=False"]
    command.set_fields(config, [*arguments, "--config.inputs={'a': 'image'}"])
    assert (config.steps, config.width, config.flip) == ((1, 2, 3), 0.5, False)
    assert config.inputs.to_dict() == {"a": "image"}
    assert (config.seed, config.accumulate) == (2, 2)


def test_help_lists_configs_and_fields(capsys):
    with pytest.raises(SystemExit):
        command.main(["--help"])
    text = capsys.readouterr().out
    for name in NAMES:
        assert f"\n  {name} " in text
    for section in configs.FIELDS.values():
        for name, field in section.items():
            assert f"--config.{name}={field.default!r}\n" in text
            assert field.meaning.split()[0] in text


def test_fields_do_not_share_what_can_change():
    first, second = configs.default_config(), configs.default_config()
    first.inputs.image = "hha"
    assert second.inputs.image == "image"
    with pytest.raises(AttributeError):
        configs.FIELDS["Data"]["scale"].default = 2.0
