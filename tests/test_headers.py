"""What the header of a written file says: the base model as declared, words, dates, hashes, the network's rank."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

import mergelab as ml
from mergelab import cli
from tests.files import write

SDXL = "unet.mid_block.attentions.0.transformer_blocks.0.attn2.to_k"
FLUX = "transformer.transformer_blocks.0.attn.to_q"


def adapter(metadata: dict[str, str] | None = None, id: str = "sdxl", rank: int = 2) -> ml.Adapter:
    name, inner = (FLUX, 16) if id == "flux" else (SDXL, 2048)
    layer = ml.LoraLayer(torch.ones(rank, inner), torch.ones(16, rank))
    return ml.Adapter({name: layer}, architecture=id, metadata=metadata or {}, source="x")


def header(path: Path) -> dict[str, str]:
    with safe_open(path, framework="pt") as file:
        return dict(file.metadata())


DECLARED: dict[str, tuple[str, str, str, str]] = {
    "pony": ("sdxl", "ss_base_model_version", "pony", "pony"),
    "illustrious": ("sdxl", "ss_base_model_version", "illustrious_v0.1", "illustrious_v0.1"),
    "another family's": ("sdxl", "ss_base_model_version", "sd_v1", "sdxl_base_v1-0"),
    "nothing": ("sdxl", "ss_base_model_version", " ", "sdxl_base_v1-0"),
    "schnell": ("flux", "modelspec.architecture", "flux-1-schnell/lora", "flux-1-schnell/lora"),
    "schnell, of the model": ("flux", "modelspec.architecture", "flux-1-schnell", "flux-1-schnell/lora"),
    "SDXL for FLUX": ("flux", "modelspec.architecture", "stable-diffusion-xl-v1-base/lora", "flux-1-dev/lora"),
}


@pytest.mark.parametrize("case", DECLARED)
@pytest.mark.parametrize("format", ["kohya", "diffusers", "comfy"])
def test_the_declared_base_model_stays(case: str, format: str, tmp_path: Path) -> None:
    """Where it is a finer word for the family; so it is in merges of inputs that say the same."""
    id, key, value, expected = DECLARED[case]
    given = adapter({key: value}, id)
    assert header(given.save(tmp_path / "a.safetensors", format))[key] == expected
    for merged in (ml.merge([given, given]), given + given):
        found = header(merged.save(tmp_path / "b.safetensors", format))
        assert found[key] == (expected if "mergelab" in merged.metadata else header(adapter(id=id).save(
            tmp_path / "c.safetensors", format))[key])  # fmt: skip
        assert ml.load(tmp_path / "b.safetensors").architecture == id


def test_inputs_that_disagree_get_the_familys_default(tmp_path: Path) -> None:
    """Pony and plain SDXL are an SDXL."""
    merged = ml.merge([adapter({"ss_base_model_version": "pony"}), adapter()])
    assert header(merged.save(tmp_path / "a.safetensors"))["ss_base_model_version"] == "sdxl_base_v1-0"


def test_tags_of_all_inputs_are_counted(tmp_path: Path) -> None:
    """By folder of images; what is no count is left alone."""
    tags = [
        {"10_sks": {"dog": 3}},
        {"10_sks": {"dog": 1, "hat": 2}, "5_szn": {"night": 4}},
        {"x": None, "y": {"z": "?"}},
    ]
    given = [adapter({"ss_tag_frequency": json.dumps(each)}) for each in tags]
    merged = ml.merge([*given, adapter({"ss_tag_frequency": "no JSON"})])
    found = json.loads(header(merged.save(tmp_path / "a.safetensors"))["ss_tag_frequency"])
    assert found == {"10_sks": {"dog": 4, "hat": 2}, "5_szn": {"night": 4}}


def test_hashes(tmp_path: Path) -> None:
    """modelspec's and kohya's are of the tensors, the old one of a part of the file; a long header has none of that."""
    for metadata in ({}, {"comment": "x" * 0x100000}):
        path = adapter(metadata, rank=32).save(tmp_path / "a.safetensors")
        raw, said = path.read_bytes(), header(path)
        digest = hashlib.sha256(raw[8 + int.from_bytes(raw[:8], "little") :]).hexdigest()
        assert said["modelspec.hash_sha256"] == f"0x{digest}" and said["sshs_model_hash"] == digest
        legacy = hashlib.sha256(raw[0x100000:0x110000]).hexdigest()[:8]
        assert said.get("sshs_legacy_hash") == (None if metadata else legacy)
    big = ml.Adapter({SDXL: ml.LoraLayer(torch.randn(300, 2048), torch.randn(16, 300))}, source="x")
    raw = big.save(tmp_path / "b.safetensors").read_bytes()
    assert len(raw) > 0x110000
    assert (
        header(tmp_path / "b.safetensors")["sshs_legacy_hash"] == hashlib.sha256(raw[0x100000:0x110000]).hexdigest()[:8]
    )


def test_dates_and_sizes(tmp_path: Path) -> None:
    """The last date of the inputs, not today's, so that a merge has the same bytes tomorrow; the size of images."""
    dates = ("2024-03-01T10:00:00", "2025-01-01T00:00:00")
    merged = ml.merge([adapter({"modelspec.date": date}) for date in dates])
    found = header(merged.save(tmp_path / "a.safetensors"))
    assert found["modelspec.date"] == dates[1] and found["modelspec.resolution"] == "1024x1024"
    small = adapter({"modelspec.resolution": "768x768"})
    assert header(small.save(tmp_path / "b.safetensors"))["modelspec.resolution"] == "768x768"
    assert "modelspec.date" not in header(small.save(tmp_path / "b.safetensors"))


def test_convert_says_the_trigger_words_where_tools_look(tmp_path: Path) -> None:
    """From whatever key they stand under."""
    tensors = {f"{SDXL}.lora_A.weight": torch.ones(2, 2048), f"{SDXL}.lora_B.weight": torch.ones(16, 2)}
    path = write(tmp_path / "a.safetensors", tensors, metadata={"trained_words": '["sks", "dog"]'})
    assert cli.run(["convert", str(path), "--for", "forge", "-o", str(tmp_path / "b.safetensors")]) == 0
    found = header(tmp_path / "b.safetensors")
    assert found["modelspec.trigger_phrase"] == "sks, dog" and found["trained_words"] == '["sks", "dog"]'


@pytest.mark.parametrize("format", ["kohya", "comfy"])
def test_the_rank_of_the_network(format: str, tmp_path: Path) -> None:
    """Where model managers look for it."""
    found = header(adapter().save(tmp_path / "a.safetensors", format))
    assert (found["ss_network_dim"], found["ss_network_alpha"], found["ss_network_module"]) == (
        "2",
        "2",
        "networks.lora",
    )
