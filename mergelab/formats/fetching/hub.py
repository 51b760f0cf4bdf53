"""The Hugging Face Hub: names such as `user/repo@revision/file.safetensors`, and the addresses of its pages."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote, unquote, urlsplit

from mergelab.errors import SourceError
from mergelab.formats.fetching.folders import MissingError, RemoteFolder, shown
from mergelab.formats.messages import one_line
from mergelab.formats.tensor_files import PICKLES

REPO = r"(?P<repo>[\w-][\w.-]*/[\w-][\w.-]*)"
"""A name on the Hub, as a regular expression of ASCII letters."""
_REVISION = r"(?P<revision>refs/(?:pr|convert|heads)/[^/]+|[^/]+)"
_PATH = r"(?P<path>[^/]+(?:/[^/]+)*)"
_NAME = re.compile(rf"{REPO}(?:@{_REVISION})?(?:/{_PATH})?/?", re.ASCII)
_PAGE = re.compile(rf"/{REPO}(?:/(?:resolve|blob|raw|tree)/{_REVISION}(?:/{_PATH})?)?/?", re.ASCII)
_OTHERS = ("datasets", "spaces", "buckets", "api", "docs", "collections", "papers")  # no users, and no models
_PATIENCE = 10  # seconds to wait for the first answer
# Names of classes of huggingface_hub and of what it stands on, which have moved between versions.
UNREACHABLE = ("TransportError", "ConnectionError", "Timeout", "OfflineModeIsEnabled", "LocalEntryNotFoundError")


@dataclass(frozen=True)
class Reference:
    """A file or a folder of a model repository.

    Attributes:
        repo: `user/repo`.
        revision: a branch, a tag, a commit or `refs/pr/1`; None: the main branch.
        path: inside the repository; empty: all of it.
    """

    repo: str
    revision: str | None = None
    path: str = ""

    def fetch(self, source: str) -> Path:
        """The file in the Hub's cache, which is shared with other tools and goes on with downloads that broke off.

        Args:
            source: as the user gave it, for messages.

        Raises:
            SourceError: it is not there, is private or gated, or cannot be reached.
        """
        if self.path.lower().endswith((".safetensors", *PICKLES)):
            return RemoteFolder(source, lambda name: self._download(source, name)).fetch_file(self.path)
        names = self._names(source)
        if self.path in names:
            return self._download(source, self.path)
        start = f"{self.path}/" if self.path else ""
        inside = [name.removeprefix(start) for name in names if name.startswith(start)]
        if not inside:
            raise MissingError(f"{source}: the repository {self._shown} has no file or folder {self.path!r}")
        return RemoteFolder(source, lambda name: self._download(source, start + name), lambda: inside).fetch()

    def __str__(self) -> str:
        """As `by_name` reads it."""
        revision = (
            f"@{quote(self.revision, safe='/' if self.revision.startswith('refs/') else '')}" if self.revision else ""
        )
        return f"{self.repo}{revision}{'/' if self.path else ''}{self.path}"

    @property
    def _shown(self) -> str:
        return f"{self.repo} at revision {self.revision!r}" if self.revision else self.repo

    def _names(self, source: str) -> list[str]:
        from huggingface_hub import HfApi

        try:
            knock()
            with quiet():
                return list(HfApi().list_repo_files(self.repo, revision=self.revision))
        except Exception as error:
            raise self._sentence(source, self.path or "the list of its files", error) from None

    def _download(self, source: str, name: str) -> Path:
        from huggingface_hub import hf_hub_download, try_to_load_from_cache

        try:
            if not isinstance(try_to_load_from_cache(self.repo, name, revision=self.revision), str):
                knock()
            with quiet():
                return Path(hf_hub_download(self.repo, name, revision=self.revision))
        except Exception as error:
            raise self._sentence(source, name, error) from None

    def _sentence(self, source: str, name: str, error: Exception) -> SourceError:
        """What an error of huggingface_hub, whose classes have moved between versions, means to a user."""
        kinds = {kind.__name__ for kind in type(error).__mro__}
        account = "log in with `hf auth login`, or set HF_TOKEN"
        if kinds & set(UNREACHABLE):
            reason = f"the Hugging Face Hub cannot be reached, and its cache here lacks {name} of {self._shown}"
            if not self.path:
                reason += "; without a connection, name the file, too"
        elif "GatedRepoError" in kinds:
            reason = f"the repository {self.repo} is gated: accept its terms on the Hugging Face Hub, then {account}"
        elif "RepositoryNotFoundError" in kinds:
            reason = f"the Hugging Face Hub shows no repository {self.repo}; if it is private, {account}"
        elif "RevisionNotFoundError" in kinds:
            reason = f"the repository {self.repo} has no revision {self.revision!r}"
        elif "EntryNotFoundError" in kinds:
            return MissingError(f"{source}: the repository {self._shown} has no file {name}")
        else:
            what = f"{type(error).__name__}: {one_line(error)}"
            reason = f"it could not be fetched from the Hugging Face Hub: {what}"
        return SourceError(f"{source}: {reason}")


def knock() -> None:
    """Raise at once where the Hub cannot be reached: huggingface_hub would try for half a minute."""
    from huggingface_hub import constants, get_session

    get_session().head(constants.ENDPOINT, timeout=_PATIENCE)


@contextmanager
def quiet() -> Iterator[None]:
    """Without huggingface_hub's lines on each attempt; what comes of them is one sentence."""
    logger = logging.getLogger("huggingface_hub")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)


def by_name(source: str) -> Reference | None:
    """What a name on the Hub refers to; None for what cannot be one.

    Example:
        >>> by_name("user/repo@refs/pr/1/loras/style.safetensors")
        Reference(repo='user/repo', revision='refs/pr/1', path='loras/style.safetensors')
        >>> by_name("style.safetensors"), by_name("loras/style.safetensors")
        (None, None)
    """
    match = _NAME.fullmatch(source)
    if not match or (not match["path"] and not match["revision"] and source.endswith((".safetensors", *PICKLES))):
        return None
    return _reference(match["repo"], match["revision"], match["path"])


def by_address(url: str) -> Reference | None:
    """What `hf://...` or the address of a page or a file of a model on the Hub refers to; None for other addresses.

    Raises:
        SourceError: an `hf://` address of something that is no model.

    Example:
        >>> by_address("https://huggingface.co/user/repo/resolve/main/style.safetensors?download=true")
        Reference(repo='user/repo', revision='main', path='style.safetensors')
        >>> by_address("https://example.org/user/repo")
    """
    from huggingface_hub import constants

    if url.lower().startswith("hf://"):
        match = _NAME.fullmatch(url[len("hf://") :])
        if not match or match["repo"].partition("/")[0] in _OTHERS:
            raise SourceError(
                f"{shown(url)}: expected a model on the Hugging Face Hub, as hf://user/repo/file.safetensors"
            )
        return _reference(match["repo"], match["revision"], match["path"])
    if not url.lower().startswith(("http://", "https://")):
        return None
    try:
        parts = urlsplit(url)
    except ValueError:
        return None
    hosts = ("huggingface.co", "www.huggingface.co", "hf.co", urlsplit(constants.ENDPOINT).netloc)
    match = _PAGE.fullmatch(parts.path) if parts.scheme in ("http", "https") and parts.netloc in hosts else None
    if not match or match["repo"].partition("/")[0] in _OTHERS:
        return None
    return _reference(match["repo"], match["revision"], unquote(match["path"] or ""))


def _reference(repo: str, revision: str | None, path: str | None) -> Reference:
    return Reference(repo, unquote(revision) if revision else None, path or "")
