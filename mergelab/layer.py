"""The data model: one low-rank change of one weight, and what a file holds of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from mergelab.errors import LayerError
from mergelab.linalg.lowrank import Factors, Spectrum, identity_factored, stack

# The extra that holds the difference of a layer's bias is named after the layer, and ends so.
BIAS_SUFFIX = ".lora_B.bias"
# The difference of a norm's weight is named after the norm, and ends so.
NORM_SUFFIX = ".diff"


def is_difference(extra: str) -> bool:
    """Whether an extra is added to a tensor of the model, a bias or a norm, rather than put in its place."""
    return extra.endswith((BIAS_SUFFIX, NORM_SUFFIX))


def owner_of(extra: str) -> str:
    """The layer or norm that an extra is a difference of; of another extra its whole name.

    Example:
        >>> owner_of("unet.conv_in.lora_B.bias"), owner_of("unet.conv_norm_out.diff")
        ('unet.conv_in', 'unet.conv_norm_out')
    """
    return extra.removesuffix(BIAS_SUFFIX).removesuffix(NORM_SUFFIX)


# A change has entries far below one; squares of larger ones than this, summed, would overflow float32.
LARGEST_ENTRY = 1e12

# A change that is no pair of factors has a rank that nobody chose, often that of its whole weight.
MOST_COUNTED = 64


class _LowRank:
    """What follows from `lora_A`, `lora_B`, `scaling`, `rank` and `shape`."""

    @property
    def counted_rank(self: Any) -> int:
        """The rank that counts where the rank of a merge follows from those of its inputs."""
        return self.rank

    def delta_weight(self: Any) -> Tensor:
        """`scaling * lora_B @ lora_A` in float32, `(out, in[, kh, kw])`."""
        return matrices(self).delta().reshape(self.shape)

    def __repr__(self: Any) -> str:
        return f"{type(self).__name__}(shape={self.shape}, rank={self.rank}, scaling={self.scaling:g})"


@dataclass(frozen=True, eq=False, repr=False)
class LoraLayer(_LowRank):
    """A low-rank change of one weight: `delta_weight = scaling * lora_B @ lora_A`.

    Args:
        lora_A: "down", `(rank, in)` for a linear layer, `(rank, in, kh, kw)` for a convolution.
        lora_B: "up", `(out, rank)`, or `(out, rank, 1, 1)` for a convolution.
        scaling: alpha / rank; the factor between the product and the change.

    Raises:
        LayerError: the shapes do not fit together.

    Example:
        >>> import torch
        >>> layer = LoraLayer(torch.ones(4, 8), torch.ones(6, 4), scaling=0.5)
        >>> layer.rank, layer.shape, layer.delta_weight()[0, 0].item()
        (4, (6, 8), 2.0)
    """

    lora_A: Tensor
    lora_B: Tensor
    scaling: float = 1.0

    @property
    def kind(self) -> str:
        """Of adapter, as people write it."""
        return "LoRA"

    def __post_init__(self) -> None:
        a, b = tuple(self.lora_A.shape), tuple(self.lora_B.shape)
        if len(a) < 2 or len(a) != len(b) or b[1] != a[0] or any(size != 1 for size in b[2:]):
            raise LayerError(
                f"lora_A {a} and lora_B {b} do not fit: expected (rank, in[, kh, kw]) and (out, rank[, 1, 1])"
            )
        if 0 in a or 0 in b:
            raise LayerError(f"lora_A {a} and lora_B {b}: expected every size to be at least 1")

    @property
    def rank(self) -> int:
        return self.lora_A.shape[0]

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the weight that is changed, `(out, in[, kh, kw])`."""
        return (self.lora_B.shape[0], *self.lora_A.shape[1:])

    def scaled(self, factor: float) -> LoraLayer:
        """The same change, `factor` times as strong; the factors are shared, not copied."""
        return replace(self, scaling=self.scaling * factor)

    @property
    def dtypes(self) -> tuple[torch.dtype, torch.dtype]:
        """Of `lora_A` and `lora_B`."""
        return self.lora_A.dtype, self.lora_B.dtype

    def as_lora(self) -> LoraLayer:
        """The layer as one pair of factors; computed where it is held in another form."""
        return self


class _Computed(_LowRank):
    """What computes its factors, in float32."""

    dtypes = (torch.float32, torch.float32)

    @property
    def lora_A(self: Any) -> Tensor:
        return self.as_lora().lora_A

    @property
    def lora_B(self: Any) -> Tensor:
        return self.as_lora().lora_B


@dataclass(frozen=True, eq=False, repr=False)
class DerivedLayer(_Computed):
    """A change that its file holds in another form than two factors: these are computed whenever they are asked for.

    Attributes:
        kind: "LoHa", "DoRA", ...
        shape: of the weight that is changed, `(out, in[, kh, kw])`.
        inner_rank: of the factors of all rows.
        inner: rows of the change -> their factors, `(rows, r)` and `(r, in * kh * kw)`, float32.
        scaling: the factor between their product and the change.
        rows: those that the layer has, one part after the other.
        svd: how many of given singular values to return -> the decomposition of all rows, where it is cheap.
        dim: the rank that its file has, by which alpha is divided there; 0 where it has none.
    """

    kind: str
    shape: tuple[int, ...]
    inner_rank: int
    inner: Callable[[Sequence[slice]], Factors]
    scaling: float = 1.0
    rows: tuple[slice, ...] = (slice(None),)
    svd: Callable[[Callable[[Tensor], int]], Spectrum] | None = None
    dim: int = 0

    @property
    def rank(self) -> int:
        return min(self.inner_rank, full_rank(self.shape)) if self.shape else self.inner_rank

    @property
    def counted_rank(self) -> int:
        return min(self.rank, MOST_COUNTED)

    def scaled(self, factor: float) -> DerivedLayer:
        return replace(self, scaling=self.scaling * factor)

    def of_rows(self, *rows: slice) -> DerivedLayer:
        """The layer of a weight that has only these rows of this one's, one part after the other."""
        count = sum(part.stop - part.start for part in rows)
        return replace(self, shape=(count, *self.shape[1:]), rows=rows, svd=None)

    def as_lora(self) -> LoraLayer:
        factors = self.inner(self.rows)
        if factors.A.shape[0] > self.rank:  # a few rows of a change need no more than so many
            factors = identity_factored(factors.delta())
        return replace(layer_of(factors, self.shape), scaling=self.scaling)


@dataclass(frozen=True, eq=False, repr=False)
class LoraSum(_Computed):
    """The exact sum of several changes of one weight; its factors are concatenated when they are asked for."""

    terms: tuple[LoraLayer | DerivedLayer, ...]

    @property
    def scaling(self) -> float:
        return 1.0

    @property
    def rank(self) -> int:
        return sum(term.rank for term in self.terms)

    @property
    def shape(self) -> tuple[int, ...]:
        return self.terms[0].shape

    @property
    def kind(self) -> str:
        return ", ".join(dict.fromkeys(term.kind for term in self.terms))

    @property
    def counted_rank(self) -> int:
        return sum(term.counted_rank for term in self.terms)

    def scaled(self, factor: float) -> LoraSum:
        return LoraSum(tuple(term.scaled(factor) for term in self.terms))

    def as_lora(self) -> LoraLayer:
        return layer_of(stack([matrices(term) for term in self.terms]), self.shape)


# What the rest of mergelab asks of a layer are the members that these classes share.
Layer = LoraLayer | DerivedLayer | LoraSum


def terms_of(layer: Layer) -> tuple[LoraLayer | DerivedLayer, ...]:
    """The layers that a layer is the sum of."""
    return layer.terms if isinstance(layer, LoraSum) else (layer,)


def matrices(layer: Layer, device: torch.device | str | None = None) -> Factors:
    """The factors as two float32 matrices, `(out, rank)` and `(rank, in * kh * kw)`, the scaling in the first."""
    stored = layer.as_lora()
    lora_b = stored.lora_B.detach().flatten(1).to(device=device, dtype=torch.float32)
    lora_a = stored.lora_A.detach().flatten(1).to(device=device, dtype=torch.float32)
    return Factors(lora_b if stored.scaling == 1.0 else lora_b * stored.scaling, lora_a)


def layer_of(factors: Factors, shape: Sequence[int]) -> LoraLayer:
    """The layer that changes a weight of this shape by the product of two matrices."""
    rank, ones = factors.A.shape[0], [1] * (len(shape) - 2)
    return LoraLayer(factors.A.reshape(rank, *shape[1:]), factors.B.reshape(shape[0], rank, *ones))


def full_rank(shape: Sequence[int]) -> int:
    """The highest rank that a change of a weight of this shape, `(out, in[, kh, kw])`, can have.

    Example:
        >>> full_rank((320, 4, 3, 3))
        36
    """
    return min(shape[0], math.prod(shape[1:]))


def same_weight(shape: Sequence[int], other: Sequence[int]) -> bool:
    """Whether two shapes are of one weight: equal, or equal but for the 1 x 1 kernel of a convolution."""
    padded = [(*s, 1, 1) if len(s) == 2 else tuple(s) for s in (shape, other)]
    return padded[0] == padded[1]


@dataclass(frozen=True, eq=False)
class AdapterData:
    """What a LoRA file holds, in canonical names, whatever its dialect.

    Attributes:
        layers: canonical name (`<component>.<diffusers module path>`) -> layer.
        extras: tensors that are no LoRA factors (biases, norms, textual-inversion embeddings), by canonical name.
        architecture: an id of `mergelab.formats.architectures` ("sd15", ...), or None where it cannot be told.
        metadata: the header's strings, as they were.
        source: where it came from, for messages.
        notes: what a reader should know about how the file was understood.
        dialect: the format its file is in, None where that is none of those that are written, or several.
        spelling: canonical layer name -> the module's name in the file, kept where the architecture is unknown.
    """

    layers: Mapping[str, Layer]
    extras: Mapping[str, Tensor] = field(default_factory=dict)
    architecture: str | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)
    source: str = "<memory>"
    notes: tuple[str, ...] = ()
    dialect: str | None = None
    spelling: Mapping[str, str] = field(default_factory=dict)

    def matrices(self, name: str, device: torch.device | str | None = None) -> Factors:
        """The float32 factors of one layer; the one door through which values enter any arithmetic.

        Raises:
            LayerError: a factor holds NaN or infinity, or values far beyond those of any adapter.
        """
        factors = matrices(self.layers[name], device)
        sizes = [float(torch.stack(torch.aminmax(matrix)).abs().max()) for matrix in factors]
        if not (math.prod(sizes) <= LARGEST_ENTRY and max(sizes) <= LARGEST_ENTRY**1.5):
            raise LayerError(f"{self.source}: layer {name}: {_what_is_wrong(self.layers[name], factors)}")
        return factors


def _what_is_wrong(layer: Layer, factors: Factors) -> str:
    damaged = "the file is damaged or its training diverged: use an earlier checkpoint"
    if not isinstance(layer, LoraLayer) and not all(bool(torch.isfinite(matrix).all()) for matrix in factors):
        return f"its change, computed from {layer.kind}, holds NaN or infinity; {damaged}"
    for matrix, label in ((factors.A, "lora_A"), (factors.B, "lora_B")):
        if count := int((~torch.isfinite(matrix)).sum()):
            return f"{label} holds {count} values that are NaN or infinite, expected finite numbers; {damaged}"
    return (
        f"its factors hold values far above {LARGEST_ENTRY:g}, more than float32 arithmetic can work with; "
        "the file is damaged, or its alpha is"
    )
