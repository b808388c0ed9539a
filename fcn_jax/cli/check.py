"""``fcn-jax check DIR``: what your own images and masks hold, and what is wrong with them.

Prints the layout, every class with its share of the pixels, the masks that hold it and its weights,
what is wrong, what may be, and the command that trains on the folder. ``--draw`` draws what the
network will see of the first training images, with the labels beside them.
"""

from __future__ import annotations

import argparse
import math
import shlex
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from fcn_jax import config as configs
from fcn_jax import data, drawing
from fcn_jax.classes import VOID
from fcn_jax.cli import path, told_in_one_line
from fcn_jax.cli.train import set_fields
from fcn_jax.data import bands, folder
from fcn_jax.data.survey import Survey, ranges
from fcn_jax.models.losses import balanced_weights

SHOWN_IDS = 20
BATCH_SIZE = 4  # of the config `folder`
USUAL_PIXELS = 500 * 375  # of the photographs that its recipes were made for


@told_in_one_line
def main(argv: Sequence[str] | None = None) -> int:
    """Prints what a folder holds and all of its problems; returns 0 if there are none, else 1."""
    parser = argparse.ArgumentParser(
        prog="fcn-jax check",
        description="Check your own images and masks before training. Every option but "
        "those at the end is one of training too, as --config.dataset_options.OPTION=VALUE.",
        argument_default=argparse.SUPPRESS,  # what is not given is left to `folder.plan`
    )
    add = parser.add_argument
    add("dir", type=Path, help="the folder of the data (manual_dir)")
    add("--classes", help="class file: csv, json, or one name a line")
    add("--images", help="glob of the images, relative to DIR")
    add("--masks", help="glob of the masks, relative to DIR")
    add("--mask_kind", help="auto, index or color")
    add("--first_id", type=int, help="id of the first class in masks")
    add("--void", type=int, nargs="*", help="further void ids")
    add("--skip_unlabeled", action="store_true", help="leave out images that have no mask")
    add("--alpha", help="drop or band: what a channel called alpha is")
    add("--value_range", type=float, nargs=2, help="values of images that are black and white")
    add("--val_fraction", type=float, help="share of val, where images have no splits (0.1)")
    add("--test_fraction", type=float, help="share of test, likewise (0.1)")
    add("--seed", type=int, help="of the cut into train, val and test")
    add(
        "--write_classes",
        metavar="FILE",
        nargs="?",
        const="",
        help="write a class file, to be edited, from the values found in the masks; "
        "default: DIR/classes.csv",
    )
    add(
        "--draw",
        metavar="N",
        nargs="?",
        const=8,
        type=int,
        help="draw the first N (8) training images as the network will see them, augmented by the "
        "config, with their labels; prepares the data as training does",
    )
    add("--draw_to", metavar="FILE", type=path, help="default: augmented.png")
    add("--config", metavar="NAME", help="of --draw, with --config.FIELD=VALUE; default: folder")
    given, fields = parser.parse_known_args(argv)
    options = vars(given)
    number, picture = options.pop("draw", 0), options.pop("draw_to", Path("augmented.png"))
    name = options.pop("config", "folder")
    if fields and not (number and all("config." in field for field in fields)):
        parser.error(f"unrecognized arguments: {' '.join(fields)}")
    root = options.pop("dir").expanduser().absolute()
    write_to = options.pop("write_classes", None)

    if write_to is not None:
        kept = ("images", "masks", "mask_kind")
        options = {name: options[name] for name in kept if name in options}
        print(folder.write_classes(root, write_to, **options))
        return 0
    plan = folder.plan(root, **options)
    survey = plan.survey
    print(plan.root)
    print(f"layout: {plan.found.layout}")
    print(f"splits: {sizes_of(survey)}")
    print(f"classes: {plan.class_file or 'of the layout'}")
    print_classes(survey)
    for note in survey.notes:
        print(f"note: {note}")
    sys.stdout.flush()
    for warning in survey.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    problems = survey.problems.lines()
    for problem in problems:
        print(f"problem: {problem}", file=sys.stderr)
    count = len(problems)
    print(f"{count} problem{'s' * (count > 1)}" if problems else "no problems", file=sys.stderr)
    if survey.proposals:
        given = options | survey.proposals
        words = [str(root), *as_arguments(given)]
        print(f"\nThis may help:\n  {shlex.join(['fcn-jax', 'check', *words])}")
    if problems:
        print("\nWhen all is mended, train with:")
    else:
        print("\nTrain with:")
    words = train_arguments(root, options | survey.proposals, survey, name)
    print(f"  {shlex.join(['fcn-jax', 'train', f'--config={name}', *words, *fields])}")
    sys.stdout.flush()
    if number and not problems:
        config = configs.load_config(name)
        set_fields(config, [*words, *fields])
        draw(config, number, picture)
    elif number:
        print(f"{picture} is drawn when all is mended", file=sys.stderr)
    return 1 if problems else 0


def sizes_of(survey: Survey) -> str:
    """The number of images in every split."""
    return ", ".join(f"{split} {len(ids)}" for split, ids in survey.readings.items())


def print_classes(survey: Survey) -> None:
    """A line for every class, for void, and for every id of no class; none if no mask is sound.

    Each class with the two weights that it would have in training (config.class_weights).
    """
    splits = [*survey.readings]
    total = sum(int(pixels.sum()) for pixels in survey.pixels.values())
    total += sum(pixels for pixels, _ in survey.unknown.values())
    if total == 0:
        return
    held = {i for ids in survey.readings.values() for one in ids.values() for i in one.ids}
    rows = [
        (label, str(raw_id), row.name)
        for label, (raw_id, row) in enumerate(
            (raw_id, row)
            for raw_id, row in zip(survey.classes.ids, survey.classes.rows, strict=True)
            if not row.ignored
        )
    ]
    rows.append((VOID, ranges(held & {*survey.classes.void_ids}), "void"))
    trained = survey.counts.get("train", np.zeros((0, 1), np.int64))[:, :-1]
    ways = ("inverse", "median") if trained.any() else ()
    weights = {way: balanced_weights(way, trained) for way in ways}
    columns = f"  weights: {', '.join(ways)}" if ways else ""
    print(f"  label     id     pixels   masks of {' / '.join(splits)}{columns}")
    for label, raw_id, name in rows:
        share = 100 * sum(int(pixels[label]) for pixels in survey.pixels.values()) / total
        masks = " / ".join(f"{survey.masks[split][label]:5}" for split in splits)
        of_label = [f"{of[label]:7.3f}" if label < VOID else 7 * " " for of in weights.values()]
        print(f"  {label:5}  {raw_id:>5}  {share:7.3f} %  {masks} {' '.join(of_label)}  {name}")
    for raw_id, (pixels, masks) in sorted(survey.unknown.items())[:SHOWN_IDS]:
        print(f"      ?  {raw_id:5}  {100 * pixels / total:7.3f} %  {masks:4} in all   of no class")
    if len(survey.unknown) > SHOWN_IDS:
        print(f"      ?  {len(survey.unknown) - SHOWN_IDS} more ids of no class")


def as_arguments(options: Mapping[str, Any], prefix: str = "--") -> list[str]:
    """Options as the shell takes them."""
    words = []
    for name, value in options.items():
        if prefix == "--" and value is True:
            words.append(f"--{name}")
        elif prefix == "--" and isinstance(value, (list, tuple)):
            words += [f"--{name}", *map(str, value)]
        else:
            text = str(tuple(value)) if isinstance(value, (list, tuple)) else str(value)
            words.append(f"{prefix}{name}={text}")
    return words


def train_arguments(
    root: Path, options: Mapping[str, Any], survey: Survey, config: str
) -> list[str]:
    """The fields of a config of this name that trains on the folder with these options."""
    fields: dict[str, Any] = {"manual_dir": root}
    fields |= {f"dataset_options.{name}": value for name, value in options.items()}
    sizes = {split: len(ids) for split, ids in survey.readings.items()}
    if "val" not in sizes and "test" in sizes:
        fields["eval_split"] = "test"
    if 0 < sizes.get("train", 0) < BATCH_SIZE:
        fields["batch_size"] = sizes["train"]
    pixels = [sum(each.ids.values()) for ids in survey.readings.values() for each in ids.values()]
    factor = math.sqrt(USUAL_PIXELS / max(1.0, statistics.median(pixels or [0])))
    if factor < 0.5:  # crops would show a small part of a photograph
        fields["scale"] = float(f"{configs.load_config(config).scale * factor:.1g}")
    return as_arguments(fields, "--config.")


def draw(config: configs.Config, number: int, file: Path) -> None:
    """Draws the first training images of the first stage of a config, as the network gets them.

    Raises:
        ValueError: If training with this config would fail at once.
    """
    from fcn_jax.training.stages import batches_of_stages

    configs.validate(config)
    options = configs.data_options(config)
    source = data.open_source(config.dataset, config.train_split, **options)
    pictures = []
    with batches_of_stages(config, source)[0] as batches:
        while len(pictures) < number:
            arrays, ids = jax.device_get(next(batches))
            for index, example_id in enumerate(ids[: number - len(pictures)]):
                size = arrays["valid_size"][index] if "valid_size" in arrays else (None, None)
                names = ("image", *source.label_maps)
                seen = {name: arrays[name][index, : size[0], : size[1]] for name in names}
                panels = {example_id: bands.picture(seen["image"], source.ranges["image"])}
                panels |= {head: seen[head] for head in source.label_maps}
                pictures.append(drawing.side_by_side(panels, source.classes))
    drawing.sheet(pictures).save(file)
    print(f"{file}: {number} training images as the network will see them")
