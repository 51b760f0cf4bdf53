"""Weights & Biases: one run with summary, tables, pictures and an artifact; WANDB_MODE=offline keeps it here."""

from __future__ import annotations

import inspect
import os
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from PIL import Image

from mergelab.evaluation.store import file_name
from mergelab.evaluation.tracking.tracker import Settings, Tracker, needed


class Wandb(Tracker):
    """What else is given goes to `wandb.init`; its own files lie in `dir`, in WANDB_DIR, or else in the run folder."""

    extra = "wandb"

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self._wandb = needed("wandb", self.extra)
        self._run: Any = None

    def options(self) -> Collection[str]:
        """Of `wandb.init`."""
        ours = {"project", "name", "dir", "config", "reinit"}
        return [name for name in inspect.signature(self._wandb.init).parameters if name not in ours]

    def start(self, config: Mapping[str, Any]) -> None:
        """A run of its own, also beside one that is open."""
        folder = self.settings.dir or Path(os.environ.get("WANDB_DIR") or self.settings.folder)
        folder.mkdir(parents=True, exist_ok=True)
        own = {"project": self.settings.project, "name": self.settings.name, "dir": str(folder)}
        self._run = self._wandb.init(**own, config=dict(config), reinit="create_new", **self.settings.options)

    def log(self, scalars: Mapping[str, float]) -> None:
        """At the first step."""
        self._run.log(dict(scalars), step=0)

    def table(self, name: str, rows: pd.DataFrame) -> None:
        """As a table."""
        self._run.log({name: self._wandb.Table(dataframe=rows)}, step=0)

    def image(self, name: str, image: Image.Image) -> None:
        """As a picture."""
        self._run.log({name: self._wandb.Image(image)}, step=0)

    def artifact(self, files: Sequence[Path]) -> None:
        """One artifact, of which each telling of a run is a version."""
        artifact = self._wandb.Artifact(file_name(self.settings.name) or "run", type="evaluation")
        for path in files:
            artifact.add_file(str(path))
        self._run.log_artifact(artifact)

    def end(self, failed: bool) -> None:
        """Sends what is left."""
        self._run.finish(exit_code=int(failed))
