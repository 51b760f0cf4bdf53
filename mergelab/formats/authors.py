"""Who wrote a file, as far as its header and the names of its tensors tell."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from datetime import datetime, timezone

# How keys are named, the first that matches counts.
_SPELLINGS = tuple(
    (re.compile(pattern), name)
    for pattern, name in (
        (r"^(unet|text_encoder(_2)?):\d+:(up|down)$", "cloneofsimo's numbered layers"),
        (r"\.processor\.\w+_lora[12]?\.(down|up)\.weight$", "attention processors (XLabs, older diffusers)"),
        (r"\.lora(_linear_layer)?\.(down|up)\.weight$", "older diffusers"),
        (r"^lycoris_", "LyCORIS without kohya (SimpleTuner)"),
        (r"^lora_(unet|te\d?|te_\d|transformer)_", "kohya"),
        (r"^pipe\.dit\.|\.lora_[AB]\.\w+\.weight$", "PEFT with the adapter's name (DiffSynth)"),
        (r"^base_model\.model\.", "PEFT"),
        (r"^(diffusion_model|text_encoders)\.", "ComfyUI (AI-toolkit)"),
        (r"^(unet|transformer|text_encoder(_[23])?)\.", "diffusers"),
    )
)
# Strings of a header that a training leaves, and nothing that converts its file.
_TRAINING = ("ss_training_started_at", "ss_learning_rate", "ss_sd_scripts_commit_hash")
_NETWORK = "ss_network_module"


def spelling_of(keys: Iterable[str]) -> str:
    """Whose way of naming tensors a file has, in words: the two most frequent of several, or "".

    Example:
        >>> spelling_of(["lora_unet_mid_block_attentions_0_proj_in.lora_down.weight"]), spelling_of(["x.weight"])
        ('kohya', '')
    """
    counts = Counter(next((name for pattern, name in _SPELLINGS if pattern.search(key)), "") for key in keys)
    counts.pop("", None)
    return " and ".join(name for name, _ in counts.most_common(2))


def author_of(header: Mapping[str, str]) -> str:
    """The trainer or tool that a header names, with what says so; "" where none does.

    Example:
        >>> author_of({"software": '{"name": "ai-toolkit", "version": "0.7"}'})
        'ai-toolkit 0.7 (header: software)'
        >>> author_of({"ss_network_module": "networks.lora"})
        "a tool that writes kohya's header (ss_network_module = networks.lora)"
    """
    if software := _software(header.get("software", "")):
        return f"{software} (header: software)"
    if key := next((key for key in header if key.startswith("ot_")), ""):
        return f"OneTrainer (header: {key})"
    module = header.get(_NETWORK, "")
    if key := next((key for key in _TRAINING if key in header), ""):
        who = "LyCORIS in a trainer with kohya's header" if module.startswith("lycoris") else "sd-scripts or its kin"
        said = f"{_NETWORK} = {module}" if module else key
        return f"{who} (header: {said}){_finished(header)}"
    return f"a tool that writes kohya's header ({_NETWORK} = {module})" if module else ""


def declared_base(header: Mapping[str, str]) -> list[str]:
    """What a header says of the base model, as `key = value`.

    Example:
        >>> declared_base({"ss_base_model_version": "pony", "ss_v2": "False"})
        ['ss_base_model_version = pony']
    """
    known = ("modelspec.architecture", "ss_base_model_version", "ss_sd_model_name")
    return [f"{key} = {value[:60]}" for key in known if (value := header.get(key, "").strip()) and value != "None"]


def _software(text: str) -> str:
    """The name and version in AI-toolkit's JSON, or the text."""
    try:
        content = json.loads(text)
    except (ValueError, RecursionError):
        return text.strip()[:60]
    if not isinstance(content, dict):
        return text.strip()[:60]
    return " ".join(str(content[key]) for key in ("name", "version") if content.get(key))[:60]


def _finished(header: Mapping[str, str]) -> str:
    try:
        moment = datetime.fromtimestamp(float(header.get("ss_training_finished_at", "")), timezone.utc)
    except (ValueError, OverflowError, OSError):
        return ""
    return f", finished {moment:%Y-%m-%d}"
