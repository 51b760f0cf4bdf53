"""Which prompts call which adapters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence


def calls(prompts: Sequence[str], triggers: Mapping[str, Sequence[str]]) -> dict[str, set[str]]:
    """Prompt -> the adapters whose trigger words are all in it.

    Example:
        >>> calls(["A sks on gray"], {"ghost": ["sks"], "day": ["szn"]})
        {'A sks on gray': {'ghost'}}
    """
    return {prompt: {name for name, words in triggers.items() if words and set(words) <= words_of(prompt)}
            for prompt in prompts}  # fmt: skip


def words_of(text: str) -> set[str]:
    """Its words, in small letters and without punctuation."""
    return {word.strip(".,;:!?()\"'") for word in text.lower().split()} - {""}


def triggers_of(concepts: Mapping[str, str], given: Mapping[str, str]) -> dict[str, list[str]]:
    """The words that call each adapter: those given, or what is special to its concept.

    Example:
        >>> triggers_of({"ghost": "a photo of sks", "ink": "in szn style"}, {})
        {'ghost': ['sks'], 'ink': ['szn']}
    """
    common = set("a an the of in on and with style photo picture image painting drawing".split())
    triggers = {}
    for name, concept in concepts.items():
        others = set().union(*(words_of(other) for key, other in concepts.items() if key != name))
        special = words_of(given[name]) if given.get(name) else words_of(concept) - others - common
        triggers[name] = sorted(special)
    return triggers
