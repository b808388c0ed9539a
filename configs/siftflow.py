"""FCN-32s, 16s and 8s in turn on SIFT Flow: semantic and geometric labels learned together.

    python train.py --config=configs/siftflow.py --config.init=caffe:vgg16 --config.manual_dir=DIR

docs/data.md tells what DIR holds. One backbone, two decoders; cow, desert and moon, which the test
set lacks, are left out of the means.

Arguments follow a colon, several with commas between: --config=configs/siftflow.py:16s

    32s, 16s  end with FCN-32s or FCN-16s
    8s        end with FCN-8s (the default)
    pami      the published solvers: 300,000 steps of one whole image for each stage (the default)
    cvpr      the recipe of CVPR 2015: minibatches of 20, momentum 0.9, learned skips

Of FCN-16s on test (CVPR 2015, table 5; not repeated here): pixel accuracy 85.2, mean accuracy
51.7, mean IU 39.5, frequency weighted IU 76.1, and 94.3 of geometry's pixels.
"""

from fcn_jax.config import TRAINED_IN_TURN, choose, cvpr_recipe, default_config, reference_solver


def get_config(arguments=""):
    network, recipe = choose(arguments, ("8s", "16s", "32s"), ("pami", "cvpr"))
    config = default_config()
    config.dataset = "sift_flow"
    config.train_split = "trainval"
    config.eval_split = "test"
    config.loss_weights.sem = 1.0
    config.loss_weights.geo = 1.0

    config.stages = TRAINED_IN_TURN[network]
    reference_solver(config, rates=(1e-10, 1e-12, 1e-12), steps=300_000)
    if recipe == "cvpr":
        cvpr_recipe(config, rate=1e-4)
    return config.lock()
