"""Label maps as pictures."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from PIL import Image

from fcn_jax import drawing
from fcn_jax.classes import ClassRow, ClassTable
from fcn_jax.inference.report import draw_confusion

CLASSES = ClassTable(
    (
        ClassRow("sky", (10, 20, 30)),
        ClassRow("unlabelled", (1, 2, 3), ignored=True),
        ClassRow("bâtiment", (200, 100, 50)),
        ClassRow("road", (0, 255, 0)),
    )
)
COLORS = {0: (10, 20, 30), 1: (200, 100, 50), 2: (0, 255, 0), 255: (1, 2, 3)}


def random_labels(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).choice(np.array(list(COLORS), np.uint8), (height, width))


def random_image(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


@pytest.mark.parametrize("size", [(1, 1), (7, 11)])
def test_palette_files_hold_labels_and_show_colours(size, tmp_path) -> None:
    labels = random_labels(*size)
    drawing.palette_image(labels, CLASSES).save(tmp_path / "labels.png")
    with Image.open(tmp_path / "labels.png") as image:
        assert image.mode == "P"
        np.testing.assert_array_equal(np.asarray(image), labels)
        colored = np.asarray(image.convert("RGB"))
        for position in np.ndindex(*size):
            assert tuple(colored[position]) == COLORS[int(labels[position])]


@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
def test_overlay_blends_and_leaves_void_alone(alpha: float) -> None:
    image, labels = random_image(9, 14), random_labels(9, 14)
    result = drawing.overlay(image, labels, CLASSES, alpha=alpha, edges=False)
    for position in np.ndindex(9, 14):
        label = int(labels[position])
        share = 0.0 if label == 255 else alpha
        expected = (1 - share) * image[position] + share * np.array(COLORS[label])
        np.testing.assert_allclose(result[position], expected, atol=0.51)


def test_overlay_draws_white_borders_between_classes_but_not_around_void() -> None:
    image = np.zeros((4, 6, 3), np.uint8)
    labels = np.array([[0, 0, 1, 1, 255, 2]] * 4, np.uint8)
    result = drawing.overlay(image, labels, CLASSES)
    white = (result == 255).all(axis=-1)
    np.testing.assert_array_equal(white, [[False, True, False, False, False, False]] * 4)


@pytest.mark.parametrize(("alpha", "size"), [(1.5, (4, 5)), (-0.1, (4, 5)), (0.5, (5, 4))])
def test_overlay_refuses_what_does_not_fit(alpha: float, size: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match=r"alpha|pixels"):
        drawing.overlay(random_image(4, 5), random_labels(*size), CLASSES, alpha=alpha)


def contains(picture: np.ndarray, part: np.ndarray) -> bool:
    """Whether a part occurs somewhere in a picture, pixel by pixel."""
    height, width, _ = part.shape
    corners = np.argwhere((picture == part[0, 0]).all(axis=-1))
    return any(
        np.array_equal(picture[row : row + height, column : column + width], part)
        for row, column in corners
    )


@pytest.mark.parametrize(("size", "factor"), [((31, 50), 5), ((300, 260), 1)])
def test_panels_show_every_pixel(size: tuple[int, int], factor: int) -> None:
    image, labels = random_image(*size), random_labels(*size)
    picture = np.asarray(drawing.side_by_side({"image": image, "ground truth": labels}, CLASSES))
    for panel in (image, CLASSES.palette[labels]):
        enlarged = panel.repeat(factor, axis=0).repeat(factor, axis=1)
        assert contains(picture, enlarged[: 8 * factor, : 8 * factor])
        assert contains(picture, enlarged[-8 * factor :, -8 * factor :])


def test_large_panels_are_reduced_together() -> None:
    panels = {"large": random_image(1000, 2000), "half": random_labels(500, 1000)}
    picture = drawing.side_by_side(panels, CLASSES)
    # 800 and 400 pixels wide, and four gaps at most 28 pixels wide.
    assert 1200 < picture.width < 1200 + 4 * 28


def test_the_legend_has_the_classes_that_occur() -> None:
    first = np.array([[0, 0]], np.uint8)
    assert drawing.present_classes(CLASSES, first) == {"sky": COLORS[0]}
    second = np.array([[2, 255]], np.uint8)
    found = drawing.present_classes(CLASSES, first, second)
    assert found == {"sky": COLORS[0], "road": COLORS[2], "void": COLORS[255]}
    assert drawing.present_classes(CLASSES) == {}


def test_the_legend_is_drawn_and_breaks_into_rows() -> None:
    rows = tuple(ClassRow(f"class number {i}", (i, 255 - i, 7)) for i in range(40))
    labels = np.arange(40, dtype=np.uint8)[None]
    image = np.zeros((1, 40, 3), np.uint8)
    without = drawing.side_by_side({"image": image}, ClassTable(rows))
    legend = drawing.side_by_side({"labels": labels}, ClassTable(rows))
    assert legend.height > without.height + 40
    below = np.asarray(legend)[without.height :]
    for row in rows:
        assert (below == row.color).all(axis=-1).sum() > 50


def test_long_and_foreign_titles_are_drawn() -> None:
    title = "ein überaus langer Titel, 図 4, " * 10
    picture = drawing.side_by_side({title: random_image(20, 30)}, CLASSES)
    assert picture.width < 300


@pytest.mark.parametrize("installed", [True, False])
def test_names_in_letters_that_the_font_lacks(tmp_path, monkeypatch, capsys, installed) -> None:
    """They are drawn in a font that has them, or as numbers with one note, and never warn."""
    names = ("道路", "sky", "a$b", "$\\frac{", "机动车")
    table = ClassTable(tuple(ClassRow(name, (9 * i, 0, 0)) for i, name in enumerate(names)))
    files = drawing._font_files()
    letters = {files[drawing.MAIN_FONT]: frozenset(range(256))}
    if installed:
        letters[files["DejaVu Serif"]] = frozenset(map(ord, "道路机动车"))
    monkeypatch.setattr(drawing, "_letters_in", lambda file: letters.get(file, frozenset()))
    drawing._tell_of_numbers.cache_clear()
    fonts = ["DejaVu Sans", "DejaVu Serif"] if installed else ["DejaVu Sans"]
    drawn = list(names) if installed else ["0", "sky", "a$b", "$\\frac{", "4"]
    assert drawing.legible(names) == (drawn, fonts)
    assert drawing.legible(names[1:3])[1] == ["DejaVu Sans"]
    if installed:  # of several fonts each gives what it alone has
        letters[files["DejaVu Sans Mono"]] = frozenset(map(ord, "שמיים"))
        fonts = ["DejaVu Sans", "DejaVu Serif", "DejaVu Sans Mono"]
        assert drawing.legible([*names, "שמיים"]) == ([*names, "שמיים"], fonts)
    labels = np.arange(5, dtype=np.uint8)[None]
    with warnings.catch_warnings(action="ignore" if installed else "error"):
        drawing.side_by_side({"labels": labels}, table)
        draw_confusion(tmp_path / "c.png", np.eye(5, dtype=np.int64), table, title="of $a_")
    assert capsys.readouterr().err.count("note:") == (0 if installed else 1)


@pytest.mark.parametrize("number", [1, 2, 7])
def test_a_sheet_holds_every_picture(number) -> None:
    rng = np.random.default_rng(number)
    sizes = rng.integers(5, 30, (number, 2))
    pictures = [Image.fromarray(rng.integers(0, 250, (*size, 3), np.uint8)) for size in sizes]
    sheet = np.asarray(drawing.sheet(pictures))
    assert sheet.shape[0] % max(sizes[:, 0]) == sheet.shape[1] % max(sizes[:, 1]) == 0
    assert 0.3 < sheet.shape[0] / sheet.shape[1] < 3
    drawn = sorted(color for color in sheet.reshape(-1, 3).tolist() if color != [255] * 3)
    assert drawn == sorted(c for p in pictures for c in np.asarray(p).reshape(-1, 3).tolist())


def test_no_panel_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one panel"):
        drawing.side_by_side({}, CLASSES)


def test_a_real_photograph_with_its_labels(shared) -> None:
    from fcn_jax.data.camvid import CAMVID

    folder = shared / "data" / "CamVid"
    path = sorted((folder / "val").iterdir())[0]
    image = np.asarray(Image.open(path).convert("RGB"))
    raw = np.asarray(Image.open(folder / "valannot" / f"{path.stem}.png"))
    labels = CAMVID.to_labels(raw)
    picture = drawing.side_by_side({"image": image, "ground truth": labels}, CAMVID)
    assert picture.width > 2 * image.shape[1]
    assert contains(np.asarray(picture), image[:50, :50])
