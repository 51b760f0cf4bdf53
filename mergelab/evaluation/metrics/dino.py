"""DINOv2 of transformers: likeness of two images."""

from __future__ import annotations

from PIL.Image import Image
from torch import Tensor

from mergelab.errors import OptionError
from mergelab.evaluation.metrics.encoders import COSINE, ImageEncoder, ImageSimilarity
from mergelab.evaluation.metrics.metric import Description, Setup


class Dino(ImageSimilarity):
    """Cosine of the class tokens of two images."""

    description = Description("dino", "images", range=COSINE, photographs=True)

    @classmethod
    def open(cls, setup: Setup) -> Dino:
        """With the DINOv2 of the configuration."""
        return cls(dino_encoder(setup.config.dino, setup.device))


def dino_encoder(name: str, device: str) -> ImageEncoder:
    """The class token of a DINOv2.

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

    return ImageEncoder(model, encode, {"model": name})
