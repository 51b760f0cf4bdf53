"""What the published tables train on: subjects, styles, and how each paper trains an adapter.

Subjects are folders of google/dreambooth (CC-BY 4.0), styles images of StyleDrop in the order and the words of
aim-uofa/StyleDrop-PyTorch (MIT; the images have licences of their own, see styledrop.github.io).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

DREAMBOOTH = "https://github.com/google/dreambooth"
STYLEDROP = "https://github.com/aim-uofa/StyleDrop-PyTorch"

SUBJECTS: dict[str, str] = {
    "bear_plushie": "bear plushie",
    "candle": "candle",
    "cat": "cat",
    "cat2": "cat",
    "colorful_sneaker": "sneaker",
    "dog": "dog",
    "dog2": "dog",
    "dog3": "dog",
    "pink_sunglasses": "sunglasses",
    "poop_emoji": "poop emoji",
    "rc_car": "rc car",
    "red_cartoon": "cartoon",
    "teapot": "teapot",
}
"""Folder of DreamBooth's images -> what it shows, as prompts have it behind the rare word."""


@dataclass(frozen=True)
class Style:
    """One image of StyleDrop: the file, what it shows, and how, in the words of its authors."""

    file: str
    object: str
    words: str


STYLES: dict[str, Style] = {
    "watercolor": Style("image_01_02.jpg", "a house", "watercolor painting style"),
    "oil": Style("image_01_05.jpg", "a village", "oil painting style"),
    "lines": Style("image_01_06.jpg", "a village", "line drawing style"),
    "portrait": Style("image_01_07.jpg", "a portrait of a person", "oil painting style"),
    "flat": Style("image_02_02.jpg", "a woman walking a dog", "flat cartoon illustration style"),
    "sticker": Style("image_02_04.jpg", "a Christmas tree", "sticker style"),
    "smoke": Style("image_02_05.jpg", "a wave", "abstract rainbow colored flowing smoke wave design"),
    "glow": Style("image_02_06.jpg", "a mushroom", "glowing style"),
    "render": Style("image_03_01.jpg", "slice of watermelon and clouds in the background", "3d rendering style"),
    "neon": Style("image_03_03.jpg", "a thumbs up", "glowing 3d rendering style"),
    "figure": Style("image_03_04.jpg", "a woman", "3d rendering style"),
    "crayon": Style("image_03_05.jpg", "a bear", "kid crayon drawing style"),
    "gold": Style("image_03_07.jpg", "a flower", "melting golden 3d rendering style"),
    "wood": Style("image_03_08.jpg", "a Viking face with beard", "wooden sculpture"),
    "ink": Style("image_02_01.jpg", "a person drowning into the phone", "cartoon line drawing style"),
}


@dataclass(frozen=True)
class Recipe:
    """How a paper trains its adapters; what it does not state is in README.md.

    Attributes:
        script: of diffusers' examples/dreambooth.
        base: the model that is adapted.
        token: the rare word in front of the subject.
        style: the prompt of a style's one image, with its {object} and its {words}; empty: no styles.
        subjects: which ones.
        options: arguments of the script; None for a flag.
    """

    script: str
    base: str
    token: str
    style: str
    subjects: tuple[str, ...]
    options: Mapping[str, str | None]


_TEN = ("bear_plushie candle cat colorful_sneaker dog pink_sunglasses poop_emoji rc_car red_cartoon teapot").split()
_ANIMALS_AND_OBJECTS = "cat cat2 dog dog2 dog3 bear_plushie candle colorful_sneaker rc_car teapot".split()
_SDXL = {
    "train_batch_size": "1", "learning_rate": "5e-5", "lr_scheduler": "constant", "lr_warmup_steps": "0",
    "max_train_steps": "1000", "resolution": "1024", "gradient_checkpointing": None, "seed": "0",
}  # fmt: skip
_SDXL_SCRIPT, _SDXL_BASE = "train_dreambooth_lora_sdxl.py", "stabilityai/stable-diffusion-xl-base-1.0"
RECIPES: dict[str, Recipe] = {
    "ssr": Recipe(
        "train_dreambooth_lora_flux.py",
        "black-forest-labs/FLUX.1-dev",
        "sks",
        "",
        tuple(_TEN),
        {
            "rank": "32", "lora_alpha": "32", "learning_rate": "1e-4", "max_train_steps": "500",
            "lr_scheduler": "constant", "lr_warmup_steps": "0", "train_batch_size": "1", "resolution": "512",
            "guidance_scale": "1", "mixed_precision": "bf16", "gradient_checkpointing": None, "seed": "0",
        },
    ),
    "ziplora": Recipe(
        _SDXL_SCRIPT, _SDXL_BASE, "sbu", "{object} in {words}", ("bear_plushie", "cat", "dog", "teapot"),
        {"rank": "64", "mixed_precision": "fp16", **_SDXL},
    ),
    "klora": Recipe(
        _SDXL_SCRIPT, _SDXL_BASE, "sbu", "{object} in szn style", tuple(_ANIMALS_AND_OBJECTS),
        {"rank": "8", "mixed_precision": "no", **_SDXL},
    ),
}  # fmt: skip
"""K-LoRA's adapters are NP-LoRA's, too."""
