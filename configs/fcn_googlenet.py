"""FCN-GoogLeNet on PASCAL VOC 2011 and SBD, from ImageNet weights.

    python train.py --config=configs/fcn_googlenet.py --config.init=caffe:googlenet \
        --config.manual_dir=DIR

DIR holds VOCdevkit and SBD (docs/data.md names the places). To train on VOC alone:
--config.train_split=train --config.eval_split=val

Arguments follow a colon, several with commas between: --config=configs/fcn_googlenet.py:8s

    32s      FCN-32s alone, as published (the default)
    16s, 8s  skips as well, which are our own extension
    cvpr     the recipe of CVPR 2015: minibatches of 20, momentum 0.9 (the default)
    pami     the solver of the VGG nets; the reference promised this network and did not release it

Mean IU on VOC 2011 val (CVPR 2015, table 1; not repeated here): 42.5.
"""

from fcn_jax.config import TRAINED_IN_TURN, choose, cvpr_recipe, reference_solver, voc_config


def get_config(arguments=""):
    network, recipe = choose(arguments, ("32s", "16s", "8s"), ("cvpr", "pami"))
    config = voc_config()
    config.stages = TRAINED_IN_TURN[network]
    config.backbone = "googlenet"
    reference_solver(config, rates=(1e-10, 1e-12, 1e-14), steps=100_000)
    if recipe == "cvpr":
        cvpr_recipe(config, rate=5e-5)
    return config.lock()
