"""mergelab: merge several LoRA adapters into one, and see what the merge kept and what it lost.

Names are loaded when they are first used, so that the command line can answer without importing torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mergelab import miniature
    from mergelab.adapter import Adapter, load
    from mergelab.comparing import Comparison, compare
    from mergelab.engine.merge import merge
    from mergelab.errors import (
        ArchitectureError,
        FormatError,
        LayerError,
        MergelabError,
        OptionError,
        OutputError,
        SourceError,
    )
    from mergelab.evaluation import evaluate, register_metric
    from mergelab.layer import LoraLayer
    from mergelab.methods.dare import Dare, DareTies
    from mergelab.methods.linear import Cat, Linear, Svd
    from mergelab.methods.magnitude_prune import MagnitudePrune
    from mergelab.methods.method import EntryWise, LayerWise, MatrixWise, Strategy
    from mergelab.methods.registry import register
    from mergelab.methods.ties import Ties
    from mergelab.ranks import RankBudget
    from mergelab.report import Report

_HOMES = {
    "adapter": ("Adapter", "load"),
    "comparing": ("Comparison", "compare"),
    "evaluation": ("evaluate", "register_metric"),
    "errors": (
        "ArchitectureError",
        "FormatError",
        "LayerError",
        "MergelabError",
        "OptionError",
        "OutputError",
        "SourceError",
    ),
    "layer": ("LoraLayer",),
    "engine.merge": ("merge",),
    "ranks": ("RankBudget",),
    "report": ("Report",),
    "methods.dare": ("Dare", "DareTies"),
    "methods.linear": ("Cat", "Linear", "Svd"),
    "methods.magnitude_prune": ("MagnitudePrune",),
    "methods.method": ("EntryWise", "LayerWise", "MatrixWise", "Strategy"),
    "methods.registry": ("register",),
    "methods.ties": ("Ties",),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [  # noqa: RUF022 - in the order of the table above
    "Adapter",
    "load",
    "Comparison",
    "compare",
    "evaluate",
    "register_metric",
    "ArchitectureError",
    "FormatError",
    "LayerError",
    "MergelabError",
    "OptionError",
    "OutputError",
    "SourceError",
    "LoraLayer",
    "merge",
    "RankBudget",
    "Report",
    "Cat",
    "Dare",
    "DareTies",
    "Linear",
    "MagnitudePrune",
    "EntryWise",
    "LayerWise",
    "MatrixWise",
    "Strategy",
    "Svd",
    "Ties",
    "register",
    "miniature",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("mergelab")
    if name == "miniature":  # a subpackage; `import mergelab.miniature` needs no help, `mergelab.miniature` does
        return import_module("mergelab.miniature")
    if name not in _HOME_OF:
        raise AttributeError(f"module 'mergelab' has no attribute {name!r}")
    value = getattr(import_module(f"mergelab.{_HOME_OF[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
