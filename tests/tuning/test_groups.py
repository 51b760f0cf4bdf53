"""Groups of layers, and the settings that a search tries."""

from __future__ import annotations

import pytest
import torch

import mergelab as ml
from mergelab import miniature
from mergelab.engine.weights import resolve
from mergelab.tuning.groups import BESIDE, groups_of
from mergelab.tuning.settings import candidate_of, first_settings, parameters_of, settings_around


@pytest.mark.parametrize("pipeline", miniature.PIPELINES)
def test_a_weight_of_each_group_reaches_its_layers_and_no_others(pipeline: str) -> None:
    """Every layer has exactly the weight of its group; those beside the groups the mean."""
    adapters = {one.name: ml.load(one.path) for one in miniature.adapters(pipeline)}
    groups = groups_of((layer for one in adapters.values() for layer in one.layers), "blocks")
    assert groups.names == {"sdxl": ("down", "mid", "up"), "flux": ("double", "single 1", "single 2")}[pipeline]
    values = {name: 1.0 + place / 4 for place, name in enumerate(groups.names)}
    for name, adapter in adapters.items():
        layers = list(adapter.layers)
        [resolved] = resolve([groups.weights(values, layers)], [layers], [name])
        assert resolved == {layer: values.get(groups.of(layer), 1.25) for layer in layers}


def test_flux_has_halves_of_its_single_blocks() -> None:
    """By number, not by name."""
    names = [f"transformer.transformer_blocks.{i}.q" for i in range(19)]
    names += [f"transformer.single_transformer_blocks.{i}.q" for i in range(38)]
    groups = groups_of([*names, "transformer.proj_out", "text_encoder.q"], "blocks")
    assert [len(starts) for starts in groups.members.values()] == [1, 19, 19]
    assert groups.of("transformer.single_transformer_blocks.18.q") == "single 1"
    assert groups.of("transformer.single_transformer_blocks.19.q") == "single 2"
    assert groups.of("transformer.proj_out") == groups.of("text_encoder.q") == BESIDE


def test_components_and_none() -> None:
    """A weight for each component, or one for all."""
    layers = ["unet.down_blocks.0.q", "text_encoder.q", "text_encoder_2.q"]
    assert groups_of(layers, "components").names == ("unet", "text_encoder", "text_encoder_2")
    assert groups_of(layers, "none").weights({"all": 0.9}, layers) == 0.9
    with pytest.raises(ml.OptionError, match="groups: none"):
        groups_of(["unet.q", "text_encoder.q"], "blocks")


def test_settings_are_the_same_for_the_same_seed() -> None:
    """And others for another; all adapters and groups have a weight."""
    groups = groups_of(["unet.down_blocks.0.q", "unet.mid_block.q", "unet.up_blocks.0.q"], "blocks")
    first = first_settings({"ghost": 1.0, "day": 0.5, "ink": 1.0}, groups)
    assert len(first) == 4 + 2 * 3 and first[0]["day"] == dict.fromkeys(("down", "mid", "up"), 0.5)
    drawn = settings_around(first[:3], 8, "0 8")
    assert drawn == settings_around(first[:3], 8, "0 8") != settings_around(first[:3], 8, "0 16")
    assert {(name, group) for one in drawn for name in one for group in one[name]} == {
        (name, group) for name in ("ghost", "day", "ink") for group in ("down", "mid", "up")
    }


def test_a_setting_is_a_plain_sum_with_pattern_weights() -> None:
    """Its parameters are named by adapter and group; a negative weight stays negative."""
    groups = groups_of(["unet.down_blocks.0.q", "unet.up_blocks.0.q"], "blocks")
    [values] = settings_around([{"ghost": {"down": 1.0, "up": 1.2}, "day": {"down": -1.0, "up": -1.0}}], 1, "0")
    assert all(weight < 0 for weight in values["day"].values())
    candidate = candidate_of(
        "setting 9", values, groups, {"ghost": ["unet.up_blocks.0.q"], "day": ["unet.down_blocks.0.q"]}, {"turbo": 1.0}
    )
    assert candidate.merge is None and candidate.weights["turbo"] == 1.0
    assert set(candidate.weights["ghost"]) == {"*", "unet.up_blocks"}  # type: ignore[arg-type]
    assert parameters_of(values)["ghost up"] == values["ghost"]["up"]
    one = first_settings({"ghost": 1.0, "day": 1.0}, groups_of([], "none"))[1]
    assert parameters_of(one) == {"ghost": 0.85, "day": 0.85}
    assert torch.isfinite(torch.tensor(list(parameters_of(values).values()))).all()
