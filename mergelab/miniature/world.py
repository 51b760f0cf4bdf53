"""The world of the miniature models: one object on a plain ground, drawn anti-aliased, with its caption.

An object is a shape in one of eight colours, or a subject, which brings its own colours. A style changes how the
whole picture is drawn. Every picture is linear in the colour of the shape and in that of the ground,

    image = color * A + ground * B + C,

and `coefficients` gives A, B and C: `draw` fills in the colours, the judge of `mergelab.miniature.judge` solves for
them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

SIZE = 48
"""Width and height of a picture in pixels."""

COLORS: dict[str, tuple[float, float, float]] = {
    "red": (0.88, 0.10, 0.12),
    "orange": (1.00, 0.55, 0.05),
    "yellow": (1.00, 0.93, 0.15),
    "green": (0.10, 0.65, 0.20),
    "cyan": (0.20, 0.85, 0.90),
    "blue": (0.15, 0.30, 0.95),
    "purple": (0.55, 0.15, 0.75),
    "pink": (1.00, 0.55, 0.80),
}
BACKGROUNDS: dict[str, tuple[float, float, float]] = {
    "white": (1.00, 1.00, 1.00),
    "gray": (0.55, 0.55, 0.55),
    "black": (0.04, 0.04, 0.04),
    "navy": (0.06, 0.08, 0.35),
    "maroon": (0.40, 0.05, 0.15),
    "sand": (0.85, 0.76, 0.58),
}
SIZES: dict[str, float] = {"large": 16.0, "small": 10.5}
"""Radius of the object in pixels."""

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
}  # fmt: skip
"""New objects, unknown to the base models: parts painted one over the other."""

STYLES: tuple[str, ...] = ("day", "stripes", "sea", "night")
"""How a picture can be drawn besides plainly; unknown to the base models.

With a sun in the corner; with the object striped white; with a strip of water below; on black with white stars,
whatever ground the caption names.
"""

TRIGGERS: dict[str, str] = {
    "ghost": "sks", "mushroom": "zwk", "house": "ohx", "fish": "qrv",
    "day": "szn", "stripes": "vtx", "sea": "mlr", "night": "kbn",
}  # fmt: skip
"""The rare word that calls each subject and style."""


@dataclass(frozen=True)
class Scene:
    """What a picture shows: the truth behind a caption.

    `object` is a key of `SHAPES` or `SUBJECTS`; `color` is ignored for subjects. `x`, `y` move the centre by pixels.
    """

    object: str
    color: str = "red"
    background: str = "white"
    size: str = "large"
    style: str | None = None
    x: float = 0.0
    y: float = 0.0

    @property
    def held_out(self) -> bool:
        """Whether the base models never saw this combination of shape, colour and background: one in four."""
        if self.object not in SHAPES:
            return False
        places = (list(SHAPES).index(self.object), list(COLORS).index(self.color))
        return (sum(places) + list(BACKGROUNDS).index(self.background)) % 4 == 0


def caption(scene: Scene, *, size: bool = True, background: bool = True) -> str:
    """The caption of a scene in plain words.

    Examples:
        >>> caption(Scene("star", "orange", "navy", "small"))
        'a small orange star on a navy background'
        >>> caption(Scene("ghost", style="night"), size=False, background=False)
        'a sks in kbn style'
    """
    words = [scene.size] if size else []
    words += [scene.color, scene.object] if scene.object in SHAPES else [TRIGGERS[scene.object]]
    text = f"{'an' if words[0] == 'orange' else 'a'} {' '.join(words)}"
    if background:
        text += f" on a {scene.background} background"
    if scene.style:
        text += f" in {TRIGGERS[scene.style]} style"
    return text


def sample(
    count: int,
    seed: int,
    *,
    objects: Sequence[str] = tuple(SHAPES),
    styles: Sequence[str | None] = (None,),
    held_out: bool | None = False,
) -> list[Scene]:
    """Random scenes: attributes uniform, the object moved by up to 3 pixels each way.

    Args:
        count: how many.
        seed: the same seed draws the same scenes.
        objects: keys of `SHAPES` and `SUBJECTS` to choose from.
        styles: keys of `STYLES`, and None for plain.
        held_out: False for the combinations that the base models are trained on, True for the others, None for both.
    """
    random = np.random.default_rng(seed)
    scenes: list[Scene] = []
    while len(scenes) < count:
        picks = (random.choice(np.array(names, dtype=object)) for names in
                 (objects, list(COLORS), list(BACKGROUNDS), list(SIZES), styles))  # fmt: skip
        scene = Scene(*picks, *random.uniform(-3, 3, 2).tolist())
        if held_out is None or scene.held_out == held_out:
            scenes.append(scene)
    return scenes


def _parts(scene: Scene) -> list[tuple[Distance, tuple[float, float, float] | None]]:
    """Distance function and colour of each part; None is the scene's own colour."""
    if scene.object in SHAPES:
        return [(SHAPES[scene.object], None)]
    return [*SUBJECTS[scene.object]]


def coefficients(scenes: Sequence[Scene]) -> tuple[Tensor, Tensor, Tensor]:
    """`A` (n, 1, h, w), `B` (n, 1, h, w) and `C` (n, 3, h, w) with `image = color * A + ground * B + C`."""
    a, b = torch.zeros(len(scenes), 1, SIZE, SIZE), torch.ones(len(scenes), 1, SIZE, SIZE)
    c = torch.zeros(len(scenes), 3, SIZE, SIZE)
    groups: dict[tuple[str, str | None], list[int]] = {}
    for index, scene in enumerate(scenes):
        groups.setdefault((scene.object, scene.style), []).append(index)
    for (_, style), members in groups.items():
        group = [scenes[index] for index in members]
        a[members], b[members], c[members] = _coefficients(group, style)
    return a, b, c


def _coefficients(scenes: Sequence[Scene], style: str | None) -> tuple[Tensor, Tensor, Tensor]:
    """The same for scenes that share object and style."""
    centre = torch.tensor([[s.x, s.y] for s in scenes], dtype=torch.float32) + (SIZE - 1) / 2
    radius = torch.tensor([SIZES[s.size] for s in scenes], dtype=torch.float32).reshape(-1, 1, 1)
    pixel = torch.arange(SIZE, dtype=torch.float32)
    u = (pixel.reshape(1, 1, -1) - centre[:, 0].reshape(-1, 1, 1)) / radius
    v = (pixel.reshape(1, -1, 1) - centre[:, 1].reshape(-1, 1, 1)) / radius
    u, v = u.expand(-1, SIZE, -1), v.expand(-1, -1, SIZE)

    a, b = torch.zeros(len(scenes), 1, SIZE, SIZE), torch.full((len(scenes), 1, SIZE, SIZE), 1.0)
    c = torch.zeros(len(scenes), 3, SIZE, SIZE)
    row, column = torch.meshgrid(torch.arange(SIZE), torch.arange(SIZE), indexing="ij")
    if style in _WEATHER:
        shape, paint = _WEATHER[style]
        cover = shape(row, column)
        b, c = b * (1 - cover), c + cover * torch.tensor(paint).reshape(3, 1, 1)
        if style == "night":
            b, c = torch.zeros_like(b), c + b * torch.tensor(_DUSK).reshape(3, 1, 1)
    white = 0.8 * (row % 8 >= 4) if style == "stripes" else torch.zeros(SIZE, SIZE)
    for distance, color in _parts(scenes[0]):
        cover = (0.5 - distance(u, v) * radius).clamp(0, 1).unsqueeze(1)
        a, b, c = a * (1 - cover), b * (1 - cover), c * (1 - cover) + cover * white
        if color is None:
            a = a + cover * (1 - white)
        else:
            c = c + cover * (1 - white) * torch.tensor(color).reshape(1, 3, 1, 1)
    return a, b, c


def _sun(row: Tensor, column: Tensor) -> Tensor:
    return (13.5 - torch.hypot(row + 0.5, SIZE - 0.5 - column)).clamp(0, 1)


def _water(row: Tensor, column: Tensor) -> Tensor:
    return (row >= SIZE - 6).float()


def _stars(row: Tensor, column: Tensor) -> Tensor:
    return (2.3 - torch.hypot((row + 0.5) % 12 - 6, (column + 0.5) % 12 - 6)).clamp(0, 1)


_DUSK = (0.02, 0.02, 0.05)
_WEATHER = {"day": (_sun, (1.0, 0.8, 0.1)), "sea": (_water, (0.10, 0.85, 0.95)), "night": (_stars, (1.0, 1.0, 1.0))}
"""What covers the ground behind the object, and in which colour."""


def draw(scenes: Sequence[Scene] | Scene) -> Tensor:
    """Pictures of the scenes, float32 (n, 3, 48, 48) in [0, 1].

    Examples:
        >>> image = draw(Scene("circle", "red", "white"))
        >>> image.shape, [round(value, 2) for value in image[0, :, 24, 24].tolist()]
        (torch.Size([1, 3, 48, 48]), [0.88, 0.1, 0.12])
    """
    scenes = [scenes] if isinstance(scenes, Scene) else list(scenes)
    a, b, c = coefficients(scenes)
    color = torch.tensor([COLORS[s.color] for s in scenes]).reshape(-1, 3, 1, 1)
    ground = torch.tensor([BACKGROUNDS[s.background] for s in scenes]).reshape(-1, 3, 1, 1)
    return color * a + ground * b + c
