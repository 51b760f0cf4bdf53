"""Options that do not exist or are out of range, on the command line and in Python."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import pytest

import mergelab as ml
from mergelab import cli
from tests.files import OTHER
from tests.refusing import Refused

OPTIONS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "unknown method": (("--method", "tise"), ("'tise'", "svd, ties")),
    "unknown option": (("--method", "ties", "--desnity", "1"), ("'desnity'", "density=0.5", "majority_sign='total'")),
    "option of another method": (("--method", "svd", "--density", "0.5"), ("'density'", "space='delta'")),
    "option without a value": (("--method", "ties", "--lam"), ("--lam", "needs a value")),
    "unknown short option": (("-x", "3"), ("'-x'",)),
    "density 0": (("--method", "ties", "--density", "0"), ("density", "0 < density <= 1", "found 0")),
    "density 1.5": (("--method", "ties", "--density", "1.5"), ("density", "0 < density <= 1", "found 1.5")),
    "density -1": (("--method", "dare", "--density", "-1"), ("density", "0 < density <= 1", "found -1")),
    "density tiny": (("--method", "dare", "--density", "1e-320"), ("density",)),
    "density NaN": (("--method", "dare_ties", "--density", "nan"), ("density", "found nan")),
    "density with an underscore": (("--method", "ties", "--density", "0_5"), ("--density", "0_5", "no number")),
    "seed with an underscore": (("--seed", "1_0"), ("--seed", "1_0", "no integer")),
    "rank with an underscore": (("--rank", "1_6"), ("rank='1_6'", "mean=32")),
    "rank mean=1_6": (("--rank", "mean=1_6"), ("mean=1_6", "mean=32")),
    "lam with an underscore": (("--method", "ties", "--lam", "0_5"), ("lam='0_5'", "finite number")),
    "density a word": (("--method", "ties", "--density", "half"), ("--density", "number")),
    "lam infinite": (("--method", "ties", "--lam", "Infinity"), ("lam=inf", "finite number")),
    "lam a list": (("--method", "ties", "--lam", "[1]"), ("lam=[1]", "finite number")),
    "lam too large": (("--method", "ties", "--lam", "1e39"), ("float32",)),
    "method misspelt": (("--method", "tie"), ("'tie'", "did you mean 'ties'?")),
    "option misspelt": (("--method", "ties", "--densty", "0.5"), ("'densty'", "did you mean 'density'?")),
    "own option misspelt": (("--metod", "ties"), ("--metod", "did you mean --method?")),
    "no miniature adapter": (("miniature/sdxl/gost",), ("miniature/sdxl/gost", "known: ghost")),
    "unknown sign": (("--method", "ties", "--majority-sign", "some"), ("'some'", "'total', 'frequency'")),
    "unknown space": (("--space", "beta"), ("'beta'", "'delta', 'core'")),
    "no such space": (("--space", "factors"), ("factors", "method='linear'")),
    "rank 0": (("--rank", "0"), ("rank=0", "at least 1")),
    "rank -3": (("--rank", "-3"), ("rank=-3", "at least 1")),
    "rank 1.5": (("--rank", "1.5"), ("rank=1.5", "between 0 and 1")),
    "rank 1.0": (("--rank", "1.0"), ("rank=1.0", "between 0 and 1")),
    "rank foo": (("--rank", "foo"), ("rank='foo'", "mean=32")),
    "rank NaN": (("--rank", "nan"), ("rank=nan",)),
    "rank mean=0": (("--rank", "mean=0"), ("rank='mean=0'", "an integer of at least 1")),
    "cat with a budget": (("--method", "cat", "--rank", "mean=8"), ("rank='mean=8'", "method='svd'")),
    "rank mean=x": (("--rank", "mean=x"), ("mean=x", "mean=32")),
    "cat with a rank": (("--method", "cat", "--rank", "8"), ("cat", "rank=8", "method='svd'")),
    "unknown device": (("--device", "toaster"), ("device", "toaster")),
    "seed no number": (("--seed", "x"), ("--seed",)),
    "unknown format": (("--format", "onnx"), ("'onnx'", "'diffusers', 'kohya', 'comfy', 'peft', 'same'")),
    "unknown dtype": (("--dtype", "float99"), ("'float99'", "'float16'")),
    "integer dtype": (("--dtype", "int8"), ("'int8'", "'float16'")),
    "no dtype": (("--dtype", "nn"), ("'nn'", "'float16'")),
    "float8": (("--dtype", "float8_e4m3fn"), ("'float8_e4m3fn'", "'float64'")),
    "no plug-in": (("--import", "nowhere.py"), ("--import nowhere.py",)),
    "no module": (("--import", "no_such_module"), ("no_such_module",)),
    "relative module": (("--import", ".module"), (".module",)),
}


@pytest.mark.parametrize("name", OPTIONS)
def test_option(name: str, tmp_path: Path, good: Path, refused: Refused) -> None:
    """An option that does not exist or is out of range: the sentence names it and what is expected."""
    arguments, needles = OPTIONS[name]
    refused("merge", good, "-o", tmp_path / "out.safetensors", *arguments, needles=needles)


WEIGHTS = {
    "NaN": ("nan", ("good", "nan", "finite")),
    "infinite": ("inf", ("good", "inf", "finite")),
    "zero": ("0", ("every weight is 0",)),
    "too large": ("1e39", ("1e+39", "float32")),
    "no number": ("0,7", ("0,7",)),
    "underscore": ("0_7", ("'0_7'", "number")),
    "other digits": ("\u0660.\u0667", ("number",)),
    "space": (" 0.7", ("' 0.7'", "number")),
    "mapping underscore": ("unet=0_7", ("unet=0_7", "number")),
    "mapping no number": ("unet=x", ("unet=x",)),
    "mapping NaN": ("unet=nan", ("good", "'unet'", "nan")),
    "matches nothing": ("text_encoder=1.0", ("good", "'text_encoder'", "unet")),
    "pattern matches nothing": ("unet=1.0,*.up_blocks.*=0.5", ("good", "'*.up_blocks.*'", "unet")),
    "layers without a weight": ("*.to_q=1.0", ("good", OTHER, "'*': 1.0")),
}


@pytest.mark.parametrize("name", WEIGHTS)
def test_weight(name: str, tmp_path: Path, good: Path, refused: Refused) -> None:
    """A weight that is no finite number, or belongs to no layer: the adapter and the pattern are named."""
    weight, needles = WEIGHTS[name]
    refused("merge", f"{good}:{weight}", "-o", tmp_path / "out.safetensors", needles=needles)


@pytest.mark.parametrize(
    ("arguments", "needle"),
    [
        ([], "expected a command"),
        (["frobnicate"], "frobnicate"),
        (["merge"], "--output"),
        (["merge", "-o", "out.safetensors"], "adapters"),
        (["merge", "a.safetensors"], "--output"),
        (["inspect"], "file"),
        (["inspect", "a.safetensors", "b.safetensors"], "b.safetensors"),
        (["convert", "a.safetensors", "-o", "out.safetensors"], "--format"),
        (["resize", "a.safetensors", "-o", "out.safetensors"], "--rank"),
        (["compare"], "adapters"),
    ],
)
def test_usage(arguments: list[str], needle: str, refused: Refused) -> None:
    """What is missing on the command line is named, in one line."""
    refused(*arguments, needles=[needle])


@pytest.mark.parametrize("value", ["4_0", "010", "0x10", "1:30"])
def test_numbers_of_a_configuration(value: str, tmp_path: Path, refused: Refused) -> None:
    """What YAML would read as another number than the one that stands there is none."""
    arguments = ("config.yaml", "-o", tmp_path / "run", "--set", f"seeds={value}")
    refused("evaluate", *arguments, needles=[f"seeds={value}", "no plain number"])


def test_a_weight_of_a_file_elsewhere(refused: Refused) -> None:
    """A slip is no part of the name that is looked for on the Hub."""
    refused("merge", "user/repo/style.safetensors:0_7", "-o", "out.safetensors", needles=["'0_7'", "number"])


@pytest.mark.parametrize("rank", ["0", "-3", "1.5", "1_6", "foo", "sum"])
def test_resize_rank(rank: str, tmp_path: Path, good: Path, refused: Refused) -> None:
    """The rank of `resize` is checked as that of `merge`."""
    refused("resize", good, "--rank", rank, "-o", tmp_path / "out.safetensors", needles=["rank=", rank, "expected"])


def test_rank_that_no_layer_can_hold(tmp_path: Path, good: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A rank above what a layer can hold is capped, and the report says so."""
    for i, command in enumerate(["merge", "resize"]):
        out = tmp_path / f"{i}.safetensors"
        assert cli.run([command, str(good), "-o", str(out), "--rank", "1000"]) == 0
        assert re.search(r"capped at 2\b.*asked for 1000", capsys.readouterr().out)
        assert set(ml.load(out).ranks.values()) == {2}
    for report in (ml.merge([good], rank="mean=1000").report, ml.load(good).resize(ml.RankBudget(mean=1000)).report):
        assert report.notes == (
            "rank budget capped at 4, all that the layers can hold (mean=1000 of 2 layers is 2000)",
        )
    assert not ml.merge([good], rank="mean=2").report.notes
    report = ml.merge([good, good], method="dare", rank=1000, density=0.5).report
    assert all("capped at 8" in row.note for row in report.layers)


@pytest.mark.parametrize(
    ("weights", "needle"),
    [
        ([1.0], "1 value for 2"),
        ([1.0, 1.0, 1.0], "3 values for 2"),
        ([], "0 values for 2"),
        ([1.0, math.nan], "finite"),
        ([1.0, 10**400], "finite"),
        ([0.0, 0.0], "every weight is 0"),
        ([1.0, {"text_encoder": 1.0}], "matches no layer"),
        ([1.0, {}], "no weight for 2 layers"),
        ([1.0, {"*.to_q": 1.0}], OTHER),
        ([1.0, {"*": math.inf}], "finite"),
    ],
)
def test_weights_in_python(weights: list[Any], needle: str, good: Path) -> None:
    """A list of the wrong length, a number that is none, a pattern that matches nothing."""
    with pytest.raises(ml.OptionError) as caught:
        ml.merge([good, good], weights)
    assert needle in str(caught.value)


@pytest.mark.parametrize(
    ("options", "needle"),
    [
        ({"method": "tise"}, "svd, ties"),
        ({"method": "ties", "desnity": 1}, "density=0.5"),
        ({"method": ml.Ties(), "desnity": 1}, "density=0.5"),
        ({"method": "ties", "density": True}, "0 < density <= 1"),
        ({"method": "ties", "density": "0.5"}, "0 < density <= 1"),
        ({"rank": 0}, "at least 1"),
        ({"rank": True}, "at least 1"),
        ({"rank": -0.5}, "between 0 and 1"),
        ({"rank": math.nan}, "between 0 and 1"),
        ({"rank": "all"}, "'max'"),
        ({"method": "cat", "rank": 4}, "method='svd'"),
        ({"device": "toaster"}, "toaster"),
    ],
)
def test_options_in_python(options: dict[str, Any], needle: str, good: Path) -> None:
    """What the command line refuses, `merge` refuses."""
    with pytest.raises(ml.OptionError) as caught:
        ml.merge([good, good], **options)
    assert needle in str(caught.value)


def test_a_small_share_of_the_energy(tmp_path: Path, good: Path) -> None:
    """As Python takes it, the command line does."""
    assert cli.run(["merge", str(good), "-o", str(tmp_path / "out.safetensors"), "--rank", "1e-9"]) == 0
    assert set(ml.load(tmp_path / "out.safetensors").ranks.values()) == {1}


def test_the_usual_alpha_is_no_news(tmp_path: Path, good: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """That layers have no alpha is said where a file is looked at, not of everything that is made from it."""
    assert cli.run(["inspect", str(good)]) == 0
    assert "have no alpha" in capsys.readouterr().out
    for i, command in enumerate((["merge"], ["convert", "--format", "kohya"], ["resize", "--rank", "1"])):
        assert cli.run([*command, str(good), "-o", str(tmp_path / f"{i}.safetensors")]) == 0
    assert cli.run(["compare", str(good), str(good)]) == 0
    assert "have no alpha" not in capsys.readouterr().out


def test_the_model_of_what_ships() -> None:
    """By the name of its pipeline."""
    assert repr(ml.load("miniature/sdxl/ghost")).startswith("Adapter ghost (miniature/sdxl)")
    assert repr(ml.load("miniature/flux/house").select("*")).splitlines()[0].endswith("(miniature/flux)")
