"""Label maps as pictures: palettes, overlays, and panels side by side with a legend.

Label maps are uint8 with 255 for void; images are uint8 RGB.
"""

from __future__ import annotations

import functools
import math
import sys
import warnings
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from fcn_jax.classes import VOID, ClassTable

# ======================================================================== single label maps


def palette_image(labels: UInt8[np.ndarray, "h w"], classes: ClassTable) -> Image.Image:
    """A label map as a palette image (mode P), the form of PASCAL VOC's label files.

    The pixels hold the labels themselves; viewers show the classes' colours.
    """
    image = Image.fromarray(labels)
    image.putpalette(classes.palette.tobytes())  # turns mode L into P and keeps the values
    return image


def heatmap(
    image: UInt8[np.ndarray, "h w 3"], logits: Float[np.ndarray, "_ _"], *, alpha: float = 0.6
) -> UInt8[np.ndarray, "h w 3"]:
    """Lays a class's logits over the photograph in grey, from blue (lowest) over green to red.

    Raises:
        ValueError: If the two differ in size.
    """
    if logits.shape != image.shape[:2]:
        raise ValueError(f"logits of {logits.shape} do not fit an image of {image.shape[:2]}")
    low, high = float(logits.min()), float(logits.max())
    place = (logits - low) / (high - low) if high > low else np.zeros_like(logits)
    # Each primary is a triangle over the range: the "jet" of the paper's figure 2. Matplotlib's map
    # of that name is neither symmetric nor continuous (256 colours).
    peaks = np.array([0.75, 0.5, 0.25])
    colors = np.clip(1.5 - np.abs(4 * (place[..., None] - peaks)), 0, 1)
    grey = image.mean(axis=-1, keepdims=True)
    return np.rint((1 - alpha) * grey + alpha * 255 * colors).astype(np.uint8)


def overlay(
    image: UInt8[np.ndarray, "h w 3"],
    labels: UInt8[np.ndarray, "_ _"],
    classes: ClassTable,
    *,
    alpha: float = 0.5,
    edges: bool = True,
) -> UInt8[np.ndarray, "h w 3"]:
    """Lays the classes' colours over the photograph; void pixels keep the photograph.

    ``alpha`` is the weight of the colours, from 0 (photograph only) to 1 (colours only);
    ``edges`` draws the borders between classes in white.

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
        # Pixels whose right or lower neighbour is of another class, neither of them void.
        border, valid = np.zeros(labels.shape, bool), labels != VOID
        border[:, :-1] |= (labels[:, :-1] != labels[:, 1:]) & valid[:, :-1] & valid[:, 1:]
        border[:-1] |= (labels[:-1] != labels[1:]) & valid[:-1] & valid[1:]
        # One pixel is right for a screenful; lines grow with the photograph.
        for _ in range(max(1, round(max(labels.shape) / 600)) - 1):
            border[1:] |= border[:-1]
            border[:, 1:] |= border[:, :-1]
        out[border & valid] = 255
    return out


# ======================================================================== panels

MAIN_FONT = "DejaVu Sans"  # comes with Matplotlib


def legible(names: Sequence[str]) -> tuple[list[str], list[str]]:
    """Names as Matplotlib can draw them, and the fonts to draw them in.

    Letters that its own font lacks, such as Chinese ones, are taken from a font that is installed.
    Where none has them, a name becomes its number, which is told once.
    """
    own = _letters_in(_font_files()[MAIN_FONT])
    missing = {ord(letter) for letter in "".join(names)} - own
    fonts = [MAIN_FONT]
    if missing:
        found = {font: len(missing & _letters_in(file)) for font, file in _font_files().items()}
        best = max(found, key=lambda font: found[font])
        if found[best]:
            fonts.append(best)
            missing -= _letters_in(_font_files()[best])
        if missing:
            _tell_of_numbers()
    numbered = enumerate(names)
    return [str(i) if missing & {*map(ord, name)} else name for i, name in numbered], fonts


@functools.cache
def _font_files() -> dict[str, str]:
    from matplotlib import font_manager

    # The font "of last resort" has a box for every letter there is.
    fonts = {font.name: font.fname for font in font_manager.fontManager.ttflist}
    return {name: fonts[name] for name in sorted(fonts) if not name.startswith("Last Resort")}


@functools.cache
def _letters_in(file: str) -> frozenset[int]:
    from matplotlib import ft2font

    try:
        return frozenset(ft2font.FT2Font(file).get_charmap())
    except (OSError, RuntimeError):  # damaged, or since removed
        return frozenset()


@functools.cache
def _tell_of_numbers() -> None:
    print(
        "note: no font has all letters of the classes' names; their numbers stand for them in "
        "pictures (install one such as Noto Sans CJK)",
        file=sys.stderr,
    )


def side_by_side(
    panels: Mapping[str, UInt8[np.ndarray, "_ _ 3"] | UInt8[np.ndarray, "_ _"]],
    classes: ClassTable,
) -> Image.Image:
    """Draws RGB images and label maps of any sizes in one row on white, under their titles.

    It is figure 4 of the paper for any data: a legend names the classes that occur. Panels smaller
    than 256 pixels are enlarged by a whole factor (each pixel stays a square), larger ones than 800
    reduced, by one factor for all.

    Raises:
        ValueError: If there is no panel.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure  # not pyplot: that would look for a screen
    from matplotlib.font_manager import FontProperties
    from matplotlib.patches import Patch
    from matplotlib.transforms import IdentityTransform

    if not panels:
        raise ValueError("side_by_side needs at least one panel")
    maps = [panel for panel in panels.values() if panel.ndim == 2]
    longest = max(max(panel.shape[:2]) for panel in panels.values())
    # Small panels would leave no room for titles; no viewer opens very large ones with pleasure.
    factor = min(max(1, 256 // longest), 800 / longest)
    method = Image.Resampling.LANCZOS if factor < 1 else Image.Resampling.NEAREST
    pictures = []
    for panel in panels.values():
        picture = Image.fromarray(classes.palette[panel] if panel.ndim == 2 else panel)
        size = [max(1, round(side * factor)) for side in picture.size]
        pictures.append(picture.resize(size, method))
    # Everything is placed in pixels, so that a panel's pixels are those of the picture.
    letter = min(28, max(13, max(picture.width for picture in pictures) // 22))
    gap, line = round(letter * 0.7), round(letter * 1.5)
    figure = Figure(dpi=72)
    renderer = FigureCanvasAgg(figure).get_renderer()
    drawn, fonts = legible(classes.names)
    drawn_names = dict(zip(classes.names, drawn, strict=True))
    font = FontProperties(family=fonts, size=letter)

    def width_of(text: str) -> float:
        return renderer.get_text_width_height_descent(text, font, ismath=False)[0]

    with warnings.catch_warnings():
        # Letters of titles that the fonts lack are drawn as boxes, and need no warning each.
        warnings.filterwarnings("ignore", message="Glyph")
        width = sum(picture.width + gap for picture in pictures) + gap
        bottom = gap
        if present := present_classes(classes, *maps):
            entries = [drawn_names.get(name, name) for name in present]
            entry = max(map(width_of, entries)) + 2.6 * letter
            colors = [f"#{bytes(color).hex()}" for color in present.values()]
            legend = figure.legend(
                [Patch(facecolor=color, edgecolor="0.6", linewidth=1) for color in colors],
                ["class"] * len(entries),
                ncols=max(1, int((width - gap) // entry)),
                loc="lower left",
                bbox_to_anchor=(gap, gap),
                bbox_transform=IdentityTransform(),
                prop=font,
                frameon=False,
                borderpad=0,
                borderaxespad=0,
                handlelength=1,
                handleheight=1,
                handletextpad=0.4,
                columnspacing=1.2,
            )
            for text, name in zip(legend.get_texts(), entries, strict=True):
                text.set_text(name)  # as a label, "_" at its beginning would hide it
                text.set_parse_math(False)
            box = legend.get_window_extent(renderer)
            width, bottom = max(width, math.ceil(box.width) + 2 * gap), math.ceil(box.y1) + gap
        top = bottom + max(picture.height for picture in pictures)
        figure.set_size_inches(width / 72, (top + line + gap) / 72)
        left = gap
        for title, picture in zip(panels, pictures, strict=True):
            figure.figimage(np.asarray(picture), left, top - picture.height, origin="upper")
            while width_of(title) > picture.width and len(title) > 1:
                title = title[:-2] + "…"
            text = figure.text(left + picture.width / 2, top + line / 2, title, parse_math=False)
            text.set(transform=IdentityTransform(), fontproperties=font)
            text.set(ha="center", va="center_baseline")
            left += picture.width + gap
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
    return Image.fromarray(np.array(canvas.buffer_rgba())[..., :3])


def sheet(pictures: Sequence[Image.Image]) -> Image.Image:
    """Pictures of any sizes row by row on one white sheet, about as wide as it is high."""
    width, height = (max(picture.size[axis] for picture in pictures) for axis in (0, 1))
    columns = max(1, round(math.sqrt(len(pictures) * height / width)))
    drawn = Image.new("RGB", (columns * width, -(-len(pictures) // columns) * height), "white")
    for number, picture in enumerate(pictures):
        row, column = divmod(number, columns)
        drawn.paste(picture, (column * width, row * height))
    return drawn


def present_classes(
    classes: ClassTable, *label_maps: UInt8[np.ndarray, "_ _"]
) -> dict[str, tuple[int, ...]]:
    """Name and colour of each class that occurs in any of the maps, in the table's order."""
    present = np.zeros(256, bool)
    for labels in label_maps:
        present[labels] = True
    names = {**dict(enumerate(classes.names)), VOID: "void"}
    found: dict[str, tuple[int, ...]] = {}
    for label, name in names.items():
        if present[label]:
            found.setdefault(name, tuple(classes.palette[label].tolist()))
    return found
