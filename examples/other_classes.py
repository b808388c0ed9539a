"""Fine-tuning a trained network with classes of your own, on examples that are in memory.

    python examples/other_classes.py         # the published FCN-8s of PASCAL VOC is fetched once
    python examples/other_classes.py fcn8s-heavy-pascal.caffemodel

Layers of the same name and shape start from the network's; the score layers, which are of other
classes, begin anew. The run has checkpoints, goes on after a crash, and writes a report, as any.
"""

import sys

import fcn_jax
from fcn_jax import config as configs
from fcn_jax import data
from fcn_jax.inference import report
from fcn_jax.training.run import train


def main(start="caffe:fcn8s-heavy-pascal", workdir="runs/other_classes", folder="data", **fields):
    """Trains, writes the report, and returns the predictor."""
    # Your own: any object with a length and an index, such as rows of Hugging Face's datasets:
    #   rows = datasets.load_dataset(…, split="train")
    #   data.Examples(rows, ["sky", …], columns={"image": "photo", "label": "mask"})
    drawn = data.open_source("shapes", "train", data_dir=folder, train=60, val=10)
    rows = [{**example, "label": (example["label"] > 0).astype("uint8")} for example in drawn]
    names = ["background", "thing"]

    config = configs.default_config()
    config.update(stages=("fcn8s",), padding="reference", init=start, freeze=("conv1_*", "conv2_*"))
    config.update(batch_size=4, steps=(100,), flip=True, normalize_loss=True, log_every=10)
    config.update(optimizer="adamw", learning_rate=(1e-4,), schedule="poly", bias_rate=1.0)
    config.update(fields)

    def callback(stage, step, values):
        if "loss" in values:
            print(f"{stage}: the loss of step {step} is {values['loss']:.3f}")

    scored = train(
        config,
        workdir,
        train_source=data.Examples(rows[:50], names),
        eval_source=data.Examples(rows[50:], names),
        callbacks=[callback],
    )
    report.evaluate_run(workdir, scored)
    return fcn_jax.load(workdir)


if __name__ == "__main__":
    main(*sys.argv[1:])
