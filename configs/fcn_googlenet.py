"""FCN-GoogLeNet on PASCAL VOC 2011 and SBD, by the recipe of CVPR 2015.

The reference promised this network and did not release it. Expected mean IU on VOC 2011 val: 42.5
(CVPR 2015, table 1; not repeated here). Minibatches of 20 images. Skips are our own extension:
--config.stages="('fcn32s', 'fcn16s', 'fcn8s')"

    python train.py --config=configs/fcn_googlenet.py --config.init=bvlc_googlenet.caffemodel \
        --config.manual_dir=DIR

DIR holds VOCdevkit and SBD (docs/data.md names the places). To train on VOC alone:
--config.train_split=train --config.eval_split=val
"""

from fcn_jax.config import default_config, reference_solver, set_recipe


def get_config(recipe="cvpr"):
    config = default_config()
    config.dataset = "voc2012"
    config.dataset_options.sbd = ""  # The folder of SBD, where it is not found by itself.
    config.train_split = "sbd_train"
    config.eval_split = "seg11valid"

    config.stages = ("fcn32s",)
    config.backbone = "googlenet"
    # No published solver: "pami" is that of the VGG nets.
    reference_solver(config, rates=(1e-10,), steps=100_000)
    set_recipe(config, recipe, cvpr_rate=5e-5)
    return config.lock()
