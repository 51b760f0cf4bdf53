"""A repository on the Hugging Face Hub: who may write there, what lies there, and one commit."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from mergelab.errors import MergelabError, OutputError
from mergelab.formats import sha256_of
from mergelab.formats.fetching.hub import UNREACHABLE, knock, quiet
from mergelab.formats.messages import one_line
from mergelab.publishing.card import CARD

if TYPE_CHECKING:
    from huggingface_hub import HfApi

Kind = Literal["model", "dataset"]
"""Of a repository."""
_NOTHING = "nothing was uploaded"
_LOG_IN = "log in with `hf auth login`, or set HF_TOKEN to a token that may write"


@dataclass(frozen=True)
class Pushed:
    """What was pushed, or what would be.

    Attributes:
        repo: `user/repo`.
        url: of the commit, or of the pull request; of a folder here its path.
        files: path in the repository -> bytes.
        notes: sentences that a user should know.
    """

    repo: str
    url: str
    files: Mapping[str, int]
    notes: tuple[str, ...] = field(default=())

    def __str__(self) -> str:
        """What was pushed where, line by line."""
        files = (f"  {_size(size):>9}  {name}" for name, size in self.files.items())
        return "\n".join([f"{self.repo}: {self.url}", *files, *(f"  note: {note}" for note in self.notes)])


def _size(count: int) -> str:
    return f"{count / 1e6:.1f} MB" if count >= 1e5 else f"{count / 1e3:.1f} kB"


@dataclass(frozen=True)
class Repository:
    """A repository as it was found.

    Attributes:
        api: of huggingface_hub, with the token.
        account: whose token it is.
        repo, revision: which one, and which branch of it; None for the main one.
        exists: whether it is there.
        has_revision: whether the branch is there, too.
        private: whether others cannot see it; None where it is not there.
        names: of its files.
        commit_seen: the last commit of the branch.
        kind: of a model, or of a dataset.
    """

    api: HfApi
    account: str
    repo: str
    revision: str | None
    exists: bool
    has_revision: bool
    private: bool | None
    names: frozenset[str]
    commit_seen: str | None
    kind: Kind = "model"

    def text_of_card(self) -> str | None:
        """README.md, where there is one."""
        if CARD not in self.names:
            return None
        with told(self.repo, self.account):
            revision = self.revision if self.has_revision else None
            path = self.api.hf_hub_download(self.repo, CARD, revision=revision, repo_type=self.kind)
            return Path(path).read_text(encoding="utf-8")

    def changed(self, files: Mapping[str, Path]) -> list[str]:
        """Those of the files of which it has others under the same names; the card aside."""
        names = [name for name in files if name in self.names and name != CARD]
        if not names:
            return []
        with told(self.repo, self.account):
            revision = self.revision if self.has_revision else None
            found = self.api.get_paths_info(self.repo, names, revision=revision, repo_type=self.kind)
            there = {known.path: known for known in found}
        return [name for name in names if not _is_same(files[name], there.get(name))]

    def commit(self, files: Mapping[str, Path], message: str, private: bool | None, create_pr: bool) -> str:
        """Upload files in one commit, in a repository and on a branch that are made where there are none; its address.

        Raises:
            OutputError: it may not be written, or the Hub cannot be reached or takes no such files; or somebody else
                has pushed since it was looked at.
        """
        from huggingface_hub import CommitOperationAdd

        operations = [CommitOperationAdd(path_in_repo=name, path_or_fileobj=path) for name, path in files.items()]
        if not self.exists:
            with told(self.repo, self.account):
                self.api.create_repo(self.repo, private=private, repo_type=self.kind)
        left = _NOTHING if self.exists else "the repository was made, and no file was uploaded"
        with told(self.repo, self.account, left), _bars_on_a_terminal():
            if not self.has_revision and self.revision:
                self.api.create_branch(self.repo, branch=self.revision, repo_type=self.kind, exist_ok=True)
            done = self.api.create_commit(
                self.repo,
                operations,
                commit_message=message,
                revision=self.revision,
                repo_type=self.kind,
                create_pr=create_pr,
                parent_commit=self.commit_seen if self.has_revision else None,
            )
        return str(done.pr_url or done.commit_url)


def full_name(repo: str, token: str | None) -> str:
    """`user/repo`; the user of a bare name is whoever has the token."""
    if "/" in repo:
        return repo
    return f"{_account(repo, token)[1]}/{repo}"


def look(repo: str, revision: str | None, token: str | None, kind: Kind = "model") -> Repository:
    """The repository as it is.

    Raises:
        OutputError: there is no token, or none that is valid, or the Hub cannot be reached.
    """
    api, account = _account(repo, token)
    exists, has_revision = True, True
    info: Any = None
    with told(repo, account):
        try:
            info = api.repo_info(repo, revision=revision, repo_type=kind)
        except Exception as error:
            if not _is(error, "RepositoryNotFoundError", "RevisionNotFoundError"):
                raise
            exists, has_revision = _is(error, "RevisionNotFoundError"), False
        if exists and not has_revision:
            info = api.repo_info(repo, repo_type=kind)  # of which the branch will be a copy
    names = frozenset(known.rfilename for known in (info.siblings or ())) if info else frozenset()
    private = info.private if info else None
    seen = info.sha if info else None
    has_revision = has_revision or revision is None
    return Repository(api, account, repo, revision, exists, has_revision, private, names, seen, kind)


def _account(repo: str, token: str | None) -> tuple[HfApi, str]:
    """The Hub with a token, and whose it is."""
    from huggingface_hub import HfApi, get_token

    token = token or get_token()
    if token is None:
        raise OutputError(f"{repo}: there is no token for the Hugging Face Hub: {_LOG_IN}")
    api = HfApi(token=token)
    with told(repo, ""):
        knock()
        return api, str(api.whoami()["name"])


def _is_same(path: Path, there: Any) -> bool:
    """Whether a file is what the Hub has."""
    from huggingface_hub.utils.sha import git_hash

    lfs = getattr(there, "lfs", None)
    if lfs is not None:
        return sha256_of(path) == lfs.sha256
    return getattr(there, "blob_id", None) == git_hash(path.read_bytes())


def _is(error: BaseException, *names: str) -> bool:
    """Whether an error is of a class of huggingface_hub, which have moved between versions."""
    return bool({kind.__name__ for kind in type(error).__mro__} & set(names))


@contextmanager
def told(repo: str, account: str, left: str = _NOTHING) -> Iterator[None]:
    """What an error of huggingface_hub means to whoever pushes, and what it leaves; its own lines are not shown."""
    try:
        with quiet():
            yield
    except (MergelabError, KeyboardInterrupt):
        raise
    except Exception as error:
        raise OutputError(f"{repo}: {_reason(account, error)}; {left}") from None


@contextmanager
def _bars_on_a_terminal() -> Iterator[None]:
    """huggingface_hub's bars of uploads go into pipes as well, unless they are told not to."""
    from huggingface_hub import constants
    from huggingface_hub.utils.tqdm import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    asked_for = constants.HF_HUB_DISABLE_PROGRESS_BARS is not None
    if asked_for or are_progress_bars_disabled() or sys.stderr.isatty():
        yield
        return
    disable_progress_bars()
    try:
        yield
    finally:
        enable_progress_bars()


def _reason(account: str, error: Exception) -> str:
    causes = [error, *filter(None, (error.__cause__, error.__context__))]
    status = next((r.status_code for e in causes if (r := getattr(e, "response", None)) is not None), None)
    said = str(getattr(error, "server_message", None) or "").strip()
    if status is None and any(_is(cause, *UNREACHABLE) for cause in causes):
        return "the Hugging Face Hub cannot be reached"
    if status == 401 and not account:
        return f"the Hugging Face Hub does not know the token that it was given: {_LOG_IN}"
    if _is(error, "RepositoryNotFoundError") or status in (401, 403):
        who = f"the token of {account or 'this account'} may not write there{f' ({said})' if said else ''}"
        return f"{who}: {_LOG_IN}, or choose a name of your own"
    if status == 412:
        return "somebody else has pushed there meanwhile; push again"
    if status == 409:
        return f"the name is taken{f' ({said})' if said else ''}; choose another"
    if _is(error, "HFValidationError"):
        return f"expected a name on the Hugging Face Hub, such as 'user/repo': {one_line(error)}"
    # What says that an upload failed names the file, and has the reason as its cause.
    root = error.__cause__ if type(error) is RuntimeError and error.__cause__ else error
    what = said or f"{type(root).__name__}: {one_line(root)}"
    return f"the Hugging Face Hub refuses it{f' (HTTP {status})' if status else ''}: {what}"
