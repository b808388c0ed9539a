"""What can end a stage early: a loss that is no number, or a signal to stop."""

from __future__ import annotations

import signal
from collections.abc import Sequence
from types import FrameType, TracebackType

import jax
import numpy as np

from fcn_jax.training.step import StepFigures


class Diverged(RuntimeError):
    """Training cannot go on; the last checkpoint is from before."""


class Stopped(Exception):
    """A signal asked the run to stop; all is saved.

    Attributes:
        signum: The signal's number.
    """

    def __init__(self, message: str, signum: int) -> None:
        super().__init__(message)
        self.signum = signum


class LossWatch:
    """Collects the figures of steps on the device and looks at all of them from time to time.

    Looking waits for the device; collecting does not. So no step waits for a check, and still
    none goes unchecked.
    """

    def __init__(self, stage: str) -> None:
        self._stage = stage
        self._pending: list[tuple[int, Sequence[str], StepFigures]] = []

    def add(self, step: int, ids: Sequence[str], figures: StepFigures) -> None:
        """Remembers a step: its number, its images, and its figures, still on the device."""
        self._pending.append((step, ids, figures))

    def check(self) -> dict[str, float]:
        """Checks the steps since the last check.

        Returns:
            Loss per valid pixel (with several heads also of each) and gradient norm, their means
            over those steps.

        Raises:
            Diverged: If a loss was not finite, or a label invalid; names the step and images.
        """
        pending, self._pending = self._pending, []
        host = jax.device_get([figures for _, _, figures in pending])
        for (step, ids, _), figures in zip(pending, host, strict=True):
            images = ", ".join(ids)
            if figures.invalid:
                raise Diverged(
                    f"{self._stage} step {step}: {int(figures.invalid)} pixels have a label that "
                    f"is neither a class nor void (255), in one of the images {images}; mend the "
                    "label files"
                )
            if not np.isfinite(figures.loss) or not np.isfinite(figures.gradient_norm):
                raise Diverged(
                    f"{self._stage} step {step}: the loss is {figures.loss} and the gradient norm "
                    f"{figures.gradient_norm} on the images {images}; the last checkpoint is "
                    "untouched. Lower config.learning_rate, or set config.clip_norm"
                )
        means = {
            "loss": float(np.mean([figures.loss for figures in host])),
            "gradient_norm": float(np.mean([figures.gradient_norm for figures in host])),
        }
        heads = host[0].head_losses
        if len(heads) > 1:
            for head in heads:
                means[f"loss_{head}"] = float(np.mean([f.head_losses[head] for f in host]))
        return means


class StopSignal:
    """Notes SIGINT and SIGTERM while it is entered; a second signal ends the program at once.

    Attributes:
        received: The signal's number, or 0.
    """

    _SIGNALS = (signal.SIGINT, signal.SIGTERM)

    def __init__(self) -> None:
        self.received = 0
        self._previous: dict[int, object] = {}

    def __enter__(self) -> StopSignal:
        for signum in self._SIGNALS:
            self._previous[signum] = signal.signal(signum, self._note)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._restore()

    def _note(self, signum: int, frame: FrameType | None) -> None:
        self.received = signum
        self._restore()

    def _restore(self) -> None:
        for signum, handler in self._previous.items():
            signal.signal(signum, handler)  # type: ignore[arg-type]
        self._previous = {}
