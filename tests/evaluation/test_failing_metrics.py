"""Metrics of the user's own that fail, or change what they are handed: said once, seen by nobody else."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from torch import Tensor

import mergelab as ml
from mergelab import cli
from mergelab.evaluation.metrics import registry
from tests.evaluation.small import PROMPTS, SMALL

ONE = SMALL | {"seeds": 1, "prompts": PROMPTS[:1], "merges": [{"method": "cat"}], "generation": {"steps": 2}}
FAILING = """
import mergelab as ml
@ml.register_metric("failing")
def failing(image, prompt, references):
    return references["nobody"]
"""


@pytest.fixture(autouse=True)
def registered() -> Iterator[None]:
    """What a test registers is gone after it."""
    yield
    registry._REGISTERED.clear()


def test_a_metric_that_writes_into_its_images(pipeline: Any, tmp_path: Path) -> None:
    """Neither the other metrics, nor its own next call, nor a later run see what it did."""

    @ml.register_metric("brightness")
    def brightness(image: Tensor, prompt: str, references: Mapping[str, Tensor]) -> float:
        return float(image.mean())

    @ml.register_metric("darkening")
    def darkening(image: Tensor, prompt: str, references: Mapping[str, Tensor]) -> dict[str, float]:
        return {name: float((image.mul_(0.5) - other.zero_()).abs().sum()) for name, other in references.items()}

    expected = ml.evaluate(ONE | {"metrics": ["brightness", "lpips"]}, tmp_path / "a", pipeline=pipeline).scores
    found = ml.evaluate(
        ONE | {"metrics": ["darkening", "brightness", "lpips"]}, tmp_path / "b", pipeline=pipeline
    ).scores
    darkened = found[found.metric == "darkening"]
    assert len(darkened) and (darkened.value > 0).all()
    rest = found[found.metric != "darkening"].reset_index(drop=True)
    assert rest.equals(expected.reset_index(drop=True))


def test_a_metric_that_fails_everywhere(pipeline: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """One line for each kind of error with a count, a marked column, and everything else as without it."""

    @ml.register_metric("failing")
    def failing(image: Tensor, prompt: str, references: Mapping[str, Tensor]) -> Any:
        return references["nobody"]

    @ml.register_metric("at times")
    def at_times(image: Tensor, prompt: str, references: Mapping[str, Tensor]) -> float:
        return 1.0 / (len(references) - 3)

    with caplog.at_level(logging.WARNING):
        result = ml.evaluate(ONE | {"metrics": ["judge", "failing", "at times"]}, tmp_path, pipeline=pipeline)
    said = [record.getMessage() for record in caplog.records if record.name.startswith("mergelab")]
    place = f"(base, {PROMPTS[0]!r}, seed 0)"
    assert f"metric failing: 5 cells failed, the first {place} with KeyError: 'nobody'" in said
    assert sum(line.startswith("metric at times: ") for line in said) == 1
    assert len([line for line in said if line.startswith("metric")]) == 2
    assert "metric at times: 4 cells failed" in "".join(said) or "metric at times: 1 cell failed" in "".join(said)
    assert list(result.silent) == ["failing"] and set(result.scores.metric) == {"judge", "at times"}
    head, *rows = result.table.splitlines()
    assert head.endswith("failing") and all(row.endswith("no score") for row in rows)
    assert str(result).count("metric failing: 5 cells failed, the first") == 1
    page = (tmp_path / "report.html").read_text()
    assert "no score" in page and "failing of fish alone" in page


def test_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The findings are shown, the exit code is 2, and the last line says what has no score."""
    (tmp_path / "mine.py").write_text(FAILING)
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(ONE | {"metrics": ["judge", "failing"], "merges": []}))
    command = ["evaluate", str(tmp_path / "config.yaml"), "-o", str(tmp_path / "run")]
    assert cli.run(command) == 2
    assert "'failing'" in (error := capsys.readouterr().err) and "--import" in error
    assert cli.run([*command, "--import", str(tmp_path / "mine.py")]) == 2
    out, error = capsys.readouterr()
    assert "report.html" in out and error.splitlines()[-1].startswith("mergelab: error: ")
    assert "the run is done, but metric failing: 4 cells failed, the first (base" in error.splitlines()[-1]


@pytest.mark.parametrize(
    "wrong",
    [lambda image: 0.0, lambda image, prompt, references, more: 0.0, 3, dict],
    ids=["few", "many", "3", "class"],
)
def test_what_is_no_metric(wrong: Any) -> None:
    """Refused where it is registered, not in every cell."""
    with pytest.raises(ml.OptionError, match=r"metric 'wrong': expected a function \(image, prompt, references\)"):
        ml.register_metric("wrong")(wrong)


def test_a_metric_without_a_name() -> None:
    """The parentheses that are missing are named."""
    with pytest.raises(
        ml.OptionError, match=r"metric name <function .*expected a text, as in @mergelab.register_metric"
    ):

        @ml.register_metric  # type: ignore[arg-type]
        def bare(image: Tensor, prompt: str, references: Mapping[str, Tensor]) -> float:
            return 0.0
