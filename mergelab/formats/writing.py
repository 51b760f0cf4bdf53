"""`AdapterData` -> tensors and header of a file, in the dialect asked for."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from mergelab.errors import OptionError
from mergelab.formats.architectures.registry import ARCHITECTURES
from mergelab.formats.casting import cast
from mergelab.formats.files import replacing_folder
from mergelab.formats.header_alphas import stale_fields
from mergelab.formats.kohya import kohya
from mergelab.formats.messages import about
from mergelab.formats.peft import adapter_metadata, diffusers, folder_config, peft, split_components
from mergelab.formats.peft_config import PEFT_CONFIG, PEFT_WEIGHTS
from mergelab.formats.tensor_files import HASH, write_safetensors
from mergelab.formats.writers import most_frequent
from mergelab.layer import AdapterData, short_name

# What the header of another file said that is no longer true of this one.
_STALE = (
    "format",
    "lora_adapter_metadata",
    "sshs_model_hash",
    "sshs_legacy_hash",
    HASH,
    "ss_network_module",
    "ss_network_dim",
    "ss_network_alpha",
)
_WRITERS = {"diffusers": diffusers, "kohya": kohya, "peft": peft}
FORMATS = tuple(_WRITERS)


def check_format(name: object) -> str:
    """Return a known format's name, or raise `OptionError`."""
    if name not in FORMATS:
        raise OptionError(f"format={name!r}: expected one of {', '.join(map(repr, FORMATS))}")
    return str(name)


def to_dtype(name: object) -> torch.dtype | None:
    """The torch dtype of "float32", "bfloat16", "bf16", ...; None stays None."""
    short = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16", "f32": "float32", "f16": "float16"}
    if name is None or isinstance(name, torch.dtype):
        dtype = name
    else:
        dtype = getattr(torch, short.get(str(name), str(name)), None)
        if dtype is None:
            raise OptionError(f"dtype={name!r}: expected 'float32', 'float16' or 'bfloat16'")
    if dtype is not None and dtype not in (torch.float32, torch.float16, torch.bfloat16, torch.float64):
        raise OptionError(f"dtype={name!r}: expected 'float32', 'float16' or 'bfloat16'")
    return dtype


def state_dict(data: AdapterData, format: str, dtype: torch.dtype | None = None) -> dict[str, Tensor]:
    """The tensors of a file of this format, by key.

    Args:
        data: what to write.
        format: "diffusers", "kohya", or "peft" (the keys of one component's folder).
        dtype: of the factors; None keeps each as it is, float32 where a scaling would otherwise be rounded.

    Raises:
        FormatError, ArchitectureError: a layer or an extra that the format has no name for.
        OutputError: a value that overflows the dtype, or a layer that loses more in it than rounding explains.
    """
    write = _WRITERS[check_format(format)]
    with about(data.source):
        return cast(write(data), dtype)


def save(data: AdapterData, path: Path, format: str, dtype: torch.dtype | None) -> None:
    """Write a file, or for "peft" a folder (one folder in it per component where there are several)."""
    if check_format(format) == "peft":
        _save_peft(data, path, dtype)
        return
    tensors = state_dict(data, format, dtype)
    write_safetensors(path, tensors, header(data, format, tensors))


def _save_peft(data: AdapterData, folder: Path, dtype: torch.dtype | None) -> None:
    with about(data.source):
        parts = split_components(data)
    with replacing_folder(folder, {PEFT_CONFIG, PEFT_WEIGHTS[0]}) as temporary:
        for component, part in parts.items():
            target = temporary if len(parts) == 1 else temporary / component
            target.mkdir(exist_ok=True)
            tensors = state_dict(part, "peft", dtype)
            strings = {**header(part, "peft", tensors), "format": "pt", "mergelab.component": component}
            write_safetensors(target / PEFT_WEIGHTS[0], tensors, strings)
            text = json.dumps(folder_config(part, component), indent=2, sort_keys=True)
            (target / PEFT_CONFIG).write_text(text + "\n", encoding="utf-8")


def header(data: AdapterData, format: str, tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """The strings of the header: what the inputs said and is still true, modelspec, and what readers need."""
    stale = stale_fields(data.metadata).union(_STALE)
    strings = {key: value for key, value in data.metadata.items() if key not in stale}
    architecture = ARCHITECTURES.get(data.architecture or "")
    strings["modelspec.sai_model_spec"] = "1.0.0"
    strings.setdefault("modelspec.title", "untitled" if data.source.startswith("<") else short_name(data.source))
    if architecture:
        strings["modelspec.architecture"] = architecture.modelspec
        strings["modelspec.implementation"] = (
            "diffusers" if format == "diffusers" else "https://github.com/kohya-ss/sd-scripts"
        )
        strings["ss_base_model_version"] = architecture.base_version
        strings["ss_v2"] = str(architecture.v2)
    if format == "kohya":
        ranks = Counter(t.shape[0] for key, t in tensors.items() if key.endswith(".lora_down.weight"))
        alphas = Counter(float(t) for key, t in tensors.items() if key.endswith(".alpha"))
        known = architecture.kohya if architecture else None
        strings["ss_network_module"] = known.network_module if known else "networks.lora"
        strings["ss_network_dim"] = str(most_frequent(ranks)) if len(ranks) == 1 else "Dynamic"
        strings["ss_network_alpha"] = f"{most_frequent(alphas):g}" if len(alphas) == 1 else "Dynamic"
    elif format == "diffusers":
        strings["format"] = "pt"
        if len({layer.rank for layer in data.layers.values()}) > 1:
            strings["lora_adapter_metadata"] = json.dumps(adapter_metadata(data), sort_keys=True)
    return strings
