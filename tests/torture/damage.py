"""Flips a bit of a file of a run, or cuts it; what is then read is right, or refused in one line.

    python tests/torture/damage.py [--count 2000]

The file is any of a finished run or of one that was stopped in its second stage. Afterwards the
run is loaded for prediction, and training goes on from it; of some the command ``eval`` scores it,
and of some training goes on to the end. Each must give

    the same bits            as without damage: nothing reads the file, or it was rebuilt,
    an earlier checkpoint    whole, which is told in a line,
    one line                 an error that names the file or a folder that it is in,

and anything else is a failure: other bits, a traceback, a line that names nothing.
"""

from __future__ import annotations

import collections
import contextlib
import functools
import hashlib
import io
import json
import random
import re
import shutil
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import campaign
import numpy as np
import tiny

BATCH = 25  # damages in one child, which loads jax's devices once


def stopped_run(place: Path) -> int:
    """A run that was asked to stop in its second stage."""
    from fcn_jax.cli import train
    from fcn_jax.training.journal import Journal

    advance = Journal.advance

    def stop(*given: Any, **more: Any) -> None:
        advance(*given, **more)
        if given[1:3] == ("fcn16s", 2):
            signal.raise_signal(signal.SIGTERM)

    with campaign.replaced(Journal, "advance", stop):
        return 0 if train.main(tiny.arguments(place)) == 128 + signal.SIGTERM else 1


def finished_run(place: Path) -> int:
    """A run to its end."""
    from fcn_jax.cli import train

    return train.main(tiny.arguments(place))


BASES: dict[str, Callable[[Path], int]] = {"finished": finished_run, "stopped": stopped_run}

# ======================================================================== damage


def hurt(path: Path, rng: random.Random) -> str:
    """Damages a file; in words how."""
    content = bytearray(path.read_bytes())
    size = len(content)
    kind = rng.choices(["flip", "cut", "empty", "deleted", "zeros", "longer"], [12, 3, 1, 1, 1, 1])[
        0
    ]
    if kind == "deleted" or (size == 0 and kind != "longer"):
        path.unlink()
        return "deleted"
    if kind == "flip":
        bit = rng.randrange(8 * size)
        content[bit // 8] ^= 1 << bit % 8
        kind = f"bit {bit}"
    elif kind == "cut":
        del content[rng.randrange(size) :]
    elif kind == "empty":
        content.clear()
    elif kind == "zeros":
        at = rng.randrange(size)
        length = min(size - at, rng.choice([1, 16, 512, 4096]))
        content[at : at + length] = bytes(length)
    else:
        content += rng.randbytes(rng.randint(1, 40))
    path.unlink()  # it may be a hard link
    path.write_bytes(content)
    return f"{kind} -> {len(content)} bytes"


# ======================================================================== what is read


def tree_digest(tree: Any) -> str:
    """Of every array of a tree, by name."""
    import jax

    digest = hashlib.sha256()
    for name, leaf in jax.tree_util.tree_leaves_with_path(tree):
        array = np.asarray(leaf)
        digest.update(f"{jax.tree_util.keystr(name)}{array.dtype}{array.shape}".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def loaded(workdir: Path, stage: str, which: Any) -> str:
    """Of a network loaded for prediction: its step and a digest of everything."""
    from fcn_jax.config import to_plain
    from fcn_jax.runs import load_run

    run = load_run(workdir, stage, which)
    heads = {head: table.to_dict() for head, table in run.heads.items()}
    plain = json.dumps([to_plain(run.config), heads, run.inputs.to_dict()], sort_keys=True)
    return f"{run.stage} {run.step} {tree_digest(run.variables)} {tiny.digest_of(plain.encode())}"


class Captured(Exception):
    """The state that training would have gone on from."""


def resumed(place: Path) -> str:
    """Of training that goes on: stage, step, digest of the whole state, place in the data."""
    from fcn_jax.cli import train
    from fcn_jax.inference import report
    from fcn_jax.training import run

    def capture(stage: Any, train_step: Any, state: Any, seen: Any, **more: Any) -> None:
        position = json.dumps(stage.batches.get_state(), sort_keys=True, default=str)
        position = position.replace(str(place), "")
        step = int(state.step)
        raise Captured(
            f"{stage.name} {step} {tree_digest(state)} {tiny.digest_of(position.encode())}"
        )

    with (
        campaign.replaced(run, "take_steps", capture),
        campaign.replaced(report, "evaluate_run", lambda *args, **more: None),
    ):
        try:
            code = train.main(arguments(place))
        except Captured as captured:
            return str(captured)
    if code:
        raise OSError(stderr_line())
    return "finished"


def arguments(place: Path) -> list[str]:
    """Of the commands; the data are those of the base, and stay unharmed."""
    given = tiny.arguments(place)
    data = place.parents[1] / "data"
    return [f"--config.data_dir={data}" if "data_dir" in text else text for text in given]


def evaluated(place: Path) -> str:
    """Of the command ``eval``: the scores."""
    from fcn_jax.cli import eval as command

    data = place.parents[1] / "data"
    output = place / "again"
    given = [f"--workdir={place / 'run'}", f"--output={output}", f"--data_dir={data}"]
    if command.main([*given, "--pictures=0"]):
        raise OSError(stderr_line())
    return json.dumps(json.loads((output / "scores.json").read_text())["stages"], sort_keys=True)


def completed(place: Path) -> str:
    """Of training to the end: all bits of the run.

    But for pictures, which nothing reads back, and records, which are judged apart.
    """
    from fcn_jax.cli import train

    if train.main(arguments(place)):
        raise OSError(stderr_line())
    bits = tiny.bits(place / "run").items()
    kept = {name: b for name, b in bits if not name.startswith(("samples/", "metrics.jsonl"))}
    return json.dumps(kept, sort_keys=True)


def stderr_line() -> str:
    """What the last command printed as its error."""
    assert isinstance(sys.stderr, io.StringIO)
    return sys.stderr.getvalue().strip()


def records(place: Path) -> str:
    """metrics.jsonl."""
    file = place / "run" / "metrics.jsonl"
    return file.read_text(errors="replace") if file.exists() else ""


def readings(place: Path, stages: list[str], whole: bool, score: bool) -> dict[str, Any]:
    """What each way of reading a run gives: a text, or the error."""
    run = place / "run"
    ways: dict[str, Callable[[], str]] = {
        f"{stage} {which}": functools.partial(loaded, run, stage, which)
        for stage in stages
        for which in ("best", "last")
    }
    if score:
        ways["eval"] = functools.partial(evaluated, place)
    ways["resume"] = functools.partial(resumed, place)
    ways["metrics.jsonl"] = functools.partial(records, place)
    if whole:
        ways["to the end"] = functools.partial(completed, place)
    answers: dict[str, Any] = {}
    for way, read in ways.items():
        out, err = io.StringIO(), io.StringIO()
        answer: dict[str, str] = {}
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                answer["value"] = read()
            except (ValueError, OSError) as error:
                answer["error"] = str(error)
            except Exception:
                answer["traceback"] = traceback.format_exc()[-1500:]
        answers[way] = {**answer, "told": out.getvalue() + err.getvalue()}
    return answers


# ======================================================================== verdicts


def judge(
    answers: dict[str, Any], expected: dict[str, Any], file: str, place: Path
) -> tuple[str, list[str]]:
    """In a word what became of a damage, and what is wrong with it."""
    verdicts, wrong = set(), []
    told = "\n".join(answer["told"] for answer in answers.values())
    for way, answer in answers.items():
        right = expected[way]
        if "traceback" in answer:
            wrong.append(f"{way}: traceback: {answer['traceback'].splitlines()[-1][:300]}")
        elif "error" in answer:
            message = answer["error"]
            verdicts.add("refused in one line that names the file")
            if not names(message, file, place):
                wrong.append(f"{way}: names no file: {message[:300]}")
            if len(message.splitlines()) > 1:
                wrong.append(f"{way}: {len(message.splitlines())} lines: {message[:300]}")
        elif way == "metrics.jsonl":
            lines, all_lines = answer["value"].splitlines(), right["value"].splitlines()
            if [line for line in lines if line not in all_lines]:
                verdicts.add("records were changed, told")
                if "metrics.jsonl was changed since" not in told:
                    wrong.append(f"{way}: SILENT: other records")
            elif lines != all_lines:
                verdicts.add("records cut to those that are whole, told")
                if "metrics.jsonl" not in told and "going on from step" not in told:
                    wrong.append(f"{way}: records are lost without a word")
        elif answer["value"] == right["value"]:
            verdicts.add("no effect: the same bits")
            if "Traceback" in answer["told"]:
                wrong.append(f"{way}: right, but a traceback was printed")
        elif answer["value"] in expected["states"]:
            verdicts.add("an earlier checkpoint is used, told")
            if not names(told, file, place):
                wrong.append(f"{way}: SILENT: an earlier checkpoint without a word")
        else:
            wrong.append(f"{way}: SILENT: {answer['value'][:100]} for {right['value'][:100]}")
    order = [
        *("refused in one line that names the file", "an earlier checkpoint is used, told"),
        *("records cut to those that are whole, told", "records were changed, told"),
        "no effect: the same bits",
    ]
    return next((verdict for verdict in order if verdict in verdicts), "failed"), wrong


def names(text: str, file: str, place: Path) -> bool:
    """Whether a message names a file of the run, or a folder below it that holds the file."""
    folders = [part for part in Path(file).parts if part not in ("checkpoints",)]
    del place
    return any(re.search(rf"(^|\W){re.escape(part)}(\W|$)", text) for part in folders)


def main() -> int:
    """Runs the campaign."""
    torture = campaign.Campaign("damage", __doc__, count=2000)
    bases = torture.folder / "bases"
    expectations: dict[str, Any] = {}
    for name, make in BASES.items():
        place = bases / name
        answers = place / "expected.json"
        if not answers.exists():
            shutil.rmtree(place, ignore_errors=True)
            place.mkdir(parents=True)
            pid = campaign.fork(functools.partial(prepare, make, place), place / "output.txt")
            if campaign.wait(pid, 300) != 0:
                raise SystemExit((place / "output.txt").read_text()[-3000:])
        expectations[name] = json.loads(answers.read_text())

    def trial(number: int, folder: Path) -> dict[str, Any]:
        answers = folder / "answers.jsonl"
        work = functools.partial(batch, torture.seed, number, folder, bases, expectations)
        code = campaign.wait(campaign.fork(work, folder / "output.txt"), 60.0 * BATCH)
        results = [json.loads(line) for line in answers.read_text().splitlines()]
        tally = collections.Counter(verdict for verdict, _ in results)
        failures = [text for _, wrong in results for text in wrong]
        if code != 0 or len(results) != BATCH:
            output = (folder / "output.txt").read_text()[-500:]
            failures.append(f"damage {len(results)} ended the process: {code} {output}")
        return {"count": BATCH, "tally": dict(tally), "failures": failures}

    return torture.run(trial)


def prepare(make: Callable[[Path], int], place: Path) -> int:
    """Makes a base, and notes what undamaged copies give, also after each checkpoint."""
    if code := make(place):
        return code
    made = sorted(path.name for path in (place / "run" / "checkpoints").iterdir())
    copy = place / "copies" / "copy"
    shutil.copytree(place / "run", copy / "run")
    expected: dict[str, Any] = readings(copy, made, whole=True, score=True)
    states = set()
    for stage in made:  # what is read when the last checkpoints of a stage are gone
        steps = (copy.with_name(f"{stage}") / "run" / "checkpoints" / stage).parent / stage
        shutil.copytree(place / "run", copy.with_name(stage) / "run")
        found = [path for path in steps.iterdir() if path.name.isdecimal()]
        for step in sorted(found, key=lambda path: -int(path.name)):
            for which in ("best", "last"):
                states.add(loaded(copy.with_name(stage) / "run", stage, which))
            states.add(resumed(copy.with_name(stage)))
            states.add(evaluated(copy.with_name(stage)))
            shutil.rmtree(step)
    wrong = [way for way, answer in expected.items() if "value" not in answer]
    if wrong:
        print(expected[wrong[0]])
        return 1
    (place / "expected.json").write_text(json.dumps({**expected, "states": sorted(states)}))
    shutil.rmtree(place / "copies")
    return 0


def batch(seed: int, number: int, folder: Path, bases: Path, expectations: dict[str, Any]) -> None:
    """Some damages one after the other; their verdicts are lines of answers.jsonl."""
    for index in range(BATCH):
        rng = random.Random(f"{seed} {number} {index}")
        base = rng.choice([*BASES])
        place = folder / "copies" / f"copy{index}"
        shutil.copytree(bases / base / "run", place / "run")
        if not (folder / "data").exists():
            (folder / "data").symlink_to(bases / base / "data")
        files = sorted(path for path in (place / "run").rglob("*") if path.is_file())
        file = rng.choice(files)
        name = str(file.relative_to(place / "run"))
        how = hurt(file, rng)
        made = sorted(path.name for path in (bases / base / "run" / "checkpoints").iterdir())
        stages = [stage for stage in made if stage in name] or [rng.choice(made)]
        whole = base == "stopped" and rng.random() < 0.05
        answers = readings(place, stages, whole, rng.random() < 0.05)
        verdict, wrong = judge(answers, expectations[base], name, place)
        told = [f"{base} {name} ({how}): {text}" for text in wrong]
        with (folder / "answers.jsonl").open("a") as answers_file:
            answers_file.write(json.dumps([verdict, told]) + "\n")
        shutil.rmtree(place)


if __name__ == "__main__":
    sys.exit(main())
