"""Adapters of newer base models as their trainers write them, from canonical layers, by rules that know no tables.

Every dialect is a function from canonical layers to the tensors of a file. The rules are spelled by hand from what
the trainers and ComfyUI do.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from mergelab.layer import LoraLayer

Layers = Mapping[str, LoraLayer]
File = dict[str, Tensor]
Dialect = Callable[[Layers], File]

# Miniatures of the published configurations, with all kinds of modules, and queries to keys as there.
TINY: dict[str, dict[str, Any]] = {
    "z-image": {
        "axes_dims": [2, 2, 4],
        "cap_feat_dim": 12,
        "dim": 16,
        "in_channels": 4,
        "n_heads": 2,
        "n_kv_heads": 2,
        "n_layers": 2,
        "n_refiner_layers": 1,
    },
    "lumina2": {
        "axes_dim_rope": [4, 2, 2],
        "cap_feat_dim": 12,
        "hidden_size": 24,
        "in_channels": 4,
        "multiple_of": 8,
        "num_attention_heads": 3,
        "num_kv_heads": 1,
        "num_layers": 2,
        "num_refiner_layers": 1,
    },
    "krea2": {
        "attention_head_dim": 4,
        "axes_dims_rope": [2, 1, 1],
        "in_channels": 4,
        "intermediate_size": 20,
        "num_attention_heads": 4,
        "num_key_value_heads": 1,
        "num_layers": 2,
        "num_layerwise_text_blocks": 1,
        "num_refiner_text_blocks": 1,
        "num_text_layers": 3,
        "text_hidden_dim": 8,
        "text_intermediate_size": 12,
        "text_num_attention_heads": 2,
        "text_num_key_value_heads": 2,
        "timestep_embed_dim": 8,
    },
    "wan-14b": {
        "added_kv_proj_dim": 16,
        "attention_head_dim": 8,
        "ffn_dim": 20,
        "freq_dim": 8,
        "image_dim": 6,
        "in_channels": 4,
        "num_attention_heads": 2,
        "num_layers": 2,
        "out_channels": 4,
        "text_dim": 12,
    },
    "ltx-video": {
        "attention_head_dim": 8,
        "caption_channels": 12,
        "cross_attention_dim": 16,
        "in_channels": 4,
        "num_attention_heads": 2,
        "num_layers": 2,
        "out_channels": 4,
    },
    "ltx-2": {
        "attention_head_dim": 8,
        "audio_attention_head_dim": 4,
        "audio_cross_attention_dim": 8,
        "audio_in_channels": 4,
        "audio_num_attention_heads": 2,
        "audio_out_channels": 4,
        "caption_channels": 12,
        "cross_attention_dim": 16,
        "in_channels": 4,
        "num_attention_heads": 2,
        "num_layers": 2,
        "out_channels": 4,
    },
    "hidream": {
        "attention_head_dim": 8,
        "axes_dims_rope": [4, 2, 2],
        "caption_channels": [6, 10],
        "in_channels": 4,
        "llama_layers": [0, 1],
        "max_resolution": [8, 8],
        "num_activated_experts": 2,
        "num_attention_heads": 2,
        "num_layers": 1,
        "num_routed_experts": 4,
        "num_single_layers": 1,
        "out_channels": 4,
        "patch_size": 2,
        "text_emb_dim": 12,
    },
    "anima": {
        "adaln_lora_dim": 4,
        "attention_head_dim": 12,
        "extra_pos_embed_type": None,
        "in_channels": 4,
        "num_attention_heads": 2,
        "num_layers": 2,
        "out_channels": 4,
        "text_embed_dim": 12,
    },
}


def spelled(prefix: str, down: str, up: str, rename: Callable[[str], str] = str, alpha: bool = False) -> Dialect:
    """A dialect that keeps modules as they are and spells their names its own way."""

    def write(layers: Layers) -> File:
        file: File = {}
        for name, layer in layers.items():
            module = prefix + rename(name.partition(".")[2])
            ratio = layer.scaling if alpha else 1.0
            file[f"{module}.{down}"] = layer.lora_A
            file[f"{module}.{up}"] = layer.lora_B * (layer.scaling / ratio)
            if alpha:
                file[f"{module}.alpha"] = torch.tensor(float(ratio * layer.rank))
        return file

    return write


def dotted(prefix: str, rename: Callable[[str], str] = str) -> Dialect:
    """`lora_A` and `lora_B` without alpha: diffusers, AI-toolkit, diffusion-pipe."""
    return spelled(prefix, "lora_A.weight", "lora_B.weight", rename)


def named_adapter(prefix: str, rename: Callable[[str], str] = str) -> Dialect:
    """With the adapter's name within: DiffSynth."""
    return spelled(prefix, "lora_A.default.weight", "lora_B.default.weight", rename)


def with_alpha(prefix: str, rename: Callable[[str], str] = str) -> Dialect:
    """Dotted names, but kohya's leaves: OneTrainer, Lightning."""
    return spelled(prefix, "lora_down.weight", "lora_up.weight", rename, alpha=True)


def flat(prefix: str, rename: Callable[[str], str] = str) -> Dialect:
    """kohya's, musubi's and SimpleTuner's LyCORIS names: underscores for dots."""
    return with_alpha(prefix, lambda path: rename(path).replace(".", "_"))


def fused(dialect: Dialect, groups: Iterable[tuple[str, str]]) -> Dialect:
    """A dialect in which some modules are one: `(pattern of the parts, name of the whole)`.

    The parts are stacked in the order of their names' last letters (q, k, v): `lora_B` is block-diagonal.
    """

    def write(layers: Layers) -> File:
        whole: dict[str, dict[str, LoraLayer]] = {}
        for name, layer in layers.items():
            for pattern, replacement in groups:
                if re.search(pattern, name):
                    whole.setdefault(re.sub(pattern, replacement, name), {})[name[-1]] = layer
                    break
            else:
                whole.setdefault(name, {})["q"] = layer
        stacked = {}
        for name, parts in whole.items():
            ordered = [parts[letter] for letter in "qkv" if letter in parts]
            scaling = ordered[0].scaling
            ups = torch.block_diag(*(part.lora_B * (part.scaling / scaling) for part in ordered))
            stacked[name] = LoraLayer(torch.cat([part.lora_A for part in ordered]), ups, scaling)
        return dialect(stacked)

    return write


def renaming(*rules: tuple[str, str]) -> Callable[[str], str]:
    """Replaces patterns one after another."""

    def rename(path: str) -> str:
        for pattern, replacement in rules:
            path = re.sub(pattern, replacement, path)
        return path

    return rename


Z_IMAGE_QKV = ((r"\.attention\.to_[qkv]$", ".attention.qkv"),)
z_image_comfy = renaming((r"attention\.to_out\.0", "attention.out"), (r"^all_(x_embedder|final_layer)\.2-1", r"\1"))

LUMINA2_QKV = ((r"\.attn\.to_[qkv]$", ".attn.qkv"),)
lumina2_original = renaming(
    (r"\.attn\.to_out\.0$", ".attention.out"),
    (r"\.attn\.qkv$", ".attention.qkv"),
    (r"\.feed_forward\.linear_(\d)$", r".feed_forward.w\1"),
    (r"\.norm1\.linear$", ".adaLN_modulation.1"),
    (r"^time_caption_embed\.caption_embedder", "cap_embedder"),
    (r"^time_caption_embed\.timestep_embedder\.linear_1$", "t_embedder.mlp.0"),
    (r"^time_caption_embed\.timestep_embedder\.linear_2$", "t_embedder.mlp.2"),
    (r"^norm_out\.linear_1$", "final_layer.adaLN_modulation.1"),
    (r"^norm_out\.linear_2$", "final_layer.linear"),
)

krea2_original = renaming(
    (r"\.attn\.to_out\.0$", ".attn.wo"),
    (r"\.attn\.to_gate$", ".attn.gate"),
    (r"\.attn\.to_([qkv])$", r".attn.w\1"),
    (r"\.ff\.(\w+)$", r".mlp.\1"),
    (r"^transformer_blocks\.", "blocks."),
    (r"^text_fusion\.", "txtfusion."),
    (r"^img_in$", "first"),
    (r"^final_layer\.linear$", "last.linear"),
    (r"^time_embed\.linear_1$", "tmlp.0"),
    (r"^time_embed\.linear_2$", "tmlp.2"),
    (r"^time_mod_proj$", "tproj.1"),
    (r"^txt_in\.linear_1$", "txtmlp.1"),
    (r"^txt_in\.linear_2$", "txtmlp.3"),
)
KREA2_QKV = ((r"\.attn\.to_[qkv]$", ".attn.to_qkv"),)

wan_original = renaming(
    (r"\.attn1\.", ".self_attn."),
    (r"\.attn2\.", ".cross_attn."),
    (r"\.to_out\.0$", ".o"),
    (r"\.to_([qkv])$", r".\1"),
    (r"\.add_([kv])_proj$", r".\1_img"),
    (r"\.ffn\.net\.0\.proj$", ".ffn.0"),
    (r"\.ffn\.net\.2$", ".ffn.2"),
    (r"^condition_embedder\.image_embedder\.ff\.net\.0\.proj$", "img_emb.proj.1"),
    (r"^condition_embedder\.image_embedder\.ff\.net\.2$", "img_emb.proj.3"),
    (r"^condition_embedder\.(time|text)_embedder\.linear_1$", r"\1_embedding.0"),
    (r"^condition_embedder\.(time|text)_embedder\.linear_2$", r"\1_embedding.2"),
    (r"^condition_embedder\.time_proj$", "time_projection.1"),
    (r"^proj_out$", "head.head"),
)

ltx_original = renaming(
    (r"^proj_in$", "patchify_proj"),
    (r"^audio_proj_in$", "audio_patchify_proj"),
    (r"^(audio_)?time_embed\.", r"\1adaln_single."),
    (r"^(audio_)?prompt_adaln\.", r"\1prompt_adaln_single."),
    (r"^av_cross_attn_(video|audio)_scale_shift\.", r"av_ca_\1_scale_shift_adaln_single."),
    (r"^av_cross_attn_video_a2v_gate\.", "av_ca_a2v_gate_adaln_single."),
    (r"^av_cross_attn_audio_v2a_gate\.", "av_ca_v2a_gate_adaln_single."),
)

anima_original = renaming(
    (r"^transformer_blocks\.", "blocks."),
    (r"\.attn1\.", ".self_attn."),
    (r"\.attn2\.", ".cross_attn."),
    (r"\.to_out\.0$", ".output_proj"),
    (r"\.to_([qkv])$", r".\1_proj"),
    (r"\.ff\.net\.0\.proj$", ".mlp.layer1"),
    (r"\.ff\.net\.2$", ".mlp.layer2"),
    (r"\.norm1\.linear_(\d)$", r".adaln_modulation_self_attn.\1"),
    (r"\.norm2\.linear_(\d)$", r".adaln_modulation_cross_attn.\1"),
    (r"\.norm3\.linear_(\d)$", r".adaln_modulation_mlp.\1"),
    (r"^norm_out\.linear_(\d)$", r"final_layer.adaln_modulation.\1"),
    (r"^proj_out$", "final_layer.linear"),
    (r"^time_embed\.t_embedder\.", "t_embedder.1."),
    (r"^patch_embed\.proj$", "x_embedder.proj.1"),
)


# Architecture -> trainer or tool -> what it writes.
DIALECTS: dict[str, dict[str, Dialect]] = {
    "z-image": {
        "diffusers": dotted("transformer."),
        "AI-toolkit": dotted("diffusion_model."),
        "musubi": flat("lora_unet_"),
        "SimpleTuner": flat("lycoris_"),
        "OneTrainer": with_alpha("transformer."),
        "DiffSynth": named_adapter(""),
        "diffusion-pipe": fused(dotted("diffusion_model.", z_image_comfy), Z_IMAGE_QKV),
        "musubi for ComfyUI": fused(flat("lora_unet_", z_image_comfy), Z_IMAGE_QKV),
    },
    "lumina2": {
        "diffusers": dotted("transformer."),
        "SimpleTuner": flat("lycoris_"),
        "diffusion-pipe": fused(dotted("diffusion_model.", lumina2_original), LUMINA2_QKV),
        "kohya": fused(flat("lora_unet_", lumina2_original), LUMINA2_QKV),
    },
    "krea2": {
        "diffusers": dotted("transformer."),
        "AI-toolkit": dotted("diffusion_model.", krea2_original),
        "AI-toolkit, earlier": dotted("base_model.model.", krea2_original),
        "musubi": flat("lora_unet_", krea2_original),
        "OneTrainer": with_alpha("transformer."),
        "SimpleTuner": flat("lycoris_"),
        "SimpleTuner, fused": fused(flat("lycoris_"), KREA2_QKV),
    },
    "wan-14b": {
        "diffusers": dotted("transformer."),
        "AI-toolkit": dotted("diffusion_model.", wan_original),
        "musubi": flat("lora_unet_", wan_original),
        "musubi, another": flat("lora_unet__", wan_original),
        "DiffSynth": named_adapter("pipe.dit.", wan_original),
        "DiffSynth, bare": named_adapter("", wan_original),
        "Lightning": with_alpha("diffusion_model.", wan_original),
        "SimpleTuner": flat("lycoris_"),
    },
    "ltx-video": {
        "diffusers": dotted("transformer."),
        "diffusion-pipe": dotted("diffusion_model.", ltx_original),
        "SimpleTuner": flat("lycoris_"),
    },
    "ltx-2": {
        "diffusers": dotted("transformer."),
        "AI-toolkit": dotted("diffusion_model.", ltx_original),
        "SimpleTuner": flat("lycoris_"),
    },
    "hidream": {
        "diffusers": dotted("transformer."),
        "AI-toolkit": dotted("diffusion_model."),
        "SimpleTuner": flat("lycoris_"),
        "OneTrainer": flat("lora_transformer_"),
    },
    "anima": {
        "diffusers": dotted("transformer."),
        "AI-toolkit": dotted("diffusion_model.", anima_original),
        "kohya": flat("lora_unet_", anima_original),
        "OneTrainer": with_alpha("transformer."),
        "SimpleTuner": flat("lycoris_"),
    },
}
