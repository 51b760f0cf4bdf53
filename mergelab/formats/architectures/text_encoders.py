"""The text encoders that base models share: CLIP and T5. Their modules have one name, but for CLIP's outermost step."""

from __future__ import annotations

from functools import lru_cache

from mergelab.formats.architectures.evidence import Evidence

# Every step of a module path in them.
STEPS = frozenset(
    """
    text_model encoder layers self_attn q_proj k_proj v_proj out_proj mlp fc1 fc2 text_projection embeddings
    token_embedding position_embedding final_layer_norm layer_norm1 layer_norm2
    block layer SelfAttention DenseReluDense q k v o wi wi_0 wi_1 wo layer_norm shared
    """.split()
)

# Paths in a CLIP text model as transformers 5 has them, without its outermost step.
_INSIDE = ("encoder.layers.", "embeddings.token_embedding", "embeddings.position_embedding", "final_layer_norm")


def component_of(path: str) -> str | None:
    """The component that a path without a prefix belongs to: the first encoder for CLIP, the second for T5."""
    if path.startswith("encoder.block."):
        return "text_encoder_2"
    return "text_encoder" if path.startswith(("encoder.layers.", "text_model.")) or path == "text_model" else None


def is_clip(path: str) -> bool:
    """Whether a path, of whatever component, is that of a CLIP text model; other models have a `text_model`, too."""
    return path.startswith(("text_model.encoder.", "text_model.embeddings."))


def has(path: str) -> bool:
    """Whether every step of a path is one of a text encoder's."""
    return all(step in STEPS or step.isdecimal() for step in path.split("."))


def is_t5(path: str) -> bool:
    """Whether a path in a text encoder is that of a T5's module."""
    return path.startswith(("encoder.block.", "shared", "encoder.final_layer_norm"))


@lru_cache(maxsize=1 << 14)  # asked of every module, by the names of each model that it may be one of
def kind(path: str) -> str | None:
    """Whose module a canonical path is: "clip", "t5", or None for neither's.

    Example:
        >>> kind("text_model.encoder.layers.0.mlp.fc1"), kind("encoder.block.0.layer.0.SelfAttention.q"), kind("proj")
        ('clip', 't5', None)
    """
    if not has(path):
        return None
    if is_t5(path):
        return "t5"
    return "clip" if path.startswith("text_model.") or path == "text_projection" else None


def canonical(path: str) -> str:
    """A path with CLIP's `text_model`, which transformers 5 has dropped and files have."""
    return f"text_model.{path}" if path.startswith(_INSIDE) else path


def alone(evidence: Evidence) -> bool:
    """Whether a file changes text encoders alone."""
    return evidence.denoiser is None and any(component.startswith("text_encoder") for component in evidence.shapes)


def has_t5(evidence: Evidence) -> bool:
    """Whether the second encoder is a T5."""
    return evidence.named(r"^encoder\.block\.", "text_encoder_2")
