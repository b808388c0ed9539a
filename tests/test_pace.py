"""When a run tells how far it is, and how long it expects to take."""

from __future__ import annotations

import itertools

import pytest

from fcn_jax.training.pace import LONGEST, Pace, Work, in_words


def told(seconds: list[float]) -> tuple[Pace, list[int]]:
    """The steps that are told of, where each takes so many seconds."""
    now = [0.0]
    pace, steps = Pace(clock=lambda: now[0]), []
    for number, each in enumerate(seconds, start=1):
        now[0] += each
        if pace.due():
            pace.waited()
            steps.append(number)
    return pace, steps


def test_the_first_step_is_told_at_once_then_at_growing_distances():
    _, steps = told([40.0, *[1.0] * 599])
    assert steps[:8] == [1, 2, 3, 4, 6, 9, 13, 19]
    gaps = [after - before for before, after in itertools.pairwise(steps)]
    assert gaps == sorted(gaps)
    assert gaps[-1] == LONGEST  # steps of a second
    assert told([600.0, *[90.0] * 5])[1] == [1, 2, 3, 4, 5, 6]


def test_the_estimate_is_of_all_stages_and_evaluations():
    pace, _ = told([43.0, 3.5, 3.0, 8.0])
    # 2 programs of 40 s and a third for predicting; 200 steps; 3 evaluations of 4000 pixels.
    work = Work(stages=2, steps=200, scored_pixels=3 * 4000)
    assert pace.estimate(work, batch_pixels=1000) == (
        "about 11 min 59 s in all: 1 min 47 s to compile, 10 min to train, 12 s to score"
    )


def test_the_speed_leaves_out_the_first_step_and_what_is_restarted():
    now = [0.0]
    pace = Pace(clock=lambda: now[0])
    now[0] = 50.0
    assert pace.due()
    pace.waited()
    assert pace.speed == 1 / 50
    for _ in range(4):
        now[0] += 2.0
        pace.due()
    assert pace.speed == 0.5
    now[0] += 100
    pace.restart()
    pace.due()
    now[0] += 4.0
    assert pace.speed == 0.25


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        *[(0.4, "0 s"), (59.6, "1 min"), (60, "1 min"), (61, "1 min 1 s"), (280.3, "4 min 40 s")],
        *[(3599.6, "1 h"), (3600, "1 h"), (7800, "2 h 10 min"), (86399, "24 h")],
        *[(90000, "1 d 1 h"), (3e6, "34 d 17 h")],
    ],
)
def test_durations_in_words(seconds, words):
    assert in_words(seconds) == words
