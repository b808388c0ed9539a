"""Scores every stage of a run on whole images, and writes what people read of it."""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import functools
import json
import math
import re
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int64, UInt8
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Column, Table

from fcn_jax import drawing
from fcn_jax.canvas import rule_for
from fcn_jax.classes import ClassTable
from fcn_jax.data import Source, bands, loader, unseen
from fcn_jax.data.source import examples_of
from fcn_jax.data.transforms import Example
from fcn_jax.devices import local_mesh
from fcn_jax.inference.evaluation import evaluate
from fcn_jax.inference.metrics import Metrics, compute_metrics
from fcn_jax.inference.predictor import Predictor
from fcn_jax.runs import Which, available_stages, last_checkpoint, load_run, trained_on

METRICS = {
    "pixel_accuracy": "pixel acc.",
    "mean_accuracy": "mean acc.",
    "mean_iu": "mean IU",
    "frequency_weighted_iu": "f.w. IU",
}
"""The paper's four metrics: the field of `Metrics` and the heading of its column."""


@dataclasses.dataclass(frozen=True)
class StageResult:
    """How one head of a stage did on the label maps of its name."""

    stage: str
    head: str
    classes: ClassTable
    step: int  # of the checkpoint
    counts: Int64[np.ndarray, "c c"]  # rows are the ground truth, columns the prediction
    labels: Mapping[int, UInt8[np.ndarray, "_ _"]]  # predicted, of the images to be drawn, by index

    @functools.cached_property
    def metrics(self) -> Metrics:
        """The metrics of the confusion matrix."""
        return compute_metrics(self.counts, self.classes.scored)


def evaluate_run(
    workdir: str | Path,
    source: Source,
    *,
    stages: Sequence[str] | None = None,
    which: Which = "best",
    output: str | Path | None = None,
    limit: int | None = None,
    pictures: int = 8,
    precision: str | None = None,
    include_training_images: bool = False,
    allow_code: bool | str = False,
    console: Console | None = None,
) -> list[StageResult]:
    """Scores stages of a run on all local devices, prints the metrics and writes the report folder.

    Stages are all that have a checkpoint, unless some are given, such as ``["fcn8s"]``. ``limit``
    scores the first so many images only; ``pictures`` of those scored, spread evenly, are drawn.
    The report's folder is ``workdir/report`` unless ``output`` is given; a report that is there
    is replaced when the new one is complete.

    Images that the run, or one that it started from, was trained on are left out and told of,
    unless ``include_training_images``.

    Raises:
        FileNotFoundError: If the folder is no run's, or holds no checkpoint yet.
        ValueError: If a stage has no checkpoint, the data do not fit the run, or the run was
            trained on all images.
    """
    workdir = Path(workdir).expanduser()
    present = available_stages(workdir)
    if not present:
        raise FileNotFoundError(f"{workdir} holds no checkpoint yet; let train.py reach the first")
    stages = present if stages is None else stages
    if missing := [stage for stage in stages if stage not in present]:
        raise ValueError(
            f"{workdir} has no checkpoint of {missing[0]!r}; it has {', '.join(present)}"
        )
    console = console or Console(soft_wrap=True)
    last = last_checkpoint(workdir)
    seen = trained_on(last.run) if last else frozenset[str]()
    whole, remark = len(source), ""
    if not include_training_images:
        remedy = "give another --split, or --include_training_images"
        source, remark = unseen(source, seen, remedy)
    count = min(limit or len(source), len(source))
    learned = [source.ids[i] for i in range(count) if source.digests[i] in seen]
    if learned:
        remark = f"scores include images that were trained on: {examples_of(learned)} of {count}"
    if remark:
        console.print(remark, markup=False, highlight=False)
    images = {"split": whole, "left_out": whole - len(source)}
    images |= {"scored": count, "trained_on": len(learned)}
    drawn = set(np.linspace(0, count - 1, min(pictures, count)).round().astype(int).tolist())
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    results = []
    with Progress(*columns, TextColumn("images"), TimeRemainingColumn(), console=console) as bar:
        tasks = {stage: bar.add_task(stage, total=count) for stage in stages}
        for stage, task in tasks.items():  # one network in memory at a time
            run = load_run(workdir, stage, which, precision, allow_code=allow_code)
            config: Any = run.config
            check_classes(stage, run.heads, source.label_maps)
            predictor = Predictor(
                run.model,
                run.variables,
                run.inputs,
                run.heads,
                scale=config.scale,
                batch_size=config.eval_batch_size,
                canvas=rule_for(source.sizes),
                mesh=local_mesh(),
            )
            examples = enumerate(loader.evaluation_examples(source, range(count)))
            maps: dict[int, dict[str, np.ndarray]] = {}

            def keep(example: Example, labels: dict[str, np.ndarray], maps: Any = maps):
                if example["index"] in drawn:
                    maps[example["index"]] = labels

            counts = evaluate(
                predictor,
                ({**example, "index": index} for index, example in examples),
                progress=lambda done, task=task: bar.update(task, completed=done),
                visit=keep,
            )
            for head, table in run.heads.items():
                labels = {index: maps[index][head] for index in sorted(maps)}
                results.append(StageResult(stage, head, table, run.step, counts[head], labels))
    folder = workdir / "report" if output is None else Path(output).expanduser()
    write(results, source, folder, images)
    show(results, console)
    console.print(f"report in {folder}", markup=False, highlight=False)
    return results


def check_classes(
    stage: str, heads: Mapping[str, ClassTable], label_maps: Mapping[str, ClassTable]
) -> None:
    """Raises ValueError if a network was trained on other classes than the data have."""
    for head, classes in heads.items():
        if head not in label_maps:
            known = ", ".join(label_maps)
            raise ValueError(f"{stage} was trained on the labels {head!r}, the data have {known}")
        trained, found = classes.names, label_maps[head].names
        if trained != found:
            raise ValueError(
                f"{stage} was trained on the {len(trained)} classes {', '.join(trained[:5])}..., "
                f"the data have the {len(found)} classes {', '.join(found[:5])}...; they must agree"
            )


def by_head(results: Sequence[StageResult]) -> dict[str, list[StageResult]]:
    """The results of each head."""
    return {each.head: [r for r in results if r.head == each.head] for each in results}


# ======================================================================== on the terminal


def show(results: Sequence[StageResult], console: Console) -> None:
    """Prints the four metrics of each stage, and the table of all classes; for each head."""
    for head, of_head in (heads := by_head(results)).items():
        title, names = f" of {head}" if len(heads) > 1 else "", of_head[0].classes.names
        rows = [
            [result.stage, *(f"{getattr(result.metrics, field):.4f}" for field in METRICS)]
            for result in of_head
        ]
        console.print(_table(f"Metrics{title}", ["stage", *METRICS.values()], rows))

        headings = [text for r in of_head for text in (f"{r.stage} IU", "acc.")]
        pixels = of_head[0].counts.sum(axis=1)
        columns = [
            column
            for result in of_head
            for column in (result.metrics.per_class_iu, result.metrics.per_class_accuracy)
        ]
        rows = [
            [name, f"{part:.2%}", *("-" if math.isnan(v) else f"{v:.4f}" for v in values)]
            for name, part, *values in zip(names, pixels / pixels.sum(), *columns, strict=True)
        ]
        console.print(_table(f"Classes{title}", ["class", "pixels", *headings], rows))

        remarks = {"left out of the means by the data set's rule": of_head[0].metrics.unscored}
        for absent in sorted({result.metrics.absent for result in of_head}):
            stages = ", ".join(r.stage for r in of_head if r.metrics.absent == absent)
            absence = "neither in the ground truth nor predicted, and so left out of the means"
            remarks[f"{stages}: {absence}"] = absent
        for remark, labels in remarks.items():
            if labels:
                listed = ", ".join(names[label] for label in labels)
                console.print(f"{remark}: {listed}", markup=False, highlight=False)


def _table(title: str, headings: Sequence[str], rows: Iterable[Sequence[str]]) -> Table:
    """A table of names in the first column and numbers in the others."""
    first = Column(headings[0], no_wrap=True)
    numbers = (Column(heading, justify="right") for heading in headings[1:])
    table = Table(first, *numbers, title=title, title_justify="left", box=SIMPLE_HEAD)
    for row in rows:
        table.add_row(*map(escape, row))
    return table


# ======================================================================== in the folder


def write(
    results: Sequence[StageResult],
    source: Source,
    folder: str | Path,
    images: Mapping[str, int] | None = None,
) -> None:
    """Writes the report folder; a report that was there before is replaced by the complete new one.

    * ``scores.json``: the data, ``images`` (how many the split has, were left out, were scored, and
      were trained on all the same), and each stage's metrics, overall and by class;
    * ``per_class.csv``: a row for each stage and class;
    * ``confusion_STAGE.csv``, ``.png``: pixel counts, and a plot normalised by row;
    * ``pictures/ID.png``: image, ground truth and each stage's labels, side by side.

    Where there are several heads, names have the head's as well.
    """
    folder = Path(folder).expanduser()
    new = folder / ".incomplete"
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir(parents=True)
    try:
        files = _write_files(results, source, new, images)
        former: list[str] = []
        with contextlib.suppress(FileNotFoundError, ValueError, KeyError, TypeError):
            former = json.loads((folder / "scores.json").read_text())["files"]
        for name in (*files, "scores.json"):
            (folder / name).parent.mkdir(exist_ok=True)
            (new / name).replace(folder / name)
        for name in {*former} - {*files}:
            if (folder / name).resolve().is_relative_to(folder.resolve()):
                (folder / name).unlink(missing_ok=True)
    finally:
        shutil.rmtree(new, ignore_errors=True)


def _write_files(
    results: Sequence[StageResult],
    source: Source,
    folder: Path,
    images: Mapping[str, int] | None,
) -> list[str]:
    """Writes all files of a report into a folder; returns the names of those beside scores.json."""
    heads, files, stages = by_head(results), ["per_class.csv"], {}
    for result in results:
        names = result.classes.names
        stage = result.stage if len(heads) == 1 else f"{result.stage}_{result.head}"
        stages[stage] = _as_json(result)
        rows = [[name, *row] for name, row in zip(names, result.counts.tolist(), strict=True)]
        file = f"confusion_{stage}"
        _write_csv(folder / f"{file}.csv", ["ground truth \\ prediction", *names], rows)
        draw_confusion(folder / f"{file}.png", result.counts, result.classes, title=stage)
        files += [f"{file}.csv", f"{file}.png"]
    rows = [
        [stage, name, *row.values()]
        for stage, content in stages.items()
        for name, row in content["classes"].items()
    ]
    _write_csv(folder / "per_class.csv", ["stage", "class", "pixels", "iu", "accuracy"], rows)
    for head, of_head in heads.items():
        for index in of_head[0].labels:
            example = source[index]
            shown = bands.picture(example["image"], source.ranges["image"])
            panels = {"image": shown, "ground truth": example[head]}
            panels |= {result.stage: result.labels[index] for result in of_head}
            # Ids may hold slashes and more that no file name can, and need not be unique then.
            name = "pictures/" + re.sub(r"[^\w.-]+", "_", example["id"])
            name += f"_{head}" if len(heads) > 1 else ""
            file = f"{name}.png" if f"{name}.png" not in files else f"{name}_{index}.png"
            (folder / file).parent.mkdir(exist_ok=True)
            drawing.side_by_side(panels, of_head[0].classes).save(folder / file)
            files.append(file)
    content = {"data": repr(source), "images": images, "stages": stages, "files": files}
    (folder / "scores.json").write_text(json.dumps(content, indent=2, allow_nan=False) + "\n")
    return files


def _as_json(result: StageResult) -> dict[str, Any]:
    metrics, names = result.metrics, result.classes.names
    columns = {"iu": metrics.per_class_iu, "accuracy": metrics.per_class_accuracy}
    return {
        "step": result.step,
        **{field: getattr(metrics, field) for field in METRICS},
        "absent": [names[label] for label in metrics.absent],
        "unscored": [names[label] for label in metrics.unscored],
        "classes": {
            name: {
                "pixels": int(result.counts[label].sum()),
                **{k: None if np.isnan(v[label]) else float(v[label]) for k, v in columns.items()},
            }
            for label, name in enumerate(names)
        },
    }


def _write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *rows])


def draw_confusion(
    path: str | Path, counts: Int64[np.ndarray, "c c"], classes: ClassTable, *, title: str = ""
) -> None:
    """Plots the parts of each class of the ground truth; rows of absent classes stay empty."""
    from matplotlib.figure import Figure  # not pyplot: that would look for a screen

    pixels = counts.sum(axis=1, keepdims=True)
    parts = np.divide(counts, pixels, out=np.full(counts.shape, np.nan), where=pixels > 0)
    number = classes.num_classes
    side = 2.5 + max(3.0, 0.45 * min(number, 40))
    figure = Figure(figsize=(side + 1, side), layout="constrained")
    axes = figure.add_subplot()
    picture = axes.imshow(parts, cmap="Blues", vmin=0, vmax=1)
    size = 9 if number <= 40 else max(3, 360 / number)
    names, fonts = drawing.legible(classes.names)
    style = {"fontsize": size, "fontfamily": fonts, "parse_math": False}
    axes.set_xticks(range(number), names, rotation=90, **style)
    axes.set_yticks(range(number), names, **style)
    axes.set(xlabel="prediction", ylabel="ground truth")
    axes.set_title(title, parse_math=False)
    if number <= 40:  # more would not be legible
        for row, column in np.argwhere(parts >= 0.005).tolist():
            part = parts[row, column]
            style = {"color": "white" if part > 0.5 else "black", "fontsize": 7}
            axes.text(column, row, f"{100 * part:.0f}", ha="center", va="center", **style)
    figure.colorbar(picture, label="part of the class's pixels", shrink=0.8)
    figure.savefig(Path(path).expanduser(), dpi=150)
