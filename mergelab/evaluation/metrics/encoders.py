"""Likeness of two images as the cosine of their features, by any encoder."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import torch
from PIL.Image import Image
from torch import Tensor, nn

from mergelab.evaluation.metrics.metric import Asked, Metric, Picture, Range
from mergelab.evaluation.names import photos
from mergelab.pipelines.fingerprints import weights_hash

COSINE: Range = (-1.0, 1.0)


def cosine(x: Tensor, y: Tensor) -> float:
    """Cosine of two vectors, computed in float64."""
    return float(torch.nn.functional.cosine_similarity(x.double(), y.double(), dim=0))


class ImageEncoder:
    """An image encoder that remembers what it has computed, and knows which weights it has.

    Args:
        model: whose weights count.
        encode: one 8-bit image, as PIL has it, to its features (d,).
        settings: what else its features depend on.
    """

    def __init__(self, model: nn.Module, encode: Callable[[Image], Tensor], settings: Mapping[str, Any]) -> None:
        self._encode, self._features = encode, dict[str, Tensor]()
        self.settings = dict(settings) | {"weights": weights_hash(model)}

    @torch.no_grad()
    def image(self, picture: Picture) -> Tensor:
        """Features of an image."""
        from torchvision.transforms.functional import to_pil_image

        if picture.key not in self._features:
            self._features[picture.key] = self._encode(to_pil_image(picture.pixels)).cpu()
        return self._features[picture.key]


@dataclass
class ImageSimilarity(Metric):
    """Cosine of the features of two images; a subclass says of which encoder."""

    encoder: ImageEncoder

    @property
    def settings(self) -> Mapping[str, Any]:
        """The model."""
        return self.encoder.settings

    def score(self, picture: Picture, asked: Asked) -> dict[str, float]:
        """One value for each image, one for each adapter that has photographs: the mean over them."""
        held_against: dict[str, tuple[Picture, ...]] = {key: (other,) for key, other in asked.images.items()}
        held_against |= {photos(name): pictures for name, pictures in asked.photos.items() if pictures}
        mine = self.encoder.image(picture)
        return {key: fmean(cosine(mine, self.encoder.image(other)) for other in others)
                for key, others in held_against.items()}  # fmt: skip
