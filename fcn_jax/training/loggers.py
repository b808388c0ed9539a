"""Programs that draw a run's numbers and pictures: TensorBoard, Weights & Biases."""

from __future__ import annotations

import os
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

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


class WeightsAndBiases:
    """Sends a run to Weights & Biases, or with ``WANDB_MODE=offline`` writes what is sent later.

    The run there has the name of the run's folder, in the project ``fcn-jax`` or ``WANDB_PROJECT``.
    Where the run goes on, so does that one; offline it is another of the same name and group. The
    curves are named ``STAGE/loss``, ``STAGE/eval/mean_iu``, and are drawn over the ``STAGE/step``.

    Raises:
        ValueError: If the package is missing, or the run cannot be begun there.
    """

    def __init__(self, workdir: Path, config: Mapping[str, Any]) -> None:
        self._wandb = import_wandb()
        name, path = workdir.absolute().name, workdir / "wandb" / "run_id"
        run_id = path.read_text() if path.exists() else uuid.uuid4().hex[:8]
        offline = os.environ.get("WANDB_MODE") == "offline"  # then nothing is known to go on with
        try:
            self._run = self._wandb.init(
                project=os.environ.get("WANDB_PROJECT", "fcn-jax"),
                name=name,
                group=name,
                id=None if offline else run_id,
                resume=None if offline else "allow",
                dir=workdir,
                config=dict(config),
                settings=self._wandb.Settings(console="off"),
            )
        except self._wandb.Error as error:
            raise ValueError(
                f"config.logger = 'wandb': {' '.join(str(error).split()):.300}; run `wandb login`, "
                "or set WANDB_MODE=offline"
            ) from error
        path.parent.mkdir(exist_ok=True)
        path.write_text(run_id)

    def begin(self, stage: str, step: int) -> None:
        del step
        self._run.define_metric(f"{stage}/*", step_metric=f"{stage}/step")

    def record(self, stage: str, step: int, values: Mapping[str, float]) -> None:
        named = {f"{stage}/{name}": value for name, value in values.items()}
        self._run.log({**named, f"{stage}/step": step})

    def picture(self, stage: str, step: int, name: str, image: Image.Image) -> None:
        self._run.log({f"{stage}/{name}": self._wandb.Image(image), f"{stage}/step": step})

    def close(self) -> None:
        self._run.finish()


def import_wandb() -> Any:
    """The package. Raises ValueError if it is missing."""
    try:
        import wandb
    except ImportError as error:
        raise ValueError(
            f"config.logger = 'wandb': {error}; pip install 'fcn-jax[wandb]'"
        ) from None
    return wandb
