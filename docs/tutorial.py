# %% [markdown]
# # From ten pictures to a trained network
#
# Ten pictures with masks, as you may have them; a check of the files; FCN-32s, 16s and 8s trained
# in turn; then a look inside: the skip architecture map by map, and what a cell of a map sees.
#
# All of this page is a program, `docs/tutorial.py`, and what you see is what it printed and drew.
# It takes one to two minutes on two CPU cores and needs no network. Jupyter opens it as a notebook
# with jupytext (`pip install jupytext`).

# %%
import json
import tempfile
import warnings
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from PIL import Image

import fcn_jax
from fcn_jax import drawing, ops
from fcn_jax.cli import main
from fcn_jax.config import load_config
from fcn_jax.data.images import read_image, read_label
from fcn_jax.data.shapes import draw_example
from fcn_jax.training.run import train

# %% [markdown]
# ## Ten pictures
#
# The package draws pictures of textured shapes with thin parts. Here every pixel is of one of two
# classes, *ground* and *thing*; pixels at the edge of a thing are void (255), which counts
# nowhere. Ten are for training, four more for validation. With your own photographs you would
# begin below.

# %%
warnings.filterwarnings("ignore", message="IProgress")  # a progress bar of notebooks is missing

folder = Path(tempfile.mkdtemp())
photos = folder / "photos"
for number in range(14):
    image, label = draw_example(np.random.default_rng(number), size=96)
    mask = np.where(label == 255, 255, label > 0).astype(np.uint8)
    split = "train" if number < 10 else "val"
    for kind, pixels in {"images": image, "masks": mask}.items():
        file = photos / kind / split / f"{number:02}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).resize((192, 192), Image.Resampling.NEAREST).save(file)
(photos / "classes.txt").write_text("ground\nthing\n")

figure, axes = plt.subplots(2, 10, figsize=(15, 3.2), subplot_kw={"xticks": [], "yticks": []})
for number, (above, below) in enumerate(axes.T):
    above.imshow(read_image(photos / f"images/train/{number:02}.png"))
    label = read_label(photos / f"masks/train/{number:02}.png")
    below.imshow(np.where(label == 255, 0.5, label), cmap="gray", vmin=0, vmax=1)

# %% [markdown]
# ## The check
#
# `fcn-jax check DIR` tells how the files are understood, and all that is wrong with them.

# %%
problems = main(["check", str(photos)])
assert problems == 0

# %% [markdown]
# ## Training
#
# The check ends with the command that trains. Here the same is done in Python, because these
# pictures want another recipe than photographs: a narrow VGG11 from random weights. FCN-32s is
# trained first; FCN-16s begins with its weights, and FCN-8s with those of FCN-16s.

# %%
config = load_config("folder:cpu")
config.update(manual_dir=str(photos), data_dir=str(folder / "prepared"))
config.update(stages=("fcn32s", "fcn16s", "fcn8s"), steps=(120, 40, 40))
config.update(backbone="vgg11", width=0.25, fc_width=64, dropout=0.1, init="")
config.update(scale=1.0, crop=(128, 128), scale_range=(0.8, 1.25))
config.update(optimizer="adam", learning_rate=(1e-3,), schedule="cosine", warmup=10)
config.update(weight_decay=0.0)
source = train(config, folder / "run")

# %%
records = [json.loads(line) for line in (folder / "run/metrics.jsonl").open()]
for stage in config.stages:
    of_stage = [r for r in records if r["stage"] == stage and "loss" in r]
    plt.plot([r["step"] for r in of_stage], [r["loss"] for r in of_stage], label=stage)
plt.xlabel("step of the stage")
plt.ylabel("loss per pixel")
plt.legend()
plt.show()

# %% [markdown]
# ## Predictions
#
# Every stage is kept, and `fcn_jax.load` gives a predictor for photographs of any size. On
# pictures that it has not seen, FCN-32s finds the bodies, FCN-16s their outlines, FCN-8s the thin
# parts: figure 4 of the paper. A run's records hold the scores.

# %%
for stage, number in zip(config.stages, config.steps, strict=True):
    (last,) = [r for r in records if r["stage"] == stage and "eval/mean_iu" in r]
    print(f"{stage}, {number} steps: mean IU {last['eval/mean_iu']:.3f} on four other pictures")

predictors = {stage: fcn_jax.load(folder / "run", stage=stage) for stage in config.stages}
image = read_image(photos / "images/val/12.png")
mask = read_label(photos / "masks/val/12.png").astype(np.uint8)
panels = {"image": image, "ground truth": mask}
panels |= {stage: predictor(image) for stage, predictor in predictors.items()}
drawing.side_by_side(panels, predictors["fcn8s"].heads["label"])

# %% [markdown]
# ## The skip architecture, map by map
#
# The network of FCN-8s with `return_maps=True` returns every map on the way, here for *thing*
# minus *ground*: red says thing, blue ground. Follow them as the network does (figure 3 of the
# paper):
#
# 1. `score_fr` scores the last map of the backbone, one cell for 32 pixels. It knows what, and
#    hardly where.
# 2. `upscore2` enlarges it twice; `score_pool4` scores the map at stride 16; `fuse_pool4` is their
#    sum.
# 3. `upscore_pool4` enlarges that twice; `score_pool3` scores the map at stride 8; `fuse_pool3` is
#    the sum.
# 4. `upscore8` enlarges it eight times. Cut to the image, it is the result.

# %%
predictor = predictors["fcn8s"]
model, variables = predictor.model, predictor.variables
pixels = predictor.inputs.apply({"image": image[None]})
logits, maps = jax.jit(lambda v, x: model.apply(v, x, return_maps=True))(variables, pixels)

rows = [
    ["", "score_fr", ""],
    ["upscore2", "score_pool4", "fuse_pool4"],
    ["upscore_pool4", "score_pool3", "fuse_pool3"],
    ["", "upscore8", ""],
]
figure, axes = plt.subplots(4, 3, figsize=(9, 12), layout="constrained")
for name, axis in zip(np.ravel(rows), axes.flat, strict=True):
    axis.set_axis_off()
    if name:
        difference = np.asarray(maps[name][0, ..., 1] - maps[name][0, ..., 0])
        largest = np.abs(difference).max()
        axis.imshow(difference, cmap="RdBu_r", vmin=-largest, vmax=largest)
        height, width = difference.shape
        axis.set_title(f"{name}: {height} x {width}")

# %% [markdown]
# The sums are nothing more than that. `model.alignment` tells which cells lie over each other, and
# the crops follow from it:

# %%
enlarged, fine = maps["upscore_pool4"], maps["score_pool3"]
offset = -model.alignment.crops["score_pool3"]
height, width = fine.shape[1:3]
cut = enlarged[:, offset : offset + height, offset : offset + width]
np.testing.assert_allclose(maps["fuse_pool3"], cut + fine, rtol=1e-5, atol=1e-5)
print(f"cells that upscore_pool4 is cut by on each side, before score_pool3 is added: {offset}")

# %% [markdown]
# ## What a cell sees
#
# Each layer reads a small window, and windows of windows grow. `fcn_jax.geometry` composes them:
# where the cells of a map lie, and how many pixels each of them depends on.

# %%
large, _ = draw_example(np.random.default_rng(20), size=240)
large = large.repeat(2, axis=0).repeat(2, axis=1)
middle = large.shape[0] // 2

figure, axis = plt.subplots(figsize=(6, 6))
axis.imshow(large)
for name, color in {"pool3": "yellow", "pool4": "orange", "score_fr": "red"}.items():
    geometry = model.alignment.geometry[name]
    side = float(geometry.receptive_field)
    cell = int((middle - geometry.offset) / geometry.stride)
    corner = float(geometry.stride * cell + geometry.offset) - side / 2
    square = {"fill": False, "edgecolor": color, "linewidth": 2}
    axis.add_patch(plt.Rectangle((corner, corner), side, side, label=name, **square))
    print(f"{name}: a cell for {geometry.stride} pixels, each sees {side:.0f}")
axis.legend()
axis.set_title("what a cell in the middle depends on")
plt.show()

# %% [markdown]
# The gradient of one score by the pixels is the proof: outside of the square it is zero, and it
# reaches all four sides. Inside it is far from even; what the network listens to is the middle.
# (The fast forms of convolutions on CPUs round, and would leave some 1e-11 outside: the plain ones
# are exact here.)


# %%
def score(pixels):
    """The score of *thing* in the last cell above (`score_fr`)."""
    _, maps = model.apply(variables, pixels, return_maps=True)
    return maps["score_fr"][0, cell, cell, 1]


with ops.plain_forms():
    gradient = jax.jit(jax.grad(score))(predictor.inputs.apply({"image": large[None]}))
strength = np.asarray(jnp.abs(gradient[0]).sum(axis=-1))
for direction in (0, 1):
    seen = np.flatnonzero(strength.max(axis=direction))
    assert (seen[0], seen[-1]) == (corner + 0.5, corner + side - 0.5)  # centres of pixels

figure, axis = plt.subplots(figsize=(6, 6))
axis.imshow(np.log10(strength + 1e-6 * strength.max()), cmap="magma")
axis.add_patch(plt.Rectangle((corner, corner), side, side, **square))
axis.set_title("gradient of one score, logarithm")
plt.show()

# %% [markdown]
# ## Where to go on
#
# - Your own photographs: [your_data.md](your_data.md). They start from weights that know the world
#   already, which is why 40 of them are enough to see something.
# - The networks, and how to write a backbone: [networks.md](networks.md).
# - Each equation of the paper and its code: [paper.md](paper.md).
