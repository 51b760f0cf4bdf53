"""The two names of a model's modules: the canonical one, diffusers', and that of the original implementation."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import NamedTuple

from mergelab.formats.architectures.fused import OriginalModule

# Paths of the last few files, each by the names of several models, which are asked for again and again.
_REMEMBERED = 1 << 14


@dataclass(frozen=True)
class Holds:
    """What a module of the original model holds.

    Attributes:
        parts: diffusers' modules, in the order of its rows, each with as many outputs as the module has inputs.
        rest: 0; or the last part takes all rows that are left, usually so many times the inputs.
        swapped: its two halves are (shift, scale), diffusers' are (scale, shift).
        shares: how the rows are shared out where that is unequal (grouped-query attention): the first part has as many
            outputs as the module has inputs, the others in proportion.
    """

    parts: tuple[str, ...]
    rest: int = 0
    swapped: bool = False
    shares: tuple[int, ...] = ()


def holds(*parts: str, rest: int = 0, swapped: bool = False, shares: tuple[int, ...] = ()) -> Holds:
    """A row of the tables: what a module holds."""
    return Holds(parts, rest, swapped, shares)


@dataclass(frozen=True)
class Block:
    """A block of layers by its two paths, in which "{}" stands for a number.

    Attributes:
        original, canonical: the paths.
        modules: path within the original block -> what it holds; None: the modules are named alike.
        norms: paths of norms that are no layers, original -> canonical.
        count: how many such blocks the model has; a higher number is another model's. None: any number.
    """

    original: str
    canonical: str
    modules: Mapping[str, Holds] | None = None
    norms: Mapping[str, str] = field(default_factory=dict)
    count: int | None = None

    @cached_property
    def places(self) -> dict[str, tuple[str, int]]:
        """Canonical path within the block -> original path, and which part of it."""
        table = self.modules or {}
        return {part: (path, index) for path, held in table.items() for index, part in enumerate(held.parts)}


class Place(NamedTuple):
    """Where a canonical module is in the original model: part number `part` of a module."""

    module: OriginalModule
    part: int


@dataclass(frozen=True, eq=False)
class Naming:
    """A table between two ways to name the modules of a model.

    Attributes:
        component: of the canonical names.
        blocks: where two fit, the first counts; in writing, too.
        top: modules beside the blocks, original path -> what it holds; where two hold one, the first is written.
        inside: steps of paths that the tables above do not spell out.
        endings: last steps that older trainers cut short -> the whole.
        input_layer: the original's input layer, which a Control adapter may widen.
        linear: whether every module is a linear layer.
    """

    component: str
    blocks: tuple[Block, ...]
    top: Mapping[str, Holds]
    inside: frozenset[str] = frozenset()
    endings: Mapping[str, str] = field(default_factory=dict)
    input_layer: str | None = None
    linear: bool = False

    @lru_cache(maxsize=_REMEMBERED)  # noqa: B019 - a naming is part of its module, and stays as long
    def module(self, path: str) -> OriginalModule | None:
        """The module of the original model at a path; None if there is none.

        A number behind a module that holds several is one of them alone ("qkv.0").
        """
        if whole := self._whole(path):
            return whole
        outer, _, number = path.rpartition(".")
        several = self._whole(outer) if number.isdecimal() else None
        if several is None or not int(number) < len(several.parts) > 1:
            return None
        return OriginalModule(path, (several.parts[int(number)],), linear=self.linear)

    def _whole(self, path: str) -> OriginalModule | None:
        if path in self.top:
            return self._module(path, self.top[path], "")
        for block, number, rest in _within(path, self._by_original):
            prefix = f"{block.canonical.replace('{}', number)}."
            if block.modules is None:
                return self._module(path, Holds((rest,)), prefix)
            if rest in block.modules:
                return self._module(path, block.modules[rest], prefix)
        return None

    @lru_cache(maxsize=_REMEMBERED)  # noqa: B019
    def place(self, path: str) -> Place | None:
        """Where a module of the diffusers model is in the original one; None if that has no such module."""
        if path in self._top_places:
            original, index = self._top_places[path]
            return Place(self._module(original, self.top[original], ""), index)
        for block, number, rest in _within(path, self._by_canonical):
            prefix = block.original.replace("{}", number)
            within, index = (rest, 0) if block.modules is None else block.places.get(rest, ("", 0))
            if within and (module := self.module(f"{prefix}.{within}")):
                return Place(module, index)
        return None

    def knows(self, path: str) -> bool:
        """Whether a path is that of a module, by either name."""
        return self.module(path) is not None or self.place(path) is not None

    def has(self, path: str) -> bool:
        """Whether a path is that of a module, by either name, and has no step that the model has not."""
        return self.knows(path) and all(step in self.steps or step.isdecimal() for step in path.split("."))

    def norm(self, path: str) -> str | None:
        """The canonical name of a norm that is no layer, from either name; None if it is none."""
        for block, number, rest in _within(path, self._by_original):
            if rest in block.norms:
                return f"{block.canonical.replace('{}', number)}.{block.norms[rest]}"
        return path if self.original_norm(path) else None

    def original_norm(self, path: str) -> str | None:
        """The original name of a norm, from the canonical one."""
        for block, number, rest in _within(path, self._by_canonical):
            for original, canonical in block.norms.items():
                if rest == canonical:
                    return f"{block.original.replace('{}', number)}.{original}"
        return None

    @cached_property
    def input_name(self) -> str | None:
        """The canonical name of the input layer."""
        module = self.module(self.input_layer) if self.input_layer else None
        return f"{self.component}.{module.parts[0]}" if module else None

    def completed(self, path: str) -> str:
        """A canonical path whose last step is whole."""
        before, dot, last = path.rpartition(".")
        return f"{before}.{self.endings.get(last, last)}" if dot else path

    @cached_property
    def block_roots(self) -> frozenset[str]:
        """First steps of the paths of blocks, by either name."""
        return frozenset(_root(path) for block in self.blocks for path in (block.original, block.canonical))

    @cached_property
    def steps(self) -> frozenset[str]:
        """Every step of a path in either model, by which a flat name is read."""
        paths = [*self.top, *(part for held in self.top.values() for part in held.parts)]
        for block in self.blocks:
            modules = block.modules or {}
            paths += [block.original, block.canonical, *modules, *block.norms, *block.norms.values()]
            paths += [part for held in modules.values() for part in held.parts]
        steps = {step for path in paths for step in path.split(".")}
        return self.inside | {step for step in steps if step != "{}" and not step.isdecimal()}

    @cached_property
    def _by_original(self) -> dict[str, list[tuple[re.Pattern[str], Block]]]:
        return _indexed((block.original, block) for block in self.blocks)

    @cached_property
    def _by_canonical(self) -> dict[str, list[tuple[re.Pattern[str], Block]]]:
        return _indexed((block.canonical, block) for block in self.blocks)

    @cached_property
    def _top_places(self) -> dict[str, tuple[str, int]]:
        last_first = reversed(list(self.top.items()))
        return {part: (path, index) for path, held in last_first for index, part in enumerate(held.parts)}

    def _module(self, path: str, held: Holds, prefix: str) -> OriginalModule:
        parts = tuple(prefix + part for part in held.parts)
        return OriginalModule(path, parts, held.rest, held.swapped, self.linear, held.shares)


def _root(path: str) -> str:
    return path.partition(".")[0]


def _indexed(paths: Iterator[tuple[str, Block]]) -> dict[str, list[tuple[re.Pattern[str], Block]]]:
    """Blocks by the first step of a path, each with the pattern of that path and what follows."""
    index: dict[str, list[tuple[re.Pattern[str], Block]]] = {}
    for path, block in paths:
        pattern = re.escape(path).replace(r"\{\}", r"(?P<number>\d+)") + r"\.(?P<rest>.+)"
        index.setdefault(_root(path), []).append((re.compile(pattern), block))
    return index


def _within(path: str, index: Mapping[str, list[tuple[re.Pattern[str], Block]]]) -> Iterator[tuple[Block, str, str]]:
    """The blocks that a path may lie in, with the block's number and the path within it."""
    for pattern, block in index.get(_root(path), ()):
        if match := pattern.fullmatch(path):
            number = match.groupdict().get("number", "")
            if block.count is None or int(number or 0) < block.count:
                yield block, number, match["rest"]
