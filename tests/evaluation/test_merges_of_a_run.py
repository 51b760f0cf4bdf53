"""The merges of an evaluation: made together, kept, and each with its own failure."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import mergelab as ml
from mergelab.evaluation import merging
from mergelab.evaluation.acting import open_pool
from mergelab.evaluation.config import Config
from mergelab.evaluation.executors.local import Local
from mergelab.evaluation.failures import Failures
from mergelab.evaluation.reading import read_config
from mergelab.evaluation.sets import adapter_sets
from mergelab.evaluation.store import Store
from mergelab.evaluation.variants import Variant, make_variants
from tests.evaluation.small import SMALL

MERGES: list[dict[str, Any]] = [{"method": "svd", "rank": [4, 8]}, {"method": "ties", "rank": 4, "density": [0.3, 0.5]}]


def config_of(merges: Sequence[dict[str, Any]]) -> Config:
    """Two adapters of the miniature, one at weights by component."""
    loras = [SMALL["loras"][0] | {"weight": {"unet": 0.5, "*": 1.0}}, SMALL["loras"][1]]
    return read_config({**SMALL, "loras": loras, "merges": [*merges, {"method": "switch"}]})


def run(config: Config, folder: Path, failures: Failures) -> dict[str, Variant]:
    """The variants of a run, by their names."""
    with Store(folder).open() as store:
        return {str(variant.name): variant for variant in made(config, store, failures)}


def made(config: Config, store: Store, failures: Failures) -> list[Variant]:
    """The variants of the one set."""
    pool = open_pool(config, None, None)
    with Local(config, store.folder, None, pool) as executor:
        return make_variants(config, adapter_sets(config), pool, store, failures, executor)


@pytest.fixture
def sweeps(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many recipes each sweep had."""
    counts: list[int] = []

    def counted(loras: Any, recipes: Any, **settings: Any) -> list[ml.Adapter]:
        counts.append(len(recipes))
        return ml.merge_many(loras, recipes, **settings)

    monkeypatch.setattr(merging, "merge_many", counted)
    return counts


def test_merges_are_made_together_and_kept(tmp_path: Path, sweeps: list[int]) -> None:
    """A few at a time; each is that of its own; what a run holds is not made again."""
    config, failures = config_of([*MERGES, {"method": "dare"}]), Failures()
    found = run(config, tmp_path, failures)
    assert sweeps == [4] and not failures.rows
    merged = [name for name in found if name.startswith("merge:")]
    assert merged[:2] == ["merge:svd rank=4", "merge:svd rank=8"] and merged[-1] == "merge:switch" and len(merged) == 6
    loras, weights = [lora.path for lora in config.loras], [lora.weight for lora in config.loras]
    (path,) = found["merge:ties rank=4 density=0.5"].acting.merged.values()
    adapter = ml.load(path)
    alone = ml.merge(loras, weights, "ties", rank=4, density=0.5).save(tmp_path / "alone.safetensors")
    again = ml.load(alone)
    assert all(torch.equal(x.lora_A, again.layers[name].lora_A) for name, x in adapter.layers.items())
    assert adapter.metadata["mergelab"] == again.metadata["mergelab"]
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "adapters").iterdir()}
    (tmp_path / "adapters" / "svd-rank-4.json").unlink()
    run(config_of([*MERGES, {"method": "dare"}, {"method": "cat"}]), tmp_path, failures)
    assert sweeps == [4, 2]
    changed = {p.name for p, time in kept.items() if p.stat().st_mtime_ns != time}
    assert changed == {"svd-rank-4.json", "svd-rank-4.safetensors"}


def test_a_merge_that_fails_takes_no_others_with_it(tmp_path: Path, sweeps: list[int]) -> None:
    """It is recorded in its own words, and the others are there."""

    @ml.register("fails_in_a_run")
    def fails(changes: Tensor, weights: Tensor) -> Tensor:
        raise KeyError("mine")

    failures = Failures()
    found = run(config_of([MERGES[0], {"method": "fails_in_a_run"}, MERGES[1]]), tmp_path, failures)
    assert sweeps == [4]
    assert [name for name in found if name.startswith("merge:")] == [
        "merge:svd rank=4", "merge:svd rank=8", "merge:ties rank=4 density=0.3", "merge:ties rank=4 density=0.5",
        "merge:switch",
    ]  # fmt: skip
    (row,) = failures.rows
    assert row["variant"] == "merge:fails_in_a_run"
    assert row["error"].startswith("LayerError: method 'fails_in_a_run' failed in layer ") and "mine" in row["error"]


def test_a_merge_that_cannot_be_written_is_recorded(tmp_path: Path) -> None:
    """The one whose file is in the way; seconds of those made together are equal shares."""
    (tmp_path / "run" / "adapters" / "svd-rank-8.json").mkdir(parents=True)
    failures = Failures()
    store = Store(tmp_path / "run")
    config = config_of(MERGES)
    found = {str(variant.name) for variant in made(config, store, failures)}
    assert [row["variant"] for row in failures.rows] == ["merge:svd rank=8"]
    assert "merge:svd rank=8" not in found and "merge:ties rank=4 density=0.5" in found
    records = [
        json.loads(path.read_text()) for path in (tmp_path / "run" / "adapters").glob("*.json") if path.is_file()
    ]
    assert len(records) == 3 and len({record["seconds"] for record in records}) == 1
