"""Your own images and masks, by the recipe that fits the machine: folder:cpu or folder:gpu.

    fcn-jax check DIR        # checks the files, and says what is wrong
    fcn-jax train --config=folder --config.manual_dir=DIR

DIR holds images/, masks/ and classes.txt (or .csv, .json); docs/your_data.md tells of other
layouts. Training starts from torchvision's VGG16, which is fetched once (553 MB); a file that you
have is given as --config.init=FILE. The score depends on your data; a few dozen images are enough
to see something. Without an argument the devices that are found choose:

    cpu  FCN-8s at once on crops of half-size images, 200 steps: 40 photographs of 500x375 take
         five minutes on 2 cores, ten times as many little more. Train longer where there is more
         to learn from: --config.steps="(2000,)"
    gpu  FCN-32s, 16s and 8s in turn at full size, 30 passes over the images
"""

import sys

import jax
from ml_collections.config_dict import placeholder

from fcn_jax.config import choose, default_config


def get_config(arguments=""):
    recipes = "cpu", "gpu"
    (recipe,) = choose(arguments, recipes)
    if not arguments.strip():
        recipe = recipes[jax.default_backend() != "cpu"]
        there = {"cpu": "no GPU or TPU is found", "gpu": f"a {jax.default_backend()} is found"}
        print(f"--config=folder is folder:{recipe} here: {there[recipe]}", file=sys.stderr)

    config = default_config()
    config.dataset = "folder"
    config.dataset_options.classes = ""  # The class file, where it is not DIR/classes.*.
    config.dataset_options.images = ""  # Glob of the images, such as "{split}/*_rgb.jpg",
    config.dataset_options.masks = ""  # and of their masks, "{split}/*_gt.png".
    config.dataset_options.mask_kind = "auto"  # Or "index", "color".
    config.dataset_options.first_id = placeholder(int)  # The id of the first class in masks.
    config.dataset_options.void = ()  # Ids that do not count, besides 255.
    config.dataset_options.skip_unlabeled = False  # True leaves out images that have no mask.
    config.dataset_options.alpha = ""  # Or "drop", "band": what a channel called alpha is.
    config.dataset_options.value_range = ()  # Values of images that are black and white.
    config.dataset_options.val_fraction = 0.1  # Of images that have no splits.
    config.dataset_options.test_fraction = 0.1
    config.dataset_options.seed = 0  # Of the cut into train, val and test.
    config.flip = True
    config.scale_range = (0.75, 1.5)

    config.init = "torchvision:vgg16"

    config.batch_size = 4
    config.optimizer = "adamw"
    config.learning_rate = (1e-4,)
    config.layer_rates = ("score_*=auto",)
    config.bias_rate = 1.0
    config.normalize_loss = True
    if recipe == "cpu":
        config.scale = 0.5
        config.crop = (160, 160)
        config.stages = ("fcn8s_atonce",)
        config.fc_width = 512
        config.steps = (200,)
        config.schedule = "poly"
        config.checkpoint_every = 100
    else:
        config.crop = (384, 384)
        config.fc_width = 1024
        config.epochs = (5.0, 5.0, 20.0)
        config.schedule = "cosine"
        config.warmup = 20
        config.checkpoint_every = 200
    return config.lock()
