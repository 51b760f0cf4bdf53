"""Which base model an adapter is for, told from names and shapes, then from the header."""

from __future__ import annotations

from collections.abc import Mapping

from mergelab.formats.architectures.evidence import Evidence
from mergelab.formats.architectures.registry import ARCHITECTURES


def detect(shapes: Mapping[str, tuple[int, ...]], metadata: Mapping[str, str]) -> str | None:
    """The id of an architecture; None where it cannot be told.

    Args:
        shapes: canonical layer name -> shape of the weight, `(out, in[, kh, kw])`.
        metadata: the header's strings.

    Example:
        >>> detect({"unet.mid_block.attentions.0.transformer_blocks.0.attn2.to_k": (1280, 2048)}, {})
        'sdxl'
    """
    evidence = Evidence.of(shapes, metadata)
    every = list(ARCHITECTURES.values())
    proven = [a for a in every if a.proves(evidence)]
    declared = [a for a in proven or every if evidence.says(a.header) and a.fits(evidence)]
    suggested = [] if proven else [a for a in every if a.suggests(evidence)]
    return next((some[0].id for some in (proven, declared, suggested) if len(some) == 1), None)
