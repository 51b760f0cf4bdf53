"""How a picture of the world can be drawn besides plainly."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

SIZE = 48
"""Width and height of a picture in pixels."""
_ROW, _COLUMN = (grid.unsqueeze(0) for grid in torch.meshgrid(torch.arange(SIZE), torch.arange(SIZE), indexing="ij"))


@dataclass(frozen=True)
class Style:
    """What a style does to each pixel.

    Attributes:
        ground: (1, h, w), share of the named ground that is seen where there is no object.
        paint: (3, h, w), what is seen beside it there.
        white: (1, h, w), share of an object that is painted white.
    """

    ground: Tensor
    paint: Tensor
    white: Tensor


def _behind(cover: Tensor, color: tuple[float, float, float], under: Style | None = None) -> Style:
    """Something of one colour in front of the ground, behind the object."""
    under = under or PLAIN
    return Style(
        under.ground * (1 - cover),
        under.paint * (1 - cover) + cover * torch.tensor(color).reshape(3, 1, 1),
        under.white,
    )


def _disc(row: float, column: float, radius: float) -> Tensor:
    return (radius + 0.5 - torch.hypot(_ROW + 0.5 - row, _COLUMN + 0.5 - column)).clamp(0, 1)


def _striped(line: Tensor) -> Style:
    return Style(PLAIN.ground, PLAIN.paint, 0.8 * (line % 8 >= 4))


PLAIN = Style(torch.ones(1, SIZE, SIZE), torch.zeros(3, SIZE, SIZE), torch.zeros(1, SIZE, SIZE))
_BELOW = (_ROW >= SIZE - 6).float()
_STARS = (2.3 - torch.hypot((_ROW + 0.5) % 12 - 6, (_COLUMN + 0.5) % 12 - 6)).clamp(0, 1)

DRAWN: dict[str, Style] = {
    "day": _behind(_disc(0, SIZE, 13), (1.0, 0.8, 0.1)),
    "stripes": _striped(_ROW),
    "sea": _behind(_BELOW, (0.10, 0.85, 0.95)),
    "night": _behind(_STARS, (1.0, 1.0, 1.0), under=_behind(torch.ones(1, SIZE, SIZE), (0.02, 0.02, 0.05))),
    "planet": _behind(_disc(0, 0, 13), (0.85, 0.15, 0.60)),
    "bars": _striped(_COLUMN),
    "meadow": _behind(_BELOW, (0.15, 0.55, 0.10)),
    "dusk": _behind(0.9 * _ROW / (SIZE - 1), (1.00, 0.45, 0.10)),
}
"""What each style does to a picture."""

STYLES: tuple[str, ...] = (*DRAWN,)
"""Names of the styles, all unknown to the base models.

With a sun in the right corner; with the object striped white; with a strip of water below; on black with white stars,
whatever ground the caption names; with a planet in the left corner; with the object striped white from top to bottom;
with a strip of grass below; with an evening glow that rises from below.
"""
