"""The images of the page: some scenes of the search, and some of those that were held out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mergelab.evaluation.names import BASE as BASE_VARIANT
from mergelab.evaluation.names import VariantName
from mergelab.evaluation.report.pictures import any_small, picture
from mergelab.tuning.bench import Bench
from mergelab.tuning.candidate import BASE, Candidate, Scene, alone
from mergelab.tuning.result import SUM, TUNED_SUM, WINNER, Tuned
from mergelab.tuning.trial import Trial

COMPOSED, OTHERS = 4, 1
"""Scenes of each kind that are shown: of those that call several adapters, and of each other kind."""


@dataclass(frozen=True)
class Shown:
    """One image.

    Attributes:
        column: what drew it.
        scene: what it shows.
        path: where it lies, if it was drawn.
    """

    column: str
    scene: Scene
    path: Path


def searched(
    bench: Bench, usual: Mapping[str, float], winner: Candidate, best_sum: Trial | None, scenes: Sequence[Scene]
) -> list[Shown]:
    """Some scenes of a search, as the base model, each adapter alone, the plain sums and the winner draw them.

    What the search had no need of is drawn for the page.

    Args:
        bench: of the search.
        usual: adapter -> its weight.
        winner: of the search.
        best_sum: the plain sum at its best strength.
        scenes: of the search.
    """
    columns = {BASE: Candidate(BASE, {})} | {alone(n): Candidate(alone(n), {n: w}) for n, w in usual.items()}
    columns[SUM] = Candidate(SUM, dict(usual))
    if best_sum is not None:
        columns.setdefault(best_sum.candidate.label, best_sum.candidate)
    columns[f"winner: {winner.label}"] = winner
    chosen = some_of(scenes)
    bench.measure(list(columns.values()), chosen)
    return [Shown(name, scene, bench.image(one, scene)) for scene in chosen for name, one in columns.items()]


def held_out(tuned: Tuned) -> list[Shown]:
    """Some of the scenes that were held out, of each prompt with its first seed."""
    adapters, variants = list(tuned.winner.weights), tuned.variants
    best = tuned.best_sum.candidate.label if tuned.best_sum else SUM
    columns = {BASE: str(BASE_VARIANT)} | {alone(name): str(VariantName("single", name)) for name in adapters}
    columns |= {SUM: variants.get(SUM, "")} | ({best: variants.get(TUNED_SUM, "")} if best != SUM else {})
    columns |= {f"winner: {tuned.winner.label}": variants.get(WINNER, "")}
    rows = tuned.held_out.scores.drop_duplicates(["variant", "prompt", "seed"])
    places = {(str(v), str(p), int(s)): str(i) for v, p, s, i in
              zip(rows["variant"], rows["prompt"], rows["seed"], rows["image"])}  # fmt: skip
    calls = {prompt.text: frozenset(prompt.calls) for one in tuned.held_out.sets for prompt in one.prompts}
    seed = tuned.held_out.config.seeds[0]
    scenes = some_of([Scene(prompt, own, seed) for prompt, own in calls.items()])
    images = tuned.held_out.folder / "images"
    return [
        Shown(name, scene, images / places.get((variant, scene.prompt, scene.seed), "none.png"))
        for scene in scenes
        for name, variant in columns.items()
    ]


def some_of(scenes: Iterable[Scene]) -> list[Scene]:
    """Of each kind a few, with prompts that differ as far as they can.

    Example:
        >>> both = frozenset({"ghost", "day"})
        >>> [scene.prompt for scene in some_of([Scene("a", both, 0), Scene("a", both, 1), Scene("b", both, 0)])]
        ['a', 'b', 'a']
    """
    kinds: dict[frozenset[str], list[Scene]] = {}
    for scene in scenes:
        kinds.setdefault(scene.calls, []).append(scene)
    found = []
    for calls in sorted(kinds, key=len, reverse=True):
        own = kinds[calls]
        first = list({scene.prompt: scene for scene in reversed(own)}.values())[::-1]
        chosen = [*first, *(scene for scene in own if scene not in first)]
        found += chosen[: COMPOSED if len(calls) > 1 else OTHERS]
    return found


def grid(shown: Sequence[Shown], folder: Path) -> dict[str, Any]:
    """As the template has it: a row for each scene, a column for each that drew it.

    Args:
        shown: row by row.
        folder: of the run, to which links are relative.
    """
    heads = list(dict.fromkeys(one.column for one in shown))
    rows: dict[Scene, dict[str, Any]] = {}
    for one in shown:
        label = f"{one.column} · {one.scene.prompt} · seed {one.scene.seed}"
        image = picture(one.path, one.path.relative_to(folder).as_posix(), label) if one.path.exists() else None
        rows.setdefault(one.scene, {})[one.column] = image
    kept = [head for head in heads if any(row.get(head) for row in rows.values())]
    return {
        "heads": kept,
        "small": any_small(one.path for one in shown),
        "rows": [
            {
                "prompt": scene.prompt,
                "calls": " and ".join(sorted(scene.calls)) or "no adapter",
                "seed": scene.seed,
                "images": [row.get(head) for head in kept],
            }
            for scene, row in rows.items()
        ],
    }
