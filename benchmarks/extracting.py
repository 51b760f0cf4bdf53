"""Seconds and peak memory of extracting an adapter: two synthetic FLUX transformers of a chosen size, in bfloat16.

python -m benchmarks.extracting --gigabytes 6 --rank 16
"""

from __future__ import annotations

import argparse
import json
import struct
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.fusing import MODULES, resident_peak
from benchmarks.measuring import measured

BLOCKS = 38
TRUE_RANK = 16
"""Of the change between the two, which the rounding to bfloat16 makes one of full rank."""


def shapes(gigabytes: float) -> dict[str, tuple[int, ...]]:
    """The tensors of a file of so many bytes at least, or of all blocks."""
    found: dict[str, tuple[int, ...]] = {}
    for block in range(BLOCKS):
        if sum(2 * rows * columns for rows, columns in found.values()) >= gigabytes * 1e9:
            break
        found |= {f"single_blocks.{block}.{name}.weight": shape for name, shape in MODULES.items()}
    return found


def pairs(layers: dict[str, tuple[int, ...]]) -> Iterator[tuple[Tensor, Tensor]]:
    """Of each tensor the base model's and the tuned one's: a change of low rank, singular values falling by a tenth."""
    torch.manual_seed(0)
    falling = 0.9 ** torch.arange(TRUE_RANK)
    for rows, columns in layers.values():
        base = torch.randn(rows, columns).mul_(0.02).to(torch.bfloat16)
        change = (torch.randn(rows, TRUE_RANK) * (5e-4 * falling)) @ torch.randn(TRUE_RANK, columns)
        yield base, change.add_(base).to(torch.bfloat16)


def write(folder: Path, gigabytes: float) -> None:
    """The two files, tensor by tensor."""
    layers, end, entries = shapes(gigabytes), 0, {}
    for name, shape in layers.items():
        begin, end = end, end + 2 * shape[0] * shape[1]
        entries[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [begin, end]}
    head = json.dumps(entries).encode()
    with ExitStack() as stack:
        files = [stack.enter_context((folder / f"{name}.safetensors").open("wb")) for name in ("base", "tuned")]
        for file in files:
            file.write(struct.pack("<Q", len(head)) + head)
        for pair in pairs(layers):
            for file, tensor in zip(files, pair):
                file.write(tensor.view(torch.uint8).numpy().data)


def extract(folder: Path, rank: int) -> dict[str, float]:
    """One extraction in this process, as `mergelab extract` does it."""
    import mergelab as ml

    models = [folder / "tuned.safetensors", folder / "base.safetensors"]
    with measured() as found:
        adapter = ml.extract(*models, rank, architecture="flux", progress=False)
        adapter.save(folder / "adapter.safetensors", overwrite=True)
    return {
        "layers": len(adapter.layers),
        "gigabytes_each": round(models[0].stat().st_size / 1e9, 2),
        "seconds": round(found.seconds, 1),
        "processor_seconds": round(found.processor_seconds, 1),
        "relative_error": round(adapter.report.relative_error, 4),
        "peak_above_start_gb": round(found.peak / 1e9, 2),
        "peak_of_process_gb": round(resident_peak() / 1e9, 2),
    }


def main() -> None:
    """Writes the files in one process, extracts in another, whose memory is measured."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gigabytes", type=float, default=6)
    parser.add_argument("--rank", type=int, default=TRUE_RANK)
    parser.add_argument("--within", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.within:
        print(json.dumps(extract(options.within, options.rank)))
        return
    with tempfile.TemporaryDirectory() as name:
        write(Path(name), options.gigabytes)
        again = [sys.executable, "-m", "benchmarks.extracting", "--within", name, "--rank", str(options.rank)]
        subprocess.run(again, check=True)


if __name__ == "__main__":
    main()
