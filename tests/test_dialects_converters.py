"""What diffusers' own conversion makes of an adapter is what mergelab reads, but for what is known to differ."""

from __future__ import annotations

import re

import diffusers
import pytest
import torch

import mergelab as ml
from tests.test_dialects_streams import DIALECTS, PIPELINES, changes

DOTTED, FLAT, BARE, DEFAULT = "AI-toolkit, diffusion-pipe", "kohya, musubi-tuner", "Lightning", "DiffSynth"

# Base model, dialect, and the keys that diffusers does not read, or otherwise than its model is made, and so are left
# out. It
# - does not swap shift and scale of FLUX.2's last modulation, though it does in converting the weights themselves,
# - drops these modulations and guidance from a flat file of FLUX.2's, and Chroma's network from a flat file,
# - cuts fused modules of one stream at a width of 3072 (FLUX.1, HunyuanVideo), of whatever width they are,
# - cuts `lora_A` of HunyuanVideo's refiner into three, and swaps the halves of that of its last modulation.
CASES = {
    ("flux2-dev", DOTTED): "final_layer.adaLN",
    ("flux2-klein-9b", DOTTED): "final_layer.adaLN",
    ("flux2-dev", FLAT): "final_layer_adaLN|guidance_in|stream_modulation",
    ("qwen-image", DOTTED): "",
    ("qwen-image", FLAT): "",
    ("qwen-image", BARE): "",
    ("qwen-image", DEFAULT): "",
    ("hunyuan-video", DOTTED): "final_layer.adaLN|self_attn_qkv|linear1",
    ("chroma", FLAT): "distilled|linear1|img_in|txt_in|final_layer",
}


@pytest.mark.parametrize(("case", "different"), CASES.items(), ids=map(" by ".join, CASES))
def test_diffusers_reads_the_same(case: tuple[str, str], different: str) -> None:
    """Module by module, the same delta weights."""
    id, dialect = case
    tensors = {k: v for k, v in DIALECTS[dialect](id).items() if not (different and re.search(different, k))}
    ours = changes(ml.load(dict(tensors), architecture=id))
    theirs = getattr(diffusers, PIPELINES[id]).lora_state_dict(dict(tensors))
    modules = {key.removesuffix(".lora_A.weight") for key in theirs if key.endswith(".lora_A.weight")}
    assert {module.removeprefix("transformer.") for module in modules} == set(ours)
    for module in modules:
        change = theirs[f"{module}.lora_B.weight"] @ theirs[f"{module}.lora_A.weight"]
        torch.testing.assert_close(ours[module.removeprefix("transformer.")], change, msg=module)
