"""Features of a network that stays as it is, and a linear classifier of pixels on top of them.

python examples/features_for_a_probe.py                  # torchvision's VGG16 is fetched once
python examples/features_for_a_probe.py vgg16.npz
"""

import sys

import jax
import jax.numpy as jnp
import numpy as np

import fcn_jax
from fcn_jax import data


def main(weights="torchvision:vgg16", layer="pool4", width=1.0, images=40, folder="data"):
    """Fits the probe by least squares; returns the share of cells of other images it gets right."""
    options = {"data_dir": folder, "train": images, "val": 20}
    train, val = (data.open_source("shapes", split, **options) for split in ("train", "val"))

    # fc6, fc7 and the scores are not needed: the compiler leaves out what no result depends on.
    model = fcn_jax.create_model("fcn32s", num_classes=1, width=width, fc_width=1)
    start = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 32, 32, 3)))["params"]
    loaded = fcn_jax.load_weights(weights)
    convolutions = {name: array for name, array in loaded.items() if name.startswith("conv")}
    params, _ = fcn_jax.transplant(start, convolutions)
    inputs = loaded.inputs or fcn_jax.Inputs.of(fcn_jax.Preprocessing())
    at = model.alignment.geometry[layer]  # where the cells of the map lie over the image

    @jax.jit
    def features_of(image):
        pixels = inputs.apply({"image": image[None]})
        _, maps = model.apply({"params": params}, pixels, return_maps=True)
        return maps[layer][0]

    def cells(source):
        """The features of all cells, and the label of the pixel in the middle of each."""
        features, labels = [], []
        for example in source:
            map_ = np.asarray(features_of(example["image"]))
            rows, columns = (
                np.clip(np.rint(float(at.stride) * np.arange(n) + float(at.offset)), 0, side - 1)
                for n, side in zip(map_.shape[:2], example["label"].shape, strict=True)
            )
            features.append(map_.reshape(-1, map_.shape[2]))
            labels.append(example["label"][np.ix_(rows.astype(int), columns.astype(int))].ravel())
        features, labels = np.concatenate(features), np.concatenate(labels)
        counts = labels != fcn_jax.VOID
        return features[counts], labels[counts]

    features, labels = cells(train)
    mean, deviation = features.mean(0), features.std(0) + 1e-6
    normalised = np.c_[(features - mean) / deviation, np.ones(len(features))]
    ridge = len(features) * 1e-2 * np.eye(normalised.shape[1])
    wanted = np.eye(train.classes.num_classes)[labels]
    probe = np.linalg.solve(normalised.T @ normalised + ridge, normalised.T @ wanted)

    features, labels = cells(val)
    found = np.argmax(np.c_[(features - mean) / deviation, np.ones(len(features))] @ probe, axis=1)
    right = float(np.mean(found == labels))
    print(f"{layer}, cells {at.stride} pixels apart: {right:.1%} of {len(labels)} cells are right")
    return right


if __name__ == "__main__":
    main(sys.argv[1] if sys.argv[1:] else "torchvision:vgg16")
