"""Scores a stage's parameters between its steps, and tells of it. What is counted: `inference/`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from fcn_jax import data, devices, drawing
from fcn_jax.classes import ClassTable
from fcn_jax.data import bands, loader
from fcn_jax.inference.evaluation import Tally, tally
from fcn_jax.inference.predictor import Predictor
from fcn_jax.training.journal import Journal
from fcn_jax.training.stages import Stage


def score(
    stage: Stage,
    step: int,
    params: Any,
    *,
    predictor_of: Callable[..., Predictor],
    images: data.Source,
    heads: Mapping[str, ClassTable],
    samples: int,
    by_image: bool,
    journal: Journal,
) -> dict[str, float]:
    """Scores images, records the metrics, and draws the first ``samples`` predictions.

    Each process scores its part of them; all get the same metrics: those of the whole set by name
    (of several heads the mean, and ``HEAD/NAME``), and ``NAME/CLASS`` of each class that has one.
    """
    local_params = jax.tree.map(lambda x: x.addressable_data(0), devices.gathered(params))
    predictor = predictor_of(stage.model, local_params)
    drawn: list[tuple[Any, dict[str, np.ndarray]]] = []

    def keep(example: Any, labels: dict[str, np.ndarray]) -> None:
        if len(drawn) < samples:
            drawn.append((example, labels))

    part = range(jax.process_index(), len(images), jax.process_count())
    tallies = {
        head: Tally.empty(table.num_classes, len(images) if by_image else 0)
        for head, table in heads.items()
    }
    if part:
        examples = loader.evaluation_examples(images, part)
        for head, own in tally(predictor, examples, by_image=by_image, visit=keep).items():
            tallies[head].images[part[: len(own.images)]] = own.images
            tallies[head] = own._replace(images=tallies[head].images)
    tallies = devices.sum_over_processes(tallies)

    overall: dict[str, dict[str, float]] = {}  # by head
    of_classes: dict[str, float] = {}
    for head, classes in heads.items():
        metrics = tallies[head].metrics(classes)
        overall[head] = metrics.overall()
        prefix = f"{head}/" if len(heads) > 1 else ""
        of_classes |= {
            f"{prefix}{name}/{class_}": float(value)
            for name, values in metrics.by_class().items()
            for class_, value in zip(classes.names, values, strict=True)
            if not np.isnan(value)
        }
        shown = "  ".join(
            f"{k.replace('_', ' ')} {v:.4f}"
            for k, v in overall[head].items()
            if k not in ("mean_precision", "mean_f1")
        )
        journal.say(f"{stage.name} step {step}: {prefix.replace('/', '  ')}{shown}")
        for number, (example, labels) in enumerate(drawn):
            shown = bands.picture(example["image"], images.ranges["image"])
            panels = {"image": shown, "ground truth": example[head]}
            picture = drawing.side_by_side({**panels, stage.name: labels[head]}, classes)
            name = f"sample{number}{'_' + head if prefix else ''}"
            journal.picture(stage.name, step, name, picture)
    values = {
        name: float(np.mean([of_head[name] for of_head in overall.values()]))
        for name in next(iter(overall.values()))
    }
    if len(heads) > 1:
        values |= {f"{head}/{name}": v for head, m in overall.items() for name, v in m.items()}
    journal.record(stage.name, step, {f"eval/{name}": value for name, value in values.items()})
    journal.page()
    return values | of_classes
