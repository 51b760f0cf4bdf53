"""Kinds of adapters that are recognised, so that the refusal can name them, but not read."""

from __future__ import annotations

import re

_REFUSED: tuple[tuple[re.Pattern[str], str], ...] = tuple(
    (re.compile(pattern), name)
    for pattern, name in (
        (r"\.((dora_)?magnitude(_vector)?(\.[^.]+)?(\.weight)?|lora_magnitude)$", "DoRA of AI-toolkit or torchtune"),
        (r"\.lora_diag(\.[^.]+)?$", "KaSA"),
        (r"\.(lora_E|ranknum)(\.[^.]+)?$", "AdaLoRA"),
        (r"\.lora_monteclora_", "MonteCLoRA"),
        (r"\.lora_velora_", "VeLoRA"),
        (r"\.vera_lambda_[bd](\.[^.]+)?$", "VeRA"),
        (r"\.oft_diag$", "an early OFT"),
        (r"^(unet|text_encoder(_2)?):\d+:(down|up)$", "cloneofsimo's numbered layers"),
        (r"\.lora_embedding_[AB]", "LoRA of an embedding table"),
    )
)


def refused_kind(key: str) -> str | None:
    """The name of the kind that a key belongs to, if it is one that is not read.

    Example:
        >>> refused_kind("base_model.model.mid_block.attentions.0.proj_in.vera_lambda_b")
        'VeRA'
    """
    return next((name for pattern, name in _REFUSED if pattern.search(key)), None)
