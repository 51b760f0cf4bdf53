"""The strings of a written file's header: what the inputs said and is still true, modelspec, and what readers need."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping

from torch import Tensor

from mergelab.describing import short_name
from mergelab.formats.architectures.architecture import Architecture
from mergelab.formats.architectures.registry import ARCHITECTURES
from mergelab.formats.header_alphas import stale_fields
from mergelab.formats.peft import adapter_metadata, without_attention
from mergelab.formats.tensor_files import HASHES
from mergelab.formats.words import trigger_words
from mergelab.formats.writers import FACTOR_SUFFIXES, most_frequent
from mergelab.layer import AdapterData

# What the header of another file said that is no longer true of this one.
_STALE = (
    "format",
    "lora_adapter_metadata",
    *HASHES,
    "ss_network_module",
    "ss_network_dim",
    "ss_network_alpha",
)
_DOWNS = tuple(down for down, _ in FACTOR_SUFFIXES)
# Pixels of an image for each of a latent image, in the UNets of Stable Diffusion.
_LATENT = 8


def header(data: AdapterData, format: str, tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """The strings of the header of a file in this format."""
    stale = stale_fields(data.metadata).union(_STALE)
    strings = {key: value for key, value in data.metadata.items() if key not in stale}
    architecture = ARCHITECTURES.get(data.architecture or "")
    strings["modelspec.sai_model_spec"] = "1.0.0"
    strings.setdefault("modelspec.title", "untitled" if data.source.startswith("<") else short_name(data.source))
    if words := trigger_words([data.metadata]):
        strings.setdefault("modelspec.trigger_phrase", ", ".join(words))
    if architecture:
        strings |= _base_model(architecture, format, data.metadata)
    if format in ("kohya", "comfy"):
        strings |= _network(architecture, tensors)
    elif format == "diffusers":
        strings["format"] = "pt"
        if len({layer.rank for layer in data.layers.values()}) > 1 or without_attention(data):
            strings["lora_adapter_metadata"] = json.dumps(adapter_metadata(data), sort_keys=True)
    return strings


def _base_model(architecture: Architecture, format: str, declared: Mapping[str, str]) -> dict[str, str]:
    """What tools read of the base model: as the input declared it, unless that is another family's."""
    spec = _declared(architecture, declared, "modelspec.architecture") or architecture.modelspec
    version = _declared(architecture, declared, "ss_base_model_version") or architecture.base_version
    if not re.search(architecture.header, f"{spec} {version}".lower()):
        spec = architecture.modelspec  # the file is still to be known for what it is
    implementation = declared.get("modelspec.implementation", "")
    if format in ("diffusers", "nunchaku"):
        implementation = "diffusers"
    elif implementation in ("", "diffusers"):
        implementation = "https://github.com/kohya-ss/sd-scripts"
    strings = {
        "modelspec.architecture": spec if "/" in spec else f"{spec}/lora",
        "modelspec.implementation": implementation,
        "ss_base_model_version": version,
        "ss_v2": str(architecture.v2),
    }
    size = architecture.model_config.get("sample_size")
    if architecture.denoiser == "unet" and size and not declared.get("modelspec.resolution"):
        strings["modelspec.resolution"] = f"{_LATENT * size}x{_LATENT * size}"
    return strings


def _declared(architecture: Architecture, header: Mapping[str, str], key: str) -> str:
    """What a header says of the base model: maybe a finer word for this family ("pony"); "" where it is another's."""
    value = header.get(key, "").strip()
    if re.search(architecture.header, value.lower()):
        return value
    others = (other for other in ARCHITECTURES.values() if other is not architecture)
    return "" if any(re.search(other.header, value.lower()) for other in others) else value


def _network(architecture: Architecture | None, tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """kohya's fields of the network: A1111, Forge and model managers show them."""
    ranks = Counter(t.shape[0] for key, t in tensors.items() if key.endswith(_DOWNS))
    given = Counter(float(t) for key, t in tensors.items() if key.endswith(".alpha"))
    alphas = given or ranks
    known = architecture.kohya if architecture else None
    strings = {
        "ss_network_module": known.network_module if known else "networks.lora",
        "ss_network_dim": str(most_frequent(ranks)) if len(ranks) == 1 else "Dynamic",
    }
    if given or len(ranks) == 1:
        strings["ss_network_alpha"] = f"{most_frequent(alphas):g}" if len(alphas) == 1 else "Dynamic"
    return strings
