"""The images of the grid, small enough to stand in the page."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from typing import Any

from PIL import Image

from mergelab.evaluation.result import Result
from mergelab.evaluation.store import Store
from mergelab.evaluation.variants import Variant

THUMBNAIL = 256
"""Longer side, in pixels, of the images inside the report; the run folder has them whole."""
SMALL = 96
"""Up to this many pixels a side, they should be seen as they are."""


def rows_of_images(result: Result, variants: Sequence[Variant], prompt: str) -> dict[str, Any]:
    """The images of a prompt: a row for each seed, a column for each variant."""
    rows = [[_image(result, variant, prompt, seed) for variant in variants] for seed in result.config.seeds]
    return {"prompt": prompt, "rows": rows}


def _image(result: Result, variant: Variant, prompt: str, seed: int) -> dict[str, str]:
    key = variant.requests[prompt, seed]
    path = Store(result.folder).image_path(key)
    label = f"{variant.name.display}: {prompt}, seed {seed}"
    if not path.exists():
        return {"source": "", "full": "", "label": f"{label}: failed"}
    data, kind = path.read_bytes(), "png"
    with Image.open(path) as image:
        if max(image.size) > THUMBNAIL:
            small = image.convert("RGB")
            small.thumbnail((THUMBNAIL, THUMBNAIL))
            buffer = io.BytesIO()
            small.save(buffer, format="JPEG", quality=88)
            data, kind = buffer.getvalue(), "jpeg"
    source = f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
    return {"source": source, "full": f"images/{key}.png", "label": label}


def are_small(result: Result, variants: Sequence[Variant]) -> bool:
    """Whether each pixel of the images should be seen."""
    for key in (key for variant in variants for key in variant.requests.values()):
        path = Store(result.folder).image_path(key)
        if path.exists():
            with Image.open(path) as image:
                return max(image.size) <= SMALL
    return False
