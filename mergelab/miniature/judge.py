"""Analytic judges: what an image of the drawn world shows, read from its pixels.

An image is compared with every picture the world can draw, on a grid of positions: since a picture is linear in the
colours of shape and ground (`world.coefficients`), its squared distance to all of them follows from a few inner
products. The distances become probabilities, `p ~ exp(-MSE / TEMPERATURE)`, and those of all pictures with the same
shape (colour, ...) are added, each at its best position. One more hypothesis, "none", has the fixed distance `UNLIKE`,
so that an image unlike everything is not given the name of the least unlike.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from typing import cast

import torch
from torch import Tensor

from mergelab.miniature.world import BACKGROUNDS, COLORS, SHAPES, SIZE, SIZES, STYLES, SUBJECTS, Scene, coefficients

NONE, PLAIN = "none", "plain"
OBJECTS = (*SHAPES, *SUBJECTS)
TEMPERATURE = 0.001
"""Mean squared error, on [0, 1], that divides a probability by e."""
UNLIKE = 0.02
"""Mean squared error of the hypothesis that the image shows nothing the world can draw."""
_OFFSETS = tuple(float(pixels) for pixels in range(-3, 4))
_GREY = 0.5  # images and pictures are compared around middle grey, which keeps float32 exact enough


@dataclass(frozen=True)
class Verdict:
    """Probabilities for a batch of n images.

    Attributes:
        object: (n, 11) over `OBJECTS` and "none".
        color: (n, 8) over `COLORS`, given that a shape is shown.
        background: (n, 6) over `BACKGROUNDS`.
        size: (n, 2) over `SIZES`.
        style: (n, 5) over "plain" and `STYLES`.

    All but the first are given that something is shown at all.
    """

    object: Tensor
    color: Tensor
    background: Tensor
    size: Tensor
    style: Tensor

    def __len__(self) -> int:
        return len(self.object)

    @property
    def names(self) -> dict[str, tuple[str, ...]]:
        """What the columns of each attribute stand for."""
        return {
            "object": (*OBJECTS, NONE),
            "color": (*COLORS,),
            "background": (*BACKGROUNDS,),
            "size": (*SIZES,),
            "style": (PLAIN, *STYLES),
        }

    def best(self, attribute: str) -> list[str]:
        """The most probable name of an attribute for each image."""
        names = self.names[attribute]
        return [names[index] for index in getattr(self, attribute).argmax(1).tolist()]

    def probability(self, attribute: str, name: str) -> Tensor:
        """(n,): how probable `name` is.

        Raises:
            ValueError: there is no such attribute, or it has no such name.
        """
        names = self.names.get(attribute)
        if names is None or name not in names:
            known = ", ".join(names or self.names)
            raise ValueError(f"unknown {attribute if names else 'attribute'} {name if names else attribute!r}: {known}")
        return cast("Tensor", getattr(self, attribute))[:, names.index(name)]


@dataclass(frozen=True)
class _Pictures:
    """Every (object, style, size, position), t of them, as `coefficients` has them, for colours around grey.

    The inner products among a, b and c stand here too: no image changes them.
    """

    scenes: list[Scene]
    a: Tensor  # (t, h*w)
    b: Tensor  # (t, h*w)
    c: Tensor  # (t, 3*h*w)
    aa: Tensor  # (t,), and so bb, cc, ab
    bb: Tensor
    cc: Tensor
    ab: Tensor
    ca: Tensor  # (t, 3), for each channel of c, and so cb
    cb: Tensor


@lru_cache(maxsize=1)
def _pictures() -> _Pictures:
    scenes = [
        Scene(name, size=size, style=style, x=x, y=y)
        for name, style, size, x, y in product(OBJECTS, (None, *STYLES), SIZES, _OFFSETS, _OFFSETS)
    ]
    a, b, c = coefficients(scenes)
    # A generated picture is a little soft, so plain pictures count in both kinds.
    plain = [index for index, scene in enumerate(scenes) if scene.style is None]
    scenes += [scenes[index] for index in plain]
    a, b, c = (torch.cat([part, _soften(part[plain])]) for part in (a, b, c))
    c = c + _GREY * (a + b) - _GREY  # image - grey = (color - grey) A + (ground - grey) B + this
    a, b, c = a.flatten(1), b.flatten(1), c.flatten(1)
    c3 = c.reshape(len(scenes), 3, -1)
    ca, cb = (torch.einsum("tcp,tp->tc", c3, part) for part in (a, b))
    return _Pictures(scenes, a, b, c, (a * a).sum(1), (b * b).sum(1), c.square().sum(1), (a * b).sum(1), ca, cb)


def _soften(images: Tensor) -> Tensor:
    """The mean over 3 x 3 pixels."""
    return torch.nn.functional.avg_pool2d(torch.nn.functional.pad(images, (1, 1, 1, 1), mode="replicate"), 3, stride=1)


def _members(values: list[str], names: tuple[str, ...]) -> Tensor:
    """(t, k): which picture has which of the names."""
    return torch.tensor([[float(value == name) for name in names] for value in values]).double()


def judge(images: Tensor, *, batch: int = 32) -> Verdict:
    """What each image shows.

    Args:
        images: float (n, 3, 48, 48) in [0, 1].
        batch: images judged at a time.

    Raises:
        ValueError: another shape, or values outside [0, 1].

    Examples:
        >>> from mergelab.miniature.world import Scene, draw
        >>> verdict = judge(draw([Scene("star", "blue", "sand"), Scene("ghost", style="day")]))
        >>> verdict.best("object"), verdict.best("style"), verdict.best("color")[0]
        (['star', 'ghost'], ['plain', 'day'], 'blue')
    """
    if images.ndim != 4 or images.shape[1:] != (3, SIZE, SIZE):
        raise ValueError(f"expected images of shape (n, 3, {SIZE}, {SIZE}), got {tuple(images.shape)}")
    if images.numel() and (images.min() < -1e-3 or images.max() > 1 + 1e-3):
        raise ValueError(f"expected values in [0, 1], got [{images.min():.3g}, {images.max():.3g}]")
    parts = [_judge(chunk.float()) for chunk in torch.split(images, batch)]
    return Verdict(*(torch.cat([getattr(part, name) for part in parts]) for name in parts[0].names))


def _judge(images: Tensor) -> Verdict:
    known = _pictures()
    n, pixels = len(images), SIZE * SIZE
    color = torch.tensor([*COLORS.values()]) - _GREY  # (8, 3)
    ground = torch.tensor([*BACKGROUNDS.values()]) - _GREY  # (6, 3)
    x = images.flatten(2) - _GREY

    # |x - color A - ground B - C|^2, term by term: (n, t, 8, 6)
    xa, xb = (torch.einsum("ncp,tp->ntc", x, part) for part in (known.a, known.b))
    xc = x.flatten(1) @ known.c.T
    alone = x.square().sum((1, 2)).reshape(n, 1) + known.cc - 2 * xc  # (n, t)
    with_color = (known.ca - xa) @ color.T * 2 + known.aa[:, None] * color.square().sum(1)  # (n, t, 8)
    with_ground = (known.cb - xb) @ ground.T * 2 + known.bb[:, None] * ground.square().sum(1)  # (n, t, 6)
    cross = 2 * known.ab.reshape(-1, 1, 1) * (color @ ground.T)  # (t, 8, 6)
    error = alone[:, :, None, None] + with_color[..., None] + with_ground[:, :, None, :] + cross
    places = len(_OFFSETS) ** 2  # the best place counts: a sum would favour pictures that a move hardly changes
    error = error.reshape(n, -1, places, len(COLORS), len(BACKGROUNDS)).amin(2) / (3 * pixels)
    least = error.flatten(1).amin(1).double()  # divided out, so that no weight of an image unlike everything underflows
    weight = torch.exp((least.reshape(-1, 1, 1, 1) - error) / TEMPERATURE)  # (n, t / places, 8, 6)

    scenes = known.scenes[::places]
    shape = torch.tensor([scene.object in SHAPES for scene in scenes])
    weight = weight / torch.where(shape, 1, len(COLORS)).reshape(-1, 1, 1)  # a subject fits with all colours alike
    picture = weight.sum((2, 3))
    nothing = torch.exp(((least - UNLIKE) / TEMPERATURE).clamp(max=700)).unsqueeze(1)
    return Verdict(
        object=_normal(torch.cat([picture @ _members([scene.object for scene in scenes], OBJECTS), nothing], 1)),
        color=_normal(weight[:, shape].sum((1, 3))),
        background=_normal(weight.sum((1, 2))),
        size=_normal(picture @ _members([scene.size for scene in scenes], (*SIZES,))),
        style=_normal(picture @ _members([scene.style or PLAIN for scene in scenes], (PLAIN, *STYLES))),
    )


def _normal(weight: Tensor) -> Tensor:
    return (weight / weight.sum(1, keepdim=True)).float()
