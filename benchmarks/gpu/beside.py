"""The same on the machine's own processor cores, and by PEFT on the same device."""

from __future__ import annotations

import math
from dataclasses import replace

import torch

import mergelab as ml
from benchmarks.architectures import sampled
from benchmarks.gpu.merging import ADAPTERS, Line, file_to_file, keywords_of
from benchmarks.gpu.session import Found, Session
from benchmarks.measuring import measured
from benchmarks.peers import peft_seconds


def on_cores(session: Session, line: Line) -> Found:
    """From files to a file on the CPU, with all of its cores."""
    output = session.folder / "cores.merged.safetensors"
    found = file_to_file(session, line, "cpu", output)
    output.unlink()
    return {"threads": torch.get_num_threads(), **found}


def sample_on_cores(session: Session, line: Line, count: int = 24) -> Found:
    """Evenly spaced layers on the CPU and on the device; the CPU's seconds scaled to all layers by their entries."""
    layers = session.layers[line.arch]
    names = sampled(layers, count)
    loras = [ml.load(path) for path in session.files[line.arch]]
    loras = [replace(lora, layers={name: lora.layers[name] for name in names}) for lora in loras]
    seconds = {}
    for device in ("cpu", session.device):
        with measured() as took:
            ml.merge(loras, progress=False, **keywords_of(session, line, device))
        seconds[device] = took.seconds
    share = sum(map(math.prod, names.values())) / sum(map(math.prod, layers.values()))
    return {
        "threads": torch.get_num_threads(),
        "layers": len(names),
        "cores": seconds["cpu"],
        "device": seconds[session.device],
        "cores_for_all_layers": seconds["cpu"] / share,
    }


def peft(session: Session, arch: str, method: str) -> Found:
    """One layer of the most frequent shape by PEFT, scaled to all."""
    layers = session.layers[arch]
    found = peft_seconds(layers, method, ADAPTERS, session.rank, 0.5, session.device)
    return {key: found[key] for key in ("combination_type", "sample", "seconds", "extrapolated_seconds", "version")}
