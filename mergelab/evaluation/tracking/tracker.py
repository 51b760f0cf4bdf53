"""What a tracker of experiments is to a run: it is started, told what was found, and ended."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any, ClassVar

import pandas as pd
from PIL import Image

from mergelab.errors import OptionError

PROJECT = "mergelab"
"""What a project is called unless the configuration names one."""


@dataclass(frozen=True)
class Settings:
    """Where a run goes at one tracker.

    Attributes:
        folder: the run folder.
        project: what runs stand beside each other in.
        run: what this one is called; the run folder's name where nothing else is said.
        dir: a folder for what the tracker keeps here; None leaves it to the tracker.
        options: whatever else its own function takes.
    """

    folder: Path
    project: str = PROJECT
    run: str = ""
    dir: Path | None = None
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Of the run."""
        return self.run or self.folder.absolute().name


class Tracker(ABC):
    """One run at one tracker. Its package is imported when it is opened, and nothing is written before `start`.

    Attributes:
        extra: of mergelab, which installs the package.
        keys: of `log_with` that it has a use for, beside those that `options` lists.
    """

    extra: ClassVar[str]
    keys: ClassVar[tuple[str, ...]] = ("project", "run", "dir")

    def __init__(self, settings: Settings) -> None:
        self.settings = settings

    def options(self) -> Collection[str]:
        """Names of what may be passed on to the tracker's own function."""
        return ()

    @abstractmethod
    def start(self, config: Mapping[str, Any]) -> None:
        """Begins the run, with the configuration that it had."""

    @abstractmethod
    def log(self, scalars: Mapping[str, float]) -> None:
        """Numbers by their names, all of them finite."""

    @abstractmethod
    def table(self, name: str, rows: pd.DataFrame) -> None:
        """A table; where a tracker has none, it is kept as text."""

    @abstractmethod
    def image(self, name: str, image: Image.Image) -> None:
        """A picture."""

    @abstractmethod
    def artifact(self, files: Sequence[Path]) -> None:
        """Files as they are; where a tracker keeps none, nothing happens: they lie in the run folder."""

    @abstractmethod
    def end(self, failed: bool) -> None:
        """Ends the run, also one that could not be told in full."""


def needed(module: str, extra: str) -> Any:
    """A module of a package that not everybody has.

    Raises:
        OptionError: it cannot be imported; the sentence has the command that installs it.

    Example:
        >>> needed("no_such_package", "wandb")
        Traceback (most recent call last):
            ...
        mergelab.errors.OptionError: log_with: wandb cannot be imported (No module named 'no_such_package'): pip install
        'mergelab[wandb]'
    """
    try:
        return import_module(module)
    except ImportError as error:
        raise OptionError(f"log_with: {extra} cannot be imported ({error}): pip install 'mergelab[{extra}]'") from None
