"""A small search on the miniature SDXL, which the tests vary."""

from __future__ import annotations

from typing import Any

SMALL: dict[str, Any] = {
    "pipeline": "miniature/sdxl",
    "loras": ["miniature/sdxl/fish", "miniature/sdxl/stripes"],
    "prompts": ["a qrv in vtx style", "a large qrv in vtx style", "a qrv", "a red circle in vtx style", "a red square"],
    "seeds": 1,
    "settings": 9,
    "images": 1,
    "keep": 2,
    "more": 0,
    "generation": {"steps": 2, "batch": 8},
}
"""Two prompts that call both adapters, one for each alone, and one that calls none: four are searched on."""
