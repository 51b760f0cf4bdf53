"""A run at one glance: a picture with a row for each prompt and a column for each variant, for each set of adapters."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from functools import cache
from math import ceil, isqrt
from pathlib import Path

import matplotlib
import pandas as pd
from PIL import Image, ImageDraw, ImageFont

from mergelab.evaluation.names import apart, display_name
from mergelab.evaluation.store import file_name

SIDE, LARGEST = 160, 40_000_000
"""Of an image on a sheet, where it has room, and of a whole sheet, in pixels. Small images are enlarged as they are."""
GAP, LINE, SIZE = 6, 16, 13
"""Between images, from one line of text to the next, and the letters' size, in pixels."""
_LINES = 3
"""Of a label; what is longer ends in an ellipsis."""


def contact_sheets(scores: pd.DataFrame, images: Path) -> Iterator[tuple[str, Image.Image]]:
    """Each set's name, as a file's, and its sheet; of each prompt the first seed, a blank where an image is missing.

    Args:
        scores: as in `scores.parquet`.
        images: the folder of the images.
    """
    taken: set[str] = set()
    for name, part in scores.groupby("set", sort=False):
        first = part.drop_duplicates(["prompt", "variant"])
        yield apart(file_name(str(name)) or "set", taken), _sheet(first, images)


def _sheet(cells: pd.DataFrame, images: Path) -> Image.Image:
    variants, prompts = list(dict.fromkeys(cells["variant"])), list(dict.fromkeys(cells["prompt"]))
    files = {(cell.prompt, cell.variant): images / str(cell.image) for cell in cells.itertuples(index=False)}
    side = max(1, min(SIDE, isqrt(LARGEST // ((len(variants) + 1) * (len(prompts) + 1)))))
    step, head = side + GAP, _LINES * LINE + GAP
    size = GAP + step * (len(variants) + 1), GAP + head + step * len(prompts)
    sheet = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(sheet)
    for column, variant in enumerate(variants):
        _label(draw, display_name(variant), (GAP + step * (column + 1), GAP), side, _LINES)
    for row, prompt in enumerate(prompts):
        top = GAP + head + step * row
        _label(draw, prompt, (GAP, top), side, max(1, side // LINE))
        for column, variant in enumerate(variants):
            path = files.get((prompt, variant))
            if path is not None and path.is_file():
                sheet.paste(_tile(path, side), (GAP + step * (column + 1), top))
    return sheet


def _tile(path: Path, side: int) -> Image.Image:
    """An image at the size that it has on a sheet, on white where it is no square."""
    with Image.open(path) as opened:
        image = opened.convert("RGB")
    scale = side / max(image.size)
    way = Image.Resampling.NEAREST if scale > 1 else Image.Resampling.LANCZOS
    small = image.resize((max(1, round(image.width * scale)), max(1, round(image.height * scale))), way)
    tile = Image.new("RGB", (side, side), "white")
    tile.paste(small, ((side - small.width) // 2, (side - small.height) // 2))
    return tile


def _label(draw: ImageDraw.ImageDraw, text: str, place: tuple[int, int], width: int, lines: int) -> None:
    for index, line in enumerate(_wrapped(draw, " ".join(text.split()), width, lines)):
        draw.text((place[0], place[1] + index * LINE), line, fill="black", font=_font())


def _wrapped(draw: ImageDraw.ImageDraw, text: str, width: int, lines: int) -> list[str]:
    """A text in lines of a width; words that are wider are broken."""
    found: list[str] = []
    rest = text
    while rest and len(found) < lines:
        most = range(1, min(len(rest), width) + 1)  # no letter is narrower than a pixel
        end = max(1, bisect_right(most, width, key=lambda count: ceil(draw.textlength(rest[:count], font=_font()))))
        if end < len(rest) and (space := rest.rfind(" ", 0, end + 1)) > 0:
            end = space
        found.append(rest[:end])
        rest = rest[end:].lstrip()
    return [*found[:-1], f"{found[-1][:-1]}…"] if rest else found


@cache
def _font() -> ImageFont.FreeTypeFont:
    """The one that comes with matplotlib: it has more of the world's letters than Pillow's own."""
    return ImageFont.truetype(str(Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf")), SIZE)
