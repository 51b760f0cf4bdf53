"""The search with Optuna, on scores that arithmetic gives: it finds, stops, fails, goes on after a kill."""

from __future__ import annotations

import math
import resource
import signal
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

import mergelab as ml
from mergelab.errors import MergelabError, OptionError, OutputError
from mergelab.tuning.bench import COLUMNS
from mergelab.tuning.candidate import Candidate, Scene
from mergelab.tuning.config import TuneConfig
from mergelab.tuning.optuna_search import search_optuna, space_for
from mergelab.tuning.optuna_study import JOURNAL
from mergelab.tuning.scoring import Scored
from mergelab.tuning.trial import Found, Trial

BOTH = frozenset({"ghost", "day"})
SCENES = [
    *(Scene("a sks in szn style", BOTH, seed) for seed in range(6)),
    *(Scene("a sks", frozenset({"ghost"}), seed) for seed in range(3)),
    *(Scene("a red star in szn style", frozenset({"day"}), seed) for seed in range(3)),
    *(Scene("a red star", frozenset[str](), seed) for seed in range(3)),
]
ADAPTERS = {name: ml.load(f"miniature/sdxl/{name}") for name in ("ghost", "day")}


@dataclass
class Arithmetic:
    """A bench whose best weights are 0.8 and 1.2; TIES costs something, and DARE cannot be merged."""

    drawn: list[tuple[str, int]] = field(default_factory=list)
    calls: int = 0
    killed_at: int = 10**9

    def measure(self, candidates: Sequence[Candidate], scenes: Sequence[Scene]) -> pd.DataFrame:
        """One number for each image."""
        self.calls += 1
        if self.calls == self.killed_at:
            raise KeyboardInterrupt
        self.drawn += [(candidate.label, len(scenes)) for candidate in candidates]
        rows = [
            [one.label, scene.prompt, "+".join(sorted(scene.calls)), scene.seed, "toy", "", quality(one)]
            for one in candidates for scene in scenes if not self.failure(one)
        ]  # fmt: skip
        return pd.DataFrame(rows, columns=list(COLUMNS))

    def bytes(self, candidate: Candidate) -> int | None:
        """By the rank."""
        rank = (candidate.merge or {}).get("rank", 64)
        return 1000 * rank if isinstance(rank, int) else 64_000

    def failure(self, candidate: Candidate) -> str:
        """Of one method."""
        return "OptionError: no" if (candidate.merge or {}).get("method") == "dare" else ""

    def image(self, candidate: Candidate, scene: Scene) -> Path:
        """Nothing is drawn."""
        return Path("none.png")

    def description(self, metric: str) -> Any:
        """It has none."""
        raise NotImplementedError


def quality(candidate: Candidate) -> float:
    """1 at best."""
    off = sum(abs(float(candidate.weights[name]) - best) for name, best in (("ghost", 0.8), ("day", 1.2)))  # type: ignore[arg-type]
    rank = (candidate.merge or {}).get("rank", 64)
    lost = 4 / rank if isinstance(rank, int) else 0.0
    return 1.0 - off / 2 - lost - (0.1 if (candidate.merge or {}).get("method") == "ties" else 0.0)


def score(frame: pd.DataFrame, scenes: Sequence[Scene]) -> Mapping[str, Scored]:
    """The mean of the images for every part."""
    return {
        label: Scored(mean := float(own["value"].mean()), mean, mean, mean, {"ghost": mean, "day": mean / 2}, len(own))
        for label, own in frame.groupby("candidate", sort=False)
    }


def config(**keys: Any) -> TuneConfig:
    """Of two adapters."""
    given: dict[str, Any] = {
        "pipeline": "miniature/sdxl",
        "loras": [{"path": f"miniature/sdxl/{name}", "name": name} for name in ADAPTERS],
        "prompts": [scene.prompt for scene in SCENES],
        "search": "optuna",
        "groups": "none",
        "trials": 24,
        "images": 3,
        "space": {"weights": [0.4, 1.4]},
    }
    return TuneConfig.model_validate(given | keys)


def search(folder: Path, bench: Arithmetic | None = None, told: list[Trial] | None = None, **keys: Any) -> Found:
    """In a folder."""
    heard = [] if told is None else told
    return search_optuna(config(**keys), ADAPTERS, bench or Arithmetic(), score, SCENES, heard.append, folder, "model")


def test_it_finds_better_weights_than_the_plain_sum(tmp_path: Path) -> None:
    """Trial 0 is the plain sum; all are told in order; one is best."""
    told: list[Trial] = []
    found = search(tmp_path, told=told, prune=False)
    assert [trial.number for trial in found.trials] == list(range(25)) and told == list(found.trials)
    assert found.trials[0].candidate == Candidate("sum", {"ghost": 1.0, "day": 1.0})
    assert found.trials[1].candidate.weights == {"ghost": 1.0, "day": 1.0}, "it begins with the usual weights"
    assert found.winner.scored is not None and found.trials[0].scored is not None
    assert found.winner.scored.total > found.trials[0].scored.total
    assert found.winner.scored.total == max(trial.scored.total for trial in found.trials if trial.scored)
    assert set(found.winner.parameters) == {"ghost", "day"}


def test_the_same_configuration_tries_the_same(tmp_path: Path) -> None:
    """And another seed other weights."""
    first, again, other = (
        [dict(trial.parameters) for trial in search(tmp_path / name, seed=seed, trials=14).trials]
        for name, seed in (("a", 0), ("b", 0), ("c", 1))
        if (tmp_path / name).mkdir() is None
    )
    assert first == again != other


def test_a_trial_that_is_behind_is_stopped(tmp_path: Path) -> None:
    """After a wave, in which each part of the score has scenes; the stopped ones are never best."""
    bench = Arithmetic()
    found = search(tmp_path, bench, trials=40)
    stopped = [trial for trial in found.trials if trial.state == "stopped"]
    assert stopped and all(trial.scored and trial.scored.images < len(SCENES) for trial in stopped)
    assert found.winner.state == "complete"
    assert found.winner.scored is not None and found.winner.scored.images == len(SCENES)
    (tmp_path / "unpruned").mkdir()
    unpruned = search(tmp_path / "unpruned", trials=40, prune=False)
    assert {trial.state for trial in unpruned.trials} == {"complete"}


def test_a_trial_that_fails_is_told_and_the_search_goes_on(tmp_path: Path) -> None:
    """With the reason."""
    found = search(tmp_path, space={"weights": [0.4, 1.4], "method": ["svd", "dare"]})
    failed = [trial for trial in found.trials if trial.state == "failed"]
    assert failed and {trial.error for trial in failed} == {"OptionError: no"}
    assert len(found.trials) == 25 and found.winner.parameters.get("method", "svd") == "svd"


def test_where_every_trial_fails_it_ends(tmp_path: Path) -> None:
    """Not after all of them."""
    bench = Arithmetic()
    with pytest.raises(OutputError, match="every trial failed: OptionError: no"):
        search(tmp_path, bench, merge={"method": "dare"})
    assert len(bench.drawn) <= 1 + 4 * 4


def test_several_objectives_give_a_front(tmp_path: Path) -> None:
    """Nothing on it is beaten in both; nothing is stopped; each objective has an importance."""
    space = {"weights": [0.7, 1.3], "rank": {"low": 4, "high": 40, "step": 4}}
    found = search(tmp_path, space=space, objectives=["score", "bytes"], trials=40)
    points = [(t.scored.total, -t.bytes) for t in found.trials if t.scored and t.bytes]
    front = [points[number] for number in found.best]
    assert len(front) > 1 and len(points) == 41
    assert not [one for one in front if any(p != one and p[0] >= one[0] and p[1] >= one[1] for p in points)]
    assert front[0][0] == max(score for score, _ in points), "the winner is the best by score"
    assert set(found.importance) == {"score", "bytes"}
    assert max(found.importance["bytes"], key=found.importance["bytes"].__getitem__) == "rank"
    assert math.isclose(sum(found.importance["bytes"].values()), 1.0)


def test_a_concept_may_be_the_objective(tmp_path: Path) -> None:
    """The least of them, one of them."""
    found = search(tmp_path, objectives=["minimum"], trials=4)
    assert found.objectives == ("minimum",)
    assert search(tmp_path, objectives=["recovery:ghost", "preservation"], trials=4).objectives == (
        "recovery:ghost", "plain"
    )  # fmt: skip


def test_a_search_goes_on_where_it_was_killed(tmp_path: Path) -> None:
    """Nothing that ended is measured again; what was in flight is, with its parameters."""
    bench = Arithmetic(killed_at=5)
    with pytest.raises(KeyboardInterrupt):
        search(tmp_path, bench, prune=False)
    in_flight = [trial for trial, _ in bench.drawn]
    assert in_flight[0] == "sum" and len(in_flight) == 1 + 3 * 4
    again, told = Arithmetic(), list[Trial]()
    found = search(tmp_path, again, told, prune=False)
    assert told == list(found.trials)
    assert [trial.candidate.label for trial in found.trials[1:]] == [f"trial {number}" for number in range(1, 25)]
    assert len(found.trials) == 25 and [trial.number for trial in found.trials] == list(range(25))
    assert len(again.drawn) == 1 + 24 - 12, "twelve were kept"
    more = Arithmetic()
    assert len(search(tmp_path, more, prune=False, trials=28).trials) == 29
    assert len(more.drawn) == 1 + 4
    assert search(tmp_path, Arithmetic(), prune=False, trials=28) == search(tmp_path, prune=False, trials=28)


def test_half_a_line_of_a_killed_run_is_cut(tmp_path: Path) -> None:
    """Optuna reads no file that goes on after one."""
    search(tmp_path, trials=8, prune=False)
    with (tmp_path / JOURNAL).open("ab") as file:
        file.write(b'{"op_code": 8, "wor')
    assert len(search(tmp_path, trials=12, prune=False).trials) == 13
    assert len(search(tmp_path, trials=12, prune=False).trials) == 13


def test_another_configuration_in_the_folder_is_another_study(tmp_path: Path) -> None:
    """So no trial counts that was measured otherwise."""
    search(tmp_path, trials=4)
    bench = Arithmetic()
    search(tmp_path, bench, trials=4, space={"weights": [0.5, 1.0]})
    assert len({label for label, _ in bench.drawn}) == 1 + 4


def test_a_database_serves_as_storage(tmp_path: Path) -> None:
    """By an URL."""
    url = f"sqlite:///{tmp_path / 'trials.db'}"
    assert len(search(tmp_path, storage=url, trials=4).trials) == 5
    with pytest.raises(KeyboardInterrupt):
        search(tmp_path, Arithmetic(killed_at=2), storage=url, trials=8)
    bench = Arithmetic()
    assert len(search(tmp_path, bench, storage=url, trials=6).trials) == 7
    assert len({label for label, _ in bench.drawn}) == 1 + 2
    assert not (tmp_path / JOURNAL).exists()


def test_what_cannot_be_kept_is_said_in_a_sentence(tmp_path: Path) -> None:
    """A storage that is none, without what opens it; a file that is in the way."""
    with pytest.raises(OptionError, match=r"storage: .* cannot be opened .*sqlite:///trials.db") as refused:
        search(tmp_path, storage="postgresql://me:secret@nowhere.invalid/trials")
    assert "secret" not in str(refused.value)
    (tmp_path / JOURNAL).mkdir()
    with pytest.raises(OutputError, match="trials cannot be kept"):
        search(tmp_path)


def test_without_optuna_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before anything is drawn."""
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(MergelabError, match=r"search: optuna cannot be imported .*pip install 'mergelab\[tune\]'"):
        space_for(config(), ADAPTERS, SCENES)


def test_a_full_disk_is_said_in_a_sentence_and_nothing_is_lost(tmp_path: Path) -> None:
    """The line that was half written is cut when the search goes on."""
    search(tmp_path, trials=4, prune=False)
    usual, limits = signal.signal(signal.SIGXFSZ, signal.SIG_IGN), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, ((tmp_path / JOURNAL).stat().st_size + 900, limits[1]))
    try:
        with pytest.raises(OutputError, match=r"optuna.log: trials cannot be kept \(.*\); those that ended are"):
            search(tmp_path, trials=12, prune=False)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, usual)
    bench = Arithmetic()
    assert len(search(tmp_path, bench, trials=12, prune=False).trials) == 13
    assert len(bench.drawn) == 1 + 8
