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

import mergelab as ml
from benchmarks.measuring import Measured, measured


def reading_and_writing(inputs: Sequence[Path], output: Path) -> Measured:
    """Read every tensor of the inputs into memory and write the output again, with safetensors.

    The shortest of several runs, with one thread and with all. The output's tensors are read before the clock starts.
    (`load_file` maps a file; the copy is what reads it.)
    """
    tensors = {key: tensor.clone() for key, tensor in load_file(output).items()}
    copy = output.with_suffix(".floor")
    best, threads = None, torch.get_num_threads()
    for count in sorted({1, threads}) * 2:
        torch.set_num_threads(count)
        with measured() as took:
            for path in inputs:
                for tensor in load_file(path).values():
                    tensor.clone()
            save_file(tensors, copy)
        best = took if best is None or took.seconds < best.seconds else best
    torch.set_num_threads(threads)
    copy.unlink()
    assert best is not None
    return best


def forming(adapters: Sequence[ml.Adapter], device: str) -> dict[str, Any]:
    """Seconds, and processor seconds, of `torch.matmul(lora_B, lora_A)` in float32 for all layers of all adapters.

    Once as anybody would write it, where a large result comes in new memory each time, and once into one buffer of the
    largest layer, which saves the system the work of handing out pages.
    """
    size = max(math.prod(layer.shape) for adapter in adapters for layer in adapter.layers.values())
    buffer = torch.empty(size, device=device)
    plain, preallocated = np.zeros(2), np.zeros(2)
    for adapter in adapters:
        for name in adapter.layers:
            b, a = adapter.matrices(name, device)
            out = buffer[: len(b) * a.shape[1]].view(len(b), a.shape[1])
            plain += _seconds(b, a, None)
            preallocated += _seconds(b, a, out)
    return {"plain": plain.tolist(), "preallocated": preallocated.tolist()}


@torch.no_grad()
def _seconds(b: torch.Tensor, a: torch.Tensor, out: torch.Tensor | None) -> Any:
    _wait(b)
    start = np.array([time.perf_counter(), time.process_time()])
    torch.matmul(b, a, out=out)
    _wait(b)
    return np.array([time.perf_counter(), time.process_time()]) - start


def _wait(tensor: torch.Tensor) -> None:
    if tensor.is_cuda:
        torch.cuda.synchronize()
