"""ONNX: a network as a graph, written from the tables of its layers.

The tables are those that `fcn_jax.models.fcn` runs; here every row becomes nodes. Maps are
(batch, channels, height, width). Sizes that are not known before an image comes are computed in the
graph, from the shapes of maps. Nodes and maps have the layers' names.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import DTypeLike

from fcn_jax.canvas import ratio
from fcn_jax.exporting.resizing import BITS, most_pixels
from fcn_jax.geometry import TransposedWindow, Window
from fcn_jax.inference.compute import Result
from fcn_jax.models.backbones import Add, Concat, Conv, Layer, Norm, Pool
from fcn_jax.models.decoders import maps_read
from fcn_jax.models.fcn import FCN
from fcn_jax.models.inputs import Inputs, Preprocessing
from fcn_jax.weights import flatten

if TYPE_CHECKING:
    import onnx

OPSET = 17
IR_VERSION = 8
"""What the opset needs: a newer one would keep older programs from opening the file."""

MAX_BYTES = 2**31 - 2**24
"""Of weights in the file itself, which protobuf lets have 2 GiB; more go to a file beside it."""

Params: TypeAlias = Mapping[str, np.ndarray]
"""By ``layer/kernel`` and ``layer/bias``."""

Value: TypeAlias = str | np.ndarray | float
"""The name of what a node gives, or a constant."""


def library() -> Any:
    """The package onnx.

    Raises:
        ValueError: If it is not installed.
    """
    try:
        import onnx
    except ImportError:
        raise ValueError("ONNX needs the package onnx: pip install 'fcn-jax[export]'") from None
    return onnx


def write(
    path: Path,
    model: FCN,
    params: Mapping[str, Any],
    inputs: Inputs,
    scale: float,
    result: Result,
    about: Mapping[str, Any],
) -> None:
    """Writes the graph, and with more than `MAX_BYTES` of weights also the file ``PATH.data``.

    Arguments are those of `fcn_jax.exporting.stablehlo.write`.

    Raises:
        ValueError: If ONNX has no operation for a layer.
    """
    onnx = library()
    proto = build(model, params, inputs, scale, result, about)
    size = sum(len(tensor.raw_data) for tensor in proto.graph.initializer)
    beside = {"save_as_external_data": True, "location": f"{path.name}.data"}
    onnx.save_model(proto, path, **(beside if size > MAX_BYTES else {}))
    onnx.checker.check_model(str(path), full_check=True)


def build(
    model: FCN,
    params: Mapping[str, Any],
    inputs: Inputs,
    scale: float,
    result: Result,
    about: Mapping[str, Any],
) -> onnx.ModelProto:
    """The graph in memory; arguments and errors are those of `write`."""
    helper = library().helper
    graph = Graph(reserved=[*about["inputs"], *about["outputs"]])
    flat = flatten(params)
    size = original = graph.add("Shape", next(iter(about["inputs"])), name="size", start=1, end=3)
    if scale != 1:
        size = scaled_size(graph, original, scale)
    maps: dict[str, str] = {}
    for input_name, parts in inputs.entries:
        suffix = model.input_suffix(input_name)
        normalised = [
            normalise(graph, scaled(graph, modality, way, original, size, scale), way)
            for modality, way in parts
        ]
        image = graph.add("Concat", *normalised, axis=1) if len(parts) > 1 else normalised[0]
        if model.classifies:
            image = filled_up(graph, image, size, model.smallest_image)
        run = run_backbone(graph, model.layers, image, flat, suffix)
        maps |= {f"{name}{suffix}": map for name, map in run.items()}
    for head, classes in model.heads:
        scores = decode(graph, model, maps, flat, head, size)
        if scale != 1 and not model.classifies:
            for axis in (2, 3):
                scores = resized(graph, scores, axis, size, original, most_pixels(1 / scale))
        finish(graph, scores, head, classes, result)
    ends = [
        [
            helper.make_tensor_value_info(name, graph.type_of(told["dtype"]), told["axes"])
            for name, told in about[end].items()
        ]
        for end in ("inputs", "outputs")
    ]
    proto = helper.make_model(
        helper.make_graph(graph.nodes, "fcn", *ends, list(graph.constants.values())),
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
        producer_name="fcn_jax",
    )
    helper.set_model_props(proto, {name: json.dumps(value) for name, value in about.items()})
    return proto


class Graph:
    """Nodes and constants of a graph in the making.

    Attributes:
        nodes: In the order they run.
        constants: Tensors by name.
    """

    def __init__(self, reserved: Sequence[str]) -> None:
        """Names that are ``reserved`` are of what the graph reads and gives."""
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, onnx.TensorProto] = {}
        self._names = set(reserved)
        self._library = library()

    def add(self, op: str, *inputs: Value, name: str = "", **attributes: Any) -> str:
        """Adds a node, and returns the name of what it gives: ``name``, or one like it.

        An empty input is left out; an array or a number becomes a constant.
        """
        read = [x if isinstance(x, str) else self.constant(x) for x in inputs]
        name = self._unique(name or op.lower())
        node = self._library.helper.make_node(op, read, [name], name, **attributes)
        self.nodes.append(node)
        return name

    def give(self, op: str, *inputs: Value, name: str, **attributes: Any) -> None:
        """Adds the node of a result, whose name is reserved."""
        self._names.remove(name)
        assert self.add(op, *inputs, name=name, **attributes) == name

    def constant(self, value: np.ndarray | float, name: str = "constant") -> str:
        """Adds a tensor, and returns its name."""
        name = self._unique(name)
        array = np.asarray(value, np.float32 if isinstance(value, float) else None, order="C")
        tensor = self._library.numpy_helper.from_array(array, name)
        self.constants[name] = tensor
        return name

    def type_of(self, dtype: DTypeLike) -> int:
        """ONNX's number for a type of numpy's."""
        return self._library.helper.np_dtype_to_tensor_dtype(np.dtype(dtype))

    def _unique(self, name: str) -> str:
        """A name that is not taken: this one, or with a number."""
        free = name
        while free in self._names:
            number = free.removeprefix(name).removeprefix("_")
            free = f"{name}_{int(number or 1) + 1}"
        self._names.add(free)
        return free


# ======================================================================== from pixels to maps


def scaled_size(graph: Graph, size: str, scale: float) -> str:
    """`fcn_jax.canvas.scaled_size`."""
    times, over = ratio(scale).as_integer_ratio()
    product = graph.add("Mul", size, np.array(times))
    whole, rest = (graph.add(op, product, np.array(over)) for op in ("Div", "Mod"))
    odd = graph.add("Mod", whole, np.array(2))
    up = graph.add("Add", graph.add("Mul", rest, np.array(2)), odd)
    up = graph.add("Div", up, np.array(over + 1))
    return graph.add("Max", graph.add("Add", whole, up), np.array(1), name="scaled_size")


def scaled(
    graph: Graph, modality: str, way: Preprocessing, original: str, size: str, scale: float
) -> str:
    """A modality as a map of floats, scaled as `fcn_jax.data.transforms.resize` does it."""
    dtype = np.float64
    if way.channels == 1:
        x = graph.add("Unsqueeze", modality, np.array([1]))
    else:
        x = graph.add("Transpose", modality, perm=(0, 3, 1, 2))
        dtype = np.int32 if (way.channels, way.dtype) == (3, "uint8") else dtype
    if scale != 1 and way.channels == 1:
        for axis in (2, 3):
            old, new = side_of(graph, original, axis), side_of(graph, size, axis)
            numerator = graph.add("Mul", twice_the_centres(graph, new), old)
            places = graph.add("Div", numerator, graph.add("Mul", new, np.array(2)))
            x = graph.add("Gather", x, places, axis=axis)
    elif scale != 1:
        for axis in (3, 2):
            x = resized(graph, x, axis, original, size, most_pixels(scale), dtype)
        if dtype == np.float64 and way.dtype != "float32":
            x = graph.add("Round", x)
    return graph.add("Cast", x, to=graph.type_of(np.float32))


def resized(
    graph: Graph, x: str, axis: int, old: str, new: str, most: int, dtype: Any = np.float32
) -> str:
    """`fcn_jax.exporting.resizing.resized`, of an axis of a map, from the sizes before and after.

    Args:
        graph: The graph.
        x: The map.
        axis: The axis.
        old: The name of its height and width.
        new: Of those that it is to have.
        most: The most pixels that make a new one.
        dtype: What is computed in: int32 gives rounded int32, others give float32.
    """
    size, side = side_of(graph, old, axis), side_of(graph, new, axis)
    reach = graph.add("Mul", graph.add("Max", size, side), np.array(2))
    double_side = graph.add("Mul", side, np.array(2))
    centre = graph.add("Sub", graph.add("Mul", twice_the_centres(graph, side), size), side)
    # Div rounds towards 0: down, as long as it is of nothing negative.
    first = graph.add("Add", centre, graph.add("Mul", double_side, np.array(most)))
    first = graph.add("Div", graph.add("Sub", first, reach), double_side)
    place = graph.add("Add", first, np.arange(1 - most, 1)[:, None])  # of each pixel's, a row
    last = graph.add("Sub", size, np.array(1))
    inside = graph.add("Min", graph.add("Max", place, np.array(0)), last)
    distance = graph.add("Abs", graph.add("Sub", centre, graph.add("Mul", place, double_side)))
    share = graph.add("Max", graph.add("Sub", reach, distance), np.array(0))
    share = graph.add("Where", graph.add("Equal", place, inside), share, np.array(0))
    total = graph.add("ReduceSum", share, np.array([0]))
    if dtype == np.int32:  # in units of 2 ** -BITS, rounded
        share = graph.add("Add", graph.add("Mul", share, np.array(2 << BITS)), total)
        total = graph.add("Mul", total, np.array(2))
    else:
        share, total = (graph.add("Cast", v, to=graph.type_of(dtype)) for v in (share, total))
    weights = graph.add("Cast", graph.add("Div", share, total), to=graph.type_of(dtype))
    x = graph.add("Cast", x, to=graph.type_of(dtype))
    found = ""
    for row in map(np.array, range(most)):
        pixels = graph.add("Gather", x, graph.add("Gather", inside, row), axis=axis)
        weight = graph.add("Gather", weights, row)
        if axis == 2:
            weight = graph.add("Unsqueeze", weight, np.array([1]))
        product = graph.add("Mul", pixels, weight)
        found = graph.add("Add", found, product) if found else product
    if dtype != np.int32:
        return graph.add("Cast", found, to=graph.type_of(np.float32))
    found = graph.add("Add", found, np.array(1 << BITS - 1, np.int32))
    return graph.add("Div", found, np.array(1 << BITS, np.int32))


def side_of(graph: Graph, size: str, axis: int) -> str:
    """The height or width of a map, for its axis 2 or 3, as a number."""
    return graph.add("Gather", size, np.array(axis - 2))


def twice_the_centres(graph: Graph, side: str) -> str:
    """Of the pixels along a side, times 2: 1, 3, 5, …"""
    places = graph.add("Range", np.array(0), side, np.array(1))
    return graph.add("Add", graph.add("Mul", places, np.array(2)), np.array(1))


def normalise(graph: Graph, x: str, way: Preprocessing) -> str:
    """`Preprocessing.apply`, of a map and to a map."""

    def each(values: Any) -> np.ndarray:
        return np.array(values, np.float32).reshape(-1, 1, 1)

    if way.range is not None:
        low, high = np.array(way.range, np.float32).T
        x = graph.add("Mul", graph.add("Sub", x, each(low)), each(255 / (high - low)))
        x = graph.add("Clip", x, 0.0, 255.0)
    if way.channel_order == "bgr":
        order = np.arange(way.channels)
        order[:3] = order[:3][::-1]
        x = graph.add("Gather", x, order, axis=1)
    if way.scale != 1:
        x = graph.add("Mul", x, way.scale)
    if way.log:
        x = graph.add("Log", graph.add("Max", x, 1.0))
    x = graph.add("Sub", x, each(way.mean))
    return graph.add("Div", x, each(way.std)) if set(way.std) != {1} else x


def filled_up(graph: Graph, image: str, size: str, least: int) -> str:
    """An image with zeros below and to the right, where it has fewer than ``least`` pixels."""
    lacking = graph.add("Max", graph.add("Sub", np.array([least]), size), np.array([0]))
    pads = graph.add("Concat", np.zeros(6, np.int64), lacking, axis=0)
    return graph.add("Pad", image, pads, 0.0)


def run_backbone(
    graph: Graph, layers: Sequence[Layer], image: str, params: Params, suffix: str
) -> dict[str, str]:
    """The maps of all layers by name; ``suffix`` is that of the input in the names of layers."""
    maps = {"": image}
    for layer, sources in zip(layers, maps_read(tuple(layers)), strict=True):
        read, name = [maps[source] for source in sources], f"{layer.name}{suffix}"
        if isinstance(layer, Conv):
            x = convolve(graph, read[0], params, name, layer.window, layer.groups)
        elif isinstance(layer, Pool):
            x = pool(graph, read[0], layer, name)
        elif isinstance(layer, Norm):
            if layer.size % 2 == 0:
                raise ValueError(f"{name}: ONNX normalises over an odd number of channels only")
            options = {"size": layer.size, "alpha": layer.alpha, "beta": layer.beta, "bias": 1.0}
            x = graph.add("LRN", *read, name=name, **options)
        elif isinstance(layer, Concat):
            x = graph.add("Concat", *read, name=name, axis=1)
        else:
            x = graph.add("Sum", *read, name=name)
        if isinstance(layer, Conv | Add) and layer.relu:
            x = graph.add("Relu", x, name=f"{name}/relu")
        maps[layer.name] = x
    return maps


def convolve(
    graph: Graph, x: str, params: Params, name: str, window: Window, groups: int = 1
) -> str:
    """A convolution with bias."""
    kernel = graph.constant(params[f"{name}/kernel"].transpose(3, 2, 0, 1), f"{name}/kernel")
    bias = graph.constant(params[f"{name}/bias"], f"{name}/bias")
    return graph.add(
        *("Conv", x, kernel, bias),
        name=name,
        kernel_shape=[window.kernel] * 2,
        strides=[window.stride] * 2,
        pads=[window.pad] * 4,
        dilations=[window.dilation] * 2,
        group=groups,
    )


def pool(graph: Graph, x: str, layer: Pool, name: str) -> str:
    """Pooling. Rounding up is padding of so much more at the end: runtimes differ in theirs."""
    window = layer.window
    kernel: dict[str, Any] = {"kernel_shape": [window.kernel] * 2, "strides": [window.stride] * 2}
    if layer.average:
        return graph.add("AveragePool", x, name=name, **kernel)
    before, after = window.pad, window.pad + (window.stride - 1) * window.ceil
    if after < window.kernel:
        return graph.add("MaxPool", x, name=name, pads=[before] * 2 + [after] * 2, **kernel)
    # A window that lies wholly in the padding, which some runtimes refuse: it is cut off.
    pads = np.array([0, 0, before, before, 0, 0, after, after])
    padded = graph.add("Pad", x, pads, float(np.finfo(np.float32).min))
    pooled = graph.add("MaxPool", padded, **kernel)
    size = graph.add("Shape", x, start=2)
    ends = graph.add("Add", size, np.array([before + window.stride - 1]))
    ends = graph.add("Div", ends, np.array([window.stride]))
    return graph.add("Slice", pooled, np.zeros(2, np.int64), ends, np.array([2, 3]), name=name)


# ======================================================================== from maps to pixels


def decode(
    graph: Graph, model: FCN, maps: Mapping[str, str], params: Params, head: str, size: str
) -> str:
    """The logits of a head, as a map; of a classifier it is coarse."""
    alignment, suffix = model.alignment, model.head_suffix(head)

    def score(layer: str, source: str, scale: float = 1.0) -> str:
        """The mean of all inputs' scores."""
        found = []
        for input_name, _ in model.inputs:
            of_input = model.input_suffix(input_name)
            name = f"{layer}{suffix}{of_input}"
            x = maps[f"{source}{of_input}"]
            if scale != 1:
                x = graph.add("Mul", x, scale)
            found.append(convolve(graph, x, params, name, Window(1)))
        return graph.add("Mean", *found) if len(found) > 1 else found[0]

    def upsample(x: str, layer: str) -> str:
        name = f"{layer}{suffix}"
        return transposed(graph, x, params, name, alignment.transposed_windows[layer])

    def cut(x: str, start: int, cells: str, name: str = "") -> str:
        """So many cells of a map, or those that there are."""
        first = np.array([start, start])
        ends = graph.add("Add", cells, first) if start else cells
        return graph.add("Slice", x, first, ends, np.array([2, 3]), name=name)

    first = model.backbone.classifier if model.classifies else "score_fr"
    scores = score(first, model.layers[-1].name)
    for skip in alignment.skips:
        layer = f"score_{skip.source}"
        up, fine = upsample(scores, skip.upsample), score(layer, skip.source, skip.scale)
        offset = alignment.crops[layer]
        if offset < 0:
            up = graph.add("Slice", up, np.array([-offset] * 2), _ENDS, np.array([2, 3]))
        fine = cut(fine, max(0, offset), graph.add("Shape", up, start=2))
        up = cut(up, 0, graph.add("Shape", fine, start=2))
        scores = graph.add("Add", fine, up, name=f"fuse_{skip.source}{suffix}")
    if model.decoder.interpolate:
        shape = graph.add("Concat", graph.add("Shape", scores, end=2), size, axis=0)
        how = {"mode": "linear", "coordinate_transformation_mode": "half_pixel"}
        return graph.add("Resize", scores, "", "", shape, **how)
    if alignment.final is None:
        return scores
    return cut(upsample(scores, alignment.final), alignment.crops[alignment.final], size)


_ENDS = np.full(2, np.iinfo(np.int64).max)


def transposed(graph: Graph, x: str, params: Params, name: str, window: TransposedWindow) -> str:
    """A transposed convolution; where its kernel mixes no classes, of each by itself."""
    kernel = params[f"{name}/kernel"].transpose(2, 3, 0, 1)
    each = kernel[np.arange(len(kernel)), np.arange(len(kernel))][:, None]
    alone = np.count_nonzero(kernel) == np.count_nonzero(each)
    return graph.add(
        *("ConvTranspose", x, graph.constant(each if alone else kernel, f"{name}/kernel")),
        name=name,
        kernel_shape=[window.kernel] * 2,
        strides=[window.factor] * 2,
        group=len(kernel) if alone else 1,
    )


def finish(graph: Graph, scores: str, head: str, classes: int, result: Result) -> None:
    """What is given of a head's logits."""
    if result == "labels":
        dtype = np.uint8 if classes <= 256 else np.int32
        best = graph.add("ArgMax", scores, axis=1, keepdims=0)
        graph.give("Cast", best, name=head, to=graph.type_of(dtype))
        return
    if result == "probabilities":
        scores = graph.add("Softmax", scores, axis=1)
    graph.give("Transpose", scores, name=head, perm=(0, 2, 3, 1))
