"""CLIP of open_clip: likeness of an image to words, and of two images."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from mergelab import miniature
from mergelab.errors import OptionError
from mergelab.evaluation.config import Clip, Config
from mergelab.evaluation.metrics.encoders import COSINE, ImageEncoder, ImageSimilarity, cosine
from mergelab.evaluation.metrics.metric import Asked, Description, Metric, Picture, Setup
from mergelab.evaluation.names import single


class ClipModel(ImageEncoder):
    """A CLIP of open_clip with its preprocessing.

    Raises:
        OptionError: open_clip cannot load it.
    """

    def __init__(self, name: str, pretrained: str | None, device: str) -> None:
        import open_clip

        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("error", message="QuickGELU mismatch")  # other scores than its authors'
                model, preprocess = open_clip.create_model_from_pretrained(name, pretrained=pretrained, device=device)
            self._tokenizer = open_clip.get_tokenizer(name)
        except Exception as error:  # open_clip raises whatever its parts raise
            raise OptionError(f"clip: open_clip cannot load {name!r} ({pretrained}): {error}") from error
        self._model, self._device, self._texts = model.eval(), device, dict[str, Tensor]()
        super().__init__(
            model,
            lambda image: model.encode_image(preprocess(image).unsqueeze(0).to(device))[0],
            {"model": name, "pretrained": pretrained},
        )

    @torch.no_grad()
    def text(self, prompt: str) -> Tensor:
        """Features of a prompt."""
        if prompt not in self._texts:
            self._texts[prompt] = self._model.encode_text(self._tokenizer([prompt]).to(self._device))[0].cpu()
        return self._texts[prompt]


@dataclass
class ClipText(Metric):
    """Cosine of image and text: of the image's own prompt (reference ""), and of each adapter's concept."""

    clip: ClipModel
    description = Description("clip_text", "words", range=COSINE)

    @classmethod
    def open(cls, setup: Setup) -> ClipText:
        """With the CLIP of the configuration."""
        return cls(_clip_of(setup))

    @property
    def settings(self) -> Mapping[str, Any]:
        """The model."""
        return self.clip.settings

    def score(self, picture: Picture, asked: Asked) -> dict[str, float]:
        """One value for the prompt, one for each adapter that has a concept: the mean over its concepts."""
        image = self.clip.image(picture)
        texts = {"": (asked.prompt,), **{single(name): concepts for name, concepts in asked.concepts.items()}}
        return {key: fmean(cosine(image, self.clip.text(text)) for text in several)
                for key, several in texts.items() if several}  # fmt: skip


class ClipImage(ImageSimilarity):
    """Cosine of the CLIP features of two images."""

    description = Description("clip_image", "images", range=COSINE, photographs=True)

    @classmethod
    def open(cls, setup: Setup) -> ClipImage:
        """With the CLIP of the configuration."""
        return cls(_clip_of(setup))


def _clip_of(setup: Setup) -> ClipModel:
    return setup.shared(ClipModel, *_name_and_weights(setup.config), setup.device)


def _name_and_weights(config: Config) -> tuple[str, str | None]:
    """By default the miniature's own for a miniature pipeline."""
    if config.clip is None and config.miniature:
        return miniature.clip(), None
    clip = config.clip or Clip()
    if clip.model == "miniature":
        return miniature.clip(), None
    return clip.model, None if clip.model.startswith("local-dir:") else clip.pretrained
