"""The metrics that come with mergelab: small classes, each a wrapper of the package that defines it.

A metric scores one picture at a time, so that no score depends on what else is in a batch.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from PIL.Image import Image
from torch import Tensor, nn

from mergelab import miniature
from mergelab.errors import OptionError
from mergelab.evaluation.fingerprints import weights_hash
from mergelab.miniature.world import BACKGROUNDS, COLORS, SHAPES, STYLES, TRIGGERS


@dataclass(frozen=True)
class Picture:
    """An image, float (3, h, w) in [0, 1], with the key of its request."""

    key: str
    pixels: Tensor


class Metric(Protocol):
    """What every metric has.

    Attributes:
        name: in tables and in `scores.parquet`.
        higher_is_better: the direction.
        compares: whether it looks at references at all.
    """

    name: str
    higher_is_better: bool
    compares: bool

    @property
    def settings(self) -> Mapping[str, Any]:
        """Whatever else its scores depend on; a change of it scores again."""

    def score(self, picture: Picture, prompt: str, references: Mapping[str, Picture]) -> Mapping[str, float]:
        """Reference -> value; the reference of a score that needs none is ""."""


def cosine(x: Tensor, y: Tensor) -> float:
    """Cosine of two vectors, computed in float64."""
    return float(torch.nn.functional.cosine_similarity(x.double(), y.double(), dim=0))


class _Encoder:
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


class ClipModel(_Encoder):
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


def dino(name: str, device: str) -> _Encoder:
    """The class token of a DINOv2 of transformers.

    Raises:
        OptionError: transformers cannot load it.
    """
    from transformers import AutoImageProcessor, AutoModel

    try:
        processor = AutoImageProcessor.from_pretrained(name)
        model = AutoModel.from_pretrained(name).to(device).eval()
    except (OSError, ValueError) as error:
        raise OptionError(f"dino: transformers cannot load {name!r}: {error}") from error

    def encode(image: Image) -> Tensor:
        return model(**processor(images=image, return_tensors="pt").to(device)).last_hidden_state[0, 0]

    return _Encoder(model, encode, {"model": name})


@dataclass
class ClipText:
    """Cosine of image and text: of the image's own prompt (reference ""), and of each adapter's concept."""

    clip: ClipModel
    concepts: Mapping[str, str]
    name: str = "clip_text"
    higher_is_better: bool = True
    compares: bool = False

    @property
    def settings(self) -> Mapping[str, Any]:
        """The model and the concepts."""
        return self.clip.settings | {"concepts": dict(self.concepts)}

    def score(self, picture: Picture, prompt: str, references: Mapping[str, Picture]) -> dict[str, float]:
        """One value for the prompt, one for each concept."""
        texts = {"": prompt, **{f"single:{name}": concept for name, concept in self.concepts.items() if concept}}
        return {key: cosine(self.clip.image(picture), self.clip.text(text)) for key, text in texts.items()}


@dataclass
class ImageSimilarity:
    """Cosine of the features of two images: "clip_image" or "dino"."""

    encoder: _Encoder
    name: str
    higher_is_better: bool = True
    compares: bool = True

    @property
    def settings(self) -> Mapping[str, Any]:
        """The model."""
        return self.encoder.settings

    def score(self, picture: Picture, prompt: str, references: Mapping[str, Picture]) -> dict[str, float]:
        """One value for each reference."""
        mine = self.encoder.image(picture)
        return {key: cosine(mine, self.encoder.image(other)) for key, other in references.items()}


@dataclass
class Lpips:
    """LPIPS distance of two images, by the lpips package."""

    net: str
    device: str
    name: str = "lpips"
    higher_is_better: bool = False
    compares: bool = True

    def __post_init__(self) -> None:
        import lpips

        if self.net == "miniature":
            self.model = miniature.perceptual().to(self.device)
        else:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # torchvision's, about an argument that lpips passes to it
                self.model = lpips.LPIPS(net=self.net, verbose=False).to(self.device)
        self._settings = {"net": self.net, "weights": weights_hash(self.model)}

    @property
    def settings(self) -> Mapping[str, Any]:
        """The trunk."""
        return self._settings

    @torch.no_grad()
    def score(self, picture: Picture, prompt: str, references: Mapping[str, Picture]) -> dict[str, float]:
        """One value for each reference; both images go in as [-1, 1]."""
        mine = picture.pixels.unsqueeze(0).to(self.device)
        return {
            key: float(self.model(mine, other.pixels.unsqueeze(0).to(self.device), normalize=True))
            for key, other in references.items()
        }


@dataclass
class Judge:
    """What the analytic judge of the miniature world sees.

    For each adapter the probability that its subject or style is shown; under "" the mean probability of the shape,
    colour and ground that the prompt names.
    """

    concepts: Mapping[str, str]
    name: str = "judge"
    higher_is_better: bool = True
    compares: bool = False

    @property
    def settings(self) -> Mapping[str, Any]:
        """The concepts."""
        return {"concepts": dict(self.concepts)}

    def score(self, picture: Picture, prompt: str, references: Mapping[str, Picture]) -> dict[str, float]:
        """One value for each adapter that the world knows, one for the prompt if it names anything."""
        verdict = miniature.judge(picture.pixels.unsqueeze(0))
        values = {}
        for name, concept in self.concepts.items():
            for thing, word in TRIGGERS.items():
                if word in concept.split():
                    kind = "style" if thing in STYLES else "object"
                    values[f"single:{name}"] = float(verdict.probability(kind, thing))
        words = prompt.lower().split()
        named = [
            float(verdict.probability(kind, word))
            for kind, names in (("object", SHAPES), ("color", COLORS), ("background", BACKGROUNDS))
            for word in names
            if word in words
        ]
        return values | ({"": sum(named) / len(named)} if named else {})
