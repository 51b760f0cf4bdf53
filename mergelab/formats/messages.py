"""What an error is about: raised low without a file's name, given it once, where the file is known."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from mergelab.errors import MergelabError


@contextlib.contextmanager
def about(what: object) -> Iterator[None]:
    """Begin the message of any `MergelabError` raised inside with what it is about; its type and traceback stay.

    Example:
        >>> from mergelab.errors import FormatError
        >>> with about("style.safetensors"):
        ...     raise FormatError("holds no LoRA layer")
        Traceback (most recent call last):
            ...
        mergelab.errors.FormatError: style.safetensors: holds no LoRA layer
    """
    try:
        yield
    except MergelabError as error:
        error.args = (f"{what}: {error}",)
        raise


def one_line(error: BaseException) -> str:
    """The text of another package's error, short and without line breaks."""
    return " ".join(str(error).split())[:200] or type(error).__name__
