"""Groups of layers that share a weight, told from the names of the adapters' layers.

A UNet has its down, mid and up blocks. A transformer with double and single blocks has the double ones and the first
and the second half of the single ones; any other has the thirds of its blocks. Layers beside the blocks and text
encoders take the mean weight of their adapter.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from statistics import fmean
from typing import Literal

from mergelab.errors import OptionError
from mergelab.evaluation.config import Weight

By = Literal["blocks", "components", "none"]
ALL, BESIDE = "*", "beside the blocks"
_BLOCK = re.compile(r"(?P<list>[^.]+\.[^.]+)\.(?P<number>\d+)\.")
_UNET = {"down": "down_blocks", "mid": "mid_block", "up": "up_blocks"}


@dataclass(frozen=True)
class Groups:
    """Groups of layers.

    Attributes:
        members: group -> beginnings of its layers' names, as keys of pattern weights have them; in the order of the
            model. Layers that begin with none of them are beside the groups.
    """

    members: Mapping[str, tuple[str, ...]]

    @property
    def names(self) -> tuple[str, ...]:
        """Of the groups."""
        return tuple(self.members)

    def of(self, layer: str) -> str:
        """The group of a layer, or "beside the blocks"."""
        found = (g for g, starts in self.members.items() if any(_begins(layer, start) for start in starts))
        return next(found, BESIDE)

    def weights(self, values: Mapping[str, float], layers: Iterable[str]) -> Weight:
        """One weight for each group as a weight of an adapter with these layers: a number where they are all the same.

        Example:
            >>> groups = groups_of(["unet.down_blocks.1.q", "unet.up_blocks.0.q", "text_encoder.q"], "blocks")
            >>> groups.weights({"down": 0.9, "up": 1.1}, ["unet.up_blocks.0.q", "text_encoder.q"])
            {'*': 1.0, 'unet.up_blocks': 1.1}
        """
        if len(set(values.values())) == 1:
            return next(iter(values.values()))
        own = list(layers)
        entries = {ALL: round(fmean(values.values()), 4)}
        for group, starts in self.members.items():
            entries |= {start: values[group] for start in starts if any(_begins(layer, start) for layer in own)}
        return entries


def groups_of(layers: Iterable[str], by: By) -> Groups:
    """The groups of all adapters' layers together.

    Args:
        layers: canonical names, of all adapters.
        by: "blocks", "components" (the denoiser and each text encoder), or "none": all layers are one group.

    Raises:
        OptionError: blocks are asked for, and the names have none.

    Example:
        >>> names = ["transformer_blocks.0", *(f"single_transformer_blocks.{i}" for i in range(4))]
        >>> groups_of([f"transformer.{name}.attn.to_q" for name in names], "blocks").members["single 1"]
        ('transformer.single_transformer_blocks.0', 'transformer.single_transformer_blocks.1')
    """
    names = list(dict.fromkeys(layers))
    if by == "none":
        return Groups({"all": (ALL,)})
    if by == "components":
        return Groups({name: (name,) for name in dict.fromkeys(layer.partition(".")[0] for layer in names)})
    denoising = [name for name in names if not name.startswith("text_encoder")]
    found = _unet(denoising) or _transformer(denoising)
    if len(found) < 2:
        raise OptionError(
            "groups: blocks: the layers of these adapters are in no blocks that mergelab can tell apart; groups: none "
            "gives each adapter one weight, groups: components one for each component"
        )
    return Groups(found)


def _begins(layer: str, start: str) -> bool:
    return start == ALL or layer.startswith(f"{start}.")


def _unet(layers: list[str]) -> dict[str, tuple[str, ...]]:
    parts = {
        name: [layer.split(".")[0] for layer in layers if layer.split(".")[1:2] == [own]] for name, own in _UNET.items()
    }
    return {
        name: tuple(f"{one}.{_UNET[name]}" for one in dict.fromkeys(found)) for name, found in parts.items() if found
    }


def _transformer(layers: list[str]) -> dict[str, tuple[str, ...]]:
    numbers = dict[str, set[int]]()
    for layer in layers:
        if match := _BLOCK.match(layer):
            numbers.setdefault(match["list"], set()).add(int(match["number"]))
    blocks = {name: [f"{name}.{number}" for number in range(max(known) + 1) if number in known]
              for name, known in numbers.items()}  # fmt: skip
    single = [name for name in blocks if "single" in name]
    if single and len(blocks) > len(single):
        double = tuple(name for name in blocks if name not in single)
        return {"double": double} | _cut([b for n in single for b in blocks[n]], ("single 1", "single 2"))
    longest = max(blocks, key=lambda name: len(blocks[name]), default=None)
    return {} if longest is None else _cut(blocks[longest], ("first", "middle", "last"))


def _cut(blocks: list[str], names: tuple[str, ...]) -> dict[str, tuple[str, ...]]:
    """In as many parts, the first ones the longer."""
    ends = [-(-len(blocks) * place // len(names)) for place in range(len(names) + 1)]
    parts = {name: tuple(blocks[start:end]) for name, start, end in zip(names, ends, ends[1:])}
    return {name: part for name, part in parts.items() if part}
