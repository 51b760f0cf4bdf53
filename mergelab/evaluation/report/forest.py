"""A forest plot: one estimate with its interval for each row, and the pooled one below."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from html import escape

from mergelab.evaluation.report.plots import LETTER, WIDTH, limits_of, svg, ticks
from mergelab.evaluation.statistics import Interval

ROW, TOP, RIGHT = 20, 26, 130
"""Height of a row, of what stands above, width of the numbers at the right."""


def forest(rows: Sequence[tuple[str, Interval]], pooled: Interval, title: str, label: str) -> str:
    """Estimates as squares, the pooled one as a diamond as wide as its interval, and a line at 0.

    Args:
        rows: name and estimate of each.
        pooled: over all of them.
        title: of the figure.
        label: of the axis.
    """
    known = [v for _, one in [*rows, ("", pooled)] for v in vars(one).values() if math.isfinite(v)]
    limits, left = limits_of([*known, 0.0]), min(250, 20 + int(LETTER * max(len(name) for name, _ in rows)))
    bottom = TOP + ROW * (len(rows) + 1.8)

    def across(value: float) -> float:
        return round(left + (value - limits[0]) / (limits[1] - limits[0]) * (WIDTH - left - RIGHT), 1)

    parts = [f'<text class="name strong" x="4" y="14">{escape(title)}</text>']
    for value in ticks(limits):
        kind, x = "guide" if value == 0 else "grid", across(value)
        parts.append(f'<line class="{kind}" x1="{x}" x2="{x}" y1="{TOP}" y2="{bottom}"/>')
        parts.append(f'<text class="tick" x="{x}" y="{bottom + 14}" text-anchor="middle">{value:g}</text>')
    for place, (name, one) in enumerate(rows):
        at = TOP + ROW * (place + 0.7)
        low, high, middle = _ends(one, across)
        parts += _words(name, one, at, "name")
        parts.append(f'<line class="reach" x1="{low}" x2="{high}" y1="{at}" y2="{at}"/>')
        parts.append(f'<rect class="dot on" x="{middle - 3:.1f}" y="{at - 3:.1f}" width="6" height="6"/>')
    at = TOP + ROW * (len(rows) + 1.0)
    low, high, middle = _ends(pooled, across)
    points = f"{min(low, middle - 3)},{at} {middle},{at - 6} {max(high, middle + 3)},{at} {middle},{at + 6}"
    parts += [*_words("all sets", pooled, at, "name strong"), f'<polygon class="dot on" points="{points}"/>']
    parts.append(f'<text class="label" x="{(left + WIDTH - RIGHT) / 2:.0f}" y="{bottom + 34}" text-anchor="middle">'
                 f"{escape(label)}; right of 0 the merge is better</text>")  # fmt: skip
    return svg(parts, title, bottom + 40)


def _ends(one: Interval, across: Callable[[float], float]) -> tuple[float, float, float]:
    """Where an interval begins and ends, and its estimate; without bounds all are the estimate."""
    low, high = (one.low, one.high) if math.isfinite(one.low) else (one.estimate, one.estimate)
    return across(low), across(high), across(one.estimate)


def _words(name: str, one: Interval, at: float, kind: str) -> list[str]:
    """What a row is called, and its numbers."""
    shown = f"{one.estimate:+.2f}" + (f" [{one.low:.2f}, {one.high:.2f}]" if math.isfinite(one.low) else "")
    return [
        f'<text class="{kind}" x="4" y="{at + 4:.1f}">{escape(name[:36])}</text>',
        f'<text class="tick" x="{WIDTH - 4}" y="{at + 4:.1f}" text-anchor="end">{shown}</text>',
    ]
