"""The valid names, the nearest first, for error messages."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from difflib import get_close_matches


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """The nearest of the known names, where one is near, and all of them; with their values, where they have some.

    Example:
        >>> did_you_mean("sedes", ["seeds", "prompts"]), did_you_mean("x", {"seeds": 4})
        ("did you mean 'seeds'? known: seeds, prompts", 'known: seeds=4')
    """
    listed = [f"{key}={value!r}" for key, value in known.items()] if isinstance(known, Mapping) else list(known)
    near = get_close_matches(name, [entry.partition("=")[0] for entry in listed], n=1, cutoff=0.5)
    return (f"did you mean {near[0]!r}? " if near else "") + f"known: {', '.join(listed)}"
