"""Scores every stage of a run on whole images, and writes what people read of it.

`evaluate_run` does all; under it, `evaluate_stages` computes and `write` and `show` tell.
"""

from __future__ import annotations

import csv
import dataclasses
import json
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

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
from fcn_jax.runs import Run, Which, available_stages, load_run

FIGURES = {
    "pixel_accuracy": "pixel acc.",
    "mean_accuracy": "mean acc.",
    "mean_iu": "mean IU",
    "frequency_weighted_iu": "f.w. IU",
}
"""The paper's four figures: the field of `Metrics` and the heading of its column."""


class Source(loader.Source, Protocol):
    """What is scored on: random access to examples, their sizes, and the label maps' classes."""

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
        head: Its output, and the label map that it was scored on.
        classes: The classes of that output.
        step: The step of its checkpoint.
        counts: The confusion matrix; rows are the truth, columns the prediction.
        labels: Predicted label maps of the images chosen to be drawn, by index in the source.
    """

    stage: str
    head: str
    classes: ClassTable
    step: int
    counts: Int64[np.ndarray, "c c"]
    labels: Mapping[int, UInt8[np.ndarray, "h w"]]

    @property
    def scores(self) -> Metrics:
        """The figures of the confusion matrix."""
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
    """Scores stages of a run on a source, prints the figures and writes the report folder.

    Args:
        workdir: The ``--workdir`` of train.py.
        source: Images with their true labels.
        stages: Such as ``["fcn8s"]``; None is all that have a checkpoint.
        which: The checkpoint of the highest mean IU on the validation split, or the last.
        output: The report folder (see `write`); None is ``workdir/report``.
        limit: Score the first so many images only.
        pictures: How many images to draw, spread evenly over those scored.
        precision: In what to compute; None is as in training.
        console: Where to print; None is the terminal.

    Raises:
        FileNotFoundError: If the folder is no run's, or holds no checkpoint yet.
        ValueError: If a stage has no checkpoint, or the data do not fit the run.
    """
    names = _choose_stages(workdir, stages)
    console = console or Console(soft_wrap=True)
    runs = (
        load_run(workdir, stage, which, precision) for stage in names
    )  # in memory one at a time
    with _progress(console) as bar:
        total = min(limit or len(source), len(source))
        tasks = {name: bar.add_task(name, total=total) for name in names}
        results = evaluate_stages(
            runs,
            source,
            limit=limit,
            pictures=pictures,
            progress=lambda stage, images: bar.advance(tasks[stage], images),
        )
    folder = Path(workdir) / "report" if output is None else Path(output)
    write(results, source, folder)
    show(results, console)
    console.print(f"report in {folder}", markup=False, highlight=False)
    return results


def _choose_stages(workdir: str | Path, stages: Sequence[str] | None) -> list[str]:
    present = available_stages(workdir)
    if not present:
        raise FileNotFoundError(f"{workdir} holds no checkpoint yet; let train.py reach the first")
    for stage in stages or ():
        if stage not in present:
            raise ValueError(
                f"{workdir} has no checkpoint of {stage!r}; it has {', '.join(present)}"
            )
    return present if stages is None else list(stages)


def _progress(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("images"),
        TimeRemainingColumn(),
        console=console,
    )


# ======================================================================== computing


def evaluate_stages(
    runs: Iterable[Run],
    source: Source,
    *,
    limit: int | None = None,
    pictures: int = 0,
    progress: Callable[[str, int], object] | None = None,
) -> list[StageResult]:
    """Scores networks on the same images, whole and at their original size, on all local devices.

    There is a result for each network and each of its heads.

    Args:
        runs: The networks; each is taken from the iterable when its turn comes.
        source: Images with their true labels.
        limit: The first so many images only; None or 0 is all.
        pictures: Keep the label maps of so many images, spread evenly over those scored.
        progress: Called with the stage and the number of images done since the last call.

    Raises:
        ValueError: If a network was trained on other classes than the source has.
    """
    count = min(limit or len(source), len(source))
    drawn = set(np.linspace(0, count - 1, min(pictures, count)).round().astype(int).tolist())
    mesh = local_mesh()
    results = []
    for run in runs:
        _check_classes(run, source)
        config: Any = run.config
        labels: dict[str, dict[int, np.ndarray]] = {head: {} for head in run.heads}

        def keep(example: Example, predicted: dict[str, np.ndarray], labels: dict = labels) -> None:
            if example["index"] in drawn:
                for head, values in predicted.items():
                    labels[head][example["index"]] = values

        def advance(images: int, stage: str = run.stage) -> None:
            if progress is not None:
                progress(stage, images)

        counts = evaluate(
            run.model,
            run.variables,
            _numbered(source, count),
            num_classes={head: classes.num_classes for head, classes in run.heads.items()},
            preprocessing=run.inputs,
            scale=config.scale,
            batch_size=config.eval_batch_size,
            canvas=rule_for(source.sizes),
            mesh=mesh,
            progress=advance,
            visit=keep,
        )
        results += [
            StageResult(
                run.stage, head, classes, run.step, counts[head], dict(sorted(labels[head].items()))
            )
            for head, classes in run.heads.items()
        ]
    return results


def _numbered(source: Source, count: int) -> Iterator[Example]:
    """The first examples, read ahead, each with its index; evaluation groups them by size."""
    for index, example in enumerate(loader.evaluation_examples(source, range(count))):
        yield {**example, "index": index}


def _check_classes(run: Run, source: Source) -> None:
    for head, classes in run.heads.items():
        if head not in source.label_maps:
            raise ValueError(
                f"{run.stage} was trained on the labels {head!r}, the data have "
                f"{', '.join(source.label_maps)}"
            )
        trained, found = classes.names, source.label_maps[head].names
        if trained != found:
            raise ValueError(
                f"{run.stage} was trained on the {len(trained)} classes "
                f"{', '.join(trained[:5])}..., the data have the {len(found)} classes "
                f"{', '.join(found[:5])}...; they must agree"
            )


def by_head(results: Sequence[StageResult]) -> dict[str, list[StageResult]]:
    """The results of each head."""
    heads: dict[str, list[StageResult]] = {}
    for result in results:
        heads.setdefault(result.head, []).append(result)
    return heads


# ======================================================================== on the terminal


def show(results: Sequence[StageResult], console: Console) -> None:
    """Prints the four figures of each stage, and the table of all classes; for each head."""
    heads = by_head(results)
    for head, of_head in heads.items():
        _show_head(of_head, console, title=f" of {head}" if len(heads) > 1 else "")


def _show_head(results: Sequence[StageResult], console: Console, title: str) -> None:
    figures = Table(title=f"Scores{title}", title_justify="left", box=SIMPLE_HEAD)
    figures.add_column("stage")
    for heading in FIGURES.values():
        figures.add_column(heading, justify="right")
    for result in results:
        values = [f"{getattr(result.scores, field):.4f}" for field in FIGURES]
        figures.add_row(result.stage, *values)
    console.print(figures)

    classes = results[0].classes
    table = Table(title=f"Classes{title}", title_justify="left", box=SIMPLE_HEAD)
    table.add_column("class", no_wrap=True)
    table.add_column("pixels", justify="right")
    for result in results:
        table.add_column(f"{result.stage} IU", justify="right")
        table.add_column("acc.", justify="right")
    truth = results[0].counts.sum(axis=1)
    all_scores = [result.scores for result in results]
    for label, name in enumerate(classes.names):
        pairs = ((s.per_class_iu[label], s.per_class_accuracy[label]) for s in all_scores)
        cells = ["-" if math.isnan(value) else f"{value:.4f}" for pair in pairs for value in pair]
        table.add_row(escape(name), f"{truth[label] / truth.sum():.2%}", *cells)
    console.print(table)

    def remark(text: str, labels: Sequence[int]) -> None:
        names = ", ".join(classes.names[label] for label in labels)
        console.print(f"{text}: {names}", markup=False, highlight=False)

    if unscored := all_scores[0].unscored:
        remark("left out of the means by the data set's rule", unscored)
    for absent in sorted({figure.absent for figure in all_scores} - {()}):
        stages = [r.stage for r, s in zip(results, all_scores, strict=True) if s.absent == absent]
        remark(
            f"{', '.join(stages)}: neither in the truth nor predicted, and so left out of the "
            "means",
            absent,
        )


# ======================================================================== in the folder


def write(results: Sequence[StageResult], source: Source, folder: str | Path) -> None:
    """Writes the report folder; the files of a report that was there before are replaced.

    * ``scores.json``: the data, and each stage's figures, overall and by class;
    * ``per_class.csv``: a row for each stage and class;
    * ``confusion_STAGE.csv``, ``.png``: pixel counts, and a plot normalised by row;
    * ``pictures/ID.png``: image, truth and each stage's labels, side by side.

    Args:
        results: Of the same images.
        source: Where they came from.
        folder: Made if absent.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    _remove_previous(folder)
    heads = by_head(results)
    files = ["per_class.csv"]
    _write_per_class(folder / "per_class.csv", results)
    for result in results:
        name = f"confusion_{_named(result, heads)}"
        _write_confusion(folder / f"{name}.csv", result.counts, result.classes)
        title = _named(result, heads, " ")
        draw_confusion(folder / f"{name}.png", result.counts, result.classes, title=title)
        files += [f"{name}.csv", f"{name}.png"]
    for head, of_head in heads.items():
        suffix = f"_{head}" if len(heads) > 1 else ""
        files += _write_pictures(folder, of_head, source, suffix, taken=files)
    content = {
        "data": repr(source),
        "stages": {_named(result, heads): _as_json(result) for result in results},
        "files": files,
    }
    (folder / "scores.json").write_text(json.dumps(content, indent=2, allow_nan=False) + "\n")


def _named(result: StageResult, heads: Mapping[str, Any], between: str = "_") -> str:
    """The stage's name, with the head's where there are several."""
    return result.stage if len(heads) == 1 else f"{result.stage}{between}{result.head}"


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
    figures, classes = result.scores, result.classes
    per_class = {
        name: {
            "pixels": int(result.counts[label].sum()),
            "iu": _or_none(figures.per_class_iu[label]),
            "accuracy": _or_none(figures.per_class_accuracy[label]),
        }
        for label, name in enumerate(classes.names)
    }
    return {
        "step": result.step,
        **{field: getattr(figures, field) for field in FIGURES},
        "absent": [classes.names[label] for label in figures.absent],
        "unscored": [classes.names[label] for label in figures.unscored],
        "classes": per_class,
    }


def _or_none(value: float) -> float | None:
    return None if math.isnan(value) else float(value)


def _write_per_class(path: Path, results: Sequence[StageResult]) -> None:
    heads = by_head(results)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["stage", "class", "pixels", "iu", "accuracy"])
        for result in results:
            stage = _named(result, heads)
            for name, row in _as_json(result)["classes"].items():
                writer.writerow([stage, name, row["pixels"], row["iu"], row["accuracy"]])


def _write_confusion(path: Path, counts: Int64[np.ndarray, "c c"], classes: ClassTable) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["truth \\ prediction", *classes.names])
        for name, row in zip(classes.names, counts.tolist(), strict=True):
            writer.writerow([name, *row])


def draw_confusion(
    path: str | Path, counts: Int64[np.ndarray, "c c"], classes: ClassTable, *, title: str = ""
) -> None:
    """Plots a confusion matrix as parts of each true class, in a PNG file.

    Rows of classes that are not in the truth stay empty.
    """
    from matplotlib.figure import Figure  # not pyplot: that would look for a screen

    truth = counts.sum(axis=1, keepdims=True)
    parts = np.divide(counts, truth, out=np.full(counts.shape, np.nan), where=truth > 0)
    number = classes.num_classes
    side = 2.5 + max(3.0, 0.45 * min(number, 40))
    figure = Figure(figsize=(side + 1, side), layout="constrained")
    axes = figure.add_subplot()
    picture = axes.imshow(parts, cmap="Blues", vmin=0, vmax=1)
    size = 9 if number <= 40 else max(3, 360 / number)
    axes.set_xticks(range(number), classes.names, rotation=90, fontsize=size)
    axes.set_yticks(range(number), classes.names, fontsize=size)
    axes.set_xlabel("prediction")
    axes.set_ylabel("truth")
    axes.set_title(title)
    if number <= 40:  # more would not be legible
        for row, column in np.argwhere(parts >= 0.005).tolist():
            part = parts[row, column]
            color = "white" if part > 0.5 else "black"
            label = f"{100 * part:.0f}"
            axes.text(column, row, label, ha="center", va="center", color=color, fontsize=7)
    figure.colorbar(picture, label="part of the true class", shrink=0.8)
    figure.savefig(path, dpi=150)


def _write_pictures(
    folder: Path, results: Sequence[StageResult], source: Source, suffix: str, taken: Sequence[str]
) -> list[str]:
    """Draws the kept label maps of one head; returns the files, relative to the folder."""
    files: list[str] = []
    for index in results[0].labels:
        example = source[index]
        panels = {"image": example["image"], "truth": example[results[0].head]}
        panels |= {result.stage: result.labels[index] for result in results}
        # Ids may hold slashes and more that no file name can, and need not be unique then.
        name = "pictures/" + re.sub(r"[^\w.-]+", "_", example["id"]) + suffix
        file = f"{name}.png" if f"{name}.png" not in (*taken, *files) else f"{name}_{index}.png"
        (folder / file).parent.mkdir(exist_ok=True)
        drawing.side_by_side(panels, results[0].classes).save(folder / file)
        files.append(file)
    return files
