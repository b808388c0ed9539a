"""A small FCN on pictures the package makes itself: all three stages in minutes on a CPU.

Expected: val mean IU 0.22 (32s), 0.62 (16s), 0.82 (8s); four minutes on 2 CPU cores.

    python train.py --config=configs/quickstart.py
"""

from fcn_jax.config import default_config


def get_config():
    config = default_config()
    config.dataset = "shapes"
    config.dataset_options.train = 400
    config.dataset_options.val = 100
    config.dataset_options.size = 96
    config.flip = True

    config.width = 0.25
    config.fc_width = 128
    config.dropout = 0.1

    config.batch_size = 8
    config.eval_batch_size = 20
    config.epochs = (11.0, 4.0, 8.0)
    config.optimizer = "adam"
    config.learning_rate = (1e-3, 5e-4, 8e-4)
    config.schedule = "cosine"
    config.warmup = 50
    config.weight_decay = 0.0
    config.bias_rate = 1.0
    config.normalize_loss = True
    config.checkpoint_every = 200
    config.log_every = 50
    return config.lock()
