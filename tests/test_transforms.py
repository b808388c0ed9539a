"""Joint transforms of image and label, against direct numpy definitions."""

from __future__ import annotations

import io
import math
from fractions import Fraction

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from fcn_jax.data import transforms
from fcn_jax.data.copy_paste import CopyPaste, paste
from fcn_jax.data.transforms import (
    Augmentation,
    arrays,
    blurred,
    check_example,
    resize,
    rotate,
    stack_examples,
)

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


# ======================================================================== rotation


def rotated_directly(values: np.ndarray, degrees: float, beyond: float) -> np.ndarray:
    """Each pixel of a map (h, w) from where a counter-clockwise turn brings it, bilinearly."""
    height, width = values.shape
    turn = np.exp(1j * np.deg2rad(degrees))
    # The imaginary axis points up, rows count down.
    y, x = np.mgrid[:height, :width]
    place = (x - (width - 1) / 2 - 1j * (y - (height - 1) / 2)) / turn
    rows, columns = (height - 1) / 2 - place.imag, (width - 1) / 2 + place.real
    found = ndimage.map_coordinates(values.astype(float), [rows, columns], order=1, mode="nearest")
    out = (np.abs(rows - (height - 1) / 2) > height / 2) | (
        np.abs(columns - (width - 1) / 2) > width / 2
    )
    return np.where(out, beyond, found)


@pytest.mark.parametrize("degrees", [-170.0, -33.0, 7.5, 89.0])
@pytest.mark.parametrize("size", [(1, 9), (40, 57)])
def test_rotation_against_a_direct_definition(degrees, size):
    rng = np.random.default_rng(1)
    image = rng.normal(100, 20, (*size, 2)).astype(np.float32)
    turned = rotate({"image": image, "id": "a"}, degrees, (-7.0, 9.0))["image"]
    for band, beyond in enumerate((-7.0, 9.0)):
        np.testing.assert_allclose(
            turned[..., band], rotated_directly(image[..., band], degrees, beyond), atol=1e-3
        )
    photograph = {"image": rng.integers(0, 256, (*size, 3), np.uint8), "id": "a"}
    np.testing.assert_allclose(
        rotate(photograph, degrees)["image"][..., 1],
        rotated_directly(photograph["image"][..., 1], degrees, 0),
        atol=0.51,
    )


def test_a_quarter_turn_moves_every_array_exactly():
    example = rich_example((24, 24))
    for name, value in arrays(rotate(example, 90)).items():
        np.testing.assert_array_equal(value, np.rot90(example[name]))


def test_rotation_invents_no_label_and_leaves_void_where_nothing_is():
    size = (60, 80)
    label = np.zeros(size, np.uint8)
    label[:, 40:] = 4
    example = {
        "image": np.repeat(label[..., None] * np.uint8(60) + 10, 3, axis=2),
        "depth": label.astype(np.uint16) * 100 + 50,
        "label": label,
        "geo": label // 4,
        "id": "halves",
    }
    augmentation = Augmentation(
        scale_range=(0.7, 1.4), crop=(48, 48), rotation=45, vertical_flip=True, flip=True
    )
    empty = agree = valid_pixels = 0
    for seed in range(300):
        found = augmentation(example, np.random.default_rng(seed))
        valid = found["label"] != 255
        assert set(np.unique(found["label"])) <= {0, 4, 255}
        assert set(np.unique(found["depth"])) <= {0, 50, 450}
        np.testing.assert_array_equal(found["geo"] == 255, ~valid)
        np.testing.assert_array_equal(found["depth"] == 0, ~valid)
        np.testing.assert_array_equal(found["image"][..., 0] == 0, ~valid)
        grey = found["label"].astype(int) * 60 + 10
        agree += (np.abs(found["image"][..., 0] - grey) < 120)[valid].sum()
        valid_pixels += valid.sum()
        empty += (~valid).any()
    assert agree >= 0.98 * valid_pixels
    assert empty > 150


def test_vertical_flip_turns_everything_upside_down_half_of_the_time():
    example, turned = rich_example((5, 8)), 0
    for seed in range(200):
        found = Augmentation(vertical_flip=True)(example, np.random.default_rng(seed))
        upside_down = np.array_equal(found["sem"], example["sem"][::-1])
        for name, value in arrays(example).items():
            np.testing.assert_array_equal(found[name], value[::-1] if upside_down else value)
        turned += upside_down
    assert 70 < turned < 130


# ======================================================================== colours

COLOURS = Augmentation(jitter=0.3, grey=1.0, blur=2.0, jpeg=10)


def test_colours_change_the_image_alone_and_are_seeded():
    example = rich_example((31, 40))
    first, again = (COLOURS(example, np.random.default_rng(3)) for _ in range(2))
    for name, value in arrays(first).items():
        assert value.dtype == example[name].dtype
        np.testing.assert_array_equal(value, again[name])
        if name != "image":
            np.testing.assert_array_equal(value, example[name])
    assert (first["image"] != example["image"]).mean() > 0.5
    other = COLOURS(example, np.random.default_rng(4))
    assert (other["image"] != first["image"]).any()


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
@pytest.mark.parametrize("bands", [1, 2, 4])
def test_colours_of_any_bands(bands, dtype):
    rng = np.random.default_rng(0)
    image = (rng.random((20, 26, bands)) * 200).astype(dtype)
    example = {"image": image, "label": np.zeros((20, 26), np.uint8), "id": "a"}
    augmentation = Augmentation(jitter=0.3, blur=2.0, jpeg=10, grey=0.0 if bands > 1 else 1.0)
    augmentation.check_bands(bands)
    found = augmentation(example, np.random.default_rng(0))["image"]
    assert (found.shape, found.dtype) == (image.shape, image.dtype)
    assert (found != image).any()
    if bands > 1:
        with pytest.raises(ValueError, match=rf"config.grey = 1.0: an image of {bands} bands"):
            COLOURS.check_bands(bands)


def test_grey_is_the_brightness_within_each_bands_range():
    image = np.random.default_rng(0).integers(0, 256, (9, 11, 3), np.uint8)
    example = {"image": image, "id": "a"}
    grey = Augmentation(grey=1.0)(example, np.random.default_rng(0))["image"]
    expected = np.asarray(Image.fromarray(image).convert("L")).astype(int)
    assert np.abs(grey - expected[..., None]).max() <= 1
    turned = [
        np.ptp(Augmentation(grey=0.25)(example, np.random.default_rng(seed))["image"], axis=2).max()
        for seed in range(200)
    ]
    assert 30 < sum(spread == 0 for spread in turned) < 70
    # Bands of other ranges: what is half bright in all of them stays as it is.
    ranges = ((0.0, 10.0), (100.0, 300.0), (-1.0, 1.0))
    half = np.tile(np.array([5.0, 200.0, 0.0], np.float32), (3, 4, 1))
    augmentation = Augmentation(grey=1.0, value_range=ranges)
    found = augmentation({"image": half, "id": "a"}, np.random.default_rng(0))["image"]
    np.testing.assert_allclose(found, half, atol=1e-4)


def test_jpeg_is_that_of_the_quality_and_leaves_fine_steps():
    noise = np.random.default_rng(0).normal(128, 90, (19, 21, 3))
    image = ndimage.gaussian_filter(noise, (2, 2, 0)).astype(np.uint8)
    errors = []
    for quality in (20, 95):
        found = Augmentation()._compressed(image, quality)
        Image.fromarray(image).save(file := io.BytesIO(), "JPEG", quality=quality)
        np.testing.assert_array_equal(found, np.asarray(Image.open(file)))
        errors.append(np.abs(found.astype(int) - image).mean())
    assert errors[0] > 2 * errors[1] > 0
    deep = image[..., :2].astype(np.uint16) * 100 + 3  # steps of 100 for JPEG, which leaves the 3
    found = Augmentation(value_range=((0.0, 25500.0),) * 2)._compressed(deep, 60).astype(int)
    assert 0 < np.abs(found - deep).max() < 3000
    assert set(np.unique(found % 100)) == {3}


@pytest.mark.parametrize("sigma", [0.0, 0.7, 3.0])
def test_blur_is_gaussian(sigma):
    image = np.random.default_rng(0).random((21, 30, 2)).astype(np.float32)
    bands = [
        ndimage.gaussian_filter(band.astype(float), sigma, mode="nearest")
        for band in np.moveaxis(image, 2, 0)
    ]
    np.testing.assert_allclose(blurred(image, sigma), np.stack(bands, axis=2), atol=1e-5)


# ======================================================================== objects that travel


def voided_squares(size: tuple[int, int], seed: int) -> dict:
    """Squares of classes 1 to 3 with void around each, on class 0; images are 10 label + 3."""
    rng = np.random.default_rng(seed)
    label = np.zeros(size, np.uint8)
    for kind in (1, 1, 2, 3) if seed == 0 else (1, 2):
        row, column = rng.integers(-3, size[0] - 3), rng.integers(-3, size[1] - 3)
        label[max(0, row) : row + 9, max(0, column) : column + 9] = 255
        label[max(0, row + 1) : row + 8, max(0, column + 1) : column + 8] = kind
    values = label * 10.0 + 3
    return {
        "image": np.repeat(values[..., None], 3, axis=2).astype(np.uint8),
        "depth": values.astype(np.uint16),
        "label": label,
        "geo": np.where(label == 2, 255, label).astype(np.uint8),
        "id": str(seed),
    }


def pieces_of(labels: np.ndarray) -> int:
    pieces = np.zeros(labels.shape, np.int32)
    ndimage.label(labels, output=pieces)
    return pieces.max()


@pytest.mark.parametrize("size", [(40, 50), (11, 7), (1, 1)])
@pytest.mark.parametrize("kind", [1, 2, 3])
def test_a_pasted_piece_is_whole_in_all_arrays(size, kind):
    donor, grew = voided_squares((40, 50), 0), 0
    target = {**voided_squares(size, 1), "label": np.zeros(size, np.uint8)}
    target |= {"geo": target["label"], "depth": np.full(size, 3, np.uint16)}
    target["image"] = np.full((*size, 3), 3, np.uint8)
    for seed in range(30):
        found = paste(target, donor, kind, np.random.default_rng(seed))
        assert set(np.unique(found["label"])) <= {0, kind}  # no void, no other class
        np.testing.assert_array_equal(found["geo"], found["label"])
        np.testing.assert_array_equal(found["depth"], found["label"] * 10.0 + 3)
        np.testing.assert_array_equal(found["image"], found["depth"][..., None].repeat(3, axis=2))
        assert pieces_of(found["label"]) <= 1
        grew += (found["label"] == kind).any()
    # Where class 2 is, the other label map is void.
    assert grew == (0 if kind == 2 else 30)
    assert not (target["label"] == kind).any()  # nothing was changed in place


class Squares:
    """Five examples; class 3 is in the first alone, and the rarest."""

    def __init__(self) -> None:
        self.read: list[int] = []
        labels = [self[i]["label"].ravel() for i in range(len(self))]
        counts = [np.bincount(label, minlength=256)[:4] for label in labels]
        self.label_counts = {"label": np.array(counts)}

    def __len__(self) -> int:
        return 5

    def __getitem__(self, index: int) -> dict:
        self.read.append(index)
        return voided_squares((30 + index, 44 - 5 * index), index)


def test_rare_classes_are_pasted_from_images_that_hold_them():
    source = Squares()
    copy_paste = CopyPaste(source, 0.5)
    assert copy_paste.rare.tolist() == [2, 3]

    target = voided_squares((25, 33), 4)
    source.read.clear()
    pasted = [copy_paste(target, np.random.default_rng(seed)) for seed in range(200)]
    again = [copy_paste(target, np.random.default_rng(seed)) for seed in range(200)]
    assert 70 < len(source.read) / 2 < 130
    assert source.read.count(0) > len(source.read) / 2  # class 3, and a fifth of class 2
    for first, second in zip(pasted, again, strict=True):
        valid = first["label"] != 255
        np.testing.assert_array_equal(first["image"][valid][:, 0], first["label"][valid] * 10.0 + 3)
        for name, value in arrays(first).items():
            np.testing.assert_array_equal(value, second[name])
    assert any((example["label"] == 3).any() for example in pasted)


def test_copy_paste_without_a_rare_class_is_refused():
    class Even(Squares):
        def __getitem__(self, index):
            label = np.array([[0, 1], [1, 0]], np.uint8)
            return {"image": np.zeros((2, 2, 3), np.uint8), "label": label, "id": "a"}

    with pytest.raises(ValueError, match=r"copy_paste = 0.3: .* no class has fewer pixels"):
        CopyPaste(Even(), 0.3)
