"""A run as a dataset: what lies in its folder, and what a server that answers as the Hub does was told."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml
from huggingface_hub import DatasetCard
from PIL import Image

import mergelab as ml
from mergelab import cli
from mergelab.evaluation import push_run
from mergelab.publishing.card import BEGIN, CARD, END, plain
from tests.evaluation.small import SMALL
from tests.files import content
from tests.hub_server import Hub, running_hub
from tests.refusing import Refused

Result = ml.evaluation.Result
# huggingface_hub's own call of httpx, where files do not go to Xet.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")
REPO = "datasets/user/run"


@pytest.fixture
def hub(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub with nothing on it."""
    with running_hub(tmp_path_factory.mktemp("hub"), monkeypatch) as server:
        yield server


@pytest.fixture(scope="module")
def folder(run: Result, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What would lie in a dataset of the run."""
    there = tmp_path_factory.mktemp("staged") / "dataset"
    run.push_to_hub("user/run", folder=there)
    return there


def metadata(folder: Path) -> list[dict[str, Any]]:
    """The rows that ImageFolder reads."""
    return [json.loads(line) for line in (folder / "images" / "metadata.jsonl").read_text().splitlines()]


def test_the_scores_are_the_default_configuration(run: Result, folder: Path) -> None:
    """The table of the run, byte for byte, as the front matter names it."""
    data = DatasetCard.load(folder / CARD).data.to_dict()
    (first,) = data["configs"]
    assert first == {"config_name": "scores", "data_files": "scores.parquet", "default": True}
    assert "license" not in data and "mergelab" in data["tags"]
    assert (folder / first["data_files"]).read_bytes() == (run.folder / "scores.parquet").read_bytes()
    assert len(pd.read_parquet(folder / "scores.parquet")) == len(run.scores)


def test_every_image_has_a_row(run: Result, folder: Path) -> None:
    """With what it shows and what it scores for itself; scores name the files."""
    rows = metadata(folder)
    names = [row["file_name"] for row in rows]
    assert sorted(names) == sorted(path.name for path in (folder / "images").glob("*.png"))
    assert set(names) == set(run.scores["image"]) and len(set(names)) == len(names)
    for row in rows[:3]:
        own = run.scores[(run.scores["image"] == row["file_name"]) & (run.scores["reference"] == "")]
        known = own[own["metric"] == "clip_text"].iloc[0]
        assert (row["variant"], row["prompt"], row["seed"]) == (known["variant"], known["prompt"], known["seed"])
        assert row["clip_text"] == known["value"] and row["set"] == "fish+stripes"
        with Image.open(folder / "images" / row["file_name"]) as image:
            image.verify()


def test_datasets_reads_it(run: Result, folder: Path, tmp_path: Path) -> None:
    """As the card says."""
    datasets = pytest.importorskip("datasets", reason="datasets is not installed")
    there = shutil.copytree(folder, tmp_path / "copy")
    cache = str(tmp_path / "cache")
    scores = datasets.load_dataset(str(there), split="train", cache_dir=cache)
    images = datasets.load_dataset("imagefolder", data_dir=str(there / "images"), split="train", cache_dir=cache)
    assert len(scores) == len(run.scores) and len(images) == len(metadata(folder))
    assert set(images.column_names) >= {"image", "set", "variant", "prompt", "seed", "clip_text"}


def test_what_else_is_in_it(run: Result, folder: Path) -> None:
    """Report, findings, contact sheets; no adapters, no journal, and no path or address of whoever ran it."""
    names = {name for name in content(folder) if not name.startswith("images")}
    assert names == {
        CARD, "scores.parquet", "summary.json", "results.json", "report.html", "config.yaml", "contact-sheets",
        "contact-sheets/fish-stripes.png",
    }  # fmt: skip
    config = yaml.safe_load((folder / "config.yaml").read_text())
    assert [lora["path"] for lora in config["loras"]] == [Path(lora.path).name for lora in run.config.loras]
    own = str(Path(run.config.loras[0].path).parent)
    assert all(own not in path.read_text() for path in folder.iterdir() if path.suffix in (".json", ".yaml", ".html"))
    text = (folder / CARD).read_text()
    assert all(name in text for name in ("ties rank=8", 'load_dataset("user/run", split=', "contact-sheets/fish-"))
    assert "recovery of fish" in text and all(plain(sentence) in text for sentence in run.verdict)


def test_a_push(hub: Hub, run: Result, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What was staged, in one commit of a new dataset; what is there is not replaced, and its owner's words stay."""
    push = ["push", str(run.folder), "user/run", "--run-dataset"]
    assert cli.run([*push, "--private"]) == 0
    said = capsys.readouterr()
    assert f"user/run: {hub.site.address}/datasets/user/run/commit/" in said.out and not said.err
    expected = {name: (folder / name).read_bytes() for name in content(folder) if (folder / name).is_file()}
    assert hub.files(REPO) == expected | {".gitattributes": b""}
    assert hub.repos[REPO].private and hub.repos[REPO].messages == ["Upload run with mergelab"]
    assert cli.run(push) == 0
    files = hub.files(REPO)
    files["scores.parquet"], files["images/old.png"] = b"other", b""
    files[CARD] = files[CARD].replace(BEGIN.encode(), b"By hand.\n" + BEGIN.encode())
    capsys.readouterr()
    assert cli.run(push) == 2
    assert "user/run: has another scores.parquet" in capsys.readouterr().err
    pushed = run.push_to_hub("user/run", overwrite=True)
    assert any("images/ also holds 1 image of an earlier run" in note for note in pushed.notes)
    assert files["scores.parquet"] == expected["scores.parquet"] and files["images/old.png"] == b""
    text = files[CARD].decode()
    assert text.index("By hand.") < text.index(BEGIN) < text.index(END)


def test_evaluate_pushes_when_it_is_done(
    hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str], refused: Refused
) -> None:
    """What keeps a push from being made is said before anything is drawn; one that fails later keeps the run."""
    small = SMALL | {"prompts": SMALL["prompts"][:1], "seeds": 1, "metrics": ["judge"], "merges": []}
    given = tmp_path / "config.yaml"
    given.write_text(yaml.safe_dump(small))
    out = tmp_path / "run"
    command = ["evaluate", str(given), "-o", str(out)]
    refused(*command, "--push-to-hub", "user/run/x", needles=["user/run/x", "expected a repository"])
    refused(*command, "--private", needles=["--push-to-hub"])
    hub.token("hf_wrong")
    refused(*command, "--push-to-hub", "user/run", needles=["does not know the token"])
    hub.token("hf_write")
    assert cli.run([*command, "--push-to-hub", "user/run", "--private"]) == 0
    assert "datasets/user/run/commit/" in capsys.readouterr().out and hub.repos[REPO].private
    hub.put(REPO, {CARD: b"# By hand"})
    assert cli.run([*command, "--push-to-hub", "user/run"]) == 2
    said = capsys.readouterr()
    assert "fish alone" in said.out or "stack" in said.out
    assert "the run is done, but user/run: README.md there was not written by mergelab" in said.err
    assert f"`mergelab push {out} user/run --run-dataset` pushes it alone" in said.err
    assert hub.files(REPO) == {CARD: b"# By hand"}


def test_what_cannot_be_pushed(run: Result, tmp_path: Path, refused: Refused) -> None:
    """A folder that is no run, options of adapters, a name that only the Hub could complete; nothing is written."""
    (tmp_path / "empty").mkdir()
    push = ["push", str(tmp_path / "empty"), "user/run", "--run-dataset", "--folder", str(tmp_path / "out")]
    refused(*push, needles=["summary.json", "expected a finished run"])
    refused(*push, "--license", "mit", "--no-card", needles=["--license, --no-card", "of an adapter"])
    with pytest.raises(ml.OptionError, match="expected 'user/repo' beside folder="):
        push_run(run.folder, "run", folder=tmp_path / "out")
    damaged = shutil.copytree(run.folder, tmp_path / "damaged", ignore=shutil.ignore_patterns("images", "adapters"))
    (damaged / "scores.parquet").write_bytes(b"no table")
    with pytest.raises(ml.SourceError, match=r"scores\.parquet: cannot be read"):
        push_run(damaged, "user/run", folder=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_images_that_are_gone(run: Result, tmp_path: Path) -> None:
    """They are left out, with a sentence; a link to elsewhere is no image of the run."""
    there = shutil.copytree(run.folder, tmp_path / "run", ignore=shutil.ignore_patterns("adapters"))
    first, second, *_ = sorted((there / "images").glob("*.png"))
    first.unlink()
    second.unlink()
    second.symlink_to(tmp_path / "run" / "config.yaml")
    pushed = push_run(there, "user/run", folder=tmp_path / "out")
    assert pushed.notes[0] == f"2 images with scores no longer lie in {there / 'images'}"
    assert not {first.name, second.name} & {row["file_name"] for row in metadata(tmp_path / "out")}
