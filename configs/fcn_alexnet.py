"""FCN-AlexNet (CaffeNet) on PASCAL VOC 2011 and SBD, from ImageNet weights.

    python train.py --config=configs/fcn_alexnet.py --config.init=caffe:caffenet \
        --config.manual_dir=DIR

DIR holds VOCdevkit and SBD (docs/data.md names the places). To train on VOC alone:
--config.train_split=train --config.eval_split=val

Arguments follow a colon: --config=configs/fcn_alexnet.py:cvpr

    pami  the published solver: 100,000 updates, each of 20 images one after the other (the
          default); the published network decays its biases as well, which is not done here
    cvpr  the recipe of CVPR 2015: minibatches of 20

Mean IU on seg11valid, as published for the reference implementation and not repeated here: 48.0.
"""

from fcn_jax.config import TRAINED_IN_TURN, choose, cvpr_recipe, reference_solver, voc_config


def get_config(arguments=""):
    (recipe,) = choose(arguments, ("pami", "cvpr"))
    config = voc_config()
    config.stages = TRAINED_IN_TURN["32s"]
    config.backbone = "alexnet"

    reference_solver(config, rates=(1e-4,), steps=2_000_000)  # Of one image: 100,000 updates.
    config.accumulate = 20
    config.normalize_loss = True
    config.momentum = 0.9
    config.bias_rate = 1.0  # Unlike the VGG nets, the published definition sets no rates.
    config.eval_every = 80_000
    config.checkpoint_every = 8000
    if recipe == "cvpr":
        cvpr_recipe(config, rate=1e-3)
    return config.lock()
