"""Programs that draw a run's numbers and pictures: TensorBoard, Weights & Biases."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import numpy as np
from PIL import Image

if TYPE_CHECKING:
    from tensorboardX import SummaryWriter


@runtime_checkable
class Logger(Protocol):
    """What a `fcn_jax.training.journal.Journal` tells such a program, in the first process."""

    def begin(self, stage: str, step: int) -> None:
        """A stage begins, or goes on after a step; what it had recorded beyond comes again."""

    def record(self, stage: str, step: int, values: Mapping[str, float]) -> None:
        """Numbers of a step by name."""

    def picture(self, stage: str, step: int, name: str, image: Image.Image) -> None:
        """A sample prediction."""

    def close(self) -> None:
        """The run ends, or is interrupted."""


class TensorBoard:
    """Writes TensorBoard's files, a folder for each stage."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._writers: dict[str, SummaryWriter] = {}

    def begin(self, stage: str, step: int) -> None:
        self._writer(stage, purge_step=step + 1)

    def record(self, stage: str, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._writer(stage).add_scalar(name, value, step)

    def picture(self, stage: str, step: int, name: str, image: Image.Image) -> None:
        self._writer(stage).add_image(name, np.asarray(image), step, dataformats="HWC")

    def close(self) -> None:
        for writer in self._writers.values():
            writer.close()

    def _writer(self, stage: str, purge_step: int | None = None) -> SummaryWriter:
        """The writer of a stage; made at the first call, which alone can purge."""
        from tensorboardX import SummaryWriter

        if stage not in self._writers:
            folder = str(self._folder / stage)
            self._writers[stage] = SummaryWriter(folder, purge_step=purge_step, flush_secs=30)
        return self._writers[stage]
