"""What an entry costs in the dense stage, in this checkout and in another: `python -m benchmarks.blocks OTHER`.

Both are imported into one process and called in turn, so that what else the machine does meets both.
"""

from __future__ import annotations

import argparse
import importlib
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

HERE = Path(__file__).parent.parent
_MODULES = [
    f"mergelab.{name}"
    for name in (
        *("linalg.stacks", "linalg.workspace", "linalg.lowrank"),
        *("engine.blocks", "engine.job", "methods.registry"),
    )
]
SHAPES = ((640, 640), (1280, 1280), (3072, 3072))


def main(words: Sequence[str] | None = None) -> None:
    """Print nanoseconds of the processor for each entry of each matrix, one thread."""
    parser = argparse.ArgumentParser("python -m benchmarks.blocks", description=__doc__)
    parser.add_argument("other", type=Path, nargs="?", default=HERE, help="folder of another checkout")
    parser.add_argument("--adapters", type=int, default=4)
    parser.add_argument("--rank", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=15, help="the shortest counts")
    args = parser.parse_args(words)
    torch.set_num_threads(1)
    for rows, columns in SHAPES:
        generator = torch.Generator().manual_seed(0)
        factors = [
            (torch.randn(rows, args.rank, generator=generator), torch.randn(args.rank, columns, generator=generator))
            for _ in range(args.adapters)
        ]
        both = [_calls(folder, factors) for folder in (args.other, HERE)]
        for name in both[0]:
            took = _shortest([calls[name] for calls in both], args.repeats)
            other, here = (1e9 * seconds / (args.adapters * rows * columns) for seconds in took)
            print(f"{rows} x {columns}  {name:<16}  {other:.2f}  {here:.2f}", flush=True)


def _calls(folder: Path, factors: Sequence[tuple[Tensor, Tensor]]) -> dict[str, Callable[[], object]]:
    """What is measured, with the code of a checkout."""
    for name in [name for name in sys.modules if name.partition(".")[0] == "mergelab"]:
        del sys.modules[name]
    sys.path.insert(0, str(folder.resolve()))
    try:
        stacks, workspace, lowrank, blocks, job, registry = map(importlib.import_module, _MODULES)
    finally:
        sys.path.pop(0)
    count = len(factors)
    stacked = stacks.ChangeStack(tuple(lowrank.Factors(b, a) for b, a in factors), (1.0,) * count)
    own, chance = workspace.Workspace(), job.LayerChance(0, "layer", range(count))
    ties = registry.strategy_of("ties", {})
    found = blocks.sparsifier_states(ties, [stacked], own)[0]

    def merged(method: str, prepared: Sequence[float] | None) -> Callable[[], object]:
        strategy = registry.strategy_of(method, {})
        return torch.no_grad()(lambda: blocks.merge_stack(strategy, stacked, chance, prepared, own))

    return {
        "thresholds": lambda: blocks.sparsifier_states(ties, [stacked], own),
        "ties": merged("ties", found),
        "magnitude_prune": merged("magnitude_prune", found),
        "dare": merged("dare", None),
    }


def _shortest(calls: Sequence[Callable[[], object]], repeats: int) -> list[float]:
    """Processor seconds of each, called in turn."""
    took: list[list[float]] = [[] for _ in calls]
    for _ in range(repeats):
        for call, own in zip(calls, took):
            start = time.process_time()
            call()
            own.append(time.process_time() - start)
    return [min(own) for own in took]


if __name__ == "__main__":
    main()
