"""Trackers of experiments: what each of them holds after a run, read back with its own reader."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from PIL import Image

import mergelab as ml
from mergelab import cli
from mergelab.evaluation.contact_sheets import GAP, SIDE, contact_sheets
from mergelab.evaluation.tracking import tracker as tracking
from mergelab.evaluation.tracking.record import LONGEST, record_of, scalar_name
from mergelab.evaluation.tracking.registry import TRACKERS, open_trackers
from mergelab.evaluation.tracking.telling import tell
from mergelab.evaluation.tracking.tracker import Settings, Tracker
from tests.evaluation.small import SMALL, counted
from tests.files import content

Result = ml.evaluation.Result
NAME = "recovery/judge/single-fish"


@pytest.fixture(scope="module")
def summary(run: Result) -> dict[str, Any]:
    """What summary.json of the run holds."""
    return dict(json.loads((run.folder / "summary.json").read_text()))


def told(result: Result, summary: Mapping[str, Any], **entry: Any) -> None:
    """Tell one tracker of the run."""
    tell(open_trackers([entry], result.folder), result, summary)


def finding(run: Result, variant: str = "merge:cat") -> float:
    """The estimate whose name begins with `NAME`."""
    rows = [f for f in run.findings if (f.quantity, f.metric, f.reference) == ("recovery", "judge", "single:fish")]
    return next(row.interval.estimate for row in rows if row.variant == variant)


def named(names: Sequence[str], variant: str = "merge-cat") -> str:
    """The name of that estimate."""
    return next(name for name in names if name.startswith(NAME) and name.endswith(variant))


def test_every_finding_has_a_number(run: Result, summary: dict[str, Any]) -> None:
    """And its bounds, where there are any, under a name that all trackers take; costs, too."""
    record = record_of(run, summary)
    finite = sum(np.isfinite([f.interval.estimate, f.interval.low, f.interval.high]).sum() for f in run.findings)
    costs = {name: value for name, value in record.scalars.items() if name.startswith("cost/")}
    assert len(record.scalars) == finite + len(costs)
    assert costs["cost/bytes/merge-cat"] == (run.folder / "adapters" / "cat.safetensors").stat().st_size
    assert all(re.fullmatch(r"[\w.-]+(/[\w.-]+)*", name, re.ASCII) for name in record.scalars)
    assert all(np.isfinite(value) for value in record.scalars.values())
    assert record.scalars[named(list(record.scalars))] == finding(run)
    assert len(record.tables["findings"]) == len(run.findings)
    assert [path.name for path in record.files] == ["scores.parquet", "summary.json", "results.json", "report.html"]


def test_names_that_are_spelt_alike_or_too_long(run: Result) -> None:
    """Each has its own number; what is cut ends in a hash."""
    interval = {"estimate": 0.5, "low": 0.25, "high": float("nan")}
    row = {"quantity": "score", "metric": "mine", "reference": "", "prompts": "every", "interval": interval}
    rows = [row | {"variant": name} for name in ("merge:a b", "merge:a=b", "merge:" + "x" * 300, "merge:" + "x" * 301)]
    contrast = {"first": "merge:a", "second": "stack", "interval": interval, "by_set": {"one": interval}, "wins": 0.5}
    record = record_of(run, {"findings": rows, "contrasts": [contrast]})
    names = [name for name in record.scalars if not name.endswith("_low")]
    assert names[:2] == ["score/mine/every/merge-a-b", "score/mine/every/merge-a-b-2"]
    assert len(set(names)) == 4 and max(map(len, names)) <= LONGEST
    assert scalar_name("a", None, "?!") == "a/-"
    columns = [*record.tables["contrasts"].columns]
    assert columns == ["first", "second", "wins", "estimate", "low", "high"]


def test_a_contact_sheet(run: Result) -> None:
    """A row for each prompt, a column for each variant, an image as it is; one that is missing is left blank."""
    ((name, sheet),) = contact_sheets(run.scores, run.folder / "images")
    prompts, variants = (list(run.scores[key].unique()) for key in ("prompt", "variant"))
    assert name == "fish-stripes"
    assert sheet.width == GAP + (SIDE + GAP) * (1 + len(variants))
    cell = run.scores[(run.scores["prompt"] == prompts[1]) & (run.scores["variant"] == variants[2])].iloc[0]
    with Image.open(run.folder / "images" / cell["image"]) as image:
        expected = image.convert("RGB").resize((SIDE, SIDE), Image.Resampling.NEAREST)
    left, top = GAP + (SIDE + GAP) * 3, sheet.height - (SIDE + GAP) * (len(prompts) - 1)
    place = (left, top, left + SIDE, top + SIDE)
    assert np.array_equal(sheet.crop(place), expected)
    ((_, blank),) = contact_sheets(run.scores, run.folder / "nowhere")
    assert blank.size == sheet.size and np.array(blank.crop(place)).min() == 255


def test_a_large_contact_sheet(run: Result, monkeypatch: pytest.MonkeyPatch) -> None:
    """Images become smaller, and a prompt without an end is cut."""
    few = run.scores.drop_duplicates("variant")
    scores = pd.concat([few.assign(prompt=f"{i} {'word ' * 99}") for i in range(30)])
    monkeypatch.setattr("mergelab.evaluation.contact_sheets.LARGEST", 500_000)
    ((_, sheet),) = contact_sheets(scores, run.folder / "nowhere")
    assert sheet.height > 30 * GAP and sheet.width * sheet.height < 2 * 500_000


def test_tensorboard(pipeline: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the command line: numbers, text, pictures; a second telling draws nothing and takes the place of the first."""
    pytest.importorskip("tensorboard", reason="TensorBoard is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    small = SMALL | {"prompts": SMALL["prompts"][:1], "seeds": 1, "metrics": ["judge"], "merges": [{"method": "cat"}]}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(small))
    command = ["evaluate", str(tmp_path / "config.yaml"), "-o", str(tmp_path / "run"), "--log-with", "tensorboard"]
    assert cli.run(command) == 0
    (tmp_path / "run" / "tensorboard" / "events.out.tfevents.1.others").write_bytes(b"")
    drawn = counted(monkeypatch)
    assert cli.run(command) == 0 and not drawn
    assert len(list((tmp_path / "run" / "tensorboard").iterdir())) == 2
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    events.Reload()
    tags = events.Tags()
    table = json.loads((tmp_path / "run" / "summary.json").read_text())["findings"]
    key = ("recovery", "judge", "single:fish", "stack")
    row = next(r for r in table if (r["quantity"], r["metric"], r["reference"], r["variant"]) == key)
    (event,) = events.Scalars(named(tags["scalars"], "stack"))
    assert event.value == pytest.approx(row["interval"]["estimate"], rel=1e-6) and event.step == 0
    (picture,) = events.Images("contact-sheets/fish-stripes")
    assert picture.width == GAP + (SIDE + GAP) * 6
    (text,) = events.Tensors("config/text_summary")
    assert b"pipeline: miniature/sdxl" in text.tensor_proto.string_val[0]
    assert "findings/text_summary" in tags["tensors"]


@pytest.mark.filterwarnings("ignore::DeprecationWarning:mlflow", "ignore::FutureWarning:mlflow")
@pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy", "ignore::ResourceWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_mlflow(run: Result, summary: dict[str, Any], tmp_path: Path) -> None:
    """Parameters, metrics, tables, pictures and files in a local store."""
    mlflow = pytest.importorskip("mlflow", reason="MLflow is not installed (207 MB)")
    told(run, summary, name="mlflow", project="merges", run="first", dir=str(tmp_path), tags={"a": 1})
    with pytest.raises(ml.OptionError, match="dir and tracking_uri both"):
        told(run, summary, name="mlflow", dir=str(tmp_path), tracking_uri="http://localhost")
    client = mlflow.MlflowClient(tracking_uri=f"sqlite:///{tmp_path / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("merges")
    (kept,) = client.search_runs([experiment.experiment_id])
    assert (kept.info.run_name, kept.info.status, kept.data.tags["a"]) == ("first", "FINISHED", "1")
    assert kept.data.metrics == record_of(run, summary).scalars
    assert kept.data.params["generation.steps"] == "4" and json.loads(kept.data.params["seeds"]) == [0, 1]
    files = {item.path for item in client.list_artifacts(kept.info.run_id)}
    assert files == {"config.yaml", "contact-sheets", "findings.json", *(p.name for p in record_of(run, summary).files)}
    scores = tmp_path / "artifacts" / kept.info.run_id / "artifacts" / "scores.parquet"
    assert scores.read_bytes() == (run.folder / "scores.parquet").read_bytes()


@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_wandb(run: Result, summary: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Offline: what a later `wandb sync` sends, read from its files."""
    wandb = pytest.importorskip("wandb", reason="wandb is not installed (80 MB)")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("WANDB_CACHE_DIR", str(tmp_path / "cache"))
    told(run, summary, name="wandb", project="merges", run="first", dir=str(tmp_path), tags=["a"])
    (folder,) = (tmp_path / "wandb").glob("offline-run-*")
    media = [path.name.partition("_")[0] for path in sorted((folder / "files" / "media").rglob("*.*"))]
    assert media == ["fish-stripes", "findings"]
    (log,) = folder.glob("*.wandb")
    assert all(word in log.read_bytes() for word in (b"merges", b"first", named_bytes(run, summary), b"scores.parquet"))
    with pytest.raises(ml.OptionError, match="wandb has no option 'entitee'; did you mean 'entity'"):
        told(run, summary, name="wandb", entitee="me")
    assert wandb.run is None


def named_bytes(run: Result, summary: dict[str, Any]) -> bytes:
    """The name of a number."""
    return named(list(record_of(run, summary).scalars)).encode()


@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_trackio(
    run: Result,
    summary: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """In a database here; what it prints is no output of the command."""
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path))
    pytest.importorskip("trackio", reason="trackio is not installed (39 MB)")
    from trackio.sqlite_storage import SQLiteStorage

    told(run, summary, name="trackio", project="merges", run="first")
    assert not capsys.readouterr().out
    rows = SQLiteStorage.get_logs("merges", "first")
    numbers = {key: value for row in rows for key, value in row.items() if isinstance(value, float)}
    assert numbers == record_of(run, summary).scalars
    kinds = {value["_type"] for row in rows for value in row.values() if isinstance(value, dict)}
    assert kinds == {"trackio.table", "trackio.image"}
    assert SQLiteStorage.get_run_config("merges", "first")["pipeline"] == "miniature/sdxl"
    assert content(tmp_path / "artifacts")


@pytest.mark.parametrize(
    ("log_with", "needles"),
    [
        ("wandbb", ["there is no tracker 'wandbb'", "did you mean 'wandb'"]),
        ({"project": "x"}, ["there is no tracker None", "known: trackio, wandb, tensorboard, mlflow"]),
        ({"name": "tensorboard", "project": "x"}, ["tensorboard has no option 'project'", "known: run, dir"]),
        ({"name": "tensorboard", "dir": 3}, ["tensorboard: dir: expected a text, got 3"]),
        (3, ["log_with.0"]),
    ],
)
def test_what_cannot_be_told_is_said_at_once(log_with: Any, needles: list[str], tmp_path: Path) -> None:
    """Nothing is merged, drawn or written."""
    with pytest.raises(ml.OptionError) as caught:
        ml.evaluate(SMALL | {"log_with": log_with}, tmp_path / "run")
    assert all(needle in str(caught.value) for needle in needles)
    assert not content(tmp_path)


@pytest.mark.parametrize("name", TRACKERS)
def test_a_package_that_is_not_there(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is named with the command that installs it, before anything is merged or drawn."""
    import sys

    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ml.OptionError, match=rf"pip install 'mergelab\[{name}\]'"):
        ml.evaluate(SMALL, tmp_path / "run", log_with=[name])
    assert not content(tmp_path)


class Broken(Tracker):
    """Loses its connection after the first picture."""

    extra = "broken"

    def start(self, config: Mapping[str, Any]) -> None:
        """Before it."""
        self.seen = ["start"]
        BROKEN.append(self)

    def log(self, scalars: Mapping[str, float]) -> None:
        """Still there."""
        self.seen.append("log")

    def table(self, name: str, rows: pd.DataFrame) -> None:
        """Still there."""

    def image(self, name: str, image: Image.Image) -> None:
        """Here it breaks."""
        raise ConnectionError("no answer from https://me:secret@example.org/?token=secret")

    def artifact(self, files: Sequence[Path]) -> None:
        """Never reached."""
        self.seen.append("artifact")

    def end(self, failed: bool) -> None:
        """Reached all the same; a second error does not hide the first."""
        self.seen.append(f"end {failed}")
        raise RuntimeError("again")


BROKEN: list[Broken] = []


def test_a_tracker_that_fails_loses_nothing(
    run: Result, summary: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The error comes last: the others are told, the run is as it was, and no password is shown."""
    pytest.importorskip("tensorboard", reason="TensorBoard is not installed")
    trackers = [
        Broken(Settings(run.folder)),
        *open_trackers([{"name": "tensorboard", "dir": str(tmp_path)}], Path("x")),
    ]
    before = content(run.folder)
    with pytest.raises(ml.OutputError) as caught:
        tell(trackers, run, summary)
    assert "the run is done, and its report is written, but broken was not told: ConnectionError" in str(caught.value)
    assert "secret" not in str(caught.value) and "https://example.org/" in str(caught.value)
    assert BROKEN.pop().seen == ["start", "log", "end True"]
    assert [path.parent.name for path in tmp_path.rglob("events*")] == ["x"]
    assert content(run.folder) == before


def test_what_is_told_opens_nothing(run: Result, summary: dict[str, Any]) -> None:
    """Addresses come without passwords and queries, paths here as names."""
    loras = [
        run.config.loras[0].model_copy(update={"path": "https://me:secret@example.org/a.safetensors?token=secret"})
    ]
    config = run.config.model_copy(update={"loras": [*loras, run.config.loras[1]]})
    record = record_of(replace(run, config=config), summary)
    assert [lora["path"] for lora in record.config["loras"]] == [
        "https://example.org/a.safetensors",
        Path(run.config.loras[1].path).name,
    ]


def test_needed_is_the_module() -> None:
    """Where it is there."""
    assert tracking.needed("json", "x") is json
