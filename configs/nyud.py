"""FCN-32s on NYUDv2 (40 classes), from colour, depth, HHA, or two of them.

    python train.py --config=configs/nyud.py --config.init=caffe:vgg16 --config.manual_dir=DIR

DIR holds the reference's nyud.tar.gz (docs/data.md); where its folder hha is missing, HHA is
computed from depth.

Arguments follow a colon, several with commas between: --config=configs/nyud.py:hha

    color        (the default)
    hha          horizontal disparity, height above ground, angle with gravity
    color_depth  early fusion: the first layer reads four channels, the logarithm of depth last; its
                 fourth filter starts as the mean of the three
    color_hha    late fusion: two networks whose scores are averaged; start from those that were
                 trained alone: --config.init=color=runs/nyud_color,hha=runs/nyud_hha
    pami         the published solver: 300,000 steps of one whole image (the default)
    cvpr         the recipe of CVPR 2015: minibatches of 20, momentum 0.9

Pixel accuracy, mean accuracy, mean IU and frequency weighted IU on test (CVPR 2015, table 4; not
repeated here): color 60.0, 42.2, 29.2, 43.9; hha 57.1, 35.2, 24.2, 40.4; color_depth 61.5, 42.4,
30.5, 45.5; color_hha 64.3, 44.9, 32.8, 48.0.
"""

from ml_collections import ConfigDict

from fcn_jax.config import TRAINED_IN_TURN, choose, cvpr_recipe, default_config, reference_solver

INPUTS = {
    "color": {"color": "image"},
    "hha": {"hha": "hha"},
    "color_depth": {"color_depth": "image+depth"},
    "color_hha": {"color": "image", "hha": "hha"},
}


def get_config(arguments=""):
    inputs, recipe = choose(arguments, tuple(INPUTS), ("pami", "cvpr"))
    config = default_config()
    config.dataset = "nyudv2"
    config.dataset_options.camera = ()  # (fx, fy, cx, cy) of depth images of another size.
    config.train_split = "trainval"
    config.eval_split = "test"

    config.inputs = ConfigDict(INPUTS[inputs])
    config.stages = TRAINED_IN_TURN["32s"]
    rate = 1e-12 if inputs == "color_hha" else 1e-10
    reference_solver(config, rates=(rate,), steps=300_000)
    if recipe == "cvpr":
        cvpr_recipe(config, rate=1e-4)
    return config.lock()
