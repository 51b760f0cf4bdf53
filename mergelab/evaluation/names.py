"""What variants are called: in scores, findings and summaries, and for people. Built and read here, nowhere else."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, cast, get_args

Kind = Literal["base", "single", "stack", "merge"]
"""The base model, one adapter alone, all of them unmerged, one merge of them."""

_OTHER_SEED = " at seed "


@dataclass(frozen=True)
class VariantName:
    """A variant: its kind, and which one of that kind.

    Attributes:
        kind: of what it is.
        label: the adapter's name for a single, the method and its options for a merge; else empty.

    Example:
        >>> name = VariantName("single", "ghost")
        >>> str(name), name.display, VariantName.parse("single:ghost") == name, str(STACK)
        ('single:ghost', 'ghost alone', True, 'stack')
    """

    kind: Kind
    label: str = ""

    def __str__(self) -> str:
        """As files have it: `base`, `single:<name>`, `stack`, `merge:<label>`."""
        return f"{self.kind}:{self.label}" if self.kind in ("single", "merge") else self.kind

    @classmethod
    def parse(cls, text: str) -> VariantName | None:
        """From what files have; None where that is no variant's name."""
        kind, _, label = text.partition(":")
        name = cls(cast(Kind, kind), label)
        return name if kind in get_args(Kind) and str(name) == text else None

    @property
    def display(self) -> str:
        """As a person calls it."""
        return f"{self.label} alone" if self.kind == "single" else self.label or self.kind


@dataclass(frozen=True)
class Photographs:
    """A reference to the photographs that an adapter was given.

    Example:
        >>> photographs = Photographs("ghost")
        >>> str(photographs), photographs.display, Photographs.parse("photos:ghost") == photographs
        ('photos:ghost', 'photographs of ghost', True)
    """

    label: str

    def __str__(self) -> str:
        """As files have it: `photos:<name>`."""
        return f"photos:{self.label}"

    @classmethod
    def parse(cls, text: str) -> Photographs | None:
        """From what files have; None where that is something else."""
        name = cls(text.partition(":")[2])
        return name if name.label and str(name) == text else None

    @property
    def display(self) -> str:
        """As a person calls it."""
        return f"photographs of {self.label}"


BASE = VariantName("base")
STACK = VariantName("stack")


def single(adapter: str) -> str:
    """The name of one adapter alone, as files have it."""
    return str(VariantName("single", adapter))


def photos(adapter: str) -> str:
    """The reference to one adapter's photographs, as files have it."""
    return str(Photographs(adapter))


def display_name(name: str) -> str:
    """A name of the files as a person calls it; what is none of a variant or of photographs stays as it is.

    Example:
        >>> display_name("single:ghost"), display_name("merge:svd rank=8"), display_name("sharpness")
        ('ghost alone', 'svd rank=8', 'sharpness')
        >>> display_name("photos:ghost")
        'photographs of ghost'
    """
    known = VariantName.parse(name) or Photographs.parse(name)
    return known.display if known else name


def label_of(name: str) -> str:
    """The adapter or the merge that a name of the files is about: "ghost" for "single:ghost" and "photos:ghost"."""
    known = VariantName.parse(name) or Photographs.parse(name)
    return known.label if known else name


def role_of(reference: str) -> str | None:
    """The adapter that a reference is about; None for another, as of a joint score.

    Example:
        >>> role_of("photos:ghost"), role_of("joint"), role_of("stack")
        ('ghost', None, None)
    """
    known = VariantName.parse(reference)
    shown = Photographs.parse(reference)
    return shown.label if shown else known.label if known and known.kind == "single" else None


def renamed(name: str, names: Mapping[str, str]) -> str:
    """A name of the files with another adapter in it.

    Example:
        >>> renamed("single:ghost", {"ghost": "subject"}), renamed("merge:ghost", {"ghost": "subject"})
        ('single:subject', 'merge:ghost')
    """
    known = VariantName.parse(name)
    if known is not None and known.kind == "single":
        return single(names.get(known.label, known.label))
    shown = Photographs.parse(name)
    return name if shown is None else photos(names.get(shown.label, shown.label))


def apart(name: str, taken: set[str]) -> str:
    """A name as it is, or with a number behind it where another has it already; it is taken from then on.

    Example:
        >>> names: set[str] = set()
        >>> apart("svd-8", names), apart("svd-8", names)
        ('svd-8', 'svd-8-2')
    """
    count, found = 1, name
    while found in taken:
        count += 1
        found = f"{name}-{count}"
    taken.add(found)
    return found


def at_seed(name: str, seed: int) -> str:
    """A reference to the image of the same prompt with another seed, which is what noise looks like."""
    return f"{name}{_OTHER_SEED}{seed}"


def split_seed(reference: str, seed: int) -> tuple[str, int]:
    """A reference and its seed, which is the given one unless it says otherwise.

    Example:
        >>> split_seed("stack", 0), split_seed(at_seed("stack", 3), 0)
        (('stack', 0), ('stack', 3))
    """
    match = re.fullmatch(rf"(.*){_OTHER_SEED}(\d+)", reference, re.DOTALL)
    return (match[1], int(match[2])) if match else (reference, seed)
