"""What a run never does: take a folder that is not its own, or replace what it was given."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

import mergelab as ml
from mergelab import cli
from tests.evaluation.small import PROMPTS, SMALL
from tests.files import content
from tests.refusing import Refused

ONE = SMALL | {"seeds": 1, "prompts": PROMPTS[:1], "metrics": ["judge"], "merges": [], "generation": {"steps": 1}}


def test_a_folder_with_other_files(tmp_path: Path, refused: Refused, monkeypatch: pytest.MonkeyPatch) -> None:
    """Above all the user's own, with the configuration in it: refused with one sentence, and left as it is."""
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(ONE))
    (tmp_path / "images").mkdir()
    (tmp_path / ".notes.tmp").write_text("mine")
    monkeypatch.chdir(tmp_path)
    for out in (".", tmp_path):
        refused("evaluate", "config.yaml", "-o", out, needles=["no run folder", "new or empty"])
    refused("demo", "-o", ".", needles=["no run folder"])
    (tmp_path / "empty").mkdir()
    assert cli.run(["evaluate", "config.yaml", "-o", "empty"]) == 0
    assert cli.run(["evaluate", "config.yaml", "-o", "empty", "--set", "seeds=2"]) == 0
    assert yaml.safe_load((tmp_path / "config.yaml").read_text()) == ONE


def test_a_run_is_started_again_from_its_own_configuration(
    tmp_path: Path, pipeline: Any, refused: Refused, capsys: pytest.CaptureFixture[str]
) -> None:
    """As long as that stays what it is; with another value in it, it is an input that would be replaced."""
    ml.evaluate(ONE, tmp_path / "run", pipeline=pipeline)
    own = tmp_path / "run" / "config.yaml"
    assert cli.run(["evaluate", str(own), "-o", str(tmp_path / "run")]) == 0
    arguments = ("evaluate", own, "-o", tmp_path / "run", "--set", "seeds=2")
    refused(*arguments, needles=["never replaces an input", str(own)])


@pytest.mark.parametrize("out", ["/proc/x", "/dev/null/x"])
def test_a_folder_that_cannot_be_made(out: str, tmp_path: Path, refused: Refused) -> None:
    """The folder and the reason, without a number."""
    if not Path(out).parent.exists():
        pytest.skip(f"there is no {Path(out).parent} here")
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(ONE))
    before = content(tmp_path)
    sentence = refused("evaluate", tmp_path / "config.yaml", "-o", out, needles=[out])
    assert "Errno" not in sentence and content(tmp_path) == before


def test_configurations_with_slips(tmp_path: Path) -> None:
    """Each sentence says where the thing belongs."""
    for wrong, needle in (
        ({"merges": [{"method": "cat", "weight": 1}]}, "every adapter under loras has a weight of its own"),
        ({"pipeline": "nope"}, "and the pipeline is 'nope'"),
    ):
        with pytest.raises(ml.OptionError, match=needle):
            ml.evaluate(ONE | wrong, tmp_path / "run")
    with pytest.raises(ml.OptionError, match=r"overrides='seeds=2': expected a list, such as \['seeds=2'\]"):
        ml.evaluate(ONE, tmp_path / "run", overrides="seeds=2")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("there", [True, False])
def test_what_is_said_after_an_interruption(
    there: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """That the run goes on is said where there is one."""

    def interrupted(*given: Any) -> None:
        raise KeyboardInterrupt

    (tmp_path / "config.yaml").write_text(yaml.safe_dump(ONE))
    if there:
        (tmp_path / "run").mkdir()
    monkeypatch.setattr("mergelab.evaluation.run._run", interrupted)
    assert cli.run(["evaluate", str(tmp_path / "config.yaml"), "-o", str(tmp_path / "run")]) == 130
    said = capsys.readouterr().err
    assert ("run it again to go on" in said) == there and ("nothing was written" in said) != there
