"""The data model: one low-rank change of one weight, and what a file holds of them."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mergelab.checks import readable
from mergelab.errors import LayerError
from mergelab.linalg.lowrank import Factors

# The extra that holds the difference of a layer's bias is named after the layer, and ends so.
BIAS_SUFFIX = ".lora_B.bias"

# A change has entries far below one; squares of larger ones than this, summed, would overflow float32.
LARGEST_ENTRY = 1e12


class _LowRank:
    """What follows from `lora_A`, `lora_B`, `scaling` and `shape`."""

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


@dataclass(frozen=True, eq=False, repr=False)
class LoraSum(_LowRank):
    """The exact sum of several changes of one weight; its factors are concatenated when they are asked for."""

    terms: tuple[LoraLayer, ...]

    @property
    def lora_A(self) -> Tensor:
        return torch.cat([term.lora_A.to(torch.float32) for term in self.terms], dim=0)

    @property
    def lora_B(self) -> Tensor:
        return torch.cat([term.lora_B.to(torch.float32) * term.scaling for term in self.terms], dim=1)

    @property
    def scaling(self) -> float:
        return 1.0

    @property
    def rank(self) -> int:
        return sum(term.rank for term in self.terms)

    @property
    def shape(self) -> tuple[int, ...]:
        return self.terms[0].shape

    def scaled(self, factor: float) -> LoraSum:
        return LoraSum(tuple(term.scaled(factor) for term in self.terms))


# What the rest of mergelab asks of a layer are the members that these classes share. A layer whose change is dense, or
# needs the base weight, is one more class in this union.
Layer = LoraLayer | LoraSum


def terms_of(layer: Layer) -> tuple[LoraLayer, ...]:
    """The stored layers that a layer is the sum of."""
    return layer.terms if isinstance(layer, LoraSum) else (layer,)


def matrices(layer: Layer, device: torch.device | str | None = None) -> Factors:
    """The factors as two float32 matrices, `(out, rank)` and `(rank, in * kh * kw)`, the scaling in the first."""
    lora_b = layer.lora_B.detach().flatten(1).to(device=device, dtype=torch.float32)
    lora_a = layer.lora_A.detach().flatten(1).to(device=device, dtype=torch.float32)
    return Factors(lora_b if layer.scaling == 1.0 else lora_b * layer.scaling, lora_a)


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


def overview(layers: Mapping[str, Layer]) -> list[tuple[str, str, str, str]]:
    """Rows of a table, its head the first: of every component how many layers, of which ranks, and how large.

    Example:
        >>> overview({"unet.conv_in": LoraLayer(torch.ones(2, 3), torch.ones(4, 2))})
        [('component', 'layers', 'ranks', 'parameters'), ('unet', '1', '2 x 1', '14')]
    """
    rows = [("component", "layers", "ranks", "parameters")]
    for component in dict.fromkeys(name.partition(".")[0] for name in layers):
        own = [layer for name, layer in layers.items() if name.startswith(f"{component}.")]
        counts = Counter(layer.rank for layer in own)
        ranks = ", ".join(f"{rank} x {count}" for rank, count in sorted(counts.items())[:4])
        size = sum(layer.rank * (layer.shape[0] + math.prod(layer.shape[1:])) for layer in own)
        rows.append((component, str(len(own)), ranks + (", ..." if len(counts) > 4 else ""), f"{size:,}"))
    return rows


def short_name(source: str) -> str:
    """A file's name without its folder and its ending, of an address without its query; any other source as it is.

    Example:
        >>> short_name("loras/style.v2.safetensors"), short_name("0.5 * style.v2")
        ('style.v2', '0.5 * style.v2')
        >>> short_name("https://example.org/style.safetensors?download=true")
        'style'
    """
    name = readable(Path(source.partition("?")[0] if "://" in source else source).name)
    for ending in (".safetensors", ".bin", ".pt", ".pth", ".ckpt"):
        name = name.removesuffix(ending)
    return name


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
            raise LayerError(f"{self.source}: layer {name}: {_what_is_wrong(factors)}")
        return factors


def common_dialect(adapters: Sequence[AdapterData]) -> tuple[str | None, dict[str, str]]:
    """Dialect and spelling that several adapters agree in, for what is made of them.

    Example:
        >>> a, b = AdapterData({}, dialect="kohya", spelling={"x": "lora_x"}), AdapterData({}, dialect="comfy")
        >>> common_dialect([a, a]), common_dialect([a, b])
        (('kohya', {'x': 'lora_x'}), (None, {'x': 'lora_x'}))
    """
    dialects = {adapter.dialect for adapter in adapters}
    spellings: dict[str, set[str]] = {}
    for adapter in adapters:
        for name, spelt in adapter.spelling.items():
            spellings.setdefault(name, set()).add(spelt)
    agreed = {name: spelt.pop() for name, spelt in spellings.items() if len(spelt) == 1}
    return dialects.pop() if len(dialects) == 1 else None, agreed


def base_model_of(data: AdapterData) -> str:
    """The base model of an adapter in words, as far as it is known.

    Example:
        >>> base_model_of(AdapterData({"unet.conv_in": LoraLayer(torch.ones(2, 3), torch.ones(4, 2))}))
        'unet of an unknown base model'
    """
    components = {name.partition(".")[0] for name in data.layers}
    part = next((f"{part} of an " for part in ("unet", "transformer") if part in components), "")
    return data.architecture or f"{part}unknown base model"


def _what_is_wrong(factors: Factors) -> str:
    for matrix, label in ((factors.A, "lora_A"), (factors.B, "lora_B")):
        if count := int((~torch.isfinite(matrix)).sum()):
            return (
                f"{label} holds {count} values that are NaN or infinite, expected finite numbers; the file is damaged "
                "or its training diverged: use an earlier checkpoint"
            )
    return (
        f"its factors hold values far above {LARGEST_ENTRY:g}, more than float32 arithmetic can work with; "
        "the file is damaged, or its alpha is"
    )
