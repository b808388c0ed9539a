"""What FCN-8s would do on H100s or TPUs v5e, compiled for them where there are none.

    pip install "jax[cuda12]" "jax[tpu]"    # either suffices for its own devices
    python benchmarks/compiled.py [--devices=h100,v5e:2x2] [--tasks=inference,training]
        [--paddings=reference,same] [--precisions=bfloat16] [--shapes=1x500x500]
        [--spatial_shards=1] [--shard_parameters] [--top=0] [--hlo=FOLDER]

XLA compiles for devices that are only described (h100x8: eight H100 of one machine; v5e:4x4:
sixteen TPUs). Kernels, memory, layouts and collectives are those of the real programs, the
product's own: that of a `Predictor`, from uint8 images on their own canvas to label maps, and the
train step with the published solver. No time is measured, and nothing is tuned, as compilers do on
the device. Shapes are BATCHxHEIGHTxWIDTH over all devices; every figure is of one device. Each
program is a row of a table:

- compile: seconds that compiling took here;
- arguments, temporary: GiB that lie on the device before, and are needed besides;
- kernels: what the device starts one after the other (on a TPU operations on arrays);
- moved: GiB that these read from the device's memory and write to it;
- TFLOP: of products and convolutions;
- roofline: the time that no program with these kernels can beat, in ms. On a GPU the sum over its
  kernels of the larger of bytes / bandwidth and operations / peak; on a TPU, where copies run
  beside products, the larger of the two sums;
- weights: the part of it in kernels that only copy, turn or round weights, and their number;
- products: the part of it that the operations alone take;
- collectives: each with its number, the size of its arrays and what a device sends, as in a ring.
"""

from __future__ import annotations

import collections
import dataclasses
import itertools
import math
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from absl import app, flags, logging
from cases import TASKS, Case, parse_shape

DEVICES = flags.DEFINE_list("devices", "h100,v5e:2x2", "h100, h100xNUMBER, or v5e:ROWSxCOLUMNS.")
TASK_LIST = flags.DEFINE_list("tasks", ",".join(TASKS), "What is compiled.")
PADDINGS = flags.DEFINE_list("paddings", "reference,same", "Of the networks.")
PRECISIONS = flags.DEFINE_list("precisions", "bfloat16", "float32, tf32, bfloat16.")
SHAPES = flags.DEFINE_list("shapes", "1x500x500", "BATCHxHEIGHTxWIDTH, over all devices.")
WIDTH = flags.DEFINE_float("width", 1.0, "Multiplier of the channels, fc6 and fc7 included.")
SPATIAL_SHARDS = flags.DEFINE_integer("spatial_shards", 1, "Devices that share an image's rows.")
SHARD_PARAMETERS = flags.DEFINE_bool("shard_parameters", False, "Train with a state in parts.")
TOP = flags.DEFINE_integer("top", 0, "Largest kernels of each program to print.")
HLO = flags.DEFINE_string("hlo", "", "Folder for the compiled programs as text.")


@dataclasses.dataclass(frozen=True)
class Device:
    """By its data sheet: bytes/s of its memory, and operations/s by precision."""

    bandwidth: float
    peaks: dict[str, float]


H100 = Device(3.35e12, {"float32": 67e12, "tf32": 495e12, "bfloat16": 989e12})  # SXM, dense
# float32 is six products of bfloat16, and what NVIDIA calls tf32 three.
V5E = Device(819e9, {"float32": 197e12 / 6, "tf32": 197e12 / 3, "bfloat16": 197e12})

H100_FOR_XLA = """
gpu_device_info {
  threads_per_block_limit: 1024 threads_per_warp: 32 shared_memory_per_block: 49152
  shared_memory_per_core: 233472 threads_per_core_limit: 2048 core_count: 132 fpus_per_core: 128
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  memory_bandwidth: 3352320000000 l2_cache_size: 52428800 clock_rate_ghz: 1.98
  device_memory_size: 84978434048 shared_memory_per_block_optin: 232448
  cuda_compute_capability { major: 9 minor: 0 }
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
}
platform_name: "CUDA" dnn_version_info { major: 9 minor: 10 }
device_description_str: "NVIDIA H100 80GB HBM3"
"""


# ======================================================================== programs


def describe_devices(name: str) -> list[Any]:
    """Devices of ``h100``, ``h100x8`` or ``v5e:2x2``, for `jax.make_mesh`; they cannot compute.

    Raises:
        SystemExit: If there is no such name, or jax's plugin for it is not installed.
    """
    from jax.experimental import topologies

    gpu, tpu = re.fullmatch(r"h100(?:x(\d+))?", name), re.fullmatch(r"v5e:\d+x\d+", name)
    if not (gpu or tpu):
        raise SystemExit(
            f"compiled.py: unknown device {name!r}; h100, h100x8 and v5e:2x2 are known"
        )
    try:
        if gpu:
            options = {"target_config": H100_FOR_XLA, "topology": f"1x1x{gpu[1] or 1}"}
            return topologies.get_topology_desc("h100", "cuda", **options).devices
        return topologies.get_topology_desc(name, "tpu").devices
    except (RuntimeError, ValueError, ImportError) as error:
        extra = "cuda12" if gpu else "tpu"
        reason = f'pip install "jax[{extra}]" ({str(error).splitlines()[0]:.200})'
        raise SystemExit(f"compiled.py: jax cannot compile for {name} here: {reason}") from None


def lower(case: Case, precision: str, mesh: Any) -> Any:
    """The program of a case for the devices of a mesh (`jax.stages.Lowered`)."""
    import functools

    import jax
    import jax_fcn8s

    from fcn_jax.devices import batch_sharding
    from fcn_jax.inference.predictor import Predictor
    from fcn_jax.models.fcn import abstract_params
    from fcn_jax.models.inputs import CAFFE, Inputs
    from fcn_jax.training.step import init_state, make_train_step

    model = jax_fcn8s.build_model(case, precision)
    batch, height, width = case.shape
    params = abstract_params(model)
    if case.task == "inference":
        size = height, width
        return Predictor(model, params, canvas=size, batch_size=batch, mesh=mesh).lower(size)
    optimizer = jax_fcn8s.published_optimizer(model)
    key = jax.random.key(0)
    how = {"key": key, "shard_parameters": SHARD_PARAMETERS.value}
    step: Any = make_train_step(model, optimizer, Inputs.of(CAFFE), mesh, **how)
    state = jax.eval_shape(functools.partial(init_state, optimizer=optimizer), params)
    arrays = {
        name: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=batch_sharding(mesh, x.ndim))
        for name, x in case.random_batch().items()
    }
    return step.lower(state, arrays)


# ======================================================================== a program's text


@dataclasses.dataclass(frozen=True)
class Instruction:
    """A line of a compiled program."""

    name: str
    type: str
    operation: str
    arguments: tuple[str, ...]  # names of instructions of the same computation
    line: str


@dataclasses.dataclass(frozen=True)
class Kernel:
    """What a device does at a time: bytes of its memory that are read and written, and FLOP."""

    name: str
    source: str  # the part of the model that it comes from
    bytes: int
    flop: float
    is_of_weights: bool  # reads nothing else, and multiplies nothing


@dataclasses.dataclass(frozen=True)
class Collective:
    """An exchange between devices: bytes of its whole arrays, and those that a device sends."""

    operation: str
    dtype: str
    bytes: float
    sent: float


_INSTRUCTION = re.compile(r"\s+(?:ROOT )?%?([\w.-]+) = (\(.*?\)|\S+) ([a-z][\w-]*)\((.*)")
_ARRAY = re.compile(r"\b([a-z]\w*)\[([\d,]*)\](\{[^}]*\})?")
_ON_CHIP = re.compile(r"S\([1-9]\d*\)")  # a TPU's memory spaces besides 0, which is the large one
_FREE = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "partition-id"}
_COLLECTIVE = re.compile(
    r"(all-reduce|all-gather|reduce-scatter|collective-permute|all-to-all)(-start)?"
)


def read(text: str) -> tuple[dict[str, dict[str, Instruction]], str]:
    """The computations of a compiled program by name, and the name of the one that it begins."""
    computations: dict[str, dict[str, Instruction]] = {}
    name = entry = ""
    for line in text.splitlines():
        if head := re.match(r"(ENTRY )?%?(\S+) \(.*\{$", line):
            name = head[2]
            entry = name if head[1] else entry
            computations[name] = {}
        elif name and (found := _INSTRUCTION.match(line)):
            own, type_, operation, rest = found.groups()
            arguments = tuple(re.findall(r"%([\w.-]+)", rest.partition(")")[0]))
            computations[name][own] = Instruction(own, type_, operation, arguments, line)
    return computations, entry


def dimensions(type_: str) -> list[int]:
    """Of the first array of a type."""
    found = _ARRAY.search(type_)
    return [int(side) for side in found[2].split(",") if side] if found else []


def size(type_: str, *, in_memory: bool = False) -> int:
    """Bytes of the arrays of a type; ``in_memory``: but for those in a chip's own small memory."""
    total = 0
    for dtype, sides, layout in _ARRAY.findall(type_):
        if in_memory and _ON_CHIP.search(layout):
            continue
        bits = re.search(r"\d+", dtype)
        width = int(bits[0]) / 8 if bits else 1
        total += math.ceil(width * math.prod(int(side) for side in sides.split(",") if side))
    return total


def kernels(computations: dict[str, dict[str, Instruction]], entry: str) -> Iterator[Kernel]:
    """The kernels of a compiled program in their order."""
    body = computations[entry]
    of_weights: dict[str, bool] = {}
    for each in body.values():
        source = re.search(r'op_name="([^"]*)"', each.line)
        path = source[1] if source else ""
        if each.operation == "parameter":
            of_weights[each.name] = "params" in path or "opt_state" in path
            continue
        given = [body[name] for name in each.arguments if name in body]
        of_weights[each.name] = all(of_weights[other.name] for other in given)
        scalar = not any(sides for _, sides, _ in _ARRAY.findall(each.type))
        free = each.operation in _FREE or each.operation.endswith("-done") or scalar
        if free or '"ConcatBitcast"' in each.line or '"AllocateBuffer"' in each.line:
            continue
        types = [each.type, *(other.type for other in given)]
        moved = sum(size(type_, in_memory=True) for type_ in types)
        if each.operation in ("copy-start", "slice-start"):  # between a chip's two memories
            arrays = [match[0] for match in _ARRAY.finditer(each.type)]
            moved = size(arrays[0 if each.operation == "copy-start" else 1])
        flop = _flop(each, body, computations)
        moves_weights = of_weights[each.name] and not flop and bool(given)
        yield Kernel(each.name, path.partition("/")[2], moved, flop, moves_weights)


def _flop(
    of: Instruction,
    body: dict[str, Instruction],
    computations: dict[str, dict[str, Instruction]],
) -> float:
    """FLOP of products and convolutions of an instruction and the computations that it calls."""
    result = math.prod(dimensions(of.type))
    if of.operation == "dot" or "__cublas" in of.line:
        left = dimensions(body[of.arguments[0]].type)
        pattern = r'lhs_contracting_dim(?:s=\{|ensions":\[)([\d,"]*)'
        axes = re.search(pattern, of.line)
        return (
            2 * result * math.prod(left[int(i)] for i in re.findall(r"\d+", axes[1])) if axes else 0
        )
    if "__cudnn$conv" in of.line:
        layout = re.search(r"dim_labels=\w+_(\w+)->", of.line)
        first, second = (dimensions(body[name].type) for name in of.arguments[:2])
        out = dimensions(of.type)
        kernel, maps = second, out
        if "BackwardFilter" in of.line:
            kernel, maps = out, second
        elif "BackwardInput" in of.line:
            maps = first
        taps = zip(kernel, layout[1] if layout else "", strict=True)
        return 2 * math.prod(maps) * math.prod(side for side, axis in taps if axis != "o")
    called = re.findall(r"calls=%?([\w.-]+)", of.line)
    return sum(
        _flop(each, computations[name], computations)
        for name in called
        for each in computations[name].values()
    )


def collectives(computations: dict[str, dict[str, Instruction]], devices: int) -> list[Collective]:
    """The exchanges of a program that runs on so many devices; of one type each."""
    found = []
    for body in computations.values():
        for each in body.values():
            kind = _COLLECTIVE.fullmatch(each.operation)
            if not kind:
                continue
            given = collections.Counter()
            for name in each.arguments:
                for dtype in {array[0] for array in _ARRAY.findall(body[name].type)}:
                    given[dtype] += size(body[name].type)
            together = _group(each.line, devices)
            others = together - 1
            for dtype, held in given.items():
                whole = held * together if kind[1] == "all-gather" else held
                sent = {"all-reduce": 2 * others / together, "collective-permute": 1}
                part = sent.get(kind[1], others / together)
                found.append(Collective(kind[1], dtype, whole, part * whole))
    return found


def _group(line: str, devices: int) -> int:
    """How many devices an exchange is between, from any of the ways in which it is written."""
    if named := re.search(r"replica_groups=mesh\[([^\]]*)\] ?\{([^}]*)\}", line):
        sides = dict(re.findall(r"'(\w+)'=(\d+)", named[1]))
        return math.prod(int(sides[axis]) for axis in re.findall(r"'(\w+)'", named[2]))
    if counted := re.search(r"replica_groups=\[\d+,(\d+)\]", line):
        return int(counted[1])
    listed = re.search(r"replica_groups=\{\{([\d,]+)\}", line)
    return len(listed[1].split(",")) if listed else devices


# ======================================================================== the table

HEADER = (
    "| program | compile s | arguments GiB | temporary GiB | kernels | moved GiB | TFLOP "
    "| roofline ms | weights ms | products ms | collectives |\n" + "|---" * 11 + "|"
)


def row(name: str, precision: str, compiled: Any, seconds: float, devices: int, on: Device) -> str:
    """A line of the table, and the largest kernels."""
    text = compiled.as_text()
    if HLO.value:
        folder = Path(HLO.value)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{re.sub('[^a-z0-9]+', '_', name)}.txt").write_text(text)
    computations, entry = read(text)
    found = list(kernels(computations, entry))
    peak = on.peaks[precision]
    moved, flop = sum(k.bytes for k in found), sum(k.flop for k in found)
    of_each = {k: max(k.bytes / on.bandwidth, k.flop / peak) for k in found}
    least = sum(of_each.values())
    if on is V5E:  # products are written in many ways there; XLA itself counts them
        flop = compiled.cost_analysis()["flops"]
        least = max(moved / on.bandwidth, flop / peak)
    of_weights = [k for k in found if k.is_of_weights]
    memory = compiled.memory_analysis()
    sums: dict[tuple[str, str], list[float]] = {}
    for each in collectives(computations, devices):
        total = sums.setdefault((each.operation, each.dtype), [0, 0, 0])
        sums[each.operation, each.dtype] = [
            total[0] + 1,
            total[1] + each.bytes,
            total[2] + each.sent,
        ]
    exchanges = [
        f"{number:.0f} {operation} of {whole / 2**20:.3g} MiB {dtype} ({sent / 2**20:.3g} sent)"
        for (operation, dtype), (number, whole, sent) in sums.items()
    ]
    cells = [
        name,
        f"{seconds:.0f}",
        f"{memory.argument_size_in_bytes / 2**30:.3g}",
        f"{memory.temp_size_in_bytes / 2**30:.3g}",
        f"{len(found)}",
        f"{moved / 2**30:.3g}",
        f"{flop / 1e12:.3g}",
        f"{1e3 * least:.3g}",
        f"{1e3 * sum(of_each[k] for k in of_weights):.2g} ({len(of_weights)})",
        f"{1e3 * flop / peak:.3g}",
        ", ".join(exchanges) or "none",
    ]
    largest = sorted(found, key=lambda k: -of_each[k])[: TOP.value]
    lines = [
        f"    {1e3 * of_each[k]:7.3f} ms {k.bytes / 2**20:8.1f} MiB {k.flop / 1e9:8.1f} GFLOP "
        f"{k.name}  {k.source[-90:]}"
        for k in largest
    ]
    return "\n".join([f"| {' | '.join(cells)} |", *lines])


def main(argv: list[str]) -> None:
    """Compiles and prints."""
    del argv
    os.environ |= {
        "JAX_PLATFORMS": "cpu",
        "JAX_SKIP_CUDA_CONSTRAINTS_CHECK": "1",  # which asks for a driver
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # there is none that they could both take
        "TPU_SKIP_MDS_QUERY": "1",
        "TPU_WORKER_HOSTNAMES": "localhost",
        "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    }
    import jax
    from jax.sharding import AxisType

    logging.set_verbosity(logging.WARNING)
    all_cases = itertools.product(
        DEVICES.value, TASK_LIST.value, PADDINGS.value, PRECISIONS.value, SHAPES.value
    )
    print(HEADER, flush=True)
    for where, task, padding, precision, shape in all_cases:
        devices = describe_devices(where)
        parts = (len(devices) // SPATIAL_SHARDS.value, SPATIAL_SHARDS.value)
        axes = {"axis_names": ("data", "height"), "axis_types": (AxisType.Auto,) * 2}
        mesh = jax.make_mesh(parts, devices=devices, **axes)
        lowered = lower(Case(task, padding, parse_shape(shape), WIDTH.value), precision, mesh)
        start = time.perf_counter()
        compiled = lowered.compile()
        seconds = time.perf_counter() - start
        name = f"{where}, {task}, {padding}, {precision}, {shape}"
        on = H100 if where.startswith("h100") else V5E
        print(row(name, precision, compiled, seconds, len(devices), on), flush=True)


if __name__ == "__main__":
    app.run(main)
