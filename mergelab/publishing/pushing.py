"""Files that are made here, pushed to a repository on the Hub or written to a folder: of an adapter, or of a run."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Protocol

from mergelab.errors import OptionError, OutputError
from mergelab.formats.fetching.hub import by_name
from mergelab.formats.files import replacing
from mergelab.formats.messages import about
from mergelab.publishing.card import CARD
from mergelab.publishing.hub import Kind, Pushed, Repository, full_name, look


class Contents(Protocol):
    """What will lie in a repository, in a folder here.

    Attributes:
        notes: what the user should know, in sentences.
    """

    @property
    def notes(self) -> tuple[str, ...]: ...

    @property
    def files(self) -> Mapping[str, Path]:
        """Path in the repository -> where it lies now."""

    def write_card(self, existing: str | None = None) -> None:
        """README.md, beside what its owner wrote."""

    def beside(self, others: Sequence[str]) -> list[str]:
        """What is to be said of other files in the repository, in sentences."""


@dataclass(frozen=True)
class Destination:
    """Where files go, and what may be done there; arguments are those of `push_to_hub`.

    Attributes:
        kind: of the repository.
        card: whether there will be one.
        message: of the commit.
    """

    repo: str
    revision: str | None = None
    kind: Kind = "model"
    private: bool | None = None
    token: str | None = None
    create_pr: bool = False
    overwrite: bool = False
    card: bool = True
    message: str = ""

    def named(self, on_the_hub: bool) -> Destination:
        """With the full name of the repository, and the revision that stands in it.

        Raises:
            OptionError: it is no name of one, or only the Hub could complete it.
        """
        repo, revision = _named(self.repo, self.revision)
        if on_the_hub:
            repo = full_name(repo, self.token)
        elif "/" not in repo:
            raise OptionError(f"{repo}: expected 'user/repo' beside folder=, the name that the card is to show")
        return replace(self, repo=repo, revision=revision)

    def found(self) -> Repository:
        """The repository as it is; raises where it cannot be pushed to as asked."""
        found = look(self.repo, self.revision, self.token, self.kind)
        if found.private is not None and self.private is not None and found.private != self.private:
            kind = "private" if found.private else "public"
            raise OutputError(
                f"{self.repo}: exists, and is {kind}; leave private= (--private) out, or choose another name"
            )
        return found

    def push(self, make: Callable[[Path], Contents]) -> Pushed:
        """Makes the files, and pushes them in one commit."""
        found = self.found()
        with TemporaryDirectory() as temporary:
            made = make(Path(temporary))
            said = self._write_card(made, found) if self.card else []
            if (changed := found.changed(made.files)) and not self.overwrite and not self.create_pr:
                raise OutputError(
                    f"{self.repo}: has another {changed[0]}; overwrite=True (--force) replaces it, revision= or "
                    "create_pr= (--revision, --create-pr) leave it as it is"
                )
            sizes = {name: path.stat().st_size for name, path in made.files.items()}
            url = found.commit(made.files, self.message, self.private, self.create_pr)
        said += [] if found.exists else ["the repository is new"]
        said += [] if found.has_revision else [f"the branch {found.revision} is new"]
        said += [f"{name} took the place of another" for name in changed]
        return Pushed(self.repo, url, sizes, (*made.notes, *said, *made.beside(sorted(found.names - set(sizes)))))

    def write(self, make: Callable[[Path], Contents], folder: Path) -> Pushed:
        """Makes the files in a folder of the user's, new or empty, and pushes nothing."""
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise OutputError(f"{folder}: exists already, expected a new or an empty folder")
        if not folder.absolute().parent.is_dir():
            raise OutputError(f"{folder}: there is no folder {folder.parent}")
        with replacing(folder) as partial:
            partial.mkdir()
            made = make(partial)
            if self.card:
                made.write_card()
            sizes = {name: path.stat().st_size for name, path in made.files.items()}
        note = f"nothing was pushed; `{self._upload(folder)}` pushes the folder as it is"
        return Pushed(self.repo, str(folder), sizes, (*made.notes, note))

    def _upload(self, folder: Path) -> str:
        """The command of huggingface_hub that pushes a folder as was asked."""
        words = ["hf", "upload", self.repo, str(folder), "."]
        words += ["--repo-type", self.kind] if self.kind != "model" else []
        words += ["--revision", self.revision] if self.revision else []
        words += ["--private"] * bool(self.private) + ["--create-pr"] * self.create_pr
        return shlex.join(words)

    def _write_card(self, made: Contents, found: Repository) -> list[str]:
        """Beside what its owner wrote; what is to be said about that."""
        existing = found.text_of_card()
        try:
            with about(found.repo):
                made.write_card(existing)
        except OutputError as error:
            if not self.overwrite:
                raise OutputError(
                    f"{error}; overwrite=True (--force) replaces it, card=False (--no-card) leaves it as it is"
                ) from None
            made.write_card()
            return [f"{CARD} took the place of the one that was there"]
        return [] if existing is None else [f"{CARD} is written anew where mergelab wrote it; the rest of it is kept"]


def _named(repo: str, revision: str | None) -> tuple[str, str | None]:
    """A repository and its revision, from "user/repo@revision" too."""
    if "/" not in repo:
        return repo, revision
    reference = by_name(repo)
    if reference is None or reference.path:
        raise OptionError(f"{repo}: expected a repository on the Hugging Face Hub, 'user/repo' or 'user/repo@revision'")
    if revision is not None and reference.revision not in (None, revision):
        raise OptionError(f"{repo}: names another revision than revision={revision!r}; give one")
    return reference.repo, revision or reference.revision
