"""From a source of examples to batches on the devices: a grain pipeline.

Order and randomness depend on the seed and the position alone, not on threads, workers or
processes, so that a pipeline can go on exactly where a checkpoint left it.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
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

    Each item is the arrays (``image``, ``label``, ``size``) and the examples' ids.
    """

    def __init__(self, dataset: grain.IterDataset) -> None:
        self._iterator = iter(dataset)

    def __iter__(self) -> Iterator[tuple[dict[str, Array], list[str]]]:
        return self

    def __next__(self) -> tuple[dict[str, Array], list[str]]:
        return next(self._iterator)

    def get_state(self) -> dict[str, Any]:
        """The position after the last batch that was taken, as plain values for JSON."""
        return self._iterator.get_state()

    def set_state(self, state: dict[str, Any]) -> None:
        """Goes to a position that `get_state` gave for the same pipeline."""
        self._iterator.set_state(state)

    def close(self) -> None:
        """Stops reading ahead."""
        self._iterator.close()

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
        canvas: Height and width of every batch; None is as large as its largest image.
        num_workers: Processes that load; 0 loads in threads of this process, which is faster
            unless transforms are heavy and cores many.
        read_threads: Threads that load, in each process.
        process_index: This process among ``process_count`` that train together; each gets
            other examples of the same global batches.
        process_count: See ``process_index``.

    Raises:
        ValueError: While iterating, if an example is not sound or too large; it is named.
    """
    dataset = (
        grain.MapDataset.source(source)
        .seed(seed)
        .shuffle()
        .repeat()
        .map(check_example)
        .random_map(augmentation)
    )
    if process_count > 1:
        dataset = dataset[process_index::process_count]
    batches = dataset.batch(
        batch_size // process_count,
        drop_remainder=True,  # there is none, but the length of endless data would overflow
        batch_fn=functools.partial(_collate, canvas=canvas),
    ).to_iter_dataset(grain.ReadOptions(num_threads=read_threads, prefetch_buffer_size=4))
    if num_workers > 0:
        _let_grain_start_workers()
        batches = batches.mp_prefetch(grain.MultiprocessingOptions(num_workers=num_workers))
    batches = batches.map(functools.partial(_to_devices, sharding=sharding))
    # Two batches wait on the device: one would be taken before the next is there.
    return TrainingBatches(
        grain.experimental.ThreadPrefetchIterDataset(batches, prefetch_buffer_size=2)
    )


def evaluation_examples(
    source: Source, indices: Sequence[int], *, read_threads: int = 2
) -> Iterator[Example]:
    """The chosen examples, each once, in order and as they are, read ahead."""
    dataset = grain.MapDataset.source(source)
    chosen = grain.MapDataset.source(list(indices)).map(lambda index: dataset[index])
    options = grain.ReadOptions(num_threads=read_threads, prefetch_buffer_size=8)
    return iter(chosen.map(check_example).to_iter_dataset(options))


def _collate(examples: Sequence[Example], canvas: tuple[int, int] | None) -> dict[str, np.ndarray]:
    return place_on_canvas(list(examples), canvas)


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
