"""What one merge is asked to do, and the parts of one layer in the order in which they are merged."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from mergelab.adapter import Adapter
from mergelab.linalg.draws import EntryDraws, key_of
from mergelab.linalg.lowrank import Factors
from mergelab.methods.method import Part, Strategy
from mergelab.ranks import Rank


@dataclass(frozen=True)
class Input:
    """One adapter of a merge.

    Attributes:
        name: in the report, unlike those of the others.
        adapter: as it was given or loaded.
        weights: layer name -> weight, for every layer that it has; 0: it takes no part in that layer. The key of an
            extra that replaces a tensor -> weight, where it has one.
    """

    name: str
    adapter: Adapter
    weights: dict[str, float]


@dataclass(frozen=True)
class Job:
    """What one merge is asked to do, all of it checked before.

    Attributes:
        strategy: the method.
        rank: of the result, as `merge` takes it.
        inputs: adapters with their names and weights, in the order given.
        seed: of every random draw.
        device: that computes; the result is on the CPU wherever the inputs are.
    """

    strategy: Strategy
    rank: Rank
    inputs: tuple[Input, ...]
    seed: int
    device: torch.device

    def shape(self, layer: str) -> tuple[int, ...]:
        """Of the weight that a layer changes, `(out, in[, kh, kw])`.

        That with a kernel, where a 1 x 1 convolution stands beside a matrix.
        """
        adapters = (given.adapter for given in self.inputs)
        return max((a.layers[layer].shape for a in adapters if layer in a.layers), key=len)

    def parts(self, layer: str, present: Sequence[int]) -> list[Part]:
        """Changes and weights of those present.

        In the order given, and as PEFT has them (unscaled, the scaling in the weight), for a rule that acts on the
        factors; in the order given where the factors are stored; else in an order of the changes' own.
        """
        parts = [self.unordered_part(layer, index) for index in present]
        if self.strategy.acts_in.acts_on_factors:
            return [part._replace(place=place) for place, part in enumerate(parts)]
        ordered = _in_canonical_order(parts, layer, self.seed)
        return sorted(ordered, key=lambda part: part.adapter) if self.strategy.stores_factors else ordered

    def unordered_part(self, layer: str, index: int) -> Part:
        """One of them."""
        given = self.inputs[index]
        change, weight = given.adapter.matrices(layer, self.device), given.weights[layer]
        if self.strategy.acts_in.acts_on_factors:
            stored = given.adapter.layers[layer]
            return Part(Factors(stored.lora_B.flatten(1).to(change.B), change.A), weight * stored.scaling, index)
        return Part(change, weight, index)


@dataclass(frozen=True)
class LayerChance:
    """Where the random numbers of a layer come from: functions of the seed, its name and a place in it.

    Args:
        seed: of the merge.
        layer: its name.
        places: of its parts, in their order.

    Example:
        >>> LayerChance(0, "unet.conv_in", (1, 0)).draws(0) == LayerChance(0, "unet.conv_in", (0, 1)).draws(1)
        True
    """

    seed: int
    layer: str
    places: Sequence[int] = ()
    _generators: dict[int, torch.Generator] = field(default_factory=dict, repr=False, compare=False)

    def generator(self, place: int) -> torch.Generator:
        """A generator of torch's, on the CPU; asked for again, it goes on where it was."""
        if place not in self._generators:
            self._generators[place] = torch.Generator().manual_seed(key_of(self.seed, self.layer, place))
        return self._generators[place]

    def draws(self, part: int) -> EntryDraws:
        """Random numbers for the entries of the matrix of one part."""
        return EntryDraws(key_of(self.seed, self.layer, self.places[part]))


# Places of the engine's own: the start of a decomposition, and the projection that puts parts in order.
START, ORDER = -1, -2


def _in_canonical_order(parts: Sequence[Part], layer: str, seed: int) -> list[Part]:
    """An order that does not depend on how the adapters were listed, nor on how a file factors a change; and places.

    The parts are sorted by one fixed random projection of each, `w u.T delta v`: in which order floating point sums
    them then depends on the changes alone. Which of them gets which random draw does not even depend on the weights:
    places go by the projection without them. (Equal changes are told apart by their weights.)
    """
    out, columns = parts[0].change.shape
    generator = LayerChance(seed, layer).generator(ORDER)
    u, v = (torch.randn(size, generator=generator, dtype=torch.float64).float() for size in (out, columns))
    u, v = u.to(parts[0].change.B), v.to(parts[0].change.A)
    projections = [float((u @ part.change.B).double() @ (part.change.A @ v).double()) for part in parts]
    by_change = sorted(range(len(parts)), key=lambda i: (projections[i], parts[i].weight))
    places = {i: place for place, i in enumerate(by_change)}
    by_weighted = sorted(range(len(parts)), key=lambda i: parts[i].weight * projections[i])
    return [parts[i]._replace(place=places[i]) for i in by_weighted]
