"""Ranks that each layer's own singular values decide: a share of the energy, and the three rules of kohya's resize."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import ClassVar

import torch
from torch import Tensor

from mergelab.checks import is_number, short_repr
from mergelab.errors import OptionError
from mergelab.ranks.budget import whole_number


class Dynamic(ABC):
    """A rule that finds the rank of a layer in its singular values: a frozen dataclass of a number and a cap.

    Attributes:
        max: the highest rank, or None.
        needs_all: whether the rule has to know all singular values, however small.
    """

    max: int | None
    needs_all: ClassVar[bool] = False

    @abstractmethod
    def wanted(self, s: Tensor, energy: float) -> int:
        """The rank without the cap; more than there are values where these do not tell it yet.

        Args:
            s: `(k,)`, the leading singular values of a layer, the largest first, in float64.
            energy: the sum of the squares of all of its singular values.
        """

    def reached(self, s: Tensor, energy: float) -> int:
        """The rank of a layer."""
        return min(self.wanted(s, energy), self.max or len(s) + 1)

    def enough(self, s: Tensor, energy: float) -> bool:
        """Whether these leading singular values tell the rank, and are as many."""
        return self.reached(s, energy) <= len(s) and not self.needs_all


@dataclass(frozen=True)
class Energy(Dynamic):
    """The smallest rank whose squared singular values hold a share of the energy."""

    share: float
    max: int | None = None

    def wanted(self, s: Tensor, energy: float) -> int:
        return _reaching(s.square(), self.share * energy)


class _Kohya(Dynamic):
    """The rules of kohya's `resize_lora`: one more singular value than the bound asks for; of a change of zeros one."""

    def wanted(self, s: Tensor, energy: float) -> int:
        return 1 if float(s[0]) == 0 else max(1, self.bound(s, energy)) + 1

    @abstractmethod
    def bound(self, s: Tensor, energy: float) -> int:
        """How many singular values the bound asks for."""


@dataclass(frozen=True)
class SvRatio(_Kohya):
    """In every layer the singular values above the largest divided by `sv_ratio`, and one more: kohya's `sv_ratio`.

    Args:
        sv_ratio: above 1.
        max: highest rank of a layer; default: that of the layer.

    Raises:
        OptionError: a number out of its range.

    Example:
        >>> SvRatio(2).reached(torch.tensor([8.0, 5.0, 4.0, 1.0]), 106.0), SvRatio(2, max=2).max
        (3, 2)

    Source: sd-scripts, `networks/resize_lora.py`.
    """

    sv_ratio: float
    max: int | None = None

    def __post_init__(self) -> None:
        _checked(self, "above 1", lambda ratio: ratio > 1)

    def bound(self, s: Tensor, energy: float) -> int:
        return int((s > s[0] / self.sv_ratio).sum())


@dataclass(frozen=True)
class SvFro(_Kohya):
    """The smallest rank whose Frobenius norm is a share of that of the change, and one more: kohya's `sv_fro`.

    The squares then hold `sv_fro ** 2` of the energy.

    Args:
        sv_fro: the share, strictly between 0 and 1.
        max: highest rank of a layer; default: that of the layer.

    Raises:
        OptionError: a number out of its range.

    Example:
        >>> SvFro(0.9).reached(torch.tensor([8.0, 5.0, 4.0, 1.0]), 106.0)
        3

    Source: sd-scripts, `networks/resize_lora.py`.
    """

    sv_fro: float
    max: int | None = None

    def __post_init__(self) -> None:
        _checked(self, "strictly between 0 and 1", lambda share: 0 < share < 1)

    def bound(self, s: Tensor, energy: float) -> int:
        return _reaching(s.square(), self.sv_fro**2 * energy)


@dataclass(frozen=True)
class SvCumulative(_Kohya):
    """The smallest rank whose singular values sum up to a share of that of all, and one more: kohya's `sv_cumulative`.

    It has to know all of them: of a merge of dense changes that takes a whole decomposition.

    Args:
        sv_cumulative: the share, strictly between 0 and 1.
        max: highest rank of a layer; default: that of the layer.

    Raises:
        OptionError: a number out of its range.

    Example:
        >>> SvCumulative(0.7).reached(torch.tensor([8.0, 5.0, 4.0, 1.0]), 106.0)
        3

    Source: sd-scripts, `networks/resize_lora.py`.
    """

    sv_cumulative: float
    max: int | None = None
    needs_all: ClassVar[bool] = True

    def __post_init__(self) -> None:
        _checked(self, "strictly between 0 and 1", lambda share: 0 < share < 1)

    def bound(self, s: Tensor, energy: float) -> int:
        return _reaching(s, self.sv_cumulative * float(s.double().sum()))


def _reaching(values: Tensor, sum_: float) -> int:
    """How many leading values sum up to so much; one more than there are where all of them do not."""
    sums = values.double().cumsum(0)
    # A share of 0.9 of exactly 10 / 10 must not ask for one more because of the last bit of a sum.
    enough = torch.nonzero(sums >= sum_ * (1 - 1e-12))
    return int(enough[0]) + 1 if len(enough) else len(values) + 1


def _checked(rule: SvRatio | SvFro | SvCumulative, range_: str, within: Callable[[float], bool]) -> None:
    """Give a rule its number as a float and its cap as an int, or raise `OptionError`."""
    name = fields(rule)[0].name
    value = getattr(rule, name)
    if not (is_number(value) and within(float(value))):
        raise OptionError(f"{name}={short_repr(value)}: expected a number {range_}")
    object.__setattr__(rule, name, float(value))
    if rule.max is not None:
        object.__setattr__(rule, "max", whole_number(f"{name}, max", rule.max))
