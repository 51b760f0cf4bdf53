"""Web servers, Civitai's among them: a download that goes on where it broke off, and is done once per version."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from email.message import Message
from pathlib import Path, PurePosixPath
from urllib.parse import unquote, urljoin, urlsplit

import requests

from mergelab.errors import SourceError
from mergelab.formats.fetching.cache import BrokenError, Entry, entry
from mergelab.formats.fetching.folders import MissingError, RemoteFolder, shown
from mergelab.formats.messages import one_line
from mergelab.formats.peft_config import PEFT_CONFIG, PEFT_WEIGHTS
from mergelab.formats.tensor_files import PICKLES

_BLOCK = 1 << 16  # what is lost where a connection breaks off
_TIMEOUT = (15, 60)  # seconds to connect, and between two bytes
_LONGEST_NAME = 200  # bytes, of the 255 that file systems allow
_KNOWN = (".safetensors", *PICKLES)
# The variable with the token of a host; a token goes to no other.
_TOKENS = {"civitai.com": "CIVITAI_API_TOKEN", "civitai.red": "CIVITAI_API_TOKEN"}


def fetch(url: str) -> Path:
    """The file at an address; of a PEFT folder, whose address ends in "/", the folder.

    Raises:
        SourceError: no such file, no access, no file but a web page, no connection.
    """
    own = urlsplit(url).path.rpartition("/")[2]
    folder = RemoteFolder(shown(url), lambda name: _download(url if name == own else urljoin(url, name)))
    return folder.fetch_file(own) if own else folder.fetch()


def _download(url: str) -> Path:
    folder, _, name = url.partition("?")[0].rpartition("/")
    place = entry(folder, name) if name in (PEFT_CONFIG, *PEFT_WEIGHTS) else entry(url)
    try:
        return place.complete(lambda: _attempt(url, place))
    except requests.ConnectionError as error:
        if kept := place.whole:
            return kept.path  # as the Hub's cache does without a connection
        raise SourceError(f"{shown(url)}: {urlsplit(url).hostname} cannot be reached: {one_line(error)}") from None
    except requests.RequestException as error:
        raise SourceError(f"{shown(url)}: could not be fetched: {one_line(error)}") from None
    except SourceError as error:
        error.args = (f"{shown(url)}: {error}",)
        raise


def _attempt(url: str, place: Entry) -> Path:
    """Ask for what is not here: the rest of a part, or the file if it is another version than the one that is kept."""
    part, kept = place.part, place.whole
    headers = {"Accept-Encoding": "identity", **_authorization(url)}
    if part:
        headers |= {"Range": f"bytes={part.size}-", "If-Range": part.version}
    elif kept and kept.version:
        headers["If-None-Match" if '"' in kept.version else "If-Modified-Since"] = kept.version
    with requests.get(url, headers=headers, stream=True, timeout=_TIMEOUT) as response:
        if response.status_code == requests.codes.not_modified and kept:
            return kept.path
        start, whole = _range(response)
        if part and (
            response.status_code == requests.codes.requested_range_not_satisfiable or start not in (0, part.size)
        ):
            place.forget_part()
            return _attempt(url, place)
        _check(url, response)
        # A file of unknown length may have been cut short, and is fetched again each time.
        version = "" if whole is None else _version(response)
        return place.write(_name(url, response), version, _blocks(response), start, whole)


def _authorization(url: str) -> dict[str, str]:
    token = os.environ.get(_TOKENS.get(urlsplit(url).hostname or "", ""))
    return {"Authorization": f"Bearer {token}"} if token else {}


def _range(response: requests.Response) -> tuple[int, int | None]:
    """Where in the file an answer starts, and the size of the whole file, if the server says it."""
    partial = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", response.headers.get("Content-Range", ""))
    if response.status_code == requests.codes.partial_content and partial:
        return int(partial[1]), int(partial[2]) if partial[2] != "*" else None
    length = response.headers.get("Content-Length", "")
    return 0, int(length) if length.isdecimal() and "Content-Encoding" not in response.headers else None


def _check(url: str, response: requests.Response) -> None:
    """Raise for an answer that is no file."""
    status, host = response.status_code, urlsplit(url).hostname or ""
    token = (
        f"set {_TOKENS[host]} to a token of your account there"
        if host in _TOKENS
        else f"add a name and a password for {host} to ~/.netrc"
    )
    if status in (401, 403):
        raise SourceError(f"{host} does not give it to anyone (HTTP {status}), and needs a token: {token}")
    if status in (404, 410):
        raise MissingError(f"{host} has no such file (HTTP {status})")
    if not response.ok:
        raise SourceError(f"{host} answers HTTP {status} {response.reason}; try again later")
    if response.headers.get("Content-Type", "").lower().startswith(("text/html", "application/xhtml")):
        hint = f" (on Civitai that of its download button; for some files {token})" if host in _TOKENS else ""
        raise SourceError(f"is a web page, expected a file: give the address of the file itself{hint}")


def _version(response: requests.Response) -> str:
    """What tells this version of a file from others: a strong ETag, or the time of its last change."""
    etag = response.headers.get("ETag", "")
    return etag if etag.startswith('"') else response.headers.get("Last-Modified", "")


def _name(url: str, response: requests.Response) -> str:
    """The name that the server gives the file, or the end of its address; one that names its format comes first."""
    disposition = Message()
    disposition["Content-Disposition"] = response.headers.get("Content-Disposition", "")
    addresses = [unquote(urlsplit(address).path) for address in (url, response.url)]
    given = [name for name in (disposition.get_filename(), *addresses) if name]
    names = [PurePosixPath(name.replace("\\", "/")).name for name in given]
    names = ["".join(c for c in name if c.isprintable()).lstrip(".") for name in names]
    names = [name.encode()[-_LONGEST_NAME:].decode(errors="ignore") for name in names]
    if PurePosixPath(addresses[0]).name in (PEFT_CONFIG, *PEFT_WEIGHTS):
        return PurePosixPath(addresses[0]).name
    known = [name for name in names if name.lower().endswith(_KNOWN)]
    return next(iter([*known, *filter(None, names)]), "adapter")


def _blocks(response: requests.Response) -> Iterator[bytes]:
    try:
        yield from response.iter_content(_BLOCK)
    except requests.RequestException as error:
        raise BrokenError(one_line(error)) from None
