"""What a person sees of an object: aligned columns on a terminal, HTML in a notebook."""

from __future__ import annotations

import html
from collections.abc import Sequence


def counted(number: int, thing: str) -> str:
    """A number of things, in words.

    Example:
        >>> counted(1, "layer"), counted(48, "layer")
        ('1 layer', '48 layers')
    """
    return f"{number} {thing}" if number == 1 else f"{number} {thing}s"


def as_text(rows: Sequence[Sequence[str]]) -> str:
    """Rows of cells in aligned columns.

    Example:
        >>> print(as_text([("part", "ranks"), ("unet", "4 x 10")]))
        part  ranks
        unet  4 x 10
    """
    widths = [max(map(len, column)) for column in zip(*rows)]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows)


def as_html(title: str, rows: Sequence[Sequence[str]]) -> str:
    """A titled table, the first row being its head.

    Example:
        >>> as_html("a < b", [("part",), ("unet",)])
        '<b>a &lt; b</b><table><tr><th>part</th></tr><tr><td>unet</td></tr></table>'
    """
    tags = ["th"] + ["td"] * (len(rows) - 1)
    cells = ("".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in row) for tag, row in zip(tags, rows))
    body = "".join(f"<tr>{row}</tr>" for row in cells)
    return f"<b>{html.escape(title)}</b><table>{body}</table>"


def text_as_html(text: str) -> str:
    """Lines of text, as they are.

    Example:
        >>> text_as_html("a < b")
        '<pre>a &lt; b</pre>'
    """
    return f"<pre>{html.escape(text)}</pre>"
