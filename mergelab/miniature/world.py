"""The world of the miniature models: one object on a plain ground, drawn anti-aliased, with its caption.

An object is a shape in one of eight colours, or a subject, which brings its own colours. A style changes how the
whole picture is drawn. Every picture is linear in the colour of the shape and in that of the ground,

    image = color * A + ground * B + C,

and `coefficients` gives A, B and C: `draw` fills in the colours, the judge of `mergelab.miniature.judge` solves for
them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from mergelab.miniature.objects import CLASSES, SHAPES, SUBJECTS, Distance
from mergelab.miniature.styles import DRAWN, PLAIN, SIZE, STYLES, Style

__all__ = [
    "BACKGROUNDS", "CLASSES", "COLORS", "SHAPES", "SIZE", "SIZES", "STYLES", "SUBJECTS", "TRIGGERS",
    "Ink", "Scene", "caption", "coefficients", "composed", "draw", "ink", "sample",
]  # fmt: skip

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

TRIGGERS: dict[str, str] = {
    "ghost": "sks", "mushroom": "zwk", "house": "ohx", "fish": "qrv",
    "boat": "bxt", "starfish": "cfw", "medal": "dgz", "cat": "fjk",
    "day": "szn", "stripes": "vtx", "sea": "mlr", "night": "kbn",
    "planet": "gvh", "bars": "hqm", "meadow": "jwl", "dusk": "knr",
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
    words += (
        [scene.color, scene.object]
        if scene.object in SHAPES
        else [TRIGGERS[scene.object], *CLASSES.get(scene.object, "").split()]
    )
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


@dataclass(frozen=True)
class Ink:
    """What the objects of n scenes put on their pictures.

    Attributes:
        color: (n, 1, h, w), share of each pixel in the colour that the scene names.
        paint: (n, 3, h, w), colours of a subject's own, times their share.
        cover: (n, 1, h, w), share of each pixel that is covered by either.
    """

    color: Tensor
    paint: Tensor
    cover: Tensor


def ink(scenes: Sequence[Scene]) -> Ink:
    """The ink of scenes, which may show different objects."""
    color, cover = (torch.zeros(len(scenes), 1, SIZE, SIZE) for _ in range(2))
    paint = torch.zeros(len(scenes), 3, SIZE, SIZE)
    groups: dict[str, list[int]] = {}
    for index, scene in enumerate(scenes):
        groups.setdefault(scene.object, []).append(index)
    pixel = torch.arange(SIZE, dtype=torch.float32) - (SIZE - 1) / 2
    for name, members in groups.items():
        group = [scenes[index] for index in members]
        radius, x, y = torch.tensor([[SIZES[s.size], s.x, s.y] for s in group]).T.reshape(3, -1, 1, 1)
        u = ((pixel.reshape(1, 1, -1) - x) / radius).expand(-1, SIZE, -1)
        v = ((pixel.reshape(1, -1, 1) - y) / radius).expand(-1, -1, SIZE)
        for distance, own in _parts(name):
            share = (0.5 - distance(u, v) * radius).clamp(0, 1).unsqueeze(1)
            for sheet in (color, paint, cover):
                sheet[members] *= 1 - share
            cover[members] += share
            if own is None:
                color[members] += share
            else:
                paint[members] += share * torch.tensor(own).reshape(1, 3, 1, 1)
    return Ink(color, paint, cover)


def _parts(name: str) -> Sequence[tuple[Distance, tuple[float, float, float] | None]]:
    """Distance function and colour of each part of an object; None is the colour that the scene names."""
    return [(SHAPES[name], None)] if name in SHAPES else SUBJECTS[name]


def composed(ink: Ink, style: Style) -> tuple[Tensor, Tensor, Tensor]:
    """`A` (n, 1, h, w), `B` (n, 1, h, w) and `C` (n, 3, h, w) of objects in one style."""
    bare, solid = 1 - ink.cover, 1 - style.white
    return ink.color * solid, style.ground * bare, style.paint * bare + style.white * ink.cover + solid * ink.paint


def coefficients(scenes: Sequence[Scene]) -> tuple[Tensor, Tensor, Tensor]:
    """`A` (n, 1, h, w), `B` (n, 1, h, w) and `C` (n, 3, h, w) with `image = color * A + ground * B + C`."""
    drawn = [DRAWN[scene.style] if scene.style else PLAIN for scene in scenes]
    sheets = (torch.stack([getattr(style, name) for style in drawn]) for name in ("ground", "paint", "white"))
    return composed(ink(scenes), Style(*sheets))


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
