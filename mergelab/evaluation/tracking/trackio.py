"""Trackio: one run in its local database, or in a Space with `space_id`."""

from __future__ import annotations

import inspect
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from PIL import Image

from mergelab.evaluation.store import file_name
from mergelab.evaluation.tracking.tracker import Settings, Tracker, needed


class Trackio(Tracker):
    """What else is given goes to `trackio.init`. Where it keeps runs here, TRACKIO_DIR alone decides."""

    extra = "trackio"
    keys = ("project", "run")

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self._trackio = needed("trackio", self.extra)
        self._run: Any = None

    def options(self) -> Collection[str]:
        """Of `trackio.init`."""
        ours = {"project", "name", "config", "settings"}
        return [name for name in inspect.signature(self._trackio.init).parameters if name not in ours]

    def start(self, config: Mapping[str, Any]) -> None:
        """Nothing of the machine is recorded: the run is over."""
        quiet = {"embed": False, "auto_log_gpu": False, "auto_log_cpu": False}
        own = {"project": self.settings.project, "name": self.settings.name, "config": dict(config)}
        self._run = self._trackio.init(**own, **(quiet | dict(self.settings.options)))

    def log(self, scalars: Mapping[str, float]) -> None:
        """At the first step."""
        self._run.log(dict(scalars), step=0)

    def table(self, name: str, rows: pd.DataFrame) -> None:
        """As a table."""
        self._run.log({name: self._trackio.Table(dataframe=rows)}, step=0)

    def image(self, name: str, image: Image.Image) -> None:
        """As a picture."""
        self._run.log({name: self._trackio.Image(image)}, step=0)

    def artifact(self, files: Sequence[Path]) -> None:
        """One artifact, of which each telling of a run is a version."""
        artifact = self._trackio.Artifact(file_name(self.settings.name) or "run", type="evaluation")
        for path in files:
            artifact.add_file(str(path))
        self._run.log_artifact(artifact)

    def end(self, failed: bool) -> None:
        """Sends what is left."""
        self._run.finish()
