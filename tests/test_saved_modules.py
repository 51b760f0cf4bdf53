"""What PEFT keeps beside LoRA layers, whole modules and rows of tokens: it survives, or is refused by its name."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

import mergelab as ml
from tests.files import lora, numbers, write

MODULE = "base_model.model.model.layers.0.self_attn.q_proj"
ROWS = "base_model.model.model.embed_tokens.token_adapter.trainable_tokens_delta"
TOKENS = torch.arange(6)


class Small(nn.Module):
    """An embedding, a layer, and a head of several modules, one with whole numbers among its tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.embed_tokens, self.lin, self.score = nn.Embedding(10, 8), nn.Linear(8, 8), nn.Linear(8, 3)
        self.head = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Linear(8, 3))

    def forward(self, tokens: Tensor) -> Tensor:
        hidden = self.lin(self.embed_tokens(tokens))
        return self.score(hidden) + self.head(hidden)


def trained(base: nn.Module, path: Path, seed: int = 0, targets: tuple[str, ...] = ("lin",), **options: Any) -> Path:
    """A folder of PEFT's own, every trained tensor of which is changed."""
    torch.manual_seed(seed)
    config = LoraConfig(r=2, lora_alpha=4, target_modules=list(targets), init_lora_weights=False, **options)
    model = get_peft_model(copy.deepcopy(base), config)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += torch.randn_like(parameter)
    model.save_pretrained(str(path))
    return path


def outputs(base: nn.Module, path: Path) -> Tensor:
    model = PeftModel.from_pretrained(copy.deepcopy(base), str(path)).eval()
    with torch.no_grad():
        return model(TOKENS) if isinstance(base, Small) else model(input_ids=TOKENS[None]).logits


OPTIONS: dict[str, dict[str, Any]] = {
    "tokens": {"trainable_token_indices": {"embed_tokens": [1, 2]}},
    "tokens in another order": {"trainable_token_indices": {"embed_tokens": [4, 2, 3]}},
    "tokens of the one embedding": {"trainable_token_indices": [1, 5]},
    "modules": {"modules_to_save": ["head", "score"]},
    "an embedding": {"modules_to_save": ["embed_tokens"]},
    "both": {"modules_to_save": ["head"], "trainable_token_indices": [1]},
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_round_trip(options: dict[str, Any], tmp_path: Path) -> None:
    """PEFT computes the same with the folder that mergelab wrote, also when it has been through a merge."""
    base = Small().eval()
    want = outputs(base, trained(base, tmp_path / "a", **options))
    assert (want - base(TOKENS)).norm() > 1
    adapter = ml.load(tmp_path / "a")
    adapter.save(tmp_path / "b", format="peft")
    torch.testing.assert_close(outputs(base, tmp_path / "b"), want)
    ml.merge([adapter, ml.load(tmp_path / "b")], [0.5, 0.5], method="svd").save(tmp_path / "c", format="peft")
    torch.testing.assert_close(outputs(base, tmp_path / "c"), want, atol=1e-4, rtol=1e-4)
    config = json.loads((tmp_path / "c" / "adapter_config.json").read_text())
    assert config.get("modules_to_save") == (sorted(options.get("modules_to_save", [])) or None)


# PEFT asks every module for an attribute that transformers 5 has renamed.
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
@pytest.mark.parametrize("tied", [False, True])
def test_tokens_of_a_language_model(tied: bool, tmp_path: Path) -> None:
    """A list of indices is for the input embedding, whatever its path, and for the head that is tied to it."""
    torch.manual_seed(1)
    sizes = {"vocab_size": 12, "hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2}
    base = LlamaForCausalLM(LlamaConfig(**sizes, **heads, tie_word_embeddings=tied)).eval()
    trained(base, tmp_path / "a", targets=("q_proj",), trainable_token_indices=[1, 4])
    want = outputs(base, tmp_path / "a")
    ml.load(tmp_path / "a").save(tmp_path / "b", format="peft")
    torch.testing.assert_close(outputs(base, tmp_path / "b"), want)


def test_folders_without_any_say_nothing_of_them(tmp_path: Path) -> None:
    """The config of an adapter of LoRA layers alone has neither field."""
    base = Small()
    ml.load(trained(base, tmp_path / "a")).save(tmp_path / "b", format="peft")
    config = json.loads((tmp_path / "b" / "adapter_config.json").read_text())
    assert not {"modules_to_save", "trainable_token_indices"} & set(config)


def test_other_tokens_are_not_merged(tmp_path: Path) -> None:
    """Rows of other tokens, or other rows, replace rather than add: a note says so, and the folder has neither."""
    base = Small()
    for name, seed, tokens in (("a", 0, [1, 2]), ("b", 1, [1, 2]), ("c", 2, [3, 4])):
        trained(base, tmp_path / name, seed, trainable_token_indices={"embed_tokens": tokens})
    for other in ("b", "c"):
        merged = ml.merge([tmp_path / "a", tmp_path / other], [1, 1])
        assert any("trainable_tokens_delta is not merged" in note for note in merged.report.notes)
        merged.save(tmp_path / f"merged-{other}", format="peft")
        config = json.loads((tmp_path / f"merged-{other}" / "adapter_config.json").read_text())
        assert "trainable_token_indices" not in config


def test_rows_of_unknown_tokens_are_not_written(tmp_path: Path) -> None:
    """The same rows for other tokens: the rows are left, their indices are not, and that is no adapter."""
    for name, tokens in (("a", [1, 2]), ("b", [3, 4])):
        write(tmp_path / name / "adapter_model.safetensors", lora(MODULE), {ROWS: numbers(2, 8)})
        config = {"peft_type": "LORA", "lora_alpha": 4, "trainable_token_indices": tokens}
        (tmp_path / name / "adapter_config.json").write_text(json.dumps(config))
    merged = ml.merge([tmp_path / "a", tmp_path / "b"], [1, 1])
    with pytest.raises(ml.FormatError, match="which tokens they belong to"):
        merged.save(tmp_path / "merged", format="peft")
    assert not (tmp_path / "merged").exists()


@pytest.mark.parametrize("format", ["diffusers", "kohya"])
def test_no_other_format_holds_them(format: str, tmp_path: Path) -> None:
    """A transformer's saved module is not taken for one of its norms; each is refused by its name."""
    path = "base_model.model.transformer_blocks.0.attn.to_q"
    for field, key in (
        ({"modules_to_save": ["proj_out"]}, "base_model.model.proj_out.weight"),
        ({"trainable_token_indices": {"x_embedder": [0, 1]}}, f"base_model.model.x_embedder.{ROWS.split('.', 4)[4]}"),
    ):
        config = {"peft_type": "LORA", "lora_alpha": 4, **field}
        write(tmp_path / "a" / "adapter_model.safetensors", lora(path), {key: numbers(2, 8)})
        (tmp_path / "a" / "adapter_config.json").write_text(json.dumps(config))
        adapter = ml.load(tmp_path / "a")
        (layer,) = adapter.layers
        assert all(name.startswith("transformer.") for name in (layer, *adapter.extras))
        with pytest.raises(ml.FormatError, match=key.split(".")[2]):
            ml.Adapter(adapter.layers, adapter.extras, "flux").save(tmp_path / "b.safetensors", format=format)


BAD: dict[str, tuple[dict[str, Any], tuple[int, ...], str]] = {
    "no field": ({}, (2, 8), "trainable_token_indices is None"),
    "an index too few": ({"trainable_token_indices": [1]}, (2, 8), "an index for every row"),
    "another module": ({"trainable_token_indices": {"wte": [1, 2]}}, (2, 8), "an index for every row"),
    "no rows": ({"trainable_token_indices": {"embed_tokens": [1, 2], "wte": [3]}}, (2, 8), "'wte'.*incomplete"),
    "a vector": ({"trainable_token_indices": [1]}, (1,), "an index for every row"),
    "a number": ({"trainable_token_indices": 5}, (2, 8), "trainable_token_indices is 5, expected"),
    "a truth value": ({"trainable_token_indices": [True, False]}, (2, 8), "trainable_token_indices is .*expected"),
    "a negative index": ({"trainable_token_indices": {"wte": [-1]}}, (2, 8), "trainable_token_indices is .*expected"),
    "no names": ({"modules_to_save": [1]}, (2, 8), "modules_to_save is"),
    "a mapping of modules": ({"modules_to_save": {"a": 1}}, (2, 8), "modules_to_save is"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_makes_no_sense_is_refused(name: str, tmp_path: Path) -> None:
    """Rows without indices, indices without rows, fields of another kind."""
    fields, shape, message = BAD[name]
    write(tmp_path / "adapter_model.safetensors", lora(MODULE), {ROWS: numbers(*shape)})
    config = {"peft_type": "LORA", "lora_alpha": 4, **fields}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(ml.FormatError, match=message) as caught:
        ml.load(tmp_path)
    assert "\n" not in str(caught.value)


def test_names_of_a_live_model_are_refused(tmp_path: Path) -> None:
    """PEFT would not find them, and mergelab does not guess which of the copies counts."""
    key = "base_model.model.score.modules_to_save.default.weight"
    write(tmp_path / "adapter_model.safetensors", lora(MODULE), {key: numbers(3, 8)})
    config = {"peft_type": "LORA", "lora_alpha": 4, "modules_to_save": ["score"]}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(ml.FormatError, match="live model"):
        ml.load(tmp_path)
