"""From a source of examples to batches on the devices: a grain pipeline.

Order and randomness depend on the seed and the position alone, not on threads, workers or
processes, so that a pipeline can go on exactly where a checkpoint left it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from types import TracebackType
from typing import Any, Protocol

import grain
import jax
import numpy as np
from jax.sharding import Sharding
from jaxtyping import Array

from fcn_jax.data.transforms import Augmentation, Example, check_example, place_on_canvas


class Source(Protocol):
    """Random access to examples, as `fcn_jax.data.open_source` gives."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Example: ...


class TrainingBatches:
    """An endless iterator of batches on the devices, read ahead; a context manager.

    Each item is the arrays (``image``, ``label`` and others, and ``size`` where an image may be
    smaller than its canvas) and the examples' ids.

    Batch n is a function of the source, the seed and n alone, so the position is a number, which
    means the same for any number of workers, threads and processes.
    """

    def __init__(
        self, read_from: Callable[[int], grain.IterDataset], settings: dict[str, int]
    ) -> None:
        self._read_from = read_from
        self._settings = settings
        self._next_batch = 0
        self._iterator: grain.DatasetIterator | None = None
        self._closed = False

    def __iter__(self) -> Iterator[tuple[dict[str, Array], list[str]]]:
        return self

    def __next__(self) -> tuple[dict[str, Array], list[str]]:
        if self._closed:
            raise ValueError("the loader has been closed")
        if self._iterator is None:
            self._iterator = iter(self._read_from(self._next_batch))
        batch = next(self._iterator)
        self._next_batch += 1
        return batch

    def get_state(self) -> dict[str, Any]:
        """The position after the last batch that was taken, as plain values for JSON."""
        return {"next_batch": self._next_batch, **self._settings}

    def set_state(self, state: dict[str, Any]) -> None:
        """Goes to a position that `get_state` gave for the same pipeline.

        Raises:
            ValueError: If the seed, batch size or number of examples differ, since the position
                would be one among other batches.
        """
        differing = [
            f"{name} was {state.get(name)} and is {value}"
            for name, value in self._settings.items()
            if state.get(name) != value
        ]
        if differing:
            raise ValueError(
                f"cannot go on with the former run's batches: {'; '.join(differing)}. "
                "Use the former settings, or another workdir"
            )
        self._stop()
        self._next_batch = int(state["next_batch"])

    def close(self) -> None:
        """Stops reading ahead."""
        self._closed = True
        self._stop()

    def _stop(self) -> None:
        if self._iterator is not None:
            self._iterator.close()
            self._iterator = None

    def __enter__(self) -> TrainingBatches:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def training_batches(
    source: Source,
    *,
    batch_size: int,
    seed: int,
    augmentation: Augmentation,
    sharding: Sharding | None = None,
    canvas: tuple[int, int] | None = None,
    num_workers: int = 0,
    read_threads: int = 2,
    process_index: int = 0,
    process_count: int = 1,
) -> TrainingBatches:
    """Shuffled, augmented, batched examples without end, each epoch in another order.

    Args:
        source: Examples by index.
        batch_size: Over all processes.
        seed: Of the order and of the augmentation.
        augmentation: Applied to each example with a generator of its own.
        sharding: Where the arrays go; None is the default device.
        canvas: Height and width of every batch; None is the augmentation's crop, and without one
            the size of all images, or, where they differ, of the batch's largest, rounded up to
            one of few (`fcn_jax.extents.canvas_side`).
        num_workers: Processes that load; 0 loads in threads of this process, which is faster
            unless transforms are heavy and cores many.
        read_threads: Threads that load, in each process.
        process_index: This process among ``process_count`` that train together; each gets
            other examples of the same global batches.
        process_count: See ``process_index``.

    Raises:
        ValueError: If there are no examples, the batch size does not divide by the processes, or
            several processes have no common canvas. While iterating, if an example is not sound
            or too large; it is named.
    """
    canvas = canvas or augmentation.crop
    _check_settings(source, batch_size, canvas, process_count)
    # The processes' parts of the global batches, one after the other.
    parts = (
        grain.MapDataset.source(_NamedExamples(source))
        .seed(seed)
        .shuffle()
        .repeat()
        .map(check_example)
        .random_map(augmentation)
        .batch(
            batch_size // process_count,
            drop_remainder=True,  # there is none, but the length of endless data would overflow
            batch_fn=functools.partial(
                _collate, canvas=canvas, exact=_fills_canvas(source, augmentation, canvas)
            ),
        )
    )

    def read_from(batch: int) -> grain.IterDataset:
        own = parts[process_index + batch * process_count :: process_count]
        batches = own.to_iter_dataset(
            grain.ReadOptions(num_threads=read_threads, prefetch_buffer_size=4)
        )
        if num_workers > 0:
            _let_grain_start_workers()
            batches = batches.mp_prefetch(grain.MultiprocessingOptions(num_workers=num_workers))
        batches = batches.map(functools.partial(_to_devices, sharding=sharding))
        # Two batches wait on the device: one would be taken before the next is there.
        return grain.experimental.ThreadPrefetchIterDataset(batches, prefetch_buffer_size=2)

    settings = {"seed": seed, "batch_size": batch_size, "examples": len(source)}
    return TrainingBatches(read_from, settings)


def _check_settings(
    source: Source, batch_size: int, canvas: tuple[int, int] | None, process_count: int
) -> None:
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


def _fills_canvas(
    source: Source, augmentation: Augmentation, canvas: tuple[int, int] | None
) -> bool:
    """Whether every image is known to fill its canvas; then no border has to be masked."""
    sizes = set(getattr(source, "sizes", ()))
    if not sizes:
        return False
    low, high = (augmentation.scale * factor for factor in augmentation.scale_range)
    if canvas is None:
        return len(sizes) == 1 and low == high
    smallest = [round(min(sides) * low) for sides in zip(*sizes, strict=True)]
    return augmentation.crop == canvas and all(
        side >= wanted for side, wanted in zip(smallest, canvas, strict=True)
    )


def evaluation_examples(
    source: Source, indices: Sequence[int], *, read_threads: int = 2
) -> Iterator[Example]:
    """The chosen examples, each once, in order and as they are, read ahead."""
    dataset = grain.MapDataset.source(_NamedExamples(source))
    chosen: Any = grain.MapDataset.source(list(indices)).map(lambda index: dataset[index])
    options = grain.ReadOptions(num_threads=read_threads, prefetch_buffer_size=8)
    return iter(chosen.map(check_example).to_iter_dataset(options))


class _NamedExamples:
    """A source whose errors say which example could not be read."""

    def __init__(self, source: Source) -> None:
        self._source = source

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: Any) -> Any:
        try:
            return self._source[index]
        except Exception as error:
            error.add_note(f"while reading example {index} of {self._source!r}")
            raise


def _collate(
    examples: Sequence[Example], canvas: tuple[int, int] | None, exact: bool
) -> dict[str, np.ndarray]:
    batch = place_on_canvas(list(examples), canvas, exact=exact)
    if exact:
        del batch["size"]
    return batch


def _to_devices(
    batch: dict[str, np.ndarray], sharding: Sharding | None
) -> tuple[dict[str, Array], list[str]]:
    ids = batch["id"].tolist()
    arrays = {name: value for name, value in batch.items() if name != "id"}
    if sharding is None or jax.process_count() == 1:
        return jax.device_put(arrays, sharding), ids
    place = functools.partial(jax.make_array_from_process_local_data, sharding)
    return {name: place(value) for name, value in arrays.items()}, ids


def _let_grain_start_workers() -> None:
    """grain's workers read an absl flag, which fails in programs that never parse absl flags."""
    from absl import flags

    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()
