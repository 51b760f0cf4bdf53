"""The names of modules that tools know, by rules written down by hand from what the tools document and load.

None of this is computed from the package's tables: SD 1.5, SDXL and FLUX.1 in the names of the original models, of
diffusers and of the text encoders.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

import torch
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, T5Config, T5EncoderModel

RESNET = ("in_layers.2", "emb_layers.1", "out_layers.3")
BLOCK = (
    *(f"attn{i}.to_{part}" for i in (1, 2) for part in ("q", "k", "v", "out.0")),
    *("ff.net.0.proj", "ff.net.2"),
)


def attention(prefix: str, depth: int) -> Iterator[str]:
    yield from (f"{prefix}.proj_in", f"{prefix}.proj_out")
    yield from (f"{prefix}.transformer_blocks.{i}.{path}" for i in range(depth) for path in BLOCK)


def sgm(depths: Sequence[int], widened: Iterable[int], labels: bool) -> set[str]:
    """The modules of a UNet in the original names.

    Args:
        depths: of the transformers at each resolution, 0 for none.
        widened: input blocks whose residual block changes the width.
        labels: whether sizes are embedded.
    """
    names = {"input_blocks.0.0", "time_embed.0", "time_embed.2", "out.2"}
    names |= {"label_emb.0.0", "label_emb.0.2"} if labels else set()
    last = len(depths) - 1
    for level, depth in enumerate(depths):
        for i in range(2):
            number = 3 * level + i + 1
            names |= {f"input_blocks.{number}.0.{path}" for path in RESNET}
            names |= {f"input_blocks.{number}.0.skip_connection"} if number in widened else set()
            names |= set(attention(f"input_blocks.{number}.1", depth)) if depth else set()
        if level < last:
            names.add(f"input_blocks.{3 * level + 3}.0.op")
    names |= {f"middle_block.{i}.{path}" for i in (0, 2) for path in RESNET}
    names |= set(attention("middle_block.1", depths[-1] or 1))
    for level, depth in enumerate(reversed(depths)):
        for i in range(3):
            number = 3 * level + i
            names |= {f"output_blocks.{number}.0.{path}" for path in (*RESNET, "skip_connection")}
            names |= set(attention(f"output_blocks.{number}.1", depth)) if depth else set()
        if level < last:
            names.add(f"output_blocks.{3 * level + 2}.{2 if depth else 1}.conv")
    return names


ORIGINAL: dict[str, set[str]] = {
    "sd15": sgm((1, 1, 1, 0), widened=(4, 7), labels=False),
    "sdxl": sgm((0, 2, 10), widened=(4, 7), labels=True),
    "flux": {
        *(f"{part}_in.{layer}_layer" for part in ("time", "vector", "guidance") for layer in ("in", "out")),
        *("img_in", "txt_in", "final_layer.linear", "final_layer.adaLN_modulation.1"),
        *(
            f"double_blocks.{i}.{stream}_{path}"
            for i in range(19)
            for stream in ("img", "txt")
            for path in ("attn.qkv", "attn.proj", "mlp.0", "mlp.2", "mod.lin")
        ),
        *(f"single_blocks.{i}.{path}" for i in range(38) for path in ("linear1", "linear2", "modulation.lin")),
    },
}
"""The modules of the denoisers: 282, 794 and 314, those of FLUX fused."""

Shapes = Mapping[str, tuple[int, ...]]


def clip(component: str, layers: int, projected: bool) -> dict[str, tuple[int, ...]]:
    """The modules of a CLIP text model, from the class, of small width."""
    sizes = {"vocab_size": 8, "hidden_size": 4, "intermediate_size": 8, "num_attention_heads": 1, "projection_dim": 4}
    ends = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
    config = CLIPTextConfig(**sizes, **ends, num_hidden_layers=layers)
    with torch.device("meta"):
        model = (CLIPTextModelWithProjection if projected else CLIPTextModel)(config)
    found = {}
    for path, module in model.named_modules():
        if isinstance(module, torch.nn.Linear):
            inner = path if path == "text_projection" else f"text_model.{path.removeprefix('text_model.')}"
            found[f"{component}.{inner}"] = tuple(module.weight.shape)
    return found


def t5(component: str) -> dict[str, tuple[int, ...]]:
    """The modules of the T5 of FLUX, of small width."""
    with torch.device("meta"):
        sizes = {"vocab_size": 8, "d_model": 4, "d_kv": 4, "d_ff": 8, "num_layers": 24, "num_heads": 1}
        model = T5EncoderModel(T5Config(**sizes, feed_forward_proj="gated-gelu"))
    modules = model.named_modules()
    return {f"{component}.{path}": tuple(m.weight.shape) for path, m in modules if isinstance(m, torch.nn.Linear)}


TEXT: dict[str, Shapes] = {
    "sd15": clip("text_encoder", 12, False),
    "sdxl": {**clip("text_encoder", 12, False), **clip("text_encoder_2", 32, True)},
    "flux": {**clip("text_encoder", 12, False), **t5("text_encoder_2")},
}
"""The modules of the text encoders: 72, 72 + 193 and 72 + 168."""
