"""What becomes of the scores of many merges: the frame, findings, contrasts; how each grows with the merges."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from benchmarks.gpu.session import Found, Session
from benchmarks.measuring import anonymous_bytes, measured, timed
from experiments.scale.timing import worked
from mergelab.evaluation.analysis.contrasts import contrasts
from mergelab.evaluation.analysis.findings import findings
from mergelab.evaluation.concluding import _prepared, concluded, primary_of
from mergelab.evaluation.config import Config
from mergelab.evaluation.failures import Failures
from mergelab.evaluation.grid import COLUMNS, Grid
from mergelab.evaluation.metrics.clip import ClipImage, ClipText
from mergelab.evaluation.metrics.lpips import Lpips
from mergelab.evaluation.metrics.metric import Asked, Description, Metric, Picture
from mergelab.evaluation.report.tables import plain_table
from mergelab.evaluation.report.verdict import sentences
from mergelab.evaluation.sets import AdapterSet, adapter_sets, roles_of
from mergelab.evaluation.store import Store, to_json

METRICS = (ClipText.description, ClipImage.description, Lpips.description)
PROMPTS, SEEDS = 50, 4
"""Of every merge: 200 images, a quarter of the prompts calling both adapters, either or none."""


class Said(Metric):
    """A metric that is there by its description alone."""

    def __init__(self, description: Description) -> None:
        self.description = description

    def score(self, picture: Picture, asked: Asked) -> dict[str, float]:
        """Never asked."""
        raise NotImplementedError


def units(session: Session, sizes: Sequence[int]) -> None:
    """The frame, then the rest for so many merges, as long as there is time."""
    session.unit("rows of the frame", 10, partial(rows, session))
    for count in sizes:
        session.unit(f"{count} merges", 30 + 2 * count, partial(concluding, session.folder, count))


def settings(merges: int) -> Config:
    """So many merges of two adapters, fifty prompts, four seeds."""
    words = ["a photo of a sks in szn style, {}", "a photo of a sks, {}", "a photo in szn style, {}", "a photo, {}"]
    return Config(
        pipeline="black-forest-labs/FLUX.1-dev",
        loras=[
            {"path": "subject.safetensors", "name": "subject", "concept": "a photo of a sks", "trigger": "sks"},
            {"path": "style.safetensors", "name": "style", "concept": "in szn style", "trigger": "szn"},
        ],  # type: ignore[list-item]
        merges=[{"method": "ties", "density": [round(0.1 + 0.8 * n / merges, 6) for n in range(merges)]}],
        prompts=[words[number % 4].format(number) for number in range(PROMPTS)],
        seeds=SEEDS,  # type: ignore[arg-type]
        metrics=[metric.name for metric in METRICS],
    )


def frame(config: Config, one: AdapterSet) -> pd.DataFrame:
    """Scores as a run has them: every variant against words and against base, each adapter alone and the stack."""
    random = np.random.default_rng(0)
    labels = [f"merge:ties density={entry:.6g}" for entry in config.merges[0]["density"]]
    fixed = ["base", "single:subject", "single:style", "stack"]
    prompts = [(prompt.index, prompt.text, "+".join(sorted(prompt.calls))) for prompt in one.prompts]
    hard = random.normal(0, 0.02, len(prompts))
    parts = []
    for place, variant in enumerate([*fixed, *labels]):
        good = {"base": -0.2, "stack": 0.02}.get(variant, 0.0) + 0.03 * np.sin(place)
        for metric in METRICS:
            words = metric.compares_with == "words"
            for about in ["", "single:subject", "single:style"] if words else fixed:
                if about == variant and not words:
                    continue
                shape = (len(prompts), SEEDS)
                found = 0.5 + good + hard[:, None] + random.normal(0, 0.03, shape)
                if about.startswith("single:") and variant not in ("base", *{*fixed[1:3]} - {about}):
                    found += 0.2 if about == variant else 0.15
                index = [(i, t, c, s) for i, t, c in prompts for s in range(SEEDS)]
                part = pd.DataFrame(index, columns=["prompt_id", "prompt", "calls", "seed"])
                parts.append(part.assign(set=one.name, variant=variant, metric=metric.name, reference=about,
                                         reference_seed=part["seed"], value=found.ravel(), image="x.png"))  # fmt: skip
    return pd.concat(parts, ignore_index=True)[list(COLUMNS)]


def rows(session: Session) -> Found:
    """A row of the frame as the driver collects it: seconds to append and to make the frame, bytes of both."""
    count = 2000 if session.small else 200_000
    cell = {"set": "subject+style", "variant": "merge:ties density=0.3", "prompt_id": 3,
            "prompt": "a sks in szn style", "calls": "subject+style", "seed": 2, "image": 36 * "0"}  # fmt: skip

    def collected() -> list[dict[str, Any]]:
        return [cell | {"metric": "lpips", "reference": "single:subject", "reference_seed": 2, "value": number / count}
                for number in range(count)]  # fmt: skip

    before = anonymous_bytes()
    found, collecting = timed(collected)
    held = anonymous_bytes() - before
    with measured() as making:
        whole = pd.DataFrame(found, columns=list(COLUMNS))
    _, writing = timed(lambda: whole.to_parquet(session.folder / "scores.parquet", index=False))
    return {
        "collect_per_row": collecting / count, "held_per_row": held / count,
        "frame_per_row": making.seconds / count, "peak_per_row": making.peak / count,
        "parquet_per_row": writing / count,
    }  # fmt: skip


def concluding(folder: Path, merges: int) -> Found:
    """From the frame of so many merges to what is found: the processor's seconds, which other work does not change."""
    config = settings(merges)
    sets = adapter_sets(config)
    scores = frame(config, sets[0])
    grid = Grid(config, Store(folder), sets, [], {}, False, Failures())
    (known, ranges, variants), preparing = worked(lambda: _prepared(scores, METRICS, sets))
    roles = roles_of(sets)
    primary, first = worked(lambda: primary_of(known, METRICS, ranges, roles))
    contrasted, contrasting = worked(lambda: contrasts(known, METRICS, variants, roles, primary))
    found, finding = worked(lambda: findings(known, METRICS, variants, dict.fromkeys(roles, True)))
    result, whole = worked(lambda: concluded(grid, scores, [Said(metric) for metric in METRICS]))
    said, saying = worked(lambda: (sentences(result), plain_table(result)))
    text, writing = worked(lambda: to_json([one.to_json() for one in result.contrasts]))
    assert said and len(result.contrasts) == len(contrasted)
    return {
        "rows": len(scores), "prepare": preparing, "primary": first, "contrasts": contrasting, "pairs": len(contrasted),
        "findings": finding, "number": len(found), "concluded": whole, "words": saying,
        "contrasts_json": writing, "contrasts_bytes": len(text.encode()), "verdict": json.dumps(said[0][:2]),
    }  # fmt: skip
