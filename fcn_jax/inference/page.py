"""The page of a report: one or several runs in one HTML file that needs nothing else.

It is made of what a run's folder and its report hold, never of the network: `write_page` reads them
into the dataclasses below, draws the curves, and fills page.html, whose style and script are
page.css and page.js. Whatever these files hold is text to the page: names of classes and images
are escaped, colours and pictures checked, and a Content-Security-Policy forbids all else.
"""

from __future__ import annotations

import base64
import contextlib
import csv
import dataclasses
import datetime
import hashlib
import io
import itertools
import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int64
from PIL import Image

from fcn_jax.config import default_config, to_plain
from fcn_jax.runs import write_whole

PAGE = "index.html"
"""The page's name in a report's folder."""

METRICS = {
    "pixel_accuracy": "pixel acc.",
    "mean_accuracy": "mean acc.",
    "mean_iu": "mean IU",
    "frequency_weighted_iu": "f.w. IU",
}
"""The paper's four metrics: the field of `Metrics` and the heading of its column."""

FURTHER = {
    "mean_precision": "mean prec.",
    "mean_f1": "mean F1",
    "mean_boundary_iu": "boundary IU",
    "mean_boundary_f1": "boundary F1",
    "loss": "loss",
}

OF_CLASS = {
    "precision": "prec.",
    "f1": "F1",
    "boundary_iu": "boundary\nIU",
    "boundary_f1": "boundary\nF1",
    "images": "images",
    "image_iu": "image\nIU",
}
"""What is shown of each class of the last stage beside IU and accuracy (its recall)."""

GROUPS = {
    "lowest": "The lowest IU",
    "median": "In the middle",
    "highest": "The highest IU",
}
"""The groups of images in the gallery, by the mean IU of the last stage."""

MOST_IN_LEGEND = 14
"""The most classes that the legend of an image names, the largest first."""

MOST_CELLS = 26
"""The most classes whose confusion matrix is a table with numbers; of more it is a picture."""


# ======================================================================== what a run left


@dataclasses.dataclass(frozen=True)
class Shown:
    """An image of the gallery: files in the report's folder, made small.

    Attributes:
        id: The image's name in the data set.
        group: One of `GROUPS`, or "" for one that was spread evenly over the set.
        iu: The mean IU of each stage.
        labels: The classes that occur, the largest first; 255 for void.
        files: The photograph, ``image``; its ``ground truth``; the label map of each stage; and
            ``errors`` of the last.
    """

    id: str
    group: str
    iu: Mapping[str, float | None]
    labels: Sequence[int]
    files: Mapping[str, str]


@dataclasses.dataclass(frozen=True)
class Stage:
    """The scores of one head of a stage.

    Attributes:
        name: Such as ``fcn8s``.
        scores: What scores.json holds of it.
        counts: The confusion matrix.
    """

    name: str
    scores: Mapping[str, Any]
    counts: Int64[np.ndarray, "c c"]

    @property
    def classes(self) -> Mapping[str, Mapping[str, Any]]:
        return self.scores["classes"]


@dataclasses.dataclass(frozen=True)
class Head:
    """The stages of one head, and its classes: name and colour, ``#rrggbb``, of each label."""

    classes: Mapping[str, str]
    void: str
    stages: Sequence[Stage]
    gallery: Sequence[Shown]


@dataclasses.dataclass(frozen=True)
class RunFiles:
    """What the folder of a run and its report tell.

    Attributes:
        name: How the run is called on the page.
        folder: The report's folder.
        config: The fields of config.json.
        starts: The lines of starts.jsonl.
        records: The lines of metrics.jsonl.
        scores: scores.json, but for its stages; empty while the run is trained.
        heads: What was scored, by the name of the head.
        samples: Sample predictions of the last stage, files, while the run is trained.
    """

    name: str
    folder: Path
    config: Mapping[str, Any]
    starts: Sequence[Mapping[str, Any]]
    records: Sequence[Mapping[str, Any]]
    scores: Mapping[str, Any]
    heads: Mapping[str, Head]
    samples: Sequence[Path]


def folders_of(run: Path) -> tuple[Path, Path]:
    """The folders of a run and of its report, of which either is given."""
    if (run / "scores.json").is_file() and not (run / "config.json").is_file():
        return run.absolute().parent, run
    return run, run / "report"


def read_run(workdir: Path, folder: Path, *, training: bool = False) -> RunFiles:
    """Reads a run's folder and its report; of one in ``training`` not the report.

    Raises:
        FileNotFoundError: If there is no report.
        ValueError: If a file is damaged, or the report of a version that had no page.
    """
    path = folder / "scores.json"
    if not training and not path.is_file():
        raise FileNotFoundError(
            f"{workdir} has no report; fcn-jax eval --workdir={workdir} writes one"
        )
    scores: dict[str, Any] = {}
    heads: dict[str, Head] = {}
    samples: list[Path] = []
    config: Any = {}
    with contextlib.suppress(OSError, ValueError, RecursionError):  # `runs.read_config` tells it
        config = json.loads((workdir / "config.json").read_text(encoding="utf-8"))
    try:
        if not training:
            scores = json.loads(path.read_text(encoding="utf-8"))
            heads = {name: _read_head(folder, name, scores) for name in scores["classes"]}
        starts = list(_json_lines(workdir / "starts.jsonl"))
        records = [
            record
            for record in _json_lines(workdir / "metrics.jsonl")
            if isinstance(record.get("stage"), str) and isinstance(record.get("step"), int)
        ]
        if training and records:
            samples = sorted((workdir / "samples").glob(f"{records[-1]['stage']}_sample*.png"))
        name = workdir.absolute().name
        config = config if isinstance(config, dict) else {}
        run = RunFiles(name, folder, config, starts, records, scores, heads, samples)
        for head in heads:
            of_head([run], head)  # what is missing is missed here
        facts([run])
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        reason = f"{type(error).__name__}: {error}" if isinstance(error, LookupError) else error
        raise ValueError(
            f"{path} is damaged, or of another version ({reason!s:.300}); "
            f"fcn-jax eval --workdir={workdir} writes it anew"
        ) from error
    return run


def _json_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The objects of a file, but for damaged lines, of which `training.journal` tells."""
    for line in path.read_bytes().splitlines() if path.is_file() else ():
        try:
            found = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(found, dict):
            yield found


def _read_head(folder: Path, head: str, scores: Mapping[str, Any]) -> Head:
    stages = []
    for key, of_stage in scores["stages"].items():
        if of_stage["head"] == head:
            with _inside(folder, f"confusion_{key}.csv").open(newline="", encoding="utf-8") as file:
                rows = list(csv.reader(file))[1:]
            counts = np.array([[int(cell) for cell in row[1:]] for row in rows], np.int64)
            stages.append(Stage(of_stage["stage"], of_stage, counts))
    table = scores["classes"][head]
    gallery = [Shown(**fields) for fields in scores["gallery"][head]]
    return Head(
        {name: _color(color) for name, color in zip(table["names"], table["colors"], strict=True)},
        _color(table["void"]),
        stages,
        gallery,
    )


def _color(text: str) -> str:
    if not re.fullmatch("#[0-9a-f]{6}", text):
        raise ValueError(f"{text!r} is no colour")
    return text


def _inside(folder: Path, name: str) -> Path:
    """A file of a folder, whose name somebody else may have written."""
    path = folder / name
    if not path.resolve().is_relative_to(folder.resolve()):
        raise ValueError(f"{name!r} is not in {folder}")
    return path


# ======================================================================== the page


def write_page(
    runs: Sequence[RunFiles], path: Path, *, training: bool = False, links: bool = False
) -> None:
    """Writes the page of runs side by side; at any moment the file is the old or the new one.

    Args:
        training: Tell that the run is still trained.
        links: Link to the files of the report, in whose folder the page lies.
    """
    import jinja2
    from markupsafe import Markup

    if len({run.name for run in runs}) < len(runs):
        runs = [dataclasses.replace(run, name=str(run.folder)) for run in runs]
    here = Path(__file__).parent
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(here),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": number, "signed": signed}
    style, script = ((here / f"page.{kind}").read_text(encoding="utf-8") for kind in ("css", "js"))
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    heads = dict.fromkeys(itertools.chain.from_iterable(run.heads for run in runs))
    text = environment.get_template("page.html").render(
        runs=runs,
        training=training,
        links=runs[0].scores.get("files", []) if links else [],
        summary=summary(runs[0]),
        facts=facts(runs),
        settings=settings(runs),
        curves=[{**plot, "svg": Markup(plot["svg"])} for plot in curves(runs)],
        heads=[of_head(runs, name) for name in heads],
        so_far=[evaluations(run) for run in runs] if training else [],
        samples=[(path.stem, _picture(path)) for run in runs for path in run.samples],
        metrics=METRICS,
        style=Markup(style),
        script=Markup(script),
        digest=digest,
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, text)


def number(value: object) -> str:
    """A number as people read it: whole ones in groups of three, others with three decimals."""
    value = _real(value)
    if value is None:
        return "–"
    whole = f"{value:,}".replace(",", "\N{NARROW NO-BREAK SPACE}")
    return whole if isinstance(value, int) else f"{value:.3f}"


def signed(value: float | None) -> str:
    """A difference, with its sign."""
    return "–" if value is None else f"{value:+.3f}".replace("-", "\N{MINUS SIGN}")


def summary(run: RunFiles) -> str:
    """A run in a line."""
    told = _facts(run)
    several = len(run.heads) > 1
    counts = [
        f"{len(head.classes)} classes{f' of {name}' if several else ''}"
        for name, head in run.heads.items()
    ]
    parts = [told["Data"], *counts]
    for name in ("Trained on", "Scored on"):
        parts.append(told[name] and f"{name.lower()} {told[name]}")
    return " · ".join(filter(None, [*parts, told["Backbone"]]))


def facts(runs: Sequence[RunFiles]) -> dict[str, list[str]]:
    """What was trained on what: a row of texts for each question, a text for each run."""
    columns = [_facts(run) for run in runs]
    rows = {name: [column[name] for column in columns] for name in columns[0]}
    return {name: row for name, row in rows.items() if any(row)}


def _facts(run: RunFiles) -> dict[str, str]:
    config, scores = run.config, run.scores
    steps = {stage.name: stage.scores["step"] for h in run.heads.values() for stage in h.stages}
    networks = [f"{name} (step {step})" for name, step in steps.items()] or config.get("stages", ())
    trained, scored = config.get("train_split", ""), ""
    if images := (scores.get("trained") or {}).get("images"):
        trained = f"{number(images)} images of {trained}"
    if images := scores.get("images"):
        scored = f"{number(images['scored'])} images of {scores.get('split')}"
        if images["left_out"]:
            scored += f"; {images['left_out']} that were trained on are left out"
        if images["trained_on"]:
            scored += f"; {images['trained_on']} of them were trained on"
    how = ["averaged parameters"] if scores.get("averaged_parameters") else []
    if views := scores.get("test_time_augmentation"):
        how.append(f"mean of views: flip {views['flip']}, scales {views['scales']}")
    first, *more = run.starts or [{}]
    last = [first, *more][-1]
    began = str(first.get("time", "")).replace("T", " ").replace("+00:00", " UTC")
    began += f"; went on {len(more)} times" if more else ""
    seconds = [s for record in run.records if (s := _real(record.get("wall_time"))) is not None]
    versions = last.get("versions")
    found = {
        "Data": config.get("dataset"),
        "Trained on": trained,
        "Scored on": scored,
        "Scores of": ", ".join(how),
        "Classes": "; ".join(
            f"{len(h.classes)}: {', '.join(h.classes)}" for h in run.heads.values()
        ),
        "Networks": ", ".join(networks),
        "Backbone": config.get("backbone"),
        "Started from": config and (config.get("init") or "random weights"),
        "Command": first.get("command"),
        "Commit": last.get("commit"),
        "Versions": ", ".join(f"{k} {v}" for k, v in versions.items())
        if isinstance(versions, dict)
        else "",
        "Devices": last.get("devices"),
        "Began": began,
        "Took": seconds and f"{datetime.timedelta(seconds=round(max(seconds)))} h",
    }
    return {name: str(text or "") for name, text in found.items()}


def settings(runs: Sequence[RunFiles]) -> dict[str, list[str]]:
    """The fields of the config that differ from the default in any of the runs."""
    usual = to_plain(default_config())
    names = {n for run in runs for n, value in run.config.items() if value != usual.get(n)}
    return {
        name: [json.dumps(run.config.get(name), ensure_ascii=False) for run in runs]
        for name in sorted(names)
    }


def evaluations(run: RunFiles) -> list[dict[str, Any]]:
    """The last evaluation of each stage of a run in training."""
    found = {r["stage"]: r for r in run.records if "eval/mean_iu" in r}
    return [
        {"stage": name, "step": r["step"], **{k: r.get(f"eval/{k}") for k in METRICS}}
        for name, r in found.items()
    ]


# ------------------------------------------------------------------------ a head


def of_head(runs: Sequence[RunFiles], name: str) -> dict[str, Any]:
    """All that the page shows of one head of the runs that have it."""
    having = [run for run in runs if name in run.heads]
    tables = [run.heads[name].classes for run in having]
    colors = {class_: color for table in tables for class_, color in table.items()}
    colors |= tables[0]
    return {
        "name": name,
        "overall": overall(having, name),
        "columns": class_columns(having, name),
        "rows": class_rows(having, name, colors),
        "colors": colors,
        "confusions": [
            {"run": run.name, **confusion(run.heads[name].stages[-1])} for run in having
        ],
        "gallery": gallery(having, name),
    }


def overall(runs: Sequence[RunFiles], head: str) -> dict[str, Any]:
    """The table of the scores of every stage; ``best`` has the best value of each column."""
    names = {**METRICS, **FURTHER, "median_image_iu": "median image IU"}
    rows = []
    for run in runs:
        for stage in run.heads[head].stages:
            spread = stage.scores["image_iu"]
            values = {**stage.scores, "median_image_iu": spread["50%"]}
            rows.append((run.name, stage.name, [values.get(key) for key in names]))
    best = []
    for key, column in zip(names, zip(*(row[2] for row in rows), strict=True), strict=True):
        there = [value for value in column if value is not None]
        choose = min if key == "loss" else max
        best.append(choose(there) if len(there) > 1 else None)
    return {"names": list(names.values()), "rows": rows, "best": best}


def class_columns(runs: Sequence[RunFiles], head: str) -> list[tuple[str, str]]:
    """Heading and kind of each column of the table of classes: bar, signed, share or plain.

    Of several runs the last stages are compared, of one its stages.
    """
    if len(runs) > 1:
        columns = [(f"IU {run.name}", "bar") for run in runs]
        return [*columns, ("last − first", "signed"), ("pixels", "share")]
    *stages, last = (stage.name for stage in runs[0].heads[head].stages)
    columns = [(f"IU {last}", "bar")]
    if stages:
        columns.append((f"gain from {stages[0]}", "signed"))
    columns += [(f"IU {stage}", "plain") for stage in stages]
    further = ("acc.", *OF_CLASS.values())
    return [*columns, ("pixels", "share"), *((heading, "plain") for heading in further)]


def class_rows(
    runs: Sequence[RunFiles], head: str, names: Iterable[str]
) -> list[tuple[str, list[float | None]]]:
    """A row of numbers for each class, as `class_columns` names them."""
    stages = [run.heads[head].stages[-1] for run in runs]
    if len(runs) == 1:
        *earlier, last = runs[0].heads[head].stages
        stages = [last, *earlier]
    total = sum(row["pixels"] for row in stages[0].classes.values())
    rows = []
    for name in names:
        found = [stage.classes.get(name, {}) for stage in stages]
        iu = [_real(row.get("iu")) for row in found]
        if len(iu) > 1:
            first, last = (iu[1], iu[0]) if len(runs) == 1 else (iu[0], iu[-1])
            difference = None if first is None or last is None else last - first
            iu.insert(1 if len(runs) == 1 else len(iu), difference)
        pixels = _real(found[0].get("pixels"))
        share = None if pixels is None else pixels / total
        keys = ("accuracy", *OF_CLASS) if len(runs) == 1 else ()
        rows.append((name, [*iu, share, *(_real(found[0].get(key)) for key in keys)]))
    return rows


def _real(value: object) -> float | int | None:
    """A number of a file; None of anything else."""
    return value if isinstance(value, int | float) and math.isfinite(value) else None


def confusion(stage: Stage) -> dict[str, Any]:
    """The confusion matrix of a stage: parts of the rows, and the pairs that are confused most."""
    names, counts = list(stage.classes), stage.counts
    pixels = counts.sum(axis=1, keepdims=True)
    parts = np.divide(counts, pixels, out=np.zeros(counts.shape), where=pixels > 0)
    wrong = counts * ~np.eye(len(counts), dtype=bool)
    order = np.argsort(-wrong, axis=None, kind="stable")[:10]
    pairs = [
        (names[i], names[j], int(wrong[i, j]), float(parts[i, j]), float(wrong[i, j] / wrong.sum()))
        for i, j in zip(*np.unravel_index(order, wrong.shape), strict=True)
        if wrong[i, j]
    ]
    found: dict[str, Any] = {"stage": stage.name, "names": names, "pairs": pairs, "picture": ""}
    if len(names) <= MOST_CELLS:
        return found | {"parts": parts.tolist(), "counts": counts.tolist()}
    # Blue on white in the light, and the page inverts it in the dark.
    shade = np.array([255, 255, 255]) - parts[..., None] ** 0.5 * np.array([247, 207, 148])
    picture = Image.fromarray(shade.round().astype(np.uint8))
    return found | {
        "picture": _data_uri(picture, "png"),
        "data": {"names": names, "counts": counts.tolist()},
    }


def gallery(runs: Sequence[RunFiles], head: str) -> list[dict[str, Any]]:
    """The groups of images: of one run as `GROUPS` says, of several the images that all have."""
    heads = [run.heads[head] for run in runs]
    several = len(runs) > 1
    if several:
        named = [{each.id: each for each in of_run.gallery} for of_run in heads]
        common = [name for name in named[0] if all(name in each for each in named)]
        title = "The images that all of them have"
        groups = {title: [tuple(each[name] for each in named) for name in common]}
    else:
        groups = {
            title: [(each,) for each in heads[0].gallery if each.group == group]
            for group, title in GROUPS.items()
        }
    found = []
    for title, shown in groups.items():
        images = []
        for of_runs in shown:
            panels: list[tuple[str, float | None, str]] = [
                (what, None, _picture(_inside(runs[0].folder, of_runs[0].files[what])))
                for what in ("image", "ground truth")
            ]
            for run, scored, each in zip(runs, heads, of_runs, strict=True):
                stages = [stage.name for stage in scored.stages]
                for stage in stages[-1:] if several else stages:
                    heading = f"{run.name}, {stage}" if several else stage
                    picture = _picture(_inside(run.folder, each.files[stage]))
                    panels.append((heading, each.iu[stage], picture))
            chosen = len(panels) - 1
            if not several:
                picture = _picture(_inside(runs[0].folder, of_runs[0].files["errors"]))
                panels.append((f"errors of {heads[0].stages[-1].name}", None, picture))
            colors: dict[tuple[str, str], None] = {}  # in their order
            for scored, each in zip(heads, of_runs, strict=True):
                known = {**dict(enumerate(scored.classes.items())), 255: ("void", scored.void)}
                colors |= dict.fromkeys(known[label] for label in each.labels)
            images.append(
                {
                    "id": of_runs[0].id,
                    "iu": [of.iu[h.stages[-1].name] for h, of in zip(heads, of_runs, strict=True)],
                    "panels": panels,
                    "chosen": chosen,
                    "legend": list(colors)[:MOST_IN_LEGEND],
                    "more": max(0, len(colors) - MOST_IN_LEGEND),
                }
            )
        if images:
            found.append({"title": title, "images": images})
    return found


def _picture(path: Path) -> str:
    """A picture file as an address that holds it."""
    kind = {".png": "png", ".jpg": "jpeg"}.get(path.suffix)
    if kind is None:
        raise ValueError(f"{path} is no picture")
    return f"data:image/{kind};base64,{base64.b64encode(path.read_bytes()).decode()}"


def _data_uri(picture: Image.Image, kind: str) -> str:
    file = io.BytesIO()
    picture.save(file, kind)
    return f"data:image/{kind};base64,{base64.b64encode(file.getvalue()).decode()}"


# ======================================================================== curves

_INK = "#010203"  # stands for the page's colour of text, as these do for its colours of curves:
_SERIES = [f"#0a0b0{i}" for i in range(1, 9)]
_MOST_POINTS = 600


class Curve(NamedTuple):
    """A curve of a plot, in one part for each stage: steps or minutes, and values."""

    name: str
    color: str
    parts: Sequence[tuple[Sequence[float], Sequence[float]]]
    measured: bool = True  # at each evaluation, not after every few steps


def curves(runs: Sequence[RunFiles]) -> list[dict[str, Any]]:
    """Plots of loss and scores over the steps, of several runs' losses also over the time.

    Their title, legend, and SVG.
    """
    colors = itertools.cycle(_SERIES)
    losses, scores, over_time = [], [], []
    if len(runs) == 1:
        (run,) = runs
        names = {"loss": "in training", "eval/loss": "on the scored images"}
        for key, color in zip(names, colors, strict=False):
            losses.append(Curve(names[key], color, _points(run, key), key != "loss"))
        for (key, text), color in zip(METRICS.items(), _SERIES, strict=False):
            scores.append(Curve(text, color, _points(run, f"eval/{key}")))
    for run, color in zip(runs, colors, strict=False) if len(runs) > 1 else ():
        losses.append(Curve(f"{run.name}, in training", color, _points(run, "loss"), False))
        losses.append(Curve(f"{run.name}, scored", color, _points(run, "eval/loss")))
        scores.append(Curve(run.name, color, _points(run, "eval/mean_iu")))
        over_time.append(Curve(run.name, color, _points(run, "loss", "minutes"), False))
    ends = _ends(runs[0]) if len(runs) == 1 else {}
    plots = [
        ("Loss per pixel", losses, "steps"),
        ("Mean IU" if len(runs) > 1 else "Scores", scores, "steps"),
        ("Loss per pixel over the time", over_time, "minutes"),
    ]
    return [
        {
            "title": title,
            "legend": [(f"var(--s{_SERIES.index(c.color) + 1})", c) for c in found if c.parts],
            "svg": _plot(title, found, ends, over),
        }
        for title, found, over in plots
        if any(curve.parts for curve in found)
    ]


def _points(run: RunFiles, key: str, over: str = "steps") -> list[tuple[list[float], list[float]]]:
    """The parts of a curve, whose steps or minutes count from the run's first."""
    ends = _ends(run)
    before = dict(zip(ends, (0, *ends.values()), strict=False))
    parts: dict[str, tuple[list[float], list[float]]] = {}
    for record in run.records:
        value, seconds = _real(record.get(key)), _real(record.get("wall_time"))
        if value is None or (over == "minutes" and seconds is None):
            continue
        places, values = parts.setdefault(record["stage"], ([], []))
        step = before[record["stage"]] + record["step"]
        places.append(step if over == "steps" else (seconds or 0) / 60)
        values.append(value)
    every = {stage: -(-len(places) // _MOST_POINTS) for stage, (places, _) in parts.items()}
    return [(x[:: every[stage]], y[:: every[stage]]) for stage, (x, y) in parts.items()]


def _ends(run: RunFiles) -> dict[str, int]:
    """Where each stage ends, in steps from the run's first."""
    last: dict[str, int] = {}
    for record in run.records:
        last[record["stage"]] = max(record["step"], last.get(record["stage"], 0))
    return dict(zip(last, itertools.accumulate(last.values()), strict=True))


def _plot(title: str, found: Sequence[Curve], ends: Mapping[str, int], over: str) -> str:
    """An SVG in the colours of the page, whose text is text; with a line where a stage ends."""
    import matplotlib
    from matplotlib.figure import Figure  # not pyplot: that would look for a screen
    from matplotlib.ticker import MaxNLocator

    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": title}):
        figure = Figure(figsize=(5.4, 3.1), layout="constrained")
        axes = figure.add_subplot()
        for curve in found:
            form = {"marker": "o", "markersize": 4, "linestyle": "--"} if curve.measured else {}
            for places, values in curve.parts:
                axes.plot(places, values, color=curve.color, linewidth=1.6, **form)
        axes.set_xlim(left=0)
        axes.set_ylim(bottom=0)
        axes.set_xlabel(over, color=_INK)
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=over == "steps"))
        for stage, end in ends.items():
            axes.axvline(end, color=_INK, linewidth=0.6, alpha=0.4)
            style = {"rotation": 90, "ha": "right", "va": "bottom", "fontsize": 9, "alpha": 0.7}
            place = {"xycoords": ("data", "axes fraction"), "textcoords": "offset points"}
            axes.annotate(stage, (end, 0), (-2, 4), color=_INK, **style, **place)
        axes.grid(axis="y", color=_INK, alpha=0.12, linewidth=0.8)
        axes.tick_params(colors=_INK, length=3)
        axes.spines[["top", "right"]].set_visible(False)
        axes.spines[["left", "bottom"]].set_color(_INK)
        figure.patch.set_alpha(0)
        axes.patch.set_alpha(0)
        file = io.StringIO()
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(file, format="svg", metadata=nothing)
    text = file.getvalue().replace(_INK, "currentColor")
    for i, color in enumerate(_SERIES, 1):
        text = text.replace(color, f"var(--s{i})")
    # Two plots of a page must not share names.
    mark = title.lower().replace(" ", "-")
    text = re.sub(r'(id="|url\(#|href="#)', rf"\g<1>{mark}-", text)
    box = re.search('viewBox="[^"]*"', text)
    assert box
    return (
        f'<svg {box[0]} role="img" aria-label="{title}">' + text[text.index(">", box.end()) + 1 :]
    )
