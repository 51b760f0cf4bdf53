"""The files of a repository, in a folder here, before any of them goes anywhere."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open

from mergelab.errors import MergelabError
from mergelab.formats import Savable, plan
from mergelab.formats.layout import Layout
from mergelab.formats.peft_config import PEFT_CONFIG
from mergelab.layer import AdapterData
from mergelab.publishing.base_models import base_model_of
from mergelab.publishing.card import CARD, Facts, card
from mergelab.publishing.exhibits import exhibit_of
from mergelab.publishing.usage import Place

_WEIGHTS = "pytorch_lora_weights.safetensors"
"""What diffusers looks for where no name is given."""


@dataclass(frozen=True)
class Request:
    """What is to be published, and what to say of it.

    Attributes:
        repo: `user/repo`.
        revision: None for the main branch.
        format, dtype, for_: as for `save`; without any of them a file is published as it was read, byte for byte.
        base_model: its name on the Hub, where it is another than the usual one.
        license: of the adapter; without one the card names none.
        run: the folder of an evaluation that drew what is published.
        card: whether there will be one.
    """

    repo: str
    revision: str | None = None
    format: str | None = None
    dtype: torch.dtype | str | None = None
    for_: str | None = None
    base_model: str | None = None
    license: str | None = None
    run: str | os.PathLike[str] | None = None
    card: bool = True


@dataclass(frozen=True)
class Staged:
    """What will lie in the repository.

    Attributes:
        folder: where it lies now.
        facts: what the card will say.
        notes: what the user should know, in sentences.
    """

    folder: Path
    facts: Facts
    notes: tuple[str, ...]

    @property
    def files(self) -> dict[str, Path]:
        """Path in the repository -> where it lies now; weights first, then the card, then pictures."""
        found = {path.relative_to(self.folder).as_posix(): path for path in self.folder.rglob("*") if path.is_file()}
        return dict(sorted(found.items(), key=lambda item: (item[0].startswith("images/"), item[0] == CARD, item[0])))

    def write_card(self, existing: str | None = None) -> None:
        """README.md, beside what its owner wrote; raises as `card` does."""
        (self.folder / CARD).write_text(card(self.facts, existing), encoding="utf-8", newline="\n")

    def beside(self, others: Sequence[str]) -> list[str]:
        """Loaders take the one file of weights, and ask where there are several."""
        weights = [name for name in others if name.endswith(".safetensors")]
        return [f"the repository also holds {', '.join(weights)}: whoever loads one has to name it"] if weights else []


def stage(adapter: Savable, sources: Sequence[Path], folder: Path, request: Request) -> Staged:
    """Weights and pictures in a folder; the card is written when it is known what lies in the repository.

    Args:
        adapter: what is published.
        sources: the files that it was read from, to be published as they are; none for an adapter that was made.
        folder: an empty one.
        request: what is asked.

    Raises:
        as `save` and `exhibit_of` do.
    """
    if sources and not (request.format or request.dtype or request.for_):
        data, format, left_out, said = _copied(adapter, sources, folder)
    else:
        data, format, left_out, said = _written(adapter, folder, request)
    place = _place(folder, request, next(iter(data.layers), "model").partition(".")[0])
    exhibit = None if request.run is None else exhibit_of(request.run, data)
    base = base_model_of(data, request.base_model, exhibit.base_model if exhibit else None)
    for picture in exhibit.pictures if exhibit else ():
        (folder / picture.name).parent.mkdir(exist_ok=True)
        shutil.copyfile(picture.path, folder / picture.name)
    facts = Facts(data, format, place, base, left_out, request.license, exhibit)
    return Staged(folder, facts, (*said, *([base.note] if base.note and request.card else [])))


_Weights = tuple[AdapterData, str | None, tuple[str, ...], list[str]]
"""What the file holds, its format, what has no place in the file of a tool, and what else is to be said."""


def _copied(adapter: Savable, sources: Sequence[Path], folder: Path) -> _Weights:
    """The files as they were read; folders of components keep their names."""
    parents = {path.parent for path in sources}
    for path in sources:
        target = folder / (path.name if len(parents) == 1 else f"{path.parent.name}/{path.name}")
        target.parent.mkdir(exist_ok=True)
        shutil.copyfile(path, target)
    return adapter, adapter.dialect if _is_as_written(adapter, sources) else None, (), []


def _is_as_written(adapter: Savable, sources: Sequence[Path]) -> bool:
    """Whether files have the keys that mergelab writes in their format, for which it is known what other tools read.

    Trainers spell a format in ways of their own; alphas are read by all.
    """
    if adapter.dialect in ("diffusers", "peft"):
        return True
    try:
        written = set(adapter.state_dict(adapter.dialect)) if adapter.dialect else set()
    except MergelabError:
        return False
    keys: set[str] = set()
    for path in sources:
        with safe_open(path, framework="pt") as file:
            keys |= set(file.keys())
    return {key for key in keys ^ written if not key.endswith(".alpha")} == set()


def _written(adapter: Savable, folder: Path, request: Request) -> _Weights:
    chosen = plan(adapter, request.format, request.for_, measure=False)
    format, layout = chosen.layout.format, chosen.layout
    name = "weights" if layout.is_folder else _WEIGHTS if format == "diffusers" else _file_name(request.repo)
    written = adapter.write(folder / name, request.format, request.dtype, True, request.for_)
    if written.path.is_dir():
        for path in list(written.path.iterdir()):
            path.rename(folder / path.name)
        written.path.rmdir()
    known = None if layout != Layout(format) else adapter.dialect if format == "same" else format
    left_out = written.notes if request.for_ else ()
    return chosen.data, known, left_out, [line.strip().removeprefix("note: ") for line in written.lines()]


def _place(folder: Path, request: Request, component: str) -> Place:
    """Where the weights will lie."""
    parents = {path.parent for path in folder.rglob(PEFT_CONFIG)}
    folders = {component if parent == folder else parent.name: parent for parent in sorted(parents)}
    weights = next((path.name for path in folder.glob("*.safetensors")), "")
    inside = {name: "" if parent == folder else parent.name for name, parent in folders.items()}
    return Place(request.repo, request.revision, "" if folders else weights, inside)


def _file_name(repo: str) -> str:
    return f"{repo.rpartition('/')[2].removesuffix('.safetensors')}.safetensors"
