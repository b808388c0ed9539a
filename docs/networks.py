"""Writes the tables of docs/networks.md from the configs and the layer tables.

    python docs/networks.py

Run it when a network or a config changes; a test compares.
"""

from __future__ import annotations

import dataclasses
import math
import re
from pathlib import Path

from fcn_jax.config import load_config
from fcn_jax.data.nyudv2 import NYUDV2
from fcn_jax.data.pascal_context import PASCAL_CONTEXT
from fcn_jax.data.sift_flow import SIFT_FLOW_GEOMETRIC, SIFT_FLOW_SEMANTIC
from fcn_jax.data.voc import VOC
from fcn_jax.models.fcn import FCN, abstract_params, create_model, multiply_adds
from fcn_jax.models.inputs import CAFFE, Inputs, Preprocessing
from fcn_jax.runs import build_model

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "networks.md"
CONFIGS = "https://github.com/fcn-jax/fcn_jax/blob/main/configs"  # of a site, they are outside

HEADS = {
    "voc2012": {"label": VOC},
    "nyudv2": {"label": NYUDV2},
    "sift_flow": {"sem": SIFT_FLOW_SEMANTIC, "geo": SIFT_FLOW_GEOMETRIC},
    "pascal_context": {"label": PASCAL_CONTEXT},
}
"""The label maps of each data set."""

MODALITIES = {
    "image": CAFFE,
    "hha": CAFFE,
    "depth": Preprocessing("rgb", (7.844,), (1.0,), log=True),
}


@dataclasses.dataclass(frozen=True)
class Row:
    """A network of the papers.

    Attributes:
        title: What it is called.
        config: The name of its config, and arguments; the last stage is the network.
        published: Its score, and where.
    """

    title: str
    config: str
    published: str


SEG11 = "mIU {} on seg11valid"
NYUD = "mIU {} on NYUDv2 test"
ROWS = (
    Row("FCN-32s", "fcn8s:32s", SEG11.format(63.6)),
    Row("FCN-16s", "fcn8s:16s", SEG11.format("65.0")),
    Row("FCN-8s", "fcn8s", SEG11.format(65.5)),
    Row("FCN-8s at-once", "fcn8s:atonce", SEG11.format(65.4)),
    Row("FCN-AlexNet", "fcn_alexnet", SEG11.format("48.0")),
    Row("FCN-GoogLeNet", "fcn_googlenet", "mIU 42.5 on VOC 2011 val"),
    Row("FCN-GoogLeNet-16s", "fcn_googlenet:16s", "ours, no score"),
    Row("FCN-GoogLeNet-8s", "fcn_googlenet:8s", "ours, no score"),
    Row("NYUDv2 color", "nyud:color", NYUD.format(29.2)),
    Row("NYUDv2 HHA", "nyud:hha", NYUD.format(24.2)),
    Row("NYUDv2 color + depth, early fusion", "nyud:color_depth", NYUD.format(30.5)),
    Row("NYUDv2 color, HHA, late fusion", "nyud:color_hha", NYUD.format(32.8)),
    Row("SIFT Flow FCN-32s", "siftflow:32s", "–"),
    Row("SIFT Flow FCN-16s", "siftflow:16s", "mIU 39.5, geometry 94.3 % of pixels"),
    Row("SIFT Flow FCN-8s", "siftflow", "–"),
    Row("PASCAL-Context FCN-32s", "pascal_context:32s", "–"),
    Row("PASCAL-Context FCN-16s", "pascal_context:16s", "–"),
    Row("PASCAL-Context FCN-8s", "pascal_context", "–"),
)

CLASSIFIERS = {
    "vgg11": 224,
    "vgg13": 224,
    "vgg16": 224,
    "vgg19": 224,
    "alexnet": 227,
    "alexnet_torchvision": 224,
    "googlenet": 224,
    "googlenet_torchvision": 224,
    "resnet18": 224,
    "resnet34": 224,
    "resnet50": 224,
    "resnet101": 224,
}
"""Backbones, and the side of the images they are trained on."""

DILATED = ("resnet50_dilated", "resnet101_dilated")
"""Backbones of torchvision's FCNs, which are no classifiers."""


def network(row: Row, padding: str | None = None) -> FCN:
    """The network of a row's config, with another padding where one is given."""
    config = load_config(row.config)
    if padding:
        config.padding = padding
    inputs = Inputs.of(
        {
            name: {modality: MODALITIES[modality] for modality in read.split("+")}
            for name, read in config.inputs.items()
        }
    )
    return build_model(config, config.stages[-1], HEADS[config.dataset], inputs)


def parameters(model: FCN) -> int:
    """Numbers in all layers but the transposed convolutions, which the papers do not count."""
    return sum(
        math.prod(array.shape)
        for layer, arrays in abstract_params(model).items()
        for array in arrays.values()
        if layer not in model.upsampling_layers
    )


def table_of_networks() -> str:
    """The networks of the papers as a table of Markdown."""
    lines = [
        "| network | config | parameters | receptive field | stride | multiply-adds at 500x500: "
        "`reference` | `same` | published |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in ROWS:
        model = network(row)
        field = model.alignment.geometry["score_fr"].receptive_field
        final = model.alignment.transposed_windows[model.alignment.final or ""]
        adds = [multiply_adds(network(row, p), 500, 500) for p in ("reference", "same")]
        lines.append(
            f"| {row.title} | [`{row.config}`]({CONFIGS}/{row.config.partition(':')[0]}.py) "
            f"| {parameters(model) / 1e6:.2f} M | {field} | {final.factor} "
            f"| {adds[0] / 1e9:.1f} G | {adds[1] / 1e9:.1f} G | {row.published} |"
        )
    return "\n".join(lines)


def table_of_backbones() -> str:
    """The classifiers as a table of Markdown."""
    lines = [
        "| backbone | classifier's parameters | at size | multiply-adds | receptive field of a "
        "class score | skips, at strides | as FCN, 21 classes |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, side in CLASSIFIERS.items():
        model = create_model("classifier", backbone=name, num_classes=1000)
        fcn = create_model("fcn32s", backbone=name)
        geometry = model.alignment.geometry
        field = fcn.alignment.geometry["score_fr"].receptive_field
        skips = ", ".join(f"`{skip}` {geometry[skip].stride}" for skip in model.backbone.skips)
        lines.append(
            f"| `{name}` | {parameters(model) / 1e6:.2f} M | {side} "
            f"| {multiply_adds(model, side, side) / 1e9:.2f} G "
            f"| {geometry[model.backbone.classifier].receptive_field} | {skips} "
            f"| {parameters(fcn) / 1e6:.2f} M, {field} |"
        )
    for name in DILATED:
        fcn = create_model("fcn_interpolated", backbone=name)
        geometry = fcn.alignment.geometry
        skips = ", ".join(f"`{skip}` {geometry[skip].stride}" for skip in fcn.backbone.skips)
        lines.append(
            f"| `{name}` | – | – | – | – | {skips} "
            f"| {parameters(fcn) / 1e6:.2f} M, {geometry['score_fr'].receptive_field} |"
        )
    return "\n".join(lines)


TABLES = {"networks": table_of_networks, "backbones": table_of_backbones}


def replaced(text: str) -> str:
    """The page with its tables made anew, each between two comments."""
    for name, make in TABLES.items():
        pattern = rf"(<!-- {name}: made by docs/networks.py -->\n).*?(<!-- end of {name} -->)"
        table = make()
        text, count = re.subn(
            pattern, lambda match, t=table: f"{match[1]}{t}\n{match[2]}", text, flags=re.DOTALL
        )
        if count != 1:
            raise ValueError(f"{PAGE} has {count} places for the table of {name}, not one")
    return text


if __name__ == "__main__":
    PAGE.write_text(replaced(PAGE.read_text()))
