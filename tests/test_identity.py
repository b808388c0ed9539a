"""What a run is compared with before it goes on, what may change, and what it never forgets."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import pytest
from test_training import parameters, run, train

from fcn_jax import config as configs
from fcn_jax import weights
from fcn_jax.checkpoints import Damaged
from fcn_jax.classes import ClassRow, ClassTable, table_from_names
from fcn_jax.cli import eval as eval_command
from fcn_jax.models import fcn
from fcn_jax.models.inputs import CAFFE, Inputs
from fcn_jax.runs import (
    LastCheckpoint,
    describe_run,
    keep_images,
    last_checkpoint,
    load_run,
    read_images,
)
from fcn_jax.training import identity, init
from fcn_jax.weights.arrays import Network

ONE = {"stages": "('fcn32s',)", "epochs": "()", "samples": 0, "dropout": 0.5}
ONE |= {"schedule": "constant", "learning_rate": "(1e-3,)", "eval_every": 0}


def files_of(folder: Path) -> dict[str, str]:
    """A digest of every file of a folder, and its folders."""
    return {
        str(path.relative_to(folder)): (
            hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
        )
        for path in folder.rglob("*")
    }


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("identity")


@pytest.fixture(scope="module")
def at_once(place):
    """A run of 8 steps."""
    code, _, errors = train(place, "once", **ONE, steps="(8,)")
    assert code == 0, errors
    return place / "once"


@pytest.fixture(scope="module")
def short(place):
    """A run of 4 steps, which later tests make longer."""
    code, _, errors = train(place, "short", **ONE, steps="(4,)", checkpoint_every=4)
    assert code == 0, errors
    return place / "short"


# ======================================================================== refused

ANEW = r"begin a new run from its weights: --config.init=\S+short --workdir=NEW"
ACCEPT = r"To go on with these give --accept_changed_data; or "


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"dataset_options.train": 14}, r"training images added 2 \(train_00012, train_00013\)"),
        ({"dataset_options.train": 11}, r"training images removed 1 \(train_00011\)"),
        ({"dataset_options.val": 5}, r"of other data: evaluation images added 1 \(val_00004\)\."),
        (
            {"dataset_options.seed": 1},
            r"images changed 12 \(train_00000, .*2, \.\.\.\); evalua.* 4",
        ),
        ({"train_split": "train[1:]+train[:1]"}, "training images in another order"),
        ({"eval_split": "val[:3]"}, r"evaluation images removed 1 \(val_00003\)"),
        ({"learning_rate": "(1e-4,)"}, r"config \(learning_rate: \[0.001\] -> \[0.0001\]\): set"),
        (
            {"width": 0.25, "seed": 3},
            r"config \(seed: 0 -> 3; width: 0.5 -> 0.25\): set it back, or",
        ),
        ({"stages": "('fcn32s','fcn16s')"}, r"stages: \['fcn32s'\] -> \['fcn32s', 'fcn16s'\]"),
        ({"steps": "(3,)"}, r"config.steps = \(3,\): fcn32s would have 3 steps, .* done 4 already"),
        ({"steps": "()", "epochs": "(1.0,)"}, r"epochs = \(1.0,\): fcn32s would have 3 steps"),
    ],
)
@pytest.mark.parametrize("lost", [False, True], ids=["", "config.json lost"])
def test_a_run_that_cannot_go_on_is_not_touched(place, short, fields, message, lost):
    kept = (short / "config.json").read_bytes()
    if lost:  # the checkpoint says what the run is
        (short / "config.json").unlink()
    before = files_of(short)
    code, _, errors = train(place, "short", **{**ONE, "steps": "(4,)", **fields})
    assert files_of(short) == before
    if lost:
        (short / "config.json").write_bytes(kept)
    assert code == 2
    told = errors.splitlines()[-1]  # others tell that data were prepared
    assert told.startswith("fcn-jax train: ")
    assert re.search(message, told)
    assert re.search(ANEW, told)
    assert bool(re.search(ACCEPT, told)) == ("of other data" in told)


# ======================================================================== going on


def test_trained_longer_the_result_is_that_of_one_long_run(place, short, at_once):
    code, text, errors = train(
        place, "short", **{**ONE, "steps": "(8,)", "eval_every": 3, "log_every": 2, "samples": 1}
    )
    assert code == 0, errors
    assert "fcn32s: going on from step 4\nfcn32s: 8 steps instead of 4\n" in text
    jax.tree.map(
        np.testing.assert_array_equal, parameters(short, "fcn32s"), parameters(at_once, "fcn32s")
    )
    assert json.loads((short / "config.json").read_text())["steps"] == [8]
    last = last_checkpoint(short)
    assert last is not None
    assert last.run["config"]["eval_every"] == 3


def test_changed_data_are_accepted_and_no_image_is_forgotten(place, short):
    """After `test_trained_longer...`: 8 steps on 12 images; now on 9 of these, and 2 others."""
    shown = sorted(load_run(short, which="last", allow_code=True).trained_on)
    assert len(shown) == 12
    fields = {**ONE, "steps": "(8,)", "train_split": "train[:9]+val[:2]", "eval_split": "val[2:]"}
    before = files_of(short)
    assert train(place, "short", **fields)[0] == 2  # a finished run neither goes on nor scores
    assert files_of(short) == before
    code, text, errors = train(
        place, "short", "--accept_changed_data", **fields | {"steps": "(9,)"}
    )
    assert code == 0, errors
    assert (
        "changed data: training images added 2 (val_00000, val_00001), removed 3 (train_0" in text
    )
    assert "evaluation images removed 2 (val_00000, val_00001); scores of before are not" in text
    last = last_checkpoint(short)
    assert last is not None
    assert (last.step, last.run["data"]["train"]) == (9, 11)
    images = read_images(short, last.run["data"]) or {}
    assert (len(images["train"]["ids"]), len(images["earlier"])) == (11, 3)
    assert load_run(short, which="last", allow_code=True).trained_on > set(shown)
    assert train(place, "short", **fields | {"steps": "(9,)"})[0] == 0  # they are the run's now

    # The three that were taken out are left out of scores for ever.
    code, _, errors = run(
        eval_command.main, ["--allow_code", f"--workdir={short}", "--split=train[9:]"]
    )
    assert code == 2
    assert "was trained on 3 (train_00009, train_00010, train_00011), so that scores" in errors


def test_a_run_that_starts_from_another_knows_its_images(place, at_once):
    fields = {**ONE, "init": at_once, "steps": "(1,)", "train_split": "train[4:]"}
    code, _, errors = train(place, "heir", **fields, eval_split="train[:4]")
    assert code == 2
    assert "was trained on 4 (train_00000, train_00001, train_00002, ...), so that scores" in errors
    assert "choose another config.eval_split" in errors
    assert not (place / "heir").exists()
    code, text, errors = train(place, "heir", **fields, eval_split="train[:4]+val")
    assert code == 0, errors
    assert "8 training and 4 evaluation images" in text
    assert "or one that it started from, was trained on 4 (train_00000, train_00001" in text
    scores = json.loads((place / "heir" / "report" / "scores.json").read_text())
    assert scores["images"] == {"split": 4, "left_out": 0, "scored": 4, "trained_on": 0}
    code, text, errors = run(eval_command.main, ["--allow_code", f"--workdir={place / 'heir'}"])
    assert code == 0, errors
    assert "of the 8 images" in text
    scores = json.loads((place / "heir" / "report" / "scores.json").read_text())
    assert scores["images"] == {"split": 8, "left_out": 4, "scored": 4, "trained_on": 0}
    assert (
        load_run(place / "heir", allow_code=True).trained_on
        == load_run(at_once, allow_code=True).trained_on
    )


def test_the_rate_that_a_longer_schedule_gives_is_told(place):
    fields = {**ONE, "schedule": "poly", "warmup": 2, "log_every": 1}

    def rates() -> list[tuple[int, float]]:
        records = map(json.loads, (place / "rates" / "metrics.jsonl").read_text().splitlines())
        return [(r["step"], r["learning_rate"]) for r in records if "loss" in r]

    def poly(step: int, steps: int) -> float:
        """By the definition; steps count from 1, the first two are the warm-up."""
        done = step - 1
        return 1e-3 * ((done + 1) / 3 if done < 2 else (1 - (done - 2) / (steps - 2)) ** 0.9)

    assert train(place, "rates", **fields, steps="(5,)")[0] == 0
    expected = [(step, pytest.approx(poly(step, 5))) for step in range(1, 6)]
    assert rates() == expected
    code, text, _ = train(place, "rates", **fields, steps="(8,)")
    assert code == 0
    assert rates() == expected + [(step, pytest.approx(poly(step, 8))) for step in range(6, 9)]
    told = f"the learning rate was {poly(5, 5):.3g} and goes on at {poly(6, 8):.3g}; the result is "
    assert f"{told}not that of 8 steps at once" in text


@pytest.mark.parametrize(
    ("classes", "kept"),
    [("sky,cat,dog", True), ("dog,cat,sky", False), ("sky,cat,cow", False)],
)
def test_scores_of_a_run_are_taken_over_where_they_are_of_the_same_classes(classes, kept):
    model = fcn.create_model("fcn16s", num_classes=3, width=1 / 16, fc_width=8)
    flat = weights.flatten(fcn.abstract_params(model))
    start = weights.Weights({name: np.ones(array.shape) for name, array in flat.items()})
    start.network = Network(heads={"label": table_from_names(["sky", "cat", "dog"])})
    init.drop_other_scores({"": start}, model, {"label": table_from_names(classes)})
    lost = {name.rpartition("/")[0] for name in flat.keys() - start.keys()}
    assert lost == (set() if kept else {"score_fr", "score_pool4", "upscore2", "upscore16"})


# ======================================================================== differences

TABLE = ClassTable(
    (
        ClassRow("sky", (0, 0, 9)),
        ClassRow("void", (1, 1, 1), ignored=True),
        ClassRow("cat", (9, 0, 0)),
        ClassRow("dog", (0, 9, 0)),
    )
)


def source(digests: str, labels: str | None = None, names: str | None = None) -> Any:
    """A stand-in for a source: an image for each letter."""
    ids = tuple(f"image {letter}" for letter in names or digests)
    return SimpleNamespace(
        name="mine", ids=ids, digests=tuple(digests), label_digests=tuple(labels or digests)
    )


def compare(train, workdir=None, *, table=TABLE, former=TABLE, head="label", accept=False):
    """`check_data` of a run that was trained on the images a to e.

    Its images are listed in the workdir, or as before in the checkpoint.
    """
    data = identity.describe_data(source("abcde"), source("xy"), ["z"])
    data = keep_images(workdir, data) if workdir else data
    fields = describe_run(configs.default_config(), {"label": former}, Inputs.of(CAFFE), data)
    last = LastCheckpoint("fcn32s", 3, json.loads(json.dumps(fields)))
    heads = {head: table}
    workdir = workdir or Path("runs/a")
    return identity.check_data(last, train, source("xy"), heads, workdir, accept=accept)


@pytest.mark.parametrize(
    ("now", "difference"),
    [
        (source("abcde"), ""),
        (source("abcde", names="vwxyz"), ""),  # renamed files are the same images
        (source("abcdef"), "added 1 (image f)"),
        (source("ab"), "removed 3 (image c, image d, image e)"),
        (source("afghe", names="abcde"), "changed 3 (image b, image c, image d)"),
        (source("abcde", labels="abxde"), "with other labels 1 (image c)"),
        (source("abcfghij", labels="xbcfghij"), "added 5 (image f, image g, image h, ...), "),
        (source("abced"), "in another order"),
        (source("abcdee"), "in another order"),
    ],
)
@pytest.mark.parametrize("listed", ["in a file", "in the checkpoint"])
@pytest.mark.usefixtures("unchecked_annotations")
def test_images_are_compared_by_what_they_show(tmp_path, now, difference, listed):
    workdir = tmp_path if listed == "in a file" else None
    if not difference:
        assert compare(now, workdir) == ({"z"}, "")
        return
    with pytest.raises(ValueError, match=r" holds a run of other data: ") as caught:
        compare(now, workdir)
    assert f"training images {difference}" in str(caught.value)
    earlier, told = compare(now, workdir, accept=True)
    assert earlier == {*"abcdez"} - set(now.digests)
    assert f"training images {difference}" in told


@pytest.mark.parametrize("harm", ["missing", "damaged"])
@pytest.mark.usefixtures("unchecked_annotations")
def test_the_list_of_images_is_needed_where_they_are_others(tmp_path, harm):
    """And is written again where they are the same."""
    one, other, val = source("abcde"), source("abc"), source("xy")
    kept = keep_images(tmp_path, identity.describe_data(one, val, ()))
    assert len(json.dumps(kept)) < 100  # in each checkpoint
    fields = describe_run(configs.default_config(), {"label": TABLE}, Inputs.of(CAFFE), kept)
    last = LastCheckpoint("fcn32s", 3, fields)
    path = tmp_path / kept["file"]
    content = path.read_bytes()
    path.write_bytes(content[:-9]) if harm == "damaged" else path.unlink()
    assert identity.check_data(last, one, val, {"label": TABLE}, tmp_path, accept=False) == (
        frozenset(),
        "",
    )
    with pytest.raises(Damaged, match=f"{path}, which lists the images of the run, is {harm}; "):
        identity.check_data(last, other, val, {"label": TABLE}, tmp_path, accept=True)
    assert keep_images(tmp_path, identity.describe_data(one, val, ())) == kept
    assert path.read_bytes() == content


def test_without_its_list_of_images_a_run_predicts_but_is_not_scored(place, at_once):
    (path,) = (at_once / "images").iterdir()
    aside = path.rename(place / "aside")
    loaded = load_run(at_once, allow_code=True)
    with pytest.raises(Damaged, match="images of the run, is missing; bring it back from a copy"):
        _ = loaded.trained_on
    code, _, errors = run(eval_command.main, ["--allow_code", f"--workdir={at_once}"])
    assert (code, errors.count("\n")) == (2, 1)
    assert f"{path}, which lists the images of the run, is missing" in errors
    code, text, errors = train(place, "once", **ONE, steps="(8,)")
    assert code == 0, errors
    assert "finished before" in text
    assert path.read_bytes() == aside.read_bytes()


def changed(number: int, **fields) -> ClassTable:
    rows = list(TABLE.rows)
    rows[number] = dataclasses.replace(rows[number], **fields)
    return ClassTable(tuple(rows))


@pytest.mark.parametrize(
    ("table", "accepted", "difference"),
    [
        (
            ClassTable(TABLE.rows[::-1]),
            False,
            r"label had 3 classes \(sky, cat, dog\) and now has 3",
        ),
        (ClassTable(TABLE.rows[:3]), False, r"now has 2 classes \(sky, cat\); with another number"),
        (table_from_names("sky,dog,cow"), False, r"now has 3 classes \(sky, dog, cow\); with"),
        (table_from_names("sky,cat,dog,cow"), False, r"3 classes \(sky, cat, dog\) and now has 4"),
        (changed(3, name="hound"), True, "classes of label: dog is now called hound"),
        (changed(2, color=(1, 2, 3)), True, r"label: other colour, id or role of 1 \(cat\)"),
        (changed(3, scored=False), True, r"label: other colour, id or role of 1 \(dog\)"),
        (TABLE.with_void([17]), True, r"classes of label: other ids are void"),
    ],
)
@pytest.mark.usefixtures("unchecked_annotations")
def test_classes_are_compared_by_what_scores_mean(table, accepted, difference):
    with pytest.raises(ValueError, match=difference) as caught:
        compare(source("abcde"), table=table)
    assert "--config.init=runs/a --workdir=NEW" in str(caught.value)
    assert ("--accept_changed_data" in str(caught.value)) == accepted
    if accepted:
        assert compare(source("abcde"), table=table, accept=True)[0] == {"z"}
    else:
        with pytest.raises(ValueError, match=difference):
            compare(source("abcde"), table=table, accept=True)


@pytest.mark.usefixtures("unchecked_annotations")
def test_other_heads_are_refused():
    with pytest.raises(ValueError, match="a run that learns label, not parts: begin a new run"):
        compare(source("abcde"), head="parts", accept=True)


@pytest.mark.parametrize(
    ("last", "step", "steps", "outcome"),
    [
        ("fcn16s", 5, (9, 6, 7), {}),
        ("fcn16s", 5, (9, 8, 7), {"fcn16s": 6}),
        ("fcn16s", 5, (9, 5, 3), {"fcn16s": 6, "fcn8s": 7}),
        ("fcn16s", 5, (9, 4, 7), "fcn16s would have 4 steps, but a has done 5 already: give at"),
        ("fcn16s", 5, (12, 6, 7), "fcn32s is finished with 9 steps and fcn16s began from it: set"),
        ("fcn32s", 9, (12, 6, 7), {"fcn32s": 9}),  # the next has not begun
    ],
)
def test_only_stages_that_nothing_began_from_may_get_other_steps(last, step, steps, outcome):
    former, config = configs.default_config(), configs.default_config()
    former.steps, config.steps = (9, 6, 7), steps
    described = describe_run(former, {"label": TABLE}, Inputs.of(CAFFE))
    checkpoint = LastCheckpoint(last, step, described)
    if isinstance(outcome, dict):
        assert identity.check_steps(checkpoint, config, 10, Path("a")) == outcome
        return
    with pytest.raises(ValueError, match=outcome) as caught:
        identity.check_steps(checkpoint, config, 10, Path("a"))
    assert "--config.init=a --workdir=NEW" in str(caught.value)
