"""Files whose tensors do not fit together, or are no numbers."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

import mergelab as ml
from tests.files import (
    ALPHA,
    BIAS_SUFFIX,
    FORMATS,
    KOHYA,
    LAYER,
    OTHER,
    OUTPUTS,
    A,
    B,
    Tensors,
    content,
    lora,
    numbers,
    write,
)
from tests.refusing import COMMANDS, Refused, commands

# name -> tensors, and what the sentence has to say besides the file.
MISFITS: dict[str, tuple[Tensors, tuple[str, ...]]] = {
    "up without down": ({B: numbers(8, 2)}, (B, "lora_A", "expected both")),
    "down without up": ({A: numbers(2, 8)}, (A, "lora_B", "expected both")),
    "alpha alone": ({**lora(OTHER), ALPHA: numbers(1)}, (ALPHA, "stands alone")),
    "ranks disagree": ({A: numbers(2, 8), B: numbers(8, 3)}, (LAYER, "(2, 8)", "(8, 3)", "expected")),
    "no dimension": ({A: numbers(2), B: numbers(8, 2)}, (LAYER, "(2,)", "expected")),
    "scalars": ({A: torch.tensor(1.0), B: torch.tensor(1.0)}, (LAYER, "expected")),
    "rank 0": ({A: numbers(0, 8), B: numbers(8, 0)}, (LAYER, "(0, 8)", "expected")),
    "no inputs": ({A: numbers(2, 0), B: numbers(8, 2)}, (LAYER, "(2, 0)", "expected")),
    "integers": ({A: torch.ones(2, 8, dtype=torch.int32), B: numbers(8, 2)}, (A, "int32", "expected floating")),
    "booleans": ({A: numbers(2, 8), B: torch.ones(8, 2, dtype=torch.bool)}, (B, "bool", "expected floating")),
    "complex": ({A: numbers(2, 8), B: torch.ones(8, 2, dtype=torch.complex64)}, (B, "complex", "expected floating")),
    "alpha NaN": ({**lora(), ALPHA: torch.tensor(math.nan)}, (ALPHA, "nan", "expected one finite")),
    "alpha infinite": ({**lora(), ALPHA: torch.tensor(math.inf)}, (ALPHA, "inf", "expected one finite")),
    "alpha a vector": ({**lora(), ALPHA: torch.ones(2)}, (ALPHA, "expected one finite")),
    "alpha too large": ({**lora(), ALPHA: torch.tensor(1e300, dtype=torch.float64)}, (ALPHA, "1e+300", "expected")),
    "alpha empty": ({**lora(), ALPHA: torch.ones(0)}, (ALPHA, "expected one finite")),
    "bias too long": ({**lora(), BIAS_SUFFIX: numbers(7)}, (BIAS_SUFFIX, "expected 8", "7")),
    "bias a matrix": ({**lora(), BIAS_SUFFIX: numbers(8, 2)}, (BIAS_SUFFIX, "expected a vector", "(8, 2)")),
    "unknown key": ({**lora(), "unet.conv_in.mystery": numbers(3)}, ("'unet.conv_in.mystery'", "1 of 3")),
    "no LoRA": ({"unet.conv_in.weight": numbers(3, 3)}, ("'unet.conv_in.weight'",)),
    "no tensors": ({}, ("no LoRA layer", "expected", "lora_A")),
    "an embedding only": ({"emb_params": numbers(2, 768)}, ("no LoRA layer", "expected")),
    "DoRA": ({**lora(), f"{LAYER}.dora_scale": numbers(8, 1)}, ("DoRA", f"{LAYER}.dora_scale", "base=", "--base")),
    "LoHa": (
        {f"{KOHYA}.hada_w1_a": numbers(8, 2)},
        (KOHYA, "expected hada_w1_a, hada_w1_b", "found hada_w1_a (8, 2)"),
    ),
    "two adapters": (
        {**{f"{LAYER}.lora_A.{name}.weight": numbers(2, 8) for name in ("a", "b")}},
        (f"{LAYER}.lora_A.a.weight", f"{LAYER}.lora_A.b.weight", "one adapter", "save each"),
    ),
    "one layer in two dialects": (
        {
            **lora("unet.conv_in"),
            "lora_unet_conv_in.lora_down.weight": numbers(2, 8),
            "lora_unet_conv_in.lora_up.weight": numbers(8, 2),
        },
        ("lora_unet_conv_in", "unet.conv_in", "expected one"),
    ),
    "lora_mid does not fit": (
        {
            f"{KOHYA}.lora_down.weight": numbers(2, 4, 1, 1),
            f"{KOHYA}.lora_up.weight": numbers(4, 2, 1, 1),
            f"{KOHYA}.lora_mid.weight": numbers(2, 3, 3, 3),
        },
        (KOHYA, "lora_mid (2, 3, 3, 3)", "lora_down (2, 4, 1, 1)"),
    ),
    "lora_mid of rank 0": (
        {
            f"{KOHYA}.lora_down.weight": numbers(0, 4, 1, 1),
            f"{KOHYA}.lora_up.weight": numbers(4, 2, 1, 1),
            f"{KOHYA}.lora_mid.weight": numbers(2, 0, 3, 3),
        },
        (KOHYA, "(2, 0, 3, 3)"),
    ),
    "lora_mid with a scalar": (
        {
            f"{KOHYA}.lora_down.weight": torch.tensor(1.0),
            f"{KOHYA}.lora_up.weight": numbers(4, 2, 1, 1),
            f"{KOHYA}.lora_mid.weight": numbers(2, 2, 3, 3),
        },
        (KOHYA, "lora_mid"),
    ),
    "fused layer too small": (
        {
            "lora_unet_double_blocks_0_img_attn_qkv.lora_down.weight": numbers(2, 4),
            "lora_unet_double_blocks_0_img_attn_qkv.lora_up.weight": numbers(11, 2),
        },
        ("double_blocks.0.img_attn.qkv", "(11, 4)", "expected 12 rows"),
    ),
}


@pytest.mark.parametrize("name", MISFITS)
def test_misfit_tensors(name: str, tmp_path: Path, good: Path, refused: Refused) -> None:
    """Tensors that do not fit together are refused by every command; the file, the layer and the remedy are named."""
    tensors, needles = MISFITS[name]
    bad = write(tmp_path / "bad.safetensors", tensors)
    for arguments in commands(bad, tmp_path).values():
        refused(*arguments, needles=[str(bad), *needles])
    with pytest.raises(ml.MergelabError) as caught:
        ml.load(bad)
    assert all(needle in str(caught.value) for needle in (str(bad), *needles))


@pytest.mark.parametrize("name", MISFITS)
def test_misfit_state_dict(name: str) -> None:
    """The same tensors as a state dict are refused as well."""
    tensors, needles = MISFITS[name]
    with pytest.raises(ml.MergelabError) as caught:
        ml.load(tensors)
    assert all(needle in str(caught.value) for needle in needles)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("key", [A, B, BIAS_SUFFIX])
@pytest.mark.parametrize("command", COMMANDS)
def test_not_finite(command: str, key: str, value: float, tmp_path: Path, good: Path, refused: Refused) -> None:
    """NaN and infinity are found by every command, which names the file and the layer."""
    tensors = {**lora(), BIAS_SUFFIX: numbers(8)}
    tensors[key].view(-1)[-1] = value
    bad = write(tmp_path / "bad.safetensors", tensors)
    if command == "compare" and key == BIAS_SUFFIX:
        pytest.skip("compare looks at the layers alone")
    sentence = refused(*commands(bad, tmp_path)[command], needles=[str(bad), "NaN or infini"])
    assert LAYER.removeprefix("unet.").replace(".", "_") in sentence.replace(".", "_")


@pytest.mark.parametrize("format", FORMATS)
def test_not_finite_in_every_format(format: str, tmp_path: Path, refused: Refused) -> None:
    """No format writes NaN, and none leaves a file or a folder behind."""
    tensors = lora()
    tensors[A][0, 0] = math.nan
    bad = write(tmp_path / "bad.safetensors", tensors)
    refused("convert", bad, "-o", tmp_path / OUTPUTS[format], "--format", format, needles=[str(bad), "NaN"])
    with pytest.raises(ml.MergelabError, match="to_q"):
        ml.load(bad).save(tmp_path / OUTPUTS[format], format=format)
    assert list(content(tmp_path)) == ["bad.safetensors"]


def test_changes_too_large_for_float32(tmp_path: Path, good: Path, refused: Refused) -> None:
    """Finite factors whose product is not: no method drops the layer in silence, or fails within its algebra."""
    big = write(tmp_path / "big.safetensors", {key: tensor * 1e30 for key, tensor in lora().items()})
    for method in ("svd", "ties", "dare", "dare_ties", "magnitude_prune"):
        refused("merge", big, good, "-o", tmp_path / "out.safetensors", "--method", method, needles=[LAYER, "float32"])
