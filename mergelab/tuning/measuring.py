"""Where candidates are drawn and scored: the one place that knows how an evaluation keeps its images.

An image is kept under a hash of all that decides it, so what was drawn once is never drawn again, whatever the
candidate was called; so is a score. Plain sums are fused into the weights, without a merge; merges are made a few at a
time, from inputs that are read and decomposed once, and their files go when others are asked for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from mergelab.adapter import Adapter
from mergelab.engine.merge import merge
from mergelab.evaluation.acting import Acting, Pool
from mergelab.evaluation.config import Config
from mergelab.evaluation.drawing import Failed, draw, image_key
from mergelab.evaluation.executors.executor import Executor, pieces
from mergelab.evaluation.executors.task import DrawTask, MergeTask, Question, Unit
from mergelab.evaluation.grid import SPENT
from mergelab.evaluation.merging import AT_A_TIME, Planned
from mergelab.evaluation.metrics.metric import Description, Picture
from mergelab.evaluation.metrics.registry import Profile
from mergelab.evaluation.names import VariantName
from mergelab.evaluation.scoring import answered, question_of
from mergelab.evaluation.store import Store, hash_of, write
from mergelab.publishing.recipe import package_version
from mergelab.tuning.bench import COLUMNS
from mergelab.tuning.candidate import BASE, Candidate, Scene

TRIALS = "trials"
"""In the folder of merged adapters: those that are drawn just now."""


@dataclass
class DrawingBench:
    """A `Bench` that draws with the workers of an executor, and keeps all in a run folder.

    Attributes:
        config: an evaluation of the same pipeline and adapters, with the metrics that are measured.
        store: of the run folder, open.
        pool: the adapters.
        executor: who merges, draws and scores.
        photos: adapter -> its photographs.
        written: keywords of `merge` by which a plain sum would be written.
        bar: a progress bar, of images.
        metrics: by which it measures, of those of the workers; None: all.
        seconds: spent on what.
    """

    config: Config
    store: Store
    pool: Pool
    executor: Executor
    photos: Mapping[str, tuple[Picture, ...]]
    written: Mapping[str, Any]
    bar: Any
    metrics: Sequence[str] | None = None
    seconds: dict[str, float] = field(default_factory=lambda: dict(SPENT))
    _failed: dict[str, str] = field(default_factory=dict)
    _described: dict[str, Description] = field(default_factory=dict)

    def measure(self, candidates: Sequence[Candidate], scenes: Sequence[Scene]) -> pd.DataFrame:
        """The scores of every candidate on every scene; see `Bench`."""
        acting = {one.label: self._asked(one) for one in candidates}
        missing = {one.label: self._missing(acting[one.label], scenes) for one in candidates}
        self.bar.update(len(candidates) * len(scenes) - sum(map(len, missing.values())))
        sums = {one.label: acting[one.label] for one in candidates if one.merge is None}
        shown = sums | self._merged([one for one in candidates if one.merge is not None and missing[one.label]])
        failed: Failed = {}
        tasks = [DrawTask("", VariantName("merge", label), shown[label], tuple(todo))
                 for label, todo in missing.items() if todo and label in shown]  # fmt: skip
        divided = (part for task in tasks for part in self.executor.divided(task))
        draw(divided, self.store, self.executor, failed, self.bar, self.seconds)
        for (_, name), errors in failed.items():
            for error in errors.values():
                self._fail(name.partition(":")[2], error)
        return self._scored(candidates, acting, scenes)

    def description(self, metric: str) -> Description:
        """What a metric says of itself, in the light of its last scores."""
        return self._described.get(metric, self._profiles[metric].description)

    def failure(self, candidate: Candidate) -> str:
        """Why a candidate has no rows."""
        return self._failed.get(candidate.label, "")

    def bytes(self, candidate: Candidate) -> int | None:
        """The size of the file, written as it would be."""
        key = f"bytes of {self._fingerprint(candidate)} by {hash_of(dict(self._by(candidate)))}"
        known, path = self.store.recall(key), self._file(candidate)
        if known is None:
            try:
                if not path.exists():
                    path.parent.mkdir(parents=True, exist_ok=True)
                    self.merged(candidate).save(path)
                known = path.stat().st_size
            except Exception as error:
                self._fail(candidate.label, error)
                return None
            self.store.keep(key, known)
        return int(known)

    def merged(self, candidate: Candidate) -> Adapter:
        """The adapter as it would be written."""
        names = _names(candidate, self.pool)
        return merge(
            [self.pool.loras[name] for name in names], [candidate.weights[name] for name in names],
            device=self.config.device, progress=False, **self._by(candidate),
        )  # fmt: skip

    def image(self, candidate: Candidate, scene: Scene) -> Path:
        """Where an image lies, once it is drawn."""
        return self.store.image_path(self._key(self._asked(candidate), scene))

    def __enter__(self) -> DrawingBench:
        return self

    def __exit__(self, *error: object) -> None:
        """Removes the merges of trials."""
        folder = self.store.adapters / TRIALS
        for path in folder.glob("*") if folder.exists() else ():
            path.unlink()
        if folder.exists():
            folder.rmdir()

    def _by(self, candidate: Candidate) -> Mapping[str, Any]:
        return self.written if candidate.merge is None else candidate.merge

    def _fail(self, label: str, error: Exception) -> None:
        self._failed[label] = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"

    @cached_property
    def _profiles(self) -> dict[str, Profile]:
        known = {one.description.name: one for one in self.executor.facts.metrics}
        return {name: one for name, one in known.items() if self.metrics is None or name in self.metrics}

    # What is drawn.

    def _fingerprint(self, candidate: Candidate) -> str:
        """A hash of what acts."""
        weights = [[self.pool.hash(name), _plain(candidate.weights[name])] for name in _names(candidate, self.pool)]
        if candidate.merge is None:
            return hash_of({"sum": sorted(weights, key=str)})
        return hash_of({"inputs": weights, "merge": candidate.merge, "version": package_version()})

    def _asked(self, candidate: Candidate) -> Acting:
        """What acts, as the keys of images have it; a merge is drawn from its file."""
        return Acting(self._fingerprint(candidate), dict(candidate.weights))

    def _key(self, acting: Acting, scene: Scene) -> str:
        return image_key(self.config, self.executor.facts, acting, (scene.prompt, scene.seed))

    def _missing(self, acting: Acting, scenes: Sequence[Scene]) -> list[tuple[Unit, str]]:
        asked = [((scene.prompt, scene.seed), self._key(acting, scene)) for scene in scenes]
        return [(unit, key) for unit, key in asked if not self.store.image_path(key).exists()]

    def _file(self, candidate: Candidate) -> Path:
        by = hash_of({"by": dict(self._by(candidate))})[:8]
        return self.store.adapters / TRIALS / f"{self._fingerprint(candidate)}-{by}.safetensors"

    def _merged(self, candidates: Sequence[Candidate]) -> dict[str, Acting]:
        """What acts of those that are merges, made together where they are of the same adapters."""
        files = {one.label: self._file(one) for one in candidates}
        folder = self.store.adapters / TRIALS
        for path in folder.glob("*.safetensors") if folder.exists() else ():
            if path not in files.values():
                path.unlink()
        waiting: dict[tuple[str, ...], dict[str, Planned]] = {}
        for one in candidates:
            if not files[one.label].exists():
                names = _names(one, self.pool)
                keywords = {**self._by(one), "weights": [one.weights[name] for name in names]}
                planned = Planned(keywords, self._fingerprint(one), files[one.label])
                waiting.setdefault(names, {})[one.label] = planned
        tasks = [MergeTask("", names, several) for names, planned in waiting.items()
                 for several in map(dict, pieces(list(planned.items()), AT_A_TIME))]  # fmt: skip
        failed = dict[str, Exception]()
        for task, part in self.executor.run(tasks):
            assert isinstance(task, MergeTask)
            if isinstance(part, Exception):
                failed |= dict.fromkeys(task.planned, part)
            elif isinstance(part.record, Exception):
                failed[part.label] = part.record
            elif part.file is not None:
                folder.mkdir(parents=True, exist_ok=True)
                write(files[part.label], part.file)
        for label, error in failed.items():
            self._fail(label, error)
        return {one.label: Acting(self._fingerprint(one), merged={one.label: files[one.label]})
                for one in candidates if one.label not in failed}  # fmt: skip

    # What is scored.

    def _scored(
        self, candidates: Sequence[Candidate], acting: Mapping[str, Acting], scenes: Sequence[Scene]
    ) -> pd.DataFrame:
        own = {
            one.label: [(scene, asked) for scene in scenes if (asked := self._questions(acting[one.label], scene))]
            for one in candidates
        }
        known = {name: profile.description for name, profile in self._profiles.items()}
        groups = [[question for _, questions in cells for question in questions] for cells in own.values()]
        answers = answered(groups, self.store, known, self.executor, self.seconds, lambda images: None)
        rows = list[dict[str, Any]]()
        for label, scene, questions in ((label, *cell) for label, cells in own.items() for cell in cells):
            calls = "+".join(name for name in self.pool.loras if name in scene.calls)
            cell = {"candidate": label, "prompt": scene.prompt, "calls": calls, "seed": scene.seed}
            for question in questions:
                values = answers[question.key]
                if isinstance(values, Exception):  # a metric, perhaps the user's own, that fails on one image
                    self._fail(label, values)
                    continue
                rows += [cell | {"metric": question.metric, "reference": about, "value": value}
                         for about, value in values.items()]  # fmt: skip
        frame = pd.DataFrame(rows, columns=list(COLUMNS))
        for name, profile in self._profiles.items():
            scores = frame[frame["metric"] == name]
            if len(scores):
                self._described[name] = profile.described(scores)
        return frame

    def _questions(self, acting: Acting, scene: Scene) -> list[Question]:
        """Of one image to all metrics; none where it is not there."""
        key, base = self._key(acting, scene), self._key(self._asked(Candidate(BASE, {})), scene)
        if not self.store.image_path(key).exists():
            return []
        compared = {BASE: base} if base != key and self.store.image_path(base).exists() else {}
        concepts = {lora.name: lora.concepts for lora in self.config.loras if lora.concepts}
        return [question_of(profile, key, scene.prompt, compared, concepts, self.photos)
                for profile in self._profiles.values()]  # fmt: skip


def _names(candidate: Candidate, pool: Pool) -> tuple[str, ...]:
    """Those that act in a candidate, in the order of the run."""
    return tuple(name for name in pool.loras if name in candidate.weights)


def _plain(weight: Any) -> Any:
    """A weight as a request has it: the order of a mapping counts, since later entries win."""
    return [[key, float(value)] for key, value in weight.items()] if isinstance(weight, Mapping) else float(weight)
