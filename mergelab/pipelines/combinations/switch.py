"""LoRA Switch: one adapter at a time (Zhong et al., arXiv 2402.16843)."""

from __future__ import annotations

from dataclasses import dataclass

from mergelab.checks import check_count
from mergelab.pipelines.combinations.combination import Combination, Rule, alone
from mergelab.pipelines.live import Applied


@dataclass(frozen=True)
class Switch(Combination):
    """LoRA Switch: in every step one adapter is active in the denoiser, at its weight; they take turns.

    In step t, from 0, it is adapter `floor(t / every) mod n`, in the order in which they were applied. An image costs
    what it costs with one adapter. The text encoders keep all of them, so that a prompt may call each by its trigger.

    Args:
        every: steps until the next has its turn; 5 in the paper, where an image takes 50 to 200.

    Source: Zhong et al., Multi-LoRA Composition for Image Generation, arXiv 2402.16843.

    Example:
        >>> import mergelab as ml
        >>> pipe = ml.miniature.pipeline("sdxl")
        >>> pipe.set_progress_bar_config(disable=True)
        >>> _ = ml.apply(pipe, ["miniature/sdxl/ghost", "miniature/sdxl/day"])
        >>> with ml.switch(every=1).attach(pipe):
        ...     pipe("a sks in szn style", num_inference_steps=2).images[0].size
        (48, 48)
    """

    every: int = 5

    def __post_init__(self) -> None:
        check_count("every", self.every)

    def rule(self, applied: Applied) -> Rule:
        """One pass, of the adapter whose turn it is."""
        turns = alone(applied)
        return lambda step, steps: [turns[step // self.every % len(turns)]]
