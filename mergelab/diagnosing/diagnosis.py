"""What is found in a file, and how it is shown: on one screen, and as JSON."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from mergelab.formats.readings import Reading
from mergelab.tables import counted, text_as_html

Level = Literal["problem", "warning", "note"]
LEVELS: tuple[Level, ...] = ("problem", "warning", "note")


@dataclass(frozen=True)
class Finding:
    """Something that is worth a word.

    Attributes:
        level: "problem": the adapter does not work, or not as its file says; "warning": something in it is lost or
            useless, or will be in some use; "note": good to know.
        text: a sentence, with the remedy.
        layers: that it is about, by the names that the text uses; empty for all of them.
    """

    level: Level
    text: str
    layers: tuple[str, ...] = ()


@dataclass(frozen=True, repr=False)
class Diagnosis:
    """What a file is, what is wrong with it, and which tools read it. `print` shows it on one screen.

    Attributes:
        source: as it was given.
        refusal: why it is no adapter that mergelab reads; "" for one that it reads.
        facts: what it is, in words.
        findings: the most important first.
        readings: what becomes of it in each tool; empty where it is not read.

    Example:
        >>> print(Diagnosis("style", "", {"for": "SDXL"}, (Finding("note", "Its ranks are padded."),), ()))
        style: healthy
          for  SDXL
          note: Its ranks are padded.
    """

    source: str
    refusal: str
    facts: Mapping[str, str]
    findings: tuple[Finding, ...]
    readings: tuple[Reading, ...]

    @property
    def verdict(self) -> str:
        """In a word or two.

        Example:
            >>> Diagnosis("style", "", {}, (), ()).verdict
            'healthy'
        """
        if self.refusal:
            return "mergelab cannot read it"
        counts = {level: sum(finding.level == level for finding in self.findings) for level in LEVELS}
        if counts["problem"]:
            return f"ill: {counted(counts['problem'], 'problem')}"
        return f"usable, with {counted(counts['warning'], 'warning')}" if counts["warning"] else "healthy"

    def to_dict(self) -> dict[str, Any]:
        """All of it, JSON-ready.

        Example:
            >>> Diagnosis("style", "", {}, (), ()).to_dict()["verdict"]
            'healthy'
        """
        return {
            "source": self.source,
            "verdict": self.verdict,
            "refusal": self.refusal,
            "facts": dict(self.facts),
            "findings": [{**vars(finding), "layers": list(finding.layers)} for finding in self.findings],
            "tools": [vars(reading) for reading in self.readings],
        }

    def __repr__(self) -> str:
        width = max(map(len, self.facts), default=0)
        lines = [f"{self.source}: {self.verdict}"]
        lines += [f"  {self.refusal}"] if self.refusal else []
        lines += [f"  {name.ljust(width)}  {text}" for name, text in self.facts.items()]
        lines += [f"  {finding.level}: {finding.text}" for finding in self.findings]
        return "\n".join([*lines, *(f"  {line}" for line in self._tools())])

    def _repr_html_(self) -> str:
        return text_as_html(repr(self))

    def _tools(self) -> Iterator[str]:
        """Which tools read it as it is, and which after a conversion."""
        as_it_is: dict[str, list[str]] = {}
        converted: dict[str, list[str]] = {}
        for one in self.readings:
            if one.missed is not None:
                said = f"not {one.missed}" if one.missed else "all of it"
                as_it_is.setdefault("nothing" if one.missed == "everything" else said, []).append(one.title)
            if one.missed != "" and one.left_out is not None:
                converted.setdefault(f"without {one.left_out}" if one.left_out else "", []).append(one.tool)
        if as_it_is:
            yield f"as it is: {_listed(as_it_is)}"
        elif self.readings:
            yield "as it is: its keys are not those that mergelab writes, so that the table of tools does not tell"
        if converted:
            parts = (f"{', '.join(tools)}{f' ({how})' if how else ''}" for how, tools in converted.items())
            yield f"mergelab convert FILE -o OUT --for TOOL mends it for: {'; '.join(parts)}"
        if none := [one.title for one in self.readings if one.left_out is None]:
            yield f"no way is known into: {', '.join(none)}"


def _listed(groups: Mapping[str, list[str]]) -> str:
    order = sorted(groups, key=lambda said: (said != "all of it", said == "nothing"))
    return "; ".join(f"{', '.join(groups[said])} {'read' if len(groups[said]) > 1 else 'reads'} {said}" for said in order)
