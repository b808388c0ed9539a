"""Label maps of any number of images, on any number of machines: the predictor in Ray Data.

    pip install 'fcn-jax[ray]'
    python examples/ray_predict.py runs/mine photos/ labels/             # a folder of images
    python examples/ray_predict.py runs/mine images.parquet labels/      # columns bytes and path
    python examples/ray_predict.py runs/mine s3://bucket/images labels/ --actors=8 --gpus=1

Each actor loads the network once and predicts batches; Ray reads ahead, spreads the work and starts
what died again. The results are Parquet files with the columns path, labels (a PNG file of class
numbers), pixels (of each class) and error (why an image has no labels).
"""

import argparse
import io
from typing import Any

import numpy as np
import pyarrow as pa
import ray  # pyright: ignore[reportMissingImports]
from PIL import Image

import fcn_jax
from fcn_jax.data.images import read_image

SCHEMA = pa.schema(
    [
        ("path", pa.string()),
        ("labels", pa.binary()),
        ("pixels", pa.list_(pa.int64())),
        ("error", pa.string()),
    ]
)


class Segment:
    """What an actor does with a batch of files: columns ``path`` and ``bytes``."""

    def __init__(self, source, options):
        self.predictor = fcn_jax.load(source, **options)
        classes: Any = next(iter(self.predictor.heads.values()))
        self.names, self.palette = classes.names, classes.palette.tobytes()

    def __call__(self, batch):
        """The columns of the results."""
        images, errors = {}, {}
        for row, (path, content) in enumerate(zip(batch["path"], batch["bytes"], strict=True)):
            try:
                images[row] = read_image(bytes(content), str(path))
            except ValueError as error:
                errors[row] = str(error)
        found = dict(zip(images, self.predictor(images.values()), strict=True))
        rows = range(len(batch["path"]))
        columns = {
            "path": [str(path) for path in batch["path"]],
            "labels": [self.png(found[row]) if row in found else None for row in rows],
            "pixels": [self.count(found[row]) if row in found else None for row in rows],
            "error": [errors.get(row) for row in rows],
        }
        return pa.table(columns, schema=SCHEMA)

    def png(self, labels):
        """A label map as a PNG file that shows the classes' colours."""
        image, file = Image.fromarray(labels), io.BytesIO()
        image.putpalette(self.palette)
        image.save(file, format="PNG")
        return file.getvalue()

    def count(self, labels):
        """How many pixels there are of each class."""
        return np.bincount(labels.ravel(), minlength=len(self.names)).tolist()


def main(source, images, output, actors=1, gpus=0, batch_size=64, **options):
    """Predicts; ``options`` are those of `fcn_jax.load`."""
    if str(images).endswith(".parquet"):
        files = ray.data.read_parquet(str(images), columns=["path", "bytes"])
    else:
        files = ray.data.read_binary_files(str(images), include_paths=True)
    results = files.map_batches(
        Segment,
        fn_constructor_args=(str(source), options),
        batch_size=batch_size,
        compute=ray.data.ActorPoolStrategy(size=actors),
        num_gpus=gpus or None,
    )
    results.write_parquet(str(output))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Label maps of many images with Ray Data.")
    for name in ("source", "images", "output"):
        parser.add_argument(name)
    parser.add_argument("--actors", type=int, default=1, help="processes with a network each")
    parser.add_argument("--gpus", type=float, default=0, help="of each actor, such as 1")
    parser.add_argument("--batch_size", type=int, default=64, help="images that an actor is given")
    main(**vars(parser.parse_args()))
