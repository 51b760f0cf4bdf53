"""Alphas that stand in the header's strings alone: they count, or a note says which does not and why."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

import mergelab as ml
from tests.files import ALPHA, KOHYA, LAYER, OTHER, TEXT, lora, write

RANK_4 = lora(LAYER, rank=4)
BOTH = {**RANK_4, **lora(TEXT, rank=4)}


def scalings(path: Path) -> dict[str, float]:
    return {name: layer.scaling for name, layer in ml.load(path).layers.items()}


def test_alphas_of_zero(tmp_path: Path) -> None:
    """An adapter that changes nothing is sound, and said to be none."""
    path = write(tmp_path / "zero.safetensors", RANK_4, {ALPHA: torch.tensor(0.0)})
    assert ml.load(path).norm() == 0
    assert "alpha = 0 in every layer: the adapter changes nothing, at whatever weight" in ml.load(path).notes
    path = write(tmp_path / "half.safetensors", BOTH, {ALPHA: torch.tensor(0.0)})
    assert not any("alpha = 0" in note for note in ml.load(path).notes)


COUNTS: dict[str, tuple[dict[str, str], float]] = {
    "alpha": ({"alpha": "8"}, 2.0),
    "lora_alpha": ({"lora_alpha": "2", "rank": "4"}, 0.5),
    "network_alpha": ({"network_alpha": " 1e0 ", "network_dim": "4"}, 0.25),
    "of the component": ({"unet.lora_alpha": "2", "unet.r": "4", "transformer.lora_alpha": "9"}, 0.5),
    "the component's before that of all": ({"alpha": "8", "unet.alpha": "2"}, 0.5),
    "several that agree": ({"alpha": "2", "lora_alpha": "2.0", "network_alpha": "2"}, 0.5),
    "rslora": ({"unet.lora_alpha": "2", "unet.use_rslora": "True"}, 1.0),
    "no rslora": ({"unet.lora_alpha": "2", "unet.use_rslora": "False"}, 0.5),
    "one that says nothing": ({"lora_alpha": "None", "alpha": "2"}, 0.5),
}


@pytest.mark.parametrize("name", COUNTS)
def test_it_counts(name: str, tmp_path: Path) -> None:
    """alpha / rank, and a note that names the string."""
    metadata, scaling = COUNTS[name]
    adapter = ml.load(write(tmp_path / "a.safetensors", RANK_4, metadata=metadata))
    assert adapter.layers[LAYER].scaling == scaling
    (note,) = adapter.report.notes
    assert "from the header's" in note and "alpha" in note


NOT: dict[str, tuple[dict[str, str], str]] = {
    "no number": ({"alpha": "Dynamic"}, "no positive number"),
    "zero": ({"alpha": "0"}, "no positive number"),
    "negative": ({"lora_alpha": "-8"}, "no positive number"),
    "another script": ({"alpha": "\u0668"}, "no positive number"),
    "an underscore": ({"alpha": "0_7"}, "no positive number"),
    "too large": ({"alpha": "1e400"}, "no positive number"),
    "many digits": ({"alpha": "9" * 5000}, "no positive number"),
    "they differ": ({"alpha": "8", "lora_alpha": "2"}, "differ"),
    "another rank": ({"alpha": "8", "rank": "16"}, "'rank'"),
    "another rank of the component": ({"alpha": "8", "unet.r": "16"}, "'unet.r'"),
    "kohya's description": ({"ss_network_alpha": "1", "ss_network_dim": "4"}, "describes the training"),
}


@pytest.mark.parametrize("name", NOT)
def test_it_does_not_count(name: str, tmp_path: Path) -> None:
    """alpha = rank as in every tool, and the note names the string and the reason."""
    metadata, reason = NOT[name]
    adapter = ml.load(write(tmp_path / "a.safetensors", RANK_4, metadata=metadata))
    assert adapter.layers[LAYER].scaling == 1.0
    assert any("does not count" in note and reason in note and "header" in note for note in adapter.report.notes)
    assert all("\n" not in note and len(note) < 300 for note in adapter.report.notes)


def test_each_component_by_itself(tmp_path: Path) -> None:
    """A component whose layers have alphas of their own keeps them; the other takes the header's."""
    own = {f"{TEXT}.alpha": torch.tensor(1.0)}
    path = write(tmp_path / "a.safetensors", BOTH, own, metadata={"alpha": "2"})
    assert scalings(path) == {LAYER: 0.5, TEXT: 0.25}
    path = write(tmp_path / "b.safetensors", BOTH, metadata={"unet.alpha": "2", "text_encoder.alpha": "8"})
    assert scalings(path) == {LAYER: 0.5, TEXT: 2.0}
    path = write(tmp_path / "c.safetensors", BOTH, metadata={"unet.alpha": "2"})
    assert scalings(path) == {LAYER: 0.5, TEXT: 1.0}


def test_mixed_ranks(tmp_path: Path) -> None:
    """One alpha for all is alpha / rank for each, as in PEFT."""
    tensors = {**RANK_4, **lora(OTHER, rank=2)}
    path = write(tmp_path / "a.safetensors", tensors, metadata={"alpha": "4", "rank": "2"})
    assert scalings(path) == {LAYER: 1.0, OTHER: 2.0}
    path = write(tmp_path / "b.safetensors", tensors, metadata={"alpha": "4", "rank": "2", "use_rslora": "1"})
    assert scalings(path) == {LAYER: 2.0, OTHER: pytest.approx(4 / math.sqrt(2))}


@pytest.mark.parametrize("field", ["alpha", "lora_alpha", "network_alpha", "ss_network_alpha"])
def test_alphas_in_tensors_count_once(field: str, tmp_path: Path) -> None:
    """An alpha of the file itself is the alpha; kohya's description beside it is none, and needs no note."""
    tensors = {f"{KOHYA}.lora_down.weight": torch.ones(4, 3, 3, 3), f"{KOHYA}.lora_up.weight": torch.ones(5, 4, 1, 1)}
    path = write(tmp_path / "a.safetensors", tensors, {f"{KOHYA}.alpha": torch.tensor(2.0)}, metadata={field: "1"})
    adapter = ml.load(path)
    assert [layer.scaling for layer in adapter.layers.values()] == [0.5]
    assert not any("alpha" in note for note in adapter.report.notes)


def test_a_layer_without_an_alpha_among_others(tmp_path: Path) -> None:
    """It has alpha = rank, as before; the note tells that the header says something else."""
    own = {f"{LAYER}.alpha": torch.tensor(2.0)}
    adapter = ml.load(write(tmp_path / "a.safetensors", RANK_4, lora(OTHER), own, metadata={"alpha": "8"}))
    assert [layer.scaling for layer in adapter.layers.values()] == [0.5, 1.0]
    assert any("'alpha'" in note and "other layers" in note for note in adapter.report.notes)


def test_configs_come_first(tmp_path: Path) -> None:
    """`lora_adapter_metadata` and `adapter_config.json` say the alpha; strings beside them do not count."""
    config = json.dumps({"unet.lora_alpha": 2, "unet.r": 4})
    path = write(tmp_path / "a.safetensors", RANK_4, metadata={"alpha": "8", "lora_adapter_metadata": config})
    assert scalings(path) == {LAYER: 0.5}
    module = "base_model.model.layers.0.to_q"
    write(tmp_path / "b" / "adapter_model.safetensors", lora(module, rank=4), metadata={"alpha": "8"})
    (tmp_path / "b" / "adapter_config.json").write_text('{"lora_alpha": 2}')
    assert list(scalings(tmp_path / "b").values()) == [0.5]


def test_an_alpha_equal_to_the_rank_is_no_news(tmp_path: Path) -> None:
    """kohya's description of an alpha that is the rank says what every tool takes for granted."""
    adapter = ml.load(write(tmp_path / "a.safetensors", RANK_4, metadata={"ss_network_alpha": "4"}))
    assert not any("header" in note for note in adapter.report.notes)


@pytest.mark.parametrize("format", ["diffusers", "kohya", "peft"])
def test_written_once(format: str, tmp_path: Path) -> None:
    """The alpha of the header is in the written tensors, so that the string is gone; other strings stay."""
    metadata = {"unet.lora_alpha": "2", "unet.r": "4", "alpha": "2", "rank": "4", "author": "x"}
    adapter = ml.load(write(tmp_path / "a.safetensors", RANK_4, metadata=metadata))
    out = adapter.save(tmp_path / ("out" if format == "peft" else "out.safetensors"), format=format)
    again = ml.load(out)
    torch.testing.assert_close(again.layers[LAYER].delta_weight(), adapter.layers[LAYER].delta_weight())
    with safe_open(out / "adapter_model.safetensors" if format == "peft" else out, "pt") as content:
        strings = content.metadata()
    assert strings["author"] == "x" and not set(strings) & (set(metadata) - {"author"})
