"""FCN-8s on CamVid at half size in straightforward PyTorch, from the weights that ours start from.

    python benchmarks/torch_camvid.py --data=CamVid --weights=vgg16.npz --data_dir=DIR [--seeds=0,1]

The peer of the trainings in docs/results.md: the same images and epochs, AdamW at 1e-4 with a
falling rate, batches of 4, mirrored images. Prints the scores on the 101 validation images at their
full size. The weights are of Caffe's kind (BGR, minus the mean).
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence

import machine
import torch_training

import fcn_jax
from fcn_jax import data


def main(argv: Sequence[str] | None = None) -> None:
    """Trains and scores once for each seed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    for name in ("data", "weights", "data_dir"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--seeds", default="0", help="separated by commas")
    parser.add_argument("--epochs", type=float, default=6.0)
    parser.add_argument("--rate", type=float, default=1e-4)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--device", default="cpu", help="one of PyTorch's")
    args = parser.parse_args(argv)
    print("\n".join(machine.describe()), flush=True)
    train, val = (
        data.open_source("camvid", split, data_dir=args.data_dir, manual_dir=args.data)
        for split in ("train", "val")
    )
    recipe = torch_training.Recipe(args.batch, args.rate, crop=(180, 240))
    steps = round(args.epochs * len(train) / args.batch)
    print("\n| seed | minutes | mean IU | pixel acc. | IU of each class |\n|---|---|---|---|---|")
    for seed in map(int, args.seeds.split(",")):
        start = time.perf_counter()
        network = torch_training.train(
            train,  # pyright: ignore[reportArgumentType]
            args.weights,
            recipe,
            lambda step: step / steps,
            seed=seed,
            device=args.device,
        )
        minutes = (time.perf_counter() - start) / 60
        matrix = fcn_jax.ConfusionMatrix(val.classes.num_classes)
        for example in val:
            matrix.update(example["label"], network.predict(example["image"]))
        found = fcn_jax.compute_metrics(matrix.counts, val.classes.scored)
        of_classes = " ".join(
            f"{name} {iu:.3f}"
            for name, iu in zip(val.classes.names, found.per_class_iu, strict=True)
        )
        print(
            f"| {seed} | {minutes:.1f} | {found.mean_iu:.4f} | {found.pixel_accuracy:.4f} "
            f"| {of_classes} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
