"""Averages, patience, the best checkpoint and the learning rate, in whole runs that are cut."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import signal

import numpy as np
import pytest
from test_training import kill, saving, train

from fcn_jax import data
from fcn_jax.checkpoints import StageCheckpoints
from fcn_jax.runs import load_run
from fcn_jax.training import init
from fcn_jax.training import run as training
from fcn_jax.training.journal import Journal


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("ends")


def digests(workdir, stage: str) -> dict[str, str]:
    """Of every array of the last checkpoint: parameters, their average, the optimiser's state."""
    with StageCheckpoints(workdir, stage, read_only=True) as checkpoints:
        return checkpoints._describe(checkpoints.steps()[-1])["arrays"]


def records(workdir, key: str) -> list[tuple]:
    lines = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    return [(line["stage"], line["step"], line[key]) for line in lines if key in line]


def stopping_at(monkeypatch, stage: str, step: int):
    """SIGTERM after this step: what comes is saved, without a score."""
    advance = Journal.advance

    def stop(journal, *given):
        advance(journal, *given)
        if given[:2] == (stage, step):
            signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(Journal, "advance", stop)


# ======================================================================== averages and plateaus

AVERAGED = {
    "stages": "('fcn32s','fcn16s')",
    "steps": "(5,6)",
    "learning_rate": "(1e-2,)",
    "warmup": 0,
    "ema": 0.9,
    "schedule": "plateau",
    "schedule_step": 1,
    "schedule_patience": 1,
    "schedule_gamma": 0.5,
    "loss": "cross_entropy+0.5*dice",
    "class_weights": "inverse",
    "layer_rates": "('middle=0.5','score_*=auto')",
    "eval_every": 0,
}


@pytest.fixture(scope="module")
def averaged(place):
    code, text, errors = train(place, "averaged", **AVERAGED)
    assert code == 0, errors
    return place / "averaged", text, errors


def test_a_run_with_averages_says_so_and_scores_them(averaged):
    workdir, text, errors = averaged
    assert "scores are of averaged parameters (config.ema = 0.9)" in text
    assert "label: class weights, inverse frequency: background 0." in text
    assert "fcn16s: starts from fcn32s, its last step, averaged parameters" in text
    assert f"{workdir}: fcn16s with averaged parameters (config.ema = 0.9)" in errors  # the report
    assert json.loads((workdir / "report" / "scores.json").read_text())["averaged_parameters"]
    arrays = digests(workdir, "fcn16s")
    loaded = load_run(workdir, "fcn16s", "last", allow_code=True).variables["params"]
    from fcn_jax.checkpoints import digest_arrays

    found = {f"average/{name}": text for name, text in digest_arrays(loaded)[0].items()}
    assert found == {name: text for name, text in arrays.items() if name.startswith("average/")}
    assert arrays["average/top/kernel"] != arrays["params/top/kernel"]


def test_measured_factors_on_rates_are_a_part_of_the_state(averaged):
    workdir, text, _ = averaged
    lines = [line for line in text.splitlines() if ": factors on rates: " in line]
    pattern = r"fcn16s: factors on rates: score_fr (\S+), score_pool4 (\S+)"
    found = [float(factor) for factor in re.fullmatch(pattern, lines[1]).groups()]
    with StageCheckpoints(workdir, "fcn16s", read_only=True) as checkpoints:
        arrays = checkpoints._describe(checkpoints.steps()[-1])["arrays"]
    kept = sorted(name for name in arrays if "factors" in name)
    assert [name.rpartition("/")[2] for name in kept] == ["middle", "score_fr", "score_pool4"]
    assert found[0] != found[1]


def test_the_logged_rate_falls_on_a_plateau(averaged):
    rates = records(averaged[0], "learning_rate")
    assert [rate[:2] for rate in rates] == [
        *(("fcn32s", step) for step in range(1, 6)),
        *(("fcn16s", step) for step in range(1, 7)),
    ]
    losses = records(averaged[0], "loss")
    for stage in ("fcn32s", "fcn16s"):
        best, expected = np.inf, 1e-2
        for (_, _, loss), (_, _, rate) in zip(
            *([r for r in lines if r[0] == stage] for lines in (losses, rates)), strict=True
        ):
            better = loss < best * (1 - 1e-4)
            best, expected = (loss, expected) if better else (best, expected / 2)
            assert rate == pytest.approx(expected)
    assert min(rate for _, _, rate in rates) < 1e-2


@pytest.mark.parametrize(
    "fields",
    [{}, pytest.param({"eval_every": 1}, marks=pytest.mark.slow)],
    ids=["killed", "eval_every"],
)
def test_kills_and_evaluations_change_no_bit_of_either(place, averaged, fields):
    name = "-".join(("averaged", *(fields or ("killed",))))
    if not fields:
        assert kill(place, name, saving(place / name), 0.0, **AVERAGED)
    code, _, errors = train(place, name, **{**AVERAGED, **fields})
    assert code == 0, errors
    for stage in ("fcn32s", "fcn16s"):
        assert digests(place / name, stage) == digests(averaged[0], stage)
    for key in ("loss", "learning_rate"):
        assert records(place / name, key) == records(averaged[0], key)


# ======================================================================== patience and the best


def scripted(monkeypatch, scores):
    """Evaluations give these metrics, in order, whenever a step is scored again the same."""

    def score(stage, step, *_, **__):
        return scores[stage.name][step]

    monkeypatch.setattr(training, "score", score)


PATIENT = {
    "stages": "('fcn32s','fcn16s')",
    "steps": "(20,6)",
    "learning_rate": "(1e-2,1e-30)",  # fcn16s stays where it begins
    "schedule": "constant",
    "warmup": 0,
    "optimizer": "sgd",
    "weight_decay": 0.0,
    "eval_every": 2,
    "checkpoint_every": 1,
    "patience": 2,
    "samples": 0,
}
FIRST = {2: 0.60, 4: 0.55, 6: 0.50}
SECOND = {2: 0.1, 4: 0.05, 6: 0.2}


@pytest.mark.parametrize(
    ("best", "cut"), [("mean_iu", 3), pytest.param("loss", 4, marks=pytest.mark.slow)]
)
def test_a_stage_ends_where_patience_does(place, monkeypatch, best, cut):
    """The best is remembered, whatever comes between; NaN is never it."""
    workdir = place / f"patient-{best}-{cut}"
    sign = -1 if best == "loss" else 1
    scores = {
        stage: {step: {best: sign * value} for step, value in values.items()}
        for stage, values in (("fcn32s", FIRST), ("fcn16s", SECOND))
    }
    scores["fcn16s"][2] = {"mean_iu": 0.9, "loss": 0.0, best: float("nan")}
    scripted(monkeypatch, scores)
    fields = {**PATIENT, "best": best}
    monkeypatch.setattr("fcn_jax.inference.report.evaluate_run", lambda *_, **__: None)
    with monkeypatch.context() as patch:
        stopping_at(patch, "fcn32s", cut)
        code, _, errors = train(place, workdir.name, **fields)
        assert code == 128 + signal.SIGTERM, errors
    code, text, errors = train(place, workdir.name, **fields)
    assert code == 0, errors
    assert f"fcn32s: ends at step 6 of 20: no better {best} in 2 evaluations" in text
    assert "fcn16s: starts from fcn32s, its best step" in text
    assert load_run(workdir, "fcn32s", allow_code=True).step == 2
    assert load_run(workdir, "fcn32s", "last", allow_code=True).step == 6
    # fcn16s begins to count anew: NaN, .05, .2 are no two in turn without a better one.
    assert load_run(workdir, "fcn16s", "best", allow_code=True).step == 6
    assert load_run(workdir, "fcn16s", "last", allow_code=True).step == 6
    # It begins from the best step of fcn32s.
    best_of, last_of, after = (
        load_run(workdir, stage, which, allow_code=True).variables["params"]["top"]["kernel"]
        for stage, which in (("fcn32s", "best"), ("fcn32s", "last"), ("fcn16s", "last"))
    )
    np.testing.assert_array_equal(after, best_of)
    assert not np.array_equal(after, last_of)
    # Killed right after fcn32s ended, it is not gone on with.
    shutil.rmtree(workdir / "checkpoints" / "fcn16s")
    code, text, errors = train(place, workdir.name, **{**fields, "steps": "(20,2)"})
    assert code == 0, errors
    assert "fcn32s: finished before, 6 steps" in text


@pytest.mark.parametrize(
    ("best", "message"),
    [
        ("mean_ui", "'mean_ui': there is no such metric; there are pixel_accuracy, mean_accuracy"),
        ("iu/cow", "no such metric"),
        ("label/mean_iu", "no such metric"),
        ("boundary_f1/", "no such metric"),
    ],
)
def test_a_metric_that_there_is_not_is_told_at_the_start(place, best, message):
    source = data.open_source("shapes", "val", data_dir=place, train=1, val=1, size=48)
    with pytest.raises(ValueError, match=f"^config.best = '{best}': ") as caught:
        init.check_best(best, source, source.label_maps)
    assert message in str(caught.value)


def test_a_class_that_no_image_holds_can_not_choose_the_best(place):
    source = data.open_source("shapes", "val", data_dir=place, train=1, val=1, size=48)
    there = source.label_counts["label"].any(axis=0)
    assert 0 < there.sum() < there.size
    for name, held in zip(source.classes.names, there, strict=True):
        for heads, best in (
            ({"label": source.classes}, f"boundary_f1/{name}"),
            ({"label": source.classes, "other": source.classes}, f"label/boundary_f1/{name}"),
        ):
            told = contextlib.nullcontext()
            if not held:
                told = pytest.raises(ValueError, match=f"none of the 1 images .* holds {name}, so")
            with told:
                init.check_best(best, source, heads)
    for best in ("loss", "mean_iu", "mean_boundary_f1"):
        init.check_best(best, source, source.label_maps)


# ======================================================================== the learning rate


@pytest.mark.slow
def test_the_rates_of_a_run_that_is_cut_are_those_of_one_that_is_not(place, monkeypatch):
    monkeypatch.setattr("fcn_jax.inference.report.evaluate_run", lambda *_, **__: None)
    fields = {"stages": "('fcn32s',)", "steps": "(10,)", "learning_rate": "(1e-3,)"}
    fields |= {"schedule": "poly", "warmup": 3, "eval_every": 0, "checkpoint_every": 100}
    with monkeypatch.context() as patch:
        stopping_at(patch, "fcn32s", 4)
        assert train(place, "rates", **fields)[0] == 128 + signal.SIGTERM
    assert load_run(place / "rates", allow_code=True).step == 5
    assert train(place, "rates", **fields)[0] == 0
    rates = [1e-3 * k / 4 for k in (1, 2, 3)] + [1e-3 * (1 - k / 7) ** 0.9 for k in range(7)]
    found = records(place / "rates", "learning_rate")
    assert [step for _, step, _ in found] == [*range(1, 11)]
    np.testing.assert_allclose([rate for _, _, rate in found], rates, rtol=1e-5)
    assert found[-1][-1] > 0
    scored = [key for _, _, key in records(place / "rates", "wall_time")]
    assert scored == sorted(scored)
    assert all(0.05 < gib < 64 for _, _, gib in records(place / "rates", "peak_memory_gib"))
    code, text, _ = train(place, "rates", **{**fields, "steps": "(20,)"})
    assert code == 0
    was, now = (f"{1e-3 * (1 - k / n) ** 0.9:.3g}" for k, n in ((6, 7), (7, 17)))
    assert "20 steps instead of 10; the schedule 'poly' goes by their number" in text
    assert f"the learning rate was {was} and goes on at {now}" in text
