"""Prompts encoded once: what the text encoders of a pipeline said is kept, for as long as they are the same."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import wraps
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

from mergelab.pipelines.opening import Pipeline

_Kept = Callable[[], Any]


class Encodings:
    """Within a `with` statement a pipeline's `encode_prompt` runs the text encoders once for the same arguments.

    What they return is kept in main memory and handed out as copies, on the device where it was made. A list of
    prompts, as of a batch, is encoded as a whole. A call that holds more than texts, numbers and devices (an image, a
    tensor) goes through.

    Example:
        >>> from mergelab import miniature
        >>> pipe = miniature.pipeline("sdxl")
        >>> with Encodings(pipe) as encodings:
        ...     first = pipe.encode_prompt("a sks")
        ...     again = pipe.encode_prompt("a sks")
        >>> encodings.runs, torch.equal(first[0], again[0])
        (1, True)
    """

    def __init__(self, pipeline: Pipeline) -> None:
        self._pipeline = pipeline
        self._kept: dict[tuple[str, str], _Kept] = {}
        self._state = ""
        self._before: Any = None
        self.runs = 0
        """How often the text encoders ran."""

    def switch(self, state: str) -> None:
        """From now on the text encoders are those of this state; "" is how they were at first, which is never lost."""
        self._state = state
        self._kept = {key: kept for key, kept in self._kept.items() if key[0] in ("", state)}

    def __enter__(self) -> Encodings:
        encode = getattr(self._pipeline, "encode_prompt", None)
        self._before = vars(self._pipeline).get("encode_prompt")  # the user's own, or none
        if encode is not None:
            self._pipeline.encode_prompt = self._once(encode)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._before is not None:
            self._pipeline.encode_prompt = self._before
        elif "encode_prompt" in vars(self._pipeline):
            del self._pipeline.encode_prompt
        self._kept = {}

    def _once(self, encode: Callable[..., Any]) -> Callable[..., Any]:
        signature = inspect.signature(encode)

        @wraps(encode)
        def encoded(*args: Any, **keywords: Any) -> Any:
            given = signature.bind(*args, **keywords).arguments
            if not _is_plain(list(given.items())):
                return encode(*args, **keywords)
            key = self._state, repr(sorted(given.items()))
            if key not in self._kept:
                self.runs += 1
                result = encode(*args, **keywords)
                kept = _keep(result)
                if kept is None:
                    return result
                self._kept[key] = kept
            return self._kept[key]()

        return encoded


def _is_plain(value: Any) -> bool:
    """Whether it is told from any other by how it is written."""
    if isinstance(value, (list, tuple)):
        return all(map(_is_plain, value))
    if isinstance(value, dict):
        return _is_plain(list(value.items()))
    return value is None or isinstance(value, (str, int, float, torch.device, torch.dtype))


def _keep(value: Any) -> _Kept | None:
    """What gives back copies of the tensors in a value; None where it holds something else."""
    if isinstance(value, Tensor):
        kept, device = value.detach().to("cpu", copy=True), value.device
        return lambda: kept.to(device, copy=True)
    if type(value) in (list, tuple):
        parts = [_keep(part) for part in value]
        return None if None in parts else lambda: type(value)(part() for part in parts if part)
    return (lambda: value) if _is_plain(value) else None
