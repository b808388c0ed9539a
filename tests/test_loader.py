"""The input pipeline: order, resumption, sharding, and errors."""

from __future__ import annotations

import json
import tracemalloc

import grain
import numpy as np
import pytest
from absl import flags

from fcn_jax.canvas import canvas_side
from fcn_jax.data.copy_paste import CopyPaste
from fcn_jax.data.loader import evaluation_examples, training_batches
from fcn_jax.data.transforms import Augmentation

AUGMENTATION = Augmentation(
    scale_range=(0.7, 1.4), crop=(24, 32), flip=True, jitter=0.1, vertical_flip=True, rotation=20.0,
    blur=1.0, jpeg=40, grey=0.2,
)  # fmt: skip


class FakeSource:
    """Random images of mixed odd sizes, made on demand."""

    def __init__(self, length: int = 10, broken: int = -1) -> None:
        self.length = length
        self.broken = broken
        self.label_counts = {"label": np.tile([9, 9, 9, 5, 1], (length, 1))}

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict:
        index = int(index)
        if index == self.broken:
            raise ValueError("image7: cannot be read")
        rng = np.random.default_rng(index)
        height, width = rng.integers(9, 41, 2)
        return {
            "image": rng.integers(0, 256, (height, width, 3), np.uint8),
            "label": rng.integers(0, 5, (height, width), np.uint8),
            "id": f"image{index}",
        }

    def __repr__(self) -> str:
        return f"FakeSource({self.length})"


def make(source=None, seed=0, batch_size=4, **options):
    source = source or FakeSource()
    return training_batches(
        source,
        batch_size=batch_size,
        seed=seed,
        augmentation=AUGMENTATION,
        copy_paste=CopyPaste(source, 0.5),
        **options,
    )


def take(batches, number):
    taken = (next(batches) for _ in range(number))
    return [
        ({name: np.asarray(array) for name, array in arrays.items()}, ids) for arrays, ids in taken
    ]


def assert_same(first, second):
    assert len(first) == len(second)
    for (arrays, ids), (other_arrays, other_ids) in zip(first, second, strict=True):
        assert ids == other_ids
        assert arrays.keys() == other_arrays.keys()
        for name, array in arrays.items():
            np.testing.assert_array_equal(array, other_arrays[name])


def test_same_seed_gives_the_same_batches_and_another_seed_others():
    with make() as a, make() as b, make(seed=1) as c:
        first, second, other = take(a, 5), take(b, 5), take(c, 5)
    assert_same(first, second)
    assert [ids for _, ids in first] != [ids for _, ids in other]


def test_every_epoch_holds_every_example_once_in_another_order():
    with make(batch_size=5) as batches:
        ids = [i for _, batch_ids in take(batches, 6) for i in batch_ids]
    epochs = [ids[start : start + 10] for start in (0, 10, 20)]
    for epoch in epochs:
        assert sorted(epoch) == sorted(f"image{i}" for i in range(10))
    assert epochs[0] != epochs[1] != epochs[2]


class Numbers:
    """Examples of one pixel, called by their numbers."""

    def __init__(self, length: int) -> None:
        self.length = length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict:
        pixel = np.zeros((1, 1), np.uint8)
        return {"image": np.stack([pixel] * 3, axis=2), "label": pixel, "id": str(index)}


def test_the_order_takes_no_memory():
    """It is computed: no list of the numbers, which would take 800 MB here."""
    options = {"batch_size": 100, "seed": 0, "augmentation": Augmentation(crop=(1, 1))}
    with training_batches(Numbers(200), **options) as small:
        take(small, 1)  # imports
    peaks, ids = {}, []
    for length in (200, 10**8):
        tracemalloc.start()
        with training_batches(Numbers(length), **options) as batches:
            ids = [int(i) for _, of_batch in take(batches, 10) for i in of_batch]
        peaks[length] = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peaks[10**8] < peaks[200] + 100_000
    order = grain.MapDataset.range(70_001).seed(1).shuffle()
    assert sorted(order[i] for i in range(70_001)) == list(range(70_001))
    assert len(set(ids)) == 1000
    assert 0.4 * 10**8 < np.mean(ids) < 0.6 * 10**8  # from all of it, not from a window
    assert min(ids) < 10**6 < 99 * 10**6 < max(ids)


def test_an_example_is_augmented_anew_in_each_epoch():
    with make(FakeSource(1), batch_size=1) as batches:
        images = [arrays["image"].tobytes() for arrays, _ in take(batches, 4)]
    assert len(set(images)) == 4


@pytest.mark.parametrize(
    ("num_workers", "stop"),
    [(0, 0), (0, 1), (0, 4), pytest.param(2, 3, marks=pytest.mark.slow)],
)
def test_goes_on_exactly_where_it_stopped_on_any_number_of_workers(num_workers, stop):
    with make() as whole:
        expected = take(whole, 8)
    with make(num_workers=num_workers) as batches:
        assert_same(take(batches, stop), expected[:stop])
        # Read-ahead must not count; and the state goes through a JSON file.
        state = json.loads(json.dumps(batches.get_state()))
        next(batches)
        batches.set_state(state)
        assert_same(take(batches, 8 - stop), expected[stop:])
    with make() as later:  # another number of workers goes on from the same state
        later.set_state(state)
        assert_same(take(later, 8 - stop), expected[stop:])
    with make(seed=1) as other, pytest.raises(ValueError, match="seed was 0 and is 1"):
        other.set_state(state)


def test_a_program_that_parses_no_flags_can_have_workers(monkeypatch):
    monkeypatch.setattr(grain.IterDataset, "mp_prefetch", lambda batches, _: batches)
    with make(num_workers=2) as batches, make() as whole:
        assert_same(take(batches, 1), take(whole, 1))
    assert flags.FLAGS.is_parsed()


def test_processes_share_each_global_batch():
    with make() as whole:
        expected = take(whole, 5)
    parts = []
    for index in range(2):
        with make(process_index=index, process_count=2) as part:
            parts.append(take(part, 5))
    for (_, ids), (_, left), (_, right) in zip(expected, *parts, strict=True):
        assert len(left) == len(right) == 2
        assert sorted(left + right) == sorted(ids)


def test_fixed_canvas():
    with make(canvas=(40, 48)) as batches:
        for arrays, _ in take(batches, 2):
            assert arrays["image"].shape == (4, 40, 48, 3)


class Sized(FakeSource):
    """A source that knows its images' sizes, and has one size if asked to."""

    def __init__(self, uniform: bool) -> None:
        super().__init__()
        self.uniform = uniform
        self.sizes = [self[i]["label"].shape for i in range(len(self))]

    def __getitem__(self, index):
        example = super().__getitem__(index)
        if self.uniform:
            example["image"] = np.resize(example["image"], (21, 30, 3))
            example["label"] = np.resize(example["label"], (21, 30))
        return example


@pytest.mark.parametrize(
    ("uniform", "augmentation", "shape", "masked"),
    [
        (True, Augmentation(), (21, 30), False),
        (False, Augmentation(), None, True),
        (True, Augmentation(crop=(16, 24)), (16, 24), False),
        (True, Augmentation(crop=(24, 24)), (24, 24), True),  # higher than the images
        (True, Augmentation(crop=(16, 24), scale_range=(0.5, 1.0)), (16, 24), True),
    ],
)
def test_sizes_travel_where_images_may_be_smaller_than_the_canvas(
    uniform, augmentation, shape, masked
):
    source = Sized(uniform)
    with training_batches(source, batch_size=4, seed=0, augmentation=augmentation) as batches:
        for arrays, _ in take(batches, 3):
            assert ("valid_size" in arrays) == masked
            canvas = arrays["label"].shape[1:]
            if shape is not None:
                assert canvas == shape
            else:
                largest = arrays["valid_size"].max(axis=0)
                assert canvas == tuple(canvas_side(int(side)) for side in largest)


def test_few_canvases_with_little_waste():
    sides = np.arange(32, 2000)
    canvas = np.array([canvas_side(int(side)) for side in sides])
    assert (canvas >= sides).all()
    assert (canvas / sides).max() < 1.25
    assert len(set(canvas[sides <= 1024])) == 21  # four in each of five octaves, and 32
    assert {canvas_side(side) for side in (1, 31, 32)} == {32}


def test_an_error_while_loading_surfaces():
    with (
        make(FakeSource(broken=7)) as batches,
        pytest.raises(ValueError, match="image7: cannot be read"),
    ):
        take(batches, 3)


def test_evaluation_examples_come_once_in_order_and_unchanged():
    source = FakeSource()
    examples = list(evaluation_examples(source, range(1, 10, 3)))
    assert [example["id"] for example in examples] == ["image1", "image4", "image7"]
    for example, index in zip(examples, (1, 4, 7), strict=True):
        np.testing.assert_array_equal(example["image"], source[index]["image"])
