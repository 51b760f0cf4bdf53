"""A whole run of the small SDXL again, when it is finished: what the driver does besides, and what it writes."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import mergelab as ml
from benchmarks.gpu.session import Found, Session
from experiments.scale.timing import seconds_by

PARTS = ("evaluate", "made_merges", "generate_missing", "score_all", "concluded", "render", "matrices", "pictures")
WRITTEN = ("report.html", "summary.json", "results.json", "journal.jsonl", "scores.parquet")


def units(session: Session, sizes: Sequence[int]) -> None:
    """For so many merges, two prompts and one seed each."""
    for count in sizes:
        session.unit(f"a finished run of {count} merges", 40 + count, partial(finished, session, count))


def finished(session: Session, merges: int) -> Found:
    """Seconds of its parts, all from what is kept; bytes of what it writes."""
    folder = session.folder / f"run-{merges}"
    config: dict[str, Any] = {
        "pipeline": "miniature/sdxl",
        "loras": ["miniature/sdxl/ghost", "miniature/sdxl/day"],
        "merges": [{"method": "ties", "space": "core", "density": [0.1 + 0.8 * n / merges for n in range(merges)]}],
        "prompts": ["a sks in szn style", "a sks"],
        "seeds": 1,
        "metrics": ["judge", "clip_image"],
        "generation": {"steps": 1, "batch": 8},
    }
    ml.evaluate(config, folder, progress=False)
    again = partial(ml.evaluate, config, folder, progress=False)
    seconds = seconds_by(again, PARTS)
    return {"seconds": seconds, "bytes": {name: (folder / name).stat().st_size for name in WRITTEN}}
