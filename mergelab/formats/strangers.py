"""Files that are taken for LoRA adapters and are none: what each is, and what to give instead."""

from __future__ import annotations

import re
from collections.abc import Iterable

from mergelab.errors import FormatError

EMBEDDING = re.compile(r"^(bundle_emb\..+|emb_params|string_to_param\..+|<[^<>]+>|clip_[lg]|t5xxl)$")
"""Keys of textual-inversion embeddings, which may stand beside the layers of an adapter."""

# What a key of an adapter of any kind has, also of the kinds that are not read: those are named where keys are sorted.
_OF_ADAPTERS = re.compile(
    r"lora|lokr|loha|locon|lycoris|hada_|dora|oft_|vera_|glora|magnitude|ia3_l|on_input|ranknum|[._]diff(_b)?$"
    r"|\.(alpha|scalar|rescale|[wb]_norm|[ab][12]\.weight)$|:(up|down)$"
)

# One key is enough, whatever else the file holds.
_BY_ANY_KEY = (
    (
        r"\.(qweight|wscales|smooth_factor(_orig)?|smooth(_orig)?)$",
        "is a quantised model (nunchaku, GPTQ or AWQ), no adapter",
    ),
    (
        r"(^|\.)(single_)?transformer_blocks\.\d+\.((\w+|norm1?(_context)?\.linear)\.lora|.+\.proj)_(down|up)$",
        "is packed for nunchaku; give the file it was made from",
    ),
    (r"^lora_controlnet$", "is a Control-LoRA, which is a whole ControlNet; load it as one"),
    (
        r"^(image_proj(_model)?|ip_adapter(_proj_model)?)\.|\.ip_adapter_double_stream_",
        "is an IP-Adapter, which reads an image; load it beside the merged adapter (load_ip_adapter in diffusers)",
    ),
)
# Of a file without any key of an adapter; the last is the most general.
_WITHOUT_ADAPTER = (
    (
        r"^(control_model|controlnet\w*|input_hint_block|zero_convs|adapter\.(body|conv_in))\.",
        "is a ControlNet or a T2I-Adapter, no LoRA adapter; load it beside the merged adapter",
    ),
    (
        r"^(model\.diffusion_model|first_stage_model|cond_stage_model|conditioner)\.",
        "is a whole checkpoint (a base model), no adapter; give the adapter's own file",
    ),
    (r"^(encoder|decoder|quant_conv|post_quant_conv)\.", "is a VAE, no adapter; give the adapter's own file"),
    (
        r"\.(weight|bias|scale)$",
        "holds the weights of a model, and no LoRA layer: a base model, or a part of one; give the adapter's own file",
    ),
)
_EMBEDDINGS_ALONE = (
    "is a textual-inversion embedding and holds no LoRA layer, expected an adapter; load it beside the merged one "
    "(load_textual_inversion in diffusers)"
)

# What a file that is no safetensors file begins with or contains; the last tell by the ending alone.
_BY_CONTENT = (
    (rb"^GGUF", "is a GGUF file (a quantised model)"),
    (rb"^version https://git-lfs", "is a pointer of Git LFS to a file that is not here (git lfs pull brings it)"),
    (rb"(?i)^\s*(<!doctype html|<html)", "is a web page, saved in place of the file"),
    (
        rb"\blora_paths\b|\bjob\s*:\s*\S+\s+config\s*:",
        "is a configuration of AI-Toolkit: mergelab merge --config takes one, in place of adapters",
    ),
    (rb'^\s*\{[^}]*"peft_type"', "is the config of a PEFT adapter: give its folder"),
    (
        rb'^\s*\{[^}]*"(algo|apply_preset|linear_dim|lycoris_\w+)"|^\s*(unet_target_module|module_algo_map)\b',
        "is a configuration of LyCORIS: give the adapter's own file",
    ),
)
_BY_ENDING = {
    ".gguf": "is a GGUF file (a quantised model)",
    ".yaml": "is a YAML configuration",
    ".yml": "is a YAML configuration",
    ".toml": "is a TOML configuration",
    ".json": "is a JSON file",
}


def check_adapter(keys: Iterable[str]) -> None:
    """Raise `FormatError` for the keys of a file that is known for something else than an adapter.

    Example:
        >>> check_adapter(["unet.conv_in.lora_A.weight", "unet.conv_in.lora_B.weight"])
        >>> check_adapter(["model.diffusion_model.out.2.weight"])
        Traceback (most recent call last):
            ...
        mergelab.errors.FormatError: is a whole checkpoint (a base model), no adapter; give ... (found ...)
    """
    known = list(keys)
    _refuse(_BY_ANY_KEY, known)
    if not any(_OF_ADAPTERS.search(key) for key in known):
        if known and all(EMBEDDING.match(key) for key in known):
            raise FormatError(f"{_EMBEDDINGS_ALONE} (found {known[0]!r})")
        _refuse(_WITHOUT_ADAPTER, known)


def _refuse(table: tuple[tuple[str, str], ...], keys: list[str]) -> None:
    """Raise for the first row of which a key is."""
    for pattern, sentence in table:
        if key := next(filter(re.compile(pattern).search, keys), None):
            raise FormatError(f"{sentence} (found {key!r})")


def other_file(start: bytes, ending: str) -> str | None:
    """What a file that is no safetensors file is, from its first bytes and the ending of its name.

    Example:
        >>> other_file(b"GGUF", ".safetensors")
        'is a GGUF file (a quantised model), expected safetensors'
    """
    found = next((what for pattern, what in _BY_CONTENT if re.search(pattern, start)), None)
    found = found or _BY_ENDING.get(ending.lower())
    return f"{found}, expected safetensors" if found else None
