"""FCN-32s on PASCAL VOC 2011 and SBD, with the reference solver's values.

Trains FCN-32s from the ImageNet weights of VGG16. Expected mean IU on seg11valid: 63.6 (published
for the reference implementation; not repeated here). 100,000 steps of one whole image.

    python train.py --config=configs/fcn32s.py --config.init=vgg16.npz --config.manual_dir=DIR

DIR holds VOCdevkit and SBD (docs/data.md names the places). To train on VOC alone:
--config.train_split=train --config.eval_split=val

The recipe of CVPR 2015 (minibatches of 20, momentum 0.9, learned skips):
--config=configs/fcn32s.py:cvpr
"""

from fcn_jax.config import default_config, reference_solver, set_recipe


def get_config(recipe="pami"):
    config = default_config()
    config.dataset = "voc2012"
    config.dataset_options.sbd = ""  # The folder of SBD, where it is not found by itself.
    config.train_split = "sbd_train"
    config.eval_split = "seg11valid"

    config.stages = ("fcn32s",)
    reference_solver(config, rates=(1e-10,), steps=100_000)
    set_recipe(config, recipe, cvpr_rate=1e-4)
    return config.lock()
