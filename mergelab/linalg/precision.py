"""The precision that all arithmetic has, whatever surrounds a call."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch


class full_precision(contextlib.ContextDecorator):
    """Neither gradients, nor the half precision of an autocast around the caller, nor TF32 reach the arithmetic inside.

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
        self._stack.enter_context(_in_full_float32())
        for device in ("cpu", "cuda"):
            if torch.is_autocast_enabled(device):
                self._stack.enter_context(torch.autocast(device, enabled=False))

    def __exit__(self, *error: object) -> None:
        self._stack.close()


@contextlib.contextmanager
def _in_full_float32() -> Iterator[None]:
    """Products in float32 throughout, whatever the caller allows a GPU (TF32) or a processor (bfloat16)."""
    backends = torch.backends.cuda.matmul, getattr(torch.backends.mkldnn, "matmul", None)
    # Older versions have another name for it, which newer ones refuse where the caller has used the new one.
    known = [backend for backend in backends if hasattr(backend, "fp32_precision")]
    name, full = ("fp32_precision", "ieee") if known else ("allow_tf32", False)
    before = [(backend, getattr(backend, name)) for backend in known or [torch.backends.cuda.matmul]]
    try:
        for backend, _ in before:
            setattr(backend, name, full)
        yield
    finally:
        for backend, value in before:
            setattr(backend, name, value)
