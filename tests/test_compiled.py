"""What benchmarks/compiled.py reads in compiled programs, and that it compiles for H100 and TPU."""

from __future__ import annotations

import importlib.util
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import compiled
import jax
import pytest
import toy_backbones

from fcn_jax.models.fcn import abstract_params, create_model, multiply_adds

HERE = Path(__file__).parent

ON_GPU = """HloModule jit_step

%fused (a: f32[64,32], b: f32[32,16]) -> f32[64,16] {
  %a = f32[64,32]{1,0} parameter(0)
  %b = f32[32,16]{1,0} parameter(1)
  ROOT %dot.1 = f32[64,16]{1,0} dot(%a, %b), lhs_contracting_dims={1}, rhs_contracting_dims={0}
}

%rounded (c: f32[32,16]) -> bf16[32,16] {
  %c = f32[32,16]{1,0} parameter(0)
  ROOT %convert.1 = bf16[32,16]{1,0} convert(%c)
}

ENTRY %main (w: f32[32,16], x: f32[64,32]) -> (f32[64,16]) {
  %w = f32[32,16]{1,0} parameter(0), metadata={op_name="state.params['fc']['kernel']"}
  %x = f32[64,32]{1,0} parameter(1), metadata={op_name="batch['image']"}
  %wrapped = bf16[32,16]{1,0} fusion(%w), kind=kLoop, calls=%rounded
  %gemm = f32[64,16]{1,0} fusion(%x, %w), kind=kCustom, calls=%fused, metadata={op_name="jit(step)/fc/dot"}
  %map = bf16[2,8,9,4]{3,2,1,0} bitcast(%gemm)
  %kernel = bf16[5,3,3,4]{3,2,1,0} bitcast(%wrapped)
  %cudnn.1 = (bf16[2,8,9,5]{3,2,1,0}, u8[0]{0}) custom-call(%map, %kernel), window={size=3x3 pad=1_1x1_1}, dim_labels=b01f_o01i->b01f, custom_call_target="__cudnn$convForward"
  %all-reduce-start = f32[64,16]{1,0} all-reduce-start(%gemm), replica_groups=[2,4]<=[8], to_apply=%add
  %all-reduce-done = f32[64,16]{1,0} all-reduce-done(%all-reduce-start)
  ROOT %tuple = (f32[64,16]{1,0}) tuple(%all-reduce-done)
}
"""  # noqa: E501


def test_kernels_of_a_gpu_program():
    """Bytes are those of arguments and results, FLOP two for each product that is added."""
    found = {k.name: k for k in compiled.kernels(*compiled.read(ON_GPU))}
    assert list(found) == ["wrapped", "gemm", "cudnn.1", "all-reduce-start"]
    assert [k.is_of_weights for k in found.values()] == [True, False, False, False]
    assert found["wrapped"].bytes == 32 * 16 * (4 + 2)
    assert found["gemm"].bytes == 4 * (64 * 32 + 32 * 16 + 64 * 16)
    assert found["gemm"].flop == 2 * 64 * 32 * 16
    assert found["gemm"].source == "fc/dot"
    assert found["cudnn.1"].flop == 2 * (2 * 8 * 9 * 5) * (3 * 3 * 4)
    (exchange,) = compiled.collectives(compiled.read(ON_GPU)[0], 8)
    assert exchange == compiled.Collective("all-reduce", "f32", 4096, 2 * 3 / 4 * 4096)


ON_TPU = """HloModule jit_step

ENTRY %main.7 (p.1: f32[8,128]) -> f32[8,128] {
  %p.1 = f32[8,128]{1,0:T(8,128)} parameter(0), metadata={op_name="batch['image']"}
  %copy-start = (f32[8,128]{1,0:T(8,128)S(1)}, f32[8,128]{1,0:T(8,128)}, u32[]{:S(2)}) copy-start(%p.1)
  %copy-done = f32[8,128]{1,0:T(8,128)S(1)} copy-done(%copy-start)
  %slice-start = ((f32[8,128]{1,0:T(8,128)}), f32[2,128]{1,0:T(8,128)S(1)}, s32[]{:S(2)}) slice-start(%p.1), slice={[0:2], [0:128]}
  %slice-done = f32[2,128]{1,0:T(8,128)S(1)} slice-done(%slice-start)
  %index = u32[]{:T(128)S(6)} replica-id()
  %sum = (f32[8,128]{1,0:T(8,128)S(1)}, f32[8,128]{1,0:T(8,128)}) fusion(%copy-done, %slice-done)
  %part = f32[8,128]{1,0:T(8,128)S(1)} get-tuple-element(%sum), index=0
  ROOT %permute = f32[8,128]{1,0:T(8,128)} collective-permute(%part), source_target_pairs={{0,1}}
}
"""  # noqa: E501


def test_what_lies_in_the_small_memory_of_a_tpu_does_not_count_as_moved():
    computations, entry = compiled.read(ON_TPU)
    whole = 8 * 128 * 4
    moved = {k.name: k.bytes for k in compiled.kernels(computations, entry)}
    assert moved == {"copy-start": whole, "slice-start": whole / 4, "sum": whole, "permute": whole}
    (exchange,) = compiled.collectives(computations, 4)
    assert exchange == compiled.Collective("collective-permute", "f32", whole, whole)


@pytest.mark.parametrize(
    ("groups", "devices"),
    [
        ("replica_groups={{0,1,2},{3,4,5}}", 3),
        ("replica_groups={}", 6),
        ("replica_groups=[3,2]<=[2,3]T(1,0)", 2),
        ("replica_groups=mesh['axis_0'=2,'axis_1'=3] {'axis_1'}", 3),
        ("replica_groups=mesh['axis_0'=2,'axis_1'=3] {'axis_0','axis_1'}", 6),
    ],
)
@pytest.mark.parametrize(
    ("operation", "whole", "part"),
    [
        ("all-reduce", lambda n: 1, lambda n: 2 * (n - 1) / n),
        ("reduce-scatter", lambda n: 1, lambda n: (n - 1) / n),
        ("all-gather", lambda n: n, lambda n: (n - 1) / n),
        ("all-to-all", lambda n: 1, lambda n: (n - 1) / n),
    ],
)
def test_bytes_of_collectives(groups, devices, operation, whole, part):
    """As a ring of devices sends them; of each type of number by itself."""
    text = f"""
ENTRY %main () -> f32[6] {{
  %a = f32[6]{{0}} parameter(0)
  %b = bf16[10]{{0}} parameter(1)
  %both = (f32[6]{{0}}, bf16[10]{{0}}) {operation}(%a, %b), channel_id=1, {groups}
}}
"""
    computations, _ = compiled.read(text)
    expected = [
        compiled.Collective(
            operation, dtype, held * whole(devices), held * whole(devices) * part(devices)
        )
        for dtype, held in (("f32", 24), ("bf16", 20))
    ]
    assert compiled.collectives(computations, 6) == expected


SMALL = """
import sys
import compiled, jax_fcn8s, toy_backbones
from absl import app
from fcn_jax import create_model

jax_fcn8s.build_model = lambda case, precision: create_model(
    "fcn16s", backbone=toy_backbones.plain, num_classes=3, fc_width=64, learned_upsampling="none",
    precision=precision,
)
app.run(compiled.main)
"""
OPTIONS = ("--shapes=4x64x80", "--paddings=same", "--precisions=bfloat16")
PLUGINS = {"h100x2": "jax_cuda12_plugin", "v5e:2x2": "libtpu"}


@pytest.mark.slow
@pytest.mark.parametrize("device", PLUGINS)
def test_a_small_network_compiles_for_devices_that_are_not_there(device):
    """With the arguments and the arithmetic that it has, and one sum of the gradient."""
    if importlib.util.find_spec(PLUGINS[device]) is None:
        pytest.skip(f"jax's plugin {PLUGINS[device]} is not installed")
    shape = (4, 64, 80)
    paths = [str(HERE), str(HERE.parent), str(HERE.parent / "benchmarks")]
    result = subprocess.run(
        [sys.executable, "-c", SMALL, f"--devices={device}", *OPTIONS],
        env={**os.environ, "XLA_FLAGS": "", "PYTHONPATH": os.pathsep.join(paths)},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    head, *rows = [line for line in result.stdout.splitlines() if line.startswith("| ")]
    names = [name.strip() for name in head.strip("|").split("|")]
    options = {"num_classes": 3, "fc_width": 64, "learned_upsampling": "none"}
    model = create_model("fcn16s", backbone=toy_backbones.plain, **options)
    inference, training = (
        dict(zip(names, (cell.strip() for cell in row.strip("|").split("|")), strict=True))
        for row in rows
    )
    images = shape[0] / int(device[-1]) if device.startswith("h100") else 1
    gflop = 2e-9 * images * multiply_adds(model, *shape[1:])
    # XLA's own count, of the TPU, has additions and comparisons as well.
    assert 0.9 * gflop < 1000 * float(inference["TFLOP"]) < (1.1 if images == 2 else 1.5) * gflop
    shapes = abstract_params(model)
    params = sum(4 * x.size for x in jax.tree.leaves(shapes))
    rounded = {layer: shapes[layer] for layer in ("stem", "middle", "top")}
    gradient_bytes = sum(2 * x.size for x in jax.tree.leaves(rounded))
    held = params - gradient_bytes + images * math.prod(shape[1:]) * 3  # those in bfloat16 half
    # A TPU fills up small arrays to whole tiles.
    most = 1.1 if images == 2 else 10
    assert 0.99 * held < float(inference["arguments GiB"]) * 2**30 < most * held
    assert inference["collectives"] == "none"
    gradient = re.search(r"all-reduce of (\S+) MiB bf16", training["collectives"])
    assert gradient
    assert float(gradient[1]) * 2**20 == pytest.approx(gradient_bytes, rel=0.01)
    for row in (inference, training):
        assert float(row["roofline ms"]) >= float(row["products ms"]) > 0
