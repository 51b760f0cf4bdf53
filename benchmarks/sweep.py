"""A sweep of twelve recipes against its dearest single merge: `python -m benchmarks.sweep --arch flux --layers 60`.

Prints one JSON object; progress goes to standard error.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

import mergelab as ml
from benchmarks.architectures import NAMES, sampled, usual_layers
from benchmarks.full_size import say
from benchmarks.measuring import Measured, measured
from benchmarks.synthetic import write_adapter

Recipes = list[dict[str, Any]]
DENSITIES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8)
SWEEPS: dict[str, Recipes] = {
    # What one tries who does not know yet which method to take.
    "mixed": [
        *({"method": "svd", "rank": rank} for rank in (8, 16, 32, 64)),
        *({"method": "ties", "density": density, "rank": 32} for density in (0.3, 0.5, 0.7)),
        *({"method": "ties", "density": 0.5, "rank": rank} for rank in (16, 64)),
        *({"method": "ties", "space": "core", "density": density, "rank": 32} for density in (0.3, 0.5)),
        {"method": "dare", "density": 0.5, "rank": 32},
    ],
    "svd at twelve ranks": [{"method": "svd", "rank": rank} for rank in range(8, 104, 8)],
    "ties at twelve ranks": [{"method": "ties", "rank": rank} for rank in range(8, 104, 8)],
    "ties at three ranks and four densities": [
        {"method": "ties", "density": density, "rank": rank} for density in DENSITIES[1::2] for rank in (16, 32, 64)
    ],
    "ties in core space at three ranks and four densities": [
        {"method": "ties", "space": "core", "density": density, "rank": rank}
        for density in DENSITIES[1::2]
        for rank in (16, 32, 64)
    ],
}


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python -m benchmarks.sweep", description=__doc__)
    parser.add_argument("--arch", choices=NAMES, required=True)
    parser.add_argument("--adapters", type=int, default=4)
    parser.add_argument("--rank", type=int, default=32, help="of every adapter")
    parser.add_argument("--sweep", choices=list(SWEEPS), default="mixed")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--layers", type=int, help="only so many, evenly spaced; default all")
    parser.add_argument("--repeats", type=int, default=1, help="of each merge and of the sweep; the shortest counts")
    parser.add_argument("--folder", type=Path, help="where to keep the synthetic adapters; default: nowhere")
    return parser


def main(words: Sequence[str] | None = None) -> dict[str, Any]:
    """Measure what the command line asks for, print it and return it."""
    args = arguments().parse_args(words)
    layers = sampled(usual_layers(args.arch), args.layers)
    recipes = SWEEPS[args.sweep]
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        stem = f"{args.arch}-{len(layers)}-r{args.rank}"
        paths = [write_adapter(folder / f"{stem}-{i}.safetensors", layers, args.rank, i) for i in range(args.adapters)]
        settings: dict[str, Any] = {"device": args.device, "progress": False}
        ml.merge(paths, **settings)  # libraries and files are there
        alone: list[Measured] = []
        for recipe in recipes:
            alone.append(_shortest(lambda recipe=recipe: [ml.merge(paths, **recipe, **settings)], args.repeats))
            say(f"{recipe}: {alone[-1].processor_seconds:.1f} processor seconds")
        together = _shortest(lambda: ml.merge_many(paths, recipes, **settings), args.repeats)
    dearest = max(found.processor_seconds for found in alone)
    result = {
        "sweep": args.sweep,
        "arch": args.arch,
        "layers": len(layers),
        "adapters": args.adapters,
        "threads": torch.get_num_threads(),
        "device": args.device,
        "load": round(os.getloadavg()[0], 1),
        "processor seconds of each": [round(found.processor_seconds, 2) for found in alone],
        "of all, one by one": round(sum(found.processor_seconds for found in alone), 2),
        "of the sweep": round(together.processor_seconds, 2),
        "seconds of the sweep": round(together.seconds, 2),
        "times the dearest": round(together.processor_seconds / dearest, 2),
        "peak without the results, MB": round(together.peak / 1e6),
        "of the largest single merge, MB": round(max(found.peak for found in alone) / 1e6),
    }
    print(json.dumps(result, indent=2))
    return result


def _shortest(merge: Callable[[], list[ml.Adapter]], repeats: int) -> Measured:
    """Of some runs that which took the processor the least, the results not counted in its peak of memory."""
    runs = []
    for _ in range(repeats):
        with measured() as found:
            merges = merge()
        factors = (x for merged in merges for layer in merged.layers.values() for x in (layer.lora_A, layer.lora_B))
        found.peak -= sum(x.numel() * x.element_size() for x in factors)
        runs.append(found)
        del merges
    return min(runs, key=lambda found: found.processor_seconds)


if __name__ == "__main__":
    main()
