"""Reads from the pixels of a picture what it shows: object, colour, background, size and style.

The image is compared with every picture the world can draw: each object, in each style and size, at 7 x 7 places, in
all colours and on all grounds. Since every picture is linear in the colours of shape and ground (`world.coefficients`),
and these in what the object puts on it (`world.ink`), its squared distance to all of them follows from a few inner
products. The distances become probabilities, `p ~ exp(-MSE / TEMPERATURE)`, and those of all pictures with the same
shape (colour, ...) are added, each at its best place. One more hypothesis, "none", has the fixed distance `UNLIKE`,
so that an image unlike everything is not given the name of the least unlike.

Probabilities are nearly yes or no. `Verdict.nearness` is the soft score beside them: how much nearer the image is to
the nearest picture with a thing than to the nearest one without it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import lru_cache
from itertools import product
from typing import cast

import torch
from torch import Tensor

from mergelab.miniature.objects import SHAPES, SUBJECTS
from mergelab.miniature.styles import DRAWN, PLAIN, SIZE, STYLES
from mergelab.miniature.world import BACKGROUNDS, COLORS, SIZES, Ink, Scene, composed, ink

NONE, UNSTYLED = "none", "plain"
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
        object: (n, 15) over `OBJECTS` and "none".
        color: (n, 8) over `COLORS`, given that a shape is shown.
        background: (n, 6) over `BACKGROUNDS`.
        size: (n, 2) over `SIZES`.
        style: (n, 9) over "plain" and `STYLES`.
        errors: (n, 14, 9), the least mean squared error to a picture of each object in each style.

    All probabilities but those of objects are given that something is shown at all.
    """

    object: Tensor
    color: Tensor
    background: Tensor
    size: Tensor
    style: Tensor
    errors: Tensor

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
            "style": (UNSTYLED, *STYLES),
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

    def nearness(self, attribute: str, name: str) -> Tensor:
        """(n,) in [0, 1]: how much nearer the image is to a picture with an object or a style than to one without it.

        With the root mean squared errors `e` to the nearest picture with it and `f` to the nearest without it, at most
        that of the hypothesis "none", it is `f / (e + f)`: 1 for a picture with it, 0 for one without, 1/2 where the
        judge would turn, and the opacity for a blend of two that differ in nothing else, as long as the one without it
        is nearer than "none": a night, which changes every pixel, is near only when it is almost whole.

        Raises:
            ValueError: the attribute is neither "object" nor "style", or it has no such name.

        Examples:
            >>> from mergelab.miniature.world import Scene, draw
            >>> plain, day = draw([Scene("star"), Scene("star", style="day")])
            >>> verdict = judge(torch.stack([plain, plain + 0.3 * (day - plain), day]))
            >>> [round(value, 2) for value in verdict.nearness("style", "day").tolist()]
            [0.0, 0.3, 1.0]
        """
        axes: dict[str, tuple[tuple[str, ...], int]] = {"object": (OBJECTS, 1), "style": ((UNSTYLED, *STYLES), 2)}
        names, axis = axes.get(attribute, ((), 0))
        if name not in names:
            known = ", ".join(names or axes)
            raise ValueError(f"unknown {attribute if names else 'attribute'} {name if names else attribute!r}: {known}")
        errors = self.errors.transpose(1, axis)
        own = torch.tensor([other == name for other in names])
        near, far = errors[:, own].amin((1, 2)), errors[:, ~own].amin((1, 2)).clamp(max=UNLIKE)
        return far.sqrt() / (near.sqrt() + far.sqrt())


@dataclass(frozen=True)
class _Kind:
    """All pictures of shapes, or all of subjects: s styles x t (objects x sizes x places), for colours around grey.

    Plain pictures count in two kinds, soft and sharp, since a generated picture is a little soft. Beside the ink, flat
    over the pixels, stand the inner products of the coefficients a, b and c: no image changes them.
    """

    objects: int
    colors: Tensor  # (k, 3): of shapes; for subjects, which bring their own, any one
    ink: Ink
    aa: Tensor  # (s, t), and so bb, cc, ab
    bb: Tensor
    cc: Tensor
    ab: Tensor
    ca: Tensor  # (s, t, 3), for each channel of c, and so cb
    cb: Tensor


_STYLES = (PLAIN, PLAIN, *DRAWN.values())
_SOFT = 0
"""The place among `_STYLES` of soft plain pictures."""


@lru_cache(maxsize=1)
def _kinds() -> tuple[_Kind, _Kind]:
    return _kind((*SHAPES,), torch.tensor([*COLORS.values()])), _kind((*SUBJECTS,), torch.zeros(1, 3))


def _kind(objects: tuple[str, ...], colors: Tensor) -> _Kind:
    rows, inks = [], []
    for name in objects:
        drawn = ink([Scene(name, size=size, x=x, y=y) for size, x, y in product(SIZES, _OFFSETS, _OFFSETS)])
        parts = [_products(*composed(drawn, style), soft=place == _SOFT) for place, style in enumerate(_STYLES)]
        rows.append([torch.stack(of) for of in zip(*parts)])
        inks.append([drawn.color.flatten(1), drawn.paint.flatten(1), drawn.cover.flatten(1)])
    drawn = Ink(*(torch.cat(sheets) for sheets in zip(*inks)))
    return _Kind(len(objects), colors - _GREY, drawn, *(torch.cat(of, 1) for of in zip(*rows)))


def _products(a: Tensor, b: Tensor, c: Tensor, *, soft: bool) -> list[Tensor]:
    """Inner products of coefficients, as `_Kind` has them."""
    if soft:
        a, b, c = _soften(a), _soften(b), _soften(c)
    c = c + _GREY * (a + b) - _GREY  # image - grey = (color - grey) a + (ground - grey) b + this
    a, b, c = a.flatten(1), b.flatten(1), c.flatten(2)
    squares = [part.sum(1) for part in (a * a, b * b, c.square().sum(1), a * b)]
    return [*squares, *((c @ part.unsqueeze(2)).squeeze(2) for part in (a, b))]


def _soften(images: Tensor) -> Tensor:
    """The mean over 3 x 3 pixels."""
    return torch.nn.functional.avg_pool2d(torch.nn.functional.pad(images, (1, 1, 1, 1), mode="replicate"), 3, stride=1)


def judge(images: Tensor, *, batch: int = 16) -> Verdict:
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
    return Verdict(*(torch.cat([getattr(part, field.name) for part in parts]) for field in fields(Verdict)))


def _errors(images: Tensor) -> list[Tensor]:
    """For each kind (n, s, objects, sizes, colours, grounds): the mean squared error at the best place."""
    x = images.unsqueeze(1) - _GREY  # (n, 1, 3, h, w)
    white, seen, paint = (
        torch.stack([getattr(style, name) for style in _STYLES]) for name in ("white", "ground", "paint")
    )
    # Softening moves from the pictures to the image: objects are far from the border, so it is its own transpose.
    y = x.repeat(1, len(_STYLES), 1, 1, 1)
    y[:, _SOFT] = _soften(x[:, 0])
    solid, bare, mixed = (
        part.flatten(3) for part in (y * (1 - white), y * seen, (y * (white - paint)).sum(2, keepdim=True))
    )
    grounds = torch.tensor([*BACKGROUNDS.values()]) - _GREY  # (6, 3)
    found = []
    for kind in _kinds():
        xa = solid @ kind.ink.color.T  # (n, s, 3, t)
        xb = (x * seen).sum((3, 4)).unsqueeze(3) - bare @ kind.ink.cover.T
        xc = (mixed @ kind.ink.cover.T).squeeze(2) + solid.flatten(2) @ kind.ink.paint.T + _GREY * (xa + xb).sum(2)
        xc = xc + ((x * paint).sum((2, 3, 4)) - _GREY * x.sum((2, 3, 4))).unsqueeze(2)  # (n, s, t)

        # |x - color a - ground b - c|^2, term by term: (n, s, t, colours, grounds)
        alone = x.square().sum((2, 3, 4)).unsqueeze(2) + kind.cc - 2 * xc
        with_color = 2 * (kind.ca - xa.mT) @ kind.colors.T + kind.aa.unsqueeze(2) * kind.colors.square().sum(1)
        with_ground = 2 * (kind.cb - xb.mT) @ grounds.T + kind.bb.unsqueeze(2) * grounds.square().sum(1)
        cross = 2 * kind.ab.reshape(*kind.ab.shape, 1, 1) * (kind.colors @ grounds.T)
        error = (alone.unsqueeze(3) + with_color).unsqueeze(4) + with_ground.unsqueeze(3) + cross
        # The best place counts: a sum would favour pictures that a move hardly changes.
        error = error.unflatten(2, (kind.objects, len(SIZES), -1)).amin(4)
        found.append(error.clamp(min=0) / images[0].numel())
    return found


def _judge(images: Tensor) -> Verdict:
    kinds = _errors(images)
    errors = torch.cat([error.amin((3, 4, 5)) for error in kinds], 2).mT  # (n, objects, s)
    least = errors.amin((1, 2))  # divided out, so that no weight of an image unlike everything underflows
    shapes, subjects = (torch.exp((least.reshape(-1, 1, 1, 1, 1, 1) - error) / TEMPERATURE) for error in kinds)
    nothing = torch.exp(((least - UNLIKE) / TEMPERATURE).clamp(max=80)).unsqueeze(1)

    def both(*axes: int) -> Tensor:
        return shapes.sum(axes) + subjects.sum(axes)

    return Verdict(
        object=_normal(torch.cat([shapes.sum((1, 3, 4, 5)), subjects.sum((1, 3, 4, 5)), nothing], 1)),
        color=_normal(shapes.sum((1, 2, 3, 5))),
        background=_normal(both(1, 2, 3, 4)),
        size=_normal(both(1, 2, 4, 5)),
        style=_normal(_unsoftened(both(2, 3, 4, 5), torch.sum)),
        errors=_unsoftened(errors, torch.amin),
    )


def _unsoftened(values: Tensor, reduce: Callable[..., Tensor]) -> Tensor:
    """Soft and sharp plain pictures in one column, the last axis being styles."""
    return torch.cat([reduce(values[..., :2], -1, keepdim=True), values[..., 2:]], -1)


def _normal(weight: Tensor) -> Tensor:
    return weight / weight.sum(1, keepdim=True)
