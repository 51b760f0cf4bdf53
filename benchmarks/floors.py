"""What no implementation can be faster than: reading and writing the files, or forming every change once."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import mergelab as ml
from benchmarks.measuring import Measured, measured, wait
from mergelab.linalg.lowrank import Factors


def reading_and_writing(inputs: Sequence[Path], output: Path, device: str = "cpu") -> Measured:
    """Read every tensor of the inputs into memory and write the output again, with safetensors.

    On a GPU every input is uploaded and the output downloaded, in as few pieces as can be: the bytes of a whole file.
    The shortest of several runs, with one thread and with all. The output's tensors are read before the clock starts.
    (`load_file` maps a file; the copy is what reads it.)
    """
    tensors = {key: tensor.clone() for key, tensor in load_file(output).items()}
    there = torch.from_numpy(np.fromfile(output, np.uint8)).to(device)
    copy = output.with_suffix(".floor")
    best, threads = None, torch.get_num_threads()
    for count in sorted({1, threads}) * 2:
        torch.set_num_threads(count)
        with measured() as took:
            for path in inputs:
                if device != "cpu":
                    torch.from_numpy(np.fromfile(path, np.uint8)).to(device)
                    continue
                for tensor in load_file(path).values():
                    tensor.clone()
            there.cpu()  # nothing is done where it is there already
            save_file(tensors, copy)
        best = took if best is None or took.seconds < best.seconds else best
    torch.set_num_threads(threads)
    copy.unlink()
    assert best is not None
    return best


def forming(adapters: Sequence[ml.Adapter], device: str) -> dict[str, Any]:
    """Seconds, and processor seconds, of `torch.matmul(lora_B, lora_A)` in float32 for all layers of all adapters.

    Once as anybody would write it, where a large result comes in new memory each time, and once into one buffer of the
    largest layer, which saves the system the work of handing out pages. On a GPU only so many adapters are there at a
    time as one, and the host waits once for each.
    """
    size = max(math.prod(layer.shape) for adapter in adapters for layer in adapter.layers.values())
    buffer = torch.empty(size, device=device)
    plain, preallocated = np.zeros(2), np.zeros(2)
    for adapter in adapters:
        changes = (adapter.matrices(name, device) for name in adapter.layers)
        for some in [[*changes]] if device != "cpu" else ([change] for change in changes):
            outs = [buffer[: len(b) * a.shape[1]].view(len(b), a.shape[1]) for b, a in some]
            plain += _seconds(some, [None] * len(some))
            preallocated += _seconds(some, outs)
    return {"plain": plain.tolist(), "preallocated": preallocated.tolist()}


@torch.no_grad()
def _seconds(changes: Sequence[Factors], outs: Sequence[Tensor | None]) -> Any:
    wait()
    start = np.array([time.perf_counter(), time.process_time()])
    for (b, a), out in zip(changes, outs):
        torch.matmul(b, a, out=out)
    wait()
    return np.array([time.perf_counter(), time.process_time()]) - start
