"""Tensors of a file -> `AdapterData`, whatever the dialect."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from mergelab.errors import ArchitectureError, FormatError, LayerError
from mergelab.formats.architectures.architecture import Architecture
from mergelab.formats.architectures.evidence import Shape
from mergelab.formats.dialects import dialect_of
from mergelab.formats.differences import extras_of, parted
from mergelab.formats.header_alphas import HeaderAlphas, Ranks, header_alphas
from mergelab.formats.keys import group_keys
from mergelab.formats.kinds import ModuleTensors, Target, kind_of, module_shape, to_layer
from mergelab.formats.messages import about
from mergelab.formats.names import Located, bare, is_module_of
from mergelab.formats.options import ReadOptions
from mergelab.formats.peft_kinds import check_modules
from mergelab.formats.prefixes import strip
from mergelab.formats.recognising import Recognised, recognise
from mergelab.formats.saved_modules import check_own, read_saved
from mergelab.formats.scalings import ScalingOf, header_scaling, says_dora
from mergelab.formats.weights_beside import Targets, check_base
from mergelab.layer import BIAS_SUFFIX, AdapterData, DerivedLayer, Layer, terms_of
from mergelab.report import USUAL_ALPHA
from mergelab.tables import counted

LARGE = 256
"""Ranks above this make work and files that few people want."""
_NORM_LEAF = re.compile(r"\.(scale|weight|set_weight|scale\.set_weight)$")


def parse(
    tensors: Mapping[str, Tensor],
    metadata: Mapping[str, str],
    source: str,
    *,
    scaling_of: ScalingOf | None = None,
    component: str | None = None,
    config: Mapping[str, Any] | None = None,
    options: ReadOptions | None = None,
) -> AdapterData:
    """Understand the tensors of one file.

    Args:
        tensors: as in the file.
        metadata: the header's strings.
        source: the file; every message begins with it.
        scaling_of: from a config beside the file; by default from `lora_adapter_metadata` in the header.
        component: of names that do not say ("unet" for a PEFT folder of a UNet).
        config: of a PEFT folder, where other tensors are whole modules or trained rows of an embedding, kept as extras.
        options: the base model's id, where the user says it, and its weights, where a kind of adapter needs them.

    Raises:
        FormatError, LayerError: a key that is neither understood nor kept, a factor without its partner, ...
        OptionError, ArchitectureError: no such architecture, or the file is not for it.
    """
    with about(source):
        options = options or ReadOptions()
        groups = group_keys(tensors)
        check_modules(groups.modules, config, says_dora(metadata))
        check_base(groups.modules, options.base)
        apart = parted(groups.modules)
        shapes = {name: module_shape(module) for name, module in apart.layers.items()}
        found = recognise(shapes, metadata, options.architecture, component)
        targets = Targets.of(options.base, found.architecture, config)
        if found.architecture is None and targets.architecture:
            found = _as_the_base(found, shapes, metadata, targets.architecture, component)
        located = found.located
        extras, unknown = _norms(groups.others, found.names)
        extras |= groups.embeddings
        check_own(map(bare, unknown), groups.modules)
        if unknown and config is None:
            raise _unknown_tensors(list(unknown), len(tensors))
        if not apart.layers:
            raise FormatError("holds no LoRA layer; expected keys such as '...lora_A.weight' and '...lora_B.weight'")
        if config is not None:
            components = {where.component for where in located.values()}
            extras |= read_saved(unknown, config, components.pop() if len(components) == 1 else "model")
        header = HeaderAlphas({}, ())
        if scaling_of is None and not metadata.get("lora_adapter_metadata"):
            header = header_alphas(metadata, _ranks(apart.layers, located))
            scaling_of = header.scaling_of
        layers, biases, without_alpha = _layers(apart.layers, located, scaling_of or header_scaling(metadata), targets)
        extras |= biases | extras_of(apart.norms, found.names, component)
        _check_extras(extras, layers)
        notes = (*found.notes, *header.notes, *apart.notes, *targets.notes, *_notes(layers, found.names, without_alpha))
        return AdapterData(
            layers,
            extras,
            found.architecture,
            dict(metadata),
            source,
            notes,
            dialect="peft" if config is not None else dialect_of(tensors),
            spelling=_spelling(apart.layers, located, layers) if found.architecture is None else {},
        )


def _as_the_base(
    found: Recognised, shapes: Mapping[str, Shape], metadata: Mapping[str, str], base: str, component: str | None
) -> Recognised:
    """By the names of the base model that is given, where a file does not tell its own; if it has such layers."""
    try:
        return recognise(shapes, metadata, base, component)
    except ArchitectureError:
        return found


def _spelling(modules: Iterable[str], located: Mapping[str, Located], layers: Mapping[str, Layer]) -> dict[str, str]:
    """How the file names the modules of an unknown model, those that are one layer each."""
    names = {where.name: module for module in modules if (where := located[module]).name}
    return {name: module for name, module in names.items() if name in layers}


def _ranks(modules: Mapping[str, ModuleTensors], located: Mapping[str, Located]) -> dict[str, Ranks]:
    """By component, the ranks of the modules without an alpha of their own."""
    components: dict[str, Ranks] = {}
    for name, module in modules.items():
        ranks, down = components.setdefault(located[name].component, Ranks()), module.tensors.get("down")
        if "alpha" in module.tensors:
            ranks.some_have_one = True
        elif down is not None and down.dim() and len(down):
            ranks.without_alpha.append(len(down))
    return components


def _layers(
    modules: Mapping[str, ModuleTensors], located: Mapping[str, Located], scaling_of: ScalingOf, targets: Targets
) -> tuple[dict[str, Layer], dict[str, Tensor], int]:
    """Layers and biases by canonical name, and how many modules have neither an alpha nor a scaling from elsewhere."""
    layers: dict[str, Layer] = {}
    biases: dict[str, Tensor] = {}
    origin: dict[str, str] = {}
    without_alpha = 0
    for name, module in modules.items():
        where = located[name]
        dim, target = kind_of(module).dim(module), targets.of_module(module, where)
        scaling = scaling_of(where.component, where.path, dim)
        without_alpha += bool(dim) and "alpha" not in module.tensors and scaling is None
        layer = to_layer(module, scaling, target)
        for canonical, part in _parts_of(where, layer).items():
            if canonical in layers:
                raise FormatError(
                    f"{name!r} and {origin[canonical]!r} are both layer {canonical}; expected one of them"
                )
            layers[canonical], origin[canonical] = part, name
        biases |= _biases_of(where, module, layer, target)
    return layers, biases, without_alpha


def _parts_of(where: Located, layer: Layer | None) -> dict[str, Layer]:
    """A module's layer by canonical name, split where the module is several in diffusers."""
    if layer is None:
        return {}
    parts = where.original.split(layer) if where.original else {where.path: layer}
    return {f"{where.component}.{path}": part for path, part in parts.items()}


def _biases_of(where: Located, module: ModuleTensors, layer: Layer | None, target: Target) -> dict[str, Tensor]:
    """Bias differences, with the scaling of their layer, as `<layer>.lora_B.bias`."""
    if "bias" not in module.tensors:
        bias = kind_of(module).bias(module, target)
        if bias is None:
            return {}
    else:
        bias, key = module.tensors["bias"], module.keys["bias"]
        if bias.dim() != 1 or not bias.is_floating_point():
            raise LayerError(f"{key!r}: expected a vector, found shape {tuple(bias.shape)}")
        # PEFT multiplies the bias of lora_B by the scaling; `diff_b` is the difference as it is.
        if layer and layer.scaling != 1.0 and not key.endswith((".diff_b", ".b_norm")):
            bias = bias.float() * layer.scaling
    columns = layer.shape[1] if layer else None
    parts = where.original.split_rows(bias, columns) if where.original else {where.path: bias}
    return {f"{where.component}.{path}{BIAS_SUFFIX}": part for path, part in parts.items()}


def _norms(
    others: Mapping[str, Tensor], architecture: Architecture | None
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Query and key norms of a transformer (whole values, not differences), and the rest."""
    if architecture is None:
        return {}, dict(others)
    norms, rest, naming = {}, {}, architecture.naming
    for key, tensor in others.items():
        if naming.input_layer and key.endswith(f"{naming.input_layer}.reshape_weight"):
            continue  # says the shape of a layer that the file holds as well
        leaf = _NORM_LEAF.search(key)
        norm = naming.norm(strip(key[: leaf.start()], naming)[1]) if leaf else None
        if norm:
            norms[f"{naming.component}.{norm}.weight"] = tensor
        else:
            rest[key] = tensor
    return norms, rest


def _unknown_tensors(keys: list[str], count: int) -> FormatError:
    some = ", ".join(repr(key) for key in keys[:3])
    return FormatError(
        f"{len(keys)} of {counted(count, 'tensor')} are none that mergelab knows from LoRA files: {some}; nothing is "
        "dropped in silence: remove them from the file, or report the tool that wrote it"
    )


def _check_extras(extras: Mapping[str, Tensor], layers: Mapping[str, Layer]) -> None:
    for key, tensor in extras.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor.float()).all()):
            raise LayerError(f"{key} holds values that are NaN or infinite, expected finite numbers")
        layer = layers.get(key.removesuffix(BIAS_SUFFIX))
        if layer is not None and tensor.shape != layer.shape[:1]:
            raise LayerError(
                f"{key}: a bias of {tensor.numel()} values, expected {layer.shape[0]}, one for each output"
            )


def _kind_notes(layers: Mapping[str, Layer]) -> list[str]:
    """What layers of other kinds than LoRA are as factors."""
    kinds: dict[str, list[int]] = {}
    for layer in layers.values():
        if isinstance(layer, DerivedLayer):
            kinds.setdefault(layer.kind, []).append(layer.rank)
    notes = []
    for kind, ranks in kinds.items():
        span = f"{min(ranks)}" if min(ranks) == max(ranks) else f"{min(ranks)} to {max(ranks)}"
        norms = ", its norms those of the sum of weight and change" if kind == "DoRA" else ""
        large = "; adapter.resize(64), --rank 64, makes them small" if max(ranks) > LARGE else ""
        notes.append(f"{counted(len(ranks), 'layer')} of kind {kind}{norms}: exact as factors of rank {span}{large}")
    return notes


def _notes(layers: Mapping[str, Layer], architecture: Architecture | None, without_alpha: int) -> tuple[str, ...]:
    notes = []
    if without_alpha:
        have = "has" if without_alpha == 1 else "have"
        notes.append(f"{counted(without_alpha, 'layer')} {have} no alpha: {USUAL_ALPHA}")
    if layers and all(term.scaling == 0 for layer in layers.values() for term in terms_of(layer)):
        notes.append("alpha = 0 in every layer: the adapter changes nothing, at whatever weight")
    notes += _kind_notes(layers)
    odd = [name for name in layers if not (architecture and is_module_of(architecture, name))]
    if odd:
        where = f"no module of {architecture.title}" if architecture else "no model that mergelab knows"
        notes.append(
            f"{counted(len(odd), 'layer name')} belong{'s' if len(odd) == 1 else ''} to {where} ({odd[0]} the first); "
            "kept as in the file, to merge with layers of the same name"
        )
    return tuple(notes)
