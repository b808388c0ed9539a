"""FCN-32s on colour and HHA, late fusion, on NYUDv2, with the reference solver's values.

Expected on test, of FCN-32s: 64.3, 44.9, 32.8, 48.0 (pixel acc., mean acc., mean IU, f.w. IU;
CVPR 2015, table 4; not repeated here). 300,000 steps of one whole image, 40 classes.

    python train.py --config=configs/nyud_color_hha.py --config.manual_dir=DIR \
        --config.init=color=runs/nyud_color,hha=runs/nyud_hha

DIR holds the reference's nyud.tar.gz (docs/data.md). Two networks, started from those of
nyud_color.py and nyud_hha.py, whose scores are averaged.

The recipe of CVPR 2015 (minibatches of 20, momentum 0.9, learned skips):
--config=configs/nyud_color_hha.py:cvpr
"""

from ml_collections import ConfigDict

from fcn_jax.config import default_config, reference_solver, set_recipe


def get_config(recipe="pami"):
    config = default_config()
    config.dataset = "nyudv2"
    config.dataset_options.camera = ()  # (fx, fy, cx, cy) of depth images of another size.
    config.train_split = "trainval"
    config.eval_split = "test"

    config.inputs = ConfigDict({"color": "image", "hha": "hha"})
    config.stages = ("fcn32s",)
    reference_solver(config, rates=(1e-12,), steps=300_000)
    set_recipe(config, recipe, cvpr_rate=1e-4)
    return config.lock()
