"""`Contents` -> tensors and header of a file, in the dialect asked for."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from mergelab.errors import OptionError, OutputError
from mergelab.formats.files import HASH, replacing_folder, write_safetensors
from mergelab.formats.kohya import kohya
from mergelab.formats.peft import adapter_metadata, diffusers, folder_config, peft, split_components
from mergelab.formats.shared import most_frequent
from mergelab.formats.sources import PEFT_CONFIG, PEFT_WEIGHTS
from mergelab.layer import Contents, short_name
from mergelab.linalg.workspace import Workspace, threads

FORMATS = ("diffusers", "kohya", "peft")

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
_MODELSPEC = {
    "sd15": "stable-diffusion-v1/lora",
    "sd2": "stable-diffusion-v2-768-v/lora",
    "sdxl": "stable-diffusion-xl-v1-base/lora",
    "flux": "flux-1-dev/lora",
}
_KOHYA_BASE = {"sd15": "sd_v1", "sd2": "sd_v2", "sdxl": "sdxl_base_v1-0", "flux": "flux1"}
_KOHYA_MODULE = {"flux": "networks.lora_flux"}


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


def state_dict(contents: Contents, format: str, dtype: torch.dtype | None = None) -> dict[str, Tensor]:
    """The tensors of a file of this format, by key.

    Args:
        contents: what to write.
        format: "diffusers", "kohya", or "peft" (the keys of one component's folder).
        dtype: of the factors; None keeps each as it is, float32 where a scaling would otherwise be rounded.

    Raises:
        FormatError, ArchitectureError: a layer or an extra that the format has no name for.
        OutputError: a value that overflows the dtype.
    """
    write = {"diffusers": diffusers, "kohya": kohya, "peft": peft}[check_format(format)]
    return _cast(write(contents), dtype, contents.source)


def save(contents: Contents, path: Path, format: str, dtype: torch.dtype | None) -> None:
    """Write a file, or for "peft" a folder (one folder in it per component where there are several)."""
    if check_format(format) == "peft":
        _save_peft(contents, path, dtype)
        return
    tensors = state_dict(contents, format, dtype)
    write_safetensors(path, tensors, header(contents, format, tensors))


def _save_peft(contents: Contents, folder: Path, dtype: torch.dtype | None) -> None:
    parts = split_components(contents)
    with replacing_folder(folder, {PEFT_CONFIG, PEFT_WEIGHTS[0]}) as temporary:
        for component, part in parts.items():
            target = temporary if len(parts) == 1 else temporary / component
            target.mkdir(exist_ok=True)
            tensors = state_dict(part, "peft", dtype)
            strings = {**header(part, "peft", tensors), "format": "pt", "mergelab.component": component}
            write_safetensors(target / PEFT_WEIGHTS[0], tensors, strings)
            text = json.dumps(folder_config(part, component), indent=2, sort_keys=True)
            (target / PEFT_CONFIG).write_text(text + "\n", encoding="utf-8")


def header(contents: Contents, format: str, tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """The strings of the header: what the inputs said and is still true, modelspec, and what readers need."""
    strings = {key: value for key, value in contents.metadata.items() if key not in _STALE}
    architecture = contents.architecture
    strings["modelspec.sai_model_spec"] = "1.0.0"
    strings.setdefault(
        "modelspec.title", "untitled" if contents.source.startswith("<") else short_name(contents.source)
    )
    if architecture:
        strings["modelspec.architecture"] = _MODELSPEC[architecture]
        strings["modelspec.implementation"] = (
            "diffusers" if format == "diffusers" else "https://github.com/kohya-ss/sd-scripts"
        )
        strings["ss_base_model_version"] = _KOHYA_BASE[architecture]
        strings["ss_v2"] = str(architecture == "sd2")
    if format == "kohya":
        ranks = Counter(t.shape[0] for key, t in tensors.items() if key.endswith(".lora_down.weight"))
        alphas = Counter(float(t) for key, t in tensors.items() if key.endswith(".alpha"))
        strings["ss_network_module"] = _KOHYA_MODULE.get(architecture or "", "networks.lora")
        strings["ss_network_dim"] = str(most_frequent(ranks)) if len(ranks) == 1 else "Dynamic"
        strings["ss_network_alpha"] = f"{most_frequent(alphas):g}" if len(alphas) == 1 else "Dynamic"
    elif format == "diffusers":
        strings["format"] = "pt"
        if len({layer.rank for layer in contents.layers.values()}) > 1:
            strings["lora_adapter_metadata"] = json.dumps(adapter_metadata(contents), sort_keys=True)
    return strings


def _cast(tensors: dict[str, Tensor], dtype: torch.dtype | None, source: str) -> dict[str, Tensor]:
    """Cast once, and check that everything is finite and nothing overflows."""

    def checked(item: tuple[str, Tensor]) -> Tensor:
        name, tensor = item
        if not tensor.is_floating_point() or name.endswith(".alpha") or not tensor.numel():
            return tensor
        largest = float(tensor.abs().max())
        if not math.isfinite(largest):
            raise OutputError(f"{source}: {name} holds NaN or infinity and is not written")
        if dtype is not None and largest > torch.finfo(dtype).max:
            raise OutputError(
                f"{source}: {name} has values up to {largest:.3g}, more than {dtype} can hold; save it as bfloat16 "
                "or float32"
            )
        return tensor if dtype is None else tensor.to(dtype)

    with threads() as pool:
        return dict(zip(tensors, Workspace(pool).map(checked, tensors.items())))
