"""The front matter of a model card, edited as text: what its owner wrote stays as it is spelt, comments too."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import yaml
from yaml import MappingNode, Node, ScalarNode, SequenceNode

from mergelab.errors import OutputError

_FRONT = re.compile(r"\A\s*---[ \t]*\r?\n(.*?)^---[ \t]*(?:\r?\n|\Z)", re.DOTALL | re.MULTILINE)
_NO_CONTENT = re.compile(r"(?:\r?\n[ \t]*(?:#[^\n]*)?)+\Z")
_LICENSE = "license"
"""The word of its owner, also where an option said it: no later push takes it away."""


@dataclass(frozen=True)
class FrontMatter:
    """A front matter, and what of it mergelab wrote.

    Attributes:
        text: the YAML, with the end of its last line.
        marks: of every key, or item of a list, that mergelab wrote and nobody has changed since.
    """

    text: str = ""
    marks: frozenset[str] = frozenset()

    def updated(self, ours: Mapping[str, Any], given: Collection[str]) -> FrontMatter:
        """With mergelab's keys as they are now; those that it wrote before and has no more are gone.

        A key of its owner stays, unless its value was given by an option; lists hold the items of both.

        Args:
            ours: what there is to say.
            given: keys of `ours` that were asked for.

        Example:
            >>> theirs = FrontMatter("language: no  # Norwegian\\nlicense: mit\\ntags: [a]\\n")
            >>> first = theirs.updated({"license": "other", "base_model": "x/y", "tags": ["b"]}, [])
            >>> print(first.updated({"tags": ["c"]}, []).text, end="")
            language: no  # Norwegian
            license: mit
            tags: [a, c]
        """
        text, root = _block_style(self.text)
        fresh = {key.value: value for key, value in _mapping(_dumped(ours)).value}
        lines, marks, end = [], set(), 0
        for key, value in root.value:
            name = key.value if isinstance(key, ScalarNode) else ""
            start, stop = text.rfind("\n", 0, key.start_mark.index) + 1, _end_of(text, key, value)
            lines.append(text[end:start])
            new, made = self._one(name, value, fresh.pop(name, None), name in given)
            lines.append(text[start:stop] if new is value else _written(key, new) if new else "")
            marks |= made
            end = stop
        lines.append(text[end:])
        for name, value in fresh.items():
            lines.append(_written(ScalarNode("tag:yaml.org,2002:str", name), value))
            marks |= _marks(name, value)
        return FrontMatter("".join(lines), frozenset(marks))

    def _one(self, key: str, theirs: Node, ours: Node | None, given: bool) -> tuple[Node | None, set[str]]:
        """What is to stand under a key, the node itself where that is what stands there; and marks of what is ours."""
        if isinstance(theirs if ours is None else ours, SequenceNode):
            return self._list(key, theirs, ours)
        is_ours = _mark(key, theirs) in self.marks
        if ours is None:
            return (None if is_ours else theirs), set()
        if _plain(theirs) == _plain(ours):
            return theirs, _marks(key, ours) if is_ours else set()
        return (ours, _marks(key, ours)) if is_ours or given else (theirs, set())

    def _list(self, key: str, theirs: Node, ours: Node | None) -> tuple[Node | None, set[str]]:
        before = _items(theirs)
        kept = [item for item in before if _mark(key, item) not in self.marks]
        known = [_plain(item) for item in kept]
        added = [item for item in _items(ours) if _plain(item) not in known]
        marks = {_mark(key, item) for item in added}
        if [*map(_plain, before)] == [*known, *map(_plain, added)]:
            return theirs, marks
        style = theirs.flow_style if isinstance(theirs, SequenceNode) else False
        items = [*kept, *added]
        return (SequenceNode("tag:yaml.org,2002:seq", items, flow_style=style) if items else None), marks


def parted(card: str) -> tuple[str, str]:
    """The YAML of a front matter, "" where there is none, and what follows it."""
    card = card.removeprefix("\ufeff")
    match = _FRONT.match(card)
    return (match[1], card[match.end() :]) if match else ("", card)


def _mapping(text: str) -> MappingNode:
    """The nodes of a front matter, which know where in the text they stand.

    Raises:
        OutputError: it is no YAML, or no mapping.
    """
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.YAMLError as error:
        what = " ".join(str(error).split())
        raise OutputError(f"README.md there has a front matter that is no YAML: {what}") from None
    if root is None:
        return MappingNode("tag:yaml.org,2002:map", [])
    if not isinstance(root, MappingNode):
        raise OutputError("README.md there has a front matter that is no mapping of keys")
    return root


def _block_style(text: str) -> tuple[str, MappingNode]:
    """A front matter with a line for each key, also where it was written as `{a: b}`."""
    root = _mapping(text)
    if not root.value:
        return "" if root.flow_style else text, root
    if not root.flow_style and root.start_mark.column == 0:
        return text, root
    root.flow_style = False
    text = _serialized(root)
    return text, _mapping(text)


def _end_of(text: str, key: Node, value: Node) -> int:
    """Where the lines of a value end."""
    stop = value.end_mark.index
    if isinstance(value, (MappingNode, SequenceNode)) and not value.flow_style:
        stop = len(_NO_CONTENT.sub("", text[:stop].rstrip(" ")))  # YAML counts comments after a block as parts of it
    stop = max(stop, key.end_mark.index)  # an alias stands where its anchor does
    if text[stop - 1 : stop] == "\n":  # of a text of several lines
        return stop
    newline = text.find("\n", stop)
    return len(text) if newline < 0 else newline + 1


def _written(key: Node, value: Node) -> str:
    return _serialized(MappingNode("tag:yaml.org,2002:map", [(key, value)], flow_style=False))


def _serialized(node: Node) -> str:
    return yaml.serialize(node, Dumper=yaml.SafeDumper, allow_unicode=True, width=120)


def _dumped(content: Mapping[str, Any]) -> str:
    return yaml.safe_dump(dict(content), sort_keys=False, allow_unicode=True, width=120)


def _items(node: Node | None) -> list[Node]:
    return list(node.value) if isinstance(node, SequenceNode) else [] if node is None else [node]


def _plain(node: Node) -> Any:
    """What a node says, whatever its style; scalars as they are spelt."""
    if isinstance(node, MappingNode):
        return [[_plain(key), _plain(value)] for key, value in node.value]
    return [_plain(item) for item in node.value] if isinstance(node, SequenceNode) else node.value


def _mark(key: str, value: Node) -> str:
    return hashlib.sha256(json.dumps([key, _plain(value)]).encode()).hexdigest()[:8]


def _marks(key: str, value: Node) -> set[str]:
    """Of a value, or of each item of a list."""
    return set() if key == _LICENSE else {_mark(key, item) for item in _items(value)}
