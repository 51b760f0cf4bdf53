"""The model card: README.md, of which one part is written anew by each push, and the rest is its owner's."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, Template

from mergelab.checks import readable
from mergelab.errors import OutputError
from mergelab.formats import trigger_words
from mergelab.formats.fetching.hub import REPO
from mergelab.layer import AdapterData
from mergelab.publishing.base_models import BaseModel
from mergelab.publishing.exhibits import Exhibit
from mergelab.publishing.front_matter import FrontMatter, parted
from mergelab.publishing.recipe import Input, recipe_of
from mergelab.publishing.usage import Place, not_read, tools_for, usage
from mergelab.tables import counted

CARD = "README.md"
BEGIN = "<!-- mergelab: from here to its end mark each push writes anew; what stands before or after is kept -->"
END = "<!-- end of mergelab's part -->"
_CONTROL = re.compile("[\\x00-\\x1f\\x7f-\\x9f\\u2028-\\u202e\\u2066-\\u2069]")
_MARKS = re.compile(rf"{re.escape(BEGIN)}\s*<!-- its keys:([0-9a-f ]*) -->")


@dataclass(frozen=True)
class Facts:
    """What a card says.

    Attributes:
        data: what the file holds.
        format: that it is in, None where it is none of those that mergelab writes, or spelt in another way.
        place: where it lies.
        base: the model that it is for.
        notes: what was left out of the file, in sentences.
        license: given by the user, else None.
        exhibit: what an evaluation showed of it.
    """

    data: AdapterData
    format: str | None
    place: Place
    base: BaseModel
    notes: Sequence[str] = ()
    license: str | None = None
    exhibit: Exhibit | None = None

    @property
    def title(self) -> str:
        """The header's, else the repository's name."""
        own = self.data.metadata.get("modelspec.title", "")
        return readable(own) if own and own != "untitled" else self.place.repo.rpartition("/")[2]

    @property
    def words(self) -> list[str]:
        """Trigger words."""
        found = trigger_words([self.data.metadata])
        return found or (list(self.exhibit.triggers) if self.exhibit else [])

    @property
    def prompt(self) -> str:
        """One that shows what the adapter does."""
        if self.exhibit and self.exhibit.pictures:
            return self.exhibit.pictures[0].prompt
        return ", ".join(self.words) or "a photo of a lighthouse at dawn"


def card(facts: Facts, existing: str | None = None) -> str:
    """The text of README.md; in one that exists it takes the place of mergelab's part.

    Raises:
        OutputError: the one that exists has no such part, or its front matter cannot be read.
    """
    return joined(existing, _front(facts), _given(facts), lambda marks: _body(facts, marks))


def joined(
    existing: str | None, ours: Mapping[str, Any], given: Collection[str], body: Callable[[Iterable[str]], str]
) -> str:
    """A README.md with mergelab's part in its place, and all else as its owner wrote it.

    Args:
        existing: the one that is there.
        ours: mergelab's front matter.
        given: those of its keys that were asked for.
        body: mergelab's part, between `BEGIN` and `END`, with the marks of what is its own in the front matter.

    Raises:
        OutputError: the one that exists has no such part, or its front matter cannot be read.
    """
    yaml, text = parted(existing or "")
    start, end = text.find(BEGIN), text.find(END)
    if not text.strip():  # none, or a licence alone, which the Hub asked for
        before, after = "\n", "\n"
    elif 0 <= start < end:
        before, after = text[:start], text[end + len(END) :]
    else:
        raise OutputError(f"{CARD} there was not written by mergelab")
    found = _MARKS.match(text, start) if start >= 0 else None
    front = FrontMatter(yaml, frozenset(found[1].split()) if found else frozenset())
    front = front.updated(ours, given)
    return f"---\n{front.text}---\n{before}{body(front.marks)}{after}"


def rendered(template: Template, marks: Iterable[str], **content: Any) -> str:
    """mergelab's part of a card, from its template."""
    text = template.render(begin=f"{BEGIN}\n<!-- its keys: {' '.join(sorted(marks))} -->", end=END, **content)
    return re.sub(r"\n{3,}", "\n\n", text).strip()


def templates(package: str) -> Environment:
    """Of a package, with filters for texts from outside: `plain`, `code`, `strong`."""
    environment = Environment(
        loader=PackageLoader(package, "."), undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"plain": plain, "code": code, "linked": _linked, "strong": _strong}
    return environment


def _given(facts: Facts) -> set[str]:
    """The keys of the front matter that options have said; what is merely usual yields to its owner's word."""
    return {"license"} if facts.base.is_usual else {"license", "base_model", "base_model_relation"}


def _front(facts: Facts) -> dict[str, Any]:
    """The front matter of a new card."""
    from huggingface_hub import EvalResult, ModelCardData

    exhibit, base = facts.exhibit, facts.base
    library = "peft" if facts.format == "peft" else "diffusers"
    of_pipelines = [base.task, "template:sd-lora"] if base.task else []
    family = [facts.data.architecture] if facts.data.architecture else []
    optional: dict[str, Any] = {}
    if base.repository:
        optional |= {"base_model": base.repository, "base_model_relation": "adapter"}
    if facts.words:
        optional["instance_prompt"] = ", ".join(facts.words)
    if exhibit and exhibit.pictures:
        optional["widget"] = [{"text": p.prompt, "output": {"url": p.name}} for p in exhibit.pictures]
    scores = [score for score in exhibit.scores if score.value is not None] if exhibit else []
    results = [
        EvalResult(
            task_type=base.task,
            dataset_type="prompts",
            dataset_name=exhibit.design if exhibit else "",
            metric_type=re.sub(r"\W+", "-", score.head).strip("-").lower(),
            metric_name=score.head,
            metric_value=round(score.value or 0.0, 4),
        )
        for score in scores
    ]
    data: Any = ModelCardData(
        license=facts.license,
        library_name=library,
        pipeline_tag=base.task or None,
        tags=[*of_pipelines, "lora", library, *family, "mergelab"],
        eval_results=results or None,
        model_name=facts.title if results else None,
        **optional,
    )
    return dict(data.to_dict())


def _body(facts: Facts, marks: Iterable[str]) -> str:
    return rendered(
        templates("mergelab.publishing").get_template("card.md.j2"),
        marks,
        title=facts.title,
        name=shlex.quote(facts.place.name),
        stem=shlex.quote(facts.place.repo.rpartition("/")[2]),
        size=_size(facts.data),
        base=facts.base,
        words=facts.words,
        code=usage(facts.data, facts.format, facts.place, facts.base, facts.prompt),
        not_read=not_read(facts.data, facts.format) if facts.base.name and facts.format not in (None, "peft") else "",
        place=facts.place,
        tools=tools_for(facts.data),
        notes=facts.notes,
        recipe=recipe_of(facts.data.metadata),
        exhibit=facts.exhibit,
    )


def _size(data: AdapterData) -> str:
    """How many layers, of which ranks."""
    ranks = sorted({layer.rank for layer in data.layers.values()})
    rank = f"rank {ranks[0]}" if len(ranks) == 1 else f"ranks {ranks[0]} to {ranks[-1]}" if ranks else "no rank"
    return f"{counted(len(data.layers), 'layer')} of {rank}"


def _one_line(text: object) -> str:
    """A text from outside without what breaks a line, or turns its direction."""
    return " ".join(_CONTROL.sub(" ", readable(str(text))).split())


def plain(text: object) -> str:
    r"""A text from outside as Markdown shows it: on one line, and no character of it a mark.

    Example:
        >>> print(plain("a|b <i> *c*"))
        a\|b \<i\> \*c\*
    """
    return re.sub(r"([\\`*_\[\]<>|#$~])", r"\\\1", _one_line(text))


def code(text: object) -> str:
    """A text from outside as code, also within a table, in a fence that nothing in it closes.

    Example:
        >>> code("sks"), code("a`b|c"), code("a``b")
        ('`sks`', '`` a`b\\\\|c ``', '``` a``b ```')
    """
    line = _one_line(text).replace("|", "\\|")
    runs = [len(run) for run in re.findall("`+", line)]
    fence = "`" * (max(runs) + 1 if runs else 1)
    return f"{fence} {line} {fence}" if runs else f"{fence}{line}{fence}"


def _strong(text: str, wanted: bool) -> str:
    return f"**{text}**" if wanted else text


def _linked(known: Input) -> str:
    """An input, with a link to its repository where that is known."""
    repo = re.match(REPO, known.source, re.ASCII)
    return (
        f"[{plain(known.name)}](https://huggingface.co/{repo[0]}) ({plain(known.source)})"
        if repo
        else plain(known.name)
    )
