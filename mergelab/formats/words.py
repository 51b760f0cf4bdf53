"""What the headers of inputs say in words: trigger words, counts of tags, and what several headers have in common."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

# Header keys under which tools keep the words that call an adapter, without a tool's prefix, spelt with letters alone.
_TRIGGER_KEYS = (
    *("triggerphrase", "triggerphrases", "triggerwords", "triggerword", "triggers", "instanceprompt"),
    *("trainedwords", "trainedword", "activationtext", "activationwords", "activationword"),
)

# What is the same for a merge as for its inputs, where they agree.
_COMMON = ("modelspec.architecture", "ss_base_model_version", "modelspec.resolution", "modelspec.implementation")
_DATE = "modelspec.date"
_TAGS = "ss_tag_frequency"

Header = Mapping[str, str]


def trigger_words(headers: Iterable[Header]) -> list[str]:
    """The trigger words of all headers, in their order, each once.

    Example:
        >>> trigger_words([{"modelspec.trigger_phrase": "sks, dog"}, {"trained_words": '["szn style", "sks"]'}])
        ['sks', 'dog', 'szn style']
    """
    words: dict[str, None] = {}
    for header in headers:
        found = {key: _TRIGGER_KEYS.index(name) for key in header if (name := _bare(key)) in _TRIGGER_KEYS}
        for key in sorted(found, key=lambda key: (found[key], key)):
            for word in ",".join(_texts(header[key])).split(","):
                if word.strip():
                    words[word.strip()] = None
    return list(words)


def _bare(key: str) -> str:
    """A header key by which spellings are compared: "ss_trigger_words" and "triggerWords" are one."""
    return re.sub("[^a-z]", "", re.sub(r"^(modelspec\.|ss_|st_|ot_)", "", key.lower()))


def _texts(value: str) -> list[str]:
    """The texts of a header's value, which is one, or a list in JSON."""
    try:
        texts = json.loads(value) if value.lstrip().startswith("[") else value
    except (ValueError, RecursionError):
        texts = value
    return [text for text in texts if isinstance(text, str)] if isinstance(texts, list) else [value]


def joined(headers: Sequence[Header]) -> dict[str, str]:
    """What is true of a merge, too: what all headers say alike of the base model, the last date, the tags of all.

    The date is the inputs' last, and not today's: the same inputs give the same bytes on any day.

    Example:
        >>> headers = [{"ss_base_model_version": "pony", "ss_tag_frequency": '{"10_sks": {"dog": 3}}'},
        ...            {"ss_base_model_version": "pony", "ss_tag_frequency": '{"10_sks": {"dog": 1, "hat": 2}}'}]
        >>> joined(headers)
        {'ss_base_model_version': 'pony', 'ss_tag_frequency': '{"10_sks": {"dog": 4, "hat": 2}}'}
    """
    common = {key: {header.get(key, "") for header in headers} for key in _COMMON}
    found = {key: values.pop() for key, values in common.items() if len(values) == 1}
    if dates := [header[_DATE] for header in headers if header.get(_DATE)]:
        found[_DATE] = max(dates)
    if tags := _tags(headers):
        found[_TAGS] = json.dumps(tags)
    return {key: value for key, value in found.items() if value}


def _tags(headers: Iterable[Header]) -> dict[str, dict[str, int]]:
    """How often each tag stands in the captions of each folder of images."""
    total: dict[str, dict[str, int]] = {}
    for header in headers:
        for folder, counts in _object(header.get(_TAGS, "")).items():
            for tag, count in (counts if isinstance(counts, dict) else {}).items():
                if isinstance(count, int):
                    own = total.setdefault(folder, {})
                    own[tag] = own.get(tag, 0) + count
    return total


def _object(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}
