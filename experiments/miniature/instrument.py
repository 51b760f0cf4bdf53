"""What the miniature models can tell, as an instrument: measured, and kept in `RUNS/measured`."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

import mergelab as ml
from experiments.miniature.drawing import calling, generate, held_out, opened
from experiments.miniature.training import RUNS
from mergelab import miniature
from mergelab.miniature.judge import Verdict, judge
from mergelab.miniature.world import Scene, caption

STRENGTHS = (0.4, 0.55, 0.7, 0.85, 1.0, 1.3)
UNCALLED_AT = (0.0, 0.7, 1.0, 1.3)
EACH, OTHERS, STACKED, MERGED = 12, 12, 12, 4
"""Images of an adapter at one strength, of prompts that do not call it, of a pair's stack, and of a merge of it."""
FIRST = 5000
"""The first seed of the stacks' and merges' images: nothing was chosen by them, or by any near."""
MERGES: dict[str, dict[str, Any]] = {
    "svd 16": {"method": "svd", "rank": 16},
    "svd 8": {"method": "svd", "rank": 8},
}
"""Two close merges."""
Numbers = dict[str, Any]


def kept(name: str, section: str, measure: Callable[[], Numbers]) -> Numbers:
    """What was measured before, or is now."""
    path = RUNS / "measured" / f"{name}-{section}.json"
    if not path.exists():
        found = measure()
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(found))
    return json.loads(path.read_text())


def accuracy(verdict: Verdict, scenes: list[Scene]) -> dict[str, float]:
    """Share of images in which each attribute of the scene is the judged one."""
    return {
        name: float(np.mean([got == getattr(scene, name) for got, scene in zip(verdict.best(name), scenes)]))
        for name in ("object", "color", "background")
    }


def seen(verdict: Verdict, adapter: miniature.MiniatureAdapter) -> dict[str, list[float]]:
    """For each image whether an adapter's concept is what it shows, how probable, and how near it is."""
    attribute, name = ("object" if adapter.kind == "subject" else "style"), adapter.shows
    return {
        "shown": [float(best == name) for best in verdict.best(attribute)],
        "probability": verdict.probability(attribute, name).tolist(),
        "nearness": verdict.nearness(attribute, name).tolist(),
    }


def base(name: str) -> Numbers:
    """Accuracy of the base model on 200 prompts of held-out combinations, and of turbo in four steps."""
    pipeline, (scenes, prompts) = opened(name), zip(*held_out(200))
    found = {"20 steps": accuracy(judge(generate(name, pipeline, prompts, f"{name}: base")), list(scenes))}
    found["4 steps, no adapter"] = accuracy(
        judge(generate(name, pipeline, prompts, f"{name}: four steps", turbo=True)), list(scenes)
    )
    with ml.fused(pipeline, f"miniature/{name}/turbo"):
        images = generate(name, pipeline, prompts, f"{name}: turbo", turbo=True)
    return found | {"4 steps, turbo": accuracy(judge(images), list(scenes))}


def doses(name: str, adapter: miniature.MiniatureAdapter) -> Numbers:
    """One adapter over its strengths: called, and on the prompts of others; strength 0 is the base model."""
    pipeline = opened(name)
    called = [caption(scene) for scene in calling(adapter, EACH)]
    plain, uncalled = (list(part[::8]) for part in zip(*held_out(8 * OTHERS)))
    found: Numbers = {}
    for strength in (0.0, *STRENGTHS) if adapter.strength == 1 else (1.0,):
        with ml.fused(pipeline, str(adapter.path), strength * adapter.strength) if strength else nullcontext():
            own = seen(judge(generate(name, pipeline, called, f"{name}: {adapter.name} at {strength}")), adapter)
            if strength in UNCALLED_AT:
                other = judge(generate(name, pipeline, uncalled, ""))
                own |= {"uncalled": seen(other, adapter)["shown"], "accuracy": accuracy(other, plain)}
        found[str(strength)] = own
    return found


def stacks(name: str, subject: miniature.MiniatureAdapter, style: miniature.MiniatureAdapter) -> Numbers:
    """The stack of a pair and two merges on the prompts that call both."""
    pipeline = opened(name)
    scenes = [replace(scene, style=style.name) for scene in calling(subject, STACKED)]
    prompts, pair = [caption(scene) for scene in scenes], [str(subject.path), str(style.path)]

    def both(count: int, label: str) -> Numbers:
        verdict = judge(generate(name, pipeline, prompts[:count], label, first=FIRST))
        return {"subject": seen(verdict, subject), "style": seen(verdict, style)}

    found: Numbers = {}
    with ml.fused(pipeline, pair):
        found["stack"] = both(STACKED, f"{name}: {subject.name} + {style.name}")
    for label, options in MERGES.items():
        with ml.fused(pipeline, ml.merge(pair, [1.0, 1.0], **options)):
            found[label] = both(MERGED, "")
    return found


def cosines(name: str) -> Numbers:
    """Cosine between the changes of each two adapters, and the share of their subspaces that is shared."""
    known = [f"miniature/{name}/{adapter.name}" for adapter in miniature.adapters(name) if adapter.strength == 1]
    return {"pairs": [{key: row[key] for key in ("first", "second", "cosine", "shared_subspace")}
                      for row in ml.compare(known).totals()]}  # fmt: skip


def joint(part: Numbers, doses: dict[str, Numbers], names: tuple[str, str]) -> tuple[Tensor, Tensor]:
    """Per image the joint scores: the product of the judge's probabilities, and the lesser nearness.

    Each adapter's nearness is first put on its own scale, 0 the base model and 1 the adapter alone, in the mean.
    """
    probability = torch.tensor(part["subject"]["probability"]) * torch.tensor(part["style"]["probability"])
    near = []
    for kind, name in zip(("subject", "style"), names):
        low, high = (float(np.mean(doses[name][strength]["nearness"])) for strength in ("0.0", "1.0"))
        near.append((torch.tensor(part[kind]["nearness"]) - low) / (high - low))
    return probability, torch.stack(near).amin(0)


def saturated(values: Tensor) -> float:
    """The share that is within .05 of an end of the scale, or beyond."""
    return float(((values < 0.05) | (values > 0.95)).float().mean())


def pairs_needed(deviation: float, difference: float) -> int:
    """Pairs by which a mean difference is told from zero in four of five cases, by a paired test at .05."""
    return math.ceil(((1.960 + 0.842) * deviation / difference) ** 2)
