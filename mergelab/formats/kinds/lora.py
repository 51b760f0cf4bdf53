"""The last part of a file's keys: which tensor of which module a key names."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from mergelab.checks import is_number, shown
from mergelab.errors import FormatError, LayerError
from mergelab.formats.names import bare
from mergelab.layer import LoraLayer

# Key suffix -> role. The first that matches wins.
_LEAVES: tuple[tuple[re.Pattern[str], str], ...] = tuple(
    (re.compile(pattern), role)
    for pattern, role in (
        (r"\.lora_A(\.[^.]+)?\.weight$", "down"),
        (r"\.lora_B(\.[^.]+)?\.weight$", "up"),
        (r"\.lora_B(\.[^.]+)?\.bias$", "bias"),
        (r"(\.lora_down|\.lora\.down|\.lora_linear_layer\.down|_lora\.down)\.weight$", "down"),
        (r"(\.lora_up|\.lora\.up|\.lora_linear_layer\.up|_lora\.up)\.weight$", "up"),
        (r"\.lora_mid\.weight$", "mid"),
        (r"(\.lora|_lora)?\.alpha$", "alpha"),
        (r"\.diff_b$", "bias"),
    )
)
_XLABS = re.compile(r"^(.*?)(double|single)_blocks\.(\d+)\.processor\.(qkv|proj)_lora([12]?)\.(down|up)\.weight$")

_LONGEST_KEY = 500

# Dialects that are recognised, so that the refusal can name them.
_REFUSED: tuple[tuple[re.Pattern[str], str], ...] = tuple(
    (re.compile(pattern), name)
    for pattern, name in (
        (r"\.(dora_scale|lora_magnitude_vector(\.[^.]+)?(\.weight)?)$", "DoRA"),
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
_EMBEDDING = re.compile(r"^(bundle_emb\..+|emb_params|string_to_param\..+|<[^<>]+>|clip_[lg]|t5xxl)$")


@dataclass
class Leaves:
    """The tensors of one module, by role."""

    keys: dict[str, str] = field(default_factory=dict)
    tensors: dict[str, Tensor] = field(default_factory=dict)


@dataclass
class Sorted:
    """The keys of a file, sorted: tensors of modules, embeddings, and what is neither."""

    modules: dict[str, Leaves] = field(default_factory=dict)
    embeddings: dict[str, Tensor] = field(default_factory=dict)
    others: dict[str, Tensor] = field(default_factory=dict)


def sort_keys(tensors: Mapping[str, Tensor], source: str) -> Sorted:
    """Sort all keys of a file.

    Raises:
        FormatError: a dialect that is not supported, by its name; two tensors for one role.
    """
    result = Sorted()
    refused: dict[str, list[str]] = {}
    for key, tensor in tensors.items():
        if len(key) > _LONGEST_KEY:
            raise FormatError(f"{source}: a key of {len(key)} characters ({key[:40]!r}...), expected names of layers")
        if name := next((name for pattern, name in _REFUSED if pattern.search(key)), None):
            refused.setdefault(name, []).append(key)
        elif _EMBEDDING.match(key):
            result.embeddings[key] = tensor
        elif found := _parse(key):
            module, role = found
            leaves = result.modules.setdefault(module, Leaves())
            if role in leaves.tensors:
                raise FormatError(
                    f"{source}: {leaves.keys[role]!r} and {key!r} are the same tensor of one layer; a file is expected "
                    "to hold one adapter: save each by itself"
                )
            leaves.keys[role], leaves.tensors[role] = key, tensor
        else:
            result.others[key] = tensor
    if refused:
        what = "; ".join(f"{name} ({len(keys)} tensors, {keys[0]!r} the first)" for name, keys in refused.items())
        raise FormatError(
            f"{source}: holds {what}, which this version of mergelab does not read; it reads LoRA and LoCon: convert "
            "the adapter to a plain LoRA with the tool that wrote it"
        )
    return result


def _parse(key: str) -> tuple[str, str] | None:
    if match := _XLABS.match(key):
        prefix, kind, number, part, stream, leaf = match.groups()
        if kind == "single":
            module = "attn.qkv" if part == "qkv" else "linear2"
        else:
            module = f"{'txt' if stream == '2' else 'img'}_attn.{part}"
        return f"{prefix}{kind}_blocks.{number}.{module}", leaf
    for pattern, role in _LEAVES:
        if match := pattern.search(key):
            return bare(key[: match.start()]), role
    return None


def build(leaves: Leaves, scaling: float | None, source: str) -> LoraLayer | None:
    """The layer of one module; None for a module that has nothing but a bias.

    Args:
        leaves: its tensors.
        scaling: from the header or a config; None: alpha / rank, or 1 where there is no alpha.
        source: the file, for messages.
    """
    tensors, keys = leaves.tensors, leaves.keys
    if set(tensors) == {"bias"}:
        return None
    for role, other in (("down", "up"), ("up", "down")):
        if role not in tensors:
            present = keys.get(other) or next(iter(keys.values()))
            raise LayerError(
                f"{source}: {present!r} has no matching {'lora_A (down)' if role == 'down' else 'lora_B (up)'}; "
                "expected both factors of every layer: the file is incomplete"
            )
    for role, tensor in tensors.items():
        if role != "alpha" and not tensor.is_floating_point():
            raise LayerError(f"{source}: {keys[role]!r} is {tensor.dtype}, expected floating-point numbers")
    down, up = tensors["down"], tensors["up"]
    try:
        if "mid" in tensors:
            down = _fold_mid(down, tensors["mid"])
        if down.dim() != up.dim():
            down, up = _same_dims(down, up)
        layer = LoraLayer(down, up)
    except LayerError as error:
        raise LayerError(f"{source}: {keys['down']!r}: {error}") from None
    if "alpha" in tensors:
        scaling = _alpha(tensors["alpha"], keys["alpha"], source) / tensors["down"].shape[0]
    return layer if scaling is None else layer.scaled(scaling)


def _alpha(tensor: Tensor, key: str, source: str) -> float:
    value = float(tensor.reshape(-1)[0]) if tensor.numel() == 1 and not tensor.is_complex() else float("nan")
    if not is_number(value):
        raise LayerError(f"{source}: {key!r} holds {shown(tensor.tolist())}, expected one finite number")
    return value


def _fold_mid(down: Tensor, mid: Tensor) -> Tensor:
    """Tucker: `delta[o, i] = sum_pq up[o, p] mid[p, q, kh, kw] down[q, i]`; mid and down become one factor."""
    flat = down.dim() in (2, 4) and down.numel() == math.prod(down.shape[:2])
    if mid.dim() != 4 or not flat or not mid.numel() or not down.numel() or mid.shape[1] != down.shape[0]:
        raise LayerError(f"lora_mid {tuple(mid.shape)} and lora_down {tuple(down.shape)} do not fit together")
    return torch.einsum("pqhw,qi->pihw", mid.float(), down.flatten(1).float())


def _same_dims(down: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
    """Some trainers drop the 1 x 1 kernel of one factor."""
    if up.dim() == 2:
        return down, up.reshape(*up.shape, *[1] * (down.dim() - 2))
    if down.dim() == 2:
        return down.reshape(*down.shape, *[1] * (up.dim() - 2)), up
    raise LayerError(f"lora_A {tuple(down.shape)} and lora_B {tuple(up.shape)} have different numbers of dimensions")
