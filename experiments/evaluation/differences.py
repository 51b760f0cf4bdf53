"""How far two runs of one configuration are apart: images in steps of 255, scores by metric.

python -m experiments.evaluation.differences run-a run-b
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

CELL = ["variant", "prompt", "seed"]


def images(runs: list[Path], scores: pd.DataFrame) -> pd.DataFrame:
    """Largest and mean difference of a channel, for each variant."""
    rows = []
    for cell in scores.drop_duplicates(CELL).itertuples():
        first, second = (
            np.asarray(Image.open(run / "images" / name), dtype=int)
            for run, name in zip(runs, (cell.image_a, cell.image_b))
        )
        difference = abs(first - second)
        rows.append({"variant": cell.variant, "largest": difference.max(), "mean": difference.mean()})
    return pd.DataFrame(rows).groupby("variant", sort=False).agg({"largest": "max", "mean": "mean"})


def main() -> None:
    """Two tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs=2, type=Path)
    runs = parser.parse_args().runs
    first, second = (pd.read_parquet(run / "scores.parquet") for run in runs)
    both = first.merge(second, on=[*CELL, "metric", "reference", "reference_seed"], suffixes=("_a", "_b"))
    print(f"{len(both)} scores of {len(first)} and {len(second)} are of the same cell\n")
    print(images(runs, both).to_string(float_format="{:.6f}".format), "\n")
    change = (both.value_a - both.value_b).abs().groupby(both.metric)
    print(change.agg(["max", "mean"]).to_string(float_format="{:.6f}".format))


if __name__ == "__main__":
    main()
