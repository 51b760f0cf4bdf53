"""Adapters that do not go together, and layers that a format has no name for."""

from __future__ import annotations

from pathlib import Path

import pytest

import mergelab as ml
from mergelab import cli
from tests.files import BIAS_SUFFIX, FORMATS, LAYER, OTHER, OUTPUTS, lora, numbers, write
from tests.refusing import Refused


def test_different_base_models(tmp_path: Path, refused: Refused) -> None:
    """SD 1.5, SD 2.x, SDXL and FLUX are told apart, and none goes with another."""
    block = "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k"
    files = {
        "sd15": write(tmp_path / "one.safetensors", lora(block, 640, 768)),
        "sd2": write(tmp_path / "two.safetensors", lora(block, 640, 1024)),
        "sdxl": write(tmp_path / "three.safetensors", lora(block, 640, 2048)),
        "flux": write(tmp_path / "four.safetensors", lora("transformer.single_transformer_blocks.0.attn.to_q")),
    }
    for first, file in files.items():
        for second, other in files.items():
            if first == second:
                continue
            needles = [f"{file.stem} is for {first}", f"{other.stem} is for {second}", "one base model"]
            refused("merge", file, other, "-o", tmp_path / "out.safetensors", needles=needles)
            refused("compare", file, other, needles=needles)
            with pytest.raises(ml.ArchitectureError):
                ml.merge([file, other])
            with pytest.raises(ml.MergelabError):
                ml.load(file) + ml.load(other)


def test_different_shapes(tmp_path: Path, good: Path, refused: Refused) -> None:
    """Layers of one name and two shapes: the layer, both files and both shapes are named."""
    other = write(tmp_path / "wide.safetensors", lora(LAYER, 8, 9))
    needles = [LAYER, "good", "wide", "(8, 8)", "(8, 9)", "different base models"]
    refused("merge", good, other, "-o", tmp_path / "out.safetensors", needles=needles)
    refused("compare", good, other, needles=needles)
    with pytest.raises(ml.LayerError, match="shape"):
        ml.load(good) + ml.load(other)


def test_different_biases(tmp_path: Path) -> None:
    """Biases of one layer without factors and of two sizes are refused, with the layer and both files."""
    first, second = (write(tmp_path / f"{n}.safetensors", lora(OTHER), {BIAS_SUFFIX: numbers(n)}) for n in (7, 8))
    with pytest.raises(ml.LayerError) as caught:
        ml.merge([first, second])
    assert all(needle in str(caught.value) for needle in (LAYER, "7", "8"))


def test_flux_parts_that_cannot_be_fused(tmp_path: Path, refused: Refused) -> None:
    """Parts of one fused layer with other widths, other rows or a kernel have no place in kohya's format."""
    block = "transformer.single_transformer_blocks.0.attn"
    conv = {f"{block}.to_k.lora_A.weight": numbers(2, 4, 1, 1), f"{block}.to_k.lora_B.weight": numbers(4, 2, 1, 1)}
    for other in (lora(f"{block}.to_k", 4, 5), lora(f"{block}.to_k", 5, 4), conv):
        bad = write(tmp_path / "bad.safetensors", lora(f"{block}.to_q", 4, 4), other)
        refused("convert", bad, "-o", tmp_path / "out.safetensors", "--format", "kohya", needles=["single_blocks.0"])


def test_formats_without_a_name_for_a_layer(tmp_path: Path, refused: Refused) -> None:
    """A layer or a tensor that a format has no place for is named, with a format or an option that helps."""
    text = write(tmp_path / "text.safetensors", lora("base_model.model.layers.0.q_proj"))
    for format in ("diffusers", "kohya"):
        needles = [str(text), "q_proj", "format='peft'"]
        refused("convert", text, "-o", tmp_path / OUTPUTS[format], "--format", format, needles=needles)
    extra = write(tmp_path / "extra.safetensors", lora(), {"emb_params": numbers(4)})
    for format in FORMATS:
        needles = [str(extra), "emb_params", "--drop-extras"]
        refused("convert", extra, "-o", tmp_path / OUTPUTS[format], "--format", format, needles=needles)
    assert cli.run(["convert", str(extra), "-o", str(tmp_path / "out"), "--format", "peft", "--drop-extras"]) == 0


@pytest.mark.parametrize("command", [["merge"], ["resize", "--rank", "1"], ["convert", "--format", "diffusers"]])
def test_the_way_out_that_a_message_names(
    command: list[str], tmp_path: Path, refused: Refused, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each command that an extra stands in the way of can drop it, and says what it dropped."""
    extra = write(tmp_path / "extra.safetensors", lora(), {"bundle_emb.word.clip_l": numbers(2, 4)})
    arguments = [command[0], str(extra), *command[1:], "-o", str(tmp_path / "out.safetensors")]
    refused(*arguments, needles=["bundle_emb.word.clip_l", "format='kohya'", "--drop-extras"])
    assert cli.run([*arguments, "--drop-extras"]) == 0
    assert "left out: bundle_emb.word.clip_l" in capsys.readouterr().out
    assert not ml.load(tmp_path / "out.safetensors").extras


def test_extras_that_do_not_merge_can_be_dropped(tmp_path: Path, refused: Refused) -> None:
    """Biases of two sizes stand in the way of the merge itself."""
    files = [str(write(tmp_path / f"{n}.safetensors", lora(OTHER), {BIAS_SUFFIX: numbers(n)})) for n in (7, 8)]
    arguments = ["merge", *files, "-o", str(tmp_path / "out.safetensors")]
    refused(*arguments, needles=[LAYER, "--drop-extras"])
    assert cli.run([*arguments, "--drop-extras"]) == 0


def test_kohya_carries_embeddings(tmp_path: Path) -> None:
    """As A1111 and OneTrainer write them, through a merge as well."""
    embedding = numbers(2, 4)
    extra = write(tmp_path / "extra.safetensors", lora(), {"bundle_emb.word.clip_l": embedding})
    for adapter in (ml.load(extra), ml.merge([extra, write(tmp_path / "plain.safetensors", lora())])):
        again = ml.load(adapter.save(tmp_path / "out.safetensors", format="kohya"))
        assert list(again.extras) == ["bundle_emb.word.clip_l"]
        assert again.extras["bundle_emb.word.clip_l"].equal(embedding)


def test_no_adapters() -> None:
    """An empty list, an adapter without layers."""
    with pytest.raises(ml.OptionError, match="at least 1"):
        ml.merge([])
    with pytest.raises(ml.LayerError, match="no layer"):
        ml.merge([ml.Adapter({})])
    with pytest.raises(ml.OptionError, match="at least 2"):
        ml.compare([])
