"""FCN-32s, 16s and 8s in turn on a data set of TensorFlow Datasets with a mask feature.

Here the pets of Oxford-IIIT. Any other name after "tfds:" will do: scene_parse150 and cityscapes
are known; of others give the names of their features and classes (docs/data.md). The score depends
on the data set.

    python train.py --config=configs/tfds.py --config.init=torchvision:vgg16
"""

from fcn_jax.config import default_config


def get_config():
    config = default_config()
    config.dataset = "tfds:oxford_iiit_pet"
    config.dataset_options.tfds_dir = ""  # Where TFDS prepared it, if not in its usual place.
    config.dataset_options.image = ""  # Names of its features, where they are not known,
    config.dataset_options.mask = ""
    config.dataset_options.ids = ""
    config.dataset_options.classes = ""  # and its classes: a file, or their number.
    config.dataset_options.num_classes = 0
    config.dataset_options.first_id = 0  # The id of the first class in masks.
    config.dataset_options.void = ()  # Ids that do not count, besides 255.
    config.train_split = "train"
    config.eval_split = "test"
    config.flip = True
    config.scale_range = (0.75, 1.5)
    config.crop = (384, 384)

    config.fc_width = 1024
    config.batch_size = 4
    config.epochs = (2.0, 2.0, 6.0)
    config.optimizer = "adamw"
    config.learning_rate = (1e-4,)
    config.schedule = "cosine"
    config.warmup = 20
    config.bias_rate = 1.0
    config.normalize_loss = True
    config.checkpoint_every = 500
    return config.lock()
