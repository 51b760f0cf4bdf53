"""The dataset card: README.md, of which one part is written anew by each push, and the rest is its owner's."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from mergelab.formats.fetching import public
from mergelab.publishing.card import joined, rendered, templates
from mergelab.publishing.exhibits import in_words

_CONFIGS = [{"config_name": "scores", "data_files": "scores.parquet", "default": True}]
"""What the viewer shows. All configurations of a repository have one builder: images, which want another, are none."""


def card(repo: str, summary: Mapping[str, Any], sheets: Sequence[str], existing: str | None = None) -> str:
    """The text of README.md; in one that exists it takes the place of mergelab's part.

    Args:
        repo: `user/repo`.
        summary: of the run.
        sheets: paths of its contact sheets in the repository.
        existing: the README.md that is there.

    Raises:
        OutputError: the one that exists has no part of mergelab's, or its front matter cannot be read.
    """
    front = {
        "pretty_name": repo.rpartition("/")[2],
        "task_categories": ["text-to-image"],
        "tags": ["mergelab", "lora", "evaluation"],
        "configs": _CONFIGS,
    }
    return joined(existing, front, [], lambda marks: _body(repo, summary, sheets, marks))


def _body(repo: str, summary: Mapping[str, Any], sheets: Sequence[str], marks: Iterable[str]) -> str:
    exhibits = summary["exhibits"]
    rows = [(row["name"], [in_words(cell) for cell in row["cells"]]) for row in exhibits["rows"]]
    return rendered(
        templates("mergelab.evaluation.dataset").get_template("card.md.j2"),
        marks,
        repo=repo,
        title=repo.rpartition("/")[2],
        exhibits=exhibits,
        model=public(exhibits["pipeline"]),
        rows=rows,
        sheets=sheets,
        verdict=summary["verdict"],
        versions=summary["versions"],
        settings=", ".join(f"{name} {value}" for name, value in exhibits["generation"].items()),
    )
