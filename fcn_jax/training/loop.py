"""The steps of one stage, and how they end. What a stage is made of: `stages.py`."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable, Iterator, Sequence
from types import FrameType
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils

from fcn_jax import devices
from fcn_jax.checkpoints import goodness
from fcn_jax.training.journal import Journal
from fcn_jax.training.optimizer import plateau_factor
from fcn_jax.training.pace import Pace, Work
from fcn_jax.training.stages import Stage
from fcn_jax.training.step import StepReport, TrainState, TrainStep, all_finite


class Evaluations(NamedTuple):
    """How a stage's evaluations went: the best `goodness`, and how many came since."""

    best: float | None = None
    since: int = 0

    def and_then(self, value: float | None) -> Evaluations:
        better = value is not None and (self.best is None or value > self.best)
        return Evaluations(value, 0) if better else Evaluations(self.best, self.since + 1)


def take_steps(
    stage: Stage,
    train_step: TrainStep,
    state: TrainState,
    seen: Evaluations,
    *,
    log_every: int,
    save_every: int,
    score_every: int,
    score: Callable[[int, Any], dict[str, float]],
    save: Callable[..., None],
    journal: Journal,
    work: Work | None,
    stop: Sequence[int],
) -> None:
    """The training loop: step, log, score, save; waits for the devices only to log, or to tell.

    Args:
        seen: The evaluations before.
        score: Gives the metrics of a step's number and parameters.
        save: Is given a step's number, state, position in the data, and metrics or None.
        work: What lies before the run, for an estimate of its time; None for none.
        stop: Signals that came, from `noted_signals`.
    """
    step = int(state.step)
    reports: list[tuple[int, list[str], StepReport]] = []
    pace = Pace()
    while step < stage.steps:
        batch, ids = next(stage.batches)
        state, report = train_step(state, batch)
        step += 1
        reports.append((step, ids, report))

        scoring = step == stage.steps or (score_every > 0 and step % score_every == 0)
        saving = scoring or step % save_every == 0
        logging = saving or step % log_every == 0
        signum = stop[0] if stop else 0
        if jax.process_count() > 1:
            # All must stop at one step. They agree on it where they wait for the devices anyway.
            gathered = multihost_utils.process_allgather(np.int32(signum)) if logging else 0
            signum = int(np.max(gathered))

        # ---- Tell how far it is, at growing distances
        due = pace.due()
        if due:
            loss = float(report.loss)  # waits for the devices
            pace.waited()
            if not logging:
                rate = pace.speed * stage.batch_size if pace.taken > 1 else 0.0
                journal.advance(stage.name, step, stage.steps, loss, rate, stage.batch_size)
        if pace.taken == 3 and work is not None:
            pixels = next(batch[head].size for head, _ in stage.model.heads)
            journal.say(pace.estimate(work, pixels))
        if not logging and not signum:
            continue

        # ---- Look at the steps since the last time
        values = mean_losses(stage.name, reports)
        rate = pace.speed * stage.batch_size
        taken_off = plateau_factor(state.opt_state) if stage.plateau else 1.0
        values |= {"learning_rate": stage.rate(step) * taken_off, "images_per_second": rate}
        if (peak := devices.peak_memory()) is not None:
            values["peak_memory_gib"] = peak / 2**30
        journal.record(stage.name, step, values)
        line = due or step == stage.steps
        so_far = (step, stage.steps, values["loss"], rate, stage.batch_size)
        journal.advance(stage.name, *so_far, line)
        reports.clear()

        # ---- Save, with a score where it is due
        if saving or signum:
            # A finite loss can still have led to parameters that are not.
            if not all_finite(state.params):
                raise Diverged(
                    f"{stage.name} step {step}: parameters are NaN or Inf after the update on the "
                    f"images {', '.join(ids)}; {REMEDY}"
                )
            metrics = score(step, state.used) if scoring else None
            if metrics is not None and step % max(score_every, 1) == 0:
                seen = seen.and_then(goodness(metrics, stage.best))
            position = {**stage.batches.get_state(), "records": journal.digest()}
            position["evaluations"] = list(seen)
            save(step, state, data=position, metrics=metrics)
        ended = 0 < stage.patience <= seen.since
        if signum and step < stage.steps and not ended:
            raise Stopped(
                f"stopped at {stage.name} step {step} of {stage.steps}, all saved; "
                "the same command goes on from here",
                signum,
            )
        if ended:
            journal.say(
                f"{stage.name}: ends at step {step} of {stage.steps}: no better {stage.best} in "
                f"{seen.since} evaluations"
            )
            return
        pace.restart()


def mean_losses(
    stage: str, reports: Sequence[tuple[int, Sequence[str], StepReport]]
) -> dict[str, float]:
    """The means of what steps reported: loss (with several heads also of each), gradient norm.

    Waits for the devices, where the reports still are. Raises Diverged, with the step and its
    images, if a loss was not finite or a label invalid.
    """
    host = jax.device_get([report for _, _, report in reports])
    for (step, ids, _), report in zip(reports, host, strict=True):
        images = ", ".join(ids)
        if report.invalid:
            raise Diverged(
                f"{stage} step {step}: {int(report.invalid)} pixels have a label that is neither a "
                f"class nor void (255), in one of the images {images}; mend the label files"
            )
        if not np.isfinite(report.loss) or not np.isfinite(report.gradient_norm):
            raise Diverged(
                f"{stage} step {step}: the loss is {report.loss} and the gradient norm "
                f"{report.gradient_norm} on the images {images}; {REMEDY}"
            )
    mean = jax.tree.map(lambda *values: float(np.mean(values)), *host)
    heads = mean.head_losses if len(mean.head_losses) > 1 else {}
    losses = {"loss": mean.loss, **{f"loss_{head}": loss for head, loss in heads.items()}}
    return {**losses, "gradient_norm": mean.gradient_norm}


# ======================================================================== ends

REMEDY = "the last checkpoint is untouched. Lower config.learning_rate, or set config.clip_norm"


class Diverged(RuntimeError):
    """Training cannot go on; the last checkpoint is from before."""


class Stopped(Exception):
    """A signal asked the run to stop; all is saved."""

    def __init__(self, message: str, signum: int) -> None:
        super().__init__(message)
        self.signum = signum


@contextlib.contextmanager
def noted_signals() -> Iterator[Sequence[int]]:
    """Notes the first of SIGINT, SIGTERM and SIGHUP in a list; the second ends the program.

    A signal that is ignored, as SIGHUP under nohup, stays ignored.
    """
    received: list[int] = []

    def note(signum: int, _: FrameType | None) -> None:
        received.append(signum)
        if len(received) > 1:
            restore()
            signal.raise_signal(signum)

    def restore() -> None:
        for number, handler in previous.items():
            signal.signal(number, handler)

    names = ("SIGINT", "SIGTERM", "SIGHUP")  # the last is not known everywhere
    numbers = [getattr(signal, name) for name in names if hasattr(signal, name)]
    previous = {
        number: signal.signal(number, note)
        for number in numbers
        if signal.getsignal(number) is not signal.SIG_IGN
    }
    try:
        yield received
    finally:
        restore()
