"""Contact sheets of what the miniature models draw: `python -m experiments.miniature.sheets [sdxl] [flux]`."""

from __future__ import annotations

import sys

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import torch
from diffusers import DiffusionPipeline
from torch import Tensor

import mergelab as ml
from experiments.miniature.card import SHEETS
from experiments.miniature.drawing import generate, held_out, opened
from mergelab import miniature
from mergelab.miniature.world import STYLES, SUBJECTS

STRENGTHS = (0.5, 0.75, 1.0)
Row = tuple[str, Tensor]


def grid(rows: list[Row], path: str, heads: tuple[str, ...] = ()) -> None:
    """One row of pictures, each with its label at the left, under heads of the columns."""
    columns = max(len(images) for _, images in rows)
    figure, axes = plt.subplots(len(rows), columns, figsize=(1.3 + columns * 0.72, len(rows) * 0.75), squeeze=False)
    for row, (label, images) in zip(axes, rows):
        for axis in row:
            axis.axis("off")
        for axis, image in zip(row, images):
            axis.imshow(image.permute(1, 2, 0).clamp(0, 1), interpolation="nearest")
        row[0].text(-0.12, 0.5, label, transform=row[0].transAxes, ha="right", va="center", fontsize=7)
    for axis, head in zip(axes[0], heads):
        axis.set_title(head, fontsize=7)
    figure.subplots_adjust(left=0.16, right=0.995, top=0.93, bottom=0.005, wspace=0.05, hspace=0.05)
    SHEETS.mkdir(exist_ok=True)
    figure.savefig(SHEETS / path, dpi=90)
    plt.close(figure)


def of_base(name: str, pipeline: DiffusionPipeline) -> None:
    """Held-out prompts, and what turbo draws of the same in four steps."""
    rows: list[Row] = []
    prompts = [prompt for _, prompt in held_out(200)[::4]][:24]
    for start in (0, 12):
        chunk = prompts[start : start + 12]
        rows.append(("20 steps", generate(name, pipeline, chunk, "")))
        rows.append(("4 steps", generate(name, pipeline, chunk, "", turbo=True)))
        with ml.fused(pipeline, f"miniature/{name}/turbo"):
            rows.append(("4 steps, turbo", generate(name, pipeline, chunk, "", turbo=True)))
    grid(rows, f"{name}-base.png")


def of_adapters(name: str, pipeline: DiffusionPipeline) -> None:
    """Each adapter at three strengths on two prompts that call it, and at 1 on two that do not."""
    rows: list[Row] = []
    for adapter in (adapter for adapter in miniature.adapters(name) if adapter.kind != "turbo"):
        called = [f"{adapter.prompt} on a gray background", f"{adapter.prompt} on a sand background"]
        if adapter.kind == "style":
            called = [
                f"a red square on a gray background {adapter.prompt}",
                f"a blue star on a sand background {adapter.prompt}",
            ]
        plain, pictures = ["a red square on a gray background", "a blue star on a sand background"], []
        for strength in STRENGTHS:
            with ml.fused(pipeline, str(adapter.path), strength):
                pictures.append(generate(name, pipeline, [*called, *called], ""))
                last = generate(name, pipeline, plain, "") if strength == 1 else None
        rows.append((f"{adapter.name} ({adapter.trigger})", torch.cat([*pictures, last])))
    heads = [f"at {strength}" if i == 0 else "" for strength in STRENGTHS for i in range(4)]
    grid(rows, f"{name}-adapters.png", (*heads, "not called"))


def of_stacks(name: str, pipeline: DiffusionPipeline) -> None:
    """Two pictures of each subject in each style, both adapters unmerged at 1."""
    pictures: dict[str, list[Tensor]] = {}
    for subject, style in miniature.pairs(name):
        prompt = f"{subject.prompt} on a gray background {style.prompt}"
        with ml.fused(pipeline, [str(subject.path), str(style.path)]):
            pictures.setdefault(subject.name, []).append(generate(name, pipeline, [prompt] * 2, ""))
    heads = tuple(head for style in STYLES for head in (style, ""))
    grid([(subject, torch.cat(pictures[subject])) for subject in SUBJECTS], f"{name}-stacks.png", heads)


if __name__ == "__main__":
    for name in sys.argv[1:] or miniature.PIPELINES:
        for sheet in (of_base, of_adapters, of_stacks):
            sheet(name, opened(name))
