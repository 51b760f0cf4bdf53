"""The one adapter that a command reads."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from mergelab.cli.outputs import Output
from mergelab.cli.strengths import by_block, weight_table

if TYPE_CHECKING:
    from mergelab.adapter import Adapter


class Opened(NamedTuple):
    """The input of a command, its blocks weighed.

    Attributes:
        left_out: what of it was asked to be, in words.
        format: of the output.
        table: its weights.
    """

    adapter: Adapter
    left_out: list[str]
    format: str
    table: str

    def planned(self, out: Output, what: str) -> str:
        """What a dry run says."""
        return "\n".join([*self.left_out, self.table, out.unwritten(what, self.format)])


def open_input(
    file: str,
    out: Output,
    drop_extras: bool,
    allow_pickle: bool,
    architecture: str | None,
    base: str | None,
    blocks: Sequence[str] | None,
) -> Opened:
    """The input of a command, once it is clear that its output can be written."""
    from mergelab.adapter import load
    from mergelab.engine.merge import merge as merge_adapters

    adapter = load(file, allow_pickle=allow_pickle, architecture=architecture, base=base)
    left_out, (adapter,) = without_extras([adapter]) if drop_extras else ([], [adapter])
    chosen = out.check([adapter])
    weights = by_block([adapter], [1.0], blocks)
    table = weight_table([adapter], weights)
    return Opened(merge_adapters([adapter], weights, "cat") if blocks else adapter, left_out, chosen, table)


def without_extras(adapters: list[Adapter]) -> tuple[list[str], list[Adapter]]:
    """What is left out, in words, and the layers alone."""
    extras = list(dict.fromkeys(key for adapter in adapters for key in adapter.extras))
    some = ", ".join(extras[:5]) + (", ..." if len(extras) > 5 else "")
    return [f"left out: {some}"] if extras else [], [adapter.without_extras() for adapter in adapters]
