"""MLflow: parameters, metrics, tables and artifacts of one run of an experiment."""

from __future__ import annotations

import json
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from PIL import Image

from mergelab.errors import OptionError
from mergelab.evaluation.tracking.tracker import Settings, Tracker, needed

_BATCH, _PARAMETERS = 1000, 100
"""How many metrics and parameters one request may hold."""
_LONGEST = 6000
"""Characters of a parameter's value; the whole configuration is an artifact as well."""


class MLflow(Tracker):
    """`project` is the experiment; `tracking_uri` is what MLflow takes, and its own default where it is left out.

    With `dir` the run is kept there, in a database of SQLite and a folder of artifacts.
    """

    extra = "mlflow"

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self._mlflow = needed("mlflow", self.extra)
        if settings.dir is not None and "tracking_uri" in settings.options:
            raise OptionError("log_with: mlflow: dir and tracking_uri both say where the run goes; give one")
        self._client: Any = None
        self._run = ""

    def options(self) -> Collection[str]:
        """Where the server is, and what is said of the run."""
        return ("tracking_uri", "tags", "description")

    def start(self, config: Mapping[str, Any]) -> None:
        """In the experiment, which is made where there is none."""
        options, folder = dict(self.settings.options), self.settings.dir
        address, place = options.pop("tracking_uri", None), None
        if folder is not None and address is None:
            folder.mkdir(parents=True, exist_ok=True)
            address = f"sqlite:///{folder.absolute() / 'mlflow.db'}"
            place = (folder.absolute() / "artifacts").as_uri()
        self._client = self._mlflow.MlflowClient(tracking_uri=address)
        found = self._client.get_experiment_by_name(self.settings.project)
        experiment = found.experiment_id if found else self._client.create_experiment(self.settings.project, place)
        tags = {str(key): str(value) for key, value in options.pop("tags", {}).items()}
        if note := options.pop("description", None):
            tags["mlflow.note.content"] = note
        self._run = self._client.create_run(experiment, run_name=self.settings.name, tags=tags).info.run_id
        self._client.log_dict(self._run, dict(config), "config.yaml")
        parameters = [self._mlflow.entities.Param(*known) for known in _flat(config)]
        for first in range(0, len(parameters), _PARAMETERS):
            self._client.log_batch(self._run, params=parameters[first : first + _PARAMETERS])

    def log(self, scalars: Mapping[str, float]) -> None:
        """At step 0."""
        now = int(time.time() * 1000)
        metrics = [self._mlflow.entities.Metric(name, value, now, 0) for name, value in scalars.items()]
        for first in range(0, len(metrics), _BATCH):
            self._client.log_batch(self._run, metrics=metrics[first : first + _BATCH])

    def table(self, name: str, rows: pd.DataFrame) -> None:
        """As an artifact that its pages show as a table."""
        self._client.log_table(self._run, rows, f"{name}.json")

    def image(self, name: str, image: Image.Image) -> None:
        """As an artifact."""
        self._client.log_image(self._run, image, f"{name}.png")

    def artifact(self, files: Sequence[Path]) -> None:
        """As they are."""
        for path in files:
            self._client.log_artifact(self._run, str(path))

    def end(self, failed: bool) -> None:
        """Finished, or failed."""
        self._client.set_terminated(self._run, "FAILED" if failed else "FINISHED")


def _flat(content: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """Parameters: a value for each dotted key; lists are one value.

    Example:
        >>> dict(_flat({"seeds": [0, 1], "generation": {"steps": 4, "batch": None}}))
        {'seeds': '[0, 1]', 'generation.steps': '4', 'generation.batch': 'null'}
    """
    if isinstance(content, Mapping) and content:
        for name, value in content.items():
            yield from _flat(value, f"{key}.{name}" if key else str(name))
    elif key:
        text = content if isinstance(content, str) else json.dumps(content, ensure_ascii=False, default=str)
        yield key, text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"
