"""HHA, the encoding of depth that FCN's NYUDv2 networks take in place of colour.

HHA is a picture of three geocentric quantities: horizontal disparity, height above the ground and
the angle of the local surface normal with gravity (Gupta, Girshick, Arbelaez and Malik, "Learning
Rich Features from RGB-D Images for Object Detection and Segmentation", ECCV 2014). The direction
of gravity is estimated from the normals (Gupta, Arbelaez and Malik, "Perceptual Organization and
Recognition of Indoor Scenes from RGB-D Images", CVPR 2013). The constants, which the papers do not
give, are those of the authors' program rcnn-depth, whose files the networks were trained on.

    encoded = hha(depth, nyu_camera(425, 560), raw_depth)  # uint8 (425, 560, 3)

Camera coordinates throughout: x to the right, y down, z along the optical axis, in metres.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Float, Num, UInt8, UInt16

NORMAL_RADIUS = 3
"""Radius in pixels of the window of the normals whose angle is shown: 7x7 pixels."""

GRAVITY_RADIUS = 10
"""Radius in pixels of the window of the smoother normals that gravity is estimated from."""

GRAVITY_PHASES = ((45.0, 5), (15.0, 5))
"""The threshold in degrees and the number of iterations of each phase of `gravity`."""

_DISPARITY_SCALE = 310.0  # grey levels at 1 m
_NEAREST = 1.0  # m; nearer points are treated as if they were there
_ANGLE_OFFSET = 128.0 - 90.0  # puts 90 degrees, a wall, at 128
_UNKNOWN_ANGLE = 180.0  # what the authors' program shows where there is no normal
# Where the lowest point is less than 0.9 m below the camera no floor is in view, and the ground is
# taken to be 1.3 m below the camera.
_FLOOR_IN_VIEW = -0.9  # m
_ASSUMED_FLOOR = -1.3  # m

# The colour camera of NYUDv2, in the toolbox's counting of pixels, from 1.
_NYU_FOCAL = (518.85790117450188, 519.46961112127485)
_NYU_CENTRE = (325.58244941119034, 253.73616633400465)
# First row and column, counted from 0, of the windows of 480x640 that NYUDv2 is used in.
_NYU_WINDOWS = {(480, 640): (0, 0), (425, 560): (45, 40)}


def nyu_camera(height: int, width: int) -> Float[np.ndarray, "3 3"]:
    """The camera matrix of NYUDv2's frames, in pixels, the first pixel's centre being (0, 0).

    480x640 is the published size; 425x560 is the window of rcnn-depth, and of FCN's data, without
    the white border. Any other size is a ValueError.
    """
    if (height, width) not in _NYU_WINDOWS:
        sizes = " and ".join(f"{h}x{w}" for h, w in _NYU_WINDOWS)
        raise ValueError(
            f"NYUDv2 frames are {sizes} (height x width), not {height}x{width}; for others, scale "
            "and shift the focal lengths and centre alike, and give that camera matrix"
        )
    top, left = _NYU_WINDOWS[height, width]
    (fx, fy), (cx, cy) = _NYU_FOCAL, _NYU_CENTRE
    return np.array([[fx, 0.0, cx - 1 - left], [0.0, fy, cy - 1 - top], [0.0, 0.0, 1.0]])


def hha(
    depth: UInt16[np.ndarray, "h w"],
    camera: Num[np.ndarray, "3 3"],
    raw_depth: UInt16[np.ndarray, "h w"] | None = None,
    *,
    per_metre: float = 1000.0,
) -> UInt8[np.ndarray, "h w 3"]:
    """Encode a depth image as HHA.

    * Disparity: 31000 divided by the depth in centimetres, which is taken as 1 m at least.
    * Height: centimetres above the lowest point; where that is less than 90 cm below the camera,
      above a ground assumed 130 cm below it.
    * Angle: degrees from gravity to the normal that points away from the camera, plus 38: a floor
      is 38, a wall 128, a ceiling 218.

    Each is rounded and clipped to 0..255. Missing depth (0) is filled with the nearest pixel's for
    disparity and height, and left out of the normals; where a window has no plane of its own the
    angle is 180 (218 in the picture), as in rcnn-depth. There the depth image has already been
    filled, and the raw one tells what was measured: give both for the same result.

    Args:
        depth: Depth along the optical axis; 0 is missing.
        camera: Camera matrix in pixels, the first pixel's centre being (0, 0); see `nyu_camera`.
        raw_depth: The depth as measured, before holes were filled; normals come only from pixels
            where it is not 0. Its other values are ignored. None: `depth` was measured.
        per_metre: Depth units in a metre: 1000 for millimetres.

    Returns:
        The channels in the order in which files store them: disparity, height, angle.
    """
    problems = []
    depths = {"depth": depth} if raw_depth is None else {"depth": depth, "raw_depth": raw_depth}
    for name, values in depths.items():
        shape, dtype = np.shape(values), np.asarray(values).dtype
        if len(shape) != 2 or 0 in shape:
            problems.append(f"{name} has the shape {shape}; give one value a pixel, (h, w)")
        if dtype != np.uint16:
            in_millimetres = f"np.rint(1000 * {name}).astype(np.uint16)"
            problems.append(f"{name} is {dtype}; give uint16, for metres {in_millimetres}")
        elif np.size(values) and not np.any(values):
            problems.append(f"{name} is 0, which means missing, in every pixel; leave it out")
    if raw_depth is not None and np.shape(raw_depth) != np.shape(depth):
        problems.append(
            f"raw_depth is {np.shape(raw_depth)} and depth {np.shape(depth)}; give both of "
            "one frame, cut and scaled alike"
        )
    form = "give [[fx, 0, cx], [0, fy, cy], [0, 0, 1]] in pixels, fx and fy above 0, without skew"
    matrix = np.asarray(camera)
    if matrix.shape != (3, 3) or matrix.dtype.kind not in "iuf":
        problems.append(f"camera is an array of {matrix.dtype} of the shape {matrix.shape}; {form}")
    else:
        (fx, skew, _), (zero, fy, _), last = matrix
        fixed = [skew, zero, *last] == [0, 0, 0, 0, 1]
        if not (np.isfinite(matrix).all() and fx > 0 and fy > 0 and fixed):
            problems.append(f"camera is {matrix.tolist()}; {form}")
    if not 0 < per_metre < np.inf:
        problems.append(f"per_metre is {per_metre}; give the depth units in a metre, as 1000")
    if problems:
        raise ValueError("HHA cannot be computed: " + "; ".join(problems))

    measured = depth > 0
    metres = depth / per_metre
    if not measured.all():
        from scipy import ndimage

        nearest: Any = ndimage.distance_transform_edt(
            ~measured, return_distances=False, return_indices=True
        )
        metres = metres[tuple(nearest)]
    if raw_depth is not None:
        measured = measured & (raw_depth > 0)
    known = np.where(measured, metres, np.nan)

    down = gravity(normals(known, camera, GRAVITY_RADIUS))
    cosine = normals(known, camera, NORMAL_RADIUS) @ down
    angle = np.degrees(np.arccos(np.clip(cosine, -1, 1)))
    angle[np.isnan(angle)] = _UNKNOWN_ANGLE

    height = -(point_cloud(metres, camera) @ down)
    lowest = height.min()
    ground = lowest if lowest <= _FLOOR_IN_VIEW else _ASSUMED_FLOOR

    disparity = _DISPARITY_SCALE / np.maximum(metres, _NEAREST)
    channels = np.stack([disparity, 100 * (height - ground), angle + _ANGLE_OFFSET], axis=-1)
    # Halves are rounded up, as MATLAB does; np.rint would round them to even.
    return np.clip(np.floor(channels + 0.5), 0, 255).astype(np.uint8)


def point_cloud(
    depth: Float[np.ndarray, "h w"], camera: Num[np.ndarray, "3 3"]
) -> Float[np.ndarray, "h w 3"]:
    """The point that each pixel shows, in the unit of the depth; NaN where that is NaN."""
    rows, columns = np.indices(depth.shape, dtype=float)
    (fx, _, cx), (_, fy, cy), _ = np.asarray(camera, float)
    return np.stack([(columns - cx) / fx * depth, (rows - cy) / fy * depth, depth], axis=-1)


def normals(
    depth: Float[np.ndarray, "h w"], camera: Num[np.ndarray, "3 3"], radius: int
) -> Float[np.ndarray, "h w 3"]:
    """Unit normals of the planes that fit the surface around each pixel best.

    A plane n·p = 1 seen along a pixel's ray (x, y, 1) has the inverse depth n·(x, y, 1), which is
    linear in the pixel's position. The fit is the least-squares plane of inverse depth over the
    (2 radius + 1)² pixels around, as in rcnn-depth's computeNormalsSquareSupport, but for positions
    relative to the window's mean, which loses fewer digits.

    Normals point away from the camera. They are NaN where the window's pixels with depth (which is
    NaN where it is missing) are fewer than three or lie on a line.
    """
    known = ~np.isnan(depth)
    inverse = np.divide(1.0, depth, out=np.zeros(depth.shape), where=known)
    rows, columns = np.indices(depth.shape, dtype=float)
    u, v = columns * known, rows * known
    terms = [known, u, v, u * columns, v * columns, v * rows]
    terms += [inverse, inverse * columns, inverse * rows]
    sums = np.stack(terms)
    for _ in ("rows", "columns"):
        # Sums from the border on; the difference of two is the sum over a window.
        padded = np.pad(sums.swapaxes(1, 2), ((0, 0), (0, 0), (radius + 1, radius)))
        running = np.cumsum(padded, axis=2)
        sums = running[..., 2 * radius + 1 :] - running[..., : -2 * radius - 1]
    count, su, sv, suu, suv, svv, sq, suq, svq = sums

    # count² times the variances and covariances of column u, row v and inverse depth q. Those of
    # the positions are integers, exact in float64, so that pixels on a line give exactly 0.
    var_u, var_v, cov_uv = count * suu - su * su, count * svv - sv * sv, count * suv - su * sv
    cov_uq, cov_vq = count * suq - su * sq, count * svq - sv * sq
    determinant = var_u * var_v - cov_uv * cov_uv
    determinant = np.where(determinant > 0.5, determinant, np.nan)
    slope_u = (cov_uq * var_v - cov_vq * cov_uv) / determinant
    slope_v = (cov_vq * var_u - cov_uq * cov_uv) / determinant

    # From pixels to rays: u = fx x + cx and v = fy y + cy.
    (fx, _, cx), (_, fy, cy), _ = np.asarray(camera, float)
    count = np.maximum(count, 1)
    on_axis = sq / count - slope_u * (su / count - cx) - slope_v * (sv / count - cy)
    plane = np.stack([slope_u * fx, slope_v * fy, on_axis], axis=-1)

    # The fitted inverse depth at the pixel, n·ray. Where noise makes it negative, the plane lies
    # behind the camera and n points to it.
    facing = (plane * point_cloud(np.ones(depth.shape), camera)).sum(-1)
    length = np.linalg.norm(plane, axis=-1)
    return plane * (np.where(facing < 0, -1.0, 1.0) / length)[..., None]


def gravity(
    normals: Float[np.ndarray, "*shape 3"], start: Num[np.ndarray, "3"] | None = None
) -> Float[np.ndarray, "3"]:
    """The direction of gravity in a room, estimated from the normals of its surfaces.

    Each iteration takes the normals within a threshold of the present direction (or its opposite)
    for floors and ceilings, and those within it of the perpendicular plane for walls, and finds
    the direction most parallel to the former and most perpendicular to the latter: the eigenvector
    to the smallest eigenvalue of the sum of n nᵀ over walls less that over floors. Where they leave
    it open, as a single wall does, it is the one nearest to the direction before, at first `start`
    (down in the picture).
    Source: Gupta et al., CVPR 2013; rcnn-depth's getYDir.
    """
    vectors = normals.reshape(-1, 3)
    vectors = vectors[~np.isnan(vectors).any(axis=-1)]
    down = np.array([0.0, 1.0, 0.0]) if start is None else start / np.linalg.norm(start)
    for threshold, iterations in GRAVITY_PHASES:
        near, far = np.cos(np.radians(threshold)), np.sin(np.radians(threshold))
        for _ in range(iterations):
            cosine = np.abs(vectors @ down)
            floors, walls = vectors[cosine > near], vectors[cosine < far]
            values, axes = np.linalg.eigh(walls.T @ walls - floors.T @ floors)
            # LAPACK picks any vectors where eigenvalues are equal, maybe all perpendicular to down.
            basis = axes[:, values - values[0] <= 1e-9 * np.abs(values).max()]
            nearest = basis @ (basis.T @ down)
            length = np.linalg.norm(nearest)
            down = nearest / length if length > 1e-9 else down
    return down
