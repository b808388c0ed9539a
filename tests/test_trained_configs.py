"""Every config file trains two steps of every stage on data made in the published layouts.

On a backbone of four layers, which compiles in a tenth of the time of VGG16: that each config's own
backbone builds its networks is shown in test_config.py, what backbones compute in test_parity*.py.
FCN-32s is trained on VGG11, with start weights of torchvision.
"""

from __future__ import annotations

import functools
import json
import re
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from dataset_trees import (
    SIFT_FLOW_IDS,
    VOC_IDS,
    camvid_tree,
    context_tree,
    nyu_tree,
    random_image,
    save_grey,
    save_sbd,
    sift_flow_tree,
    voc_tree,
    write_list,
)
from ml_collections import ConfigDict
from random_parameters import random_parameters
from safetensors.numpy import save_file
from state_dicts import VGG_CONVOLUTIONS
from test_training import environment

from fcn_jax import Inputs, Predictor, Preprocessing, create_model, data, weights
from fcn_jax import config as configs
from fcn_jax.inference import report
from fcn_jax.runs import load_run
from fcn_jax.training import init
from fcn_jax.training import run as training

ROOT = Path(__file__).parents[1]
TRUNK = f"{Path(__file__).parent / 'toy_backbones.py'}:plain"
# The networks in a size that compiles fast; two steps of two images.
SMALL = {
    "backbone": TRUNK,
    "init": "",
    "width": 0.5,
    "fc_width": 8,
    "batch_size": 2,
    "accumulate": 1,
    "epochs": [],
    "steps": [2],
    "crop": [32, 32],
    "eval_every": 0,
    "samples": 1,
}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder for the data sets, the runs and their compiled programs."""
    return tmp_path_factory.mktemp("configs")


SHAPES = {"train": 6, "val": 2, "size": 48}


def made_data(dataset: str, root: Path) -> dict[str, object]:
    """Makes the files of a data set once; the config's fields that say where they are."""
    if dataset == "shapes":
        return {f"dataset_options.{name}": value for name, value in SHAPES.items()}
    if not root.exists():
        root.mkdir()
        MAKERS[dataset](root, np.random.default_rng(0))
    return {"manual_dir": str(root)}


def make_voc_and_sbd(root: Path, rng: np.random.Generator) -> None:
    written = voc_tree(root / "VOCdevkit/VOC2012", rng, VOC_IDS)
    for name in VOC_IDS["train"]:
        labels = rng.integers(0, 21, written[name]["label"].shape)
        save_sbd(root / f"SBD/cls/{name}.mat", labels)


def make_sift_flow(root: Path, rng: np.random.Generator) -> None:
    sift_flow_tree(root, rng, SIFT_FLOW_IDS)
    write_list(root / "trainval.txt", SIFT_FLOW_IDS[:2])
    write_list(root / "test.txt", SIFT_FLOW_IDS[2:])


def make_folder(root: Path, rng: np.random.Generator) -> None:
    (root / "classes.txt").write_text("ground\nthing\n")
    for number in range(10):
        size = tuple(rng.integers(5, 30, 2))
        random_image(root / f"images/{number}.png", rng, size)
        save_grey(root / f"masks/{number}.png", rng.integers(0, 2, size))


MAKERS = {
    "voc2012": make_voc_and_sbd,
    "camvid": camvid_tree,
    "nyudv2": nyu_tree,
    "sift_flow": make_sift_flow,
    "pascal_context": context_tree,
    "folder": make_folder,
}


@pytest.fixture(scope="module")
def trained(place):
    """A function that trains a config, `name` or `name:arguments`, and gives the workdir."""

    @functools.cache
    def train(name: str, **fields: str | float) -> Path:
        config = configs.load_config(name)
        made = made_data(config.dataset, place / config.dataset)
        workdir = place / "runs" / re.sub(r"\W", "_", name) / ("from" if fields else "random")
        with config.unlocked():
            for field, value in {**SMALL, **made, **fields}.items():
                section, _, option = field.rpartition(".")
                target = config[section] if section else config
                target[option] = tuple(value) if isinstance(value, list) else value
            config.data_dir = str(place / "data")
        training.train(config, workdir)
        return workdir

    return train


# Late fusion has a test of its own; tfds.py names a data set of TFDS, see test_datasets_tfds.py.
SLOW = (
    "camvid",
    "camvid:atonce",
    "camvid:8s",
    "fcn8s",
    "fcn8s:atonce",
    "fcn8s:16s,cvpr",
    "fcn_alexnet",
)
SLOW += (
    "fcn_googlenet:8s",
    "folder:cpu",
    "folder:gpu",
    "nyud",
    "nyud:hha",
    "nyud:color_depth",
    "pascal_context",
    "siftflow",
)


@pytest.mark.parametrize(
    "name", ["quickstart", "siftflow:16s", *(pytest.param(n, marks=pytest.mark.slow) for n in SLOW)]
)
def test_a_config_trains_and_is_scored(trained, name):
    # FCN-2s needs a backbone with four maps to skip from.
    workdir = trained(name, **({"backbone": "vgg11", "width": 0.05} if name == "camvid" else {}))
    config = load_run(workdir, allow_code=True).config
    records = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    for stage in config.stages:
        run = load_run(workdir, stage, "last", allow_code=True)
        assert run.step == 2
        losses = [r["loss"] for r in records if r["stage"] == stage and "loss" in r]
        assert losses
        assert np.isfinite(losses).all()
        assert [r for r in records if r["stage"] == stage and "eval/mean_iu" in r]


def test_every_config_is_trained_here():
    names = {name.partition(":")[0] for name in (*SLOW, "quickstart", "siftflow")}
    assert names == set(configs.config_files()) - {"tfds"}


@pytest.mark.slow
def test_both_heads_are_reported(trained, place):
    workdir = trained("siftflow:16s")
    options = configs.data_options(load_run(workdir, allow_code=True).config)
    report.evaluate_run(workdir, data.open_source("sift_flow", "test", **options), allow_code=True)
    folder = workdir / "report"
    scores = json.loads((folder / "scores.json").read_text())["stages"]
    names = [f"{stage}_{head}" for stage in ("fcn32s", "fcn16s") for head in ("sem", "geo")]
    assert list(scores) == names
    for name in names:
        assert (folder / f"confusion_{name}.csv").is_file()
        unscored = ["cow", "desert", "moon"] if name.endswith("sem") else []
        assert scores[name]["unscored"] == unscored
    pictures = {path.stem.rpartition("_")[2] for path in (folder / "pictures").iterdir()}
    assert pictures == {"sem", "geo"}


@pytest.mark.slow
def test_late_fusion_starts_from_the_two_networks(trained):
    color, hha = trained("nyud:color"), trained("nyud:hha")
    workdir = trained("nyud:color_hha", init=f"color={color},hha={hha}")
    run = load_run(workdir, allow_code=True)
    assert run.inputs.channels == {"color": 3, "hha": 3}
    for stream, start in (("color", color), ("hha", hha)):
        before = load_run(start, allow_code=True).variables["params"]
        for layer in ("stem", "middle", "top"):
            after = run.variables["params"][f"{layer}{stream}"]["kernel"]
            # Two steps of a rate of 1e-12 leave it where it was.
            np.testing.assert_allclose(after, before[layer]["kernel"], atol=1e-6)


@pytest.mark.slow
def test_colour_and_depth_are_one_input_of_four_channels(trained):
    run = load_run(trained("nyud:color_depth"), allow_code=True)
    assert run.variables["params"]["stem"]["kernel"].shape[2] == 4
    [(_, features)] = run.inputs.entries
    assert [name for name, _ in features] == ["image", "depth"]
    assert dict(features)["depth"].log


def test_weights_of_torchvision_bring_their_scale_of_pixels(trained, place):
    """RGB from 0 to 1, less the mean, over the deviation: in training, and in predicting later."""
    model = create_model("classifier", backbone="vgg11", num_classes=10, width=0.05, fc_width=8)
    params = random_parameters(model, 0)
    theirs = {}
    for index, layer in zip(VGG_CONVOLUTIONS["vgg11"], params, strict=False):
        kernel = params[layer]["kernel"].transpose(3, 2, 0, 1)
        theirs[f"features.{index}.weight"] = np.ascontiguousarray(kernel)
        theirs[f"features.{index}.bias"] = params[layer]["bias"]
    for index, layer in ((0, "fc6"), (3, "fc7"), (6, "fc8")):
        kernel = params[layer]["kernel"].transpose(3, 2, 0, 1)  # flattened channel by channel
        theirs[f"classifier.{index}.weight"] = kernel.reshape(len(kernel), -1)
        theirs[f"classifier.{index}.bias"] = params[layer]["bias"]
    save_file(theirs, place / "vgg11.bin")

    run = load_run(
        trained("fcn8s:32s", init=str(place / "vgg11.bin"), backbone="vgg11", width=0.05)
    )
    expected = Preprocessing("rgb", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), 1 / 255)
    assert run.inputs == Inputs.of(expected)
    for layer in ("conv1_1", "conv5_2", "fc6"):
        after = run.variables["params"][layer]["kernel"]
        np.testing.assert_allclose(after, params[layer]["kernel"], atol=1e-6)
    image = np.random.default_rng(1).integers(0, 256, (20, 30, 3), np.uint8)
    pixels = (image / 255 - expected.mean) / expected.std
    logits = jax.jit(run.model.apply)(run.variables, np.float32(pixels[None]))
    np.testing.assert_allclose(
        Predictor(run.model, run.variables, run.inputs, run.heads).logits(image),
        logits[0],
        atol=1e-4,
    )


# ======================================================================== starts that go wrong


def start(place, workdir: str, **fields):
    """Trains FCN-32s on the made VOC data for a step, in this process."""
    config = configs.load_config("fcn8s:32s")
    with config.unlocked():
        for name, value in {**SMALL, **made_data("voc2012", place / "voc2012"), **fields}.items():
            config[name] = tuple(value) if isinstance(value, list) else value
        config.data_dir = str(place / "data")
    return training.train(config, place / workdir)


def test_classifiers_of_another_width_start_a_network_whose_fc_layers_begin_anew():
    """The recipes for a folder are narrower than the published VGG16."""
    wide = {"backbone": "vgg11", "width": 0.05, "fc_width": 8}
    narrow = create_model("fcn32s", **{**wide, "fc_width": 4})
    classifier = random_parameters(create_model("classifier", num_classes=10, **wide), 0)
    params, report = init.params_from(
        narrow, {"": weights.Weights(weights.flatten(classifier))}, jax.random.key(0)
    )
    assert {name.partition("/")[0] for name in report.left} == {"fc6", "fc7", "score_fr", "upscore"}
    np.testing.assert_array_equal(params["conv5_2"]["kernel"], classifier["conv5_2"]["kernel"])
    assert params["fc7"]["kernel"].shape == (1, 1, 4, 4)
    segmenter = weights.Weights(
        weights.flatten(random_parameters(create_model("fcn32s", **wide), 0))
    )
    with pytest.raises(ValueError, match=r"fc6/kernel: the file has \(7, 7, 26, 8\), the network"):
        init.params_from(narrow, {"": segmenter}, jax.random.key(0))


@pytest.mark.parametrize("size", [(150, 190), (40, 210)], ids=str)
def test_auto_rates_move_scores_alike(size):
    """A change of every weight by a rate moves scores by 1000 rates, as a mean over the cells."""
    backbone = f"{Path(__file__).with_name('toy_backbones.py')}:plain"
    model = create_model(
        "fcn8s_atonce", num_classes={"a": 3, "b": 2}, backbone=backbone, fc_width=8
    )
    params = random_parameters(model, 0)
    rng = np.random.default_rng(0)
    label = rng.integers(0, 2, size, np.uint8)
    image = rng.integers(0, 256, (*size, 3), np.uint8)
    source = data.Examples(
        [{"image": image, "a": label, "b": label}], {"a": ["x", "y", "z"], "b": ["x", "y"]}
    )
    inputs = Inputs.of(Preprocessing(mean=(9.0, 8.0, 7.0)))
    scores = {
        f"{layer}_{head}": source_map
        for layer, source_map in (
            ("score_fr", "top"),
            ("score_pool4", "pool4"),
            ("score_pool3", "pool3"),
        )
        for head in "ab"
    }
    rates = init.auto_rates(model, tuple(scores), params, inputs, source)
    top, left = (max(0, side // 2 - 64) for side in size)
    middle = image[top : top + 128, left : left + 128][None]
    _, maps = model.apply({"params": params}, inputs.apply(middle), return_maps=True)
    for layer, name in scores.items():
        scale = {"top": 1, "pool4": 0.01, "pool3": 0.0001}[name]
        moved = scale * np.abs(np.asarray(maps[name])).sum(-1).mean()
        assert rates[layer] * moved == pytest.approx(1000, rel=1e-4)


def save_trunk(path: Path, backbone: str) -> str:
    model = create_model("fcn32s", backbone=backbone, width=0.5, fc_width=8)
    weights.save(path, random_parameters(model, 0))
    return str(path)


@pytest.mark.parametrize("backbone", ["vgg11", "vgg19"])
def test_weights_of_a_neighbour_are_refused_before_anything_is_written(place, backbone):
    init = save_trunk(place / f"{backbone}.npz", backbone)
    named = "missing: conv1_2" if backbone == "vgg11" else "without a place: conv3_4"
    with pytest.raises(ValueError, match=rf"(?s)they are of {backbone}.*{named}"):
        start(place, "neighbour", backbone="vgg16", init=init, manual_dir="/nonexistent")
    assert not (place / "neighbour").exists()


def test_a_failed_start_does_not_claim_the_folder(place, monkeypatch):
    """Neither one that was refused, nor one that was killed before its first checkpoint."""

    def killed(*_, **__):
        raise KeyboardInterrupt

    init = save_trunk(place / "good.npz", TRUNK)
    with monkeypatch.context() as patch:
        patch.setattr(training, "take_steps", killed)
        with pytest.raises(KeyboardInterrupt):
            start(place, "claimed", init=init, seed=1)
    start(place, "claimed", init=init, seed=2)
    assert load_run(place / "claimed", allow_code=True).config.seed == 2
    with pytest.raises(ValueError, match="holds a run of another config"):
        start(place, "claimed", init=init, seed=3)


def test_a_trunk_of_ones_own_in_training_and_after(place):
    """Named by its file, so that eval.py and predict.py find it in another process."""
    start(place, "own")
    code = (
        "import sys; from fcn_jax.runs import load_run; "
        "run = load_run(sys.argv[1], allow_code=True); "
        "print([layer.name for layer in run.model.backbone.layers][:2])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(place / "own")],
        env=environment(place),
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "['stem', 'pool2']"
    with pytest.raises(ValueError, match=r"nowhere\.py:f' cannot be loaded"):
        start(place, "own2", backbone="nowhere.py:f")
    with pytest.raises(ValueError, match="unknown backbone 'vgg'"):
        start(place, "own2", backbone="vgg")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"heads": ("sem",)}, "config.heads names sem; voc2012"),
        ({"loss_weights": {"geo": 2.0}}, "config.loss_weights names geo"),
        ({"inputs": {"color": "hha"}}, "config.inputs.color reads hha; voc2012"),
        ({"inputs": {"color": "image+image"}}, "each once"),
    ],
)
def test_inputs_and_heads_that_are_not_there(place, fields, message):
    fields = {k: ConfigDict(v) if isinstance(v, dict) else v for k, v in fields.items()}
    with pytest.raises(ValueError, match=re.escape(message)):
        start(place, "wrong", **fields)
    assert not (place / "wrong").exists()
