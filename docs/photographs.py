"""Draws README's first picture: two free photographs, segmented by each stage of a run.

    pip install scikit-image
    python docs/photographs.py RUN docs/photographs.jpg

The photographs are scikit-image's `chelsea` (a cat by Stéfan van der Walt, CC0) and `astronaut`
(Eileen Collins by NASA, public domain). RUN was trained on PASCAL VOC (docs/results.md). Behind
each photograph are the label maps of its stages, and where its last one sees the class.
"""

import sys

import numpy as np
from PIL import Image
from skimage import data

import fcn_jax
from fcn_jax import drawing
from fcn_jax.runs import available_stages

HEIGHT = 240


def main() -> None:
    """Draws."""
    run, file = sys.argv[1:]
    predictors = {stage: fcn_jax.load(run, stage=stage) for stage in available_stages(run)}
    rows = []
    for photo, name in ((data.chelsea(), "cat"), (data.astronaut(), "person")):
        pictures = [photo]
        for stage, predictor in predictors.items():
            labels = predictor(photo)
            classes = drawing.bright(predictor.heads["label"])
            pictures.append(drawing.overlay(photo, labels, classes, alpha=0.7, clear=(0,)))
            counts = np.bincount(labels.ravel(), minlength=256)
            shares = {classes.names[i]: counts[i] / labels.size for i in counts.nonzero()[0]}
            print(name, stage, {key: f"{share:.3f}" for key, share in shares.items()})
        pictures.append(drawing.heatmap(photo, predictor.class_map(photo, name)))
        width = round(photo.shape[1] * HEIGHT / photo.shape[0])
        images = [Image.fromarray(p).resize((width, HEIGHT)) for p in pictures]
        rows.append(np.concatenate([np.asarray(image) for image in images], axis=1))
    widest = max(row.shape[1] for row in rows)
    sheet = [
        np.pad(r, ((0, 0), (0, widest - r.shape[1]), (0, 0)), constant_values=255) for r in rows
    ]
    Image.fromarray(np.concatenate(sheet)).save(file, quality=90)


if __name__ == "__main__":
    main()
