"""FCN-8s with VGG16 and 21 classes, ours beside PyTorch and onnxruntime: inference and training.

    python benchmarks/fcn8s.py [--tasks=inference,training] [--paddings=reference,same]
        [--shapes=1x500x375,4x128x128] [--precisions=float32,bfloat16]
        [--peers=predict,eager,channels_last,compile,onnxruntime]
        [--device=cpu|gpu] [--turns=3] [--steps=1] [--seconds=0] [--levers]

Shapes are BATCHxHEIGHTxWIDTH. All variants of a case run in turns (A B C A B C) in one process,
each with its default threads, on the same random weights, images and labels. Inference goes from
uint8 images on the device to float32 logits there, through the public model; training is the real
step with the published solver. Each case prints a table:

- ratio: its median over that of the fastest PyTorch in the first precision (float32 on a CPU);
- alike: over that of the fastest PyTorch in the same precision;
- GFLOP/s: of the direct arithmetic, training as three passes; the fast forms do less of it;
- of peak: that over the product of large square matrices, by jax or PyTorch, whichever is faster;
- error: largest difference of its logits from PyTorch's in the first precision, relative;
- first: seconds until it has run once, compilation included.

PyTorch's bfloat16 is the whole model in inference, autocast in training. Of several GPUs one is
used (CUDA_VISIBLE_DEVICES tells which).
"""

from __future__ import annotations

import dataclasses
import functools
import gc
import importlib.util
import itertools
import math
import os
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import machine
import numpy as np
from absl import app, flags, logging
from cases import TASKS, Case, parse_shape
from interleaved import seconds, take_turns

TORCH_FORMS = ("eager", "channels_last", "compile")
PEERS = ("predict", *TORCH_FORMS, "onnxruntime")
CHOICES = {
    "tasks": TASKS,
    "paddings": ("reference", "same"),
    "precisions": ("float32", "tf32", "bfloat16"),
    "peers": PEERS,
}

flags.DEFINE_list("tasks", ",".join(TASKS), "What is timed.")
flags.DEFINE_list("paddings", "reference,same", "Of all networks.")
flags.DEFINE_list("shapes", "", "Empty: 1x500x375,4x128x128 on a CPU; 1, 4, 16 of 500x500 on a GPU")
flags.DEFINE_list("precisions", "", "Empty: float32,bfloat16 on a CPU; tf32,bfloat16 on a GPU.")
flags.DEFINE_list(
    "peers", ",".join(PEERS), "Beside our model; predict is our own way for images of any size."
)
WIDTH = flags.DEFINE_float("width", 1.0, "Multiplier of the channels, fc6 and fc7 included.")
TURNS = flags.DEFINE_integer("turns", 3, "Turns of each variant.", lower_bound=1)
STEPS = flags.DEFINE_integer("steps", 0, "Passes in a turn; 0: 1 on a CPU, 20 on a GPU.")
SECONDS = flags.DEFINE_float("seconds", 0, "About as long in all; 0: as long as it takes.")
DEVICE = flags.DEFINE_enum("device", "auto", ("auto", "cpu", "gpu"), "auto: a GPU if jax has one.")
PEAK = flags.DEFINE_bool("peak", True, "Measure the peak of matrix products.")
LEVERS = flags.DEFINE_bool("levers", False, "Set the two environment levers, for all variants.")

for _name, _choices in CHOICES.items():
    flags.register_validator(
        _name,
        lambda given, choices=_choices: set(given) <= set(choices),
        message=f"each must be one of {', '.join(_choices)}",
    )


@flags.validator("shapes")
def _are_shapes(given: list[str]) -> bool:
    try:
        return all(parse_shape(text) for text in given)
    except ValueError as error:
        raise flags.ValidationError(str(error)) from None


LARGEST_ERROR = 1e-3
"""Of float32 logits; beyond it both do not compute the same function, and times mean nothing."""


@dataclasses.dataclass(frozen=True)
class Variant:
    """One way to do a case.

    Attributes:
        name: Whose.
        precision: In what it computes.
        run: So many passes or steps, until the last is done.
        logits: float32 (b, h, w, classes); None where there are none.
        first: Seconds until it had run once.
    """

    name: str
    precision: str
    run: Callable[[int], None]
    logits: np.ndarray | None
    first: float

    @property
    def is_torch(self) -> bool:
        return self.name.startswith("PyTorch")


# ======================================================================== what runs


def choose_device() -> str:
    """``cpu`` or ``gpu``; before jax or PyTorch is imported.

    Raises:
        SystemExit: If there is no GPU and one is demanded.
    """
    logging.set_verbosity(logging.WARNING)
    os.environ.setdefault("CUDA_VISIBLE_DEVICES", "0")
    os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.4")  # PyTorch needs some as well
    if DEVICE.value == "cpu":
        os.environ["JAX_PLATFORMS"] = "cpu"
    import jax

    found = jax.default_backend()
    if DEVICE.value == "gpu" and found != "gpu":
        raise SystemExit(f"fcn8s.py: jax finds no GPU but {found}; pip install jax[cuda13]")
    return found


def available_peers(device: str) -> tuple[list[str], list[str]]:
    """The peers that can run here, and a line for each one that cannot."""
    problems: dict[str, str] = {}
    forms = [*TORCH_FORMS, "onnxruntime"]  # what onnxruntime runs is exported by PyTorch
    if importlib.util.find_spec("torch") is None:
        problems = dict.fromkeys(forms, "PyTorch is not installed")
    else:
        import torch
        import torch_fcn8s

        if device == "gpu" and not torch.cuda.is_available():
            problems = dict.fromkeys(forms, f"PyTorch {torch.__version__} finds no GPU")
        elif "compile" in flags.FLAGS.peers and (
            problem := torch_fcn8s.compiler_problem(torch_device(device))
        ):
            problems["compile"] = f"torch.compile does not work here: {problem}"
        if problem := torch_fcn8s.onnx_problem(torch_device(device)):
            problems["onnxruntime"] = problem
    wanted = list(flags.FLAGS.peers)
    lines = [f"left out: {name}: {problems[name]}" for name in wanted if name in problems]
    return [name for name in wanted if name not in problems], lines


def torch_device(device: str) -> str:
    """PyTorch's name of it."""
    return "cuda" if device == "gpu" else "cpu"


def variants_of(
    case: Case, precisions: Sequence[str], peers: Sequence[str]
) -> list[tuple[str, str]]:
    """Kind and precision of all variants of a case, ours first.

    Those of torch.compile come last: they take longest to build, and are what a limit cuts.
    """
    kinds = [
        kind
        for kind in ("model", *peers)
        if case.task == "inference" or kind not in ("predict", "onnxruntime")
    ]
    pairs = itertools.product(precisions, kinds)
    found = [(kind, how) for how, kind in pairs if kind != "onnxruntime" or how == "float32"]
    return sorted(found, key=lambda pair: pair[0] == "compile")


def build(kind: str, precision: str, case: Case, device: str, params: Any) -> Variant:
    """A variant that has run once."""
    start = time.perf_counter()
    if kind in ("model", "predict"):
        import jax_fcn8s as ours

        name = "fcn_jax" if kind == "model" else "fcn_jax predict"
        sides = {"inference": ours.Inference, "training": ours.Training, "predict": ours.Prediction}
        side: Any = sides["predict" if kind == "predict" else case.task](case, precision, params)
    else:
        import torch_fcn8s as theirs

        where = torch_device(device)
        if kind == "onnxruntime":
            name, side = kind, theirs.OnnxInference(case, where, params)
        else:
            name = f"PyTorch {kind}"
            sides = {"inference": theirs.Inference, "training": theirs.Training}
            side = sides[case.task](case, precision, kind, where, params)
    side.run(1)
    first = time.perf_counter() - start
    print(f"{name} in {precision}: first after {first:.1f} s", file=sys.stderr, flush=True)
    logits = side.logits() if hasattr(side, "logits") else None
    return Variant(name, precision, side.run, logits, first)


# ======================================================================== the tables


def errors(variants: Sequence[Variant]) -> list[float]:
    """The largest difference of each one's logits from PyTorch's first, over the largest logit.

    Raises:
        SystemExit: If two that compute in float32 differ.
    """
    peer = next((v for v in variants if v.is_torch and v.logits is not None), None)
    if peer is None or peer.logits is None:
        return [math.nan] * len(variants)
    found = []
    for variant in variants:
        if variant.logits is None:
            found.append(math.nan)
            continue
        found.append(float(np.abs(variant.logits - peer.logits).max() / np.abs(peer.logits).max()))
        both = variant.precision == peer.precision == "float32"
        if both and not found[-1] < LARGEST_ERROR:
            raise SystemExit(
                f"fcn8s.py: the logits of {variant.name} differ from those of {peer.name} by "
                f"{found[-1]:.1e} of the largest; times of two functions cannot be compared"
            )
    return found


def fastest(variants: Sequence[Variant], medians: Sequence[float], precision: str) -> float:
    """The median of the fastest PyTorch in a precision; NaN if there is none."""
    pairs = zip(variants, medians, strict=True)
    return min((m for v, m in pairs if v.is_torch and v.precision == precision), default=math.nan)


HEADER = (
    f"| {'variant':22} | {'precision':9} | {'median ms':>9} | {'min ms':>9} | {'ratio':>6} "
    f"| {'alike':>6} | {'GFLOP/s':>8} | {'of peak':>7} | {'error':>7} | {'first s':>7} |"
)
RULE = "|" + "|".join("-" * len(cell) for cell in HEADER.strip("|").split("|")) + "|"


def rows(
    variants: Sequence[Variant],
    times: Sequence[Sequence[float]],
    differences: Sequence[float],
    gflop: float,
    peaks: Mapping[str, float],
) -> list[str]:
    """The lines of a table, one for each variant.

    Args:
        variants: All of a case.
        times: Of each the seconds of one pass or step, in every turn.
        differences: See `errors`.
        gflop: Of one pass or step.
        peaks: GFLOP/s in each precision.
    """
    medians = [statistics.median(values) for values in times]
    base = fastest(variants, medians, variants[0].precision)
    lines = []
    everything = zip(variants, times, medians, differences, strict=True)
    for variant, values, median, error in everything:
        alike = fastest(variants, medians, variant.precision)
        cells = [
            f"{variant.name:22}",
            f"{variant.precision:9}",
            f"{1000 * median:9.1f}",
            f"{1000 * min(values):9.1f}",
            f"{median / base:6.2f}",
            f"{median / alike:6.2f}",
            f"{gflop / median:8.1f}",
            f"{gflop / median / peaks[variant.precision]:7.2f}",
            f"{error:7.1e}",
            f"{variant.first:7.1f}",
        ]
        lines.append(f"| {' | '.join(cells)} |".replace("nan", "  –"))
    return lines


def flops(product: Callable[[int], Callable[[int], None]], repetitions: int) -> float:
    """FLOP/s of products of square matrices, as large as a third of a second allows."""
    best = 0.0
    for side in (512, 1024, 2048, 4096, 8192):
        run = product(side)
        run(1)
        taken = min(seconds(lambda: run(repetitions)) for _ in range(3))  # noqa: B023
        best = max(best, 2 * side**3 * repetitions / taken)
        if taken > 1 / 3:
            break
    return best


def measure_peaks(
    precisions: Sequence[str], device: str, torch_runs: bool
) -> dict[str, dict[str, float]]:
    """GFLOP/s of matrix products in each precision, of jax and, if it runs, of PyTorch."""
    import jax_fcn8s

    repetitions = 1 if device == "cpu" else 20
    peaks: dict[str, dict[str, float]] = {}
    for precision in precisions:
        products = {"jax": functools.partial(jax_fcn8s.matrix_product, precision)}
        if torch_runs:
            import torch_fcn8s

            products["PyTorch"] = functools.partial(
                torch_fcn8s.matrix_product, precision, device=torch_device(device)
            )
        peaks[precision] = {
            name: 1e-9 * flops(product, repetitions) for name, product in products.items()
        }
        text = ", ".join(f"{name} {value:.0f}" for name, value in peaks[precision].items())
        print(f"peak         {precision} matrix products: {text} GFLOP/s", flush=True)
    return peaks


def hopeless(products: Mapping[str, float]) -> bool:
    """Whether PyTorch has no kernels of its own for a precision, and a pass would take minutes."""
    return products.get("PyTorch", math.inf) < products["jax"] / 10


def report(
    case: Case,
    pairs: Sequence[tuple[str, str]],
    device: str,
    peaks: Mapping[str, float],
    until: float,
) -> None:
    """Prints the table of a case.

    Args:
        case: What is done.
        pairs: Kind and precision of all variants.
        device: ``cpu`` or ``gpu``.
        peaks: GFLOP/s in each precision.
        until: See `take_turns`; past it no other variant is built either, the first always is.
    """
    import jax_fcn8s

    from fcn_jax.models.fcn import multiply_adds

    model = jax_fcn8s.build_model(case)
    batch, height, width = case.shape
    passes = 3 if case.task == "training" else 1
    gflop = 2e-9 * passes * batch * multiply_adds(model, height, width)
    print(
        f"\n### {case.task}, {case.padding} padding, batch {batch} of {height} x {width} pixels "
        f"(height x width), {gflop:.4g} GFLOP\n",
        flush=True,
    )
    params = jax_fcn8s.random_params(model)
    variants: list[Variant] = []
    for kind, precision in pairs:
        if variants and time.monotonic() > until:
            print(f"left out: {kind} in {precision}: the time is over\n", flush=True)
        else:
            variants.append(build(kind, precision, case, device, params))
    del params
    differences = errors(variants)
    steps = STEPS.value or (1 if device == "cpu" else 20)
    runs = {f"{number}": functools.partial(v.run, steps) for number, v in enumerate(variants)}
    turns = take_turns(runs, TURNS.value, until).values()
    times = [[value / steps for value in values] for values in turns]
    lines = rows(variants, times, differences, gflop, peaks)
    print("\n".join([HEADER, RULE, *lines]), flush=True)


def main(argv: list[str]) -> None:
    """Measures and prints."""
    del argv
    if LEVERS.value:
        machine.pull_levers()
    start = time.monotonic()
    device = choose_device()
    precisions, cases = wanted(device)
    peers, problems = available_peers(device)
    print("\n".join([*machine.describe(), f"device       {device}", *problems]), flush=True)
    forms = [form for form in TORCH_FORMS if form in peers]
    peaks = measure_peaks(precisions, device, bool(forms)) if PEAK.value else {}
    slow = [precision for precision, products in peaks.items() if hopeless(products)]
    for precision in slow:
        print(f"left out: PyTorch in {precision}: it has no fast kernels for that here")
    best = {how: max(peaks[how].values()) if peaks else math.nan for how in precisions}
    for number, case in enumerate(cases, 1):
        spent = time.monotonic() - start
        if SECONDS.value and spent > SECONDS.value:
            print(f"\n{len(cases) - number + 1} cases left out after {spent:.0f} seconds")
            break
        share = start + SECONDS.value * number / len(cases) if SECONDS.value else math.inf
        pairs = [
            (kind, precision)
            for kind, precision in variants_of(case, precisions, peers)
            if not (kind in TORCH_FORMS and precision in slow)
        ]
        report(case, pairs, device, best, share)
        if "compile" in peers:
            import torch_fcn8s

            torch_fcn8s.forget_compiled()
        gc.collect()


def wanted(device: str) -> tuple[list[str], list[Case]]:
    """The precisions and the cases that the flags ask for on a device."""
    given, on_cpu = flags.FLAGS, device == "cpu"
    precisions = given.precisions or ["float32" if on_cpu else "tf32", "bfloat16"]
    shapes = given.shapes or (
        ["1x500x375", "4x128x128"] if on_cpu else [f"{batch}x500x500" for batch in (1, 4, 16)]
    )
    chosen = itertools.product(given.tasks, given.paddings, shapes)
    return precisions, [
        Case(task, padding, parse_shape(shape), WIDTH.value) for task, padding, shape in chosen
    ]


if __name__ == "__main__":
    app.run(main)
