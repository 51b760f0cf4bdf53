"""What a command writes: checked before anything is computed, written, and told."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from mergelab.tables import counted

if TYPE_CHECKING:
    from mergelab.adapter import Adapter


@dataclass
class Output:
    """Where an adapter goes, and in which form; the attributes are those of `Adapter.save`.

    Raises:
        OptionError: there is no such format, tool or dtype, or they do not go together.
    """

    path: Path
    format: str | None
    for_: str | None
    dtype: str | None
    force: bool
    quantized: str | None = None

    def __post_init__(self) -> None:
        from mergelab.formats import check_choice, to_dtype

        check_choice(self.format, self.for_, self.quantized)
        to_dtype(self.dtype)

    @cached_property
    def model(self) -> Path | None:
        """The quantised model, fetched if need be."""
        from mergelab.formats import located

        return located(self.quantized)

    def check(self, adapters: Sequence[Adapter]) -> str:
        """The format of a result of these inputs; raises where it cannot be written, before it is computed."""
        from mergelab.formats import check_writable
        from mergelab.formats.targets import check_target

        chosen = check_writable(adapters, self.format, self.for_, self.model)
        inputs = [path for adapter in adapters for path in adapter.inputs]
        check_target(self.path, [*([self.model] if self.model else []), *inputs], self.force, chosen)
        return chosen

    def write(self, adapter: Adapter) -> list[str]:
        """Writes it; what was written where, and what is to be said about it, in words."""
        written = adapter.write(self.path, format=self.format, dtype=self.dtype, for_=self.for_, quantized=self.model)
        files = [self.path] if self.path.is_file() else [path for path in self.path.rglob("*") if path.is_file()]
        size = sum(path.stat().st_size for path in files) / 1e6
        told = f"{self.path}: {counted(written.layers, 'layer')}, format {written.format}, {size:.1f} MB"
        return [told, *written.lines()]

    def unwritten(self, planned: str, format: str) -> str:
        """What a dry run says instead."""
        return f"dry run, nothing was written; {self.path} would be: {planned}, format {format}"
