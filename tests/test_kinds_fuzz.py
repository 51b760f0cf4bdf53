"""Fuzz: odd files of other kinds than LoRA are refused with a `MergelabError` or work; nothing else."""

from __future__ import annotations

import json
import math
import tempfile
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save as to_bytes
from torch import Tensor

import mergelab as ml
from tests.test_fuzz import (
    JSON_VALUES,
    PATTERN_VALUES,
    File,
    change_entry,
    exercise,
    fuzz,
    loadable,
    matrix,
    one,
    write,
)

CONV, QUERY = "unet.conv_in", "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
PEFT_CONV, PEFT_QUERY = (f"base_model.model.{name}" for name in (CONV, QUERY))
BASE = {f"{CONV}.weight": matrix(8, 4, 3, 3), f"{QUERY}.weight": matrix(8, 8), f"{QUERY}.bias": matrix(8)}

Shapes = dict[str, tuple[int, ...]]


def of(module: str, leaves: Shapes, alpha: bool = True) -> dict[str, Tensor]:
    """Tensors of one module by their leaves' shapes."""
    tensors = {f"{module}.{leaf}": matrix(*shape) if shape else torch.tensor(1.0) for leaf, shape in leaves.items()}
    return tensors | ({f"{module}.alpha": torch.tensor(1.0)} if alpha else {})


LOHA = {"hada_w1_a": (8, 2), "hada_w1_b": (2, 8), "hada_w2_a": (8, 2), "hada_w2_b": (2, 8)}
TUCKER = {f"hada_{leaf}": (2, 8) if leaf.endswith("a") else (2, 4) for leaf in ("w1_a", "w1_b", "w2_a", "w2_b")}
PAIR = {"lora_A.weight": (2, 8), "lora_B.weight": (8, 2)}
FILES: dict[str, tuple[dict[str, Tensor], dict[str, Any] | None]] = {
    "LoHa": (of(QUERY, LOHA) | of(CONV, {**TUCKER, "hada_t1": (2, 2, 3, 3), "hada_t2": (2, 2, 3, 3)}), None),
    "LoKr": (
        of(QUERY, {"lokr_w1": (2, 2), "lokr_w2_a": (4, 2), "lokr_w2_b": (2, 4)})
        | of(CONV, {"lokr_w1": (2, 2), "lokr_w2": (4, 2, 3, 3)}),
        None,
    ),
    "DoRA": (of(QUERY, {**PAIR, "dora_scale": (8, 1)}), None),
    "DoRA of LoHa": (of(QUERY, {**LOHA, "dora_scale": (1, 8)}), None),
    "full": (
        of(QUERY, {"diff": (8, 8), "diff_b": (8,)}, False) | of("unet.conv_norm_out", {"diff": (8,)}, False),
        None,
    ),
    "OFT": (of(QUERY, {"oft_blocks": (2, 4, 4)}) | of(CONV, {"oft_blocks": (4, 2, 2), "rescale": (8, 1, 1, 1)}), None),
    "BOFT": (of(QUERY, {"oft_blocks": (2, 2, 4, 4)}), None),
    "GLoRA": (
        of(QUERY, {f"{leaf}.weight": (8, 2) if leaf[1] == "1" else (2, 8) for leaf in ("a1", "a2", "b1", "b2")}),
        None,
    ),
    "(IA)3": (of(QUERY, {"weight": (8,), "on_input": ()}, False), None),
    "PEFT LoKr": (
        of(PEFT_QUERY, {"lokr_w1": (2, 2), "lokr_w2": (4, 4)}, False),
        {"peft_type": "LOKR", "r": 8, "alpha": 4},
    ),
    "PEFT OFT": (of(PEFT_QUERY, {"oft_R.weight": (2, 6)}, False), {"peft_type": "OFT", "coft": True, "eps": 0.1}),
    "PEFT BOFT": (of(PEFT_QUERY, {"boft_R": (2, 2, 4, 4), "boft_s": (8, 1)}, False), {"peft_type": "BOFT"}),
    "PEFT (IA)3": (
        of(PEFT_QUERY, {"ia3_l": (8, 1)}, False) | of(PEFT_CONV, {"ia3_l": (1, 4, 1, 1)}, False),
        {"peft_type": "IA3", "feedforward_modules": ["conv_in"]},
    ),
    "PEFT DoRA": (
        of(PEFT_QUERY, {**PAIR, "lora_magnitude_vector": (8,)}, False),
        {"peft_type": "LORA", "use_dora": True},
    ),
    "PiSSA": (of(PEFT_QUERY, PAIR, False), {"peft_type": "LORA", "init_lora_weights": "pissa"}),
}
FIELDS = st.sampled_from(
    [
        *("peft_type", "r", "alpha", "rank_pattern", "alpha_pattern", "coft", "eps", "block_share", "use_dora"),
        *("use_cayley_neumann", "num_cayley_neumann_terms", "feedforward_modules", "fan_in_fan_out"),
        *("init_lora_weights", "bias", "lora_alpha", "use_rslora", "x"),
    ]
)
VALUES = (
    JSON_VALUES
    | PATTERN_VALUES
    | st.sampled_from(["LORA", "LOHA", "lokr", "OFT", "BOFT", "IA3", "pissa", "olora", ["conv_in"], "(", 0, 1, 4, 1e30])
)


def check(raw: bytes, config: dict[str, Any] | None) -> None:
    """The property, with and without the base model's weights."""
    with tempfile.TemporaryDirectory() as folder:
        path = write(folder, raw, None if config is None else json.dumps(config))
        exercise(path)
        exercise(path, BASE)


@pytest.fixture(scope="module", autouse=True)
def valid_files() -> None:
    """The valid files themselves load and go through everything; what is imported once is not counted."""
    for tensors, config in FILES.values():
        with tempfile.TemporaryDirectory() as folder:
            path = write(folder, to_bytes(tensors), None if config is None else json.dumps(config))
            assert ml.load(path, base=BASE).layers
            ml.load(path, base=BASE).without_extras().save(f"{folder}/out.safetensors")
            exercise(path, BASE)


@st.composite
def odd(draw: st.DrawFn) -> tuple[bytes, dict[str, Any] | None]:
    """Tensors that do not fit together."""
    tensors, config = FILES[draw(st.sampled_from(list(FILES)))]
    header = File.of(to_bytes(tensors)).header
    for _ in range(draw(st.integers(1, 3))):
        change_entry(draw, header)
    return loadable(header), config


@fuzz(250)
@given(odd())
def test_odd_tensors(example: tuple[bytes, dict[str, Any] | None]) -> None:
    """Keys, shapes and dtypes that do not fit together are refused with one sentence, or work and can be written."""
    check(*example)


@fuzz(150)
@given(
    st.sampled_from([name for name, (_, config) in FILES.items() if config]),
    st.dictionaries(FIELDS, VALUES, min_size=1, max_size=3),
)
def test_odd_configs(kind: str, fields: dict[str, Any]) -> None:
    """Whatever the config holds, the folder is refused with one sentence or works."""
    tensors, config = FILES[kind]
    check(to_bytes(tensors), {**(config or {}), **fields})


REGRESSIONS: dict[str, dict[str, Any]] = {
    "an empty factor": {**one(f"{QUERY}.lokr_w1", 0, 2), **one(f"{QUERY}.lokr_w2", 2, 2)},
    "an empty core": {
        **one(f"{QUERY}.lokr_w1", 2, 2),
        **one(f"{QUERY}.lokr_w2_a", 0, 4),
        **one(f"{QUERY}.lokr_w2_b", 0, 4),
        **one(f"{QUERY}.lokr_t2", 0, 0, 3, 3),
    },
    "a scalar for a matrix": {**one(f"{QUERY}.lokr_w1_a"), **one(f"{QUERY}.lokr_w1_b"), **one(f"{QUERY}.lokr_w2")},
    "rank 0 of LoHa": {
        **{f"{QUERY}.hada_w{i}_a": one("", 8, 0)[""] for i in (1, 2)},
        **{f"{QUERY}.hada_w{i}_b": one("", 0, 8)[""] for i in (1, 2)},
    },
    "stages without blocks to pair": one(f"{QUERY}.oft_blocks", 3, 2, 4, 4),
    "stages of odd blocks": one(f"{QUERY}.oft_blocks", 1, 8, 1, 1),
    "no stages": one(f"{QUERY}.oft_blocks", 0, 2, 4, 4),
    "no blocks": one(f"{QUERY}.oft_blocks", 0, 4, 4),
    "rotations that are no numbers": one(f"{QUERY}.oft_blocks", 2, 4, 4, fill=math.nan),
    "rotations beyond float32": one(f"{QUERY}.oft_blocks", 2, 4, 4, fill=3e38),
    "magnitudes alone": one(f"{QUERY}.dora_scale", 8, 1),
    "a difference without entries": one(f"{QUERY}.diff", 0, 8),
    "a difference that is a number": one(f"{QUERY}.diff"),
    "a norm in float4": one("unet.conv_norm_out.diff", 4, dtype="F4"),
    "a difference in float4": one(f"{QUERY}.diff", 8, 4, dtype="F4"),
}


@pytest.mark.parametrize("name", REGRESSIONS)
def test_what_was_found(name: str) -> None:
    """And stays mended."""
    check(loadable(REGRESSIONS[name]), None)
