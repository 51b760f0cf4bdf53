"""Where adapters come from: the Hugging Face Hub, web servers, object stores; what is fetched becomes a local path."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import unquote

from mergelab.errors import SourceError
from mergelab.formats.fetching import hub, stores, web
from mergelab.formats.fetching.folders import public, shown

__all__ = ["fetch", "is_address", "public", "said", "shown"]


def is_address(source: str) -> bool:
    """Whether a source is an address (`https://...`, `s3://...`, `hf://...`), and no path or name."""
    return "://" in source


def said(source: str, path: Path) -> str:
    """What messages and reports call what was fetched: its address, or its name on the Hub.

    Args:
        source: as the user gave it.
        path: where it is kept; its name is the file's own, which an address need not tell.

    Example:
        >>> said("https://example.org/models/7?token=secret", Path("cache/1b2c/style.safetensors"))
        'https://example.org/models/7/style.safetensors'
        >>> said("https://huggingface.co/user/repo/blob/v2/style.safetensors", Path("cache/c0ffee/style.safetensors"))
        'user/repo@v2/style.safetensors'
    """
    reference = hub.by_address(source) if is_address(source) else None
    address = str(reference) if reference else shown(source).rstrip("/")
    named = path.is_dir() or unquote(address).rpartition("/")[2] == path.name
    return address if named else f"{address}/{path.name}"


def fetch(source: str) -> Path:
    """What is elsewhere, as a local file, or a folder if it is one of PEFT's.

    Args:
        source: an address, or a name on the Hub: `user/repo`, `user/repo@revision/folder/file.safetensors`.

    Raises:
        SourceError: it is not there, may not be read, or cannot be reached; one sentence for each.
    """
    if not is_address(source):
        if (named := hub.by_name(source)) is None:
            raise SourceError(f"{source}: there is no such file or folder")
        try:
            return named.fetch(source)
        except SourceError as error:
            reason = str(error).removeprefix(f"{source}: ")
            raise type(error)(f"{source}: there is no such file here, and {reason}") from None
    if address := hub.by_address(source):
        return address.fetch(shown(source))
    return web.fetch(source) if source.lower().startswith(("http://", "https://")) else stores.fetch(source)
