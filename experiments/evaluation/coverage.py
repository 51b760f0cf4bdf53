"""How often the intervals of an evaluation hold the truth: a table for scores of every shape and designs of every size.

    python -m experiments.evaluation.coverage --runs 2000 --workers 2

Scores have exactly the distribution that is named. Images are alike through normal scores: sets of LoRAs share 20 % of
the variance of all, prompts 30 %, and two variants correlate by .7 at every level. With two to four sets the truth is
that of the very sets that were drawn, as `Units` says.
"""

from __future__ import annotations

import argparse
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import Any

import numpy as np
from scipy import stats
from scipy.special import ndtr, stdtrit

from mergelab.evaluation.statistics import (
    Array,
    Interval,
    Range,
    Units,
    difference_interval,
    mean_interval,
    recovery_interval,
)
from mergelab.evaluation.statistics.moments import moments

SET, PROMPT, ALIKE = 0.2, 0.3, 0.7
ANY, ZERO_ONE = Range(), Range(0, 1)


@dataclass(frozen=True)
class Layout:
    """Sets, prompts of each, seeds of each."""

    sets: int
    prompts: int
    seeds: int

    def __str__(self) -> str:
        return f"{self.sets} x {self.prompts} x {self.seeds}"

    def units(self) -> Units:
        """Labels of the images, in the order of `draw`."""
        cells = list(product(range(self.sets), range(self.prompts), range(self.seeds)))
        return Units([prompt for _, prompt, _ in cells], [number for number, _, _ in cells])


LAYOUTS = (
    *(Layout(1, prompts, seeds) for prompts in (6, 12, 24) for seeds in (1, 2)),
    *(Layout(sets, prompts, 1) for sets in (2, 3, 5, 8) for prompts in (6, 12)),
)


def bernoulli(p: float) -> Any:
    """0/1."""
    return stats.bernoulli(p)


@dataclass(frozen=True)
class Case:
    """One or more variants: one is a mean, two a difference, three a recovery (variant, base, single)."""

    name: str
    scores: tuple[Any, ...]
    range: Range = ANY

    @property
    def kind(self) -> str:
        """Of the interval."""
        return ("mean", "difference", "recovery")[len(self.scores) - 1]


def _cases() -> Iterator[Case]:
    normal, expon, beta = stats.norm, stats.expon, stats.beta
    positive = Range(0)
    yield Case("Gaussian", (normal(0.5, 0.2),))
    yield Case("exponential", (expon(),), positive)
    for p in (0.03, 0.5, 0.97):
        yield Case(f"0/1 at {p}", (bernoulli(p),), ZERO_ONE)
    for a, b in ((2, 8), (0.3, 0.3), (4, 0.2)):
        yield Case(f"beta({a}, {b})", (beta(a, b),), ZERO_ONE)

    yield Case("Gaussian, .2 apart", (normal(0.5, 0.2), normal(0.3, 0.3)))
    for scale in (1.0, 1.5):
        yield Case(f"exponential, means {scale} and 1", (expon(scale=scale), expon()), positive)
    for p, q in ((0.03, 0.03), (0.5, 0.5), (0.97, 0.97), (0.97, 0.9), (0.97, 0.5), (0.5, 0.2), (0.2, 0.03)):
        yield Case(f"0/1 at {p} and {q}", (bernoulli(p), bernoulli(q)), ZERO_ONE)
    for first, second in (((3, 8), (2, 8)), ((0.5, 0.3), (0.3, 0.5)), ((4, 0.2), (4, 0.5)), ((4, 0.2), (0.3, 0.3))):
        yield Case(f"beta{first} and beta{second}", (beta(*first), beta(*second)), ZERO_ONE)

    yield Case("Gaussian, .5", (normal(0.4, 0.2), normal(0.1, 0.1), normal(0.7, 0.15)))
    yield Case("exponential, .5", (expon(scale=0.6), expon(scale=0.2), expon()), positive)
    for p in (0.03, 0.5, 0.9, 0.97):
        yield Case(f"0/1 at {p} between .03 and .97", (bernoulli(p), bernoulli(0.03), bernoulli(0.97)), ZERO_ONE)
    yield Case("0/1 at .4 between .03 and .5", (bernoulli(0.4), bernoulli(0.03), bernoulli(0.5)), ZERO_ONE)
    yield Case("beta(5, 5) between (2, 8) and (8, 2)", (beta(5, 5), beta(2, 8), beta(8, 2)), ZERO_ONE)
    for a, b in ((0.5, 0.5), (4, 0.5)):
        scores = (beta(a, b), beta(0.2, 4), beta(4, 0.2))
        yield Case(f"beta({a}, {b}) between (.2, 4) and (4, .2)", scores, ZERO_ONE)


CASES = tuple(_cases())


def draw(case: Case, layout: Layout, runs: int, seed: int) -> tuple[list[Array], Array]:
    """Scores (runs, images) of each variant, and the truth of each run."""
    random = np.random.default_rng(seed)
    own = 0.0 if layout.sets == 1 else SET
    shares = np.sqrt([own, PROMPT, 1 - own - PROMPT])
    shapes = [(runs, layout.sets, 1, 1), (runs, layout.sets, layout.prompts, 1)]
    shapes.append((runs, layout.sets, layout.prompts, layout.seeds))
    common = [random.normal(size=shape) for shape in shapes]
    scores, truths = [], []
    for score in case.scores:
        levels = [np.sqrt(ALIKE) * c + np.sqrt(1 - ALIKE) * random.normal(size=c.shape) for c in common]
        latent = shares[0] * levels[0] + shares[1] * levels[1] + shares[2] * levels[2]
        scores.append(np.asarray(score.ppf(ndtr(latent)), dtype=float).reshape(runs, -1))
        if 1 < layout.sets < 5:
            inner = stats.norm.ppf((np.arange(400) + 0.5) / 400) * np.sqrt(1 - own)
            truths.append(score.ppf(ndtr(shares[0] * levels[0] + inner)).mean(axis=(1, 2, 3)))
        else:
            truths.append(np.full(runs, score.mean()))
    if case.kind == "mean":
        return scores, truths[0]
    if case.kind == "difference":
        return scores, truths[0] - truths[1]
    return scores, (truths[0] - truths[1]) / (truths[2] - truths[1])


def interval(case: Case, scores: Sequence[Array], units: Units) -> Interval:
    """As an evaluation computes it."""
    if case.kind == "mean":
        return mean_interval(scores[0], units, case.range)
    if case.kind == "difference":
        return difference_interval(scores[0], scores[1], units, case.range)
    return recovery_interval(scores[0], scores[1], scores[2], units, case.range)


def students(case: Case, scores: Sequence[Array], units: Units) -> Interval:
    """Student's interval of the mean, the difference or the linearised ratio, for comparison."""
    values, centre = scores[0], 0.0
    if case.kind == "difference":
        values = scores[0] - scores[1]
    if case.kind == "recovery":
        size = float(units.weights @ units.means(scores[2] - scores[1]))
        if abs(size) < 1e-12:
            return Interval(np.nan, np.nan, np.nan)
        centre = float(units.weights @ units.means(scores[0] - scores[1])) / size
        values = (scores[0] - scores[1] - centre * (scores[2] - scores[1])) / size
    means = units.means(values)
    error, df, _ = moments(means, units)
    centre += float(units.weights @ means)
    reach = float(stdtrit(df, 0.975)) * error
    return Interval(centre, centre - reach, centre + reach)


def coverage(case: Case, layout: Layout, runs: int) -> tuple[float, float]:
    """Share of the runs whose interval holds the truth: ours and Student's; runs without an interval do not count."""
    scores, truths = draw(case, layout, runs, zlib.crc32(f"{case.name} {layout}".encode()))
    units = layout.units()
    held = np.full((runs, 2), np.nan)
    for run, truth in enumerate(truths):
        found = [one(case, [score[run] for score in scores], units) for one in (interval, students)]
        held[run] = [np.nan if np.isnan(f.low) else f.low - 1e-9 <= truth <= f.high + 1e-9 for f in found]
    return tuple(np.nanmean(held, axis=0).tolist())


def main() -> None:
    """Three tables in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=2000)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--kind", nargs="+", choices=["mean", "difference", "recovery"])
    parser.add_argument("--layouts", type=int, nargs="+", help="numbers of the columns, from 0")
    arguments = parser.parse_args()
    layouts = [LAYOUTS[i] for i in arguments.layouts] if arguments.layouts else list(LAYOUTS)
    with ProcessPoolExecutor(arguments.workers) as pool:
        for kind in arguments.kind or ("mean", "difference", "recovery"):
            print(f"\n| {kind} | " + " | ".join(map(str, layouts)) + " |")
            print("|---|" + "---|" * len(layouts))
            for case in (case for case in CASES if case.kind == kind):
                cells = pool.map(partial(coverage, case, runs=arguments.runs), layouts)
                print(f"| {case.name} | " + " | ".join(_cell(*cell) for cell in cells) + " |", flush=True)


def _cell(ours: float, students: float) -> str:
    """In per cent; Student's in brackets."""
    shown = f"{100 * ours:.1f}"
    return f"{f'**{shown}**' if ours < 0.93 else shown} ({100 * students:.0f})"


if __name__ == "__main__":
    main()
