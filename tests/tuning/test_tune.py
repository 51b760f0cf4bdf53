"""A whole search: what it writes, that nothing is drawn twice, that a kill loses nothing, the command."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from torch import Tensor
from torchvision.utils import save_image

import mergelab as ml
from mergelab import cli, miniature
from mergelab.evaluation.executors import worker
from mergelab.evaluation.metrics import registry
from mergelab.pipelines.images import generate_images
from mergelab.publishing.recipe import recipe_of
from tests.conftest import ROOT
from tests.evaluation.small import counted
from tests.tuning.small_search import SMALL


@pytest.fixture(scope="module")
def tuned(pipeline: Any, tmp_path_factory: pytest.TempPathFactory) -> ml.Tuned:
    """One search that many tests look at."""
    return ml.tune(SMALL, tmp_path_factory.mktemp("run"), pipeline=pipeline)


def test_what_it_writes(tuned: ml.Tuned) -> None:
    """The trials, the winner with its recipe, an evaluation on other prompts and seeds, all that it says."""
    folder = tuned.folder
    assert {"config.yaml", "trials.json", "tuned.safetensors", "held-out"} <= {path.name for path in folder.iterdir()}
    trials = json.loads((folder / "trials.json").read_text())
    assert len(trials["trials"]) == 9 and len(trials["sums"]) == 6 and trials["best"] == list(tuned.found.best)
    assert sum(trial["state"] == "complete" for trial in trials["trials"]) == 2
    header = ml.load(tuned.path).metadata
    recipe = recipe_of(header)
    assert recipe is not None and recipe.method == "svd" and [one.name for one in recipe.inputs] == ["fish", "stripes"]
    drawn = set(tuned.held_out.scores["variant"])
    assert drawn == {"base", "single:fish", "single:stripes", "stack", "merge:winner", "merge:sum at its best strength"}
    assert set(tuned.held_out.scores["seed"]) == {1} and set(tuned.scored) == {
        "winner",
        "sum at its best strength",
        "sum",
    }
    said = str(tuned)
    assert f"adapter: {tuned.path}" in said and "on held-out scenes" in said and f"{tuned.held_out_score:.3f}" in said
    assert tuned.selection_bias == pytest.approx(tuned.search_score - tuned.held_out_score)


def test_the_winner_is_the_weighted_sum_that_was_drawn(tuned: ml.Tuned) -> None:
    """As it is written: the pattern weights of the trial, and nothing lost."""
    weights = [tuned.winner.weights[name] for name in ("fish", "stripes")]
    plain = ml.merge(["miniature/sdxl/fish", "miniature/sdxl/stripes"], weights, method="cat")
    assert (ml.load(tuned.path) - plain).norm() < 1e-4 * plain.norm()


def test_nothing_is_drawn_twice(tuned: ml.Tuned, pipeline: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same search again draws nothing, one with more settings what is new; the result is the same."""
    drawn = counted(monkeypatch)
    again = ml.tune(SMALL, tuned.folder, pipeline=pipeline)
    assert not drawn and again.winner == tuned.winner and again.scored == tuned.scored
    longer = ml.tune(SMALL | {"settings": 10}, tuned.folder, pipeline=pipeline)
    before = [trial.candidate for trial in tuned.found.trials]
    assert [trial.candidate for trial in longer.found.trials][:9] == before
    assert len(drawn) in (4, 4 + 4)  # one setting on four scenes; where it wins, it is evaluated on what is held out


def test_one_folder_is_of_one_command(tuned: ml.Tuned, pipeline: Any) -> None:
    with pytest.raises(ml.OutputError, match="held-out: is the run of an evaluation; choose another folder"):
        ml.tune(SMALL, tuned.folder / "held-out", pipeline=pipeline)
    with pytest.raises(ml.OutputError, match="is the run of a search"):
        ml.evaluate(tuned.held_out.config, tuned.folder, pipeline=pipeline)


KILLER = """
import os, signal, sys
import mergelab as ml
from mergelab.evaluation.executors import worker
import json

left, generate = int(sys.argv[3]), worker.generate_images

def killing(*arguments):
    global left
    left -= 1
    if left < 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return generate(*arguments)

worker.generate_images = killing
ml.tune(json.loads(sys.argv[1]), sys.argv[2], progress=False)
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="kills a process")
def test_a_killed_search_goes_on(
    tuned: ml.Tuned, pipeline: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was drawn before is not drawn again, trials that had ended are in the folder, and the winner is the same."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", KILLER, json.dumps(SMALL), str(tmp_path / "run"), "9"]
    killed = subprocess.run(command, env=environment, capture_output=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    trials = json.loads((tmp_path / "run" / "trials.json").read_text())["trials"]
    there = len(list((tmp_path / "run" / "images").glob("*.png")))
    assert 1 <= len(trials) < 9 and there
    drawn = counted(monkeypatch)
    resumed = ml.tune(SMALL, tmp_path / "run", pipeline=pipeline)
    assert resumed.winner == tuned.winner and resumed.scored == tuned.scored
    images = sum(len(list((tmp_path / "run" / part).glob("*.png"))) for part in ("images", "held-out/images"))
    assert len(drawn) == images - there


def test_a_candidate_that_cannot_be_drawn_fails_alone(
    pipeline: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The search goes on without it, and its trial says why; a batch is halved until the image itself is found."""
    shown = 0

    def failing(pipe: Any, units: Sequence[tuple[str, int]], keywords: Mapping[str, Any]) -> list[Tensor]:
        nonlocal shown
        shown += 1
        if 3 <= shown <= 10:
            raise RuntimeError("no memory")
        return generate_images(pipe, units, keywords)

    monkeypatch.setattr(worker, "generate_images", failing)
    tuned = ml.tune(
        SMALL | {"settings": 4, "held_out": {"metrics": ["clip_text"]}}, tmp_path / "run", pipeline=pipeline
    )
    failed = [trial for trial in tuned.found.trials if trial.state == "failed"]
    assert [trial.error for trial in failed] == ["RuntimeError: no memory"]
    assert set(tuned.held_out.scores["metric"]) == {"judge", "clip_text"}


@pytest.mark.parametrize("score", ["clip_text", "nearness", "sharpness"])
def test_other_scores(score: str, pipeline: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of words, of words on a scale of their own, and one number of the user's own."""
    monkeypatch.setattr(registry, "_REGISTERED", {})

    @ml.register_metric("sharpness")
    def sharpness(image: Tensor, prompt: str, references: Mapping[str, Tensor]) -> float:
        return float((image[:, 1:] - image[:, :-1]).abs().mean())

    tuned = ml.tune(SMALL | {"score": score, "settings": 3, "keep": 1}, tmp_path, pipeline=pipeline)
    assert tuned.found.winner.scored is not None and tuned.found.winner.scored.images == 4
    assert tuned.search_score == max(trial.scored.total for trial in tuned.found.trials if trial.scored)


def test_photographs(pipeline: Any, tmp_path: Path) -> None:
    """A metric between images sees an adapter by its photographs, and the base model by its own pictures."""
    loras = []
    for name, scene in (("fish", miniature.Scene("fish")), ("stripes", miniature.Scene("circle", style="stripes"))):
        (tmp_path / name).mkdir()
        save_image(miniature.draw([scene])[0], tmp_path / name / "photograph.png")
        loras.append({"path": f"miniature/sdxl/{name}", "references": str(tmp_path / name)})
    keys = {"score": "clip_image", "loras": loras, "settings": 3, "keep": 1, "generation": {"steps": 4, "batch": 8}}
    tuned = ml.tune(SMALL | keys, tmp_path / "run", pipeline=pipeline)
    found = tuned.found.winner.scored
    assert found is not None and found.plain <= 1 and found.images == 4
    assert tuned.scored["winner"].images == 4


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It says what it found and where; what is wrong is one line and exit code 2."""
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(SMALL))
    command = ["tune", str(tmp_path / "config.yaml"), "-o", str(tmp_path / "run"), "--set", "settings=2"]
    assert cli.run([*command, "--set", "keep=1"]) == 0
    assert str(tmp_path / "run" / "tuned.safetensors") in capsys.readouterr().out
    assert cli.run([*command, "--set", "setings=1"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("mergelab: error: ") and "did you mean 'settings'" in error and error.count("\n") == 1
