"""Seconds and peak memory of fusing into a checkpoint: a synthetic FLUX transformer of a chosen size, in bfloat16.

python -m benchmarks.fusing --gigabytes 6 --rank 16
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from safetensors.torch import save_file

from benchmarks.measuring import measured

WIDTH = 3072
MODULES = {
    "linear1": (7 * WIDTH, WIDTH),
    "linear2": (WIDTH, 5 * WIDTH),
    "modulation.lin": (3 * WIDTH, WIDTH),
}
"""The modules of a block of one stream in the original FLUX.1, of which there are up to 38."""


def write_base(path: Path, gigabytes: float) -> int:
    """A file of so many bytes at least: whole blocks, and what is no layer beside them. Returns how many blocks."""
    tensors, size, blocks = {"first_stage_model.filler": torch.zeros(1024, 1024, dtype=torch.bfloat16)}, 0, 0
    while size < gigabytes * 1e9 and blocks < 38:
        for name, shape in MODULES.items():
            tensors[f"single_blocks.{blocks}.{name}.weight"] = torch.zeros(shape, dtype=torch.bfloat16)
            size += 2 * shape[0] * shape[1]
        blocks += 1
    save_file(tensors, path)
    return blocks


def write_adapter(path: Path, blocks: int, rank: int) -> None:
    """An adapter of all of them, in the original names."""
    tensors = {}
    for block in range(blocks):
        for name, (rows, columns) in MODULES.items():
            module = f"diffusion_model.single_blocks.{block}.{name}"
            tensors[f"{module}.lora_A.weight"] = torch.randn(rank, columns).to(torch.bfloat16)
            tensors[f"{module}.lora_B.weight"] = 1e-3 * torch.randn(rows, rank).to(torch.bfloat16)
    save_file(tensors, path)


def resident_peak() -> int:
    """The most memory that this process has held, mapped files included (`ru_maxrss` would begin with its parent's)."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return int(found[1]) * 1024 if found else 0


def fuse(folder: Path) -> dict[str, float]:
    """One fuse in this process, as `mergelab fuse` does it."""
    import mergelab as ml

    adapter = ml.load(folder / "adapter.safetensors", architecture="flux")
    with measured() as found:
        written = ml.fuse_checkpoint(folder / "base.safetensors", adapter, folder / "fused.safetensors", overwrite=True)
    return {
        "tensors": len(written.changed),
        "gigabytes": round((folder / "fused.safetensors").stat().st_size / 1e9, 2),
        "seconds": round(found.seconds, 1),
        "processor_seconds": round(found.processor_seconds, 1),
        "peak_above_start_gb": round(found.peak / 1e9, 2),
        "peak_of_process_gb": round(resident_peak() / 1e9, 2),
    }


def main() -> None:
    """Writes the files in one process, fuses in another, whose memory is measured."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gigabytes", type=float, default=6)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--within", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.within:
        print(json.dumps(fuse(options.within)))
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_adapter(
            folder / "adapter.safetensors", write_base(folder / "base.safetensors", options.gigabytes), options.rank
        )
        subprocess.run([sys.executable, "-m", "benchmarks.fusing", "--within", name], check=True)


if __name__ == "__main__":
    main()
