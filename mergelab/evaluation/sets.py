"""The sets of adapters of a run, with the role of each adapter, and the prompts that are drawn with each set.

A role is what an adapter is called in tables and findings. In a run of one set it is the adapter's name; where there
are several it is what the sets call it, so that one can speak of the subject of all pairs.

A prompt may be a template: `{subject.trigger}` and `{style.concept}` stand for the words of an adapter, by its role or
its name, and are drawn with the sets that have one; `{trigger}` and `{concept}` alone give a prompt for each adapter.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Literal

from mergelab.checks import did_you_mean
from mergelab.errors import OptionError
from mergelab.evaluation.config import Config, Distractors, Lora, Prompt
from mergelab.evaluation.triggers import triggers_of, words_of

_FIELD = re.compile(r"\{(?:([^{}.]+)\.)?(trigger|concept)\}")
NAME = "name"
"""The key of a set that is no role."""
Prompts = Literal["together", "alone", "not calling", "none", "every"]
"""Prompts that call an adapter and another, an adapter alone, others or nobody, nobody; all of them. For no adapter in
particular, "together" are prompts that call two or more."""


@dataclass(frozen=True)
class Called:
    """A prompt as it is drawn with a set.

    Attributes:
        text: what is drawn.
        calls: roles of the adapters that it calls.
        index: of its entry under `prompts`.
    """

    text: str
    calls: frozenset[str]
    index: int


@dataclass(frozen=True)
class AdapterSet:
    """Adapters that are merged with each other, and their prompts.

    Attributes:
        name: as `scores.parquet` has it: "ghost+day".
        adapters: role -> adapter, in the order in which they are merged.
        prompts: what is drawn with them.
        aliases: what else they are called -> role: their names, and in a run of one set the roles that it gave.
    """

    name: str
    adapters: Mapping[str, Lora]
    prompts: tuple[Called, ...] = ()
    aliases: Mapping[str, str] = field(default_factory=dict)

    @property
    def triggers(self) -> dict[str, list[str]]:
        """Role -> the words that call it."""
        return triggers_of(
            {role: lora.concepts for role, lora in self.adapters.items()},
            {role: lora.trigger for role, lora in self.adapters.items()},
        )

    @property
    def names(self) -> dict[str, str]:
        """Name of an adapter -> its role."""
        return {lora.name: role for role, lora in self.adapters.items()}

    def calls(self, text: str) -> frozenset[str]:
        """The roles that a prompt calls: all whose trigger words are in it, and those that every prompt calls.

        An adapter that always acts and has no concept, as one for few steps, is called by none.
        """
        words, triggers = words_of(text), self.triggers
        return frozenset(
            role
            for role, lora in self.adapters.items()
            if (lora.always and lora.concepts) or (not lora.always and triggers[role] and set(triggers[role]) <= words)
        )


def explicit_sets(config: Config) -> list[dict[str, str]]:
    """The sets that a configuration spans, each a mapping of roles to names or paths, as under `sets`.

    Raises:
        OptionError: more than one of `sets`, `pairs`, `distractors`; too few distractors; no adapter at all.
    """
    given = [key for key in ("sets", "pairs", "distractors") if getattr(config, key) not in (None, [])]
    if len(given) > 1:
        raise OptionError(f"{' and '.join(given)}: give one of them")
    if not given and not config.loras:
        raise OptionError("loras: expected at least one")
    if config.pairs is not None:
        roles = [role[:-1] if re.fullmatch(r".+[^s]s", role) else role for role in config.pairs]
        if not roles or NAME in roles or len(set(roles)) < len(roles):
            raise OptionError("pairs: expected a list of adapters for each role, such as subjects and styles")
        return [dict(zip(roles, chosen)) for chosen in product(*config.pairs.values())]
    if config.distractors is not None:
        return list(_distracted(config.distractors))
    if any(not set(one) - {NAME} for one in config.sets):
        raise OptionError("sets: expected at least one adapter in each")
    return list(config.sets)


def _distracted(asked: Distractors) -> Iterator[dict[str, str]]:
    draws = random.Random(asked.seed)
    for target in asked.targets:
        others = [one for one in dict.fromkeys(asked.others or asked.targets) if one != target]
        if len(others) < asked.count:
            raise OptionError(f"distractors: {target} has {len(others)} others, and count asks for {asked.count}")
        seen = set[frozenset[str]]()
        for _ in range(asked.sets):
            for _ in range(1000):
                chosen = draws.sample(others, asked.count)
                if frozenset(chosen) not in seen:
                    break
            else:
                raise OptionError(f"distractors: {target} has fewer than {asked.sets} different sets of others")
            seen.add(frozenset(chosen))
            yield {"target": target, **{f"distractor {n}": one for n, one in enumerate(chosen, 1)}}


def adapter_sets(config: Config) -> list[AdapterSet]:
    """The sets of a configuration whose adapters have their names, with their prompts.

    Raises:
        OptionError: a set names an adapter that is not there, one twice, or is called as another; a prompt names a role
            that no set has, or a word that its adapter has not; a prompt is given twice.
    """
    pool = {lora.name: lora for lora in config.loras}
    if not config.sets:
        given_roles = [lora.role for lora in config.loras if lora.role]
        if double := next((role for role in given_roles if given_roles.count(role) > 1), None):
            raise OptionError(f"loras: two have the role {double!r}, and are in one set")
        one = _filled(config, AdapterSet("+".join(pool), pool), {role: lora for lora in pool.values()
                      for role in (lora.role, lora.name) if role})  # fmt: skip
        return _checked([one], config)
    sets = []
    for given in config.sets:
        adapters = {role: _of(pool, role, name) for role, name in given.items() if role != NAME}
        names = [lora.name for lora in adapters.values()]
        if double := next((name for name in names if names.count(name) > 1), None):
            raise OptionError(f"sets: {double!r} is twice in one set")
        roles = _roles(adapters)
        scope = {lora.name: lora for lora in adapters.values()} | roles
        own = {lora.name: lora for lora in adapters.values()} if len(config.sets) == 1 else roles
        sets.append(_filled(config, AdapterSet(given.get(NAME, "+".join(names)), own), scope))
    return _checked(sets, config)


def _of(pool: Mapping[str, Lora], role: str, name: str) -> Lora:
    if name not in pool:
        raise OptionError(f"sets: {role}: there is no adapter {name!r}; {did_you_mean(name, list(pool))}")
    return pool[name]


def _roles(adapters: Mapping[str, Lora]) -> dict[str, Lora]:
    """Those of a list take the roles that their adapters have of their own, where each has one."""
    listed = all(re.fullmatch(r"adapter \d+", role) for role in adapters)
    own = [lora.role for lora in adapters.values()]
    if listed and all(own) and len(set(own)) == len(own):
        return dict(zip(own, adapters.values()))
    return dict(adapters)


def _filled(config: Config, own: AdapterSet, scope: Mapping[str, Lora]) -> AdapterSet:
    """With its prompts."""
    role_of = {id(lora): role for role, lora in own.adapters.items()}
    prompts = []
    for index, prompt in enumerate(config.prompts):
        template, said = (prompt.text, prompt.calls) if isinstance(prompt, Prompt) else (prompt, None)
        for text, missing in _texts(template, own.adapters.values(), scope):
            if missing or any(name not in scope for name in said or ()):
                continue  # of another set: one that no set has is an error
            calls = own.calls(text) if said is None else frozenset(role_of[id(scope[name])] for name in said)
            prompts.append(Called(text, calls, index))
    aliases = {name: role_of[id(lora)] for name, lora in scope.items()}
    return AdapterSet(own.name, own.adapters, tuple(prompts), aliases)


def _texts(template: str, adapters: Iterable[Lora], scope: Mapping[str, Lora]) -> Iterator[tuple[str, bool]]:
    """What a template says with each adapter, or once; and whether it names one that is not there."""
    fields = _FIELD.findall(template)
    missing = any(owner and owner not in scope for owner, _ in fields)
    if missing:
        yield template, True
        return
    each: list[Mapping[str, Lora]] = [{"": one} for one in adapters] if any(not owner for owner, _ in fields) else [{}]
    for own in each:
        yield _said(template, {**scope, **own}), False


def _said(template: str, scope: Mapping[str, Lora]) -> str:
    rest = _FIELD.sub("", template)
    if odd := re.search(r"\{[\w .-]*\}|\{[^{}]*(trigger|concept)", rest):
        raise OptionError(
            f"prompts: {template!r}: there is no field {odd[0]!r}; expected {{trigger}}, {{concept}}, or one of an "
            "adapter, such as {subject.trigger}"
        )
    return _FIELD.sub(lambda match: _word(scope[match[1] or ""], match[2], template), template)


def _word(lora: Lora, key: str, template: str) -> str:
    word = lora.trigger if key == "trigger" else next(iter(lora.concepts), "")
    if not word:
        raise OptionError(f"prompts: {template!r} asks for the {key} of {lora.name}, which has none under loras")
    return word


def _checked(sets: Sequence[AdapterSet], config: Config) -> list[AdapterSet]:
    names = [one.name for one in sets]
    if double := next((name for name in names if names.count(name) > 1), None):
        raise OptionError(f"sets: two are called {double!r}; give one a name of its own")
    drawn = {prompt.index for one in sets for prompt in one.prompts}
    for index, prompt in enumerate(config.prompts):
        if index not in drawn:
            roles = ", ".join(dict.fromkeys(role for one in sets for role in (*one.adapters, *one.names)))
            raise OptionError(f"prompts: {prompt_text(prompt)!r} names adapters that no set has; known: {roles}")
    for one in sets:
        texts = [prompt.text for prompt in one.prompts]
        if double := next((text for text in texts if texts.count(text) > 1), None):
            raise OptionError(f"prompts: {double!r} is given twice")
    return list(sets)


def prompt_text(prompt: str | Prompt) -> str:
    """As it stands in the configuration."""
    return prompt if isinstance(prompt, str) else prompt.text


def counts(prompts: Prompts, role: str | None) -> Callable[[frozenset[str]], bool]:
    """Whether a prompt that calls some roles counts, for one role or for none in particular."""
    tests: dict[Prompts, Callable[[frozenset[str]], bool]] = {
        "together": lambda called: len(called) > 1 and (role is None or role in called),
        "alone": lambda called: len(called) == 1 and (role is None or role in called),
        "not calling": lambda called: role not in called,
        "none": lambda called: not called,
        "every": lambda called: True,
    }
    return tests[prompts]


def roles_of(sets: Iterable[AdapterSet]) -> list[str]:
    """The roles that there are, in order."""
    return list(dict.fromkeys(role for one in sets for role in one.adapters))


def calling(sets: Iterable[AdapterSet]) -> dict[tuple[str, str], frozenset[str]]:
    """Set and prompt -> the roles that are called."""
    return {(one.name, prompt.text): prompt.calls for one in sets for prompt in one.prompts}
