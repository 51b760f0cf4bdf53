"""TensorBoard: a folder of event files, in the run folder unless another is named."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml
from PIL import Image

from mergelab.evaluation.tracking.tracker import Settings, Tracker, needed
from mergelab.tables import as_text

_OURS = ".mergelab"
"""Ends the names of event files: those of an earlier telling of the same run are replaced, others are not touched."""


class TensorBoard(Tracker):
    """Scalars, pictures, and the configuration and tables as text; files stay in the run folder.

    `dir` is a log folder, in which the run has its own of its name; without it, it is `tensorboard` in the run folder.
    """

    extra = "tensorboard"
    keys = ("run", "dir")

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        needed("tensorboard", self.extra)
        self._module = needed("torch.utils.tensorboard", self.extra)
        self._writer: Any = None

    @property
    def folder(self) -> Path:
        """Where the event files go."""
        chosen = self.settings.dir
        return self.settings.folder / "tensorboard" if chosen is None else chosen / self.settings.name

    def options(self) -> Collection[str]:
        """Of `SummaryWriter`."""
        return ("max_queue", "flush_secs")

    def start(self, config: Mapping[str, Any]) -> None:
        """One point of each curve is a run: a second telling takes the place of the first."""
        for earlier in self.folder.glob(f"events.out.tfevents.*{_OURS}"):
            earlier.unlink()
        self._writer = self._module.SummaryWriter(str(self.folder), filename_suffix=_OURS, **self.settings.options)
        text = yaml.safe_dump(dict(config), sort_keys=False, allow_unicode=True)
        self._writer.add_text("config", "".join(f"    {line}\n" for line in text.splitlines()))

    def log(self, scalars: Mapping[str, float]) -> None:
        """At step 0."""
        for name, value in scalars.items():
            self._writer.add_scalar(name, value, 0)

    def table(self, name: str, rows: pd.DataFrame) -> None:
        """As text that keeps its columns."""
        cells = [[*map(str, rows.columns)], *([_cell(value) for value in row] for row in rows.itertuples(index=False))]
        self._writer.add_text(name, "".join(f"    {line}\n" for line in as_text(cells).splitlines()))

    def image(self, name: str, image: Image.Image) -> None:
        """Under its name."""
        self._writer.add_image(name, np.array(image.convert("RGB")), 0, dataformats="HWC")

    def artifact(self, files: Sequence[Path]) -> None:
        """TensorBoard keeps none."""

    def end(self, failed: bool) -> None:
        """Writes what is left."""
        self._writer.close()


def _cell(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
