"""Seconds of an image with adapters fused and active, and of fusing, applying and taking back, beside diffusers.

A pipeline with FLUX.1's transformer cut down, of random weights in bfloat16; adapters of all linear layers of blocks.

python -m benchmarks.live --rounds 4
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

import mergelab as ml
from benchmarks.measuring import wait
from benchmarks.synthetic import write_adapter
from mergelab import miniature
from mergelab.pipelines.opening import quietly

COUNTS = {1: "one", 2: "two"}
HEAD = 128
PIXELS = 128


@dataclass
class Row:
    """What was measured of one thing: wall and processor seconds, and how far the weights were off afterwards."""

    seconds: list[float] = field(default_factory=list)
    processor: list[float] = field(default_factory=list)
    off: list[float] = field(default_factory=list)


@dataclass
class Bench:
    """A pipeline, its weights as they were, two files of adapters, and what was measured so far."""

    pipe: Any
    files: list[Path]
    steps: int
    rows: dict[str, Row] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.original = {key: value.clone() for key, value in self.weights().items()}

    def weights(self) -> dict[str, Tensor]:
        """Those of the transformer, under the names they have without adapters."""
        return {
            key.replace(".base_layer", ""): value
            for key, value in self.pipe.transformer.state_dict().items()
            if ".lora_" not in key
        }

    def time(self, name: str, call: Callable[[], Any]) -> Any:
        """Does it, and notes what it took."""
        wait()
        wall, processor = time.perf_counter(), time.process_time()
        found = call()
        wait()
        row = self.rows.setdefault(name, Row())
        row.seconds.append(time.perf_counter() - wall)
        row.processor.append(time.process_time() - processor)
        return found

    def draw(self, name: str) -> None:
        """One image."""
        size = {"height": PIXELS, "width": PIXELS, "num_inference_steps": self.steps, "max_sequence_length": 16}
        noise = torch.Generator().manual_seed(0)
        self.time(name, lambda: self.pipe("a sks", generator=noise, output_type="latent", **size))

    def check(self, name: str) -> None:
        """Notes how far the weights are from the original ones, and gives these back."""
        own, last = self.weights(), 0.0
        for key, value in self.original.items():
            last = max(last, (own[key].float() - value.float()).abs().max().item())
            own[key].copy_(value)
        self.rows[name].off.append(last)


def open_pipeline(heads: int, doubles: int, singles: int, device: str) -> Any:
    """The small FLUX pipeline around a transformer of another size."""
    with quietly():
        pipe: Any = miniature.pipeline("flux")
    size = {"num_attention_heads": heads, "attention_head_dim": HEAD, "axes_dims_rope": (16, 56, 56)}
    blocks = {"num_layers": doubles, "num_single_layers": singles}
    torch.manual_seed(0)
    with torch.device(device):
        pipe.transformer = type(pipe.transformer).from_config(dict(pipe.transformer.config) | size | blocks)
    with quietly():
        pipe = pipe.to(device, torch.bfloat16)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def write_adapters(pipe: Any, folder: Path, rank: int) -> list[Path]:
    """Two, of every linear layer of the blocks."""
    layers = {
        f"transformer.{name}": tuple(module.weight.shape)
        for name, module in pipe.transformer.named_modules()
        if isinstance(module, nn.Linear) and "transformer_blocks." in name
    }
    return [write_adapter(folder / f"{index}.safetensors", layers, rank, index) for index in range(2)]


def fused(bench: Bench, count: int, keep: str) -> None:
    """Adapters fused, an image where their originals are kept on the device, and taken back."""
    where = f"{COUNTS[count]}, originals {'in a folder' if Path(keep).is_dir() else f'on the {keep}'}"
    active = bench.time(f"`ml.fuse`, {where}", partial(ml.fuse, bench.pipe, bench.files[:count], keep=keep))
    if keep == "device":
        bench.draw(f"{COUNTS[count]} fused")
    bench.time(f"`unfuse`, {where}", active.unfuse)
    bench.check(f"`unfuse`, {where}")


def applied(bench: Bench, count: int) -> None:
    """Adapters active, an image, and taken away."""
    bench.time(f"`ml.apply`, {COUNTS[count]}", partial(ml.apply, bench.pipe, bench.files[:count]))
    bench.draw(f"{COUNTS[count]} active (`ml.apply`)")
    bench.time(f"`ml.remove`, {COUNTS[count]}", partial(ml.remove, bench.pipe))
    bench.check(f"`ml.remove`, {COUNTS[count]}")


def diffusers(bench: Bench, count: int) -> None:
    """The same by diffusers alone."""
    names = [f"adapter_{index}" for index in range(count)]

    def load() -> None:
        for name, file in zip(names, bench.files):
            bench.pipe.load_lora_weights(str(file), adapter_name=name)
        bench.pipe.set_adapters(names, [1.0] * count)

    with quietly():
        bench.time(f"diffusers' `load_lora_weights` and `set_adapters`, {COUNTS[count]}", load)
    bench.draw(f"{COUNTS[count]} active (diffusers' `set_adapters`)")
    bench.time(f"diffusers' `fuse_lora`, {COUNTS[count]}", partial(bench.pipe.fuse_lora, adapter_names=names))
    bench.time(f"diffusers' `unfuse_lora`, {COUNTS[count]}", bench.pipe.unfuse_lora)
    bench.check(f"diffusers' `unfuse_lora`, {COUNTS[count]}")
    bench.time(f"diffusers' `unload_lora_weights`, {COUNTS[count]}", bench.pipe.unload_lora_weights)


def one_round(bench: Bench, folder: Path) -> None:
    """Everything once."""
    for count in COUNTS:
        bench.draw("base model")
        fused(bench, count, "device")
        applied(bench, count)
        diffusers(bench, count)
    if bench.pipe.device.type != "cpu":
        fused(bench, 2, "cpu")
    fused(bench, 2, str(folder))


def table(bench: Bench) -> list[str]:
    """Images first, as multiples of the base model's; then the rest, and what it leaves behind."""
    images = [name for name in bench.rows if name == "base model" or " fused" in name or " active (" in name]
    base, lines = bench.rows["base model"], []
    for heading, names in {
        "| an image with | s | from, to | processor s | times the base model's: s, processor s |": images,
        "| what is done | s | from, to | processor s | weights off by |": [n for n in bench.rows if n not in images],
    }.items():
        lines += ["", heading, "|---|---|---|---|---|"]
        for name in names:
            row = bench.rows[name]
            wall, processor = median(row.seconds), median(row.processor)
            if name in images:
                last = f"{wall / median(base.seconds):.2f}, {processor / median(base.processor):.2f}"
            else:
                last = f"{max(row.off):.2g}" if row.off else ""
            spread = f"{min(row.seconds):.2f}, {max(row.seconds):.2f}"
            lines.append(f"| {name} | {wall:.2f} | {spread} | {processor:.2f} | {last} |")
    return lines


def main() -> None:
    """All variants one after the other, in rounds, so that other work on the machine meets all of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--heads", type=int, default=8, help="of 128 channels each; 24 in FLUX.1")
    parser.add_argument("--blocks", type=int, nargs=2, default=(4, 8), help="double and single ones; 19 38 in FLUX.1")
    parser.add_argument("--rank", type=int, default=32)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    pipe = open_pipeline(options.heads, *options.blocks, options.device)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        bench = Bench(pipe, write_adapters(pipe, folder, options.rank), options.steps)
        for place in range(options.rounds + 1):
            one_round(bench, folder)
            if place == 0:  # what is done once for all: caches, code that is imported late
                bench.rows.clear()
    millions = sum(value.numel() for value in bench.original.values()) / 1e6
    print(f"{millions:.0f} million weights, {torch.get_num_threads()} threads, torch {torch.__version__}")
    print("\n".join(table(bench)))


if __name__ == "__main__":
    main()
