"""The precision that all arithmetic has, whatever surrounds a call."""

from __future__ import annotations

import contextlib

import torch


class full_precision(contextlib.ContextDecorator):
    """Neither gradients nor the half precision of an autocast around the caller reach the arithmetic inside.

    Example:
        >>> with torch.autocast("cpu", dtype=torch.bfloat16), full_precision():
        ...     (torch.ones(2, 2) @ torch.ones(2, 2)).dtype
        torch.float32
    """

    def _recreate_cm(self) -> full_precision:
        return type(self)()  # a decorated function may run in several threads at once

    def __enter__(self) -> None:
        self._stack = contextlib.ExitStack()
        self._stack.enter_context(torch.no_grad())
        for device in ("cpu", "cuda"):
            if torch.is_autocast_enabled(device):
                self._stack.enter_context(torch.autocast(device, enabled=False))

    def __exit__(self, *error: object) -> None:
        self._stack.close()
