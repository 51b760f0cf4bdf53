"""Kinds of adapters that are recognised, so that the refusal can name them, but not read."""

from __future__ import annotations

import re

_REFUSED: tuple[tuple[re.Pattern[str], str], ...] = tuple(
    (re.compile(pattern), name)
    for pattern, name in (
        (r"\.(dora_scale|((lora|dora)_)?magnitude(_vector)?(\.[^.]+)?(\.weight)?)$", "DoRA"),
        (r"\.lora_diag(\.[^.]+)?$", "KaSA"),
        (r"\.(lora_E|ranknum)(\.[^.]+)?$", "AdaLoRA"),
        (r"\.lora_monteclora_", "MonteCLoRA"),
        (r"\.lora_velora_", "VeLoRA"),
        (r"\.vera_lambda_[bd](\.[^.]+)?$", "VeRA"),
        (r"\.hada_(w[12]_[ab]|t[12])$", "LyCORIS LoHa"),
        (r"\.lokr_(w[12](_[ab])?|t[12])$", "LyCORIS LoKr"),
        (r"\.(oft_blocks|oft_diag|oft_R(\..*)?|rescale)$", "OFT or BOFT"),
        (r"\.[ab][12]\.weight$", "LyCORIS GLoRA"),
        (r"\.(on_input|ia3_l(\..*)?)$", "(IA)3"),
        (r"\.(diff|w_norm|b_norm|scalar)$", "LyCORIS full differences, norms or scalars"),
        (r"^(unet|text_encoder(_2)?):\d+:(down|up)$", "cloneofsimo's numbered layers"),
        (r"\.lora_embedding_[AB]", "LoRA of an embedding table"),
    )
)


def refused_kind(key: str) -> str | None:
    """The name of the kind that a key belongs to, if it is one that is not read.

    Example:
        >>> refused_kind("lora_unet_mid_block_attentions_0_proj_in.hada_w1_a")
        'LyCORIS LoHa'
    """
    return next((name for pattern, name in _REFUSED if pattern.search(key)), None)
