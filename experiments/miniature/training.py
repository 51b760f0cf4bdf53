"""One training loop for every part: resumable, seeded by step, with an average of the weights."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from tqdm import tqdm

RUNS = Path("runs/miniature")
"""Checkpoints, cached latents and finished parts, in the folder one trains in."""
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def fit(
    name: str,
    model: nn.Module,
    loss: Callable[[torch.Generator], Tensor],
    *,
    steps: int,
    lr: float,
    average: float = 0.999,
    warmup: int = 200,
    weight_decay: float = 0.01,
    every: float = 120.0,
) -> None:
    """Trains those parameters of `model` that require gradients and leaves their running average in it.

    Step `i` draws all its randomness from a generator seeded with `i`, so an interrupted run that resumes from
    `RUNS/name.pt` takes the steps it would have taken. The learning rate rises over `warmup` steps and falls to zero
    along a cosine. A finished part is only loaded.

    Args:
        name: of the checkpoint.
        model: trained in place.
        loss: gets the generator of the step, which is on the CPU, so that every device sees the same numbers.
        steps: in all.
        lr: the highest learning rate.
        average: share of the running average kept at each step.
        warmup: steps.
        weight_decay: of AdamW.
        every: seconds between checkpoints.
    """
    model.to(DEVICE)
    parameters = {key: value for key, value in model.named_parameters() if value.requires_grad}
    optimizer = torch.optim.AdamW(parameters.values(), lr=lr, betas=(0.9, 0.98), weight_decay=weight_decay)
    averaged = {key: value.detach().clone() for key, value in parameters.items()}
    path = RUNS / f"{name}.pt"
    path.parent.mkdir(parents=True, exist_ok=True)
    start = 0
    if path.exists():
        saved = torch.load(path, map_location=DEVICE)
        start, averaged = saved["step"], saved["average"]
        with torch.no_grad():
            for key, value in saved["parameters"].items():
                parameters[key].copy_(value)
        optimizer.load_state_dict(saved["optimizer"])

    def save(step: int) -> None:
        state = {"step": step, "parameters": {k: v.detach() for k, v in parameters.items()}, "average": averaged}
        torch.save(state | {"optimizer": optimizer.state_dict()}, path.with_suffix(".tmp"))
        path.with_suffix(".tmp").replace(path)

    model.train()
    smooth, saved_at = None, time.monotonic()
    bar = tqdm(range(start, steps), initial=start, total=steps, desc=name, mininterval=10)
    for step in bar:
        rate = lr * min(1, (step + 1) / warmup) * 0.5 * (1 + math.cos(math.pi * step / steps))
        for group in optimizer.param_groups:
            group["lr"] = rate
        value = loss(torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        value.backward()
        nn.utils.clip_grad_norm_(parameters.values(), 1.0)
        optimizer.step()
        keep = min(average, (step + 1) / (step + 10))
        with torch.no_grad():
            torch._foreach_lerp_(list(averaged.values()), list(parameters.values()), 1 - keep)
        smooth = value.item() if smooth is None else 0.98 * smooth + 0.02 * value.item()
        bar.set_postfix(loss=f"{smooth:.4f}", refresh=False)
        if time.monotonic() - saved_at > every:
            save(step + 1)
            saved_at = time.monotonic()
    if start < steps:
        save(steps)
    with torch.no_grad():
        for key, value in averaged.items():
            parameters[key].copy_(value)
    model.cpu().eval()
