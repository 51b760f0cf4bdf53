"""What an adapter can do about the Hugging Face Hub: `Publishable`."""

from __future__ import annotations

import os
import re
import shlex
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from mergelab.checks import short_repr
from mergelab.errors import OptionError, OutputError
from mergelab.formats import Savable, check_choice, to_dtype
from mergelab.formats.fetching.hub import by_name
from mergelab.formats.files import replacing
from mergelab.formats.messages import about
from mergelab.formats.tools import PACKED
from mergelab.publishing.base_models import check_base_model
from mergelab.publishing.card import CARD
from mergelab.publishing.hub import Pushed, Repository, full_name, look
from mergelab.publishing.staging import Request, Staged, stage


@dataclass(frozen=True, eq=False)
class Publishable(Savable):
    """An adapter that can be pushed to the Hugging Face Hub."""

    @property
    def is_file(self) -> bool:
        """Whether this is a file as it was read."""
        return False

    def push_to_hub(
        self,
        repo: str,
        *,
        private: bool | None = None,
        token: str | None = None,
        commit_message: str | None = None,
        revision: str | None = None,
        create_pr: bool = False,
        format: str | None = None,
        dtype: torch.dtype | str | None = None,
        for_: str | None = None,
        run: str | os.PathLike[str] | None = None,
        base_model: str | None = None,
        license: str | None = None,
        card: bool = True,
        overwrite: bool = False,
        folder: str | os.PathLike[str] | None = None,
    ) -> Pushed:
        """Push the adapter to the Hugging Face Hub, with a model card, in one commit.

        An adapter that was read from a file is pushed byte for byte, unless a format, a tool or a dtype is given. A
        README.md that is there keeps what its owner wrote outside of mergelab's part; one without such a part is not
        touched: the push is refused. Header and card name the inputs that were loaded from the Hub: their repositories'
        names too, of which some may be private.

        Args:
            repo: "user/repo", "user/repo@revision", or "repo" of your own account; made where there is none.
            private: whether a new repository is; None leaves it to the account's settings. One that exists and is
                otherwise is an error.
            token: of the Hub; None: that of `hf auth login`, or HF_TOKEN.
            commit_message: "Upload LoRA with mergelab" unless given.
            revision: a branch, made where there is none.
            create_pr: open a pull request.
            format, dtype, for_: as for `save`.
            run: the folder of an evaluation that drew what is pushed: its pictures and scores go into the card.
            base_model: its name on the Hub; by default the pipeline of the run, or the usual one of the family.
            license: of the adapter, for the card, which names none otherwise.
            card: False pushes no README.md.
            overwrite: whether other files under the same names may be replaced, and a README.md by another hand.
            folder: write there, into a new or empty folder, what would lie in a new repository, and push nothing.

        Returns:
            The address, the files and what there is to say of them.

        Raises:
            OptionError: an option that does not exist or contradicts another; the run drew another adapter, or more of
                it than the file of a tool has a place for.
            OutputError: no token, no permission, no connection; something that is there would be replaced.
            SourceError: the folder of the run holds none.
            FormatError, ArchitectureError: as `save`.

        Example:
            >>> import tempfile
            >>> import mergelab as ml
            >>> with tempfile.TemporaryDirectory() as folder:
            ...     pushed = ml.load("miniature/sdxl/ghost").push_to_hub("user/ghost", folder=f"{folder}/ghost")
            >>> list(pushed.files)
            ['ghost.safetensors', 'README.md']
        """
        check_choice(format, for_)
        if format == PACKED.name:
            raise OptionError(
                f"format={format!r}: a packed file is for one quantised model alone; push with for_='nunchaku' "
                "(--for nunchaku), which nunchaku reads with any of them"
            )
        to_dtype(dtype)
        check_base_model(base_model)
        _check_license(license)
        repo, revision = _named(repo, revision)
        if folder is None:
            repo = full_name(repo, token)
        elif "/" not in repo:
            raise OptionError(f"{repo}: expected 'user/repo' beside folder=, the name that the card is to show")
        request = Request(repo, revision, format, dtype, for_, base_model, license, run, card)
        readable = all(path.suffix in (".safetensors", ".json") for path in self.inputs)
        sources = self.inputs if self.is_file and readable else ()
        if folder is not None:
            return _write(self, sources, Path(folder), request, private, create_pr)
        found = look(repo, revision, token)
        if found.private is not None and private is not None and found.private != private:
            kind = "private" if found.private else "public"
            raise OutputError(f"{repo}: exists, and is {kind}; leave private= (--private) out, or choose another name")
        with TemporaryDirectory() as temporary:
            staged = stage(self, sources, Path(temporary), request)
            said = _write_card(staged, found, overwrite) if card else []
            if (changed := found.changed(staged.files)) and not overwrite and not create_pr:
                raise OutputError(
                    f"{repo}: has another {changed[0]}; overwrite=True (--force) replaces it, revision= or create_pr= "
                    "(--revision, --create-pr) leave it as it is"
                )
            sizes = {name: path.stat().st_size for name, path in staged.files.items()}
            message = commit_message or "Upload LoRA with mergelab"
            url = found.commit(staged.files, message, private, create_pr)
        return Pushed(repo, url, sizes, (*staged.notes, *said, *_beside(found, set(sizes), changed)))


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


def _check_license(license: object) -> None:
    if license is not None and not (isinstance(license, str) and re.fullmatch(r"[a-z0-9][a-z0-9.+-]*", license)):
        raise OptionError(
            f"license={short_repr(license)}: expected an identifier of the Hugging Face Hub in small letters, such as "
            "'mit', 'apache-2.0', 'openrail++' or 'other'"
        )


def _upload(request: Request, folder: Path, private: bool | None, create_pr: bool) -> str:
    """The command of huggingface_hub that pushes a folder as was asked."""
    words = ["hf", "upload", request.repo, str(folder), "."]
    words += ["--revision", request.revision] if request.revision else []
    words += ["--private"] * bool(private) + ["--create-pr"] * create_pr
    return shlex.join(words)


def _write(
    adapter: Savable,
    sources: tuple[Path, ...],
    folder: Path,
    request: Request,
    private: bool | None,
    create_pr: bool,
) -> Pushed:
    """The files in a folder of the user's."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise OutputError(f"{folder}: exists already, expected a new or an empty folder")
    if not folder.absolute().parent.is_dir():
        raise OutputError(f"{folder}: there is no folder {folder.parent}")
    with replacing(folder) as partial:
        partial.mkdir()
        staged = stage(adapter, sources, partial, request)
        if request.card:
            staged.write_card()
        sizes = {name: path.stat().st_size for name, path in staged.files.items()}
    note = f"nothing was pushed; `{_upload(request, folder, private, create_pr)}` pushes the folder as it is"
    return Pushed(request.repo, str(folder), sizes, (*staged.notes, note))


def _write_card(staged: Staged, found: Repository, overwrite: bool) -> list[str]:
    """Beside what its owner wrote; what is to be said about that."""
    existing = found.text_of_card()
    try:
        with about(found.repo):
            staged.write_card(existing)
    except OutputError as error:
        if not overwrite:
            raise OutputError(
                f"{error}; overwrite=True (--force) replaces it, card=False (--no-card) leaves it as it is"
            ) from None
        staged.write_card()
        return [f"{CARD} took the place of the one that was there"]
    return [] if existing is None else [f"{CARD} is written anew where mergelab wrote it; the rest of it is kept"]


def _beside(found: Repository, pushed: set[str], changed: list[str]) -> list[str]:
    """What is to be said of the repository, and of other files in it."""
    said = [] if found.exists else ["the repository is new"]
    said += [] if found.has_revision else [f"the branch {found.revision} is new"]
    said += [f"{name} took the place of another" for name in changed]
    others = sorted(name for name in found.names if name.endswith(".safetensors") and name not in pushed)
    if others:
        said.append(f"the repository also holds {', '.join(others)}: whoever loads one has to name it")
    return said
