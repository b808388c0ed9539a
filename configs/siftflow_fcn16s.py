"""FCN-16s on SIFT Flow: semantic and geometric labels learned together.

Trains FCN-32s from the ImageNet weights of VGG16, and from it FCN-16s. One backbone, two decoders;
cow, desert and moon, which the test set lacks, are left out of the means. Expected on test, of
FCN-16s: 85.2, 51.7, 39.5, 76.1 (pixel acc., mean acc., mean IU, f.w. IU), and 94.3 of geometry's
pixels (CVPR 2015, table 5; not repeated here). Twice 300,000 steps of one whole image.

    python train.py --config=configs/siftflow_fcn16s.py --config.init=vgg16.npz \
        --config.manual_dir=DIR

docs/data.md tells what DIR holds.

The recipe of CVPR 2015 (minibatches of 20, momentum 0.9, learned skips):
--config=configs/siftflow_fcn16s.py:cvpr
"""

from fcn_jax.config import default_config, reference_solver, set_recipe


def get_config(recipe="pami"):
    config = default_config()
    config.dataset = "sift_flow"
    config.train_split = "trainval"
    config.eval_split = "test"
    config.loss_weights.sem = 1.0
    config.loss_weights.geo = 1.0

    config.stages = ("fcn32s", "fcn16s")
    reference_solver(config, rates=(1e-10, 1e-12), steps=300_000)
    set_recipe(config, recipe, cvpr_rate=1e-4)
    return config.lock()
