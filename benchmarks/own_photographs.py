"""What a newcomer gets from 40 photographs on this machine, and what PyTorch gets in that time.

    python benchmarks/own_photographs.py voc --data=VOCdevkit --weights=vgg16.npz --output=DIR
    python benchmarks/own_photographs.py camvid --data=CamVid --weights=vgg16.npz --output=DIR

1. 40 training pairs of a data set become a person's folder, DIR/photographs; 100 others that are
   kept aside, DIR/aside (of CamVid the 101 validation pairs).
2. ``fcn-jax train --config=folder:cpu`` trains on the folder, from nothing compiled to the report.
   Fields after the arguments are handed on: --config.steps="(600,)".
3. FCN-8s in straightforward PyTorch trains on the same images from the same weights, with the same
   augmentation, batches and rates, for as many seconds as the command took.
4. Both are scored on the pairs aside, at their full size.

The weights are of Caffe's kind (BGR, minus the mean). Run it on an idle machine.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import machine
import numpy as np
from torch_training import Recipe

PHOTOGRAPHS, ASIDE = 40, 100
COMMON = ("background", "cat", "cow", "dog", "horse", "person", "sheep")
"""The classes of VOC that its part at hand has enough of to be scored."""

RECIPE = Recipe(batch=4, rate=1e-4, crop=(160, 160), scales=(0.75, 1.5))
"""That of folder:cpu, for PyTorch."""

# ======================================================================== a person's folder


def prepare(dataset: str, root: Path, output: Path) -> None:
    """Copies the pairs, chosen by a seed, into two folders, unless they are there."""
    if (output / "aside").exists():
        return
    if dataset == "voc":
        from fcn_jax.data.voc import VOC as TABLE

        root = root / "VOC2012" if (root / "VOC2012").is_dir() else root
        names = (root / "ImageSets/Segmentation/train.txt").read_text().split()
        pairs = [
            (root / f"JPEGImages/{name}.jpg", root / f"SegmentationClass/{name}.png")
            for name in names
        ]
        random.Random(0).shuffle(pairs)
        chosen, aside = pairs[:PHOTOGRAPHS], pairs[PHOTOGRAPHS : PHOTOGRAPHS + ASIDE]
    else:
        from fcn_jax.data.camvid import CAMVID as TABLE

        of = {
            split: [
                (p, root / f"{split}annot/{p.stem}.png") for p in sorted((root / split).iterdir())
            ]
            for split in ("train", "val")
        }
        chosen, aside = random.Random(0).sample(of["train"], PHOTOGRAPHS), of["val"]
    for name, some in (("photographs", chosen), ("aside", aside)):
        for kind in ("images", "masks"):
            (output / name / kind).mkdir(parents=True)
        for image, mask in some:
            shutil.copy(image, output / name / "images")
            shutil.copy(mask, output / name / "masks")
        lines = [
            f"{row.name},{i},{row.ignored}" for i, row in zip(TABLE.ids, TABLE.rows, strict=True)
        ]
        (output / name / "classes.csv").write_text("\n".join(["name,id,ignored", *lines, ""]))


def images_of(output: Path, name: str, split: str) -> Any:
    """A split of one of the two folders."""
    from fcn_jax import data

    return data.open_source("folder", split, data_dir=output / "data", manual_dir=output / name)


# ======================================================================== both sides


def train_ours(output: Path, weights: Path, fields: Sequence[str]) -> float:
    """Trains by the command, in an empty cache of programs; the seconds it took."""
    shutil.rmtree(output / "run", ignore_errors=True)
    shutil.rmtree(output / "cache", ignore_errors=True)
    environ = {k: v for k, v in os.environ.items() if k != "JAX_COMPILATION_CACHE_DIR"}
    environ["XDG_CACHE_HOME"] = str(output / "cache")
    command = [sys.executable, "-m", "fcn_jax", "train", "--config=folder:cpu"]
    places = {"manual_dir": output / "photographs", "data_dir": output / "data", "init": weights}
    command += [f"--workdir={output / 'run'}"]
    command += [*(f"--config.{name}={value}" for name, value in places.items()), *fields]
    start = time.perf_counter()
    subprocess.run(command, env=environ, check=True)
    return time.perf_counter() - start


def train_torch(output: Path, weights: Path, seconds: float) -> tuple[Any, int]:
    """A network of PyTorch after so many seconds from now on, and the steps that it took."""
    start = time.perf_counter()
    import torch_training

    network = torch_training.train(
        images_of(output, "photographs", "train"),
        weights,
        RECIPE,
        lambda steps: (time.perf_counter() - start) / seconds,
    )
    return network.predict, network.steps


def scores_of(predict: Callable[[np.ndarray], np.ndarray], source: Any) -> dict[str, float]:
    """Pixel accuracy and mean IU of a set; of VOC also the mean IU of the `COMMON` classes."""
    from fcn_jax import ConfusionMatrix, compute_metrics

    matrix = ConfusionMatrix(source.classes.num_classes)
    for example in source:
        matrix.update(example["label"], predict(example["image"]))
    metrics = compute_metrics(matrix.counts, source.classes.scored)
    scores = {"pixel accuracy": metrics.pixel_accuracy, "mean IU": metrics.mean_iu}
    names = source.classes.names
    if set(COMMON) <= set(names):
        of_common = [metrics.per_class_iu[names.index(name)] for name in COMMON]
        scores["mean IU of seven"] = float(np.mean(of_common))
    return scores


def main(argv: Sequence[str] | None = None) -> None:
    """Runs both and prints a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("dataset", choices=("voc", "camvid"))
    for name in ("data", "weights", "output"):
        parser.add_argument(f"--{name}", type=lambda text: Path(text).absolute(), required=True)
    parser.add_argument("--seconds", type=float, help="PyTorch's; default: what the command took")
    args, fields = parser.parse_known_args(argv)
    print("\n".join(machine.describe()), flush=True)
    prepare(args.dataset, args.data, args.output)
    aside = images_of(args.output, "aside", "train+val+test")

    import fcn_jax

    took = train_ours(args.output, args.weights, fields)
    config = json.loads((args.output / "run/config.json").read_text())
    rows = {
        "fcn_jax": (took, config["steps"][-1], scores_of(fcn_jax.load(args.output / "run"), aside))
    }
    seconds = args.seconds or took
    predict, steps = train_torch(args.output, args.weights, seconds)
    rows["PyTorch"] = (seconds, steps, scores_of(predict, aside))

    titles = [*rows["PyTorch"][2]]
    print(f"\n{len(aside)} images aside")
    print(
        "\n".join(
            [f"| | minutes | steps | {' | '.join(titles)} |", "|---" * (3 + len(titles)) + "|"]
        )
    )
    for name, (each, steps, scores) in rows.items():
        numbers = " | ".join(f"{scores[title]:.3f}" for title in titles)
        print(f"| {name} | {each / 60:.1f} | {steps} | {numbers} |")


if __name__ == "__main__":
    main()
