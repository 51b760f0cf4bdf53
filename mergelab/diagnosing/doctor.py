"""`doctor`: what a file of an adapter is, what is wrong with it, and which tools read it."""

from __future__ import annotations

from collections.abc import Mapping

from mergelab.adapter import Base, Source
from mergelab.diagnosing.checks import findings_of
from mergelab.diagnosing.diagnosis import Diagnosis
from mergelab.diagnosing.facts import facts_of
from mergelab.diagnosing.specimen import specimen_of
from mergelab.formats import ReadOptions
from mergelab.formats.readings import readings


def doctor(
    source: Source, *, allow_pickle: bool = False, architecture: str | None = None, base: Base | None = None
) -> Diagnosis:
    """Look at a file: who wrote it, for which model, what it holds, what is wrong with it, and which tools read it.

    A file that `load` refuses has a diagnosis, too: why it does, and what its header shows.

    Args:
        source: as for `load`.
        allow_pickle: read `.bin`, `.pt`, `.ckpt` too (with `weights_only=True`).
        architecture: the base model's id, where a file does not tell.
        base: the base model, for adapters that are functions of its weights, as for `load`.

    Returns:
        What was found; `print` shows it on one screen.

    Raises:
        SourceError: nothing there, or it cannot be opened.
        OptionError: no such architecture, or miniature adapter.

    Example:
        >>> found = doctor("miniature/sdxl/ghost")
        >>> found.verdict, found.facts["ranks"][:8], found.facts["trigger words"]
        ('healthy', '8; 99 % ', 'sks')
    """
    specimen = specimen_of(source, ReadOptions(allow_pickle, architecture, base))
    adapter, findings = specimen.adapter, findings_of(specimen)
    # No tool can do anything with a file that is damaged, nor would one be written for it.
    is_sound = adapter is not None and all(finding.level != "problem" for finding in findings)
    read = readings(adapter, specimen.glance.entries) if adapter and is_sound else []
    name = "<state dict>" if isinstance(source, Mapping) else str(source)
    known = specimen.data.architecture if specimen.data else None
    return Diagnosis(name, specimen.refusal, facts_of(specimen), findings, tuple(read), known, specimen.needs_base)
