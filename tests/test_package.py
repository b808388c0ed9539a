"""The package as a whole: what an installation brings, its public names, its imports, its order."""

from __future__ import annotations

import ast
import doctest
import graphlib
import inspect
import os
import re
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from hatchling.builders.sdist import SdistBuilder
from hatchling.builders.wheel import WheelBuilder

import fcn_jax
from fcn_jax import cli

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "fcn_jax"
REPOSITORY = "https://github.com/fcn-jax/fcn_jax"


# ============================================================================== installation


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    return Path(
        next(WheelBuilder(str(ROOT)).build(directory=str(tmp_path_factory.mktemp("wheel"))))
    )


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory) -> Path:
    """A folder that holds what the wheel installs, and nothing of the repository."""
    folder = tmp_path_factory.mktemp("site-packages")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder


def run_installed(installed: Path, folder: Path, *arguments: str) -> subprocess.CompletedProcess:
    """Runs the installed package in a folder."""
    return subprocess.run(
        [sys.executable, "-m", "fcn_jax", *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(installed)},
        capture_output=True,
        text=True,
    )


def test_the_wheel_holds_everything_that_the_package_reads(installed):
    def files(folder: Path) -> set[str]:
        found = (path for path in folder.rglob("*") if path.is_file())
        return {str(p.relative_to(folder)) for p in found if "__pycache__" not in p.parts}

    expected = files(PACKAGE) | {f"configs/{name}" for name in files(ROOT / "configs")}
    assert files(installed / "fcn_jax") == expected
    assert "py.typed" in expected
    (info,) = (path for path in installed.iterdir() if path.name != "fcn_jax")
    assert "fcn-jax = fcn_jax.cli:main" in (info / "entry_points.txt").read_text()
    metadata = (info / "METADATA").read_text()
    assert f"Version: {fcn_jax.__version__}\n" in metadata
    assert f"Project-URL: Homepage, {REPOSITORY}\n" in metadata


def test_the_wheel_of_the_source_distribution_is_the_same(wheel, tmp_path):
    sdist = next(SdistBuilder(str(ROOT)).build(directory=str(tmp_path)))
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path, filter="data")
    (source,) = (path for path in tmp_path.iterdir() if path.is_dir())
    again = next(WheelBuilder(str(source)).build(directory=str(tmp_path)))
    with zipfile.ZipFile(wheel) as first, zipfile.ZipFile(again) as second:
        assert first.namelist() == second.namelist()
    assert (source / "tests" / Path(__file__).name).is_file()


@pytest.mark.slow
def test_the_installed_command_trains_in_an_empty_folder(installed, tmp_path):
    result = run_installed(
        installed,
        tmp_path,
        *("train", "--config=quickstart", "--config.stages=('fcn8s',)", "--config.steps=(2,)"),
        *("--config.width=0.0625", "--config.fc_width=8", "--config.warmup=0"),
        *("--config.dataset_options.train=8", "--config.dataset_options.val=2"),
        *("--config.dataset_options.size=48", "--config.learning_rate=(1e-3,)"),
    )
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "runs" / "quickstart" / "report").is_dir()
    result = run_installed(installed, tmp_path, "eval", "--workdir=runs/quickstart", "--limit=1")
    assert result.returncode == 0, result.stderr


# ================================================================================== commands


def test_help_names_every_command(capsys):
    assert cli.main(["--help"]) == 0
    listed = re.findall(r"^  (\w+) +\w", capsys.readouterr().out, flags=re.MULTILINE)
    modules = {path.stem for path in (PACKAGE / "cli").glob("[!_]*.py")}
    assert set(listed) == modules == set(cli.COMMANDS)


def test_version(capsys):
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"fcn-jax {fcn_jax.__version__}\n"


@pytest.mark.parametrize(
    ("name", "hint"), [("tarin", "did you mean train?"), ("cook", "choose one of train, eval")]
)
def test_a_misspelt_command_names_the_near_one(capsys, name, hint):
    assert cli.main([name]) == 2
    message = capsys.readouterr().err
    assert message.startswith(f"fcn-jax: there is no command '{name}'; {hint}")
    assert message.count("\n") == 1


@pytest.mark.parametrize("command", ["eval", "predict", "check"])
def test_the_usage_says_how_a_command_was_called(command, capsys, monkeypatch):
    scripts = [f"{command}.py"] if (ROOT / f"{command}.py").exists() else []
    for called, name in [("fcn-jax", f"fcn-jax {command}"), *zip(scripts, scripts, strict=True)]:
        monkeypatch.setattr(sys, "argv", [f"/anywhere/{called}"])
        with pytest.raises(SystemExit):
            cli.main([command, "--help"])
        assert name in capsys.readouterr().out.splitlines()[0]


@pytest.mark.parametrize(
    "call",
    [
        lambda: fcn_jax.geometry.Window("3"),  # type: ignore
        lambda: fcn_jax.geometry.compose([3]),  # type: ignore
        lambda: fcn_jax.ops.max_pool(jnp.zeros((2, 3, 4)), fcn_jax.geometry.Window(2)),
        lambda: fcn_jax.cross_entropy(np.zeros((1, 2, 3, 4)), np.zeros((1, 2, 3))),
        lambda: fcn_jax.ops.conv_transpose(jnp.zeros((1, 2, 2, 3)), jnp.zeros((4, 4, 5, 3)), 2),
    ],
)
def test_annotations_are_checked(call):
    """In tests: plain types, the number and types of axes, and that sizes of one name are equal."""
    with pytest.raises(TypeError, match=r"violates|Type-check error"):
        call()


# =================================================================================== imports


def test_importing_the_package_needs_jax_flax_and_numpy_only():
    unwanted = {"PIL", "optax", "orbax", "tensorflow_datasets", "matplotlib", "scipy", "h5py"}
    code = f"import sys, fcn_jax; print(*{unwanted} & set(sys.modules))"
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    loaded = subprocess.check_output([sys.executable, "-c", code], env=env, text=True)
    assert loaded.split() == []


ORDER = (
    *("geometry", "classes", "canvas", "devices", "drawing", "ops", "programs", "models", "data"),
    *("checkpoints", "config", "runs", "weights", "inference", "exporting", "training", "cli"),
)
"""The folders and flat modules of the package; each imports from those before it only."""


@pytest.fixture(scope="module")
def imports() -> dict[str, set[str]]:
    """The modules of the package that each module names, in functions and for types as well."""
    modules = {
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
        for path in PACKAGE.rglob("*.py")
    }

    def named(path: Path) -> Iterator[str]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                yield from (alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{path}: imports are written in full"
                full = (f"{node.module}.{alias.name}" for alias in node.names)
                yield from (name if name in modules else str(node.module) for name in full)

    return {name: set(named(path)) & set(modules) - {name} for name, path in modules.items()}


def test_no_files_import_each_other_in_a_circle(imports):
    graphlib.TopologicalSorter(imports).prepare()  # raises CycleError, which names the files


def test_every_folder_imports_only_those_before_it(imports):
    def place(module: str) -> int:
        return ORDER.index(module.split(".")[1])

    upward = [
        f"{module} imports {target}"
        for module, targets in imports.items()
        for target in targets
        if {module, target}.isdisjoint({"fcn_jax", "fcn_jax.__main__"})
        and place(target) > place(module)
    ]
    assert upward == []


# ============================================================================== public names


@pytest.mark.parametrize("name", fcn_jax.__all__)
def test_the_example_of_a_public_name(name, tmp_path, monkeypatch):
    """Every public name has a docstring with an example, and the example is right."""
    item = getattr(fcn_jax, name)
    if not (inspect.isclass(item) or inspect.isfunction(item)):
        return  # a number has no docstring of its own
    monkeypatch.chdir(tmp_path)  # where examples write files
    finder = doctest.DocTestFinder(recurse=inspect.isclass(item))
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    tests = [test for test in finder.find(item, name) if test.examples]
    assert tests, f"fcn_jax.{name} has no example"
    for test in tests:
        report: list[str] = []
        assert not runner.run(test, out=report.append).failed, "".join(report)
