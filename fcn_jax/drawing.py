"""Label maps as pictures: palettes, overlays, and panels side by side with a legend.

Label maps are uint8 with 255 for void; images are uint8 RGB.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Bool, Float, UInt8
from PIL import Image, ImageDraw, ImageFont

from fcn_jax.classes import VOID, ClassTable

Color = tuple[int, int, int]

_PAPER: Color = (255, 255, 255)
_INK: Color = (32, 32, 32)
_OUTLINE: Color = (150, 150, 150)

# Panels are shown this large (longer side, in pixels): small images would leave no room for the
# titles, and very large ones would make pictures that no viewer opens with pleasure.
_SMALLEST_PANEL = 256
_LARGEST_PANEL = 800


# ======================================================================== single label maps


def colorize(labels: UInt8[np.ndarray, "h w"], classes: ClassTable) -> UInt8[np.ndarray, "h w 3"]:
    """Paints each pixel in the colour of its class."""
    return classes.palette[labels]


def palette_image(labels: UInt8[np.ndarray, "h w"], classes: ClassTable) -> Image.Image:
    """A label map as a palette image (mode P), the form of PASCAL VOC's label files.

    The pixels hold the labels themselves; viewers show the classes' colours.
    """
    image = Image.fromarray(labels)
    image.putpalette(classes.palette.tobytes())  # turns mode L into P and keeps the values
    return image


def heatmap(
    image: UInt8[np.ndarray, "h w 3"],
    scores: Float[np.ndarray, "h w"],
    *,
    alpha: float = 0.6,
) -> UInt8[np.ndarray, "h w 3"]:
    """Lays a class's scores over the photograph in grey, from blue (lowest) over green to red.

    Args:
        image: The photograph.
        scores: Of each pixel, on any scale; their own range is spread over the colours.
        alpha: Weight of the colours.

    Raises:
        ValueError: If the two differ in size.
    """
    if scores.shape != image.shape[:2]:
        raise ValueError(f"scores of {scores.shape} do not fit an image of {image.shape[:2]}")
    low, high = float(scores.min()), float(scores.max())
    place = (scores - low) / (high - low) if high > low else np.zeros_like(scores)
    # Each primary is a triangle over the range, as in the "jet" of the paper's figure 2.
    peaks = np.array([0.75, 0.5, 0.25])
    colors = np.clip(1.5 - np.abs(4 * (place[..., None] - peaks)), 0, 1)
    grey = image.mean(axis=-1, keepdims=True)
    return np.rint((1 - alpha) * grey + alpha * 255 * colors).astype(np.uint8)


def overlay(
    image: UInt8[np.ndarray, "h w 3"],
    labels: UInt8[np.ndarray, "h w"],
    classes: ClassTable,
    *,
    alpha: float = 0.5,
    edges: bool = True,
) -> UInt8[np.ndarray, "h w 3"]:
    """Lays the classes' colours over the photograph; void pixels keep the photograph.

    Args:
        image: The photograph.
        labels: Its label map, of the same height and width.
        classes: Gives the colours.
        alpha: Weight of the colours, 0 (photograph only) to 1 (colours only).
        edges: Whether to draw the borders between classes in white.

    Raises:
        ValueError: If the sizes differ or ``alpha`` is outside 0..1.
    """
    if image.shape[:2] != labels.shape:
        raise ValueError(f"the image is {image.shape[:2]} pixels but its labels {labels.shape}")
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha must be from 0 to 1, not {alpha}")
    blend = (1 - alpha) * image.astype(np.float32) + alpha * classes.palette[labels]
    out = np.where((labels == VOID)[..., None], image, np.rint(blend).astype(np.uint8))
    if edges:
        # One pixel is right for a screenful; lines grow with the photograph.
        out[_borders(labels, thickness=max(1, round(max(labels.shape) / 600)))] = 255
    return out


def _borders(labels: UInt8[np.ndarray, "h w"], thickness: int) -> Bool[np.ndarray, "h w"]:
    """Pixels whose right or lower neighbour is of another class, neither of them void."""
    border = np.zeros(labels.shape, bool)
    valid = labels != VOID
    border[:, :-1] |= (labels[:, :-1] != labels[:, 1:]) & valid[:, :-1] & valid[:, 1:]
    border[:-1] |= (labels[:-1] != labels[1:]) & valid[:-1] & valid[1:]
    for _ in range(thickness - 1):
        border[1:] |= border[:-1]
        border[:, 1:] |= border[:, :-1]
    return border & valid


# ======================================================================== panels


def side_by_side(
    panels: Mapping[str, UInt8[np.ndarray, "h w 3"] | UInt8[np.ndarray, "h w"]],
    classes: ClassTable,
) -> Image.Image:
    """Draws titled panels in one row on white: figure 4 of the paper for any data.

    A legend under them names the classes that occur. Panels smaller than 256 pixels are enlarged
    by a whole factor (each pixel stays a square), larger ones than 800 reduced, by one factor for
    all.

    Args:
        panels: By title, in order: RGB images, or label maps to paint; sizes may differ.
        classes: Gives colours and names.

    Raises:
        ValueError: If there is no panel.
    """
    if not panels:
        raise ValueError("side_by_side needs at least one panel")
    maps = [panel for panel in panels.values() if panel.ndim == 2]
    colored = [colorize(panel, classes) if panel.ndim == 2 else panel for panel in panels.values()]
    pictures = _display_size(colored)
    font = _font(max(picture.width for picture in pictures))
    gap = round(font.size * 0.7)
    title_height = round(font.size * 1.5)
    titles = [
        _fit(title, font, picture.width) for title, picture in zip(panels, pictures, strict=True)
    ]
    row_width = sum(picture.width + gap for picture in pictures) + gap
    entries = _place_legend(present_classes(classes, *maps), font, row_width - 2 * gap)
    width = max([row_width] + [2 * gap + right for *_, right in entries])
    legend_top = gap + title_height + max(picture.height for picture in pictures) + gap
    rows = 1 + max((row for _, _, row, _, _ in entries), default=-1)

    canvas = Image.new("RGB", (width, legend_top + rows * title_height), _PAPER)
    draw = ImageDraw.Draw(canvas)
    left = gap
    for title, picture in zip(titles, pictures, strict=True):
        middle = gap + title_height / 2 - gap / 4
        draw.text((left + picture.width / 2, middle), title, _INK, font, anchor="mm")
        canvas.paste(picture, (left, gap + title_height))
        left += picture.width + gap
    for name, color, row, x, _ in entries:
        top = legend_top + row * title_height
        swatch = (gap + x, top, gap + x + font.size, top + font.size)
        draw.rounded_rectangle(swatch, font.size / 5, fill=color, outline=_OUTLINE)
        draw.text((gap + x + 1.4 * font.size, top + font.size / 2), name, _INK, font, anchor="lm")
    return canvas


def present_classes(classes: ClassTable, *label_maps: UInt8[np.ndarray, "h w"]) -> dict[str, Color]:
    """Name and colour of each class that occurs in any of the maps, in the table's order."""
    present = np.zeros(256, bool)
    for labels in label_maps:
        present[labels] = True
    palette = classes.palette
    found = {
        name: tuple(palette[label].tolist())
        for label, name in enumerate(classes.names)
        if present[label]
    }
    if present[VOID]:
        found.setdefault("void", tuple(palette[VOID].tolist()))
    return found


def _display_size(pictures: Sequence[UInt8[np.ndarray, "h w 3"]]) -> list[Image.Image]:
    """Enlarges or reduces pictures by one factor, so that details stay comparable."""
    longest = max(max(picture.shape[:2]) for picture in pictures)
    enlarge = max(1, _SMALLEST_PANEL // longest)
    reduce = min(1.0, _LARGEST_PANEL / longest)
    out = []
    for picture in map(Image.fromarray, pictures):
        factor = enlarge if reduce == 1 else reduce
        size = [max(1, round(side * factor)) for side in picture.size]
        method = Image.Resampling.NEAREST if reduce == 1 else Image.Resampling.LANCZOS
        out.append(picture.resize(size, method))
    return out


def _font(panel_width: int) -> ImageFont.FreeTypeFont:
    """Pillow's own font, no files needed, in a size that suits a panel."""
    font = ImageFont.load_default(min(28, max(13, panel_width // 22)))
    if not isinstance(font, ImageFont.FreeTypeFont):
        raise RuntimeError("this Pillow was built without FreeType, which draws the titles")
    return font


def _plain(text: str) -> str:
    """Without accents: Pillow's own font has little more than the ASCII letters."""
    letters = unicodedata.normalize("NFKD", text)
    return "".join(c for c in letters if not unicodedata.combining(c))


def _fit(text: str, font: ImageFont.FreeTypeFont, width: int) -> str:
    """Shortens a text to a width in pixels."""
    text = _plain(text)
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "...") > width:
        text = text[:-1]
    return text + "..."


def _place_legend(
    legend: Mapping[str, Color], font: ImageFont.FreeTypeFont, width: int
) -> list[tuple[str, Color, int, int, int]]:
    """Breaks the legend into rows: (name, colour, row, left, right) of each entry."""
    entries = []
    row, left = 0, 0
    for name, color in legend.items():
        name = _plain(name)
        right = left + round(font.getlength(name) + 1.4 * font.size)
        if left and right > width:
            row, right, left = row + 1, right - left, 0
        entries.append((name, color, row, left, right))
        left = right + round(1.2 * font.size)
    return entries
