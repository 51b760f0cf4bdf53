"""What is found in a file, and how it is shown: on one screen, and as JSON."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from mergelab.formats.readings import Reading
from mergelab.formats.tools.tool import EVERYTHING
from mergelab.tables import counted, text_as_html

Level = Literal["problem", "warning", "note"]
_EVERYTHING = EVERYTHING.what
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
        readings: what becomes of it in each tool; empty where it is not read, or of no use.
        architecture: the id of its base model, None where that is not told.
        needs_base: whether it is refused because it is a function of its base model, which is not given.

    Example:
        >>> print(Diagnosis("style", "", {"for": "SDXL"}, (Finding("note", "Its ranks are padded."),)))
        style: healthy
          for  SDXL
          note: Its ranks are padded.
    """

    source: str
    refusal: str
    facts: Mapping[str, str]
    findings: tuple[Finding, ...] = ()
    readings: tuple[Reading, ...] = ()
    architecture: str | None = None
    needs_base: bool = False

    @property
    def verdict(self) -> str:
        """In a word or two.

        Example:
            >>> Diagnosis("style", "", {}).verdict
            'healthy'
        """
        if self.needs_base:
            return "needs the base model: give --base"
        if self.refusal:
            return "mergelab cannot read it"
        counts = {level: sum(finding.level == level for finding in self.findings) for level in LEVELS}
        if counts["problem"]:
            return f"ill: {counted(counts['problem'], 'problem')}"
        return f"usable, with {counted(counts['warning'], 'warning')}" if counts["warning"] else "healthy"

    def to_dict(self) -> dict[str, Any]:
        """All of it, JSON-ready.

        Example:
            >>> Diagnosis("style", "", {}).to_dict()["verdict"]
            'healthy'
        """
        return {
            "source": self.source,
            "verdict": self.verdict,
            "refusal": self.refusal,
            "architecture": self.architecture,
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
                as_it_is.setdefault(one.missed, []).append(one.title)
            if one.missed != "" and one.left_out is not None:
                converted.setdefault(one.left_out, []).append(one.tool)
        if as_it_is:
            order = sorted(as_it_is.items(), key=lambda item: (item[0] != "", item[0].startswith(_EVERYTHING)))
            yield f"read as it is: {'; '.join(_read(missed, _listed(tools)) for missed, tools in order)}"
        elif self.readings:
            yield "read as it is: not known, since its keys are not those that mergelab writes for a tool"
        if converted:
            parts = (f"{', '.join(tools)}{f' (without {lost})' if lost else ''}" for lost, tools in converted.items())
            yield f"after mergelab convert FILE -o OUT --for TOOL: {'; '.join(parts)}"
        if none := [one.title for one in self.readings if one.left_out is None]:
            why_not = "no place for it" if self.architecture else "depends on the base model, say --architecture"
            yield f"{_listed(none)}: {why_not}"


def _read(missed: str, tools: str) -> str:
    """What tools read that do not read so much."""
    if not missed:
        return f"all of it by {tools}"
    if missed.startswith(_EVERYTHING):
        why = missed.removeprefix(_EVERYTHING).removeprefix(", ").replace("if it", "since it")
        return f"nothing by {tools}{f' ({why})' if why else ''}"
    return f"all but {missed} by {tools}"


def _listed(names: list[str]) -> str:
    return " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))
