"""Where adapters come from: the Hugging Face Hub, web servers, object stores; what is fetched becomes a local path."""

from __future__ import annotations

from pathlib import Path

from mergelab.errors import SourceError
from mergelab.formats.fetching import hub, stores, web

__all__ = ["fetch", "is_address"]


def is_address(source: str) -> bool:
    """Whether a source is an address (`https://...`, `s3://...`, `hf://...`), and no path or name."""
    return "://" in source


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
        return address.fetch(source)
    return web.fetch(source) if source.lower().startswith(("http://", "https://")) else stores.fetch(source)
