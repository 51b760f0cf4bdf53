"""From scores to findings: recovery, leakage, noise floor, ceiling, blind metrics, tests."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from mergelab.evaluation.statistics import Array, Interval, cluster_means, holm, interval, sign_flip, win_rate

CONCEPT_METRICS = ("judge", "clip_text")
"""Metrics with a score for an adapter's concept, the sharper first."""
PAIR_METRICS = ("lpips", "clip_image", "dino")
"""Metrics that compare two images."""
_RANGES = {"lpips": (0.0, np.inf), "clip_image": (-1.0, 1.0), "dino": (-1.0, 1.0)}
NAN = float("nan")
COLUMNS = ("set", "variant", "prompt_id", "prompt", "seed", "metric", "reference", "reference_seed", "value", "image")
"""Of `scores.parquet`."""


@dataclass(frozen=True)
class Finding:
    """One estimate: of what, for which variant and adapter, by which metric.

    Attributes:
        quantity: "recovery" (0 as the base model, 1 as the adapter alone), "similarity" (to an image), "leakage"
            (change of an adapter's score where it is not called), "preservation" (change of the prompt's own score, or
            distance from the base model's image, where no adapter is called), "wins over the stack" (share of images),
            "score" (mean of a metric of one's own over all prompts).
        variant: `stack` or `merge:<label>`; also `base` and `single:<name>` where they are anchors.
        metric: its metric.
        reference: the adapter it is about, as `single:<name>`, or the image it is compared with.
        interval: the estimate and its 95 % interval.
        p: of the paired test against the stack, corrected; None where there is none.
    """

    quantity: str
    variant: str
    metric: str
    reference: str
    interval: Interval
    p: float | None = None


@dataclass(frozen=True)
class Anchor:
    """What a metric can say about one adapter: floor (base), ceiling (the adapter alone), noise (other seeds).

    `blind`: the metric does not move between floor and ceiling, so nothing it says counts.
    """

    metric: str
    reference: str
    floor: float
    ceiling: float
    noise: float
    blind: bool


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
    found = {}
    for name, concept in concepts.items():
        others = set().union(*(words_of(other) for key, other in concepts.items() if key != name))
        own = words_of(given[name]) if given.get(name) else words_of(concept) - others - common
        found[name] = sorted(own)
    return found


class Scores:
    """The table of scores as arrays that line up: one value for each (prompt, seed)."""

    def __init__(self, frame: pd.DataFrame) -> None:
        own_seed = frame["reference_seed"] == frame["seed"]
        self.frame = frame
        self._tables = {
            key: part.set_index(["set", "prompt", "seed"])["value"]
            for key, part in frame[own_seed].groupby(["variant", "metric", "reference"])
        }
        self._other_seeds = frame[~own_seed]

    def of_ones_own(self, variant: str) -> list[tuple[str, str]]:
        """Metric and reference of the scores by metrics that do not come with mergelab."""
        ours = {*CONCEPT_METRICS, *PAIR_METRICS}
        keys = [tuple(map(str, key)) for key in self._tables]
        return [(metric, reference) for name, metric, reference in keys if name == variant and metric not in ours]

    def noise(self, variant: str, metric: str, prompts: set[str]) -> float:
        """Mean value between images of the same variant and prompt with other seeds; NaN with one seed."""
        rows = self._other_seeds
        mine = (rows["variant"] == variant) & (rows["metric"] == metric) & rows["prompt"].isin(prompts)
        return float(rows["value"][mine].mean())

    def aligned(self, columns: Sequence[tuple[str, str, str]], prompts: set[str]) -> pd.DataFrame:
        """One column for each (variant, metric, reference), one row for each unit that all of them have."""
        parts = [self._tables.get(column, pd.Series(dtype=float)) for column in columns]
        table = pd.concat(parts, axis=1, join="inner") if all(len(p) for p in parts) else pd.DataFrame()
        if not len(table):
            return table
        return table[[unit in prompts for unit in table.index.get_level_values("prompt")]]


def _clusters(table: pd.DataFrame) -> Array:
    prompts = table.index.get_level_values("prompt")
    return cluster_means(table.to_numpy(float), list(prompts), list(table.index.get_level_values("set")))


def _ratio(means: Array) -> Array:
    """(variant - base) / (single - base)."""
    span = means[..., 2] - means[..., 1]
    return np.divide(means[..., 0] - means[..., 1], span, out=np.full_like(span, np.nan), where=np.abs(span) > 1e-12)


def anchors(scores: Scores, adapters: Sequence[str], calling: Mapping[str, set[str]]) -> list[Anchor]:
    """Floor, ceiling and noise of every metric, for every adapter, on the prompts that call it."""
    found = []
    for name in adapters:
        single = f"single:{name}"
        prompts = {prompt for prompt, called in calling.items() if name in called}
        for metric in CONCEPT_METRICS:
            table = scores.aligned([(single, metric, single), ("base", metric, single)], prompts)
            if len(table):
                found.append(_anchor(metric, single, table.iloc[:, 1], table.iloc[:, 0], _spread(table)))
        for metric in PAIR_METRICS:
            table = scores.aligned([("base", metric, single)], prompts)
            if len(table):
                best = 0.0 if metric == "lpips" else 1.0
                ceiling = pd.Series(best, index=table.index)
                found.append(_anchor(metric, single, table.iloc[:, 0], ceiling, scores.noise(single, metric, prompts)))
    return found


def _spread(table: pd.DataFrame) -> float:
    """Deviation of the single's score between seeds of a prompt."""
    deviations = table.iloc[:, 0].groupby(level=["set", "prompt"]).std()
    return float(deviations.mean())


def _anchor(metric: str, single: str, floor: pd.Series, ceiling: pd.Series, noise: float) -> Anchor:
    """Blind: the ceiling is not above the floor (LPIPS: below) by two standard errors, over prompts or else seeds."""
    difference = (ceiling - floor) * (-1 if metric == "lpips" else 1)
    means = _clusters(difference.to_frame())[:, 0]
    sample = means if len(means) > 1 else difference.to_numpy(float)
    error = sample.std(ddof=1) / np.sqrt(len(sample)) if len(sample) > 1 else 0.0
    blind = sample.mean() <= max(2 * error, 1e-3)
    return Anchor(metric, single, float(floor.mean()), float(ceiling.mean()), noise, bool(blind))


def findings(
    scores: Scores, variants: Sequence[str], adapters: Sequence[str], calling: Mapping[str, set[str]]
) -> list[Finding]:
    """Recovery, similarity, leakage and preservation of every variant, with the paired tests against the stack."""
    rows: list[Finding] = []
    tests: list[tuple[int, float]] = []

    def add(quantity: str, variant: str, metric: str, reference: str, columns: list[tuple[str, str, str]],
            prompts: set[str], statistic: object, gain: object) -> None:  # fmt: skip
        table = scores.aligned(columns, prompts)
        if not len(table):
            return
        means = _clusters(table)
        estimate = interval(means, statistic)  # type: ignore[arg-type]
        if statistic is _first and metric in _RANGES:  # what no value can be is no part of an interval
            low, high = np.clip([estimate.low, estimate.high], *_RANGES[metric]).tolist()
            estimate = Interval(estimate.estimate, low, high)
        rows.append(Finding(quantity, variant, metric, reference, estimate))
        if variant.startswith("merge:") and gain is not None:
            against = scores.aligned([columns[0], ("stack", *columns[0][1:])], prompts)
            if len(against):
                pair = _clusters(against)
                tests.append((len(rows) - 1, sign_flip(pair[:, 0] - pair[:, 1])))
                if quantity in ("recovery", "similarity"):
                    mine, other = (against.iloc[:, i].to_numpy(float) for i in (0, 1))
                    share = win_rate(mine, other, higher_is_better=metric != "lpips")
                    rows.append(Finding("wins over the stack", variant, metric, reference, Interval(share, NAN, NAN)))

    untriggered = {prompt for prompt, called in calling.items() if not called}
    for variant in variants:
        for name in adapters:
            single = f"single:{name}"
            calling_it = {prompt for prompt, called in calling.items() if name in called}
            not_calling = {prompt for prompt, called in calling.items() if name not in called}
            for metric in CONCEPT_METRICS:
                columns = [(variant, metric, single), ("base", metric, single), (single, metric, single)]
                add("recovery", variant, metric, single, columns, calling_it, _ratio, True)
                add("leakage", variant, metric, single, columns[:2], not_calling, _difference, True)
            for metric in PAIR_METRICS:
                add("similarity", variant, metric, single, [(variant, metric, single)], calling_it, _first, True)
        for metric in CONCEPT_METRICS:
            add("preservation", variant, metric, "", [(variant, metric, ""), ("base", metric, "")], untriggered,
                _difference, True)  # fmt: skip
        for metric in PAIR_METRICS:
            add("preservation", variant, metric, "base", [(variant, metric, "base")], untriggered, _first, True)
            add("similarity", variant, metric, "stack", [(variant, metric, "stack")], set(calling), _first, None)
        for metric, reference in scores.of_ones_own(variant):
            add("score", variant, metric, reference, [(variant, metric, reference)], set(calling), _first, None)
    corrected = holm([p for _, p in tests])
    for (index, _), p in zip(tests, corrected):
        row = rows[index]
        rows[index] = Finding(row.quantity, row.variant, row.metric, row.reference, row.interval, p)
    return rows


def _first(means: Array) -> Array:
    return means[..., 0]


def _difference(means: Array) -> Array:
    return means[..., 0] - means[..., 1]
