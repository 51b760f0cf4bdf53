"""Powers of two from one factor of a layer to the other, so that a narrow dtype can hold both.

A component of a change is the product of a row of `lora_A` and a column of `lora_B`: it stays exactly the same.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from mergelab.formats.writers import FACTOR_SUFFIXES

# A module of the original model holds at most so many of diffusers' (FLUX.1's largest is seven of its inputs wide).
_MOST_PARTS = 16


@dataclass(frozen=True, eq=False)
class Pair:
    """The two factors of a layer in a file, `lora_A` (down) and `lora_B` (up)."""

    layer: str
    down_key: str
    up_key: str
    down: Tensor
    up: Tensor

    @property
    def tensors(self) -> dict[str, Tensor]:
        """The two, by key."""
        return {self.down_key: self.down, self.up_key: self.up}

    @property
    def rows(self) -> Tensor:
        """Of `lora_A`, one for each component."""
        return self.down.flatten(1)

    @property
    def columns(self) -> list[Tensor]:
        """Of `lora_B`, one for each component, cut into as many outputs as there are inputs, or more.

        In a module that is several in diffusers these are its parts, each a layer that must not be lost.
        """
        outputs = max(self.rows.shape[1], math.ceil(len(self.up) / _MOST_PARTS))
        return [part.T for part in torch.split(self.up.flatten(1), outputs)]

    def lossy(self, dtype: torch.dtype) -> Tensor:
        """Which components overflow in a plain cast, or lose more than rounding explains, (rank,)."""
        return torch.stack([lost_in(dtype, vectors) for vectors in (self.rows, *self.columns)]).amax(0) > 0

    def loses(self, dtype: torch.dtype) -> bool:
        """Whether some component does."""
        return any(bool(lost_in(dtype, vectors).any()) for vectors in (self.rows, *self.columns))

    def lost_share(self, dtype: torch.dtype) -> float:
        """How much of the change, or of a part of it, a cast loses beyond rounding, in [0, 1]."""
        sizes, lost = norms(self.rows), lost_in(dtype, self.rows)
        shares = []
        for columns in self.columns:
            changes = sizes * norms(columns)
            losses = changes * (lost + lost_in(dtype, columns)).clamp_max(1.0)
            shares.append(float(losses.norm() / changes.norm()) if bool(changes.any()) else 0.0)
        return max(shares)

    def scaled(self, exponents: Sequence[int]) -> Pair:
        """The same change, each row of `lora_A` times a power of two and each column of `lora_B` divided by it."""
        # In float64, since float32 has no power of two beyond 127.
        powers = torch.tensor([math.ldexp(1.0, k) for k in exponents], dtype=torch.float64)
        wide = [torch.promote_types(x.dtype, torch.float32) for x in (self.down, self.up)]
        down, up = self.down.double(), self.up.double()
        ones = [1] * (down.dim() - 1)
        return replace(
            self,
            down=(down * powers.to(down).reshape(-1, *ones)).to(wide[0]),
            up=(up / powers.to(up).reshape(1, -1, *ones[1:])).to(wide[1]),
        )


def pairs_of(tensors: Mapping[str, Tensor]) -> Iterator[Pair]:
    """The pairs of factors in the tensors of a file."""
    for down_suffix, up_suffix in FACTOR_SUFFIXES:
        for key, down in tensors.items():
            layer = key.removesuffix(down_suffix)
            if layer != key and (up := tensors.get(layer + up_suffix)) is not None:
                yield Pair(layer, key, layer + up_suffix, down, up)


def balanced(pairs: Sequence[Pair], loses: Sequence[bool], dtype: torch.dtype) -> Iterator[Pair]:
    """Those of the pairs that are changed, so that a cast loses as little as can be.

    Layers that share `lora_A` (parts of a module that is one in the original model) share it afterwards, too, unless
    they are too unlike for that.

    Args:
        pairs: of a file.
        loses: for each, whether a plain cast loses some component, or one overflows.
        dtype: to cast to.
    """
    for group in _sharing(pairs, {pair.down.shape for pair, lossy in zip(pairs, loses) if lossy}):
        if any(loses[i] for i in group):
            members = [pairs[i] for i in group]
            together = _balance(members, dtype)
            if len(members) > 1 and any(pair.loses(dtype) for pair in together):
                together = [member for pair in members for member in _balance([pair], dtype)]
            yield from together


def _sharing(pairs: Sequence[Pair], shapes: set[torch.Size]) -> list[list[int]]:
    """Groups of the pairs with the same `lora_A`, of those whose `lora_A` has one of the shapes."""
    groups: dict[tuple[object, ...], list[list[int]]] = {}
    for i, pair in enumerate(pairs):
        if pair.down.shape in shapes:
            alike = groups.setdefault((pair.down.shape, *pair.rows[0, :4].tolist()), [])
            same = [group for group in alike if torch.equal(pairs[group[0]].down, pair.down)]
            if same:
                same[0].append(i)
            else:
                alike.append([i])
    return [group for alike in groups.values() for group in alike]


def _balance(pairs: Sequence[Pair], dtype: torch.dtype) -> list[Pair]:
    """Pairs with one `lora_A`: where a component is lost or overflows, both its factors get entries of one size."""
    rows, columns = pairs[0].rows, [part for pair in pairs for part in pair.columns]
    row_sizes, column_sizes = _rms(rows), torch.stack([_rms(part) for part in columns])
    row_peaks, column_peaks = _peaks(rows), torch.stack([_peaks(part) for part in columns]).amax(0)
    smallest = torch.where(column_sizes > 0, column_sizes, math.inf).amin(0)
    lossy = torch.stack([pair.lossy(dtype) for pair in pairs]).any(0)
    largest = torch.finfo(dtype).max
    exponents = []
    for j in range(len(rows)):
        if not lossy[j]:
            exponents.append(0)
            continue
        # Neither factor may be larger than what the dtype can hold.
        least, most = math.log2(column_peaks[j] / largest), math.log2(largest / row_peaks[j])
        is_zero = row_sizes[j] == 0 or math.isinf(smallest[j])
        exponent = 0 if is_zero else round(math.log2(smallest[j] / row_sizes[j]) / 2)
        exponents.append(max(math.ceil(least), min(math.floor(most), exponent)))
    return [pair.scaled(exponents) for pair in pairs]


def lost_in(dtype: torch.dtype, vectors: Tensor) -> Tensor:
    """The relative error of each row in a cast, 0 where it is no more than rounding's; (count,) in float64.

    Infinity where an entry overflows. Where the entries are normal numbers of the dtype in the mean, the error is below
    0.71 eps; only others are looked at.
    """
    info = torch.finfo(dtype)
    # Squares of small numbers may vanish in float32: such a row is one of those that are looked at.
    sizes = torch.linalg.vector_norm(vectors, dim=1, dtype=torch.promote_types(vectors.dtype, torch.float32))
    lost = torch.zeros_like(sizes, dtype=torch.float64)
    doubtful = (sizes < info.smallest_normal * math.sqrt(vectors.shape[1])) | (sizes > info.max)
    if bool(doubtful.any()):
        exact = vectors[doubtful].double()
        errors = (exact - exact.to(dtype).double()).norm(dim=1) / exact.norm(dim=1)
        errors = torch.where(_peaks(exact) > info.max, math.inf, errors)
        lost[doubtful] = torch.where(errors > info.eps, errors, 0.0)  # NaN, of a row of zeros, is not above it
    return lost


def norms(vectors: Tensor) -> Tensor:
    """Of each row, in float64."""
    return torch.linalg.vector_norm(vectors, dim=1, dtype=torch.float64)


def _rms(vectors: Tensor) -> Tensor:
    return norms(vectors) / math.sqrt(vectors.shape[1])


def _peaks(vectors: Tensor) -> Tensor:
    """The largest magnitude of each row, that of a row of zeros a little above 0: it has a logarithm."""
    return vectors.abs().amax(1).double().clamp_min(1e-300)
