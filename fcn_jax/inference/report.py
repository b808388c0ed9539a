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
import tempfile
import zlib
from collections.abc import Hashable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
from jaxtyping import Float, Int64, Shaped, UInt8
from PIL import Image
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Column, Table

from fcn_jax import drawing
from fcn_jax.canvas import Size, rule_for
from fcn_jax.checkpoints import Which
from fcn_jax.classes import VOID, ClassTable
from fcn_jax.data import Source, bands, loader, unseen
from fcn_jax.data.source import examples_of
from fcn_jax.data.transforms import Example
from fcn_jax.devices import local_mesh
from fcn_jax.inference.compute import describe_views
from fcn_jax.inference.evaluation import Tally, tally
from fcn_jax.inference.metrics import BOUNDARY_WIDTH, BY_CLASS, Metrics
from fcn_jax.inference.outputs import no_formula
from fcn_jax.inference.page import FURTHER, GROUPS, METRICS, OF_CLASS, PAGE, read_run, write_page
from fcn_jax.inference.predictor import Predictor
from fcn_jax.runs import available_stages, last_checkpoint, load_run, read_images, trained_on

QUANTILES = {"min": 0.0, "5%": 0.05, "25%": 0.25, "50%": 0.5, "75%": 0.75, "95%": 0.95, "max": 1.0}


@dataclasses.dataclass(frozen=True)
class StageResult:
    """How one head of a stage did on the label maps of its name."""

    stage: str
    head: str
    classes: ClassTable
    step: int  # of the checkpoint
    tally: Tally  # of the first images of the source
    labels: Mapping[int, UInt8[np.ndarray, "_ _"]]  # predicted, of the images to be drawn, by index
    gallery: Mapping[int, UInt8[np.ndarray, "_ _"]] = dataclasses.field(default_factory=dict)
    """Those of the gallery, `extremes` and the others."""

    @functools.cached_property
    def metrics(self) -> Metrics:
        """The metrics that follow."""
        return self.tally.metrics(self.classes)

    @property
    def by_class(self) -> dict[str, Shaped[np.ndarray, " c"]]:
        """What there is of each class, and in how many images it is."""
        numbers: dict[str, Any] = dict(self.metrics.by_class())
        if self.metrics.per_class_images is not None:
            numbers["images"] = self.metrics.per_class_images
        return numbers


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
    boundary_width: float = BOUNDARY_WIDTH,
    flip: bool = False,
    scales: tuple[float, ...] = (1.0,),
    allow_code: bool | str = False,
    console: Console | None = None,
) -> list[StageResult]:
    """Scores stages of a run on all local devices, prints the metrics and writes the report folder.

    Stages are all that have a checkpoint, unless some are given, such as ``["fcn8s"]``. ``limit``
    scores the first so many images only; ``pictures`` of those scored, spread evenly, are drawn.
    The report's folder is ``workdir/report`` unless ``output`` is given; a report that is there
    is replaced when the new one is complete.

    Images that the run, or one that it started from, was trained on are left out and told of,
    unless ``include_training_images``. For ``boundary_width`` see `fcn_jax.score_image`;
    for ``flip`` and ``scales``, `fcn_jax.Predictor`.

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
    source, count, about, remark = choose_images(workdir, source, limit, include_training_images)
    for text in filter(None, (remark, describe_views(flip, scales))):
        console.print(text, markup=False, highlight=False)
    about["boundary_width"] = boundary_width
    views = {"flip": flip, "scales": list(scales), "averaged": "probabilities"}
    about["test_time_augmentation"] = views if describe_views(flip, scales) else None
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    results = []
    folder = workdir / "report" if output is None else Path(output).expanduser()
    # Label maps wait in a file of that folder or, as `write` is the one to make it, of the nearest
    # above it; where nothing can be written, that file fails before the work.
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    with (
        tempfile.TemporaryFile(dir=existing) as file,
        Progress(*columns, TextColumn("images"), TimeRemainingColumn(), console=console) as bar,
    ):
        waiting = LabelMaps(file)
        tasks = {stage: bar.add_task(stage, total=count) for stage in stages}
        for stage, task in tasks.items():  # one network in memory at a time
            run = load_run(workdir, stage, which, precision, allow_code=allow_code)
            config: Any = run.config
            about["averaged_parameters"] = config.ema > 0  # as in all stages
            check_classes(stage, run.heads, source.label_maps)
            predictor = Predictor(
                run.model,
                run.variables,
                run.inputs,
                run.heads,
                scale=config.scale,
                flip=flip,
                scales=scales,
                batch_size=config.eval_batch_size,
                canvas=rule_for(source.sizes),
                mesh=local_mesh(),
            )
            examples = enumerate(loader.evaluation_examples(source, range(count)))

            def keep(example: Example, labels: dict[str, np.ndarray], stage: str = stage) -> None:
                for head, of_head in labels.items() if pictures else ():
                    waiting.add((stage, head, example["index"]), of_head)

            tallies = tally(
                predictor,
                ({**example, "index": index} for index, example in examples),
                boundary_width=boundary_width,
                progress=lambda done, task=task: bar.update(task, completed=done),
                visit=keep,
            )
            for head, table in run.heads.items():
                results.append(StageResult(stage, head, table, run.step, tallies[head], {}))
        drawn = set(np.linspace(0, count - 1, min(pictures, count)).round().astype(int).tolist())
        for number, result in enumerate(results):
            chosen = {*drawn, *extremes(by_head(results)[result.head][-1])} if pictures else drawn
            labels = {
                index: waiting.get((result.stage, result.head, index), source.sizes[index])
                for index in sorted(chosen)
            }
            of_drawn = {index: labels[index] for index in sorted(drawn)}
            results[number] = dataclasses.replace(result, labels=of_drawn, gallery=labels)
    write(results, source, folder, about, workdir=workdir)
    show(results, source, boundary_width, console)
    console.print(f"report in {folder / PAGE}", markup=False, highlight=False)
    return results


def choose_images(
    workdir: Path, source: Source, limit: int | None, include_training_images: bool
) -> tuple[Source, int, dict[str, Any], str]:
    """Leaves out what a run was trained on.

    Returns:
        The other images, how many of them to score, and both in numbers and in words.

    Raises:
        ValueError: If the run was trained on all images.
    """
    last = last_checkpoint(workdir)
    data = read_images(workdir, last.run.get("data")) if last else None
    seen = trained_on(data)
    whole, remark = len(source), ""
    if not include_training_images:
        remedy = "give another --split, or --include_training_images"
        source, remark = unseen(source, seen, remedy)
    count = min(limit or len(source), len(source))
    learned = [source.ids[i] for i in range(count) if source.digests[i] in seen]
    if learned:
        remark = f"scores include images that were trained on: {examples_of(learned)} of {count}"
    images = {"split": whole, "left_out": whole - len(source)}
    images |= {"scored": count, "trained_on": len(learned)}
    about: dict[str, Any] = {"split": source.split, "images": images}
    about["trained"] = {"images": len(data["train"]["ids"])} if data else None
    return source, count, about, remark


class LabelMaps:
    """Label maps that wait in a file, compressed: which are drawn is known when all are there."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._places: dict[Hashable, tuple[int, int]] = {}  # where each begins, and its length

    def add(self, key: Hashable, labels: UInt8[np.ndarray, "h w"]) -> None:
        place = self._file.tell(), self._file.write(zlib.compress(labels.tobytes(), 1))
        self._places[key] = place

    def get(self, key: Hashable, size: Size) -> UInt8[np.ndarray, "h w"]:
        start, length = self._places[key]
        self._file.seek(start)
        return np.frombuffer(zlib.decompress(self._file.read(length)), np.uint8).reshape(size)


def extremes(result: StageResult) -> dict[int, str]:
    """The images of the lowest, middle and highest mean IU: up to three `GROUPS` of three."""
    values: Any = result.metrics.per_image_iu
    order = np.argsort(values, kind="stable")[: np.count_nonzero(~np.isnan(values))].tolist()
    number = min(3, -(-len(order) // 3))
    middle = (len(order) - number) // 2
    parts = order[:number], order[middle : middle + number], order[::-1][:number]
    found: dict[int, str] = {}
    for group, part in zip(GROUPS, parts, strict=True):
        for index in part:
            found.setdefault(index, group)
    return found


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


def show(
    results: Sequence[StageResult], source: Source, boundary_width: float, console: Console
) -> None:
    """Prints the metrics of each stage, and tables of all classes; for each head."""
    band = f"boundaries: {100 * boundary_width:g} % of the diagonal"
    for head, of_head in (heads := by_head(results)).items():
        title, names = f" of {head}" if len(heads) > 1 else "", of_head[0].classes.names
        for name, fields in ((f"Metrics{title}", METRICS), (f"Further metrics; {band}", FURTHER)):
            rows = [
                [result.stage, *(_text(getattr(result.metrics, field)) for field in fields)]
                for result in of_head
            ]
            console.print(_table(name, ["stage", *fields.values()], rows))

        shown = ("images", "mean", "min", "25%", "50%", "75%", "max")
        rows = []
        for result in of_head:
            spread = distribution(np.asarray(result.metrics.per_image_iu))
            rows.append([result.stage, *(_text(spread[name]) for name in shown)])
        console.print(_table(f"Mean IU of each image{title}", ["stage", *shown], rows))

        headings = [text for r in of_head for text in (f"{r.stage} IU", "acc.")]
        pixels = of_head[0].tally.counts.sum(axis=1)
        columns = [
            column
            for result in of_head
            for column in (result.metrics.per_class_iu, result.metrics.per_class_accuracy)
        ]
        rows = [
            [name, f"{part:.2%}", *map(_text, values)]
            for name, part, *values in zip(names, pixels / pixels.sum(), *columns, strict=True)
        ]
        console.print(_table(f"Classes{title}", ["class", "pixels", *headings], rows))

        last = of_head[-1]
        columns = [last.by_class[name].tolist() for name in OF_CLASS]
        rows = [[name, *map(_text, row)] for name, *row in zip(names, *columns, strict=True)]
        headings = ["class", *OF_CLASS.values()]
        console.print(_table(f"Classes{title} by {last.stage}; {band}", headings, rows))

        remarks = {"left out of the means by the data set's rule": of_head[0].metrics.unscored}
        for absent in sorted({result.metrics.absent for result in of_head}):
            stages = ", ".join(r.stage for r in of_head if r.metrics.absent == absent)
            absence = "neither in the ground truth nor predicted, and so left out of the means"
            remarks[f"{stages}: {absence}"] = absent
        for remark, labels in remarks.items():
            if labels:
                listed = ", ".join(names[label] for label in labels)
                console.print(f"{remark}: {listed}", markup=False, highlight=False)
        text = f"{last.stage}: images of the lowest IU: {', '.join(lowest(last, source, 3))}"
        console.print(text, markup=False, highlight=False)


def distribution(values: Float[np.ndarray, " n"]) -> dict[str, float]:
    """The number of images whose value is not NaN, the mean of those, and quantiles (linear)."""
    there = values[~np.isnan(values)]
    if not there.size:
        return {"images": 0, **dict.fromkeys(("mean", *QUANTILES), math.nan)}
    quantiles = np.quantile(there, list(QUANTILES.values())).tolist()
    return {
        "images": there.size,
        "mean": float(there.mean()),
        **dict(zip(QUANTILES, quantiles, strict=True)),
    }


def lowest(result: StageResult, source: Source, most: int) -> list[str]:
    """The ids of the images of the lowest mean IU, the lowest first."""
    values: Any = result.metrics.per_image_iu
    order = np.argsort(values, kind="stable")[: np.count_nonzero(~np.isnan(values))]
    return [source.ids[index] for index in order[:most]]


def _text(value: float) -> str:
    """A number in a table: whole ones as they are."""
    return "-" if math.isnan(value) else f"{value:.4f}" if isinstance(value, float) else f"{value}"


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
    about: Mapping[str, Any] | None = None,
    *,
    workdir: str | Path | None = None,
) -> None:
    """Writes the report folder; a report that was there before is replaced by the complete new one.

    * ``index.html``: all of it for people, with what the run's folder ``workdir`` tells;
    * ``scores.json``: the data, what is told ``about`` the evaluation, and each stage's metrics,
      overall, by class, and how they are distributed over the images;
    * ``per_class.csv``: a row for each stage and class;
    * ``images_STAGE.csv``: a row for each image: its mean IU, and the IU of each class;
    * ``confusion_STAGE.csv``, ``.png``: pixel counts, and a plot normalised by row;
    * ``pictures/ID.png``: image, ground truth and each stage's labels, side by side;
    * ``gallery/``: the pictures of the page, made small.

    Where there are several heads, names have the head's as well.
    """
    folder = Path(folder).expanduser()
    new = folder / ".incomplete"
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir(parents=True)
    try:
        files = _write_files(results, source, new, about or {})
        page = [PAGE] if results else []
        if results:
            write_page([read_run(Path(workdir or folder), new)], new / PAGE, links=True)
        former: list[str] = []
        with contextlib.suppress(FileNotFoundError, ValueError, KeyError, TypeError):
            former = json.loads((folder / "scores.json").read_text())["files"]
        for name in (*files, "scores.json", *page):
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
    about: Mapping[str, Any],
) -> list[str]:
    """Writes all files of a report into a folder; returns the names of those beside scores.json."""
    heads, files, stages = by_head(results), ["per_class.csv"], {}
    for result in results:
        names = result.classes.names
        stage = result.stage if len(heads) == 1 else f"{result.stage}_{result.head}"
        stages[stage] = {"stage": result.stage, "head": result.head, **_as_json(result, source)}
        counts = result.tally.counts
        rows = [[name, *row] for name, row in zip(names, counts.tolist(), strict=True)]
        file = f"confusion_{stage}"
        _write_csv(folder / f"{file}.csv", ["ground truth \\ prediction", *names], rows)
        draw_confusion(folder / f"{file}.png", counts, result.classes, title=stage)
        files += [f"{file}.csv", f"{file}.png"]
        scores: Any = result.metrics
        table = np.column_stack([scores.per_image_iu, scores.images.iu])
        rows = ([source.ids[i], *map(_finite, row.tolist())] for i, row in enumerate(table))
        _write_csv(folder / f"images_{stage}.csv", ["image", "mean IU", *names], rows)
        files.append(f"images_{stage}.csv")
    columns = ["pixels", *BY_CLASS, "images"]
    rows = [
        [stage, name, *(row[column] for column in columns)]
        for stage, content in stages.items()
        for name, row in content["classes"].items()
    ]
    _write_csv(folder / "per_class.csv", ["stage", "class", *columns], rows)
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
    tables = {head: _describe_classes(of_head[0].classes) for head, of_head in heads.items()}
    shown = {head: _write_gallery(of_head, source, folder) for head, of_head in heads.items()}
    files += [
        file for images in shown.values() for each in images for file in each["files"].values()
    ]
    content = {"data": repr(source), **about, "classes": tables, "stages": stages, "gallery": shown}
    content["files"] = files
    (folder / "scores.json").write_text(json.dumps(content, indent=2, allow_nan=False) + "\n")
    return files


def _describe_classes(classes: ClassTable) -> dict[str, Any]:
    """The names and colours, ``#rrggbb``, of the classes that count, and the colour of void."""
    *colors, void = (
        f"#{bytes(classes.palette[label]).hex()}" for label in (*range(classes.num_classes), VOID)
    )
    return {"names": classes.names, "colors": colors, "void": void}


LONGEST = 512
"""Pixels that the longer side of a picture in the gallery has, at most."""

ERRORS = ((236, 236, 236), (214, 39, 40), (150, 150, 150))
"""The colours of pixels that are right, wrong, and void."""


def _write_gallery(
    of_head: Sequence[StageResult], source: Source, folder: Path
) -> list[dict[str, Any]]:
    """Writes the pictures of a head's gallery, made small; returns what `page.Shown` reads."""
    last, found = of_head[-1], []
    groups = extremes(last)
    for index in (*groups, *(index for index in last.gallery if index not in groups)):
        if index not in last.gallery:  # none is to be drawn
            continue
        example = source[index]
        height, width = example[last.head].shape
        factor = min(1, LONGEST / max(height, width))
        size = (max(1, round(width * factor)), max(1, round(height * factor)))

        def reduced(labels: UInt8[np.ndarray, "_ _"], size: tuple[int, int] = size) -> np.ndarray:
            return np.asarray(Image.fromarray(labels).resize(size, Image.Resampling.NEAREST))

        maps = {"ground truth": reduced(example[last.head])}
        maps |= {result.stage: reduced(result.gallery[index]) for result in of_head}
        truth, guess = maps["ground truth"], maps[last.stage]
        errors = Image.fromarray(np.where(truth == VOID, 2, truth != guess).astype(np.uint8))
        errors.putpalette([value for color in ERRORS for value in color])
        shown = Image.fromarray(bands.picture(example["image"], source.ranges["image"]))
        pictures = {"image": shown.resize(size, Image.Resampling.LANCZOS, reducing_gap=2)}
        pictures |= {name: drawing.palette_image(m, last.classes) for name, m in maps.items()}
        files = {}
        for name, picture in {**pictures, "errors": errors}.items():
            kind = "jpg" if name == "image" and max(size) > 200 else "png"
            file = re.sub(r"[^\w-]+", "_", f"{last.head}_{index:05}_{name}")
            files[name] = f"gallery/{file}.{kind}"
            (folder / files[name]).parent.mkdir(exist_ok=True)
            picture.save(folder / files[name], quality=88)
        scores: dict[str, Any] = {result.stage: result.metrics.per_image_iu for result in of_head}
        iu = {stage: _finite(values[index].item()) for stage, values in scores.items()}
        pixels = np.bincount(np.concatenate([labels.ravel() for labels in maps.values()]))
        labels = [label for label in np.argsort(-pixels, kind="stable").tolist() if pixels[label]]
        about = {"id": example["id"], "group": groups.get(index, ""), "iu": iu, "labels": labels}
        found.append({**about, "files": files})
    return found


def _as_json(result: StageResult, source: Source) -> dict[str, Any]:
    metrics: Any = result.metrics
    names, counts = result.classes.names, result.tally.counts

    def spread(values: Float[np.ndarray, " n"]) -> dict[str, float | None]:
        return {name: _finite(value) for name, value in distribution(values).items()}

    return {
        "step": result.step,
        **{name: _finite(value) for name, value in metrics.overall().items()},
        "absent": [names[label] for label in metrics.absent],
        "unscored": [names[label] for label in metrics.unscored],
        "image_iu": {**spread(metrics.per_image_iu), "lowest": lowest(result, source, 10)},
        "classes": {
            name: {
                "pixels": int(counts[label].sum()),
                **{k: _finite(values[label].item()) for k, values in result.by_class.items()},
                "image_iu_distribution": spread(metrics.images.iu[:, label]),
            }
            for label, name in enumerate(names)
        },
    }


def _finite(value: float) -> float | None:
    """A number for JSON, which knows no NaN."""
    return value if math.isfinite(value) else None


def _write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([no_formula(cell) for cell in row] for row in (header, *rows))


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
