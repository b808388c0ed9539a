"""FCN-8s on PASCAL-Context: 59 classes and background.

Trains FCN-32s from the ImageNet weights of VGG16, from it FCN-16s, and from that FCN-8s. With the
reference solver's values. Three times 300,000 steps of one whole image.

    python train.py --config=configs/pascal_context_fcn8s.py --config.init=vgg16.npz \
        --config.manual_dir=DIR

docs/data.md tells what DIR holds.

The recipe of CVPR 2015 (minibatches of 20, momentum 0.9, learned skips):
--config=configs/pascal_context_fcn8s.py:cvpr
"""

from fcn_jax.config import default_config, reference_solver, set_recipe


def get_config(recipe="pami"):
    config = default_config()
    config.dataset = "pascal_context"
    config.dataset_options.context = ""  # The folder of trainval/ and labels.txt, if apart.
    config.train_split = "train"
    config.eval_split = "val"

    config.stages = ("fcn32s", "fcn16s", "fcn8s")
    reference_solver(config, rates=(1e-10, 1e-12, 1e-14), steps=300_000)
    set_recipe(config, recipe, cvpr_rate=1e-4)
    return config.lock()
