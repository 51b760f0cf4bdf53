"""Which words of a prompt call an adapter."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

_COMMON = frozenset("a an the of in on and with style photo picture image painting drawing".split())


def words_of(text: str) -> set[str]:
    """Its words, in small letters and without punctuation."""
    return {word.strip(".,;:!?()\"'") for word in text.lower().split()} - {""}


def triggers_of(concepts: Mapping[str, Sequence[str]], given: Mapping[str, str]) -> dict[str, list[str]]:
    """The words that call each adapter: those given, or what is special to its concept, and common to all of its own.

    Example:
        >>> triggers_of({"ghost": ["a photo of sks", "a sks"], "ink": ["in szn style"]}, {})
        {'ghost': ['sks'], 'ink': ['szn']}
    """
    triggers = {}
    for name, own in concepts.items():
        others = set[str]().union(*(words_of(text) for key, texts in concepts.items() if key != name for text in texts))
        shared = set[str].intersection(*map(words_of, own)) if own else set[str]()
        triggers[name] = sorted(words_of(given[name]) if given.get(name) else shared - others - _COMMON)
    return triggers
