"""LoRA Composite: the mean of what the model says with each adapter (Zhong et al., arXiv 2402.16843)."""

from __future__ import annotations

from dataclasses import dataclass

from mergelab.pipelines.combinations.combination import Combination, Rule, alone
from mergelab.pipelines.live import Applied


@dataclass(frozen=True)
class Composite(Combination):
    """LoRA Composite: in every step the denoiser runs once with each adapter alone, and the predictions are averaged.

    The paper averages the guided scores `u_i + s (c_i - u_i)`, with u_i and c_i the unconditional and the conditional
    prediction with adapter i. Guidance is linear, so this is the guidance of the averaged predictions, which are what
    is formed here (with `guidance_rescale` the two differ). A model whose guidance is distilled into it, as that of
    FLUX.1-dev, predicts what is guided already: the mean is one of guided velocities. An image costs as many runs of
    the denoiser as there are adapters. The text encoders run once, with all of them.

    Source: Zhong et al., Multi-LoRA Composition for Image Generation, arXiv 2402.16843.

    Example:
        >>> import mergelab as ml
        >>> pipe = ml.miniature.pipeline("flux")
        >>> pipe.set_progress_bar_config(disable=True)
        >>> _ = ml.apply(pipe, ["miniature/flux/ghost", "miniature/flux/day"], [0.8, 0.8])
        >>> attached = ml.composite().attach(pipe)
        >>> pipe("a sks", **ml.miniature.settings("flux") | {"num_inference_steps": 2}).images[0].size
        (48, 48)
        >>> attached.detach()
    """

    def rule(self, applied: Applied) -> Rule:
        """A pass for each adapter, in every step."""
        passes = alone(applied)
        return lambda step, steps: passes
