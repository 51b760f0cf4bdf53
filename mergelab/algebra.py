"""What the operators of an adapter do to its layers and extras: scale, add, truncate."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from mergelab.errors import LayerError, OptionError
from mergelab.layer import (
    AdapterData,
    DerivedLayer,
    Layer,
    LoraLayer,
    LoraSum,
    full_rank,
    is_difference,
    layer_of,
    same_weight,
    terms_of,
)
from mergelab.linalg.dense import EXACT_SIDE, svd_dense
from mergelab.linalg.lowrank import Spectrum
from mergelab.linalg.precision import full_precision
from mergelab.linalg.span import svd
from mergelab.linalg.workspace import each_layer
from mergelab.ranks import (
    Rank,
    RankBudget,
    Target,
    budget_note,
    rank_note,
    rank_reached,
    searched,
    target_rank,
    truncate,
)
from mergelab.report import LayerReport, Report, carried


def scale_layers(layers: Mapping[str, Layer], factor: float) -> dict[str, Layer]:
    """Every change `factor` times as strong; the tensors are shared."""
    return {name: layer.scaled(factor) for name, layer in layers.items()}


def scale_extras(extras: Mapping[str, Tensor], factor: float) -> dict[str, Tensor]:
    """Differences of biases and norms are changes, too; what replaces rather than adds stays as it is."""
    return {
        key: tensor.float() * factor if is_difference(key) and factor != 1 else tensor for key, tensor in extras.items()
    }


def add_layers(first: Mapping[str, Layer], second: Mapping[str, Layer], names: tuple[str, str]) -> dict[str, Layer]:
    """The sum, layer by layer, as terms side by side: nothing is computed.

    Args:
        first, second: what is added.
        names: of the two adapters, for messages.

    Raises:
        LayerError: the two change weights of different shapes.
    """
    check_shapes(first, second, names)
    layers = dict(first)
    for name, layer in second.items():
        other = layers.get(name)
        layers[name] = layer if other is None else LoraSum(_same_kernel(*terms_of(other), *terms_of(layer)))
    return layers


def check_shapes(first: Mapping[str, Layer], second: Mapping[str, Layer], names: tuple[str, str]) -> None:
    """Raise `LayerError` where layers of one name change weights of different shapes."""
    for name, layer in second.items():
        other = first.get(name)
        if other is not None and not same_weight(other.shape, layer.shape):
            raise LayerError(
                f"layer {name}: {names[0]} has shape {other.shape}, {names[1]} {layer.shape}: they do not go together"
            )


def widened(layer: Layer, columns: int) -> Layer:
    """The same change of a weight that has more inputs, which it leaves as they are.

    Example:
        >>> import torch
        >>> widened(LoraLayer(torch.ones(1, 2), torch.ones(3, 1)), 4).delta_weight()[0].tolist()
        [1.0, 1.0, 0.0, 0.0]
    """
    terms = []
    for term in (term.as_lora() for term in terms_of(layer)):
        missing = columns - term.lora_A.shape[1]
        pad = [0, 0] * (term.lora_A.dim() - 2) + [0, missing]
        terms.append(LoraLayer(torch.nn.functional.pad(term.lora_A, pad), term.lora_B, term.scaling))
    return terms[0] if len(terms) == 1 else LoraSum(tuple(terms))


def add_extras(first: Mapping[str, Tensor], second: Mapping[str, Tensor], names: tuple[str, str]) -> dict[str, Tensor]:
    """Differences of biases and norms add; other tensors may stand in both only where they are equal.

    Raises:
        OptionError: the two hold different values of what does not add.
    """
    extras = dict(first)
    for key, tensor in second.items():
        if key not in extras:
            extras[key] = tensor
        elif is_difference(key):
            extras[key] = extras[key].float() + tensor.float()
        elif not torch.equal(extras[key], tensor):
            raise OptionError(f"{key}: {names[0]} and {names[1]} hold different values, which do not add")
    return extras


@full_precision()
def resize_layers(data: AdapterData, rank: Rank, device: torch.device | None = None) -> tuple[dict[str, Layer], Report]:
    """The best approximation of every layer at another rank, computed on a device, and what it kept.

    A layer that keeps its rank keeps its factors, others are float32; one that a budget leaves nothing is left out.
    """

    def resized(name: str) -> Spectrum:
        layer = data.layers[name]
        limit = min(full_rank(layer.shape), layer.rank)
        target = target_rank(rank, [layer.rank], limit)
        if isinstance(rank, RankBudget) and isinstance(layer, DerivedLayer):
            target = rank.searched([layer.counted_rank], limit)
        found = truncate(_svd(data, name, target, device), target)
        return found._replace(U=found.U.cpu(), S=found.S.cpu(), V=found.V.cpu())

    spectra = each_layer(resized, data.layers, device)
    if isinstance(rank, RankBudget):
        counts = rank.spend([s.S for s in spectra.values()])
        spectra = {name: s.truncated(count) for (name, s), count in zip(spectra.items(), counts)}
    layers = {name: _at_rank(data.layers[name], s) for name, s in spectra.items() if len(s.S)}
    rows = (
        LayerReport(n, len(s.S), float(s.energy), float(s.kept), note=rank_note(rank, len(s.S)))
        for n, s in spectra.items()
    )
    note = budget_note(rank, [len(s.S) for s in spectra.values()])
    return layers, Report((), tuple(rows), (*filter(None, [note]), *carried(data.notes)))


def _svd(data: AdapterData, name: str, target: Target, device: torch.device | None) -> Spectrum:
    """The leading singular values of one layer, as many as the target needs or more.

    Exact; for a dense change, which two factors make no smaller, to 0.1 % of what is lost.
    """
    layer = data.layers[name]
    if isinstance(layer, DerivedLayer) and layer.rank > EXACT_SIDE:
        if layer.svd is not None:
            try:
                found = layer.svd(lambda s: min(rank_reached(target, s), len(s)))
            except RuntimeError:  # of torch.linalg, where a value is NaN
                data.matrices(name)
                raise
            scale = abs(layer.scaling)
            signed = found.U if layer.scaling >= 0 else -found.U
            return Spectrum(signed, found.S * scale, found.V, found.energy * scale**2)
        return svd_dense(data.matrices(name, device).delta(), searched(target, full_rank(layer.shape)))
    return svd(data.matrices(name, device))


def _at_rank(layer: Layer, spectrum: Spectrum) -> Layer:
    return layer if len(spectrum.S) == layer.rank else layer_of(spectrum.factors(), layer.shape)


def _same_kernel(*terms: LoraLayer | DerivedLayer) -> tuple[LoraLayer | DerivedLayer, ...]:
    """A 1 x 1 convolution may stand beside a linear layer: give all the dimensions of the largest."""
    dims = max(len(term.shape) for term in terms)

    def padded(x: Tensor) -> Tensor:
        return x.reshape(*x.shape, *[1] * (dims - x.dim()))

    def same(term: LoraLayer | DerivedLayer) -> LoraLayer | DerivedLayer:
        if len(term.shape) == dims:
            return term
        stored = term.as_lora()
        return LoraLayer(padded(stored.lora_A), padded(stored.lora_B), stored.scaling)

    return tuple(same(term) for term in terms)
