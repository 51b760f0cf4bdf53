"""Text encoders of the true sizes with random weights, in place of the benchmark's two blocks each."""

from __future__ import annotations

from typing import Any

import torch

from benchmarks.gpu.pipelines import CLIP_LENGTH, _in_bfloat16
from mergelab.pipelines.opening import quietly

T5_XXL = {"d_model": 4096, "d_kv": 64, "d_ff": 10240, "num_heads": 64, "num_layers": 24}
CLIP_L = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
CLIP_G = {"hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32, "num_attention_heads": 20}
"""Of `text_encoder_2`, `text_encoder` of FLUX.1-dev and of SDXL, and `text_encoder_2` of SDXL."""


def put_true_encoders(pipe: Any, arch: str, device: str) -> None:
    """Gives a pipeline of random weights the text encoders of its published size; the vocabularies stay as they are."""
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, T5Config, T5EncoderModel

    def clip(tokenizer: Any, sizes: dict[str, int], projection: int) -> Any:
        return CLIPTextConfig(
            vocab_size=len(tokenizer), max_position_embeddings=CLIP_LENGTH, projection_dim=projection,
            bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id, **sizes,
        )  # fmt: skip

    with torch.device(device), _in_bfloat16(), quietly():
        first = CLIPTextModel(clip(pipe.tokenizer, CLIP_L, 768)).eval()
        if arch == "flux":
            t5 = T5Config(vocab_size=len(pipe.tokenizer_2), feed_forward_proj="gated-gelu", **T5_XXL)
            second: Any = T5EncoderModel(t5).eval()
        else:
            second = CLIPTextModelWithProjection(clip(pipe.tokenizer_2, CLIP_G, 1280)).eval()
    pipe.register_modules(text_encoder=first, text_encoder_2=second)
