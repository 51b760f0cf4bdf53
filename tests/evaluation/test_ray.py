"""Evaluations on a real Ray cluster of this machine: the same as in one process, whatever dies."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml
from torch import Tensor

import mergelab as ml
from mergelab.evaluation.acting import Acting
from mergelab.evaluation.executors import clusters
from mergelab.evaluation.executors.on_ray import OnRay
from mergelab.evaluation.executors.queue import TRIES, Queue
from mergelab.evaluation.executors.task import DrawTask
from mergelab.evaluation.metrics import registry as metrics
from mergelab.evaluation.names import BASE
from tests.evaluation.small import PROMPTS, SMALL
from tests.tuning.small_search import SMALL as SEARCH

ray = pytest.importorskip("ray")

TINY = SMALL | {
    "prompts": PROMPTS[:3], "seeds": 2, "metrics": ["judge", "lpips"], "generation": {"steps": 2},
    "merges": [{"method": "cat"}, {"method": "svd", "rank": [2, 4]}],
}  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    """One for all tests of this file, with room for four workers."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ray.init(
            address="local", num_cpus=4, include_dashboard=False, log_to_driver=False, logging_level="ERROR",
            object_store_memory=2**27,
        )  # fmt: skip
        yield
        ray.shutdown()


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run in one process."""
    folder = tmp_path_factory.mktemp("local")
    ml.evaluate(TINY, folder)
    return folder


def same(a: Path, b: Path) -> None:
    """Scores cell for cell, images and merged adapters byte for byte."""
    frames = [pd.read_parquet(run / "scores.parquet") for run in (a, b)]
    pd.testing.assert_frame_equal(*frames, check_exact=True)
    for pattern in ("images/*.png", "adapters/*.safetensors"):
        files = [{path.name: path.read_bytes() for path in run.glob(pattern)} for run in (a, b)]
        assert files[0] and files[0] == files[1]


def on_ray(**settings: Any) -> dict[str, Any]:
    return TINY | {"executor": {"name": "ray", "group": 2, **settings}}


@pytest.mark.parametrize("workers", [1, 4])  # two in all tests below
def test_any_number_of_workers(workers: int, local: Path, tmp_path: Path) -> None:
    """Of the cluster that this program is connected to, which it stays."""
    result = ml.evaluate(on_ray(workers=workers), tmp_path)
    assert not result.failures and ray.is_initialized()
    same(local, tmp_path)


def test_without_a_shared_folder(local: Path, tmp_path: Path) -> None:
    """Adapters and images go through Ray's object store, both ways."""
    ml.evaluate(on_ray(workers=2, storage="objects"), tmp_path)
    same(local, tmp_path)


def test_a_worker_is_killed(local: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While it draws; what it had begun is drawn elsewhere."""
    killed: list[int] = []
    enter = OnRay.__enter__

    def watched(self: OnRay) -> OnRay:
        def kill() -> None:
            while len(list((tmp_path / "images").glob("*.png"))) < 5:
                time.sleep(0.02)
            killed.append(self.processes[0])
            os.kill(killed[0], signal.SIGKILL)

        entered = enter(self)
        threading.Thread(target=kill, daemon=True).start()
        return entered

    monkeypatch.setattr(OnRay, "__enter__", watched)
    result = ml.evaluate(on_ray(workers=2), tmp_path)
    assert killed and not result.failures
    same(local, tmp_path)


def test_the_writer_is_killed(local: Path, tmp_path: Path) -> None:
    """With a cluster of its own, which goes with it; the next run draws what is missing."""
    run = tmp_path / "run"
    process = started(tmp_path, run)
    wait_for(run, process, 5)
    process.kill()
    process.communicate()
    left = {path.name: path.stat().st_mtime_ns for path in (run / "images").glob("*.png")}
    assert not (run / "scores.parquet").exists()
    ml.evaluate(on_ray(workers=2), run)
    same(local, run)
    assert left.items() <= {path.name: path.stat().st_mtime_ns for path in (run / "images").glob("*.png")}.items()


def test_the_cluster_goes_away(tmp_path: Path) -> None:
    """One sentence, and what is finished is there."""
    run = tmp_path / "run"
    process = started(tmp_path, run, "--set", "seeds=40")
    wait_for(run, process, 5)
    for name in ("gcs_server", "raylet"):
        os.kill(child(process.pid, name), signal.SIGKILL)
    said = process.communicate(timeout=120)[1]
    errors = [line for line in said.splitlines() if line.startswith("mergelab: error: ")]
    assert process.returncode == 2 and len(errors) == 1
    assert "is gone; what is finished is kept in" in errors[0] and "run it again to go on" in errors[0]
    assert len(list((run / "images").glob("*.png"))) >= 5


def started(folder: Path, run: Path, *more: str) -> subprocess.Popen[str]:
    """The command line, with a cluster of its own."""
    config = folder / "config.yaml"
    config.write_text(yaml.safe_dump(on_ray(workers=2)))
    command = [sys.executable, "-m", "mergelab", "evaluate", str(config), "-o", str(run), *more]
    environment = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


def wait_for(run: Path, process: subprocess.Popen[str], images: int) -> None:
    while len(list((run / "images").glob("*.png"))) < images:
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)


def child(parent: int, name: str) -> int:
    """The number of a process that another has started."""
    found = subprocess.run(["pgrep", "-P", str(parent), name], capture_output=True, text=True, check=True).stdout
    return int(found.split()[0])


def test_a_search(tmp_path: Path) -> None:
    """Candidates go to several workers; the winner, and all images, are those of one process."""
    small = SEARCH | {"settings": 4, "held_out": {"seeds": [1]}}
    runs = [tmp_path / name for name in ("local", "ray")]
    executors = ["local", {"name": "ray", "workers": 2, "group": 2}]
    alone, spread = (ml.tune(small | {"executor": e}, run) for e, run in zip(executors, runs))
    assert (alone.winner, alone.scored, alone.found.trials) == (spread.winner, spread.scored, spread.found.trials)
    images = [{path.name: path.read_bytes() for path in run.rglob("*.png")} for run in runs]
    assert images[0] and images[0] == images[1]


def test_what_kills_its_worker_is_recorded(tmp_path: Path) -> None:
    """After three of them; what kills one once is scored by another; a metric and a method of one's own are sent."""
    marker = str(tmp_path / "once")

    @ml.register_metric("deadly", range=(0, 1), compares_with="images")
    def deadly(image: Tensor, prompt: str, references: Mapping[str, Tensor]) -> dict[str, float]:
        import os
        from pathlib import Path

        always = prompt == PROMPTS[1] and "single:fish" not in references and "base" in references
        if always or (prompt == PROMPTS[0] and not Path(marker).exists()):
            Path(marker).touch()
            os._exit(1)
        return dict.fromkeys(references, 0.5)

    @ml.register("first_of_all")
    def first(changes: Tensor, weights: Tensor) -> Tensor:
        return changes[0] * weights[0]

    changed = {"metrics": ["deadly"], "seeds": 1, "merges": [{"method": "first_of_all"}], "prompts": PROMPTS[:2]}
    changed |= {"loras": SMALL["loras"][:1]}
    try:
        result = ml.evaluate(on_ray(workers=2) | changed, tmp_path / "run")
    finally:
        metrics._REGISTERED.pop("deadly")
    variants = ["base", "merge:first_of_all", "single:fish"]
    assert sorted(result.scores[result.scores["prompt"] == PROMPTS[0]]["variant"].unique()) == variants
    assert sorted(result.scores[result.scores["prompt"] == PROMPTS[1]]["variant"].unique()) == variants[:2]
    (row,) = result.failures
    assert (row["variant"], row["prompt"]) == ("single:fish", PROMPTS[1])
    assert row["error"].startswith(f"RuntimeError: {TRIES} workers died of it")


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"gpus": 3}, r"executor.gpus: 3 for each worker, and the cluster \(.*\) has 0"),
        ({"storage": "elsewhere"}, "executor.storage: input should be 'auto', 'shared' or 'objects'"),
        ({"name": "local"}, "group is of ray, and the name is local: give name: ray"),
        ({"adress": "auto"}, "unknown key 'executor.adress'; did you mean 'address'"),
    ],
)
def test_what_cannot_be_is_said(settings: dict[str, Any], sentence: str, tmp_path: Path) -> None:
    with pytest.raises(ml.OptionError, match=sentence):
        ml.evaluate(on_ray(**settings), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_an_address_where_nobody_is() -> None:
    with pytest.raises(ml.OptionError, match=r"executor.address: ray://127.0.0.1:1: nobody answers there"):
        clusters.check_port("ray://127.0.0.1:1")


def test_a_worker_that_cannot_be_set_up(tmp_path: Path) -> None:
    """Its own sentence, as in one process."""
    with pytest.raises(ml.OptionError, match="clip: open_clip cannot load 'nothing'"):
        ml.evaluate(on_ray(workers=1) | {"metrics": ["clip_text"], "clip": {"model": "nothing"}}, tmp_path / "run")


def test_a_loaded_pipeline_stays_here(pipeline: Any, tmp_path: Path) -> None:
    with pytest.raises(ml.OptionError, match="a pipeline that is loaded cannot be sent to workers"):
        ml.evaluate(on_ray(), tmp_path / "run", pipeline=pipeline)


def test_without_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ml.OptionError, match=r"executor: ray: the package is not there .* 'mergelab\[ray\]' brings it"):
        ml.evaluate(on_ray(), tmp_path / "run")


def draw(acting: str, *seeds: int) -> DrawTask:
    return DrawTask("", BASE, Acting(acting), tuple((("a", seed), f"{acting}{seed}") for seed in seeds))


@pytest.mark.parametrize("address", ["127.0.0.1:6379", "ray://127.0.0.1:10001"])
def test_the_token_of_this_machine_is_shown(address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As Ray does for "auto", unless the environment says otherwise."""
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    monkeypatch.delenv("RAY_AUTH_MODE")
    clusters.imported(address)
    assert "RAY_AUTH_MODE" not in os.environ
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray" / "auth_token").write_text("a token")
    clusters.imported("auto")
    assert "RAY_AUTH_MODE" not in os.environ
    clusters.imported(address)
    assert os.environ["RAY_AUTH_MODE"] == "token"


def test_a_worker_goes_on_with_what_it_has_at_hand() -> None:
    """Another begins with what nobody has, and helps where nothing else is left."""
    a, a2, b, b2 = draw("a", 0), draw("a", 1), draw("b", 0), draw("b", 1)
    waiting = Queue([a, a2, b, b2])
    assert waiting.take("") is a and waiting.take("", ["a"]) is b
    assert waiting.take("a", ["a", "b"]) is a2 and waiting.take("a", ["a", "b"]) is b2 and not waiting


def test_a_cell_is_tried_three_times() -> None:
    """Those of a group that a worker died of come first, each alone."""
    waiting = Queue([draw("a", 0, 1), draw("b", 0)])
    assert waiting.again(waiting.take("")) and len(waiting) == 3
    for last in (False, False, True):
        cell = waiting.take("")
        assert isinstance(cell, DrawTask) and cell.units == ((("a", 0), "a0"),)
        assert waiting.again(cell) is not last
    assert waiting.take("") == draw("a", 1) and waiting.take("") == draw("b", 0) and not waiting
