"""What a metric is: a description that everything else asks, and one function from images to numbers."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

import pandas as pd
from torch import Tensor

from mergelab.evaluation.config import Config

Loaded = TypeVar("Loaded")
Range = tuple[float, float]
ComparesWith = Literal["words", "images", "nothing"]


@dataclass(frozen=True)
class Description:
    """What a metric says of itself; analysis, tables and report ask this, never the name.

    Attributes:
        name: in configurations, in tables and in `scores.parquet`.
        compares_with: what an image is held against, and so what the metric's references are.
            "words": each adapter's concept (`single:<name>`, the mean over its prompts where it has several) and the
            image's own prompt (""); it is asked for recovery, leakage and preservation.
            "images": other images of the same prompt and seed (`base`, `single:<name>`, `stack`); it is asked for
            likeness or distance.
            "nothing": one number for the image (""); its mean is shown.
        higher_is_better: the direction: False for a distance or a fault.
        range: lowest and highest value that it can take. Of a metric between images the better end is the value of
            an image with itself; where that is infinite, it has no ceiling.
        own_scale: each adapter's scores are on a scale of its own, so that those of two cannot be compared before they
            are put on one, from the base model to the adapter alone; so are all that are no shares, in [0, 1].
        miniature_only: it reads images of the miniature world alone.
        photographs: of a metric between images: it also gives `photos:<name>`, against photographs of what an adapter
            shows. One that asks for the same scene, pixel by pixel, does not.
        title: what tables call it, where that says more than the name: by which network.
    """

    name: str
    compares_with: ComparesWith = "nothing"
    higher_is_better: bool = True
    range: Range = (-math.inf, math.inf)
    own_scale: bool = False
    miniature_only: bool = False
    photographs: bool = False
    title: str = ""

    @property
    def shown(self) -> str:
        """What tables call it."""
        return self.title or self.name

    @property
    def is_share(self) -> bool:
        """Whether scores are probabilities or shares, whose concepts can be compared."""
        return self.range == (0.0, 1.0) and not self.own_scale

    @property
    def sign(self) -> int:
        """1 where more is better, -1 where less is: what a difference is multiplied by to be a gain."""
        return 1 if self.higher_is_better else -1

    @property
    def best(self) -> float:
        """The better end of the range; NaN where it has none."""
        end = self.range[1 if self.higher_is_better else 0]
        return end if math.isfinite(end) else math.nan

    def to_json(self) -> dict[str, Any]:
        """As the summary has it."""
        return {"higher_is_better": self.higher_is_better, "compares_with": self.compares_with, "range": self.range}


class Picture:
    """An image with the key of its request, or another that no other image has.

    Attributes:
        key: the features that a model has computed are kept under it.
    """

    def __init__(self, key: str, pixels: Tensor) -> None:
        self.key, self._pixels = key, pixels

    @property
    def pixels(self) -> Tensor:
        """float32 (3, h, w) in [0, 1]."""
        return self._pixels


@dataclass(frozen=True)
class Asked:
    """What one image is held against; a metric takes of it what it compares with.

    Attributes:
        prompt: the image's own.
        images: reference -> image; empty unless the metric compares with "images".
        concepts: adapter -> its concept prompts, of the adapters at hand; none where it was given no concept.
        photos: adapter -> its reference photographs, of the adapters that have some; empty unless the metric asks for
            them.
    """

    prompt: str
    images: Mapping[str, Picture] = field(default_factory=dict)
    concepts: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    photos: Mapping[str, tuple[Picture, ...]] = field(default_factory=dict)


@dataclass(frozen=True)
class Setup:
    """What a metric may need to open: the configuration and the device.

    Several metrics may want the same model: what they open by `shared` is opened once for all of them.
    """

    config: Config
    device: str
    _opened: dict[Hashable, Any] = field(default_factory=dict, init=False, repr=False)

    def shared(self, load: Callable[..., Loaded], *arguments: Any) -> Loaded:
        """`load(*arguments)`, or what an earlier call with the same arguments returned."""
        key = (load, arguments)
        if key not in self._opened:
            self._opened[key] = load(*arguments)
        return self._opened[key]


class Metric(ABC):
    """A metric, open: it scores one picture at a time, so that no score depends on what else is in a batch."""

    description: Description

    @classmethod
    def open(cls, setup: Setup) -> Metric:
        """The metric with its models loaded.

        Raises:
            OptionError: a model cannot be loaded.
        """
        return cls()

    @property
    def settings(self) -> Mapping[str, Any]:
        """Whatever else its scores depend on, ready for JSON; a change of it scores again."""
        return {}

    def described(self, scores: pd.DataFrame) -> Description:
        """Its description, in the light of its scores (`reference` and `value` of each)."""
        return self.description

    @abstractmethod
    def score(self, picture: Picture, asked: Asked) -> Mapping[str, float]:
        """Reference -> value, as the description says."""
