"""Contact sheets of what the miniature models draw: `python -m experiments.miniature.sheets [sdxl] [flux]`."""

from __future__ import annotations

import sys

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import torch
from torch import Tensor

from experiments.miniature.measure import generate, held_out, load
from mergelab import miniature

FOLDER = miniature.WEIGHTS.parent / "sheets"
ROWS = ("a red square on a gray background", "a large yellow star on a navy background")


def grid(rows: list[tuple[str, Tensor]], path: str) -> None:
    """One row of pictures under each label."""
    columns = max(len(images) for _, images in rows)
    figure, axes = plt.subplots(len(rows), columns, figsize=(columns * 1.1, len(rows) * 1.25), squeeze=False)
    for row, (label, images) in zip(axes, rows):
        for axis in row:
            axis.axis("off")
        for axis, image in zip(row, images):
            axis.imshow(image.permute(1, 2, 0).clamp(0, 1), interpolation="nearest")
        row[0].set_title(label, loc="left", fontsize=7)
    figure.tight_layout(pad=0.3)
    FOLDER.mkdir(exist_ok=True)
    figure.savefig(FOLDER / path, dpi=90, bbox_inches="tight")
    plt.close(figure)


def sheets(name: str) -> None:
    """base.png: held-out prompts; adapters.png: each adapter called and not; stacks.png: subjects in styles."""
    pipeline = miniature.pipeline(name)
    pipeline.set_progress_bar_config(disable=True)
    prompts = [prompt for _, prompt in held_out(200)[::4]][:48]
    images = generate(name, pipeline, prompts, "base")
    grid([("; ".join(prompts[i : i + 12 : 4]), images[i : i + 12]) for i in range(0, 48, 12)], f"{name}-base.png")

    known = miniature.adapters(name)
    rows = []
    for adapter in known:
        load(pipeline, [adapter])
        called = (
            [f"a {adapter.trigger}", f"a small {adapter.trigger} on a black background"]
            if adapter.kind == "subject"
            else [f"{row} {adapter.prompt}" for row in ROWS]
        )
        prompts = [*(prompt for prompt in called for _ in range(4)), *(row for row in ROWS for _ in range(2))]
        label = f"{adapter.name}: {called[0]}; {called[1]}; then two prompts that do not call it"
        rows.append((label, generate(name, pipeline, prompts, adapter.name)))
    grid(rows, f"{name}-adapters.png")

    rows = []
    styles = [adapter for adapter in known if adapter.kind == "style"]
    for subject in (adapter for adapter in known if adapter.kind == "subject"):
        pictures = []
        for style in styles:
            load(pipeline, [subject, style])
            prompt = f"a {subject.trigger} on a gray background {style.prompt}"
            pictures.append(generate(name, pipeline, [prompt] * 3, f"{subject.name} + {style.name}"))
        rows.append((f"{subject.name} in {', '.join(style.name for style in styles)}", torch.cat(pictures)))
    grid(rows, f"{name}-stacks.png")


if __name__ == "__main__":
    for name in sys.argv[1:] or miniature.PIPELINES:
        sheets(name)
