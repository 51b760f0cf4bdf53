"""Web servers, Civitai's among them: a download that goes on where it broke off, and is done once per version."""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Iterator
from email.message import Message
from pathlib import Path, PurePosixPath
from urllib.parse import unquote, urlsplit, urlunsplit

import requests

from mergelab.errors import SourceError
from mergelab.formats.fetching.cache import BrokenError, Entry, entry
from mergelab.formats.fetching.folders import MissingError, RefusedError, RemoteFolder, shown
from mergelab.formats.peft_config import PEFT_CONFIG, PEFT_WEIGHTS
from mergelab.formats.tensor_files import PICKLES

_BLOCK = 1 << 16  # what is lost where a connection breaks off
_TIMEOUT = (15, 60)  # seconds to connect, and between two bytes
_ABSENT = (404, 410)
_LONGEST_NAME = 200  # bytes, of the 255 that file systems allow
_KNOWN = (".safetensors", *PICKLES)
# Why there is no answer, in the order in which it is looked for; what requests says holds the query of the address.
_REASONS: tuple[tuple[type[BaseException], str], ...] = (
    (requests.exceptions.ProxyError, "the proxy does not answer, or does not let it through"),
    (requests.exceptions.SSLError, "its certificate is not accepted, or it does not speak TLS"),
    (requests.Timeout, "no answer in time"),
    (socket.gaierror, "there is no such host"),
    (ConnectionRefusedError, "it refuses the connection"),
    (requests.ConnectionError, "the connection failed"),
    (requests.TooManyRedirects, "it leads from one address to another without an end"),
    (ValueError, "it is no address of the web, or leads to none; check how it is spelt"),
)
# The variable with the token of a host; a token goes to no other, and nowhere unencrypted.
_TOKENS = {"civitai.com": "CIVITAI_API_TOKEN", "civitai.red": "CIVITAI_API_TOKEN"}


def fetch(url: str) -> Path:
    """The file at an address; of a PEFT folder, whose address ends in "/", the folder.

    Raises:
        SourceError: no address, no such file, no access, no file but a web page, no connection.
    """
    try:
        parts = urlsplit(url)
    except ValueError as error:
        raise SourceError(f"{shown(url)}: {_reason(error)}") from None
    own = parts.path.rpartition("/")[2]

    def get(name: str) -> Path:
        # What follows the "?" may be what opens all of a folder.
        beside = f"{parts.path.rpartition('/')[0]}/{name}"
        return _download(url if name == own else urlunsplit((*parts[:2], beside, parts.query, "")))

    folder = RemoteFolder(shown(url), get)
    return folder.fetch_file(own) if own else folder.fetch()


def _download(url: str) -> Path:
    folder, _, name = url.partition("?")[0].rpartition("/")
    place = entry(folder, name) if name in (PEFT_CONFIG, *PEFT_WEIGHTS) else entry(url)
    try:
        return place.complete(lambda: _attempt(url, place))
    except (requests.ConnectionError, requests.Timeout) as error:
        if kept := place.whole:
            return kept.path  # as the Hub's cache does without a connection
        raise SourceError(f"{shown(url)}: {urlsplit(url).hostname} cannot be reached: {_reason(error)}") from None
    except (requests.RequestException, ValueError) as error:  # the latter for redirects to what is no address
        raise SourceError(f"{shown(url)}: could not be fetched: {_reason(error)}") from None
    except SourceError as error:
        error.args = (f"{shown(url)}: {error}",)
        raise


def _reason(error: BaseException) -> str:
    """Why there is no answer, from an error and those that it comes from."""
    chain: list[BaseException] = [error]
    while cause := chain[-1].__cause__ or chain[-1].__context__:
        chain.append(cause)
    words = (text for kind, text in _REASONS if any(isinstance(link, kind) for link in chain))
    return next(words, type(error).__name__)


def _attempt(url: str, place: Entry) -> Path:
    """Ask for what is not here: the rest of a part, or the file if it is another version than the one that is kept."""
    part, kept = place.part, place.whole
    headers = {"Accept-Encoding": "identity", **_authorization(url)}
    compared = kept if kept and kept.version and not part else None
    if part:
        headers |= {"Range": f"bytes={part.size}-", "If-Range": part.version}
    elif compared:
        headers["If-None-Match" if '"' in compared.version else "If-Modified-Since"] = compared.version
    with requests.get(url, headers=headers, stream=True, timeout=_TIMEOUT) as response:
        if response.status_code == requests.codes.not_modified and compared:
            return compared.path
        start, whole = _range(response)
        if part and (
            response.status_code == requests.codes.requested_range_not_satisfiable or start not in (0, part.size)
        ):
            place.forget_part()
            return _attempt(url, place)
        if response.status_code in _ABSENT:
            place.forget()
        _check(url, response)
        # A file of unknown length may have been cut short, and is fetched again each time.
        version = "" if whole is None else _version(response)
        return place.write(_name(url, response), version, _blocks(response), start, whole)


def _authorization(url: str) -> dict[str, str]:
    parts = urlsplit(url)
    token = os.environ.get(_TOKENS.get(parts.hostname or "", "")) if parts.scheme == "https" else None
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
    status, parts = response.status_code, urlsplit(url)
    host = parts.hostname or ""
    encrypted = "" if parts.scheme == "https" else ", and begin the address with https://"
    token = (
        f"set {_TOKENS[host]} to a token of your account there{encrypted}"
        if host in _TOKENS
        else f"add a name and a password for {host} to ~/.netrc"
    )
    if status in (401, 403):
        raise RefusedError(f"{host} does not give it to anyone (HTTP {status}), and needs a token: {token}")
    if status in _ABSENT:
        raise MissingError(f"{host} has no such file (HTTP {status})")
    if not 200 <= status < 300:
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
        raise BrokenError(_reason(error)) from None
