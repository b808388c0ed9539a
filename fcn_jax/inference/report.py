"""Scores every stage of a run on whole images, and writes what people read of it.

`evaluate_run` does all; `show` prints the metrics, and `write` fills the report's folder.
"""

from __future__ import annotations

import csv
import dataclasses
import functools
import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int64, UInt8
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from fcn_jax import drawing
from fcn_jax.canvas import rule_for
from fcn_jax.classes import ClassTable
from fcn_jax.data import loader
from fcn_jax.data.transforms import Example
from fcn_jax.devices import local_mesh
from fcn_jax.inference.evaluation import evaluate
from fcn_jax.inference.metrics import Metrics, compute_metrics
from fcn_jax.inference.predictor import Predictor
from fcn_jax.runs import Which, available_stages, load_run

METRICS = {
    "pixel_accuracy": "pixel acc.",
    "mean_accuracy": "mean acc.",
    "mean_iu": "mean IU",
    "frequency_weighted_iu": "f.w. IU",
}
"""The paper's four metrics: the field of `Metrics` and the heading of its column."""


@runtime_checkable
class Source(loader.Source, Protocol):
    """Random access to the images, their sizes, and the classes of their label maps."""

    label_maps: dict[str, ClassTable]

    @property
    def sizes(self) -> Sequence[tuple[int, int]]:
        """Height and width of every image."""
        ...


@dataclasses.dataclass(frozen=True)
class StageResult:
    """How one stage did on one kind of labels.

    Attributes:
        stage: The network.
        head: Its head, and the label map that it was scored on.
        classes: The classes of that head.
        step: The step of its checkpoint.
        counts: The confusion matrix; rows are the ground truth, columns the prediction.
        labels: Predicted label maps of the images chosen to be drawn, by index in the source.
    """

    stage: str
    head: str
    classes: ClassTable
    step: int
    counts: Int64[np.ndarray, "c c"]
    labels: Mapping[int, UInt8[np.ndarray, "_ _"]]

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
    console: Console | None = None,
) -> list[StageResult]:
    """Scores stages of a run on a source, prints the metrics and writes the report folder.

    All local devices compute. There is a result for each stage and each of its heads.

    Args:
        workdir: The ``--workdir`` of train.py.
        source: Images with their ground truth.
        stages: Such as ``["fcn8s"]``; None is all that have a checkpoint.
        which: The checkpoint of the highest mean IU on the validation split, or the last.
        output: The report folder (see `write`); None is ``workdir/report``.
        limit: Score the first so many images only; None or 0 is all.
        pictures: How many images to draw, spread evenly over those scored.
        precision: In what to compute; None is as in training.
        console: Where to print; None is the terminal.

    Raises:
        FileNotFoundError: If the folder is no run's, or holds no checkpoint yet.
        ValueError: If a stage has no checkpoint, or the data do not fit the run.
    """
    present = available_stages(workdir)
    if not present:
        raise FileNotFoundError(f"{workdir} holds no checkpoint yet; let train.py reach the first")
    stages = present if stages is None else stages
    if missing := [stage for stage in stages if stage not in present]:
        raise ValueError(
            f"{workdir} has no checkpoint of {missing[0]!r}; it has {', '.join(present)}"
        )
    count = min(limit or len(source), len(source))
    drawn = set(np.linspace(0, count - 1, min(pictures, count)).round().astype(int).tolist())
    console = console or Console(soft_wrap=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    results = []
    with Progress(*columns, TextColumn("images"), TimeRemainingColumn(), console=console) as bar:
        tasks = {stage: bar.add_task(stage, total=count) for stage in stages}
        for stage, task in tasks.items():  # one network in memory at a time
            run = load_run(workdir, stage, which, precision)
            config: Any = run.config
            check_classes(stage, run.heads, source.label_maps)
            labels: dict[str, dict[int, np.ndarray]] = {head: {} for head in run.heads}

            def keep(example: Example, predicted: Mapping[str, np.ndarray], labels: Any = labels):
                if example["index"] in drawn:
                    for head, values in predicted.items():
                        labels[head][example["index"]] = values

            counts = evaluate(
                Predictor(
                    run.model,
                    run.variables,
                    run.inputs,
                    run.heads,
                    scale=config.scale,
                    batch_size=config.eval_batch_size,
                    canvas=rule_for(source.sizes),
                    mesh=local_mesh(),
                ),
                _numbered(source, count),
                progress=lambda done, task=task: bar.update(task, completed=done),
                visit=keep,
            )
            for head, table in run.heads.items():
                kept = dict(sorted(labels[head].items()))
                results.append(StageResult(stage, head, table, run.step, counts[head], kept))
    folder = Path(workdir) / "report" if output is None else Path(output)
    write(results, source, folder)
    show(results, console)
    console.print(f"report in {folder}", markup=False, highlight=False)
    return results


def _numbered(source: Source, count: int) -> Iterator[Example]:
    """The first examples, read ahead, each with its index; evaluation groups them by size."""
    for index, example in enumerate(loader.evaluation_examples(source, range(count))):
        yield {**example, "index": index}


def check_classes(
    stage: str, heads: Mapping[str, ClassTable], label_maps: Mapping[str, ClassTable]
) -> None:
    """Raises ValueError if a network was trained on other classes than the data have."""
    for head, classes in heads.items():
        if head not in label_maps:
            raise ValueError(
                f"{stage} was trained on the labels {head!r}, the data have {', '.join(label_maps)}"
            )
        trained, found = classes.names, label_maps[head].names
        if trained != found:
            raise ValueError(
                f"{stage} was trained on the {len(trained)} classes {', '.join(trained[:5])}..., "
                f"the data have the {len(found)} classes {', '.join(found[:5])}...; they must agree"
            )


def by_head(results: Sequence[StageResult]) -> dict[str, list[StageResult]]:
    """The results of each head."""
    heads: dict[str, list[StageResult]] = {}
    for result in results:
        heads.setdefault(result.head, []).append(result)
    return heads


# ======================================================================== on the terminal


def show(results: Sequence[StageResult], console: Console) -> None:
    """Prints the four metrics of each stage, and the table of all classes; for each head."""
    for head, of_head in (heads := by_head(results)).items():
        title = f" of {head}" if len(heads) > 1 else ""
        metrics = Table(title=f"Metrics{title}", title_justify="left", box=SIMPLE_HEAD)
        metrics.add_column("stage")
        for heading in METRICS.values():
            metrics.add_column(heading, justify="right")
        for result in of_head:
            values = [f"{getattr(result.metrics, field):.4f}" for field in METRICS]
            metrics.add_row(result.stage, *values)
        console.print(metrics)

        classes = of_head[0].classes
        table = Table(title=f"Classes{title}", title_justify="left", box=SIMPLE_HEAD)
        table.add_column("class", no_wrap=True)
        table.add_column("pixels", justify="right")
        for result in of_head:
            table.add_column(f"{result.stage} IU", justify="right")
            table.add_column("acc.", justify="right")
        pixels = of_head[0].counts.sum(axis=1)
        for label, name in enumerate(classes.names):
            values = [
                value
                for metrics in (result.metrics for result in of_head)
                for value in (metrics.per_class_iu[label], metrics.per_class_accuracy[label])
            ]
            cells = ["-" if math.isnan(value) else f"{value:.4f}" for value in values]
            table.add_row(escape(name), f"{pixels[label] / pixels.sum():.2%}", *cells)
        console.print(table)

        remarks = {"left out of the means by the data set's rule": of_head[0].metrics.unscored}
        for absent in sorted({result.metrics.absent for result in of_head}):
            stages = ", ".join(r.stage for r in of_head if r.metrics.absent == absent)
            absence = "neither in the ground truth nor predicted, and so left out of the means"
            remarks[f"{stages}: {absence}"] = absent
        for remark, labels in remarks.items():
            if labels:
                names = ", ".join(classes.names[label] for label in labels)
                console.print(f"{remark}: {names}", markup=False, highlight=False)


# ======================================================================== in the folder


def write(results: Sequence[StageResult], source: Source, folder: str | Path) -> None:
    """Writes the report folder; the files of a report that was there before are replaced.

    * ``scores.json``: the data, and each stage's metrics, overall and by class;
    * ``per_class.csv``: a row for each stage and class;
    * ``confusion_STAGE.csv``, ``.png``: pixel counts, and a plot normalised by row;
    * ``pictures/ID.png``: image, ground truth and each stage's labels, side by side.

    Args:
        results: Of the same images.
        source: Where they came from.
        folder: Made if absent.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    _remove_previous(folder)
    heads = by_head(results)

    def named(result: StageResult, between: str = "_") -> str:
        """The stage's name, with the head's where there are several."""
        return result.stage if len(heads) == 1 else f"{result.stage}{between}{result.head}"

    stages = {named(result): _as_json(result) for result in results}
    rows = (
        [stage, name, row["pixels"], row["iu"], row["accuracy"]]
        for stage, content in stages.items()
        for name, row in content["classes"].items()
    )
    _write_csv(folder / "per_class.csv", ["stage", "class", "pixels", "iu", "accuracy"], rows)
    files = ["per_class.csv"]
    for result in results:
        names, name = result.classes.names, f"confusion_{named(result)}"
        rows = ([name, *row] for name, row in zip(names, result.counts.tolist(), strict=True))
        _write_csv(folder / f"{name}.csv", ["ground truth \\ prediction", *names], rows)
        title = named(result, " ")
        draw_confusion(folder / f"{name}.png", result.counts, result.classes, title=title)
        files += [f"{name}.csv", f"{name}.png"]
    for head, of_head in heads.items():
        suffix = f"_{head}" if len(heads) > 1 else ""
        files += _draw_pictures(folder, of_head, source, suffix, taken=files)
    content = {"data": repr(source), "stages": stages, "files": files}
    (folder / "scores.json").write_text(json.dumps(content, indent=2, allow_nan=False) + "\n")


def _remove_previous(folder: Path) -> None:
    """Removes what an earlier report lists as its files, lest two reports be mixed."""
    path = folder / "scores.json"
    if not path.exists():
        return
    try:
        files = json.loads(path.read_text())["files"]
    except (ValueError, KeyError, TypeError):
        return
    for name in files:
        if (folder / name).resolve().is_relative_to(folder.resolve()):
            (folder / name).unlink(missing_ok=True)


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
    """Plots a confusion matrix as parts of each class of the ground truth, in a PNG file.

    Rows of classes that are not in the ground truth stay empty.
    """
    from matplotlib.figure import Figure  # not pyplot: that would look for a screen

    pixels = counts.sum(axis=1, keepdims=True)
    parts = np.divide(counts, pixels, out=np.full(counts.shape, np.nan), where=pixels > 0)
    number = classes.num_classes
    side = 2.5 + max(3.0, 0.45 * min(number, 40))
    figure = Figure(figsize=(side + 1, side), layout="constrained")
    axes = figure.add_subplot()
    picture = axes.imshow(parts, cmap="Blues", vmin=0, vmax=1)
    size = 9 if number <= 40 else max(3, 360 / number)
    axes.set_xticks(range(number), classes.names, rotation=90, fontsize=size)
    axes.set_yticks(range(number), classes.names, fontsize=size)
    axes.set_xlabel("prediction")
    axes.set_ylabel("ground truth")
    axes.set_title(title)
    if number <= 40:  # more would not be legible
        for row, column in np.argwhere(parts >= 0.005).tolist():
            part = parts[row, column]
            color = "white" if part > 0.5 else "black"
            label = f"{100 * part:.0f}"
            axes.text(column, row, label, ha="center", va="center", color=color, fontsize=7)
    figure.colorbar(picture, label="part of the class's pixels", shrink=0.8)
    figure.savefig(path, dpi=150)


def _draw_pictures(
    folder: Path, results: Sequence[StageResult], source: Source, suffix: str, taken: Sequence[str]
) -> list[str]:
    """Draws the kept label maps of one head; returns the files, relative to the folder."""
    files: list[str] = []
    for index in results[0].labels:
        example = source[index]
        panels = {"image": example["image"], "ground truth": example[results[0].head]}
        panels |= {result.stage: result.labels[index] for result in results}
        # Ids may hold slashes and more that no file name can, and need not be unique then.
        name = "pictures/" + re.sub(r"[^\w.-]+", "_", example["id"]) + suffix
        file = f"{name}.png" if f"{name}.png" not in (*taken, *files) else f"{name}_{index}.png"
        (folder / file).parent.mkdir(exist_ok=True)
        drawing.side_by_side(panels, results[0].classes).save(folder / file)
        files.append(file)
    return files
