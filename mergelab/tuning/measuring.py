"""Where candidates are drawn and scored: the one place that knows how an evaluation keeps its images.

An image is kept under a hash of all that decides it, so what was drawn once is never drawn again, whatever the
candidate was called; so is a score. Plain sums are fused into the weights, without a merge; merges are made a few at a
time, from inputs that are read and decomposed once, and not kept.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pandas as pd

from mergelab.adapter import Adapter
from mergelab.engine.merge import merge, merge_many
from mergelab.evaluation.config import Config
from mergelab.evaluation.grid import checked
from mergelab.evaluation.metrics.metric import Asked, Description, Metric, Picture
from mergelab.evaluation.metrics.registry import open_metrics
from mergelab.evaluation.opening import pipeline_keywords, threads_for
from mergelab.evaluation.photographs import all_photographs
from mergelab.evaluation.store import Store, hash_of
from mergelab.pipelines.adapters import check_adapters
from mergelab.pipelines.fingerprints import adapter_hash
from mergelab.pipelines.images import generate_images
from mergelab.pipelines.opening import Pipeline
from mergelab.pipelines.staging import Stage
from mergelab.publishing.recipe import package_version
from mergelab.tuning.bench import COLUMNS
from mergelab.tuning.candidate import BASE, Candidate, Scene

AT_A_TIME = 4
"""Merges that are made together."""
VERSION = package_version()
SUM: Mapping[str, Any] = {"method": "cat"}
"""The merge that loses nothing of a plain sum."""


@dataclass
class DrawingBench:
    """A `Bench` that draws with a pipeline, and keeps all in a run folder.

    Attributes:
        config: an evaluation of the same pipeline and adapters, with the metrics that are measured.
        store: of the run folder, open.
        adapters: name -> adapter.
        stage: with the pipeline.
        model: its fingerprint.
        keywords: of every call of it.
        metrics: open.
        photos: adapter -> its photographs.
        written: keywords of `merge` by which a plain sum would be written.
        bar: a progress bar, of images.
    """

    config: Config
    store: Store
    adapters: Mapping[str, Adapter]
    stage: Stage
    model: str
    keywords: Mapping[str, Any]
    metrics: Sequence[Metric]
    photos: Mapping[str, tuple[Picture, ...]]
    written: Mapping[str, Any]
    bar: Any
    _failed: dict[str, str] = field(default_factory=dict)
    _hashes: dict[str, str] = field(default_factory=dict)
    _merged: dict[str, Adapter] = field(default_factory=dict)
    _described: dict[str, Description] = field(default_factory=dict)

    def measure(self, candidates: Sequence[Candidate], scenes: Sequence[Scene]) -> pd.DataFrame:
        """The scores of every candidate on every scene; see `Bench`."""
        rows = list[dict[str, Any]]()
        for first in range(0, len(candidates), AT_A_TIME):
            several = candidates[first : first + AT_A_TIME]
            self._merge([one for one in several if self._missing(one, scenes)])
            for candidate in several:
                self.bar.set_postfix_str(candidate.label)
                todo = self._missing(candidate, scenes)
                self.bar.update(len(scenes) - len(todo))
                self._draw(candidate, todo)
                rows += [row for scene in scenes for row in self._rows(candidate, scene)]
        frame = pd.DataFrame(rows, columns=list(COLUMNS))
        for metric in self.metrics:
            own = frame[frame["metric"] == metric.description.name]
            if len(own):
                self._described[metric.description.name] = metric.described(own)
        return frame

    def description(self, metric: str) -> Description:
        """What a metric says of itself, in the light of its last scores."""
        known = {one.description.name: one.description for one in self.metrics}
        return self._described.get(metric, known[metric])

    def failure(self, candidate: Candidate) -> str:
        """Why a candidate has no rows."""
        return self._failed.get(candidate.label, "")

    def image(self, candidate: Candidate, scene: Scene) -> Path:
        """Where the image lies, once it is drawn."""
        return self.store.image_path(self._key(candidate, scene))

    def bytes(self, candidate: Candidate) -> int | None:
        """The size of the file, written as it would be, and removed."""
        key = f"bytes of {self._fingerprint(candidate)} by {hash_of(self._by(candidate))}"
        known, path = self.store.recall(key), self.store.adapters / "size.safetensors"
        if known is None:
            try:
                self.merged(candidate).save(path)
                known = path.stat().st_size
            except Exception as error:
                self._fail(candidate, error)
                return None
            finally:
                path.unlink(missing_ok=True)
            self.store.keep(key, known)
        return int(known)

    def merged(self, candidate: Candidate) -> Adapter:
        """The adapter as it would be written."""
        kept = self._merged.get(self._fingerprint(candidate)) if candidate.merge is not None else None
        names = [name for name in self.adapters if name in candidate.weights]
        weights = [candidate.weights[name] for name in names]
        return kept or merge(
            [self.adapters[name] for name in names], weights, device=self.config.device, progress=False,
            **self._by(candidate),
        )  # fmt: skip

    def _by(self, candidate: Candidate) -> Mapping[str, Any]:
        return self.written if candidate.merge is None else candidate.merge

    def _fail(self, candidate: Candidate, error: Exception) -> None:
        self._failed[candidate.label] = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"

    # What is drawn.

    def _fingerprint(self, candidate: Candidate) -> str:
        """A hash of what acts."""
        for name in candidate.weights:
            if name not in self._hashes:
                self._hashes[name] = adapter_hash(self.adapters[name])
        weights = [[self._hashes[name], _plain(candidate.weights[name])] for name in self.adapters
                   if name in candidate.weights]  # fmt: skip
        if candidate.merge is None:
            return hash_of({"sum": sorted(weights, key=str)})
        return hash_of({"inputs": weights, "merge": candidate.merge, "version": VERSION})

    def _key(self, candidate: Candidate, scene: Scene) -> str:
        """Of an image: a hash of all that it depends on."""
        request: dict[str, Any] = {"model": self.model, "adapters": self._fingerprint(candidate)}
        request |= {"prompt": scene.prompt}
        request |= {"seed": scene.seed, "keywords": self.keywords, "vae_tiling": self.config.memory.vae_tiling}
        request |= {"compile": self.config.memory.compile}
        return hash_of(request | ({"fused": self.stage.fused} if candidate.weights else {}))

    def _missing(self, candidate: Candidate, scenes: Sequence[Scene]) -> list[Scene]:
        return [scene for scene in scenes if not self.store.image_path(self._key(candidate, scene)).exists()]

    def _merge(self, candidates: Sequence[Candidate]) -> None:
        """Makes the merges of several candidates together; one that fails alone does not take others with it."""
        todo = [one for one in candidates if one.merge is not None and self._fingerprint(one) not in self._merged]
        together = [one for one in todo if set(one.weights) == set(self.adapters)]
        self._merged = {key: kept for key, kept in self._merged.items()
                        if key in {self._fingerprint(one) for one in candidates}}  # fmt: skip
        if len(together) > 1:
            recipes = [
                {**(one.merge or {}), "weights": [one.weights[name] for name in self.adapters]} for one in together
            ]
            try:
                made = merge_many(list(self.adapters.values()), recipes, device=self.config.device, progress=False)
            except Exception:  # the merges by themselves tell whose it is
                made = []
            self._merged |= {self._fingerprint(one): merged for one, merged in zip(together, made)}
        for one in todo:
            if self._fingerprint(one) not in self._merged:
                try:
                    self._merged[self._fingerprint(one)] = self.merged(one)
                except Exception as error:
                    self._fail(one, error)

    def _acting(self, candidate: Candidate) -> dict[str, Adapter]:
        """The adapters that act, the weights in them."""
        if candidate.merge is not None:
            return {candidate.label: self._merged[self._fingerprint(candidate)]}
        acting = {}
        for name, weight in candidate.weights.items():
            own = self.adapters[name]
            scaled = merge([own], [weight], progress=False, **SUM) if isinstance(weight, Mapping) else weight * own
            acting[name] = replace(scaled, source=name)
        return acting

    def _draw(self, candidate: Candidate, scenes: Sequence[Scene]) -> None:
        """What is missing of one candidate, in batches; an image that cannot be drawn does not take others with it."""
        if not scenes or (candidate.merge is not None and self._fingerprint(candidate) not in self._merged):
            return
        try:
            self.stage.show(self._acting(candidate), self._fingerprint(candidate))
        except Exception as error:  # whatever is wrong with an adapter concerns this candidate alone
            self._fail(candidate, error)
            return
        rest, size = list(scenes), self.config.generation.batch
        while units := rest[:size]:
            try:
                images = generate_images(self.stage.pipeline, [(one.prompt, one.seed) for one in units], self.keywords)
            except Exception as error:
                if len(units) > 1:
                    size = len(units) // 2
                    continue
                self._fail(candidate, error)
                images = []
            for scene, pixels in zip(units, images):
                self.store.save_image(self._key(candidate, scene), pixels)
            self.bar.update(len(units))
            rest = rest[size:]

    # What is scored.

    def _rows(self, candidate: Candidate, scene: Scene) -> list[dict[str, Any]]:
        key = self._key(candidate, scene)
        if not self.store.image_path(key).exists():
            return []
        calls = "+".join(name for name in self.adapters if name in scene.calls)
        cell = {"candidate": candidate.label, "prompt": scene.prompt, "calls": calls, "seed": scene.seed}
        rows = list[dict[str, Any]]()
        for metric in self.metrics:
            try:
                values = self._scores(metric, candidate, scene, key)
            except Exception as error:  # a metric, perhaps the user's own, that fails on one image
                self._fail(candidate, error)
                continue
            name = metric.description.name
            rows += [cell | {"metric": name, "reference": about, "value": value} for about, value in values.items()]
        return rows

    def _scores(self, metric: Metric, candidate: Candidate, scene: Scene, key: str) -> Mapping[str, float]:
        """Of one image by one metric, from an earlier run where it has them."""
        about, base = metric.description.compares_with, self._key(Candidate(BASE, {}), scene)
        compared = {BASE: base} if about == "images" and base != key and self.store.image_path(base).exists() else {}
        concepts = {lora.name: lora.concepts for lora in self.config.loras if lora.concepts} if about == "words" else {}
        photos = self.photos if metric.description.photographs else {}
        request = {"metric": metric.description.name, "settings": dict(metric.settings), "image": key}
        request |= {"prompt": scene.prompt, "compared": compared, "concepts": concepts, "version": VERSION}
        request |= {"photos": {name: sorted(picture.key for picture in own) for name, own in photos.items()}}
        request_key = hash_of(request)
        values = self.store.recall(request_key)
        if values is None:
            pictures = {name: Picture(other, self.store.load_image(other)) for name, other in compared.items()}
            picture = Picture(key, self.store.load_image(key))
            values = dict(metric.score(picture, Asked(scene.prompt, pictures, concepts, photos)))
            checked(values, metric.description)
            self.store.keep(request_key, values)
        return dict(values)


@contextmanager
def drawing_bench(
    config: Config,
    store: Store,
    pipeline: Pipeline,
    model: str,
    adapters: Mapping[str, Adapter],
    written: Mapping[str, Any],
    bar: Any,
) -> Iterator[DrawingBench]:
    """A bench that draws with a pipeline; arguments as its attributes.

    Raises:
        MergelabError: as an evaluation: the adapters do not belong to the pipeline, a metric cannot be loaded.
    """
    check_adapters(pipeline, adapters)
    asked = config.generation.adapters
    layers = dict.fromkeys(layer for adapter in adapters.values() for layer in adapter.layers)
    stage = Stage(pipeline, layers, fused=None if asked is None else asked == "fused")
    keywords, metrics, photos = pipeline_keywords(config, pipeline), open_metrics(config), all_photographs(config.loras)
    with stage, threads_for(config):
        yield DrawingBench(config, store, adapters, stage, model, keywords, metrics, photos, written, bar)


def _plain(weight: Any) -> Any:
    """A weight as a request has it: the order of a mapping counts, since later entries win."""
    return [[key, float(value)] for key, value in weight.items()] if isinstance(weight, Mapping) else float(weight)
