"""The tensors of a packed file: an adapter's layers beside the quantised model's own branch, in the kernels' order."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from mergelab.errors import OptionError
from mergelab.formats.casting import cast
from mergelab.formats.layout import Layout
from mergelab.formats.nunchaku.modules import DOWN, UP
from mergelab.formats.nunchaku.packing import TILE, pack
from mergelab.formats.nunchaku.quantized import QuantizedModel

# The kernel of the first writes what the second reads, its low-rank part too: their ranks must be equal.
_TOGETHER = {"mlp_fc1": "mlp_fc2", "mlp_context_fc1": "mlp_context_fc2"}
# The outputs of a modulation (shift, scale, gate, ...) are so many groups in diffusers; nunchaku interleaves them.
_GROUPS = {"norm1.linear": 6, "norm1_context.linear": 6, "norm.linear": 3}


class _Pair(NamedTuple):
    """`lora_A`, `(rank, features)`, and `lora_B`, `(features, rank)`, at scaling 1."""

    down: Tensor
    up: Tensor

    @property
    def rank(self) -> int:
        return self.down.shape[0]

    def beside(self, other: _Pair | None) -> _Pair:
        """The sum of two changes, the ranks of this one first."""
        return self if other is None else _Pair(torch.cat([self.down, other.down]), torch.cat([self.up, other.up], 1))

    def padded(self, rank: int) -> _Pair:
        more = rank - self.rank
        pad = torch.nn.functional.pad
        return _Pair(pad(self.down, [0, 0, 0, more]), pad(self.up, [0, more]))


def packed_dtype(layout: Layout, dtype: torch.dtype | None) -> torch.dtype:
    """The dtype of a packed file: as asked, by default that of the quantised model's own branch.

    Raises:
        OptionError: one that the kernels do not read.
    """
    if dtype not in (None, torch.bfloat16, torch.float16):
        name = str(dtype).removeprefix("torch.")
        raise OptionError(f"dtype={name!r}: format 'nunchaku' holds bfloat16 or float16, which its kernels read")
    return dtype or QuantizedModel.of(layout.quantized).dtype


def packed(tensors: Mapping[str, Tensor], layout: Layout) -> dict[str, Tensor]:
    """The tensors of a file for `update_lora_params`.

    Every module with a branch of its own is there, changed or not: loading a file replaces the branch.

    Args:
        tensors: of the writer, all in one dtype.
        layout: names the quantised model.

    Raises:
        FormatError, OutputError: the model's own branch is damaged, or is too large for the dtype.
    """
    model = QuantizedModel.of(layout.quantized)
    floats = [tensor.dtype for tensor in tensors.values()]
    dtype = floats[0] if floats else model.dtype
    pairs: dict[str, _Pair] = {}
    for module, own in model.branches():
        keys = f"{module}{DOWN}", f"{module}{UP}"
        added = _Pair(*(tensors[key].cpu() for key in keys)) if keys[0] in tensors else None
        if own is not None:
            same = own[0].dtype == own[1].dtype == dtype
            pairs[module] = _Pair(*(own if same else cast(dict(zip(keys, own)), dtype).values())).beside(added)
        elif added is not None:
            pairs[module] = added
    for module in list(pairs):
        for other in _company(module):
            if other in model.modules:
                pairs.setdefault(other, _zeros(model.modules[other], dtype))
    done = {f"{module}{end}" for module in pairs for end in (DOWN, UP)}
    stored = {key: tensor for key, tensor in tensors.items() if key not in done}
    for module, pair in pairs.items():
        rank = max(pair.rank, *(pairs[other].rank for other in _company(module) if other in pairs), 1)
        whole = pair.padded(-(-rank // TILE) * TILE)
        stored[f"{module}.lora_down"], stored[f"{module}.lora_up"] = _stored(module, whole)
    return {key: tensor.contiguous() for key, tensor in stored.items()}


def _zeros(shape: tuple[int, int], dtype: torch.dtype) -> _Pair:
    rows, columns = shape
    return _Pair(torch.zeros(1, columns, dtype=dtype), torch.zeros(rows, 1, dtype=dtype))


def _company(module: str) -> list[str]:
    """The modules that must have a branch where one of them has, all of one rank."""
    block, _, last = module.rpartition(".")
    both = next((pair for pair in _TOGETHER.items() if last in pair), ())
    return [f"{block}.{end}" for end in both]


def _stored(module: str, pair: _Pair) -> tuple[Tensor, Tensor]:
    """A pair as it is stored: packed, or plain where the module is a modulation."""
    groups = next((n for end, n in _GROUPS.items() if module.endswith(f".{end}")), None)
    if groups is None:
        return pack(pair.down, down=True), pack(pair.up, down=False)
    rows, rank = pair.up.shape
    return pair.down, pair.up.reshape(groups, rows // groups, rank).transpose(0, 1).reshape(rows, rank)
