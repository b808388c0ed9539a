"""FCN-32s, 16s and 8s in turn on PASCAL VOC 2011 and SBD, from the ImageNet weights of VGG16.

    python train.py --config=configs/fcn8s.py --config.manual_dir=DIR

It starts from torchvision's VGG16, which is fetched once (553 MB). The published networks started
from Caffe's, which read another range of pixels; their rates were found with those, and to come
near the published scores you should take them as well: --config.init=caffe:vgg16

DIR holds VOCdevkit and SBD (docs/data.md names the places). To train on VOC alone:
--config.train_split=train --config.eval_split=val

Arguments follow a colon, several with commas between: --config=configs/fcn8s.py:16s,cvpr

    32s, 16s  end with FCN-32s or FCN-16s
    8s        end with FCN-8s (the default)
    atonce    FCN-8s "at once": all three strides together
    pami      the published solvers: 100,000 steps of one whole image for each stage, 300,000
              at once (the default)
    cvpr      the recipe of CVPR 2015: minibatches of 20, momentum 0.9, learned skips

Mean IU on seg11valid, as published for the reference implementation with its solvers and not
repeated here: FCN-32s 63.6, FCN-16s 65.0, FCN-8s 65.5, at once 65.4.
"""

from fcn_jax.config import TRAINED_IN_TURN, choose, cvpr_recipe, reference_solver, voc_config


def get_config(arguments=""):
    network, recipe = choose(arguments, ("8s", "16s", "32s", "atonce"), ("pami", "cvpr"))
    config = voc_config()
    config.init = "torchvision:vgg16"
    config.stages = TRAINED_IN_TURN[network]
    steps = 300_000 if network == "atonce" else 100_000
    reference_solver(config, rates=(1e-10, 1e-12, 1e-14), steps=steps)
    if recipe == "cvpr":
        cvpr_recipe(config, rate=1e-4)
    return config.lock()
