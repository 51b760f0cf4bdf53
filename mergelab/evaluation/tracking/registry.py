"""The table of trackers, by the names that `log_with` has for them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

from mergelab.checks import did_you_mean, short_repr
from mergelab.errors import OptionError
from mergelab.evaluation.tracking.tracker import Settings, Tracker

_TABLE = {
    "trackio": "mergelab.evaluation.tracking.trackio:Trackio",
    "wandb": "mergelab.evaluation.tracking.wandb:Wandb",
    "tensorboard": "mergelab.evaluation.tracking.tensorboard:TensorBoard",
    "mlflow": "mergelab.evaluation.tracking.mlflow:MLflow",
}
TRACKERS: dict[str, type[Tracker]] = {name: resolve_name(place) for name, place in _TABLE.items()}


def open_trackers(log_with: Sequence[Mapping[str, Any]], folder: Path) -> list[Tracker]:
    """Those that a configuration names, with their packages imported; nothing is written yet.

    Args:
        log_with: a mapping for each: `name`, and what `Settings` and the tracker's own function take.
        folder: the run folder.

    Raises:
        OptionError: there is no such tracker or no such option of it, or its package is not there.
    """
    return [_opened(dict(entry), folder) for entry in log_with]


def _opened(entry: dict[str, Any], folder: Path) -> Tracker:
    name = entry.pop("name", None)
    if name not in TRACKERS:
        raise OptionError(
            f"log_with: there is no tracker {short_repr(name)}; {did_you_mean(str(name), list(TRACKERS))}"
        )
    kind = TRACKERS[name]
    given = {key: entry.pop(key) for key in kind.keys if key in entry}
    for key, value in given.items():
        if not isinstance(value, str) or not value:
            raise OptionError(f"log_with: {name}: {key}: expected a text, got {short_repr(value)}")
    if "dir" in given:
        given["dir"] = Path(given["dir"])
    tracker = kind(Settings(folder, options=entry, **given))
    known = [*kind.keys, *tracker.options()]
    if unknown := next((key for key in entry if key not in known), None):
        raise OptionError(f"log_with: {name} has no option {unknown!r}; {did_you_mean(unknown, known)}")
    return tracker
