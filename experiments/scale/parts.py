"""Service times of the simulation, from the measured files beside this one."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MEASURED = Path(__file__).parent / "measured"
METRICS, ROWS, LOOKS = 3, 11, 5
"""Of an image: metrics that are kept, rows of the frame, and files that are looked for before it is scored."""


@dataclass(frozen=True)
class Parts:
    """Seconds, unless they are bytes, on one worker, one writer and one storage.

    Attributes:
        start, start_bytes: a worker opens the pipeline and the metrics' encoders, once their bytes are read.
        swap, adapter_bytes: another merge is fused in place of the last, once its file is read.
        draw, encode, image_bytes: one image on the GPU, as PNG on the processor, in storage.
        merge, keep: four merges made together; one hashed and written.
        score: one image, by all metrics.
        deal, record: the writer's time for a task and for what comes back.
        ask, drawn, scored: the writer's time for each image: before it is drawn, after it, after it is scored.
    """

    start: float
    start_bytes: float
    swap: float
    adapter_bytes: float
    draw: float
    encode: float
    image_bytes: float
    merge: float
    keep: float
    score: float
    deal: float
    record: float
    ask: float
    drawn: float
    scored: float


def found(name: str) -> dict[str, dict[str, Any]]:
    """Unit -> what a measured file says."""
    units = json.loads((MEASURED / f"{name}.json").read_text(encoding="utf-8"))["units"]
    return {unit["unit"]: unit["found"] for unit in units if "found" in unit}


def parts(arch: str, steps: int, batch: int, *, mended: bool = True, returned: bool = False) -> Parts:
    """Of a run with the models of one architecture on H100s.

    Args:
        arch: "flux" or "sdxl".
        steps, batch: one of those measured.
        mended: with what this experiment mended; else as it was found.
        returned: images come back as bytes, and the writer writes them.
    """
    first, second, here = found("h100-before"), found("h100"), found("cpu")
    swapped = (second if mended else first)[f"{arch}: adapters swapped"]
    merges, scores = second[f"{arch}: merges by ties"], second["scores of an image"]
    requests, journal, tasks = first["requests"], first["journal"], here["tasks by Ray"]
    image = first["images"]["photographs"]["levels"]["1" if mended else "6"]
    moved, made = first[f"{arch}: pipeline moved"], second[f"{arch}: pipeline"]
    brought = (tasks["images"] - tasks["keys"]) / tasks["cells"] + first["images"]["write_bytes"]
    rows = ROWS * here["rows of the frame"]["collect_per_row"]
    return Parts(
        start=moved["to_device"] + made["fingerprint"] + scores["open"],
        start_bytes=made["bytes"],
        swap=sum(swapped[f"another_{number}"] for number in range(3)) / 3,
        adapter_bytes=merges["bytes"],
        draw=second[f"{arch}: {steps} steps, batch {batch}"]["per_image"],
        encode=image["seconds"],
        image_bytes=image["bytes"],
        merge=merges["four"],
        keep=merges["keep"],
        score=scores["load"] + scores["encode_one"] + scores["lpips_of_four"],
        deal=tasks["keys"] / 2,
        record=tasks["keys"] / 2,
        ask=requests["hash"] + requests["exists"],
        drawn=journal["append"] + (brought if returned else 0.0),
        scored=METRICS * (requests["hash"] + journal["append"]) + LOOKS * requests["exists"] + rows,
    )
