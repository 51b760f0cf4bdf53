"""The power of the paired difference of two merges, from images of a miniature model.

    python -m experiments.evaluation.power runs/power

Draws 96 prompts that call ghost and stripes, with one seed, in the stack and in four merges, then draws 12 of the
prompts 4,000 times and counts, on the joint score by the judge (the lesser of the two adapters' probabilities), how
often the paired interval excludes zero, how often the sign-flip p value is at most .05, and how often the two marginal
intervals overlap. The least effect is the shift of the very same differences with which the interval excludes zero in
85 % of the draws.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from itertools import combinations

import numpy as np
import pandas as pd
from numpy.typing import NDArray

import mergelab as ml
from mergelab.evaluation.statistics import Array, Range, Units, difference_interval, mean_interval, sign_flip
from mergelab.miniature.world import BACKGROUNDS

SIZES = ("", "large ", "small ")
WORDINGS = (
    "a {size}sks on a {ground} background in vtx style",
    "a {size}sks in vtx style on a {ground} background",
    "the {size}sks on the {ground} background in vtx style",
    "a picture of a {size}sks on a {ground} background in vtx style",
    "a photo of a {size}sks on a {ground} background in vtx style",
)
PROMPTS = [
    *(text.format(size=size, ground=ground) for text in WORDINGS for size in SIZES for ground in BACKGROUNDS),
    *(text.format(size=size) for text in ("a {size}sks in vtx style", "the {size}sks in vtx style") for size in SIZES),
]
"""Sizes, grounds and wordings; six of them name no ground."""

CONFIG = {
    "pipeline": "miniature/sdxl",
    "loras": ["miniature/sdxl/ghost", "miniature/sdxl/stripes"],
    "merges": [
        {"method": "ties", "space": "core", "rank": 8},
        {"method": "svd", "rank": 8},
        {"method": "ties", "space": ["core", "delta"], "density": 0.3, "rank": 8},
    ],
    "prompts": PROMPTS,
    "seeds": [0],
    "generation": {"steps": 12, "batch": 4},
    "metrics": ["judge"],
}
ZERO_ONE = Range(0, 1)


def joint(scores: pd.DataFrame) -> pd.DataFrame:
    """The lesser of the adapters' probabilities: a row for each prompt, a column for each variant."""
    rows = scores[(scores.metric == "judge") & scores.reference.str.startswith("single:")]
    return rows.groupby(["prompt", "variant"]).value.min().unstack("variant")


def picks(pool: int, prompts: int, draws: int) -> NDArray[np.intp]:
    """Prompts of each draw, without replacement."""
    return np.argsort(np.random.default_rng(0).random((draws, pool)), axis=1)[:, :prompts]


def shares(first: Array, second: Array, chosen: NDArray[np.intp]) -> tuple[float, float, float]:
    """How often the paired interval excludes zero, the sign-flip p value is at most .05, marginal intervals overlap."""
    units = Units(range(chosen.shape[1]))
    found = []
    for rows in chosen:
        paired = difference_interval(first[rows], second[rows], units, ZERO_ONE)
        one, other = (mean_interval(scores[rows], units, ZERO_ONE) for scores in (first, second))
        excludes = paired.low > 0 or paired.high < 0
        overlap = one.low <= other.high and other.low <= one.high
        found.append((excludes, sign_flip(first[rows] - second[rows]) <= 0.05, overlap))
    return tuple(np.mean(found, axis=0).tolist())


def least_effect(first: Array, second: Array, chosen: NDArray[np.intp], power: float = 0.85) -> float:
    """The mean difference, were the same differences shifted, that is told from zero with this power."""
    units = Units(range(chosen.shape[1]))
    centred = first - second - (first - second).mean()
    none = np.zeros(chosen.shape[1])

    def told(shift: float) -> bool:
        lows = [difference_interval(centred[rows] + shift, none, units).low for rows in chosen]
        return float(np.mean(np.array(lows) > 0)) >= power

    return _least(told, 0.0, 2.0)


def _least(enough: Callable[[float], bool], low: float, high: float) -> float:
    """By halving."""
    for _ in range(10):
        middle = (low + high) / 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high


def main() -> None:
    """Draws what is missing in the run folder, and prints a table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", help="run folder of the pool")
    parser.add_argument("--prompts", type=int, default=12)
    parser.add_argument("--draws", type=int, default=4000)
    arguments = parser.parse_args()
    ml.evaluate(CONFIG, arguments.out)
    scores = joint(pd.read_parquet(f"{arguments.out}/scores.parquet"))
    chosen = picks(len(scores), arguments.prompts, arguments.draws)
    print(
        "| first | second | means | difference | deviation | told apart | p <= .05 | marginals overlap "
        "| least effect, 85 % |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    for names in combinations([name for name in map(str, scores) if name.startswith("merge:") or name == "stack"], 2):
        first, second = (scores[name].to_numpy(float) for name in names)
        told, significant, overlap = shares(first, second, chosen)
        gap = first - second
        cells = [
            *(name.removeprefix("merge:") for name in names),
            f"{first.mean():.2f}, {second.mean():.2f}",
            *(f"{value:.2f}" for value in (gap.mean(), gap.std(ddof=1))),
            *(f"{value:.0%}" for value in (told, significant, overlap)),
            f"{least_effect(first, second, chosen[:1000]):.2f}",
        ]
        print("| " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
