"""What is to be done, and what comes of it: small, and ready to be sent."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from mergelab.evaluation.acting import Acting
from mergelab.evaluation.merging import Planned
from mergelab.evaluation.names import VariantName

Unit = tuple[str, int]
"""Prompt and seed."""


class Doing(Protocol):
    """Who does tasks."""

    def merge(self, task: MergeTask) -> Iterator[Merged]:
        """Merges."""

    def draw(self, task: DrawTask) -> Iterator[Shown | list[Drawn]]:
        """Images."""

    def score(self, task: ScoreTask) -> Iterator[list[Answer]]:
        """Scores."""


class Task(ABC):
    """Something that a worker does, in parts that come one after another."""

    @abstractmethod
    def done_by(self, worker: Doing) -> Iterator[Any]:
        """The parts of what comes of it, as they are finished."""

    @abstractmethod
    def smaller(self) -> Sequence[Task]:
        """The cells of it as tasks of their own; itself, where it is one."""

    @property
    def affinity(self) -> str:
        """A worker goes on with what it has at hand: tasks of the same word."""
        return ""

    @property
    @abstractmethod
    def title(self) -> str:
        """What a person calls it."""


@dataclass(frozen=True)
class Merged:
    """One merge.

    Attributes:
        label: which.
        record: what is known of it, or why it failed.
        file: its bytes, where they do not lie in the run folder yet.
    """

    label: str
    record: dict[str, Any] | Exception
    file: bytes | None = field(default=None, repr=False)


@dataclass(frozen=True)
class MergeTask(Task):
    """Merges of the same adapters, made together.

    Attributes:
        set: of adapters.
        names: of the adapters.
        planned: each merge by its label.
    """

    set: str
    names: tuple[str, ...]
    planned: Mapping[str, Planned]

    def done_by(self, worker: Doing) -> Iterator[Merged]:
        """One after another."""
        return worker.merge(self)

    def smaller(self) -> Sequence[MergeTask]:
        """Each merge alone."""
        return [replace(self, planned={label: one}) for label, one in self.planned.items()]

    @property
    def title(self) -> str:
        """Their labels."""
        return f"merge {', '.join(self.planned)}"


@dataclass(frozen=True)
class Shown:
    """That a variant acts in the pipeline.

    Attributes:
        notes: what of it is not loaded.
        seconds: it took.
        error: why it cannot be shown at all.
    """

    notes: list[str]
    seconds: float
    error: Exception | None = None


@dataclass(frozen=True)
class Drawn:
    """One image.

    Attributes:
        unit, key: which.
        seconds: it took, its share of a batch; None where it was there already.
        file: the bytes of its file, where it does not lie in the run folder yet.
        error: why it could not be drawn.
    """

    unit: Unit
    key: str
    seconds: float | None = None
    file: bytes | None = field(default=None, repr=False)
    error: Exception | None = None


@dataclass(frozen=True)
class DrawTask(Task):
    """Images of one variant.

    Attributes:
        set, variant: which.
        acting: what acts in it.
        units: of each image, with its key.
    """

    set: str
    variant: VariantName
    acting: Acting
    units: tuple[tuple[Unit, str], ...]

    def done_by(self, worker: Doing) -> Iterator[Shown | list[Drawn]]:
        """That it is shown, then the images batch by batch."""
        return worker.draw(self)

    def smaller(self) -> Sequence[DrawTask]:
        """Each image alone."""
        return [replace(self, units=(unit,)) for unit in self.units]

    @property
    def affinity(self) -> str:
        """What acts: to change it costs time."""
        return self.acting.fingerprint

    @property
    def title(self) -> str:
        """The variant."""
        return f"draw {self.variant}" + (f" of {self.set}" if self.set else "")


@dataclass(frozen=True)
class Question:
    """One image to one metric.

    Attributes:
        key: a hash of all that the answer depends on.
        metric: its name.
        image: the key of the image.
        prompt: its own.
        images: reference -> key of the image that it is compared with.
        concepts: adapter -> prompts of its concept.
        photos: adapters whose photographs it is compared with.
    """

    key: str
    metric: str
    image: str
    prompt: str
    images: Mapping[str, str]
    concepts: Mapping[str, tuple[str, ...]]
    photos: tuple[str, ...]


@dataclass(frozen=True)
class Answer:
    """What a metric says.

    Attributes:
        key: of the question.
        values: reference -> value, or why there are none.
        seconds: it took.
    """

    key: str
    values: Mapping[str, float] | Exception
    seconds: float


@dataclass(frozen=True)
class ScoreTask(Task):
    """Questions that have images in common."""

    questions: tuple[Question, ...]

    def done_by(self, worker: Doing) -> Iterator[list[Answer]]:
        """All answers."""
        return worker.score(self)

    def smaller(self) -> Sequence[ScoreTask]:
        """Each question alone."""
        return [ScoreTask((question,)) for question in self.questions]

    @property
    def title(self) -> str:
        """How many questions."""
        return f"score {len(self.questions)} x {', '.join(dict.fromkeys(q.metric for q in self.questions))}"
