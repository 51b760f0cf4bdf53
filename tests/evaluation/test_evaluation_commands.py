"""The demo, the commands, the files for the real models."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
import yaml

import mergelab as ml
from mergelab import cli, miniature
from mergelab.evaluation import demo, read
from mergelab.evaluation.sets import adapter_sets
from tests.conftest import ROOT
from tests.evaluation.small import PROMPTS, SMALL


@pytest.mark.parametrize("name", miniature.PIPELINES)
def test_the_demo(name: str, tmp_path: Path) -> None:
    """Of three prompts with few steps: base, both alone, stack and five merges; it asks for both, either and none."""
    config = demo.config(name)
    (one,) = adapter_sets(read(config))
    assert Counter(len(prompt.calls) for prompt in one.prompts) == {2: 8, 1: 6, 0: 4}
    result = ml.evaluate(config | {"generation": {"steps": 2}, "prompts": config["prompts"][::6]}, tmp_path)
    assert len(set(result.scores.variant)) == 4 + 5 and not result.failures
    assert "report.html" in str(result) and "adapters" in str(result)


def test_the_commands(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The verdict and where the report is; what is wrong is one line and exit code 2."""
    small = SMALL | {"seeds": 1, "prompts": PROMPTS[:1], "metrics": ["judge"], "merges": [{"method": "cat"}]}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(small))
    command = ["evaluate", str(tmp_path / "config.yaml"), "-o", str(tmp_path / "run")]
    assert cli.run([*command, "--set", "generation.steps=2"]) == 0
    assert str(tmp_path / "run" / "report.html") in capsys.readouterr().out
    assert cli.run([*command, "--set", "sedes=2"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("mergelab: error: ") and "did you mean 'seeds'" in error and error.count("\n") == 1
    elsewhere = ["evaluate", str(tmp_path / "config.yaml"), "-o", str(tmp_path / "elsewhere"), "--set", "device=gpuu"]
    assert cli.run(elsewhere) == 2 and not (tmp_path / "elsewhere").exists()
    assert "device='gpuu' cannot be used here" in capsys.readouterr().err
    assert cli.run(["demo", "--pipeline", "sd3", "-o", str(tmp_path / "demo")]) == 2
    assert "unknown miniature pipeline 'sd3'" in capsys.readouterr().err


@pytest.mark.parametrize("path", sorted((ROOT / "experiments" / "evaluation").glob("*.yaml")))
def test_configurations_for_the_real_models(path: Path) -> None:
    """They are valid, and their prompts call each adapter alone, both and none."""
    for one in adapter_sets(read(path)):
        assert {len(prompt.calls) for prompt in one.prompts} == {0, 1, 2}
