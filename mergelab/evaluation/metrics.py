"""Metrics: small classes in one table, each a wrapper of the package that defines it.

A metric scores one picture at a time, so that no score depends on what else is in a batch.
"""

from __future__ import annotations

import inspect
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from mergelab import miniature
from mergelab.errors import OptionError
from mergelab.evaluation.config import Config
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


UserMetric = Callable[[Tensor, str, Mapping[str, Tensor]], "float | Mapping[str, float]"]


def cosine(x: Tensor, y: Tensor) -> float:
    """Cosine of two vectors, computed in float64."""
    return float(torch.nn.functional.cosine_similarity(x.double(), y.double(), dim=0))


@dataclass
class _ClipModel:
    """A CLIP of open_clip with its preprocessing, and the features it has computed."""

    name: str
    pretrained: str | None
    device: str
    _features: dict[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        import open_clip

        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("error", message="QuickGELU mismatch")  # other scores than its authors'
                self.model, self.preprocess = open_clip.create_model_from_pretrained(
                    self.name, pretrained=self.pretrained, device=self.device
                )
            self.tokenizer = open_clip.get_tokenizer(self.name)
        except Exception as error:  # open_clip raises whatever its parts raise
            raise OptionError(f"clip: open_clip cannot load {self.name!r} ({self.pretrained}): {error}") from error
        self.model.eval()

    @torch.no_grad()
    def image(self, picture: Picture) -> Tensor:
        """Features of an image, by the model's own preprocessing of an 8-bit image."""
        from torchvision.transforms.functional import to_pil_image

        if picture.key not in self._features:
            pixels = self.preprocess(to_pil_image(picture.pixels)).unsqueeze(0).to(self.device)
            self._features[picture.key] = self.model.encode_image(pixels)[0].cpu()
        return self._features[picture.key]

    @torch.no_grad()
    def text(self, prompt: str) -> Tensor:
        """Features of a prompt."""
        if (key := f"text:{prompt}") not in self._features:
            self._features[key] = self.model.encode_text(self.tokenizer([prompt]).to(self.device))[0].cpu()
        return self._features[key]


@dataclass
class ClipText:
    """Cosine of image and text: of the image's own prompt (reference ""), and of each adapter's concept."""

    clip: _ClipModel
    concepts: Mapping[str, str]
    name: str = "clip_text"
    higher_is_better: bool = True
    compares: bool = False

    @property
    def settings(self) -> Mapping[str, Any]:
        """The model and the concepts."""
        return {"model": self.clip.name, "pretrained": self.clip.pretrained, "concepts": dict(self.concepts)}

    def score(self, picture: Picture, prompt: str, references: Mapping[str, Picture]) -> dict[str, float]:
        """One value for the prompt, one for each concept."""
        texts = {"": prompt, **{f"single:{name}": concept for name, concept in self.concepts.items() if concept}}
        return {key: cosine(self.clip.image(picture), self.clip.text(text)) for key, text in texts.items()}


@dataclass
class ClipImage:
    """Cosine of two images."""

    clip: _ClipModel
    name: str = "clip_image"
    higher_is_better: bool = True
    compares: bool = True

    @property
    def settings(self) -> Mapping[str, Any]:
        """The model."""
        return {"model": self.clip.name, "pretrained": self.clip.pretrained}

    def score(self, picture: Picture, prompt: str, references: Mapping[str, Picture]) -> dict[str, float]:
        """One value for each reference."""
        return {key: cosine(self.clip.image(picture), self.clip.image(other)) for key, other in references.items()}


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
            return
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torchvision's, about an argument that lpips passes to it
            self.model = lpips.LPIPS(net=self.net, verbose=False).to(self.device)

    @property
    def settings(self) -> Mapping[str, Any]:
        """The trunk."""
        return {"net": self.net}

    @torch.no_grad()
    def score(self, picture: Picture, prompt: str, references: Mapping[str, Picture]) -> dict[str, float]:
        """One value for each reference; both images go in as [-1, 1]."""
        mine = picture.pixels.unsqueeze(0).to(self.device)
        return {
            key: float(self.model(mine, other.pixels.unsqueeze(0).to(self.device), normalize=True))
            for key, other in references.items()
        }


@dataclass
class Dino:
    """Cosine of the class tokens of two images, by a DINOv2 of transformers."""

    model_name: str
    device: str
    name: str = "dino"
    higher_is_better: bool = True
    compares: bool = True
    _features: dict[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        from transformers import AutoImageProcessor, AutoModel

        try:
            self.processor = AutoImageProcessor.from_pretrained(self.model_name)
            self.model = AutoModel.from_pretrained(self.model_name).to(self.device).eval()
        except (OSError, ValueError) as error:
            raise OptionError(f"dino: transformers cannot load {self.model_name!r}: {error}") from error

    @property
    def settings(self) -> Mapping[str, Any]:
        """The model."""
        return {"model": self.model_name}

    @torch.no_grad()
    def _image(self, picture: Picture) -> Tensor:
        if picture.key not in self._features:
            from torchvision.transforms.functional import to_pil_image

            inputs = self.processor(images=to_pil_image(picture.pixels), return_tensors="pt").to(self.device)
            self._features[picture.key] = self.model(**inputs).last_hidden_state[0, 0].cpu()
        return self._features[picture.key]

    def score(self, picture: Picture, prompt: str, references: Mapping[str, Picture]) -> dict[str, float]:
        """One value for each reference."""
        return {key: cosine(self._image(picture), self._image(other)) for key, other in references.items()}


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


@dataclass
class _Registered:
    """A user's function as a metric."""

    function: UserMetric
    name: str
    higher_is_better: bool
    settings: Mapping[str, Any]
    compares: bool = True

    def score(self, picture: Picture, prompt: str, references: Mapping[str, Picture]) -> dict[str, float]:
        """A bare number has no reference."""
        value = self.function(picture.pixels, prompt, {key: other.pixels for key, other in references.items()})
        return {key: float(v) for key, v in value.items()} if isinstance(value, Mapping) else {"": float(value)}


_REGISTERED: dict[str, _Registered] = {}
NAMES = ("clip_text", "clip_image", "lpips", "dino", "judge")


def register_metric(name: str, *, higher_is_better: bool = True) -> Callable[[UserMetric], UserMetric]:
    """Decorator: makes a function a metric that `metrics: [name]` finds.

    The function gets the image, float (3, h, w) in [0, 1], its prompt, and the images it is compared with, by reference
    ("base", "single:<name>", "stack"); it returns a number, or one for each reference.

    Raises:
        OptionError: the name is taken.

    Example:
        >>> @register_metric("brightness")
        ... def brightness(image, prompt, references):
        ...     return image.mean()
        >>> _ = _REGISTERED.pop("brightness")
    """
    if name in NAMES:
        raise OptionError(f"metric {name!r} comes with mergelab; register yours under another name")

    def add(function: UserMetric) -> UserMetric:
        try:
            source = inspect.getsource(function)
        except (OSError, TypeError):  # typed at a prompt, or no function: scored again in every run
            source = str(time.time_ns())
        _REGISTERED[name] = _Registered(function, name, higher_is_better, {"source": source})
        return function

    return add


def metric_names() -> list[str]:
    """All that a configuration can name."""
    return [*NAMES, *_REGISTERED]


def check_names(config: Config) -> None:
    """Raises where a configuration names a metric that does not exist, or the judge outside its world.

    Raises:
        OptionError: so.
    """
    from difflib import get_close_matches

    for name in config.metrics:
        if name not in metric_names():
            near = get_close_matches(name, metric_names(), n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(metric_names())}"
            raise OptionError(f"metrics: there is no {name!r}; {hint}")
    if "judge" in config.metrics and not config.miniature:
        raise OptionError("metrics: judge reads images of the miniature world alone; leave it out for other models")


def build(config: Config, concepts: Mapping[str, str]) -> list[Metric]:
    """The metrics of a configuration, loaded.

    Raises:
        OptionError: an unknown metric, or one whose model cannot be loaded.
    """
    check_names(config)
    device = config.device or ("cuda" if torch.cuda.is_available() else "cpu")
    clip = None
    if {"clip_text", "clip_image"} & set(config.metrics):
        clip = _ClipModel(*_clip_of(config), device)
    known: dict[str, Callable[[], Metric]] = {
        "clip_text": lambda: ClipText(_present(clip), concepts),
        "clip_image": lambda: ClipImage(_present(clip)),
        "lpips": lambda: Lpips(config.lpips or ("miniature" if config.miniature else "alex"), device),
        "dino": lambda: Dino(config.dino, device),
        "judge": lambda: Judge(concepts),
        **{name: lambda metric=metric: metric for name, metric in _REGISTERED.items()},  # type: ignore[misc]
    }
    return [known[name]() for name in dict.fromkeys(config.metrics)]


def _clip_of(config: Config) -> tuple[str, str | None]:
    """The model's name and its weights: by default the miniature's own for a miniature pipeline."""
    from mergelab.evaluation.config import Clip

    if config.clip is None and config.miniature:
        return miniature.clip(), None
    clip = config.clip or Clip()
    if clip.model == "miniature":
        return miniature.clip(), None
    return clip.model, None if clip.model.startswith("local-dir:") else clip.pretrained


def _present(clip: _ClipModel | None) -> _ClipModel:
    assert clip is not None
    return clip
