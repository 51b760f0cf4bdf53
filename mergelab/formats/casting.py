"""The one cast to the dtype of a file: nothing overflows, and nothing is lost below the smallest number it can hold.

A component of a change is the product of a row of `lora_A` and a column of `lora_B`. Where a plain cast would lose more
of one of them than rounding does, powers of two go from the one to the other first, which is exact.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from mergelab.errors import OutputError
from mergelab.formats.writers import FACTOR_SUFFIXES
from mergelab.parallel import Lane, threads


def cast(tensors: dict[str, Tensor], dtype: torch.dtype | None) -> dict[str, Tensor]:
    """The tensors of a file in another dtype; None keeps each in its own.

    Raises:
        OutputError: a value that is not finite, or overflows; or a layer or an extra that loses more than rounding
            explains, about one eps of the dtype.
    """
    with threads() as pool:
        lane = Lane(pool)
        lane.each(lambda item: _check_range(*item, dtype), tensors.items())
        if dtype is None:
            return tensors
        pairs = [pair for pair in _pairs(tensors) if not _is_exact(pair.down, dtype) or not _is_exact(pair.up, dtype)]
        losses = list(lane.map(lambda pair: pair.losses(dtype), pairs))
        changed = list(_balanced(pairs, [bool((lost.down + lost.up > 0).any()) for lost in losses], dtype))
        tensors = tensors | {pair.down_key: pair.down for pair in changed} | {pair.up_key: pair.up for pair in changed}
        lane.each(lambda pair: pair.check(dtype), changed)
        factors = {key for pair in pairs for key in (pair.down_key, pair.up_key)}
        extras = {key: tensor for key, tensor in tensors.items() if key not in factors and _is_cast(key, tensor)}
        lane.each(lambda item: _check_loss(*item, dtype), extras.items())
        cast_to = lane.map(lambda item: item[1].to(dtype) if _is_cast(*item) else item[1], tensors.items())
        return dict(zip(tensors, cast_to))


class _Losses(NamedTuple):
    """How much of each component a plain cast loses, relative to its factors; 0 where that is no more than rounding."""

    down: Tensor
    up: Tensor


@dataclass(frozen=True, eq=False)
class _Pair:
    """The two factors of a layer in a file."""

    layer: str
    down_key: str
    up_key: str
    down: Tensor
    up: Tensor

    @property
    def rows(self) -> Tensor:
        return self.down.flatten(1)

    @property
    def columns(self) -> Tensor:
        return self.up.flatten(1).T

    def losses(self, dtype: torch.dtype) -> _Losses:
        return _Losses(_lost(self.rows, dtype), _lost(self.columns, dtype))

    def scaled(self, exponents: Sequence[int]) -> _Pair:
        """The same change, each row of `lora_A` times a power of two and each column of `lora_B` divided by it."""
        powers = torch.tensor([math.ldexp(1.0, k) for k in exponents], dtype=torch.float64)
        down, up = (x if x.dtype == torch.float64 else x.float() for x in (self.down, self.up))
        ones = [1] * (down.dim() - 1)
        return replace(
            self,
            down=down * powers.to(down).reshape(-1, *ones),
            up=up * (1 / powers).to(up).reshape(1, -1, *ones[1:]),
        )

    def check(self, dtype: torch.dtype) -> None:
        """Raise where more of the change is lost than rounding explains."""
        lost = self.losses(dtype)
        sizes = _norms(self.rows) * _norms(self.columns)
        share = float((sizes * (lost.down + lost.up)).norm() / sizes.norm().clamp(min=torch.finfo(torch.float64).tiny))
        _refuse(f"layer {self.layer}", share, dtype)


def _pairs(tensors: dict[str, Tensor]) -> Iterable[_Pair]:
    for down_suffix, up_suffix in FACTOR_SUFFIXES:
        for key, tensor in tensors.items():
            layer = key.removesuffix(down_suffix)
            if layer != key and tensor.is_floating_point() and tensor.numel():
                up_key = layer + up_suffix
                yield _Pair(layer, key, up_key, tensor, tensors[up_key])


def _balanced(pairs: Sequence[_Pair], loses: Sequence[bool], dtype: torch.dtype) -> Iterable[_Pair]:
    """Those of the pairs that are changed, so that a cast loses as little as can be.

    Layers that share `lora_A` (parts of a module that is one in the original model) share it afterwards, too, unless
    they are too unlike for that.
    """
    if not any(loses):
        return
    shapes = {pair.down.shape for pair, lossy in zip(pairs, loses) if lossy}
    groups: dict[tuple[object, ...], list[list[int]]] = {}
    for i, pair in enumerate(pairs):
        if pair.down.shape not in shapes:
            continue
        alike = groups.setdefault((pair.down.shape, *pair.rows[0, :4].tolist()), [])
        group = next((group for group in alike if torch.equal(pairs[group[0]].down, pair.down)), None)
        if group is None:
            alike.append([i])
        else:
            group.append(i)
    for group in (group for alike in groups.values() for group in alike if any(loses[i] for i in group)):
        members = [pairs[i] for i in group]
        together = _balance(members, dtype)
        if len(members) > 1 and any(bool((lost > 0).any()) for pair in together for lost in pair.losses(dtype)):
            together = [member for pair in members for member in _balance([pair], dtype)]
        yield from together


def _balance(pairs: Sequence[_Pair], dtype: torch.dtype) -> list[_Pair]:
    """Pairs with one `lora_A`: where a component is lost, both its factors get entries of one size."""
    info = torch.finfo(dtype)
    rows = pairs[0].rows
    row_sizes, column_sizes = _rms(rows), torch.stack([_rms(pair.columns) for pair in pairs])
    row_peaks, column_peaks = _peaks(rows), torch.stack([_peaks(pair.columns) for pair in pairs]).amax(0)
    losses = [pair.losses(dtype) for pair in pairs]
    lossy = torch.stack([lost.down + lost.up > 0 for lost in losses]).any(0)
    smallest = torch.where(column_sizes > 0, column_sizes, math.inf).amin(0)
    exponents = []
    for j in range(len(rows)):
        if not lossy[j] or row_sizes[j] == 0 or math.isinf(smallest[j]):
            exponents.append(0)
            continue
        # Neither factor may grow beyond what the dtype can hold.
        most, least = math.log2(info.max / row_peaks[j]), -math.log2(info.max / column_peaks[j])
        exponent = round(math.log2(smallest[j] / row_sizes[j]) / 2)
        exponents.append(max(math.ceil(least), min(math.floor(most), exponent)))
    return [pair.scaled(exponents) for pair in pairs]


def _lost(vectors: Tensor, dtype: torch.dtype) -> Tensor:
    """The relative error of each row in a cast, 0 where it is no more than rounding's; (count,) in float64.

    Where the entries are normal numbers of the dtype in the mean, it is below 0.71 eps; only others are looked at.
    """
    info, norms = torch.finfo(dtype), _norms(vectors)
    lost = torch.zeros_like(norms)
    doubtful = (norms > 0) & (norms < info.smallest_normal * math.sqrt(vectors.shape[1]))
    if bool(doubtful.any()):
        exact = vectors[doubtful].double()
        lost[doubtful] = (exact - exact.to(dtype).double()).norm(dim=1) / norms[doubtful]
    return torch.where(lost > info.eps, lost, 0.0)


def _norms(vectors: Tensor) -> Tensor:
    return torch.linalg.vector_norm(vectors, dim=1, dtype=torch.float64)


def _rms(vectors: Tensor) -> Tensor:
    return _norms(vectors) / math.sqrt(vectors.shape[1])


def _peaks(vectors: Tensor) -> Tensor:
    return vectors.abs().amax(1).double()


def _is_cast(key: str, tensor: Tensor) -> bool:
    return tensor.is_floating_point() and not key.endswith(".alpha") and tensor.numel() > 0


def _is_exact(tensor: Tensor, dtype: torch.dtype) -> bool:
    """Whether every number of the tensor's dtype is one of the other."""
    return torch.promote_types(tensor.dtype, dtype) == dtype


def _check_range(key: str, tensor: Tensor, dtype: torch.dtype | None) -> None:
    if not _is_cast(key, tensor):
        return
    largest = float(tensor.abs().max())
    if not math.isfinite(largest):
        raise OutputError(f"{key} holds NaN or infinity and is not written")
    if dtype is not None and largest > torch.finfo(dtype).max:
        raise OutputError(
            f"{key} has values up to {largest:.3g}, more than {dtype} can hold; save it as bfloat16 or float32"
        )


def _check_loss(key: str, tensor: Tensor, dtype: torch.dtype) -> None:
    if not _is_exact(tensor, dtype):
        _refuse(key, float(_lost(tensor.reshape(1, -1), dtype)), dtype)


def _refuse(what: str, share: float, dtype: torch.dtype) -> None:
    if share > torch.finfo(dtype).eps:
        raise OutputError(
            f"{what}: {100 * share:.2g} % of it would be lost below the smallest numbers that {dtype} can hold; save "
            "it as bfloat16 or float32"
        )
