"""The layers of one or several merges: batch after batch, each read once, merged, decomposed, and cut to its rank."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from functools import partial
from typing import Any, cast

import torch

from mergelab.devices import memory_budget
from mergelab.engine.batches import Group, LayerBatch, batches_of, groups, upload
from mergelab.engine.blocks import coordinates_of, expect_thresholds
from mergelab.engine.job import Job, said_of
from mergelab.engine.results import MergedLayer
from mergelab.engine.returned import errors_told
from mergelab.engine.storing import merged_batch
from mergelab.engine.thresholds import Known, Owned, Wanted, adapter_thresholds
from mergelab.linalg.streams import Beside
from mergelab.linalg.workspace import Workspace, threads, trim_heap
from mergelab.methods.method import MatrixWise

# Dense changes of more entries than this are computed one after the other, by all threads together.
LARGE = 1 << 22
# Results that may wait on a GPU to be written.
WAITING = 3

# For each job, of each adapter what a sparsifier found out over all of its layers; None where it looks at one alone.
Prepared = Sequence[Sequence[Any] | None]
# What brings the layers of one job to the CPU, with its number.
Finish = tuple[int, Callable[[], list[MergedLayer]]]


def merge_layers(
    jobs: Sequence[Job], present: Sequence[Mapping[str, tuple[int, ...]]], done: Callable[[int], object]
) -> list[list[MergedLayer]]:
    """Every layer of every job, in the order of the names.

    Args:
        jobs: what is to be done with the same adapters, on one device.
        present: for each job, layer name -> the adapters that have it, at a weight that is not zero.
        done: called with numbers of layers, whenever some of a job are done.
    """
    first = jobs[0]
    merged = [{name: MergedLayer(name, first.shape(name)) for name, own in x.items() if not own} for x in present]
    done(sum(map(len, merged)))
    budget = memory_budget(first.device, first.memory)
    batches = groups(jobs, present, budget)
    with threads() as pool:
        workspace = Workspace(pool)
        prepared = _prepare_adapters(jobs, batches, workspace)
        each = _on_gpu if budget else _on_cpu
        for count, (number, layers) in enumerate(each(jobs, batches, prepared, workspace)):
            merged[number] |= {layer.name: layer for layer in layers}
            done(len(layers))
            if count % 32 == 31:
                trim_heap()
    return [[own[name] for name in names] for own, names in zip(merged, present)]


def _on_cpu(
    jobs: Sequence[Job], batches: Sequence[Group], prepared: Prepared, workspace: Workspace
) -> Iterator[tuple[int, list[MergedLayer]]]:
    """Small layers beside each other, each in a thread; then large ones, each by all threads."""
    alone = Workspace()

    def merge(group: Group, own: Workspace) -> list[tuple[int, list[MergedLayer]]]:
        found = batches_of(jobs, group, upload(jobs[0], group), own)
        return [(i, finish()) for batch, users in found for i, finish in _merged(jobs, users, batch, prepared, own)]

    large = [group for group in batches if _is_large(jobs, group)]
    small = [group for group in batches if not _is_large(jobs, group)]
    for found in workspace.map(lambda group: merge(group, alone), small):
        yield from found
    for group in large:
        yield from merge(group, workspace)


def _on_gpu(
    jobs: Sequence[Job], batches: Sequence[Group], prepared: Prepared, workspace: Workspace
) -> Iterator[tuple[int, list[MergedLayer]]]:
    """One batch after the other; the next is read, and the one before is written, meanwhile."""
    waiting: list[tuple[int, Future[list[MergedLayer]]]] = []
    device = jobs[0].device
    most = torch.cuda.memory_reserved(device) + memory_budget(device, jobs[0].memory)
    with Beside(device) as writer:
        for batch, users in _in_turn(jobs, batches, workspace):
            if torch.cuda.memory_reserved(device) > most:
                torch.cuda.empty_cache()  # what torch keeps of batches of other shapes is for others to use
            for number, finish in _merged(jobs, users, batch, prepared, workspace):
                waiting.append((number, writer.behind(finish)))
                while len(waiting) > WAITING or (len(waiting) > 1 and waiting[0][1].done()):
                    written, future = waiting.pop(0)
                    yield written, future.result()
        yield from ((number, future.result()) for number, future in waiting)


def _in_turn(
    jobs: Sequence[Job], batches: Iterable[Group], workspace: Workspace
) -> Iterator[tuple[LayerBatch, list[int]]]:
    """One batch after the other, each read while the one before is in use; with the numbers of its jobs."""
    with Beside(jobs[0].device) as reader:
        for group, changes in reader.ahead(lambda group: upload(jobs[0], group), batches):
            yield from batches_of(jobs, group, changes, workspace)


def _merged(
    jobs: Sequence[Job], users: Sequence[int], batch: LayerBatch, prepared: Prepared, workspace: Workspace
) -> Iterator[Finish]:
    """The merges of a batch, one for jobs that differ in the rank alone, cut for each of them."""

    def alike(i: int, j: int) -> bool:
        same = prepared[i] is prepared[j] and jobs[i].is_like(jobs[j])
        return same and torch.equal(batch.weights(jobs[i]), batch.weights(jobs[j]))

    kinds = [(own, batch.layers(jobs[own[0]])) for own in _grouped(users, alike)]
    for own, layers in kinds:
        if prepared[own[0]] is None:
            expect_thresholds(jobs[own[0]].strategy, layers, batch.thresholds)
    for own, layers in kinds:
        yield from zip(own, merged_batch([jobs[i] for i in own], batch, layers, prepared[own[0]], workspace))


def _grouped(numbers: Iterable[int], alike: Callable[[int, int], bool]) -> list[list[int]]:
    """Numbers that are alike, together."""
    found: list[list[int]] = []
    for number in numbers:
        own = next((own for own in found if alike(own[0], number)), None)
        if own is None:
            found.append([number])
        else:
            own.append(number)
    return found


def _is_large(jobs: Sequence[Job], group: Group) -> bool:
    large = math.prod(jobs[0].shape(group.names[0])) > LARGE
    return large and any(jobs[i].strategy.forms_changes for i in group.jobs)


def _prepare_adapters(jobs: Sequence[Job], batches: Sequence[Group], workspace: Workspace) -> Prepared:
    """What sparsifiers must know of whole adapters; jobs that see the same changes look at them together."""
    prepared: list[Sequence[Any] | None] = [None] * len(jobs)
    sparsifiers = {i: job.strategy.sparsifier for i, job in enumerate(jobs)}
    asking = {i: own for i, own in sparsifiers.items() if own is not None and own.scope != "layer"}
    for view in _grouped(asking, lambda i, j: _sees(jobs[i]) == _sees(jobs[j])):
        known, adapters = Known(), range(len(jobs[0].inputs))
        known.expect(adapters, [share for i in view for share in asking[i].shares])
        search = partial(_searched, jobs[view[0]], [group for group in batches if view[0] in group.jobs], workspace)
        thresholds = partial(known.of, keys=adapters, find=search)
        for own in _grouped(view, lambda i, j: jobs[i].is_like(jobs[j])):
            with said_of(jobs[own[0]].recipe), errors_told(jobs[own[0]].strategy):
                states = asking[own[0]].prepare(thresholds)
            for i in own:
                prepared[i] = states
    return prepared


def _sees(job: Job) -> tuple[Any, ...]:
    """What decides how the rule of a job sees the changes."""
    method = cast(MatrixWise, job.strategy)
    return method.space, method.basis, method.weights_before_rule, [given.weights for given in job.inputs]


def _searched(job: Job, batches: Sequence[Group], workspace: Workspace, wanted: Sequence[Wanted]) -> list[float]:
    """Thresholds of adapters, over all layers of a job."""
    alone = [group._replace(jobs=(0,)) for group in batches]

    def stacks() -> Iterable[Owned]:
        for batch, _ in _in_turn([job], alone, workspace):
            for one in batch.layers(job):
                (stacked,) = coordinates_of(cast(MatrixWise, job.strategy), one.parts, one.span).stacks
                yield batch.adapters, stacked

    return adapter_thresholds(wanted, stacks, workspace if job.device.type == "cpu" else Workspace())
