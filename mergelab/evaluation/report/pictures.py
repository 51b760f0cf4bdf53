"""The images of the grid, small enough to stand in the page."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from mergelab.evaluation.report.lookup import named
from mergelab.evaluation.result import Result
from mergelab.evaluation.sets import AdapterSet, Called
from mergelab.evaluation.store import Store
from mergelab.evaluation.variants import Variant

THUMBNAIL = 256
"""Longer side, in pixels, of the images inside the report; the run folder has them whole."""
SMALL = 96
"""Up to this many pixels a side, they should be seen as they are."""
ROOM = 11_000_000
"""Bytes that the images may take in the page; of each set the first prompts, the others are linked."""

Shown = Mapping[str, str]
"""An image of the page: its source, empty where it failed or is linked only; the whole one; what it is."""


@dataclass
class Room:
    """How many bytes are left for images."""

    left: float

    def take(self, images: Sequence[Shown]) -> None:
        """The images are in the page."""
        self.left -= sum(len(image["source"]) for image in images)


def pictures(result: Result, variants: Sequence[Variant]) -> list[dict[str, Any]]:
    """For each set of adapters its prompts, for each prompt a row for each seed and a column for each variant."""
    rooms = [(one, Room(ROOM / len(result.sets))) for one in result.sets]
    found = []
    for one, room in rooms:
        own = [variant for variant in variants if variant.set == one.name]
        names = named(result, [variant.name for variant in own])
        prompts = [_grid(result, one, own, prompt, room) for prompt in one.prompts]
        heads = [{"short": names[str(variant.name)], "full": variant.name.display} for variant in own]
        found.append({"name": one.name, "heads": heads, "prompts": prompts})
    return found


def _grid(result: Result, one: AdapterSet, own: Sequence[Variant], prompt: Called, room: Room) -> dict[str, Any]:
    """The images of a prompt; links alone where there is no room left."""
    inside = room.left > 0
    seeds = result.config.seeds
    drawn = [[image_of(result, variant, prompt.text, seed, inside=inside) for variant in own] for seed in seeds]
    rows = [{"seed": seed, "images": images} for seed, images in zip(seeds, drawn)]
    room.take([image for images in drawn for image in images])
    calls = [role for role in one.adapters if role in prompt.calls]
    return {"prompt": prompt.text, "calls": ", ".join(calls) or "no adapter", "rows": rows, "inside": inside}


def image_of(result: Result, variant: Variant, prompt: str, seed: int, *, inside: bool = True) -> dict[str, str]:
    """One image: inside the page, or linked only."""
    key = variant.requests[prompt, seed]
    path = Store(result.folder).image_path(key)
    of = f" · {variant.set}" if len(result.sets) > 1 else ""
    label = f"{variant.name.display}{of} · {prompt} · seed {seed}"
    return picture(path, f"images/{key}.png", label, inside=inside)


def picture(path: Path, full: str, label: str, *, inside: bool = True) -> dict[str, str]:
    """One file of the run as an image of the page.

    Args:
        path: of the file; one that is not there failed.
        full: the same, as the page links to it.
        label: what it is.
        inside: whether the page holds it, small, or links to it only.
    """
    if not path.exists():
        return {"source": "", "full": "", "label": f"{label}: failed"}
    if not inside:
        return {"source": "", "full": full, "label": label}
    data, kind = path.read_bytes(), "png"
    with Image.open(path) as image:
        if max(image.size) > THUMBNAIL:
            small = image.convert("RGB")
            small.thumbnail((THUMBNAIL, THUMBNAIL))
            buffer = io.BytesIO()
            small.save(buffer, format="JPEG", quality=88)
            data, kind = buffer.getvalue(), "jpeg"
    return {"source": f"data:image/{kind};base64,{base64.b64encode(data).decode()}", "full": full, "label": label}


def are_small(result: Result, variants: Sequence[Variant]) -> bool:
    """Whether each pixel of the images should be seen."""
    keys = (key for variant in variants for key in variant.requests.values())
    return any_small(Store(result.folder).image_path(key) for key in keys)


def any_small(paths: Iterable[Path]) -> bool:
    """Whether each pixel should be seen of these images, which are all of one size."""
    for path in paths:
        if path.exists():
            with Image.open(path) as image:
                return max(image.size) <= SMALL
    return False
