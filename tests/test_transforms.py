"""Joint transforms of image and label, against direct numpy definitions."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest

from fcn_jax.data import transforms
from fcn_jax.data.transforms import Augmentation, check_example, resize, stack_examples

SIZES = [(1, 1), (7, 13), (33, 20)]


def make_example(height: int, width: int, seed: int = 0) -> dict:
    rng = np.random.default_rng(seed)
    return {
        "image": rng.integers(0, 256, (height, width, 3), np.uint8),
        "label": rng.integers(0, 256, (height, width), np.uint8),
        "id": f"{height}x{width}",
    }


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("factor", [0.37, 0.5, 1.0, 1.7])
def test_resize_takes_the_label_at_the_pixel_centres(size, factor):
    example = make_example(*size)
    result = transforms.resize(example, factor)
    height, width = (max(1, round(side * factor)) for side in size)
    assert result["image"].shape == (height, width, 3)
    rows = [math.floor(Fraction(2 * i + 1, 2) * size[0] / height) for i in range(height)]
    columns = [math.floor(Fraction(2 * i + 1, 2) * size[1] / width) for i in range(width)]
    np.testing.assert_array_equal(result["label"], example["label"][np.ix_(rows, columns)])


def test_image_and_label_are_resized_over_the_same_points():
    # The same half-plane in both: after resizing, the image's edge must lie where the label's
    # does. A shift of half a pixel would show as a bias between the two.
    for edge in range(8, 56):
        mask = np.zeros((40, 64), np.uint8)
        mask[:, edge:] = 255
        example = {"image": np.repeat(mask[..., None], 3, 2), "label": mask, "id": "edge"}
        result = transforms.resize(example, 0.5)
        gap = result["image"][..., 0].astype(float).mean() - result["label"].astype(float).mean()
        assert abs(gap) <= 255 / 32 / 2 + 1  # half of one output column


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("crop", [(5, 9), (40, 4), (64, 64)])
def test_crop_is_a_window_of_both(size, crop):
    example = make_example(*size)
    seen = set()
    for seed in range(20):
        result = Augmentation(crop=crop)(example, np.random.default_rng(seed))
        height, width = (min(a, b) for a, b in zip(size, crop, strict=True))
        assert result["label"].shape == (height, width)
        found = [
            (top, left)
            for top in range(size[0] - height + 1)
            for left in range(size[1] - width + 1)
            if np.array_equal(
                result["image"], example["image"][top : top + height, left : left + width]
            )
            and np.array_equal(
                result["label"], example["label"][top : top + height, left : left + width]
            )
        ]
        assert found
        seen.update(found)
    places = np.prod([max(0, a - b) + 1 for a, b in zip(size, crop, strict=True)])
    assert len(seen) > 1 or places == 1


def test_flip_mirrors_both_half_of_the_time():
    example = make_example(5, 8)
    flipped = 0
    for seed in range(200):
        result = Augmentation(flip=True)(example, np.random.default_rng(seed))
        mirrored = np.array_equal(result["label"], example["label"][:, ::-1])
        assert mirrored or np.array_equal(result["label"], example["label"])
        assert np.array_equal(result["image"], example["image"][:, ::-1]) == mirrored
        flipped += mirrored
    assert 70 < flipped < 130


def test_jitter_changes_the_image_within_bounds_and_never_the_label():
    example = make_example(16, 16)
    grey = {**example, "image": np.full((16, 16, 3), 100, np.uint8)}
    for seed in range(20):
        result = Augmentation(jitter=0.2)(grey, np.random.default_rng(seed))
        # On a uniform image only brightness acts.
        assert 79 <= result["image"].min() <= result["image"].max() <= 121
        assert np.array_equal(result["label"], grey["label"])
    changed = Augmentation(jitter=0.2)(example, np.random.default_rng(0))
    assert not np.array_equal(changed["image"], example["image"])


def test_augmentation_is_a_function_of_the_generator():
    augmentation = Augmentation(0.8, (0.5, 2.0), (17, 23), True, 0.3)
    example = make_example(31, 45)
    first, again = (augmentation(example, np.random.default_rng(3)) for _ in range(2))
    np.testing.assert_array_equal(first["image"], again["image"])
    np.testing.assert_array_equal(first["label"], again["label"])
    other = augmentation(example, np.random.default_rng(4))
    assert not np.array_equal(first["image"], other["image"])


def test_random_scales_fill_their_range_evenly_in_logarithm():
    augmentation = Augmentation(scale_range=(0.5, 2.0))
    example = make_example(100, 100)
    sides = [augmentation(example, np.random.default_rng(s))["label"].shape[0] for s in range(300)]
    assert min(sides) >= 50
    assert max(sides) <= 200
    assert 120 < sum(side < 100 for side in sides) < 180


def test_canvas_holds_mixed_sizes_with_void_around():
    examples = [make_example(*size, seed=i) for i, size in enumerate(SIZES)]
    batch = transforms.stack_examples(examples, (40, 32))
    assert batch["image"].shape == (3, 40, 32, 3)
    np.testing.assert_array_equal(batch["valid_size"], SIZES)
    assert batch["id"].tolist() == [example["id"] for example in examples]
    for row, example in enumerate(examples):
        height, width = example["label"].shape
        np.testing.assert_array_equal(batch["image"][row, :height, :width], example["image"])
        np.testing.assert_array_equal(batch["label"][row, :height, :width], example["label"])
        assert (batch["label"][row, height:] == 255).all()
        assert (batch["label"][row, :, width:] == 255).all()


def test_canvas_too_small_names_the_image():
    with pytest.raises(ValueError, match=r"7x13: .* does not fit the canvas of 8x8; enlarge"):
        transforms.stack_examples([make_example(7, 13)], (8, 8))


@pytest.mark.parametrize(
    "wrong",
    [{"label": np.zeros((4, 4), np.int64)}, {"label": np.zeros((3, 4), np.uint8)}],
    ids=["dtype", "size"],
)
def test_unsound_examples_are_named(wrong):
    with pytest.raises(ValueError, match="4x4: expected uint8"):
        transforms.check_example({**make_example(4, 4), **wrong})


# ======================================================================== depth and several labels


def rich_example(size: tuple[int, int], seed: int = 0) -> dict:
    """Every kind of array; each holds its pixel's number, so that what moves together shows."""
    number = np.arange(size[0] * size[1]).reshape(size)
    picture = np.stack([number % 251, number // 251, number * 0], axis=-1).astype(np.uint8)
    return {
        "image": picture,
        "hha": picture.copy(),
        "depth": number.astype(np.uint16),
        "sem": (number % 200).astype(np.uint8),
        "geo": (number % 3).astype(np.uint8),
        "id": f"{seed}",
    }


def test_all_arrays_of_an_example_move_together():
    augmentation = Augmentation(crop=(20, 30), flip=True)
    for seed in range(8):
        moved = augmentation(rich_example((40, 50)), np.random.default_rng(seed))
        number = moved["depth"].astype(int)
        assert number.shape == (20, 30)
        np.testing.assert_array_equal(moved["image"][..., 0], number % 251)
        np.testing.assert_array_equal(moved["hha"][..., 1], number // 251)
        np.testing.assert_array_equal(moved["sem"], number % 200)
        np.testing.assert_array_equal(moved["geo"], number % 3)


def test_depth_is_resized_without_inventing_values():
    example = rich_example((7, 9))
    resized = resize(example, 2.3)
    assert set(np.unique(resized["depth"])) <= set(np.unique(example["depth"]))
    np.testing.assert_array_equal(resized["sem"], resized["depth"] % 200)
    assert resized["hha"].shape == (*resized["depth"].shape, 3)


def test_jitter_leaves_depth_and_hha():
    example = rich_example((7, 9))
    changed = Augmentation(jitter=0.5)(example, np.random.default_rng(0))
    assert (changed["image"] != example["image"]).any()
    for name in ("hha", "depth", "sem", "geo"):
        np.testing.assert_array_equal(changed[name], example[name])


def test_a_canvas_holds_every_array():
    examples = [rich_example((7, 9)), rich_example((5, 12), 1)]
    batch = stack_examples(examples, (8, 16))
    assert {
        name: value.shape for name, value in batch.items() if name not in ("valid_size", "id")
    } == {
        "image": (2, 8, 16, 3),
        "hha": (2, 8, 16, 3),
        "depth": (2, 8, 16),
        "sem": (2, 8, 16),
        "geo": (2, 8, 16),
    }
    assert batch["depth"].dtype == np.uint16
    np.testing.assert_array_equal(batch["depth"][1, :5, :12], examples[1]["depth"])
    assert not batch["depth"][0, 7:].any()
    assert (batch["sem"][0, :, 9:] == 255).all()


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("depth", np.zeros((7, 9), np.float32), "depth float32"),
        ("sem", np.zeros((7, 8), np.uint8), r"sem uint8 \(7, 8\) where others have 7x9"),
    ],
)
def test_arrays_of_no_known_kind_are_named(name, value, message):
    with pytest.raises(ValueError, match=message):
        check_example({**rich_example((7, 9)), name: value})
    labels = {
        key: value for key, value in rich_example((7, 9)).items() if key not in ("sem", "geo")
    }
    with pytest.raises(ValueError, match="no label map among image, hha, depth"):
        check_example(labels)
