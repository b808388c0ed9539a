"""FCN-32s, 16s and 8s in turn on PASCAL-Context: 59 classes and background.

    python train.py --config=configs/pascal_context.py --config.init=caffe:vgg16 \
        --config.manual_dir=DIR

docs/data.md tells what DIR holds.

Arguments follow a colon, several with commas between: --config=configs/pascal_context.py:16s

    32s, 16s  end with FCN-32s or FCN-16s
    8s        end with FCN-8s (the default)
    pami      the published solvers: 300,000 steps of one whole image for each stage (the default)
    cvpr      the recipe of CVPR 2015: minibatches of 20, momentum 0.9, learned skips

No score is published for these solvers.
"""

from fcn_jax.config import TRAINED_IN_TURN, choose, cvpr_recipe, default_config, reference_solver


def get_config(arguments=""):
    network, recipe = choose(arguments, ("8s", "16s", "32s"), ("pami", "cvpr"))
    config = default_config()
    config.dataset = "pascal_context"
    config.dataset_options.context = ""  # The folder of trainval/ and labels.txt, if apart.
    config.train_split = "train"
    config.eval_split = "val"

    config.stages = TRAINED_IN_TURN[network]
    reference_solver(config, rates=(1e-10, 1e-12, 1e-14), steps=300_000)
    if recipe == "cvpr":
        cvpr_recipe(config, rate=1e-4)
    return config.lock()
