"""mergelab: merge several LoRA adapters into one, and see what the merge kept and what it lost.

The public names stand in `__init__.pyi`, and nowhere else. Each is imported when it is first used, so that the command
line can answer without importing torch.
"""

from __future__ import annotations

import ast
from importlib import import_module
from pathlib import Path
from typing import Any


def _listed() -> dict[str, tuple[str, str]]:
    """Public name -> the module it comes from, and its name there; in the order of the stub."""
    homes: dict[str, tuple[str, str]] = {}
    for node in ast.parse(Path(__file__).with_suffix(".pyi").read_text(encoding="utf-8")).body:
        match node:
            case ast.ImportFrom(module=module, names=names):
                homes |= {alias.name: (f"mergelab.{module}" if module else "mergelab", alias.name) for alias in names}
            case ast.Assign(targets=[ast.Name(id=alias)], value=ast.Name(id=name)):
                homes[alias] = homes[name]
    return homes


_HOMES = _listed()
__all__ = list(_HOMES)


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("mergelab")
    if name in _HOMES:
        module, original = _HOMES[name]
        value = import_module(f"mergelab.{name}") if module == "mergelab" else getattr(import_module(module), original)
    elif (strategy := _strategy(name)) is not None:
        value = strategy
    else:
        raise AttributeError(f"module 'mergelab' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])


def _strategy(name: str) -> Any:
    """The class of a method by its name, so that a method needs no line here."""
    if not name[:1].isupper():
        return None
    from mergelab.methods.registry import METHODS

    return next((strategy for strategy in METHODS.values() if strategy.__name__ == name), None)
