"""How the tools that weigh an adapter block by block number the blocks of a model, and what lies in each.

The names are those of sd-scripts' `--lbws` and of sd-webui-lora-block-weight: BASE is the text encoders and whatever
lies beside the blocks, IN, MID and OUT are the blocks of the original UNet, D and S the double and single ones of FLUX.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from mergelab.formats.architectures import ARCHITECTURES

BASE = "BASE"


@dataclass(frozen=True, eq=False)
class Family:
    """Models whose blocks are numbered alike.

    Attributes:
        name: before the colon: "sd15", "sdxl", "flux".
        architectures: their ids.
        steps: first step of a path in the original model -> its block, "{:02}" being the number of the second step.
        text: text encoder -> its block.
        layouts: number of values -> the blocks that they are for; the last has every block. A range of blocks of one
            kind has a value for each, and "D18-S37" one for all.
        base: what BASE means: itself, or the blocks that it stands for.
    """

    name: str
    architectures: tuple[str, ...]
    steps: Mapping[str, str]
    text: Mapping[str, str]
    layouts: Mapping[int, str]
    base: tuple[str, ...] = (BASE,)

    @cached_property
    def blocks(self) -> tuple[str, ...]:
        """All blocks, in their order."""
        last = list(self.layouts.values())[-1]
        return tuple(block for word in last.split() for block in _numbered(word))

    @cached_property
    def places(self) -> Mapping[str, str]:
        """Beginning of a canonical layer name -> its block.

        Example:
            >>> SDXL.places["unet.down_blocks.1.attentions.0"], FLUX.places["transformer.transformer_blocks.7"]
            ('IN04', 'D07')
        """
        naming = ARCHITECTURES[self.architectures[0]].naming
        found = dict(self.text)
        for path, held in naming.top.items():
            found |= {f"{naming.component}.{part}": self._block(path) for part in held.parts}
        for block in naming.blocks:
            for number in range(block.count or 1):
                original, canonical = (path.replace("{}", str(number)) for path in (block.original, block.canonical))
                # Of two names for one block the first counts.
                found.setdefault(f"{naming.component}.{canonical}", self._block(original))
        return found

    def _block(self, original: str) -> str:
        first, *others = original.split(".")
        number = int(others[0]) if others and others[0].isdecimal() else 0
        return self.steps.get(first, BASE).format(number)

    def layout(self, count: int) -> tuple[tuple[str, ...], ...]:
        """The blocks that each of so many values is for: one, or those that BASE stands for."""
        names = [name for word in self.layouts[count].split() for name in _numbered(word)]
        return tuple(self._range(name) for name in names)

    def _range(self, name: str) -> tuple[str, ...]:
        """The blocks that BASE stands for, or "D18-S37"."""
        if name == BASE:
            return self.base
        first, _, last = name.partition("-")
        return self.blocks[self.blocks.index(first) : self.blocks.index(last or first) + 1]

    def spread(self, notation: str) -> dict[str, float]:
        """Block -> value, for every block, from ranges of blocks with values; 1 where none is given, 0 elsewhere.

        Example:
            >>> [block for block, value in SDXL.spread("BASE IN07-OUT00 OUT02=0.5").items() if value]
            ['BASE', 'IN07', 'IN08', 'MID', 'OUT00', 'OUT02']
        """
        values = dict.fromkeys(self.blocks, 0.0)
        for word in notation.split():
            name, _, value = word.partition("=")
            values |= dict.fromkeys(self._range(name), float(value or 1.0))
        return values


def _numbered(word: str) -> list[str]:
    """Blocks from one to another that differ in their number: "OUT03-OUT11"; what is no such range as it is."""
    first, _, last = word.partition("-")
    letters = first.rstrip("0123456789")
    if not last or not last.startswith(letters):
        return [word]
    return [f"{letters}{n:02}" for n in range(int(first[len(letters) :]), int(last[len(letters) :]) + 1)]


_UNET = {"input_blocks": "IN{:02}", "middle_block": "MID", "output_blocks": "OUT{:02}"}
SD15 = Family(
    "sd15",
    ("sd15", "sd2"),
    _UNET,
    {"text_encoder": BASE},
    {17: "BASE IN01 IN02 IN04 IN05 IN07 IN08 MID OUT03-OUT11", 26: "BASE IN00-IN11 MID OUT00-OUT11"},
)
SDXL = Family(
    "sdxl",
    ("sdxl",),
    _UNET,
    {"text_encoder": BASE, "text_encoder_2": BASE},
    {12: "BASE IN04 IN05 IN07 IN08 MID OUT00-OUT05", 20: "BASE IN00-IN08 MID OUT00-OUT08"},
)
_FLUX_INPUTS = ("img_in", "txt_in", "time_in", "vector_in", "guidance_in")
FLUX = Family(
    "flux",
    ("flux",),
    {"double_blocks": "D{:02}", "single_blocks": "S{:02}", "final_layer": "OUT"} | dict.fromkeys(_FLUX_INPUTS, "IN"),
    {"text_encoder": "CLIP", "text_encoder_2": "T5"},
    {20: "BASE D00-D17 D18-S37", 58: "BASE D00-D18 S00-S37", 61: "CLIP T5 IN D00-D18 S00-S37 OUT"},
    base=("CLIP", "T5", "IN", "OUT"),
)
FAMILIES = (SD15, SDXL, FLUX)
ALIASES = {"sd": SD15, "sd15": SD15, "sd1.5": SD15, "sd2": SD15, "sdxl": SDXL, "xl": SDXL, "flux": FLUX}
"""What stands before the colon of a layout, or before the dash of a preset."""
