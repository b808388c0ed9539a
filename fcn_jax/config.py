"""The configuration of a run: every field with its default and its meaning, and their checks.

A config file holds ``get_config()`` that starts from `default_config` and sets what differs.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any, TypeAlias

from ml_collections import ConfigDict

from fcn_jax.models.backbones import find_backbone
from fcn_jax.models.decoders import SEGMENTERS
from fcn_jax.models.layers import PRECISIONS
from fcn_jax.training.optimizer import OPTIMIZERS, SCHEDULES


def default_config() -> ConfigDict:
    """All fields of a run. Tuples marked "per stage" hold one value, or one for each stage."""
    config = ConfigDict()

    # ---- Data
    config.dataset = "shapes"  # A name in fcn_jax.data.DATASETS.
    config.data_dir = "data"  # Where data sets are prepared once and found again.
    config.manual_dir = ""  # The files as their owners publish them, where not downloaded.
    config.dataset_options = ConfigDict()  # Further options of the data set (folder).
    config.train_split = "train"
    config.eval_split = "val"
    config.scale = 1.0  # Images are resized by this before the network, scores back after it.
    config.num_workers = 0  # Processes that load and transform; 0: threads of this one.

    # ---- Augmentation, of training images only
    config.flip = False  # Mirror half of the images left to right.
    config.scale_range = (1.0, 1.0)  # Random resize, by a factor drawn log-uniformly.
    config.crop = ()  # Random crop to (height, width), filled with void where too small.
    config.jitter = 0.0  # Strength of random brightness, contrast and saturation.
    config.canvas = ()  # (height, width) of batches; empty: as their images need.

    # ---- Inputs and outputs
    # Each input of the network and the features of the data that it reads: "image+depth" joins
    # their channels (early fusion), two inputs have a backbone each (late fusion).
    config.inputs = ConfigDict({"image": "image"})
    config.heads = ()  # Label maps that are learned; empty: all that the data have.
    config.loss_weights = ConfigDict()  # Factor on each head's loss, where it is not 1.

    # ---- Networks
    config.stages = ("fcn32s", "fcn16s", "fcn8s")  # Trained in turn, each from the last.
    config.backbone = "vgg16"  # Or a backbone of your own, FILE.py:FUNCTION.
    config.padding = "same"  # Or "reference": 100 pixels of border, the published networks.
    config.width = 1.0  # Multiplier of the backbone's channels.
    config.fc_width = 4096  # Channels of fc6 and fc7.
    config.dropout = 0.5
    config.learned_upsampling = "intermediate"  # CVPR 2015; "none": PAMI; "all".
    # Start weights: a file or a run's folder; "color=…,hha=…" for each input; empty: random.
    config.init = ""
    config.freeze = ()  # Patterns of layers that are not trained, such as "conv1_*".

    # ---- Computation
    config.precision = "float32"  # Or "tf32", "bfloat16": faster on GPUs and TPUs.
    config.spatial_shards = 1  # Devices that share the rows of each image, where images are large.
    config.remat = (
        False  # Compute maps again for the gradient: less memory on GPUs and TPUs, more time.
    )

    # ---- Training
    config.batch_size = 1  # Over all devices.
    config.accumulate = 1  # Minibatches an update (Caffe's iter_size).
    config.epochs = ()  # Per stage: passes over the training set,
    config.steps = ()  # or minibatches, which go first where both are given.
    config.optimizer = "sgd"
    config.learning_rate = (1e-10,)  # Per stage.
    config.schedule = "constant"
    config.warmup = 0  # Updates over which the rate grows to its value.
    config.schedule_step = 0  # Updates between drops of the "step" schedule,
    config.schedule_gamma = 0.1  # and the factor of each.
    config.momentum = 0.99
    config.weight_decay = 5e-4  # On kernels.
    config.bias_rate = 2.0  # Biases learn at this multiple of the rate.
    config.clip_norm = 0.0  # Largest gradient norm; 0: off.
    config.normalize_loss = False  # Divide the loss by its pixels; the paper sums.
    config.cell_fraction = 1.0  # Part of the final-layer cells trained on (paper, figure 5).
    config.seed = 0

    # ---- Evaluation, checkpoints and logs
    config.eval_batch_size = 1
    config.eval_every = 0  # Steps; 0: at the end of each stage.
    config.checkpoint_every = 1000  # Steps.
    config.log_every = 20  # Steps.
    config.samples = 4  # Validation images drawn at each evaluation.
    return config


def reference_solver(config: ConfigDict, rates: tuple[float, ...], steps: int) -> None:
    """Sets the published VGG networks and their solvers (PAMI 2016): one whole image a step.

    100 pixels of border, transposed convolutions fixed; SGD of momentum 0.99, a constant rate, weight
    decay 0.0005, the loss summed over pixels, biases at twice the rate and not decayed.

    Args:
        config: Changed in place.
        rates: The learning rate of each stage.
        steps: Of each stage; scored and saved every 4000, as in the reference.
    """
    config.update(
        padding="reference",
        learned_upsampling="none",
        batch_size=1,
        steps=(steps,),
        optimizer="sgd",
        learning_rate=rates,
        schedule="constant",
        momentum=0.99,
        weight_decay=5e-4,
        bias_rate=2.0,
        normalize_loss=False,
        eval_every=4000,
        checkpoint_every=4000,
    )


def set_recipe(config: ConfigDict, recipe: str, cvpr_rate: float) -> None:
    """Sets how the networks of a config are trained, by the argument of its config file.

    ``pami`` leaves the config, which has the values of the published solvers, as it is. ``cvpr``
    is the training of CVPR 2015 (section 4.3): minibatches of 20 images, momentum 0.9, the loss
    as the mean over pixels, intermediate transposed convolutions learned, skip stages at a hundredth of
    the rate, at least 175 epochs.

    Args:
        config: Changed in place.
        recipe: ``pami`` or ``cvpr``.
        cvpr_rate: 1e-3 for AlexNet, 1e-4 for VGG16, 5e-5 for GoogLeNet.

    Raises:
        ValueError: If the recipe is unknown.
    """
    if recipe not in ("pami", "cvpr"):
        raise ValueError(f"unknown recipe {recipe!r} after the config file; take pami or cvpr")
    if recipe == "pami":
        return
    fields: Any = config
    rates = (cvpr_rate, *[cvpr_rate / 100] * (len(fields.stages) - 1))
    config.update(
        batch_size=20,
        accumulate=1,
        steps=(),
        epochs=(175.0,),
        learning_rate=rates,
        optimizer="sgd",
        momentum=0.9,
        weight_decay=5e-4,
        bias_rate=2.0,
        normalize_loss=True,
        learned_upsampling="intermediate",
        eval_every=4000,
        checkpoint_every=1000,
    )


# What may change when a run goes on: where files lie, and how often it looks up.
FREE_FIELDS = frozenset(
    {
        "data_dir",
        "manual_dir",
        "num_workers",
        "eval_batch_size",
        "checkpoint_every",
        "log_every",
        "remat",
        "samples",
        "spatial_shards",
    }
)

_PER_STAGE = ("steps", "epochs", "learning_rate")
_CHOICES = {
    "padding": ("same", "reference"),
    "precision": tuple(PRECISIONS),
    "optimizer": tuple(OPTIMIZERS),
    "schedule": tuple(SCHEDULES),
}
_POSITIVE = (
    *("width", "fc_width", "batch_size", "accumulate", "eval_batch_size", "scale"),
    *("checkpoint_every", "log_every", "spatial_shards"),
)
_NOT_NEGATIVE = ("eval_every", "samples", "num_workers", "warmup", "clip_norm", "weight_decay")
_BELOW_ONE = ("dropout", "momentum", "jitter")
_HEIGHT_WIDTH = ("crop", "canvas")


def validate(config: ConfigDict) -> None:
    """Checks every value that can be checked without the data.

    Raises:
        ValueError: With all problems, each naming the field, the value and the remedy.
    """
    problems = [
        f"config.{field} = {config[field]!r}: {remedy}"
        for check in (_wrong_names, _wrong_stages, _wrong_numbers, _wrong_shapes, _wrong_inputs)
        for field, remedy in check(config)
    ]
    if problems:
        raise ValueError("\n".join(problems))


Problems: TypeAlias = Iterator[tuple[str, str]]
"""Fields with a wrong value, and the remedy of each."""


def _wrong_stages(fields: Any) -> Problems:
    stages = len(fields.stages)
    known = ", ".join(SEGMENTERS)
    if not stages:
        yield "stages", f"name at least one of {known}"
    if not set(fields.stages) <= set(SEGMENTERS) or len(set(fields.stages)) < stages:
        yield "stages", f"each must be one of {known}, and none twice"
    for field in _PER_STAGE:
        if len(fields[field]) not in (0, 1, stages):
            yield field, f"give one value, or one for each of the {stages} stages"
        if not all(value > 0 for value in fields[field]):
            yield field, "values must be positive"
    if not fields.steps and not fields.epochs:
        yield "epochs", "give the length of the stages here or as config.steps"
    if not fields.learning_rate:
        yield "learning_rate", "give at least one value"


def _wrong_names(fields: Any) -> Problems:
    for field, choices in _CHOICES.items():
        if fields[field] not in choices:
            yield field, f"choose one of {', '.join(choices)}"
    try:
        find_backbone(fields.backbone)
    except ValueError as error:
        yield "backbone", str(error)


def _wrong_numbers(fields: Any) -> Problems:
    yield from ((field, "must be positive") for field in _POSITIVE if fields[field] <= 0)
    yield from ((field, "must not be negative") for field in _NOT_NEGATIVE if fields[field] < 0)
    yield from ((field, "must be in [0, 1)") for field in _BELOW_ONE if not 0 <= fields[field] < 1)
    if not 0 < fields.cell_fraction <= 1:
        yield "cell_fraction", "must be in (0, 1]"
    if fields.schedule == "step" and fields.schedule_step <= 0:
        yield "schedule_step", "the schedule 'step' needs the updates between drops"


def _wrong_shapes(fields: Any) -> Problems:
    for field in _HEIGHT_WIDTH:
        value = fields[field]
        if len(value) not in (0, 2) or not all(isinstance(v, int) and v > 0 for v in value):
            yield field, "give (height, width) in pixels, or () for none"
    factors = fields.scale_range
    if len(factors) != 2 or not 0 < factors[0] <= factors[1]:
        yield "scale_range", "give (lowest, highest), both positive"


def _wrong_inputs(fields: Any) -> Problems:
    inputs = [joined.split("+") for joined in fields.inputs.values()]
    if not inputs or not all(all(parts) and len(set(parts)) == len(parts) for parts in inputs):
        yield (
            "inputs",
            "give each input the features it reads, each once, such as 'image' or 'image+depth'",
        )
    if not all(weight > 0 for weight in fields.loss_weights.values()):
        yield "loss_weights", "values must be positive"


def per_stage(config: ConfigDict, field: str) -> tuple[Any, ...]:
    """A per-stage field with one value for every stage."""
    fields: Any = config
    values = tuple(fields[field])
    return values * len(fields.stages) if len(values) == 1 else values


def start_files(config: ConfigDict) -> dict[str, str]:
    """The files of start weights: by input where ``init`` names inputs, else one under ``""``.

    Raises:
        ValueError: If an input is named that the config does not have, or one is missing.
    """
    fields: Any = config
    pairs = [part.partition("=") for part in fields.init.split(",")]
    named = {name.strip(): path.strip() for name, equals, path in pairs if equals}
    if not fields.init or not set(named) & set(fields.inputs):
        return {"": fields.init} if fields.init else {}
    if set(named) != set(fields.inputs):
        raise ValueError(
            f"config.init = {fields.init!r}: give a file for each input, "
            + ",".join(f"{name}=FILE" for name in fields.inputs)
        )
    return named


def data_options(config: ConfigDict) -> dict[str, Any]:
    """The arguments of `fcn_jax.data.open_source` besides name and split; empty ones left out."""
    options = {
        "data_dir": config.data_dir,
        "manual_dir": config.manual_dir,
        **config.dataset_options.to_dict(),
    }
    return {name: value for name, value in options.items() if value not in ("", ())}


def to_plain(config: ConfigDict) -> dict[str, Any]:
    """The fields as JSON stores them: tuples become lists."""
    return json.loads(json.dumps(config.to_dict()))


def from_plain(fields: Mapping[str, Any]) -> ConfigDict:
    """The inverse of `to_plain`."""

    def tuples(value: Any) -> Any:
        if isinstance(value, Mapping):
            return ConfigDict({name: tuples(item) for name, item in value.items()})
        return tuple(value) if isinstance(value, list) else value

    config = default_config()
    for name, value in fields.items():
        config[name] = tuples(value)
    return config


def changed_fields(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Lines ``field: old -> new`` for the fields that must not change when a run goes on.

    A field that one of them lacks, as it is younger than the run, has its default.
    """
    defaults = to_plain(default_config())
    old, new = {**defaults, **old}, {**defaults, **new}
    return [
        f"{name}: {old.get(name)!r} -> {new.get(name)!r}"
        for name in sorted(set(old | new) - FREE_FIELDS)
        if old.get(name) != new.get(name)
    ]
