"""A merge at the size of a real model: `python -m benchmarks.full_size --arch flux --method ties`.

Prints one JSON object; progress goes to standard error.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

import mergelab as ml
from benchmarks.architectures import NAMES, sampled, usual_layers
from benchmarks.excess import excess_error
from benchmarks.floors import forming, reading_and_writing
from benchmarks.measuring import Measured, measured
from benchmarks.peers import COMBINATIONS, most_frequent, peft_seconds
from benchmarks.synthetic import write_adapter
from mergelab.engine.job import Input, Job
from mergelab.methods.registry import options_of, strategy_of


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python -m benchmarks.full_size", description=__doc__)
    parser.add_argument("--arch", choices=NAMES, required=True)
    parser.add_argument("--adapters", type=int, default=4)
    parser.add_argument("--rank", type=int, default=32, help="of every adapter and of the result")
    parser.add_argument("--method", choices=sorted(COMBINATIONS), default="ties")
    parser.add_argument("--space", choices=("delta", "core", "knots"), default="delta")
    parser.add_argument("--scope", choices=("layer", "adapter"), help="of the trim")
    parser.add_argument("--density", type=float, default=0.5)
    parser.add_argument("--device", default="cpu", help="of the merge, of the floor and of PEFT")
    parser.add_argument("--memory", help="what the merge may use of the device's memory: 8GB")
    parser.add_argument("--layers", type=int, help="only so many, evenly spaced; default all")
    parser.add_argument("--checked", type=int, default=1, help="layers whose error is compared with the best possible")
    parser.add_argument("--repeats", type=int, default=1, help="merge so often; the shortest counts")
    parser.add_argument("--no-peft", action="store_true", help="do not time PEFT")
    parser.add_argument("--no-floor", action="store_true", help="do not time the floor")
    parser.add_argument("--folder", type=Path, help="where to keep the synthetic adapters; default: nowhere")
    return parser


def main(words: Sequence[str] | None = None) -> dict[str, Any]:
    """Measure what the command line asks for, print it and return it."""
    args = arguments().parse_args(words)
    every = usual_layers(args.arch)
    layers = sampled(every, args.layers)
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        result = _measure(args, layers, len(every), folder, Path(temporary))
    print(json.dumps(result, indent=2))
    return result


def _measure(
    args: argparse.Namespace, layers: dict[str, tuple[int, ...]], of: int, folder: Path, temporary: Path
) -> dict[str, Any]:
    say(f"{args.arch}: {len(layers)} of {of} layers; writing {args.adapters} adapters of rank {args.rank}")
    stem = f"{args.arch}-{len(layers)}-r{args.rank}"
    paths = [
        write_adapter(folder / f"{stem}-{i}.safetensors", layers, args.rank, i, args.device)
        for i in range(args.adapters)
    ]
    options = {k: v for k, v in (("space", args.space), ("density", args.density), ("scope", args.scope)) if v}
    options = {k: v for k, v in options.items() if k in options_of(args.method)}
    load = os.getloadavg()[0]
    output = temporary / "merged.safetensors"
    say(f"merging: {args.method} {options}")
    runs = []
    if args.device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats()
    for _ in range(args.repeats):
        merged, took = _merge(paths, args, options, output)
        runs.append(took)
        say(f"  {took.seconds:.1f} s")
    took, peak = min(runs, key=lambda run: run.seconds), max(run.peak for run in runs)
    peak_gpu = torch.cuda.max_memory_allocated() if args.device.startswith("cuda") else None
    adapters = [ml.load(path) for path in paths]
    written = sum(a.numel() + b.numel() for x in merged.layers.values() for a, b in [(x.lora_A, x.lora_B)]) * 4
    largest = 4 * max(map(math.prod, layers.values()))
    result: dict[str, Any] = {
        "command": "python -m benchmarks.full_size " + " ".join(sys.argv[1:]),
        "arch": args.arch,
        "method": args.method,
        "options": options,
        "adapters": args.adapters,
        "rank": args.rank,
        "layers": len(layers),
        "layers_of_the_model": of,
        "device": args.device,
        "memory_limit": args.memory,
        "repeats": args.repeats,
        "wall_seconds": round(took.seconds, 3),
        "processor_seconds": round(took.processor_seconds, 3),
    }
    if not args.no_floor:
        result["floor"] = floor = _floor(args, adapters, paths, output, options)
        result["ratio"] = round(took.seconds / floor["seconds"], 2)
        result["processor_ratio"] = round(took.processor_seconds / floor["processor_seconds"], 2)
    result["memory"] = {
        "peak_above_start_bytes": peak,
        "output_bytes": written,
        "largest_layer_bytes": largest,
        "dense_copies_beside_the_output": round(max(0, peak - written) / largest, 2),
    }
    if peak_gpu is not None:
        result["memory"]["peak_gpu_bytes"] = peak_gpu
    if args.checked:
        result["excess_error"] = _excess(args, adapters, merged, options, layers)
    if not args.no_peft:
        say("PEFT, one layer")
        result["peft"] = peft = peft_seconds(layers, args.method, args.adapters, args.rank, args.density, args.device)
        result["times_as_fast_as_peft"] = round(peft["extrapolated_seconds"] / took.seconds, 1)
        result["times_less_processor_time_than_peft"] = round(
            peft["extrapolated_processor_seconds"] / took.processor_seconds, 1
        )
    result["machine"] = {
        "processor": platform.machine(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "load_before": round(load, 2),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }
    return result


def _merge(
    paths: Sequence[Path], args: argparse.Namespace, options: dict[str, Any], output: Path, method: str | None = None
) -> tuple[ml.Adapter, Measured]:
    """From files to a file."""
    rank = {} if (method or args.method) == "cat" else {"rank": args.rank}
    limit = {"memory": args.memory} if args.memory else {}
    with measured() as took:
        merged = ml.merge(list(paths), None, method or args.method, device=args.device, **limit, **rank, **options)
        merged.save(output)
    return merged, took


def _floor(
    args: argparse.Namespace,
    adapters: Sequence[ml.Adapter],
    paths: Sequence[Path],
    output: Path,
    options: dict[str, Any],
) -> dict[str, Any]:
    strategy = strategy_of(args.method, options)
    say("the floor")
    files = reading_and_writing(paths, output, args.device)
    if strategy.is_exact_sum:
        return _described("reading all inputs and writing the output with safetensors", files)
    shared = {"files_seconds": round(files.seconds, 3)}
    if args.space != "delta":
        _, svd = _merge(paths, args, {}, output, "svd")
        return _described("method svd on the same files", svd) | shared
    formed = forming(adapters, args.device)
    (seconds, processor), (into_one_buffer, _) = formed["plain"], formed["preallocated"]
    return {
        "what": "forming every change once with torch.matmul",
        "seconds": round(seconds, 3),
        "processor_seconds": round(processor, 3),
        "seconds_into_one_buffer": round(into_one_buffer, 3),
        **shared,
    }


def _described(what: str, took: Measured) -> dict[str, Any]:
    return {"what": what, "seconds": round(took.seconds, 3), "processor_seconds": round(took.processor_seconds, 3)}


def _excess(
    args: argparse.Namespace,
    adapters: list[ml.Adapter],
    merged: ml.Adapter,
    options: dict[str, Any],
    layers: dict[str, tuple[int, ...]],
) -> dict[str, float]:
    strategy = strategy_of(args.method, options)
    if args.scope == "adapter":
        return {}  # its thresholds are those of the whole merge
    inputs = tuple(Input(adapter.name, adapter, dict.fromkeys(adapter.layers, 1.0)) for adapter in adapters)
    # By the CPU, wherever the merge was computed: its best approximation is that of every device.
    job = Job(strategy, args.rank, inputs, 0, torch.device("cpu"))
    usual = most_frequent(layers)
    others = [name for name in sampled(layers, args.checked) if layers[name] != layers[usual]]
    found = {}
    for name in [usual, *others][: args.checked]:
        say(f"the best approximation of {name}")
        found[name] = excess_error(job, merged, name)
    return found


def say(text: str) -> None:
    """Progress."""
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
