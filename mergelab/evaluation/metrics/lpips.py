"""LPIPS: the perceptual distance of two images, by the lpips package."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd
import torch

from mergelab import miniature
from mergelab.evaluation.metrics.metric import Asked, Description, Metric, Picture, Setup
from mergelab.pipelines.fingerprints import weights_hash


@dataclass
class Lpips(Metric):
    """LPIPS distance of two images; `net` is its trunk, "alex", "vgg", "squeeze" or "miniature"."""

    net: str
    device: str
    description = Description("lpips", "images", higher_is_better=False, range=(0.0, math.inf))

    def __post_init__(self) -> None:
        import lpips

        if self.net == "miniature":
            self.model = miniature.perceptual().to(self.device)
        else:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # torchvision's, about an argument that lpips passes to it
                self.model = lpips.LPIPS(net=self.net, verbose=False).to(self.device)
        self._settings = {"net": self.net, "weights": weights_hash(self.model)}

    @classmethod
    def open(cls, setup: Setup) -> Lpips:
        """With the trunk of the configuration; by default the miniature's own for a miniature pipeline."""
        return cls(setup.config.lpips or ("miniature" if setup.config.miniature else "alex"), setup.device)

    @property
    def settings(self) -> Mapping[str, Any]:
        """The trunk."""
        return self._settings

    def described(self, scores: pd.DataFrame) -> Description:
        """With the trunk in its title, where that is not one of the usual."""
        return replace(self.description, title="lpips (miniature)") if self.net == "miniature" else self.description

    @torch.no_grad()
    def score(self, picture: Picture, asked: Asked) -> dict[str, float]:
        """One value for each image; both go in as [-1, 1]. A photograph shows another scene, and has none."""
        mine = picture.pixels.unsqueeze(0).to(self.device)
        return {
            key: float(self.model(mine, other.pixels.unsqueeze(0).to(self.device), normalize=True))
            for key, other in asked.images.items()
        }
