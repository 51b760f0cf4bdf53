"""One picture of a run, for a README or a slide: `python -m experiments.evaluation.pictures RUN -o PICTURE.png`."""

from __future__ import annotations

import argparse
import textwrap
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import pandas as pd
from PIL import Image

from mergelab.evaluation.names import display_name


def picture(run: Path, target: Path, seed: int | None, prompts: int, of: str | None = None) -> None:
    """A row for each of the first prompts of a set of adapters, a column for each variant, all from the same noise."""
    scores = pd.read_parquet(run / "scores.parquet")
    scores = scores[scores["set"] == (scores["set"].iloc[0] if of is None else of)]
    seed = scores["seed"].iloc[0] if seed is None else seed
    files = scores[scores["seed"] == seed].groupby(["prompt", "variant"])["image"].first()
    rows, columns = list(scores["prompt"].unique())[:prompts], list(scores["variant"].unique())
    figure, axes = plt.subplots(
        len(rows), len(columns), figsize=(1.25 * len(columns), 1.45 * len(rows)), squeeze=False, layout="constrained"
    )
    figure.get_layout_engine().set(h_pad=0.1)  # room for the prompts
    for number, (line, prompt) in enumerate(zip(axes, rows)):
        for axis, variant in zip(line, columns):
            axis.axis("off")
            if (prompt, variant) in files:
                with Image.open(run / "images" / files[prompt, variant]) as image:
                    axis.imshow(image, interpolation="nearest" if max(image.size) <= 96 else "antialiased")
            if number == 0:
                axis.text(
                    0.5,
                    1.2,
                    textwrap.fill(display_name(variant), 14),
                    ha="center",
                    fontsize=7,
                    transform=axis.transAxes,
                )
        line[0].text(0, 1.04, prompt, fontsize=7, transform=line[0].transAxes, color="dimgray", in_layout=False)
    figure.savefig(target, dpi=100)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path, help="folder of a run")
    parser.add_argument("-o", "--output", type=Path, required=True, help="PNG to write")
    parser.add_argument("--seed", type=int, help="which seed; the first of the run if left out")
    parser.add_argument("--prompts", type=int, default=3, help="how many prompts")
    parser.add_argument("--set", help="which set of adapters; the first of the run if left out")
    known = parser.parse_args()
    picture(known.run, known.output, known.seed, known.prompts, known.set)
