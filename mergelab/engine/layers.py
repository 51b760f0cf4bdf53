"""The layers of a merge: batch after batch, each merged, decomposed, and cut to its rank."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from typing import Any, cast

from mergelab.devices import memory_budget
from mergelab.engine.batches import Group, LayerBatch, batch_of, groups, upload
from mergelab.engine.blocks import coordinates_of
from mergelab.engine.job import Job
from mergelab.engine.results import MergedLayer
from mergelab.engine.returned import errors_told
from mergelab.engine.storing import merged_batch
from mergelab.engine.thresholds import Owned, adapter_thresholds
from mergelab.linalg.streams import Beside
from mergelab.linalg.workspace import Workspace, threads, trim_heap
from mergelab.methods.method import Level, MatrixWise

# Dense changes of more entries than this are computed one after the other, by all threads together.
LARGE = 1 << 22


def merge_layers(job: Job, present: Mapping[str, tuple[int, ...]], done: Callable[[int], object]) -> list[MergedLayer]:
    """Every layer, in the order of the names.

    Args:
        job: what is to be done.
        present: layer name -> the adapters that have it, at a weight that is not zero.
        done: called after each batch with the number of its layers.
    """
    merged = {name: MergedLayer(name, job.shape(name)) for name, own in present.items() if not own}
    done(len(merged))
    budget = memory_budget(job.device, job.memory)
    batches = groups(job, {name: own for name, own in present.items() if own}, budget)
    with threads() as pool:
        workspace = Workspace(pool)
        prepared = _prepare_adapters(job, batches, workspace)
        each = _on_gpu if budget else _on_cpu
        for number, layers in enumerate(each(job, batches, prepared, workspace)):
            merged |= {layer.name: layer for layer in layers}
            done(len(layers))
            if number % 32 == 31:
                trim_heap()
    return [merged[name] for name in present]


def _on_cpu(
    job: Job, batches: Sequence[Group], prepared: Sequence[Any] | None, workspace: Workspace
) -> Iterator[list[MergedLayer]]:
    """Small layers beside each other, each in a thread; then large ones, each by all threads."""
    alone = Workspace()

    def merge(group: Group, own: Workspace) -> list[MergedLayer]:
        batch = batch_of(job, group, upload(job, group), own)
        return merged_batch(job, batch, prepared, own)()

    large = [group for group in batches if _is_large(job, group)]
    small = [group for group in batches if not _is_large(job, group)]
    yield from workspace.map(lambda group: merge(group, alone), small)
    yield from (merge(group, workspace) for group in large)


def _on_gpu(
    job: Job, batches: Sequence[Group], prepared: Sequence[Any] | None, workspace: Workspace
) -> Iterator[list[MergedLayer]]:
    """One batch after the other; the next is read, and the one before is written, meanwhile."""
    waiting: list[Future[list[MergedLayer]]] = []
    with Beside(job.device) as writer:
        for batch in _in_turn(job, batches, workspace):
            waiting.append(writer.behind(merged_batch(job, batch, prepared, workspace)))
            yield from (waiting.pop(0).result() for _ in range(len(waiting) - 1) if waiting[0].done())
        yield from (future.result() for future in waiting)


def _in_turn(job: Job, batches: Iterable[Group], workspace: Workspace) -> Iterator[LayerBatch]:
    """One batch after the other, each read while the one before is in use."""
    with Beside(job.device) as reader:
        for group, changes in reader.ahead(lambda group: upload(job, group), batches):
            yield batch_of(job, group, changes, workspace)


def _is_large(job: Job, group: Group) -> bool:
    strategy = job.strategy
    is_dense = strategy.level is not Level.LAYER and not strategy.is_exact_sum and strategy.acts_in.is_dense
    return is_dense and math.prod(job.shape(group.names[0])) > LARGE


def _prepare_adapters(job: Job, batches: Sequence[Group], workspace: Workspace) -> Sequence[Any] | None:
    """What a sparsifier must know of whole adapters, one for each; None where it looks at one layer at a time."""
    sparsifier = job.strategy.sparsifier
    if sparsifier is None or sparsifier.scope == "layer":
        return None
    method = cast(MatrixWise, job.strategy)

    def stacks() -> Iterable[Owned]:
        for batch in _in_turn(job, batches, workspace):
            for one in batch.layers(job):
                (stacked,) = coordinates_of(method, one.parts, one.span).stacks
                yield batch.adapters, stacked

    blocks = workspace if job.device.type == "cpu" else Workspace()
    with errors_told(method):
        return sparsifier.prepare(lambda share: adapter_thresholds(share, stacks, len(job.inputs), blocks))
