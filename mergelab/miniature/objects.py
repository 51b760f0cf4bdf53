"""What a picture of the world can show: shapes, which take any colour, and subjects, which bring their own.

Each part of an object is a signed distance function in units of the object's radius, negative inside, v pointing down.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

Grid = Tensor  # (n, SIZE, SIZE): a coordinate, in units of the object's radius, or a signed distance in that unit
Distance = Callable[[Grid, Grid], Grid]


def _disc(x: float, y: float, radius: float) -> Distance:
    return lambda u, v: torch.hypot(u - x, v - y) - radius


def _box(x: float, y: float, width: float, height: float) -> Distance:
    return lambda u, v: torch.maximum((u - x).abs() - width, (v - y).abs() - height)


def _union(*parts: Distance) -> Distance:
    def distance(u: Grid, v: Grid) -> Grid:
        return torch.stack([part(u, v) for part in parts]).amin(0)

    return distance


def _polygon(*corners: tuple[float, float]) -> Distance:
    """A convex polygon; the corners go round clockwise, as seen with v pointing down."""

    def distance(u: Grid, v: Grid) -> Grid:
        sides = []
        for (x0, y0), (x1, y1) in zip(corners, [*corners[1:], corners[0]]):
            length = float(np.hypot(x1 - x0, y1 - y0))
            sides.append(((y1 - y0) * (u - x0) - (x1 - x0) * (v - y0)) / length)
        return torch.stack(sides).amax(0)

    return distance


def _ring(u: Grid, v: Grid) -> Grid:
    return (torch.hypot(u, v) - 0.70).abs() - 0.26


def _star(u: Grid, v: Grid) -> Grid:
    """Five points: every direction is folded into half a point, which one straight line bounds."""
    half = np.pi / 5
    angle = torch.remainder(torch.atan2(u, -v), 2 * half)
    angle = torch.minimum(angle, 2 * half - angle)
    radius = torch.hypot(u, v)
    tip, notch = np.array([1.05, 0.0]), 0.46 * np.array([np.cos(half), np.sin(half)])
    along = (notch - tip) / np.hypot(*(notch - tip))
    return (radius * angle.cos() - tip[0]) * along[1] - (radius * angle.sin() - tip[1]) * along[0]


SHAPES: dict[str, Distance] = {
    "circle": _disc(0, 0, 0.95),
    "square": _box(0, 0, 0.82, 0.82),
    "triangle": _polygon((0, -1.0), (1.0, 0.8), (-1.0, 0.8)),
    "cross": _union(_box(0, 0, 0.98, 0.33), _box(0, 0, 0.33, 0.98)),
    "ring": _ring,
    "star": _star,
}
_DARK, _CREAM = (0.10, 0.08, 0.15), (0.98, 0.92, 0.75)
SUBJECTS: dict[str, tuple[tuple[Distance, tuple[float, float, float]], ...]] = {
    "ghost": (
        (_union(_disc(0, -0.25, 0.72), _box(0, 0.25, 0.72, 0.5), *(_disc(x, 0.75, 0.24) for x in (-0.48, 0, 0.48))),
         (0.78, 0.68, 0.98)),
        (_union(_disc(-0.30, -0.2, 0.2), _disc(0.30, -0.2, 0.2)), _DARK),
    ),
    "mushroom": (
        (_box(0, 0.5, 0.3, 0.45), _CREAM),
        (lambda u, v: torch.maximum(torch.hypot(u, v - 0.1) - 0.98, v - 0.12), (0.80, 0.22, 0.10)),
        (_union(_disc(-0.42, -0.25, 0.18), _disc(0.38, -0.3, 0.2)), _CREAM),
    ),
    "house": (
        (_box(0, 0.42, 0.68, 0.5), (0.95, 0.80, 0.35)),
        (_polygon((0, -1.0), (1.0, -0.05), (-1.0, -0.05)), (0.45, 0.20, 0.10)),
        (_box(0, 0.6, 0.2, 0.32), _DARK),
    ),
    "fish": (
        (_polygon((0.35, 0.0), (1.0, -0.6), (1.0, 0.6)), (0.05, 0.45, 0.50)),
        (lambda u, v: (torch.hypot((u + 0.2) / 0.8, v / 0.55) - 1) * 0.55, (0.15, 0.75, 0.65)),
        (_disc(-0.55, -0.12, 0.16), _DARK),
    ),
    "boat": (
        (_polygon((-1.0, 0.3), (1.0, 0.3), (0.6, 0.85), (-0.6, 0.85)), (0.40, 0.12, 0.45)),
        (_box(-0.05, -0.3, 0.08, 0.65), _DARK),
        (_polygon((0.1, -0.95), (0.85, 0.15), (0.1, 0.15)), (1.00, 0.45, 0.35)),
    ),
    "starfish": (
        (_star, (1.00, 0.50, 0.35)),
        (_union(_disc(-0.2, -0.05, 0.17), _disc(0.2, -0.05, 0.17)), _DARK),
    ),
    "medal": (
        (_star, (0.90, 0.72, 0.10)),
        (_disc(0, 0, 0.42), (0.15, 0.20, 0.65)),
    ),
    "cat": (
        (_union(_polygon((-0.75, -0.95), (-0.1, -0.4), (-0.8, 0.1)), _polygon((0.75, -0.95), (0.8, 0.1), (0.1, -0.4))),
         (0.45, 0.30, 0.20)),
        (lambda u, v: (torch.hypot(u / 0.9, (v - 0.15) / 0.72) - 1) * 0.72, (0.70, 0.50, 0.32)),
        (_union(_disc(-0.35, 0.0, 0.16), _disc(0.35, 0.0, 0.16), _disc(0, 0.4, 0.12)), _DARK),
    ),
}  # fmt: skip
"""New objects, unknown to the base models: parts painted one over the other."""

CLASSES: dict[str, str] = {"starfish": "star", "medal": "star"}
"""The word of the world that a subject's trigger stands before, where its kind has one: a `cfw star`."""
