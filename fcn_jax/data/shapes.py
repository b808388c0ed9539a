"""`shapes`: made-up pictures of textured shapes with thin parts, the quickstart's data.

Five classes over textured ground: disc (with antennae), box (with a handle), triangle (with legs),
ring (with spokes) and star (of rays). Hue and the direction of the texture hint at the class but
are noisy; the outline decides. Bodies are 30 to 60 pixels wide, thin parts 3 to 4 pixels, so that
a network of stride 32 finds the bodies and only finer strides draw the rest. A void border of one
to two pixels surrounds every shape, as in PASCAL VOC.

Every picture depends on (seed, split, number) alone. Shapes are signed distance functions: the
distance in pixels to the outline, negative inside, from which the smooth edge, the label, the
void border and the shadow all follow.
"""

from __future__ import annotations

import functools

import numpy as np
from jaxtyping import Float, UInt8

from fcn_jax.classes import VOID, load_class_table
from fcn_jax.data.files import package_file
from fcn_jax.data.images import encoded_pixels
from fcn_jax.data.records import Contents, Entry, Part, Plan

SHAPES = load_class_table(package_file("shapes_classes.csv"))
"""The made-up data set of `fcn_jax.data.shapes`."""

Generator = np.random.Generator
Map = Float[np.ndarray, "h w"]
Picture = Float[np.ndarray, "h w 3"]
VOID_BORDER = 1.5  # px outside the outline
RADII = (20.0, 31.0)  # px, of whole shapes

HUES = {"disc": 0.03, "box": 0.13, "triangle": 0.36, "ring": 0.60, "star": 0.82}
STRIPES = {"disc": 0.1, "box": 0.3, "triangle": 0.5, "ring": 0.7, "star": 0.9}  # of half a turn


def plan(*, train: int = 400, val: int = 100, size: int = 96, seed: int = 0) -> Plan:
    """What the options make.

    Args:
        train: Number of training images.
        val: Number of validation images.
        size: Height and width in pixels, at least 48.
        seed: Another seed makes other pictures.
    """
    if train < 1 or val < 1 or size < 48 or seed < 0:
        raise ValueError(
            f"shapes needs train >= 1, val >= 1, size >= 48 and seed >= 0, "
            f"not train={train}, val={val}, size={size}, seed={seed}"
        )

    splits = {
        split: [
            Entry(
                f"{split}_{number:05d}",
                functools.partial(_load, (seed, split_number, number), size),
            )
            for number in range(count)
        ]
        for split_number, (split, count) in enumerate({"train": train, "val": val}.items())
    }
    contents = Contents(splits, {"label": SHAPES}, f"made by fcn_jax from seed {seed}")
    return Plan(f"train{train}-val{val}-size{size}-seed{seed}", lambda: contents)


def _load(seed: tuple[int, int, int], size: int) -> dict[str, Part]:
    image, label = draw_example(np.random.default_rng(seed), size)
    return {"image": encoded_pixels(image), "label": label}


def draw_example(
    rng: Generator, size: int = 96
) -> tuple[UInt8[np.ndarray, "h w 3"], UInt8[np.ndarray, "h w"]]:
    """Draw one picture of two to four shapes, and its labels."""
    ys, xs = np.mgrid[:size, :size].astype(np.float64)
    image = _ground(rng, xs, ys)
    label = np.zeros((size, size), np.uint8)
    for x, y, radius in _places(rng, size):
        index = int(rng.integers(1, len(SHAPES.rows)))
        name = SHAPES.names[index]
        turn = rng.uniform(-0.5, 0.5) + np.pi * rng.integers(2) * (name in ("box", "ring"))
        outline = functools.partial(OUTLINES[name], rng=np.random.default_rng(rng.integers(2**32)))
        dx, dy = xs - x, ys - y
        u = (dx * np.cos(turn) + dy * np.sin(turn)) / radius
        v = (dy * np.cos(turn) - dx * np.sin(turn)) / radius
        distance = outline(u, v, 1 / radius) * radius
        image = _paint(rng, image, name, distance, xs, ys)
        label[distance <= VOID_BORDER] = VOID
        label[distance <= 0] = index
    image = image + rng.normal(0, 0.02, (size, size, 1)) + rng.normal(0, 0.015, image.shape)
    return np.rint(np.clip(image, 0, 1) * 255).astype(np.uint8), label


def _places(rng: Generator, size: int) -> list[tuple[float, float, float]]:
    """Centre and radius of each shape; a few overlap a little, most do not."""
    wanted = int(rng.integers(2, 5)) if size <= 128 else int(rng.integers(2, 5) * (size / 96) ** 2)
    places: list[tuple[float, float, float]] = []
    for _ in range(wanted * 12):
        radius = rng.uniform(*RADII)
        x, y = rng.uniform(0.7 * radius, size - 0.7 * radius, 2)
        if all(np.hypot(x - a, y - b) > 0.95 * (radius + r) for a, b, r in places):
            places.append((x, y, radius))
        if len(places) == wanted:
            break
    return places


# Outlines. Coordinates are in radii of the shape; `px` is one pixel in them. Antennae, handles
# and the like are capsules: lines with a width.


def _capsule(u: Map, v: Map, a: tuple[float, float], b: tuple[float, float], half: float) -> Map:
    du, dv = b[0] - a[0], b[1] - a[1]
    t = np.clip(((u - a[0]) * du + (v - a[1]) * dv) / (du * du + dv * dv), 0, 1)
    return np.hypot(u - a[0] - t * du, v - a[1] - t * dv) - half


def _union(*parts: Map) -> Map:
    return functools.reduce(np.minimum, parts)


def disc(u: Map, v: Map, px: float, *, rng: Generator) -> Map:
    body = np.hypot(u, v - 0.25) - 0.66
    spread = rng.uniform(0.45, 0.75)
    half = rng.uniform(1.5, 2.0) * px
    feelers = [_capsule(u, v, (s * 0.2, -0.3), (s * spread, -1.05), half) for s in (-1, 1)]
    knobs = [np.hypot(u - s * spread, v + 1.05) - 2.6 * px for s in (-1, 1)]
    return _union(body, *feelers, *knobs)


def box(u: Map, v: Map, px: float, *, rng: Generator) -> Map:
    a, b = 0.58 * rng.uniform(0.9, 1.1), 0.5 * rng.uniform(0.85, 1.15)
    q, r = np.abs(u) - a, np.abs(v - 0.2) - b
    body = np.hypot(np.maximum(q, 0), np.maximum(r, 0)) + np.minimum(np.maximum(q, r), 0)
    half = rng.uniform(1.5, 2.0) * px
    post, bar = ((0.0, 0.0), (0.0, -0.95)), ((-0.5, -0.95), (0.5, -0.95))
    return _union(body, _capsule(u, v, *post, half), _capsule(u, v, *bar, half))


def triangle(u: Map, v: Map, px: float, *, rng: Generator) -> Map:
    sides = [(0.0, 1.0), (0.87, -0.5), (-0.87, -0.5)]
    body = functools.reduce(np.maximum, [u * a + (v + 0.1) * b for a, b in sides]) - 0.44
    half = rng.uniform(1.5, 2.0) * px
    foot = rng.uniform(0.85, 1.05)
    legs = [_capsule(u, v, (x, 0.3), (x * 1.25, foot), half) for x in (-0.42, 0.0, 0.42)]
    return _union(body, *legs)


def ring(u: Map, v: Map, px: float, *, rng: Generator) -> Map:
    width = rng.uniform(2.2, 2.8) * px
    rim = np.abs(np.hypot(u, v) - 0.8) - width
    hub = np.hypot(u, v) - 0.2
    half = rng.uniform(1.5, 1.8) * px
    angles = rng.uniform(0, np.pi) + np.arange(3) * 2 * np.pi / 3
    ends = [(0.8 * np.cos(t), 0.8 * np.sin(t)) for t in angles]
    spokes = [_capsule(u, v, (0.0, 0.0), end, half) for end in ends]
    return _union(rim, hub, *spokes)


def star(u: Map, v: Map, px: float, *, rng: Generator) -> Map:
    body = np.hypot(u, v) - 0.42
    rays = []
    for angle in rng.uniform(0, np.pi) + np.arange(6) * np.pi / 3:
        tip = (np.cos(angle), np.sin(angle))
        along = np.clip(u * tip[0] + v * tip[1], 0, 1)
        half = np.maximum(0.26 - 0.2 * along, 1.5 * px)  # rays taper to three pixels
        rays.append(np.hypot(u - along * tip[0], v - along * tip[1]) - half)
    return _union(body, *rays)


OUTLINES = {outline.__name__: outline for outline in (disc, box, triangle, ring, star)}


def _paint(rng: Generator, image: Picture, name: str, distance: Map, xs: Map, ys: Map) -> Picture:
    """Lay a textured shape with a soft shadow and a smooth edge over the image."""
    hue = HUES[name] + rng.normal(0, 0.035) if rng.random() > 0.08 else rng.random()
    angle = np.pi * (STRIPES[name] + rng.normal(0, 0.05))
    wavelength = rng.uniform(4, 7)
    phase = (xs * np.cos(angle) + ys * np.sin(angle)) * 2 * np.pi / wavelength
    stripes = 0.5 + 0.5 * np.sin(phase + rng.uniform(0, 2 * np.pi))
    shade = 1 + 0.25 * np.clip(-distance / 14, 0, 1)  # bodies swell towards their middle
    value = rng.uniform(0.55, 0.8) * shade * (0.82 + 0.3 * stripes)
    saturation = rng.uniform(0.55, 0.85) - 0.2 * stripes
    color = _hsv_to_rgb(np.full_like(value, hue % 1), saturation, value)
    fallen = np.pad(distance, ((2, 0), (2, 0)), mode="edge")[:-2, :-2]
    shadow = 0.35 * np.clip(1 - fallen / 5, 0, 1)
    cover = np.clip(0.5 - distance, 0, 1)[..., None]
    return image * (1 - shadow[..., None]) * (1 - cover) + color * cover


def _ground(rng: Generator, xs: Map, ys: Map) -> Picture:
    """Dull ground of mixed grain, with faint stripes and hairlines that belong to no class."""
    size = xs.shape[0]
    grain = sum(_noise(rng, size, cells) / (i + 1) for i, cells in enumerate((4, 9, 24)))
    patch = np.clip(_noise(rng, size, 4) * 1.5, 0, 1)
    angle, wavelength = rng.uniform(0, np.pi), rng.uniform(4, 9)
    stripes = np.sin((xs * np.cos(angle) + ys * np.sin(angle)) * 2 * np.pi / wavelength)
    value = rng.uniform(0.35, 0.65) + 0.1 * grain + 0.07 * patch * stripes
    for _ in range(int(rng.integers(2, 6))):
        direction, offset = rng.uniform(0, np.pi), rng.uniform(-size / 3, size / 3)
        across = (xs - size / 2) * np.cos(direction) + (ys - size / 2) * np.sin(direction) - offset
        bend = 4 * _noise(rng, size, 4)
        value = value + rng.choice((-0.13, 0.13)) * np.clip(1.3 - np.abs(across + bend), 0, 1)
    hue = rng.random() + 0.12 * _noise(rng, size, 4)
    saturation = np.clip(rng.uniform(0.05, 0.28) + 0.06 * _noise(rng, size, 9), 0, 1)
    return _hsv_to_rgb(hue % 1, saturation, np.clip(value, 0, 1))


def _noise(rng: Generator, size: int, cells: int) -> Map:
    """Smooth noise of about unit range: random values on a coarse grid, joined by cosines."""
    grid = rng.uniform(-1, 1, (cells + 2, cells + 2))
    position = np.arange(size) * cells / size
    low = position.astype(int)
    blend = (0.5 - 0.5 * np.cos(np.pi * (position - low)))[:, None]
    rows = grid[low] * (1 - blend) + grid[low + 1] * blend
    return rows[:, low] * (1 - blend.T) + rows[:, low + 1] * blend.T


def _hsv_to_rgb(hue: Map, saturation: Map, value: Map) -> Picture:
    sector = (hue[..., None] * 6 + np.array([5.0, 3.0, 1.0])) % 6
    peak = np.clip(np.minimum(sector, 4 - sector), 0, 1)
    return value[..., None] * (1 - saturation[..., None] * peak)
