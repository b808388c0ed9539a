"""From a source of examples to batches on the devices: a grain pipeline.

Order and randomness depend only on the seed and the position, not on threads, workers or processes,
so that a pipeline can continue exactly where a checkpoint left it.
"""

from __future__ import annotations

import contextlib
import functools
import signal
from collections.abc import Callable, Iterator, Sequence
from multiprocessing import resource_tracker
from typing import Protocol, TypeAlias, runtime_checkable

import grain
import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array

from fcn_jax import devices
from fcn_jax.canvas import Size, canvas_side, round_up
from fcn_jax.data import transforms
from fcn_jax.data.copy_paste import CopyPaste
from fcn_jax.data.transforms import Augmentation, Example

TrainingBatch: TypeAlias = tuple[dict[str, Array], list[str]]
"""The arrays of a batch (``image``, ``label`` and others, and ``valid_size`` where an image may be
smaller than its canvas), and the examples' ids."""


@runtime_checkable
class Source(Protocol):
    """Random access to examples, as `fcn_jax.data.open_source` gives."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Example: ...


class TrainingBatches(contextlib.AbstractContextManager["TrainingBatches"]):
    """An endless iterator of batches on the devices, read ahead; a context manager.

    Batch n is a function of the source, the seed and n alone, so the position is a number, which
    means the same for any number of workers, threads and processes.
    """

    def __init__(
        self,
        read_from: Callable[[int], grain.IterDataset],
        settings: dict[str, int],
        beginning: Callable[[], contextlib.AbstractContextManager[None]] = contextlib.nullcontext,
    ) -> None:
        self._read_from = read_from
        self._beginning = beginning  # around the first batch
        self._settings = settings
        self._next_batch = 0
        self._iterator: grain.DatasetIterator | None = None
        self._closed = False

    def __iter__(self) -> Iterator[TrainingBatch]:
        return self

    def __next__(self) -> TrainingBatch:
        if self._closed:
            raise ValueError("the loader has been closed")
        if self._iterator is None:
            with self._beginning():
                self._iterator = iter(self._read_from(self._next_batch))
                batch = next(self._iterator)
        else:
            batch = next(self._iterator)
        self._next_batch += 1
        return batch

    def get_state(self) -> dict[str, int]:
        """The position after the last batch that was taken, as plain values for JSON."""
        return {"next_batch": self._next_batch, **self._settings}

    def set_state(self, state: dict[str, int]) -> None:
        """Goes to a position that `get_state` gave for the same pipeline."""
        differing = [
            f"{name} was {state.get(name)} and is {value}"
            for name, value in self._settings.items()
            if state.get(name) != value
        ]
        if differing:
            raise ValueError(
                f"cannot continue with the batches of the earlier run: {'; '.join(differing)}. "
                "Use the earlier settings, or another workdir"
            )
        self._stop()
        self._next_batch = int(state["next_batch"])

    def _stop(self) -> None:
        if self._iterator is not None:
            self._iterator.close()
            self._iterator = None

    def __exit__(self, *_: object) -> None:
        """Stops reading ahead."""
        self._closed = True
        self._stop()


@contextlib.contextmanager
def _signals_are_for_this_process() -> Iterator[None]:
    """Worker processes that are started meanwhile do not hear what a terminal sends to all.

    On Ctrl-C they would die, while training still needs them for the step that it saves.
    """
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    resource_tracker.ensure_running()  # at its own start it would unblock them
    before = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGHUP))
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def training_batches(
    source: Source,
    *,
    batch_size: int,
    seed: int,
    augmentation: Augmentation,
    mesh: Mesh | None = None,
    canvas: Size | None = None,
    copy_paste: CopyPaste | None = None,
    num_workers: int = 0,
    read_threads: int = 2,
    process_index: int = 0,
    process_count: int = 1,
) -> TrainingBatches:
    """Shuffled, augmented, batched examples without end, each epoch in another order.

    Args:
        batch_size: Over all processes.
        mesh: Devices that share the batches (`fcn_jax.devices.batch_sharding`), and with them the
            rows of each image; None is the default device.
        canvas: Height and width of every batch; None is the augmentation's crop, and without one
            the size of all images, or, where they differ, of the batch's largest, rounded up to
            one of few (`fcn_jax.canvas.canvas_side`). Where devices share the rows of images, the
            height is rounded up to a multiple of them.
        copy_paste: What is pasted into examples before they are augmented.
        num_workers: Processes that load; 0 loads in threads of this process, which is faster
            unless transforms are heavy and cores many.
        process_index: This process among ``process_count`` that read different examples of the
            same global batches (`fcn_jax.devices.batch_part`).
    """
    shards = 1 if mesh is None else mesh.shape.get("height", 1)
    smallest_sizes = _smallest_sizes(source, augmentation)
    canvas = canvas or augmentation.crop
    if canvas is None and len(smallest_sizes) == 1 and augmentation.scale_range == (1.0, 1.0):
        (canvas,) = smallest_sizes
    canvas = canvas and (round_up(canvas[0], shards), canvas[1])
    filled = canvas is not None and smallest_sizes == {canvas}
    if len(source) == 0:
        raise ValueError(f"{source!r} has no examples to train on")
    if batch_size < 1 or batch_size % process_count:
        raise ValueError(
            f"config.batch_size={batch_size} must be a positive multiple of the number of "
            f"processes, {process_count}"
        )
    if process_count > 1 and canvas is None:
        raise ValueError(
            f"the images of {process_count} processes form one array, which needs one size: "
            "set config.crop or config.canvas"
        )

    def to_devices(batch: dict[str, np.ndarray]) -> TrainingBatch:
        arrays = {name: value for name, value in batch.items() if name != "id"}
        on_devices = jax.device_put(arrays) if mesh is None else devices.put_batch(arrays, mesh)
        return on_devices, batch["id"].tolist()

    # The processes' parts of the global batches, one after the other.
    order = grain.MapDataset.range(len(source)).seed(seed).shuffle().repeat()
    examples = order.map(functools.partial(_read, source=source))
    if copy_paste is not None:
        examples = examples.random_map(copy_paste)
    parts = examples.random_map(augmentation).batch(
        batch_size // process_count,
        drop_remainder=True,  # there is none, but the length of endless data would overflow
        batch_fn=functools.partial(_batch, canvas=canvas, shards=shards, filled=filled),
    )

    def read_from(batch: int) -> grain.IterDataset:
        own = parts[process_index + batch * process_count :: process_count]
        batches = own.to_iter_dataset(
            grain.ReadOptions(num_threads=read_threads, prefetch_buffer_size=4)
        )
        if num_workers > 0:
            from absl import flags

            # grain's workers read an absl flag, which fails in programs that never parse them.
            if not flags.FLAGS.is_parsed():
                flags.FLAGS.mark_as_parsed()
            batches = batches.mp_prefetch(grain.MultiprocessingOptions(num_workers=num_workers))
        # Two batches wait on the device: one would be taken before the next is there.
        return grain.experimental.ThreadPrefetchIterDataset(
            batches.map(to_devices), prefetch_buffer_size=2
        )

    settings = {"seed": seed, "batch_size": batch_size, "examples": len(source)}
    beginning = _signals_are_for_this_process if num_workers else contextlib.nullcontext
    return TrainingBatches(read_from, settings, beginning)


def _batch(
    examples: Sequence[Example], canvas: Size | None, shards: int, filled: bool
) -> dict[str, np.ndarray]:
    """Stacks examples; without their sizes where every image fills the canvas."""
    if canvas is None:
        height, width = np.max(
            [transforms.size_of(example) for example in examples], axis=0
        ).tolist()
        canvas = round_up(canvas_side(height), shards), canvas_side(width)
    batch = transforms.stack_examples(examples, canvas)
    if filled:
        del batch["valid_size"]
    return batch


def _smallest_sizes(source: Source, augmentation: Augmentation) -> set[Size]:
    """The images' sizes after an augmentation that shrinks them the most; empty if unknown."""
    sizes = np.array(getattr(source, "sizes", ()), int).reshape(-1, 2)
    factor = augmentation.scale * augmentation.scale_range[0]
    scaled = np.maximum(1, np.rint(sizes * factor).astype(int))
    if augmentation.crop is not None:
        scaled = np.minimum(scaled, augmentation.crop)
    return {(height, width) for height, width in scaled.tolist()}


def evaluation_examples(
    source: Source, indices: Sequence[int], *, read_threads: int = 2
) -> Iterator[Example]:
    """The chosen examples, each once, in order and as they are, read ahead."""
    options = grain.ReadOptions(num_threads=read_threads, prefetch_buffer_size=8)
    chosen = grain.MapDataset.source(list(indices)).map(functools.partial(_read, source=source))
    return iter(chosen.to_iter_dataset(options))


def _read(index: int, source: Source) -> Example:
    try:
        return transforms.check_example(source[index])
    except Exception as error:
        error.add_note(f"while reading example {index} of {source!r}")
        raise
