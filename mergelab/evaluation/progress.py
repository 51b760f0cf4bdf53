"""How far a run is, on a terminal and in a log."""

from __future__ import annotations

import sys
from typing import Any

from tqdm import tqdm

_COUNTS = "{n_fmt}/{total_fmt} [{elapsed}<{remaining}, {rate_inv_fmt}{postfix}]"
_TERMINAL: dict[str, Any] = {"bar_format": "{l_bar}{bar}| " + _COUNTS, "dynamic_ncols": True}
_LOG: dict[str, Any] = {
    "bar_format": "{desc}: {percentage:.0f}% " + _COUNTS + "\n",
    "mininterval": 60,
    "maxinterval": 60,
}


def bar(total: int, label: str, progress: bool | None, unit: str = "image") -> Any:
    """A bar that counts images: how many, the time taken, the time left, and seconds per image.

    The time left is from the mean of all images so far, with the last ones a little heavier. What is no terminal, such
    as the log of a job, gets a line a minute and for each new postfix, where a bar was asked for.

    Args:
        total: how many images there will be.
        label: what is done to them.
        progress: whether to show it; None shows it on a terminal.
        unit: what is counted.
    """
    log = not sys.stderr.isatty() and "ipykernel" not in sys.modules  # a notebook draws over a line as a terminal does
    return tqdm(
        total=total, desc=label, unit=unit, smoothing=0.02, disable=None if progress is None else not progress,
        **(_LOG if log else _TERMINAL),
    )  # fmt: skip
