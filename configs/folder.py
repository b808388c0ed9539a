"""FCN-32s, 16s and 8s in turn on your own images and masks.

    fcn-jax check DIR        # checks the files, and says what is wrong
    fcn-jax train --config=folder --config.manual_dir=DIR --config.init=vgg16.npz

DIR holds images/, masks/ and classes.txt (or .csv, .json); docs/your_data.md tells of other
layouts. The score depends on your data; a few hundred images are enough to start from ImageNet
weights.
"""

from ml_collections.config_dict import placeholder

from fcn_jax.config import default_config


def get_config():
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
    config.crop = (384, 384)

    config.fc_width = 1024
    config.batch_size = 4
    config.epochs = (5.0, 5.0, 20.0)
    config.optimizer = "adamw"
    config.learning_rate = (1e-4,)
    config.schedule = "cosine"
    config.warmup = 20
    config.bias_rate = 1.0
    config.normalize_loss = True
    config.checkpoint_every = 200
    return config.lock()
