"""What one merge is asked to do, and where the random numbers of a layer come from."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

import torch

from mergelab.adapter import Adapter
from mergelab.errors import MergelabError
from mergelab.linalg.draws import EntryDraws, Hashes, key_of
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
        memory: most bytes of a GPU that are used at a time; None: as `memory_budget` says.
        recipe: which of several it is, for messages; "" for the only one.
    """

    strategy: Strategy
    rank: Rank
    inputs: tuple[Input, ...]
    seed: int
    device: torch.device
    memory: int | None = None
    recipe: str = ""

    def is_like(self, other: Job) -> bool:
        """Whether another merges changes in the same way: it is the same but for weights and rank."""
        with suppress(Exception):  # values of a method of the user's own, whose comparison may be anything
            return self.seed == other.seed and bool(self.strategy == other.strategy)
        return False

    def shape(self, layer: str) -> tuple[int, ...]:
        """Of the weight that a layer changes, `(out, in[, kh, kw])`.

        That with a kernel, where a 1 x 1 convolution stands beside a matrix.
        """
        adapters = (given.adapter for given in self.inputs)
        return max((a.layers[layer].shape for a in adapters if layer in a.layers), key=len)

    def adapters(self, layer: str) -> tuple[int, ...]:
        """Those that take part in a layer, in the order given."""
        return tuple(
            i for i, given in enumerate(self.inputs) if given.weights.get(layer) and layer in given.adapter.layers
        )

    def stored_parts(self, layer: str) -> list[Part]:
        """What a rule that acts on the factors gets, on the CPU and in the order given.

        As PEFT has them: unscaled, the scaling in the weight.
        """
        parts = []
        for place, index in enumerate(self.adapters(layer)):
            given = self.inputs[index]
            change, stored = given.adapter.matrices(layer), given.adapter.layers[layer]
            if stored.scaling != 1:
                change = Factors(stored.lora_B.flatten(1).to(change.B), change.A)
            parts.append(Part(change, given.weights[layer] * stored.scaling, index, place))
        return parts


@contextmanager
def said_of(recipe: str) -> Iterator[None]:
    """Whatever is wrong, the recipe is named: "recipe 3"; "" for none to name."""
    try:
        yield
    except MergelabError as error:
        if not recipe:
            raise
        raise type(error)(f"{recipe}: {error}") from error


def hashes_of(seed: int, layers: Sequence[str], count: int) -> Hashes:
    """What the random numbers of several layers of so many parts each begin with, computed together."""
    return Hashes(tuple(key_of(seed, layer, place) for layer in layers for place in range(count)))


@dataclass(frozen=True)
class LayerChance:
    """Where the random numbers of a layer come from: functions of the seed, its name and a place in it.

    Args:
        seed: of the merge.
        layer: its name.
        places: of its parts, in their order.
        together: hashes of the matrices of several layers, of which this is one.

    Example:
        >>> LayerChance(0, "unet.conv_in", (1, 0)).draws(0) == LayerChance(0, "unet.conv_in", (0, 1)).draws(1)
        True
    """

    seed: int
    layer: str
    places: Sequence[int] = ()
    together: Hashes | None = field(default=None, repr=False, compare=False)
    _generators: dict[int, torch.Generator] = field(default_factory=dict, repr=False, compare=False)

    def generator(self, place: int) -> torch.Generator:
        """A generator of torch's, on the CPU; asked for again, it goes on where it was."""
        if place not in self._generators:
            self._generators[place] = torch.Generator().manual_seed(key_of(self.seed, self.layer, place))
        return self._generators[place]

    def draws(self, part: int) -> EntryDraws:
        """Random numbers for the entries of the matrix of one part."""
        return EntryDraws(key_of(self.seed, self.layer, self.places[part]), self.together)
