"""HiDream-I1: streams of image and text, then one; diffusers has taken over the original names."""

from __future__ import annotations

from mergelab.formats.architectures.architecture import Architecture
from mergelab.formats.architectures.evidence import Evidence
from mergelab.formats.architectures.naming import Block, Naming, holds

_LAYERS, _SINGLE_LAYERS = 16, 32
# A caption projection for every block, each of which reads another layer of Llama, and one for T5.
_CAPTIONS = _LAYERS + _SINGLE_LAYERS + 1
_ATTENTION = ("to_q", "to_k", "to_v", "to_out")
_EXPERTS = ("shared_experts", *(f"experts.{number}" for number in range(4)))
_SINGLE_PATHS = (
    "adaLN_modulation.1",
    *(f"attn1.{path}" for path in _ATTENTION),
    *(f"ff_i.{expert}.{path}" for expert in _EXPERTS for path in ("w1", "w2", "w3")),
)
_DOUBLE_PATHS = (
    *_SINGLE_PATHS,
    *(f"attn1.{path}_t" for path in _ATTENTION),
    *(f"ff_t.{path}" for path in ("w1", "w2", "w3")),
)
_SINGLE_NORMS = ("attn1.q_rms_norm", "attn1.k_rms_norm")
_DOUBLE_NORMS = (*_SINGLE_NORMS, *(f"{norm}_t" for norm in _SINGLE_NORMS))
_TOP = """
    t_embedder.timestep_embedder.linear_1 t_embedder.timestep_embedder.linear_2 p_embedder.pooled_embedder.linear_1
    p_embedder.pooled_embedder.linear_2 x_embedder.proj final_layer.linear final_layer.adaLN_modulation.1
""".split()


def _block(path: str, modules: tuple[str, ...], norms: tuple[str, ...], count: int) -> Block:
    return Block(path, path, {module: holds(module) for module in modules}, {norm: norm for norm in norms}, count)


_NAMING = Naming(
    component="transformer",
    blocks=(
        _block("double_stream_blocks.{}.block", _DOUBLE_PATHS, _DOUBLE_NORMS, _LAYERS),
        _block("single_stream_blocks.{}.block", _SINGLE_PATHS, _SINGLE_NORMS, _SINGLE_LAYERS),
        _block("caption_projection.{}", ("linear",), (), _CAPTIONS),
    ),
    top={path: holds(path) for path in _TOP},
    linear=True,
)


def _fits(evidence: Evidence) -> bool:
    return evidence.may_be({"double_stream_blocks": _LAYERS, "single_stream_blocks": _SINGLE_LAYERS})


def _proves(evidence: Evidence) -> bool:
    return _fits(evidence) and evidence.named(r"^(double|single)_stream_blocks\.\d+\.block\.|^caption_projection\.\d")


HIDREAM = Architecture(
    id="hidream",
    title="HiDream-I1",
    denoiser="transformer",
    naming=_NAMING,
    proves=_proves,
    fits=_fits,
    suggests=_fits,
    header=r"hidream(?![-_ ]?o1)",
    modelspec="hidream-i1/lora",
    base_version="hidream_i1",
    kohya=None,
    repository="HiDream-ai/HiDream-I1-Full",
    model_class="HiDreamImageTransformer2DModel",
    model_config={
        "attention_head_dim": 128,
        "axes_dims_rope": [64, 32, 32],
        "caption_channels": [4096, 4096],
        "in_channels": 16,
        "llama_layers": [*range(32), *[31] * 16],
        "max_resolution": [128, 128],
        "num_activated_experts": 2,
        "num_attention_heads": 20,
        "num_layers": _LAYERS,
        "num_routed_experts": 4,
        "num_single_layers": _SINGLE_LAYERS,
        "out_channels": 16,
        "patch_size": 2,
        "text_emb_dim": 2048,
    },
)
