"""How fast a run goes: when it is time to tell how far it is, and how long all of it will take."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable

LONGEST = 60.0
"""Seconds between two lines of progress, at most, while a step takes less."""


@dataclasses.dataclass(frozen=True)
class Work:
    """What lies before a run, counted when it begins or goes on.

    Attributes:
        stages: Stages that are trained, each a program to compile.
        steps: Their steps, all together.
        scored_pixels: What the networks see in all evaluations to come, those of the report too.
    """

    stages: int
    steps: int
    scored_pixels: float


class Pace:
    """The times of a stage's steps. Lines of progress come at growing distances.

    After the first step, the third, and each time that half of the time since the first has gone by
    again, or `LONGEST`.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self.taken = 0
        self.first = 0.0  # seconds that the first step took, which compiles the program
        self.step = float("inf")  # seconds of a step, from the second and the third
        self._begun = self._told = self._since = clock()
        self._steps = 0  # since then

    def restart(self) -> None:
        """Measures the speed from now on."""
        self._since, self._steps = self._clock(), 0

    @property
    def speed(self) -> float:
        """Steps a second since the `restart`, or since the first step."""
        return self._steps / (self._clock() - self._since) if self._steps else 1 / self.first

    def due(self) -> bool:
        """Counts a step, and whether to wait for it (`waited`) and tell of it."""
        self.taken += 1
        self._steps += 1
        quiet = self._clock() - self._told
        return self.taken <= 3 or quiet >= min(LONGEST, (self._told - self._begun) / 2)

    def waited(self) -> None:
        """The step that was counted last is done."""
        before, self._told = self._told, self._clock()
        if self.taken == 1:
            self.first, self._begun = self._told - before, self._told
            self.restart()
        elif self.taken <= 3:
            self.step = min(self.step, self._told - before)

    def estimate(self, work: Work, batch_pixels: int) -> str:
        """How long all of a run takes, in words, by its first three steps.

        Args:
            work: What lay before it when the first step began.
            batch_pixels: Pixels of a batch, whose step costs about three times their prediction.
        """
        compiling = max(0.0, self.first - self.step)
        train = work.steps * self.step
        score = work.scored_pixels / batch_pixels * self.step / 3
        # A program that predicts has a third of the operations of one that trains.
        compiling *= work.stages * 4 / 3
        parts = f"{in_words(compiling)} to compile, {in_words(train)} to train"
        whole = in_words(compiling + train + score)
        return f"about {whole} in all: {parts}, {in_words(score)} to score"


def in_words(seconds: float) -> str:
    """A duration: ``40 s``, ``4 min 40 s``, ``2 h 10 min``, ``3 d 4 h``.

    Example:
        >>> in_words(280.3)
        '4 min 40 s'
    """
    seconds = round(seconds)
    for size, unit, less, smaller in ((86400, "d", 3600, "h"), (3600, "h", 60, "min")):
        if seconds >= size:
            number, rest = divmod(round(seconds / less), size // less)
            return f"{number} {unit} {rest} {smaller}" if rest else f"{number} {unit}"
    minutes, rest = divmod(seconds, 60)
    if not minutes:
        return f"{rest} s"
    return f"{minutes} min {rest} s" if rest else f"{minutes} min"
