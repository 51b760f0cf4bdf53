"""What mergelab knows of a tool that reads LoRA files, as data: `Tool`."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from mergelab.errors import ArchitectureError
from mergelab.formats.architectures.registry import ARCHITECTURES
from mergelab.formats.layout import Layout
from mergelab.formats.writers import SAY_WHICH


@dataclass(frozen=True)
class Lack:
    """Something that a tool has no place for.

    Attributes:
        what: in words.
        pattern: of the canonical names of such layers, and of the keys of such extras.
        kept: when the tool reads it none the less ("its network has them"); it stays in the file then, and the tool
            passes over it otherwise.
        unless: of names, of which one in the file is enough for the tool to lack nothing; "" where none helps.
    """

    what: str
    pattern: str
    kept: str = ""
    unless: str = ""

    def of(self, names: Iterable[str]) -> list[str]:
        """Those of the names that the tool has no place for."""
        given = list(names)
        if self.unless and any(map(re.compile(self.unless).search, given)):
            return []
        return list(filter(re.compile(self.pattern).search, given))

    @property
    def said(self) -> str:
        """In words, with the condition."""
        return f"{self.what}, unless {self.kept}" if self.kept else self.what


EVERYTHING = Lack("everything", "")
"""What a tool lacks that does not read a format at all."""


@dataclass(frozen=True)
class Way:
    """How a file of one architecture is written for a tool, and what the tool makes of other files.

    Attributes:
        layout: of the file.
        lacks: what has no place in the tool.
        reads: format -> what the tool does not read of a file that is written in it; a format that is not here is not
            read at all, but of folders and files, of which a tool has one, nothing is said then.
        note: what a user has to do in the tool; "{rank}" stands for the highest rank.
        completed: with layers of zeros beside those that the tool expects in company.
    """

    layout: Layout
    lacks: tuple[Lack, ...] = ()
    reads: Mapping[str, tuple[Lack, ...]] = field(default_factory=dict)
    note: str = ""
    completed: bool = False

    def missed(self, format: str) -> tuple[Lack, ...]:
        """What the tool does not read of a file in a format that was not written for it."""
        other_kind = self.layout.is_folder != Layout(format).is_folder
        return self.reads.get(format, () if other_kind else (EVERYTHING,))


@dataclass(frozen=True)
class Tool:
    """A program that reads LoRA files.

    Attributes:
        name: on the command line.
        title: as people write it.
        ways: architecture id -> how a file of it is written.
        others: for all other architectures; None where mergelab does not know how the tool names them.
        unknown: for a base model that is not known.
    """

    name: str
    title: str
    ways: Mapping[str, Way] = field(default_factory=dict)
    others: Way | None = None
    unknown: Way | None = None

    def way(self, architecture: str | None) -> Way | None:
        """How files of an architecture are written, None where that is not known."""
        return self.ways.get(architecture, self.others) if architecture else self.unknown

    def checked_way(self, architecture: str | None) -> Way:
        """How files of an architecture are written.

        Raises:
            ArchitectureError: the tool reads no such adapters, or it is not known how.
        """
        if way := self.way(architecture):
            return way
        known = ARCHITECTURES.get(architecture or "")
        if known is None:
            raise ArchitectureError(
                f"the base model is unknown, and how {self.title} names modules depends on it; {SAY_WHICH}, or choose "
                "a format"
            )
        titles = ", ".join(ARCHITECTURES[id].title for id in self.ways if id in ARCHITECTURES)
        raise ArchitectureError(
            f"{self.title} reads no adapters of {known.title} that mergelab knows of, expected one of {titles}; choose "
            "another tool, or a format"
        )
