"""The configuration of a run: every field with its default, its meaning and what it may be.

A config file holds ``get_config()``, which starts from `default_config` and sets what differs.
`load_config` reads one; `validate` finds mistakes before anything is read or written.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import fnmatch
import json
import os
import re
import runpy
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias, cast

from ml_collections import ConfigDict

from fcn_jax import data
from fcn_jax.data.transforms import Augmentation
from fcn_jax.models.backbones import find_backbone
from fcn_jax.models.decoders import SEGMENTERS
from fcn_jax.models.fcn import FCN, create_model
from fcn_jax.models.layers import PRECISIONS
from fcn_jax.models.losses import LOSSES, options_of, read_loss

if TYPE_CHECKING:

    class Config(ConfigDict):
        """A config: its fields are those of `FIELDS`, which a type checker cannot look up."""

        def __getattr__(self, attribute: str) -> Any: ...
        def __getitem__(self, key: str) -> Any: ...
else:
    Config = ConfigDict

# ======================================================================== what a value may be


class Kind(NamedTuple):
    """What the values of a field are: in words, as a request, and as a check."""

    words: str
    fits: Callable[[Any], bool]


def whole(least: int, most: int = 2**31 - 1) -> Kind:
    """Whole numbers within limits."""
    return Kind(
        f"give a whole number from {least} to {most}",
        lambda value: type(value) is int and least <= value <= most,
    )


def number(limits: str, within: Callable[[float], bool]) -> Kind:
    """Numbers of float32 within limits; NaN is none."""
    return Kind(
        f"give a number {limits}",
        lambda value: type(value) in (int, float) and abs(value) < 3e38 and within(value),
    )


def up_to(most: float) -> Kind:
    """Positive numbers up to one."""
    return number(f"above 0 and at most {most}", lambda value: 0 < value <= most)


def choice(*names: str) -> Kind:
    """One of some names."""
    return Kind(f"choose one of {', '.join(names)}", lambda value: value in names)


def several(kind: Kind) -> Kind:
    """A tuple of values of a kind, which may be empty."""
    return Kind(
        f"give a tuple; for each entry {kind.words}",
        lambda value: isinstance(value, tuple) and all(map(kind.fits, value)),
    )


def by_name(kind: Kind) -> Kind:
    """Values of a kind, each under a name."""
    return Kind(
        f"give a dictionary; for each name {kind.words}",
        lambda value: (
            isinstance(value, ConfigDict)
            and all(isinstance(name, str) and re.fullmatch(r"\w+", name) for name in value)
            and all(map(kind.fits, value.values()))
        ),
    )


FLAG = Kind("give True or False", lambda value: isinstance(value, bool))
TEXT = Kind("give text", lambda value: isinstance(value, str))
NAME = Kind("give a name", lambda value: isinstance(value, str) and value.strip() != "")
OPTIONS = by_name(Kind("any value", lambda value: True))
POSITIVE = number("above 0", lambda value: value > 0)
NOT_NEGATIVE = number("at least 0", lambda value: value >= 0)
SHARE = number("from 0 to 1", lambda value: 0 <= value <= 1)
DEGREES = number("from 0 to 180", lambda value: 0 <= value <= 180)
BELOW_ONE = number("at least 0 and below 1", lambda value: 0 <= value < 1)
SIZE = Kind(
    "give (height, width) in pixels, or () for none",
    lambda value: several(whole(1)).fits(value) and len(value) in (0, 2),
)
FACTORS = Kind(
    "give (lowest, highest), both positive",
    lambda value: several(POSITIVE).fits(value) and len(value) == 2 and value[0] <= value[1],
)
MODALITIES = Kind(
    "give the modalities that it reads, each once, such as 'image' or 'image+depth'",
    lambda value: (
        isinstance(value, str) and all(parts := value.split("+")) and len(set(parts)) == len(parts)
    ),
)
INPUTS = by_name(MODALITIES)._replace(
    fits=lambda value: by_name(MODALITIES).fits(value) and len(value) > 0
)
STAGES = Kind(
    f"give one or more of {', '.join(SEGMENTERS)}, none twice",
    lambda value: several(choice(*SEGMENTERS)).fits(value) and 0 < len(value) == len(set(value)),
)

CLASS_WEIGHTS = Kind(
    "give () for none, a number for each class, or one of inverse, median: ('inverse',)",
    lambda value: (
        value in ((), ("inverse",), ("median",))
        or (several(NOT_NEGATIVE).fits(value) and any(value))
    ),
)
ERRORS = Kind(
    "give (alpha, beta), factors on false and on missed pixels, both positive",
    lambda value: several(POSITIVE).fits(value) and len(value) == 2,
)

# ======================================================================== the fields


class Field(NamedTuple):
    """A field of a config: its default, what it may be, what it does.

    It is ``free`` if it may change when a run goes on: where files lie, how often it looks up. So
    are the fields of the data and of the lengths of stages: what matters there is which images and
    how many steps they come to (`fcn_jax.training.identity`).
    """

    default: Any
    kind: Kind
    meaning: str
    free: bool = False


OPTIMIZERS = ("sgd", "adam", "adamw", "rmsprop")
SCHEDULES = ("constant", "step", "poly", "cosine", "plateau")

FIELDS: dict[str, dict[str, Field]] = {
    "Data": {
        "dataset": Field("shapes", NAME, "A data set of docs/data.md.", free=True),
        "data_dir": Field("data", NAME, "Where data sets are prepared and found.", free=True),
        "manual_dir": Field("", TEXT, "The files of the data set, as published.", free=True),
        "dataset_options": Field({}, OPTIONS, "Further options of the data set.", free=True),
        "train_split": Field("train", NAME, "The images to train on.", free=True),
        "eval_split": Field("val", NAME, "The images to score on.", free=True),
        "scale": Field(1.0, up_to(16), "Factor on sizes before the network."),
        "num_workers": Field(0, whole(0, 1024), "Processes that load; 0: threads.", free=True),
    },
    "Augmentation, of training images only": {
        "flip": Field(False, FLAG, "Mirror half of the images left to right."),
        "vertical_flip": Field(False, FLAG, "Turn half of the images upside down."),
        "rotation": Field(0.0, DEGREES, "Most degrees of a random rotation; void where empty."),
        "scale_range": Field((1.0, 1.0), FACTORS, "Random resize, drawn log-uniformly."),
        "crop": Field((), SIZE, "Random crop to (height, width); void where an image is smaller."),
        "jitter": Field(0.0, BELOW_ONE, "Random brightness, contrast and saturation."),
        "grey": Field(0.0, SHARE, "Share of the images that become grey."),
        "blur": Field(0.0, NOT_NEGATIVE, "Largest sigma of a random Gaussian blur, in pixels."),
        "jpeg": Field(0, whole(0, 100), "Lowest quality of random JPEG compression; 0: none."),
        "copy_paste": Field(0.0, SHARE, "Share of the images that get an object of a rare class."),
        "canvas": Field((), SIZE, "(height, width) of batches; empty: as their images need."),
    },
    # "image+depth" joins channels (early fusion); two inputs have a backbone each (late fusion).
    "Inputs and heads": {
        "inputs": Field({"image": "image"}, INPUTS, "The inputs: what each reads, joined by +."),
        "heads": Field((), several(NAME), "Label maps that are learned; empty: all."),
        "loss_weights": Field({}, by_name(POSITIVE), "Factor on a head's loss, where not 1."),
    },
    "Networks": {
        "stages": Field(
            ("fcn32s", "fcn16s", "fcn8s"), STAGES, "Trained in turn, each on the last."
        ),
        "backbone": Field("vgg16", NAME, "A backbone, or one of your own as FILE.py:FUNCTION."),
        "padding": Field(
            "same", choice("same", "reference"), "reference: 100 pixels, as in Caffe."
        ),
        "width": Field(1.0, up_to(64), "Multiplier of the backbone's channels."),
        "fc_width": Field(4096, whole(1, 2**16), "Channels of fc6 and fc7."),
        "dropout": Field(0.5, BELOW_ONE, "Rate of dropout after fc6 and fc7."),
        "learned_upsampling": Field(
            "intermediate",
            choice("intermediate", "none", "all"),
            "Transposed convolutions that are trained: intermediate (CVPR 2015), none (PAMI 2016).",
        ),
        "init": Field("", TEXT, "Start weights: a name, a file, a run's folder, or INPUT=FILE,…."),
        "freeze": Field((), several(NAME), "Layers that are not trained, such as 'conv1_*'."),
    },
    "Computation": {
        "precision": Field("float32", choice(*PRECISIONS), "Others are faster on GPUs and TPUs."),
        "spatial_shards": Field(1, whole(1), "Devices that share an image's rows.", free=True),
        "shard_parameters": Field(
            False, FLAG, "Each device keeps a part of parameters and optimiser state.", free=True
        ),
        "remat": Field(False, FLAG, "Less memory on GPUs and TPUs, and more time.", free=True),
    },
    "Loss": {
        "loss": Field(
            "cross_entropy", NAME, f"A sum such as cross_entropy+0.5*dice of {', '.join(LOSSES)}."
        ),
        "class_weights": Field(
            (), CLASS_WEIGHTS, "Factors on pixels by class: numbers, or inverse, or median."
        ),
        "label_smoothing": Field(0.0, BELOW_ONE, "Part of the target spread over all classes."),
        "focal_gamma": Field(2.0, NOT_NEGATIVE, "Of focal: how little easy pixels count."),
        "ohem_threshold": Field(
            0.7, up_to(1), "Of ohem: pixels of a smaller probability are hard."
        ),
        "ohem_least": Field(10_000, whole(1), "Of ohem: the hard pixels of an image, at least."),
        "tversky": Field((0.3, 0.7), ERRORS, "Of tversky: factors on false and missed pixels."),
        "normalize_loss": Field(False, FLAG, "Minimise the loss's mean; the paper sums pixels."),
        "cell_fraction": Field(1.0, up_to(1), "Part of the cells trained on (CVPR 2015, fig. 5)."),
    },
    "Training": {
        "batch_size": Field(1, whole(1), "Images in a minibatch, over all devices."),
        "accumulate": Field(1, whole(1), "Minibatches in an update (Caffe's iter_size)."),
        "epochs": Field(
            (), several(POSITIVE), "Per stage: passes over the training set.", free=True
        ),
        "steps": Field(
            (), several(whole(1)), "Per stage: minibatches, instead of epochs.", free=True
        ),
        "optimizer": Field("sgd", choice(*OPTIMIZERS), "The optimiser."),
        "learning_rate": Field((1e-10,), several(POSITIVE), "Per stage: the rate at its start."),
        "layer_rates": Field(
            (), several(NAME), "Factors on layers' rates: 'fc*=10', 'score_*=auto'."
        ),
        "schedule": Field("constant", choice(*SCHEDULES), "How the learning rate changes."),
        "warmup": Field(0, whole(0), "Updates over which the rate grows to its value."),
        "schedule_step": Field(
            0, whole(0), "Of step: updates between drops. Of plateau: steps in a mean of the loss."
        ),
        "schedule_gamma": Field(0.1, POSITIVE, "Factor of each drop."),
        "schedule_patience": Field(
            10, whole(1), "Of plateau: means in turn, none the smallest, before a drop."
        ),
        "momentum": Field(0.99, BELOW_ONE, "Of sgd and rmsprop."),
        "weight_decay": Field(5e-4, NOT_NEGATIVE, "Of kernels."),
        "bias_rate": Field(2.0, NOT_NEGATIVE, "Biases learn at this multiple of the rate."),
        "clip_norm": Field(0.0, NOT_NEGATIVE, "Largest norm of the gradient; 0: off."),
        "ema": Field(
            0.0, BELOW_ONE, "Decay of averaged parameters, which are scored and used; 0: none."
        ),
        "patience": Field(
            0, whole(0), "Evaluations in turn, none the best, that end a stage; 0: never."
        ),
        "best": Field(
            "mean_iu", NAME, "The metric of the best checkpoint, such as loss, mean_f1 or iu/CLASS."
        ),
        # A stage's data are shuffled by seed * 4 + stage, in 32 bits.
        "seed": Field(0, whole(0, 2**30 - 1), "Of all that is random."),
    },
    "Evaluation, checkpoints and logs": {
        "eval_batch_size": Field(1, whole(1), "Images at a time.", free=True),
        "eval_every": Field(
            0, whole(0), "Steps between scores; 0: at the end of each stage.", free=True
        ),
        "checkpoint_every": Field(1000, whole(1), "Steps between checkpoints.", free=True),
        "logger": Field(
            "none", choice("none", "wandb"), "Where logs go besides TensorBoard.", free=True
        ),
        "log_every": Field(20, whole(1), "Steps between records of the loss.", free=True),
        "samples": Field(4, whole(0), "Images that are drawn at each evaluation.", free=True),
    },
}
"""Every field, in sections. "Per stage": a tuple of one value, or of one for each stage."""

_ALL = {name: field for section in FIELDS.values() for name, field in section.items()}


def default_config() -> Config:
    """A config in which every field of `FIELDS` has its default."""
    return Config({name: field.default for name, field in _ALL.items()})


# ======================================================================== config files


def config_files() -> dict[str, Path]:
    """The config files of this package by name; in a clone they lie in configs/ beside it."""
    package = Path(__file__).parent
    folders = (package / "configs", package.parent / "configs")
    return {path.stem: path for folder in folders for path in sorted(folder.glob("*.py"))}


def find_config(name: str) -> str:
    """The file of a config; arguments stay: ``.../configs/fcn8s.py:32s`` for ``fcn8s:32s``.

    Raises:
        ValueError: If there is no such file, nor a config of this package of that name.
    """
    file, colon, arguments = name.partition(":")
    known = config_files()
    path = known.get(file, Path(file).expanduser())
    if not path.is_file():
        near = difflib.get_close_matches(Path(file).stem, known, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise ValueError(f"there is no config {file!r}; {hint}there are {', '.join(known)}")
    return f"{path}{colon}{arguments}"


def load_config(name: str) -> Config:
    """What ``get_config()`` of a config file (`find_config`) gives; after ``:`` is its argument.

    Raises:
        ValueError: If there is no such config, it cannot be run, does not know an argument, or
            gives something else.
    """
    path, colon, arguments = find_config(name).partition(":")
    try:
        module = SimpleNamespace(**runpy.run_path(path))
        config: Any = module.get_config(arguments) if colon else module.get_config()
    except Exception as error:  # it may do anything
        kind = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
        raise ValueError(f"{path}: {kind}{' '.join(str(error).split()):.500}") from error
    if not isinstance(config, ConfigDict):
        raise ValueError(f"{path}: get_config() gives {config!r:.80}; begin with default_config()")
    if missing := [name for name in _ALL if name not in config]:
        raise ValueError(f"{path}: the config has no {missing[0]}; begin with default_config()")
    return cast(Config, config)


def choose(arguments: str, *groups: tuple[str, ...]) -> tuple[str, ...]:
    """One name of each group: what a config file's arguments choose, or the group's first.

    Raises:
        ValueError: If an argument is in no group, or two are of one group.
    """
    given = [name.strip() for name in arguments.split(",") if name.strip()]
    found = [[name for name in given if name in group] for group in groups]
    if sum(map(len, found)) < len(given) or any(len(names) > 1 for names in found):
        known = "; ".join(" or ".join(group) for group in groups)
        raise ValueError(f"arguments {arguments!r}: give at most one of each of {known}")
    return tuple((*names, group[0])[0] for names, group in zip(found, groups, strict=True))


# ======================================================================== recipes of the papers

TRAINED_IN_TURN = {
    "32s": ("fcn32s",),
    "16s": ("fcn32s", "fcn16s"),
    "8s": ("fcn32s", "fcn16s", "fcn8s"),
    "atonce": ("fcn8s_atonce",),
}
"""The stages that end in a network."""


def voc_config() -> Config:
    """The default config with the data of the papers: PASCAL VOC 2011 and SBD."""
    config = default_config()
    config.dataset = "voc2012"
    config.dataset_options.sbd = ""  # The folder of SBD, where it is not found by itself.
    config.train_split = "sbd_train"
    config.eval_split = "seg11valid"
    return config


def reference_solver(config: Config, rates: tuple[float, ...], steps: int) -> None:
    """Sets the published VGG networks and their solvers (PAMI 2016): one whole image a step.

    100 pixels of border, transposed convolutions fixed. The defaults are the rest: SGD of momentum
    0.99, a constant rate, weight decay 0.0005, the loss summed over pixels, biases at twice the
    rate and not decayed. ``rates`` may be of further stages as well; every stage has ``steps``.
    """
    config.update(padding="reference", learned_upsampling="none")
    config.update(steps=(steps,), learning_rate=rates[: len(config.stages)])
    config.update(eval_every=4000, checkpoint_every=4000)


def cvpr_recipe(config: Config, rate: float) -> None:
    """Sets the training of CVPR 2015 (section 4.3).

    Minibatches of 20 images, momentum 0.9, the loss as the mean over pixels, intermediate
    transposed convolutions learned, skip stages at a hundredth of the rate, 175 epochs. The rate is
    1e-3 for AlexNet, 1e-4 for VGG16, 5e-5 for GoogLeNet.
    """
    rates = (rate, *[rate / 100] * (len(config.stages) - 1))
    config.update(batch_size=20, accumulate=1, steps=(), epochs=(175.0,), learning_rate=rates)
    config.update(momentum=0.9, bias_rate=2.0, normalize_loss=True)
    config.update(learned_upsampling="intermediate", eval_every=4000, checkpoint_every=1000)


# ======================================================================== checks


def validate(config: Config) -> None:
    """Checks all that can be known without the data, and builds the network of every stage.

    Raises:
        ValueError: With all problems, a line each: the field, its value and the remedy.
    """
    problems = wrong_values(config)

    # ---- Values that are right alone, together
    if not problems.keys() & {"stages", "steps", "epochs", "learning_rate", "inputs", "init"}:
        for name in ("learning_rate", "steps" if config.steps else "epochs"):
            if len(config[name]) not in (1, len(config.stages)):
                problems[name] = (
                    f"give one value, or one for each of the {len(config.stages)} stages"
                )
        if config.schedule in ("step", "plateau") and config.schedule_step == 0:
            need = "updates between drops" if config.schedule == "step" else "steps in a mean"
            problems["schedule_step"] = f"the schedule {config.schedule!r} needs the {need}"
        if config.schedule == "plateau" and config.schedule_gamma >= 1:
            problems["schedule_gamma"] = "the schedule 'plateau' needs a factor below 1"
        if config.patience and config.eval_every == 0:
            problems["patience"] = "it counts evaluations: give config.eval_every as well"
        for name, read in (("init", start_files), ("dataset", lambda c: data.row_of(c.dataset))):
            try:
                read(config)
            except ValueError as error:
                problems[name] = str(error)
    if not problems:
        try:
            taken = {option for _, name in read_loss(config.loss) for option in options_of(name)}
            for field, options in LOSS_FIELDS.items():
                if config[field] != _ALL[field].default and not taken.issuperset(options):
                    problems[field] = f"no part of the loss {config.loss!r} takes it"
        except ValueError as error:
            problems["loss"] = str(error)

    # ---- The networks
    if not problems:
        field, layers, scores = "backbone", set[str](), set[str]()
        try:
            find_backbone(os.path.expanduser(config.backbone))
            for stage in config.stages:
                field = "stages"
                stage_model(config, stage, freeze=())
                field = "freeze"
                model = stage_model(config, stage)
                layers |= {*model.parameter_layers}
                scores |= {*model.score_layers} - {*model.upsampling_layers}
            field = "layer_rates"
            for pattern, factor in map(read_layer_rate, config.layer_rates):
                found = fnmatch.filter(layers, pattern)
                if not found:
                    names = ", ".join(sorted(layers))
                    raise ValueError(f"no layer matches {pattern!r}; there are {names}")
                if factor == "auto" and (others := set(found) - scores):
                    raise ValueError(
                        f"auto is for score layers, and {pattern!r} matches {min(others)} as well; "
                        f"there are {', '.join(sorted(scores))}"
                    )
                if factor == "auto" and config.optimizer == "sgd":
                    raise ValueError(
                        "auto is for adam, adamw and rmsprop, whose steps do not grow with maps; "
                        "for sgd give numbers, or () for none"
                    )
        except (ValueError, TypeError) as error:
            problems[field] = str(error)
    if problems:
        plain = config.to_dict()
        raise ValueError(
            "\n".join(f"config.{n} = {plain[n]!r:.200}: {problems[n]:.1000}" for n in problems)
        )


def wrong_values(config: Config) -> dict[str, str]:
    """The fields whose value is wrong by itself, or that do not exist, each with what to give."""
    problems = {
        name: field.kind.words for name, field in _ALL.items() if not field.kind.fits(config[name])
    }
    for name in set(config) - set(_ALL):
        problems[name] = f"there is no such field{near_field(name)}"
    return problems


def near_field(name: str) -> str:
    """A hint at the field whose name is nearest; empty where none is near."""
    near = difflib.get_close_matches(name, _ALL, n=1)
    return f"; did you mean {near[0]!r}?" if near else ""


# ======================================================================== what a config says


def stage_model(config: Config, stage: str, **options: Any) -> FCN:
    """The network of a stage of a config, with ``options`` of `create_model` in place of its own.

    Without ``num_classes`` and ``inputs``, which the data tell, some are assumed.
    """
    channels = {
        name: sum(1 if modality == "depth" else 3 for modality in read.split("+"))
        for name, read in config.inputs.items()
    }
    fields = ("padding", "width", "fc_width", "dropout", "learned_upsampling", "precision", "remat")
    given = {field: config[field] for field in (*fields, "freeze")}
    given |= {"backbone": os.path.expanduser(config.backbone), "inputs": channels}
    return create_model(stage, **{**given, **options})


Factor: TypeAlias = float | Literal["auto"]
"""On the rate of a layer; ``auto`` is measured (`fcn_jax.training.init.auto_rates`)."""


def read_layer_rate(text: str) -> tuple[str, Factor]:
    """The pattern of layers and the factor of ``PATTERN=FACTOR``.

    Raises:
        ValueError: If it is no pattern with a factor above 0, or ``auto``.
    """
    pattern, _, factor = text.partition("=")
    if pattern and factor == "auto":
        return pattern, "auto"
    with contextlib.suppress(ValueError):
        if pattern and POSITIVE.fits(value := float(factor)):
            return pattern, value
    raise ValueError(
        f"{text!r}: give a layer, or a pattern of layers, and a factor above 0 or auto, such as "
        "'fc*=10'"
    )


def layer_rates(config: Config, model: FCN) -> dict[str, Factor]:
    """The factors on the rates of the layers of a stage's network: the last that fits each."""
    return {
        layer: factor
        for pattern, factor in map(read_layer_rate, config.layer_rates)
        for layer in fnmatch.filter(model.parameter_layers, pattern)
    }


LOSS_FIELDS = {
    "class_weights": ("class_weights",),
    "label_smoothing": ("label_smoothing",),
    "focal_gamma": ("gamma",),
    "ohem_threshold": ("threshold",),
    "ohem_least": ("least",),
    "tversky": ("alpha", "beta"),
}
"""The fields of losses, and what these call them."""


def loss_options(config: Config) -> dict[str, Any]:
    """The arguments of `fcn_jax.models.losses.make_loss`; class weights as the config has them."""
    return {
        option: value
        for field, options in LOSS_FIELDS.items()
        for option, value in zip(
            options, config[field] if len(options) > 1 else (config[field],), strict=True
        )
    }


def per_stage(config: Config, field: str) -> tuple[Any, ...]:
    """A per-stage field with one value for every stage."""
    values = tuple(config[field])
    return values * len(config.stages) if len(values) == 1 else values


def stage_steps(config: Config, images: int) -> tuple[int, ...]:
    """The steps of every stage where there are so many training images.

    Raises:
        ValueError: If epochs come to more steps than the step's number, of 32 bits, can count.
    """
    if config.steps:
        return per_stage(config, "steps")
    epochs = per_stage(config, "epochs")
    steps = tuple(max(1, round(e * images / config.batch_size)) for e in epochs)
    if max(steps) >= 2**31:
        raise ValueError(
            f"config.epochs = {config.epochs}: {max(steps):.3g} steps; give fewer than 2147483648"
        )
    return steps


def start_files(config: Config) -> dict[str, str]:
    """The files or names of start weights, by input where ``init`` tells those, else under ``""``.

    Raises:
        ValueError: If an input is named that the config does not have, or one is missing.
    """
    pairs = [part.partition("=") for part in config.init.split(",")]
    named = {
        name.strip(): os.path.expanduser(file.strip()) for name, equals, file in pairs if equals
    }
    if not config.init or not set(named) & set(config.inputs):
        return {"": os.path.expanduser(config.init)} if config.init else {}
    if set(named) != set(config.inputs):
        raise ValueError(
            "give a file for each input, " + ",".join(f"{name}=FILE" for name in config.inputs)
        )
    return named


def augmentation(config: Config, source: data.Source) -> Augmentation:
    """What happens to the training images of a source.

    Raises:
        ValueError: If it cannot happen to images of their bands.
    """
    fields = {field.name for field in dataclasses.fields(Augmentation)} & set(_ALL)
    given = {field: config[field] for field in fields}
    given |= {"crop": config.crop or None, "value_range": source.ranges["image"]}
    found = Augmentation(**given)
    found.check_bands(source.channels["image"])
    return found


def data_options(config: Config) -> dict[str, Any]:
    """The arguments of `fcn_jax.data.open_source` besides name and split; empty ones left out."""
    options = {field: config[field] for field in ("data_dir", "manual_dir")}
    options |= config.dataset_options.to_dict()
    return {
        name: os.path.expanduser(value) if isinstance(value, str) else value
        for name, value in options.items()
        if value not in ("", ())
    }


# ======================================================================== as files store it


def to_plain(config: Config) -> dict[str, Any]:
    """The fields as JSON stores them: tuples become lists."""
    return json.loads(json.dumps(config.to_dict()))


def from_plain(fields: Mapping[str, Any]) -> Config:
    """The inverse of `to_plain`."""

    def tuples(value: Any) -> Any:
        if isinstance(value, Mapping):
            return Config({name: tuples(item) for name, item in value.items()})
        return tuple(value) if isinstance(value, list) else value

    config = default_config()
    for name, value in fields.items():
        config[name] = tuples(value)
    return config


def changed_fields(old: Config, new: Config) -> list[str]:
    """Lines ``field: old -> new`` for the fields that must not change when a run goes on."""
    before, after = to_plain(old), to_plain(new)
    fixed = {name for name, field in _ALL.items() if not field.free}
    if new.patience:  # evaluations decide when a stage ends
        fixed.add("eval_every")
    return [
        f"{name}: {before[name]!r} -> {after[name]!r}"
        for name in sorted(fixed)
        if before[name] != after[name]
    ]
