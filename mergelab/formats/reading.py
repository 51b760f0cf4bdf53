"""Tensors of a file -> `Contents`, whatever the dialect."""

from __future__ import annotations

import json
import math
import re
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from mergelab.checks import is_number, shown
from mergelab.errors import FormatError, LayerError
from mergelab.formats import flux
from mergelab.formats.architecture import detect
from mergelab.formats.leaves import Leaves, build, sort_keys
from mergelab.formats.names import Located, locate
from mergelab.layer import BIAS, Contents, Layer

# The scaling of a module that has no alpha of its own, by canonical component and path; None: alpha is the rank.
ScalingOf = Callable[[str, str, int], float | None]

_NORM_LEAF = re.compile(r"\.(scale|weight|set_weight|scale\.set_weight)$")


def parse(
    tensors: Mapping[str, Tensor],
    metadata: Mapping[str, str],
    source: str,
    *,
    scaling_of: ScalingOf | None = None,
    component: str | None = None,
    saved_modules: bool = False,
) -> Contents:
    """Understand the tensors of one file.

    Args:
        tensors: as in the file.
        metadata: the header's strings.
        source: the file, for messages.
        scaling_of: from a config beside the file; by default from `lora_adapter_metadata` in the header.
        component: of names that do not say ("unet" for a PEFT folder of a UNet).
        saved_modules: whether other tensors are whole modules that PEFT saved, to be kept as extras.

    Raises:
        FormatError, LayerError: a key that is neither understood nor kept, a factor without its partner, ...
    """
    found = sort_keys(tensors, source)
    norms, unknown = _norms(found.others)
    extras: dict[str, Tensor] = {**norms, **found.embeddings}
    if saved_modules:
        extras.update({f"model.{key.removeprefix('base_model.model.')}": t for key, t in unknown.items()})
    elif unknown:
        some = ", ".join(repr(key) for key in list(unknown)[:3])
        raise FormatError(
            f"{source}: {len(unknown)} of {len(tensors)} tensors are none that mergelab knows from LoRA files: {some}; "
            "nothing is dropped in silence: remove them from the file, or report the tool that wrote it"
        )
    if not found.modules:
        raise FormatError(
            f"{source}: holds no LoRA layer; expected keys such as '...lora_A.weight' and '...lora_B.weight'"
        )
    located = locate(found.modules)
    if component:
        located = {m: _placed(where, component) for m, where in located.items()}
    scaling_of = scaling_of or _from_header(metadata, source)
    layers: dict[str, Layer] = {}
    origin: dict[str, str] = {}
    without_alpha = 0
    for module, leaves in found.modules.items():
        where = located[module]
        down = leaves.tensors.get("down")
        rank = down.shape[0] if down is not None and down.dim() else 0
        scaling = scaling_of(where.component, where.path, rank) if rank else None
        without_alpha += "alpha" not in leaves.tensors and scaling is None
        for name, layer in _layers_of(where, leaves, scaling, source).items():
            if name in layers:
                raise FormatError(
                    f"{source}: {module!r} and {origin[name]!r} are both layer {name}; expected one of them"
                )
            layers[name], origin[name] = layer, module
        extras.update(_biases_of(where, leaves, layers, source))
    _check_extras(extras, layers, source)
    architecture = detect({name: layer.shape for name, layer in layers.items()}, metadata)
    return Contents(layers, extras, architecture, dict(metadata), source, _notes(located, without_alpha))


def _check_extras(extras: Mapping[str, Tensor], layers: Mapping[str, Layer], source: str) -> None:
    for key, tensor in extras.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor.float()).all()):
            raise LayerError(f"{source}: {key} holds values that are NaN or infinite, expected finite numbers")
        layer = layers.get(key.removesuffix(BIAS))
        if layer is not None and tensor.shape != layer.shape[:1]:
            raise LayerError(
                f"{source}: {key}: a bias of {tensor.numel()} values, expected {layer.shape[0]}, one for each output"
            )


def _notes(located: Mapping[str, Located], without_alpha: int) -> tuple[str, ...]:
    notes = []
    if without_alpha:
        notes.append(f"{without_alpha} layers have no alpha: alpha = rank, as everywhere")
    odd = [where.path for where in located.values() if not where.known]
    if odd:
        notes.append(
            f"{len(odd)} layer names belong to no model that mergelab knows ({odd[0]} the first); they are kept as "
            "they are, and merge with layers of the same name"
        )
    return tuple(notes)


def _placed(where: Located, component: str) -> Located:
    """A module at the component that the folder names, unless its own name says more."""
    if where.is_bfl or where.component not in ("model", "text_encoder"):
        return where
    return Located(component, where.path, known=where.known)


def _layers_of(where: Located, leaves: Leaves, scaling: float | None, source: str) -> dict[str, Layer]:
    layer = build(leaves, scaling, source)
    if layer is None:
        return {}
    if not where.is_bfl:
        return {f"{where.component}.{where.path}": layer}
    if layer.lora_A.dim() != 2:
        raise LayerError(f"{source}: layer {where.path}: expected a linear layer, found shape {layer.shape}")
    try:
        return {f"transformer.{name}": part for name, part in flux.split(where.path, layer).items()}
    except LayerError as error:
        raise LayerError(f"{source}: {error}") from None


def _biases_of(where: Located, leaves: Leaves, layers: Mapping[str, Layer], source: str) -> dict[str, Tensor]:
    """Bias differences, with the scaling of their layer, as `<layer>.lora_B.bias`."""
    bias = leaves.tensors.get("bias")
    if bias is None:
        return {}
    if bias.dim() != 1 or not bias.is_floating_point():
        raise LayerError(f"{source}: {leaves.keys['bias']!r}: expected a vector, found shape {tuple(bias.shape)}")
    if not where.is_bfl:
        parts = {where.path: bias}
    else:
        down = leaves.tensors.get("down")
        # Without a weight beside it, a fused bias has the proportions of FLUX: q, k, v, and four times that.
        alone = len(bias) // (7 if len(flux.parts_of(where.path) or ()) == 4 else 3)
        columns = down.shape[1] if down is not None else alone
        try:
            parts = flux.split_rows(where.path, bias, columns)
        except LayerError as error:
            raise LayerError(f"{source}: {error}") from None
    biases = {}
    for path, vector in parts.items():
        name = f"{where.component}.{path}"
        layer = layers.get(name)
        # PEFT multiplies the bias of lora_B by the scaling; `diff_b` is the difference as it is.
        scaling = layer.scaling if layer is not None and not leaves.keys["bias"].endswith(".diff_b") else 1.0
        biases[f"{name}{BIAS}"] = vector if scaling == 1.0 else vector.float() * scaling
    return biases


def _norms(others: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Query and key norms of FLUX (whole values, not differences), and the rest."""
    norms, rest = {}, {}
    for key, tensor in others.items():
        match = _NORM_LEAF.search(key)
        path = (
            re.sub(r"^(base_model\.model\.|(model\.)?diffusion_model\.|transformer\.)", "", key[: match.start()])
            if match
            else ""
        )
        if key.endswith("img_in.reshape_weight"):
            continue  # says the shape of a layer that the file holds as well
        name = flux.norm_of(path) or (path if flux.bfl_norm_of(path) else None)
        if name:
            norms[f"transformer.{name}.weight"] = tensor
        else:
            rest[key] = tensor
    return norms, rest


def config_scaling(config: Mapping[str, Any], source: str) -> Callable[[str, int], float]:
    """The scaling of a module by its path, from the fields of a PEFT config.

    `alpha / rank`, or `alpha / sqrt(rank)` with `use_rslora`; `alpha_pattern` is matched as PEFT does: a regular
    expression at the end of the path, the first that matches.
    """
    if config.get("use_dora"):
        raise FormatError(f"{source}: is a DoRA (use_dora), which this version of mergelab does not read")
    default = config.get("lora_alpha")
    patterns = config.get("alpha_pattern") or {}
    if not isinstance(patterns, dict):
        raise FormatError(f"{source}: alpha_pattern is a {type(patterns).__name__}, expected patterns with numbers")
    for value in (default if default is not None else 1, *patterns.values()):
        if not is_number(value):
            raise FormatError(f"{source}: lora_alpha or alpha_pattern holds {shown(value)}, expected finite numbers")

    compiled = [(_compiled(pattern, source), alpha) for pattern, alpha in patterns.items()]

    def scaling(path: str, rank: int) -> float:
        alpha = next((alpha for pattern, alpha in compiled if pattern.match(path)), default)
        if alpha is None:
            return 1.0
        return alpha / math.sqrt(rank) if config.get("use_rslora") else alpha / rank

    return scaling


def _compiled(pattern: object, source: str) -> re.Pattern[str]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # a "[[" may mean something else one day
            return re.compile(rf"(.*\.)?({pattern})$")
    except (re.error, OverflowError, RecursionError) as error:
        raise FormatError(
            f"{source}: alpha_pattern holds {pattern!r}, expected a regular expression: {error}"
        ) from None


def _from_header(metadata: Mapping[str, str], source: str) -> ScalingOf:
    """Scalings from diffusers' `lora_adapter_metadata`: one config per component, its fields prefixed with it."""
    raw = metadata.get("lora_adapter_metadata")
    if not raw:
        return lambda component, path, rank: None
    try:
        flat = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{source}: lora_adapter_metadata in the header is no JSON: {error}") from None
    if not isinstance(flat, dict):
        raise FormatError(
            f"{source}: lora_adapter_metadata in the header: expected an object, found {type(flat).__name__}"
        )
    if "r" in flat or "lora_alpha" in flat:  # a model's own save_lora_adapter: one config, without a prefix
        whole = config_scaling(flat, source)
        return lambda component, path, rank: whole(path, rank)
    configs: dict[str, dict[str, Any]] = {}
    for key, value in flat.items():
        component, _, option = key.partition(".")
        configs.setdefault(component, {})[option] = value
    by_component = {name: config_scaling(config, source) for name, config in configs.items()}

    def scaling_of(component: str, path: str, rank: int) -> float | None:
        return by_component[component](path, rank) if component in by_component else None

    return scaling_of
