"""The page of a report, read as a person does: in Chromium, at two widths, with the keyboard."""

from __future__ import annotations

import csv
import io
import itertools
import json
import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, SupportsIndex

import numpy as np
import pytest
from PIL import Image

from fcn_jax import config as configs
from fcn_jax.classes import ClassRow, ClassTable, table_from_names, voc_color
from fcn_jax.cli import report as cli_report
from fcn_jax.data import Source
from fcn_jax.inference import page, report
from fcn_jax.inference.evaluation import Tally
from fcn_jax.inference.metrics import score_image
from fcn_jax.training.journal import Journal

HOSTILE = (
    "</script><img src=x onerror=alert(1)>",
    "a\"b'c&d",
    "=1+1",
    "tree, small",
    "道路",
    "שמיים",
    "<!--",
    "{{ 7*7 }}",
)
STAGES = ("fcn32s", "fcn16s", "fcn8s")


class Photographs(Source):
    """Noise, and labels in blocks; sizes and names are given."""

    def __init__(self, classes: ClassTable, sizes: list[tuple[int, int]], ids: list[str]) -> None:
        self.split, self.sizes, self.ids = "val", tuple(sizes), tuple(ids)
        self.label_maps = {"label": classes}
        self.ranges = {"image": None}

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: SupportsIndex) -> dict[str, Any]:
        number = index.__index__()
        size = self.sizes[number]
        classes = self.classes.num_classes
        rows, columns = np.indices(size)
        label = ((rows // 7 + 3 * (columns // 9) + number) % classes).astype(np.uint8)
        label[: size[0] // 5, : size[1] // 4] = 255
        shade = np.random.default_rng(number).integers(0, 60, (*size, 3), np.uint8)
        image = shade + self.classes.palette[label] // 2 + 20
        return {"image": image, "label": label, "id": self.ids[number]}

    def __repr__(self) -> str:
        return "Photographs()"


def make_run(folder: Path, source: Photographs, stages: tuple[str, ...] = STAGES) -> Path:
    """A folder as training and its report leave it, but for checkpoints; each stage is better."""
    folder.mkdir(parents=True)
    config = configs.default_config()
    config.stages, config.dataset = stages, "shapes"
    (folder / "config.json").write_text(json.dumps(configs.to_plain(config)))
    with (folder / "metrics.jsonl").open("w") as file:
        for (number, stage), step in itertools.product(enumerate(stages), range(5, 30, 5)):
            record = {"stage": stage, "step": step, "loss": 2 / (step + 9 * number)}
            print(json.dumps({**record, "wall_time": 30.0 * number + step}), file=file)
            scores = {f"eval/{name}": 0.2 + 0.2 * number for name in (*page.METRICS, "loss")}
            print(json.dumps({"stage": stage, "step": step, **scores}), file=file)
        print('{"stage": "fcn8s", "step"', end="", file=file)  # a kill cut it short
    start = {"time": "2026-01-02T03:04:05+00:00", "command": "fcn-jax train --config=<b>mine</b>"}
    start |= {"commit": "0123456789ab", "versions": {"jax": "0.10.0"}, "devices": "2 × cpu"}
    (folder / "starts.jsonl").write_text(f"{json.dumps(start)}\n" * 2)
    results = []
    for stage, wrong in zip(stages, (0.5, 0.3, 0.1), strict=False):
        maps, scores, counts = {}, [], np.zeros((source.classes.num_classes,) * 2, np.int64)
        for index in range(len(source)):
            label = source[index]["label"]
            rng = np.random.default_rng(index)
            noise = rng.integers(0, len(counts), label.shape, np.uint8)
            chance = wrong * (1 + index % 5) / 5
            valid = label != 255
            guess = np.where((rng.random(label.shape) < chance) | ~valid, noise, label)
            maps[index] = guess
            np.add.at(counts, (label[valid], guess[valid]), 1)
            small = np.s_[::29, ::31] if label.size > 10**6 else np.s_[:]
            scores.append(np.array(score_image(label[small], guess[small], len(counts))))
        tally = Tally(counts, np.array([1e3 * wrong]), np.array(scores))
        drawn = {0: maps[0]}
        results.append(report.StageResult(stage, "label", source.classes, 25, tally, drawn, maps))
    images = {"split": len(source), "left_out": 0, "scored": len(source), "trained_on": 0}
    about = {"split": "val", "images": images, "trained": {"images": 1234}}
    report.write(results, source, folder / "report", about, workdir=folder)
    return folder


@pytest.fixture(scope="module")
def hostile(tmp_path_factory) -> Path:
    """A run whose names of classes and images are what they should not be."""
    table = ClassTable(tuple(ClassRow(name, voc_color(i)) for i, name in enumerate(HOSTILE)))
    ids = [f"{name}/{i}" for i, name in enumerate(HOSTILE * 2)]
    sizes = [(97, 131), (64, 80), (33, 20), (40, 150)] * 4
    folder = tmp_path_factory.mktemp("runs") / "first <i>run"
    return make_run(folder, Photographs(table, sizes, ids))


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Chromium, if it is installed."""
    playwright = pytest.importorskip("playwright.sync_api")
    program = shutil.which("chromium") or shutil.which("google-chrome")
    if program is None:
        pytest.skip("Chromium is not installed")
    with playwright.sync_playwright() as play:
        started = play.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture
def visit(browser) -> Iterator[Any]:
    """Opens a page; at the end nothing may have been fetched, and no error be in the console."""
    problems: list[str] = []
    contexts = []

    def open_page(path: Path, width: int = 1200, scheme: str = "light") -> Any:
        size = {"width": width, "height": 900}
        contexts.append(browser.new_context(viewport=size, color_scheme=scheme, offline=True))
        opened = contexts[-1].new_page()
        opened.on("console", lambda message: problems.append(f"{message.type}: {message.text}"))
        opened.on("pageerror", lambda error: problems.append(str(error)))
        opened.on("dialog", lambda dialog: problems.append(f"a dialog: {dialog.message}"))
        opened.on("request", lambda request: fetched.append(request.url))
        fetched: list[str] = []
        opened.goto(path.absolute().as_uri())
        outside = [url for url in fetched[1:] if not url.startswith("data:")]
        assert outside == []
        return opened

    yield open_page
    for context in contexts:
        context.close()
    assert problems == []


# ======================================================================== what one sees


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1200, 400])
def test_the_page_at_two_widths_in_light_and_dark(hostile, visit, width, scheme) -> None:
    opened = visit(hostile / "report" / page.PAGE, width, scheme)
    assert opened.evaluate("document.documentElement.scrollWidth") == width  # nothing sticks out
    raw = opened.screenshot(full_page=True)
    with Image.open(io.BytesIO(raw)) as picture:
        assert picture.width == width
        assert picture.height > 2000
        corner = np.asarray(picture.convert("L"))[:10, :10].mean()
        assert corner > 240 if scheme == "light" else corner < 40
        assert len(picture.convert("RGB").getcolors(1 << 24)) > 1000  # pictures are there
    smallest = opened.evaluate(
        """Math.min(...[...document.querySelectorAll("p, td, th, button, li, svg text")]
        .filter((e) => e.textContent.trim() && e.getBoundingClientRect().width)
        .map((e) => e instanceof SVGElement ? e.getBoundingClientRect().height / 1.25
             : parseFloat(getComputedStyle(e).fontSize)))"""
    )
    assert smallest > 7


def test_names_are_text(hostile, visit) -> None:
    """The literal names, and none of them an element."""
    opened = visit(hostile / "report" / page.PAGE)
    rows = opened.locator("#classes1 tbody tr th bdi")
    assert rows.all_text_contents() == list(HOSTILE)
    assert opened.locator("#confusion1 thead th bdi").all_text_contents() == list(HOSTILE)
    tips = opened.locator("#classes1 .gauge").evaluate_all("all => all.map((e) => e.title)")
    assert [tip.rpartition(":")[0] for tip in tips] == list(HOSTILE)
    assert opened.locator("h1").text_content() == "first <i>run"
    assert opened.locator("#facts code").first.text_content() == (
        "fcn-jax train --config=<b>mine</b>"
    )
    shown = opened.locator(".shot h4 bdi").all_text_contents()
    assert len(shown) == len(set(shown)) == 9
    assert all(name.rpartition("/")[0] in HOSTILE for name in shown)
    assert opened.locator("b, i, img[src=x], [onerror]").count() == 0
    assert "49" not in opened.locator("#classes1 tbody th").all_text_contents()
    assert opened.locator("script").count() == 1  # no other than the page's


def test_a_heading_sorts(hostile, visit) -> None:
    opened = visit(hostile / "report" / page.PAGE)
    scores = json.loads((hostile / "report" / "scores.json").read_text())["stages"]["fcn8s"]
    iu = {name: row["iu"] for name, row in scores["classes"].items()}
    heading = opened.locator("#classes1 th", has_text="IU fcn8s").first
    names = opened.locator("#classes1 tbody tr th bdi")
    heading.locator("button").click()
    assert heading.get_attribute("aria-sort") == "descending"
    assert names.all_text_contents() == sorted(iu, key=iu.__getitem__, reverse=True)
    opened.keyboard.press("Enter")  # the button has the focus
    assert heading.get_attribute("aria-sort") == "ascending"
    assert names.all_text_contents() == sorted(iu, key=iu.__getitem__)
    opened.locator("#classes1 th button").first.click()
    assert names.all_text_contents() == list(HOSTILE)


def test_the_keyboard_reaches_everything(hostile, visit) -> None:
    """Slider and choice of an image; whatever scrolls sideways can be focused."""
    opened = visit(hostile / "report" / page.PAGE, 400)
    shot = opened.locator(".shot").first
    choices = shot.locator(".panels button")
    assert choices.all_text_contents()[:2] == ["image", "ground truth"]
    assert choices.nth(4).get_attribute("aria-pressed") == "true"  # fcn8s
    slider = shot.locator("input")
    slider.focus()
    opened.keyboard.press("End")
    assert slider.input_value() == "100"
    opened.keyboard.press("Tab")
    opened.keyboard.press("Tab")
    opened.keyboard.press("Space")
    assert choices.nth(1).get_attribute("aria-pressed") == "true"
    assert shot.locator(".over").get_attribute("src") == (
        choices.nth(1).locator("img").get_attribute("src")
    )
    assert slider.get_attribute("aria-label").startswith("How much of the photograph is covered")
    stuck = opened.evaluate(
        """[...document.querySelectorAll("main *")].filter((e) => e.scrollWidth > e.clientWidth + 1
        && ["auto", "scroll"].includes(getComputedStyle(e).overflowX) && e.tabIndex < 0).length"""
    )
    assert stuck == 0


def test_what_the_page_tells(hostile, visit) -> None:
    """The numbers of scores.json, the start of the run, and the pairs that are confused most."""
    opened = visit(hostile / "report" / page.PAGE)
    scores = json.loads((hostile / "report" / "scores.json").read_text())["stages"]
    figures = opened.locator(".figures dd").all_text_contents()
    assert figures == [f"{scores['fcn8s'][name]:.3f}" for name in page.METRICS]
    gains = opened.locator("#classes1 td.signed").all_text_contents()
    for gain, name in zip(gains, HOSTILE, strict=True):
        of = [scores[stage]["classes"][name]["iu"] for stage in ("fcn32s", "fcn8s")]
        assert gain == f"{of[1] - of[0]:+.3f}"
    summary = (
        "shapes · 8 classes · trained on 1\u202f234 images of train · scored on 16 images of val"
    )
    assert opened.locator(".summary").text_content() == f"{summary} · vgg16"
    facts = opened.locator("#facts").text_content()
    for text in ("0123456789ab", "jax 0.10.0", "2 × cpu", "1\u202f234 images of train"):
        assert text in facts
    assert "2026-01-02 03:04:05 UTC; went on 1 times" in facts
    assert "0:01:25 h" in facts
    with (hostile / "report" / "confusion_fcn8s.csv").open(newline="", encoding="utf-8") as file:
        rows = [[int(cell) for cell in row[1:]] for row in list(csv.reader(file))[1:]]
    pairs = [(n, i, j) for i, row in enumerate(rows) for j, n in enumerate(row) if i != j]
    most, i, j = max(pairs)
    cells = opened.locator(".pairs tbody tr").first.locator("th, td").all_text_contents()
    assert cells[:3] == [HOSTILE[i], HOSTILE[j], page.number(most)]
    assert cells[3] == f"{100 * most / sum(rows[i]):.1f} %"
    assert cells[4] == f"{100 * most / sum(n for n, _, _ in pairs):.1f} %"
    assert opened.locator("#curves svg").count() == 2
    assert opened.locator("#curves .legend").first.text_content() == (
        "in trainingon the scored images"
    )
    assert "fcn16s" in opened.locator("#curves svg text").all_text_contents()


def test_two_hundred_classes_and_a_large_image(tmp_path, visit, monkeypatch) -> None:
    def draw(path: Path, *_: Any, **__: Any) -> None:  # tests/test_report.py looks at the plot
        Image.new("RGB", (1, 1)).save(path)

    monkeypatch.setattr(report, "draw_confusion", draw)
    table = table_from_names([f"class {HOSTILE[0]} {i}" for i in range(200)])
    source = Photographs(table, [(800, 1600), (50, 90), (97, 131)], ["large", "b", "c"])
    folder = make_run(tmp_path / "run", source, STAGES[:1]) / "report"
    assert (folder / page.PAGE).stat().st_size < 20e6
    before = time.perf_counter()
    opened = visit(folder / page.PAGE)
    assert time.perf_counter() - before < 10  # 2 s, where nothing else runs
    legend = opened.locator(".shot .legend").first.locator("li").all_text_contents()
    assert len(legend) == page.MOST_IN_LEGEND + 1
    assert re.fullmatch(r"and \d+ more", legend[-1])
    assert opened.locator(".matrix img").evaluate("e => e.naturalWidth") == 200
    matrix = opened.locator(".matrix")
    matrix.focus()
    for key in ("ArrowDown", "ArrowRight", "ArrowDown"):
        opened.keyboard.press(key)
    counts = np.loadtxt(
        folder / "confusion_fcn32s.csv", np.int64, delimiter=",", skiprows=1, usecols=range(1, 201)
    )
    part = 100 * counts[2, 1] / counts[2].sum()
    name = f"class {HOSTILE[0]}"
    text = f"{name} 2 taken for {name} 1: {counts[2, 1]} pixels, {part:.1f} %"
    assert matrix.locator("output").text_content() == text
    sides = opened.locator("img").evaluate_all(
        "a => a.map(e => Math.max(e.naturalWidth, e.naturalHeight))"
    )
    assert max(sides) == 512
    colors = {tuple(color) for color in table.palette[[*range(200), 255]].tolist()}
    assert len(colors) == 201
    with Image.open(next((folder / "gallery").glob("label_00001_ground_truth.png"))) as labels:
        np.testing.assert_array_equal(np.asarray(labels), source[1]["label"])
        assert labels.mode == "P"


def test_two_heads(tmp_path) -> None:
    """Each has its own sections, classes and pictures."""
    tables = {"label": table_from_names("sky, road"), "geo metry": table_from_names("flat, steep")}

    class Both(Photographs):
        def __getitem__(self, index: SupportsIndex) -> dict[str, Any]:
            example = super().__getitem__(index)
            return {**example, "geo metry": 1 - np.minimum(example["label"], 1)}

    source = Both(tables["label"], [(30, 40)], ["one"])
    source.label_maps = tables
    results = []
    for head, table in tables.items():
        truth = source[0][head]
        scores = np.array([score_image(truth, np.zeros_like(truth), 2)])
        counts = np.diag(np.bincount(truth[truth != 255].ravel(), minlength=2))
        maps = {0: np.zeros_like(truth)}
        tally = Tally(counts, np.zeros(1), scores)
        results.append(report.StageResult("fcn8s", head, table, 3, tally, maps, maps))
    report.write(results, source, tmp_path)
    text = (tmp_path / page.PAGE).read_text()
    for part in ("Scores", "Classes", "Confusion", "Images"):
        for number, head in enumerate(tables, 1):
            assert (
                f'id="h-{part.lower().replace("images", "gallery")}{number}">{part} of {head}<'
                in text
            )
    names = {path.name for path in (tmp_path / "gallery").iterdir()}
    assert {"label_00000_fcn8s.png", "geo_metry_00000_errors.png"} < names
    assert text.count('class="shot"') == 2


# ======================================================================== several runs


def test_several_runs_side_by_side(hostile, tmp_path, visit, capsys) -> None:
    """Classes go by name, images are those that all have."""
    classes = ClassTable(tuple(ClassRow(name, (9, 9, i)) for i, name in enumerate(HOSTILE[::-1])))
    ids = [f"{name}/{i}" for i, name in enumerate(HOSTILE)][:4]
    second = make_run(tmp_path / "second", Photographs(classes, [(40, 50)] * 4, ids), STAGES[:1])
    target = tmp_path / "both.html"
    assert cli_report.main([str(hostile), str(second), f"--output={target}"]) == 0
    assert capsys.readouterr().out == f"report in {target}\n"
    opened = visit(target)
    assert opened.locator("h1").text_content() == "first <i>run and second"
    assert opened.locator("#scores1 tbody tr").count() == 4
    scores = [
        json.loads((run / "report" / "scores.json").read_text())["stages"][stage]["classes"]
        for run, stage in ((hostile, "fcn8s"), (second, "fcn32s"))
    ]
    rows = opened.locator("#classes1 tbody tr")
    for number, name in enumerate(HOSTILE):
        cells = rows.nth(number).locator("td").all_text_contents()
        iu = [of[name]["iu"] for of in scores]
        assert cells[:2] == [f"{value:.3f}" for value in iu]
        assert cells[2] == f"{iu[1] - iu[0]:+.3f}".replace("-", "−")
    shots = opened.locator(".shot")
    assert sorted(shots.locator("h4 bdi").all_text_contents()) == sorted(ids)
    assert shots.first.locator(".panels button").count() == 4
    legend = shots.first.locator(".legend li").all_text_contents()
    assert len(legend) == page.MOST_IN_LEGEND + 1  # of both, whose colours differ, and void
    assert legend[-1] == "and 3 more"
    assert opened.locator(".confusion").count() == 2
    plots = opened.locator("#curves svg")
    assert plots.count() == 3
    axes = [[*plots.nth(i).locator("text").all_text_contents()] for i in range(3)]
    assert ["steps" in texts for texts in axes] == [True, True, False]
    assert "minutes" in axes[2]
    assert "1.25" in axes[2]  # the first run's last record is of second 85
    assert "2.00" not in axes[2]
    marks = re.findall(r' id="([^"]+)"', target.read_text())
    assert len(marks) == len(set(marks))
    assert opened.evaluate("document.documentElement.scrollWidth") == 1200


def test_a_page_is_written_again(hostile, tmp_path, capsys) -> None:
    """From the run's folder, or from a report in another place."""
    run = tmp_path / "run"
    shutil.copytree(hostile, run)
    before = (run / "report" / page.PAGE).read_text()
    (run / "report" / page.PAGE).unlink()
    assert cli_report.main([str(run)]) == 0
    again = (run / "report" / page.PAGE).read_text()
    assert re.sub(r"\s+", "", again).count('class="shot"') == before.count('class="shot"') == 9
    (run / "report").rename(run / "other")
    assert cli_report.main([str(run / "other"), f"--output={tmp_path / 'x.html'}"]) == 0
    assert "0123456789ab" in (tmp_path / "x.html").read_text()


def test_damaged_records_leave_their_places_empty(hostile, tmp_path) -> None:
    """The scores are whole, and `fcn-jax eval` must be able to write its page."""
    run = tmp_path / "run"
    shutil.copytree(hostile, run)
    (run / "config.json").write_text('{"dataset": ')
    (run / "starts.jsonl").write_bytes(b'{"versions": ["jax"], "command": 3}\n[]\n\xff\n')
    (run / "metrics.jsonl").write_text(
        '{"stage": "fcn8s", "step": 3, "loss": "much", "wall_time": []}\n{"step": 1}\nnull\n'
    )
    assert cli_report.main([str(run)]) == 0
    text = (run / "report" / page.PAGE).read_text()
    assert text.count('class="shot"') == 9
    assert "<svg" not in text


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda s: s["classes"]["label"]["colors"].__setitem__(0, "red;}"), "'red;}' is no colour"),
        (lambda s: s["gallery"]["label"][0]["files"].update(image="../../secret.png"), "is not in"),
        (lambda s: s["gallery"]["label"][0]["files"].update(image="scores.json"), "no picture"),
        (lambda s: s.pop("gallery"), "KeyError: 'gallery'"),
        (lambda s: s.update(stages=[]), "damaged"),
    ],
)
def test_a_report_of_somebody_else(hostile, tmp_path, capsys, damage, message) -> None:
    """Nothing but its own pictures comes into the page."""
    run = tmp_path / "run"
    shutil.copytree(hostile, run)
    Image.new("RGB", (3, 3)).save(tmp_path / "secret.png")
    scores = json.loads((run / "report" / "scores.json").read_text())
    damage(scores)
    (run / "report" / "scores.json").write_text(json.dumps(scores))
    target = tmp_path / "page.html"
    assert cli_report.main([str(run), f"--output={target}"]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert f"{run}" in error
    assert error.count("\n") == 1
    assert not target.exists()


def test_what_is_no_report(tmp_path, capsys) -> None:
    assert cli_report.main([str(tmp_path)]) == 2
    told = capsys.readouterr().err
    assert f"{tmp_path} has no report; fcn-jax eval --workdir={tmp_path} writes one" in told
    assert cli_report.main([str(tmp_path), str(tmp_path)]) == 2
    assert "a run is given twice" in capsys.readouterr().err


# ======================================================================== in training


def test_the_page_of_a_run_in_training(hostile, tmp_path, visit, capsys) -> None:
    run = tmp_path / "run"
    shutil.copytree(hostile, run, ignore=shutil.ignore_patterns("report"))
    (run / "samples").mkdir()
    Image.new("RGB", (60, 20), "green").save(run / "samples" / "fcn8s_sample0.png")
    journal = Journal(run, STAGES)
    journal.page()
    path = run / "report" / page.PAGE
    told = capsys.readouterr().out
    assert told == f"curves and samples, written after evaluations: {path}\n"
    opened = visit(path, 400)
    assert "The run is being trained" in opened.locator(".note").text_content()
    rows = opened.locator("#so-far tbody tr")
    assert rows.nth(2).locator("th, td").all_text_contents() == ["fcn8s", "25", *["0.600"] * 4]
    assert opened.locator("#curves svg").count() == 2
    assert opened.locator("#samples img").evaluate("e => e.naturalWidth") == 60
    assert opened.evaluate("document.documentElement.scrollWidth") == 400

    Journal(run, STAGES, silent=True).page()
    shutil.rmtree(run / "report")
    (run / "report").write_text("")  # in the way: training goes on
    journal.page(at_once=True)
    assert f"{path} could not be written: " in capsys.readouterr().out


def test_the_page_is_not_written_at_every_evaluation_of_a_fast_run(tmp_path, monkeypatch) -> None:
    clock, written = [0.0], []
    monkeypatch.setattr("time.monotonic", lambda: clock[0])
    monkeypatch.setattr("fcn_jax.training.journal.read_run", lambda *_, **__: None)
    monkeypatch.setattr(
        "fcn_jax.training.journal.write_page", lambda *_, **__: written.append(clock[0])
    )
    with Journal(tmp_path, STAGES) as journal:
        for clock[0] in (0.0, 3.0, 9.0, 11.0, 12.0, 21.0, 22.0):
            journal.page()
        clock[0] = 30.0
    assert written == [0.0, 11.0, 21.0, 30.0]  # with the last evaluation at the end
    with journal:
        clock[0] = 50.0
        journal.page()
    assert written[4:] == [50.0]  # nothing is to be made up for


def test_the_start_of_a_run_is_recorded(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("sys.argv", ["/bin/fcn-jax", "train", "--config=mine", "--workdir=a b"])
    Journal(tmp_path, STAGES).start()
    Journal(tmp_path, STAGES).start()
    Journal(tmp_path, STAGES, silent=True).start()
    starts = [json.loads(line) for line in (tmp_path / "starts.jsonl").read_text().splitlines()]
    assert len(starts) == 2
    assert starts[0]["command"] == "fcn-jax train --config=mine '--workdir=a b'"
    assert {"jax", "flax", "fcn_jax", "python"} <= set(starts[0]["versions"])
    assert re.fullmatch(r"[0-9a-f]{12}(-dirty)?", starts[0]["commit"] or "0" * 12)


# ======================================================================== files


@pytest.mark.parametrize(
    ("values", "groups"),
    [
        ([0.3], ["lowest"]),
        ([0.3, 0.1], ["highest", "lowest"]),
        ([0.3, 0.1, 0.2], ["highest", "lowest", "median"]),
        ([0.1, np.nan, 0.2, 0.3], ["lowest", None, "median", "highest"]),
        ([0.9, 0.8, 0.1, 0.2, 0.3, 0.5, 0.6, 0.7, 0.4], [*"hhlllmmhm"]),
        ([i / 10 for i in range(11)], [*"lll", None, *"mmm", None, *"hhh"]),
    ],
)
def test_the_images_of_the_gallery(values, groups) -> None:
    images = np.tile(np.array(values)[:, None, None], (1, 3, 2))
    tally = Tally(np.eye(2, dtype=np.int64), np.zeros(1), images)
    table = table_from_names("a, b")
    found = report.extremes(report.StageResult("fcn8s", "label", table, 1, tally, {}))
    letters = {name[0]: name for name in page.GROUPS}
    expected = [letters.get(group, group) if group else None for group in groups]
    assert [found.get(index) for index in range(len(values))] == expected


def test_no_cell_is_a_formula(hostile) -> None:
    """A spreadsheet takes text for a formula by its first character; a reader gets all else."""
    for path in (hostile / "report").glob("*.csv"):
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.reader(file))
        assert len({len(row) for row in rows}) == 1, path
        assert not [cell for row in rows for cell in row if cell[:1] in "=+-@\t\r" and cell], path
    with (hostile / "report" / "per_class.csv").open(newline="", encoding="utf-8") as file:
        names = [row["class"] for row in csv.DictReader(file) if row["stage"] == "fcn8s"]
    assert names == ["'=1+1" if name == "=1+1" else name for name in HOSTILE]
