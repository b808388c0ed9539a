"""Label maps as pictures: palettes, overlays, and panels side by side with a legend.

Label maps are uint8 with 255 for void; images are uint8 RGB.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import sys
import warnings
from collections.abc import Collection, Mapping, Sequence

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


def jet(values: Float[np.ndarray, "*shape"]) -> Float[np.ndarray, "*shape 3"]:
    """Colours from blue (0) over green to red (1), each primary from 0 to 1.

    Each primary is a triangle over the range: the "jet" of the paper's figure 2. Matplotlib's map
    of that name is neither symmetric nor continuous (256 colours).
    """
    peaks = np.array([0.75, 0.5, 0.25])
    return np.clip(1.5 - np.abs(4 * (values[..., None] - peaks)), 0, 1)


def heatmap(
    image: UInt8[np.ndarray, "h w 3"],
    logits: Float[np.ndarray, "_ _"],
    *,
    limits: tuple[float, float] | None = None,
    alpha: float = 0.6,
) -> UInt8[np.ndarray, "h w 3"]:
    """Lays a class's logits over the photograph in grey, from blue (lowest) over green to red.

    ``limits`` are the logits that are blue and red, so that several maps have one scale
    (`color_bar` draws it); None: the lowest and the highest of these.

    Raises:
        ValueError: If the two differ in size.
    """
    if logits.shape != image.shape[:2]:
        raise ValueError(f"logits of {logits.shape} do not fit an image of {image.shape[:2]}")
    low, high = limits or (float(logits.min()), float(logits.max()))
    place = (logits - low) / (high - low) if high > low else np.zeros_like(logits)
    grey = image.mean(axis=-1, keepdims=True)
    return np.rint((1 - alpha) * grey + alpha * 255 * jet(place)).astype(np.uint8)


def color_bar(low: float, high: float, title: str) -> Image.Image:
    """The scale of heat maps: what logits their colours stand for."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    (drawn,), fonts = legible([title])
    figure = Figure(figsize=(5, 1), dpi=100)
    axes = figure.add_axes((0.06, 0.42, 0.88, 0.25))
    room = 0.0 if high > low else 0.5  # one value everywhere is the lowest
    colors = jet(np.linspace(0, 1, 256))[None]
    axes.imshow(colors, aspect="auto", extent=(low, high + room, 0, 1))
    axes.set_yticks([])
    axes.set_title(drawn, fontfamily=fonts, parse_math=False)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return Image.fromarray(np.array(canvas.buffer_rgba())[..., :3])


def overlay(
    image: UInt8[np.ndarray, "h w 3"],
    labels: UInt8[np.ndarray, "_ _"],
    classes: ClassTable,
    *,
    alpha: float = 0.5,
    edges: bool = True,
    clear: Collection[int] = (),
) -> UInt8[np.ndarray, "h w 3"]:
    """Lays the classes' colours over the photograph, which shows where pixels are void or `clear`.

    ``alpha`` is the weight of the colours, from 0 (photograph only) to 1 (colours only);
    ``edges`` draws the borders between classes in white; ``clear`` are labels without colour, such
    as that of a background. `bright` makes colours that are seen on any photograph.

    Raises:
        ValueError: If the sizes differ or ``alpha`` is outside 0..1.
    """
    if image.shape[:2] != labels.shape:
        raise ValueError(f"the image is {image.shape[:2]} pixels but its labels {labels.shape}")
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha must be from 0 to 1, not {alpha}")
    weights = np.full((256, 1), alpha, np.float32)
    weights[[VOID, *clear]] = 0
    colors, rest = weights * classes.palette, 1 - weights
    out = np.empty_like(image)
    step = max(1, (1 << 18) // labels.shape[1])  # floats of a few rows at a time
    for rows in (slice(top, top + step) for top in range(0, len(labels), step)):
        out[rows] = np.rint(rest[labels[rows]] * image[rows] + colors[labels[rows]])
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


def bright(classes: ClassTable) -> ClassTable:
    """The same classes in bright colours of which no two are equal: for overlays and their legend.

    A class keeps the hue of its own colour, at full brightness; where that is grey or nearly that
    of a class before it, it gets the bright colour that is farthest from all others. (A data set's
    own colours may be dark, such as VOC's, or alike.)
    """
    hues, saturations, values = np.meshgrid(np.arange(32) / 32, (1, 0.7, 0.4, 0.55), (1, 0.85, 0.7))
    triangle = np.abs((hues[..., None] * 6 + (0, 4, 2)) % 6 - 3) - 1
    shades = values[..., None] * (1 - saturations[..., None] * (1 - np.clip(triangle, 0, 1)))
    shades = np.rint(255 * shades).reshape(-1, 3)
    colors = np.array([row.color for row in classes.counted], float)
    colors *= 255 / np.maximum(1, colors.max(axis=1, keepdims=True))
    nearest = np.full(len(shades), np.inf)  # of each shade to the colours that are taken
    taken: dict[int, np.ndarray] = {}

    def take(label: int, color: np.ndarray) -> None:
        taken[label] = color
        np.minimum(nearest, np.linalg.norm(shades - color, axis=1), out=nearest)

    for label, color in enumerate(np.rint(colors)):
        distances = [np.linalg.norm(color - other) for other in taken.values()]
        if color.max() - color.min() >= 64 and min(distances, default=255) >= 64:
            take(label, color)
    for label in range(len(colors)):
        if label not in taken:
            take(label, shades[np.argmax(nearest)])
    new = iter(tuple(map(int, taken[label])) for label in range(len(colors)))
    return ClassTable(
        tuple(
            row if row.ignored else dataclasses.replace(row, color=next(new))
            for row in classes.rows
        )
    )


def legend(classes: ClassTable) -> Image.Image:
    """The colour, the number and the name of every class."""
    import io

    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    names, fonts = legible(classes.names)
    colors = [np.array(row.color) / 255 for row in classes.counted]
    figure = Figure(dpi=100)
    drawn = figure.legend(
        [Patch(facecolor=tuple(color), edgecolor="0.6") for color in colors],
        ["class"] * len(names),
        ncols=-(-len(names) // 40),
        loc="center",
        prop={"family": fonts, "size": 11},
        frameon=False,
        handlelength=1.4,
        handleheight=1.4,
    )
    for number, (text, name) in enumerate(zip(drawn.get_texts(), names, strict=True)):
        text.set_text(f"{number}  {name}" if name != str(number) else name)
        text.set_parse_math(False)
    file = io.BytesIO()
    figure.savefig(file, bbox_inches="tight", bbox_extra_artists=[drawn], facecolor="white")
    return Image.open(file).convert("RGB")


# ======================================================================== panels

MAIN_FONT = "DejaVu Sans"  # comes with Matplotlib


def legible(names: Sequence[str]) -> tuple[list[str], list[str]]:
    """Names as Matplotlib can draw them, and the fonts to draw them in.

    Letters that its own font lacks, such as Chinese ones, are taken from fonts that are installed.
    Where none has them, a name becomes its number, which is told once.
    """
    own = _letters_in(_font_files()[MAIN_FONT])
    missing = {ord(letter) for letter in "".join(names)} - own
    fonts = [MAIN_FONT]
    while missing:
        found = {font: missing & _letters_in(file) for font, file in _font_files().items()}
        best = max(found, key=lambda font: len(found[font]))
        if not found[best]:
            _tell_of_numbers()
            break
        fonts.append(best)
        missing -= found[best]
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
        font = ft2font.FT2Font(file)
        return frozenset(font.get_charmap()) if font.scalable else frozenset()  # no emoji bitmaps
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
