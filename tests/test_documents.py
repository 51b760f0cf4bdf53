"""What the documents say is run: Python blocks, command lines, printed results."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import mergelab as ml
from mergelab.cli import run
from mergelab.evaluation import plan
from tests.conftest import ROOT
from tests.synthetic import lora

README = (ROOT / "README.md").read_text()
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text()


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", text, flags=re.DOTALL)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the files that the documents speak of."""
    monkeypatch.chdir(tmp_path)
    generator = torch.Generator().manual_seed(0)
    for name in ("style", "subject", "a", "b"):
        layers = {
            "unet.up_blocks.1.attentions.0.proj_in": lora((16, 24), 4, generator),
            "unet.mid_block.attentions.0.proj_in": lora((24, 24), 4, generator),
            "text_encoder.text_model.encoder.layers.0.mlp.fc1": lora((24, 16), 4, generator),
        }
        ml.Adapter(layers, architecture="sd15").save(f"{name}.safetensors")
    proj_in = "lora_unet_mid_block_attentions_0_proj_in"
    lokr = {"lokr_w1": torch.ones(4, 4), "lokr_w2_a": torch.ones(6, 2), "lokr_w2_b": torch.ones(2, 6)}
    save_file({f"{proj_in}.{key}": tensor for key, tensor in lokr.items()}, "lokr.safetensors")
    factors = {
        "lora_down.weight": torch.ones(2, 24),
        "lora_up.weight": torch.ones(24, 2),
        "dora_scale": torch.ones(24, 1),
    }
    save_file({f"{proj_in}.{key}": tensor for key, tensor in factors.items()}, "dora.safetensors")
    save_file({"unet.mid_block.attentions.0.proj_in.weight": torch.eye(24)}, "sd_xl_base_1.0.safetensors")
    return tmp_path


def test_python_of_the_readme(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Every block runs, and prints what stands below it."""
    names = {"ml": ml, "loras": ["style.safetensors", "subject.safetensors"], "weights": [0.7, 1.0]}
    for block in blocks(README, "python"):
        exec(compile(block, "README.md", "exec"), names)
    assert (folder / "merged.safetensors").is_file()
    assert capsys.readouterr().out == "".join(blocks(README, "text"))


def test_command_lines_of_the_documents(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Every `mergelab ...` line exits with 0, beside what the Python has written; the rule of CONTRIBUTING.md too."""
    (folder / "merged.safetensors").write_text("of the Python above the command lines")
    (folder / "median.py").write_text(next(b for b in blocks(CONTRIBUTING, "python") if "register" in b))
    lines = [line for block in blocks(README, "console") for line in block.splitlines()]
    lines += re.findall(r"`(mergelab merge[^`]+--import[^`]+)`", CONTRIBUTING.replace("\n", " "))
    one_pair, many_pairs, search = blocks(README, "yaml")
    (folder / "config.yaml").write_text(one_pair)
    (folder / "pairs.yaml").write_text(many_pairs)
    (folder / "tune.yaml").write_text(search)
    assert plan(folder / "pairs.yaml", measure=False).sets == 16
    commands = [shlex.split(line)[1:] for line in lines if line.startswith("mergelab ")]
    assert len(commands) >= 6
    for command in commands:
        assert run(command) == 0, capsys.readouterr().err


def test_the_readme_lists_every_method_and_every_name_of_peft() -> None:
    """The table of methods and spaces is complete."""
    table = README[README.index("| | `delta`") : README.index("`mergelab methods` lists")]
    for name in ("linear", "cat", "svd", "ties", "dare", "dare_linear", "dare_ties", "magnitude_prune"):
        assert f"`{name}`" in table
    for name in ("ties_svd", "dare_linear_svd", "dare_ties_svd", "magnitude_prune_svd"):
        assert f"PEFT `{name}`" in table
