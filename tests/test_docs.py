"""The documentation is true: tables are made from the code, examples run, links lead to files."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import re
import sys
import tomllib
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import fcn_jax
from fcn_jax import ops
from fcn_jax.config import config_files, default_config
from fcn_jax.models.fcn import abstract_params, initial_params

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
REPOSITORY = "https://github.com/fcn-jax/fcn_jax"
PAGES = sorted([*ROOT.glob("*.md"), *DOCS.rglob("*.md")])


@pytest.fixture(scope="module")
def generator():
    spec = importlib.util.spec_from_file_location("docs_networks", DOCS / "networks.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_the_tables_of_networks_are_up_to_date(generator):
    text = generator.PAGE.read_text()
    with ops.plain_forms():  # traces faster, to the same sizes
        assert generator.replaced(text) == text, "run python docs/networks.py"


def test_every_config_of_a_paper_is_in_the_table(generator):
    listed = {row.config.partition(":")[0] for row in generator.ROWS}
    of_papers = {
        path.stem
        for path in (ROOT / "configs").glob("*.py")
        if path.stem.startswith(("fcn", "nyud", "siftflow", "pascal_context"))
    }
    assert listed == of_papers


def test_a_page_without_a_place_for_a_table_is_refused(generator, monkeypatch):
    monkeypatch.setattr(generator, "TABLES", {"cakes": lambda: ""})
    with pytest.raises(ValueError, match="0 places for the table of cakes"):
        generator.replaced("# Networks")


def python_in(page: Path) -> list[str]:
    """The code blocks of a page."""
    return re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)


@pytest.mark.parametrize("page", [ROOT / "README.md", DOCS / "library.md"], ids=lambda p: p.name)
def test_the_examples_of_use_as_a_library(page, tmp_path, monkeypatch):
    """The code blocks run in turn, with narrow networks, where the files that they name exist."""
    narrow = functools.partial(fcn_jax.create_model, width=1 / 16, fc_width=8)
    monkeypatch.setattr(fcn_jax, "create_model", narrow)
    monkeypatch.chdir(tmp_path)
    params = initial_params(narrow("fcn8s", padding="reference"), jax.random.key(0))
    Path("runs").mkdir()
    for name in ("runs/mine", "fcn8s-heavy-pascal.caffemodel"):  # told by content
        fcn_jax.save_weights("saved.npz", params)
        Path("saved.npz").rename(name)
    for name in ("photo.jpg", "another.png"):
        Image.new("RGB", (50, 40)).save(name)

    names: dict = {}
    for block in python_in(page):
        exec(block, names)
    assert names["labels"].shape == (40, 50)
    assert names["labels"].dtype == np.uint8
    assert [labels.shape for labels in names["several"]] == [(40, 50), (40, 50)]
    assert names["probabilities"].shape == (40, 50, 21)
    assert names["model"].alignment.geometry["fc7"].stride == 32
    assert names["model"].alignment.geometry["fc7"].receptive_field == 404
    if page.name == "library.md":
        assert names["logits"].shape == (1, 375, 500, 21)
        assert len(names["report"].copied) == len(jax.tree.leaves(params))


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 120


def test_the_code_of_the_paper_exists():
    """Every dotted name of docs/paper.md can be imported, every field and config is known."""
    text = (DOCS / "paper.md").read_text()
    named = re.findall(r"`(fcn_jax\.[\w.]+)`", text)
    assert len(named) > 20
    for name in named:
        module, _, last = name.rpartition(".")
        found = hasattr(importlib.import_module(module), last)
        assert found or importlib.util.find_spec(name), name
    fields = re.findall(r"--config\.(\w+)", text)
    assert set(fields) <= set(default_config().keys())
    assert set(re.findall(r"--config=(\w+)", text)) <= set(config_files())
    for block in python_in(DOCS / "paper.md"):
        exec(block, {})


def test_the_example_of_scores(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = fcn_jax.create_model("fcn8s", num_classes=21, width=1 / 16, fc_width=8)
    Path("runs").mkdir()
    fcn_jax.save_weights("saved.npz", initial_params(model, jax.random.key(0)))
    Path("saved.npz").rename("runs/mine")
    (block,) = python_in(DOCS / "evaluation.md")
    names: dict = {}
    exec(block, names)
    assert names["metrics"].loss == pytest.approx(np.log(21))  # score layers begin with zeros
    assert names["metrics"].images.boundary_f1.shape == (1, 21)
    assert names["of_one"].boundary_iu[0] == 1


def test_the_example_of_a_backbone_of_your_own(generator):
    """The code block runs as it stands, and its network takes images of any size."""
    blocks = python_in(generator.PAGE)
    names: dict = {}
    exec(blocks[0], names)
    assert names["model"].alignment.geometry["layer4"].stride == 8
    exec(blocks[1], names)
    model = names["model"]
    top = model.alignment.geometry["top"]
    assert (top.stride, top.offset) == (12, 5)
    assert model.alignment.crops == {"score_half": -1, "score_both": -1, "upscore": 1}
    for size in ((1, 1), (37, 50)):
        images = jax.ShapeDtypeStruct((1, *size, 3), jnp.float32)
        logits = jax.eval_shape(model.apply, {"params": abstract_params(model)}, images)
        assert logits.shape == (1, *size, 5)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files(page):
    """The README is also shown on package indices, where relative links lead nowhere."""
    text = page.read_text()
    links = re.findall(r"\]\(([^)\s]+)\)|^\[\w+\]: (\S+)$", text, flags=re.MULTILINE)
    for link in {first or second for first, second in links}:
        inside = re.match(rf"{REPOSITORY}/blob/main/(.+)|.*/fcn_jax/main/(.+)", link)
        if inside:
            assert (ROOT / (inside[1] or inside[2])).is_file(), link
        elif not link.startswith(("https://", "http://", "#")):
            assert page.name != "README.md", f"{link} is relative"
            assert (page.parent / link.partition("#")[0]).exists(), link


def test_every_public_name_is_on_a_page_of_the_api():
    pages = "".join(page.read_text() for page in (DOCS / "api").glob("*.md"))
    shown = re.findall(r"^::: (\S+)$", pages, re.M)
    for home, names in fcn_jax._HOMES.items():
        for name in names.split():
            place = f"fcn_jax.{home}"
            assert {place, f"{place}.{name.removesuffix('_weights')}"} & {*shown}, name


def test_the_container_has_what_it_copies_and_installs():
    """No build, which takes a daemon: the files, the extras, and what is let through to it."""
    text = (ROOT / "Dockerfile").read_text()
    copied = [name for line in re.findall(r"^COPY (.+)$", text, re.M) for name in line.split()[:-1]]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    needed = {"pyproject.toml", project["project"]["readme"], "LICENSE"}
    needed |= set(project["tool"]["hatch"]["build"]["targets"]["wheel"]["only-include"])
    assert set(copied) == needed
    assert set(re.findall(r"^!(.+)$", (ROOT / ".dockerignore").read_text(), re.M)) == needed
    (extras,) = re.findall(r"^ARG EXTRAS=(.+)$", text, re.M)
    assert {*extras.split(","), "cuda12", "cuda13"} <= {
        *project["project"]["optional-dependencies"]
    }


def test_the_files_of_the_architecture_exist():
    """A name without a folder stands in that of the name before it, or in the package itself."""
    folder = package = ROOT / "fcn_jax"
    for name in re.findall(r"`([\w/{,}]+(?:\.py|/))`", (DOCS / "architecture.md").read_text()):
        before, braces, after = name.partition("{")
        inside, _, suffix = after.partition("}")
        for path in [f"{before}{part}{suffix}" for part in inside.split(",")] if braces else [name]:
            found = [base / path for base in (package, folder, ROOT) if (base / path).exists()]
            assert found, name
            folder = found[0] if path.endswith("/") else found[0].parent
