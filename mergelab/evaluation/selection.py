"""Options that are chosen by score are chosen on other images than those that are reported."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, replace

from mergelab.checks import did_you_mean
from mergelab.errors import OptionError
from mergelab.evaluation.config import Config, Part, Select
from mergelab.evaluation.sets import AdapterSet, prompt_text

Key = tuple[str, str]
"""A set of adapters and a prompt."""


@dataclass(frozen=True)
class Choice:
    """One merge of several that an entry spans, chosen by score.

    Attributes:
        label: of the merge.
        among: how many there were.
        score: its mean, on the images on which it was chosen.
        set: for which set of adapters; empty for all of them.
    """

    label: str
    among: int
    score: float
    set: str = ""


def parts_of(select: Select, sets: Sequence[AdapterSet], config: Config) -> tuple[Set[Key], Set[Key]]:
    """The sets and prompts on which the best is chosen, and those that are reported."""
    texts = [prompt_text(prompt) for prompt in config.prompts]
    keys = {(one.name, prompt.text): (one.name, texts[prompt.index]) for one in sets for prompt in one.prompts}

    def within(part: Part, key: Key) -> bool:
        return (part.sets is None or key[0] in part.sets) and (part.prompts is None or key[1] in part.prompts)

    def apart(part: Part, key: Key) -> bool:
        return key[0] not in (part.sets or ()) and key[1] not in (part.prompts or ())

    on = {unit for unit, key in keys.items() if within(select.on, key)}
    report = {unit for unit, key in keys.items() if within(select.report, key)}
    if select.report == Part():
        report = {unit for unit, key in keys.items() if apart(select.on, key)}
    return on, report


def only(sets: Sequence[AdapterSet], keys: Set[Key]) -> list[AdapterSet]:
    """The sets with those of their prompts that count."""
    parts = [replace(one, prompts=tuple(p for p in one.prompts if (one.name, p.text) in keys)) for one in sets]
    return [one for one in parts if one.prompts]


def reported(config: Config, sets: Sequence[AdapterSet]) -> list[AdapterSet]:
    """The sets with the prompts that are reported: all, unless something is chosen on others."""
    return list(sets) if config.select is None else only(sets, parts_of(config.select, sets, config)[1])


def check_selection(select: Select, config: Config, sets: Sequence[AdapterSet]) -> None:
    """Raises where a choice would be made on what is reported, or on nothing.

    Raises:
        OptionError: so; or a prompt or a set that the configuration does not have.
    """
    texts, names = [prompt_text(prompt) for prompt in config.prompts], [one.name for one in sets]
    for key, part in (("on", select.on), ("report", select.report)):
        for what, given, known in (("prompts", part.prompts, texts), ("sets", part.sets, names)):
            for one in given or ():
                if one not in known:
                    raise OptionError(f"select.{key}.{what}: there is no {one!r}; {did_you_mean(one, known)}")
    on, report = parts_of(select, sets, config)
    if not on or not report:
        raise OptionError("select: expected prompts or sets to choose on, and others to report")
    if not any(prompt.calls for one in only(sets, on) for prompt in one.prompts):
        raise OptionError("select: no prompt to choose on calls any adapter, so there is nothing to choose by")
    if on & report:
        name, prompt = min(on & report)
        raise OptionError(f"select: {prompt!r} of {name} is chosen on and reported; the two must differ")
    if select.each_set and (missing := {name for name, _ in report} - {name for name, _ in on}):
        raise OptionError(f"select: each_set asks for prompts to choose on in every set; {min(missing)} has none")


def chosen(
    families: Mapping[str, int], means: Mapping[str, Mapping[str, float]], each_set: bool
) -> tuple[dict[str, dict[str, str]], list[Choice]]:
    """The best merge of each family.

    Args:
        families: label of a merge -> its family.
        means: set -> label -> mean score on the images on which it is chosen, more being better.
        each_set: whether each set chooses for itself.

    Returns:
        Set -> label -> what the merge is called where it is reported; and the choices.
    """
    pooled = {
        label: sum(scores[label] for scores in means.values()) / len(means)
        for label in families
        if all(label in scores for scores in means.values())
    }
    kept: dict[str, dict[str, str]] = {name: {} for name in means}
    choices = []
    for family in dict.fromkeys(families.values()):
        labels = [label for label, own in families.items() if own == family]
        for name, scores in ({one: means[one] for one in means} if each_set else {"": pooled}).items():
            known = {label: scores[label] for label in labels if label in scores}
            if not known:
                continue
            best = max(known, key=lambda label: known[label])
            for one in [name] if each_set else kept:
                kept[one][best] = _title(labels) if each_set and len(labels) > 1 else best
            if len(known) > 1:
                choices.append(Choice(best, len(known), known[best], name))
    return kept, choices


def _title(labels: Sequence[str]) -> str:
    """What all labels of a family share: "ties rank=8, chosen".

    Example:
        >>> _title(["ties density=0.3 rank=8", "ties density=0.5 rank=8"])
        'ties rank=8, chosen'
    """
    words = [label.split(" ") for label in labels]
    return " ".join(word for word in words[0] if all(word in other for other in words)) + ", chosen"
