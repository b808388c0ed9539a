"""FCN-AlexNet (CaffeNet) on PASCAL VOC 2011 and SBD, with the reference solver's values.

Expected mean IU on seg11valid: 48.0 (published for the reference implementation; not repeated
here). 100,000 updates, each of 20 images one after the other.

    python train.py --config=configs/fcn_alexnet.py --config.init=caffenet.caffemodel \
        --config.manual_dir=DIR

DIR holds VOCdevkit and SBD (docs/data.md names the places). To train on VOC alone:
--config.train_split=train --config.eval_split=val
The published network decays its biases as well, which is not done here.
"""

from fcn_jax.config import default_config, set_recipe


def get_config(recipe="pami"):
    config = default_config()
    config.dataset = "voc2012"
    config.dataset_options.sbd = ""  # The folder of SBD, where it is not found by itself.
    config.train_split = "sbd_train"
    config.eval_split = "seg11valid"

    config.stages = ("fcn32s",)
    config.backbone = "alexnet"
    config.padding = "reference"
    config.learned_upsampling = "none"

    config.batch_size = 1
    config.accumulate = 20
    config.steps = (2_000_000,)  # Of one image: 100,000 updates.
    config.optimizer = "sgd"
    config.learning_rate = (1e-4,)
    config.normalize_loss = True
    config.momentum = 0.9
    config.weight_decay = 5e-4
    config.bias_rate = 1.0  # Unlike the VGG nets, the published definition sets no rates.
    config.eval_every = 80_000
    config.checkpoint_every = 8000
    set_recipe(config, recipe, cvpr_rate=1e-3)
    return config.lock()
