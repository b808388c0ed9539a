"""Programs: kept in memory by their last use, and between runs as they were traced."""

from __future__ import annotations

import dataclasses
from fractions import Fraction

import jax
import numpy as np
import pytest
from random_parameters import random_parameters
from toy_backbones import plain

import fcn_jax
from fcn_jax import programs
from fcn_jax.inference import compute
from fcn_jax.models.inputs import Preprocessing
from fcn_jax.programs import Programs


class Counted:
    """A function that tells how often it was traced."""

    def __init__(self):
        self.traced = []

    def of(self):
        """As another run has it."""

        def scaled(variables, array, *, sign):
            self.traced.append((array.shape, str(array.dtype), sign))
            return {
                "total": (variables["by"] * array).sum() * sign,
                "each": array * variables["by"],
            }

        scaled.__module__ = "fcn_jax.of_tests"  # only what is of the package is kept
        return Programs(scaled)


ARRAY = np.random.default_rng(0).normal(size=(3, 5)).astype(np.float32)
BY = {"by": np.float32(-1.5)}


def call(program, array=ARRAY, variables=BY, sign=Fraction(1, 3)):
    return jax.device_get(program(2, variables, array, sign=float(sign)))


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(programs, "_folder", None)
    assert programs.keep_compiled_programs() == tmp_path
    return tmp_path


def files(folder):
    return sorted(folder.glob("fcn_jax-*"))


def test_they_are_kept_by_their_last_use():
    traced = []

    def double(variables, array, *, sign):
        traced.append((array.shape, sign))
        return variables * array * sign

    doubles = Programs(double)
    for length in (1, 2, 1, 3, 1, 2):
        array = np.arange(length, dtype=np.float32)
        found = doubles(2, np.float32(2), array, sign=-1)
        np.testing.assert_array_equal(found, -2 * array)
    # Of two: 3 takes the place of 2, which comes back in the end; 1 always stays.
    assert traced == [((1,), -1), ((2,), -1), ((3,), -1), ((2,), -1)]
    doubles(2, np.float32(2), np.zeros(2, np.float32), sign=1)
    assert traced[-1] == ((2,), 1)


def test_a_later_run_does_not_trace(folder):
    counted = Counted()
    first = call(counted.of())
    assert len(counted.traced) == len(files(folder)) == 1
    later = call(counted.of())
    assert len(counted.traced) == 1
    for name, value in first.items():
        np.testing.assert_array_equal(later[name], value)
    np.testing.assert_allclose(later["total"], (-1.5 * ARRAY).sum() / 3, rtol=1e-6)


@pytest.mark.parametrize(
    "change",
    [
        {"sign": 2},
        {"array": ARRAY[:2]},
        {"array": ARRAY.astype(np.int32)},
        {"variables": {"by": np.full((3, 1), 2, np.float32)}},
        {"variables": {"by": np.float32(2), "more": np.float32(1)}},
    ],
    ids=str,
)
def test_what_is_another_program_is_traced(folder, change):
    counted = Counted()
    call(counted.of())
    changed = call(counted.of(), **change)
    assert len(counted.traced) == len(files(folder)) == 2
    by, array = change.get("variables", BY)["by"], change.get("array", ARRAY)
    total = (by * array).sum() * float(change.get("sign", 1 / 3))
    np.testing.assert_allclose(changed["total"], total, rtol=1e-5)


@pytest.mark.parametrize("what", ["source", "plain forms", "a setting of jax"])
def test_what_tracing_depends_on_is_told_apart(folder, what, monkeypatch):
    counted = Counted()
    call(counted.of())
    if what == "source":
        monkeypatch.setattr(programs, "_surroundings", lambda: ("another version",))
        call(counted.of())
    elif what == "plain forms":
        program = counted.of()
        with fcn_jax.ops.plain_forms():
            call(program)
        call(program)  # read again, and not the plain one that it has in memory
        assert len(program._kept) == 2
    else:
        before = jax.config.jax_default_matmul_precision
        jax.config.update("jax_default_matmul_precision", "float32")
        try:
            call(counted.of())
        finally:
            jax.config.update("jax_default_matmul_precision", before)
    assert len(counted.traced) == len(files(folder)) == 2


@pytest.mark.parametrize("damage", [b"", b"short", None], ids=["empty", "short", "one bit"])
def test_a_damaged_file_is_written_anew(folder, damage):
    counted = Counted()
    first = call(counted.of())
    (file,) = files(folder)
    whole = file.read_bytes()
    file.write_bytes(whole[:-9] + bytes([whole[-9] ^ 1]) + whole[-8:] if damage is None else damage)
    assert call(counted.of())["total"] == first["total"]
    assert len(counted.traced) == 2
    assert call(counted.of())["total"] == first["total"]
    assert len(counted.traced) == 2


def test_a_folder_that_is_gone_costs_nothing_but_time(folder):
    folder.rmdir()
    counted = Counted()
    for _ in range(2):
        np.testing.assert_allclose(call(counted.of())["total"], (-1.5 * ARRAY).sum() / 3, rtol=1e-6)
    assert len(counted.traced) == 2


def test_errors_of_tracing_are_those_of_the_function(folder):
    def refuse(variables, array):
        raise ValueError("images are too small")

    refuse.__module__ = "fcn_jax.of_tests"
    with pytest.raises(ValueError, match="images are too small"):
        Programs(refuse)(2, BY, ARRAY)
    assert not files(folder)


@dataclasses.dataclass(frozen=True)
class Own:
    """A class of somebody else's code, which may change between two runs."""

    factor: float = 2.0


@pytest.mark.parametrize("module", ["fcn_jax.of_tests", "fcn_jax_of_tests"])
def test_what_is_not_of_this_package_is_not_kept(folder, module):
    """Neither with an option of one's own, nor a function; the name begins alike."""

    def scaled(variables, array, *, own):
        return variables["by"] * array * getattr(own, "factor", own)

    scaled.__module__ = module
    if module != "fcn_jax.of_tests":
        np.testing.assert_allclose(Programs(scaled)(2, BY, ARRAY, own=2.0), -3 * ARRAY)
    for _ in range(2):
        found = Programs(scaled)(2, BY, ARRAY, own=Own())
        np.testing.assert_allclose(found, -3 * ARRAY)
    assert not files(folder)


def test_options_are_told_apart_by_all_that_they_hold():
    network = compute.Network(
        fcn_jax.create_model("fcn8s", width=1 / 64, fc_width=4),
        fcn_jax.Inputs.of(Preprocessing()),
        (("label", 21),),
        (compute.View(1.0, False),),
    )
    told = programs._told({"network": network})
    others = [
        network._replace(model=fcn_jax.create_model("fcn8s", width=1 / 64, fc_width=5)),
        network._replace(model=network.model.clone(dropout=0.25)),
        network._replace(model=network.model.clone(precision="bfloat16")),
        network._replace(inputs=fcn_jax.Inputs.of(Preprocessing(std=(1.0, 1.0, 2.0)))),
        network._replace(heads=(("labels", 21),)),
        network._replace(views=(compute.View(1.0, True),)),
        network._replace(views=network.views * 2),
    ]
    texts = {told, *(programs._told({"network": other}) for other in others)}
    assert len(texts) == 1 + len(others)
    assert programs._told({"network": network._replace()}) == told


def test_a_predictor_that_was_traced_before(folder):
    """The same label maps, on canvases with and without a border beyond the image."""
    model = fcn_jax.create_model(
        "fcn8s", backbone=plain, num_classes=3, fc_width=4, padding="reference"
    )
    params = random_parameters(model, 0)
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (*size, 3), dtype=np.uint8) for size in ((32, 40), (33, 39))]
    found = []
    for kept in (None, folder, folder):  # plain jit, traced and kept, read again
        programs._folder = kept
        compute.compute_batch._kept.clear()
        found.append([fcn_jax.Predictor(model, params)(image) for image in images])
        number = 0 if kept is None else 2
        assert len(files(folder)) == number
    for other in found[1:]:
        for ours, theirs in zip(other, found[0], strict=True):
            np.testing.assert_array_equal(ours, theirs)
