"""`Contents` -> tensors and header of a file, in the dialect asked for."""

from __future__ import annotations

import contextlib
import json
import math
import re
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mergelab.errors import ArchitectureError, FormatError, OptionError, OutputError
from mergelab.formats import flux, unet
from mergelab.formats.files import replacing, tensors_sha256, write_safetensors
from mergelab.formats.names import COMPONENTS, flatten, unflatten
from mergelab.formats.sources import PEFT_CONFIG, PEFT_WEIGHTS
from mergelab.layer import Contents, Layer, LoraLayer, short_name

FORMATS = ("diffusers", "kohya", "peft")

# What the header of another file said that is no longer true of this one.
_STALE = ("format", "lora_adapter_metadata", "sshs_model_hash", "sshs_legacy_hash", "modelspec.hash_sha256")
_MODELSPEC = {
    "sd15": "stable-diffusion-v1/lora",
    "sd2": "stable-diffusion-v2-768-v/lora",
    "sdxl": "stable-diffusion-xl-v1-base/lora",
    "flux": "flux-1-dev/lora",
}
_KOHYA_BASE = {"sd15": "sd_v1", "sd2": "sd_v2", "sdxl": "sdxl_base_v1-0", "flux": "flux1"}
_KOHYA_MODULE = {"flux": "networks.lora_flux"}
_KOHYA_TEXT = {
    "sd15": {"text_encoder": "lora_te"},
    "sd2": {"text_encoder": "lora_te"},
    "sdxl": {"text_encoder": "lora_te1", "text_encoder_2": "lora_te2"},
    "flux": {"text_encoder": "lora_te1", "text_encoder_2": "lora_te3"},
}


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
    write = {"diffusers": _diffusers, "kohya": _kohya, "peft": _peft}[check_format(format)]
    return _cast(write(contents), dtype, contents.source)


def save(contents: Contents, path: Path, format: str, dtype: torch.dtype | None) -> None:
    """Write a file, or for "peft" a folder (one folder in it per component where there are several)."""
    if check_format(format) == "peft":
        _save_peft(contents, path, dtype)
        return
    tensors = state_dict(contents, format, dtype)
    write_safetensors(path, tensors, header(contents, format, tensors))


def header(contents: Contents, format: str, tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """The strings of the header: what the inputs said and is still true, modelspec, and what readers need."""
    strings = {key: value for key, value in contents.metadata.items() if key not in _STALE}
    architecture = contents.architecture
    strings["modelspec.sai_model_spec"] = "1.0.0"
    strings.setdefault("modelspec.title", short_name(contents.source))
    if architecture:
        strings["modelspec.architecture"] = _MODELSPEC[architecture]
        strings["modelspec.implementation"] = (
            "diffusers" if format == "diffusers" else "https://github.com/kohya-ss/sd-scripts"
        )
        strings["ss_base_model_version"] = _KOHYA_BASE[architecture]
        strings["ss_v2"] = str(architecture == "sd2")
    strings["modelspec.hash_sha256"] = "0x" + tensors_sha256(tensors)
    if format == "kohya":
        ranks = Counter(layer.rank for layer in contents.layers.values())
        alphas = Counter(float(t) for key, t in tensors.items() if key.endswith(".alpha"))
        strings["ss_network_module"] = _KOHYA_MODULE.get(architecture or "", "networks.lora")
        strings["ss_network_dim"] = str(_most(ranks)) if len(ranks) == 1 else "Dynamic"
        strings["ss_network_alpha"] = f"{_most(alphas):g}" if len(alphas) == 1 else "Dynamic"
    elif format == "diffusers":
        strings["format"] = "pt"
        if len({layer.rank for layer in contents.layers.values()}) > 1:
            strings["lora_adapter_metadata"] = json.dumps(_adapter_metadata(contents), sort_keys=True)
    return strings


def _diffusers(contents: Contents) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for name, layer in contents.layers.items():
        component, _, path = name.partition(".")
        if component not in COMPONENTS or ("_" in path and "." not in path and unflatten(path) != path):
            raise FormatError(
                f"{contents.source}: layer {name} has no name in a diffusers pipeline; write it as format='peft', or "
                "as format='kohya' if it came from there"
            )
        folded = folded_layer(layer)
        tensors[f"{name}.lora_A.weight"] = folded.lora_A
        tensors[f"{name}.lora_B.weight"] = folded.lora_B
    for name, tensor in contents.extras.items():
        if not (name.endswith(".lora_B.bias") or name.startswith("transformer.")):
            raise _no_place(contents, name, "diffusers")
        tensors[name] = tensor
    return tensors


def folded_layer(layer: Layer) -> LoraLayer:
    """The same change at scaling 1; float32 where the file's dtype could not hold the product exactly."""
    if layer.scaling == 1.0:
        return LoraLayer(layer.lora_A, layer.lora_B)
    exact = layer.lora_B.float() * layer.scaling
    rounded = exact.to(layer.lora_B.dtype)
    return LoraLayer(layer.lora_A, rounded if torch.equal(rounded.float(), exact) else exact)


def _adapter_metadata(contents: Contents) -> dict[str, Any]:
    """diffusers' header: a PEFT config per component, its fields prefixed with the component."""
    fields: dict[str, Any] = {}
    for component, layers in _by_component(contents).items():
        config = _config(layers, dict.fromkeys(layers, 1.0), contents, component)
        fields.update({f"{component}.{key}": value for key, value in config.items()})
    return fields


def _by_component(contents: Contents) -> dict[str, dict[str, Layer]]:
    components: dict[str, dict[str, Layer]] = {}
    for name, layer in contents.layers.items():
        component, _, path = name.partition(".")
        components.setdefault(component, {})[path] = layer
    return components


def _config(
    layers: Mapping[str, Layer], scalings: Mapping[str, float], contents: Contents, component: str
) -> dict[str, Any]:
    """The fields of a PEFT LoraConfig.

    PEFT matches names in lists and patterns at the end of a path, so that "proj_out" would be every block's, too: all
    are anchored at the beginning. The CLIP encoders of transformers 5 have lost their `text_model`, files have not.
    """

    def pattern(path: str) -> str:
        if path.startswith("text_model."):
            return r"^(text_model\.)?" + re.escape(path.removeprefix("text_model."))
        return "^" + re.escape(path)

    ambiguous = any("." not in path or path.startswith("text_model.") for path in layers)
    ranks = {path: layer.rank for path, layer in layers.items()}
    alphas = {path: _plain(scalings[path] * rank) for path, rank in ranks.items()}
    rank, alpha = _most(Counter(ranks.values())), _most(Counter(alphas.values()))
    return {
        "r": rank,
        "lora_alpha": alpha,
        "rank_pattern": {pattern(path): r for path, r in ranks.items() if r != rank},
        "alpha_pattern": {pattern(path): a for path, a in alphas.items() if a != alpha},
        "target_modules": "|".join(map(pattern, sorted(layers))) if ambiguous else sorted(layers),
        "lora_bias": any(k.startswith(f"{component}.") and k.endswith(".lora_B.bias") for k in contents.extras),
    }


def _most(counts: Counter[Any]) -> Any:
    """The most frequent value, the smallest of several."""
    return min(counts, key=lambda value: (-counts[value], value))


def _plain(value: float) -> int | float:
    return int(value) if float(value).is_integer() else value


def _kohya(contents: Contents) -> dict[str, Tensor]:
    modules, biases, rest = _kohya_modules(contents)
    tensors: dict[str, Tensor] = dict(rest)
    alpha = None if contents.architecture == "flux" else _one_alpha(modules.values())
    for module, layer in modules.items():
        # kohya's tools read an alpha of 0 as "none given", and a negative one is used by nobody.
        kept = layer if layer.scaling > 0 else folded_layer(layer)
        if alpha is not None:
            kept = folded_layer(kept.scaled(kept.rank / alpha)).scaled(alpha / kept.rank)
        tensors[f"{module}.lora_down.weight"] = kept.lora_A
        tensors[f"{module}.lora_up.weight"] = kept.lora_B
        tensors[f"{module}.alpha"] = torch.tensor(kept.scaling * kept.rank, dtype=torch.float32)
    tensors.update({f"{module}.diff_b": bias for module, bias in biases.items()})
    return tensors


def _one_alpha(layers: Iterable[Layer]) -> int | None:
    """One alpha for all modules where theirs differ; None where they do not.

    diffusers (0.42) reads the alphas of a UNet in kohya's names wrongly where they differ: it looks for the patterns of
    PEFT under names that no module has, and every layer gets the most frequent alpha.
    """
    given = list(layers)
    if len({layer.scaling * layer.rank for layer in given}) == 1 and given[0].scaling > 0:
        return None
    return _most(Counter(layer.rank for layer in given)) if given else None


def _kohya_modules(contents: Contents) -> tuple[dict[str, Layer], dict[str, Tensor], dict[str, Tensor]]:
    """Layers and biases under kohya's module names, FLUX's fused; and tensors under keys of their own."""
    modules: dict[str, Layer] = {}
    biases: dict[str, Tensor] = {}
    rest: dict[str, Tensor] = {}
    fused_layers: dict[str, dict[int, Layer]] = {}
    fused_biases: dict[str, dict[int, Tensor]] = {}
    sizes: dict[str, int] = {}
    for name, layer in contents.layers.items():
        if found := _bfl(name):
            path, index, sizes[path] = found
            fused_layers.setdefault(path, {})[index] = layer
        else:
            modules[_kohya_name(contents, name)] = layer
    for key, tensor in contents.extras.items():
        name = key.removesuffix(".lora_B.bias")
        norm = flux.bfl_norm_of(key.removeprefix("transformer.").removesuffix(".weight"))
        if norm and key.startswith("transformer."):
            rest[f"diffusion_model.{norm}.scale.set_weight"] = tensor
        elif name == key:
            raise _no_place(contents, key, "kohya")
        elif found := _bfl(name):
            path, index, sizes[path] = found
            fused_biases.setdefault(path, {})[index] = tensor
        else:
            biases[_kohya_name(contents, name)] = tensor
    for path, layers in fused_layers.items():
        last = fused_biases.get(path, {}).get(3)
        mlp = len(last) if last is not None else None
        modules[f"lora_unet_{path.replace('.', '_')}"] = flux.join(path, layers, sizes[path], mlp)
    for path, vectors in fused_biases.items():
        module = f"lora_unet_{path.replace('.', '_')}"
        shape = modules[module].shape if module in modules else None
        biases[module] = flux.join_rows(path, vectors, sizes[path], shape)
    return modules, biases, rest


def _bfl(name: str) -> tuple[str, int, int] | None:
    component, _, path = name.partition(".")
    return flux.bfl_of(path) if component == "transformer" else None


def _kohya_name(contents: Contents, name: str) -> str:
    component, _, path = name.partition(".")
    architecture = contents.architecture
    if component == "unet":
        flat = flatten((unet.sgm_of(path) if architecture == "sdxl" else path) or path)
        prefix: str | None = "lora_unet"
    elif component == "transformer":
        flat, prefix = None, None
    else:
        flat = flatten(path)
        prefix = _KOHYA_TEXT.get(architecture or "sd15", {}).get(component)
    if flat is None or prefix is None:
        raise ArchitectureError(
            f"{contents.source}: layer {name} ({architecture or 'unknown base model'}) has no name in kohya's format, "
            "which exists for SD 1.x, SD 2.x, SDXL and FLUX; write it as format='peft'"
        )
    return f"{prefix}_{flat}"


def _no_place(contents: Contents, key: str, format: str) -> FormatError:
    return FormatError(
        f"{contents.source}: {key} is no LoRA layer, and format {format!r} has no place for it; drop it with "
        "adapter.without_extras() (--drop-extras), or write another format"
    )


def _peft(contents: Contents) -> dict[str, Tensor]:
    components = _by_component(contents)
    if len(components) > 1:
        raise FormatError(
            f"{contents.source}: a PEFT folder holds one model, found {', '.join(components)}; save() writes one "
            "folder for each, select('unet.*') takes one"
        )
    tensors = {}
    for name, layer in contents.layers.items():
        path = f"base_model.model.{name.partition('.')[2]}"
        tensors[f"{path}.lora_A.weight"] = layer.lora_A
        tensors[f"{path}.lora_B.weight"] = layer.lora_B
    for key, tensor in contents.extras.items():
        name = key.removesuffix(".lora_B.bias")
        scaling = contents.layers[name].scaling if name in contents.layers else 1.0
        if key.partition(".")[0] not in components:
            raise _no_place(contents, key, "peft")
        # PEFT multiplies the bias of lora_B by the scaling of its layer.
        tensors[f"base_model.model.{key.partition('.')[2]}"] = tensor if scaling == 1.0 else tensor.float() / scaling
    return tensors


def _save_peft(contents: Contents, folder: Path, dtype: torch.dtype | None) -> None:
    components = list(_by_component(contents))
    parts = {c: _component_contents(contents, c) for c in components}
    unplaced = [key for key in contents.extras if key.partition(".")[0] not in components]
    if unplaced:
        raise _no_place(contents, unplaced[0], "peft")
    with _replacing_folder(folder) as temporary:
        for component, part in parts.items():
            target = temporary if len(parts) == 1 else temporary / component
            target.mkdir(exist_ok=True)
            tensors = state_dict(part, "peft", dtype)
            strings = {**header(part, "peft", tensors), "format": "pt", "mergelab.component": component}
            write_safetensors(target / PEFT_WEIGHTS[0], tensors, strings)
            paths = {name.partition(".")[2]: layer for name, layer in part.layers.items()}
            scalings = {path: layer.scaling for path, layer in paths.items()}
            config = {
                "peft_type": "LORA",
                "task_type": None,
                "base_model_name_or_path": None,
                "inference_mode": True,
                "bias": "none",
                "fan_in_fan_out": False,
                "use_rslora": False,
                "use_dora": False,
                **_config(paths, scalings, contents, component),
            }
            text = json.dumps(config, indent=2, sort_keys=True)
            (target / PEFT_CONFIG).write_text(text + "\n", encoding="utf-8")


def _component_contents(contents: Contents, component: str) -> Contents:
    def own(names: Iterable[str]) -> list[str]:
        return [name for name in names if name.partition(".")[0] == component]

    return Contents(
        layers={name: contents.layers[name] for name in own(contents.layers)},
        extras={name: contents.extras[name] for name in own(contents.extras)},
        architecture=contents.architecture,
        metadata=contents.metadata,
        source=contents.source,
    )


@contextlib.contextmanager
def _replacing_folder(folder: Path) -> Iterator[Path]:
    """A new folder beside `folder` to write to; it takes the place of `folder` when all is written."""
    if folder.exists() and not folder.is_dir():
        raise OutputError(f"{folder}: is a file, expected a folder for format 'peft'")
    _only_ours(folder)
    with replacing(folder) as temporary:
        temporary.mkdir()
        yield temporary
        if folder.is_dir():
            shutil.rmtree(folder)


def _only_ours(folder: Path) -> None:
    """Never remove a folder that holds anything but what mergelab writes there."""
    ours = {PEFT_CONFIG, PEFT_WEIGHTS[0]}
    strange = [p for p in folder.rglob("*") if p.is_file() and p.name not in ours]
    if strange:
        raise OutputError(f"{folder}: holds {strange[0].name}, which a PEFT folder does not; choose another folder")


def _cast(tensors: dict[str, Tensor], dtype: torch.dtype | None, source: str) -> dict[str, Tensor]:
    """Check that everything is finite, cast once, and check that nothing overflowed."""
    result = {}
    for name, tensor in tensors.items():
        if not tensor.is_floating_point() or name.endswith(".alpha"):
            result[name] = tensor
            continue
        if not math.isfinite(float(tensor.float().sum())) and not bool(torch.isfinite(tensor.float()).all()):
            raise OutputError(f"{source}: {name} holds NaN or infinity and is not written")
        cast = tensor if dtype is None else tensor.to(dtype)
        if cast.dtype != tensor.dtype and not bool(torch.isfinite(cast).all()):
            raise OutputError(
                f"{source}: {name} has values up to {float(tensor.abs().max()):.3g}, more than {dtype} can hold; "
                "save it as bfloat16 or float32"
            )
        result[name] = cast
    return result
