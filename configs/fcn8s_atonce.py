"""FCN-8s "at once" on PASCAL VOC 2011 and SBD, with the reference solver's values.

Trains all three strides together from the ImageNet weights of VGG16. Expected mean IU on
seg11valid: 65.4 (published for the reference implementation; not repeated here). 300,000 steps of
one whole image.

    python train.py --config=configs/fcn8s_atonce.py --config.init=vgg16.npz --config.manual_dir=DIR

DIR holds VOCdevkit and SBD (docs/data.md names the places). To train on VOC alone:
--config.train_split=train --config.eval_split=val

The recipe of CVPR 2015 (minibatches of 20, momentum 0.9, learned skips):
--config=configs/fcn8s_atonce.py:cvpr
"""

from fcn_jax.config import default_config, reference_solver, set_recipe


def get_config(recipe="pami"):
    config = default_config()
    config.dataset = "voc2012"
    config.dataset_options.sbd = ""  # The folder of SBD, where it is not found by itself.
    config.train_split = "sbd_train"
    config.eval_split = "seg11valid"

    config.stages = ("fcn8s_atonce",)
    reference_solver(config, rates=(1e-10,), steps=300_000)
    set_recipe(config, recipe, cvpr_rate=1e-4)
    return config.lock()
