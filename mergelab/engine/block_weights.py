"""Weights of an adapter block by block, as the tools of kohya, A1111 and ComfyUI write them down."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

from mergelab.checks import EXPECTED_NUMBER, did_you_mean, is_number, plain_number, short_repr
from mergelab.errors import ArchitectureError, OptionError
from mergelab.formats.block_layouts import ALIASES, FAMILIES, Family
from mergelab.formats.block_presets import PRESETS
from mergelab.tables import as_text, counted


@dataclass(frozen=True, eq=False, repr=False)
class BlockWeights(Mapping[str, float]):
    """Weights by block, as a mapping from beginnings of layer names to numbers, which `weights=` takes.

    Unlike in a mapping that is written by hand, an entry may match no layer: adapters have some of the blocks.

    Attributes:
        family: how the blocks are numbered.
        blocks: block -> its weight, in the order of the model; what has no weight is not in it.
        strength: what each is multiplied by: a number, or one for each component.

    Example:
        >>> weights = block_weights("sdxl:MIDALL", 0.8)
        >>> weights["unet.mid_block.attentions.0"], weights["unet.up_blocks.0.attentions.0"]
        (0.8, 0.0)
        >>> print(block_weights("sdxl:1,0,0,0.5,0,1,0,0,0,0,0,0"))
        sdxl  BASE  IN04  IN05  IN07  IN08  MID  OUT00  OUT01  OUT02  OUT03  OUT04  OUT05
              1     0     0     0.5   0     1    0      0      0      0      0      0
    """

    family: Family
    blocks: Mapping[str, float]
    strength: float | Mapping[str, float] = 1.0

    @cached_property
    def _entries(self) -> dict[str, float]:
        return {
            place: self.blocks[block] * strength
            for place, block in self.family.places.items()
            if block in self.blocks and (strength := self._strength(place)) is not None
        }

    def _strength(self, place: str) -> float | None:
        if isinstance(self.strength, Mapping):
            return self.strength.get(place.partition(".")[0])
        return self.strength

    def __getitem__(self, place: str) -> float:
        return self._entries[place]

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def block(self, layer: str) -> str | None:
        """The block that a layer belongs to; None for one of another model."""
        starts = (layer.rsplit(".", cut)[0] for cut in range(layer.count(".") + 1))
        return next((self.family.places[start] for start in starts if start in self.family.places), None)

    def check(self, adapter: str, architecture: str | None) -> None:
        """Raises where an adapter is known to be for another base model.

        Raises:
            ArchitectureError: it is.
        """
        if architecture is not None and architecture not in self.family.architectures:
            raise ArchitectureError(
                f"{adapter}: the block weights are for {self.family.name}, and the adapter is for {architecture}"
            )

    def without(self, adapter: str, layers: list[str]) -> str:
        """What is wrong where these layers have no weight, in words."""
        first, block = layers[0], self.block(layers[0])
        if block is None:
            return f"{adapter}: {first} is in no block of {self.family.name}; is the adapter for another base model?"
        if block in self.blocks:
            return f"{adapter}: no weight for the component {first.partition('.')[0]!r}"
        return (
            f"{adapter}: {len(self.blocks)} block weights leave {counted(len(layers), 'layer')} without one, {first} "
            f"the first, in block {block}; give {len(self.family.blocks)} values, one for each block"
        )

    def __str__(self) -> str:
        names, values = zip(*((name, f"{value:g}") for name, value in self.blocks.items()))
        return as_text([(self.family.name, *names), ("", *values)])

    __repr__ = __str__


def block_weights(
    spec: str, strength: float | Mapping[str, float] = 1.0, *, architecture: str | None = None
) -> BlockWeights:
    """Weights by block, from values in the order of the blocks or from the name of a preset, for `weights=`.

    sd15 has 17 blocks with attention (BASE, IN01, IN02, IN04, IN05, IN07, IN08, MID, OUT03 to OUT11) and 26 in all;
    sdxl 12 (BASE, IN04, IN05, IN07, IN08, MID, OUT00 to OUT05) and 20 in all; flux 58 (BASE, D00 to D18, S00 to S37)
    or 61, with CLIP, T5, IN before and OUT behind in place of BASE. BASE is the text encoders and what lies beside the
    blocks. 20 values for flux end with the double blocks, and the single blocks have the last of them, as in ComfyUI's
    Inspire Pack; so they have in its presets DBL-ALL and DBL-TAIL6. Its lists for LyCORIS (SD-LyC-..., 27 values, and
    SDXL-LyC-..., 21), its random entries (R, A, B) and presets with them are not known here.

    Args:
        spec: "sdxl:1,0,0,0,0,1,1,1,1,1,1,1", "sdxl:OUTALL", "SDXL-OUTALL"; without a family the number of values tells
            it (20: sdxl), or the architecture does.
        strength: what every weight is multiplied by; or a mapping from each component to such a number.
        architecture: the base model of the adapter, which the weights have to be for.

    Raises:
        OptionError: no such family or preset; not as many values as there are blocks; a value is no number.
        ArchitectureError: the weights are for another base model, or for none that has named blocks.

    Example:
        >>> from mergelab import load, merge
        >>> ghost = load("miniature/sdxl/ghost")
        >>> merged = merge([ghost], [block_weights("sdxl:OUTALL")], method="cat")
        >>> sorted({name.split(".")[1] for name in merged.layers})
        ['up_blocks']
    """
    if not isinstance(spec, str):
        raise OptionError(f"block weights {short_repr(spec)}: expected a text such as 'sdxl:1,0,0,...' or 'sdxl:INALL'")
    family, rest = _split(spec)
    wanted = _family_of(architecture) if architecture is not None else None
    if family is not None and wanted is not None and family is not wanted:
        raise ArchitectureError(f"block weights {spec!r} are for {family.name}, and the adapter is for {architecture}")
    values = rest.strip("[] ")
    if "," in values:
        family, blocks = _listed(spec, values.split(","), family or wanted)
    else:
        family, blocks = _preset(spec, rest.upper(), family or wanted)
    _check_strength(strength, {place.partition(".")[0] for place in family.places})
    return BlockWeights(family, blocks, strength)


def _check_strength(strength: object, components: set[str]) -> None:
    for key, number in strength.items() if isinstance(strength, Mapping) else ((None, strength),):
        if not is_number(number):
            raise OptionError(f"weight {short_repr(number)}: {EXPECTED_NUMBER}")
        if key is not None and key not in components:
            raise OptionError(
                f"weight for {short_repr(key)}: beside block weights a component has one, and no pattern of layers; "
                f"expected one of {', '.join(sorted(components))}"
            )


def _split(spec: str) -> tuple[Family | None, str]:
    """The family that a text begins with, and what follows."""
    before, colon, after = spec.strip().partition(":")
    if colon and before.lower() not in ALIASES:
        raise OptionError(f"block weights {spec!r}: {did_you_mean(before.lower(), [f.name for f in FAMILIES])}")
    family, rest = (ALIASES[before.lower()], after.strip()) if colon else (None, spec.strip())
    before, dash, after = rest.partition("-")
    named = ALIASES.get(before.lower()) if dash else None
    if named and family in (None, named):
        return named, after
    return (
        (ALIASES["flux"], "ALL") if rest.upper() == "FLUXALL" and family in (None, ALIASES["flux"]) else (family, rest)
    )


def _family_of(architecture: str) -> Family:
    known = next((family for family in FAMILIES if architecture in family.architectures), None)
    if known is None:
        raise ArchitectureError(
            f"no tool has numbered the blocks of {architecture}; weigh its layers by patterns, such as "
            "{'*': 1.0, 'transformer.layers.3.*': 0.5}"
        )
    return known


def _listed(spec: str, values: list[str], family: Family | None) -> tuple[Family, dict[str, float]]:
    families = FAMILIES if family is None else (family,)
    fitting = next((known for known in families if len(values) in known.layouts), None)
    if fitting is None:
        known = "; ".join(f"{f.name} has {' or '.join(map(str, f.layouts))}" for f in families)
        raise OptionError(f"block weights {short_repr(spec)}: {counted(len(values), 'value')}, and {known}")
    blocks: dict[str, float] = {}
    for names, value in zip(fitting.layout(len(values)), values):
        blocks |= dict.fromkeys(names, _number(spec, names[0], value.strip()))
    return fitting, {name: blocks[name] for name in fitting.blocks if name in blocks}


def _number(spec: str, block: str, value: str) -> float:
    try:
        number = plain_number(value)
    except ValueError:
        number = float("nan")
    if not is_number(number):
        raise OptionError(f"block weights {short_repr(spec)}: {block} is {value!r}: {EXPECTED_NUMBER}")
    return number


def _preset(spec: str, name: str, family: Family | None) -> tuple[Family, dict[str, float]]:
    families = [known for known in FAMILIES if family in (None, known)]
    having = [known for known in families if name in PRESETS[known.name]]
    if len(having) > 1:
        said = " or ".join(f"{known.name}:{name}" for known in having)
        raise OptionError(f"block weights {spec!r}: more than one base model has such a preset; say {said}")
    if not having:
        known = list(dict.fromkeys(preset for one in families for preset in PRESETS[one.name]))
        of = f" of {family.name}" if family else ""
        raise OptionError(f"block weights {spec!r}: there is no such preset{of}; {did_you_mean(name, known)}")
    return having[0], having[0].spread(PRESETS[having[0].name][name])
