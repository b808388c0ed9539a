"""The published Caffe weights of all FCNs go into our networks by name, every array of them.

The files are written here with the layers that the published networks have, with few channels.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from caffe_files import Layer, caffemodel

from fcn_jax import Inputs, Preprocessing, create_model
from fcn_jax.models.fcn import abstract_params
from fcn_jax.weights import flatten, load, transplant

FC = 5
VGG_CHANNELS = {"1": 1, "2": 2, "3": 4, "4": 8, "5": 8}  # 64 ... 512 at 1/64
VGG = "1_1 1_2 2_1 2_2 3_1 3_2 3_3 4_1 4_2 4_3 5_1 5_2 5_3".split()  # noqa: SIM905


class Writer:
    """Layers with random arrays, and what each should become."""

    def __init__(self) -> None:
        self.rng = np.random.default_rng(0)
        self.layers: list[Layer] = []
        self.expected: dict[str, np.ndarray] = {}

    def convolution(self, name: str, inputs: int, outputs: int, size: int, group: int = 1) -> None:
        kernel = self.rng.standard_normal((outputs, inputs // group, size, size), np.float32)
        bias = self.rng.standard_normal(outputs, np.float32)
        self.layers.append(Layer(name, "Convolution", [kernel, bias], group))
        ours = "conv1_1" if name == "conv1_1_bgrd" else name
        self.expected[f"{ours}/kernel"] = np.moveaxis(kernel, (0, 1), (3, 2))
        self.expected[f"{ours}/bias"] = bias

    def up(self, name: str, classes: int, size: int, grouped: bool = False) -> None:
        kernel = self.rng.standard_normal((classes, classes, size, size), np.float32)
        if grouped:
            kernel *= np.eye(classes, dtype=np.float32)[:, :, None, None]
        self.expected[f"{name}/kernel"] = np.moveaxis(kernel, (0, 1), (2, 3))
        if grouped:
            kernel = kernel[np.arange(classes), np.arange(classes)][:, None]
        group = classes if grouped else 1
        self.layers.append(Layer(name, "Deconvolution", [kernel], group))

    def scale(self, name: str, factor: float) -> None:
        self.layers.append(Layer(name, "Scale", [np.array([factor], np.float32)]))

    def vgg(self, suffix: str = "", channels: int = 3, first: str = "conv1_1") -> None:
        for place in VGG:
            name = first if place == "1_1" else f"conv{place}"
            outputs = VGG_CHANNELS[place[0]]
            self.convolution(f"{name}{suffix}", channels, outputs, 3)
            channels = outputs
        self.convolution(f"fc6{suffix}", channels, FC, 7)
        self.convolution(f"fc7{suffix}", FC, FC, 1)

    def decoder(self, stride: int, classes: int, head: str = "", grouped: bool = False) -> None:
        self.convolution(f"score_fr{head}", FC, classes, 1)
        if stride == 32:
            self.up(f"upscore{head}", classes, 64, grouped)
            return
        self.up(f"upscore2{head}", classes, 4, grouped)
        self.convolution(f"score_pool4{head}", 8, classes, 1)
        if stride == 16:
            self.up(f"upscore16{head}", classes, 32, grouped)
            return
        self.up(f"upscore_pool4{head}", classes, 4, grouped)
        self.convolution(f"score_pool3{head}", 4, classes, 1)
        self.up(f"upscore8{head}", classes, 16, grouped)


def vgg_net(stride: int, classes: int, grouped: bool = False) -> Writer:
    writer = Writer()
    writer.vgg()
    writer.decoder(stride, classes, grouped=grouped)
    return writer


def voc_atonce() -> Writer:
    writer = vgg_net(8, 21)
    writer.scale("scale_pool4", 0.01)
    writer.scale("scale_pool3", 0.0001)
    return writer


def voc_alexnet() -> Writer:
    writer = Writer()  # 96, 256, 384, 384, 256 channels at 1/48, even numbers
    writer.convolution("conv1", 3, 2, 11)
    writer.convolution("conv2", 2, 6, 5, group=2)
    writer.convolution("conv3", 6, 8, 3)
    writer.convolution("conv4", 8, 8, 3, group=2)
    writer.convolution("conv5", 8, 6, 3, group=2)
    writer.convolution("fc6", 6, FC, 6)
    writer.convolution("fc7", FC, FC, 1)
    writer.convolution("score_fr", FC, 21, 1)
    writer.up("upscore", 21, 63)
    return writer


def nyud_color_depth() -> Writer:
    writer = Writer()
    writer.vgg(channels=4, first="conv1_1_bgrd")
    writer.decoder(32, 40)
    return writer


def nyud_color_hha() -> Writer:
    writer = Writer()
    for stream in ("color", "hha"):
        writer.vgg(stream)
        writer.convolution(f"score_fr{stream}", FC, 40, 1)
    writer.up("upscore", 40, 64)
    return writer


def sift_flow(stride: int) -> Writer:
    writer = Writer()
    writer.vgg()
    writer.decoder(stride, 33, "_sem")
    writer.decoder(stride, 3, "_geo")
    return writer


@dataclasses.dataclass(frozen=True)
class Published:
    """How its file is made, and how our network is built."""

    write: object
    model: str
    num_classes: object
    backbone: str = "vgg16"
    inputs: object = 3
    skipped: tuple[str, ...] = ()


SEM_GEO = {"sem": 33, "geo": 3}
NETS = {
    "voc-fcn32s": Published(lambda: vgg_net(32, 21), "fcn32s", 21),
    "voc-fcn16s": Published(lambda: vgg_net(16, 21), "fcn16s", 21),
    "voc-fcn8s": Published(lambda: vgg_net(8, 21), "fcn8s", 21),
    "voc-fcn8s-atonce": Published(
        voc_atonce,
        "fcn8s_atonce",
        21,
        skipped=("scale_pool4 (Scale, 1 arrays)", "scale_pool3 (Scale, 1 arrays)"),
    ),
    "voc-fcn-alexnet": Published(voc_alexnet, "fcn32s", 21, "alexnet"),
    "nyud-fcn32s-color": Published(lambda: vgg_net(32, 40), "fcn32s", 40),
    "nyud-fcn32s-color-d": Published(nyud_color_depth, "fcn32s", 40, inputs=4),
    "nyud-fcn32s-hha": Published(lambda: vgg_net(32, 40), "fcn32s", 40),
    "nyud-fcn32s-color-hha": Published(nyud_color_hha, "fcn32s", 40, inputs={"color": 3, "hha": 3}),
    "siftflow-fcn32s": Published(lambda: sift_flow(32), "fcn32s", SEM_GEO),
    "siftflow-fcn16s": Published(lambda: sift_flow(16), "fcn16s", SEM_GEO),
    "siftflow-fcn8s": Published(lambda: sift_flow(8), "fcn8s", SEM_GEO),
    "pascalcontext-fcn32s": Published(lambda: vgg_net(32, 60, grouped=True), "fcn32s", 60),
    "pascalcontext-fcn16s": Published(lambda: vgg_net(16, 60, grouped=True), "fcn16s", 60),
    "pascalcontext-fcn8s": Published(lambda: vgg_net(8, 60, grouped=True), "fcn8s", 60),
}


CASES = [(name, "plain") for name in NETS]
CASES += [(name, "v1") for name in ("voc-fcn8s", "voc-fcn-alexnet", "nyud-fcn32s-color-hha")]


@pytest.mark.parametrize(("name", "generation"), CASES)
def test_every_array_has_its_place(tmp_path, name, generation):
    net = NETS[name]
    writer = net.write()
    path = tmp_path / f"{name}-heavy-pascal.caffemodel"
    path.write_bytes(caffemodel(writer.layers, generation, legacy=generation == "v1"))
    model = create_model(
        net.model,
        backbone=net.backbone,
        num_classes=net.num_classes,
        inputs=net.inputs,
        padding="reference",
        width=1 / 48 if net.backbone == "alexnet" else 1 / 64,
        fc_width=FC,
    )
    source = load(path)
    params, report = transplant(abstract_params(model), source)
    assert report.left == report.unused == report.reshaped == report.widened == ()
    if generation == "plain":
        assert report.skipped == net.skipped
    flat = flatten(params)
    assert set(flat) == set(writer.expected)
    for key, value in writer.expected.items():
        np.testing.assert_array_equal(flat[key], value, err_msg=key)
    assert source.inputs == Inputs.of(Preprocessing())
