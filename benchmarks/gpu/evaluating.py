"""An evaluation of a pipeline of real size, and the seconds that adapters take to come and go in it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import nn

import mergelab as ml
from benchmarks.gpu.pipelines import real_pipeline
from benchmarks.gpu.session import Found, Session
from benchmarks.measuring import timed
from benchmarks.synthetic import write_adapter

PROMPTS = ["a photo of a sks on a gray background", "a sks in szn style"]


class Real:
    """One pipeline of real size, for the units that use it; `close` lets it go."""

    def __init__(self, session: Session, arch: str) -> None:
        self._session, self._arch = session, arch
        self._pipe: Any = None
        self._files: list[Path] = []

    def build(self) -> Found:
        """Makes it on the device, and two adapters for all linear layers of its blocks."""
        arch, session = self._arch, self._session
        self._pipe = real_pipeline(arch, session.device, session.small)
        component, part = ("transformer", "transformer_blocks.") if arch == "flux" else ("unet", "attentions.")
        model: nn.Module = getattr(self._pipe, component)
        layers = {
            f"{component}.{name}": tuple(module.weight.shape)
            for name, module in model.named_modules()
            if isinstance(module, nn.Linear) and part in name
        }
        self._files = session.files.get(arch, [])[:2]
        if layers != session.layers.get(arch):
            paths = [session.folder / f"{arch}-of-pipeline-{index}.safetensors" for index in range(2)]
            self._files = [
                write_adapter(path, layers, session.rank, index, session.device) for index, path in enumerate(paths)
            ]
        weights = sum(p.numel() for p in model.parameters())
        return {"weights": f"{weights / 1e9:.2f} billion", "adapted_layers": len(layers)} | self._memory()

    def evaluate(self) -> Found:
        """Two adapters, two merges, two prompts, one seed: seconds by part, from the run's own summary.

        Raises:
            AssertionError: cells of the evaluation failed.
        """
        small = self._session.small
        size, text = (64, 16) if small else (512, 512)
        options = {"max_sequence_length": text} if self._arch == "flux" else {}
        named = [
            {"path": str(path), "name": name, "concept": concept}
            for path, name, concept in zip(self._files, ("first", "second"), ("a photo of a sks", "in szn style"))
        ]
        config = {
            "loras": named,
            "merges": [{"method": "svd", "rank": self._session.rank}, {"method": "ties", "space": "core"}],
            "prompts": PROMPTS[: 1 if small else 2],
            "seeds": 1,
            "clip": {"model": "miniature"},
            "lpips": "miniature",
            "generation": {"steps": 2 if small else 4, "width": size, "height": size, "batch": 2, "options": options},
            "device": self._session.device,
        }
        with TemporaryDirectory(dir=self._session.folder) as folder:
            result = ml.evaluate(config, folder, pipeline=self._pipe, progress=False)
            summary = json.loads((Path(folder) / "summary.json").read_text(encoding="utf-8"))
        if result.failures:
            raise AssertionError(f"cells failed: {result.failures}")
        costs = {name: cost.get("seconds per image") for name, cost in summary["costs"].items()}
        return {
            "seconds": {name: round(value, 2) for name, value in summary["seconds"].items()},
            "per_image": {name: round(value, 3) for name, value in costs.items() if value is not None},
            "notes": summary["notes"],
        } | self._memory()

    def swap(self) -> Found:
        """Seconds of fusing, taking back, applying and removing, one adapter and two."""
        found = {}
        for count, word in ((1, "one"), (2, "two")):
            files = self._files[:count]
            fused, found[f"fuse_{word}"] = timed(partial(ml.fuse, self._pipe, files))
            _, found[f"unfuse_{word}"] = timed(fused.unfuse)
            _, found[f"apply_{word}"] = timed(partial(ml.apply, self._pipe, files))
            _, found[f"remove_{word}"] = timed(partial(ml.remove, self._pipe))
        return found | self._memory()

    def _memory(self) -> dict[str, float]:
        return {"peak_gb": torch.cuda.max_memory_allocated() / 1e9} if self._session.is_cuda else {}

    def close(self) -> None:
        """Lets the pipeline go."""
        self._pipe = None


@contextmanager
def real(session: Session, arch: str) -> Iterator[Real]:
    """With a pipeline that is let go at the end."""
    if session.is_cuda:
        torch.cuda.reset_peak_memory_stats()
    found = Real(session, arch)
    try:
        yield found
    finally:
        found.close()
