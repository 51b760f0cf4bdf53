"""K-LoRA: in every layer and step one of two adapters, by their largest entries (Ouyang et al., arXiv 2502.18461)."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from mergelab.checks import check_number
from mergelab.errors import OptionError
from mergelab.pipelines.combinations.combination import Combination, Pass, Rule
from mergelab.pipelines.live import Applied, PeftLayer


@dataclass(frozen=True)
class KLora(Combination):
    """K-LoRA: every layer takes the subject's change or the style's, whichever has the larger entries there.

    Of each change `dW` (weights and scalings in it) the K largest magnitudes are summed, `S = sum top_K |dW|`, with K
    the product of the two ranks. In step t of T, from 0, a layer takes the subject where

        S_subject > gamma (alpha t / T + beta) S_style

    and the style elsewhere, so that the style comes in towards the end. gamma evens out the sizes of the two adapters:
    the mean over the layers that both have of `sum |dW_subject| / sum |dW_style|`, as in the authors' code. A layer
    that one adapter alone has keeps it. The text encoders keep both.

    Args:
        alpha: how much the style gains over the image; 1.5 in the paper.
        beta: where it begins; 0.5 in the paper.

    The two adapters are those that were applied, the subject first and then the style.

    Raises:
        OptionError: alpha or beta is no number; when attached, there are not two adapters.

    Source: Ouyang et al., K-LoRA: Unlocking Training-Free Fusion of Any Subject and Style LoRAs, arXiv 2502.18461.

    Example:
        >>> import mergelab as ml
        >>> pipe = ml.miniature.pipeline("sdxl")
        >>> pipe.set_progress_bar_config(disable=True)
        >>> _ = ml.apply(pipe, ["miniature/sdxl/ghost", "miniature/sdxl/day"])
        >>> with ml.klora().attach(pipe):
        ...     pipe("a sks in szn style", num_inference_steps=2).images[0].size
        (48, 48)
    """

    alpha: float = 1.5
    beta: float = 0.5

    def __post_init__(self) -> None:
        check_number("alpha", self.alpha)
        check_number("beta", self.beta)

    def rule(self, applied: Applied) -> Rule:
        """One pass, in which each layer has its choice."""
        if len(applied.names) != 2:
            raise OptionError(
                f"K-LoRA chooses between two adapters, a subject and a style, and {len(applied.names)} are applied "
                f"({', '.join(applied.names)})"
            )
        sums = {layer: _sums(module, *applied.names) for layer, module in applied.layers.items()}
        both = {layer: own for layer, own in sums.items() if own is not None}
        ratios = [subject.whole / style.whole for subject, style in both.values() if style.whole]
        gamma = sum(ratios) / len(ratios) if ratios else 1.0

        def passes(step: int, steps: int) -> list[Pass]:
            scale = gamma * (self.alpha * step / steps + self.beta)
            return [
                {
                    layer: (1.0, 1.0)  # the one that is there
                    if own is None
                    else (1.0, 0.0)
                    if own[0].largest > scale * own[1].largest
                    else (0.0, 1.0)
                    for layer, own in sums.items()
                }
            ]

        return passes


@dataclass(frozen=True)
class _Sums:
    """Of the magnitudes of a change: of the K largest, and of all."""

    largest: float
    whole: float


def _sums(module: PeftLayer, subject: str, style: str) -> tuple[_Sums, _Sums] | None:
    """Of both changes of a layer, or None where only one adapter has it."""
    if not (subject in module.lora_A and style in module.lora_A):
        return None
    kept = module.r[subject] * module.r[style]
    one, other = (_sums_of(module, name, kept) for name in (subject, style))
    return one, other


@torch.no_grad()
def _sums_of(module: PeftLayer, name: str, kept: int) -> _Sums:
    lora_a = module.lora_A[name].weight.float().flatten(1)
    lora_b = module.lora_B[name].weight.float().flatten(1)
    delta = (module.lora_alpha[name] / module.r[name] * lora_b @ lora_a).abs().flatten()
    return _Sums(float(delta.topk(min(kept, delta.numel())).values.sum()), float(delta.sum(dtype=torch.float64)))
