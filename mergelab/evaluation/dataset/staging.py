"""The files of a run as a dataset has them, in a folder here: scores.parquet, images/, and what people read."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from mergelab.checks import readable
from mergelab.errors import SourceError
from mergelab.evaluation.contact_sheets import contact_sheets
from mergelab.evaluation.dataset.card import card
from mergelab.evaluation.store import to_json
from mergelab.formats.fetching import public
from mergelab.formats.yaml_files import read_yaml
from mergelab.publishing.card import CARD
from mergelab.publishing.exhibits import read_summary
from mergelab.tables import counted

SCORES, IMAGES, SHEETS, CONFIG = "scores.parquet", "images", "contact-sheets", "config.yaml"
METADATA = "metadata.jsonl"
"""In the folder of images, as ImageFolder of `datasets` reads it; JSON keeps a prompt "1" a text."""
_AS_THEY_ARE = (SCORES, "results.json", "report.html")


@dataclass(frozen=True)
class StagedRun:
    """What will lie in the repository.

    Attributes:
        folder: where it lies now.
        repo: `user/repo`.
        summary: of the run.
        sheets: names of the contact sheets.
        notes: what the user should know, in sentences.
    """

    folder: Path
    repo: str
    summary: dict[str, Any]
    sheets: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def files(self) -> dict[str, Path]:
        """Path in the repository -> where it lies now; images last."""
        found = {path.relative_to(self.folder).as_posix(): path for path in self.folder.rglob("*") if path.is_file()}
        return dict(sorted(found.items(), key=lambda item: ("/" in item[0], item[0] == CARD, item[0])))

    def write_card(self, existing: str | None = None) -> None:
        """README.md, beside what its owner wrote; raises as `card` does."""
        text = card(self.repo, self.summary, self.sheets, existing)
        (self.folder / CARD).write_text(text, encoding="utf-8", newline="\n")

    def beside(self, others: Sequence[str]) -> list[str]:
        """Images that are no part of this run do no harm, and are not taken away."""
        images = [name for name in others if name.startswith(f"{IMAGES}/")]
        those = counted(len(images), "image")
        return [f"{IMAGES}/ also holds {those} of an earlier run, which {METADATA} no longer names"] if images else []


def stage_run(run: Path, folder: Path, repo: str) -> StagedRun:
    """The files of a run in a folder; the card is written when it is known what lies in the repository.

    Of the images those that have scores are taken. The configuration comes without what opens an address, and of a file
    here with its name alone; merged adapters are pushed by `mergelab push`, one by one.

    Args:
        run: the folder of a finished run.
        folder: an empty one.
        repo: what the card calls it.

    Raises:
        SourceError: it is no finished run, or a damaged one.
    """
    summary = read_summary(run)
    try:
        scores = pd.read_parquet(run / SCORES)
        rows = list(_metadata(scores))
    except (OSError, ValueError, KeyError) as error:
        raise SourceError(
            f"{run / SCORES}: cannot be read as scores of a run: {' '.join(str(error).split())}"
        ) from None
    for name in _AS_THEY_ARE:
        if (run / name).is_file():
            shutil.copyfile(run / name, folder / name)
    (folder / "summary.json").write_text(to_json(public(summary)), encoding="utf-8")
    config = public(read_yaml(run / CONFIG))
    (folder / CONFIG).write_text(yaml.safe_dump(config, sort_keys=False, allow_unicode=True), encoding="utf-8")
    kept = _copied(rows, run / IMAGES, folder / IMAGES)
    lines = (json.dumps(row, ensure_ascii=False) for row in kept)
    (folder / IMAGES / METADATA).write_text("".join(f"{readable(line)}\n" for line in lines), encoding="utf-8")
    (folder / SHEETS).mkdir()
    sheets = []
    for name, sheet in contact_sheets(scores, folder / IMAGES):
        sheets.append(f"{SHEETS}/{name}.png")
        sheet.save(folder / sheets[-1])
    lost = counted(len(rows) - len(kept), "image")
    notes = [f"{lost} with scores no longer lie in {run / IMAGES}"] if len(kept) < len(rows) else []
    return StagedRun(folder, repo, summary, tuple(sheets), tuple(notes))


def _copied(rows: Iterable[dict[str, Any]], images: Path, folder: Path) -> list[dict[str, Any]]:
    """Copies the images; the rows of those that are there, and are files of their own."""
    folder.mkdir()
    kept = []
    for row in rows:
        path = images / row["file_name"]
        if path.is_file() and not path.is_symlink():
            shutil.copyfile(path, folder / path.name)
            kept.append(row)
    return kept


def _metadata(scores: pd.DataFrame) -> Iterator[dict[str, Any]]:
    """A row for each image: what it shows, and what it scores for itself, be it for its prompt or as a bare number.

    Several variants, or sets of adapters, may share an image; their names stand in one text.
    """
    own = scores[scores["reference"] == ""]
    values = {
        (str(image), str(metric)): float(value)
        for image, metric, value in zip(own["image"], own["metric"], own["value"])
    }
    metrics = list(dict.fromkeys(str(metric) for metric in own["metric"]))
    told = [name for name in ("set", "variant", "prompt", "calls") if name in scores.columns]
    for image, part in scores.groupby("image", sort=False):
        row: dict[str, Any] = {"file_name": Path(str(image)).name}  # a name alone: the table may be another's
        row |= {name: ", ".join(dict.fromkeys(map(str, part[name]))) for name in told}
        row["seed"] = int(part["seed"].iloc[0])
        yield row | {metric: values.get((str(image), metric)) for metric in metrics}
