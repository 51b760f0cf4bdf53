"""Dry runs: the table of weights, what is checked, and that nothing is written."""

from __future__ import annotations

from pathlib import Path

import pytest

from mergelab import cli
from tests.refusing import Refused
from tests.synthetic import adapter

DOWN, UP = "unet.down_blocks", "unet.up_blocks"
# One layer each of IN04, IN08, MID, OUT01, OUT05 and BASE.
SHAPES: dict[str, tuple[int, ...]] = {
    f"{DOWN}.1.attentions.0.proj_in": (12, 9),
    f"{DOWN}.2.attentions.1.proj_in": (12, 9),
    "unet.mid_block.attentions.0.proj_out": (8, 10),
    f"{UP}.0.attentions.1.proj_in": (9, 12),
    f"{UP}.1.attentions.2.proj_out": (9, 12),
    "text_encoder.text_model.encoder.layers.0.mlp.fc1": (7, 5),
}


def test_a_dry_run_shows_the_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Block by block, those that follow each other at one weight together; nothing is written."""
    a = adapter(6, rank=2, shapes=SHAPES)
    file, out = a.save(tmp_path / "a.safetensors"), tmp_path / "out.safetensors"
    blocks = ["--block-weights", "sdxl:0.5,1,1,1,0,1,0,0,0,0,0,0"]
    for line in (
        ["merge", f"{file}:0.5"],
        ["convert", str(file), "--format", "kohya"],
        ["resize", str(file), "--rank", "1"],
    ):
        strength = 0.5 if line[0] == "merge" else 1
        assert cli.run([*line, "-o", str(out), *blocks, "--dry-run"]) == 0
        rows = [row.split() for row in capsys.readouterr().out.splitlines()]
        assert rows[0] == ["adapter", "part", "weight", "layers"]
        assert rows[1:8] == [
            ["a", "BASE", f"{0.5 * strength:g}", "1"],
            ["a", "IN04-IN05", f"{strength:g}", "1"],
            ["a", "IN07", f"{strength:g}", "0"],
            ["a", "IN08", "0", "1"],
            ["a", "MID", f"{strength:g}", "1"],
            ["a", "OUT00-OUT05", "0", "2"],
            rows[7],
        ]
        assert " ".join(rows[7]).startswith("dry run, nothing was written")
    assert not out.exists()
    assert cli.run(["merge", f"{file}:text_encoder=0.5,unet=2", "-o", str(out), "--dry-run"]) == 0
    assert "text_encoder  0.5     1" in (shown := capsys.readouterr().out) and "unet          2       5" in shown


def test_a_dry_run_counts_what_is_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Layers whose every weight is 0 are not among them."""
    file, out = adapter(6, rank=2, shapes=SHAPES).save(tmp_path / "a.safetensors"), tmp_path / "out.safetensors"
    line = ["merge", str(file), "-o", str(out), "--block-weights", "sdxl:OUTALL", "--for", "diffusers"]
    assert cli.run([*line, "--dry-run"]) == 0
    assert ", 3 layers, format" in capsys.readouterr().out
    assert cli.run(line) == 0
    assert f"{out}: 3 layers, format" in capsys.readouterr().out


def test_a_dry_run_checks(tmp_path: Path, refused: Refused) -> None:
    """Method, rank, options, layers and the output."""
    file = adapter(7, rank=2, shapes=SHAPES).save(tmp_path / "a.safetensors")
    other = adapter(8, rank=2, shapes=dict.fromkeys(SHAPES, (3, 4))).save(tmp_path / "b.safetensors")
    line = ("merge", file, "--dry-run", "-o")
    refused(*line, tmp_path / "out.safetensors", "--method", "nonsense", needles=["nonsense"])
    refused(*line, tmp_path / "out.safetensors", "--method", "ties", "--density", "7", needles=["density"])
    refused(*line, tmp_path / "out.safetensors", other, needles=["different base models"])
    refused(*line, file, needles=["input"])
    refused(*line, tmp_path / "out.safetensors", "--block-weights", "sdxl:OUTAL", needles=["OUTALL"])
    twice = ("--block-weights", "sdxl:ALL") * 2
    refused(*line, tmp_path / "out.safetensors", *twice, needles=["2 times for 1 adapter"])


def test_a_dry_run_notices_that_nothing_is_left(tmp_path: Path, refused: Refused) -> None:
    """Every weight is 0, as such or in the blocks that the adapter has."""
    file, down = tmp_path / "a.safetensors", next(iter(SHAPES))
    adapter(9, rank=2, shapes={down: SHAPES[down]}).save(file)
    for weight in ([f"{file}:0"], [file, "--block-weights", "sdxl:OUTALL"], [f"{file}:unet=0"]):
        refused("merge", *weight, "--dry-run", "-o", tmp_path / "out.safetensors", needles=["every weight is 0"])


def test_a_dry_run_of_fusing(tmp_path: Path, capsys: pytest.CaptureFixture[str], refused: Refused) -> None:
    """The table, and what would change; the base model and the output are checked."""
    line = ["fuse", "miniature/sdxl", "miniature/sdxl/ghost:0.5", "--block-weights", "sdxl:OUTALL", "--dry-run", "-o"]
    assert cli.run([*line, str(tmp_path / "out")]) == 0
    rows = [row.split() for row in capsys.readouterr().out.splitlines()]
    assert ["ghost", "MID", "0", "12"] in rows and ["ghost", "OUT00-OUT08", "0.5", "24"] in rows
    assert " ".join(rows[-1]).endswith("24 tensors changed") and rows[-2][:3] == ["dry", "run,", "nothing"]
    assert not list(tmp_path.iterdir())
    refused(*line, tmp_path, needles=["exists already"])
    refused("fuse", tmp_path / "none", *line[2:], tmp_path / "out", needles=["none"])
    refused("fuse", "miniature/sdxl", "miniature/sdxl/ghost:0", *line[5:], tmp_path / "out", needles=["weight is 0"])
