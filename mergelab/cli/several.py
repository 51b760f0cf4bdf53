"""Options that take several values in a row, as nunchaku's do: `-i A B -s 0.8 -0.6`."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

SEVERAL: Mapping[str, frozenset[str]] = {"compose": frozenset(("-i", "--input-paths", "-s", "--strengths"))}
"""Of each command the flags of such options."""

_NEGATIVE = re.compile(r"-\.?\d")


def spread(arguments: Sequence[str]) -> list[str]:
    """The same command line with the flag before each of its values, as the parser wants it.

    Example:
        >>> spread(["compose", "-i", "a.safetensors", "b.safetensors", "-s", "0.8", "-0.4", "-o", "c.safetensors"])[3:]
        ['-i', 'b.safetensors', '-s', '0.8', '-s', '-0.4', '-o', 'c.safetensors']
    """
    flags = SEVERAL.get(arguments[0] if arguments else "", frozenset())
    found: list[str] = []
    current = ""
    for argument in arguments:
        if argument.startswith("-") and not _NEGATIVE.match(argument):
            current = argument if argument in flags else ""
            found.append(argument)
        else:
            found += [argument] if found[-1:] == [current] or not current else [current, argument]
    return found
