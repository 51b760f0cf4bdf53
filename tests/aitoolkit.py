"""Generate configurations of AI Toolkit: the example files, and such as tests write."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from tests.conftest import ROOT

SINGLE, FLUX, SDXL = (
    ROOT / "experiments" / "aitoolkit" / f"generate_{name}.yaml"
    for name in ("single_lora_flux", "multiple_loras_flux", "multiple_loras_sdxl")
)
LORAS = [{"path": "miniature/sdxl/ghost"}]


def config(model: Any, generate: Any = None, **others: Any) -> dict[str, Any]:
    """A generate job."""
    process = {"type": "to_folder", "output_folder": "output", "model": model, "generate": generate} | others
    return {"job": "generate", "config": {"name": "test", "process": [process]}}


def written(folder: Path, content: Any, name: str = "generate.yaml") -> Path:
    """The file of a configuration."""
    file = folder / name
    file.write_text(
        yaml.safe_dump(content, sort_keys=False) if not isinstance(content, str) else content, encoding="utf-8"
    )
    return file
