"""Small SVG figures for the report: they scale, follow light and dark, and need no script."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from html import escape

from matplotlib.ticker import MaxNLocator

WIDTH, HEIGHT, LEFT, BOTTOM, EDGE = 640, 360, 56, 44, 8
# About a letter of a name, and a line of them.
LETTER, LINE = 6.2, 12
# The part within the axes.
WIDE, HIGH = WIDTH - LEFT - EDGE, HEIGHT - BOTTOM - EDGE
COLORS, DASHES = 8, ("", "7 3", "2 3", "9 3 2 3")
"""Lines differ by colour, then by dashes: 32 are told apart."""

Limits = tuple[float, float]


def limits_of(values: Sequence[float], least: float = 0.0) -> Limits:
    """Limits that hold the values, with a little room, and are no closer than `least`.

    Example:
        >>> limits_of([0.4, 0.6]), limits_of([1.0, 1.0], least=0.1)
        ((0.384, 0.616), (0.942, 1.058))
    """
    low, high = min(values), max(values)
    if high - low < least:
        low, high = (low + high - least) / 2, (low + high + least) / 2
    room = 0.08 * (high - low or 1)
    return round(low - room, 10), round(high + room, 10)


def frame(
    x: Limits, y: Limits, labels: tuple[str, str], upright: Sequence[float] = (), level: Sequence[float] = ()
) -> list[str]:
    """Axes with a few round ticks each, in the units of the data, and guides, upright and level, where in view."""
    parts = [f'<rect class="frame" x="{LEFT}" y="{EDGE}" width="{WIDE}" height="{HIGH}"/>']
    for value in ticks(x):
        parts.append(f'<text class="tick" x="{across(value, x):.0f}" y="{HEIGHT - BOTTOM + 16}" '
                     f'text-anchor="middle">{value:g}</text>')  # fmt: skip
    for value in ticks(y):
        at = up(value, y)
        parts.append(f'<text class="tick" x="{LEFT - 6}" y="{at + 4:.0f}" text-anchor="end">{value:g}</text>')
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - EDGE}" y1="{at:.1f}" y2="{at:.1f}"/>')
    for at in (across(guide, x) for guide in upright if x[0] < guide < x[1]):
        parts.append(f'<line class="guide" x1="{at:.1f}" x2="{at:.1f}" y1="{EDGE}" y2="{EDGE + HIGH}"/>')
    for at in (up(guide, y) for guide in level if y[0] < guide < y[1]):
        parts.append(f'<line class="guide" x1="{LEFT}" x2="{WIDTH - EDGE}" y1="{at:.1f}" y2="{at:.1f}"/>')
    middle = (WIDTH + LEFT) / 2
    parts.append(f'<text class="label" x="{middle}" y="{HEIGHT - 8}" text-anchor="middle">{escape(labels[0])}</text>')
    parts.append(f'<text class="label" transform="translate(14 {(HEIGHT - BOTTOM) / 2}) rotate(-90)" '
                 f'text-anchor="middle">{escape(labels[1])}</text>')  # fmt: skip
    return parts


def ticks(limits: Limits) -> list[float]:
    """A few round values within limits."""
    return [round(float(v), 10) for v in MaxNLocator(5).tick_values(*limits) if limits[0] <= v <= limits[1]]


def across(value: float, limits: Limits) -> float:
    """Where a value lies, from the left."""
    return LEFT + (value - limits[0]) / (limits[1] - limits[0]) * WIDE


def up(value: float, limits: Limits) -> float:
    """Where a value lies, from the top."""
    return EDGE + HIGH - (value - limits[0]) / (limits[1] - limits[0]) * HIGH


def svg(parts: Sequence[str], title: str, height: float = HEIGHT) -> str:
    """A figure of parts, with a title for those who do not see it."""
    return (f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{escape(title)}">'
            f"<title>{escape(title)}</title>{''.join(parts)}</svg>")  # fmt: skip


NAMED = 64
"""Points of a figure up to which all names are written; of more, those of the front. A pointer finds any."""


def scatter(
    points: Mapping[str, tuple[float, float]],
    front: Set[str],
    labels: tuple[str, str],
    named: Set[str] | None = None,
    guides: Sequence[float] = (0.0, 1.0),
) -> str:
    """Points; those of the Pareto front are filled and joined.

    Args:
        points: by their names.
        front: names of those on it.
        labels: of the axes.
        named: which names are written beside their points; None: all, or of very many those of the front. A pointer
            finds any.
        guides: lines at these values of both axes, where they are in view.
    """
    x, y = (limits_of([point[axis] for point in points.values()], least=0.1) for axis in (0, 1))
    place = {name: (across(a, x), up(b, y)) for name, (a, b) in points.items()}
    parts = frame(x, y, labels, guides, guides)
    joined = sorted(place[name] for name in front)
    if len(joined) > 1:
        parts.append(f'<polyline class="front" points="{" ".join(f"{a:.1f},{b:.1f}" for a, b in joined)}"/>')
    for name, (a, b) in place.items():
        kind = "dot on" if name in front else "dot"
        parts.append(f'<circle class="{kind}" cx="{a:.1f}" cy="{b:.1f}" r="5"><title>{escape(name)}</title></circle>')
    beside = _beside(place, front if named is None and len(place) > NAMED else named)
    for name, (left, middle) in beside.items():
        a, b = place[name]
        if abs(middle - b) > LINE:
            end = left if left > a else left + LETTER * len(name)
            parts.append(f'<line class="lead" x1="{a:.1f}" y1="{b:.1f}" x2="{end:.1f}" y2="{middle:.1f}"/>')
        parts.append(f'<text class="name" x="{left:.1f}" y="{middle + 4:.1f}">{escape(name)}</text>')
    return svg(parts, f"{labels[1]} against {labels[0]}")


def _beside(points: Mapping[str, tuple[float, float]], named: Set[str] | None = None) -> dict[str, tuple[float, float]]:
    """Left end and middle of every point's name: as near to it as other names and points allow.

    Example:
        >>> _beside({"a": (300.0, 100.0), "b": (301.0, 100.0)})
        {'a': (309.0, 100.0), 'b': (285.8, 100.0)}
    """
    boxes = [(a - 6, a + 6, b - 6, b + 6) for a, b in points.values()]
    places = {}
    written = {name: point for name, point in points.items() if named is None or name in named}
    for name, (a, b) in sorted(written.items(), key=lambda item: item[1]):
        wide = LETTER * len(name)
        heights = sorted((b + step * LINE / 2 for step in range(-40, 41)), key=lambda height: abs(height - b))
        sides = [side for side in (a + 9, a - 9 - wide) if LEFT < side < WIDTH - EDGE - wide] or [LEFT + 4.0]
        within = [height for height in heights if EDGE + LINE < height < HEIGHT - BOTTOM - LINE]
        spots = [(side, height) for height in within for side in sides]
        free = (spot for spot in spots if not any(_covers(_box(name, *spot), box) for box in boxes))
        left, middle = next(free, spots[0])
        boxes.append(_box(name, left, middle))
        places[name] = (round(left, 1), round(middle, 1))
    return places


def _box(name: str, left: float, middle: float) -> tuple[float, float, float, float]:
    """Left, right, top and bottom of a name."""
    return left, left + LETTER * len(name), middle - LINE / 2, middle + LINE / 2


def _covers(one: tuple[float, ...], other: tuple[float, ...]) -> bool:
    return one[0] < other[1] and other[0] < one[1] and one[2] < other[3] and other[2] < one[3]


def lines(series: Mapping[str, Sequence[float | None]], labels: tuple[str, str], guides: Sequence[float] = ()) -> str:
    """One line for each series along the layers; a missing value breaks the line. A legend stands below."""
    values = [value for line in series.values() for value in line if value is not None] or [0.0]
    longest = max((len(line) for line in series.values()), default=0)
    x, y = (0.0, float(max(longest - 1, 1))), limits_of(values)
    parts = frame(x, y, labels, level=guides)
    for index, (name, line) in enumerate(series.items()):
        path, pen = [], "M"
        for i, value in enumerate(line):
            if value is None:
                pen = "M"
                continue
            path.append(f"{pen}{across(i, x):.1f} {up(value, y):.1f}")
            pen = "L"
        parts.append(f'<path class="line c{index % COLORS}" {_dash(index)} d="{" ".join(path)}"><title>{escape(name)}'
                     "</title></path>")  # fmt: skip
    legend = "".join(
        f'<span><svg class="key" viewBox="0 0 30 8"><path class="line c{i % COLORS}" {_dash(i)} d="M0 4 L30 4"/></svg>'
        f"{escape(name)}</span>"
        for i, name in enumerate(series)
    )
    return f'{svg(parts, f"{labels[1]} along the layers")}<p class="legend">{legend}</p>'


def _dash(index: int) -> str:
    dash = DASHES[index // COLORS % len(DASHES)]
    return f'stroke-dasharray="{dash}"' if dash else ""
