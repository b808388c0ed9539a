"""State dicts with the names and ranks of published PyTorch models, and few channels.

Names are written out from the models' definitions; what they mean in this package is the tests'
to say. Values are random numpy arrays.
"""

from __future__ import annotations

import numpy as np

Arrays = dict[str, np.ndarray]

# Indices of the convolutions among the modules of ``features``, and the map each belongs to.
VGG_CONVOLUTIONS = {
    "vgg11": (0, 3, 6, 8, 11, 13, 16, 18),
    "vgg11_bn": (0, 4, 8, 11, 15, 18, 22, 25),
    "vgg13": (0, 2, 5, 7, 10, 12, 15, 17, 20, 22),
    "vgg13_bn": (0, 3, 7, 10, 14, 17, 21, 24, 28, 31),
    "vgg16": (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28),
    "vgg16_bn": (0, 3, 7, 10, 14, 17, 20, 24, 27, 30, 34, 37, 40),
    "vgg19": (0, 2, 5, 7, 10, 12, 14, 16, 19, 21, 23, 25, 28, 30, 32, 34),
    "vgg19_bn": (0, 3, 7, 10, 14, 17, 20, 23, 27, 30, 33, 36, 40, 43, 46, 49),
}
VGG_NAMES = {
    "vgg11": "1_1 2_1 3_1 3_2 4_1 4_2 5_1 5_2",
    "vgg13": "1_1 1_2 2_1 2_2 3_1 3_2 4_1 4_2 5_1 5_2",
    "vgg16": "1_1 1_2 2_1 2_2 3_1 3_2 3_3 4_1 4_2 4_3 5_1 5_2 5_3",
    "vgg19": "1_1 1_2 2_1 2_2 3_1 3_2 3_3 3_4 4_1 4_2 4_3 4_4 5_1 5_2 5_3 5_4",
}

ALEXNET_NAMES = {
    "features.0": "conv1",
    "features.3": "conv2",
    "features.6": "conv3",
    "features.8": "conv4",
    "features.10": "conv5",
    "classifier.1": "fc6",
    "classifier.4": "fc7",
    "classifier.6": "fc8",
}

GOOGLENET_BLOCKS = ("3a", "3b", "4a", "4b", "4c", "4d", "4e", "5a", "5b")
GOOGLENET_BRANCHES = {
    "branch1": ("1x1", 1),
    "branch2.0": ("3x3_reduce", 1),
    "branch2.1": ("3x3", 3),
    "branch3.0": ("5x5_reduce", 1),
    "branch3.1": ("5x5", 3),
    "branch4.1": ("pool_proj", 1),
}


def vgg_names(name: str) -> dict[str, str]:
    """Our convolution of each of theirs."""
    ours = VGG_NAMES[name.removesuffix("_bn")].split()
    return {
        f"features.{index}": f"conv{place}"
        for index, place in zip(VGG_CONVOLUTIONS[name], ours, strict=True)
    }


def vgg(name: str, timm: bool = False, classifier: bool = True, seed: int = 0) -> Arrays:
    """torchvision's or timm's VGG; each layer has one channel more than the last."""
    rng = np.random.default_rng(seed)
    arrays: Arrays = {}
    channels = 3
    for index in VGG_CONVOLUTIONS[name]:
        arrays |= _layer(rng, f"features.{index}", (channels + 1, channels, 3, 3))
        channels += 1
        if name.endswith("_bn"):
            arrays |= _norm(rng, f"features.{index + 1}", channels)
    if not classifier:
        return arrays
    if timm:
        arrays |= _layer(rng, "pre_logits.fc1", (9, channels, 7, 7))
        arrays |= _layer(rng, "pre_logits.fc2", (8, 9, 1, 1))
        return arrays | _layer(rng, "head.fc", (6, 8))
    arrays |= _layer(rng, "classifier.0", (9, channels * 49))
    return arrays | _layer(rng, "classifier.3", (8, 9)) | _layer(rng, "classifier.6", (6, 8))


def alexnet(seed: int = 0) -> Arrays:
    """torchvision's AlexNet."""
    rng = np.random.default_rng(seed)
    sizes = {0: (3, 11), 3: (4, 5), 6: (5, 3), 8: (6, 3), 10: (7, 3)}
    arrays: Arrays = {}
    for index, (channels, size) in sizes.items():
        arrays |= _layer(rng, f"features.{index}", (channels + 1, channels, size, size))
    arrays |= _layer(rng, "classifier.1", (9, 8 * 36))
    return arrays | _layer(rng, "classifier.4", (8, 9)) | _layer(rng, "classifier.6", (6, 8))


def googlenet_names() -> dict[str, tuple[str, int]]:
    """Our layer and the kernel's size of each of theirs."""
    names = {"conv1": ("conv1/7x7_s2", 7), "conv2": ("conv2/3x3_reduce", 1)}
    names["conv3"] = ("conv2/3x3", 3)
    for block in GOOGLENET_BLOCKS:
        for branch, (ours, size) in GOOGLENET_BRANCHES.items():
            names[f"inception{block}.{branch}"] = (f"inception_{block}/{ours}", size)
    return names


def googlenet(auxiliary: bool = True, seed: int = 0) -> Arrays:
    """torchvision's GoogLeNet."""
    rng = np.random.default_rng(seed)
    arrays: Arrays = {}
    for theirs, (_, size) in googlenet_names().items():
        arrays[f"{theirs}.conv.weight"] = _normal(rng, 5, 4 if theirs != "conv1" else 3, size, size)
        arrays |= _norm(rng, f"{theirs}.bn", 5)
    if auxiliary:
        for head in ("aux1", "aux2"):
            arrays[f"{head}.conv.conv.weight"] = _normal(rng, 4, 5, 1, 1)
            arrays |= _norm(rng, f"{head}.conv.bn", 4)
            arrays |= _layer(rng, f"{head}.fc1", (7, 64)) | _layer(rng, f"{head}.fc2", (6, 7))
    return arrays | _layer(rng, "fc", (6, 8))


RESNET_BLOCKS = {
    "resnet18": (2, 2, 2, 2),
    "resnet34": (3, 4, 6, 3),
    "resnet50": (3, 4, 6, 3),
    "resnet101": (3, 4, 23, 3),
}


def resnet(name: str, channels: int = 4, classes: int = 5, seed: int = 0) -> Arrays:
    """torchvision's and timm's ResNets; 64 channels of the first convolution would be the real."""
    arrays = _resnet_backbone(name, channels, seed)
    inputs = 8 * channels * (1 if name in ("resnet18", "resnet34") else 4)
    rng = np.random.default_rng(seed + 1)
    return arrays | _layer(rng, "fc", (classes, inputs))


def fcn_resnet(
    name: str, channels: int = 4, classes: int = 21, auxiliary: bool = False, seed: int = 0
) -> Arrays:
    """torchvision's FCN with such a backbone."""
    backbone = _resnet_backbone(name, channels, seed)
    arrays = {f"backbone.{name}": value for name, value in backbone.items()}
    rng = np.random.default_rng(seed + 1)
    heads = {"classifier": 32 * channels} | ({"aux_classifier": 16 * channels} if auxiliary else {})
    for head, inputs in heads.items():
        arrays |= _norm_conv(rng, f"{head}.0", f"{head}.1", (inputs // 4, inputs, 3, 3))
        arrays |= _layer(rng, f"{head}.4", (classes, inputs // 4, 1, 1))
    return arrays


def _resnet_backbone(name: str, channels: int, seed: int) -> Arrays:
    rng = np.random.default_rng(seed)
    basic = name in ("resnet18", "resnet34")
    arrays = _norm_conv(rng, "conv1", "bn1", (channels, 3, 7, 7))
    inputs = channels
    for stage, blocks in enumerate(RESNET_BLOCKS[name], 1):
        inner = channels * 2 ** (stage - 1)
        outer = inner if basic else 4 * inner
        sizes = (3, 3) if basic else (1, 3, 1)
        for block in range(blocks):
            before = f"layer{stage}.{block}"
            for number, size in enumerate(sizes, 1):
                outputs = outer if number == len(sizes) else inner
                shape = (outputs, inputs if number == 1 else inner, size, size)
                arrays |= _norm_conv(rng, f"{before}.conv{number}", f"{before}.bn{number}", shape)
            if block == 0 and inputs != outer:
                down = f"{before}.downsample"
                arrays |= _norm_conv(rng, f"{down}.0", f"{down}.1", (outer, inputs, 1, 1))
            inputs = outer
    return arrays


def _norm_conv(rng: np.random.Generator, conv: str, norm: str, shape: tuple[int, ...]) -> Arrays:
    """A convolution without bias and its batch norm, which keep the size of what they read."""
    weight = _normal(rng, *shape) / np.float32(np.prod(shape[1:]) ** 0.5)
    arrays = _norm(rng, norm, shape[0])
    for name in ("weight", "bias", "running_mean"):
        arrays[f"{norm}.{name}"] /= np.float32(2)
    return {f"{conv}.weight": weight} | arrays


FCN_LAYERS = {
    "fcn32s": ({"score_fr": 9}, {"upscore": 64}),
    "fcn16s": ({"score_fr": 9, "score_pool4": 13}, {"upscore2": 4, "upscore16": 32}),
    "fcn8s": (
        {"score_fr": 9, "score_pool4": 13, "score_pool3": 10},
        {"upscore2": 4, "upscore_pool4": 4, "upscore8": 16},
    ),
}


def pytorch_fcn(name: str, classes: int = 5, seed: int = 0) -> Arrays:
    """Wada's pytorch-fcn."""
    rng = np.random.default_rng(seed)
    arrays: Arrays = {}
    channels = 3
    for place in VGG_NAMES["vgg16"].split():
        arrays |= _layer(rng, f"conv{place}", (channels + 1, channels, 3, 3))
        channels += 1
    arrays |= _layer(rng, "fc6", (8, channels, 7, 7)) | _layer(rng, "fc7", (9, 8, 1, 1))
    scores, ups = FCN_LAYERS[name]
    for layer, inputs in scores.items():
        arrays |= _layer(rng, layer, (classes, inputs, 1, 1))
    for layer, size in ups.items():
        arrays[f"{layer}.weight"] = _normal(rng, classes, classes, size, size)
    return arrays


def _normal(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.standard_normal(shape, np.float32)


def _layer(rng: np.random.Generator, name: str, shape: tuple[int, ...]) -> Arrays:
    return {f"{name}.weight": _normal(rng, *shape), f"{name}.bias": _normal(rng, shape[0])}


def _norm(rng: np.random.Generator, name: str, channels: int) -> Arrays:
    return {
        f"{name}.weight": _normal(rng, channels),
        f"{name}.bias": _normal(rng, channels),
        f"{name}.running_mean": _normal(rng, channels),
        f"{name}.running_var": rng.uniform(0.1, 2, channels).astype(np.float32),
        f"{name}.num_batches_tracked": np.array(7),
    }
