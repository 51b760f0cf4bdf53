"""What to take from a folder elsewhere: PEFT's two files, or the one file of tensors."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from mergelab.errors import SourceError
from mergelab.formats.peft_config import PEFT_CONFIG, PEFT_WEIGHTS
from mergelab.formats.prefixes import COMPONENTS

PEFT_FILES = tuple(
    f"{folder}{name}"
    for folder in ("", *(f"{c}/" for c in (*COMPONENTS, "model")))
    for name in (PEFT_CONFIG, *PEFT_WEIGHTS)
)
"""Whatever a PEFT folder may hold that counts."""

_SHOWN = 8


class MissingError(SourceError):
    """There is a folder elsewhere, and no such file in it."""


class RefusedError(SourceError):
    """A file elsewhere may not be read by whoever asks."""


def shown(address: str) -> str:
    """An address as a message may show it: without a password, and on the web without a query, which may hold a token.

    Example:
        >>> shown("https://me:secret@example.org/x.safetensors?token=secret"), shown("s3://bucket/what?.safetensors")
        ('https://example.org/x.safetensors', 's3://bucket/what?.safetensors')
        >>> shown("filecache::https://example.org/x?token=secret")  # one file system on top of another
        'filecache::https://example.org/x'
    """
    plain = re.sub(r"(?<=://)[^/]*@", "", address)
    return plain.partition("?")[0] if re.search(r"https?://", plain, re.IGNORECASE) else plain


def without_secrets(text: str) -> str:
    """Another package's message, its addresses as they may be shown.

    Example:
        >>> without_secrets("GET https://me:secret@example.org/x?token=secret failed")
        'GET https://example.org/x failed'
    """
    return re.sub(r"\S+://\S+", lambda match: shown(match[0]), text)


def public(content: Any) -> Any:
    """A configuration as it may be passed on: no address opens anything, and of a file here its name alone is told.

    Example:
        >>> public({"loras": [{"path": "https://example.org/x.safetensors?token=secret", "weight": 0.5}]})
        {'loras': [{'path': 'https://example.org/x.safetensors', 'weight': 0.5}]}
        >>> public([__file__, "/imagine a cat"])
        ['folders.py', '/imagine a cat']
    """
    if isinstance(content, Mapping):
        return {key: public(value) for key, value in content.items()}
    if isinstance(content, (list, tuple)):
        return [public(value) for value in content]
    if not isinstance(content, str):
        return content
    return Path(content).name if _is_here(content) else without_secrets(content)


def _is_here(text: str) -> bool:
    """Whether a text is the absolute path of something here; a name may be too long to ask for."""
    with suppress(OSError, ValueError):
        return Path(text).is_absolute() and Path(text).exists()
    return False


@dataclass(frozen=True)
class RemoteFolder:
    """A folder elsewhere.

    Attributes:
        address: as messages show it, which each begins with.
        get: fetches the file of a name (`/` between its parts) and keeps the folder's layout; raises `MissingError`.
        names: all files in it and in its folders; None where a folder cannot be listed.
    """

    address: str
    get: Callable[[str], Path]
    names: Callable[[], list[str]] | None = None

    def fetch_file(self, name: str) -> Path:
        """One file; beside PEFT's weights the config that belongs to them, if there is one.

        Raises:
            SourceError: it is not given, or the config is not, without which nobody knows the alpha.
        """
        path = self.get(name)
        if PurePosixPath(name).name in PEFT_WEIGHTS:
            try:
                self.get(str(PurePosixPath(name).with_name(PEFT_CONFIG)))
            except MissingError:
                pass
            except RefusedError:
                raise SourceError(
                    f"{self.address}: the {PEFT_CONFIG} beside it, which says its alpha, is refused; put both "
                    "files into a folder here, and give that"
                ) from None
        return path

    def fetch(self) -> Path:
        """The folder, if it is one of PEFT's (with or without a folder for each component), or its one file.

        Raises:
            SourceError: it holds several files, or none.
        """
        if self.names is None:
            return self._get_peft("", PEFT_WEIGHTS).parent
        names = self.names()
        for prefixes in ([""], [f"{component}/" for component in (*COMPONENTS, "model")]):
            if found := [prefix for prefix in prefixes if f"{prefix}{PEFT_CONFIG}" in names]:
                configs = [self._get_peft(prefix, [n for n in PEFT_WEIGHTS if prefix + n in names]) for prefix in found]
                return configs[0].parents[1 if found[0] else 0]
        files = sorted(name for name in names if name.endswith(".safetensors"))
        if len(files) == 1:
            return self.fetch_file(files[0])
        some = ", ".join(files[:_SHOWN]) + (", ..." if len(files) > _SHOWN else "")
        raise SourceError(
            f"{self.address}: holds {len(files)} safetensors files, name one of them: {some}"
            if files
            else f"{self.address}: expected a PEFT folder ({PEFT_CONFIG} and {PEFT_WEIGHTS[0]}) or one safetensors "
            "file, found neither"
        )

    def _get_peft(self, prefix: str, weights: list[str] | tuple[str, ...]) -> Path:
        """Fetch a config and the first of the weights that is there; the config's path."""
        config = self.get(f"{prefix}{PEFT_CONFIG}")
        for name in weights:
            with suppress(MissingError):
                self.get(f"{prefix}{name}")
                return config
        raise MissingError(f"{self.address}: there is no {' or '.join(PEFT_WEIGHTS)} beside {prefix}{PEFT_CONFIG}")
